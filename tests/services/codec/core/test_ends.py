"""Both ends of the link as plain calls: a batch, a model and layers cross it, and what is refused changes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from accelsim.int8.network import Conv, Network, UInt8
from services.codec.core import inputs, model
from services.codec.core.bodies import CodecError
from services.codec.core.device_end import DeviceEnd, WrongBase
from services.codec.core.samples import Samples
from services.codec.core.sent import SentImages, SentModel
from services.codec.core.server_end import ServerEnd
from services.scheme import Scheme

CHAINED = Scheme()


def pair(network: Network) -> tuple[DeviceEnd, ServerEnd]:
    device, server = DeviceEnd("auto"), ServerEnd("auto")
    server.deploy(1, -1, network)
    assert device.model(server.model())
    return device, server


def trained(network: Network) -> Network:
    """The next version: one weight more in each layer."""
    changed = list(network.layers)
    for index, layer in network.convs():
        weight = layer.weight.copy()
        weight.reshape(-1)[0] ^= 1
        changed[index] = dataclasses.replace(layer, weight=weight)
    return dataclasses.replace(network, layers=tuple(changed))


def test_a_version_goes_as_what_changed_and_a_repeat_changes_nothing(small: Network) -> None:
    device, server = pair(small)
    new = trained(small)
    server.deploy(2, 0, new)
    sent = server.model()
    assert (sent.version, sent.base, sent.body[0]) == (2, 1, model.DELTA)
    assert device.model(sent)
    assert not device.model(sent), "here already"
    assert device.network is not None
    assert model.digest(device.network) == model.digest(new)
    assert server.model() == sent, "the same again"
    assert list(server.versions) == [1, 2]
    server.lost()
    whole = server.model()
    assert (whole.version, whole.base, whole.body[0]) == (2, 0, model.WHOLE)
    assert list(server.versions) == [2]


def test_versions_in_a_row_build_on_one_another_though_none_was_acknowledged(small: Network) -> None:
    device, server = pair(small)
    new = small
    sent = []
    for version in (2, 3, 4):
        new = trained(new)
        server.deploy(version, -1, new)
        sent.append(server.model())
    assert [(each.base, each.body[0]) for each in sent] == [(1, model.DELTA), (2, model.DELTA), (3, model.DELTA)]
    assert len(server.versions) == 2, "no more are held than that"
    for each in sent:
        assert device.model(each)
    with pytest.raises(WrongBase, match="builds on 2, here is 4"):
        device.model(dataclasses.replace(sent[1], version=5))


def test_a_network_of_another_name_goes_whole(small: Network) -> None:
    device, server = pair(small)
    server.deploy(2, 0, dataclasses.replace(small, name="other"))
    assert device.model(server.model())
    assert device.network is not None
    assert device.network.name == "other"


def test_a_version_that_cannot_be_built_is_asked_for_whole(small: Network) -> None:
    """The number that it builds on was deployed twice, and the second message was lost."""
    device, server = pair(small)
    server.deploy(2, 0, trained(small))
    assert device.model(server.model())
    other = trained(trained(small))
    server.deploy(2, 0, other)
    server.model()
    server.deploy(3, 0, trained(other))
    with pytest.raises(WrongBase, match="cannot be built on 2"):
        device.model(server.model())
    assert device.version == 2
    server.lost()
    assert device.model(server.model())
    assert device.version == 3


def test_before_any_network_there_is_nothing_to_send(small: Network) -> None:
    with pytest.raises(ValueError, match="no network was deployed yet"):
        ServerEnd("auto").model()


def test_another_network_goes_whole(small: Network) -> None:
    device, server = pair(small)
    other = dataclasses.replace(small, input_table=np.roll(small.input_table, 1, axis=1))
    server.deploy(2, -1, other)
    sent = server.model()
    assert (sent.base, sent.body[0]) == (0, model.WHOLE)
    assert device.model(sent)
    assert device.network is not None
    np.testing.assert_array_equal(device.network.input_table, other.input_table)


def test_a_model_that_is_refused_leaves_the_one_before(small: Network) -> None:
    device, server = pair(small)
    server.deploy(2, 0, trained(small))
    sent = server.model()
    for wrong, error in (
        (dataclasses.replace(sent, base=7), WrongBase),
        (dataclasses.replace(sent, digest=1), CodecError),
        (dataclasses.replace(sent, body=sent.body[:-1]), CodecError),
        (dataclasses.replace(sent, body=b""), CodecError),
        (dataclasses.replace(sent, body=b"\x09"), CodecError),
    ):
        with pytest.raises(error):
            device.model(wrong)
        assert device.version == 1
        assert device.network is not None
        assert model.digest(device.network) == model.digest(small)
    assert device.model(sent)
    assert device.version == 2


def test_images_cross_once_but_for_a_repeat_and_for_a_server_that_started_anew(small: Network, digits: UInt8) -> None:
    device, server = pair(small)
    first = device.begin(CHAINED, 0, 0, digits[:3])
    assert first.fresh_of == (0, 1, 2)
    np.testing.assert_array_equal(server.images(first, small), digits[:3])
    again = device.begin(CHAINED, 1, 0, digits[[3, 1, 0]])
    assert again.fresh_of == (0,)
    np.testing.assert_array_equal(server.images(again, small), digits[[3, 1, 0]])
    assert device.begin(CHAINED, 1, 1, digits[[3, 1, 0]]).fresh_of == (0, 1, 2), "a repeat goes whole"
    floats = device.begin(Scheme(float_inputs=True), 2, 0, digits[:2])
    assert floats.fresh_of == (0, 1)
    assert len(floats.fresh) == 1 + 4 * digits[:2].size
    np.testing.assert_array_equal(server.images(floats, small), digits[:2])
    device.lost()
    assert device.begin(CHAINED, 3, 0, digits[:2]).fresh_of == (0, 1)
    hashes = SentImages(first.hashes, first.shape, b"", ())
    with pytest.raises(ValueError, match=r"images \[0, 1, 2\] were sent as hashes, but are not here"):
        ServerEnd("auto").images(hashes, small)


def test_what_the_server_had_no_room_for_is_sent_again(small: Network, digits: UInt8) -> None:
    device, server = pair(small)
    server.samples = Samples(0, least=2)
    for iteration, chosen in enumerate(([0, 1], [2, 3], [0, 3], [0, 1], [0, 1])):
        sent = device.begin(CHAINED, iteration, 0, digits[chosen])
        np.testing.assert_array_equal(server.images(sent, small), digits[chosen])
        device.forget(server.forgotten())
        assert server.forgotten() == []
    assert sent.fresh_of == ()
    with pytest.raises(ValueError, match="not here"):
        server.images(SentImages((bytes(16),), sent.shape, b"", ()), small)
    assert server.forgotten() == [bytes(16)], "what was missed is told, too"


@pytest.mark.parametrize(
    "shape",
    [(0, 8, 8, 1), (2, 8, 8), (2, 8, 7, 1), (2, 8, 8, 3), (3,), (2, 0, 8, 1)],
    ids=lambda shape: "x".join(map(str, shape)),
)
def test_images_that_the_network_does_not_take_are_refused(small: Network, digits: UInt8, shape: tuple[int, ...]) -> None:
    device, _ = pair(small)
    device.begin(CHAINED, 0, 0, digits)
    with pytest.raises(ValueError, match=r"images: uint8 of shape .*, expected uint8 \(N, 8, 8, 1\), N > 0"):
        device.begin(CHAINED, 1, 0, np.zeros(shape, np.uint8))
    assert device.running == (0, 0), "the pass before goes on"


def test_nothing_begins_without_a_network(digits: UInt8) -> None:
    with pytest.raises(ValueError, match="no network yet"):
        DeviceEnd("auto").begin(CHAINED, 0, 0, digits)
    with pytest.raises(ValueError, match=r"version 3 of the network is not here, \[\] are"):
        ServerEnd("auto").begin(3, CHAINED)


def test_a_layer_that_is_no_mac_layer_is_refused(small: Network, digits: UInt8) -> None:
    device, _ = pair(small)
    device.begin(CHAINED, 0, 0, digits)
    other = next(index for index, layer in enumerate(small.layers) if not isinstance(layer, Conv))
    for index in (-1, other, len(small.layers), 10**9):
        with pytest.raises(ValueError, match=f"layer {index} is no MAC layer"):
            device.layer(index, np.zeros((4, *small.shape_of(other)), np.int8), None)


@pytest.mark.parametrize("batch", [0, 3, 5])
def test_outputs_of_another_batch_are_refused(small: Network, digits: UInt8, batch: int) -> None:
    device, _ = pair(small)
    device.begin(CHAINED, 0, 0, digits)
    index, layer = next(small.convs())
    with pytest.raises(ValueError, match=rf"outputs of shape \({batch}, .* expected \(4, "):
        device.layer(index, np.zeros((batch, *layer.shape), layer.dtype), None)


def test_outputs_of_another_type_are_refused(small: Network, digits: UInt8) -> None:
    """The server would take their bytes for the layer's own type."""
    device, _ = pair(small)
    device.begin(CHAINED, 0, 0, digits)
    types = {np.dtype(np.int8), np.dtype(np.uint8)}
    assert {layer.dtype for _, layer in small.convs()} == types
    for index, layer in small.convs():
        (other,) = types - {layer.dtype}
        outputs = np.zeros((4, *layer.shape), other)
        with pytest.raises(ValueError, match=f"{other} outputs for layer {index}, expected {layer.dtype}"):
            device.layer(index, outputs, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hashes": ()}, "a batch of 0 images; 1 to 1024 are taken"),
        ({"hashes": (b"x" * 16,) * 1025}, "a batch of 1025 images"),
        ({"fresh_of": (0, 4)}, "outside the batch of 2"),
        ({"fresh_of": (0, 0)}, "some of them twice"),
        ({"shape": (8, 8, 3)}, r"images of shape \(8, 8, 3\), the network takes \(8, 8, 1\)"),
        ({"hashes": (b"x" * 16, b"y" * 16)}, "image 0 does not have the hash sent with it"),
        ({"fresh": b""}, "no bytes for 2 images"),
        ({"fresh": b"\x63"}, "unknown coding 99"),
    ],
)
def test_batches_that_lie_are_refused(small: Network, digits: UInt8, changes: dict[str, object], message: str) -> None:
    device, server = pair(small)
    sent = device.begin(CHAINED, 0, 0, digits[:2])
    with pytest.raises(ValueError, match=message):
        server.images(dataclasses.replace(sent, **changes), small)  # type: ignore[arg-type]


def test_the_least_recently_used_images_go_first() -> None:
    images = [np.full((2, 5), i, np.uint8) for i in range(4)]
    names = [inputs.sample_hash(image) for image in images]
    samples = Samples(30, least=2)
    for name, image in zip(names[:3], images, strict=False):
        samples.remember(name, image)
    assert samples.get(names[0]) is images[0]
    samples.remember(names[3], images[3])
    assert [samples.get(name) is not None for name in names] == [True, False, True, True]
    tight = Samples(0, least=2)
    for name, image in zip(names, images, strict=True):
        tight.remember(name, image)
    assert [tight.get(name) is not None for name in names] == [False, False, True, True], "never fewer than a batch"


def test_models_are_values(small: Network) -> None:
    server = ServerEnd("auto")
    server.deploy(1, -1, small)
    assert server.model() == server.model()
    assert isinstance(server.model(), SentModel)
