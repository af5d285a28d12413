"""Class lists in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from accelsim.datasets import DataError, class_list

NAMES = ("tench", "goldfish", "cock")


@pytest.mark.parametrize(
    "text", ["tench\ngoldfish\ncock\n", "tench\r\ngoldfish \r\ncock\r\n\r\n", "\ufefftench\ngoldfish\ncock"]
)
def test_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.txt").write_bytes(text.encode())
    assert class_list(tmp_path / "names.txt") == NAMES


@pytest.mark.parametrize(
    "held",
    [
        list(NAMES),
        {"goldfish": 1, "tench": 0, "cock": 2},
        {"2": "cock", "0": "tench", "1": "goldfish"},
        {"0": ["tench", "n01440764"], "1": ["goldfish", "n01443537"], "2": ["cock", "n01514668"]},
        {"id2label": {"0": "tench", "1": "goldfish", "2": "cock"}, "hidden_size": 3},
        {"class_to_idx": {"goldfish": 1, "tench": 0, "cock": 2}, "epoch": 7},
    ],
)
def test_json_and_checkpoints(tmp_path: Path, held: object) -> None:
    (tmp_path / "names.json").write_text(json.dumps(held))
    assert class_list(tmp_path / "names.json") == NAMES
    if isinstance(held, dict):
        torch.save({**held, "state_dict": {"w": torch.zeros(3)}} if "epoch" in held else held, tmp_path / "w.pth")
        assert class_list(tmp_path / "w.pth") == NAMES


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"cat\n\ndog\n", "line 2 is empty"),
        ("a.txt", b"", "no class names in it"),
        ("a.txt", b"cat\ndog\ncat\n", "classes 0 and 2 are both named 'cat'"),
        ("a.txt", "café\ndog\ncafe\u0301\n".encode(), "classes 0 and 2 are both named"),
        ("a.txt", b"\xff\xfe\x00c", "text in UTF-8"),
        ("a.json", b"[1, 2]", "found list"),
        ("a.json", b'"cat"', "found str"),
        ("a.json", b"{", "cannot be read as JSON"),
        ("a.json", b'{"cat": 0, "dog": 2}', "class 1 has no name; numbers must be 0 to 1"),
        ("a.json", b'{"cat": 0, "dog": 0}', "class 0 is both 'cat' and 'dog'"),
        ("a.json", b'{"lr": "high", "seed": null}', "no class names in it"),
        ("a.json", b'["cat", ""]', "class 1 has an empty name"),
        ("a.pth", b"not a checkpoint", "no class list can be read from it"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        class_list(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_checkpoint_without_names_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3), "conv.bias": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"neither under classes, .* it holds conv.weight, conv.bias"):
        class_list(tmp_path / "w.pth")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    torch.save({"classes": Path("cat")}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="no class list can be read from it"):
        class_list(tmp_path / "w.pth")


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent.txt: no class list: No such file"):
        class_list(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="no class list: Is a directory"):
        class_list(tmp_path)
