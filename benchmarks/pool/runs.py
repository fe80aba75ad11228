"""Runs that are there already are not repeated, and failed ones stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import lines

__all__ = ["run", "runs"]

RESULTS = Path(__file__).with_name("results.jsonl")


def runs(experiment: str) -> list[dict[str, Any]]:
    """The lines of an experiment so far.

    Arguments:
        experiment: its name.
    """
    return [line for line in lines.read(RESULTS) if line["experiment"] == experiment]


def run(experiment: str, config: dict[str, Any], seed: int, work: Callable[[], dict[str, Any]]) -> None:
    """`benchmarks.lines.run` into this experiment's file.

    Arguments:
        experiment: its name.
        config: what was chosen; together with the seed it names the run.
        seed: of everything.
        work: does it, and returns the figures.
    """
    lines.run(RESULTS, experiment, config, seed, work)
