r"""The loss of a global batch whose keys no rank holds at once: they go round a ring, one rank's at a time.

First round: every block of keys meets the anchors of every rank, which add up their rows, and the block its columns:

.. math::
    \log r_i \leftarrow \log\bigl(r_i + \textstyle\sum_{j \in b} e^{s_{ij}}\bigr)

Second round: with the sums known, each block's part of the gradient is formed, and what belongs to the block travels on
with it and comes home. The positive is kept out of the sums, as in `contrastive._tiles`.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from contrastive._strips import refuse_strangers
from contrastive._tiles import Absent, checked_mask, parts, refuse_undefined
from contrastive.collectives import Group, padded, rank_of, world_size
from contrastive.rows import softplus
from contrastive.scores import as_float32

__all__ = ["Blocks", "ring_loss"]

# Scores of a strip of anchors against a block of keys, and of a critic that holds hundreds of floats for each.
_STRIP, _STRIP_OF_PAIRS = 2**19, 2**16


class Blocks:
    """The blocks of keys, one of each rank, and how their rows are numbered throughout all ranks.

    Arguments:
        lengths: pairs of each rank.
        views: 1, or 2 where the keys are both views of a rank's pairs, one after the other.
        group: of ranks; None: all.
    """

    def __init__(self, lengths: Sequence[int], *, views: int, group: Group) -> None:
        self.lengths, self.views, self.group = list(lengths), views, group
        self.total = sum(lengths)
        self.world = world_size(group)
        self.rank = rank_of(group)

    def numbers(self, rank: int, device: torch.device) -> Tensor:
        """The numbers of a block's rows."""
        first = sum(self.lengths[:rank])
        one = torch.arange(first, first + self.lengths[rank], device=device)
        return torch.cat([one + view * self.total for view in range(self.views)])

    def round(
        self,
        keys: list[Tensor],
        carried: Tensor | None,
        visit: Callable[[int, list[Tensor], Tensor | None], Tensor | None],
    ) -> Tensor | None:
        """Lets the blocks of all ranks come by: ``visit(rank, keys, carried) -> carried``.

        The next block is on its way while one is visited. What a visit returns goes on with the block, and that of the
        own block is returned when it has come home.
        """
        for step in range(self.world):
            origin, following = ((self.rank - step - k) % self.world for k in (0, 1))
            coming = self._sent(keys, following, tag=1) if step + 1 < self.world else None
            carried = visit(origin, keys, carried)
            if carried is not None and self.world > 1:
                (carried,) = self._sent([carried], following, tag=2)()
            if coming is not None:
                keys = coming()
        return carried

    def _sent(self, tensors: list[Tensor], origin: int, *, tag: int) -> Callable[[], list[Tensor]]:
        """Starts to hand tensors to the next rank; what is returned waits for those of the rank before."""
        longest = self.views * max(self.lengths)
        after, before = ((self.rank + k) % self.world for k in (1, -1))
        if self.group is not None:
            after, before = (dist.get_global_rank(self.group, r) for r in (after, before))
        going = [padded(x, longest) for x in tensors]
        coming = [torch.empty_like(x) for x in going]
        operations = [
            dist.P2POp(what, x.view(torch.uint8), peer, self.group, tag)
            for what, batch, peer in ((dist.isend, going, after), (dist.irecv, coming, before))
            for x in batch
        ]
        works = dist.batch_isend_irecv(operations) if longest else []

        def arrived() -> list[Tensor]:
            for work in works:
                work.wait()
            return [x[: self.views * self.lengths[origin]] for x in coming]

        return arrived


def ring_loss(
    function: str,
    score: Callable[[Tensor, Tensor], Tensor],
    blocks: Blocks,
    a: Tensor,
    b: Tensor,
    negatives: Tensor,
    *parameters: Tensor,
    both: bool,
    pairs: bool,
    absent: Absent | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """This rank's part of the loss of the rows of `a` among those of all ranks' `b`, and the gradients.

    Arguments:
        function: name of the public caller, for messages.
        score: any differentiable ``(a[rows], b) -> scores``.
        blocks: of keys.
        a: anchors of this rank.
        b: keys of this rank; the positive of row i is row i, or, of two views, that of the other view.
        negatives: further candidates of the rows of `a`, the same on all ranks.
        parameters: of `score`.
        both: whether the rows of `b` are anchors as well.
        pairs: whether a score takes hundreds of floats.
        absent: which pairs are absent, by their numbers.
        needed: which gradients are: of `a`, `b`, `negatives` and `parameters`.
    """
    work = _Work(function, score, blocks, a, b, negatives, parameters, both=both, pairs=pairs, absent=absent)
    losses = work.sum_up()
    value = losses.sum() * work.each
    if len(a):
        refuse_undefined(function, value, losses, work.positive)
    if not any(needed):
        return value, [None] * len(needed)
    found = work.weigh()
    return value, [g.to(z.dtype) for g, z in zip(found, (a, b, negatives, *parameters), strict=True)]


class _Work:
    """The two rounds; arguments as in `ring_loss`."""

    def __init__(
        self,
        function: str,
        score: Callable[[Tensor, Tensor], Tensor],
        blocks: Blocks,
        a: Tensor,
        b: Tensor,
        negatives: Tensor,
        parameters: tuple[Tensor, ...],
        *,
        both: bool,
        pairs: bool,
        absent: Absent | None,
    ) -> None:
        self.function, self.score, self.blocks, self.absent, self.both = function, score, blocks, absent, both
        self.a, self.b, self.negatives, self.parameters = a, b, negatives, parameters
        self.own = blocks.numbers(blocks.rank, a.device)
        self.partner = torch.arange(len(a), device=a.device).roll(len(a) // 2 if blocks.views == 2 else 0)
        self.strip = _STRIP_OF_PAIRS if pairs else _STRIP
        # Each anchor's share of this rank's part of the loss; the mean over ranks is that over all anchors.
        self.each = blocks.world / max(blocks.total, 1) / (2 if both or blocks.views == 2 else 1)
        dtype = as_float32(a[:0]).dtype
        self.positive = a.new_zeros(len(a), dtype=dtype)
        self.rows, self.columns = (a.new_full((len(a),), -math.inf, dtype=dtype) for _ in range(2))

    def sum_up(self) -> Tensor:
        """The first round; returns the losses of all anchors of this rank."""

        def visit(origin: int, keys: list[Tensor], columns: Tensor | None) -> Tensor | None:
            for rows, scores, _ in self._strips(keys[0], origin):
                if origin == self.blocks.rank:
                    column = self.partner[rows][:, None]
                    self.positive[rows] = scores.gather(1, column).squeeze(1)
                    scores = scores.scatter(1, column, -math.inf)
                self.rows[rows] = torch.logaddexp(self.rows[rows], scores.logsumexp(1))
                if columns is not None:
                    columns = torch.logaddexp(columns, scores.logsumexp(0))
            return columns

        columns = self.blocks.round([self.b], self.columns if self.both else None, visit)
        if len(self.negatives):
            visit(-1, [self.negatives], None)
        sums = [self.rows]
        if columns is not None:
            self.columns = columns
            sums.append(columns)
        return torch.cat([self._losses(z) for z in sums])

    def _losses(self, sums: Tensor) -> Tensor:
        nothing = sums == -math.inf  # but the positive, or padding
        return softplus((sums - self.positive).masked_fill(nothing, -math.inf))

    def weigh(self) -> list[Tensor]:
        """The second round; returns the gradients."""
        inputs = self.a, self.b, self.negatives, *self.parameters
        found = [torch.zeros_like(z, dtype=as_float32(z[:0] if z.ndim else z).dtype) for z in inputs]
        whole = self._whole(self.rows)
        share = (self.rows - whole).exp()  # of the negatives: what the positive's gradient is, exactly
        whole_columns = self._whole(self.columns)
        share_of_columns = (self.columns - whole_columns).exp()

        def visit(origin: int, keys: list[Tensor], gradient: Tensor | None) -> Tensor | None:
            assert gradient is not None
            block = keys[0].detach().requires_grad_()
            for rows, scores, leaves in self._strips(block, origin, gradient=True):
                weights = (scores.detach() - whole[rows, None]).exp()
                if len(keys) > 1:
                    weights += (scores.detach() - keys[1]).exp()
                if origin == self.blocks.rank:
                    rest = share[rows] + share_of_columns[rows] if self.both else share[rows]
                    weights.scatter_(1, self.partner[rows][:, None], -rest[:, None])
                pieces = torch.autograd.grad(
                    scores, leaves, weights * self.each, allow_unused=True, materialize_grads=True
                )
                found[0][rows] += pieces[0]
                gradient += pieces[1]
                for total, piece in zip(found[3:], pieces[2:], strict=True):
                    total += piece
            return gradient

        keys = [self.b, whole_columns] if self.both else [self.b]
        home = self.blocks.round(keys, found[1], visit)
        assert home is not None
        found[1] = home
        if len(self.negatives):
            visit(-1, [self.negatives], found[2])
        return found

    def _whole(self, sums: Tensor) -> Tensor:
        whole = torch.logaddexp(sums, self.positive)
        return whole.masked_fill_(whole == -math.inf, math.inf)  # padding: a share of nothing

    def _strips(
        self, block: Tensor, origin: int, *, gradient: bool = False
    ) -> Iterator[tuple[slice, Tensor, tuple[Tensor, ...]]]:
        """Some of this rank's anchors at a time, their scores among a block, and what those depend on.

        Arguments:
            block: of keys.
            origin: its rank; -1: the negatives.
            gradient: whether the scores shall have one.
        """
        first = self.blocks.views * self.blocks.total
        columns = self.blocks.numbers(origin, block.device) if origin >= 0 else torch.arange(first, first + len(block))
        columns = columns.to(block.device)
        for rows in parts(len(self.a) if len(block) else 0, max(1, self.strip // max(len(block), 1))):
            with torch.set_grad_enabled(gradient):
                leaves = self.a[rows].detach().requires_grad_(gradient), block, *self.parameters
                scores = as_float32(self.score(*leaves[:2]))
                shape = len(leaves[0]), len(block)
                if scores.shape != shape:
                    raise ValueError(
                        f"{self.function}: the critic's scores have shape {tuple(scores.shape)}, expected {list(shape)}"
                    )
                if gradient and rows.start == 0:
                    refuse_strangers(self.function, "critic", scores, leaves)
                if self.absent is not None:
                    scores = scores.masked_fill(checked_mask(self.absent(self.own[rows], columns), *shape), -math.inf)
            yield rows, scores, leaves
