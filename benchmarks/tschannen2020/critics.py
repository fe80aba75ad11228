"""Figures 3 and 6: critics of more and of less capacity.

    python -m benchmarks.tschannen2020.critics --preset quick --data-root DATA

Beside the paper's three critics: the inner product, which has no parameters, and hard-negative mining.
"""

import math
from dataclasses import asdict
from typing import Any

from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.data import Halves
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, Tick, main
from benchmarks.tschannen2020.training import Setting, train
from benchmarks.under_way import UnderWay

BUDGETS = {
    "smoke": {"iterations": 6, "every": 3, "lr": 1e-3, "bound_batches": 2},
    "quick": {"iterations": 1500, "every": 500, "lr": 5e-4},
    "paper": {"iterations": 21_000, "every": 1000, "lr": 1e-4},
}
CRITICS = ("inner product", "bilinear", "separable", "concat")
MINED = ("hcl 1", "top 16")
SECONDS = {"concat": 0.015}


def settings(preset: str, variant: str, data: str, budget: dict[str, Any]) -> list[Config]:
    """Every critic with both bounds, and the bilinear one with miners.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: name of the data set.
        budget: what the preset says.
    """
    arms = [(critic, objective, "none") for objective in ("nce", "nwj") for critic in CRITICS]
    arms += [("bilinear", "nce", miner) for miner in MINED]
    return [
        asdict(Setting(preset, variant, data, encoder="mlp", critic=critic, objective=objective, miner=miner, **budget))
        for critic, objective, miner in arms
    ]


def run(config: Config, data: Halves | None, seed: int, tick: Tick, keep: UnderWay | None = None) -> dict[str, Any]:
    """Trains once.

    Arguments:
        config: a `Setting`.
        data: on what.
        seed: of everything.
        tick: is told the share that is done.
        keep: what it has reached, for a run that is interrupted.
    """
    assert data is not None
    return train(Setting(**config), data, seed, tick, keep=keep)


PANELS = tuple(
    Panel(f"I_{objective.upper()}: {name}", y, label, {"objective": objective}, ("critic", "miner"))
    for objective in ("nce", "nwj")
    for name, y, label in (
        ("held out", "test_bound", "I_EST, nats"),
        ("fresh training batches", "train_bound", "I_EST, nats"),
        ("downstream accuracy", "accuracy", "accuracy"),
    )
)


def arm(critic: str, objective: str, miner: str = "none") -> Config:
    """Which configurations are meant.

    Arguments:
        critic: of the arm.
        objective: of the arm.
        miner: of the arm.
    """
    # Figure 9 has bilinear critics as well, of encoders that are brought to a target.
    return {"critic": critic, "objective": objective, "target": None, "miner": miner}


CAP = math.log(128)  # of I_NCE in batches of 128
NEAR_THE_CAP = 0.9
NO_WORSE = 0.01  # a point of accuracy
CLAIMS = (
    *(
        Claim(
            4,
            f"I_NCE, {critic}: above {NEAR_THE_CAP:g} of its cap, log 128",
            "test_bound",
            arm(critic, "nce"),
            NEAR_THE_CAP * CAP,
        )
        for critic in CRITICS[1:]
    ),
    Claim(4, "I_NWJ: concat above bilinear", "test_bound", arm("concat", "nwj"), arm("bilinear", "nwj"), main=True),
    Claim(
        4,
        "accuracy by I_NWJ: bilinear above concat",
        "test_accuracy",
        arm("bilinear", "nwj"),
        arm("concat", "nwj"),
        main=True,
    ),
    Claim(4, "accuracy by I_NCE: bilinear above concat", "test_accuracy", arm("bilinear", "nce"), arm("concat", "nce")),
    Claim(
        8,
        "I_NCE: bilinear above inner product",
        "test_bound",
        arm("bilinear", "nce"),
        arm("inner product", "nce"),
        main=True,
    ),
    Claim(
        8, "accuracy: inner product above concat", "test_accuracy", arm("inner product", "nce"), arm("concat", "nce")
    ),
    Claim(
        8,
        f"accuracy: inner product not below bilinear by more than {NO_WORSE:g}",
        "test_accuracy",
        arm("inner product", "nce"),
        arm("bilinear", "nce"),
        "not negative",
        NO_WORSE,
        main=True,
    ),
    *(
        Claim(
            None,
            f"{what}: mined ({miner}) above unmined",
            figure,
            arm("bilinear", "nce", miner),
            arm("bilinear", "nce"),
        )
        for miner in MINED
        for what, figure in (("accuracy", "test_accuracy"), ("the honest bound, I_NCE held out", "test_bound"))
    ),
)
EXPERIMENT = Experiment(
    "critics",
    "Figures 3 and 6: critics of more and of less capacity",
    lambda preset, variant, data: settings(preset, variant, data, BUDGETS[preset]),
    run,
    lambda config: config["iterations"] * SECONDS.get(config["critic"], 0.008) + 10,
    PANELS,
    CLAIMS,
)

if __name__ == "__main__":
    main(EXPERIMENT)
