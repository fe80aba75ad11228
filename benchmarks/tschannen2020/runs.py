"""The command line of every experiment: presets, seeds, one line a run, what is there already is not repeated."""

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import series
from benchmarks.curves import Panel
from benchmarks.series import Config, Tick
from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.data import NAMES, Halves, load
from benchmarks.under_way import UnderWay, kept
from contrastive.errors import InputError

__all__ = [
    "RESULTS",
    "Config",
    "Experiment",
    "Panel",
    "Tick",
    "main",
    "on_data",
    "parsed",
    "parser",
    "perform",
    "planned",
    "results_of",
    "takes",
]

RESULTS = Path(__file__).with_name("results.jsonl")
SEEDS = {"smoke": 1, "quick": 3, "paper": 20}


@dataclass(frozen=True)
class Experiment:
    """One file of this folder.

    Arguments:
        name: of the file.
        title: says what the figure shows.
        plan: preset, variant and data set to the configurations that are run.
        run: a configuration, data (None where there is none), seed, a callback for the share that is done, and what
            keeps the run under way (None: nothing), to the figures of the line.
        cost: about how many seconds a run takes, for the time left.
        panels: the figure.
        claims: what it should show.
        uses_data: whether images are read.
        datasets: which are sensible; the first is the default.
        columns: of panels.
    """

    name: str
    title: str
    plan: Callable[[str, str, str], list[Config]]
    run: Callable[[Config, Halves | None, int, Tick, UnderWay | None], dict[str, Any]]
    cost: Callable[[Config], float]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    uses_data: bool = True
    datasets: tuple[str, ...] = ("mnist", "fashion-mnist", "made-up")
    columns: int = 3


def results_of(options: argparse.Namespace) -> Path:
    """Where the lines go: beside this file, of the smoke preset into a throwaway.

    Arguments:
        options: of `parser`.
    """
    if options.results is not None:
        return options.results
    return RESULTS if options.preset != "smoke" else series.throwaway("tschannen2020")


def perform(experiments: Sequence[Experiment], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Does what is missing, and returns the lines of all that was asked for.

    Arguments:
        experiments: of this folder.
        options: of `parser`.

    Raises:
        InputError: where ``--where`` leaves nothing, and what `series.perform` refuses.
    """
    asked = [
        series.Run(
            experiment.name,
            config,
            seed,
            partial(_work, experiment, config, options, seed),
            ready=partial(_data_of, experiment, config, options),
            cost=experiment.cost(config),
            told=_told(config),
        )
        for experiment in experiments
        for seed in range(options.seeds)
        for config in planned(experiment, options)
        if _is_meant(config, options.where)
    ]
    if not asked:
        raise InputError(
            f"--where {' '.join(options.where)}: no configuration of {', '.join(e.name for e in experiments)}"
        )
    return series.perform(asked, results_of(options), quiet=options.quiet, processes=options.processes)


def _work(experiment: Experiment, config: Config, options: argparse.Namespace, seed: int, tick: Tick) -> dict[str, Any]:
    run = partial(experiment.run, config, _data_of(experiment, config, options), seed, tick)
    if options.preset != "paper":  # minutes: not worth the disk
        return run(None)
    key = series.key_of({"experiment": experiment.name, "config": config, "seed": seed})
    return kept(results_of(options), key, run)


def on_data(named: Sequence[Experiment], data: str | None) -> list[Experiment]:
    """Experiments that were asked for by name: each must take the data set that was.

    Arguments:
        named: of this folder.
        data: name of the data set; None: each its own.

    Raises:
        InputError: names the experiment and the data sets that it takes.
    """
    for experiment in named:
        if experiment.uses_data and not takes(experiment, data):
            known = ", ".join(experiment.datasets)
            raise InputError(f"--data {data}: {experiment.name} is an experiment on {known}")
    return list(named)


def takes(experiment: Experiment, data: str | None) -> bool:
    """Whether an experiment can run on a data set.

    Arguments:
        experiment: of this folder.
        data: its name; None: the experiment's own.
    """
    return data is None or data in experiment.datasets


def planned(experiment: Experiment, options: argparse.Namespace) -> list[Config]:
    """The configurations that are asked for.

    Arguments:
        experiment: of this folder.
        options: of `parser`.
    """
    plan = experiment.plan(options.preset, options.variant, options.data or experiment.datasets[0])
    if options.products is None:
        return plan
    return [{**config, "products": options.products} if "products" in config else config for config in plan]


def _data_of(experiment: Experiment, config: Config, options: argparse.Namespace) -> Halves | None:
    if not experiment.uses_data:
        return None
    return load(config["data"], options.data_root, download=options.download)


def _is_meant(config: Config, where: Sequence[str]) -> bool:
    """Whether every KEY=VALUE of `where` holds; 2 is 2.0."""
    return all(_reads(config.get(key), value) for key, _, value in (word.partition("=") for word in where))


def _reads(found: Any, word: str) -> bool:
    if isinstance(found, float):
        with suppress(ValueError):
            return found == float(word)
    return str(found) == word


def _told(config: Config) -> str:
    names = ("encoder", "critic", "objective", "miner", "target", "sampling")
    return ", ".join(str(config[name]) for name in names if config.get(name) not in (None, "none"))


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all experiments share.

    Arguments:
        description: of the command.
    """
    made = series.parser(description, seeds=SEEDS)
    made.add_argument("--variant", choices=("paper", "code"), default="paper", help="where text and code differ")
    made.add_argument("--data", choices=NAMES, help="default: mnist, of cifar10.py cifar10")
    made.add_argument(
        "--products",
        choices=("float32", "bfloat16"),
        help="of training steps (default: the preset's)",
    )
    made.add_argument("--where", nargs="+", default=(), metavar="KEY=VALUE", help="some configurations only")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line.

    Arguments:
        made: by `parser`.
    """
    return series.parsed(made, SEEDS)


def main(experiment: Experiment) -> None:
    """Runs what is missing of one experiment and prints its tables.

    Arguments:
        experiment: of this folder.
    """
    from benchmarks.tschannen2020 import report

    options = parsed(parser(experiment.title))
    with series.refusals():
        rows = perform(on_data([experiment], options.data), options)
    print(report.text(experiment, rows))
