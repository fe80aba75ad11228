"""What a system is to the runner, how it is trained, and what probes read off it."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from timm.optim import Lars
from torch import Tensor, nn

from benchmarks.systems.data import Images
from benchmarks.under_way import UnderWay
from contrastive.batches import Batches, derived_seed
from contrastive.bounds import Bound
from contrastive.data import ImageSplit
from contrastive.probing import knn_accuracy, linear_accuracy

__all__ = ["OPTIMISERS", "Budget", "Features", "Figures", "Learner", "encoded", "fit", "probed", "run"]

Features = Mapping[str, Callable[[Tensor], Tensor]]
Figures = dict[str, Any]
# Images of the curve of held-out accuracy: a second each time.
CURVE_IMAGES = 2000

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
    "lars": Lars,
}


@dataclass(frozen=True)
class Budget:
    """How a system is trained; as a dictionary it is part of the configuration in the run's line.

    Arguments:
        batch: images a step.
        steps: of the optimiser.
        lr: largest learning rate.
        images: training images.
        optimiser: one of `OPTIMISERS`.
        arguments: of the optimiser, such as ``betas``.
        warmup: steps of linear warm-up.
        decay: shares of the steps at which the rate is multiplied by `factor`; None for a cosine to zero.
        factor: see `decay`.
        points: of the curves.
    """

    batch: int
    steps: int
    lr: float
    images: int = 20_000
    optimiser: str = "adam"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    warmup: int = 50
    decay: tuple[float, ...] | None = None
    factor: float = 0.1
    points: int = 5

    def rate(self, step: int) -> float:
        """The share of `lr` at a step."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        if self.decay is None:
            return warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return warm * self.factor ** sum(step >= share * self.steps for share in self.decay)


def nothing() -> None:
    """No state moves after a step."""


def unprepared(images: Tensor) -> None:
    """Nothing is worked out beforehand."""


@dataclass(frozen=True, eq=False)
class Learner:
    """A system, built of blocks and ready to be trained.

    Arguments:
        modules: all that is trained, and whatever else moves with it: a run that goes on knows nothing else.
        loss: images in [0, 1] ``[n, c, h, w]`` and their numbers among the training images, to what is minimised.
        features: images to rows ``[n, d]``, by name: what probes read; the first is the headline. None at all for a
            system that has a measure of its own.
        after_step: moves what follows the weights, such as a momentum copy or a queue.
        bound: held-out images to what may be claimed of the loss in nats; None where the objective has no such number.
        measure: the data set, and the images judged on, to the figures; None for `probed`.
        prepare: sees all training images (uint8, in the order of their numbers) once, before the first step.
        glance: the data set to points of the curves, from held-out images; None for k-NN on a few of them.
    """

    modules: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    features: Features
    after_step: Callable[[], None] = nothing
    bound: Callable[[Tensor], Bound] | None = None
    measure: Callable[[Images, ImageSplit], Figures] | None = None
    prepare: Callable[[Tensor], None] = unprepared
    glance: Callable[[Images], Figures] | None = None


def run(
    learner: Learner,
    images: Images,
    judged_on: ImageSplit,
    budget: Budget,
    seed: int,
    tick: Callable[[float], None],
    *,
    keep: UnderWay | None = None,
) -> Figures:
    """Trains once; measures before, on held-out images on the way, and at the end. Of no steps: at the end.

    Arguments:
        learner: built with weights of this seed.
        images: the data set.
        judged_on: test images, or held-out ones while settings are chosen.
        budget: of the training.
        seed: of batches and of every draw within a step.
        tick: is told the share that is done.
        keep: of `fit`. What is measured before it is measured again by a run that goes on.
    """
    measure = learner.measure or partial(probed, learner)
    before, curves = {}, {}
    if budget.steps:
        calibrate(learner, images.of_encoder)
        before = measure(images, judged_on)
        learner.prepare(images.of_encoder)
        curves = fit(learner, images, budget, seed, tick, keep=keep)
    after = measure(images, judged_on)
    return {
        "iterations": budget.steps,
        "test_accuracy": after.get("linear"),
        "random": before,
        "trained": after,
        **bounds(learner, images, judged_on, budget.batch),
        "curves": curves,
    }


def fit(
    learner: Learner,
    images: Images,
    budget: Budget,
    seed: int,
    tick: Callable[[float], None],
    *,
    keep: UnderWay | None = None,
) -> dict[str, list[float]]:
    """Trains, and returns the curves of the loss and of what held-out images tell.

    Arguments:
        learner: trained in place.
        images: the data set; test images are not touched.
        budget: how long, and how.
        seed: of batches and draws.
        tick: is told the share that is done.
        keep: where every point of the curves is kept with weights, optimiser and place in the data, so that training
            goes on there, to the bit; None keeps nothing.

    Raises:
        FloatingPointError: for a loss that is not finite, with its step.
    """
    parameters = [p for p in learner.modules.parameters() if p.requires_grad]
    optimiser = OPTIMISERS[budget.optimiser](parameters, lr=budget.lr, **budget.arguments)
    batches = Batches(images.of_encoder, budget.batch, seed=seed)
    every = max(1, budget.steps // budget.points)
    curves: dict[str, list[float]] = {"iteration": [], "loss": []}
    losses: list[float] = []
    step = 0
    reached = None if keep is None else keep.read()
    if reached is not None:  # draws need no state: every step seeds its own
        learner.modules.load_state_dict(reached["modules"])
        optimiser.load_state_dict(reached["optimiser"])
        batches.load_state_dict(reached["batches"])
        curves = reached["curves"]
        step = int(curves["iteration"][-1])
    learner.modules.train()
    while step < budget.steps:
        for rows, batch in batches:
            if step == budget.steps:
                break
            for group in optimiser.param_groups:
                group["lr"] = budget.lr * budget.rate(step)
            torch.manual_seed(derived_seed(seed, step))
            loss = learner.loss(batch.float() / 255, rows)
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(f"the loss of step {step} is {float(loss.detach())}")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            learner.after_step()
            losses.append(float(loss.detach()))
            step += 1
            if step % every == 0 or step == budget.steps:
                curves["iteration"].append(step)
                curves["loss"].append(statistics.fmean(losses))
                for name, value in glanced(learner, images).items():
                    curves.setdefault(name, []).append(value)
                losses = []
                if keep is not None:
                    state = {"modules": learner.modules, "optimiser": optimiser, "batches": batches}
                    keep.write({**{name: part.state_dict() for name, part in state.items()}, "curves": curves})
                tick(step / budget.steps)
    learner.modules.eval()
    return curves


def calibrate(learner: Learner, images: Tensor) -> None:
    """Gives untrained batch norms the statistics of training images: the baseline is not handicapped.

    Arguments:
        learner: changed in place; weights stay.
        images: training images, of which some serve.
    """
    learner.modules.train()
    with torch.no_grad():
        for part in images[:5000].split(500):
            for feature in learner.features.values():
                feature(part.float() / 255)
    learner.modules.eval()


@torch.no_grad()
def encoded(feature: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Features of many images, as rows; modules are in evaluation mode already.

    Arguments:
        feature: of `Learner.features`.
        images: uint8.
    """
    return torch.cat([feature(part.float() / 255).flatten(1) for part in images.split(500)])


def probed(learner: Learner, images: Images, judged_on: ImageSplit) -> Figures:
    """A linear probe and k-NN on every kind of features, fitted on the training images; the headline has no prefix.

    Arguments:
        learner: whose features.
        images: the data set.
        judged_on: test images, or held-out ones.
    """
    figures: Figures = {}
    for number, (name, feature) in enumerate(learner.features.items()):
        rows = encoded(feature, images.train.images), images.train.labels
        rows += encoded(feature, judged_on.images), judged_on.labels
        prefix = f"{name} " if number else ""
        figures |= {f"{prefix}linear": linear_accuracy(*rows), f"{prefix}knn": knn_accuracy(*rows)}
    return figures


def glanced(learner: Learner, images: Images) -> Figures:
    """The points of the curves at a step: of `Learner.glance`, or k-NN on `CURVE_IMAGES` held-out images.

    Arguments:
        learner: in training mode, and again when this returns.
        images: the data set; test images are not touched.
    """
    if learner.glance is None and not learner.features:
        return {}
    learner.modules.eval()
    if learner.glance is not None:
        found = learner.glance(images)
    else:
        rows = few(next(iter(learner.features.values())), images, CURVE_IMAGES)
        found = {"held_out_knn": knn_accuracy(*rows)}
    learner.modules.train()
    return found


def few(feature: Callable[[Tensor], Tensor], images: Images, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Embeddings and labels of the first training images, then of the first held-out ones.

    Arguments:
        feature: of `Learner.features`.
        images: the data set.
        count: of each.
    """
    train, held_out = (
        (encoded(feature, split.images[:count]), split.labels[:count]) for split in (images.train, images.held_out)
    )
    return *train, *held_out


@torch.no_grad()
def bounds(learner: Learner, images: Images, judged_on: ImageSplit, batch: int) -> Figures:
    """What the trained objective may be called in nats, on held-out and on training images; and why.

    Arguments:
        learner: as trained.
        images: the data set.
        judged_on: test images, or held-out ones.
        batch: images a batch, as in training: log K caps the bound.
    """
    if learner.bound is None:
        return {"test_bound": None, "train_bound": None, "bound_status": "no number in nats"}
    torch.manual_seed(0)  # the same views for every run
    found = {}
    for name, split in (("test", judged_on), ("train", images.train)):
        parts = [part for part in split.images[: 20 * batch].split(batch) if len(part) == batch]
        found[name] = [learner.bound(part.float() / 255) for part in parts]
    first = found["test"][0]
    return {
        **{f"{name}_bound": statistics.fmean(bound.value for bound in of) for name, of in found.items()},
        "bound_cap": first.cap,
        "bound_status": first.status,
        "bound_reason": first.reason,
    }
