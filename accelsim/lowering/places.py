"""Where the elements of a tensor come from, and the few moves that an int8 network has for them.

A tensor (C, H, W) that was made by moving the elements of an image is held as the place of each element in that image,
numbered in (C, H, W) order, -1 for a zero. ``moves`` says how an int8 network gets there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from accelsim.int8.network import Shape


@dataclass(frozen=True, slots=True)
class Reorder:
    """Channels in another order, or some of them."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """A strided window of ``shape`` (H, W, C), zero where it reaches past the image; ``offset`` is (H, W, C)."""

    offset: tuple[int, int, int]
    step: tuple[int, int]
    shape: Shape


@dataclass(frozen=True, slots=True)
class Pick:
    """Any rows and columns in any order, some of them more than once."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


Move = Reorder | Window | Pick


def moves(places: Tensor, shape: Shape) -> list[tuple[str, Move]] | None:
    """Moves from an image of ``shape`` (H, W, C) to ``places`` int64 (C, H, W), each with a suffix for its name.

    None where no channel order, rows and columns, window and zero padding give them. No moves where ``places`` is the image.
    """
    axes = _axes(places, shape)
    if axes is None:
        return None
    channels, rows, columns = axes
    kept = [c for c in channels if c >= 0]
    before = next(i for i, c in enumerate(channels) if c >= 0)
    if len(set(kept)) != len(kept) or channels[before : before + len(kept)] != kept:
        return None
    in_a_row = kept == list(range(kept[0], kept[0] + len(kept)))
    along_rows, along_columns = _progression(rows), _progression(columns)
    if along_rows is None or along_columns is None:
        if min(*rows, *columns, *channels) < 0:
            return _crop_and_pad(places, shape)
        order: list[tuple[str, Move]] = [] if kept == list(range(shape[2])) else [(".channels", Reorder(tuple(kept)))]
        return [*order, ("", Pick(tuple(rows), tuple(columns)))]
    reads_outside = not (
        _zeros_lie_outside(rows, shape[0], along_rows)
        and _zeros_lie_outside(columns, shape[1], along_columns)
        and (not in_a_row or _zeros_lie_outside(channels, shape[2], (kept[0] - before, 1)))
    )
    if reads_outside:
        return _crop_and_pad(places, shape)
    window = rows != list(range(shape[0])) or columns != list(range(shape[1])) or len(kept) != len(channels)
    steps: list[tuple[str, Move]] = []
    offset = kept[0] - before
    if (not in_a_row or not window) and kept != list(range(shape[2])):
        steps.append((".channels" if window else "", Reorder(tuple(kept))))
        offset = -before
    if window:
        first, step = zip(along_rows, along_columns, strict=True)
        size = (len(rows), len(columns), len(channels))
        steps.append(("", Window((first[0], first[1], offset), (step[0], step[1]), size)))
    return steps


def _axes(places: Tensor, shape: Shape) -> tuple[list[int], list[int], list[int]] | None:
    """(channels, rows, columns) such that each element is from (channel of its C, row of its H, column of its W).

    -1 where all of a channel, row or column is zero. None where elements are not from such a grid.
    """
    height, width, _ = shape
    real = places >= 0
    if not bool(real.any()):
        return None
    channel, row, column = places // (height * width), places // width % height, places % width
    axes: list[list[int]] = []
    inside = torch.ones(1, dtype=torch.bool)
    for place, dims, view in ((channel, (1, 2), (-1, 1, 1)), (row, (0, 2), (1, -1, 1)), (column, (0, 1), (1, 1, -1))):
        top = torch.where(real, place, -1).amax(dims)
        low = torch.where(real, place, 1 << 40).amin(dims)
        if bool(((top >= 0) & (top != low)).any()):
            return None
        axes.append(top.tolist())
        inside = inside & (top >= 0).reshape(view)
    if not torch.equal(inside.expand_as(real), real):
        return None
    return axes[0], axes[1], axes[2]


def _progression(places: list[int]) -> tuple[int, int] | None:
    """(place of the first, step) of positions in even steps, -1 where there are zeros around them."""
    first = next(i for i, p in enumerate(places) if p >= 0)
    kept = [p for p in places if p >= 0]
    alone = 1 if len(places) == 1 else 1 << 15  # one real place among zeros: step over the rest of the operand
    step = kept[1] - kept[0] if len(kept) > 1 else alone
    even = step >= 1 and kept == [kept[0] + step * i for i in range(len(kept))]
    if not even or places[first : first + len(kept)] != kept:
        return None
    return kept[0] - first * step, step


def _zeros_lie_outside(places: list[int], size: int, along: tuple[int, int]) -> bool:
    """Whether a strided window over ``size`` places gives zeros (-1) just where it leaves them."""
    first, step = along
    return all((0 <= first + i * step < size) == (place >= 0) for i, place in enumerate(places))


def _crop_and_pad(places: Tensor, shape: Shape) -> list[tuple[str, Move]] | None:
    """Two windows where one would read elements that should be zeros: cut out what is kept, then pad it."""
    kept = torch.nonzero(places >= 0)
    low, high = kept.amin(0).tolist(), (kept.amax(0) + 1).tolist()
    if low == [0, 0, 0] and high == list(places.shape):
        return None  # zeros between what is kept
    region = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    cut = moves(places[region], shape)
    if cut is None:
        return None
    c, h, w = places.shape
    pad = Window((-low[1], -low[2], -low[0]), (1, 1), (h, w, c))
    return [*((f".crop{suffix}", move) for suffix, move in cut), ("", pad)]
