"""What tells one codec from another stands in one table, and the schemes' JSON and bytes say no more than they must."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from services.codec.core import codings
from services.scheme import WAYS, Codec, Scheme


def test_every_codec_has_its_row_and_every_row_names_codings_that_there_are() -> None:
    assert set(WAYS) == set(get_args(Codec))
    for way in WAYS.values():
        assert way.outputs
        assert not any(codings.TABLE[name].predicted for name in way.outputs)
        assert all(codings.TABLE[name].predicted for name in way.increments)
        # Without a reference there is nothing that increments could be against.
        assert bool(way.increments) == (way.reference != "none")


@pytest.mark.parametrize(
    ("scheme", "repairs"),
    [
        (Scheme(), True),
        (Scheme(exact=False), False),
        (Scheme(codec="golden"), False),
        (Scheme(codec="direct"), False),
    ],
)
def test_only_what_the_server_predicts_from_what_it_rebuilt_can_be_mended(scheme: Scheme, repairs: bool) -> None:
    assert scheme.repairs == repairs


@pytest.mark.parametrize(
    ("scheme", "executions"),
    [
        (Scheme(), 0),
        (Scheme(referee=False), 3),
        (Scheme(codec="golden", replicas=5), 5),
        (Scheme(codec="direct"), 1),
    ],
)
def test_how_often_a_layer_runs_in_training(scheme: Scheme, executions: int) -> None:
    assert scheme.executions == executions


def test_the_papers_threshold_is_the_default_and_needs_no_bytes() -> None:
    assert Scheme(codec="golden").theta == 0.6
    assert msgspec.json.encode(Scheme(codec="golden")) == b'{"codec":"golden"}'
    assert msgspec.json.encode(Scheme()) == b"{}"
