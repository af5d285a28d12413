"""Images of every depth and kind come out as a person sees them."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from accelsim.datasets import DataError
from accelsim.datasets.pictures import picture, suffixes
from accelsim.int8.network import UInt8

RAMP = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
SEEN = np.rint(RAMP / 257).astype(np.uint8)


def pixels(file: Path, channels: int = 1) -> UInt8:
    image, *_ = picture(file, (4, 4, channels))
    return image[..., 0]


def png16(values: np.ndarray, colour_type: int, sbit: bytes | None = None) -> bytes:
    """A PNG of 16 bits a sample, which Pillow writes for grey alone, and without saying how many bits count."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    said = b"" if sbit is None else chunk(b"gAMA", struct.pack(">I", 45455)) + chunk(b"sBIT", sbit)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + said + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.jp2"):
        Image.fromarray(RAMP).save(tmp_path / name)
    Image.fromarray(RAMP.astype(">u2")).save(tmp_path / "big_endian.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 4\n65535\n" + RAMP.astype(">u2").tobytes())
    (tmp_path / "colour.png").write_bytes(png16(np.stack([RAMP] * 3, -1), 2))
    (tmp_path / "alpha.png").write_bytes(png16(np.stack([RAMP, np.full_like(RAMP, 65535)], -1), 4))
    files = sorted(tmp_path.iterdir())
    assert len(files) == 7
    for file in files:
        for channels in (1, 3):
            np.testing.assert_allclose(pixels(file, channels).astype(int), SEEN, atol=1, err_msg=file.name)


def test_depths_between_count_to_their_own_end(tmp_path: Path) -> None:
    ten = np.linspace(0, 1023, 16).astype(np.uint16).reshape(4, 4)
    (tmp_path / "ten.pgm").write_bytes(b"P5\n4 4\n1023\n" + ten.astype(">u2").tobytes())
    np.testing.assert_allclose(pixels(tmp_path / "ten.pgm").astype(int), SEEN, atol=1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_files_say_how_many_of_sixteen_bits_count(tmp_path: Path, bits: int) -> None:
    top = (1 << bits) - 1
    ramp = np.linspace(0, top, 16).astype(np.uint16).reshape(4, 4)
    seen = np.rint(ramp / top * 255).astype(int)
    (tmp_path / "a.png").write_bytes(png16(ramp, 0, bytes([bits])))
    Image.fromarray(ramp).save(tmp_path / "a.tif", tiffinfo={281: top})
    Image.fromarray(top - ramp).save(tmp_path / "white.tif", tiffinfo={281: top, 262: 0})
    for name in ("a.png", "a.tif", "white.tif"):
        found = picture(tmp_path / name, (4, 4, 1))
        np.testing.assert_allclose(found.pixels[..., 0].astype(int), seen, atol=1, err_msg=name)
        assert found.peak is None, name


@pytest.mark.parametrize("dark", [1, 20])
def test_bits_that_a_png_says_may_have_been_made_sixteen(tmp_path: Path, dark: int) -> None:
    """As the specification wants it: sBIT is then what there once was, however dark the image is."""
    twelve = np.linspace(0, 4095, 16).astype(np.int64).reshape(4, 4) // dark
    for name, values in (("shifted", twelve << 4), ("scaled", np.rint(twelve * (65535 / 4095)))):
        (tmp_path / name).write_bytes(png16(values.astype(np.uint16), 0, b"\x0c"))
        np.testing.assert_allclose(pixels(tmp_path / name).astype(int), np.rint(twelve / 4095 * 255), atol=1, err_msg=name)


@pytest.mark.parametrize("sbit", [b"\0", b"\x11", b"\xff", b"", b"\x0c" * 5])
def test_a_png_that_says_nonsense_of_its_bits(tmp_path: Path, sbit: bytes) -> None:
    (tmp_path / "a.png").write_bytes(png16(RAMP, 0, sbit))
    with pytest.raises(DataError, match=r"a.png: (its sBIT chunk says|cannot be read)"):
        pixels(tmp_path / "a.png")


@pytest.mark.parametrize("largest", [0, 1, 200, 3977, 65534])
def test_a_tiffs_own_largest_value_is_no_depth(tmp_path: Path, largest: int) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif", tiffinfo={281: largest})
    found = picture(tmp_path / "a.tif", (4, 4, 1))
    np.testing.assert_allclose(found.pixels[..., 0].astype(int), SEEN, atol=1)
    assert found.peak == 65535


def test_a_depth_that_its_own_values_are_beyond(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    with pytest.raises(DataError, match=r"a.tif: its pixels are 0 to 65535, outside 0 to 4095; convert it to 8 bits"):
        pixels(tmp_path / "a.tif")


def test_the_largest_value_is_told_where_nothing_says_what_counts(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4000, 16).astype(np.uint16).reshape(4, 4)
    for name in ("a.png", "a.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        assert picture(tmp_path / name, (4, 4, 1)).peak == 4000
    (tmp_path / "colour.png").write_bytes(png16(np.stack([ramp] * 3, -1), 2))
    assert picture(tmp_path / "colour.png", (4, 4, 3)).peak == 4095
    (tmp_path / "alpha.png").write_bytes(png16(np.stack([ramp, np.full_like(ramp, 65535)], -1), 4))
    assert picture(tmp_path / "alpha.png", (4, 4, 1)).peak == 4095
    Image.fromarray(SEEN).save(tmp_path / "eight.png")
    (tmp_path / "twelve.pgm").write_bytes(b"P5\n4 4\n4095\n" + ramp.astype(">u2").tobytes())
    Image.new("RGB", (16, 16), (1, 2, 3)).save(tmp_path / "eight.tif")
    Image.new("RGB", (160, 160), (1, 2, 3)).save(tmp_path / "packed.tif", compression="tiff_deflate")
    for name in ("eight.png", "eight.tif", "packed.tif", "twelve.pgm"):
        assert picture(tmp_path / name, (4, 4, 1)).peak is None, name


def test_tiff_may_count_from_white(tmp_path: Path) -> None:
    # Pillow turns 8 bits round as it writes them, and 16 not.
    Image.fromarray(SEEN).save(tmp_path / "flat.tif", tiffinfo={262: 0})
    Image.fromarray(65535 - RAMP).save(tmp_path / "deep.tif", tiffinfo={262: 0})
    for name in ("flat.tif", "deep.tif"):
        np.testing.assert_allclose(pixels(tmp_path / name).astype(int), SEEN, atol=1, err_msg=name)


@pytest.mark.parametrize(("kind", "says"), [(np.int32, "32-bit numbers"), (np.float32, "floating-point numbers")])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, kind: type, says: str) -> None:
    Image.fromarray(RAMP.astype(kind)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=f"a.tif: its pixels are {says} of no known range; convert it to 8 or 16 bits"):
        pixels(tmp_path / "a.tif")


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    hidden = np.zeros((4, 4, 4), np.uint8)
    hidden[:, 2:] = (10, 20, 30, 255)
    Image.fromarray(hidden).save(tmp_path / "rgba.png")
    Image.fromarray(hidden[..., [0, 3]]).save(tmp_path / "la.png")
    palette = Image.fromarray((hidden[..., 0] > 0).astype(np.uint8))
    palette = palette.convert("P")
    palette.putpalette([200, 0, 0, 10, 20, 30] + [0] * 762)
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    for name in ("rgba.png", "la.png", "palette.png", "palette.gif"):
        image, *_ = picture(tmp_path / name, (4, 4, 3))
        assert (image[:, :2] == 255).all(), name
        assert (image[:, 2:, 0] == 10).all(), name
    half = np.full((4, 4, 4), (0, 0, 0, 128), np.uint8)
    Image.fromarray(half).save(tmp_path / "half.png")
    assert (pixels(tmp_path / "half.png") == 127).all()


def test_palette_cmyk_and_black_and_white(tmp_path: Path) -> None:
    palette = Image.fromarray(np.full((4, 4), 7, np.uint8)).convert("P")
    palette.putpalette([0] * 21 + [250, 20, 30] + [0] * 744)
    palette.save(tmp_path / "a.png")
    np.testing.assert_array_equal(picture(tmp_path / "a.png", (1, 1, 3))[0][0, 0], (250, 20, 30))
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(picture(tmp_path / "a.jpg", (1, 1, 3))[0][0, 0].astype(int), (255, 0, 0), atol=3)
    Image.new("1", (4, 4), 1).save(tmp_path / "b.png")
    assert (picture(tmp_path / "b.png", (2, 2, 3))[0] == 255).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "deep.png", "deep.tif"])
def test_the_cameras_orientation_is_applied(tmp_path: Path, name: str) -> None:
    """Orientation 6: to be turned clockwise; the lower half of what is stored is the left of what is seen."""
    stored = np.zeros((8, 8), np.uint16)
    stored[4:] = 65535
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored if name.startswith("deep") else (stored >> 8).astype(np.uint8)).save(tmp_path / name, exif=exif)
    image, *_ = picture(tmp_path / name, (8, 8, 1))
    assert image[:, :3].min() > 250
    assert image[:, 5:].max() < 5


def test_every_format_that_pillow_reads_and_writes(tmp_path: Path) -> None:
    colours = np.kron(
        np.array([[[250, 10, 10], [10, 250, 10]], [[10, 10, 250], [240, 240, 240]]], np.uint8), np.ones((32, 32, 1))
    )
    image = Image.fromarray(colours.astype(np.uint8))
    read = 0
    for suffix in sorted(suffixes() - {".eps", ".ps"}):  # those need Ghostscript
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                image.save(tmp_path / f"a{suffix}")
        except (KeyError, ValueError, OSError):
            continue
        seen, *_ = picture(tmp_path / f"a{suffix}", (64, 64, 3))
        np.testing.assert_allclose(seen[16::32, 16::32].astype(int), colours[16::32, 16::32], atol=3, err_msg=suffix)
        read += 1
    assert read > 20


def test_several_frames_are_counted_and_the_first_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (200, 90, 10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image, count, _ = picture(tmp_path / "a.gif", (4, 4, 1))
    assert count == 3
    assert (image == 200).all()


def test_the_name_does_not_decide(tmp_path: Path) -> None:
    Image.fromarray(SEEN).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "n01440764_10026")
    np.testing.assert_array_equal(pixels(tmp_path / "n01440764_10026"), SEEN)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n torn", b"GIF89a", b"BM" + bytes(20)])
def test_a_file_that_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a.png: cannot be read as an image"):
        pixels(tmp_path / "a.png")


def test_a_torn_photo_is_not_half_a_photo(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a.jpg: cannot be read as an image: .*truncated"):
        pixels(tmp_path / "a.jpg", 3)


def test_no_files_for_other_than_grey_and_colour(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="4 input channels cannot take image files; use npz"):
        picture(tmp_path / "a.png", (4, 4, 4))
