"""IIC (Ji et al., 2019): the classes of two views of an image tell as much of each other as they can.

    python -m benchmarks.systems.iic --preset quick --data-root DATA

Several heads are trained side by side; the one that is judged is chosen by its objective on held-out images, without
labels.
https://arxiv.org/abs/1807.06653
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.systems.data import Images
from benchmarks.systems.encoders import Bfloat16, standardised, strided
from benchmarks.systems.runs import Blocks, Goal, Plan, System, main
from benchmarks.systems.training import Budget, Figures, Learner, encoded, probed
from contrastive.assignments import discrete_information
from contrastive.bounds import Bound
from contrastive.data import ImageSplit
from contrastive.probing import cluster_accuracy
from contrastive.views import RandomView


def pooled(channels: int, widths: Sequence[int]) -> nn.Sequential:
    """The authors' encoder: 5 x 5 convolutions, batch-normalised, halved by a max-pool in between."""
    layers: list[nn.Module] = []
    for before, after in pairwise((channels, *widths)):
        layers += [
            nn.Conv2d(before, after, 5, padding=2, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers[:-1])


class Clusterer(nn.Module):
    """An encoder and heads that end in classes.

    Arguments:
        shape: of an image.
        widths: of the encoder.
        pools: whether it is the authors', or one of strided convolutions.
        classes: of every head: those that are judged, and those that are trained along for finer features.
        heads: of either kind, each with a start of its own.
        bfloat16: whether the encoder computes in it.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        widths: Sequence[int],
        *,
        pools: bool,
        classes: tuple[int, int],
        heads: int,
        bfloat16: bool,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.view = RandomView(
            channels,
            zoom=1.6,
            rotation=25.0,
            mirror=False,
            contrast=0.4,
            brightness=0.2,
            hue=0.125,
            grey=0.0,
            erase=0.0,
        )
        make, halved = (pooled, len(widths) - 1) if pools else (strided, len(widths))
        self.encoder = Bfloat16(nn.Sequential(make(channels, widths), nn.Flatten()), enabled=bfloat16)
        dim = widths[-1] * (height >> halved) * (width >> halved)
        self.judged, self.along = (nn.ModuleList([nn.Linear(dim, k) for _ in range(heads)]) for k in classes)

    def forward(self, images: Tensor) -> Tensor:
        """The features below the heads."""
        return self.encoder(standardised(images))

    def informations(self, images: Tensor, heads: Sequence[nn.Module], *, lam: float = 1.0) -> Tensor:
        """The information of the classes of two views, of every head.

        Both views are drawn in the same way, so that they are exchangeable and symmetrising the joint adds nothing.
        """
        first, second = self(self.view(images.repeat(2, 1, 1, 1))).chunk(2)
        return torch.stack([discrete_information(head(first), head(second), lam=lam) for head in heads])


def build(
    shape: tuple[int, int, int],
    *,
    widths: Sequence[int] = (32, 64, 128),
    pools: bool = False,
    classes: int = 10,
    overclasses: int = 50,
    heads: int = 5,
    copies: int = 1,
    lam: float = 1.0,
    bfloat16: bool = True,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image.
        widths: of the encoder.
        pools: whether it is the authors', or one of strided convolutions.
        classes: of the heads that are judged.
        overclasses: of those that are trained along.
        heads: of either kind.
        copies: pairs of views that every image of a batch has.
        lam: of `contrastive.assignments.discrete_information`.
        bfloat16: whether the encoder computes in it.
    """
    model = Clusterer(shape, widths, pools=pools, classes=(classes, overclasses), heads=heads, bfloat16=bfloat16)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        every = [*model.judged, *model.along]
        return -model.informations(images.repeat(copies, 1, 1, 1), every, lam=lam).mean()

    def bound(images: Tensor) -> Bound:
        return Bound(
            value=float(model.informations(images, model.judged).max()),
            cap=math.log(classes),
            status="not a bound",
            constant=math.nan,
            reason="plug-in information of a batch's classes, of the head where it is largest: biased, to either side",
            direction="neither",
        )

    learner = Learner(modules=model, loss=loss, features={"encoder": model}, bound=bound)

    @torch.no_grad()
    def measure(images: Images, judged_on: ImageSplit) -> Figures:
        torch.manual_seed(0)  # the same views for every run
        told = model.informations(images.held_out.images.float() / 255, model.judged)
        codes = encoded(model, judged_on.images)
        found = [cluster_accuracy(head(codes).argmax(1), judged_on.labels) for head in model.judged]
        figures = {"clusters": found[int(told.argmax())], "clusters, worst head": min(found)}
        return {**figures, **probed(learner, images, judged_on)}

    return replace(learner, measure=measure)


SYSTEM = System(
    "iic",
    "IIC: Invariant Information Clustering (Ji et al., 2019)",
    Blocks(
        views="two augmentations",
        encoder="one, shared, with ten heads that end in classes",
        critic="none",
        negatives="none: equally frequent classes keep images apart",
        objective="information of the two classes, from their joint law",
        nats="a plug-in estimate, biased to either side; of the whole population at most I(X;X')",
    ),
    build,
    plans={
        "smoke": Plan(Budget(batch=32, steps=2, lr=1e-3, images=64, points=1), {"widths": (4, 8), "heads": 2}),
        "quick": Plan(Budget(batch=350, steps=300, lr=2e-3, images=10_000)),
        "paper": Plan(
            Budget(batch=140, steps=1_250_000, lr=1e-4, images=55_000, warmup=0, decay=()),
            {"widths": (64, 128, 256, 512), "pools": True, "copies": 5, "bfloat16": False},
        ),
    },
    dataset="mnist",
    seconds=0.2,
    swaps=(),
    goal=Goal("linear probe at least 95 %", lambda row: 100 * row["trained"]["linear"], least=95.0),
)

if __name__ == "__main__":
    main(SYSTEM)
