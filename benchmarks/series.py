"""A series of runs: what is missing is done, one line a run, with a bar of the time left; and its command line."""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from benchmarks import lines
from contrastive.errors import InputError
from contrastive.runs import environment

__all__ = [
    "FORMAT",
    "PRESETS",
    "Config",
    "Run",
    "Tick",
    "attempt",
    "key_of",
    "nothing",
    "parsed",
    "parser",
    "perform",
    "recorded",
    "refusals",
    "throwaway",
]

PRESETS = ("smoke", "quick", "paper")
# Of the lines: goes up when figures change their meaning.
FORMAT = 1

Config = dict[str, Any]
Tick = Callable[[float], None]


def nothing() -> None:
    """Nothing has to be there before the first run."""


@dataclass(frozen=True)
class Run:
    """One line that is wanted.

    Arguments:
        experiment: its name.
        config: what was chosen; together with name and seed it tells the run from others.
        seed: of everything.
        work: does it, and returns the figures; is handed a callback for the share that is done.
        cost: about how many seconds it takes, for the time left.
        told: beside the bar.
        ready: called for every run that is missing before the first is done, so that a data set that cannot be read is
            said at once and not after an hour.
    """

    experiment: str
    config: Config
    seed: int
    work: Callable[[Tick], dict[str, Any]]
    cost: float = 1.0
    told: str = ""
    ready: Callable[[], object] = nothing

    @property
    def key(self) -> str:
        """What tells it from others."""
        return _key(self.experiment, self.config, self.seed)


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


@cache
def throwaway(name: str) -> Path:
    """The lines of runs that try whether the code works: a new file in every process, so that none is found done.

    Arguments:
        name: of what is tried.
    """
    return Path(tempfile.mkdtemp(prefix=f"{name}-")) / "lines.jsonl"


def perform(asked: Sequence[Run], path: Path, *, quiet: bool = False, processes: int = 1) -> list[dict[str, Any]]:
    """Does what is missing, and returns the lines of all that was asked for.

    What another process of the same machine is at is left to it, so the same command may be started several times.

    Arguments:
        asked: in the order in which they are done; by several processes the longest first.
        path: of the lines.
        quiet: whether there is no bar.
        processes: how many take part: this one, and others that are started by its own command line.
    """
    there = _there(path)
    missing = [run for run in asked if run.key not in there]
    if processes > 1:  # the longest first: nobody shall wait for one that was begun last
        missing.sort(key=lambda run: -run.cost)
    for run in missing:
        run.ready()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    path.parent.mkdir(parents=True, exist_ok=True)
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        bar = progress.add_task("", total=round(sum(run.cost for run in missing), 1))
        with _others(min(processes, len(missing)) - 1, path):
            _do(missing, path, progress, bar)
            progress.update(bar, description="what other processes are at")
        _do(missing, path, progress, bar)  # what one of them died of
    keys = {run.key for run in asked}
    return [row for row in recorded(path) if key_of(row) in keys]


def _do(missing: Sequence[Run], path: Path, progress: Progress, bar: TaskID) -> None:
    """Does what nobody else has done or is at."""
    for run in missing:
        with _claimed(path, run.key) as mine:
            there = _there(path)
            if not mine or run.key in there:
                continue
            done = sum(each.cost for each in missing if each.key in there)
            progress.update(bar, description=f"{run.experiment}, seed {run.seed}: {run.told}")

            def tick(share: float, done: float = done, cost: float = run.cost) -> None:
                progress.update(bar, completed=round(done + share * cost, 1))

            lines.append(path, attempt(run, tick))
            tick(1.0)


def _there(path: Path) -> set[str]:
    return {key_of(row) for row in recorded(path)}


@contextmanager
def _claimed(path: Path, key: str) -> Iterator[bool]:
    """Whether the run is for this process to do."""
    claim = lines.lock(path, key)
    try:
        claim.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if key in _there(path):  # whoever claims it from here on finds the line, under whatever lock
            with suppress(OSError):  # open files cannot be removed everywhere
                Path(claim.lock_file).unlink()
        claim.release()


@contextmanager
def _others(count: int, path: Path) -> Iterator[None]:
    """Processes that do the same; they are waited for at the end, and stopped where this one stops."""
    # In the order of the command, that is from the other end: the first process has begun with the longest.
    command = [sys.executable, *sys.orig_argv[1:], "--processes", "1", "--quiet", "--results", str(path)]
    started = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
        for other in started:
            other.wait()
    finally:
        for other in started:
            other.terminate()


def attempt(run: Run, tick: Tick) -> dict[str, Any]:
    """The line of a run; one that failed says why, and the others go on. Where the machine failed there is no line.

    What the work calls ``earlier`` are the seconds of attempts that were interrupted; they count.

    Arguments:
        run: what is done.
        tick: is told the share that is done.
    """
    line: dict[str, Any] = {"format": FORMAT, "experiment": run.experiment, "config": run.config, "seed": run.seed}
    by, start, cpu = lines.commit(), time.perf_counter(), time.process_time()
    try:
        line |= {"status": "ok", **run.work(tick)}
    except Exception as error:
        if lines.is_of_the_machine(error):
            raise
        line |= {"status": "failed", "error": traceback.format_exc().splitlines()[-1]}
    used = environment(run.seed)
    hardware = {key: used.pop(key) for key in ("system", "processor", "cores", "memory", "threads", "accelerator")}
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    earlier = line.pop("earlier", {})
    line |= {key: round(earlier.get(key, 0.0) + value, 1) for key, value in spent.items()}
    line |= {"commit": by, "hardware": hardware}
    return _plain({**line, "versions": {k: used[k] for k in ("python", "torch", "kpair", "scikit-learn") if k in used}})


def key_of(row: dict[str, Any]) -> str:
    """The key of the run that a line is of.

    Arguments:
        row: the line.
    """
    return _key(row["experiment"], row["config"], row["seed"])


def _key(experiment: str, config: Config, seed: int) -> str:
    return json.dumps([experiment, config, seed], sort_keys=True)


def _plain(value: Any) -> Any:
    """Five digits; what is no number becomes null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        # A configuration names its run and stays as it is.
        return {k: v if k == "config" else _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def parser(description: str, *, seeds: dict[str, int]) -> argparse.ArgumentParser:
    """Options that every series has.

    Arguments:
        description: of the command.
        seeds: runs of each configuration, by preset.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--preset", choices=PRESETS, default="quick", help="paper: published settings, hours")
    told = ", ".join(f"{preset} {count}" for preset, count in seeds.items())
    made.add_argument("--seeds", type=int, default=None, help=f"runs of each ({told})")
    made.add_argument("--data-root", type=Path, help="folder that holds MNIST/raw and the like")
    made.add_argument("--download", action="store_true", help="fetch what is missing")
    made.add_argument("--results", type=Path, help="file of the lines")
    made.add_argument("--threads", type=int, default=1, help="of a process")
    made.add_argument("--processes", type=int, default=1, help="runs at once")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    return made


def parsed(made: argparse.ArgumentParser, seeds: dict[str, int], given: Sequence[str] | None = None) -> Any:
    """Reads the command line.

    Arguments:
        made: by `parser`.
        seeds: runs of each configuration, by preset.
        given: the words; None for the command line's.
    """
    options = made.parse_args(given)
    if options.seeds is None:
        options.seeds = seeds[options.preset]
    for name in ("seeds", "processes", "threads"):
        if getattr(options, name) < 1:
            made.error(f"--{name} {getattr(options, name)}: expected at least 1")
    torch.set_num_threads(options.threads)
    return options


@contextmanager
def refusals() -> Iterator[None]:
    """Ends a command whose input is refused: one sentence, and the status 2, as of `kpair`."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
