"""What scales a phase would win: rounding against the naive way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from experiments import phase_scales


def test_a_phase_s_weights_have_its_own_scale() -> None:
    weight = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    weight[:, :, ::2, ::2] *= 100
    by_phase = phase_scales.rounded(weight, (2, 2), True)
    for r in range(2):
        for c in range(2):
            for channel in range(2):
                taps = weight[:, channel, r::2, c::2]
                scale = float(taps.abs().max()) / 127
                torch.testing.assert_close(by_phase[:, channel, r::2, c::2], (taps / scale).round() * scale)
    by_channel = phase_scales.rounded(weight, (2, 2), False)
    assert (by_phase - weight).square().mean() < (by_channel - weight).square().mean()
    assert torch.equal(phase_scales.rounded(weight, (1, 1), True), by_channel)


def test_signal_over_error_grows_where_phases_differ() -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 2, 4, 2, 1)
    with torch.no_grad():
        layer.weight[:, :, ::2, ::2] *= 50
    inputs = torch.randn(2, 4, 5, 5)
    before = layer.weight.clone()
    assert phase_scales.signal_over_error(layer, inputs, True) > phase_scales.signal_over_error(layer, inputs, False) > 20
    assert torch.equal(layer.weight, before)


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def weights(name: str, folder: Path) -> Path:
        from safetensors.torch import save_file

        from accelsim import zoo

        torch.manual_seed(0)
        save_file(zoo.build(name).state_dict(), folder / name)
        return folder / name

    monkeypatch.setattr(phase_scales, "trained", weights)
    monkeypatch.setattr(phase_scales, "IMAGES", 2)
    monkeypatch.setattr("sys.argv", ["phase_scales", "--out", str(tmp_path)])
    phase_scales.main()
    head, _, one, two = capsys.readouterr().out.splitlines()
    assert head.startswith("| network |")
    assert (one.split(" | ")[:2], two.split(" | ")[:2]) == (["| crops_sr2x", "1"], ["| shapes_unet", "2"])
