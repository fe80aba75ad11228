"""Every estimator with the exact critic, Gaussians of 20 correlated pairs: bias and spread without any training.

    python -m benchmarks.estimators.oracle [--batches 400] [--table]

A line holds all estimates of one information and batch size: mean, deviation of a batch, standard error.
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import lines
from contrastive import (
    barber_agakov,
    club,
    donsker_varadhan,
    flo,
    infonce,
    interpolated,
    leave_one_out_upper,
    nwj,
    nwj_of_log_ratio,
    smile,
    symmetric_infonce,
    tractable_nce,
    tuba,
    variational_upper,
)
from contrastive.tasks import Task, gaussian

RESULTS = Path(__file__).with_name("results.jsonl")
SCHEDULE = (2, 4, 6, 8, 10)


def estimates(log_ratio: Tensor, log_marginal: Tensor, entropy: float) -> dict[str, Tensor]:
    """What every estimator reads of one batch, and three readings by the wrong formula."""
    conditional = log_ratio + log_marginal
    return {
        "InfoNCE": infonce(log_ratio),
        "InfoNCE, both directions": symmetric_infonce(log_ratio),
        "NWJ": nwj(1 + log_ratio),
        "Donsker-Varadhan": donsker_varadhan(log_ratio),
        "TUBA": tuba(conditional, log_baseline=log_marginal),
        "interpolated, alpha = 0.01": interpolated(conditional, alpha=0.01, log_baseline=log_marginal),
        "interpolated, alpha = 0.5": interpolated(conditional, alpha=0.5, log_baseline=log_marginal),
        "FLO": flo(log_ratio, log_ratio=log_ratio.diagonal()),
        "Jensen-Shannon, NWJ's value": nwj_of_log_ratio(log_ratio),
        "SMILE, clip 1": smile(log_ratio, clip=1.0),
        "SMILE, clip 5": smile(log_ratio, clip=5.0),
        "Barber-Agakov": barber_agakov(conditional.diagonal(), entropy=entropy),
        "tractable NCE": tractable_nce(conditional),
        "leave one out": leave_one_out_upper(conditional),
        "variational upper": variational_upper(conditional.diagonal(), log_marginal),
        "CLUB": club(conditional),
        "wrong: InfoNCE over y of log p(y|x)": infonce(conditional),
        "wrong: NWJ of the log-ratio, less 1/e": nwj(log_ratio),
        "wrong: leave one out over y": leave_one_out_upper(conditional.T),
    }


def measure(task: Task, pairs: int, batches: int) -> dict[str, Any]:
    """Means over fresh batches."""
    torch.manual_seed(0)
    found: dict[str, list[float]] = {}
    for _ in range(batches):
        x, y = (z.double() for z in task.draw(pairs))
        log_marginal = -(y.square() + math.log(2 * math.pi)).sum(1) / 2
        assert task.entropy is not None
        for name, value in estimates(task.log_ratio(x, y), log_marginal, task.entropy).items():
            found.setdefault(name, []).append(float(value))
    return {
        "estimates": {
            name: {
                "mean": round(statistics.fmean(values), 4),
                "deviation": round(statistics.stdev(values), 4),
                "standard_error": round(statistics.stdev(values) / math.sqrt(batches), 4),
            }
            for name, values in found.items()
        }
    }


def table(pairs: int) -> str:
    """Means, and the deviation of a batch in parentheses."""
    found = {
        line["config"]["information"]: line["estimates"]
        for line in lines.read(RESULTS)
        if line["experiment"] == "oracle" and line["config"]["pairs"] == pairs
    }
    rows = [[f"K = {pairs}", *map(str, found)]]
    for name in found[SCHEDULE[0]]:
        cells = [estimates[name] for estimates in found.values()]
        rows.append([name, *(f"{cell['mean']:.2f} ({cell['deviation']:.2f})" for cell in cells)])
    return lines.markdown(rows).replace("p(y|x)", r"p(y\|x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=400)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    batches = given.batches
    torch.set_num_threads(1)
    if given.table:
        print(f"{table(64)}\n\n{table(128)}")
        return
    for pairs in (64, 128):
        for information in SCHEDULE:
            config = {"information": information, "pairs": pairs, "batches": batches}
            task = gaussian(float(information))
            lines.run(RESULTS, "oracle", config, 0, lambda t=task, p=pairs: measure(t, p, batches))


if __name__ == "__main__":
    main()
