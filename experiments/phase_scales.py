"""Whether a weight scale for each phase of a transposed convolution would help, in place of one for each channel.

``python -m experiments.phase_scales`` rounds the weights of the transposed convolutions alone to int8, first with a scale a
channel, as the lowering does it, then with one a phase and channel, all else in float32, and prints how far the outputs are
then from the float network's: the signal over the error, in dB. The filters of different phases could have scales of their
own, since each phase is a layer; but then the four ways of lowering would not give the same integers. ``--shared`` adds the
networks whose weights are there.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from accelsim import datasets, zoo
from experiments.common import command
from experiments.common.deconvolutions import WEIGHTS
from experiments.deconv_quality import trained

IMAGES: Final = 32
HERE: Final = ("crops_sr2x", "shapes_unet")


def rounded(weight: Tensor, stride: tuple[int, int], by_phase: bool) -> Tensor:
    """A transposed convolution's weights (C_in, C_out/groups, KH, KW) in int8 steps of a scale a channel, or a phase of it."""
    found = weight.clone()
    for r in range(stride[0] if by_phase else 1):
        for c in range(stride[1] if by_phase else 1):
            part = found[:, :, r :: stride[0], c :: stride[1]] if by_phase else found
            scale = part.abs().amax((0, 2, 3), keepdim=True).clamp_min(1e-12) / 127
            part.copy_((part / scale).round().clamp(-127, 127) * scale)
    return found


def signal_over_error(module: nn.Module, inputs: Tensor, by_phase: bool) -> float:
    """In dB, of outputs with rounded weights against those without."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for layer in other.modules():
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight.copy_(rounded(layer.weight, (layer.stride[0], layer.stride[1]), by_phase))
        want, got = module(inputs), other(inputs)
    return float(10 * torch.log10(want.square().mean() / (want - got).square().mean()))


def inputs_of(network: str, module: nn.Module) -> Tensor:
    """Test images of the data that the network is trained on here, else drawn: latents, or photos in 0..1 by chance."""
    if network in zoo.TRAINED_HERE:
        data = datasets.open(datasets.Spec(source=zoo.TRAINED_HERE[network]))
        scaled = (data.test_images[:IMAGES] / 255 - np.array(data.mean)) / np.array(data.std)
        return torch.from_numpy(scaled.astype(np.float32)).permute(0, 3, 1, 2).contiguous()
    generator = torch.Generator().manual_seed(0)
    if network == "dcgan_faces":
        return torch.randn(IMAGES, 100, 1, 1, generator=generator)
    return torch.nn.functional.interpolate(torch.rand(IMAGES, 3, 8, 8, generator=generator), 50, mode="bicubic").clamp(0, 1)


def main() -> None:
    """Measures and prints."""
    parser = command.parser(__doc__)
    parser.add_argument("--shared", type=Path, metavar="FOLDER", help="real weights in weights/, see docs/experiments.md")
    parser.add_argument("--out", type=Path, default=Path("runs/figures"), metavar="FOLDER", help="for weights [%(default)s]")
    given = parser.parse_args()
    files = {name: trained(name, given.out) for name in HERE}
    if given.shared is not None:
        files |= {name: command.real(given.shared, f"weights/{file}") for name, file in WEIGHTS.items()}
    print("| network | transposed convolutions | a scale a channel, dB | a scale a phase, dB |\n|---|---|---|---|")
    for name, file in files.items():
        module = zoo.load(name, file).eval()
        count = sum(isinstance(layer, nn.ConvTranspose2d) for layer in module.modules())
        inputs = inputs_of(name, module)
        one, other = (signal_over_error(module, inputs, by_phase) for by_phase in (False, True))
        print(f"| {name} | {count} | {one:.1f} | {other:.1f} |")


if __name__ == "__main__":
    command.run(main)
