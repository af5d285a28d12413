"""A run's model exported, measured and asked, by the commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from accelsim.datasets import load
from accelsim.int8 import storage
from r2f import run
from r2f.cli import app
from r2f.display import Display
from r2f.settings import parse
from services.trainer.core import job as jobs
from services.trainer.core import result as results

SETTINGS = parse(
    {"ber": 5e-3, "iterations": 3, "batch": 8, "eval-seeds": 2, "eval-samples": 200, "embedded": True, "selection-samples": 16,
     "corrections": 0, "checks": 1, "baseline": True}
)  # fmt: skip


@pytest.fixture(scope="module")
def done(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is done."""
    folder = tmp_path_factory.mktemp("runs") / "20261126-101500-digits_cnn"
    with Display(Console(quiet=True)) as display:
        run.start(msgspec.structs.replace(SETTINGS, weights=weights), folder, display)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    digits = load("digits")
    for index in range(5):
        Image.fromarray(digits.test_images[index, :, :, 0]).save(folder / f"{index}.png")
    return folder


def called(*arguments: object) -> str:
    found = CliRunner().invoke(app, [*map(str, arguments)])
    assert found.exit_code == 0, found.output + found.stderr
    return found.stdout


def refused(*arguments: object) -> str:
    found = CliRunner().invoke(app, [*map(str, arguments)])
    assert found.exit_code == 1, found.output
    assert found.stderr.count("\n") == 1
    return found.stderr


@pytest.mark.parametrize("which", ["after", "before", "plain"])
def test_evaluation_gives_the_reports_numbers(done: Path, which: str) -> None:
    found = json.loads(called("evaluate", done, "--which", which, "--json"))
    of_run = results.read(done)
    for name, kind in (("faulty", "faulty"), ("no_faults", "clean")):
        want = getattr(of_run, f"{kind}_{which}")
        assert found[name]["top1"] == want.top1
        assert found[name]["top5"] == want.top5
    assert found["samples"] == 200, "more than are run at once"


def test_a_run_with_a_plan_is_evaluated_with_its_protection(weights: str, tmp_path: Path) -> None:
    few = ("--images", 20, "--seeds", 1, "--budget", "60%,200%", "--quantise-for", "50%", "--no-uncertain")
    called("protect", "--weights", weights, "--ber", "5e-3", *few, "--out", tmp_path / "plan")
    plan = str(tmp_path / "plan" / "plan.json")
    recipe = msgspec.structs.replace(SETTINGS.recipe, selection=0)  # what was learnt is deployed, be it better or not
    settings = msgspec.structs.replace(SETTINGS, weights=weights, iterations=2, baseline=False, plan=plan, recipe=recipe)
    with Display(Console(quiet=True)) as display:
        run.start(settings, tmp_path / "run", display)
    of_run = results.read(tmp_path / "run")
    made, before = (storage.load(tmp_path / "run" / name) for name in (results.RETRAINED, jobs.NETWORK))
    assert storage.digest(made) != storage.digest(before)
    assert of_run.faulty_before is not None
    assert of_run.faulty_after is not None
    for which, want in (("before", of_run.faulty_before), ("after", of_run.faulty_after)):
        found = json.loads(called("evaluate", tmp_path / "run", "--which", which, "--json"))
        assert found["faulty"]["top1"] == want.top1
    more = json.loads(called("evaluate", tmp_path / "run", "--protect", f"{plan}@200%", "--json"))
    assert np.mean(more["faulty"]["top1"]) > np.mean(of_run.faulty_after.top1)


def test_an_option_changes_one_thing(done: Path) -> None:
    calm = json.loads(called("evaluate", done, "--ber", "0", "--json"))
    assert calm["faulty"] is None
    wild = json.loads(called("evaluate", done, "--ber", "0.2", "--eval-seeds", "3", "--json"))
    assert wild["no_faults"] == calm["no_faults"]
    assert len(wild["faulty"]["top1"]) == 3
    assert max(wild["faulty"]["top1"]) < 60 < calm["no_faults"]["top1"][0]
    worn = json.loads(called("evaluate", done, "--ber", "0", "--random-faults", "30%", "--json"))
    assert worn["no_faults"] == calm["no_faults"]
    assert worn["faulty"]["top1"][0] < calm["no_faults"]["top1"][0]
    assert "307 of 1024 elements faulty" in worn["chip"]
    assert "no faults" in called("evaluate", done)


def test_images_of_a_folder_are_as_large_as_the_network_wants(done: Path, photos: Path, tmp_path: Path) -> None:
    labels = load("digits").test_labels
    for index in range(5):
        for part in ("train", "test"):
            for digit in range(10):
                (tmp_path / part / str(digit)).mkdir(parents=True, exist_ok=True)
                shutil.copy(photos / f"{index}.png", tmp_path / part / str(labels[index]))
    for part in ("train", "test"):
        for digit in set(range(10)) - set(labels[:5].tolist()):
            shutil.copy(photos / "0.png", tmp_path / part / str(digit))
    found = json.loads(called("evaluate", done, "--data", tmp_path, "--ber", "0", "--json"))
    assert found["samples"] == 5 + 10 - len(set(labels[:5].tolist()))


def test_prediction_names_the_digits(done: Path, photos: Path) -> None:
    labels = load("digits").test_labels
    lines = [json.loads(line) for line in called("predict", done, photos, "--json", "--top", "2").splitlines()]
    assert [Path(line["file"]).name for line in lines] == [f"{i}.png" for i in range(5)]
    assert [line["classes"][0] for line in lines] == labels[:5].tolist()
    assert all(len(line["names"]) == 2 and line["names"][0] == f"class {line['classes'][0]}" for line in lines)
    assert all(line["probabilities"] == sorted(line["probabilities"], reverse=True) for line in lines)
    assert called("predict", done, photos, "--faults", "--json") == called("predict", done, photos, "--faults", "--json")
    struck = called("predict", done, photos, "--ber", "0.2", "--json", "--top", "2")
    assert struck != called("predict", done, photos, "--no-faults", "--ber", "0.2", "--json", "--top", "2")
    assert "99" in called("predict", done, photos / "0.png") or "%" in called("predict", done, photos / "0.png")


def test_names_are_the_class_lists(done: Path, photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"digit-{i}" for i in range(10)))
    assert "digit-" in called("predict", done, photos, "--classes", names)
    names.write_text("one\ntwo\n")
    assert "2 names for a network of 10 classes" in refused("predict", done, photos, "--classes", names)


def test_export_and_what_it_says(done: Path, tmp_path: Path) -> None:
    for kind, suffix in (("pytorch", ".pt2"), ("safetensors", ".safetensors"), ("c-header", ".h")):
        said = called("export", done, "--format", kind, "--out", tmp_path)
        assert f"retrained{suffix}" in said
        assert (tmp_path / f"retrained{suffix}").stat().st_size > 1000
    network = storage.load(tmp_path / "retrained.safetensors")
    assert storage.digest(network) == results.read(done).model_sha256
    judged = json.loads(called("evaluate", tmp_path / "retrained.safetensors", "--ber", "0", "--json"))
    assert judged["no_faults"]["samples"] == len(load("digits").test_images)
    assert "network.h" in called("export", done, "--which", "before", "--format", "c-header", "--out", tmp_path)
    assert "already" in refused("export", done, "--format", "c-header", "--out", tmp_path)
    assert "no folder" in refused("export", done, "--out", tmp_path / "no" / "where.onnx")


def test_the_page_runs(done: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/deploying.md: its commands on a run of that name, and its Python on what they export."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "deploying.md").read_text(encoding="utf-8")
    (tmp_path / "runs").mkdir()
    shutil.copytree(done, tmp_path / "runs" / done.name)
    shutil.copytree(photos, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "r2f"
        assert called(*arguments)
    called("export", Path("runs") / done.name, "--format", "pytorch", "--out", "retrained.pt2")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    digits = load("digits")
    scope: dict[str, Any] = {"images": digits.test_images[:32]}
    exec(block, scope)
    assert (scope["values"].reshape(32, -1).argmax(1).numpy() == digits.test_labels[:32]).mean() > 0.9


@pytest.mark.parametrize("kind", ["onnx", "qdq"])
def test_onnx_files(done: Path, tmp_path: Path, kind: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'r2f[onnx]' for ONNX files")
    said = called("export", done, "--format", kind, "--out", tmp_path / "model.onnx")
    if kind == "qdq":
        assert "by mean 0.3" in said
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    digits = load("digits")
    images = digits.test_images[:64]
    given: dict[str, Any] = {"images": images}
    if kind == "qdq":
        pixels = (images / 255 - np.array(digits.mean)) / np.array(digits.std)
        given = {"input": pixels.transpose(0, 3, 1, 2).astype(np.float32)}
    values = session.run(None, given)[-1].reshape(64, -1)
    assert (values.argmax(1) == digits.test_labels[:64]).mean() > 0.9


def test_what_is_refused(done: Path, photos: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    nowhere, text = tmp_path / "nowhere", tmp_path / "notes.txt"
    text.write_text("no network")
    (tmp_path / "empty").mkdir()
    assert "no such run folder or file" in refused("evaluate", nowhere)
    assert "run.toml is missing" in refused("export", tmp_path / "empty")
    assert str(text) in refused("export", text)
    assert "cannot be read as an image" in refused("predict", done, text)
    assert "no image files below it" in refused("predict", done, tmp_path / "empty")
    assert "no such file" in refused("predict", done, nowhere)
    make(tmp_path / "run")
    said = refused("evaluate", tmp_path / "run")
    assert "nothing is retrained yet" in said
    assert "--which before" in said
    assert "--baseline" in refused("evaluate", tmp_path / "run", "--which", "plain")
    (tmp_path / "run" / jobs.NETWORK).write_bytes(b"12345678" * 9)
    assert jobs.NETWORK in refused("evaluate", tmp_path / "run", "--which", "before")


@pytest.fixture
def make(prepare: Callable[..., None]) -> Callable[[Path], None]:
    return lambda folder: prepare(msgspec.structs.replace(SETTINGS, baseline=False), folder)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_help_shows_no_default_where_it_is_the_runs(command: str) -> None:
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0
    for option in ("--ber ", "--seed ", "--eval-seeds ", "--data "):
        for line in said.stdout.splitlines():
            assert not (option in line and "[default" in line), line
