"""``r2f protect`` from end to end on the demo's network, and runs that take its plan, or refuse it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from accelsim.datasets import load
from accelsim.int8 import storage
from r2f import prepare, run
from r2f import settings as settings_file
from r2f.cli import app
from r2f.display import Display
from r2f.protection import command, plan
from r2f.settings import Settings, SettingsError
from services.scheme import Scheme
from services.trainer.core import job

BER = "4e-3"
QUICK = ("--images", "40", "--seeds", "2", "--budget", "150%,40%")


@pytest.fixture(scope="module")
def planned(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search by site."""
    out = tmp_path_factory.mktemp("protection")
    arguments = ["protect", "--weights", weights, "--ber", BER, "--units", "sites", *QUICK, "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "plan.json" in result.output
    return out


def prepared(settings: Settings, folder: Path) -> Scheme:
    with Display(Console(quiet=True)) as display:
        prepare.prepare(settings, folder, display)
    return job.read(folder).scheme


def settings_with(weights: str, protect: str, **others: str) -> Settings:
    return settings_file.parse(
        {"weights": weights, "ber": BER, "iterations": 1, "eval-samples": 20, "protect": protect, **others}
    )


def test_a_plan_and_its_picture(planned: Path) -> None:
    found = plan.read(planned / plan.FILE)
    assert [choice.budget for choice in found.choices] == [0.4, 1.5]
    assert all(choice.overhead <= choice.budget for choice in found.choices)
    means = [np.mean(found.unprotected), *(np.mean(choice.agreement) for choice in found.choices)]
    # Forty images under two seeds: one answer of them is 1.25 points, and at such rates more protection may lose one.
    assert means[0] < min(means[1:])
    small, large = found.choices
    assert large.quantised_for != small.quantised_for or means[2] >= means[1] - 1.25
    assert (found.images, len(found.seeds), found.units, found.search) == (40, 2, "sites", "estimated")
    with Image.open(planned / command.PICTURE) as picture:
        assert picture.size[0] > 500
    rows = Console(width=200, file=io.StringIO())
    with rows.capture() as captured:
        rows.print(command.table(found))
    text = captured.get()
    assert "150 %" in text
    assert "weight" in text


def test_a_search_goes_on_where_it_was_stopped(planned: Path, weights: str) -> None:
    before = (planned / "evaluations.jsonl").read_bytes()
    arguments = ["protect", "--weights", weights, "--ber", BER, "--units", "sites", *QUICK, "--out", str(planned)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "(known)" in result.output
    assert (planned / "evaluations.jsonl").read_bytes() == before


def test_a_run_takes_a_plan(planned: Path, weights: str, tmp_path: Path) -> None:
    path = planned / plan.FILE
    found = plan.read(path)
    for name, text, budget in (("smallest", str(path), 0.4), ("named", f"{path}@150%", 1.5)):
        settings = settings_with(weights, text)
        scheme = prepared(settings, tmp_path / name)
        assert scheme == found.choice(budget).applied(Scheme())
        assert scheme != scheme.bare
        # The run says what was asked for, the job what is done; another run with that file asks for the same.
        assert run.read_settings(tmp_path / name) == settings
        network = storage.load(tmp_path / name / job.NETWORK)
        assert storage.digest(network) == found.choice(budget).sha256
        module, data = float_module(settings), load("digits")
        assert storage.digest(prepare.lowered(settings, data, module, found.choice(budget).quantised_for)) == storage.digest(
            network
        )


def float_module(settings: Settings) -> nn.Module:
    with Display(Console(quiet=True)) as display:
        return prepare.float_module(settings, load("digits"), display)


def test_what_is_quantised_for_is_chosen_or_given(weights: str, tmp_path: Path) -> None:
    """The same share by a search and by a run is the same network."""
    arguments = ["protect", "--weights", weights, "--ber", BER, *QUICK, "--quantise-for", "25%", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = plan.read(tmp_path / plan.FILE)
    assert (found.quantised_for, {choice.quantised_for for choice in found.choices}) == (0.25, {0.25})
    asks = settings_with(weights, str(tmp_path / plan.FILE))
    prepared(asks, tmp_path / "run")
    assert storage.digest(storage.load(tmp_path / "run" / job.NETWORK)) == found.sha256
    assert run.read_settings(tmp_path / "run") == asks
    assert "quantise-for" not in (tmp_path / "run" / settings_file.FILE).read_text()
    settings = settings_file.parse({"weights": weights, "ber": BER, "quantise-for": "25%"})
    assert settings.quantised_for == 0.25
    network = prepare.lowered(settings, load("digits"), float_module(settings))
    assert storage.digest(network) == found.sha256
    everything = msgspec.structs.replace(settings, quantised_for=1.0)
    assert storage.digest(prepare.lowered(everything, load("digits"), float_module(settings))) != found.sha256


def test_a_plan_for_another_network_is_refused(planned: Path, weights: str, tmp_path: Path) -> None:
    """The same network with one other number."""
    other = load_file(weights)
    other[next(name for name in other if name.endswith("bias"))] += 0.25
    save_file(other, tmp_path / "other.safetensors")
    settings = settings_with(str(tmp_path / "other.safetensors"), str(planned / plan.FILE))
    with pytest.raises(SettingsError, match=r"--protect .*plan\.json: it is for another network: .*sha256.*r2f protect"):
        prepared(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"protect": "{plan}@70%"}, r"no budget of 70 % in it; it has 40 %, 150 %"),
        ({"protect": "nothing.json"}, r"--protect .*nothing\.json: no such file"),
        ({"protect": "{plan}", "codec": "golden"}, "codec golden protects no layers"),
        ({"protect": "{plan}", "tmr": "layer"}, "a plan says it all"),
        ({"protect": "{plan}@most"}, "expected a share"),
        ({"protect": "{plan}", "quantise-for": "50%"}, "a plan says what to quantise for"),
    ],
)
def test_what_does_not_fit_is_named(
    given: dict[str, str], complaint: str, planned: Path, weights: str, tmp_path: Path
) -> None:  # fmt: skip
    protect = given["protect"].format(plan=planned / plan.FILE)
    with pytest.raises(ValueError, match=complaint):
        prepared(settings_with(weights, **(given | {"protect": protect})), tmp_path / "run")


def test_settings_of_a_search_that_mean_nothing(weights: str) -> None:
    for arguments, complaint in (
        (["--budget", "lots"], "--budget 'lots': expected a share"),
        (["--cost", "macs", "--units", "sites"], "voters at ports multiply nothing"),
        *((["--quantise-for", wrong], "--quantise-for") for wrong in ("", "0", "150%", "half", "50%,,25%", "-1", "nan")),
    ):
        result = CliRunner().invoke(app, ["protect", "--weights", weights, *arguments])
        assert result.exit_code == 1
        assert complaint in result.stderr


def test_what_to_quantise_for_on_the_command_line(tmp_path: Path) -> None:
    """As a share in per cent, which is no number to typer; it is read before anything else is looked at."""
    for words, complaint in (("150%", "--quantise-for 1.5: expected a number >= 0 and <= 1"), ("half", "expected a share")):
        result = CliRunner().invoke(app, ["retrain", "--quantise-for", words, "--out", str(tmp_path)])
        assert result.exit_code != 0
        assert complaint in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["retrain", "--quantise-for", "50%", "--data", "nowhere.npz", "--out", str(tmp_path)])
    assert "nowhere.npz" in result.output


def test_a_search_compares_classes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["protect", "--data", "shapes", "--network", "shapes_unet", "--out", str(tmp_path / "p")])
    assert result.exit_code == 1
    assert "a search compares answers, which are classes" in result.output


def test_a_search_looks_at_no_image_that_quantised() -> None:
    data = load("digits")
    images = command.searched(data, 300)
    assert len(images) == 300
    used = {image.tobytes() for image in data.train_images[prepare.calibration(data)]}
    assert sum(image.tobytes() in used for image in images) <= 2  # pictures that are in the set twice
    few = replace(data, train_images=data.train_images[:3], train_labels=data.train_labels[:3])
    with pytest.raises(SettingsError, match="all needed to quantise"):
        command.searched(few, 10)
