"""What the packaging promises: the wheel runs anywhere, and compose, image, make and CI say what they should."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.bus.keys import VARIABLE

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("accelsim", "broker", "services", "r2f")


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
    # The page can be asked for from outside, by this host's own browsers; the bridge reaches something outside.
    assert sides.pop("monitor") == {"server", "page"}
    assert sides.pop("thingsboard") == {"server", "outside"}
    assert all(len(networks) == 1 for name, networks in sides.items() if not name.endswith("broker") and networks)
    assert not any(networks & {"page", "outside"} for networks in sides.values())
    assert {name for name, network in compose["networks"].items() if not network.get("internal")} == {"page", "outside"}
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {"monitor": ["127.0.0.1:8100:8100"]}


def test_each_side_shares_memory_only_with_itself(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.endswith("-memory"):
                assert service["networks"] == [source.removesuffix("-memory")], name


def test_no_secret_is_written_into_compose_or_has_a_default(compose: dict[str, Any]) -> None:
    text = (ROOT / "compose.yaml").read_text()
    assert "PASSWORD" not in text
    for name, service in compose["services"].items():
        environment = service.get("environment", {})
        assert not any("@" in str(value) for value in environment.values()), name
        if "R2F_BROKER" in environment:
            assert environment["R2F_BROKER"].startswith("mqtts://"), name


def test_each_side_has_its_key_and_no_broker_has_one(compose: dict[str, Any]) -> None:
    signed = yaml.safe_load((ROOT / "docker" / "signed.yaml").read_text())
    acts = {n for n, s in compose["services"].items() if str(s.get("environment", {}).get("R2F_IDENTITY", "")) and n != "tap"}
    acts -= {"monitor", "thingsboard"}  # look on
    assert set(signed["services"]) == acts | {"signing-key"}
    for name in acts:
        service = signed["services"][name]
        side = "device" if compose["services"][name]["networks"] == ["device"] else "server"
        assert service["volumes"] == [f"{side}-key:/signing"], name
        assert service["environment"] == {VARIABLE: "/signing/keys"}, name
        assert service["depends_on"] == {"signing-key": {"condition": "service_completed_successfully"}}, name


def test_each_container_has_the_identity_of_its_side_alone(compose: dict[str, Any]) -> None:
    found: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        mounts = [volume.split(":") for volume in service.get("volumes", [])]
        identities = {mount[0] for mount in mounts if len(mount) > 1 and mount[1].startswith("/identities/")}
        assert name == "broker-files" or all(m[2:] == ["ro"] for m in mounts if m[0] in identities), name
        found[name] = identities
        if "R2F_IDENTITY" in (environment := service.get("environment", {})):
            assert {m[1] for m in mounts if m[0] in identities} == {environment["R2F_IDENTITY"]}, name
    assert {name for name, identities in found.items() if "authority" in identities} == {"broker-files"}
    assert compose["services"]["broker-files"]["network_mode"] == "none"
    assert found["device-broker"] == {"device-broker", "device-identity"}
    assert found["server-broker"] == {"server-broker"}
    for name in ("agent", "voter", "codec-device"):
        assert found[name] == {"device-identity"}
    for name in ("trainer", "codec-server", "demo"):
        assert found[name] == {"server-identity"}
    for name in ("tap", "monitor", "thingsboard"):
        assert found[name] == {"watch-identity"}
    kernels = {name: [v for v in s.get("volumes", []) if "kernels" in v] for name, s in compose["services"].items()}
    assert all("server-kernels" not in str(kernels[name]) for name in ("agent", "voter", "codec-device"))
    assert all("device-kernels" not in str(kernels[name]) for name in ("trainer", "codec-server", "demo"))


def test_each_container_is_held_in(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service.get("user", "10001:10001") == "10001:10001", name
        assert "privileged" not in service, name


def test_services_have_a_health_check_that_can_find_them(compose: dict[str, Any]) -> None:
    for name in ("agent", "voter", "codec-device", "codec-server"):
        environment = compose["services"][name]["environment"]
        assert environment["R2F_SERVICE"] == name
        assert {"R2F_BROKER", "R2F_DEVICE", "R2F_IDENTITY"} <= environment.keys()
        assert "healthcheck" not in compose["services"][name]  # the image's own
    assert "HEALTHCHECK" in (ROOT / "Dockerfile").read_text()


def test_image_does_not_run_as_root() -> None:
    instructions = re.findall(r"^(USER|FROM) (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert instructions[-1] == ("USER", "r2f")


def test_image_carries_what_the_wheel_is_built_from() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {*PACKAGES, "docker", "pyproject.toml", "README.md", "LICENSE"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_knows_the_targets_that_the_pages_name(page: str) -> None:
    """What they run, other tests and CI run: the demo, the suite, lint."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    targets = re.findall(r"^make (\w+)", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert "test" in targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_ci_runs_by_itself() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert {"make lint", "make docs", "make test"} <= set(script.read_text().splitlines())


def test_nothing_that_a_trial_left_is_in_the_root() -> None:
    """A file of passwords called ``x`` was: whatever lies there is one of these, or says by its ending what it is."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    root = [name for name in listed if "/" not in name]
    assert [name for name in root if name not in ("LICENSE", "Makefile", "Dockerfile") and "." not in name] == []


def test_pre_commit_does_what_make_lint_does() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    made = subprocess.run(["make", "-n", "lint"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    programs = re.findall(r"^\.venv/bin/(ruff \w+|mypy|lint-imports)", made, re.MULTILINE)
    assert programs == [" ".join(hook["entry"].split()[: 2 if "ruff" in hook["entry"] else 1]) for hook in hooks]


# -- the wheel --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tree, with the build tools that are installed."""
    source, out = tmp_path_factory.mktemp("source") / "r2f", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for name in (*PACKAGES, "experiments", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, source]
    subprocess.run(command, check=True)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a fresh environment that holds the wheel and, of the packages that this one has, those it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    # Else pip takes a tree that PYTHONPATH names for an r2f that is installed already.
    subprocess.run(command, check=True, env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"})
    ours = Path(sysconfig.get_path("purelib"))
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    there = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    # As a line of a .pth file, it is searched last, and its own .pth files (an editable install of this tree) are not read.
    (there / "dependencies.pth").write_text(f"{ours}\n")
    # Kernels that are compiled here need not be again: Numba goes by name, time and size of the source.
    for package in PACKAGES:
        for cached in (ROOT / package).rglob("__pycache__/*.nb[ic]"):
            target = there / cached.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(cached, target)
        for module in (ROOT / package).rglob("*.py"):
            status = module.stat()
            os.utime(there / module.relative_to(ROOT), ns=(status.st_atime_ns, status.st_mtime_ns))
    subprocess.run([python, "-P", "-m", "r2f.warm"], check=True)  # what is not compiled yet
    return folder / "bin"


def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # A package without __init__.py would be found in the tree and not in the wheel.
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_wheel_runs_the_demo_in_a_folder_that_has_services_of_its_own(installed: Path, tmp_path: Path) -> None:
    for name in (*PACKAGES, "structlog", "random"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not that one')\n")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"TMPDIR": str(temporary)}
    command = [installed / "r2f", "demo", "--iterations", "2"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not that one" not in done.stdout + done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "report.json").exists()
    assert (run / "retrained.safetensors").exists()
    assert list(temporary.glob("r2f-*")) == []
    assert [log.name for log in (run / "logs").iterdir() if not log.stat().st_size] == []
