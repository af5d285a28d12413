"""How much was won back: the arithmetic, what is compared with what, and what the program writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from accelsim import datasets
from accelsim.faults import Rates
from experiments import recover
from experiments.common import retraining, splits
from experiments.common.retraining import Accuracy
from r2f import settings as r2f_settings
from services.scheme import Scheme


def of(mean: float) -> Accuracy:
    return Accuracy(mean, 0.0, 5)


def test_recovered_is_the_share_of_what_was_lost() -> None:
    assert recover.share(of(90), of(70), of(85)) == 0.75
    assert recover.share(of(90), of(70), of(60)) == -0.5
    assert recover.share(of(90), of(90), of(91)) is None


@pytest.mark.parametrize(
    ("given", "images", "largest", "batch", "iterations"),
    [
        ({}, 400, 128, 16, None),
        ({}, 20_000, 128, 64, None),
        ({}, 40_000, 128, 128, None),
        ({}, 50_000, 128, 128, 1600),
        ({"epochs": 1}, 20_000, 128, 16, None),
        ({"batch": 48}, 20_000, 128, 96, None),
        ({"batch": 32}, 20_000, 32, 32, 1600),
        ({"batch": 256}, 100_000, 128, 256, 1600),
        ({"iterations": 5000}, 20_000, 128, 16, 5000),
    ],
)
def test_where_epochs_take_too_long_batches_grow_and_then_epochs_are_left_out(
    given: dict[str, int], images: int, largest: int, batch: int, iterations: int | None
) -> None:
    settings = recover.capped(r2f_settings.parse(given), images, 1600, largest)
    assert (settings.batch, settings.iterations) == (batch, iterations)


def test_the_program_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number again by other means; the report images are others than those that are given."""
    data = datasets.load("digits")
    more = tmp_path / "more.npz"
    np.savez(more, images=data.test_images[:90], labels=data.test_labels[:90])
    out = tmp_path / "new" / "found.json"
    options = ["--ber", "2e-3", "--iterations", "4", "--lr", "5e-3", "--eval-seeds", "2", "--codec", "direct"]
    monkeypatch.setattr("sys.argv", ["recover", *options, "--report-data", str(more), "--json", str(out)])
    recover.main()
    found = json.loads(out.read_text())
    assert (found["images"], found["metric"], found["iterations"]) == (90, "top1", 4)
    assert found["recipe"]["lr"] == 5e-3
    assert found["before"]["n"] == found["after"]["n"] == 2
    assert found["seeds"] == [1001, 1002]

    settings = r2f_settings.parse({"ber": 2e-3, "iterations": 4, "lr": 5e-3, "codec": "direct"})
    split = splits.reporting(data)
    module = retraining.float_module(settings, split)
    signed, network = (retraining.quantised(each, module, data) for each in (retraining.signed(settings), settings))
    assert all(layer.signed for layer in signed.layers)
    assert not all(layer.signed for layer in network.layers)
    trained, spent = retraining.retrained(settings, network, split)
    held_out = splits.reporting(data, more)
    of = {"clean": (signed, 0.0), "before": (signed, 2e-3), "untrained": (network, 2e-3), "after": (trained, 2e-3)}
    for key, (which, ber) in of.items():
        again = retraining.evaluated(which, held_out, Rates.uniform(ber), (1001, 1002), Scheme())
        assert found[key]["mean"] == pytest.approx(np.mean(again.top1), abs=1e-3), key
    assert found["deployed"] == spent.deployed
    assert found["bytes"] == found["bytes_up"] + found["bytes_down"] == spent.up + spent.down
    elements = 4 * 15 * sum(int(np.prod(layer.shape)) for _, layer in network.convs())
    assert found["bytes_up"] > elements  # sent as they are, of batches of 15 or 16, and the images too
    lost = found["clean"]["mean"] - found["before"]["mean"]
    assert found["recovered"] == pytest.approx((found["after"]["mean"] - found["before"]["mean"]) / lost, abs=1e-4)
    printed = capsys.readouterr().out
    assert f"{100 * found['recovered']:.1f} %" in printed
    assert "top1 of 90 images" in printed


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["recover", "--lr", "fast"])
    with pytest.raises(r2f_settings.SettingsError, match="--lr fast"):
        recover.main()


@pytest.mark.parametrize(
    ("options", "expected"), [([], (1600, 128)), (["--batch", "8"], (1600, 8)), (["--epochs", "2"], (None, 128))]
)
def test_what_is_given_stays(options: list[str], expected: tuple[int | None, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(_: object, *, most: int | None, largest: int, **others: object) -> None:
        raise KeyError(most, largest)

    monkeypatch.setattr(recover, "recover", caught)
    monkeypatch.setattr("sys.argv", ["recover", *options])
    with pytest.raises(KeyError) as asked:
        recover.main()
    assert asked.value.args == expected
