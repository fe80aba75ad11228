"""The arms by name: a miner, the family it is compared in, and what else differs from the reference."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from contrastive.scores import WeighsNegatives
from miners import (
    annealed,
    chain,
    debiased,
    detached,
    distance_weighted,
    hardest,
    hcl,
    margin,
    multi_similarity,
    random_subset,
    ring,
    semihard,
    topk,
)

__all__ = ["ARMS", "DIM", "Arm"]

# Width of the projections: what `distance_weighted` must know.
DIM = 64


def none(temperature: float) -> None:
    """Uniform weights."""


@dataclass(frozen=True)
class Arm:
    """What one row of the table trains with.

    Arguments:
        miner: makes the miner at a temperature, for thresholds are in units of scores; None is uniform.
        family: ``softmax`` (every negative has a weight), ``one`` (one negative an anchor), ``beyond`` (combinations).
        reference: the arm it is compared with.
        images: of each class in a batch of 64 images.
        intra_view: whether the anchors' own view holds negatives too (NT-Xent), which needs 2 images a class.
        all_positives: whether every other image of the class is a positive (SupCon, its positives left out of the
            denominator).
        linear: whether the loss is the mean score of the negatives less the positive's, no softmax over them ("Simple",
            Wang and Liu, 2021).
        queue: keys of earlier batches as further negatives, those of the anchor's class left out.
        near_classes: share of a batch's classes that are chosen near each other, from a third of the steps on.
    """

    miner: Callable[[float], WeighsNegatives | None] = none
    family: str = "softmax"
    reference: str = "uniform"
    images: int = 2
    intra_view: bool = False
    all_positives: bool = False
    linear: bool = False
    queue: int = 0
    near_classes: float = 0.0


def _share(temperature: float, *, share: float) -> WeighsNegatives:
    """The hardest share of a row; of 31 negatives 10 % are three."""
    return ring(0.0, share)


def _semihard(temperature: float) -> WeighsNegatives:
    """The hardest negative below the positive; where all lie above it, the hardest of all."""
    return chain(semihard(math.inf, fallback=margin(0.0)), hardest())


def _distance(temperature: float, *, k: int | None = None) -> WeighsNegatives:
    return distance_weighted(temperature, DIM, k=k)


def _margin(temperature: float, *, cosine: float) -> WeighsNegatives:
    return margin(cosine / temperature)


def _hcl_margin(temperature: float) -> WeighsNegatives:
    return chain(hcl(1.0), margin(0.1 / temperature))


def _debiased(temperature: float, *, tau_plus: float, beta: float = 0.0) -> WeighsNegatives:
    least = -1 / temperature
    return hcl(beta, tau_plus, min_score=least) if beta else debiased(tau_plus, min_score=least)


def _fixed(make: Callable[..., WeighsNegatives], *options: float | int) -> Callable[[float], WeighsNegatives]:
    """A miner whose options are no scores."""
    return partial(_without_temperature, make=make, options=options)


def _without_temperature(
    temperature: float, *, make: Callable[..., WeighsNegatives], options: tuple[float | int, ...]
) -> WeighsNegatives:
    return make(*options)


def _annealed(temperature: float, *, start: float, end: float, steps: int) -> WeighsNegatives:
    return annealed(hcl, start=start, end=end, steps=steps)


def _similarity(temperature: float) -> WeighsNegatives:
    """The negatives within 0.1 of the positive or above it; the hardest where there are none."""
    return multi_similarity(0.1 / temperature, fallback=hardest())


ARMS = {
    # every negative weighted
    "uniform": Arm(),
    "hcl 0.5": Arm(_fixed(hcl, 0.5)),
    "hcl 1": Arm(_fixed(hcl, 1.0)),
    "hcl 2": Arm(_fixed(hcl, 2.0)),
    "hcl 1, detached": Arm(lambda temperature: detached(hcl(1.0))),
    "hcl 1, debiased 0.1": Arm(partial(_debiased, tau_plus=0.1, beta=1.0)),
    "topk 16": Arm(_fixed(topk, 16)),
    "top 10 %": Arm(partial(_share, share=0.1)),
    "ring 10-50 %": Arm(_fixed(ring, 0.1, 0.5)),
    "drop hardest 10 %": Arm(_fixed(ring, 0.1, 1.0)),
    "distance-weighted": Arm(_distance),
    "debiased 0.05": Arm(partial(_debiased, tau_plus=0.05)),
    "debiased 0.1": Arm(partial(_debiased, tau_plus=0.1)),
    "margin 0.1": Arm(partial(_margin, cosine=0.1)),
    "near classes": Arm(near_classes=0.5),
    "all near classes": Arm(near_classes=1.0),
    "linear": Arm(linear=True),
    "linear, top 10 %": Arm(partial(_share, share=0.1), linear=True),
    # one negative an anchor
    "random 1": Arm(_fixed(random_subset, 1), "one", "random 1"),
    "semi-hard 1": Arm(_semihard, "one", "random 1"),
    "distance-weighted 1": Arm(partial(_distance, k=1), "one", "random 1"),
    "hardest": Arm(_fixed(hardest), "one", "random 1"),
    # combinations
    "ntxent": Arm(family="beyond", intra_view=True),
    "ntxent + hcl 0.5": Arm(_fixed(hcl, 0.5), "beyond", intra_view=True),
    "ntxent + hcl 1": Arm(_fixed(hcl, 1.0), "beyond", intra_view=True),
    "ntxent + hcl 2": Arm(_fixed(hcl, 2.0), "beyond", intra_view=True),
    "ntxent + hcl 1 + near classes": Arm(_fixed(hcl, 1.0), "beyond", intra_view=True, near_classes=0.5),
    "ntxent + hcl 1 + margin 0.1": Arm(_hcl_margin, "beyond", intra_view=True),
    "ntxent + distance": Arm(_distance, "beyond", intra_view=True),
    "ntxent + multi-similarity": Arm(_similarity, "beyond", intra_view=True),
    "ntxent + margin 0.1": Arm(partial(_margin, cosine=0.1), "beyond", intra_view=True),
    "ntxent + near classes": Arm(family="beyond", intra_view=True, near_classes=0.5),
    "ntxent + queue 1024": Arm(family="beyond", intra_view=True, queue=1024),
    "ntxent + queue 1024 + topk 64": Arm(_fixed(topk, 64), "beyond", intra_view=True, queue=1024),
    "4 images": Arm(family="beyond", images=4, all_positives=True),
    "4 images + hcl 0.5": Arm(_fixed(hcl, 0.5), "beyond", images=4, all_positives=True),
    "4 images + hcl 1": Arm(_fixed(hcl, 1.0), "beyond", images=4, all_positives=True),
    "4 images + near classes": Arm(family="beyond", images=4, all_positives=True, near_classes=0.5),
    "hcl 2 to 0": Arm(partial(_annealed, start=2.0, end=0.0, steps=600), "beyond"),
    "hcl 0 to 2": Arm(partial(_annealed, start=0.0, end=2.0, steps=600), "beyond"),
}
