"""What this machine offers to R2F: the rows of ``r2f doctor``."""

from __future__ import annotations

import os
import shutil
import subprocess

from accelsim import engine, zoo
from broker.launch import find_mosquitto
from services.bus import arena

Row = tuple[str, str, str]
"""(what, state, why)"""


def rows() -> list[Row]:
    """One row a thing that can differ between machines. Runs the engine's self-checks, which takes some seconds."""
    return [*_paths(), _mosquitto(), _shared_memory(), _onnx(), ("networks", "", ", ".join(zoo.NETWORKS))]


def _paths() -> list[Row]:
    found: list[Row] = []
    chosen = False
    for name, usable, why in engine.probe():
        state = "no"
        if usable:
            state = "can run" if chosen else "chosen"
            chosen = True
        found.append((f"engine path {name}", state, why))
    return found


def _mosquitto() -> Row:
    program = find_mosquitto()
    if program is None:
        return "broker", "embedded", "mosquitto is not on PATH; apt-get install mosquitto for the faster one"
    try:
        said = subprocess.run([program, "-h"], capture_output=True, text=True, errors="replace", check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "broker", "no", f"{program} does not run: {error}"
    told = said.stdout.splitlines()
    return "broker", "mosquitto", told[0] if told else program


def _shared_memory() -> Row:
    where = arena.folder()
    if where is None:
        return "shared memory", "off", "R2F_SHM_DIR is empty: tensors travel inline"
    if not os.path.isdir(where) or not os.access(where, os.W_OK):
        return "shared memory", "no", f"{where} is no folder that can be written to; set R2F_SHM_DIR"
    free = shutil.disk_usage(where).free / 2**20
    return "shared memory", "yes" if free > 512 else "small", f"{where}, {free:.0f} MiB free"


def _onnx() -> Row:
    try:
        import onnxruntime
    except ImportError:
        return "ONNX Runtime", "no", "pip install 'r2f[onnx]' for --accelerator onnxruntime"
    return "ONNX Runtime", "yes", f"version {onnxruntime.__version__}"
