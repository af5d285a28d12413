from __future__ import annotations

import io
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image
from rich.console import Console

from experiments import chained_vs_direct as experiment
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.task import Sgd


def test_compares_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = experiment.Setting(2e-3, 3, 16, Sgd(rate=5e-3, clip=1.0), 1)
    monkeypatch.setitem(experiment.SETTINGS, "digits_cnn", short)
    # Untrained: what is compared is the way the outputs went, not what they are worth.
    monkeypatch.setattr(experiment.float_training, "train", lambda build, data: build().eval())
    threads = torch.get_num_threads()
    arguments = ["--network", "digits_cnn", "--seeds", "2", "--out", str(tmp_path), "--threads", str(threads)]
    monkeypatch.setattr(sys, "argv", ["chained_vs_direct", *arguments])
    experiment.main()
    text = capsys.readouterr().out
    runs = msgspec.json.decode((tmp_path / "chained_vs_direct.json").read_bytes(), type=list[experiment.Run])
    assert [(run.codec, run.seed) for run in runs] == [
        ("clean", 0), ("before", 0), ("direct", 0), ("exact", 0), ("votes", 0), ("direct", 1), ("votes", 1),
    ]  # fmt: skip
    found = {(run.codec, run.seed): run for run in runs}
    assert found["direct", 0].model_sha256 == found["exact", 0].model_sha256 != found["votes", 0].model_sha256
    assert found["exact", 0].mismatched == 0 < found["votes", 0].mismatched
    assert found["exact", 0].layer_bytes < 1 / 3
    mean = sum(found["votes", seed].layer_bytes for seed in (0, 1)) / 2
    (line,) = (line.split() for line in text.splitlines() if " votes " in line and "±" in line)
    assert line[:4] == ["digits_cnn", "0.002", "1", "votes"]
    assert line[7:9] == [f"{100 * mean:.1f}", "%"]
    with Image.open(tmp_path / "chained_vs_direct.png") as image:
        assert min(image.size) > 200


def test_a_difference_between_exact_and_direct_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(name: str, network: object, data: object, codec: str, seed: int) -> experiment.Run:
        return experiment.Run(
            network=name, ber=0, top=1, codec=codec, seed=seed, accuracy=(1.0,), mismatched=0, layer_bytes=0,
            model_sha256=codec,
        )  # fmt: skip

    monkeypatch.setattr(experiment, "retrain", fake)
    monkeypatch.setattr(experiment, "prepare", lambda name, shared: (None, None))
    monkeypatch.setattr(experiment, "evaluate", lambda name, network, data, faults=True: [1.0])
    monkeypatch.setattr(experiment.storage, "digest", lambda network: "")
    with pytest.raises(RuntimeError, match="exact chained ended with exact, direct with direct"):
        experiment.experiment("digits_cnn", Path(), 1, experiment.Console(quiet=True))


def test_the_table_is_over_seeds_and_where_there_is_one_over_faults() -> None:
    def run(codec: str, seed: int, *accuracy: float) -> experiment.Run:
        return experiment.Run(
            network="n", ber=1e-3, top=5, codec=codec, seed=seed, accuracy=accuracy, mismatched=0.01 * seed,
            layer_bytes=0.25, model_sha256="",
        )  # fmt: skip

    out = io.StringIO()
    runs = [run("clean", 0, 90.0), run("before", 0, 50.0, 60.0), run("direct", 1, 70.0, 80.0), run("direct", 2, 71.0, 83.0)]
    Console(file=out, width=100).print(experiment.table(runs))
    rows = [line.split() for line in out.getvalue().splitlines()[1:]]
    assert rows == [
        ["n", "0.001", "5", "clean", "90.0", "±", "0.0"],
        ["n", "0.001", "5", "before", "55.0", "±", "5.0"],
        ["n", "0.001", "5", "direct", "76.0", "±", "1.0", "25.0", "%", "1.50", "%"],
    ]


def test_the_bars_are_the_accuracies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(experiment.style, "save", lambda figure, path: drawn.append(figure))
    given = (("clean", 95.0), ("before", 40.0), ("direct", 70.0), ("votes", 60.0))
    experiment.draw(
        [
            experiment.Run(
                network="n", ber=1e-3, top=5, codec=codec, seed=0, accuracy=(value,), mismatched=0, layer_bytes=1,
                model_sha256="",
            )
            for codec, value in given
        ],
        tmp_path / "a.png",
    )  # fmt: skip
    (axis,) = drawn[0].axes
    assert [bar.get_height() for bar in axis.patches] == [40, 70, 60]
    assert [label.get_text() for label in axis.texts] == ["40.0", "70.0", "60.0"]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["before", "direct,\nexact", "voted"]
    assert axis.get_lines()[-1].get_ydata()[0] == 95


@pytest.mark.parametrize(("name", "top", "expected"), [("digits_cnn", 1, [1.0, 2.0]), ("squeezenet1_1", 5, [5.0, 6.0])])
def test_accuracy_is_of_all_held_out_images(
    name: str, top: int, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def evaluate(*given: object, **options: object) -> Evaluation:
        seen.append(given)
        return Evaluation(samples=8, top1=[1.0, 2.0], top5=[5.0, 6.0])

    monkeypatch.setattr(experiment.inprocess, "evaluate", evaluate)
    data = experiment.load("digits")
    setting = experiment.SETTINGS[name]
    assert setting.top == top
    assert experiment.evaluate(name, None, data) == expected
    experiment.evaluate(name, None, data, faults=False)
    faulty, clean = seen
    assert faulty[1] is data.test_images
    assert faulty[2] is data.test_labels
    assert (faulty[3], clean[3]) == (experiment.Rates.uniform(setting.ber), experiment.Rates())
    assert faulty[4] == (1001, 1002, 1003)
