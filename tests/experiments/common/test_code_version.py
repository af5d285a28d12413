"""The digest changes with what the code does, wherever below it that is, and with nothing else."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from experiments.common import code_version


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of three modules: ``top_one`` imports ``far_one`` in a function, nobody imports ``other_one``."""
    (tmp_path / "top_one.py").write_text("def measure():\n    from far_one import N\n    return N\n")
    (tmp_path / "far_one.py").write_text("N = 1\n")
    (tmp_path / "other_one.py").write_text("N = 1\n")
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def version(module: ModuleType) -> str:
    code_version._version.cache_clear()
    return code_version.code_version(module.measure)


def test_it_changes_with_what_is_imported_however_far_down(modules: Path) -> None:
    top = importlib.import_module("top_one")
    before = version(top)
    (modules / "other_one.py").write_text("N = 2\n")
    (modules / "far_one.py").write_text('"""New words."""\n# and more\n\nN = 1\n')
    assert version(top) == before
    (modules / "far_one.py").write_text("N = 2\n")
    changed = version(top)
    assert changed != before
    (modules / "top_one.py").write_text("def measure():\n    from far_one import N\n    return -N\n")
    assert version(top) not in (before, changed)


def test_a_function_without_a_file_has_none() -> None:
    space: dict[str, object] = {}
    exec("def measure(): pass", space)
    with pytest.raises(ValueError, match="put it into a module"):
        code_version.code_version(space["measure"])  # type: ignore[arg-type]
