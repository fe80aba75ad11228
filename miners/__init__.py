"""Hard-negative miners without labels: callables ``(scores, targets, *, anchors=None) -> log_weights``.

>>> import torch
>>> scores = torch.tensor([[2.0, 1.0, 0.0]])
>>> topk(1)(scores, torch.tensor([0]))
tensor([[0., 0., -inf]])
"""

from miners._launcher import shadowed

if (_foreign := shadowed()) is not None:
    raise ImportError(_foreign)

from miners.compose import detached  # after the check: a foreign `contrastive` fails here otherwise
from miners.debiased import debiased, hcl
from miners.hard import hardest, semihard, topk
from miners.masks import detect_false_negatives, duplicates, empty_rows, false_negatives, same_group, same_label
from miners.miner import Miner
from miners.queue import Queue

__all__ = [
    "Miner",
    "Queue",
    "debiased",
    "detached",
    "detect_false_negatives",
    "duplicates",
    "empty_rows",
    "false_negatives",
    "hardest",
    "hcl",
    "same_group",
    "same_label",
    "semihard",
    "topk",
]
