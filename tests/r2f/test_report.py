"""The report against numbers counted by hand, and the pictures against being empty."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from accelsim.faults import Rates
from broker.link import STAMP, Profile, transfer_s
from r2f import plots, report, tables
from r2f.memory import Shares
from r2f.prepare import Prepared
from services.metric import Metric
from services.trainer.core import job, ledger, result
from services.trainer.core.evaluation import Evaluation
from services.trainer.core.selection import Candidate, Selection

LINK = Profile("hspa", 5.76e6, 21.1e6, 0.05)

UP = (("inputs", 60), ("layers", 70), ("layers", 30), ("repair", 35))


def finished(folder: Path, iterations: int = 4) -> Path:
    """A run's folder as the trainer leaves it."""
    rates = Rates(input=1e-3, weight=2e-3, output=1e-3)
    job.write(folder, job.Job(session="s", device="d", rates=rates, iterations=iterations, batch=2))
    (folder / job.NETWORK).write_bytes(b"n" * 500)
    rows = [
        ledger.Row(
            iteration=i, loss=2.0 / (i + 1), accuracy=50, grad_norm=1.0, wall_s=0.2, attempts=1, elements=1000,
            mismatched=3, mismatched_layers=1, input_bytes=128, host_s={"forward": 0.01, "uplink": 0.001},
            device_s={"forward": 0.004}, uplink_inputs=60, uplink_layers=100, uplink_repairs=35, downlink=40,
            segments=[ledger.Segment(0.002, 0.003, 70, 0.004), ledger.Segment(0.002, 0.001, 30, 0.005)],
        )
        for i in range(iterations)
    ]  # fmt: skip
    ledger.append(folder / result.PROGRESS, rows)
    found = result.Result(
        iterations=iterations,
        clean_plain=Evaluation(samples=449, top1=[96.5], top5=[98.5]),
        faulty_plain=Evaluation(samples=449, top1=[70.0, 73.0], top5=[85.0, 87.0]),
        clean_before=Evaluation(samples=449, top1=[97.0], top5=[99.0]),
        clean_after=Evaluation(samples=449, top1=[96.0], top5=[99.5]),
        faulty_before=Evaluation(samples=449, top1=[80.0, 84.0], top5=[90.0, 91.0]),
        faulty_after=Evaluation(samples=449, top1=[88.0, 92.0], top5=[95.0, 97.0]),
        model_sha256="ab" * 32,
    )
    result.write(folder, found)
    return folder


PREPARED = Prepared(
    float_accuracy=Evaluation(samples=449, top1=[98.5], top5=[99.9]),
    classes=10,
    mean=(0.5,),
    std=(0.25,),
    memory=Shares(agent=1, voter=1, codec=1, keep=1),
)


def test_adds_up(tmp_path: Path) -> None:
    found = report.collect(finished(tmp_path), network="digits_cnn", link=LINK, prepared=PREPARED)
    report.write(tmp_path, found)
    assert report.read(tmp_path) == found
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["accuracy"] == {
        "float": {"mean": 98.5, "std": 0.0, "values": [98.5]},
        "int8": {"mean": 97.0, "std": 0.0, "values": [97.0]},
        "int8_after": {"mean": 96.0, "std": 0.0, "values": [96.0]},
        "faulty_before": {"mean": 82.0, "std": 2.0, "values": [80.0, 84.0]},
        "faulty_after": {"mean": 90.0, "std": 2.0, "values": [88.0, 92.0]},
        "plain": {"mean": 96.5, "std": 0.0, "values": [96.5]},
        "faulty_plain": {"mean": 71.5, "std": 1.5, "values": [70.0, 73.0]},
        "sound": None,
    }
    assert written["recovered_in_all"] == pytest.approx((90 - 71.5) / (96.5 - 71.5))
    assert written["accuracy_top5"] == {
        "float": {"mean": 99.9, "std": 0.0, "values": [99.9]},
        "int8": {"mean": 99.0, "std": 0.0, "values": [99.0]},
        "int8_after": {"mean": 99.5, "std": 0.0, "values": [99.5]},
        "faulty_before": {"mean": 90.5, "std": 0.5, "values": [90.0, 91.0]},
        "faulty_after": {"mean": 96.0, "std": 1.0, "values": [95.0, 97.0]},
        "plain": {"mean": 98.5, "std": 0.0, "values": [98.5]},
        "faulty_plain": {"mean": 86.0, "std": 1.0, "values": [85.0, 87.0]},
        "sound": None,
    }
    assert (written["verdict"], written["recovered"]) == ("better", pytest.approx(8 / 15))
    assert written["verdict_fault_free"] == "within error"
    assert (written["mean"], written["std"]) == ([0.5], [0.25])
    assert (written["samples"], written["samples_float"]) == (449, 449)
    assert written["uplink_bytes"] == {
        "direct": 4512, "sent": 780, "direct_layers": 4000, "sent_layers": 540, "sent_repairs": 140,
    }  # fmt: skip
    assert written["downlink_bytes"] == {"full": 2000, "sent": 160}
    assert written["fidelity"] == {"elements": 4000, "mismatched": 12, "mismatched_layers": 4, "repaired": 0}
    assert written["stages_s"]["forward"] == {"host": 0.01, "device": 0.004, "link": 0.0}
    up = [transfer_s(f"r2f/v1/edge-0/up/{name}", size - STAMP, LINK, "up") for name, size in UP]
    down = transfer_s("r2f/v1/edge-0/down/model", 40 - STAMP, LINK, "down")
    assert written["stages_s"]["uplink"]["link"] == pytest.approx(sum(up))
    assert written["stages_s"]["downlink"]["link"] == pytest.approx(down)
    assert written["sum_s"] == pytest.approx(0.004 + sum(up) + down)
    # The link is what everything waits for: only the last segment's rebuilding and the model come after it.
    assert written["overlapped_s"] == pytest.approx(sum(up) + 0.005 + down)
    assert (written["network"], written["ber"], written["codec"], written["link"]) == (
        "digits_cnn", 2e-3, "chained", "hspa",
    )  # fmt: skip
    assert (written["iterations"], written["model_sha256"]) == (4, "ab" * 32)
    assert written["folder"] == str(tmp_path)


def test_no_link_costs_no_time(tmp_path: Path) -> None:
    found = report.collect(finished(tmp_path), network="n", link=None, prepared=PREPARED)
    assert all(time.link == 0 for time in found.stages_s.values())
    json.loads(report.write(tmp_path, found).read_text())


@pytest.mark.parametrize(
    ("metric", "tried", "deployed", "said"),
    [
        ("top1", [("iteration 62", 11.6, 2.0)], "iteration 62",
         "the network of iteration 62 (+11.6 ± 2.0 points of agreement with labels, on 150 training images kept for that)"),
        ("psnr", [("corrected", 0.4, 0.05), ("iteration 8", 0.63, 0.1)], "iteration 8",
         "the network of iteration 8 (root mean squared error -0.63 ± 0.10 % of the range, against labels, on 150 "
         "training images kept for that)"),
        ("top1", [("corrected", 1.0, 2.0)], "before",
         "the network from before: the best one tried (biases corrected, nothing retrained) is not better beyond its error "
         "(+1.0 ± 2.0 points of agreement with labels, on 150 training images kept for that)"),
        ("ssim", [("corrected", 1.0, 0.5)], "corrected",
         "the network with biases corrected, nothing retrained (root mean squared error -1.00 ± 0.50 % of the range, against "
         "labels, on 150 training images kept for that)"),
        ("top1", [], "before", "the network from before, for nothing was tried"),
    ],
)  # fmt: skip
def test_what_is_deployed_is_said_with_what_was_measured(
    metric: Metric, tried: list[tuple[str, float, float]], deployed: str, said: str, tmp_path: Path
) -> None:
    before = [Candidate(name="before", agreement=80.0)]
    others = [Candidate(name=name, agreement=80.0 + gain, gain=gain, error=error) for name, gain, error in tried]
    chosen = Selection(samples=150, against="labels", candidates=before + others, deployed=deployed)
    found = report.collect(finished(tmp_path), network="digits_cnn", link=LINK, prepared=PREPARED)
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(tables.table(msgspec.structs.replace(found, metric=metric, selection=chosen)))
    assert f"deployed: {said}\n" in re.sub(" +\n", "\n", console.export_text())


def test_the_table_names_what_the_user_asked_for(tmp_path: Path) -> None:
    found = report.collect(finished(tmp_path), network="digits_cnn", link=LINK, prepared=PREPARED)
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables.table(found))
    text = console.export_text()
    console.file.close()
    rows = {line.strip().split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["float"][1:] == ["98.5", "%", "99.9", "%"]
    assert rows["int8, no faults, before"][4:] == ["97.0", "%", "99.0", "%"]
    assert rows["int8, no faults, after"][4:] == ["96.0", "%", "99.5", "%"]
    assert rows["int8, faulty, before (2 fault seeds)"][6:] == ["82.0", "%", "2.0", "90.5", "%", "0.5"]
    assert rows["int8, faulty, after (2 fault seeds)"][6:] == ["90.0", "%", "2.0", "96.0", "%", "1.0"]
    assert "On 449 held-out images" in text
    assert "faulty: +8.0 points, better; 53 % of what faults cost is back" in text
    assert "no faults: -1.0 points, within error" in text
    assert "normalised by mean/std 0.5/0.25" in text
    assert rows["uplink: all outputs and images"][5:] == ["4.51", "kB", "780", "B", "17.3", "%"]
    assert rows["of that, intermediate outputs"][4:] == ["4", "kB", "540", "B", "13.5", "%"]
    assert rows["downlink: models"][2:] == ["2", "kB", "160", "B", "8.0", "%"]
    assert rows["elements in layers rebuilt wrong"][5:] == ["4", "k", "12", "0.3000", "%"]
    assert rows["forward"][:3] == ["forward", "0.0100", "0.0040"]
    assert f"{found.sum_s:.4f}" in rows["an iteration, a stage at a time"]
    assert f"{found.overlapped_s:.4f}" in rows["an iteration, layers streaming"]
    assert "0.2000" in rows["wall clock on this host"]
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


@pytest.mark.parametrize(
    ("before", "after", "samples", "said"),
    [
        ([80, 84, 82], [88, 92, 90], 400, "better"),
        ([88, 92, 90], [80, 84, 82], 400, "worse"),
        ([80, 84, 82], [81, 83, 82], 400, "within error"),
        ([80, 80, 80], [80, 80, 80], 400, "within error"),
        ([80.0], [80.5], 400, "within error"),
        ([60.0], [90.0], 400, "better"),
        # Two seeds that happen to agree on a point are none the surer of it, nor is an answer that is always right.
        ([80.0, 84.0], [81.0, 85.0], 100, "within error"),
        ([99.0], [100.0], 100, "within error"),
        # The seeds disagree, however many images there are.
        ([80.0, 80.0], [79.0, 85.0], 10**6, "within error"),
        # Fault-free accuracy that fell: 61.2 to 56.6 is harm on a thousand images and may be chance on two hundred.
        ([61.2], [56.6], 1000, "worse"),
        ([61.2], [56.6], 200, "within error"),
    ],
)
def test_a_verdict_counts_the_error_of_seeds_and_images(
    before: list[float], after: list[float], samples: int, said: str
) -> None:
    assert report.verdict(before, after, samples) == said


def test_a_device_with_images_of_its_own_is_said_so(tmp_path: Path) -> None:
    server = Evaluation(samples=10, top1=[98.5], top5=[99.9])
    prepared = msgspec.structs.replace(PREPARED, float_accuracy=server)
    found = report.collect(finished(tmp_path), network="n", link=LINK, prepared=prepared)
    assert (found.samples, found.samples_float) == (449, 10)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(tables.table(found))
    text = console.export_text()
    assert "On 449 held-out images" in text
    assert "float (10 of the server's)" in text


def test_nothing_is_recovered_where_nothing_was_lost(tmp_path: Path) -> None:
    finished(tmp_path)
    found = result.read(tmp_path)
    found.faulty_before = Evaluation(samples=449, top1=[96.5, 97.0], top5=[99.0, 99.0])
    result.write(tmp_path, found)
    assert report.collect(tmp_path, network="n", link=LINK, prepared=PREPARED).recovered is None


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    finished(tmp_path)
    one = Evaluation(samples=449, top1=[1.0])
    result.write(tmp_path, result.Result(clean_before=one, faulty_before=one))
    with pytest.raises(report.ReportError, match="evaluation after them is missing; resume with --resume"):
        report.collect(tmp_path, network="n", link=LINK, prepared=PREPARED)
    (tmp_path / result.FILE).unlink()
    with pytest.raises(report.ReportError, match=r"result\.json: missing; .* --resume"):
        report.collect(tmp_path, network="n", link=LINK, prepared=PREPARED)
    with pytest.raises(report.ReportError, match=r"report\.json"):
        report.read(tmp_path)


def test_draws_every_plot(tmp_path: Path) -> None:
    found = report.collect(finished(tmp_path, iterations=40), network="digits_cnn", link=LINK, prepared=PREPARED)
    paths = plots.draw(tmp_path, found)
    assert sorted(path.name for path in paths) == ["accuracy.png", "bytes.png", "loss.png", "stages.png", "summary.png"]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) >= 400
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_titles_end_on_their_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = report.collect(finished(tmp_path, iterations=40), network="digits_cnn", link=LINK, prepared=PREPARED)
    slow = {"uplink": report.StageTime(host=0.01, link=1234.5)}

    def measured(figure: Figure, path: Path) -> Path:
        figure.draw_without_rendering()
        for axes in figure.axes:
            ends = axes.get_tightbbox().x1  # of all that belongs to it, its title too
            assert ends <= figure.bbox.x1 + 1, f"{path.name}: {axes.get_title('left')}"
        return path

    monkeypatch.setattr(plots, "_save", measured)
    plots.draw(tmp_path, found)
    plots.draw(tmp_path, msgspec.structs.replace(found, stages_s=slow, iteration_s=12345.6))


def shown(panel: Callable[[Axes, report.Report], None], found: report.Report) -> tuple[Axes, list[str]]:
    """A panel, and the words in it."""
    axes = Figure().subplots()
    panel(axes, found)
    labels = [text.get_text() for text in (*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels())]
    return axes, [axes.get_title("left") or axes.get_title(), axes.get_xlabel(), *labels]


def test_pictures_hold_the_reports_numbers(tmp_path: Path) -> None:
    found = report.collect(finished(tmp_path, iterations=40), network="n", link=LINK, prepared=PREPARED)
    axes, words = shown(plots.accuracy, found)
    assert words[0] == "Top-1 on 449 held-out images, % (faulty: better)"
    assert [text.get_text() for text in axes.texts] == ["98.5", "97.0", "96.0", "71.5 ± 1.5", "82.0 ± 2.0", "90.0 ± 2.0"]
    assert [bar.get_height() for bar in axes.patches] == [98.5, 97.0, 96.0, 71.5, 82.0, 90.0]
    names = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    assert names == [
        "float",
        "no faults, before",
        "no faults, retrained",
        "faulty, as the paper",
        "faulty, before",
        "faulty, retrained",
    ]

    axes, words = shown(plots.loss, found)
    line, mean = axes.lines
    assert line.get_ydata().tolist() == [2.0 / (i + 1) for i in range(40)]
    assert mean.get_xdata()[0] == 4
    assert mean.get_ydata()[0] == pytest.approx((2 + 1 + 2 / 3 + 0.5) / 4)
    assert "mean of 4" in words[0]

    axes, words = shown(plots.traffic, found)
    assert {"1 kB", "135 B (13.5 %)", "128 B", "60 B (46.9 %)", "500 B", "40 B (8.0 %)"} <= set(words)
    assert not axes.patches, "a bar has no foot on a logarithmic axis"
    assert sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() in "so") == [
        40,
        60,
        128,
        135,
        500,
        1000,
    ]

    axes, words = shown(plots.stages, found)
    link = [1e3 * found.stages_s[stage].link for stage in ("uplink", "downlink")]
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx(sorted([10, 1, 4, *link]))
    assert words[0] == "Stages (with all waiting, 200 ms wall clock)"
    assert {"10", "1", "4", *(f"{value:.3g}" for value in link)} <= set(words)


def test_slow_stages_are_in_seconds(tmp_path: Path) -> None:
    found = report.collect(finished(tmp_path), network="n", link=LINK, prepared=PREPARED)
    slow = msgspec.structs.replace(found, stages_s={"uplink": report.StageTime(host=0.01, link=1234.5)})
    axes, words = shown(plots.stages, slow)
    assert {"seconds an iteration", "1,234", "0.01"} <= set(words)
    assert sorted(bar.get_width() for bar in axes.patches) == pytest.approx([0.01, 1234.5])


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (41_400_000, "41.4 MB"), (2 * 10**15, "2e+03 TB")]
)
def test_sizes(count: int, text: str) -> None:
    assert report.size(count) == text


def test_a_report_names_the_chip(tmp_path: Path) -> None:
    chip = "chip 7: 20 of 1024 elements faulty (map 0123456789abcdef), nobody knows of them"
    prepared = msgspec.structs.replace(PREPARED, chip=chip)
    found = report.collect(finished(tmp_path), network="digits_cnn", link=LINK, prepared=prepared)
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables.table(found))
    text = console.export_text()
    console.file.close()
    assert chip in text
    assert "no faults" not in text, "the chip's own stay in"
    assert "int8, no soft errors, before" in text
    assert found.accuracy.sound is None
    assert "sound chip" not in text
    axes, _ = shown(plots.accuracy, found)
    assert axes.get_xticklabels()[1].get_text().replace("\n", " ") == "no soft errors, before"


def test_a_report_says_what_the_sound_chip_would_have(tmp_path: Path) -> None:
    sound = Evaluation(samples=449, top1=[97.25], top5=[99.5])
    prepared = msgspec.structs.replace(PREPARED, chip="chip 7", sound=sound)
    found = report.collect(finished(tmp_path), network="digits_cnn", link=LINK, prepared=prepared)
    report.write(tmp_path, found)
    assert report.read(tmp_path) == found
    assert found.accuracy.sound is not None
    assert found.accuracy.sound.values == (97.25,)
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables.table(found))
    (line,) = [line for line in console.export_text().splitlines() if "sound chip" in line]
    console.file.close()
    assert line.split()[:6] == ["int8,", "a", "sound", "chip,", "before", "97.2"]
