"""What a user meets on the command line when something is wrong: one clear line, exit 1, and no run folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from accelsim import zoo
from r2f import doctor, layers
from r2f import settings as settings_file
from r2f.cli import app

ROOT = Path(__file__).resolve().parents[2]

SMALL = ["--iterations", "1", "--eval-seeds", "1"]


def retrain(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["retrain", "--out", str(tmp_path / "runs"), *SMALL, *arguments])


def said(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("r2f: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in line, line


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8), np.arange(24) % 10
    np.savez(path, train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8])
    return str(path)


def test_an_unknown_network_is_named_with_what_there_is(tmp_path: Path) -> None:
    said(retrain(tmp_path, "--network", "resnet19"), "resnet19", "resnet20")
    assert not (tmp_path / "runs").exists()


def test_a_network_without_weights(tmp_path: Path, cifar: str) -> None:
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar), "--weights")


def test_weights_that_are_not_there(tmp_path: Path, cifar: str) -> None:
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar, "--weights", "none.safetensors"), "none.safetensors")


def test_weights_with_a_missing_and_a_misshaped_name(tmp_path: Path, cifar: str) -> None:
    tensors = {name: value.clone().contiguous() for name, value in zoo.build("resnet20").state_dict().items()}
    first = next(iter(tensors))
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in tensors.items() if name != first}, path)
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar, "--weights", str(path)), first)
    save_file(tensors | {first: torch.zeros(3, 1)}, path)
    said(retrain(tmp_path, "--network", "resnet20", "--data", cifar, "--weights", str(path)), first, "3")


def test_data_of_the_wrong_shape(tmp_path: Path, cifar: str) -> None:
    path = tmp_path / "weights.safetensors"
    state = zoo.build("squeezenet1_1").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    result = retrain(tmp_path, "--network", "digits_cnn", "--data", str(tmp_path / "absent.npz"))
    said(result, "absent.npz")
    bad = tmp_path / "float.npz"
    np.savez(bad, train_images=np.zeros((4, 8, 8, 1), np.float32), train_labels=np.zeros(4, np.int64))
    said(retrain(tmp_path, "--data", str(bad)), "float.npz", "float32")


def test_an_operator_that_cannot_be_lowered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_response_norm.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.LocalResponseNorm(2), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    weights = tmp_path / "weights.safetensors"
    monkeypatch.chdir(tmp_path)
    module = zoo.build("with_response_norm:build", 10)
    save_file(module.state_dict(), weights)
    said(retrain(tmp_path, "--network", "with_response_norm:build", "--weights", str(weights)), "1", "LocalResponseNorm")


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"mqtt://127.0.0.1:{taken.getsockname()[1]}"
        result = CliRunner().invoke(app, ["tap", "--broker", url])
    said(result, url, "unreachable")


def test_a_tap_outlives_its_run(tmp_path: Path) -> None:
    """Which is no error, and does not stand among the messages."""
    (tmp_path / "run.toml").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        (tmp_path / "broker.txt").write_text(f"mqtt://127.0.0.1:{taken.getsockname()[1]}\n")
        result = CliRunner().invoke(app, ["tap", "--run", str(tmp_path), "--json"], env={"R2F_BROKER": "mqtt://127.0.0.1:1"})
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.endswith(f"{tmp_path}: the run is over\n")
    said(CliRunner().invoke(app, ["tap", "--run", str(tmp_path), "--broker", "mqtt://127.0.0.1:1"]), "--run", "leave out")


def test_resuming_what_is_no_run(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["retrain", "--resume", str(tmp_path)])
    said(result, str(tmp_path), "run.toml")


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--ber", "1.5", "<= 1"), ("--replicas", "4", "4"), ("--protect", "conv1", "r2f layers"), ("--lr", "-1", "> 0"),
        ("--lr", "1e+30", "> 0 and <= 100"), ("--weight-decay", "1e+30", ">= 0 and <= 1"), ("--clip", "1e+300", "<= 1000000"),
        ("--temperature", "1e+300", ">= 0.01 and <= 100"), ("--momentum", "1e+30", "<= 0.999"),
        ("--batch", "0", ">= 1"), ("--eval-samples", "0", ">= 1"), ("--clip", "0", "> 0"), ("--clip", "nan", "nan"),
        ("--array", "nofile.cfg", "no such file"), ("--weights", "nofile.pth", "no such file"), ("--link", "5g", "hspa"),
        ("--accelerator", "tpu", "simulated"), ("--broker", "ftp://x", "mqtt://"), ("--data", "nowhere", "nowhere"),
        ("--config", "nofile.toml", "nofile.toml"), ("--mean", "red", "--mean"), ("--image-size", "8", "HxWxC"),
        ("--protect", "99", "MAC layers"), ("--protect", "3", "MAC layers"),
        ("--classes", "nofile.txt", "no such file"), ("--protect", ",", "r2f layers"), ("--fault-model", "hard", "burst"),
        ("--fault-model", "burst:x", "length"), ("--modules", "nowhere", "no such folder"), ("--broker", "", "empty"),
        ("--broker", "mqtt://[::1", "--broker"), ("--broker", "localhost:x", "--broker"), ("--data", "", "empty"),
        ("--batch", "5000", "training images"),
    ],
)  # fmt: skip
def test_arguments_that_mean_nothing(tmp_path: Path, weights: str, option: str, value: str, word: str) -> None:
    arguments = [option, value] if option == "--weights" else ["--weights", weights, option, value]
    result = retrain(tmp_path, *arguments)
    said(result, value, word)
    assert not (tmp_path / "runs").exists()


def test_a_broker_address_without_a_scheme(tmp_path: Path, weights: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        at = f"localhost:{taken.getsockname()[1]}"
        said(retrain(tmp_path, "--weights", weights, "--broker", at), "--broker", at, "no broker answers")


def test_data_that_is_not_the_default_networks(tmp_path: Path, cifar: str) -> None:
    said(retrain(tmp_path, "--data", cifar), "32x32x3", "8x8x1", "--network")
    few = tmp_path / "few.npz"
    np.savez(few, train_images=np.zeros((20, 8, 8, 1), np.uint8), train_labels=np.arange(20) % 5)
    said(retrain(tmp_path, "--data", str(few)), "--batch 16", "few.npz", "15 training images")
    said(retrain(tmp_path, "--data", str(few), "--batch", "8"), "few.npz", "15 training images", "too few")


def test_a_network_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own.py").write_text(
        "from torch import nn\ndef pair(): return nn.Conv2d(1, 8, 3), 10\ndef image(): return nn.Conv2d(1, 10, 1)\n"
        "def broken(): raise KeyError('x')\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(zoo.build("my_own:image").state_dict(), tmp_path / "image.pth")
    for function, word in (("pair", "tuple"), ("image", "10"), ("broken", "KeyError"), ("absent", "absent")):
        said(retrain(tmp_path, "--network", f"my_own:{function}", "--weights", "image.pth"), word)


@pytest.mark.parametrize(
    "content", [b"", b"a\nb\n", b"PK\x03\x04", bytes(range(256)), b"\x80\x02.", b"import torch\n", b"{}" * 9]
)
def test_a_file_that_holds_no_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    said(retrain(tmp_path, "--weights", str(path)), "notes.txt")
    assert not (tmp_path / "runs").exists()


def test_runs_that_cannot_be_made_where_they_should(tmp_path: Path, weights: str) -> None:
    (tmp_path / "runs").touch()
    said(retrain(tmp_path, "--weights", weights), str(tmp_path / "runs"), "--out")


def test_a_password_is_in_no_message(tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in ("localhost:1", "localhost:x", "[::1"):
        monkeypatch.setenv("R2F_BROKER", f"mqtt://me:secret@{at}")
        result = retrain(tmp_path, "--weights", weights)
        said(result, "--broker")
        assert "secret" not in result.output


def test_ones_own_network_has_as_many_classes_as_the_class_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sized.py").write_text(
        "from torch import nn\n"
        "def build(num_classes=10):\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.save(zoo.build("sized:build", 3).state_dict(), "three.pth")
    rows = np.arange(60) % 3
    np.savez("three.npz", train_images=np.zeros((60, 8, 8, 1), np.uint8), train_labels=rows)
    own = ["--network", "sized:build", "--weights", "three.pth", "--data", "three.npz"]
    said(retrain(tmp_path, *own), "three.pth", "(3, 144)", "(10, 144)")
    Path("names.txt").write_text("a\nb\nc\n")
    # Past the weights and the lowering: there is no layer 99.
    said(retrain(tmp_path, *own, "--classes", "names.txt", "--protect", "99"), "layer 99")


def test_a_mistake_of_ours_leaves_its_traceback_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2f import run

    def mistake(*_: object) -> None:
        raise ExceptionGroup("tasks", [KeyError("oops")])

    monkeypatch.setattr(run, "start", mistake)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = retrain(tmp_path)
    said(result, "KeyError", "oops", "report")
    (left,) = tmp_path.glob("r2f-error-*.txt")
    assert str(left) in result.stderr
    assert "in mistake" in left.read_text()


def test_a_run_that_is_resumed_keeps_its_settings(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["retrain", "--resume", str(tmp_path), "--lr", "1"])
    assert result.exit_code == 2
    assert "--lr" in result.output


def test_no_run_to_tap(tmp_path: Path) -> None:
    said(CliRunner().invoke(app, ["tap", "--out", str(tmp_path)]), "no run is going on", "--broker")


def test_the_name_of_a_run_is_whole_in_eighty_columns(tmp_path: Path) -> None:
    folder = tmp_path / "20260101-000000-shufflenet_v2_x1_0"
    folder.mkdir()
    settings_file.write(folder, settings_file.parse({"network": "shufflenet_v2_x1_0", "ber": 1e-4, "iterations": 12000}))
    output = CliRunner().invoke(app, ["runs", str(tmp_path)], env={"COLUMNS": "80"}).output
    assert any(line.startswith(folder.name + " ") for line in output.splitlines()), output


def test_runs_are_listed(tmp_path: Path) -> None:
    assert "no runs" in CliRunner().invoke(app, ["runs", str(tmp_path)]).output
    folder = tmp_path / "20260101-000000-digits_cnn"
    folder.mkdir()
    settings_file.write(folder, settings_file.parse({"ber": 2e-3, "iterations": 120}))
    output = CliRunner().invoke(app, ["runs", str(tmp_path)], env={"COLUMNS": "120"}).output
    row = next(line for line in output.splitlines() if line.startswith(folder.name)).split()
    assert row[1:] == ["digits_cnn", "0.002", "0/120", "stopped"]
    assert f"--resume {folder}" in output
    assert "no runs below" in CliRunner().invoke(app, ["runs", str(tmp_path / "absent")]).output
    said(CliRunner().invoke(app, ["runs", str(folder / settings_file.FILE)]), "is a file")


def test_layers_are_listed_with_the_indices_that_protect_takes() -> None:
    result = CliRunner().invoke(app, ["layers"], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    network = layers.of_settings(settings_file.parse({}), {})
    indices = [line.split()[0] for line in result.output.splitlines() if " MAC " in line and line.split()[0].isdigit()]
    assert indices == [str(index) for index, _ in network.convs()]
    macs = sum(layer.weight[0].size * layer.shape[0] * layer.shape[1] * layer.shape[2] for _, layer in network.convs())
    assert f"{macs / 1e6:.4g} M MACs an image" in result.output


def listed(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if line.split()[:1] and line.split()[0].isdigit()]


def test_layers_of_a_name_alone_have_random_weights_and_say_so(weights: str) -> None:
    named = CliRunner().invoke(app, ["layers", "squeezenet1_1"], env={"COLUMNS": "120"})
    assert named.exit_code == 0, named.output
    assert "26 MAC layers" in named.output
    assert "weights are random" in named.output
    assert listed(named.output)[:3] == ["0", "1", "2"]
    own = CliRunner().invoke(app, ["layers", "digits_cnn", "--weights", weights], env={"COLUMNS": "120"})
    assert own.exit_code == 0, own.output
    assert "random" not in own.output
    option = CliRunner().invoke(app, ["layers", "--network", "digits_cnn"], env={"COLUMNS": "120"})
    assert listed(own.output) == listed(option.output)


@pytest.mark.parametrize("name", ["resnet", "squeezenet1_1 ", "SqueezeNet1_1", "12", "W.pth"])
def test_layers_of_an_unknown_name_say_which_there_are(name: str) -> None:
    said(CliRunner().invoke(app, ["layers", name]), repr(name), "squeezenet1_1", "digits_cnn", "package.module:function")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["resnet20", "--network", "resnet18"], ["resnet20", "--network resnet18", "once"]),
        (["resnet20", "--run", "runs/x"], ["--run runs/x", "leave out resnet20"]),
        (["--data", "digits", "--run", "runs/x"], ["--run runs/x", "leave out --data"]),
        ([""], ["--network", "empty"]),
        (["no_such_package_r2f:build"], ["no_such_package_r2f:build", "--image-size"]),
    ],
)
def test_layers_that_are_asked_for_wrongly(arguments: list[str], words: list[str]) -> None:
    said(CliRunner().invoke(app, ["layers", *arguments]), *words)


def test_a_doctor_says_what_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mosquitto"
    program.write_bytes(b"#!/bin/sh\nprintf 'mosquitto \\377 2.0'\n")
    program.chmod(0o755)
    monkeypatch.setattr(doctor, "find_mosquitto", lambda: str(program))
    assert doctor._mosquitto()[:2] == ("broker", "mosquitto")
    program.write_bytes(b"\x00 no program")
    _, state, why = doctor._mosquitto()
    assert state == "no"
    assert str(program) in why
    monkeypatch.setenv("R2F_SHM_DIR", str(program))
    assert doctor._shared_memory()[1] == "no"
    monkeypatch.setenv("R2F_SHM_DIR", str(tmp_path))
    assert doctor._shared_memory()[1] in ("yes", "small")


def test_brackets_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "rows", lambda: [("ONNX Runtime", "no", "pip install 'r2f[onnx]' for it")])
    assert "r2f[onnx]" in CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "120"}).output
    text = " ".join(CliRunner().invoke(app, ["retrain", "--help"], env={"COLUMNS": "200"}).output.split())
    assert "[default: digits_cnn]" in text
    for name in settings_file.OPTIONS:
        assert f"--{name}" in text
    assert "direct, golden, chained" in text
    assert "[default: 0.0001]" in text.split("--ber ")[1].split("--ber-input")[0]
    assert "[default:" not in text.split("--ber-input ")[1].split("--ber-accumulator")[0], "it is --ber's"


@pytest.mark.parametrize(
    ("interrupts", "number"), [(signal.default_int_handler, signal.SIGINT), (signal.SIG_IGN, signal.SIGTERM)]
)
def test_a_run_that_is_stopped_says_how_to_go_on(tmp_path: Path, weights: str, interrupts: Any, number: int) -> None:
    """By Ctrl-C in the foreground, and in the background of a script, where SIGINT is ignored, by SIGTERM."""
    options = "--out runs --iterations 5000 --embedded --eval-seeds 1 --eval-samples 8"
    started = subprocess.Popen(
        [sys.executable, "-m", "r2f", "retrain", "--weights", weights, *options.split()], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts),
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stderr is not None
    with started.stdout, started.stderr:
        assert any(line.startswith("evaluate before") for line in started.stdout)
        started.send_signal(number)
        assert started.wait(120) == 130
        (folder,) = (tmp_path / "runs").iterdir()
        assert started.stderr.read() == f"stopped; go on with: r2f retrain --resume {folder}\n"


def test_a_run_that_is_stopped_while_it_is_prepared_says_that_nothing_is_kept(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "r2f", "retrain", "--out", "runs"], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert started.stdout is not None
    assert started.stderr is not None
    with started.stdout, started.stderr:
        assert any("training" in line for line in started.stdout)
        started.send_signal(signal.SIGINT)
        try:
            assert started.wait(60) == 130
        finally:
            started.kill()
        assert started.stderr.read() == "stopped while the run was being prepared; nothing of it is kept\n"
    assert not (tmp_path / "runs").exists()


def test_a_diagnosis_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    """By SIGTERM: its folder of logs goes, as do its processes."""
    started = subprocess.Popen(
        [sys.executable, "-m", "r2f", "diagnose", "--embedded", "--ber", "1e-3", "--repeat", "99"], cwd=tmp_path, text=True,
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    end = time.monotonic() + 100
    while not list(tmp_path.glob("r2f-diagnose-*/agent.log")) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 130
    assert not list(tmp_path.glob("r2f-diagnose-*"))


@pytest.mark.parametrize("module", ["typer", "r2f.settings", "torch"])
def test_ctrl_c_during_an_import_is_quiet(tmp_path: Path, module: str) -> None:
    code = (
        "import sys, importlib.abc\n"
        "class Interrupting(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "sys.argv = ['r2f', 'layers']\n"
        "from r2f.__main__ import main\nmain()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_nobody_reads_on(tmp_path: Path) -> None:
    for number in range(400):
        folder = tmp_path / f"{number:04}"
        folder.mkdir()
        (folder / settings_file.FILE).write_text("lr = -1\n" * 20)
    command = f"{sys.executable} -m r2f runs {tmp_path} | head -n 1"
    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert len(ended.stdout.splitlines()) == 1


def test_version_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys; from r2f.__main__ import main\n"
        "sys.argv[1:] = ['retrain', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numba', 'matplotlib', 'sklearn', 'paho'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.split()[0]) == (0, "r2f")


def test_what_is_logged_is_not_among_what_was_asked_for() -> None:
    code = (
        "import sys, structlog; from r2f.__main__ import main\n"
        "sys.argv[1:] = ['--version']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "structlog.get_logger().info('unasked')\n"
        "structlog.get_logger().warning('broker lost', of='\\x1b[2Ja stranger')\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert len(ended.stdout.splitlines()) == 1
    assert ("broker lost" in ended.stderr, "unasked" in ended.stderr, "\x1b" in ended.stderr) == (True, False, False)


def test_who_only_watches_waits_for_no_torch() -> None:
    """What shows or stops a run imports nothing heavy, nor do the codec and the broker; agent and voter have kernels alone."""
    code = (
        "import sys, importlib\n"
        "light = 'services.monitor services.thingsboard services.codec broker r2f.folders r2f.stopping r2f.tap'\n"
        "heavy = {'torch', 'numba', 'matplotlib', 'sklearn', 'scipy'}\n"
        "for names, without in ((light, heavy), ('services.edge_agent services.voter', {'torch', 'matplotlib', 'sklearn'})):\n"
        "    for name in names.split():\n"
        "        importlib.import_module(name if name.startswith('r2f') else f'{name}.__main__')\n"
        "        assert not without & set(sys.modules), (name, without & set(sys.modules))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("command", [[], ["demo"], ["retrain"], ["layers"], ["runs"], ["tap"], ["doctor"]])
def test_help_names_what_there_is(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.output
