"""What a stranger writes is shown, and never obeyed, by a terminal."""

from __future__ import annotations

import io
import sys

import msgpack
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from r2f import errors, tap
from r2f.display import Display
from services import logs
from services.bus import MessageError, encoding, service
from services.bus.messages import Ack, Dropped
from services.shown import plain
from services.trainer.answers import Asked
from services.trainer.patience import Patience
from services.trainer.remote import DeviceError, Remote

EVIL = "no\x1b[2J\x1b]0;mine\x07 room\r\nok\x9b31m\u202e"
ACK = "r2f/v1/d/up/ack"


def harmless(text: str) -> None:
    assert not set(text) & set("\x1b\x07\r\x9b\u202e")


@given(st.text())
def test_nothing_but_what_can_be_printed_is_left(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)


def test_letters_of_any_script_stay() -> None:
    assert plain("Gerät ändern 設備") == "Gerät ändern 設備"
    assert plain("a\x1bb\nc") == "a\\x1bb\\nc"
    assert plain("a\nb", keep="\n") == "a\nb"


def test_what_a_device_refuses_with() -> None:
    remote = Remote(None, "s", "d", Patience())  # type: ignore[arg-type]
    remote._asked["mode"] = Asked(1, 0, Ack(session="s", of="mode", seq=1, ok=False, error=EVIL))
    with pytest.raises(DeviceError, match="room") as error:
        remote.acknowledged("mode", 1)
    harmless(str(error.value))


def test_what_a_command_ends_with() -> None:
    harmless(errors.told(ValueError(EVIL)))


def test_what_a_service_ends_with(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        service.fail("agent", ValueError(EVIL))
    said = capsys.readouterr().err
    harmless(said)
    assert said.count("\n") == 1


def test_what_is_tapped(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(soft_wrap=True, force_terminal=False)
    console.print(tap._line(ACK, Ack(session="s", of="mode", seq=1, ok=False, error=EVIL)))
    console.print(tap._line("r2f/v1/d/event/dropped", Dropped(session="", service="a", reason=EVIL, dropped=1)))
    harmless(capsys.readouterr().out)


def test_what_the_display_notes() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=100)) as display:
        display.note(EVIL)
    harmless(out.getvalue())


def test_what_is_logged_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = structlog.get_config()
    logs.configure(as_json=False)
    try:
        log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
        log.warning("dropped", error=EVIL.replace(" ", ""), reason=EVIL)
        try:
            raise ValueError(EVIL)
        except ValueError:
            log.error("failed", exc_info=True)
    finally:
        structlog.configure(**before)
    said = capsys.readouterr().err
    assert "in test_what_is_logged_for_people" in said
    for line in said.replace("\x1b[0m", "").splitlines():
        assert "\x1b[2J" not in line
        assert "\x07" not in line


@pytest.mark.parametrize("field", ["session", "origin"])
def test_names_are_refused(field: str) -> None:
    good = {"type": "ack", "session": "s", "of": "mode", "seq": 1, "ok": True}
    encoding.decode(ACK, msgpack.packb(good | {field: "Gerät 7"}))
    with pytest.raises(MessageError, match=field):
        encoding.decode(ACK, msgpack.packb(good | {field: "a\x1b[2J"}))
