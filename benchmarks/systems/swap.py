"""One block exchanged at a time: how much of four systems is their negatives, and how much their critic?

    python -m benchmarks.systems.swap --preset quick --data-root DATA
    python -m benchmarks.systems.swap --preset quick --table

SimCLR, MoCo, CMC and Deep InfoMax, each with its own negatives, those weighted by hardness (HCL) and the 16 hardest
alone, each of these with its own critic and with a plain inner product: 24 cells, a part of the systems' own budgets.
Everything else of a cell is its system's, and the seeds are paired. An interrupted series goes on where it stopped.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks import lines, series
from benchmarks.systems import cmc, deep_infomax, moco, simclr
from benchmarks.systems.runs import SEEDS, Plan, System, parser, results_of, wanted
from contrastive.errors import InputError

MINERS = ("none", "hcl 1", "top 16")
CRITICS = ("own", "inner product")
ARMS = {"cmc": "in batch", "deep_infomax": "local, NCE"}
STEPS, IMAGES = 100, 10_000


def smaller(system: System) -> System:
    """The headline form of a system at the budget of the table.

    Arguments:
        system: of this folder.
    """
    plans = {}
    for preset in ("smoke", "quick"):
        plan = system.plans[preset]
        arm = ARMS.get(system.name, "")
        budget = plan.budget if preset == "smoke" else replace(plan.budget, steps=STEPS, images=IMAGES)
        plans[preset] = Plan(budget, {**plan.options, **plan.arms[arm]})
    return replace(system, name=f"swap {system.name}", plans=plans)


SYSTEMS = tuple(smaller(module.SYSTEM) for module in (simclr, moco, cmc, deep_infomax))


def cells(options: argparse.Namespace) -> list[series.Run]:
    """All runs of the table: the first seed of every cell comes before the second of any.

    Arguments:
        options: of the command line.
    """
    found = [
        run
        for miner in MINERS
        for critic in CRITICS
        for run in wanted(SYSTEMS, argparse.Namespace(**{**vars(options), "miner": miner, "critic": critic}))
    ]
    return sorted(found, key=lambda run: run.seed)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Linear probes on test images: system and critic down, negatives across, with the paired difference.

    Arguments:
        rows: lines of the cells.
    """
    values = _by_cell(rows)
    random: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            random[row["experiment"]].append(row["random"]["linear"])
    made = [["system", "critic", "untrained", *("own negatives" if miner == "none" else miner for miner in MINERS)]]
    for system in SYSTEMS:
        own = values[system.name, "own", "none"]
        for critic in CRITICS:
            untrained = f"{100 * statistics.fmean(random[system.name]):.1f}" if random[system.name] else ""
            texts = [_cell(values[system.name, critic, miner], own) for miner in MINERS]
            made.append([system.name.removeprefix("swap "), critic, untrained, *texts])
    failed = [row for row in rows if row["status"] != "ok"]
    told = [f"failed: {r['experiment']}, {r['config']['critic']}, {r['config']['miner']}: {r['error']}" for r in failed]
    return "\n\n".join([lines.markdown(made), *told])


def _by_cell(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str, str], dict[int, float]]:
    """Linear probes by system, critic and miner; of each, by seed."""
    values: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row["status"] == "ok":
            config = row["config"]
            values[row["experiment"], config["critic"], config["miner"]][row["seed"]] = row["trained"]["linear"]
    return values


def effects(rows: Sequence[dict[str, Any]]) -> str:
    """What exchanging one block does to all systems: every seed's mean over them, with an interval over seeds.

    Arguments:
        rows: lines of the cells.
    """
    values = _by_cell(rows)
    made = [["exchanged", "every seed", "mean"]]
    for critic, miner in ((CRITICS[1], MINERS[0]), *((CRITICS[0], miner) for miner in MINERS[1:])):
        pairs = [(values[s.name, critic, miner], values[s.name, CRITICS[0], MINERS[0]]) for s in SYSTEMS]
        seeds = sorted(set.intersection(*(cell.keys() & own.keys() for cell, own in pairs)))
        means = [100 * statistics.fmean(cell[seed] - own[seed] for cell, own in pairs) for seed in seeds]
        spread = f" ± {lines.half_width(means):.1f}" if len(means) > 1 else ""
        told = "critic: inner product" if miner == MINERS[0] else f"negatives: {miner}"
        every = ", ".join(f"{mean:+.1f}" for mean in means)
        made.append([told, every, f"{statistics.fmean(means):+.1f}{spread}" if means else "not run"])
    return lines.markdown(made)


def _cell(values: dict[int, float], own: dict[int, float]) -> str:
    if not values:
        return "not run"
    mean = f"{100 * statistics.fmean(values.values()):.1f}"
    pairs = [values[seed] - own[seed] for seed in sorted(values.keys() & own.keys())]
    if values is own or not pairs:
        return f"{mean} ({len(values)})"
    spread = f" ± {100 * lines.half_width(pairs):.1f}" if len(pairs) > 1 else ""
    return f"{mean} ({100 * statistics.fmean(pairs):+.1f}{spread}; {len(pairs)})"


def main(given: Sequence[str] | None = None) -> None:
    """Does what is missing of the table and prints it.

    Arguments:
        given: the words of the command line; None for those of the process.
    """
    made = parser(__doc__)
    made.add_argument("--table", action="store_true", help="run nothing")
    options = series.parsed(made, SEEDS, given)
    with series.refusals():
        if options.preset == "paper" or (options.miner, options.critic) != ("none", "own"):
            raise InputError("the table has all miners and critics, and the presets smoke and quick")
        asked = cells(options)
        if options.table:
            keys = {run.key for run in asked}
            rows = [row for row in series.recorded(results_of(options)) if series.key_of(row) in keys]
        else:
            rows = series.perform(asked, results_of(options), quiet=options.quiet, processes=options.processes)
    print(table(rows))


if __name__ == "__main__":
    main()
