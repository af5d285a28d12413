"""What waits for ThingsBoard: in packets that it takes, bounded, the newest attributes and the latest telemetry."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.thingsboard.core import outbox as outboxes
from services.thingsboard.core.outbox import Outbox, Packet
from services.thingsboard.core.watched import Point


def emptied(outbox: Outbox) -> list[Packet]:
    packets = []
    while (packet := outbox.next()) is not None:
        packets.append(packet)
    assert not len(outbox)
    return packets


def read(packet: Packet) -> Any:
    return json.loads(packet.payload)


def test_the_order_of_a_device_that_comes_and_goes() -> None:
    outbox = Outbox()
    outbox.add("edge-0", Point(1, {"loss": 0.5}))
    outbox.tell("edge-0", {"agent_online": True})
    outbox.present("edge-0")
    packets = emptied(outbox)
    assert [packet.kind for packet in packets] == ["connect", "attributes", "telemetry"]
    assert read(packets[2]) == {"edge-0": [{"ts": 1, "values": {"loss": 0.5}}]}
    outbox.absent("edge-0")
    outbox.tell("edge-0", {"agent_online": False})
    assert [packet.kind for packet in emptied(outbox)] == ["attributes", "disconnect"]
    # Whatever is told of it later makes ThingsBoard take it to be there.
    outbox.tell("edge-0", {"voter_online": False})
    assert [packet.kind for packet in emptied(outbox)] == ["attributes", "disconnect"]


def test_of_attributes_that_wait_the_newest_counts() -> None:
    outbox = Outbox()
    outbox.tell("edge-0", {"a": 1, "b": 1})
    outbox.tell("edge-0", {"a": 2})
    outbox.tell("", {"bridge": 3})
    assert [read(packet) for packet in emptied(outbox)] == [{"edge-0": {"a": 2, "b": 1}}, {"bridge": 3}]


def test_packets_hold_one_device_and_what_thingsboard_takes() -> None:
    outbox = Outbox()
    for ts in range(3000):
        for device in ("edge-0", "edge-1"):
            outbox.add(device, Point(ts, {"loss": 0.123456789, "text": "x" * 50}))
    outbox.tell("edge-0", {f"key{number}": "y" * 1000 for number in range(150)})
    packets = emptied(outbox)
    assert max(len(packet.payload) for packet in packets) <= outboxes.PACKET_BYTES
    assert all(len(read(packet)) == 1 for packet in packets)
    for device in ("edge-0", "edge-1"):
        told = [p["ts"] for packet in packets if packet.kind == "telemetry" for p in read(packet).get(device, ())]
        assert told == list(range(3000))
    attributes = [read(packet)["edge-0"] for packet in packets if packet.kind == "attributes"]
    assert len(attributes) > 1
    assert {key for one in attributes for key in one} == {f"key{number}" for number in range(150)}
    assert outbox.held == 0


def test_telemetry_that_has_no_room_goes_oldest_first_and_attributes_stay() -> None:
    outbox = Outbox(most=2000)
    outbox.tell("edge-0", {"a": 1})
    outbox.add("quiet", Point(0, {"step": 0}))
    for ts in range(1000):
        outbox.add("edge-0", Point(ts, {"step": ts}))
    assert outbox.held <= 2000
    packets = emptied(outbox)
    told: dict[str, list[int]] = {}
    for packet in packets:
        if packet.kind == "telemetry":
            told |= {device: [point["ts"] for point in points] for device, points in read(packet).items()}
    assert told["quiet"] == [0]  # the one that says most makes room
    assert told["edge-0"] == list(range(1000 - len(told["edge-0"]), 1000))
    assert outbox.counts["telemetry_dropped"] == 1000 - len(told["edge-0"])
    assert [packet.kind for packet in packets].count("attributes") == 1


def test_what_no_packet_holds_is_counted() -> None:
    outbox = Outbox()
    outbox.add("edge-0", Point(0, {"text": "x" * 70_000}))
    outbox.tell("edge-0", {"text": "x" * 70_000, "a": 1})
    assert [read(packet) for packet in emptied(outbox)] == [{"edge-0": {"a": 1}}]
    assert outbox.counts["too_large"] == 2
    with pytest.raises(ValueError, match="at most 60000"):
        outbox.word("v1/gateway/rpc", "x" * 70_000)


def test_answers_that_nobody_takes_are_bounded() -> None:
    outbox = Outbox()
    for number in range(outboxes.WORDS + 10):
        outbox.word("v1/gateway/rpc", {"id": number})
    assert outbox.counts["words_dropped"] == 10
    assert read(emptied(outbox)[0]) == {"id": 10}


def test_what_was_lost_goes_again_before_what_came_later() -> None:
    outbox = Outbox()
    outbox.present("edge-0")
    outbox.add("edge-0", Point(1, {"step": 1}))
    first = emptied(outbox)
    outbox.add("edge-0", Point(2, {"step": 2}))
    outbox.tell("edge-0", {"a": 2})
    for packet in reversed(first):
        outbox.put_back(packet)
    again = emptied(outbox)
    assert [packet.kind for packet in again] == ["connect", "telemetry", "attributes", "telemetry"]
    assert again[1] == first[1]


def test_what_was_lost_goes_again_in_its_order() -> None:
    outbox, sent = Outbox(), []
    for ts in range(3):
        outbox.tell("edge-0", {"a": ts})
        outbox.add("edge-0", Point(ts, {"step": ts}))
        sent += emptied(outbox)
    for packet in reversed(sent):
        outbox.put_back(packet)
    assert emptied(outbox) == sent


def test_a_device_that_went_meanwhile_is_not_connected_again() -> None:
    outbox = Outbox()
    outbox.present("edge-0")
    (connect,) = emptied(outbox)
    outbox.absent("edge-0")
    (disconnect,) = emptied(outbox)
    outbox.put_back(connect)
    assert not len(outbox)
    outbox.present("edge-0")
    emptied(outbox)
    outbox.put_back(disconnect)
    assert not len(outbox)
