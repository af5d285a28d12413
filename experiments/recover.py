"""How much of what faults cost does retraining win back? One network, one bit error rate, one number.

``python -m experiments.recover --network squeezenet1_1 --weights FILE --data FILE --ber 1e-4 --json FILE`` quantises the
network, retrains it on the faulty device in one process, which ends with the pipeline's model bit for bit, and prints and
writes ``clean``, ``before`` and ``after`` (mean, standard deviation and n over fault seeds, in per cent), ``recovered`` =
(after - before) / (clean - before), and the iterations and bytes that it took.

At most 1600 iterations, unless ``--epochs`` or ``--iterations`` say otherwise: where the epochs take more, batches are of up to
128 images, unless ``--batch`` says otherwise.

``before`` is the network as the paper has it, in signed arithmetic and not retrained; ``clean`` is that one without faults.
Accuracy is top-5 from 100 classes on, else top-1, on images that chose nothing (``experiments.common.splits``); all are
evaluated under the same fault seeds. ``--report-data FILE.npz`` with arrays ``images`` and ``labels`` reports on other images.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from accelsim import datasets
from accelsim.faults import Rates
from accelsim.files import write_whole
from experiments.common import command, protecting, retraining, splits
from experiments.common.retraining import Accuracy
from r2f import settings as r2f_settings
from r2f.protection.words import SHARES
from r2f.settings import Settings

OVERHEADS = (0, 20, 50, 200)
"""Per cent that can be given."""
EVERY = 25
"""Iterations between two signs of life."""


MOST = 1600
"""Iterations where neither epochs nor iterations are given, if the recipe's epochs are more: 20,000 small images five times
over come in larger batches, which is what they are learnt from best (docs/results.md)."""
LARGEST = 128
"""Images of such a batch."""


class Recovered(msgspec.Struct, kw_only=True, frozen=True):
    """What ``--json`` writes."""

    network: str
    data: str
    ber: float
    overhead: int
    """Per cent of the unprotected network's cycles that protection may add."""
    overhead_used: float
    """Per cent that it did add, on the images that are reported."""
    metric: str
    images: int
    """That every accuracy is of."""
    seeds: tuple[int, ...]
    """Of faults, one an accuracy."""
    clean: Accuracy
    """Signed arithmetic, not retrained, without faults."""
    before: Accuracy
    """The same with faults, nothing protected."""
    after: Accuracy
    """Retrained and protected, with faults."""
    untrained: Accuracy
    """As quantised for its faults, with them, neither retrained nor protected."""
    clean_after: Accuracy
    """Retrained, without faults."""
    recovered: float | None
    """(after - before) / (clean - before); None where faults cost nothing."""
    deployed: str
    """Which network: the one from before where none was better beyond its error bars."""
    iterations: int
    bytes: int
    """That crossed the link in training, both ways: bodies alone, without the framing that the bus adds."""
    bytes_up: int
    bytes_down: int
    seconds: float
    """Of everything, on this machine."""
    recipe: dict[str, Any]
    """The training's settings by name."""


def share(clean: Accuracy, before: Accuracy, after: Accuracy) -> float | None:
    """Share of the loss that was won back; None where nothing was lost."""
    lost = clean.mean - before.mean
    return round((after.mean - before.mean) / lost, 4) if lost > 0 else None


def capped(settings: Settings, images: int, most: int, largest: int = LARGEST) -> Settings:
    """The settings with at most so many iterations in all, where their epochs of so many training images are more: by batches
    that are doubled, though not beyond ``largest``, and where that is not enough by fewer epochs."""
    if settings.iterations is not None:
        return settings
    batch = settings.batch
    while settings.recipe.epochs * -(-images // batch) > most:
        if 2 * batch > largest:
            return msgspec.structs.replace(settings, batch=batch, iterations=most)
        batch *= 2
    return msgspec.structs.replace(settings, batch=batch)


def recover(
    settings: Settings,
    *,
    overhead: int = 0,
    seeds: int = retraining.SEEDS,
    report: Path | None = None,
    most: int | None = None,
    largest: int = LARGEST,
) -> Recovered:
    """The whole measurement; ``most`` and ``largest``: see ``capped``.

    Raises ValueError that names what does not fit, TrainingDiverged where training fails.
    """
    start = time.perf_counter()
    source = datasets.open(settings.data)
    data = splits.reporting(source, report)
    if most is not None:
        settings = capped(settings, len(data.train_images), most, largest)
    module = retraining.float_module(settings, data)
    paper = retraining.quantised(retraining.signed(settings), module, source)
    networks = [retraining.quantised(settings, module, source, share) for share in (SHARES if overhead else SHARES[:1])]
    network = protecting.fitting(settings, networks, paper, data, overhead / 100, "estimated")
    which = retraining.metric(network.layers[-1].shape[2])
    chosen = retraining.fault_seeds(seeds)
    clean = retraining.over(retraining.evaluated(paper, data, Rates(), chosen, settings.scheme), which)
    before = retraining.over(retraining.evaluated(paper, data, settings.rates, chosen, settings.scheme), which)
    untrained = retraining.over(retraining.evaluated(network, data, settings.rates, chosen, settings.scheme), which)
    after, spent, settings = protecting.retrained(settings, network, data, overhead / 100, "estimated", watch=_said)
    clean_after = retraining.over(retraining.evaluated(after, data, Rates(), chosen, settings.scheme), which)
    found = retraining.over(retraining.evaluated(after, data, settings.rates, chosen, settings.scheme), which)
    return Recovered(
        network=settings.network,
        data=data.name,
        ber=settings.rates.input,
        overhead=overhead,
        overhead_used=round(100 * protecting.cost(after, settings.scheme, data.test_images, settings.rates, chosen), 2),
        metric=which,
        images=len(data.test_images),
        seeds=chosen,
        clean=clean,
        before=before,
        after=found,
        untrained=untrained,
        clean_after=clean_after,
        recovered=share(clean, before, found),
        deployed=spent.deployed,
        iterations=spent.iterations,
        bytes=spent.up + spent.down,
        bytes_up=spent.up,
        bytes_down=spent.down,
        seconds=round(time.perf_counter() - start, 1),
        recipe=retraining.recipe(settings),
    )


def _said(iterations: int) -> None:
    """A line on stderr, now and then: a run takes minutes."""
    if iterations % EVERY == 0:
        print(f"recover: {iterations} iterations", file=sys.stderr, flush=True)


def lines(found: Recovered) -> str:
    """The result for people."""
    rows = [
        ("clean", found.clean), ("before", found.before), ("quantised for it", found.untrained), ("after", found.after),
        ("after, no faults", found.clean_after),
    ]  # fmt: skip
    what = f"{found.network} on {found.data}, BER {found.ber:g}, overhead {found.overhead} %"
    said = [f"{what}: {found.metric} of {found.images} images"]
    said += [f"  {name:18} {value.mean:6.2f} ± {value.std:.2f} %  (n = {value.n})" for name, value in rows]
    won = "nothing was lost" if found.recovered is None else f"{100 * found.recovered:.1f} %"
    said.append(f"  {'recovered':18} {won}")
    if found.overhead:
        said.append(f"  {'overhead used':18} {found.overhead_used:.1f} %")
    said.append(f"  {'deployed':18} {found.deployed}")
    said.append(f"  {found.iterations} iterations, {found.bytes_up / 1e6:.2f} MB up, {found.bytes_down / 1e6:.2f} MB down")
    return "\n".join(said)


def main() -> None:
    """Measures, prints and writes."""
    parser = command.parser(__doc__)
    parser.add_argument(
        "--network", default=r2f_settings.DEMO_NETWORK, help="of the zoo, or package.module:function [%(default)s]"
    )
    parser.add_argument("--weights", help="trained float weights; the digits' network is trained here without")
    parser.add_argument("--data", default="digits", help="'digits', an .npz file or a folder of images [%(default)s]")
    parser.add_argument("--image-size", help="HxWxC of a folder's images")
    parser.add_argument("--classes", help="file with the network's class names in its order, for a folder")
    parser.add_argument("--ber", type=command.rate, default=1e-4, help="at inputs, weights and outputs [%(default)s]")
    parser.add_argument(
        "--overhead", type=int, choices=OVERHEADS, default=0, help="per cent of cycles for protection [%(default)s]"
    )
    parser.add_argument("--report-data", type=Path, metavar="FILE.npz", help="report on its images and labels instead")
    parser.add_argument("--eval-seeds", type=command.positive, default=retraining.SEEDS, help="fault seeds [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the result")
    retraining.add_recipe(parser)
    given = parser.parse_args()
    most = MOST if given.epochs is None else None
    settings = settings_of(given)
    found = recover(
        settings,
        overhead=given.overhead,
        seeds=given.eval_seeds,
        report=given.report_data,
        most=most,
        largest=settings.batch if given.batch is not None else LARGEST,
    )
    print(lines(found))
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        write_whole(given.json, msgspec.json.format(msgspec.json.encode(found)) + b"\n")


def settings_of(given: argparse.Namespace) -> Settings:
    """The run's settings that a command line gives. Raises SettingsError."""
    own = {
        name: getattr(given, name.replace("-", "_")) for name in ("network", "weights", "data", "image-size", "classes", "ber")
    }
    return r2f_settings.parse(own | retraining.given_recipe(vars(given)))


if __name__ == "__main__":
    command.run(main)
