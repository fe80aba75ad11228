"""Figures 1a and 1b: an encoder that loses nothing, trained by a bound.

    python -m benchmarks.tschannen2020.invertible --preset quick --data-root DATA

The true information is constant, since the encoder is invertible; the error of its inverse stands in every line.
"""

from dataclasses import asdict
from typing import Any

from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.critics import run
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, main
from benchmarks.tschannen2020.training import INVERSE_TOLERANCE, Setting

BUDGETS = {
    "smoke": {"iterations": 2, "every": 2, "lr": 1e-3, "bound_batches": 1, "probe_rows": 256},
    "quick": {"iterations": 300, "every": 100, "lr": 3e-4, "bound_batches": 20, "probe_rows": 10_000},
    "paper": {"iterations": 21_000, "every": 1000, "lr": 1e-4, "products": "bfloat16"},
}


def settings(preset: str, variant: str, data: str, budget: dict[str, Any]) -> list[Config]:
    """Both bounds.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: name of the data set.
        budget: what the preset says.
    """
    shared = {"encoder": "realnvp", "critic": "bilinear", "measure": "inverse"}
    return [asdict(Setting(preset, variant, data, objective=name, **shared, **budget)) for name in ("nce", "nwj")]


PANELS = tuple(
    Panel(title, y, label, {}, ("objective",), level, log=level is not None)
    for title, y, label, level in (
        ("held out", "test_bound", "I_EST, nats", None),
        ("fresh training batches", "train_bound", "I_EST, nats", None),
        ("downstream accuracy", "accuracy", "accuracy", None),
        (
            "largest error of the inverse (float32)",
            "inverse_error",
            "of a pixel in [0, 1]",
            (INVERSE_TOLERANCE, "tolerance"),
        ),
    )
)
CLAIMS = (
    *(
        Claim(
            1,
            f"accuracy by I_{name.upper()} after training above the start",
            "test_accuracy",
            {"objective": name},
            "start_test_accuracy",
            main=True,
        )
        for name in ("nce", "nwj")
    ),
    *(
        Claim(
            1,
            f"the inverse by I_{name.upper()} stays exact: at every evaluation its error is below the tolerance of "
            f"{INVERSE_TOLERANCE:g}",
            "worst_inverse_error",
            {"objective": name},
            INVERSE_TOLERANCE,
            "always negative",
        )
        for name in ("nce", "nwj")
    ),
)
EXPERIMENT = Experiment(
    "invertible",
    "Figures 1a and 1b: an encoder that loses nothing, trained by a bound",
    lambda preset, variant, data: settings(preset, variant, data, BUDGETS[preset]),
    run,
    lambda config: config["iterations"] * 0.45 + 60,
    PANELS,
    CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
