"""MINE (Belghazi et al., 2018): a critic tells true pairs from shuffled ones, and its gradient is corrected.

    python -m benchmarks.systems.mine --preset quick

No images: 20 correlated pairs of normals whose information is known, 2 to 10 nats, and one critic that goes up the
schedule of Poole et al. (2019), judged at every level on fresh pairs. https://arxiv.org/abs/1801.04062
"""

import math
from typing import Any, NoReturn

from benchmarks.estimators.gaussians import SCHEDULE, climb
from benchmarks.series import Config, Tick
from benchmarks.systems.runs import CRITICS, Blocks, Goal, Plan, System, main
from benchmarks.systems.training import Budget
from contrastive import Concat
from contrastive.catalogue import mine_with

# Estimates of a pilot, by level: one seed of a separable critic, 2,000 steps a level.
PILOT = {2: 1.73, 4: 3.09, 6: 4.01, 8: 4.65, 10: 5.61}


def work(config: Config, seed: int, tick: Tick) -> dict[str, Any]:
    """Trains and judges.

    Arguments:
        config: of the run.
        seed: of everything.
        tick: is told the share that is done.
    """
    own, steps, hidden = config["critic"] == "own", config["budget"]["steps"], config["options"]["hidden"]
    found = climb(
        mine_with(config["options"]["decay"]),
        "gaussian",
        seed,
        steps,
        (lambda x, y: Concat(x, y, hidden=hidden, layers=2)) if own else lambda x, y: CRITICS[config["critic"]](x),
        tick,
    )
    values = {f"of {level} nats": found["levels"].get(str(level), {}).get("value") for level in SCHEDULE}
    return {
        "iterations": steps * len(SCHEDULE),
        "test_accuracy": None,
        "test_bound": None,
        "train_bound": None,
        "bound_status": "not a bound: Donsker and Varadhan's value",
        "random": {},
        "trained": values,
        **found,
    }


def nearer(row: dict[str, Any]) -> float:
    """By how many nats estimates are nearer the truth than the pilot's, at the level where that is least.

    Arguments:
        row: line of a run; a level that was lost is infinitely far off.
    """
    found = {level: row["trained"][f"of {level} nats"] for level in SCHEDULE}
    off = {level: math.inf if value is None else abs(value - level) for level, value in found.items()}
    return min(abs(PILOT[level] - level) - off[level] for level in SCHEDULE)


def unbuilt(shape: tuple[int, int, int], **options: object) -> NoReturn:
    """There is nothing to be trained on images."""
    raise NotImplementedError("mine is not trained on images: `work` does everything")


SYSTEM = System(
    "mine",
    "MINE: Mutual Information Neural Estimation (Belghazi et al., 2018)",
    Blocks(
        views="two variables",
        encoder="none",
        critic="a perceptron of both",
        negatives="the other pairs of the batch",
        objective="Donsker-Varadhan, its gradient corrected by a moving average",
        nats="not a bound: the log of a sample's mean",
    ),
    unbuilt,
    plans={
        "smoke": Plan(Budget(batch=64, steps=2, lr=5e-4), {"hidden": 16, "decay": 0.9}),
        "quick": Plan(Budget(batch=64, steps=500, lr=5e-4), {"hidden": 128, "decay": 0.9}),
        "paper": Plan(Budget(batch=64, steps=4000, lr=5e-4), {"hidden": 256, "decay": 0.9}),
    },
    dataset="mnist",
    work=work,
    seconds=0.1,
    swaps=("critic",),
    goal=Goal("at every level at least as near the truth as the pilot: nats nearer, where least", nearer, least=0.0),
)

if __name__ == "__main__":
    main(SYSTEM)
