"""One line a run in ``results.jsonl``: failed ones too; what is there already is not repeated."""

import json
import subprocess
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.jsonl")


def lines(experiment: str | None = None) -> list[dict[str, Any]]:
    """The runs so far.

    Arguments:
        experiment: only this one's.
    """
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return [row for row in rows if experiment in (None, row["experiment"])]


def run(experiment: str, config: dict[str, Any], seed: int, work: Callable[[], dict[str, Any]]) -> None:
    """Runs `work` unless its line is there, and appends the line.

    Arguments:
        experiment: its name.
        config: what was chosen; together with the seed it names the run.
        seed: of everything.
        work: does it, and returns the figures.
    """
    if any(row["config"] == config and row["seed"] == seed for row in lines(experiment)):
        return
    line: dict[str, Any] = {"experiment": experiment, "config": config, "seed": seed}
    start = time.perf_counter()
    try:
        line |= {"status": "ok", **work()}
    except Exception:  # a failed run stays in the table
        line |= {"status": "failed", "error": traceback.format_exc().splitlines()[-1]}
    line |= {"seconds": round(time.perf_counter() - start, 1), "commit": _commit(), "versions": _versions()}
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps({k: line[k] for k in line if k not in ("commit", "versions")}), flush=True)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "kpair")}
