"""The estimators with the exact critic: bias, spread, what a bad proposal costs.

    python -m benchmarks.pool.oracle [--seeds 20]

Each seed is a pool of 16,384 fresh candidates with 256 pairs in it; a line holds the mean over all pairs and its
standard error, and the deviation of the value of one batch of 64.
"""

import argparse
import math
import statistics
from typing import Any

import torch
from torch import Tensor

from benchmarks.pool import estimators
from benchmarks.pool.runs import run
from benchmarks.pool.tasks import TASKS
from contrastive.tasks import Task
from miners import PoolProposal

POOL, BATCH = 16_384, 64


class _Table:
    """A proposal over a table of scores: the embedding of an anchor is its row, that of a candidate its column."""

    def __init__(self, scores: Tensor, *, uniform: float, top: int | None = None, temperature: float = 1.0) -> None:
        self.proposal = PoolProposal(
            scores.T.contiguous(), uniform=uniform, top=top, temperature=temperature, metric="inner_product"
        )
        self.anchors = torch.eye(len(scores))


def measure(task: Task, arm: str, seeds: int) -> dict[str, Any]:
    """Values of one estimator over fresh pools."""
    values, alone = [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        x, paired = task.draw(256)
        others = task.draw(POOL - 256)[1]
        y = torch.cat([paired, others])
        for start in range(0, 256, BATCH):
            # The batch's own pairs come first in its pool.
            order = torch.cat([torch.arange(start, 256), torch.arange(start), torch.arange(256, POOL)])
            value, other = _one(task, arm, x[start : start + BATCH], y[order])
            values.append(value)
            alone.append(other)
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    found = {"value": mean, "standard_error": spread / math.sqrt(len(values)), "spread_of_a_batch": spread}
    return found | ({} if alone[0] is None else {"negatives_alone": statistics.fmean(alone)})


def _one(task: Task, arm: str, x: Tensor, y: Tensor) -> tuple[float, float | None]:
    name, *words = arm.split()
    options = dict(word.split("=") for word in words)
    own = y[: len(x)]
    if name == "uniform":
        return estimators.uniform(task.log_ratio, x, own, BATCH).value, None
    if name == "whole":
        return estimators.whole(task.log_ratio, x, y).value, None
    if name == "smile":
        return estimators.smile(task.log_ratio(x, own)), None
    if name == "nwj":
        return estimators.nwj(task.log_ratio(x, own)), None
    scores = task.log_ratio(x, y).clamp_min(-50.0)
    scores = scores + float(options.get("noise", 0)) * torch.randn_like(scores)
    top = options.get("top")
    table = _Table(
        scores,
        uniform=float(options.get("uniform", 0.1)),
        top=None if top is None else int(top),
        temperature=float(options.get("temperature", 1)),
    )
    bound, alone = estimators.pooled(
        task.log_ratio, x, y, int(options["k"]), table.proposal, table.anchors, shared="shared" in options
    )
    return bound.value, alone


ARMS = ["uniform", "pool k=16", "pool k=64", "pool k=256", "whole", "smile", "nwj"]
PROPOSALS = [
    *(f"pool k=64 noise={sd}" for sd in (1, 2, 3)),
    "pool k=256 noise=3",
    "pool k=64 top=64",
    "pool k=64 top=256",
    "pool k=64 temperature=0.5",
    "pool k=64 temperature=2",
    "pool k=64 uniform=0.5",
    "pool k=64 uniform=0.01",
    "pool k=1024 shared=yes",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="pools of every line")
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    for name, task in TASKS.items():
        for arm in ARMS + (PROPOSALS if name in ("gaussian-6", "gaussian-10") else []):
            config = {"task": name, "information": task.information, "arm": arm, "pool": POOL, "batch": BATCH}
            run("oracle", config, seeds, lambda task=task, arm=arm: measure(task, arm, seeds))


if __name__ == "__main__":
    main()
