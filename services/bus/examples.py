"""One message of each type, as small as it can be and still show every shape: for the pages and for tests of decoders."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import xxhash

from accelsim.faults import Rates
from services.bus import encoding
from services.bus.encoding import inline
from services.bus.messages import (
    Ack,
    Activations,
    Chunk,
    Claim,
    Deploy,
    Dropped,
    EncodedInputs,
    EncodedLayer,
    EncodedLayers,
    EncodedModel,
    EncodedRepair,
    Flow,
    Forgotten,
    Forward,
    Inputs,
    Iteration,
    LayerActivation,
    LayerRebuilt,
    LayerReplicas,
    LayerVoted,
    LayerVotes,
    Manifest,
    Memory,
    Message,
    Outputs,
    Progress,
    Rebuilt,
    Repair,
    Replicas,
    Sealed,
    SetMode,
    State,
    Stop,
    Stopping,
    Timing,
    Voted,
    Votes,
)
from services.scheme import Scheme, View

_RUN: Final = "run-1"
_IMAGES = inline(np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1))
_LABELS = inline(np.array([3, 7]))
_RUNS = tuple(inline(np.array([[[[5, -3]]], [[[0, y]]]], np.int8)) for y in (9, 9, 13))
_BODY = b"\x00\x05\xfd\x00\x09"
_LAYER = EncodedLayer(index=0, digest=0x2D06800538D394C2, body=_BODY)
_LARGE = encoding.encode(Inputs(session=_RUN, iteration=0, attempt=0, images=_IMAGES, labels=_LABELS))
_DIGEST = xxhash.xxh3_128_digest(_LARGE)

EXAMPLES: Final[dict[type[Message], Message]] = {
    type(message): message
    for message in (
        SetMode(
            session=_RUN, seq=1, mode="training", rates=Rates(1e-4, 1e-4, 0.0, 1e-4), scheme=Scheme(protected=(0,)), nonce=7,
        ),
        Forward(
            session=_RUN, iteration=0, attempt=0, mode="training", version=1, split="train", samples=(17, 4),
            view=View(seed=5, flip=True, shift=1),
        ),
        EncodedModel(session=_RUN, iteration=0, sent_at=1.7e9, version=2, base=1, digest=0x2D06800538D394C2, body=_BODY),
        Repair(session=_RUN, iteration=0, attempt=0, layer=3),
        Rebuilt(session=_RUN, iteration=0, attempt=0, layer=3),
        Inputs(session=_RUN, iteration=0, attempt=0, images=_IMAGES, labels=_LABELS),
        Replicas(
            session=_RUN, iteration=0, attempt=0, segment=0, mode="training", vote="median",
            layers=(LayerReplicas(index=0, replicas=_RUNS),),
        ),
        Voted(
            session=_RUN, iteration=0, attempt=0, segment=0, mode="training",
            layers=(LayerVoted(index=0, actual=_RUNS[0], vote=_RUNS[0]),),
        ),
        Deploy(session=_RUN, iteration=0, version=1, network=inline(np.frombuffer(b"safetensors", np.uint8))),
        EncodedInputs(
            session=_RUN, iteration=0, attempt=0, sent_at=1.7e9, hashes=(bytes(16), bytes(range(16))), labels=_LABELS,
            shape=(2, 2, 1), fresh=_BODY, fresh_of=(1,),
        ),
        EncodedLayers(session=_RUN, iteration=0, attempt=0, sent_at=1.7e9, segment=0, batch=2, layers=(_LAYER,)),
        EncodedRepair(session=_RUN, iteration=0, attempt=0, sent_at=1.7e9, layer=0, layers=(_LAYER,)),
        Ack(session=_RUN, of="model", seq=1, ok=True, version=1),
        Outputs(session=_RUN, iteration=2**30, attempt=0, outputs=_RUNS[0], labels=_LABELS),
        Activations(
            session=_RUN, iteration=0, attempt=0, segment=0, layers=(LayerActivation(index=0, actual=_RUNS[0]),),
        ),
        Claim(session="", service="voter", boot="0123abcd", rank=0),
        Progress(session=_RUN, phase="train", step=3, steps=100, value=1.25, grad_norm=0.5),
        Iteration(
            session=_RUN, iteration=2, steps=100, loss=1.25, accuracy=87.5, grad_norm=0.5, wall_s=0.25, attempts=1,
            input_bytes=1024, model_bytes=8192, network="digits_cnn", layers=(LayerRebuilt(0, 8192, 2, True),),
        ),
        Votes(session=_RUN, iteration=2, segment=0, layers=(LayerVotes(0, 8192, 3, 8190, 1),)),
        Memory(session="", service="voter", resident_bytes=1 << 26),
        Forgotten(session=_RUN, hashes=(bytes(range(16)),)),
        Sealed(session="", by="trainer", epoch=1760000000000, count=3, mac=bytes(range(16)), body=_LARGE),
        Dropped(session="", service="agent", reason="down/forward: samples: train has 8 images, asked for [9]", dropped=1),
        Stop(session=_RUN, by="ada@lab-3"),
        Stopping(session=_RUN, by="ada@lab-3"),
        Flow(session="", to="0123abcd", topic="r2f/v1/edge-0/up/layers", taken=16, missing=((17, 18), (21, 0))),
        State(session="", service="agent", online=True, boot="0123abcd", version=1, samples={"train": 1437, "test": 360}),
        Timing(session=_RUN, stage="forward", iteration=0, host_s=0.0125, device_s=0.002, segment=0),
        Manifest(session=_RUN, length=len(_LARGE), chunk=256, digest=_DIGEST),
        Chunk(session=_RUN, digest=_DIGEST, index=0, data=_LARGE[:256]),
    )
}  # fmt: skip
"""Of each type the one message; the Manifest and the Chunk are those of the Inputs, were that too large for one packet."""


def plain(message: Message) -> object:
    """A message as JSON has it, its bytes in base64."""
    return msgspec.to_builtins(message)
