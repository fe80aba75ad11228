"""Figures 4a, 4b and 7: two encoders at an equal bound.

    python -m benchmarks.tschannen2020.architectures --preset quick --data-root DATA

Both encoders are brought to the same estimate; trained with labels they do equally well.
"""

from dataclasses import asdict
from typing import Any

from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.critics import run
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, main
from benchmarks.tschannen2020.training import Setting

BUDGETS = {
    "smoke": {"iterations": 2, "every": 2, "lr": 1e-3, "bound_batches": 1, "probe_rows": 128},
    "quick": {"iterations": 600, "every": 200, "lr": 5e-4, "bound_batches": 40, "probe_rows": 10_000},
    "paper": {"iterations": 21_000, "every": 1000, "lr": 1e-4, "products": "bfloat16"},
}
ENCODERS = ("mlp", "convnet")
TARGETS = (2.0, 4.0)


def settings(preset: str, variant: str, data: str, budget: dict[str, Any]) -> list[Config]:
    """Both encoders to both targets of both bounds, and with labels.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: name of the data set.
        budget: what the preset says.
    """
    arms = [(encoder, bound, target) for bound in ("nce", "nwj") for target in TARGETS for encoder in ENCODERS]
    arms += [(encoder, "labels", None) for encoder in ENCODERS]
    return [
        asdict(
            Setting(
                preset, variant, data, encoder=encoder, critic="bilinear", objective=objective, target=target, **budget
            )
        )
        for encoder, objective, target in arms
    ]


def arm(encoder: str, objective: str, target: float | None) -> Config:
    """Which configurations are meant.

    Arguments:
        encoder: of the arm.
        objective: of the arm.
        target: of the arm.
    """
    return {"encoder": encoder, "objective": objective, "target": target}


PANELS = tuple(
    Panel(f"I_{objective.upper()}: {name}", y, label, {"objective": objective}, ("encoder", "target"))
    for objective in ("nce", "nwj")
    for name, y, label in (
        ("held out", "test_bound", "I_EST, nats"),
        ("fresh training batches", "train_bound", "I_EST, nats"),
        ("downstream accuracy", "accuracy", "accuracy"),
    )
)


def claims(objective: str, target: float) -> tuple[Claim, ...]:
    """Both encoders are at the target, so at the same estimate, and one is worth more.

    Arguments:
        objective: ``nce`` or ``nwj``.
        target: nats.
    """
    at = f"at I_{objective.upper()} = {target:g}"
    convnet, mlp = arm("convnet", objective, target), arm("mlp", objective, target)

    def near(text: str, figure: str, of: Config, versus: Config | float) -> Claim:
        return Claim(5, f"condition: {text}", figure, of, versus, "zero", condition=True)

    equal = near(f"I_EST training {at}: ConvNet near MLP", "train_bound", convnet, mlp)
    return (  # whether that estimate is the target is asked beside it
        equal,
        Claim(
            5, f"accuracy at equal I_{objective.upper()}, target {target:g}: ConvNet above MLP",
            "test_accuracy", convnet, mlp, given=(equal,), main=True,
        ),
        near(f"I_EST training {at}: ConvNet near the target", "train_bound", convnet, target),
        near(f"I_EST training {at}: MLP near the target", "train_bound", mlp, target),
        near(f"I_EST held out {at}: ConvNet near MLP", "test_bound", convnet, mlp),
    )  # fmt: skip


CLAIMS = tuple(claim for objective in ("nce", "nwj") for target in TARGETS for claim in claims(objective, target))
EXPERIMENT = Experiment(
    "architectures",
    "Figures 4a, 4b and 7: two encoders at an equal bound",
    lambda preset, variant, data: settings(preset, variant, data, BUDGETS[preset]),
    run,
    lambda config: config["iterations"] * (0.17 if config["encoder"] == "convnet" else 0.008) + 8,
    PANELS,
    CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
