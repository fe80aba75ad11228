"""The command line of every experiment: presets, seeds, one line a run, what is there already is not repeated."""

import argparse
import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import lines
from benchmarks.tschannen2020.data import NAMES, Halves, load
from contrastive.errors import InputError
from contrastive.runs import environment

__all__ = [
    "PRESETS",
    "Claim",
    "Experiment",
    "Panel",
    "Run",
    "main",
    "parsed",
    "parser",
    "perform",
    "planned",
    "recorded",
    "results_of",
]

PRESETS = ("smoke", "quick", "paper")
RESULTS = Path(__file__).with_name("results.jsonl")
# Of the lines: goes up when figures change their meaning.
FORMAT = 1

Config = dict[str, Any]
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: a curve for every value of `by`, mean and deviation over seeds.

    Arguments:
        title: above it.
        y: which curve of the lines.
        label: of the vertical axis.
        where: what the configurations must hold.
        by: keys of the configuration that tell curves apart.
        level: a horizontal line, a number or the name of a figure, and what it is called.
    """

    title: str
    y: str
    label: str
    where: Config = field(default_factory=dict)
    by: tuple[str, ...] = ()
    level: tuple[float | str, str] | None = None


@dataclass(frozen=True)
class Claim:
    """A difference that the paper asserts the sign of, paired by seed.

    Arguments:
        number: of the paper's claim; None where it is ours.
        text: what should be positive.
        figure: which figure of the line.
        of: what the configurations of the one side hold.
        versus: those of the other side; or the name of a figure of the same line; or a number.
    """

    number: int | None
    text: str
    figure: str
    of: Config
    versus: Config | str | float


@dataclass(frozen=True)
class Experiment:
    """One file of this folder.

    Arguments:
        name: of the file.
        title: says what the figure shows.
        plan: preset, variant and data set to the configurations that are run.
        run: a configuration, data (None where there is none), seed and a callback for the share that is done, to the
            figures of the line.
        cost: about how many seconds a run takes, for the time left.
        panels: the figure.
        claims: what it should show.
        uses_data: whether images are read.
        datasets: which are sensible; the first is the default.
    """

    name: str
    title: str
    plan: Callable[[str, str, str], list[Config]]
    run: Callable[[Config, Halves | None, int, Tick], dict[str, Any]]
    cost: Callable[[Config], float]
    panels: tuple[Panel, ...]
    claims: tuple[Claim, ...]
    uses_data: bool = True
    datasets: tuple[str, ...] = ("mnist", "fashion-mnist", "made-up")


@dataclass(frozen=True)
class Run:
    """One run of a plan."""

    experiment: Experiment
    config: Config
    seed: int

    @property
    def key(self) -> str:
        """What tells it from others."""
        return json.dumps([self.experiment.name, self.config, self.seed], sort_keys=True)


def recorded(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file.

    Arguments:
        path: it need not exist.

    Raises:
        InputError: for a file of another version, or one that is no results file.
    """
    try:
        rows = lines.read(path)
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is no results file: {error}") from error
    for number, row in enumerate(rows, 1):
        found = row.get("format") if isinstance(row, dict) else None
        if found != FORMAT:
            raise InputError(
                f"{path}, line {number}: written by format {found}, this is format {FORMAT}; its figures mean "
                "something else. Move the file away, or name another with --results"
            )
    return rows


def results_of(options: argparse.Namespace) -> Path:
    """Where the lines go: beside this file, for the smoke preset into the folder of temporary files.

    Arguments:
        options: of `parser`.
    """
    if options.results is not None:
        return options.results
    return RESULTS if options.preset != "smoke" else Path(gettempdir()) / "tschannen2020-smoke.jsonl"


def perform(experiments: Sequence[Experiment], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Does what is missing, and returns the lines of all that was asked for.

    Arguments:
        experiments: of this folder.
        options: of `parser`.
    """
    torch.set_num_threads(options.threads)
    path = results_of(options)
    asked = [
        Run(experiment, config, seed)
        for experiment in experiments
        for seed in range(options.seeds)
        for config in planned(experiment, options)
    ]
    there = {_key_of(row) for row in recorded(path)}
    # A missing data set is said before the first run, not after an hour.
    sets = {run.key: _data_of(run, options) for run in asked if run.key not in there}
    missing = [run for run in asked if run.key not in there]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, console=Console(stderr=True), disable=options.quiet) as progress:
        bar = progress.add_task("", total=round(sum(run.experiment.cost(run.config) for run in missing), 1))
        done = 0.0
        for run in missing:
            progress.update(bar, description=f"{run.experiment.name}, seed {run.seed}: {_told(run.config)}")
            cost = run.experiment.cost(run.config)

            def tick(share: float, done: float = done, cost: float = cost) -> None:
                progress.update(bar, completed=round(done + share * cost, 1))

            lines.append(path, _attempt(run, sets[run.key], tick))
            done += cost
            tick(0.0, done)
    keys = {run.key for run in asked}
    return [row for row in recorded(path) if _key_of(row) in keys]


def planned(experiment: Experiment, options: argparse.Namespace) -> list[Config]:
    """The configurations that are asked for.

    Arguments:
        experiment: of this folder.
        options: of `parser`.
    """
    data = options.data if options.data in experiment.datasets else experiment.datasets[0]
    return experiment.plan(options.preset, options.variant, data)


def _data_of(run: Run, options: argparse.Namespace) -> Halves | None:
    if not run.experiment.uses_data:
        return None
    return load(run.config["data"], options.data_root, download=options.download)


def _attempt(run: Run, data: Halves | None, tick: Tick) -> dict[str, Any]:
    line: dict[str, Any] = {"format": FORMAT, "experiment": run.experiment.name, "config": run.config, "seed": run.seed}
    start, cpu = time.perf_counter(), time.process_time()
    try:
        line |= {"status": "ok", **run.experiment.run(run.config, data, run.seed, tick)}
    except Exception:  # a failed run stays visible, and the others go on
        line |= {"status": "failed", "error": traceback.format_exc().splitlines()[-1]}
    used = environment(run.seed)
    hardware = {key: used.pop(key) for key in ("system", "processor", "cores", "memory", "threads", "accelerator")}
    line |= {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    line |= {"commit": lines.commit(), "hardware": hardware}
    return _plain({**line, "versions": {k: used[k] for k in ("python", "torch", "kpair", "scikit-learn") if k in used}})


def _plain(value: Any) -> Any:
    """Five digits; what is no number becomes null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        # A configuration names its run and stays as it is.
        return {k: v if k == "config" else _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _key_of(row: dict[str, Any]) -> str:
    return json.dumps([row["experiment"], row["config"], row["seed"]], sort_keys=True)


def _told(config: Config) -> str:
    names = ("encoder", "critic", "objective", "miner", "target", "sampling")
    return ", ".join(str(config[name]) for name in names if config.get(name) not in (None, "none"))


def parser(description: str) -> argparse.ArgumentParser:
    """Options that all experiments share.

    Arguments:
        description: of the command.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", choices=PRESETS, default="quick")
    made.add_argument("--seeds", type=int, default=None, help="runs of each (smoke 1, quick 3, paper 20)")
    made.add_argument("--variant", choices=("paper", "code"), default="paper", help="where text and code differ")
    made.add_argument("--data", choices=NAMES, default="mnist")
    made.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw and the like")
    made.add_argument("--download", action="store_true", help="fetch what is missing")
    made.add_argument("--results", type=Path, help="file of the lines")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the command line.

    Arguments:
        made: by `parser`.
    """
    options = made.parse_args()
    if options.seeds is None:
        options.seeds = {"smoke": 1, "quick": 3, "paper": 20}[options.preset]
    return options


def main(experiment: Experiment) -> None:
    """Runs what is missing of one experiment and prints its tables.

    Arguments:
        experiment: of this folder.
    """
    from benchmarks.tschannen2020 import report

    options = parsed(parser(experiment.title))
    try:
        rows = perform([experiment], options)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    print(report.text(experiment, rows))
