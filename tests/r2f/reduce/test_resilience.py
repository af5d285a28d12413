"""``r2f resilience`` from end to end on digits: what it leaves, that it goes on, and what it refuses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from accelsim.int8.network import Network
from accelsim.timing import Array
from r2f import folders
from r2f.cli import app
from r2f.reduce import picture, resilience
from r2f.reduce.amounts import Table, fixed
from r2f.reduce.resilience import Asked
from r2f.settings import SettingsError

QUICK = ("--rates", "3%,0.1", "--maps-per-rate", "2", "--amounts", "0,4,0.15e", "--eval-samples", "150", "--batch", "16")


def arguments(weights: str, out: Path, *more: str) -> list[str]:
    return ["resilience", "--weights", weights, *QUICK, "--out", str(out), *more]


@pytest.fixture(scope="module")
def folder(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resilience")
    result = CliRunner().invoke(app, arguments(weights, out))
    assert result.exit_code == 0, result.output
    assert "resilience.png" in result.output
    return out


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return resilience.read(folder / resilience.FILE)


def test_a_table_and_its_picture(folder: Path, table: Table) -> None:
    assert (table.network, table.rows, table.columns, table.images, table.mapping) == ("digits_cnn", 32, 32, 150, False)
    assert [round(rate * 1024) for rate in table.rates()] == [31, 102]
    assert len(table.courses) == 4
    assert len({course.chip for course in table.courses}) == 4
    assert {tuple(p.iterations for p in course.points) for course in table.courses} == {(0, 4, 13)}
    assert table.an_epoch == 85
    assert table.job.iterations == 13
    assert table.clean > 95
    worst = min(table.courses, key=lambda course: course.points[0].accuracy)
    assert worst.rate == table.rates()[-1]
    assert worst.points[0].accuracy < table.clean - 10
    assert worst.points[-1].accuracy > worst.points[0].accuracy
    cells = resilience.cells(table)
    assert [(round(1024 * c.rate), c.iterations, c.chips) for c in cells] == [
        (rate, amount, 2) for rate in (31, 102) for amount in (0, 4, 13)
    ]
    own = [course.points[1].accuracy for course in table.courses if course.rate == table.rates()[1]]
    assert cells[4].mean == pytest.approx(sum(own) / 2)
    assert cells[4].worst == min(own)
    with Image.open(folder / picture.PICTURE) as drawn:
        assert drawn.size[0] > 1000
    assert fixed(table, 20.0, 0).iterations == 4, "biases are corrected in any case"


def test_it_goes_on_where_it_was_stopped_and_adds_to_it(folder: Path, weights: str) -> None:
    kept = folder / resilience.KEPT
    lines = kept.read_bytes().splitlines(keepends=True)
    before = (folder / resilience.FILE).read_bytes()
    kept.write_bytes(b"".join(lines[:3]) + lines[3][:50])  # as a kill leaves it
    result = CliRunner().invoke(app, arguments(weights, folder))
    assert result.exit_code == 0, result.output
    assert "0/4 3 known" not in result.output
    assert "3/4 3 known" in result.output

    def without_times(text: bytes) -> Table:
        found = msgspec.json.decode(text, type=Table)
        courses = tuple(msgspec.structs.replace(course, seconds=0.0) for course in found.courses)
        return msgspec.structs.replace(found, courses=courses)

    assert without_times((folder / resilience.FILE).read_bytes()) == without_times(before)
    again = kept.read_bytes()
    result = CliRunner().invoke(app, arguments(weights, folder, "--target", "90,95"))
    assert result.exit_code == 0, result.output
    assert kept.read_bytes() == again


def test_processes_side_by_side_find_the_same(table: Table, weights: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(weights, tmp_path, "--jobs", "2"))
    assert result.exit_code == 0, result.output
    found = resilience.read(tmp_path / resilience.FILE)
    assert [course.points for course in found.courses] == [course.points for course in table.courses]
    assert found.sha256 == table.sha256


def test_mapping_loses_less(table: Table, weights: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(weights, tmp_path, "--mapping"))
    assert result.exit_code == 0, result.output
    found = resilience.read(tmp_path / resilience.FILE)
    assert found.mapping
    for ours, plain in zip(found.courses, table.courses, strict=True):
        assert ours.chip == plain.chip
        assert ours.damage < plain.damage
    assert sum(course.points[0].accuracy for course in found.courses) > sum(c.points[0].accuracy for c in table.courses)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--rates", "0"), "--rates '0': expected a share of the elements, above 0"),
        (("--rates", "2%,x"), "--rates 'x': expected a share"),
        (("--rates", "150%"), "--rates '150%': expected a share"),
        (("--rates", "0.0001"), "--rates 0.0001: of 1024 processing elements that is none; give 0.00098 or more"),
        (("--amounts", "0"), "--amounts: give at least one above 0"),
        (("--amounts", "-4"), "--amounts '-4': expected iterations, such as 40, or epochs"),
        (("--amounts", "1.5"), "--amounts '1.5': expected iterations"),
        (("--amounts", "nane"), "--amounts 'nane': expected iterations"),
        (("--amounts", "1e9"), "--amounts '1e9': expected iterations"),
        (("--target", "high"), "--target 'high': expected an accuracy in per cent"),
        (("--weights", "nowhere.safetensors"), "nowhere.safetensors: no such file"),
    ],
)
def test_what_means_nothing_is_one_line(given: tuple[str, ...], said: str, weights: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(weights, tmp_path, *given))
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_table_is_named(tmp_path: Path, folder: Path, table: Table) -> None:
    path = tmp_path / "resilience.json"
    with pytest.raises(ValueError, match=r"resilience.json: .*expected a table that r2f resilience wrote"):
        resilience.read(path)
    path.write_bytes((folder / resilience.FILE).read_bytes().replace(b'"rows": 32', b'"rows": 0'))
    with pytest.raises(ValueError, match=r"rows"):
        resilience.read(path)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(table, courses=())))
    with pytest.raises(ValueError, match="courses: a table without measured chips"):
        resilience.read(path)
    first, *others = table.courses
    for points in (first.points[::-1], first.points[1:], first.points[:-1], first.points[:1] * 2):
        courses = (*others, msgspec.structs.replace(first, points=points))
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(table, courses=courses)))
        with pytest.raises(ValueError, match=f"courses: {first.name} was measured behind"):
            resilience.read(path)
    for name, value in (("accuracy", 100.1), ("error", -1.0), ("iterations", -7)):
        points = (msgspec.structs.replace(first.points[0], **{name: value}), *first.points[1:])
        courses = (msgspec.structs.replace(first, points=points), *others)
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(table, courses=courses)))
        with pytest.raises(ValueError, match=name):
            resilience.read(path)
    path.write_text("{}")
    (tmp_path / resilience.KEPT).write_text("{}\n")


def test_a_table_of_another_network_is_named(table: Table) -> None:
    network = Network(
        name="other",
        input_shape=(1, 1, 1),
        input_scale=1.0,
        input_table=msgspec.convert([], list),
        layers=(),  # type: ignore[arg-type]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resilience.storage, "digest", lambda network: "f" * 64)
        with pytest.raises(ValueError, match=r"t.json: it is of another network: digits_cnn with sha256"):
            resilience.of_network(table, network, Path("t.json"))


def test_the_command_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reduce.md").read_text("utf-8")
    found = re.search(r"```sh\nr2f (resilience .+)\n```", page)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*shlex.split(found[1]), "--eval-samples", "100"])
    assert result.exit_code == 0, result.output
    assert len(resilience.read(tmp_path / "resilience" / "digits" / resilience.FILE).courses) == 4


@pytest.mark.parametrize("amounts", ["4,nane", "0", "0e,0"])
def test_amounts_are_looked_at_before_anything_is_trained(
    amounts: str, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(*_: object) -> None:
        raise AssertionError("the network was made first")

    monkeypatch.setattr(resilience.prepare, "float_module", trained)
    result = CliRunner().invoke(app, arguments(weights, tmp_path, "--amounts", amounts))
    assert result.exit_code == 1
    assert "--amounts" in result.stderr


def test_a_second_measurement_in_a_folder_is_one_line(weights: str, tmp_path: Path) -> None:
    (tmp_path / resilience.KEPT).write_bytes(b"half a li")
    with folders.locked(tmp_path):
        result = CliRunner().invoke(app, arguments(weights, tmp_path))
    assert result.exit_code == 1
    assert f"{tmp_path}: another r2f works" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert (tmp_path / resilience.KEPT).read_bytes() == b"half a li"


def test_rates_beyond_help_are_at_the_upper_edge(table: Table) -> None:
    axes = Figure().subplots()
    picture.required(axes, table, [20.0, 100.0])
    beyond = [line for line in axes.lines if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in beyond] == [0, 2]
    assert min(beyond[1].get_ydata()) > table.courses[0].points[-1].iterations
    assert max(beyond[1].get_ydata()) < axes.get_ylim()[1]
    assert [text.get_text() for text in axes.texts] == ["x: beyond help"]


def test_rates_that_are_as_many_elements_are_refused() -> None:
    asked = Asked(rates=(0.01, 0.0101, 0.05), maps=1, amounts=("4",))
    with pytest.raises(SettingsError, match=r"--rates 0.01 and 0.0101: of 1024 processing elements both are 10"):
        list(resilience.drawn(asked, Array()))


def test_rates_that_break_no_element_are_named() -> None:
    asked = Asked(rates=(0.01,), maps=1, amounts=("4",))
    with pytest.raises(SettingsError, match=r"--rates 0.01: of 16 processing elements that is none"):
        list(resilience.drawn(asked, Array(rows=4, columns=4)))
    assert [round(faults.array.rows * 0.5) for faults in resilience.drawn(asked, Array())] == [16]
