r"""Figure 4c: with dependent negatives neither estimate is a bound.

    python -m benchmarks.tschannen2020.sampling --preset quick

Pairs of numbers :math:`(X_i, Y_i) = Z + \epsilon_i` whose Z is drawn once a batch: the negatives of a batch share it.
The control draws it for every pair. The information is the same, -1/2 log(1 - 0.04) = 0.0204110 nats. I_EST training is
the mean of the last tenth of the batches, I_EST held out that of fresh ones.
"""

import math
import statistics
from typing import Any

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.data import Halves
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, Tick, main
from benchmarks.tschannen2020.training import has_left_the_floats
from benchmarks.under_way import UnderWay
from contrastive import Concat
from contrastive.batches import derived_seed
from contrastive.encoders import glorot_uniform_
from contrastive.estimators import infonce, nwj

SHARED, OWN = torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
TRUE = -0.5 * math.log(1 - 0.2**2)
BATCH = 128
MONTE_CARLO = 0.005  # nats: what "up to Monte Carlo error" allows
BUDGETS = {
    "smoke": {"iterations": 20, "lr": 1e-3, "smooth": 2},
    "quick": {"iterations": 5000, "lr": 1e-3, "smooth": 100},
    "paper": {"iterations": 20_000, "lr": 1e-4, "smooth": 100},
}
HELD_OUT = {"smoke": 5, "quick": 500, "paper": 500}  # batches after training


def plan(preset: str, variant: str, data: str) -> list[Config]:
    """Both ways to sample, both bounds.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: no image is read.
    """
    return [
        {"preset": preset, "variant": variant, "sampling": sampling, "objective": objective, **BUDGETS[preset]}
        for sampling in ("dependent", "independent")
        for objective in ("nce", "nwj")
    ]


def pairs(sampling: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of pairs, columns of one number.

    Arguments:
        sampling: ``dependent`` (one Z for all) or ``independent``.
        generator: of the draws.
    """
    own = torch.randn(BATCH, 2, generator=generator) @ torch.linalg.cholesky(OWN).T
    shared = torch.randn(1 if sampling == "dependent" else BATCH, 2, generator=generator)
    x, y = (own + shared @ torch.linalg.cholesky(SHARED).T).split(1, 1)
    return x, y


def run(config: Config, data: Halves | None, seed: int, tick: Tick, keep: UnderWay | None = None) -> dict[str, Any]:
    """Trains a critic of five hidden layers of 10 and judges it on fresh batches.

    Arguments:
        config: of `plan`.
        data: None.
        seed: of everything.
        tick: is told the share that is done.
        keep: nothing; it takes minutes.
    """
    torch.manual_seed(derived_seed(seed, 0))
    critic = Concat(1, hidden=10, layers=5)
    glorot_uniform_(critic)
    optimiser = torch.optim.Adam(critic.parameters(), config["lr"], fused=True)
    generator = torch.Generator().manual_seed(derived_seed(seed, 1))
    estimate = {"nce": infonce, "nwj": nwj}[config["objective"]]
    values: list[float] = []
    figures: dict[str, Any] = {"iterations": config["iterations"], "status": "ok"}
    for step in range(config["iterations"]):
        scores = critic(*pairs(config["sampling"], generator))
        value = estimate(scores) if bool(torch.isfinite(scores).all()) else scores.sum()
        if not bool(torch.isfinite(value)):
            figures |= {"status": "diverged", "diverged_at": step}
            break
        values.append(float(value.detach()))
        optimiser.zero_grad()
        (-value).backward()
        optimiser.step()
        if step % 100 == 0:
            if has_left_the_floats(optimiser):
                figures |= {"status": "diverged", "diverged_at": step, "diverged_after": max(0, step - 100)}
                break
            tick(step / config["iterations"])
    # Reflected at the end: repeating the last batch there would give it the weight of a thousand.
    smooth = gaussian_filter1d(values, config["smooth"], mode="reflect") if values else []
    shown = range(0, len(values), max(1, config["iterations"] // 100))
    curves = {"iteration": list(shown), "train_bound": [float(smooth[i]) for i in shown]}
    figures |= {"test_accuracy": None, "test_bound": None, "train_bound": None, "true": TRUE, "curves": curves}
    if figures["status"] != "ok":  # the critic's scores are no numbers any more
        return figures
    fresh = torch.Generator().manual_seed(derived_seed(seed, 2))
    with torch.no_grad():
        judged = [float(estimate(critic(*pairs(config["sampling"], fresh)))) for _ in range(HELD_OUT[config["preset"]])]
    return {
        **figures,
        "test_bound": statistics.fmean(judged),
        "train_bound": statistics.fmean(values[-max(1, len(values) // 10) :]),
    }


def arm(sampling: str, objective: str) -> Config:
    """Which configurations are meant.

    Arguments:
        sampling: of the arm.
        objective: of the arm.
    """
    return {"sampling": sampling, "objective": objective}


CLAIMS = tuple(
    Claim(
        6,
        f"I_{objective.upper()}, {sampling} negatives: "
        + ("above the information" if sampling == "dependent" else f"not above it by more than {MONTE_CARLO:g}"),
        "test_bound",
        arm(sampling, objective),
        TRUE,
        "positive" if sampling == "dependent" else "not positive",
        0.0 if sampling == "dependent" else MONTE_CARLO,
        main=sampling == "dependent",
    )
    for sampling in ("dependent", "independent")
    for objective in ("nce", "nwj")
)
EXPERIMENT = Experiment(
    "sampling",
    "Figure 4c: with dependent negatives neither estimate is a bound",
    plan,
    run,
    lambda config: config["iterations"] * 0.009 + 5,
    (
        Panel(
            "batches, smoothed",
            "train_bound",
            "I_EST, nats",
            {},
            ("sampling", "objective"),
            (TRUE, "true information"),
        ),
    ),
    CLAIMS,
    uses_data=False,
)

if __name__ == "__main__":
    main(EXPERIMENT)
