"""Fig. 7: its arithmetic and every number that it prints, on costs that are easy to check by hand."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec
import pytest

from experiments import fig7_bytes
from experiments.common.costs import BERS, METHODS, Cost


def larger(costs: list[Cost]) -> list[Cost]:
    """B's outputs by ours, three times as large over HSPA at 1e-5; over other links, which do not count, nothing else."""
    return [
        msgspec.structs.replace(c, layers_bytes=c.layers_bytes * (3 if c.link == "hspa" else 9))
        if (c.network, c.method, c.ber) == ("B", "lossless", 1e-5)
        else c
        for c in costs
    ]


def test_ratios_are_shares_of_directs_bytes(costs: list[Cost]) -> None:
    found = fig7_bytes.ratios(larger(costs))
    assert found["A", 1e-5, "aprm80"] == (0.5, 0.5)
    assert found["B", 1e-6, "lossless"] == (0.04, 0.04)
    assert found["B", 1e-5, "lossless"] == ((3 * 72 + 8) / 2000, 0.12)
    assert len(found) == 2 * len(BERS) * len(METHODS)


@pytest.mark.parametrize(
    ("column", "what", "at_1e5"), [(0, "Everything that goes up", "7.600%"), (1, "Intermediate outputs", "8.000%")]
)
def test_the_table_says_what_it_is_an_average_of(costs: list[Cost], column: int, what: str, at_1e5: str) -> None:
    title, _, body = fig7_bytes.table(larger(costs), column).partition(":\n")
    assert title == f"{what} on HSPA, share of direct's bytes, average over 2 networks: A, B"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.strip().splitlines()[2:]]
    assert rows == [
        *([name, "50.000%", "50.000%", "50.000%"] for name in ("APRM-80%", "APRM-60%", "APRM-50%")),
        ["ours", "4.000%", at_1e5, "4.000%"],
        ["ours, JPEG 95", "2.000%", "2.000%", "2.000%"],
        ["ours, samples known", "1.000%", "1.000%", "1.000%"],
    ]


def test_the_dots_are_where_the_shares_are(costs: list[Cost], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(fig7_bytes.style, "save", lambda figure, path: drawn.append(figure))
    fig7_bytes.draw(larger(costs), tmp_path / "a.png")
    axes = drawn[0].axes
    assert [axis.get_title(loc="left") for axis in axes] == ["BER 1e-06", "BER 1e-05", "BER 1e-04"]
    # Nothing that has a length: a logarithmic axis has no zero to measure it from.
    assert not any(axis.patches for axis in axes)
    dots = [line for line in axes[1].lines if line.get_marker() == "o"]
    assert len(dots) == 2 * 2 * len(fig7_bytes.METHODS)
    filled, hollow = dots[-4], dots[-3]  # B by ours
    assert [float(dot.get_xdata()[0]) for dot in (filled, hollow)] == pytest.approx([0.12, 0.112])
    assert filled.get_ydata() == hollow.get_ydata()
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["A\n(random weights)", "B"]


def test_the_program_writes_all_of_it(
    costs: list[Cost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = tmp_path / "measured.json"
    measured.write_bytes(msgspec.json.encode(costs))
    monkeypatch.setattr("sys.argv", ["fig7_bytes", "--measured", str(measured), "--out", str(tmp_path / "out")])
    fig7_bytes.main()
    printed = capsys.readouterr().out
    assert printed.count("2 networks") == 2
    assert (tmp_path / "out" / "fig7_bytes.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "fig7_bytes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(BERS) * len(METHODS)
    row = next(r for r in rows if (r["network"], r["ber"], r["method"]) == ("A", "1e-05", "jpeg"))
    assert (row["of_direct"], row["layers_of_direct_layers"]) == ("0.02", "0.02")
