"""What ThingsBoard asks, read and bounded: remote calls and shared attributes. Whatever it sends may be wrong or hostile.

Every reader raises ValueError, which names the key, its value and what would do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from accelsim.faults import Rates
from services.devices import LEVEL
from services.scheme import CHAINED, Known, Scheme

T = TypeVar("T")
PAYLOAD_BYTES: Final = 65_536
"""Of a JSON message that is read at all."""
MOST_SAMPLES: Final = 64
"""Of one ``getData``."""
FIRST_EVALUATION: Final = 1 << 30
"""Iteration numbers from here on are evaluations'."""
Rate = Annotated[float, Meta(ge=0, le=1)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Layers = Annotated[tuple[Annotated[int, Meta(ge=0, le=100_000)], ...], Meta(max_length=4096)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{8,64}$")]


class Call(msgspec.Struct):
    """A remote call, to be answered with its ``id``."""

    id: Annotated[int, Meta(ge=0, le=2**53)]
    method: Annotated[str, Meta(max_length=64)]
    params: Any = None


class Asked(msgspec.Struct):
    """``v1/gateway/rpc``: a call of one device."""

    device: str
    data: Call


class Updated(msgspec.Struct):
    """``v1/gateway/attributes``: shared attributes of one device that changed."""

    device: str
    data: dict[str, Any]


class Answered(msgspec.Struct):
    """``v1/gateway/attributes/response``: those that were asked for; ``value`` where one was asked for and found."""

    device: str
    id: int = 0
    value: Any = None
    values: dict[str, Any] = {}


class Limits(msgspec.Struct, rename="camel"):
    """The answer to ``getSessionLimits``."""

    max_payload_size: int
    max_inflight_messages: int
    gateway_rate_limits: dict[str, Any] | None = None
    rate_limits: dict[str, Any] | None = None


class SetAIoTMode(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``setAIoTMode``; what is left out stays as the device was told before."""

    mode: Literal["training", "inference"]
    rates: dict[str, Rate] | None = None
    """By site: input, weight, accumulator, output."""
    seed: Seed | None = None
    scheme: dict[str, Any] | None = None
    """Fields of a Scheme (docs/bus.md)."""


class DeployModel(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``deployModel``, of which one is given."""

    version: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    """That this bridge deployed before."""
    sha256: Sha256 | None = None
    """Of a network in the bridge's folder of models, or its first 8 or more digits."""
    ota: bool = False
    """The firmware that ThingsBoard gave the gateway."""

    def __post_init__(self) -> None:
        if (self.version is not None) + (self.sha256 is not None) + self.ota != 1:
            raise ValueError('give one of "version", "sha256" and "ota": true')


class GetData(msgspec.Struct, forbid_unknown_fields=True):
    """Parameters of ``getData``."""

    iteration: Annotated[int, Meta(ge=0, lt=FIRST_EVALUATION)]
    split: Literal["train", "test"]
    samples: Annotated[tuple[Annotated[int, Meta(ge=0, le=2**31)], ...], Meta(min_length=1, max_length=MOST_SAMPLES)]


class Setting(NamedTuple):
    """How a device is told to run (``down/mode``)."""

    mode: Literal["training", "inference"] = "inference"
    rates: Rates = Rates()
    seed: int = 0
    scheme: Scheme = CHAINED
    known: Known = b""


def decode(payload: bytes, kind: type[T]) -> T:
    """A message of ThingsBoard's. Raises ValueError."""
    if len(payload) > PAYLOAD_BYTES:
        raise ValueError(f"{len(payload)} bytes; at most {PAYLOAD_BYTES} are read")
    try:
        read = msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    device = getattr(read, "device", "any")
    if not LEVEL.fullmatch(device):
        raise ValueError(f"device {device[:80]!r} is no name of a device")
    return read


_LIMIT: Final = re.compile(r"(\d{1,9}):(\d{1,9})")
SLOWEST_S: Final = 10.0
"""Between two messages, whatever limits say."""


def spacing(limits: Limits) -> float:
    """Seconds between two messages that keep all limits: each is ``count:seconds`` with commas, or nothing. Others are passed
    over, since ThingsBoard says itself when one was not kept."""
    found = 0.0
    for each in (limits.rate_limits, limits.gateway_rate_limits):
        for name in ("messages", "telemetryMessages"):
            text = (each or {}).get(name)
            for part in text.split(",")[:16] if isinstance(text, str) else ():
                if (limit := _LIMIT.fullmatch(part)) is not None and int(limit[1]):
                    found = max(found, int(limit[2]) / int(limit[1]))
    return min(found, SLOWEST_S)


def parameters(params: Any, kind: type[T], method: str) -> T:
    """The parameters of a call. Raises ValueError that begins with the method."""
    try:
        return msgspec.convert(params, kind, strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"{method}: {error}") from None


def asked_setting(asked: SetAIoTMode, before: Setting) -> Setting:
    """What ``setAIoTMode`` comes to. Raises ValueError naming the field."""
    rates, scheme = before.rates, before.scheme
    if asked.rates is not None:
        rates = _replaced(rates, asked.rates, "rates")
    if asked.scheme is not None:
        scheme = _replaced(scheme, asked.scheme, "scheme")
    seed = before.seed if asked.seed is None else asked.seed
    return before._replace(mode=asked.mode, rates=rates, seed=seed, scheme=scheme)


def _replaced(before: T, fields: Mapping[str, Any], what: str) -> T:
    """A struct with these fields changed, checked as if it had come whole."""
    known = type(before).__struct_fields__  # type: ignore[attr-defined]
    for name in fields:
        if name not in known:
            raise ValueError(f"{what}: {name[:64]!r} is none of {', '.join(known)}")
    try:
        return msgspec.convert({**msgspec.to_builtins(before), **fields}, type(before), strict=True)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"{what}: {error}") from None


# ---- shared attributes ----

_SITES: Final = ("input", "weight", "output")
CONFIGURES: Final[dict[str, Any]] = {
    "ber": Rate,
    **{f"ber_{site}": Rate for site in _SITES},
    "codec": Literal["direct", "golden", "chained"],
    "vote": Literal["bitwise", "median"],
    "replicas": Literal[0, 3, 5, 7],
    "theta": Rate,
    "protected": Layers,
    "seed": Seed,
}
"""The shared attributes that configure a device, and what each may be. ``replicas`` 0 has the referee choose."""


def changed(shared: Mapping[str, Any], update: Mapping[str, Any]) -> dict[str, Any]:
    """The shared attributes that configure, after an update: ``{key: value}`` or ``{"deleted": [key]}``."""
    kept = {**shared, **{key: value for key, value in update.items() if key in CONFIGURES}}
    deleted = update.get("deleted")
    if isinstance(deleted, list):
        kept = {key: value for key, value in kept.items() if key not in deleted}
    return kept


def configured(shared: Mapping[str, Any], before: Setting) -> Setting:
    """The setting that shared attributes ask for; what they leave out stays. Raises ValueError naming the attribute."""
    read = {key: _value(key, shared[key]) for key in CONFIGURES if key in shared}
    rates = dict.fromkeys(_SITES, read["ber"]) if "ber" in read else {}
    rates |= {site: read[f"ber_{site}"] for site in _SITES if f"ber_{site}" in read}
    scheme: dict[str, Any] = {key: read[key] for key in ("codec", "vote", "theta") if key in read}
    if "protected" in read:
        scheme["protected"] = tuple(sorted(set(read["protected"])))
    if "replicas" in read:
        scheme |= {"referee": True} if read["replicas"] == 0 else {"referee": False, "replicas": read["replicas"]}
    return before._replace(
        rates=_replaced(before.rates, rates, "ber"),
        scheme=_replaced(before.scheme, scheme, "scheme"),
        seed=read.get("seed", before.seed),
    )


def _value(key: str, value: Any) -> Any:
    if key == "protected" and isinstance(value, str):  # as ThingsBoard hands on JSON that was set as text
        try:
            value = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError):
            raise ValueError(f"{key}: {value[:80]!r} is no JSON; write a list of layers, such as [0, 4]") from None
    try:
        return msgspec.convert(value, CONFIGURES[key], strict=True)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"{key}: {str(value)[:80]} {error}") from None
