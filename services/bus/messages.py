"""Every message on the bus, and the topic that it travels on (architecture.md, "The loop" and "The bus").

One message is one msgpack map with a ``type``; ``decode`` validates it. Planes: ``down/*`` and ``up/*`` cross the link,
``edge/*`` stays on the device, ``server/*`` on the server, ``state/*`` is retained, ``event/*`` is for watching.

One iteration, in the order of its messages::

    trainer   down/forward       Forward      run these samples
    agent     edge/inputs        Inputs       the images (uint8) and labels
    codec     up/inputs          EncodedInputs
    codec     server/inputs      Inputs
    agent     edge/replicas      Replicas     layer outputs as they are computed, some layers a message
    voter     edge/voted         Voted        the actual outputs and the vote
    codec     up/layers          EncodedLayers
    codec     server/activations Activations  the rebuilt actual outputs
    trainer   server/model       Deploy       the updated int8 network
    codec     down/model         EncodedModel delta against the version before
    codec     edge/model         Deploy
    agent     up/ack             Ack          it runs that version now

In inference mode the agent answers a Forward with ``up/outputs`` Outputs and the rest stays silent.
"""

from __future__ import annotations

import math
import secrets
from typing import Annotated, ClassVar, Literal

import msgspec

from accelsim.faults import Rates
from services.metric import METRICS, Metric
from services.scheme import CHAINED, Known, Scheme, View, Vote

VERSION = 1
ROOT = f"r2f/v{VERSION}"

Mode = Literal["training", "inference"]
Command = Literal["mode", "model", "base", "forward"]
"""What an Ack answers; ``base`` is the device's codec asking for a model whole, for it lacks what the delta builds on."""
Stage = Literal["forward", "tmr", "increment", "compress", "uplink", "decompress", "backward", "quantise", "downlink"]


ITEMSIZE = {"int8": 1, "uint8": 1, "int32": 4, "int64": 8, "float32": 4}
Name = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Unix = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
REASON = 2000
Reason = Annotated[str, msgspec.Meta(max_length=REASON)]
"""For people; a sender cuts it."""
Samples = Annotated[dict[Name, Count], msgspec.Meta(max_length=16)]


class Ref(msgspec.Struct, array_like=True, frozen=True):
    """A slot of a sender's arena (see ``services.bus.arena``)."""

    arena: Name
    slot: Count
    generation: Count
    offset: Count
    nbytes: Count


Phase = Literal["plain", "before", "select", "train", "after", "done"]


class Tensor(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An array in a message: its bytes inline (``data``), or where they lie in shared memory (``ref``).

    C order, little-endian. One that does not hold exactly ``prod(shape)`` items is refused, when built as when decoded.
    """

    dtype: Literal["int8", "uint8", "int32", "int64", "float32"]
    shape: Annotated[tuple[Count, ...], msgspec.Meta(max_length=8)]
    data: bytes | None = None
    ref: Ref | None = None

    def __post_init__(self) -> None:
        if (self.data is None) == (self.ref is None):
            raise ValueError("a tensor has either data or ref")
        held = self.ref.nbytes if self.ref is not None else len(self.data or b"")
        if math.prod(self.shape) * ITEMSIZE[self.dtype] != held:
            raise ValueError(f"a tensor of shape {self.shape} and {self.dtype} cannot have {held} bytes")


class Message(msgspec.Struct, kw_only=True, tag_field="type", tag=str.lower, omit_defaults=True):
    """What every message carries. ``session`` is one run; services drop what is of another.

    ``origin`` and ``n`` are stamped by ``Bus.publish``: ``n`` counts a sender's messages on one topic from 1, so that a
    receiver drops what it has had and asks again for what it missed. Without them a message is taken as it comes.
    """

    session: Name
    v: int = VERSION
    origin: Name = ""
    n: Count = 0


def fresh_nonce() -> int:
    """The nonce of a new command."""
    return secrets.randbits(52) or 1


class SetMode(Message):
    """``down/mode``, retained: how the device is to run from now on."""

    seq: int
    mode: Mode
    rates: Rates = Rates()
    seed: int = 0
    scheme: Scheme = CHAINED
    nonce: Count = 0
    """New for each command, by chance: what answers it repeats it, so that an answer to another one is none. 0: not said."""
    known: Known = b""
    """The device's permanent faults as far as both sides know them: a chip file (docs/chips.md) as one zstd frame. What the
    receiver predicts has these faults; empty where none are known."""


class Forward(Message):
    """``down/forward``: run these samples. A repeat (``attempt`` > 0) must give the same bytes."""

    iteration: int
    attempt: int
    mode: Mode
    version: int
    """Of the network that must be loaded; the agent answers with a failed Ack otherwise."""
    split: Literal["train", "test"]
    samples: tuple[int, ...]
    seed: int | None = None
    """Fault seed of this run in place of the mode's, for evaluation over many seeds."""
    rates: Rates | None = None
    """Error rates of this run in place of the mode's."""
    view: View | None = None
    """What the device makes of the images before it runs them; they are named and sent as they were before."""
    images: bytes = b""
    """The images themselves, as ``up/inputs`` has fresh ones, in place of the device's own: one for each of ``samples``, whose
    numbers then say nothing. They have no labels."""
    nonce: Count = 0
    """As ``SetMode.nonce``; a repeat has that of the first attempt."""
    reliable: bool = False
    """In inference mode: run on the general-purpose processor instead of the accelerator, for the fault-free answers."""


class Inputs(Message):
    """``edge/inputs`` and ``server/inputs``: uint8 images (N, H, W, C) and their labels (N,)."""

    iteration: int
    attempt: int
    images: Tensor
    labels: Tensor | None
    files: tuple[bytes, ...] = ()
    """The JPEG files that the images are the pixels of, where the camera gives such."""
    view: View | None = None
    """On ``edge/inputs``: what the device makes of the images before it runs them. The trainer is given what came of it."""


class EncodedInputs(Message):
    """``up/inputs``: content hashes of the samples, and those that the server has not seen."""

    iteration: int
    attempt: int
    sent_at: Unix
    """Unix seconds by the sender's clock; what the link took is only as true as the two clocks."""
    hashes: tuple[bytes, ...]
    labels: Tensor | None
    shape: tuple[int, int, int]
    fresh: bytes
    fresh_of: tuple[int, ...]
    """Positions in ``hashes`` of the images in ``fresh``."""


class LayerReplicas(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Outputs of one layer's executions on one input.

    The first replica is the actual output, which fed the next layer, unless ``actual`` names another one (the golden
    codec: the replicas are of the TMR run beside it) or the layer is ``protected``: then the vote itself goes on.

    ``values``, of the replicas' dtype, override the vote at the flat NHWC ``positions`` (int32), or everywhere where there
    are none: there the referee computed the fault-free output.
    ``direct``: the replicas disagree too much for a vote that could be believed; the outputs go as they are.
    ``awaited``: the agent reads the vote, too, beside the codec.
    """

    index: int
    replicas: tuple[Tensor, ...]
    actual: Tensor | None = None
    protected: bool = False
    positions: Tensor | None = None
    values: Tensor | None = None
    direct: bool = False
    awaited: bool = False


class Replicas(Message):
    """``edge/replicas``. The voter answers each with one Voted; one in inference mode is a protected layer's."""

    iteration: int
    attempt: int
    segment: int
    mode: Mode
    vote: Vote
    layers: tuple[LayerReplicas, ...]


class LayerVoted(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``direct``, or no ``vote``: the outputs go as they are; a vote is then the agent's alone."""

    index: int
    actual: Tensor
    vote: Tensor | None = None
    direct: bool = False


class Voted(Message):
    """``edge/voted``: to the codec, and to the agent where a vote feeds the next layer."""

    iteration: int
    attempt: int
    segment: int
    mode: Mode
    layers: tuple[LayerVoted, ...]


class EncodedLayer(msgspec.Struct, array_like=True):
    """One layer on the link; array-like because there are many and the link is thin."""

    index: int
    digest: int
    """xxh3-64 of the actual outputs, NHWC bytes."""
    body: bytes
    """Self-describing: its first byte names the coding (see ``services.codec.core.layers``)."""


class EncodedLayers(Message):
    """``up/layers``"""

    iteration: int
    attempt: int
    sent_at: Unix
    """Unix seconds by the sender's clock; what the link took is only as true as the two clocks."""
    segment: int
    batch: int
    layers: tuple[EncodedLayer, ...]
    confirm: bool = False
    """The device's memory fills up: it wants to know when all layers up to here are rebuilt right."""


FORGOTTEN = 4096
"""The most names in one message."""


class Rebuilt(Message):
    """``down/rebuilt``: all layers up to ``layer`` have the device's digests, so it need not keep them for repairs."""

    iteration: int
    attempt: int
    layer: int


class Forgotten(Message):
    """``down/forgotten``: images that the server had no room to keep; the device sends them whole where they are next used."""

    hashes: Annotated[tuple[Annotated[bytes, msgspec.Meta(max_length=16)], ...], msgspec.Meta(max_length=FORGOTTEN)]


class Repair(Message):
    """``down/repair``: layer ``layer`` is the first whose rebuilt tensor does not have the device's digest.

    ``digests``: ``services.codec.core.repair.channel_digests`` of what the server has, little-endian; correct the channels that
    differ. None: correct this layer and every later one, which is the second and last request of an iteration.
    """

    iteration: int
    attempt: int
    layer: int
    digests: bytes | None = None


class EncodedRepair(Message):
    """``up/repair``: corrections; each body is applied to what the server rebuilt of that layer."""

    iteration: int
    attempt: int
    sent_at: Unix
    layer: int
    layers: tuple[EncodedLayer, ...]


class LayerActivation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """``faithful``: the tensor has the digest that the device computed. ``repaired``: elements that a repair mended."""

    index: int
    actual: Tensor
    faithful: bool = True
    repaired: Count = 0


class Activations(Message):
    """``server/activations``"""

    iteration: int
    attempt: int
    segment: int
    layers: tuple[LayerActivation, ...]


class Deploy(Message):
    """``server/model`` and ``edge/model``: a whole network, as ``accelsim.int8.storage`` writes it."""

    iteration: int
    """That the version came from; -1 for one that no iteration made."""
    version: int
    network: Tensor


class EncodedModel(Message):
    """``down/model``: ``body`` rebuilds ``version`` from ``base``; base 0 is a whole network."""

    iteration: int
    """That the version came from; -1 for one that no iteration made."""
    sent_at: Unix
    version: int
    base: int
    digest: int
    body: bytes


class Ack(Message):
    """``up/ack``: what a command came to. ``version`` is the network now loaded, 0 for none."""

    of: Command
    seq: int
    ok: bool
    version: Count = 0
    error: Reason = ""
    nonce: Count = 0
    """Of the ``mode`` or ``forward`` that is answered."""


class Outputs(Message):
    """``up/outputs``: int8 or uint8 outputs (N, 1, 1, C) of an inference run, straight from the agent."""

    iteration: int
    attempt: int
    outputs: Tensor
    labels: Tensor | None
    nonce: Count = 0
    """Of the Forward."""


class State(Message):
    """``state/{service}``, retained: birth, and by the last will, death."""

    service: Name
    online: bool
    boot: Name = ""
    """Changes at every start, so that a restart is seen even if the death was not."""
    version: Count = 0
    samples: Samples = {}
    """Of the agent: how many samples each split has."""
    key: Annotated[str, msgspec.Meta(max_length=16)] = ""
    """Name of the key that it signs with, 8 hexadecimal digits; empty where it signs nothing."""
    data: Name = ""
    """Of the agent: digest of its data's classes and image size, by which the trainer knows that it numbers classes alike."""


class Claim(Message):
    """``state/claim``, not retained: this process wants a service's name (``rank`` 0), or has it.

    A service says so before it announces itself. Whoever has the name answers the same, and the one with the smaller
    (``rank``, ``boot``) stops.
    """

    service: Name
    boot: Name
    rank: Count
    """1 and the bits of the whole seconds for which it has had the name, by its own clock."""


class Timing(Message):
    """``event/{stage}``: one stage of one iteration. ``device_s`` is modelled accelerator time, ``host_s`` measured.

    ``segment`` is -1 for the inputs, -2 for the model. ``bytes``, with ``compress``, is what went onto the link.
    """

    stage: Stage
    iteration: int
    host_s: Seconds
    device_s: Seconds = 0.0
    bytes: Count = 0
    segment: int = -1


class Progress(Message):
    """``event/progress``: how far the trainer is. In ``train`` ``value`` is the loss, in an evaluation the
    metric, by default top-1 in per cent, in ``select`` nothing."""

    phase: Phase
    step: Count
    steps: Count
    value: Finite
    grad_norm: Finite = 0.0
    faults: bool = True
    """False in an evaluation of the device without faults."""
    metric: Metric = "top1"
    """Of an evaluation: ``psnr`` is in dB, ``ssim`` at most 1, the others are in per cent."""

    def __post_init__(self) -> None:
        most = METRICS[self.metric].most
        if self.phase not in ("train", "select") and most is not None and not -most <= self.value <= most:
            raise ValueError(f"value: {self.metric} of {self.value} is none; {most:g} is the most")


class LayerVotes(msgspec.Struct, array_like=True, frozen=True):
    """What the executions of one layer agreed on, counted over its outputs of the whole batch."""

    index: Count
    elements: Count
    executions: Count
    """That were compared; 1 where the reliable processor alone knows what is right."""
    agreed: Count
    """Elements of which all executions said the same."""
    errors: Count
    """Elements of the first execution, or of what went on in its place, that are not what the vote says."""


class Votes(Message):
    """``event/votes``: how far the executions of some layers agreed, in training mode."""

    iteration: int
    segment: int
    layers: Annotated[tuple[LayerVotes, ...], msgspec.Meta(max_length=4096)]


class LayerRebuilt(msgspec.Struct, array_like=True, frozen=True):
    """One layer as the server had it at the end of an iteration."""

    index: Count
    elements: Count
    repaired: Count
    """Elements that were wrong until a repair mended them."""
    faithful: bool = True
    """Whether its digest is the device's."""


class Iteration(Message):
    """``event/iteration``: what one iteration of training came to, as the trainer's ``progress.jsonl`` has it."""

    iteration: Count
    steps: Count
    """Iterations of the whole run."""
    loss: Finite
    accuracy: Percent | None
    """Of the batch, on the device itself, in per cent; nil where the network gives no classes."""
    grad_norm: Finite
    wall_s: Seconds
    attempts: Count
    """Passes that it took, 1 where nothing was lost on the way."""
    input_bytes: Count
    """The batch as uint8."""
    model_bytes: Count
    """The whole network, as it would go down without increments."""
    network: Name = ""
    layers: Annotated[tuple[LayerRebuilt, ...], msgspec.Meta(max_length=4096)] = ()


class Memory(Message):
    """``event/memory``: what a service's process holds. Said at its start, and when it has changed."""

    service: Name
    resident_bytes: Count


class Dropped(Message):
    """``event/dropped``: a service dropped a message, and why; at most one a second. For people: nobody else is told."""

    service: Name
    reason: Reason
    """The latest."""
    dropped: Count
    """Messages so far, by that process."""


class Stop(Message):
    """``server/stop``: end the run of this ``session`` behind the iteration, or the pass of an evaluation, that is under way.

    The trainer answers with ``event/stopping``, keeps a checkpoint and ends; the run can be resumed. Again, it changes nothing.
    """

    by: Name
    """Who asks, for people: printable characters, not empty."""


class Stopping(Message):
    """``event/stopping``: the trainer has heard a Stop; and again, ``ended``, when its checkpoint is written and it ends."""

    by: Name
    """As the Stop has it."""
    ended: bool = False


class Manifest(Message):
    """Before the chunks of a message too large for one packet: what they come to. On the topic of that message."""

    length: Count
    """Bytes of the encoded message."""
    chunk: Count
    """Bytes of every chunk but the last."""
    digest: Annotated[bytes, msgspec.Meta(max_length=16)]
    """xxh3-128 of the encoded message, big-endian; it names the transfer too."""


class Chunk(Message):
    """Part ``index`` of the transfer ``digest``."""

    digest: Annotated[bytes, msgspec.Meta(max_length=16)]
    index: Count
    data: bytes


class Sealed(Message):
    """A message in an envelope that is signed with the device's key: in its place, on its topic. ``session`` is empty.

    The code is over the topic and all that is here: see Signed messages in security.md.
    """

    MAC: ClassVar = 16

    by: Name
    """Service that sent it."""
    epoch: Count
    """Which life of that service's process; later ones have greater numbers."""
    count: Count
    """Of its messages on this topic in that life, from 1."""
    mac: Annotated[bytes, msgspec.Meta(min_length=MAC, max_length=MAC)]
    """First 16 bytes of the HMAC-SHA256."""
    body: bytes
    """The encoded message."""


class Flow(Message):
    """``{plane}/flow``: a receiver to a sender (``to`` is its ``origin``) about one topic.

    The first ``taken`` messages have arrived, without a hole; those in ``missing`` (first and last of each range; a last
    of 0 is "and all later") are wanted again.
    """

    to: Name
    topic: Annotated[str, msgspec.Meta(max_length=300)]
    taken: Count
    missing: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=64)] = ()
