"""What an operator may tell a device while no run has it: the mode, its error rates, and which layers are protected. And a run
that it is to stop.

A run's device is the run's: its trainer holds the name ``trainer`` as a lease, and this program, which takes that name for as
long as a command to the device lasts, is refused it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from accelsim.faults import Rates
from services import stopping
from services.bus import Bus
from services.bus.messages import Ack, Mode, SetMode, fresh_nonce
from services.scheme import Scheme
from services.shown import plain

OPERATOR = "the page's operator"
HEARD_S = 3.0
"""For the retained mode, which the broker sends at once."""
ANSWER_S = 10.0


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a command; what is None stays as it is."""

    mode: Mode | None = None
    ber: Annotated[float, Meta(ge=0, le=1)] | None = None
    """At inputs, weights and outputs."""
    protected: Annotated[tuple[Annotated[int, Meta(ge=0, le=100_000)], ...], Meta(max_length=4096)] | None = None


class Stopped(msgspec.Struct, forbid_unknown_fields=True):
    """The body of the command that stops a run."""

    session: Annotated[str, Meta(min_length=1, max_length=64)]
    """Of the run that the operator saw: not one that began since."""


class NotDone(ValueError):
    """A command that the device did not carry out, and why."""


async def tell(broker: str, device: str, asked: Asked) -> SetMode:
    """Set a device's mode and wait until it says that it has; what it was told.

    Raises NotDone with the reason; BusError where the broker is out of reach, or a run has the device.
    """
    before = await _mode(broker, device)
    message = msgspec.structs.replace(
        before,
        seq=before.seq + 1,
        mode=asked.mode or before.mode,
        rates=_rates(before.rates, asked.ber),
        scheme=_scheme(before.scheme, asked.protected),
        nonce=fresh_nonce(),
        origin="",
        n=0,
    )
    async with Bus(broker, "trainer", device, session=before.session, arena_bytes=0, give_up_s=HEARD_S) as bus:
        await bus.subscribe("up/ack")
        await bus.publish("down/mode", message, retain=True)
        try:
            while True:
                _, answer = await bus.receive(ANSWER_S)
                if isinstance(answer, Ack) and (answer.of, answer.seq) == ("mode", message.seq):
                    break
        except TimeoutError:
            raise NotDone(f"device {device} did not answer within {ANSWER_S:g} s; is its agent there?") from None
    if not answer.ok:
        raise NotDone(f"device {device} refused: {plain(answer.error)}")
    return message


async def stop(broker: str, device: str, session: str) -> None:
    """Have the trainer end a run after what is under way. Raises NotDone where none of that run hears, BusError as ``tell``."""
    try:
        heard = await stopping.stop(
            broker, [device], session, OPERATOR, lambda _: None, wait=False, give_up_s=HEARD_S
        )  # fmt: skip
    except stopping.NotStopped as error:
        raise NotDone(str(error)) from None
    if not heard:
        raise NotDone(f"no trainer has device {device} any more: run {session} is not going on")


async def _mode(broker: str, device: str) -> SetMode:
    async with Bus(broker, "monitor", device, passive=True, give_up_s=HEARD_S) as bus:
        await bus.subscribe("down/mode")
        try:
            _, message = await bus.receive(HEARD_S)
        except TimeoutError:
            raise NotDone(f"device {device} was never told a mode on this broker; a run does that first") from None
    assert isinstance(message, SetMode)  # of that topic
    return message


def _rates(before: Rates, ber: float | None) -> Rates:
    return before if ber is None else msgspec.structs.replace(before, input=ber, weight=ber, output=ber)


def _scheme(before: Scheme, protected: tuple[int, ...] | None) -> Scheme:
    return before if protected is None else msgspec.structs.replace(before, protected=tuple(sorted(set(protected))))
