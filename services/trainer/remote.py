"""One device as the server sees it: the state of its services, what they answer, and the waiting for that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import structlog

from accelsim.int8 import storage
from services.boundary import detail, trace
from services.bus import Bus, BusError
from services.bus.keys import OPTION
from services.bus.messages import (
    Ack,
    Activations,
    Deploy,
    Dropped,
    Forward,
    Inputs,
    Message,
    Outputs,
    SetMode,
    State,
    Stop,
    Stopping,
    Tensor,
    Timing,
    Votes,
)
from services.shown import plain
from services.trainer.answers import Asked, Data, Deployed, counted
from services.trainer.patience import Patience

log = structlog.get_logger()

SETTLE_S = 0.3
"""From a service's birth until it listens: a repeat that comes sooner may go unheard, and would cost a whole patience."""
LOADING_S = 600.0
"""For an agent that is there to say what samples it has: a large folder on a small board takes minutes to look through."""
REPEATS = 32
"""How often a command is given in all. Services that are killed again and again may need a few; those that die of the command
itself are not to do so for ever."""
T = TypeVar("T")

PASS = "iteration"
"""The kind of what is asked for of a pass; its number follows."""
PATH = ("agent", "voter", "codec-device", "codec-server")
"""The services between a Forward and its activations; a restart of one loses what it held of an iteration."""


class DeviceError(BusError):
    """The device, or a service on the way to it, did not do what it was told; the message says which and why."""


class Remote:
    """What the server knows of one device in a session, and its waiting for it."""

    def __init__(self, bus: Bus, session: str, name: str, patience: Patience) -> None:
        self.bus = bus
        self.session = session
        self.name = name
        self.patience = patience
        self.waits_s: dict[tuple[str, str], float] = {}
        """How long it may be silent now, by the kind of what it was asked for and the mode that it is in (passes of training
        and of inference take different times); ``patience.seconds`` where that is not there."""
        self.sequence = 0
        self.mode: SetMode | None = None
        self.deployed: Deployed | None = None
        self.model_bytes = 0
        """Of the network that was deployed last, whole."""
        self.data: Data | None = None
        self.on_timing: Callable[[Timing], None] | None = None
        self.on_votes: Callable[[Votes], None] | None = None
        self.stopped_by = ""
        """Who asked for this session to be stopped; empty while nobody has."""
        self.unanswered = False
        """Whether a pass was asked for and has not come. After one that nobody waits for any more it is not known what the
        services on the way have of it, and of the network and mode before it."""
        self.failure: BusError | None = None
        """Why no more messages will come."""
        self._states: dict[str, State] = {}
        self._asked: dict[str, Asked] = {}
        """By what an Ack would be ``of``."""
        self._dropped: dict[str, str] = {}
        """What services dropped while we waited, and why."""
        self._unbound = False
        self._tensors: list[Tensor] = []
        self._changed = asyncio.Condition()
        self._parts = 0
        """Of answers that had not come before: what is new, and nothing else, makes patience begin anew."""
        self._restarts = 0

    # ---- sending ----

    async def publish(self, topic: str, message: Message, *, retain: bool = False) -> None:
        """Send on a topic of the device, such as ``down/mode``."""
        await self.bus.publish(self.bus.topic(topic, self.name), message, retain=retain)

    async def send_mode(self, mode: SetMode) -> None:
        """``down/mode``, retained."""
        self.mode = mode
        self._asked["mode"] = Asked(mode.seq, mode.nonce)
        await self.publish("down/mode", mode, retain=True)

    async def send_model(self, deployed: Deployed) -> None:
        """``server/model``"""
        self.deployed = deployed
        self._asked["model"] = Asked(deployed.version, 0)
        data = self.bus.share(np.frombuffer(storage.to_bytes(deployed.network), np.uint8))
        self.model_bytes = data.shape[0]
        message = Deploy(session=self.session, iteration=deployed.iteration, version=deployed.version, network=data)
        detail("model sent", trace=trace(message), device=self.name, version=deployed.version)
        await self.publish("server/model", message)

    async def send_forward(self, forward: Forward, mode: SetMode, deployed: Deployed) -> None:
        """``down/forward``; what came of an earlier pass is dropped. A repeat says again all that the pass needs."""
        for tensor in self._tensors:
            self.bus.release(tensor)
        self._tensors = []
        self.data = Data(forward.iteration, forward.attempt, len(forward.samples), forward.nonce)
        self._asked["forward"] = Asked(forward.iteration, forward.nonce)
        if forward.attempt > 0:
            log.warning("forward repeated", device=self.name, iteration=forward.iteration, attempt=forward.attempt)
            await self.send_mode(mode)
            await self.send_model(deployed)
        detail("forward sent", trace=trace(forward), device=self.name, mode=forward.mode, attempt=forward.attempt)
        await self.publish("down/forward", forward)

    # ---- waiting ----

    async def ready(self, within_s: float) -> State:
        """The agent's state, once every service on the path is there. Raises DeviceError naming the missing ones,
        or one that has another key.

        Where the broker went away meanwhile they are given as long again; an agent that is there, ``LOADING_S`` for its data.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()

        def present() -> State | None:
            online = {name for name, state in self._states.items() if state.online}
            for name, state in self._states.items():
                if state.online and name in PATH:
                    self._same_key(name, state)
            # The agent counts its samples only after its birth.
            return self._states["agent"] if online.issuperset(PATH) and self._states["agent"].samples else None

        while True:
            reconnected = self.bus.counts["reconnected"]
            try:
                async with self._changed, asyncio.timeout(within_s):
                    while (found := present()) is None:
                        if self.failure is not None:
                            raise self.failure
                        await self._changed.wait()
                    return found
            except TimeoutError:
                missing = sorted(set(PATH) - {n for n, s in self._states.items() if s.online})
            if not missing and loop.time() < began + LOADING_S:
                log.warning("the agent is there and has not said yet what samples it has", device=self.name, for_s=within_s)
                continue
            await self.bus.announce()  # something to be acknowledged by the broker, once it is there
            await self.bus.flush()
            if self.bus.counts["reconnected"] == reconnected:
                raise DeviceError(
                    f"device {self.name!r}: no sign of {', '.join(missing) or 'its samples'} within "
                    f"{within_s if missing else LOADING_S:.3g} s; are they running, and with --device {self.name}?"
                )

    def _same_key(self, service: str, state: State) -> None:
        """Raises DeviceError where a service could not understand us, or we it."""
        ours = self.bus.key_name(self.name)
        if state.key == ours:
            return
        if not ours:
            why = f"takes signed messages alone, and this trainer has no key; give it {OPTION}"
        elif not state.key:
            why = f"signs nothing, and this trainer takes signed messages alone; give it {OPTION}"
        else:
            why = f"has another key (called {state.key}) than this trainer ({ours}); give both the same ({OPTION})"
        raise DeviceError(f"device {self.name!r}: {service} {why}")

    def acknowledged(self, of: Literal["mode", "model"], seq: int) -> bool:
        """Whether the device has done what it was told. Raises DeviceError if it refused."""
        self.refused(of, seq)
        asked = self._asked.get(of)
        return asked is not None and asked.seq == seq and asked.answer is not None

    def refused(self, of: str, seq: int) -> None:
        """Raises what the device refused: a repeat cannot mend that."""
        asked = self._asked.get(of)
        if asked is not None and asked.seq == seq and asked.answer is not None and not asked.answer.ok:
            raise DeviceError(f"device {self.name!r} refused {of} {seq}: {plain(asked.answer.error)}")

    async def until(
        self, send: Callable[[int], Awaitable[object]], ready: Callable[[], T | None], kind: str, which: object
    ) -> T:
        """Send, wait, and send again when a service restarted or nothing new came for as long as patience lasts.

        What has come before, and what was not asked for, is nothing new: with P parts of an answer an attempt ends within
        (P + 1) times its patience, whoever talks meanwhile. Raises DeviceError, naming what was asked for (``kind``, such as
        "iteration", and ``which``), when all attempts are used up, those in a row that met silence, or all in all, with what
        services say that they dropped.
        """
        self._dropped.clear()
        what, silent, waited = f"{kind} {which}", 0, 0.0
        for attempt in range(REPEATS):
            await send(attempt)
            of = kind, "" if self.mode is None else self.mode.mode
            waits = min(self.waits_s.get(of, self.patience.seconds), self.patience.in_all - waited)
            await self.bus.flush()  # while the broker is away it is not the device that is silent
            try:
                result, took = await self._wait(ready, waits)
            except TimeoutError:
                silent, waited = silent + 1, waited + waits
                log.warning("silent", device=self.name, asked_for=what, for_s=round(waits, 1), times=silent)
                self.waits_s[of] = self.patience.more(waits)
            else:
                if result:
                    # Of an acknowledgement after a repeat it is not known which of the two it is of; data say so.
                    if attempt == 0 or kind == PASS:
                        self.waits_s[of] = min(max(self.patience.seconds, 2 * took), self.patience.longest)
                    return result
                silent, waited = 0, 0.0
                self.waits_s.pop(of, None)  # what was slow is gone
            if silent == self.patience.attempts or waited >= self.patience.in_all:
                raise DeviceError(
                    f"device {self.name!r}: no answer to {what} after {silent} attempts "
                    f"({waited:.3g} s without anything new in all){self._said_dropped()}"
                )
        raise DeviceError(
            f"device {self.name!r}: no answer to {what} after {REPEATS} attempts, between which services started anew; "
            f"their logs may say why{self._said_dropped()}"
        )

    def _said_dropped(self) -> str:
        return "".join(f"; {service} dropped: {reason}" for service, reason in self._dropped.items())

    async def _wait(self, ready: Callable[[], T | None], waits_s: float) -> tuple[T | None, float]:
        """The result and the longest time, in seconds, without anything new before it; None when a service restarted and it is
        time to repeat. Raises TimeoutError after so many seconds without anything new."""
        restarts, loop = self._restarts, asyncio.get_running_loop()
        since, seen, longest = loop.time(), self._parts, 0.0
        async with self._changed:
            while not (result := ready()):
                if self.failure is not None:
                    raise self.failure
                if self._restarts != restarts and all(self._listens(name) for name in PATH):
                    break
                if self._parts != seen:
                    longest, since, seen = max(longest, loop.time() - since), loop.time(), self._parts
                async with asyncio.timeout_at(since + waits_s):
                    await self._changed.wait()
            else:
                return result, max(longest, loop.time() - since)
        await asyncio.sleep(SETTLE_S)
        return None, 0.0

    def _listens(self, service: str) -> bool:
        """Whether a service is there; the agent says what samples it has once it listens."""
        state = self._states.get(service)
        return state is not None and state.online and (service != "agent" or bool(state.samples))

    async def fail(self, error: BusError) -> None:
        """Have whoever waits raise the error: no more messages will come."""
        self.failure = error
        await self._wake()

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ---- taking in ----

    async def take(self, message: Message) -> None:
        """Note what arrived, and wake whoever waits for it. Raises ValueError for what is wrong with it."""
        if isinstance(message, Stop):
            await self._take_stop(message)
        elif self._take(message):
            await self._wake()

    async def _take_stop(self, stop: Stop) -> None:
        if stop.session != self.session:
            return
        if not stop.by or not stop.by.isprintable():
            raise ValueError(f"stop: by is {stop.by!r}, not the printable name of who asks")
        if not self.stopped_by:
            log.warning("to be stopped after what is under way", device=self.name, by=stop.by)
            self.stopped_by = stop.by
        await self.publish("event/stopping", Stopping(session=self.session, by=self.stopped_by))

    def _take(self, message: Message) -> bool:
        match message:
            case State():
                return self._take_state(message)
            case Timing() if message.session == self.session:
                if self.on_timing is not None:
                    self.on_timing(message)
            case Votes() if message.session == self.session:
                if self.on_votes is not None:
                    self.on_votes(message)
            case Dropped():
                if message.service in self._dropped or len(self._dropped) < len(PATH):
                    self._dropped[message.service] = plain(message.reason)
            case Ack() if message.session == self.session:
                return self._take_ack(message)
            case Inputs() | Activations() | Outputs():
                data = self._wanted(message)
                if data is not None and self._take_data(message, data):
                    self._parts += 1
                    return True
        return False

    def _take_ack(self, ack: Ack) -> bool:
        asked = self._asked.get(ack.of)
        if asked is None or asked.seq != ack.seq or asked.answer is not None:
            return False
        self._bound(ack.nonce, asked.nonce, f"{ack.of} {ack.seq}")
        asked.answer = ack
        return True

    def _bound(self, nonce: int, asked: int, what: str) -> None:
        """Raises ValueError for an answer to another command, which is most often one that was recorded and is replayed."""
        if nonce == asked:
            return
        if nonce or self.bus.key_name(self.name):
            raise ValueError(f"{what}: answers a command that was not given (nonce {nonce}, not {asked})")
        if not self._unbound:
            self._unbound = True
            log.warning("answers of this device do not say which command they answer: a replay would not be noticed", of=what)

    def _take_state(self, state: State) -> bool:
        before = self._states.get(state.service)
        self._states[state.service] = state
        if before is not None and state.online and before.boot != state.boot and state.service in PATH:
            log.warning("service restarted", service=state.service)
            self._restarts += 1
        return True

    def _take_data(self, message: Inputs | Activations | Outputs, data: Data) -> bool:
        """Whether there was anything new in it."""
        match message:
            case Inputs():
                if data.images is not None:
                    return False
                counted("images", message.images, data)
                data.labels = self._labels(message.labels, data)
                data.images = self._keep(message.images, "images", np.dtype(np.uint8))
            case Activations():
                before = len(data.activations)
                layers = {} if self.deployed is None else dict(self.deployed.network.convs())
                for layer in message.layers:
                    if layer.index not in layers:
                        raise ValueError(f"layer {layer.index} is no MAC layer of the network deployed")
                    counted(f"layer {layer.index}", layer.actual, data)
                    data.activations[layer.index] = self._keep(layer.actual, f"layer {layer.index}", layers[layer.index].dtype)
                    data.repairs[layer.index] = layer.repaired
                    if not layer.faithful:
                        data.mismatched_layers.add(layer.index)
                return len(data.activations) > before
            case Outputs():
                self._bound(message.nonce, data.nonce, f"outputs of iteration {message.iteration}")
                if data.outputs is not None:
                    return False
                counted("outputs", message.outputs, data)
                wanted = ("int8", "uint8") if self.deployed is None else (self.deployed.network.layers[-1].dtype.name,)
                if message.outputs.dtype not in wanted:
                    raise ValueError(f"outputs are {message.outputs.dtype}, expected {' or '.join(wanted)}")
                data.labels = self._labels(message.labels, data)
                data.outputs = self.bus.open(message.outputs).copy()
        return True

    def _wanted(self, message: Inputs | Activations | Outputs) -> Data | None:
        """The pass that a message is of, if that is the one under way."""
        data = self.data
        if data is None or message.session != self.session:
            return None
        return data if (message.iteration, message.attempt) == (data.iteration, data.attempt) else None

    def _keep(self, tensor: Tensor, what: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A view into the sender's arena, held until the next pass begins."""
        if tensor.dtype != dtype.name:
            raise ValueError(f"{what}: dtype {tensor.dtype}, expected {dtype.name}")
        self._tensors.append(tensor)
        return self.bus.open(tensor)

    def _labels(self, labels: Tensor | None, data: Data) -> npt.NDArray[np.int64] | None:
        if labels is None:
            return None
        counted("labels", labels, data)
        return self.bus.open(labels).astype(np.int64, copy=True)
