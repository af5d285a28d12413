"""What the packaging promises and a slip would break silently; that it runs is for ``make`` and ``docker compose``."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


def test_each_command_is_a_module_that_exists(compose: dict[str, Any]) -> None:
    commands = [service["command"] for service in compose["services"].values()]
    modules = [command[2] for command in commands if command[:2] == ["python", "-m"]]
    assert len(modules) >= 5
    for module in modules:
        assert importlib.util.find_spec(module) is not None, module


def test_only_the_brokers_are_on_the_link(compose: dict[str, Any]) -> None:
    sides = {name: set(service.get("networks", [])) for name, service in compose["services"].items()}
    assert {name for name, networks in sides.items() if "link" in networks} == {"device-broker", "server-broker"}
    assert all(len(networks) == 1 for name, networks in sides.items() if not name.endswith("broker") and networks)
    assert all(network["internal"] for network in compose["networks"].values())
    assert not any("ports" in service for service in compose["services"].values())


def test_each_side_shares_memory_only_with_itself(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.endswith("-memory"):
                assert service["networks"] == [source.removesuffix("-memory")], name


def test_services_have_a_health_check_that_can_find_them(compose: dict[str, Any]) -> None:
    for name in ("agent", "voter", "codec-device", "codec-server"):
        environment = compose["services"][name]["environment"]
        assert environment["R2F_SERVICE"] == name
        assert {"R2F_BROKER", "R2F_DEVICE"} <= environment.keys()
        assert "healthcheck" not in compose["services"][name]  # the image's own
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_image_does_not_run_as_root() -> None:
    instructions = re.findall(r"^(USER|FROM) (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert instructions[-1] == ("USER", "r2f")


def test_image_carries_every_package() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages
    assert packages <= kept


@pytest.mark.parametrize("target", ["demo", "test", "lint"])
def test_make_knows_the_target(target: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_ci_runs_by_itself() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
