"""Trained critics on the schedule of Poole et al. (2019): 20 correlated pairs, 2 to 10 nats, linear and cubed.

    python -m benchmarks.estimators.gaussians [--seeds 2] [--steps 2000]

One critic goes up the schedule, `steps` steps a level; every step sees fresh pairs, 64 of them, and the value is that
of the last step on 200 fresh batches. Adam 5e-4; separable critic of two layers of 256, 32 wide. Baselines and
log-ratios start anew at every level. `ksg` gets 3,000 pairs.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import lines
from contrastive import estimate_mi, ksg
from contrastive.arguments import Conditional, GaussianConditional, default_critic
from contrastive.catalogue import ESTIMATORS, Estimator, smile_clipped
from contrastive.tasks import all_tasks

RESULTS = Path(__file__).with_name("results.jsonl")
SCHEDULE = (2, 4, 6, 8, 10)
PAIRS, BATCHES = 64, 200


def arms() -> dict[str, Estimator]:
    """What is trained, by name."""
    found = {estimator.name: estimator for estimator in ESTIMATORS}
    found["SMILE, clip 5"] = found.pop("SMILE")
    return found | {"SMILE, clip 1": smile_clipped(1.0)}


def climb(
    estimator: Estimator,
    family: str,
    seed: int,
    steps: int,
    make: Callable[[int, int], nn.Module] | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """The values of one critic on its way up.

    Arguments:
        estimator: what trains and judges it.
        family: of the tasks.
        seed: of weights, pairs and batches.
        steps: a level.
        make: widths of x and y to a critic; None for a separable one, or a Gaussian conditional.
        tick: is told the share that is done.
    """
    tasks = all_tasks()
    torch.manual_seed(seed)
    own = GaussianConditional if estimator.arguments is Conditional else default_critic
    critic = (make or own)(20, 20)
    levels = {}
    for information in SCHEDULE:
        x, y = tasks[f"{family}-{information}"].draw((steps + BATCHES) * PAIRS)
        share = BATCHES / (steps + BATCHES) + 1e-9
        found = estimate_mi(
            x, y, estimator, critic, steps=steps, pairs=PAIRS, held_out=share, validation=0.0, seed=seed
        )
        width = (found.interval[1] - found.interval[0]) / 2
        levels[str(information)] = {
            "value": round(found.value, 4),
            "half_width": round(width, 4),
            "claim": found.bound.direction,
            "status": found.status,
            "step": found.diverged,
            "seconds": round(found.seconds, 2),
        }
        tick(len(levels) / len(SCHEDULE))
        if found.diverged is not None:  # its weights are lost: the levels above are not run, and say so
            break
    return {"levels": levels}


def by_neighbours(family: str, seed: int) -> dict[str, Any]:
    """KSG's values."""
    torch.manual_seed(seed)
    tasks = all_tasks()
    return {
        "levels": {str(i): {"value": ksg(*tasks[f"{family}-{i}"].draw(3000)), "claim": "neither"} for i in SCHEDULE}
    }


def table(family: str) -> str:
    """Means over seeds, and the deviation of a batch in parentheses."""
    found: dict[tuple[str, int | None], list[dict[str, Any]]] = {}
    for line in lines.read(RESULTS):
        config = line["config"]
        if line["experiment"] == "gaussians" and config["family"] == family:
            found.setdefault((config["arm"], config.get("steps")), []).append(line)
    several = len({steps for _, steps in found if steps is not None}) > 1
    rows = [[family, "claim", "seeds", *map(str, SCHEDULE)]]
    for (arm, steps), runs in found.items():
        good = [run for run in runs if run["status"] == "ok"]
        cells = []
        for information in SCHEDULE:
            levels = [run["levels"].get(str(information), {"value": math.nan}) for run in good]
            values = [level["value"] for level in levels]
            widths = [level["half_width"] for level in levels if "half_width" in level]
            cell = f"{statistics.fmean(values):.2f}" if values else ""
            # The t-interval of 200 batches is 1.97 deviations of a batch, over the root of 200.
            cells.append(cell + (f" ({statistics.fmean(widths) * BATCHES**0.5 / 1.97:.2f})" if widths else ""))
        first = good[0]["levels"]["2"] if good else {}
        rows.append(
            [
                f"{arm}, {steps} steps" if several and steps else arm,
                first.get("claim", "failed"),
                str(len(good)),
                *cells,
            ]
        )
    return lines.markdown(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--families", nargs="+", default=["gaussian", "cubic"])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print("\n\n".join(map(table, given.families)))
        return
    for seed in range(given.seeds):
        for family in given.families:
            for name, estimator in arms().items():
                config = {"family": family, "arm": name, "steps": given.steps, "pairs": PAIRS}
                work = lambda e=estimator, f=family, s=seed: climb(e, f, s, given.steps)  # noqa: E731
                lines.run(RESULTS, "gaussians", config, seed, work)
            config = {"family": family, "arm": "KSG", "samples": 3000}
            lines.run(RESULTS, "gaussians", config, seed, lambda f=family, s=seed: by_neighbours(f, s))


if __name__ == "__main__":
    main()
