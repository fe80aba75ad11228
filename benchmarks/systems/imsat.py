"""IMSAT (Hu et al., 2017): classes that are equally frequent and decided, and the same for an image's worst neighbour.

    python -m benchmarks.systems.imsat --preset quick --data-root DATA

https://arxiv.org/abs/1702.08720
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.systems.data import Images
from benchmarks.systems.encoders import Bfloat16
from benchmarks.systems.runs import Blocks, Goal, Plan, System, main
from benchmarks.systems.training import Budget, Figures, Learner, encoded, probed
from contrastive import search
from contrastive.adversarial import virtual_adversarial_loss
from contrastive.assignments import entropy_balance
from contrastive.bounds import Bound
from contrastive.data import ImageSplit
from contrastive.probing import cluster_accuracy


def pixels(images: Tensor) -> Tensor:
    """Rows of pixels in [-1, 1]: the radius of a view and xi are in these units."""
    return 2 * images.flatten(1) - 1


def started(layer: nn.Linear, scale: float) -> nn.Linear:
    """Starts a layer from a normal of deviation scale / sqrt(fan in), biases at zero (Chainer's ``wscale``)."""
    nn.init.normal_(layer.weight, std=scale * layer.in_features**-0.5)
    nn.init.zeros_(layer.bias)
    return layer


def build(
    shape: tuple[int, int, int],
    *,
    hidden: Sequence[int] = (1200, 1200),
    classes: int = 10,
    lam: float = 0.1,
    mu: float = 4.0,
    xi: float = 10.0,
    share: float = 0.25,
    neighbour: int = 10,
    bfloat16: bool = True,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image.
        hidden: widths of the hidden layers, batch-normalised.
        classes: how many.
        lam: weight of the entropy balance beside the adversarial loss.
        mu: weight of H(Y) beside H(Y|X).
        xi: of `contrastive.adversarial.virtual_adversarial_loss`.
        share: of the distance to a neighbour: how far the worst view is.
        neighbour: which neighbour.
        bfloat16: whether the perceptron computes in it.
    """
    channels, height, width = shape
    layers: list[nn.Module] = []
    for sizes in pairwise((channels * height * width, *hidden)):
        layers += [started(nn.Linear(*sizes), 0.1), nn.BatchNorm1d(sizes[1]), nn.ReLU()]
    encoder = Bfloat16(nn.Sequential(*layers), enabled=bfloat16)
    classifier = started(nn.Linear(hidden[-1], classes), 1e-4)
    model = nn.Sequential(encoder, classifier)
    radius = torch.empty(0)

    def prepare(images: Tensor) -> None:
        nonlocal radius
        x = pixels(images.float() / 255)
        near = search(x, x, neighbour, metric="euclidean", exclude_self=True)
        radius = share * (x - x[near.ids[:, -1]]).norm(dim=1)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        x = pixels(images)
        logits = model(x)
        smooth = virtual_adversarial_loss(model, x, logits, radius=radius[rows], xi=xi)
        return smooth.mean() + lam * entropy_balance(logits, mu=mu)

    def bound(images: Tensor) -> Bound:
        return Bound(
            value=-float(entropy_balance(model(pixels(images)), mu=1.0)),
            cap=math.log(classes),
            status="bound",
            constant=0.0,
            reason="I(X;Y) of an image and its class, of a batch: in expectation at most the population's",
        )

    learner = Learner(
        modules=model,
        loss=loss,
        features={"encoder": lambda images: encoder(pixels(images))},
        bound=bound,
        prepare=prepare,
    )

    def measure(images: Images, judged_on: ImageSplit) -> Figures:
        found = encoded(lambda images: model(pixels(images)), judged_on.images).argmax(1)
        return {"clusters": cluster_accuracy(found, judged_on.labels), **probed(learner, images, judged_on)}

    return replace(learner, measure=measure)


SYSTEM = System(
    "imsat",
    "IMSAT: Information Maximizing Self-Augmented Training (Hu et al., 2017)",
    Blocks(
        views="an image and its worst neighbour, a quarter of the way to the tenth nearest image",
        encoder="one perceptron, batch-normalised, that ends in classes",
        critic="none",
        negatives="none: equally frequent classes keep images apart",
        objective="divergence of the views' classes + 0.1 (H(Y|X) - 4 H(Y))",
        nats="H(Y) - H(Y|X), of an image and its class: a batch's is a lower bound in expectation",
    ),
    build,
    plans={
        "smoke": Plan(Budget(batch=32, steps=2, lr=2e-3, images=64, points=1), {"hidden": (16, 16)}),
        "quick": Plan(Budget(batch=250, steps=4000, lr=2e-3, images=30_000), {"hidden": (600, 600)}),
        "paper": Plan(Budget(batch=250, steps=11_000, lr=2e-3, images=55_000, warmup=0, decay=()), {"bfloat16": False}),
    },
    dataset="mnist",
    seconds=0.1,
    swaps=(),
    goal=Goal("clusters match at least 75 % of the labels", lambda row: 100 * row["trained"]["clusters"], least=75.0),
)

if __name__ == "__main__":
    main(SYSTEM)
