"""The engine: runs the int8 network exactly, with and without faults."""

from accelsim.engine.engine import PATHS, Engine, check, choose, keep_idle, probe, shared, warm

__all__ = ["PATHS", "Engine", "check", "choose", "keep_idle", "probe", "shared", "warm"]
