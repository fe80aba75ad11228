"""SimCLR (Chen et al., 2020): two views of an image find each other among all other views of the batch.

    python -m benchmarks.systems.simclr --preset quick --data-root DATA
    python -m benchmarks.systems.simclr --preset quick --data-root DATA --critic bilinear --miner "hcl 1"

https://arxiv.org/abs/2002.05709
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.systems.encoders import pooled, standardised
from benchmarks.systems.runs import EIGHT_POINTS, Blocks, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import Cosine
from contrastive.bounds import Bound
from contrastive.encoders import MLP
from contrastive.pairings import bound, contrast, two_views
from contrastive.scores import WeighsNegatives
from contrastive.views import RandomView


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    widths: Sequence[int] | None = (64, 128, 256),
    temperature: float = 0.2,
    out: int = 64,
    bfloat16: bool = True,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image.
        miner: weighs the negatives.
        critic: in the place of the cosine.
        widths: of the small encoder; None for a ResNet-18.
        temperature: of the cosine.
        out: width in which the critic scores.
        bfloat16: whether the encoder computes in it.
    """
    view = RandomView(shape[0])
    encoder, dim = pooled(shape[0], widths, bfloat16=bfloat16)
    head = MLP(dim, hidden=(dim,), out=out)
    scores = Cosine(temperature) if critic is None else critic(out)

    def scored(images: Tensor) -> Tensor:
        z = head(encoder(standardised(view(torch.cat([images, images])))))
        return scores(z, z)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        groups = torch.cat([rows, rows])
        return contrast(scored(images), two_views(groups, groups), miner=miner).mean()

    def in_nats(images: Tensor) -> Bound:
        groups = torch.arange(len(images)).repeat(2)
        return bound(scored(images), two_views(groups, groups), miner=miner)

    return Learner(
        modules=nn.ModuleList([encoder, head, scores]),
        loss=loss,
        features={"encoder": lambda images: encoder(standardised(images))},
        bound=in_nats,
    )


SYSTEM = System(
    "simclr",
    "SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)",
    Blocks(
        views="two augmentations",
        encoder="one, shared, with a projection head",
        critic="cosine / T",
        negatives="the 2B - 2 other views of the batch (`two_views`)",
        objective="K-pair (NT-Xent)",
        nats="log B - L; not log(2B - 1) - L",
    ),
    build,
    plans={
        "smoke": Plan(Budget(batch=16, steps=2, lr=1e-3, images=64, points=1), {"widths": (4, 8), "out": 4}),
        "quick": Plan(Budget(batch=256, steps=300, lr=2e-3)),
        "paper": Plan(
            Budget(
                batch=512,
                steps=1000 * (45_000 // 512),
                lr=1.0,
                images=45_000,
                optimiser="lars",
                arguments={"momentum": 0.9, "weight_decay": 1e-6},
                warmup=10 * (45_000 // 512),
            ),
            {"widths": None, "temperature": 0.5, "out": 128, "bfloat16": False},
        ),
    },
    goal=EIGHT_POINTS,
)

if __name__ == "__main__":
    main(SYSTEM)
