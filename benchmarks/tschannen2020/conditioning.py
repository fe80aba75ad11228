"""Figures 2 and 5: the bounds prefer encoders that are hard to invert, though they could stay invertible.

    python -m benchmarks.tschannen2020.conditioning --preset quick --data-root DATA

Both halves carry the same noise. Near the identity at the start, the encoder's Jacobian is worse and worse conditioned.
"""

from dataclasses import asdict
from typing import Any

from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.critics import run
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, main
from benchmarks.tschannen2020.training import PERCENTILES, Setting

NOISE = 0.05
BUDGETS = {
    "smoke": {"iterations": 2, "every": 2, "lr": 1e-3, "bound_batches": 2, "batch": 16},
    "quick": {"iterations": 600, "every": 150, "lr": 3e-4},
    "paper": {"iterations": 21_000, "every": 1000, "lr": 1e-4},
}


def settings(preset: str, variant: str, data: str, budget: dict[str, Any]) -> list[Config]:
    """Both bounds.

    Arguments:
        preset: its name.
        variant: the published code evaluates with noise that is independent between the halves.
        data: name of the data set.
        budget: what the preset says.
    """
    shared = {"encoder": "residual", "critic": "bilinear", "noise": NOISE, "measure": "condition"}
    return [
        asdict(
            Setting(preset, variant, data, objective=objective, independent_noise=variant == "code", **shared, **budget)
        )
        for objective in ("nce", "nwj")
    ]


NAMES = tuple(f"{percentile} %" for percentile in PERCENTILES)
PANELS = tuple(
    Panel(f"I_{objective.upper()}: {name}", y, label, {"objective": objective}, parts=parts)
    for objective in ("nce", "nwj")
    for name, y, label, parts in (
        ("condition number, percentiles", "log10_condition", "log10 of the condition number", NAMES),
        ("held out", "test_bound", "I_EST, nats", ()),
        ("fresh training batches", "train_bound", "I_EST, nats", ()),
        ("downstream accuracy", "accuracy", "accuracy", ()),
    )
)
CLAIMS = tuple(
    Claim(
        3,
        f"I_{objective.upper()}: {text} grows with training",
        figure,
        {"objective": objective},
        start,
        main=figure == "median_log10_condition",
    )
    for objective in ("nce", "nwj")
    for text, figure, start in (
        ("the median of log10 of the condition number", "median_log10_condition", "start_median_log10_condition"),
        ("I_EST", "test_bound", "start_bound"),
        ("accuracy", "test_accuracy", "start_test_accuracy"),
    )
)
EXPERIMENT = Experiment(
    "conditioning",
    "Figures 2 and 5: the bounds prefer encoders that are hard to invert",
    lambda preset, variant, data: settings(preset, variant, data, BUDGETS[preset]),
    run,
    lambda config: config["iterations"] * 0.025 + 40,
    PANELS,
    CLAIMS,
    columns=4,
)

if __name__ == "__main__":
    main(EXPERIMENT)
