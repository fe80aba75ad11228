"""Trained critics on tasks of known information: a cheap one proposes, an expensive one scores K candidates an anchor.

    python -m benchmarks.pool.trained [--seeds 3] [--tasks gaussian-6 gaussian-10] [--steps 2500]

The cheap critic is separable (two towers of 2 x 256, 32 wide), trained by InfoNCE in batches of 256 for 3,000 steps; it
proposes and is not judged. The expensive one is concatenated (2 x 256) and trained in four ways from the same weights,
64 anchors a step. All are then measured on fresh pairs.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pool import estimators
from benchmarks.pool.runs import run
from benchmarks.pool.tasks import TASKS
from contrastive import Concat, Separable, kpair_loss, list_scores
from contrastive.tasks import Task
from miners import PoolProposal

BATCH, K, POOL, LARGE = 64, 64, 4096, 16_384
ARMS = ("uniform", "pool", "smile", "nwj")


def dim_of(task: Task) -> int:
    """The width of x, and of y."""
    return task.draw(1)[0].shape[1]


@cache
def cheap_critic(task: Task, seed: int, steps: int = 3000) -> Separable:
    """The critic that proposes."""
    torch.manual_seed(seed)
    critic = Separable(dim_of(task), hidden=256, out=32, layers=2)
    optimizer = torch.optim.Adam(critic.parameters(), 5e-4, fused=True)
    for _ in range(steps):
        x, y = task.draw(256)
        loss = kpair_loss(critic(x, y)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return critic.eval()


class Pools:
    """Fresh pairs inside fresh pools, and draws from them as the cheap critic proposes."""

    def __init__(self, task: Task, cheap: Separable, pool: int) -> None:
        self.task, self.cheap, self.pool = task, cheap, pool

    @torch.no_grad()
    def __call__(self, n: int) -> tuple[Tensor, Tensor, PoolProposal, Tensor]:
        """Anchors, the pool (the positives first), the proposal over it, and the anchors in its space."""
        x, y = self.task.draw(n)
        y = torch.cat([y, self.task.draw(self.pool - n)[1]])
        factors = self.cheap.factors(x, y)
        return x, y, PoolProposal(factors.candidates), factors.anchors


def loss_of(arm: str, task: Task, pools: Pools) -> Callable[[nn.Module], Tensor]:
    """The loss of one step."""

    def loss(critic: nn.Module) -> Tensor:
        if arm != "pool":
            scores = critic(*task.draw(BATCH))
            if arm == "uniform":
                return kpair_loss(scores).mean()
            return estimators.jensen_shannon_loss(scores) if arm == "smile" else estimators.nwj_loss(scores)
        x, y, proposal, anchors = pools(BATCH)
        draw = proposal.draw(anchors, torch.arange(BATCH), K)
        scores = list_scores(critic, x, y, draw.columns)
        return kpair_loss(scores, torch.zeros(BATCH, dtype=torch.int64), log_weights=draw.log_weights).mean()

    return loss


def gradient_noise(loss: Callable[[nn.Module], Tensor], critic: nn.Module, batches: int) -> float:
    """The deviation of a batch's gradient over the length of their mean (its own noise taken out)."""
    rows = []
    for _ in range(batches):
        critic.zero_grad()
        loss(critic).backward()
        rows.append(torch.cat([p.grad.flatten() for p in critic.parameters()]))
    gradients = torch.stack(rows)
    variance = float(gradients.var(0).sum())
    signal = float(gradients.mean(0).square().sum()) - variance / batches
    return math.sqrt(variance / signal) if signal > 0 else math.inf


def train(task: Task, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """Trains one critic and measures it."""
    cheap = cheap_critic(task, seed)
    pools = Pools(task, cheap, POOL)
    torch.manual_seed(seed + 1000)
    critic = Concat(dim_of(task), hidden=256, layers=2)
    optimizer = torch.optim.Adam(critic.parameters(), 5e-4, fused=True)
    loss = loss_of(arm, task, pools)
    start = time.perf_counter()
    for _ in range(steps):
        _step(loss, critic, optimizer)
    found: dict[str, Any] = {"iterations": steps, "training_seconds": round(time.perf_counter() - start, 1)}
    critic.eval()
    torch.manual_seed(seed + 2000)
    with torch.no_grad():
        batches = [task.draw(BATCH) for _ in range(200)]
        uniform = [estimators.uniform(critic, x, y, K).value for x, y in batches]
        scores = [critic(x, y) for x, y in batches]
        values = {"uniform": uniform, "smile": list(map(estimators.smile, scores))}
        values["nwj"] = list(map(estimators.nwj, scores))
        for pool, times in ((POOL, 100), (LARGE, 60)):
            judged = Pools(task, cheap, pool)
            bounds = []
            for _ in range(times):
                x, y, proposal, anchors = judged(BATCH)
                bounds.append(estimators.pooled(critic, x, y, K, proposal, anchors)[0].value)
            values[f"pool_{pool}"] = bounds
        wholes = [Pools(task, cheap, POOL)(BATCH)[:2] for _ in range(20)]
        values[f"whole_{POOL}"] = [estimators.whole(critic, x, y).value for x, y in wholes]
    for name, of_batches in values.items():
        found[name], found[f"{name}_spread"] = statistics.fmean(of_batches), statistics.stdev(of_batches)
    return found


def _step(loss: Callable[[nn.Module], Tensor], critic: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    value = loss(critic)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()


def noise(task: Task, seed: int) -> dict[str, Any]:
    """The noise of every way's gradient at one critic, trained for 500 steps with uniform negatives."""
    cheap = cheap_critic(task, seed)
    pools = Pools(task, cheap, POOL)
    torch.manual_seed(seed + 1000)
    critic = Concat(dim_of(task), hidden=256, layers=2)
    optimizer = torch.optim.Adam(critic.parameters(), 5e-4, fused=True)
    for _ in range(500):
        _step(loss_of("uniform", task, pools), critic, optimizer)

    def whole(critic: nn.Module) -> Tensor:
        x, y = pools(BATCH)[:2]
        return kpair_loss(critic(x, y), torch.arange(BATCH)).mean()

    ways = {arm: loss_of(arm, task, pools) for arm in ARMS} | {"whole": whole}
    found = {}
    for name, loss in ways.items():
        torch.manual_seed(seed + 2000)
        found[name] = gradient_noise(loss, critic, batches=24 if name == "whole" else 200)
    return {"gradient_noise": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=int, default=2500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {name: TASKS[name] for name in given.tasks}
    for seed in range(given.seeds):
        for name, task in tasks.items():
            config = {"task": name, "information": task.information, "k": K, "pool": POOL}
            for arm in ARMS:
                config_of_arm = config | {"arm": arm, "steps": given.steps}
                run("trained", config_of_arm, seed, partial(train, task, arm, seed, given.steps))
            if seed == 0:
                run("noise", config, seed, partial(noise, task, seed))


if __name__ == "__main__":
    main()
