"""Values that stay what they are in ThingsBoard."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.thingsboard.core.values import TEXT_BYTES, number, text
from tests.services.thingsboard.standin import parse, stored


def kept(value: object) -> object:
    """What ThingsBoard makes of a value."""
    return stored(parse(json.dumps({"key": value}).encode()))["key"]


@example(9.223372035e18)
@example(9.3e18)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_stays_a_number(value: float) -> None:
    rounded = number(value)
    if rounded is None:
        assert abs(value) > 2**63 * (1 - 1e-8)
        return
    assert kept(rounded) == rounded
    assert rounded == pytest.approx(value, rel=1e-8, abs=1e-16)


def test_without_rounding_it_would_be_text() -> None:
    assert kept(0.012345678901234567) == "0.012345678901234567"
    assert number(0.012345678901234567) == 0.0123456789


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_word_for_is_none(value: float) -> None:
    assert number(value) is None


@given(st.text() | st.from_regex(r"-?\d+(\.\d+)?", fullmatch=True))
def test_text_stays_text(value: str) -> None:
    told = text(value)
    assert kept(told) == told
    assert len(told.encode()) <= TEXT_BYTES


@pytest.mark.parametrize("value", ["7", "12345678", "-1.5", ".5", "1e5"])
def test_text_of_digits_gets_an_apostrophe(value: str) -> None:
    assert text(value) == f"'{value}"


def test_other_text_is_left_as_it_is() -> None:
    assert text("20261126-101500-digits_cnn") == "20261126-101500-digits_cnn"
