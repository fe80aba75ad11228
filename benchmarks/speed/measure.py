"""Timing by turns, peak memory in processes of their own, and the table of both."""

import json
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from contrastive.gemm import multiplies_in_float32

PRECISIONS = ("highest", "medium")


@dataclass(frozen=True)
class Goal:
    """What a comparison is asked for: ours at least `factor` times as fast (or as small) as the peer.

    Arguments:
        factor: below 1 it is a ceiling: 0.8 allows 1.25 times the peer's time.
        of: "time" or "memory".
    """

    factor: float
    of: Literal["time", "memory"] = "time"

    def __str__(self) -> str:
        if self.of == "memory":
            return f">= {self.factor:g} x less memory"
        return f">= {self.factor:g} x" if self.factor >= 1 else f"<= {1 / self.factor:.4g} x its time"


@dataclass(frozen=True)
class Row:
    """One comparison.

    Arguments:
        work: what is computed.
        ours: our way.
        peer: theirs, at its best setting; None: ours alone.
        ours_ms: median milliseconds; None where memory alone is measured.
        peer_ms: likewise.
        ratio: how many times as fast ours is: the median over rounds of peer / ours.
        spread: the quartiles of that ratio over rounds.
        ours_mb: peak megabytes beyond the inputs and their gradients, in a process of its own; None: not measured.
        peer_mb: likewise.
        goal: what is asked for, in words; None where nothing is.
        met: whether it is reached; None without a goal.
    """

    work: str
    ours: str
    peer: str | None
    ours_ms: float | None
    peer_ms: float | None
    ratio: float | None
    spread: tuple[float, float] | None
    ours_mb: float | None
    peer_mb: float | None
    goal: str | None
    met: bool | None


def compared(
    work: str,
    ours: str,
    peer: str,
    times: dict[str, list[float]],
    megabytes: dict[str, float | None],
    goals: Sequence[Goal],
    *,
    label: str | None = None,
) -> Iterator[Row]:
    """A row for every goal, or one without; `label` is what the peer is called in it."""
    ratios = [theirs / mine for mine, theirs in zip(times[ours], times[peer], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    mine, theirs = megabytes.get(ours), megabytes.get(peer)
    for goal in goals or [None]:
        met = None
        if goal is not None and goal.of == "time":
            met = middle >= goal.factor
        elif goal is not None and mine is not None and theirs is not None:
            met = theirs >= goal.factor * mine
        yield Row(
            work=work,
            ours=ours,
            peer=label or peer,
            ours_ms=statistics.median(times[ours]),
            peer_ms=statistics.median(times[peer]),
            ratio=middle,
            spread=(low, high),
            ours_mb=mine,
            peer_mb=theirs,
            goal=None if goal is None else str(goal),
            met=met,
        )


@dataclass(frozen=True)
class Setting:
    """A callable and how it is timed.

    Arguments:
        run: what is timed.
        precision: the float32 matmul precision that it runs at; a peer is given the one it is faster with.
        calls: how many calls one measurement takes, so that it lasts for some milliseconds.
        clock: seconds; the process's own time (one thread only) where the cores are shared with other work.
    """

    run: Callable[[], object]
    precision: str = "highest"
    calls: int = 1
    clock: Callable[[], float] = time.perf_counter

    def timed(self) -> float:
        """Milliseconds of a call."""
        torch.set_float32_matmul_precision(self.precision)
        try:
            start = self.clock()
            for _ in range(self.calls):
                self.run()
            return (self.clock() - start) * 1e3 / self.calls
        finally:
            torch.set_float32_matmul_precision("highest")

    def lasting(self, milliseconds: float = 10.0) -> "Setting":
        """The same, with as many calls as last for so long."""
        self.timed()  # warms up
        return replace(self, calls=max(1, round(milliseconds / self.timed())))


def exact_precisions() -> list[str]:
    """The float32 matmul precisions that multiply in float32 here: "medium" may mean bfloat16, another result."""
    found = []
    for precision in PRECISIONS:
        torch.set_float32_matmul_precision(precision)
        if multiplies_in_float32():
            found.append(precision)
    torch.set_float32_matmul_precision("highest")
    return found


def best_setting(peer: Setting) -> Setting:
    """The exact precision with which a peer is faster, by three measurements of each (one, if they are slow)."""
    trials = {}
    for precision in exact_precisions():
        setting = replace(peer, precision=precision)
        slow = setting.timed() > 2000  # and it is warm now
        setting = setting if slow else setting.lasting()
        trials[setting] = min(setting.timed() for _ in range(1 if slow else 3))
    return min(trials, key=trials.__getitem__)


def by_turns(entries: dict[str, Setting], *, seconds: float, at_least: int = 5) -> dict[str, list[float]]:
    """Milliseconds of every entry, one measurement each a round, every round in a new order, until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in entries}
    order, shuffled = list(entries), random.Random(0)
    end = time.perf_counter() + seconds
    while len(times[order[0]]) < at_least or time.perf_counter() < end:
        shuffled.shuffle(order)
        for name in order:
            times[name].append(entries[name].timed())
    return times


def clock() -> Callable[[], float]:
    """The process's own time where one thread does everything: it does not count what others do on the cores."""
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def peak_mb(run: Callable[[], object]) -> float:
    """Megabytes by which the resident memory rises above what it is now, at its highest, during one call."""
    refs = Path("/proc/self/clear_refs")
    before = _status("VmRSS")
    refs.write_text("5")  # forgets the highest so far
    run()
    return (_status("VmHWM") - before) / 1e3


def in_a_fresh_process(module: str, *arguments: str) -> float | None:
    """What ``python -m module arguments`` prints as a number; None where it fails, for want of memory for instance.

    The least of three: pages of the libraries, dropped by the system and read again, count as memory of the call.
    """
    printed = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None
        printed.append(float(done.stdout.split()[-1]))
    return min(printed)


def _status(field: str) -> int:
    """Kilobytes of a line of the process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PEERS = ("torch", "pytorch-metric-learning", "lightly", "info-nce-pytorch")


def context(threads: int, peers: Sequence[str] = PEERS) -> dict[str, object]:
    """The machine and the versions behind a table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": names[0] if names else platform.processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "commit": commit.stdout.strip() or None,
        "versions": {name: _version(name) for name in peers},
    }


def _version(package: str) -> str | None:
    """Its version, or None where it is not installed: not every benchmark needs every peer."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(rows: Sequence[Row], path: Path, about: dict[str, object]) -> None:
    """Saves the table as a JSON array; every row carries the context, so that it can stand alone."""
    path.write_text(json.dumps([{**asdict(row), **about} for row in rows], indent=1) + "\n", encoding="utf-8")


def show(rows: Sequence[Row], title: str) -> None:
    """Prints the table."""
    table = Table(title=title, title_justify="left")
    for name in ("work", "ours", "peer", "ms", "peer ms", "ratio", "MB", "peer MB", "goal", ""):
        table.add_column(name, justify="right" if name.endswith(("ms", "MB", "ratio")) else "left")
    for row in rows:
        ratio = ""
        if row.ratio is not None and row.spread is not None:
            ratio = f"{row.ratio:.3g} [{row.spread[0]:.3g}, {row.spread[1]:.3g}]"
        met = {None: "", True: "met", False: "NOT MET"}[row.met]
        numbers = ("" if v is None else f"{v:.3g}" for v in (row.ours_ms, row.peer_ms))
        memory = ("" if v is None else f"{v:.0f}" for v in (row.ours_mb, row.peer_mb))
        table.add_row(row.work, row.ours, row.peer or "", *numbers, ratio, *memory, row.goal or "", met)
    Console(width=200).print(table)
