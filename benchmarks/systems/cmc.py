"""CMC (Tian et al., 2020): the channels of an image, split into views without one in common, find each other.

    python -m benchmarks.systems.cmc --preset quick --data-root DATA
    python -m benchmarks.systems.cmc --preset quick --data-root DATA --arms "in batch" --miner "hcl 1"

https://arxiv.org/abs/1906.05849
"""

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor, nn

from benchmarks.systems.encoders import pooled
from benchmarks.systems.runs import EIGHT_POINTS, Blocks, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import Cosine
from contrastive.bounds import Bound
from contrastive.lists import list_scores
from contrastive.noise import NoiseContrast
from contrastive.pairings import bound, contrast, in_batch, listed
from contrastive.scores import WeighsNegatives
from contrastive.views import RandomView, lab
from miners import Bank


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    channels: Sequence[Sequence[int]] = ((0,), (1, 2)),
    widths: Sequence[int] | None = (44, 88, 176),
    temperature: float = 0.1,
    out: int = 64,
    draws: int | None = None,
    items: int = 20_000,
    binary: bool = False,
    bfloat16: bool = True,
) -> Learner:
    """Puts it together.

    Arguments:
        shape: of an image; colour.
        miner: weighs the negatives.
        critic: in the place of the cosine.
        channels: of L, a and b, those of each view; every ordered pair of views is a term (the full graph).
        widths: of each view's encoder; None for a ResNet-18.
        temperature: of the cosine.
        out: width in which the critic scores.
        draws: negatives drawn of a memory bank of the other view; None takes the batch's.
        items: of the memory bank: the training images.
        binary: whether every pair is classified by itself (noise-contrastive), or all by a softmax.
        bfloat16: whether encoders compute in it.
    """
    view = RandomView(3, zoom=2.2, shift=0.0, rotation=0.0, contrast=0.0, brightness=0.0, saturation=0.0, hue=0.0,
                      grey=0.0, erase=0.0)  # fmt: skip
    made = [pooled(len(own), widths, bfloat16=bfloat16) for own in channels]
    encoders = nn.ModuleList([encoder for encoder, _ in made])
    heads = nn.ModuleList([nn.Linear(dim, out) for _, dim in made])
    scores = Cosine(temperature) if critic is None else critic(out)
    pairs = list(permutations(range(len(channels)), 2))
    banks = nn.ModuleList([Bank(items, out) for _ in channels] if draws else [])
    objectives = nn.ModuleList([NoiseContrast() for _ in pairs] if binary else [])

    def features(images: Tensor) -> list[Tensor]:
        split = torch.cat(lab(images), 1)
        return [encoder(split[:, list(own)]) for encoder, own in zip(encoders, channels, strict=True)]

    def projected(images: Tensor) -> list[Tensor]:
        return [head(z) for head, z in zip(heads, features(view(images)), strict=True)]

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        z, terms = projected(images), []
        for number, (i, j) in enumerate(pairs):
            if draws:
                columns = banks[j].draw(rows, draws)
                matrix, pairing = list_scores(scores, z[i], banks[j].keys, columns), listed(rows, columns)
            else:
                matrix, pairing = scores(z[i], z[j]), in_batch(rows, rows)
            objective = objectives[number] if binary else contrast
            terms.append(objective(matrix, pairing, miner=miner).mean())
        for bank, own in zip(banks, z, strict=False):
            bank.update(rows, own.detach())
        return torch.stack(terms).sum()

    def in_nats(images: Tensor) -> Bound:
        z, rows = projected(images), torch.arange(len(images))
        return bound(scores(z[0], z[1]), in_batch(rows, rows), miner=miner)

    return Learner(
        modules=nn.ModuleList([encoders, heads, scores, banks, objectives]),
        loss=loss,
        features={
            "all views": lambda images: torch.cat(features(images), 1),
            "first view": lambda images: features(images)[0],
        },
        bound=None if draws or binary else in_nats,
    )


SMOKE = {"widths": (4, 8), "out": 4, "items": 64}
SYSTEM = System(
    "cmc",
    "CMC: Contrastive Multiview Coding (Tian et al., 2020)",
    Blocks(
        views="channels, L and ab; or more, every pair of them",
        encoder="one a view, narrower",
        critic="cosine / T",
        negatives="the batch's (`in_batch`), or drawn of a memory bank (`listed`)",
        objective="K-pair, or binary noise-contrastive; both directions",
        nats="log K - L of the batch's softmax; none of the bank's or the binary one",
    ),
    build,
    plans={
        "smoke": Plan(
            Budget(batch=16, steps=2, lr=1e-3, images=64, points=1),
            SMOKE,
            {
                "in batch": {},
                "three views": {"channels": ((0,), (1,), (2,))},
                "bank, softmax": {"draws": 8},
                "bank, binary": {"draws": 8, "binary": True},
            },
        ),
        "quick": Plan(
            Budget(batch=256, steps=400, lr=2e-3),
            arms={
                "in batch": {},
                "three views": {"channels": ((0,), (1,), (2,)), "widths": (32, 64, 128)},
                "bank, softmax": {"draws": 1024},
                "bank, binary": {"draws": 1024, "binary": True},
            },
        ),
        "paper": Plan(
            Budget(
                # The published 240 epochs and their steps of the rate, of the images there are.
                batch=256,
                steps=240 * (45_000 // 256),
                lr=0.03,
                images=45_000,
                optimiser="sgd",
                arguments={"momentum": 0.9, "weight_decay": 1e-4},
                warmup=0,
                decay=(1 / 2, 2 / 3, 5 / 6),
            ),
            {"widths": None, "temperature": 0.07, "out": 128, "draws": 16_384, "items": 45_000, "bfloat16": False},
            {"bank, binary": {"binary": True}, "bank, softmax": {}},
        ),
    },
    mined=lambda options: not options.get("binary"),
    goal=EIGHT_POINTS,
)

if __name__ == "__main__":
    main(SYSTEM)
