from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from accelsim import zoo
from accelsim.datasets import load
from accelsim.int8 import storage
from accelsim.lowering import lower
from benchmarks import codec

NAMES = (
    "direct_bytes", "zstd_bytes", "golden_bytes", "chained_bytes", "exact_bytes", "bound_bytes", "mismatched_share",
    "encode_mb_s", "decode_mb_s", "iteration_direct_bytes", "iteration_chained_bytes",
)  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    data = load("digits")
    path = tmp_path_factory.mktemp("network") / "small.safetensors"
    module = zoo.build("digits_cnn", 10).eval()
    storage.save(lower(module, data.train_images[:64], data.mean, data.std, name="small"), path)
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["codec", *arguments])
    codec.main()


def test_the_json_holds_what_it_promises(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(codec, "vote_against_copy", lambda count, kind: 0.5)
    path = tmp_path / "out.json"
    run(monkeypatch, "--network", str(network), "--data", "digits", "--ber", "1e-3", "--json", str(path))
    found = json.loads(path.read_text())
    assert set(NAMES) <= set(found)
    assert found["chained_bytes"] <= found["exact_bytes"] < found["zstd_bytes"] < found["direct_bytes"]
    assert found["direct_bytes"] > found["raw_bytes"] > 4 * found["bound_bytes"] > 0
    assert found["exact_bytes"] >= found["chained_bytes"]
    assert found["codecs"]["exact"]["mismatched_share"] == found["codecs"]["direct"]["mismatched_share"] == 0
    assert found["codecs"]["golden"]["mismatched_share"] > found["mismatched_share"]
    assert min(found["encode_mb_s"], found["decode_mb_s"]) > 1
    for name in codec.CODECS:
        parts = found["codecs"][name]
        assert parts["bodies"] + parts["framing"] == found[f"{name}_bytes"]
        if name in ("direct", "chained"):
            assert found[f"iteration_{name}_bytes"] == found[f"{name}_bytes"] + parts["inputs"] + parts["model"]
    assert found["codecs"]["chained"]["model"] < 0.2 * found["codecs"]["direct"]["model"]
    # As many bytes of outputs as the MAC layers have, for two batches of 16.
    macs = sum(int(np.prod(layer.shape)) for _, layer in storage.load(network).convs())
    assert found["raw_bytes"] == found["codecs"]["direct"]["bodies"] - 2 * len(list(storage.load(network).convs())) == 32 * macs
    said = capsys.readouterr()
    assert "batch 2 of 2" in said.err
    assert "chained, exact" in said.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere.npz"), "nowhere.npz: not found; give an .npz file"),
        (("--data", "digits", "--weights", "none.safetensors"), "none.safetensors: not found"),
        (("--data", "digits", "--network", "none.safetensors"), "none.safetensors: not found"),
        (("--data", "TINY", "--network", "resnet19"), "'resnet19': expected one of"),
        (("--data", "TINY", "--network", "squeezenet1_1"), "squeezenet1_1 does not run on the 4x4x3 images of"),
        (("--data", "digits", "--network", "squeezenet1_1"), "digits: images are 8x8x1; only an int8 network's file"),
        (("--data", "digits", "--ber", "2"), "a bit error rate lies in 0..1"),
        (("--data", "digits", "--batch", "0"), "--batch 0"),
        (("--data", "digits", "--batch", "1025"), "--batch 1025"),
        (("--data", "digits", "--batches", "-1"), "--batches -1"),
        (("--data", "digits", "--seed", "-1"), "--seed -1: must be 0 or more"),
        (("--data", "digits", "--ber", "nan"), "a bit error rate lies in 0..1"),
        (("--data", "digits", "--json", "."), "is a folder; name a file in it"),
        (("--data", "digits", "--json", "no/such/folder.json"), "no such folder"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny = tmp_path / "tiny.npz"
    np.savez(tiny, train_images=np.zeros((8, 4, 4, 3), np.uint8), train_labels=np.zeros(8, np.int64))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *(str(tiny) if argument == "TINY" else argument for argument in arguments))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_photos_is_scaled_to_the_network(network: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "abcdefghij":
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("L", (40, 30), 9).save(folder / "one.png")
    given = argparse.Namespace(
        network=str(network), weights=None, data=str(tmp_path), ber=1e-5, batch=1, batches=1, seed=1, json=None
    )  # fmt: skip
    _, data = codec.prepare(given, lambda _: None)
    assert data.train_images.shape == (10, 8, 8, 1)
