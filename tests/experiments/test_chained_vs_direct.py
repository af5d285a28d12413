from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
import torch
from PIL import Image

from experiments import chained_vs_direct as experiment
from services.trainer.core.task import Sgd


def test_compares_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    short = experiment.Setting(2e-3, 3, 16, Sgd(rate=5e-3, clip=1.0), 1, 100)
    monkeypatch.setitem(experiment.SETTINGS, "digits_cnn", short)
    # Untrained: what is compared is the way the outputs went, not what they are worth.
    monkeypatch.setattr(experiment.float_training, "train", lambda build, data: build().eval())
    threads = torch.get_num_threads()
    arguments = ["--networks", "digits_cnn", "--seeds", "2", "--out", str(tmp_path), "--threads", str(threads)]
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
    assert "votes" in text
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
