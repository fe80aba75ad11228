"""Miners made of miners."""

from functools import partial

from torch import Tensor

from contrastive.scores import MiningFacts, WeighsNegatives
from miners.miner import Miner

__all__ = ["detached"]


def detached(miner: WeighsNegatives) -> Miner:
    """Stops the gradient through a miner's weights.

    The loss keeps its value and changes its gradient: for HCL by up to a quarter of the largest entry. The official
    HCL code does not detach.

    Arguments:
        miner: any miner; its facts are kept.

    Example:
        >>> import torch
        >>> from miners import hcl
        >>> scores = torch.zeros(2, 3, requires_grad=True)
        >>> detached(hcl(1.0))(scores, torch.tensor([0, 1])).requires_grad
        False
    """
    facts = getattr(miner, "facts", MiningFacts())
    return Miner(partial(_detached, miner=miner), name=f"detached({miner!r})", facts=facts)


def _detached(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, miner: WeighsNegatives) -> Tensor:
    return miner(scores.detach(), targets, anchors=anchors).detach()
