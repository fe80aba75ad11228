"""What a file of this folder declares, its command line, and the runs that follow from both."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import series
from benchmarks.series import Config, Tick
from benchmarks.systems import data, training
from benchmarks.systems.training import Budget, Learner
from benchmarks.under_way import kept
from contrastive import Bilinear, Cosine, InnerProduct, Separable
from contrastive.batches import derived_seed
from contrastive.errors import InputError
from contrastive.scores import WeighsNegatives
from miners import hcl, semihard, topk

__all__ = [
    "CRITICS",
    "EIGHT_POINTS",
    "MINERS",
    "SEEDS",
    "Blocks",
    "Goal",
    "Plan",
    "System",
    "as_planned",
    "folder_of",
    "main",
    "of_preset",
    "parser",
    "perform",
    "planned",
    "points_gained",
    "results_of",
    "wanted",
]

RESULTS = Path(__file__).with_name("results.jsonl")
SEEDS = {"smoke": 1, "quick": 3, "paper": 1}
Shape = tuple[int, int, int]

MINERS: dict[str, WeighsNegatives | None] = {
    "none": None,
    "hcl 0.5": hcl(0.5),
    "hcl 1": hcl(1.0),
    "top 16": topk(16),
    "semihard": semihard(0.2),
}
# What `--critic` may put in the place of a system's own, by the width of its rows.
CRITICS: dict[str, Callable[[int], torch.nn.Module]] = {
    "inner product": lambda dim: InnerProduct(),
    "cosine": lambda dim: Cosine(0.1),
    "bilinear": Bilinear,
    "separable": Separable,
}


@dataclass(frozen=True)
class Blocks:
    """A system's row of the table: in what it differs from the others.

    Arguments:
        views: what makes two things of one image.
        encoder: what maps them.
        critic: what scores them.
        negatives: what a positive is told from.
        objective: what is minimised.
        nats: whether the objective's number may be called nats, and why.
    """

    views: str
    encoder: str
    critic: str
    negatives: str
    objective: str
    nats: str


@dataclass(frozen=True)
class Plan:
    """What a preset runs.

    Arguments:
        budget: of the training.
        options: of the system's `build`.
        arms: options on top of them, by name, where a system has several forms; the first is the headline.
        dataset: what it is trained on, where that is not the system's.
    """

    budget: Budget
    options: Mapping[str, Any] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"": {}})
    dataset: str | None = None


@dataclass(frozen=True)
class Goal:
    """What the quick preset should reach, on average over seeds.

    Arguments:
        text: in words.
        figure: of a line.
        least: not below.
        most: not above.
    """

    text: str
    figure: Callable[[dict[str, Any]], float]
    least: float = -math.inf
    most: float = math.inf


def points_gained(row: dict[str, Any]) -> float:
    """By how many points the linear probe is above that of the untrained encoder.

    Arguments:
        row: line of a run.
    """
    return 100 * float(row["trained"]["linear"] - row["random"]["linear"])


EIGHT_POINTS = Goal("linear probe at least 8 points above the untrained encoder", points_gained, least=8.0)


def every_arm(options: Mapping[str, Any]) -> bool:
    """All arms have negatives that a miner may weigh."""
    return True


@dataclass(frozen=True)
class System:
    """One file of this folder.

    Arguments:
        name: of the file.
        title: the system and its paper.
        blocks: its row of the table.
        build: ``(shape, *, miner, critic, **options)`` to a `Learner`. `critic` is one of `CRITICS`, or None for the
            system's own.
        plans: by preset. That of ``paper`` holds the published hyper-parameters; nobody has run it here.
        dataset: what it is trained on.
        select: which images of it; `data.everything` unless a system holds some back.
        seconds: about how many a step takes, for the time left.
        work: everything at once, for a system that is not trained on batches of images; None for `training.run`.
        swaps: which of ``miner`` and ``critic`` it has; `build` takes no others.
        mined: whether a miner weighs the negatives of an arm, by its options.
        goal: what it should reach; None where there is no number to hold it against.
    """

    name: str
    title: str
    blocks: Blocks
    build: Callable[..., Learner]
    plans: Mapping[str, Plan]
    dataset: str = "cifar10"
    select: Callable[[data.Images], data.Images] = data.everything
    seconds: float = 0.3
    work: Callable[[Config, int, Tick], dict[str, Any]] | None = None
    swaps: tuple[str, ...] = ("miner", "critic")
    mined: Callable[[Mapping[str, Any]], bool] = every_arm
    goal: Goal | None = None


def planned(system: System, options: argparse.Namespace) -> list[Config]:
    """The configurations that are asked for.

    Arguments:
        system: of this folder.
        options: of `parser`.

    Raises:
        InputError: for a block that the system has not, to be swapped, and for a miner with an arm of ``--arms`` whose
            negatives it cannot weigh.
    """
    for name, own in (("miner", "none"), ("critic", "own")):
        if getattr(options, name) != own and name not in system.swaps:
            told = f"critic: {system.blocks.critic}; negatives: {system.blocks.negatives}"
            raise InputError(f"{system.name} has no {name} to swap ({told}); name other systems with --only")
    plan = system.plans[options.preset]
    dataset = plan.dataset or system.dataset
    return [
        {
            "preset": options.preset,
            "data": f"made-up {dataset}" if options.made_up else dataset,
            "judged_on": options.judged_on,
            "arm": arm,
            "miner": options.miner,
            "critic": options.critic,
            "budget": _as_read(asdict(plan.budget)),
            "options": _as_read(own),
        }
        for arm, own in _arms(system, options).items()
    ]


def _arms(system: System, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The options of every arm that is asked for; with a miner and no arms named, of those that it applies to."""
    plan = system.plans[options.preset]
    every = {arm: {**plan.options, **own} for arm, own in plan.arms.items()}
    mined = [arm for arm, own in every.items() if options.miner == "none" or system.mined(own)]
    named = mined if options.arms is None else [arm for arm in every if arm in options.arms]
    for arm in named:
        if arm not in mined:
            raise InputError(
                f"{system.name}: no miner weighs the negatives of {arm!r}, expected arms among "
                f"{', '.join(map(repr, mined))}"
            )
    return {arm: every[arm] for arm in named}


def as_planned(system: System, row: dict[str, Any]) -> bool:
    """Whether a line has the settings that its preset has now; what was chosen anew leaves its old lines there.

    Arguments:
        system: of this folder.
        row: line of one of its runs.
    """
    config, plan = row["config"], system.plans[row["config"]["preset"]]
    options = _as_read({**plan.options, **plan.arms.get(config["arm"], {})})
    return bool(config["budget"] == _as_read(asdict(plan.budget)) and config["options"] == options)


def _as_read(value: Any) -> Any:
    """Tuples as the lists that JSON makes of them: a configuration is compared with one that was read."""
    if isinstance(value, Mapping):
        return {key: _as_read(inner) for key, inner in value.items()}
    return [_as_read(inner) for inner in value] if isinstance(value, list | tuple) else value


def wanted(systems: Sequence[System], options: argparse.Namespace) -> list[series.Run]:
    """The runs that are asked for, whether they are there or not: all systems of a seed, then the next seed.

    Arguments:
        systems: of this folder.
        options: of `parser`.

    Raises:
        InputError: for an arm that no system has, and what `planned` refuses.
    """
    there = dict.fromkeys(arm for system in systems for arm in system.plans[options.preset].arms if arm)
    for arm in options.arms or ():
        if arm not in there:
            known = f"there are {', '.join(map(repr, there))}" if there else "there is one form"
            raise InputError(f"--arms: no arm {arm!r} of {', '.join(s.name for s in systems)}; {known}")
    return [
        series.Run(
            system.name,
            config,
            seed,
            partial(_work, system, config, options, seed),
            cost=system.seconds * config["budget"]["steps"] + 30,
            told=", ".join(str(config[key]) for key in ("arm", "miner", "critic") if config[key] not in ("", "none")),
            ready=partial(_data_of, system, config, options) if system.work is None else series.nothing,
        )
        for seed in range(options.seeds)
        for system in systems
        for config in planned(system, options)
    ]


def perform(systems: Sequence[System], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Does what is missing, and returns the lines of all that was asked for.

    Arguments:
        systems: of this folder.
        options: of `parser`.
    """
    return series.perform(
        wanted(systems, options), results_of(options), quiet=options.quiet, processes=options.processes
    )


def _data_of(system: System, config: Config, options: argparse.Namespace) -> data.Images:
    name, count = config["data"], config["budget"]["images"]
    if name.startswith("made-up "):
        return system.select(data.made_up(name.removeprefix("made-up "), count))
    return system.select(data.load(name, options.data_root, count, download=options.download))


def _work(system: System, config: Config, options: argparse.Namespace, seed: int, tick: Tick) -> dict[str, Any]:
    if system.work is not None:
        return system.work(config, seed, tick)
    images = _data_of(system, config, options)
    learner = built(system, config, images.shape, seed)
    judged_on = {"test": images.test, "held-out": images.held_out}[config["judged_on"]]
    key = series.key_of({"experiment": system.name, "config": config, "seed": seed})
    budget = Budget(**config["budget"])
    work = partial(training.run, learner, images, judged_on, budget, seed, tick)
    return kept(results_of(options), key, lambda keep: work(keep=keep))


def built(system: System, config: Config, shape: Shape, seed: int) -> Learner:
    """The system of a configuration, untrained.

    Arguments:
        system: of this folder.
        config: of `planned`.
        shape: of an image.
        seed: of the weights.
    """
    torch.manual_seed(derived_seed(seed, 0))
    critic = None if config["critic"] == "own" else CRITICS[config["critic"]]
    blocks = {"miner": MINERS[config["miner"]], "critic": critic}
    return system.build(shape, **{name: blocks[name] for name in system.swaps}, **config["options"])


def results_of(options: argparse.Namespace) -> Path:
    """Where the lines go: beside this file; at the preset smoke and of made-up images, which try the code, a throwaway.

    Arguments:
        options: of `parser`.
    """
    if options.results is not None:
        return options.results
    kept = options.preset != "smoke" and not options.made_up
    return RESULTS if kept else series.throwaway("systems")


def folder_of(options: argparse.Namespace, page: str) -> Path:
    """Where the page goes.

    Arguments:
        options: of `parser`.
        page: as of `parser`.
    """
    return options.folder or Path("runs") / f"{page}-{options.preset}"


def of_preset(systems: Sequence[System], options: argparse.Namespace) -> list[dict[str, Any]]:
    """All lines of the preset that is asked for, but for those of a system whose settings have changed since.

    Arguments:
        systems: whose settings are known.
        options: of `parser`.
    """
    known = {system.name: system for system in systems}
    rows = [row for row in series.recorded(results_of(options)) if row["config"]["preset"] == options.preset]
    return [row for row in rows if row["experiment"] not in known or as_planned(known[row["experiment"]], row)]


def parser(description: str, *, page: str | None = None) -> argparse.ArgumentParser:
    """Options that all systems share.

    Arguments:
        description: of the command.
        page: what its page is called; None where it writes none.
    """
    made = series.parser(description, seeds=SEEDS)
    if page is not None:
        made.add_argument("--folder", type=Path, help=f"of the page (default: runs/{page}-PRESET)")
    made.add_argument("--miner", choices=MINERS, default="none", help="weighs the negatives")
    made.add_argument("--critic", choices=("own", *CRITICS), default="own", help="in place of the system's own")
    made.add_argument("--arms", nargs="+", help="some forms of a system only")
    made.add_argument("--judged-on", choices=("test", "held-out"), default="test", help="held-out: to choose settings")
    made.add_argument("--made-up", action="store_true", help="noise instead of a data set: does everything run?")
    return made


def main(system: System, given: Sequence[str] | None = None) -> None:
    """Runs what is missing of one system, prints its table, and writes the page of all its lines.

    Arguments:
        system: of this folder.
        given: the words of the command line; None for those of the process.
    """
    from benchmarks.systems import report

    options = series.parsed(parser(system.title, page=system.name), SEEDS, given)
    with series.refusals():
        print(report.text(perform([system], options)))
        rows = [row for row in of_preset([system], options) if row["experiment"] == system.name]
    if rows:  # none where all lines are of earlier settings
        print(report.write([system], rows, folder_of(options, system.name), preset=options.preset))
