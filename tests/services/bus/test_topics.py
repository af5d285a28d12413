"""Topics: build, parse, match, and the table of what travels where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.bus import messages, topics

LEVEL = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@given(LEVEL, st.sampled_from(topics.PLANES), LEVEL)
def test_what_is_built_is_parsed(device: str, plane: str, name: str) -> None:
    assert topics.parse(topics.build(device, plane, name)) == (device, plane, name)


@given(st.text(max_size=80))
def test_no_text_but_a_topic_is_parsed(text: str) -> None:
    try:
        parsed = topics.parse(text)
    except ValueError:
        return
    assert topics.build(*parsed) == text


@pytest.mark.parametrize("level", ["", "a/b", "+", "#", "-a", "a" * 65, "a\n", "ä", "a b"])
def test_a_level_that_is_none_is_refused(level: str) -> None:
    with pytest.raises(ValueError, match="topic level"):
        topics.build(level, "up", "layers")
    with pytest.raises(ValueError, match="is not r2f/v1"):
        topics.parse(f"r2f/v1/d/up/{level}")


def test_every_topic_that_is_numbered_says_who_sends_there() -> None:
    assert set(topics.SENDERS) == {
        key for key in topics.TABLE if key.split("/")[0] not in ("state", "event") and "flow" not in key
    }


def test_every_message_has_a_topic_and_every_plane_its_answer() -> None:
    travelling = {*topics.TABLE.values(), messages.State, messages.Timing}
    every = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, messages.Message)}
    assert every - {messages.Message, messages.Manifest, messages.Chunk, messages.Sealed} == travelling
    for key in topics.TABLE:
        plane = key.split("/")[0]
        if plane not in ("event", "state"):
            assert f"{topics.ANSWERS[plane]}/flow" in topics.TABLE


def test_short_names_stand_for_one_device() -> None:
    assert topics.absolute("up/layers", "d1") == "r2f/v1/d1/up/layers"
    assert topics.absolute("r2f/v1/+/up/#", "d1") == "r2f/v1/+/up/#"
    assert topics.message_type(topics.parse("r2f/v1/d/state/anything")) is messages.State
    assert topics.message_type(topics.parse("r2f/v1/d/event/forward")) is messages.Timing
    assert topics.message_type(topics.parse("r2f/v1/d/event/progress")) is messages.Progress
