r"""The loss of a global batch: the pairs of all ranks, each rank with its own anchors.

.. math::
    \mathcal L = \frac1N \sum_{r} \sum_{i \in r} L_i = \frac1W \sum_r \ell_r, \qquad
    \ell_r = \frac WN \sum_{i \in r} L_i

with the candidates of :math:`L_i` those of all W ranks. The keys are gathered with their gradient, which comes back as
a sum over ranks; DistributedDataParallel divides by W. Both together are the gradient of :math:`\mathcal L`, of the
encoders as of whatever is learnt within the loss, such as a temperature.
"""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive._ring import Blocks, ring_loss
from contrastive._streaming import as_under_autocast, check_pairs, direction, formed, joined, or_self, swapped
from contrastive._strips import parameters_of
from contrastive._tiles import Absent
from contrastive.collectives import Group, gather_rows, mean_over_ranks, rank_of, row_counts, world_size
from contrastive.criterion import KPairLoss
from contrastive.factors import Splits
from contrastive.scores import WeighsNegatives

__all__ = ["GlobalBatch", "gather_rows", "mean_over_ranks"]


class GlobalBatch(nn.Module):
    r"""Creates the criterion of a batch that is spread over the ranks of torch.distributed.

    Each rank passes its own pairs and gets the loss of its own anchors among the candidates of all ranks. Averaged over
    the ranks, as DistributedDataParallel does it, gradients are exactly those of one process with the whole batch, a
    learnt temperature's too (wrap its module as well). The value differs from rank to rank; `mean_over_ranks` of it is
    the loss of the whole batch.

    Ranks may have different numbers of pairs, or none. On one rank, or without torch.distributed, it is `criterion`.

    Rows are numbered through all ranks, rank 0 first. A miner sees rows of this rank against all candidates, their
    numbers as `anchors`; its facts are of all pairs: ``same_label(*gather_rows(labels))``. Scores are streamed,
    whatever `criterion` says, so the loss can be differentiated once.

    Where the keys of all ranks do not fit either, they can go round a ring, one rank's at a time: the same value and
    gradient, which is formed with the value, so that every rank has to scale its loss alike.

    Arguments:
        criterion: of one process. Its miner may be changed from step to step.
        ring: whether keys go round instead of being gathered; not with a miner, which sees whole rows.
        group: of the ranks that share a batch; None: all.

    Example:
        >>> from contrastive.critics import Cosine
        >>> criterion = GlobalBatch(KPairLoss(Cosine(temperature=0.5)))
        >>> criterion(torch.eye(4), torch.eye(4))  # on every rank
        tensor(0.3408)

    References:
        | Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021)
        | https://arxiv.org/abs/2103.00020
    """

    def __init__(self, criterion: KPairLoss, *, ring: bool = False, group: Group = None) -> None:
        super().__init__()
        self.criterion = criterion
        self.ring = ring
        self.group = group

    def forward(
        self,
        x: Float[Tensor, "batch dx"],
        y: Float[Tensor, "batch dy"],
        *,
        negatives: Float[Tensor, "extra dy"] | None = None,
        absent: Absent | None = None,
    ) -> Float[Tensor, ""]:
        r"""Computes this rank's part of the loss, :math:`\ell_r`, in nats. Every rank must call.

        Arguments:
            x: anchors of this rank.
            y: their positives.
            negatives: as in `KPairLoss`, and the same on all ranks, as those of `miners.Queue` are.
            absent: as in `KPairLoss`, a function of row numbers throughout all ranks. A mask would have to hold all
                rows for the direction y to x.

        Returns:
            W/N times the sum over this rank's anchors.

        Raises:
            ValueError: as `KPairLoss`; on every rank, for rows that are wider on one rank than on another; for a miner
                and a ring.
        """
        if world_size(self.group) == 1:
            loss: Tensor = self.criterion(x, y, negatives=negatives, absent=absent)
            return loss
        check_pairs("GlobalBatch", x, y)
        if isinstance(absent, Tensor):
            raise ValueError("GlobalBatch: absent is a tensor, expected a function of row numbers throughout all ranks")
        lengths = row_counts(x, y, group=self.group)
        if self.ring:
            return self._around(x, y, negatives, absent, lengths)
        own = _numbers(lengths, rank_of(self.group), x.device)
        one = self.criterion
        if one.symmetric:
            all_x, all_y = gather_rows(x, y, lengths=lengths, group=self.group)
        else:
            all_x, (all_y,) = x, gather_rows(y, lengths=lengths, group=self.group)
        if one.intra_view:
            own, partner = torch.cat([own, own + sum(lengths)]), torch.cat([own + sum(lengths), own])
            candidates = joined("GlobalBatch", joined("GlobalBatch", all_x, all_y, "positives"), negatives)
            loss = self._direction(
                joined("GlobalBatch", x, y, "positives"), candidates, own, partner, partial(or_self, absent)
            )
        else:
            loss = self._direction(x, joined("GlobalBatch", all_y, negatives), own, own, absent)
            if one.symmetric:
                loss = (loss + self._direction(all_x, y, own, own, swapped(absent), turned=True)) / 2
        return loss * (len(x) * len(lengths) / max(sum(lengths), 1))

    def _direction(
        self, x: Tensor, y: Tensor, own: Tensor, targets: Tensor, absent: Absent | None, *, turned: bool = False
    ) -> Tensor:
        """The mean loss of this rank's anchors, whose numbers are `own`."""
        one = self.criterion
        if not len(own):
            # Whatever is learnt takes part on every rank, or its gradient would be waited for.
            return sum((p.flatten()[:0].sum() for p in (x, y, *one.parameters())), torch.zeros((), device=x.device))
        return direction(
            "GlobalBatch",
            one.critic,
            x,
            y,
            targets,
            absent=None if absent is None else partial(_absent_of_own, absent, own),
            miner=None if one.miner is None else _MinesOwn(one.miner, own),
            stored=False,
            turned=turned,
        )

    def _around(
        self, x: Tensor, y: Tensor, negatives: Tensor | None, absent: Absent | None, lengths: list[int]
    ) -> Tensor:
        """The loss by way of the ring."""
        one = self.criterion
        if one.miner is not None:
            raise ValueError(
                "GlobalBatch: got a miner and ring=True, expected one of them: a miner sees whole rows, and a ring has "
                "one rank's candidates at a time"
            )
        more = joined("GlobalBatch", y[:0], negatives)
        if one.intra_view:
            x = y = joined("GlobalBatch", x, y, "positives")
            absent = partial(or_self, absent)
        compute = partial(
            ring_loss,
            "GlobalBatch",
            as_under_autocast(one.critic, x),
            Blocks(lengths, views=2 if one.intra_view else 1, group=self.group),
            both=one.symmetric and not one.intra_view,
            pairs=isinstance(one.critic, Splits),
            absent=absent,
        )
        return formed(compute, None, x, y, more, *parameters_of(one.critic))


class _MinesOwn(nn.Module):
    """A miner that is told the numbers of this rank's anchors throughout all ranks; a module, for its parameters."""

    def __init__(self, miner: WeighsNegatives, own: Tensor) -> None:
        super().__init__()
        self.miner, self.own = miner, own

    def forward(
        self,
        scores: Float[Tensor, "anchors candidates"],
        targets: Int[Tensor, " anchors"],
        *,
        anchors: Int[Tensor, " anchors"],
    ) -> Float[Tensor, "anchors candidates"]:
        return self.miner(scores, targets, anchors=self.own[anchors])


def _absent_of_own(absent: Absent, own: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return absent(own[rows], columns)


def _numbers(lengths: list[int], rank: int, device: torch.device) -> Tensor:
    """The numbers of a rank's rows, throughout all ranks."""
    first = sum(lengths[:rank])
    return torch.arange(first, first + lengths[rank], device=device)
