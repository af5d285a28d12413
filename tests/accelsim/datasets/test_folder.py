"""Folders of images as people have them: every image in its class, or a word."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accelsim.datasets import DataError, Dataset, load

SHAPE = (2, 2, 3)


def paint(path: Path, count: int = 4, shade: int = 0, suffix: str = ".png") -> None:
    path.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.new("RGB", (4, 4), (shade, k, 0)).save(path / f"{k}{suffix}")


def made(top: Path, layout: Mapping[str, int]) -> Path:
    """A folder of each name with so many images, each shaded by the place of its folder."""
    for shade, (name, count) in enumerate(layout.items()):
        paint(top / name, count, shade)
    return top


def by_class(data: Dataset) -> list[list[int]]:
    """Training images and held-out images of each class."""
    return [np.bincount(labels, minlength=data.classes).tolist() for labels in (data.train_labels, data.test_labels)]


def test_two_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 1)):
        for name, colour in (("blue", (0, 0, 250)), ("red", (250, 0, 0))):
            (tmp_path / split / name).mkdir(parents=True)
            for k in range(count):
                Image.new("RGB", (10, 6), colour).save(tmp_path / split / name / f"{k}.png")
    data = load(tmp_path, shape=(4, 5, 3))
    assert data.train_images.shape == (6, 4, 5, 3)
    assert data.test_images.shape == (2, 4, 5, 3)
    assert data.class_names == ("blue", "red")
    assert data.name == tmp_path.name
    np.testing.assert_array_equal(data.train_labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(data.train_images[0], np.broadcast_to([0, 0, 250], (4, 5, 3)))
    np.testing.assert_array_equal(data.train_images[5], np.broadcast_to([250, 0, 0], (4, 5, 3)))


def test_without_a_test_part_and_grey(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    for k in range(8):
        Image.new("RGB", (10, 6), (k, k, k)).save(tmp_path / "only" / f"{k}.png")
    data = load(tmp_path, shape=(3, 3, 1))
    np.testing.assert_array_equal(data.test_images[:, 0, 0, 0], [3, 7])


@pytest.mark.parametrize("held_out", ["test", "Test", "testing", "val", "valid", "validation", "Validation", "test_set"])
@pytest.mark.parametrize("train", ["train", "Training", "training_set"])
def test_usual_names_of_splits(tmp_path: Path, train: str, held_out: str) -> None:
    layout = {f"{train}/cat": 4, f"{train}/dog": 5, f"{held_out}/cat": 2, f"{held_out}/dog": 1}
    data = load(made(tmp_path, layout), shape=SHAPE)
    assert by_class(data) == [[4, 5], [2, 1]]
    assert data.notes == ()


def test_a_second_held_out_part_is_named(tmp_path: Path) -> None:
    data = load(made(tmp_path, {"train/cat": 4, "val/cat": 2, "test/cat": 1}), shape=SHAPE)
    assert by_class(data) == [[4], [1]]
    assert data.notes == (f"not used: {tmp_path / 'val'}; held out is {tmp_path / 'test'}",)


def test_test_images_without_classes_are_named_where_there_is_val(tmp_path: Path) -> None:
    made(tmp_path, {"train/cat": 4, "val/cat": 2, "test": 3})
    assert load(tmp_path, shape=SHAPE).notes == (f"not used: {tmp_path / 'test'}; held out is {tmp_path / 'val'}",)


def test_a_class_of_trains(tmp_path: Path) -> None:
    data = load(made(tmp_path, {"bus": 4, "car": 4, "train": 4}), shape=SHAPE)
    assert data.class_names == ("bus", "car", "train")


def test_what_systems_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    made(tmp_path, {"cat": 4, "dog": 4, "__MACOSX/cat": 1, ".git": 1, "@eaDir": 1, "cat/.thumbs": 2, "cat/__MACOSX": 1})
    for name in (".DS_Store", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini", "cat/._0.png"):
        (tmp_path / name).write_bytes(b"left")
    data = load(tmp_path, shape=SHAPE)
    assert data.class_names == ("cat", "dog")
    assert by_class(data) == [[3, 3], [1, 1]]


def test_folders_within_class_folders_are_searched(tmp_path: Path) -> None:
    data = load(made(tmp_path, {"cat/persian": 4, "cat/manx/grey": 4, "dog": 4}), shape=SHAPE)
    assert by_class(data) == [[6, 3], [2, 1]]
    shades = [sorted({int(image[0, 0, 0]) for image in data.train_images[data.train_labels == k]}) for k in (0, 1)]
    assert shades == [[0, 1], [2]]


def test_files_beside_the_images_are_named(tmp_path: Path) -> None:
    made(tmp_path, {"cat": 4, "dog": 4})
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / "cat" / "boxes.xml").write_text("<xml/>")
    assert load(tmp_path, shape=SHAPE).notes == (f"1 files that are no images are not used: {tmp_path / 'cat' / 'boxes.xml'}",)


def test_several_frames_are_named(tmp_path: Path) -> None:
    made(tmp_path, {"cat": 4})
    frames = [Image.new("L", (4, 4), shade) for shade in (200, 90)]
    frames[0].save(tmp_path / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    (note,) = load(tmp_path, shape=SHAPE).notes
    assert note == f"1 files hold several images, the first is used: {tmp_path / 'cat' / 'moving.gif'}"


def test_a_class_list_numbers_the_folders(tmp_path: Path) -> None:
    names = ("ant", "bee", "dog", "eel", "cat")
    data = load(made(tmp_path, {"train/cat": 2, "train/dog": 1, "test/bee": 1}), shape=SHAPE, classes=names)
    assert data.class_names == names
    assert data.classes == 5
    assert by_class(data) == [[0, 0, 1, 0, 2], [0, 1, 0, 0, 0]]
    shades = {int(label): int(image[0, 0, 0]) for label, image in zip(data.train_labels, data.train_images, strict=True)}
    assert shades == {4: 0, 2: 1}


def test_accents_are_the_same_letter_on_every_system(tmp_path: Path) -> None:
    made(tmp_path, {unicodedata.normalize("NFD", "café"): 4, "tea": 4})
    data = load(tmp_path, shape=SHAPE, classes=("tea", unicodedata.normalize("NFC", "café")))
    assert by_class(data) == [[3, 3], [1, 1]]
    assert load(tmp_path, shape=SHAPE).class_names == (unicodedata.normalize("NFC", "café"), "tea")


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    made(tmp_path / "real", {"cat": 4})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "real" / "cat")
    assert by_class(load(tmp_path / "data", shape=SHAPE)) == [[3], [1]]
    (tmp_path / "real" / "cat" / "again").symlink_to(tmp_path / "real" / "cat")
    with pytest.raises(DataError, match="again: leads back to a folder that it lies in"):
        load(tmp_path / "data", shape=SHAPE)


@pytest.mark.parametrize(
    ("layout", "names", "message"),
    [
        ({}, None, "no folders in it; images lie in one folder a class"),
        ({"cat": 4, "dog": 0}, None, "dog: no images in this class folder"),
        ({"train/cat": 4, "train/dog": 4, "test/cat": 1, "test/dog": 0}, None, "test/dog: no images in this class folder"),
        ({"train/cat": 4, "test/dog": 1}, None, r"test: class 'dog' is not among the training classes \(cat\)"),
        ({"train/cat": 4, "test": 3}, None, "test: no folders in it; held-out images lie in one folder a class"),
        ({"train": 4, "test": 3}, None, "no folders in it; images lie in one folder a class"),
        ({"test/cat": 4, "val/cat": 3}, None, "folders test and val, expected one named train"),
        ({"train/cat": 4, "training/cat": 3}, None, "folders train and training, expected one"),
        ({"train/cat": 4, "val/cat": 3, "more/cat": 1}, None, "more: lies beside train and is none of test,"),
        ({"pets/train/cat": 4, "pets/test/cat": 3}, None, "pets: holds (test|train); is that the data set?"),
        ({"cat": 4, "dgo": 4}, ("cat", "dog"), "class 'dgo' is not in the class list of 2 names .did you mean 'dog'"),
        ({"Cat": 4}, ("otter", "bee"), r"class 'Cat' is not in the class list of 2 names \(otter, bee\)"),
        ({"0": 4, "1": 4, "10": 4, "2": 4}, None, r"in order of text \(0, 1, 10, 2\) they are not in order of value"),
        ({"a": 3, "b": 2}, None, "no class has 4 images, so none can be held out"),
    ],
)
def test_says_what_is_wrong(tmp_path: Path, layout: Mapping[str, int], names: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(made(tmp_path, layout), shape=SHAPE, classes=names)
    assert str(tmp_path) in str(caught.value)


def test_an_image_in_no_class_is_named(tmp_path: Path) -> None:
    made(tmp_path, {"cat": 4, ".": 1})
    with pytest.raises(DataError, match=r"0.png: lies beside the class folders"):
        load(tmp_path, shape=SHAPE)


@pytest.mark.parametrize("name", ["photo.heic", "torn.png", "noname"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    made(tmp_path, {"cat": 4})
    (tmp_path / "cat" / name).write_bytes(b"\x00 something")
    with pytest.raises(DataError, match=rf"cat/{name}: cannot be read as an image"):
        load(tmp_path, shape=SHAPE)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    made(tmp_path, {"cat": 4})
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "absent.png")
    with pytest.raises(DataError, match=r"gone.png: neither a file nor a folder, or a link that leads nowhere"):
        load(tmp_path, shape=SHAPE)


def test_numbers_in_a_class_list(tmp_path: Path) -> None:
    """Folders named by number, in the order that a list says."""
    made(tmp_path, {"0": 4, "1": 4, "10": 4, "2": 4})
    data = load(tmp_path, shape=SHAPE, classes=tuple(map(str, range(11))))
    assert by_class(data)[0] == [3, 3, 3, 0, 0, 0, 0, 0, 0, 0, 3]


def test_more_images_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, {"cat": 4})

    def full(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr("accelsim.datasets.folder.np.empty", full)
    with pytest.raises(DataError, match="4 images of 2x2x3 do not fit into memory; give fewer"):
        load(tmp_path, shape=SHAPE)


def test_a_folder_around_the_class_folders_is_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "wrap" / "inner" / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8)).save(tmp_path / "wrap" / "inner" / name / f"{k}.png")
    with pytest.raises(DataError, match=r"wrap: holds one class, 'inner', with folders .*give .*inner"):
        load(tmp_path / "wrap", shape=(8, 8, 3))
    assert load(tmp_path / "wrap" / "inner", shape=(8, 8, 3)).classes == 2


def deep(top: Path, largest: int, **save: object) -> Path:
    """A folder of two classes with 16-bit grey images."""
    for number, name in enumerate(("a", "b")):
        (top / name).mkdir(parents=True)
        for k in range(4):
            values = np.full((4, 4), largest - k - 4 * number, np.uint16)
            Image.fromarray(values).save(top / name / f"{k}.{'tif' if save else 'png'}", **save)
    return top


@pytest.mark.parametrize("largest", [100, 1023, 1024, 4000, 4095])
def test_few_bits_of_sixteen_are_not_taken_for_darkness(tmp_path: Path, largest: int) -> None:
    said = (
        rf"data: the largest value in its 8 16-bit images is {largest} of 65535.*Convert them to 8 bits.*sBIT.*MaxSampleValue"
    )
    with pytest.raises(DataError, match=said):
        load(deep(tmp_path / "data", largest), shape=(4, 4, 1))


def test_sixteen_bits_that_are_some_or_say_so_are_read(tmp_path: Path) -> None:
    assert load(deep(tmp_path / "light", 4096), shape=(4, 4, 1)).train_images.max() == 16
    assert load(deep(tmp_path / "twelve", 4095, tiffinfo={281: 4095}), shape=(4, 4, 1)).train_images.max() == 255
    assert load(deep(tmp_path / "dark", 4095, tiffinfo={281: 65535}), shape=(4, 4, 1)).train_images.max() == 16


def test_one_light_image_says_that_all_have_sixteen_bits(tmp_path: Path) -> None:
    folder = deep(tmp_path / "data" / "train", 4000)
    deep(tmp_path / "data" / "test", 60000)
    assert load(folder.parent, shape=(4, 4, 1)).train_images.max() == 16
    paint(folder / "a", 6, 200)  # 8 bits say nothing of 16
    assert load(folder.parent, shape=(4, 4, 1)).test_images.max() == 233
