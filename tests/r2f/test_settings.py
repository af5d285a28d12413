"""Settings: each described once, whoever gives it; what means nothing is refused by its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelsim.faults import Rates
from r2f import settings as settings_file
from r2f.settings import OPTIONS, Settings, SettingsError, flat, parse
from services.trainer.core.task import PAPER


def test_no_setting_is_forgotten() -> None:
    """Every field that a user may set has a name, but what is found out from others."""

    def fields(struct: Any, before: str = "") -> set[str]:
        found = set()
        for name in struct.__struct_fields__:
            value = getattr(struct, name)
            found |= fields(value, f"{before}{name}.") if hasattr(value, "__struct_fields__") else {before + name}
        return found

    assert fields(Settings()) - {option.field for option in OPTIONS.values()} == {"scheme.uplink_bits_per_s", "scheme.ports"}


@hypothesis.settings(deadline=None)  # the first look at the types takes its time
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "ber": st.floats(0, 1), "lr": st.floats(1e-9, 10), "batch": st.integers(1, 10**6), "labels": st.just("teacher"),
            "protect": st.lists(st.integers(0, 99), max_size=4), "image-size": st.just("8x9x3"),
            "mean": st.just("0.5,0.25"),
            "std": st.just((0.5, 0.25)), "exact": st.booleans(), "replicas": st.sampled_from((3, 5, 7)),
            "link": st.just("hspa"), "fault-model": st.just("burst:4"), "modules": st.just("/somewhere"),
            "network": st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs")), min_size=1),
        },
    )
)  # fmt: skip
def test_a_file_gives_back_what_was_set(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    settings = parse(values)
    assert parse(flat(settings)) == settings
    folder = tmp_path_factory.mktemp("run")
    settings_file.write(folder, settings)
    assert settings_file.read(folder / settings_file.FILE) == settings


def test_words_and_values_are_the_same() -> None:
    spoken = parse({"image_size": "224x224x3", "protect": "0,3,7", "mean": "0.1,0.2,0.3", "replicas": "5", "ber": "1e-3"})
    typed = parse({"image-size": (224, 224, 3), "protect": [0, 3, 7], "mean": [0.1, 0.2, 0.3], "replicas": 5, "ber": 1e-3})
    assert spoken == typed
    assert spoken.rates == Rates(input=1e-3, weight=1e-3, output=1e-3)


def test_one_site_beside_the_others() -> None:
    assert parse({"ber": 1e-3, "ber-weight": 0.5}).rates == Rates(input=1e-3, weight=0.5, output=1e-3)
    base = parse({"ber": 1e-3, "lr": 0.5})
    assert parse({"ber-accumulator": 1e-4}, base).rates == Rates(1e-3, 1e-3, 1e-4, 1e-3)
    assert parse({"batch": 4}, base).sgd.rate == 0.5


WRONG = {
    "lr": (-1, 0, "nan", "inf", "fast", "1e30", 1e300, 100.1, "1e400", -1e30),
    "batch": (0, -3, 1.5, "many", 2**60),
    "iterations": (0, -1, "few", 0.5, True),
    "eval-samples": (0, -1, "all", 0.5, ""),
    "clip": (0, -1, "nan", "-inf", "x", "1e300", 1.1e6, 1e30, 10**9, "1e400"),
    "momentum": (1, -0.1, "nan", 2, "x", 1 - 1e-9, 0.9995, "0.99999", 1e30, -1e-300),
    "temperature": (0, -1, "nan", "hot", "1e30", 1e-300, 0.009, 100.5, 1e300, "inf"),
    "ber": (-1e-3, 1.5, "nan", "inf", "1%"),
    "ber-weight": (2, -1, "nan", "", "x"),
    "theta": (60, -0.1, "nan", "x", "60%"),
    "jpeg": (101, -1, 0.5, "high", "nan"),
    "replicas": (1, 4, 9, "three", 3.5),
    "codec": ("zip", "", 3, "Chained", "direct "),
    "protect": ("conv1", "1;2", "-1", "1.5", ","),
    "image-size": ("224", "224x224", "0x8x3", "axbxc", "8x8x3x1"),
    "mean": ("", "a", "0.5;0.5", "0,5,", "red"),
    "eval-seeds": (0, -1, 10**9, "five", 1.5),
    "seed": (-1, 0.5, "x", 2**60, "nan"),
    "checkpoint-every": (0, -1, "never", 0.1, "nan"),
    "device": ("a/b", "", "x" * 65, "+", "#"),
    "labels": ("", "me", 1, "Device", "x"),
    "device-memory-mb": (0, -1, "1GB", 0.5, 2**40),
    "weight-decay": (-1, "nan", "inf", "x", "", "1e30", 1.01, 1e300, 10**6, -1e-9),
    "network": ("", 3, 0.5, True, ()),
    "vote": ("", "mean", 3, "Median", "x"),
    "redundancy": ("", "tmr", 3, "Layer", "x"),
    "nonsense": (1, 2, 3, 4, 5),
}


@pytest.mark.parametrize(("name", "values"), WRONG.items())
def test_what_means_nothing_is_refused_by_name(name: str, values: tuple[Any, ...]) -> None:
    for value in values:
        with pytest.raises(SettingsError, match=name):
            parse({name: value})


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("mqtt://me:se%40cret@host:1884", "mqtt://me@host:1884"),
        ("mqtts://me:se@cret/@host", "mqtts://me@host"),
        ("me:cret@host:1884", "me@host:1884"),
        ("mqtt://host", "mqtt://host"),
        ("localhost:1883", "localhost:1883"),
    ],
)
def test_a_broker_that_is_named_starts_nothing_and_its_password_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    monkeypatch.delenv("R2F_PASSWORD", raising=False)
    settings = settings_file.resolved(parse({"broker": given}))
    assert settings.broker == kept
    assert "R2F_PASSWORD" not in os.environ, "the next run's broker is not told it"
    assert not settings.launch
    assert parse({"broker": "host", "launch": True}).launch
    settings_file.write(tmp_path, settings)
    assert "cret" not in (tmp_path / settings_file.FILE).read_text()


@pytest.mark.parametrize("name", [name for name in OPTIONS if settings_file.type_of(name) in (str, str | None)])
def test_what_is_given_but_empty_is_refused(name: str) -> None:
    for value in ("", " "):
        with pytest.raises(SettingsError, match=f"--{name}: .*empty"):
            parse({name: value})


def test_layers_that_are_protected_twice_are_protected_once() -> None:
    assert parse({"protect": "7,0,7"}).scheme.protected == (0, 7)
    assert parse({"protect": [7, 0, 7]}).scheme.protected == (0, 7)
    assert parse({"protect": ""}, parse({"protect": "1"})).scheme.protected == ()


def test_errors_are_in_plain_words() -> None:
    for values, said in (
        ({"batch": 0}, "--batch 0: expected a whole number >= 1 and <= 1000000000"),
        ({"lr": -1}, "--lr -1: expected a number > 0 and <= 100"),
        ({"lr": "1e30"}, "--lr 1e30: expected a number > 0 and <= 100"),
        ({"weight-decay": 1e30}, "--weight-decay 1e+30: expected a number >= 0 and <= 1"),
        ({"clip": "1e300"}, "--clip 1e300: expected a number > 0 and <= 1000000"),
        ({"momentum": "1"}, "--momentum 1: expected a number >= 0 and <= 0.999"),
        ({"temperature": 1e-300}, "--temperature 1e-300: expected a number >= 0.01 and <= 100"),
        ({"exact": "maybe"}, "--exact maybe: expected true or false, got text"),
        (
            {"device": "a/b"},
            "--device a/b: 'a/b' is no name of a device: expected letters, digits, '_', '.' and '-', beginning with a letter "
            "or a digit, at most 64",
        ),
        ({"device": "a,b,a"}, "--device a,b,a: device a is listed twice"),
        ({"mean": "0.5,"}, "--mean '0.5,': expected a number for each channel, e.g. 0.485,0.456,0.406"),
    ):
        with pytest.raises(SettingsError) as error:
            parse(values)
        assert str(error.value) == said


def test_help_and_refusal_name_one_bound() -> None:
    for name in ("lr", "momentum", "weight-decay", "clip", "temperature"):
        words = OPTIONS[name].help.replace("1e6", "1000000").replace(";", "").split()
        assert settings_file.bounds(name).split()[-1] in [word.rstrip(".") for word in words], name
        edge = float(settings_file.bounds(name).split()[-1])
        assert flat(parse({name: edge}))[name] == edge


def test_paths_hold_in_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = settings_file.resolved(parse({"weights": "w.pth", "data": "d.npz", "classes": "c.txt", "array": "a.cfg"}))
    found = (settings.weights, settings.data.source, settings.data.classes, settings.array)
    assert found == tuple(str(tmp_path / name) for name in ("w.pth", "d.npz", "c.txt", "a.cfg"))
    assert settings.modules == str(tmp_path)
    assert settings_file.resolved(parse({"weights": "~/w.pth"})).weights == str(Path.home() / "w.pth")
    assert settings_file.resolved(parse({})).data.source == "digits"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    for text, said in (
        ("lr = ", "run.toml"),
        ("lr = -1", "--lr -1"),
        ("lr = 1e30", r"run.toml: --lr 1e\+30: expected a number > 0 and <= 100"),
        ("weight-decay = 1e30", r"run.toml: --weight-decay 1e\+30: expected a number >= 0 and <= 1"),
        ("speed = 3", "no such setting"),
        ("[sgd]\nrate=1", "sgd"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=said):
            settings_file.read(path)
    with pytest.raises(SettingsError, match="absent"):
        settings_file.read(tmp_path / "absent.toml")


def test_the_papers_recipe_is_a_set_of_settings_that_others_override() -> None:
    plain = parse({"recipe": "paper", "lr": 0.5})
    assert (plain.labels, plain.iterations, plain.sgd.rate, plain.sgd.clip) == ("device", 100, 0.5, 5.0)
    assert plain.recipe == PAPER
    assert parse({"recipe": "paper", "epochs": 3}, parse({"batch": 4})).batch == 4
    assert parse(settings_file.flat(plain)) == plain
    ours = parse({"recipe": "ours", "flip": True})
    assert ours.labels == "auto"
    assert (ours.recipe.flip, ours.recipe.shift, parse({}).recipe.flip) == (True, None, None)
    with pytest.raises(SettingsError, match="--recipe mine"):
        parse({"recipe": "mine"})
