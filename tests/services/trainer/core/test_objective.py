"""What a run leaves open is chosen by output and data; what means nothing is refused in a line that says what can be had."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from accelsim.int8.network import Network
from services.trainer.core import labels, objective, viewing
from services.trainer.core.job import Job
from services.trainer.core.loss import Soft, Targets
from services.trainer.core.task import Recipe, Sgd, Task
from tests.services.trainer.core import images


@pytest.fixture(scope="module")
def network() -> Network:
    return images.network()


def job(**settings: Any) -> Job:
    return Job(session="s", device="d", **settings)


@pytest.mark.parametrize(
    ("kind", "given", "metric", "loss", "against"),
    [
        ("images", {}, "psnr", "l2", "targets"),
        ("images", {"metric": "ssim", "loss": "l1"}, "ssim", "l1", "targets"),
        ("masks", {}, "miou", "cross-entropy", "targets"),
        ("nothing", {}, "psnr", "l2", "fault-free outputs"),
        ("nothing", {"loss": "cross-entropy"}, "miou", "cross-entropy", "fault-free outputs"),
        ("classes", {"metric": "psnr"}, "psnr", "l2", "fault-free outputs"),
    ],
)
def test_what_is_open_follows_from_output_and_data(
    kind: Any, given: dict[str, Any], metric: str, loss: str, against: str, network: Network
) -> None:
    data = images.data(kind)
    found = objective.settled(job(**given), network, data)
    assert (found.metric, found.loss, found.against) == (metric, loss, against)
    assert (found.output_range is None) == (metric == "miou")
    assert objective.settled(found, network, data) == found
    assert objective.kind_of(found, network) == ("masks" if metric == "miou" else "pixels")


def test_a_classifier_is_one_as_ever() -> None:
    found = objective.settled(job(), images.network(vector=True), images.data("classes"))
    assert (found.metric, found.loss, found.against, found.output_range) == ("top1", "cross-entropy", "labels", None)


def test_outputs_that_go_below_zero_are_of_minus_one_to_one(network: Network) -> None:
    data = images.data("nothing")
    assert objective.settled(job(), images.network(signed=True), data).output_range == (-1.0, 1.0)
    assert objective.settled(job(), network, data).output_range == (0.0, 1.0)
    assert objective.settled(job(output_range=(-0.5, 0.5)), network, data).output_range == (-0.5, 0.5)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("images", {"metric": "top1"}, r"--metric top1: means nothing for outputs of 12x12x3; .* can have psnr, ssim, miou"),
        ("images", {"metric": "miou"}, r"--metric miou: noise has images as targets, which allow psnr or ssim"),
        ("masks", {"metric": "psnr"}, r"--metric psnr: noise has masks as targets, which allow miou"),
        ("images", {"loss": "cross-entropy"}, r"--metric miou|--loss cross-entropy|noise has images as targets"),
        ("masks", {"loss": "l1"}, r"--loss l1: does not lead to a better mIoU; give cross-entropy"),
        ("images", {"labels": "device"}, r"--labels device: targets that are images do not cross the link"),
        ("nothing", {"labels": "server"}, r"--labels server: noise has no targets"),
        ("classes", {}, r"gives an image of 12x12x3, and noise has classes: .* --metric psnr or ssim or miou"),
        ("masks", {"output_range": (0.0, 1.0)}, r"--output-range: is of outputs that are pixels"),
        ("images", {"recipe": Recipe(hard=0.5)}, r"--hard-labels: are the device's"),
        ("images", {"labels": "server", "recipe": Recipe(flip=True)}, r"--flip, --shift: targets would stay where they are"),
    ],
)
def test_what_means_nothing_is_refused(kind: Any, given: dict[str, Any], said: str, network: Network) -> None:
    with pytest.raises(ValueError, match=said):
        objective.settled(job(**given), network, images.data(kind))


def test_a_vector_has_no_metric_of_images() -> None:
    with pytest.raises(ValueError, match=r"--metric psnr: means nothing for outputs of 1x1x3; network small can have top1"):
        objective.settled(job(metric="psnr"), images.network(vector=True), images.data("classes"))
    with pytest.raises(ValueError, match="its job needs a metric"):
        objective.check(job(), images.network())
    with pytest.raises(ValueError, match="are no classifier's"):
        objective.check(job(metric="psnr"), images.network(vector=True))


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.0, 0.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_has_two_ends(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="expected two finite numbers"):
        Task(output_range=ends)


def test_images_are_shown_as_they_are_unless_it_is_asked_for(network: Network) -> None:
    data = images.data("images")
    found = viewing.decided(objective.settled(job(), network, data), network, data.train_images)
    assert (found.recipe.flip, found.recipe.shift) == (False, 0)
    asked = objective.settled(job(recipe=Recipe(flip=True)), network, data)
    assert viewing.decided(asked, network, data.train_images).recipe.flip is True


def test_labels_of_images(network: Network) -> None:
    random = np.random.default_rng(0)
    outputs = random.integers(-128, 128, (2, 12, 12, 3)).astype(network.layers[-1].dtype)
    teacher, data = (network, outputs), images.data("images")
    found = objective.settled(job(labels="teacher-soft", loss="l1", output_range=(-1.0, 1.0)), network, data)
    taught = labels.choose(found, network, device=None, server=None, teacher=teacher)
    assert isinstance(taught, Targets)
    assert (taught.criterion, taught.span) == ("l1", 2.0)
    np.testing.assert_allclose(taught.images, outputs * network.layers[-1].scale, rtol=1e-6)
    own = np.array([0, 255, 51], np.uint8).reshape(1, 1, 1, 3) + np.zeros((2, 12, 12, 3), np.uint8)
    server = msgspec.structs.replace(found, labels="server")
    given = labels.choose(server, network, device=None, server=own, teacher=None)
    assert isinstance(given, Targets)
    np.testing.assert_allclose(given.images[0, 0, 0], [-1, 1, -0.6], atol=1e-6)
    masks = objective.settled(job(labels="teacher-soft"), network, images.data("masks"))
    soft = labels.choose(masks, network, device=None, server=None, teacher=teacher)
    assert isinstance(soft, Soft)
    assert soft.probabilities.shape == outputs.shape
    np.testing.assert_allclose(soft.probabilities.sum(axis=3), 1, rtol=1e-5)
    hard = msgspec.structs.replace(masks, labels="teacher")
    np.testing.assert_array_equal(
        labels.choose(hard, network, device=None, server=None, teacher=teacher), outputs.argmax(axis=3)
    )


@pytest.mark.parametrize(
    ("kind", "own", "said"),
    [
        ("pixels", np.zeros((2, 12, 12, 1), np.uint8), r"file: expected uint8 of shape \(N, 12, 12, 3\), got uint8 of \(2, 12"),
        ("pixels", np.zeros((2, 12, 12, 3), np.int64), r"expected uint8"),
        ("masks", np.full((2, 12, 12), 3, np.uint8), r"classes reach 3, network small knows 0 to 2"),
        ("classes", np.zeros((2, 2), np.int64), r"expected integers of shape \(N\)"),
    ],
)  # fmt: skip
def test_a_file_of_other_targets_is_named(kind: Any, own: Any, said: str, network: Network) -> None:
    with pytest.raises(ValueError, match=said):
        objective.fitting(kind, network, own, "file")


@pytest.mark.parametrize(
    ("kind", "given", "labels", "rule", "drawn"),
    [
        ("images", {}, "server", "adam", 1.0),
        ("masks", {}, "server", "adam", 1.0),
        ("nothing", {}, "teacher-soft", "adam", 1.0),
        ("images", {"recipe": Recipe(flip=True)}, "teacher-soft", "adam", 1.0),
        ("images", {"labels": "teacher", "sgd": Sgd(rule="sgd"), "recipe": Recipe(drawn=0.25)}, "teacher", "sgd", 0.25),
    ],
)
def test_how_images_are_learnt(
    kind: Any, given: dict[str, Any], labels: str, rule: str, drawn: float, network: Network
) -> None:
    found = objective.settled(job(**given), network, images.data(kind))
    assert (found.labels, found.sgd.rule, found.recipe.drawn) == (labels, rule, drawn)


def test_classes_are_learnt_as_ever() -> None:
    found = objective.settled(job(), images.network(vector=True), images.data("classes"))
    assert (found.labels, found.sgd.rule, found.recipe.drawn) == ("teacher-soft", "sgd", 0.0)


def test_what_an_output_holds_is_known_before_there_is_a_network() -> None:
    holds = {kind: objective.holds(job(), images.data(kind)) for kind in ("images", "masks", "nothing", "classes")}
    assert holds == {"images": "pixels", "masks": "classes", "nothing": "pixels", "classes": None}
    assert objective.holds(job(output_range=(-1.0, 1.0)), images.data("images")) == (-1.0, 1.0)
    assert objective.holds(job(metric="miou"), images.data("nothing")) == "classes"
    assert objective.holds(job(metric="psnr"), images.data("classes")) == "pixels"
    assert objective.holds(job(loss="cross-entropy"), images.data("nothing")) == "classes"
