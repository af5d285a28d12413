"""What a data set is once it is read, whatever it was read from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from accelsim import datasets
from accelsim.datasets import DataError, Dataset, Spec, arguments, load, spec_of, spread
from accelsim.int8.network import INPUT, Flatten, Network


def test_digits_are_whole_stratified_and_always_the_same() -> None:
    data = load("digits")
    assert data.shape == (8, 8, 1)
    assert data.classes == 10
    assert len(data.train_images) + len(data.test_images) == 1797
    assert data.train_images.max() == 255
    for labels in (data.train_labels, data.test_labels):
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 0.1 * counts.mean()
    again = load("digits")
    np.testing.assert_array_equal(again.test_images, data.test_images)
    train = {image.tobytes() for image in data.train_images}
    assert sum(image.tobytes() in train for image in data.test_images) == 0


def network(shape: tuple[int, int, int], output: tuple[int, int, int]) -> Network:
    layer = Flatten(name="flat", inputs=(INPUT,), shape=output, scale=1.0)
    table = np.zeros((shape[2], 256), np.int8)
    return Network(name="net", input_shape=shape, input_scale=1.0, input_table=table, layers=(layer,))


def test_a_network_that_does_not_fit() -> None:
    data = load("digits")
    data.check(network((8, 8, 1), (1, 1, 10)))
    data.check(network((8, 8, 1), (1, 1, 1000)))
    with pytest.raises(DataError, match="images are 8x8x1, network net takes 28x28x1"):
        data.check(network((28, 28, 1), (1, 1, 10)))
    with pytest.raises(DataError, match=r"labels reach 9, network net knows classes 0 to 4$"):
        data.check(network((8, 8, 1), (1, 1, 5)))
    with pytest.raises(DataError, match=r"network net gives 8x8x10 numbers an image; .* it must give one a class"):
        data.check(network((8, 8, 1), (8, 8, 10)))


def test_labels_that_count_from_one_are_told(tmp_path: Path) -> None:
    images, labels = np.zeros((8, 8, 8, 1), np.uint8), 1 + np.arange(8) % 2
    np.savez(tmp_path / "one.npz", train_images=images, train_labels=labels)
    with pytest.raises(DataError, match=r"labels reach 2, .* if the labels count from 1, subtract it"):
        load(tmp_path / "one.npz").check(network((8, 8, 1), (1, 1, 2)))


def folder(path: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (path / name).mkdir(parents=True)
        for k in range(4):
            Image.new("RGB", (8, 8)).save(path / name / f"{k}.png")
    return path


def test_a_folder_with_some_of_the_networks_classes(tmp_path: Path) -> None:
    ten = network((8, 8, 3), (1, 1, 10))
    top = folder(tmp_path / "d", ("cat", "dog", "horse"))
    with pytest.raises(DataError, match=r"d: 3 classes \(cat, dog, horse\), network net knows 10: .* Give a class list"):
        load(top, shape=(8, 8, 3)).check(ten)
    names = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    (tmp_path / "names.txt").write_text("\n".join(names))
    data = datasets.open(Spec(source=str(top), image_size=(8, 8, 3), classes=str(tmp_path / "names.txt")))
    data.check(ten)
    assert sorted(set(data.train_labels.tolist())) == [3, 5, 7]
    with pytest.raises(DataError, match=r"10 classes \(plane, car, bird, cat, ...\), network net knows 3"):
        data.check(network((8, 8, 3), (1, 1, 3)))


def test_a_class_list_that_is_too_long_for_digits() -> None:
    with pytest.raises(DataError, match="digits: 10 classes, but the class list has 11 names"):
        load("digits", classes=[f"c{k}" for k in range(11)])


def test_a_class_list_that_is_too_short_for_the_labels() -> None:
    with pytest.raises(DataError, match=r"digits: 10 classes, but the class list has 2 names \(a, b\)"):
        load("digits", classes=("a", "b"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5, 0.5, 0.5), "std": (1, 1, 1)}, "has 3 numbers for 1 channels"),
        ({"mean": (0.5,)}, "mean is given alone; give mean and std, or neither"),
        ({"std": (0.5,)}, "std is given alone"),
        ({"mean": (123.675,), "std": (58.4,)}, "must be 0 to 1, as of pixels in 0..1; divide 0..255 by 255"),
        ({"mean": (0.5,), "std": (58.4,)}, "std .* must be more than 0 and at most 1"),
        ({"mean": (0.5,), "std": (0.0,)}, "std .* must be more than 0"),
        ({"mean": (-0.1,), "std": (1,)}, "mean .* must be 0 to 1"),
        ({"mean": (float("nan"),), "std": (1,)}, "mean .* must be 0 to 1"),
        ({"mean": (0.5,), "std": (float("inf"),)}, "std .* must be more than 0"),
        ({"mean": (), "std": ()}, "has 0 numbers for 1 channels"),
    ],
)
def test_a_normalisation_that_means_nothing(given: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("digits", **given)


def test_normalisation_as_given_or_by_the_training_images(tmp_path: Path) -> None:
    data = load("digits")
    pixels = data.train_images / 255
    assert data.mean == pytest.approx((pixels.mean(),))
    assert data.std == pytest.approx((pixels.std(),))
    given = load("digits", mean=(0.25,), std=(1 / 255,))
    assert (given.mean, given.std) == ((0.25,), (1 / 255,))
    colour = load(folder(tmp_path, ("cat",)), shape=(8, 8, 3), mean=(0.5,), std=(0.25,))
    assert (colour.mean, colour.std) == ((0.5,) * 3, (0.25,) * 3)


def test_what_is_not_there_and_what_is_neither(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: not found; data is 'digits'"):
        load(tmp_path / "absent")
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"a.csv: neither an .npz file nor a folder"):
        load(tmp_path / "a.csv")
    with pytest.raises(DataError, match="size of the network's input must be given"):
        load(tmp_path)
    with pytest.raises(DataError, match="digits: images are 8x8x1, expected 32x32x3"):
        load("digits", shape=(32, 32, 3))


def test_a_folder_named_as_the_digits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "digits", ("cat", "dog"))
    monkeypatch.chdir(tmp_path)
    (note,) = load("digits").notes
    assert "give ./digits" in note
    assert load("./digits", shape=(8, 8, 3)).class_names == ("cat", "dog")
    monkeypatch.chdir(tmp_path / "digits")
    assert load(".", shape=(8, 8, 3)).name == "digits"


def test_the_digest_is_what_two_sides_must_agree_on(tmp_path: Path) -> None:
    def made(**change: object) -> Dataset:
        data = load("digits")
        fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
        return Dataset(**{**fields, **change})

    same = made()
    assert len(same.digest()) == 16
    # Whose pixels, how many, and where they came from may differ: a device has photos of its own.
    assert made(name="other", notes=("x",), train_images=same.train_images ^ np.uint8(1)).digest() == same.digest()
    assert made(train_images=same.train_images[1:], test_images=same.test_images[1:]).digest() == same.digest()
    assert made(mean=(0.31,), std=(0.31,)).digest() == same.digest()
    others = [
        made(class_names=tuple("0123456789")),
        made(class_names=tuple("1023456789")),
        made(train_labels=same.train_labels % 9, test_labels=same.test_labels % 9),
        made(train_images=np.zeros((len(same.train_images), 4, 16, 1), np.uint8)),
    ]
    assert len({data.digest() for data in (same, *others)}) == 1 + len(others)


def test_spread_reaches_every_class_of_a_sorted_file() -> None:
    labels = np.repeat(np.arange(10), 40)
    assert np.bincount(labels[spread(40, 400)]).tolist() == [4] * 10
    # Nor does it meet one class only where classes take turns.
    assert np.bincount((np.arange(400) % 10)[spread(40, 400)]).max() <= 5
    assert spread(7, 7).tolist() == spread(100, 7).tolist() == list(range(7))
    assert spread(1, 9).tolist() == [0]
    assert spread(2, 9).tolist() == [0, 8]
    for count, available in ((3, 1000), (999, 1000), (257, 1352)):
        chosen = spread(count, available)
        assert len(set(chosen.tolist())) == len(chosen) == count
        assert (chosen[0], chosen[-1]) == (0, available - 1)
        assert chosen.dtype == np.int64
    for wrong in ((0, 5), (-1, 5), (5, 0)):
        with pytest.raises(ValueError, match="both must be 1 or more"):
            spread(*wrong)


def test_a_spec_goes_over_a_command_line_and_comes_back() -> None:
    spec = spec_of("d", image_size="224x200X3", mean="0.485, .456 0.406", std="0.1,0.2,1e-1", classes="-names.txt")
    assert spec == Spec(
        source="d", image_size=(224, 200, 3), mean=(0.485, 0.456, 0.406), std=(0.1, 0.2, 0.1), classes="-names.txt"
    )
    given = arguments(spec)
    options = dict(argument.removeprefix("--").split("=", 1) for argument in given)
    assert spec_of(options.pop("data"), **{name.replace("-", "_"): value for name, value in options.items()}) == spec
    assert arguments(Spec()) == ["--data=digits"]
    assert msgspec.json.decode(msgspec.json.encode(spec), type=Spec) == spec


@pytest.mark.parametrize("text", ["224", "224x224", "0x8x3", "axbxc", "8x8x3x3", "-8x8x3", "", "8.0x8x3", "²x8x3"])
def test_an_image_size_that_is_none(text: str) -> None:
    with pytest.raises(DataError, match=r"--image-size .*: expected HxWxC"):
        spec_of(image_size=text)


@pytest.mark.parametrize("text", ["", "a", "0.5;0.5", "0.5,,x", ","])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match=r"--mean .*: expected a number for each channel"):
        spec_of(mean=text)


def test_data_needs_no_torch() -> None:
    """A device's data set is read before, and where, torch is not needed."""
    code = "import sys; from accelsim.datasets import load; load('digits'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
