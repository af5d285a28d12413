"""``r2f fleet`` from end to end on digits: the plan, the same models wherever they are made, and what is refused."""

from __future__ import annotations

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from accelsim.datasets import load
from accelsim.faults import chip
from accelsim.faults.mapping import magnitude
from accelsim.faults.pruning import kept
from accelsim.int8 import storage
from accelsim.timing import Array
from r2f.cli import app
from r2f.display import Display
from r2f.pool import Pool, WorkerLost
from r2f.reduce import amounts, course, resilience
from r2f.reduce.fleet import picture, plan, results, retrain
from r2f.reduce.fleet.plan import Plan
from r2f.reduce.fleet.retrain import Fleet, retrained
from r2f.reduce.fleet.work import judged_of

TARGET = "80"
RATES = {"healthy-a": 0.0, "healthy-b": 0.0, "one": 0.01, "three": 0.03, "six": 0.06, "ten": 0.1, "worst": 0.3}


def run(*words: str | Path, code: int = 0) -> str:
    """What a command says, on one line."""
    result = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def table(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("table")
    run("resilience", "--weights", weights, "--rates", "3%,10%", "--maps-per-rate", "2", "--amounts", "0,4,8,12",
        "--batch", "16", "--eval-samples", "120", "--out", out)  # fmt: skip
    return out / resilience.FILE


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chips")
    for seed, (name, rate) in enumerate(RATES.items()):
        chip.write(folder / f"{name}.json", chip.random_map(Array(), rate, 50 + seed))
    return folder


@pytest.fixture(scope="module")
def make(weights: str, table: Path, chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a plan by a policy; the file."""

    def made(policy: str = "by-rate", *more: str | Path, target: str = TARGET) -> Path:
        out = tmp_path_factory.mktemp(policy) / "plan.json"
        run("fleet", "plan", chips, "--target", target, "--weights", weights, "--resilience", table, "--policy", policy,
            "--out", out, *more)  # fmt: skip
        return out

    return made


@pytest.fixture(scope="module")
def planned(make: Callable[..., Path]) -> Path:
    return make()


@pytest.fixture(scope="module")
def serial(planned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("serial")
    said = run("fleet", "retrain", planned, "--out", out)
    assert f"{out}: results.csv" in said
    return out


class Telling(Display):
    """A display that calls what it is given with the number of chips that are done."""

    def __init__(self, act: Callable[[int], None] = lambda done: None) -> None:
        super().__init__(Console(quiet=True))
        self.act = act

    @contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int | None, str], None]]:
        yield lambda done, total, detail: self.act(done)


def models(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "chips").glob("*.safetensors"))}


def amounts_of(path: Path) -> dict[str, int | None]:
    return {one.name: one.iterations for one in plan.read(path).chips}


def test_a_plan_says_what_each_chip_is_given(planned: Path, table: Path, chips: Path) -> None:
    found, measured = plan.read(planned), resilience.read(table)
    assert [one.name for one in found.chips] == sorted(RATES)
    for one in found.chips:
        rate = round(RATES[one.name] * 1024) / 1024
        assert one.rate == pytest.approx(rate)
        expected = amounts.by_rate(measured, rate, float(TARGET))
        assert (one.iterations, one.why) == (expected.iterations, expected.why)
        assert one.chip == chip.digest(chip.read(chips / f"{one.name}.json"))
    by_name = amounts_of(planned)
    assert by_name["healthy-a"] == by_name["healthy-b"] == 0
    assert by_name["worst"] is None
    assert by_name["ten"]
    assert found.sha256 == measured.sha256 == storage.digest(storage.load(planned.with_suffix(".safetensors")))
    assert found.data_sha256 == measured.data == load("digits").sha256()
    assert found.job == measured.job


def test_every_policy_plans(make: Callable[..., Path], table: Path, weights: str) -> None:
    measured = resilience.read(table)
    fixed = amounts.fixed(measured, float(TARGET)).iterations
    assert amounts_of(make("fixed")) == {name: fixed if rate else 0 for name, rate in RATES.items()}
    until = plan.read(make("until-met"))
    assert until.until == float(TARGET)
    data = load("digits")
    path = make("by-map", "--jobs", "2")
    network = storage.load(path.with_suffix(".safetensors"))
    found = plan.read(path)
    for one in found.chips:
        if not one.rate:
            assert one.iterations == 0
            continue
        faults = chip.read(one.file)
        *_, (_, (begun,)) = course.courses(
            network, faults, magnitude(network), data, measured.job, [0, 4], [judged_of(data, measured.job)]
        )
        expected = amounts.by_map(measured, begun, float(TARGET), first=4)
        assert (one.iterations, one.why) == (expected.iterations, expected.why)
    for one in plan.read(make("by-damage")).chips:
        faults = chip.read(one.file)
        damage = course.placed(network, faults, magnitude(network), mapping=False).damage
        expected = amounts.by_damage(measured, damage, one.rate, float(TARGET))
        assert one.iterations == (expected.iterations if one.rate else 0)


def test_a_chip_s_result_is_its_course_behind_that_amount(planned: Path, serial: Path) -> None:
    found = plan.read(planned)
    network, data = storage.load(planned.with_suffix(".safetensors")), load("digits")
    rows = {row["name"]: row for row in csv.DictReader((serial / results.CSV).read_text().splitlines())}
    assert [*rows] == sorted(RATES)
    for one in found.chips:
        row = rows[one.name]
        if one.iterations is None:
            assert (row["state"], row["iterations"], row["sha256"]) == ("beyond help", "", "")
            assert not (serial / "chips" / f"{one.name}.json").exists()
            continue
        own, expected = course.retrained(
            network, chip.read(one.file), magnitude(network), data, found.job, one.iterations, judged_of(data, found.job)
        )
        assert (serial / "chips" / f"{one.name}.safetensors").read_bytes() == storage.to_bytes(own)
        assert (row["sha256"], row["iterations"]) == (expected.sha256, str(one.iterations))
        assert (float(row["after"]), float(row["error"])) == (expected.accuracy, expected.error)
        dropped = [~each for each in kept(network, chip.read(one.file)).values()]
        assert all(not layer.weight[lost].any() for (_, layer), lost in zip(own.convs(), dropped, strict=True))
    assert float(rows["ten"]["after"]) > float(rows["ten"]["before"]) + 5
    with Image.open(serial / picture.PICTURE) as page:
        assert page.size[0] > 1000
        assert np.asarray(page).std() > 10


@pytest.fixture(scope="module")
def dask_cluster() -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=2, processes=True, dashboard_address=":0") as cluster:
        yield cluster


def test_on_cores_and_on_dask_the_models_are_the_same(planned: Path, serial: Path, tmp_path: Path, dask_cluster: Any) -> None:
    run("fleet", "retrain", planned, "--out", tmp_path / "cores", "--jobs", "2")
    assert models(tmp_path / "cores") == models(serial)
    run("fleet", "retrain", planned, "--out", tmp_path / "dask", "--dask", dask_cluster.scheduler_address)
    assert models(tmp_path / "dask") == models(serial)


@pytest.mark.filterwarnings("ignore")
def test_on_ray_the_models_are_the_same(planned: Path, serial: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        run("fleet", "retrain", planned, "--out", tmp_path, "--ray", cluster.address)
    finally:
        cluster.shutdown()
    assert models(tmp_path) == models(serial)


def test_a_killed_dask_worker_s_chips_go_to_others(planned: Path, serial: Path, tmp_path: Path, dask_cluster: Any) -> None:
    killed = []

    def kill(done: int) -> None:
        if done == 1 and not killed:
            # Both have jobs, until the last chips.
            killed.append(dask_cluster.workers[0].process.process.pid)
            os.kill(killed[0], signal.SIGKILL)

    fleet = retrained(planned, tmp_path, Pool(dask=dask_cluster.scheduler_address), Telling(kill))
    assert killed
    assert not fleet.failed
    assert models(tmp_path) == models(serial)


def test_it_goes_on_where_it_was_stopped(planned: Path, serial: Path, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrained(planned, tmp_path, Pool(), Telling(stop))
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "chips").glob("*.json")}
    assert len(first) == 3
    assert "3/6 3 done before" in run("fleet", "retrain", planned, "--out", tmp_path)
    assert {name: (tmp_path / "chips" / name).stat().st_mtime_ns for name in first} == first
    assert models(tmp_path) == models(serial)
    broken = tmp_path / "chips" / "ten.safetensors"
    broken.write_bytes(broken.read_bytes()[:-5])
    said = run("fleet", "retrain", planned, "--out", tmp_path)
    assert "ten.safetensors" in said
    assert "the chip is retrained again" in said
    assert "6/6" in said
    assert models(tmp_path) == models(serial)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(planned: Path, serial: Path, tmp_path: Path, jobs: str) -> None:
    """As a terminal sends it: to the command and to its workers."""
    command = ["r2f", "fleet", "retrain", str(planned), "--out", str(tmp_path), "--jobs", jobs]
    # A shell that starts something in the background has it ignore Ctrl-C.
    code = "import signal, sys, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]"
    begun = subprocess.Popen(
        [sys.executable, "-c", f"{code}; runpy.run_module('r2f.cli', run_name='__main__')", *command],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    while begun.poll() is None and not list(tmp_path.glob("chips/*.json")):
        time.sleep(0.02)
    os.killpg(begun.pid, signal.SIGINT)
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130, said
    kept = {name: body for name, body in models(tmp_path).items() if (tmp_path / "chips" / name).with_suffix(".json").exists()}
    assert 1 <= len(kept) < len(models(serial))
    again = f"r2f fleet retrain {planned} --out {tmp_path} --jobs {jobs}"
    # Where it meets a callback of Python's own, Python says before that it ignored it there.
    assert said.endswith(f"stopped; chips done and kept in {tmp_path}: {len(kept)}; go on with: {again}\n")
    assert said.count("\n") == 1 or said.startswith("Exception ignored in")
    assert kept.items() <= models(serial).items()


def test_until_met_ends_at_the_first_stop_that_is_good_enough(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make("until-met", target="85")
    fleet = retrained(path, tmp_path, Pool(), Telling())
    target = fleet.plan.target
    for one in fleet.done.values():
        assert [point.iterations for point in one.course.points] == [0, 4, 8, 12][: len(one.course.points)]
        assert not any(amounts.good(p, target) for p in one.course.points[:-1] if p.iterations >= 4)
        assert retrain.at_target(fleet.plan, one.course) or one.iterations == fleet.plan.fixed
    assert fleet.done["one"].iterations < fleet.done["ten"].iterations
    assert results.summary(fleet).startswith("7 chips, ")


def test_a_chip_that_fails_stops_no_other(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2f.reduce.fleet import work

    def courses(network: Any, faults: Any, *more: Any, **named: Any) -> Any:
        if chip.digest(faults) == next(one.chip for one in plan.read(planned).chips if one.name == "six"):
            raise ValueError("the loss is not finite")
        return course.courses(network, faults, *more, **named)

    monkeypatch.setattr(work, "courses", courses)
    said = run("fleet", "retrain", planned, "--out", tmp_path, code=1)
    assert "1 of 7 chips failed; the same command tries them again" in said
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / results.CSV).read_text().splitlines())}
    assert (rows["six"]["state"], rows["six"]["why"]) == ("failed", "the loss is not finite")
    assert rows["ten"]["state"] in ("reached", "in doubt", "missed")
    assert len(models(tmp_path)) == 5


@pytest.mark.parametrize(
    ("accuracy", "error", "expected"), [(92, 0, "reached"), (92, 1.2, "in doubt"), (90, 0, "reached"), (89.9, 0, "missed")]
)
def test_above_the_target_by_less_than_the_margin_a_chip_is_in_doubt(
    planned: Path, accuracy: float, error: float, expected: str
) -> None:
    points = (course.Point(iterations=4, accuracy=accuracy, error=error),)
    one = course.Course(chip="c", name="", rate=0.05, damage=0.1, points=points)
    assert results.state(msgspec.structs.replace(plan.read(planned), target=90.0), one) == expected


def test_a_chip_that_kills_its_workers_is_named(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(work: Any, shared: Any, orders: Any, pool: Any) -> Iterator[Any]:
        yield 0, work(shared, orders[0])
        raise WorkerLost(2, "4 workers died of it")

    monkeypatch.setattr(retrain, "each", lost)
    said = run("fleet", "retrain", planned, "--out", tmp_path, code=1)
    assert "stopped; chips done and kept in" in said
    assert "r2f: chip one: 4 workers died of it" in said


def test_parquet_has_what_the_csv_has(planned: Path, serial: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet

    run("fleet", "retrain", planned, "--out", serial, "--parquet")
    found = pyarrow.parquet.read_table(serial / results.PARQUET)
    assert found.column_names == [*results.COLUMNS]
    assert found.schema.metadata[b"sha256"].decode() == plan.read(planned).sha256
    text = csv.DictReader((serial / results.CSV).read_text().splitlines())
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in found.to_pylist()] == list(text)


def test_parquet_without_pyarrow_is_said_first(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = run("fleet", "retrain", planned, "--out", tmp_path / "x", "--parquet", code=1)
    assert "--parquet needs the package pyarrow: pip install 'r2f[parquet]'" in said
    assert not (tmp_path / "x").exists()


# -- what is refused ----------------------------------------------------------------------------------------------------


def changed(planned: Path, folder: Path, **fields: Any) -> Path:
    """A copy of a plan with other fields."""
    found = msgspec.json.decode(planned.read_bytes())
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(found | fields))
    path.with_suffix(".safetensors").write_bytes(planned.with_suffix(".safetensors").read_bytes())
    return path


def chips_with(planned: Path, place: int, **fields: Any) -> list[Any]:
    found = msgspec.json.decode(planned.read_bytes())["chips"]
    found[place] |= fields
    return list(found)


def test_chips_that_cannot_be_planned_are_named(weights: str, table: Path, chips: Path, tmp_path: Path) -> None:
    def refused(*paths: Path) -> str:
        return run("fleet", "plan", *paths, "--target", "90", "--weights", weights, "--resilience", table, "--out",
                   tmp_path / "plan.json", code=1)  # fmt: skip

    assert f"{tmp_path / 'nowhere'}: no such file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: no chip file in this folder" in refused(tmp_path / "empty")
    assert "nowhere.json" in refused(chips, tmp_path / "nowhere.json")
    assert "ten.json: this chip is listed twice; name it once" in refused(chips, chips / "ten.json")
    again = tmp_path / "copy.json"
    again.write_bytes((chips / "ten.json").read_bytes())
    assert f"{again}: faults: the same map as in {chips / 'ten.json'}" in refused(chips, again)
    other = tmp_path / "other" / "ten.json"
    other.parent.mkdir()
    chip.write(other, chip.random_map(Array(), 0.05, 999))
    assert f"{other}: {chips / 'ten.json'} has that name too; rename one" in refused(chips, other)
    small = tmp_path / "small.json"
    chip.write(small, chip.random_map(Array(rows=16, columns=16), 0.05, 1))
    assert f"{small}: rows, columns: an array of 16x16, but the resilience table is of one of 32x32" in refused(chips, small)
    hidden = tmp_path / ".hidden.json"
    hidden.write_bytes(other.read_bytes())
    assert f"{hidden}: a chip's name begins with no dot" in refused(chips, hidden)
    assert f"{table}: not a chip file" in refused(table)
    assert not (tmp_path / "plan.json").exists()


def test_a_table_that_does_not_fit_is_named(weights: str, table: Path, chips: Path, tmp_path: Path) -> None:
    def refused(given: Path, *more: str) -> str:
        return run("fleet", "plan", chips, "--target", "90", "--weights", weights, "--resilience", given, "--out",
                   tmp_path / "plan.json", *more, code=1)  # fmt: skip

    def other(**fields: Any) -> Path:
        path = tmp_path / "other.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(resilience.read(table), **fields)))
        return path

    assert "no.json" in refused(tmp_path / "no.json")
    assert "other.json: it is of another network: digits_cnn" in refused(other(sha256="f" * 64))
    assert "other.json: data: it was measured on other images or labels" in refused(other(data="f" * 64))
    without = tuple(
        msgspec.structs.replace(each, points=tuple(p for p in each.points if p.iterations != 4))
        for each in resilience.read(table).courses
    )
    said = refused(other(courses=without), "--policy", "by-map")
    assert "--policy by-map" in said
    assert "other.json: courses: its chips were not judged behind the 4 iterations" in said
    assert "--jobs and --dask exclude one another" in refused(table, "--jobs", "2", "--dask", "x")
    assert "--target '0'" in refused(table, "--target", "0")
    assert "a plan's name ends in .json" in refused(table, "--out", "plan")


def test_a_plan_that_does_not_fit_is_named(planned: Path, table: Path, tmp_path: Path, chips: Path) -> None:
    def refused(path: Path) -> str:
        said = run("fleet", "retrain", path, "--out", tmp_path / "out", code=1)
        assert not (tmp_path / "out").exists()
        return said

    def other(**fields: Any) -> Path:
        return changed(planned, tmp_path, **fields)

    assert "expected a plan that r2f fleet plan wrote" in refused(tmp_path / "none.json")
    assert "expected a plan that r2f fleet plan wrote" in refused(table)
    assert "plan.json: sha256: the plan is for another network: ffff" in refused(other(sha256="f" * 64))
    assert "plan.json: data: digits: these are other images or labels than the plan's" in refused(other(data_sha256="f" * 64))
    assert "plan.json: resilience_sha256:" in refused(other(resilience_sha256="f" * 64))
    assert "/nowhere.json: No such file or directory; put the table there" in refused(other(resilience="/nowhere.json"))
    assert "chips[0].file /nowhere.json" in refused(other(chips=chips_with(planned, 0, file="/nowhere.json")))
    assert f"chips[2].chip: {chips / 'one.json'} is another map now" in refused(
        other(chips=chips_with(planned, 2, chip="0" * 16))
    )
    assert "`$.chips[0].name`" in refused(other(chips=chips_with(planned, 0, name="../up")))
    assert "`$.chips[0].iterations`" in refused(other(chips=chips_with(planned, 0, iterations=-1)))
    assert "the job's largest amount is 12" in refused(other(chips=chips_with(planned, 0, iterations=13)))
    twice = msgspec.json.decode(planned.read_bytes())["chips"]
    assert "chips: name 'healthy-a' is listed twice" in refused(other(chips=[*twice, twice[0]]))
    same = dict(twice[2], name="again", file="/again.json")
    assert f"chips: chip {twice[2]['chip']} is listed twice (one, again)" in refused(other(chips=[*twice, same]))
    path = other()
    path.with_suffix(".safetensors").unlink()
    assert "plan.safetensors: No such file or directory; it belongs to" in refused(path)


def test_results_of_another_plan_are_not_lost(serial: Path, planned: Path, tmp_path: Path) -> None:
    before = models(serial)
    most = plan.read(planned).job.iterations
    other = changed(planned, tmp_path, chips=chips_with(planned, 2, iterations=most))
    said = run("fleet", "retrain", other, "--out", serial, code=1)
    assert "one.json: key: the result of another plan; give another --out" in said
    assert models(serial) == before
    path = tmp_path / "chips" / "one.json"
    path.parent.mkdir()
    path.write_text("{}")
    assert f"{path}: " in run("fleet", "retrain", planned, "--out", tmp_path, code=1)


def test_a_cluster_that_is_not_there_is_one_line(planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2f import pool

    monkeypatch.setattr(pool, "CONNECT_S", 0.5)
    said = run("fleet", "retrain", planned, "--out", tmp_path, "--dask", "tcp://127.0.0.1:9", code=1)
    assert "r2f: --dask tcp://127.0.0.1:9: no scheduler answers there" in said


def test_a_worker_without_the_data_or_with_another_code_says_so(planned: Path) -> None:
    from r2f.reduce.fleet.work import Order, Shared, code, work

    found: Plan = plan.read(planned)
    data = msgspec.structs.replace(found.data, source="/nowhere/cifar10.npz")
    shared = Shared(
        network=planned.with_suffix(".safetensors").read_bytes(),
        data=data,
        images=found.data_sha256,
        job=found.job,
        mapping=False,
        code=code(),
    )
    order = Order(name="one", chip=chip.packed(chip.read(found.chips[2].file)), stops=(0,))
    assert "/nowhere/cifar10.npz" in work(msgspec.msgpack.encode(shared), order).failed
    shared = msgspec.structs.replace(shared, data=found.data, images="f" * 64)
    assert "other images or labels than the plan's" in work(msgspec.msgpack.encode(shared), order).failed
    shared = msgspec.structs.replace(shared, images=found.data_sha256, code="0" * 64)
    assert "the worker's R2F, NumPy or PyTorch is another" in work(msgspec.msgpack.encode(shared), order).failed
    assert not work(msgspec.msgpack.encode(msgspec.structs.replace(shared, code=code())), order).failed


def test_a_long_fleet_s_table_is_cut_in_a_terminal_alone(planned: Path, tmp_path: Path) -> None:
    found = plan.read(planned)
    many = msgspec.structs.replace(found, chips=tuple(found.chips[i % 7] for i in range(100)))
    fleet = Fleet(many, {}, {})
    assert len(results.rows(fleet)) == 100
    assert results.grid(many, results.rows(fleet)).row_count == results.SHOWN
    assert "and 60 more chips" in results.summary(fleet)
    picture.draw(many, results.rows(fleet), tmp_path / picture.PICTURE)
    assert (tmp_path / picture.PICTURE).stat().st_size > 10_000


def test_the_commands_of_the_page_run(table: Path, chips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "reduce.md").read_text("utf-8")
    found = re.search(r"```sh\nr2f (fleet plan .+)\nr2f (fleet retrain .+)\n```", page)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chips, tmp_path / "chips")
    (tmp_path / "resilience" / "digits").mkdir(parents=True)
    shutil.copy(table, tmp_path / "resilience" / "digits" / resilience.FILE)
    for words in found.groups():
        run(*shlex.split(words))
    assert (tmp_path / "fleet" / picture.PICTURE).is_file()
