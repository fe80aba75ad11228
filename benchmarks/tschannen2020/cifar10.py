"""Figures 8 and 9: critics and architectures on halves of CIFAR-10.

python -m benchmarks.tschannen2020.cifar10 --preset quick --data-root DATA
"""

from typing import Any

from benchmarks.tschannen2020 import architectures, critics
from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.critics import run
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, main

BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"iterations": 2, "every": 2, "lr": 1e-3, "bound_batches": 1, "probe_rows": 128},
    "quick": {"iterations": 1000, "every": 500, "lr": 2e-4, "probe_rows": 10_000},
    "paper": {"iterations": 63_000, "every": 3000, "lr": 1e-5},
}
# Figure 9 compares encoders at a target, so it must get there: after 800 iterations at 1e-3 the MLP had 1.7 of 2 nats.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "quick": {"iterations": 2500, "every": 500, "lr": 3e-4, "bound_batches": 40, "probe_rows": 10_000}
}


def plan(preset: str, variant: str, data: str) -> list[Config]:
    """Figure 8, then figure 9; at the quick preset I_NCE and the lower target only.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: name of the data set.
    """
    first = [row for row in critics.settings(preset, variant, data, BUDGETS[preset]) if row["miner"] == "none"]
    second = architectures.settings(preset, variant, data, ARCHITECTURES.get(preset, BUDGETS[preset]))
    if preset == "quick":
        second = [row for row in second if row["objective"] == "nce" and row["target"] == architectures.TARGETS[0]]
    return [*first, *second]


PANELS = tuple(
    Panel(f"{title}, I_{objective.upper()}: {name}", y, label, {"objective": objective, **where}, by)
    for title, where, by in (
        ("figure 8", {"target": None}, ("critic",)),
        *((f"figure 9, {nats:g} nats", {"target": nats}, ("encoder",)) for nats in architectures.TARGETS),
    )
    for objective in ("nce", "nwj")
    for name, y, label in (
        ("held out", "test_bound", "I_EST, nats"),
        ("fresh training batches", "train_bound", "I_EST, nats"),
        ("accuracy", "accuracy", "accuracy"),
    )
)
CLAIMS: tuple[Claim, ...] = (
    *(claim for claim in critics.CLAIMS if claim.number is not None),
    *architectures.CLAIMS,
)
EXPERIMENT = Experiment(
    "cifar10",
    "Figures 8 and 9: critics and architectures on CIFAR-10",
    plan,
    run,
    lambda config: config["iterations"] * (0.1 if config["encoder"] == "convnet" else 0.012) + 15,
    PANELS,
    CLAIMS,
    datasets=("cifar10", "made-up"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
