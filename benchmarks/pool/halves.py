"""The halves of MNIST's digits: how much the upper tells of the lower, in nats, on digits nobody trained on.

    python -m benchmarks.pool.halves --data-root DATA [--seeds 3] [--steps 3000]

A cheap separable critic (towers of 2 x 256, 32 wide) is trained with batches of 256 and proposes; a concatenated critic
(2 x 256) is trained from the same weights with K = 64, in-batch or from pools of 4,096, and both are measured on the
10,000 test digits: in batches of 64, and by K = 64 and by all inside pools of 8,192. No pixel of the truth is known.
"""

import argparse
import math
import statistics
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pool import estimators
from benchmarks.pool.runs import run
from contrastive import Concat, Separable, kpair_loss, list_scores
from contrastive.data import mnist
from miners import PoolProposal

K, POOL, LARGE, DIM = 64, 4096, 8192, 14 * 28
ARMS = ("cheap", "uniform", "pool")


def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    """Upper and lower half of every image, as rows of floats."""
    x, y = (images.float() / 255).flatten(1).chunk(2, dim=1)
    return x, y


@cache
def cheap_critic(data: "Data", seed: int, steps: int) -> Separable:
    """The critic that proposes."""
    torch.manual_seed(seed)
    critic = Separable(DIM, hidden=256, out=32, layers=2)
    optimizer = torch.optim.Adam(critic.parameters(), 5e-4, fused=True)
    for _ in range(steps):
        rows = torch.randperm(len(data.train[0]))[:256]
        loss = kpair_loss(critic(data.train[0][rows], data.train[1][rows])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic.eval()


class Data:
    """Pairs of halves."""

    def __init__(self, root: Path | None) -> None:
        images = mnist(root)
        self.train, self.test = halves(images.train.images), halves(images.test.images)


def train(data: Data, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Trains one critic and measures it on test digits."""
    cheap = cheap_critic(data, seed, steps)
    critic: Separable | Concat = cheap
    if arm != "cheap":
        torch.manual_seed(seed + 1000)
        critic = Concat(DIM, hidden=256, layers=2)
        optimizer = torch.optim.Adam(critic.parameters(), 5e-4, fused=True)
        for _ in range(steps):
            loss = _loss(data, cheap, critic, arm)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.manual_seed(seed + 2000)
    return {"iterations": steps, **measure(data, cheap, critic.eval())}


def _loss(data: Data, cheap: Separable, critic: Concat, arm: str) -> Tensor:
    x, y = data.train
    rows = torch.randperm(len(x))[: K if arm == "uniform" else POOL]
    if arm == "uniform":
        return kpair_loss(critic(x[rows], y[rows])).mean()
    with torch.no_grad():
        factors = cheap.factors(x[rows[:K]], y[rows])
    draw = PoolProposal(factors.candidates).draw(factors.anchors, torch.arange(K), K)
    scores = list_scores(critic, x[rows[:K]], y[rows], draw.columns)
    return kpair_loss(scores, torch.zeros(K, dtype=torch.int64), log_weights=draw.log_weights).mean()


@torch.no_grad()
def measure(data: Data, cheap: Separable, critic: Separable | Concat) -> dict[str, Any]:
    """Bounds on test digits; pools are drawn anew from them."""
    x, y = data.test
    found: dict[str, Any] = {}
    order = torch.randperm(len(x))
    found["test_bound"] = estimators.uniform(critic, x[order], y[order], K).value
    values, alone = [], []
    for _ in range(60):
        rows = torch.randperm(len(x))[:LARGE]
        factors = cheap.factors(x[rows[:K]], y[rows])
        bound, other = estimators.pooled(
            critic, x[rows[:K]], y[rows], K, PoolProposal(factors.candidates), factors.anchors
        )
        values.append(bound.value)
        alone.append(other)
    found["pool"], found["negatives_alone"] = statistics.fmean(values), statistics.fmean(alone)
    found["pool_standard_error"] = statistics.stdev(values) / math.sqrt(len(values))
    rows = torch.randperm(len(x))[:LARGE]
    found["whole"] = estimators.whole(critic, x[rows[:128]], y[rows]).value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = Data(given.data_root)
    for seed in range(given.seeds):
        for arm in ARMS:
            config = {"arm": arm, "k": K, "pool": LARGE, "steps": given.steps}
            run("halves", config, seed, lambda arm=arm, seed=seed: train(data, arm, seed, given.steps))


if __name__ == "__main__":
    main()
