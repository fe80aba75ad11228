"""Every miner with its slow reference, and what the tests of miners share."""

import references
import torch
from references import scores_with_gaps

from miners import (
    annealed,
    chain,
    counted,
    debiased,
    detached,
    distance_weighted,
    duplicates,
    false_negatives,
    hardest,
    hcl,
    importance,
    margin,
    multi_similarity,
    random_subset,
    ring,
    same_group,
    same_label,
    semihard,
    topk,
)


class Fitted:
    """A miner that carries facts of rows and columns, made for the number of columns that it meets."""

    def __init__(self, make):
        self.make, self.facts = make, make(9).facts

    def __call__(self, scores, targets, *, anchors=None):
        return self.make(scores.shape[1])(scores, targets, anchors=anchors)

    def __repr__(self):
        return repr(self.make(9))


def kinds(count):
    """Facts of three kinds."""
    return torch.arange(count) % 3


def by_label(columns):
    return same_label(kinds(200), kinds(columns))


def by_group(columns):
    return same_group(kinds(200), kinds(columns))


def by_support(columns):
    return false_negatives(torch.eye(3)[kinds(200)][:, None], torch.eye(3)[kinds(columns)], k=100, threshold=0.5)


# (miner, its slow reference). A new miner is at least one more line.
TABLE = [
    (topk(1), references.topk(1)),
    (topk(3), references.topk(3)),
    (topk(100), references.topk(100)),
    (hardest(), references.topk(1)),
    (semihard(0.7), references.semihard(0.7)),
    (semihard(0.7, fallback=hardest()), references.semihard(0.7, references.hardest_of)),
    (hcl(0.0), references.hcl(0.0)),
    (hcl(1.0), references.hcl(1.0)),
    (hcl(50.0), references.hcl(50.0)),
    (hcl(1.0, 0.1), references.hcl(1.0, 0.1)),
    (hcl(1.0, 0.6), references.hcl(1.0, 0.6)),
    (hcl(2.0, 0.3, min_score=-8.0), references.hcl(2.0, 0.3, -8.0)),
    (debiased(0.0), references.hcl(0.0)),
    (debiased(0.1), references.hcl(0.0, 0.1)),
    (debiased(0.9, min_score=-8.0), references.hcl(0.0, 0.9, -8.0)),
    (duplicates(threshold=0.7), references.below(0.7)),
    (detached(hcl(1.0)), references.hcl(1.0)),
    (detached(topk(2)), references.topk(2)),
    (ring(0.0, 0.5), references.ring(0.0, 0.5)),
    (ring(0.25, 0.75), references.ring(0.25, 0.75)),
    (ring(0.9, 1.0), references.ring(0.9, 1.0)),
    (ring(0.0, 1.0), references.hcl(0.0)),
    (multi_similarity(0.7), references.multi_similarity_mining(0.7)),
    (multi_similarity(0.0, fallback=hardest()), references.multi_similarity_mining(0.0, references.hardest_of)),
    (margin(0.0), references.margin(0.0)),
    (margin(1.5), references.margin(1.5)),
    (distance_weighted(0.5, 8), references.distance_weighted(0.5, 8)),
    (distance_weighted(0.25, 3, cutoff=0.1, limit=1.99), references.distance_weighted(0.25, 3, 0.1, 1.99)),
    (distance_weighted(0.5, 8, k=2), references.distance_drawn(0.5, 8, 2)),
    (distance_weighted(0.5, 8, k=100), references.distance_drawn(0.5, 8, 100)),
    (random_subset(1), references.random_subset(1)),
    (random_subset(3), references.random_subset(3)),
    (random_subset(100), references.random_subset(100)),
    (Fitted(by_label), references.dropping(lambda i, j: i % 3 == j % 3)),
    (Fitted(by_group), references.dropping(lambda i, j: i % 3 != j % 3)),
    (Fitted(by_support), references.dropping(lambda i, j: i % 3 == j % 3)),
    (counted(topk(3)), references.topk(3)),
    (importance(-2.0, log_p=-1.5), references.constant(0.5, positive=True)),
    (importance(-2.0, log_p=-2.5, positive=False), references.constant(-0.5, positive=False)),
    (annealed(hcl, start=1.0, end=0.0, steps=10), references.hcl(1.0)),
    (chain(topk(3)), references.topk(3)),
    (chain(topk(3), hcl(1.0)), references.chain(references.topk(3), references.hcl(1.0))),
    (chain(hcl(1.0), topk(3)), references.chain(references.hcl(1.0), references.topk(3))),
    (chain(topk(3), topk(5), topk(2)), references.topk(2)),
    (
        chain(ring(0.25, 1.0), debiased(0.1), margin(1.0)),
        references.chain(references.ring(0.25, 1.0), references.hcl(0.0, 0.1), references.margin(1.0)),
    ),
    (
        chain(distance_weighted(0.5, 8), topk(4), hcl(0.5)),
        references.chain(references.distance_weighted(0.5, 8), references.topk(4), references.hcl(0.5)),
    ),
    (chain(topk(4), random_subset(2)), references.chain(references.topk(4), references.random_subset(2))),
    (
        chain(random_subset(4), hcl(1.0), topk(2)),
        references.chain(references.random_subset(4), references.hcl(1.0), references.topk(2)),
    ),
    (
        chain(random_subset(4), distance_weighted(0.5, 8, k=2)),
        references.chain(references.random_subset(4), references.distance_drawn(0.5, 8, 2)),
    ),
]


def mine(miner, *arguments, **options):
    """Calls a miner or its loop; one that draws draws the same each time."""
    torch.manual_seed(5)
    return miner(*arguments, **options)


def without_ties(anchors=6, candidates=9):
    return scores_with_gaps(anchors, candidates)


def few_rows_at_a_time(monkeypatch):
    """Strips of three rows, and a miner that sees two of them at a time."""
    for name, value in {"_STRIP": 1, "_FEWEST_ROWS": 1, "_MOST_ROWS": 3, "_MINED": 30}.items():
        monkeypatch.setattr(f"contrastive._strips.{name}", value)
