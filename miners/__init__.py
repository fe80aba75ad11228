"""Hard-negative miners without labels: callables ``(scores, targets, *, anchors=None) -> log_weights``.

>>> import torch
>>> scores = torch.tensor([[2.0, 1.0, 0.0]])
>>> topk(1)(scores, torch.tensor([0]))
tensor([[0., 0., -inf]])
"""

from miners._launcher import shadowed

if (_foreign := shadowed()) is not None:
    raise ImportError(_foreign)

from miners.bank import Bank  # after the check: a foreign `contrastive` fails here otherwise
from miners.compose import Counted, annealed, chain, counted, detached
from miners.debiased import debiased, hcl
from miners.distance import distance_weighted
from miners.draws import importance, random_subset
from miners.hard import hardest, margin, multi_similarity, ring, semihard, topk
from miners.masks import detect_false_negatives, duplicates, empty_rows, false_negatives, same_group, same_label
from miners.miner import Miner
from miners.neighbors import class_means, hard_class_batches, mine_negatives, neighbour_batches
from miners.pool import Draw, PoolProposal
from miners.positives import hard_positive, nearest_positive, semihard_positive, without_other_positives
from miners.queue import Queue
from miners.synthetic import mix_hardest

__all__ = [
    "Bank",
    "Counted",
    "Draw",
    "Miner",
    "PoolProposal",
    "Queue",
    "annealed",
    "chain",
    "class_means",
    "counted",
    "debiased",
    "detached",
    "detect_false_negatives",
    "distance_weighted",
    "duplicates",
    "empty_rows",
    "false_negatives",
    "hard_class_batches",
    "hard_positive",
    "hardest",
    "hcl",
    "importance",
    "margin",
    "mine_negatives",
    "mix_hardest",
    "multi_similarity",
    "nearest_positive",
    "neighbour_batches",
    "random_subset",
    "ring",
    "same_group",
    "same_label",
    "semihard",
    "semihard_positive",
    "topk",
    "without_other_positives",
]
