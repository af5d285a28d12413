"""A user's code by its name: found, or refused in one line that says why."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from accelsim.named import users


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return tmp_path


def test_a_function_of_the_current_folder_even_in_a_package(folder: Path) -> None:
    (folder / "deep_r2f").mkdir()
    (folder / "deep_r2f" / "down.py").write_text("def function():\n    return 5\n")
    assert users("thing", "deep_r2f.down:function")() == 5


def test_the_users_folder_stands_behind_our_packages_afterwards(folder: Path) -> None:
    (folder / "own_r2f.py").write_text("def function():\n    import other_r2f\n    return other_r2f.value\n")
    (folder / "other_r2f.py").write_text("value = 7\n")
    (folder / "timeit.py").write_text("raise AssertionError('the wrong one')\n")
    sys.modules.pop("timeit", None)
    function = users("thing", "own_r2f:function")
    import timeit

    assert Path(timeit.__file__).parent != folder
    assert function() == 7
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    ("text", "spec", "said"),
    [
        (None, "absent_r2f:f", "No module named 'absent_r2f', here or installed; expected package.module:function"),
        (None, "absent_r2f.deep:f", "No module named 'absent_r2f', here or installed; expected package.module:function"),
        ("", "own_r2f.deep:f", "No module named 'own_r2f.deep'.*expected package.module:function"),
        ("import absent_r2f", "own_r2f:f", "its import fails: ModuleNotFoundError: No module named 'absent_r2f'"),
        ("def f(:", "own_r2f:f", r"its import fails: SyntaxError: .*own_r2f.py, line 1"),
        ("1 / 0", "own_r2f:f", "its import fails: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "own_r2f:f", "its import fails: SystemExit: 3"),
        ("f = 3", "own_r2f:f", r"f is not a function in .*own_r2f.py; expected package.module:function"),
        ("", "own_r2f:f", r"no 'f' in .*own_r2f.py; expected package.module:function"),
        ("", "own_r2f:", r"no '' in .*own_r2f.py; expected package.module:function"),
        ("", "own_r2f.py:f", r"No module named 'own_r2f.py'.*expected package.module:function"),
    ],
)
def test_what_is_not_there_or_fails_is_one_line(folder: Path, text: str | None, spec: str, said: str) -> None:
    if text is not None:
        (folder / "own_r2f.py").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        users("thing", spec)
    assert str(caught.value).startswith(f"thing {spec!r}: ")
    assert "\n" not in str(caught.value)
