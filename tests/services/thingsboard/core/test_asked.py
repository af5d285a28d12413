"""Calls, shared attributes, answers and firmware as ThingsBoard sends them, right and wrong."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accelsim.faults import Rates
from services.scheme import Port, Scheme
from services.thingsboard.core import answers, asked, firmware
from services.thingsboard.core.answers import Answers, Key
from services.thingsboard.core.asked import Setting
from services.thingsboard.core.firmware import CHUNK_BYTES, Download, announced

BEFORE = Setting(
    "training", Rates(input=0.5, accumulator=0.25), 3, Scheme(protected=(1,), ports=(Port(0, "input"),), exact=False), b"map"
)


def test_what_attributes_leave_out_stays() -> None:
    assert asked.configured({}, BEFORE) == BEFORE
    after = asked.configured({"ber": 1e-3, "ber_weight": 0, "seed": 9, "protected": [2, 0, 2]}, BEFORE)
    assert after.rates == Rates(input=1e-3, weight=0.0, accumulator=0.25, output=1e-3)
    assert (after.mode, after.seed, after.known) == ("training", 9, b"map")
    assert after.scheme == Scheme(protected=(0, 2), ports=(Port(0, "input"),), exact=False)


def test_replicas_take_the_place_of_the_referee_and_0_gives_it_back() -> None:
    five = asked.configured({"replicas": 5}, BEFORE)
    assert (five.scheme.referee, five.scheme.replicas) == (False, 5)
    assert asked.configured({"replicas": 0}, five).scheme.referee


WRONG: list[tuple[str, Any]] = [
    *(("ber", value) for value in (7, -1e-9, "0.1", None)),
    ("ber_input", [1]),
    ("codec", "zip"),
    ("vote", 3),
    ("replicas", 4),
    ("theta", 1.5),
    *(("protected", value) for value in ("[0", [-1], [0.5], list(range(5000)))),
    *(("seed", value) for value in (-1, 2**63)),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_an_attribute_that_is_wrong_is_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}: "):
        asked.configured({key: value}, BEFORE)


ANYTHING = st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(list(asked.CONFIGURES)), ANYTHING))
def test_whatever_attributes_hold_it_is_a_setting_or_a_named_error(shared: dict[str, Any]) -> None:
    try:
        after, named = asked.configured(shared, BEFORE), "scheme"
    except ValueError as error:
        after, named = BEFORE, str(error).split(":")[0]
    assert named in (*asked.CONFIGURES, "scheme")
    assert after.known == b"map"


def test_updates_and_deletions() -> None:
    shared = asked.changed({}, {"ber": 1, "color": "red", "seed": 2})
    assert shared == {"ber": 1, "seed": 2}
    assert asked.changed(shared, {"deleted": ["ber", "other", 7]}) == {"seed": 2}
    assert asked.changed(shared, {"deleted": "ber"}) == shared


@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_read_or_refused(payload: bytes) -> None:
    for kind in (asked.Asked, asked.Updated, asked.Answered, asked.Limits, dict[str, Any]):
        with contextlib.suppress(ValueError):
            asked.decode(payload, kind)


def test_more_than_is_read_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 65536"):
        asked.decode(b'{"a":"' + b"x" * 70_000 + b'"}', dict[str, Any])


@pytest.mark.parametrize("device", ["", "a/b", "+", "#", "x" * 65])
def test_a_device_whose_name_is_no_level_of_a_topic_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match="is no name of a device"):
        asked.decode(json.dumps({"device": device, "data": {}}).encode(), asked.Updated)


def test_a_call_is_carried_out_once_for_a_minute() -> None:
    known, key = Answers(), Key("edge-0", 1, b"a")
    assert known.begin(key, 0.0)
    assert not known.begin(key, 1.0)
    assert known.given(key) is None
    known.give(key, {"accepted": True}, 2.0, done=False)
    assert not known.begin(key, 100.0)  # it is still under way
    known.give(key, {"ok": True}, 100.0)
    assert not known.begin(key, 159.0)
    assert known.given(key) == {"ok": True}
    assert known.begin(key._replace(content=b"b"), 100.0)
    assert known.begin(key, 161.0)  # ThingsBoard has begun to number anew
    for number in range(2 * answers.REMEMBERED):
        known.give(Key("edge-1", number, b""), {}, 200.0)
    assert len(known._given) == answers.REMEMBERED


DATA = bytes(range(256)) * 130  # two chunks and a part
TOLD = {
    "fw_title": "net",
    "fw_version": "1",
    "fw_size": len(DATA),
    "fw_checksum": hashlib.sha256(DATA).hexdigest(),
    "fw_checksum_algorithm": "SHA256",
}


def test_firmware_in_chunks() -> None:
    assert announced({}) is None
    found = announced({**TOLD, "fw_version": 7, "other": 1})
    assert found is not None
    assert found.fw_version == "7"  # as ThingsBoard hands on digits
    download = Download(found, 5)
    assert download.topic == "v2/fw/request/5/chunk/0"
    assert not download.take(4, 0, DATA[:CHUNK_BYTES])
    assert not download.take(5, 1, DATA[:CHUNK_BYTES])
    for index in range(3):
        assert not download.done
        assert download.take(5, index, DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
    assert download.done
    assert download.verified() == DATA
    assert not download.take(5, 0, DATA[:CHUNK_BYTES])


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES + 1])
def test_a_chunk_of_another_size_is_refused(length: int) -> None:
    found = announced(TOLD)
    assert found is not None
    with pytest.raises(ValueError, match=f"has {length} bytes; {CHUNK_BYTES} were to come"):
        Download(found, 1).take(1, 0, bytes(length))


def test_what_was_not_announced_is_refused() -> None:
    found = announced({**TOLD, "fw_checksum": "0" * 64})
    assert found is not None
    with pytest.raises(ValueError, match="SHA256 is"):
        Download(found, 1, bytearray(DATA)).verified()


@pytest.mark.parametrize(
    "change",
    [
        {"fw_size": 0},
        {"fw_size": firmware.MOST_BYTES + 1},
        {"fw_checksum": "x"},
        {"fw_checksum_algorithm": "MD5"},
        {"fw_title": ""},
    ],
)
def test_firmware_that_is_wrong_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^firmware: "):
        announced({**TOLD, **change})
    with pytest.raises(ValueError, match=r"^firmware: "):
        announced({"fw_title": "net"})


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [
        ({}, 0.0),
        ({"gateway_rate_limits": {"messages": None, "telemetryMessages": "10:1,300:60"}}, 0.2),
        ({"rate_limits": {"messages": "1:2"}, "gateway_rate_limits": {"messages": "4:1"}}, 2.0),
        ({"rate_limits": {"messages": "1:99999", "telemetryMessages": 7}}, asked.SLOWEST_S),
        ({"rate_limits": {"messages": "0:1,,x,-1:2,9," * 99}}, 0.0),
    ],
)
def test_rate_limits_are_kept_by_a_pause(limits: dict[str, Any], seconds: float) -> None:
    assert asked.spacing(asked.Limits(65536, 100, **limits)) == seconds
