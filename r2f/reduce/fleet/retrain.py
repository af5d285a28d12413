"""``r2f fleet retrain``: one job a chip, wherever there are workers, and a file a chip as soon as it is done.

Only this process writes. A chip is done once its ``chips/NAME.json`` is there, which is written last, whole, and renamed; a
command that was stopped does what is not done. Workers need nothing but R2F and the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from accelsim.faults import chip as chips
from accelsim.faults.permanent import FaultMap
from accelsim.files import write_whole
from accelsim.int8 import storage
from r2f import folders
from r2f.display import Display
from r2f.pool import Pool, WorkerLost, each
from r2f.reduce.amounts import good
from r2f.reduce.course import Course
from r2f.reduce.fleet import plan as plans
from r2f.reduce.fleet.plan import Plan, Planned
from r2f.reduce.fleet.work import Done, Order, Shared, code, digest, work

CHIPS: Final = "chips"


class Retrained(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``chips/NAME.json``: what became of one chip."""

    key: str
    """Digest of all that it depends on (``work.digest``)."""
    name: str
    chip: str
    iterations: int
    """Of retraining that it was given."""
    sha256: str
    """Of its int8 network, ``chips/NAME.safetensors``."""
    course: Course
    """Before retraining first, behind ``iterations`` last."""


class Fleet(NamedTuple):
    """What became of a plan."""

    plan: Plan
    done: dict[str, Retrained]
    """By chip's name."""
    failed: dict[str, str]
    """Why a chip could not be retrained, by its name."""

    @property
    def reached(self) -> int:
        """Chips that are at the target, by the table's confidence."""
        return sum(at_target(self.plan, one.course) for one in self.done.values())


def at_target(plan: Plan, course: Course) -> bool:
    """Whether a chip is good enough where its course ends, as surely as its amount was chosen."""
    return good(course.points[-1], plan.target)


def retrained(path: Path, out: Path, pool: Pool, say: Display) -> Fleet:
    """Every chip of the plan in ``path`` that is not beyond help, left in ``out``.

    Raises ValueError where plan, network, data, table, a chip or an earlier result do not fit, PoolError where workers die.
    Whatever is raised, what was finished before stays, and the same call goes on.
    """
    plan = plans.read(path)
    network = plans.network_of(plan, path)
    maps = plans.chips_of(plan, path)
    plans.checked_table(plan, path)
    with say.step("reading the data"):
        plans.data_of(plan, path)
    shared = Shared(
        network=storage.to_bytes(network),
        data=plan.data,
        images=plan.data_sha256,
        job=plan.job,
        mapping=plan.mapping,
        code=code(),
    )
    orders = [order_of(plan, one, faults) for one, faults in zip(plan.chips, maps, strict=True) if one.iterations is not None]
    keys = {order.name: digest(shared, order) for order in orders}
    with _own(out):
        done = {name: one for name, key in keys.items() if (one := _known(out, name, key, say)) is not None}
        write_whole(out / "plan.json", path.read_bytes())
        failed: dict[str, str] = {}
        missing = [order for order in orders if order.name not in done]
        with say.counting("retraining chips") as tell:
            tell(len(done), len(orders), f"{len(done)} done before")
            for order, found in _run(shared, missing, pool):
                if found.failed:
                    failed[order.name] = found.failed
                    say.note(f"chip {order.name}: {found.failed}")
                else:
                    done[order.name] = _kept(out, order.name, keys[order.name], found)
                tell(len(done) + len(failed), len(orders), _said(order.name, found.course))
    return Fleet(plan, {one.name: done[one.name] for one in plan.chips if one.name in done}, failed)


def order_of(plan: Plan, one: Planned, faults: FaultMap) -> Order:
    """A chip's job: judged before and behind its amount; where it may end earlier, at the table's stops between, too."""
    most = one.iterations or 0
    between = [stop for stop in plan.stops if stop < most] if plan.until is not None else []
    return Order(name=one.name, chip=chips.packed(faults), stops=tuple(sorted({0, *between, most})), until=plan.until)


def _run(shared: Shared, orders: Sequence[Order], pool: Pool) -> Iterator[tuple[Order, Done]]:
    try:
        for place, done in each(work, msgspec.msgpack.encode(shared), orders, pool):
            yield orders[place], done
    except WorkerLost as error:
        which = "" if error.place is None else f"chip {orders[error.place].name}: "
        raise WorkerLost(error.place, f"{which}{error}") from error


def _kept(out: Path, name: str, key: str, found: Done) -> Retrained:
    """Leaves a chip's network, and then its result. Raises ValueError where a worker sent what is no network."""
    sha256 = storage.digest(storage.from_bytes(found.network))
    course = found.course
    one = Retrained(key=key, name=name, chip=course.chip, iterations=course.points[-1].iterations, sha256=sha256, course=course)
    write_whole(model_file(out, name), found.network)
    write_whole(result_file(out, name), msgspec.json.format(msgspec.json.encode(one)) + b"\n")
    return one


def _known(out: Path, name: str, key: str, say: Display) -> Retrained | None:
    """What an earlier command left. Raises ValueError where that is of another plan: it would be lost."""
    path = result_file(out, name)
    try:
        one = msgspec.json.decode(path.read_bytes(), type=Retrained)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ValueError(f"{path}: {error}; delete it, and the chip is retrained anew") from error
    if one.key != key:
        raise ValueError(f"{path}: key: the result of another plan; give another --out, or delete {out / CHIPS}")
    try:
        found = storage.digest(storage.load(model_file(out, name)))
    except (OSError, ValueError) as error:
        say.note(f"{model_file(out, name)}: {error}; the chip is retrained again")
        return None
    if found != one.sha256 or not one.course.points:
        say.note(f"{model_file(out, name)}: not the network of {path}; the chip is retrained again")
        return None
    return one


def model_file(out: Path, name: str) -> Path:
    """A chip's int8 network."""
    return out / CHIPS / f"{name}.safetensors"


def result_file(out: Path, name: str) -> Path:
    """A chip's ``Retrained``."""
    return out / CHIPS / f"{name}.json"


@contextmanager
def _own(out: Path) -> Iterator[None]:
    """This process alone writes below the folder."""
    try:
        (out / CHIPS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: results cannot be put there (--out): {error.strerror}") from error
    with folders.locked(out):
        yield


def _said(name: str, course: Course) -> str:
    if not course.points:
        return f"{name}: failed"
    first, last = course.points[0], course.points[-1]
    return f"{name}: {first.accuracy:.1f} to {last.accuracy:.1f} % in {last.iterations}"
