"""Writes docs/systems-results.md from the lines of results.jsonl: goals, figures, the swap.

    python -m benchmarks.systems.results_page

No figure on the page is typed in but the goals and the published one: all others are of the lines or of the settings. A
test compares the page with what this makes of the lines.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines, series
from benchmarks.curves import Panel, figure, holds
from benchmarks.splits import HELD_OUT
from benchmarks.systems import amdim, amdim_hour, mine, pixels, report, swap
from benchmarks.systems.__main__ import SYSTEMS
from benchmarks.systems.runs import RESULTS, Goal, as_planned
from benchmarks.systems.time_contrastive import FRAMES
from benchmarks.tschannen2020.runs import RESULTS as OF_THE_PAPER
from contrastive.files import write_text

__all__ = ["PAGE", "page"]

Row = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "systems-results.md"
HOUR = PAGE.with_name("amdim-hour.svg")
INTRODUCTION = """# What the systems reach

*Written by `python -m benchmarks.systems.results_page` from the lines of
[results.jsonl](../benchmarks/systems/results.jsonl); do not edit.* The preset `quick`: small encoders, minutes of one
thread, {least:,} to {most:,} training images (CIFAR-10, MNIST; MINE: correlated Gaussians), each system's headline
form; their [other forms](#other-arms) below.
Probes are fitted on training images; test images are looked at once a run. What the systems are, and every deviation:
[systems](systems.md).
"""
COMMANDS = """    python -m benchmarks.systems --preset quick --data-root DATA
    python -m benchmarks.systems.pixels --preset quick --data-root DATA
    python -m benchmarks.systems.swap --preset quick --data-root DATA
    python -m benchmarks.systems.amdim_hour --preset quick --data-root DATA --threads 2
"""
NATS = """Nats are log K - L on test images, of an image's views; IMSAT's and IIC's are of an image and its class. Where
every image brings many columns (Deep InfoMax, AMDIM) the bound holds and lies below zero: it says nothing of the
information, which is not below zero."""
CHANCE = """TCN's alignment error is a share of the video; a match at random is off by {:.1f} %. Deep CCA's probes read
what it makes of the left halves: their own pixels are the last row."""
OTHERS = """The systems' other forms, by the same preset and probes, held against their headline's goal. Nothing was
tuned for them, and whatever came out is here. Nats are the same bound, whatever trained the scores that it reads. That
of Deep InfoMax's global form has one column an image, the map that the code is computed from: it is at its cap, and
the probes gain less than those of its other forms."""
SCHEDULE = """The truth is known, and the value is no bound: it may err to either side. The goal is to be nowhere
further off than a pilot was (one seed, a separable critic, 2,000 steps a level); it was stated when these runs were
known. Their critic is a perceptron of both variables, 500 steps a level; what a separable one reads is printed by
`python -m benchmarks.estimators.gaussians --table`."""
SWAP = f"""How much of the success is the negatives, and how much the critic? Four systems, their own negatives, HCL and
the 16 hardest, each with their own critic and with a plain inner product: \
{len(swap.SYSTEMS) * len(swap.MINERS) * len(swap.CRITICS)} cells of {swap.STEPS} steps on {swap.IMAGES:,} images.
Linear probe in percent, with the difference from the system's own cell, paired by seed, its 95 % t-interval, and the
number of seeds. The plain inner product has no temperature and no normalised rows (SimCLR, MoCo, CMC), or linear maps
in the place of residual heads (Deep InfoMax), so more than the formula of the score is exchanged."""
EFFECTS = (
    "One block exchanged, in points: the mean over the four systems, of every seed, and its 95 % t-interval over these."
)


HALVES = Goal(
    "linear probe at least 3 points above raw pixels",
    lambda row: 100 * float(row["test_accuracy"] - row["of_pixels"]),
    least=3.0,
)


def page(rows: Sequence[Row], papers: Sequence[Row]) -> str:
    """The page.

    Arguments:
        rows: all lines.
        papers: all lines of `benchmarks.tschannen2020`, for the halves of digits.
    """
    rows = [row for row in rows if row["config"]["preset"] == "quick" and row["config"]["judged_on"] == "test"]
    of_systems = [row for row in rows if row["experiment"] in SYSTEMS]
    of_pixels = [row for row in rows if row["experiment"] in {system.name for system in pixels.SYSTEMS}]
    of_swap = [row for row in rows if row["experiment"] in {system.name for system in swap.SYSTEMS}]
    earlier = [row for row in of_systems if not as_planned(SYSTEMS[row["experiment"]], row)]
    of_systems = [row for row in of_systems if as_planned(SYSTEMS[row["experiment"]], row)]
    order = list(SYSTEMS)
    of_systems.sort(key=lambda row: (order.index(row["experiment"]), row["config"]["arm"], row["seed"]))
    images = [row["config"]["budget"]["images"] for row in of_systems]
    others = [row for row in of_systems if row["config"]["arm"] != headline(row["experiment"])]
    of_systems = [row for row in of_systems if row not in others]
    parts = [
        INTRODUCTION.format(least=min(images, default=0), most=max(images, default=0)),
        COMMANDS,
        lines.provenance(rows),
        "## The goals",
        "Means over seeds; 95 % t-intervals, where there are two.",
        lines.markdown([*report.goals(list(SYSTEMS.values()), of_systems), halves(papers)]),
        "The halves are those of Tschannen et al. (2020), the ConvNet brought to I_NCE = 4: [the paper's "
        "page](reproduction.md).",
        "## The figures",
        "Shares in percent. Untrained encoders have the batch norms of training images. ± is the standard deviation "
        "over seeds.",
        NATS,
        CHANCE.format(100 * (FRAMES**2 - 1) / (3 * FRAMES**2)),
        report.text([*of_systems, *of_pixels]),
        *(["With a budget that is no longer the preset's:", report.text(earlier)] if earlier else []),
        "## MINE on the Gaussian schedule",
        SCHEDULE,
        schedule([row for row in of_systems if row["experiment"] == mine.SYSTEM.name and row["status"] == "ok"]),
        "## Other arms",
        *(other_arms(others, of_pixels) if others else ["None was run yet."]),
        "## The swap",
        SWAP,
        swap.table(of_swap) if of_swap else "No cell was run yet.",
        *([EFFECTS, swap.effects(of_swap)] if of_swap else []),
        "## AMDIM, an hour of two cores",
        hour([row for row in rows if row["experiment"] == amdim_hour.SYSTEM.name and row["status"] == "ok"]),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def halves(papers: Sequence[Row]) -> list[str]:
    """The row of goals that belongs to the paper's own experiment: a ConvNet on halves of digits, beside pixels.

    Arguments:
        papers: all lines of `benchmarks.tschannen2020`.
    """
    quick = {"data": "mnist", "preset": "quick"}
    convnet_at_4 = {"encoder": "convnet", "objective": "nce", "target": 4}
    arms = {
        "baselines": {**quick, "noise": 0, "encoder": "pixels"},
        # Runs with other products are the same seeds once more.
        "architectures": {**quick, **convnet_at_4, "products": "float32"},
    }
    pixels_, convnet = (
        [row for row in papers if row["experiment"] == name and row["status"] == "ok" and holds(row["config"], arm)]
        for name, arm in arms.items()
    )
    values = [HALVES.figure(row | {"of_pixels": pixels_[0]["test_accuracy"]}) for row in convnet if pixels_]
    return report.goal_row("halves of digits, ConvNet", HALVES, values)


def headline(name: str) -> str:
    """The arm that stands for a system: the first.

    Arguments:
        name: of the system.
    """
    return next(iter(SYSTEMS[name].plans["quick"].arms))


def schedule(rows: Sequence[Row]) -> str:
    """Estimate and truth at every level.

    Arguments:
        rows: lines of `mine`.
    """
    made = [["truth, nats", "every seed", "mean", "off by, nats", "of the truth", "the pilot was off by, nats"]]
    for level, pilot in mine.PILOT.items():
        found = [row["trained"][f"of {level} nats"] for row in rows]
        values = [value for value in found if value is not None]
        every = ", ".join("lost" if value is None else f"{value:.2f}" for value in found)
        off = statistics.fmean(values) - level if values else math.nan
        told = [f"{level + off:.2f}", f"{off:+.2f}", f"{100 * off / level:+.0f} %"] if values else ["", "", ""]
        made.append([str(level), every, *told, f"{pilot - level:+.2f}"])
    return lines.markdown(made)


def other_arms(rows: Sequence[Row], of_pixels: Sequence[Row]) -> list[str]:
    """Goals and figures of the forms that are not the headline.

    Arguments:
        rows: their lines.
        of_pixels: lines of `pixels`; those of the same images stand beside.
    """
    run = [system for system in SYSTEMS.values() if any(row["experiment"] == system.name for row in rows)]
    beside = {f"pixels of {row['config']['data']}" for row in rows}
    shown = [*rows, *(row for row in of_pixels if row["experiment"] in beside)]
    return [OTHERS, lines.markdown(report.goals(run, rows)), report.text(shown)]


def hour(rows: Sequence[Row]) -> str:
    """What a larger budget gives AMDIM, and how far that is from what its authors report.

    Arguments:
        rows: lines of `amdim_hour`.
    """
    if not rows:
        return "Not run yet."
    last = rows[-1]
    budget, width = last["config"]["budget"], last["config"]["options"]["width"]
    paper = amdim.SYSTEM.plans["paper"]
    reached, published = 100 * last["trained"]["linear"], 100 * amdim_hour.PUBLISHED
    epochs = budget["steps"] * budget["batch"] / budget["images"]
    told = f"""{last["seconds"] / 60:.0f} minutes of {last["hardware"]["threads"]} threads: \
{budget["steps"]:,} steps of {budget["batch"]} images, {epochs:.0f} epochs of {budget["images"]:,}, an encoder \
{width} channels wide;
settings of one try, none was tuned. The linear probe reads {reached:.1f} % of test images.{course(last["curves"])}

The authors report {published:.1f} % (as quoted elsewhere; their table was not at hand). The preset `paper` has the
settings of their code, made for graphics cards: {paper.options["width"]} channels, {paper.budget.steps:,} steps of \
{paper.budget.batch} images.
The gap of {published - reached:.1f} points is of budget and width together: neither was varied alone."""
    return "\n\n".join([report.text(rows), f"![Probes of held-out images by iteration]({HOUR.name})", told])


def course(curves: dict[str, list[float]]) -> str:
    """How the last stretch of the curves ran, in a sentence; nothing of a single point.

    Arguments:
        curves: of a line of `amdim_hour`.
    """
    if len(curves["iteration"]) < 2:
        return ""
    first, last = ({name: values[point] for name, values in curves.items()} for point in (-2, -1))
    trained_on, judged_on = amdim_hour.CURVE_IMAGES, min(amdim_hour.CURVE_IMAGES, HELD_OUT)
    return f""" From step {first["iteration"]:,} to {last["iteration"]:,}
the loss went from {first["loss"]:.2f} to {last["loss"]:.2f}, and a linear probe of {trained_on:,} training images
from {100 * first["held_out_linear"]:.1f} to {100 * last["held_out_linear"]:.1f} % of {judged_on:,} held-out ones."""


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draws the curve of `hour`, the published figure as a line.

    Arguments:
        rows: all lines.
        path: of the picture; nothing is written where there is no curve.
    """
    own = [row for row in rows if row["experiment"] == amdim_hour.SYSTEM.name and row["config"]["preset"] == "quick"]
    from matplotlib import rc_context

    level = (amdim_hour.PUBLISHED, f"published: {100 * amdim_hour.PUBLISHED:.1f} %")
    drawn = figure(
        [
            Panel("linear probe of held-out images", "held_out_linear", "accuracy", level=level),
            Panel("k-NN of held-out images", "held_out_knn", "accuracy"),
            Panel("loss", "loss", "loss"),
        ],
        own,
    )
    if drawn is not None:
        with rc_context({"svg.hashsalt": "kpair"}):  # the same lines, the same file
            drawn.savefig(path, metadata={"Date": None})


def main() -> None:
    rows = series.recorded(RESULTS)
    picture(rows, HOUR)
    write_text(PAGE, page(rows, series.recorded(OF_THE_PAPER)))
    print(PAGE)


if __name__ == "__main__":
    main()
