"""Figure 1c: an encoder that loses nothing can be made worse for a linear classifier.

    python -m benchmarks.tschannen2020.adversarial --preset quick --data-root DATA

A classifier learns the labels from the codes, the encoder learns to make its answer uniform; afterwards a fresh probe
is fitted. The encoder is invertible throughout, by couplings that scale.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tschannen2020 import probe
from benchmarks.tschannen2020.claims import Claim
from benchmarks.tschannen2020.data import Halves, spread
from benchmarks.tschannen2020.runs import Config, Experiment, Panel, Tick, main
from benchmarks.tschannen2020.training import (
    INVERSE_TOLERANCE,
    codes_of_step,
    encoded,
    fastest_products,
    has_left_the_floats,
    inverse_error,
    is_rounded,
)
from benchmarks.under_way import UnderWay
from contrastive.batches import derived_seed
from contrastive.flows import RealNVP

BATCH, CLASSES = 128, 10
BUDGETS: dict[str, dict[str, Any]] = {
    "smoke": {"iterations": 2, "every": 2, "warm_up": 2, "ratio": 2, "probe_rows": 256, "products": "float32"},
    "quick": {
        "iterations": 400,
        "every": 100,
        "warm_up": 300,
        "ratio": 10,
        "probe_rows": 10_000,
        "products": "bfloat16",
    },
    "paper": {
        "iterations": 4001,
        "every": 400,
        "warm_up": 1000,
        "ratio": 10,
        "probe_rows": None,
        "products": "bfloat16",
    },
}
# Of the classifier and of the encoder; the text and the code differ.
RATES = {"paper": (1e-4, 1e-6), "code": (1e-3, 1e-5)}


def plan(preset: str, variant: str, data: str) -> list[Config]:
    """One configuration.

    Arguments:
        preset: its name.
        variant: decides the learning rates of the paper preset; the short ones have the published code's, ten times the
            text's.
        data: name of the data set.
    """
    classifier, encoder = RATES[variant if preset == "paper" else "code"]
    rates = {"classifier_lr": classifier, "encoder_lr": encoder}
    return [{"preset": preset, "variant": variant, "data": data, "encoder": "realnvp", **rates, **BUDGETS[preset]}]


def run(config: Config, data: Halves | None, seed: int, tick: Tick, keep: UnderWay | None = None) -> dict[str, Any]:
    """Trains once; probes on the way, by the published probe at the end.

    Arguments:
        config: of `plan`.
        data: on what.
        seed: of everything.
        tick: is told the share that is done.
        keep: what it has reached, for a run that is interrupted.
    """
    assert data is not None
    torch.manual_seed(derived_seed(seed, 0))
    encoder, classifier = RealNVP(data.dim, affine=True), nn.Linear(data.dim, CLASSES)
    moves = torch.optim.Adam(encoder.parameters(), config["encoder_lr"], fused=True)
    learns = torch.optim.Adam(classifier.parameters(), config["classifier_lr"], fused=True)
    generator = torch.Generator().manual_seed(derived_seed(seed, 1))
    products = config["products"]

    def batch(count: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(data.train), (count * BATCH,), generator=generator)
        return data.train.x[rows].float() / 255, data.train.labels[rows]

    def teach(steps: int) -> None:
        # The encoder rests meanwhile: all batches are encoded in one go, which keeps the products large.
        while steps > 0:
            now = min(steps, 10)
            x, labels = batch(now)
            with torch.no_grad(), fastest_products(products):
                codes = codes_of_step(encoder, x, products)
            for z, truth in zip(codes.split(BATCH), labels.split(BATCH), strict=True):
                learns.zero_grad()
                F.cross_entropy(classifier(z), truth).backward()
                learns.step()
            steps -= now

    uniform = torch.full((BATCH, CLASSES), 1 / CLASSES)
    parts = {"encoder": encoder, "classifier": classifier, "moves": moves, "learns": learns}
    reached = None if keep is None else keep.read()
    if reached is None:
        points = [_point(config, encoder, data, 0)]
        teach(config["warm_up"])
    else:
        for name, part in parts.items():
            part.load_state_dict(reached[name])
        generator.set_state(reached["generator"])
        points = reached["points"]
    lost: dict[str, int] = {}
    for step in range(points[-1]["iteration"] + 1, config["iterations"] + 1):
        teach(config["ratio"])
        with fastest_products(products):
            loss = F.cross_entropy(classifier(codes_of_step(encoder, batch(1)[0], products)), uniform)
            if not bool(torch.isfinite(loss)):
                lost = {"diverged_at": step}
                break
            moves.zero_grad()
            loss.backward()
        moves.step()
        if step % config["every"] == 0 or step == config["iterations"]:
            if has_left_the_floats(moves) or has_left_the_floats(learns):
                lost = {"diverged_at": step, "diverged_after": points[-1]["iteration"]}
                break
            points.append(_point(config, encoder, data, step))
            if keep is not None:
                states = {name: part.state_dict() for name, part in parts.items()}
                keep.write({**states, "generator": generator.get_state(), "points": points})
            tick(step / config["iterations"])
    figures: dict[str, Any] = {
        "iterations": config["iterations"],
        "status": "diverged" if lost else "ok",
        "rounded": is_rounded(products),
        "test_bound": None,
        "train_bound": None,
        "pixels_accuracy": probe.saga_accuracy(*_pixels(data), seed=seed),
        "pixels_converged_accuracy": probe.fast_accuracy(*_pixels(data, config["probe_rows"])),
        "curves": {key: [point[key] for point in points] for key in points[0]},
    }
    if lost:
        return {**figures, **lost, "test_accuracy": None}
    error = inverse_error(encoder, data)
    return {
        **figures,
        "test_accuracy": probe.saga_accuracy(*_codes(encoder, data, None), seed=seed),
        "inverse_error": error,
        "inverse_within_tolerance": error <= INVERSE_TOLERANCE,
        "inverse_error_float64": inverse_error(copy.deepcopy(encoder).double(), data),
    }


def _point(config: Config, encoder: nn.Module, data: Halves, step: int) -> dict[str, Any]:
    accuracy = probe.fast_accuracy(*_codes(encoder, data, config["probe_rows"]))
    return {"iteration": step, "accuracy": accuracy, "inverse_error": inverse_error(encoder, data)}


def _codes(encoder: nn.Module, data: Halves, rows: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    train, labels, test, truth = _pixels(data, rows)
    return encoded(encoder, train), labels, encoded(encoder, test), truth


def _pixels(data: Halves, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    some = spread(len(data.train), rows)
    return data.train.x[some].float() / 255, data.train.labels[some], data.test.x.float() / 255, data.test.labels


EXPERIMENT = Experiment(
    "adversarial",
    "Figure 1c: an encoder that loses nothing can be made worse for a linear classifier",
    plan,
    run,
    lambda config: config["iterations"] * (0.3 + 0.1 * config["ratio"]) + 60,
    (
        Panel("accuracy of a fresh probe", "accuracy", "accuracy", level=("pixels_converged_accuracy", "raw pixels")),
        Panel(
            "largest error of the inverse (float32)", "inverse_error", "of a pixel in [0, 1]",
            level=(INVERSE_TOLERANCE, "tolerance"), log=True,
        ),
    ),
    (
        Claim(2, "accuracy below raw pixels", "test_accuracy", {}, "pixels_accuracy", "negative", main=True),
        Claim(
            2, "accuracy, by the converged probe, below raw pixels while float32 still inverts within the tolerance",
            "invertible_accuracy", {}, "pixels_converged_accuracy", "negative", main=True,
        ),
        Claim(
            2, f"nothing is lost: at the end the error of the inverse in float64 is below {INVERSE_TOLERANCE:g}",
            "inverse_error_float64", {}, INVERSE_TOLERANCE, "always negative",
        ),
    ),
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
