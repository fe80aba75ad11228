"""SimCLR (Chen et al., 2020): two views of an image find each other among all other views of the batch.

    python -m benchmarks.systems.simclr --preset quick --data-root DATA
    python -m benchmarks.systems.simclr --preset quick --data-root DATA --critic bilinear --miner "hcl 1"

https://arxiv.org/abs/2002.05709
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.systems.encoders import Bfloat16, standardised, strided
from benchmarks.systems.runs import Blocks, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import Cosine, KPairLoss
from contrastive.encoders import MLP, Timm
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
    if widths is None:
        encoder, dim = Bfloat16(Timm("resnet18", shape[0]), enabled=bfloat16), 512
    else:
        pooled = nn.Sequential(strided(shape[0], widths), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        encoder, dim = Bfloat16(pooled, enabled=bfloat16), widths[-1]
    head = MLP(dim, hidden=(dim,), out=out)
    scores = Cosine(temperature) if critic is None else critic(out)
    criterion = KPairLoss(scores, miner=miner, intra_view=True)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        views = view(torch.cat([images, images]))
        return criterion(*head(encoder(standardised(views))).chunk(2))

    return Learner(
        modules=nn.ModuleList([encoder, head, scores]),
        loss=loss,
        features={"encoder": lambda images: encoder(standardised(images))},
    )


SYSTEM = System(
    "simclr",
    "SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)",
    Blocks(
        views="two augmentations",
        encoder="one, shared, with a projection head",
        critic="cosine / T",
        negatives="the 2B - 2 other views of the batch",
        objective="NT-Xent",
        nats="yes, with log B: the negatives come in pairs",
    ),
    build,
    plans={
        "smoke": Plan(Budget(batch=16, steps=2, lr=1e-3, images=64, points=1), {"widths": (4, 8), "out": 4}),
        "quick": Plan(Budget(batch=256, steps=400, lr=2e-3)),
        "paper": Plan(
            Budget(
                batch=512,
                steps=97_000,
                lr=1.0,
                images=45_000,
                optimiser="lars",
                arguments={"momentum": 0.9, "weight_decay": 1e-6},
                warmup=970,
            ),
            {"widths": None, "temperature": 0.5, "out": 128, "bfloat16": False},
        ),
    },
)

if __name__ == "__main__":
    main(SYSTEM)
