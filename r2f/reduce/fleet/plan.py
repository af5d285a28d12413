"""``r2f fleet plan``: which chips there are, and how much retraining each one is given, or why none.

The plan is one JSON file with digests of all that it was made from, and the int8 network beside it (``plan.safetensors``), so
that every machine starts from the same integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta

from accelsim import datasets
from accelsim.datasets import Dataset, Spec
from accelsim.faults import chip as chips
from accelsim.faults.permanent import FaultMap
from accelsim.files import write_whole
from accelsim.int8 import storage
from accelsim.int8.network import Network
from accelsim.timing import Array
from r2f import prepare
from r2f import settings as settings_file
from r2f.display import Display
from r2f.pool import Pool, each
from r2f.reduce import amounts, resilience
from r2f.reduce.amounts import Amount, Table
from r2f.reduce.course import rate_of
from r2f.reduce.fleet.words import Policy
from r2f.reduce.fleet.work import Order, Shared, code, opened, work
from r2f.settings import Settings, SettingsError
from services.trainer.core.job import Job
from services.trainer.core.task import Task

FORMAT: Final = "r2f-fleet/1"
CHIPS: Final = 100_000
"""The most chips of a plan."""

Name = Annotated[str, Meta(pattern=r"^[^/\x00.][^/\x00]*$", max_length=200)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]
Iterations = Annotated[int, Meta(ge=0, le=resilience.MOST)]


class Planned(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One chip."""

    name: Name
    """Its file's, without the ending: results are called so."""
    file: str
    chip: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$")]
    """Digest of its map (``accelsim.faults.chip.digest``)."""
    rate: Annotated[float, Meta(ge=0, le=1)]
    """Share of its processing elements that are faulty."""
    iterations: Iterations | None
    """Of retraining; where it ends once the target is met, the most. None: beyond help, and not retrained."""
    why: str


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``r2f fleet retrain`` takes: ``plan.json``."""

    format: Literal["r2f-fleet/1"] = FORMAT
    policy: Policy
    target: Annotated[float, Meta(gt=0, le=100)]
    """Top-1 in per cent on the images by which chips are judged."""
    network: str
    sha256: Sha256
    """Of the int8 network in the file beside the plan."""
    data: Spec
    data_sha256: Sha256
    """Of all images and labels (``accelsim.datasets.Dataset.sha256``)."""
    resilience: str
    resilience_sha256: Sha256
    """Of the table's file."""
    rows: chips.Side
    columns: chips.Side
    mapping: bool
    job: Job
    """How chips are retrained: as those of the table were."""
    stops: tuple[Iterations, ...]
    """Of the table; where retraining ends once the target is met, chips are judged there."""
    an_epoch: Annotated[int, Meta(ge=1)]
    fixed: Iterations | None
    """The one amount that would do for all of the table's chips."""
    clean: float
    """Accuracy of the healthy network, in per cent."""
    chips: Annotated[tuple[Planned, ...], Meta(min_length=1, max_length=CHIPS)]

    @property
    def until(self) -> float | None:
        """The accuracy at which retraining ends before the amount is used up, if it does."""
        return self.target if self.policy in ("until-met", "by-map-until-met") else None


class Listed(NamedTuple):
    """A chip that was found, and its file."""

    file: Path
    faults: FaultMap

    @property
    def name(self) -> str:
        """Without the folder and the ending."""
        return self.file.stem


def listed(paths: Sequence[Path], array: Array) -> list[Listed]:
    """The chips in these files and folders, by name; of a folder its ``*.json``.

    Raises ValueError where there are none, a file is no chip file, a chip's array is not of this size, one is there twice, or
    two would have one name. Chips without any fault are all alike, and may be several.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder; it names a chip file, or a folder of them (docs/chips.md)")
        own = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not own:
            raise ValueError(f"{path}: no chip file in this folder; it needs one *.json a chip (docs/chips.md)")
        files += (file.absolute() for file in own)
    if len(files) > CHIPS:
        raise ValueError(f"{len(files)} chips: a plan has at most {CHIPS}; make several")
    by_name: dict[str, Path] = {}
    by_map: dict[str, Path] = {}
    found = []
    for file in files:
        if file.stem.startswith(".") or len(file.stem) > 200:
            raise ValueError(f"{file}: a chip's name begins with no dot, and has at most 200 characters; rename it")
        before = by_name.setdefault(file.stem, file)
        if before is not file:
            same = "this chip is listed twice; name it once" if before == file else f"{before} has that name too; rename one"
            raise ValueError(f"{file}: {same}")
        faults = chips.read(file)
        of_size(faults, array, str(file))
        other = by_map.setdefault(chips.digest(faults), file)
        if other is not file and faults.faults:
            raise ValueError(f"{file}: faults: the same map as in {other}: a chip listed twice? Take one of the two out")
        found.append(Listed(file, faults))
    return sorted(found, key=lambda each: each.name)


def of_size(faults: FaultMap, array: Array, what: str) -> None:
    """Raises ValueError that begins with ``what`` unless the chip's array is of this size."""
    own = faults.array
    if (own.rows, own.columns) != (array.rows, array.columns):
        raise ValueError(
            f"{what}: rows, columns: an array of {own.rows}x{own.columns}, but the resilience table is of one of "
            f"{array.rows}x{array.columns}; measure that size with r2f resilience --array, or leave the chip out"
        )


def planned(
    paths: Sequence[Path], given: Settings, table_file: Path, policy: Policy, target: float, pool: Pool, out: Path, say: Display
) -> Plan:
    """The plan, left in ``out`` with the network beside it.

    ``given`` says network, weights and data; how they are retrained is the table's. Raises ValueError that names what does
    not fit.
    """
    table = resilience.read(table_file)
    found = listed(paths, Array(rows=table.rows, columns=table.columns))
    settings = of_table(settings_file.resolved(given), table)
    prepare.check(settings)
    data = datasets.open(settings.data)
    module = prepare.float_module(settings, data, say)
    with say.step("quantising to int8"):
        network = prepare.lowered(settings, data, module)
    data.check(network)
    resilience.of_network(table, network, table_file)
    of_data(table, data, table_file)
    shared = Shared(
        network=storage.to_bytes(network),
        data=settings.data,
        images=data.sha256(),
        job=table.job,
        mapping=table.mapping,
        code=code(),
    )
    given_amounts = decided(found, table, table_file, policy, target, shared, pool, say)
    fixed = amounts.fixed(table, target).iterations
    plan = Plan(
        policy=policy,
        target=target,
        network=network.name,
        sha256=storage.digest(network),
        data=settings.data,
        data_sha256=shared.images,
        resilience=str(table_file.absolute()),
        resilience_sha256=hashlib.sha256(table_file.read_bytes()).hexdigest(),
        rows=table.rows,
        columns=table.columns,
        mapping=table.mapping,
        job=table.job,
        stops=stops_of(table),
        an_epoch=table.an_epoch,
        fixed=fixed,
        clean=table.clean,
        chips=tuple(
            Planned(
                name=one.name, file=str(one.file), chip=chips.digest(one.faults), rate=rate_of(one.faults),
                iterations=amount.iterations, why=amount.why,
            )
            for one, amount in zip(found, given_amounts, strict=True)
        ),
    )  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    storage.save(network, network_file(out))
    write_whole(out, msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
    return plan


def of_table(settings: Settings, table: Table) -> Settings:
    """The settings with what the table's chips were retrained with, and judged by."""
    task = {name: getattr(table.job, name) for name in Task.__struct_fields__}
    return msgspec.structs.replace(settings, **task, evaluation_seeds=len(table.job.evaluation_seeds), device=table.job.device)


def of_data(table: Table, data: Dataset, path: Path) -> None:
    """Raises ValueError, which names the table's file, where it was measured on other data."""
    if table.data and table.data != data.sha256():
        raise ValueError(
            f"{path}: data: it was measured on other images or labels: sha256 {table.data[:16]}..., and {data.name} has "
            f"{data.sha256()[:16]}...; give the same --data, or measure on these with r2f resilience"
        )


def stops_of(table: Table) -> tuple[int, ...]:
    """The stops that all chips of the table were judged at."""
    return tuple(sorted(set.intersection(*({p.iterations for p in course.points} for course in table.courses))))


def decided(
    found: Sequence[Listed],
    table: Table,
    table_file: Path,
    policy: Policy,
    target: float,
    shared: Shared,
    pool: Pool,
    say: Display,
) -> list[Amount]:
    """The amount of each chip. By map, each chip's first iterations are run for it; by damage, none."""
    first = table.job.recipe.corrections
    healthy = Amount(iterations=0, why="no fault")
    stops: tuple[int, ...] = ()
    match policy:
        case "fixed" | "until-met":
            most = amounts.fixed(table, target)
            return [most if one.faults.faults else healthy for one in found]
        case "by-rate":
            return [amounts.by_rate(table, rate_of(one.faults), target) for one in found]
        case "by-damage":
            pass
        case "by-map" | "by-map-until-met":
            stops = tuple(stop for stop in stops_of(table) if stop <= first)
            if first not in stops:
                raise SettingsError(
                    f"--policy {policy}: {table_file}: courses: its chips were not judged behind the {first} iterations that "
                    f"correct biases; measure with r2f resilience --amounts {first},..."
                )
    orders = [Order(name=one.name, chip=chips.packed(one.faults), stops=stops) for one in found if one.faults.faults]
    given: dict[str, Amount] = {}
    with say.counting("looking at chips") as tell:
        for place, done in each(work, msgspec.msgpack.encode(shared), orders, pool):
            name, course = orders[place].name, done.course
            if done.failed:
                raise ValueError(f"chip {name}: {done.failed}")
            given[name] = (
                amounts.by_map(table, course, target, first=first)
                if stops
                else amounts.by_damage(table, course.damage, course.rate, target)
            )
            tell(len(given), len(orders), name)
    return [given.get(one.name, healthy) for one in found]


def network_file(plan: Path) -> Path:
    """Where a plan's network is."""
    return plan.with_suffix(".safetensors")


def read(path: Path) -> Plan:
    """A plan that ``planned`` wrote. Raises ValueError that names the file and the field."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}; expected a plan that r2f fleet plan wrote") from error
    for field in ("name", "file"):
        for value in _twice(getattr(one, field) for one in plan.chips):
            raise ValueError(f"{path}: chips: {field} {value!r} is listed twice; take one out, or plan anew")
    for value in _twice(one.chip for one in plan.chips if one.rate):
        names = ", ".join(one.name for one in plan.chips if one.chip == value)
        raise ValueError(f"{path}: chips: chip {value} is listed twice ({names}); take one out, or plan anew")
    for one in plan.chips:
        most = plan.job.iterations or 0
        if one.iterations is not None and one.iterations > most:
            raise ValueError(f"{path}: chips: {one.name}: iterations {one.iterations}: the job's largest amount is {most}")
    return plan


def network_of(plan: Plan, path: Path) -> Network:
    """The network beside a plan. Raises ValueError that names the file where it is another."""
    file = network_file(path)
    try:
        network = storage.load(file)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; it belongs to {path}, and r2f fleet plan writes both") from error
    found = storage.digest(network)
    if found != plan.sha256:
        raise ValueError(
            f"{path}: sha256: the plan is for another network: {plan.sha256[:16]}..., and {file} is {found[:16]}...; plan anew"
        )
    return network


def chips_of(plan: Plan, path: Path) -> list[FaultMap]:
    """The maps of a plan's chips, in its order. Raises ValueError where a chip file is another than was planned with."""
    found = []
    for place, one in enumerate(plan.chips):
        try:
            faults = chips.read(one.file)
        except OSError as error:
            raise ValueError(f"{path}: chips[{place}].file {one.file}: {error.strerror}; plan anew") from error
        own = chips.digest(faults)
        if own != one.chip:
            raise ValueError(f"{path}: chips[{place}].chip: {one.file} is another map now: {own}, not {one.chip}; plan anew")
        of_size(faults, Array(rows=plan.rows, columns=plan.columns), one.file)
        found.append(faults)
    return found


def checked_table(plan: Plan, path: Path) -> None:
    """Raises ValueError where the table that a plan was read off is not the same any more."""
    try:
        found = hashlib.sha256(Path(plan.resilience).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(
            f"{path}: resilience {plan.resilience}: {error.strerror}; put the table there, or plan anew"
        ) from error
    if found != plan.resilience_sha256:
        raise ValueError(f"{path}: resilience_sha256: {plan.resilience} is another table than it was planned with; plan anew")


def data_of(plan: Plan, path: Path) -> Dataset:
    """The data of a plan. Raises ValueError that names the plan where they are others."""
    try:
        return opened(plan.data, plan.data_sha256)
    except ValueError as error:
        raise ValueError(f"{path}: data: {error}") from error


def _twice(values: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
