"""The page's server without a browser: what it serves and to whom, what it streams, what it refuses."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'r2f[monitor]')")

from broker.child import environment, python
from broker.launch import launch
from services.bus import Bus
from services.bus.encoding import MessageError
from services.bus.messages import Ack, LayerVotes, Progress, SetMode, State, Stop, Stopping
from services.monitor import metrics, watching, web
from services.monitor.core.watched import Watched
from tests.services.monitor.talk import iteration, play, tell, votes

TOKEN = "a-token-of-an-operator"


@asynccontextmanager
async def served(watched: Watched, **options: Any) -> AsyncIterator[str]:
    """The page of what is watched; its address."""
    chosen = web.Options(port=0, **options)
    at = web.listen(chosen)
    serving = asyncio.create_task(web.serve(watched, chosen, at))
    try:
        yield web.address(at)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def ask(url: str, data: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request; a POST where there is data."""

    def work() -> tuple[int, dict[str, str], bytes]:
        body = None if data is None else data if isinstance(data, bytes) else json.dumps(data).encode()
        request = urllib.request.Request(url, body, {name.replace("_", "-"): value for name, value in headers.items()})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    return await asyncio.to_thread(work)


def some() -> Watched:
    watched = Watched()
    tell(watched, "state/agent", State(session="", service="agent", online=True, version=2))
    play(watched, range(4))
    tell(watched, "event/progress", Progress(session="s", phase="after", step=1, steps=1, value=91.5))
    return watched


async def test_every_file_of_the_page_with_strict_headers() -> None:
    async with served(some()) as url:
        for path in web.FILES:
            status, headers, body = await ask(url.rstrip("/") + path)
            assert (status, headers["x-content-type-options"], len(body) > 100) == (200, "nosniff", True), path
            assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert (await ask(url + "nothing"))[0] == 404
        assert (await ask(url + "uplot/../web.py"))[0] == 404
        assert (await ask(url, data=b"x"))[0] == 405
    page = (web.STATIC / "page.js").read_text(encoding="utf-8") + (web.STATIC / "charts.js").read_text(encoding="utf-8")
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "http://", "https://"):
        assert dangerous not in page
    assert (web.STATIC / "uplot" / "LICENSE").read_text(encoding="utf-8").startswith("The MIT License")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8100", 200), ("127.0.0.1:1", 200), ("[::1]:8100", 200), ("192.0.2.7", 200),
        ("evil.example", 421), ("evil.example:8100", 421), ("", 421), ("127.0.0.1.evil.example", 421), ("watch.example", 200),
    ],
)  # fmt: skip
async def test_a_strangers_name_is_refused(host: str, status: int) -> None:
    async with served(some(), names=("watch.example",)) as url:
        assert (await ask(url + "api/state", Host=host))[0] == status


async def test_state_and_history() -> None:
    async with served(some()) as url:
        status, _, body = await ask(url + "api/state")
        told = json.loads(body)
        assert (status, told["commands"], told["live"]) == (200, False, False)
        (device,) = told["devices"]
        assert (device["name"], device["runs"]["s"]["totals"]["up"]) == ("d", 400)
        assert device["runs"]["s"]["layers"]["0"]["errors"] == 24
        points = json.loads((await ask(url + "api/history?device=d&session=s"))[2])["points"]
        assert [point[0] for point in points] == [0, 1, 2, 3]
        assert json.loads((await ask(url + "api/history?device=x&session=%00"))[2])["points"] == []


class Events:
    """Server-sent events as a browser reads them."""

    def __init__(self, url: str) -> None:
        host = url.split("/")[2]
        self.connection = http.client.HTTPConnection(host, timeout=10)
        self.connection.request("GET", "/events")
        self.answer = self.connection.getresponse()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *error: object) -> None:
        self.answer.close()
        self.connection.close()

    def next(self) -> tuple[str, Any]:
        name, data = "", ""
        while line := self.answer.readline().decode().rstrip("\n"):
            field, _, value = line.partition(": ")
            name, data = (value, data) if field == "event" else (name, value)
        return name, json.loads(data)


async def test_what_changes_is_told_and_history_comes_first() -> None:
    watched = some()
    async with served(watched) as url:
        events = await asyncio.to_thread(Events, url)
        with events:
            name, told = await asyncio.to_thread(events.next)
            assert (name, told["devices"][0]["runs"]["s"]["done"]) == ("state", 4)
            play(watched, range(4, 6))
            name, devices = await asyncio.to_thread(events.next)
            assert (name, devices[0]["runs"]["s"]["done"]) == ("devices", 6)
            name, points = await asyncio.to_thread(events.next)
            assert name == "points"
            assert {(device, session) for device, session, _ in points} == {("d", "s")}
            assert {4, 5} <= {point[0] for *_, point in points}
            watched.lost = watched.version + 1  # it fell further behind than points are kept
            play(watched, range(6, 7))
            assert (await asyncio.to_thread(events.next))[0] == "state"


async def test_what_did_not_change_is_not_told_again() -> None:
    watched = some()
    tell(watched, "state/agent", State(session="", service="agent", online=True), device="other")
    async with served(watched) as url:
        events = await asyncio.to_thread(Events, url)
        with events:
            await asyncio.to_thread(events.next)
            play(watched, range(4, 5))
            _, devices = await asyncio.to_thread(events.next)
            _, points = await asyncio.to_thread(events.next)
    assert [device["name"] for device in devices] == ["d"]
    assert min(point[0] for *_, point in points) >= 2, "earlier ones were in the state"


async def test_only_so_many_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "LISTENERS", 1)
    async with served(some()) as url:
        first = await asyncio.to_thread(Events, url)
        with first:
            await asyncio.to_thread(first.next)
            assert (await ask(url + "events"))[0] == 503


async def test_a_server_that_ends_does_not_wait_for_who_listens() -> None:
    async with served(some()) as url:
        events = await asyncio.to_thread(Events, url)
        await asyncio.to_thread(events.next)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    with events:
        assert events.answer.readline() == b"", "the stream ended in order"


# -- commands -----------------------------------------------------------------------------------------------------------

MODE = "api/devices/d/mode"
OPERATOR = {"Authorization": f"Bearer {TOKEN}", "Content_Type": "application/json"}


@pytest.mark.parametrize(
    ("data", "headers", "token", "status", "said"),
    [
        ({"ber": 0}, OPERATOR, "", 403, "only shows"),
        ({"ber": 0}, OPERATOR | {"Authorization": "Bearer wrong"}, TOKEN, 401, "token"),
        ({"ber": 0}, OPERATOR | {"Authorization": f"Bearer {TOKEN[:-1]}"}, TOKEN, 401, "token"),
        ({"ber": 0}, OPERATOR | {"Authorization": f"Bearer {TOKEN}s"}, TOKEN, 401, "token"),
        ({"ber": 0}, {"Content_Type": "application/json"}, TOKEN, 401, "token"),
        ({"ber": 0}, OPERATOR | {"Content_Type": "text/plain"}, TOKEN, 415, "application/json"),
        ({"ber": 2}, OPERATOR, TOKEN, 422, r"$.ber"),
        ({"mode": "stop"}, OPERATOR, TOKEN, 422, r"$.mode"),
        ({"protected": [-1]}, OPERATOR, TOKEN, 422, r"$.protected"),
        ({"stop": True}, OPERATOR, TOKEN, 422, "unknown field"),
        (b"{", OPERATOR, TOKEN, 422, "truncated"),
        (b" " * 40_000, OPERATOR, TOKEN, 413, "bytes"),
    ],
)  # fmt: skip
async def test_commands_that_are_refused(data: Any, headers: dict[str, str], token: str, status: int, said: str) -> None:
    async with served(some(), token=token, broker="mqtt://127.0.0.1:1") as url:
        found, _, body = await ask(url + MODE, data, **headers)
        assert (found, said in json.loads(body)["error"]) == (status, True), body
        assert (await ask(url + "api/devices/nobody/mode", {"ber": 0}, **OPERATOR))[0] in (403, 404)


async def test_a_run_has_its_device() -> None:
    watched = some()
    tell(watched, "state/trainer", State(session="", service="trainer", online=True))
    async with served(watched, token=TOKEN, broker="mqtt://127.0.0.1:1") as url:
        status, _, body = await ask(url + MODE, {"ber": 0.1}, **OPERATOR)
        assert (status, "a run has this device" in json.loads(body)["error"]) == (409, True)


async def test_a_command_reaches_the_device() -> None:
    async with launch(embedded=True) as broker, Bus(broker.url(), "agent", "d") as agent:
        watched = Watched()
        watch = asyncio.create_task(watching.watch(broker.url(), watched))
        await agent.subscribe("down/mode")
        async with served(watched, token=TOKEN, broker=broker.url()) as url:
            async with asyncio.timeout(20):
                while "d" not in watched.devices:  # noqa: ASYNC110  (it knows of nobody who waits)
                    await asyncio.sleep(0.05)
            status, _, body = await ask(url + MODE, {"ber": 0.5}, **OPERATOR)
            assert (status, "never told a mode" in json.loads(body)["error"]) == (409, True)
            async with Bus(broker.url(), "trainer", "d") as trainer:
                await trainer.publish("down/mode", SetMode(session="s", seq=4, mode="training", seed=9), retain=True)
                await trainer.flush()
            _, before = await agent.receive(10)
            assert isinstance(before, SetMode)

            async def answer() -> SetMode:
                _, told = await agent.receive(15)
                assert isinstance(told, SetMode)
                await agent.publish("up/ack", Ack(session="s", of="mode", seq=told.seq, ok=True))
                return told

            answering = asyncio.create_task(answer())
            asked = {"ber": 0.25, "protected": [3, 1], "mode": "inference"}
            status, _, body = await ask(url + MODE, asked, **OPERATOR)
            assert (status, json.loads(body)) == (200, {"seq": 5})
            told = await answering
            assert (told.session, told.seq, told.mode, told.seed) == ("s", 5, "inference", 9)
            assert (told.rates.input, told.rates.weight, told.rates.output, told.rates.accumulator) == (0.25, 0.25, 0.25, 0)
            assert told.scheme.protected == (1, 3)
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


STOP = "api/devices/d/stop"


def busy() -> Watched:
    watched = some()
    tell(watched, "state/trainer", State(session="", service="trainer", online=True))
    return watched


@pytest.mark.parametrize(
    ("data", "headers", "token", "status", "said"),
    [
        ({"session": "s"}, OPERATOR, "", 403, "only shows"),
        ({"session": "s"}, OPERATOR | {"Authorization": "Bearer wrong"}, TOKEN, 401, "token"),
        ({"session": "s"}, OPERATOR | {"Content_Type": "text/plain"}, TOKEN, 415, "application/json"),
        ({"session": "another"}, OPERATOR, TOKEN, 404, "no such run"),
        ({"session": ""}, OPERATOR, TOKEN, 422, "$.session"),
        ({"session": "s" * 65}, OPERATOR, TOKEN, 422, "$.session"),
        ({}, OPERATOR, TOKEN, 422, "session"),
        ({"session": "s", "by": "me"}, OPERATOR, TOKEN, 422, "unknown field"),
        ({"session": "s"}, OPERATOR, TOKEN, 502, "127.0.0.1:1"),
    ],
)  # fmt: skip
async def test_a_stop_that_is_refused(data: Any, headers: dict[str, str], token: str, status: int, said: str) -> None:
    async with served(busy(), token=token, broker="mqtt://127.0.0.1:1") as url:
        found, _, body = await ask(url + STOP, data, **headers)
        assert (found, said in json.loads(body)["error"]) == (status, True), body
        for other in ("d/start", "d/stop/now", "d/"):
            assert (await ask(f"{url}api/devices/{other}", data, **OPERATOR))[0] in (403, 404)
        assert (await ask(url + STOP))[0] == 405, "nothing is stopped by a look"


async def test_there_is_nothing_to_stop() -> None:
    async with served(some(), token=TOKEN, broker="mqtt://127.0.0.1:1") as url:
        status, _, body = await ask(url + STOP, {"session": "s"}, **OPERATOR)
        assert (status, "nothing to stop" in json.loads(body)["error"]) == (409, True)


async def test_a_run_is_stopped() -> None:
    """The trainer hears who asks, and the page tells of that, and of the end."""
    async with launch(embedded=True) as broker, Bus(broker.url(), "trainer", "d") as trainer:
        watched = Watched()
        watch = asyncio.create_task(watching.watch(broker.url(), watched))
        await trainer.subscribe("server/stop")

        async def until(is_so: Callable[[], bool]) -> None:
            async with asyncio.timeout(20):
                while not is_so():
                    await asyncio.sleep(0.02)
                    await trainer.publish("event/progress", Progress(session="s", phase="train", step=3, steps=9, value=1.0))

        await until(
            lambda: "d" in watched.devices and "trainer" in watched.devices["d"].services and bool(watched.devices["d"].runs)
        )
        run = watched.devices["d"].runs["s"]
        async with served(watched, token=TOKEN, broker=broker.url()) as url:
            asking = asyncio.create_task(ask(url + STOP, {"session": "s"}, **OPERATOR))
            _, asked = await trainer.receive(15)
            assert isinstance(asked, Stop)
            assert (asked.session, asked.by) == ("s", "the page's operator")
            await trainer.publish("event/stopping", Stopping(session="s", by=asked.by))
            status, _, body = await asking
            assert (status, json.loads(body)) == (200, {"stopping": "s"})
        await until(lambda: run.stopping == "the page's operator")
        await trainer.publish("event/stopping", Stopping(session="s", by=asked.by, ended=True))
        async with asyncio.timeout(20):
            while not run.stopped:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (run.stopping, run.stopped) == ("", "stopped by the page's operator after 3 iterations")
        await until(lambda: not run.stopped)  # it was resumed
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


def test_who_stops_has_a_name() -> None:
    watched = some()
    tell(watched, "event/stopping", Stopping(session="s", by=""))
    assert (watched.refused, watched.devices["d"].runs["s"].stopping) == (1, "")
    for by in ("a\nb", "\x1b[2J"):
        with pytest.raises(MessageError, match="by"):
            tell(watched, "event/stopping", Stopping(session="s", by=by))


@pytest.mark.parametrize("text", ["", "short", "x" * 40 + "\nsecond line", "ümlaut-in-a-long-token"])
def test_tokens_that_are_no_secret(text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"--token-file .*token: a token is one line"):
        web.read_token(path)
    with pytest.raises(ValueError, match="No such file"):
        web.read_token(tmp_path / "none")


# -- as a program -------------------------------------------------------------------------------------------------------


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = python("services.monitor", *arguments)
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)


def test_mistakes_of_the_command_line_end_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (("--port", port), "nothing can listen there"),
            (("--run", str(tmp_path)), "job.json is missing"),
            (("--token-file", str(tmp_path / "none")), "No such file"),
        ):
            ended = program(*arguments)
            assert (ended.returncode, len(ended.stderr.splitlines())) == (1, 1), ended.stderr
            assert said in ended.stderr


def test_what_is_not_installed_is_named() -> None:
    code = "import runpy, sys; sys.modules['starlette'] = None; runpy.run_module('services.monitor', run_name='__main__')"
    command = [sys.executable, "-P", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (1, "monitor: starlette is not installed; pip install 'r2f[monitor]'\n")


# -- metrics ------------------------------------------------------------------------------------------------------------


def test_metrics_say_what_is_watched() -> None:
    text = metrics.text(some()).decode()
    lines = set(text.splitlines())
    assert 'r2f_service_online{device="d",service="agent"} 1.0' in lines
    assert 'r2f_model_version{device="d"} 2.0' in lines
    assert 'r2f_iterations_total{device="d"} 4.0' in lines
    assert 'r2f_link_bytes_total{device="d",direction="up",of="layers"} 400.0' in lines
    assert 'r2f_link_direct_bytes_total{device="d",direction="up"} 4256.0' in lines
    assert 'r2f_stage_seconds_total{clock="host",device="d",stage="compress"} 4.0' in lines
    assert 'r2f_accuracy_ratio{device="d",faults="true",metric="top1",phase="after"} 0.915' in lines
    assert 'r2f_loss{device="d"} 3.0' in lines


def test_executions_agree_where_a_layer_ran_more_than_once() -> None:
    watched = Watched()
    layers = (LayerVotes(0, 300, 3, 240, 6), LayerVotes(2, 300, 1, 0, 3))
    for number in range(3):
        tell(watched, "event/votes", votes(number, layers=layers))
        tell(watched, "event/iteration", iteration(number))
    lines = metrics.text(watched).decode().splitlines()
    assert 'r2f_vote_agreement_ratio{device="d"} 0.8' in lines
    assert 'r2f_vote_error_ratio{device="d"} 0.015' in lines


@pytest.mark.parametrize(
    ("metric", "value", "line"),
    [
        ("top5", 98.5, 'r2f_accuracy_ratio{device="d",faults="false",metric="top5",phase="before"} 0.985'),
        ("miou", 62.5, 'r2f_accuracy_ratio{device="d",faults="false",metric="miou",phase="before"} 0.625'),
        ("ssim", 0.75, 'r2f_accuracy_ratio{device="d",faults="false",metric="ssim",phase="before"} 0.75'),
        ("psnr", 31.5, 'r2f_psnr_decibels{device="d",faults="false",phase="before"} 31.5'),
    ],
)
def test_other_metrics_than_top_1(metric: Any, value: float, line: str) -> None:
    """A share has a label; what has another unit has a name of its own."""
    watched = Watched()
    said = Progress(session="s", phase="before", step=1, steps=1, value=value, metric=metric, faults=False)
    tell(watched, "event/progress", said)
    found = [one for one in metrics.text(watched).decode().splitlines() if one.startswith(("r2f_accuracy", "r2f_psnr"))]
    assert found == [line]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    return found


def test_promtool_has_nothing_to_say_against_them(promtool: str) -> None:
    ended = subprocess.run([promtool, "check", "metrics"], input=metrics.text(some()), capture_output=True, check=False)
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, b"")


@pytest.fixture
def prometheus() -> str:
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("prometheus is not installed (apt-get install prometheus)")
    return found


async def test_prometheus_scrapes_them(prometheus: str, tmp_path: Path) -> None:
    async with served(some()) as url:
        config = tmp_path / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: r2f\n    static_configs:\n"
            f"      - targets: ['{url.split('/')[2]}']\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            at = f"127.0.0.1:{free.getsockname()[1]}"
        options = (f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={at}")
        quiet = asyncio.subprocess.DEVNULL
        process = await asyncio.create_subprocess_exec(prometheus, *options, stdout=quiet, stderr=quiet)
        try:
            found: list[Any] = []
            async with asyncio.timeout(60):
                while not found:
                    await asyncio.sleep(0.5)
                    try:
                        _, _, body = await ask(f"http://{at}/api/v1/query?query=r2f_link_bytes_total")
                    except urllib.error.URLError:
                        continue  # it is not up yet
                    found = json.loads(body).get("data", {}).get("result", [])
            values = {(one["metric"]["direction"], one["metric"]["of"]): float(one["value"][1]) for one in found}
            assert values[("up", "layers")] == 400
            assert values[("down", "model")] == 120
        finally:
            process.terminate()
            await process.wait()
