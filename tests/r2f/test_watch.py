"""A real run, watched: what the page says is what the report says, in a browser too; its folder; its logs; TensorBoard."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import msgspec
import pytest
from rich.console import Console

pytest.importorskip("starlette", reason="starlette is not installed (pip install 'r2f[monitor]')")

from accelsim.faults import Rates
from broker.launch import launch
from r2f import run, tensorboard, watch
from r2f.display import Display
from r2f.report import Report
from r2f.settings import Settings, parse
from services.monitor import watching, web
from services.monitor.core import folder as folders
from services.monitor.core.known import Run, Totals
from services.monitor.core.watched import Watched
from services.scheme import Scheme
from services.trainer.core import result

ITERATIONS = 6
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@dataclass
class Seen:
    """A run that was watched, and the page of it, which still stands."""

    folder: Path
    report: Report
    watched: Watched
    url: str
    during: list[dict[str, Any]]
    """What a browser saw while it went on; empty without one."""

    @property
    def run(self) -> Run:
        (device,) = self.watched.devices.values()
        (one,) = device.runs.values()
        return one


@pytest.fixture(scope="module")
def seen(prepare: Callable[[Settings, Path], None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Digits on a broker of its own, three executions a layer, one layer protected; all that is logged."""
    folder = tmp_path_factory.mktemp("runs") / "20260101-000000-digits"
    folder.mkdir()
    loop, watched = asyncio.new_event_loop(), Watched()
    ready, over, at = threading.Event(), asyncio.Event(), {}
    during: list[dict[str, Any]] = []

    async def stand() -> None:
        async with launch() as broker:
            options = web.Options(port=0, broker=broker.url())
            listening = web.listen(options)
            at["broker"], at["page"] = broker.url(), web.address(listening)
            tasks = [
                asyncio.create_task(watching.watch(broker.url(), watched)),
                asyncio.create_task(web.serve(watched, options, listening)),
            ]
            ready.set()
            await over.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(stand()))
    thread.start()
    level = os.environ.get("R2F_LOG_LEVEL")
    os.environ["R2F_LOG_LEVEL"] = "debug"
    try:
        assert ready.wait(30)
        settings = msgspec.structs.replace(
            parse({"recipe": "paper", "iterations": ITERATIONS, "batch": 16, "tensorboard": True, "broker": at["broker"]}),
            rates=Rates(2e-3, 2e-3, 0.0, 2e-3), scheme=Scheme(referee=False, protected=(2,)), launch=True,
            evaluation_samples=64, evaluation_seeds=2,
        )  # fmt: skip
        prepare(settings, folder)
        looking = threading.Thread(target=lambda: during.extend(look(at["page"])))
        if CHROMIUM is not None:
            looking.start()
        with Display(Console(quiet=True)) as live:
            found = run.go_on(folder, live, at["broker"])
        if CHROMIUM is not None:
            looking.join(60)
        assert isinstance(found, Report)
        yield Seen(folder, found, watched, at["page"], during)
    finally:
        os.environ.pop("R2F_LOG_LEVEL")
        if level is not None:
            os.environ["R2F_LOG_LEVEL"] = level
        loop.call_soon_threadsafe(over.set)
        thread.join(30)
        loop.close()


def agrees(run: Run, report: Report, point_down: list[float]) -> None:
    """Whether what was watched is what was reported; ``point_down``: bytes down of each iteration."""
    totals, up, down = run.totals, report.uplink_bytes, report.downlink_bytes
    assert (run.phase, run.done, totals.iterations) == ("done", ITERATIONS, report.iterations)
    assert (totals.up, totals.up_direct, totals.up_direct_layers) == (up.sent, up.direct, up.direct_layers)
    assert (totals.up_layers + totals.up_repairs, totals.up_repairs) == (up.sent_layers, up.sent_repairs)
    assert totals.down_direct == down.full
    # The row of an iteration behind which a checkpoint is written does not wait for the event that says what its model took.
    assert 0 <= totals.down - down.sent <= max(point_down)
    fidelity = (report.fidelity.elements, report.fidelity.mismatched, report.fidelity.repaired)
    assert (totals.elements, totals.mismatched, totals.repaired) == fidelity
    assert run.loss == pytest.approx(report.loss[-1])
    assert totals.wall_s / ITERATIONS == pytest.approx(report.iteration_s)
    for stage, times in report.stages_s.items():
        seconds = totals.host_s.get(stage, 0) / ITERATIONS
        if stage in ("compress", "downlink"):  # likewise
            assert seconds > times.host * 0.999
        else:
            assert seconds == pytest.approx(times.host), stage
        assert totals.device_s.get(stage, 0) / ITERATIONS == pytest.approx(times.device), stage
    scores = {(score.phase, score.faults): score.values for score in run.scores}
    assert scores["before", True] == pytest.approx(list(report.accuracy.faulty_before.values))
    assert scores["after", True] == pytest.approx(list(report.accuracy.faulty_after.values))
    assert scores["before", False] == pytest.approx(list(report.accuracy.int8.values))
    assert run.setting is not None
    assert (max(run.setting.rates.values()), run.setting.codec, run.setting.protected) == (report.ber, report.codec, [2])


def test_what_was_watched_is_what_was_reported(seen: Seen) -> None:
    agrees(seen.run, seen.report, [point.down for point in seen.watched.history("edge-0", seen.run.session)])
    assert [point.loss for point in seen.watched.history("edge-0", seen.run.session)] == pytest.approx(list(seen.report.loss))
    assert (seen.run.network, seen.run.complete) == ("digits_cnn", True)
    services = seen.watched.devices["edge-0"].services
    assert set(services) == {"agent", "voter", "codec-device", "codec-server", "trainer"}
    assert all(service.memory_bytes > 10e6 for service in services.values()), "every service says what it holds"


def test_layers_have_errors_and_votes(seen: Seen) -> None:
    layers = seen.run.layers
    assert len(layers) > 3
    assert sum(layer.elements for layer in layers.values()) == seen.report.fidelity.elements, "all were voted on"
    for layer in layers.values():
        assert (layer.executions, layer.compared) == (3, layer.elements)
        assert 0 < layer.errors < layer.elements
        assert layer.elements > layer.agreed > layer.elements / 4
    assert sum(layer.repaired for layer in layers.values()) == seen.report.fidelity.repaired > 0


def test_the_folder_shows_the_same(seen: Seen) -> None:
    watched = Watched()
    assert folders.load(watched, seen.folder) == ["edge-0"]
    (one,) = watched.devices["edge-0"].runs.values()
    agrees(one, seen.report, [0])
    assert one.layers == seen.run.layers
    assert one.model_sha256 == seen.report.model_sha256
    shown, told = (each.history("edge-0", one.session) for each in (watched, seen.watched))
    assert [point.up for point in shown] == [point.up for point in told]
    assert [(point.errors, point.agreed) for point in shown] == [(point.errors, point.agreed) for point in told]
    assert shown[:-2] == told[:-2], "to the bit, where no checkpoint was in haste"
    assert watched.totals["edge-0"] == Totals(), "counters are of what was watched"


def test_one_id_leads_from_the_command_to_the_model_through_all_logs(seen: Seen) -> None:
    """The lines of one iteration, found by its id alone."""
    trace = f"{seen.run.session}/3"
    lines = {
        path.stem: [found for line in path.read_text().splitlines() if (found := json.loads(line)).get("trace") == trace]
        for path in (seen.folder / "logs").glob("*.log")
    }
    topics = {
        name: {line["topic"].split("/", 3)[3] for line in found if line["event"] == "taken"} for name, found in lines.items()
    }
    assert {line["event"] for line in lines["trainer"]} >= {"forward sent", "model sent"}
    assert topics["agent"] >= {"down/forward", "edge/model"}
    assert {line["event"] for line in lines["agent"]} >= {"forward", "model loaded"}
    assert topics["voter"] == {"edge/replicas"}
    assert topics["codec-device"] >= {"edge/inputs", "edge/voted", "down/model"}
    assert topics["codec-server"] >= {"down/forward", "up/inputs", "up/layers", "server/model"}
    assert topics["trainer"] >= {"server/inputs", "server/activations"}
    versions = {
        line["version"] for found in lines.values() for line in found if line["event"] in ("model sent", "model loaded")
    }
    assert len(versions) == 1, "the model that came of it"
    assert {line["device"] for found in lines.values() for line in found} == {"edge-0"}


# -- TensorBoard --------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar in a folder's event files by tag and step, read by the format: length, its CRC, record, its CRC."""
    from tensorboardX.proto import event_pb2

    found: dict[str, dict[int, float]] = {}
    for path in folder.glob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_event_files_have_what_the_report_has(seen: Seen) -> None:
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (pip install 'r2f[tensorboard]')")
    found = scalars(seen.folder / tensorboard.FOLDER)
    assert list(found["train/loss"].values()) == pytest.approx(list(seen.report.loss))
    assert list(found["train/loss"]) == list(range(ITERATIONS))
    assert sum(found["link/up_bytes"].values()) == seen.report.uplink_bytes.sent
    assert sum(found["link/up_direct_bytes"].values()) == seen.report.uplink_bytes.direct
    assert fmean(found["time_host/backward_seconds"].values()) == pytest.approx(seen.report.stages_s["backward"].host)
    after = list(found["evaluation/after_faulty_percent_by_seed"].values())
    assert after == pytest.approx(list(seen.report.accuracy.faulty_after.values), rel=1e-5)
    (again,) = tensorboard.write(seen.folder)
    assert scalars(again) == found, "written again, it is not there twice"


async def test_event_files_grow_while_a_run_goes_on(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and evaluations are there as they come, each once, though a trainer that was killed writes some again."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (pip install 'r2f[tensorboard]')")
    monkeypatch.setattr(tensorboard, "LOOK_S", 0.01)
    monkeypatch.setattr(tensorboard, "SHARE", 0)
    folder, at = tmp_path / "run", tmp_path / "run" / tensorboard.FOLDER
    shutil.copytree(seen.folder, folder)
    rows = (folder / result.PROGRESS).read_bytes().splitlines(keepends=True)
    whole = (folder / result.FILE).read_bytes()
    (folder / result.PROGRESS).write_bytes(b"".join(rows[:2]) + rows[2][:20])
    (folder / result.FILE).unlink()
    noted: list[str] = []
    following = asyncio.create_task(tensorboard.follow(folder, noted.append))

    async def until(steps: list[int]) -> None:
        async with asyncio.timeout(20):
            while list(scalars(at).get("train/loss", {})) != steps:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await until([0, 1])
    assert not any(tag.startswith("evaluation") for tag in scalars(at)), "what the folder had before is gone"
    (folder / result.PROGRESS).write_bytes(b"".join(rows[:4]))
    await until([0, 1, 2, 3])
    (folder / result.PROGRESS).write_bytes(b"".join(rows[:2]))
    (folder / result.PROGRESS).write_bytes(b"".join(rows))
    (folder / result.FILE).write_bytes(whole)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert scalars(at) == scalars(seen.folder / tensorboard.FOLDER), "a last look was taken"
    assert noted == []
    (folder / result.PROGRESS).write_bytes(b"rubbish\n")
    await tensorboard.follow(folder, noted.append)
    assert len(noted) == 1
    assert "the run goes on: " in noted[0]


@pytest.mark.parametrize("given", [{}, {"DISPLAY": ":0"}, {"WAYLAND_DISPLAY": "w"}, {"BROWSER": "b"}])
def test_a_browser_is_opened_where_there_is_a_display(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(watch.sys, "platform", "linux")
    found: list[str] = []
    monkeypatch.setattr(watch.webbrowser, "open", lambda at: bool(found.append(at) or True))
    assert watch.show("http://a/") == bool(given)
    assert found == (["http://a/"] if given else [])


def test_what_is_missing_for_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"--tensorboard: tensorboardX is not installed; pip install 'r2f\[tensorboard\]'"):
        watch.check(Settings(tensorboard=True))
    with pytest.raises(ValueError, match=r"--watch: starlette, uvicorn, prometheus-client are not installed; .*r2f\[monitor\]"):
        watch.check(Settings(watch=True))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"job\.json is missing"):
        watch.view([tmp_path], None, "127.0.0.1", 0, browser=False)
    with pytest.raises(ValueError, match=r"job\.json is missing"):
        tensorboard.write(tmp_path)


# -- a browser ----------------------------------------------------------------------------------------------------------


def look(url: str) -> list[dict[str, Any]]:
    """What a browser shows of a run in its middle, several times until it is done, and what its console said."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found: list[dict[str, Any]] = []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(url)
        for _ in range(600):
            sentence = page.query_selector(".say")
            found.append({"say": sentence.inner_text() if sentence else page.inner_text("main"), "console": list(said)})
            if found[-1]["say"].startswith("Done"):
                break
            page.wait_for_timeout(100)
        browser.close()
    return found


@pytest.fixture
def browser(seen: Seen) -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def opened(browser: Any, url: str, **context: Any) -> tuple[Any, list[str]]:
    """A page, and what its console will have said."""
    page = browser.new_context(**context).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(url)
    page.wait_for_selector("h1")
    page.wait_for_selector(".u-over")
    return page, said


def number(text: str) -> float:
    found = re.search(r"[\d.]+", text)
    assert found is not None, text
    return float(found[0])


def test_a_browser_shows_what_the_report_says(seen: Seen, browser: Any) -> None:
    page, said = opened(browser, seen.url)
    tiles = dict(page.eval_on_selector_all(".tile", "all => all.map(one => [one.children[0].innerText, one.innerText])"))
    up, down, accuracy = seen.report.uplink_bytes, seen.run.totals, seen.report.accuracy
    value = {name: number(text.split("\n")[1]) for name, text in tiles.items()}
    assert value["Top-1 with faults"] == pytest.approx(accuracy.faulty_after.mean, abs=0.051)
    assert value["Bytes up the link"] == pytest.approx(100 * up.sent / up.direct, abs=0.051)
    assert value["Bytes down the link"] == pytest.approx(100 * down.down / down.down_direct, abs=0.051)
    assert value["Loss"] == pytest.approx(seen.report.loss[-1], rel=0.006)
    errors = sum(layer.errors for layer in seen.run.layers.values()) / seen.report.fidelity.elements
    assert value["Errors of the device"] == pytest.approx(100 * errors, rel=0.006)
    assert page.inner_text(".say").startswith(f"Done: {ITERATIONS} iterations of digits_cnn")
    text = page.inner_text("main")
    assert "input 2·10⁻³, weight 2·10⁻³, output 2·10⁻³" in text
    assert f"{accuracy.faulty_before.mean:.1f} %" in text
    for service in ("agent", "voter", "codec-device", "codec-server", "trainer"):
        assert service in text
    assert len(page.query_selector_all(".u-over")) == 5
    assert said == []


def test_a_browser_follows_the_run(seen: Seen, browser: Any) -> None:
    assert seen.during, "it looked"
    assert seen.during[-1]["console"] == []
    sentences = list(dict.fromkeys(one["say"] for one in seen.during))
    assert sentences[0].startswith("Nobody is on the bus yet") or "wait for a run" in sentences[0] or len(sentences) > 2
    assert any(sentence.startswith("Evaluating") for sentence in sentences), sentences
    assert any(sentence.startswith("Retraining digits_cnn: iteration") for sentence in sentences), sentences
    assert sentences[-1].startswith("Done")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1400, 900), (390, 844)], ids=["desk", "phone"])
def test_it_fits_and_can_be_read(seen: Seen, browser: Any, scheme: str, size: tuple[int, int], tmp_path: Path) -> None:
    page, said = opened(browser, seen.url, color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "nothing sticks out"
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    ink, paper = (_luminance(colour) for colour in colours)
    assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7, "WCAG AAA"
    assert (paper < 0.1) == (scheme == "dark")
    page.screenshot(path=os.environ.get("R2F_SHOTS", str(tmp_path)) + f"/{scheme}-{size[0]}.png", full_page=True)
    assert said == []


def test_the_keyboard_reaches_everything(seen: Seen, browser: Any) -> None:
    page, said = opened(browser, seen.url)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "brand"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "and is seen"
    assert said == []


def _luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
