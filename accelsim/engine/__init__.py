"""The engine: runs the int8 network exactly, with and without faults."""

from accelsim.engine.engine import Engine, keep_idle, shared
from accelsim.engine.paths import PATHS, check, choose, probe
from accelsim.engine.warming import warm

__all__ = ["PATHS", "Engine", "check", "choose", "keep_idle", "probe", "shared", "warm"]
