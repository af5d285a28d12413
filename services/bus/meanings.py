"""What each field of a message means, with unit and shape, for those who read the pages and not the code.

A field that has a docstring of its own beneath it, in ``messages.py`` or ``services/scheme.py``, is not named here.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from typing import Final

import msgspec

COMMON: Final[Mapping[str, str]] = {
    "session": "Name of the run; what is of another run is dropped. In `state` and `claim` the run that the sender is "
    "at work on, empty for none.",
    "v": "Version of the contract, 1; left out means 1.",
    "origin": "`boot` of the sender's State. Left out (or empty), the message is not numbered.",
    "n": "Number of this message among those of `origin` on this topic, from 1. Left out (or 0), it is not numbered.",
    "iteration": "Number of the pass: from 0 in training, from 2^30 in evaluations. What answers a command repeats its number.",
    "attempt": "Number of the try at this pass, from 0. An answer repeats it.",
    "segment": "Number of the message within the pass, from 0. An answer repeats it.",
    "mode": "`training`: layers go to the voter and the link; `inference`: outputs alone go up.",
    "version": "Number of the network, from 1; 0 for none.",
    "vote": "How replicas are voted on: each bit's majority, or the median of the integers.",
    "index": "Of the layer, its place in the network's list of layers, from 0.",
    "service": "Name of the service, as in its topic: agent, voter, codec-device, codec-server, trainer.",
    "sent_at": "Unix seconds by the sender's clock.",
    "boot": "Any text that is new at every start of the process.",
}
"""Fields that mean the same in every message."""

OF: Final[Mapping[str, str]] = {
    "SetMode.seq": "Number of the command; the Ack repeats it.",
    "SetMode.rates": "Bit error rates that a simulated device is to have; a real one has its own and ignores them.",
    "SetMode.seed": "Of the simulated faults.",
    "SetMode.scheme": "How layers are run and what is sent; left out, as its fields' defaults have it.",
    "Forward.split": "Which of the device's image sets.",
    "Forward.samples": "Positions in that set, in the order of the batch.",
    "Inputs.images": "uint8 (N, H, W, C), pixels 0 to 255, before any view.",
    "Inputs.labels": "int64 (N,), classes from 0; nil where the device knows none.",
    "EncodedInputs.hashes": "16 bytes an image: see wire.md.",
    "EncodedInputs.labels": "int64 (N,); nil where the device knows none.",
    "EncodedInputs.shape": "(H, W, C) of an image.",
    "EncodedInputs.fresh": "The images that the server has not seen, coded as wire.md says.",
    "LayerReplicas.replicas": "1 to 7 of int8 or uint8 (N, H, W, C), all alike: see A service of your own in bus.md.",
    "LayerReplicas.actual": "As the replicas: the output that fed the next layer, where that is not the first replica.",
    "LayerReplicas.protected": "The vote of the first three replicas fed the next layer, or will.",
    "LayerReplicas.positions": "int32 (M,), rising: flat NHWC positions of `values`; left out, they are the whole layer.",
    "LayerReplicas.values": "(M,), of the replicas' dtype: fault-free outputs, which stand in the vote.",
    "LayerReplicas.direct": "No vote could be believed: the outputs go over the link as they are.",
    "LayerReplicas.awaited": "The agent, too, reads the vote.",
    "Replicas.layers": "Layers of the pass in rising order, none twice in a pass.",
    "Voted.layers": "One for each layer of the question, in its order.",
    "LayerVoted.actual": "int8 or uint8 (N, H, W, C): what fed the next layer.",
    "LayerVoted.vote": "As `actual`: what the replicas agree on. Left out where there is nothing to vote on.",
    "LayerVoted.direct": "As the question had it.",
    "EncodedLayers.batch": "N, the images of the pass.",
    "EncodedLayers.layers": "In rising order.",
    "EncodedRepair.layer": "That the request named.",
    "EncodedRepair.layers": "The corrections, in rising order.",
    "Forgotten.hashes": "As `EncodedInputs.hashes`.",
    "Rebuilt.layer": "Index of the last layer that is right.",
    "Repair.layer": "Index of the first layer that is wrong.",
    "Repair.digests": "uint64 a channel, little-endian: see wire.md. Nil: correct this layer and all later ones.",
    "LayerActivation.actual": "int8 or uint8 (N, H, W, C), as the device computed it.",
    "LayerActivation.faithful": "The tensor has the digest that the device sent.",
    "LayerActivation.repaired": "Elements that a repair mended.",
    "Activations.layers": "In rising order.",
    "Deploy.network": "uint8 (bytes,): a safetensors file, see The network in bus.md.",
    "EncodedModel.base": "Version that the body builds on; 0: it is whole.",
    "EncodedModel.digest": "xxh3-64 of the network's bytes.",
    "EncodedModel.body": "Coded as wire.md says.",
    "Ack.of": "Command that is answered: `mode`, `model`, `forward` (only one that failed), or `base`.",
    "Ack.seq": "Of `mode` its `seq`, of `model` its `version`, of `forward` its `iteration`.",
    "Ack.ok": "Whether the command was carried out.",
    "Ack.version": "Of the network that is loaded now, 0 for none.",
    "Ack.error": "Why not, in one line for people; the run ends with it.",
    "Outputs.outputs": "int8 or uint8 (N, 1, 1, C), as the network's last layer.",
    "Outputs.labels": "int64 (N,); nil where the device knows none.",
    "State.online": "False in the last will and at a goodbye.",
    "State.version": "Of the agent: the network loaded, 0 for none.",
    "Timing.stage": "As the topic.",
    "Timing.host_s": "Seconds, measured.",
    "Timing.device_s": "Seconds of the accelerator, modelled or measured by the device itself.",
    "Timing.bytes": "With `compress` and `downlink`: bytes that went onto the link.",
    "Timing.segment": "Of the pass; -1 for the inputs, -2 for the model.",
    "Progress.phase": "Part of the run.",
    "Progress.step": "Done of this phase.",
    "Progress.steps": "Of this phase in all.",
    "Progress.value": "In `train` the loss, in evaluations top-1 in per cent.",
    "Progress.grad_norm": "Of the update, before the clip.",
    "Iteration.loss": "Of the batch.",
    "Iteration.grad_norm": "Of the update, before the clip.",
    "Iteration.wall_s": "Seconds of the whole iteration, measured by the trainer.",
    "Iteration.network": "Name of the network.",
    "Iteration.layers": "The MAC layers, in rising order.",
    "Votes.layers": "Those of the segment, in rising order.",
    "LayerRebuilt.elements": "Outputs of the layer, of the whole batch.",
    "LayerVotes.elements": "Outputs of the layer, of the whole batch.",
    "Memory.resident_bytes": "Of the process, as the kernel counts them.",
    "Stopping.ended": "Whether the trainer ends now; false where it goes on to the end of an iteration.",
    "Chunk.digest": "Names the transfer: as in its manifest.",
    "Chunk.index": "From 0; its data begin at byte `index * chunk`.",
    "Chunk.data": "`chunk` bytes, the last one what is left.",
    "Flow.to": "`origin` of the sender.",
    "Flow.topic": "Whole topic that this is about.",
    "Flow.taken": "So many messages, from the first, are here.",
    "Flow.missing": "First and last number of each range that is wanted again; a last of 0: and all later.",
    "Rates.input": "Share of the bits of a MAC layer's inputs that flip, 0 to 1.",
    "Rates.weight": "Share of its weights' bits.",
    "Rates.accumulator": "Share of its accumulators' bits.",
    "Rates.output": "Share of its outputs' bits.",
    "Port.layer": "Index of the layer.",
    "Port.site": "Which of its tensors.",
    "Scheme.codec": "What is sent of a layer: its outputs (`direct`), or increments against a vote (`chained`, `golden`).",
    "View.seed": "Of the views of this batch, see The view in bus.md.",
    "Tensor.dtype": "Of the elements.",
    "Tensor.shape": "At most 8 axes; N, H, W, C for activations.",
    "Tensor.data": "Little-endian, C order, exactly prod(shape) elements.",
    "Tensor.ref": "In place of `data`, on `edge` and `server` alone: see Tensors.",
    "Ref.arena": "File in `$R2F_SHM_DIR`.",
    "Ref.slot": "0 to 1022.",
    "Ref.generation": "That the slot's header must have.",
    "Ref.offset": "Bytes from the beginning of the file.",
    "Ref.nbytes": "Of the tensor.",
}
"""``Struct.field`` to its meaning; a field that is here and in ``COMMON`` means what stands here."""


@cache
def meanings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Each field's meaning, in Markdown. Raises KeyError naming a field that nobody has explained."""
    told = {name: text for base in reversed(kind.__mro__) for name, text in _docstrings(base).items()}
    found = {}
    for name in kind.__struct_fields__:
        text = OF.get(f"{kind.__name__}.{name}") or told.get(name) or COMMON.get(name)
        if text is None:
            raise KeyError(f"{kind.__name__}.{name}: say what it means, with unit and shape, in services/bus/meanings.py")
        found[name] = text
    return found


def _docstrings(kind: type) -> dict[str, str]:
    """Texts beneath the fields of a class, as one line each; none of a class whose source is not of this project."""
    if kind.__module__.split(".")[0] not in ("services", "accelsim"):
        return {}
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            said = ast.literal_eval(text.value)
            found[field.target.id] = " ".join(inspect.cleandoc(said).split()).replace("``", "`")
    return found
