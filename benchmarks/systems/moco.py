"""MoCo (He et al., 2020): a view finds the other view's slow encoding among a queue of earlier ones.

    python -m benchmarks.systems.moco --preset quick --data-root DATA

https://arxiv.org/abs/1911.05722
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.systems.encoders import pooled, standardised
from benchmarks.systems.runs import EIGHT_POINTS, Blocks, Plan, System, main
from benchmarks.systems.training import Budget, Learner
from contrastive import Cosine
from contrastive.encoders import MLP
from contrastive.lists import list_scores
from contrastive.pairings import contrast, listed
from contrastive.scores import WeighsNegatives
from contrastive.views import RandomView
from contrastive.wrappers import in_shuffled_parts, momentum_copy, refuse_batch_norm
from miners import Queue


def build(
    shape: tuple[int, int, int],
    *,
    miner: WeighsNegatives | None = None,
    critic: Callable[[int], nn.Module] | None = None,
    widths: Sequence[int] | None = (64, 128, 256),
    temperature: float = 0.1,
    out: int = 64,
    size: int = 2048,
    decay: float = 0.99,
    parts: int = 4,
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
        size: of the queue; it need not be a multiple of the batch.
        decay: of the slow copy.
        parts: of a batch of keys, each with batch statistics of its own; 1 is refused where there are batch norms.
        bfloat16: whether the encoder computes in it.
    """
    view = RandomView(shape[0])
    encoder, dim = pooled(shape[0], widths, bfloat16=bfloat16)
    query = nn.Sequential(encoder, MLP(dim, hidden=(dim,), out=out))
    if parts < 2:
        refuse_batch_norm("MoCo", query)
    key, queue = momentum_copy(query, decay), Queue(size, out)
    scores = Cosine(temperature) if critic is None else critic(out)

    def loss(images: Tensor, rows: Tensor) -> Tensor:
        q = query(standardised(view(images)))
        with torch.no_grad():
            k = in_shuffled_parts(key, standardised(view(images)), parts)
        # Column 0 is the positive, the others are the queue's; an older key of the own image is absent.
        own = torch.arange(len(q), device=q.device)[:, None]
        columns = torch.cat([list_scores(scores, q, k, own), scores(q, queue.keys())], 1)
        items = torch.cat([rows[:, None], queue.ids().expand(len(rows), -1)], 1)
        queue.enqueue(k, rows)
        return contrast(columns, listed(rows, items), miner=miner).mean()

    return Learner(
        modules=nn.ModuleList([query, key, queue, scores]),
        loss=loss,
        features={"encoder": lambda images: encoder(standardised(images))},
        after_step=lambda: key.update_parameters(query),
    )


SYSTEM = System(
    "moco",
    "MoCo: Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)",
    Blocks(
        views="two augmentations",
        encoder="one and its slow copy, with a projection head",
        critic="cosine / T",
        negatives="a queue of the slow copy's keys (`listed`)",
        objective="K-pair",
        nats="no: stale keys",
    ),
    build,
    plans={
        "smoke": Plan(
            Budget(batch=16, steps=2, lr=1e-3, images=64, points=1),
            {"widths": (4, 8), "out": 4, "size": 24, "parts": 2},
        ),
        "quick": Plan(Budget(batch=256, steps=400, lr=2e-3)),
        "paper": Plan(
            Budget(
                # The authors' demo on CIFAR-10: 200 epochs, here of 87 batches. docs/systems.md has ImageNet's numbers.
                batch=512,
                steps=200 * (45_000 // 512),
                lr=0.06,
                images=45_000,
                optimiser="sgd",
                arguments={"momentum": 0.9, "weight_decay": 5e-4},
                warmup=0,
            ),
            {
                "widths": None,
                "out": 128,
                "size": 4096,
                "decay": 0.99,
                "temperature": 0.1,
                "parts": 8,
                "bfloat16": False,
            },
        ),
    },
    goal=EIGHT_POINTS,
)

if __name__ == "__main__":
    main(SYSTEM)
