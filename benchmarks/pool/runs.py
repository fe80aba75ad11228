"""Runs that are there already are not repeated, and failed ones stay."""

import json
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
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
    """Runs `work` unless its line is there, and appends the line.

    Arguments:
        experiment: its name.
        config: what was chosen; together with the seed it names the run.
        seed: of everything.
        work: does it, and returns the figures.
    """
    if any(row["config"] == config and row["seed"] == seed for row in runs(experiment)):
        return
    line: dict[str, Any] = {"experiment": experiment, "config": config, "seed": seed}
    start = time.perf_counter()
    try:
        line |= {"status": "ok", **work()}
    except Exception:  # a failed run stays in the table
        line |= {"status": "failed", "error": traceback.format_exc().splitlines()[-1]}
    line |= {"seconds": round(time.perf_counter() - start, 1), "commit": lines.commit()}
    line["versions"] = {name: version(name) for name in ("torch", "kpair")}
    lines.append(RESULTS, line)
    print(json.dumps({k: line[k] for k in line if k not in ("commit", "versions")}), flush=True)
