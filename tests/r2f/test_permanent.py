"""Permanent faults in the loop of one process: what a known map saves on the link, what is won back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace
from torch import nn
from typer.testing import CliRunner

from accelsim.accelerators import build
from accelsim.datasets import load, spread
from accelsim.engine import Engine
from accelsim.faults import Rates, chip
from accelsim.faults.permanent import Fault, FaultMap, fault_map, faulty_network
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.lowering import lower
from accelsim.timing import Array
from r2f import inprocess, prepare
from r2f.cli import app
from r2f.prepare import PREPARED, Prepared
from r2f.settings import Settings, SettingsError, flat, parse
from services.trainer.core.job import Job
from services.trainer.core.replay import replay
from services.trainer.core.step import held_back
from services.trainer.core.task import PAPER, Sgd

DIGITS = load("digits")


@pytest.fixture(scope="module")
def network(trained: nn.Module) -> Network:
    return lower(trained, DIGITS.train_images[::5], DIGITS.mean, DIGITS.std, name="digits_cnn")


def job(ber: float, known: FaultMap | None, iterations: int = 3) -> Job:
    return Job(
        session="s", device="d", rates=Rates.uniform(ber), iterations=iterations, batch=16, sgd=Sgd(rate=0.01), recipe=PAPER,
        labels="device", known=b"" if known is None else chip.packed(known),
    )  # fmt: skip


def bytes_of(network: Network, ber: float, faults: FaultMap | None, known: FaultMap | None) -> list[int]:
    done = inprocess.retrain(network, DIGITS, job(ber, known), accelerator=build("simulated", permanent=faults))
    assert all(one.mismatched == 0 for one in done.iterations)
    return [one.layer_bytes + one.repair_bytes for one in done.iterations]


def test_a_known_map_costs_nothing_on_the_link(network: Network) -> None:
    faults = chip.random_map(Array(), 0.02, 1)
    sound, unknown, known = (bytes_of(network, 0.0, *of) for of in ((None, None), (faults, None), (faults, faults)))
    assert known == sound, "at BER 0 nothing but what says that there is nothing"
    assert min(unknown) > 20 * max(known)
    sound, unknown, known = (bytes_of(network, 1e-3, *of) for of in ((None, None), (faults, None), (faults, faults)))
    assert sum(known) < 1.3 * sum(sound)
    assert sum(unknown) > 1.3 * sum(known)


def test_a_map_that_is_not_the_devices_costs_bytes_and_no_exactness(network: Network) -> None:
    faults, other = chip.random_map(Array(), 0.02, 1), chip.random_map(Array(), 0.02, 2)
    assert min(bytes_of(network, 0.0, faults, other)) > 20 * max(bytes_of(network, 0.0, faults, faults))


def test_retraining_wins_back_what_stuck_bits_cost(network: Network) -> None:
    faults = chip.random_map(Array(), 0.1, 2, ["weight"])
    factory = build("simulated", permanent=faults)

    def top1(of: Network) -> float:
        images, labels = DIGITS.test_images[:300], DIGITS.test_labels[:300]
        return inprocess.evaluate(of, images, labels, Rates(), [1], accelerator=factory).top1[0]

    before = top1(network)
    for known in (None, faults):
        done = inprocess.retrain(network, DIGITS, job(0.0, known, iterations=60), accelerator=factory)
        assert top1(done.network) > before + 5


def test_without_a_map_nothing_changes(network: Network) -> None:
    plain = inprocess.retrain(network, DIGITS, job(1e-3, None))
    empty = inprocess.retrain(
        network, DIGITS, job(1e-3, None), accelerator=build("simulated", permanent=fault_map(Array(), []))
    )
    assert storage.digest(plain.network) == storage.digest(empty.network)


def test_gradients_are_of_the_weights_that_the_registers_hold(network: Network) -> None:
    """The known map's replay: of weights on bypassed elements nothing, of the others what the network that ran has."""
    faults = fault_map(Array(), [Fault(3, 2, "bypass"), Fault(5, 1, "weight", 6, 1)])
    ran = faulty_network(network, faults)
    engine = inprocess.shared(ran)
    x = network.quantize_images(DIGITS.train_images[:8])
    truth = np.eye(10, dtype=np.float32)[DIGITS.train_labels[:8]]
    found = replay(ran, x, dict(enumerate(engine.run(x))), truth, engine.fault_free)
    kept = held_back(found, network, faults)
    index, conv = next(network.convs())
    assert conv.groups == 1
    weight, bias = kept.gradients[index]
    flat_k = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    assert bool((flat_k[2::32, 3::32] == 0).all())
    before = found.gradients[index][0].permute(0, 2, 3, 1).reshape(len(weight), -1)
    assert bool((before[2::32, 3::32] != 0).any())
    assert bool((flat_k[1] == before[1]).all()), "a stuck bit leaves a weight's gradient"
    assert bool((bias == found.gradients[index][1]).all())
    assert kept.norm < found.norm


def chip_file(folder: Path, rows: int = 32) -> Path:
    path = folder / "chip.json"
    chip.write(path, chip.random_map(Array(rows=rows, columns=32), 0.02, 1))
    return path


def test_settings_of_a_chip(tmp_path: Path) -> None:
    path = chip_file(tmp_path)
    given = parse({"fault-map": str(path), "known-map": "device"})
    worn, known = prepare.permanent(given), prepare.known(given)
    assert worn is not None
    assert known is not None
    assert chip.digest(worn) == chip.digest(known) == chip.digest(chip.random_map(Array(), 0.02, 1))
    assert chip.unpacked(prepare.job_of(given, "s").known, "job").name == worn.name
    drawn = prepare.permanent(parse({"random-faults": "0.02", "chip-seed": "1"}))
    assert drawn is not None
    assert chip.digest(drawn) == chip.digest(worn)
    assert prepare.permanent(parse({})) is None
    assert parse(flat(given)) == given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fault-map": "CHIP", "random-faults": 0.1}, "--fault-map and --random-faults exclude one another"),
        ({"random-faults": 1.5}, r"--random-faults 1\.5"),
        ({"known-map": "device"}, "--known-map device: the device is given none"),
        ({"fault-map": "none.json"}, r"--fault-map none\.json: no such file"),
        ({"known-map": "none.json"}, r"--known-map none\.json: no such file"),
        ({"fault-map": "OTHER"}, r"chip\.json: a chip with an array of 16x32, but --array has 32x32"),
        ({"known-map": "OTHER"}, r"chip\.json: a chip with an array of 16x32, but --array has 32x32"),
        ({"fault-map": "CHIP", "accelerator": "onnxruntime"}, "no array that could be worn|onnx"),
    ],
)
def test_what_does_not_fit_is_refused(given: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    places = {"CHIP": str(chip_file(tmp_path)), "OTHER": str(chip_file(tmp_path / "other", rows=16))}
    with pytest.raises((SettingsError, ValueError), match=said):
        prepare.check(parse({name: places.get(str(value), value) for name, value in given.items()}))


def test_a_job_with_a_map_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="job: known"):
        Job(session="s", device="d", known=b"nonsense")


def test_a_broken_chip_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"version": 1, "rows": 4}))
    with pytest.raises(ValueError, match=r"bad\.json: not a chip file .*columns"):
        prepare.check(parse({"fault-map": str(path)}))


def test_the_settings_in_a_job_do_not_change_with_a_map(network: Network) -> None:
    one, other = job(0.0, None), job(0.0, chip.random_map(Array(), 0.02, 1))
    assert replace(other, known=b"") == one


def test_a_chip_in_words(tmp_path: Path) -> None:
    assert prepare.chip_words(parse({})) == ""
    path = chip_file(tmp_path)
    own, other = chip.read(path), tmp_path / "other.json"
    chip.write(other, chip.random_map(Array(), 0.02, 2))
    of = f"20 of 1024 elements faulty (map {chip.digest(own)}), "
    for given, said in (
        ({}, "nobody knows of them"),
        ({"known-map": "device"}, "both ends of the link know them"),
        ({"known-map": str(other)}, f"both ends of the link take them for map {chip.digest(chip.read(other))}"),
    ):
        assert prepare.chip_words(parse({"fault-map": str(path), **given})).endswith(of + said)


def test_shares_are_written_either_way() -> None:
    assert parse({"random-faults": "2%"}) == parse({"random-faults": "0.02"})
    for wrong in ("%", "2%%", "2% of", "nan", "a lot", "-1%", "101%"):
        with pytest.raises(SettingsError, match="--random-faults"):
            parse({"random-faults": wrong})


def test_a_diagnosis_overwrites_no_chip(tmp_path: Path) -> None:
    path = chip_file(tmp_path)
    before = path.read_bytes()
    found = CliRunner().invoke(app, ["diagnose", "--random-faults", "1%", "--out", str(path)])
    assert found.exit_code == 1
    assert "is there already" in found.output.replace("\n", " ")
    assert path.read_bytes() == before


@pytest.mark.parametrize("devices", ["a,b", "*"])
def test_a_diagnosis_is_of_one_device(devices: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["diagnose", "--device", devices, "--out", str(tmp_path / "found.json")])
    assert found.exit_code == 1
    assert "a diagnosis is of one device" in found.output.replace("\n", " ")


def test_the_sound_chip_is_measured_beside_a_worn_one(prepare: Callable[[Settings, Path], None], tmp_path: Path) -> None:
    """The network that is deployed first, on an array without faults; nothing is measured where there is no chip."""
    prepare(parse({"random-faults": "0.05", "eval-samples": "100"}), tmp_path / "worn")
    found = msgspec.json.decode((tmp_path / "worn" / PREPARED).read_bytes(), type=Prepared).sound
    assert found is not None
    network = storage.load(tmp_path / "worn" / "network.safetensors")
    places = spread(100, len(DIGITS.test_images))
    images, labels = DIGITS.test_images[places], DIGITS.test_labels[places]
    outputs = Engine(network).run(network.quantize_images(images))[-1]
    assert found.samples == 100
    assert found.top1 == [100 * float((outputs.reshape(100, -1).argmax(axis=1) == labels).mean())]
    worn = inprocess.evaluate(
        network, images, labels, Rates(), [0], accelerator=build("simulated", permanent=chip.random_map(Array(), 0.05, 1))
    )
    assert worn.top1[0] < found.top1[0]
    prepare(parse({"eval-samples": "100"}), tmp_path / "healthy")
    assert msgspec.json.decode((tmp_path / "healthy" / PREPARED).read_bytes(), type=Prepared).sound is None
