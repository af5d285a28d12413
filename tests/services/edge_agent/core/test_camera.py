"""JPEG files and the pixels in them, against what the codec's server end decodes."""

from __future__ import annotations

import numpy as np
import pytest

from services.codec.core import inputs
from services.edge_agent.core.camera import photograph


@pytest.mark.parametrize("channels", [1, 3])
def test_the_server_decodes_the_pixels_that_the_device_ran_on(channels: int) -> None:
    smooth = np.linspace(0, 255, 3 * 24 * 16 * channels).reshape(3, 24, 16, channels).astype(np.uint8)
    files, pixels = photograph(smooth, 90)
    assert len(files) == 3
    assert np.array_equal(inputs.decode(inputs.pack(files), 3, (24, 16, channels)), pixels)
    assert np.abs(pixels.astype(int) - smooth).mean() < 8


def test_files_are_those_that_experiments_count() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    assert inputs.pack(photograph(noise, 90)[0]) == inputs.lossy(noise, 90)[0]


def test_lower_quality_is_fewer_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    assert len(photograph(noise, 30)[0][0]) < len(photograph(noise, 95)[0][0])


def test_two_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="JPEG holds 1 or 3 channels, these images have 2"):
        photograph(np.zeros((1, 8, 8, 2), np.uint8), 90)
