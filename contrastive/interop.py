r"""pytorch-metric-learning (PML) both ways: our miners and losses in its loops, its miners in ours.

PML hands tuples of row numbers from a miner to a loss, triplets ``(a, p, n)`` or pairs ``(a1, p, a2, n)``; this library
hands a matrix of log-weights. `as_pml_miner` and `as_pml_loss` return subclasses of PML's own classes, so that its
trainers, its `CrossBatchMemory` and its distributed wrappers take them; `from_pml_miner` returns a miner like ours.

>>> from pytorch_metric_learning.losses import TripletMarginLoss
>>> from miners import hardest
>>> embeddings, labels = torch.randn(8, 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
>>> loss = TripletMarginLoss()(embeddings, labels, as_pml_miner(hardest())(embeddings, labels))
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import (
    AngularMiner,
    BaseMiner,
    DistanceWeightedMiner,
    EmbeddingsAlreadyPackagedAsTriplets,
    HDCMiner,
)
from torch import Tensor

from contrastive.critics import Cosine
from contrastive.factors import UnitRows, factorises, factors_of, without_autocast
from contrastive.gemm import fast_products
from contrastive.objectives import kpair_loss, supcon_loss
from contrastive.ranking import largest, largest_of_columns
from contrastive.relatives import lifted_loss, multi_similarity_loss, sigmoid_loss
from contrastive.scores import (
    MiningFacts,
    WeighsNegatives,
    as_float32,
    check_rows,
    checked_temperature,
    facts_of,
    negatives,
    weighed,
)

__all__ = ["as_pml_loss", "as_pml_miner", "from_pml_miner"]

# Rows of scores that there are at once. A miner makes copies of them, which should stay in the cache: fewer, of so many
# floats. Where their maxima are all that is asked for, more: a batch of a thousand is one strip.
_FEWEST_ROWS, _ROWS, _MINED, _RANKED = 64, 256, 2**18, 2**20
_TAKE_MASKS = (supcon_loss, lifted_loss, multi_similarity_loss, sigmoid_loss)
_UNSUITED: dict[type, str] = {
    AngularMiner: "it reads angles from the embeddings themselves",
    DistanceWeightedMiner: "it reads the embeddings' dimension; miners.distance_weighted weighs by scores",
    EmbeddingsAlreadyPackagedAsTriplets: "it goes by the positions of rows, not by scores",
    HDCMiner: "it ranks the pairs of a whole batch against each other, and a miner sees some rows at a time",
}


def as_pml_miner(
    miner: WeighsNegatives, *, k: int = 1, critic: Callable[[Tensor, Tensor], Tensor] | None = None
) -> BaseMiner:
    r"""Makes a miner one of PML's: ``(embeddings, labels=None, ref_emb=None, ref_labels=None) -> (a, p, n)``.

    Every pair of an anchor and a positive is a row: its negatives are the candidates of other labels, those of the same
    label are absent. A row of weights 0 and 1 gives a triplet for every negative that is kept, a row of soft weights
    for k negatives drawn by their weights without replacement (Gumbel top-k), anew for every positive. A miner whose
    facts say that it looks at nothing but negatives (`contrastive.scores.MiningFacts.monotone`) weighs an anchor once
    for all of its positives. One that changes with time (`miners.annealed`) is that of its first step: give that of
    another, ``miner.at(step)``.

    Without labels row i of `ref_emb` is the positive of row i, and all others are negatives. PML's wrappers that want
    labels get ``torch.arange(len(embeddings))``.

    A self pair is neither: where `ref_emb` is `embeddings`, or holds the same values, row i of it is left out for
    anchor i, whatever the labels are. (PML asks whether `ref_labels` is the same object as `labels`: two views that
    share their labels lose their positives, and a copy of the labels makes an anchor its own positive.) Anchors without
    a positive or without a negative give no triplets.

    Scores come in strips of at most 256 rows (or a million scores); beside the triplets nothing grows faster than the
    batch.

    Arguments:
        miner: any miner.
        k: how many negatives are drawn for every positive where weights are soft.
        critic: what scores are; None: cosines without a temperature, so that margins and concentrations are in units of
            a cosine.

    Returns:
        A subclass of PML's ``BaseMiner``. The anchors a index `embeddings`, p and n index `ref_emb` where it is given.

    Raises:
        ValueError: for k < 1; when mining, for labels and references that do not fit, and for neither labels nor
            `ref_emb`.

    Example:
        >>> from miners import topk
        >>> x, y = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.2], [0.0, 0.5, 1.0]])
        >>> as_pml_miner(topk(1))(x, ref_emb=y)
        (tensor([0, 1, 2]), tensor([0, 1, 2]), tensor([1, 2, 1]))

    References:
        | PyTorch Metric Learning (Musgrave et al., 2020)
        | https://arxiv.org/abs/2008.09164
        | Stochastic Beams and Where to Find Them (Kool et al., 2019)
        | https://arxiv.org/abs/1903.06059
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"as_pml_miner: k is {k!r}, expected an integer of at least 1")
    return _AsMiner(miner, k=k, critic=Cosine(1.0) if critic is None else critic)


def from_pml_miner(miner: BaseMiner, *, temperature: float) -> "_FromMiner":
    r"""Makes a miner of PML one of ours: ``(scores, targets, *, anchors=None) -> log_weights``.

    It is shown :math:`\tau s_{ij}` as the similarities of a batch in which anchor i and candidate t(i) share a label,
    and no others do. Negatives that it selects weigh 1, all others 0. A margin, a tolerance or a range of it is then in
    units of the untempered score, a cosine's for the cosine critic, whatever distance the miner was made with.

    A row whose positive it drops keeps no negatives: its loss is 0, as a pair that is not selected adds nothing to
    PML's losses. A miner of triplets drops a positive with its last negative.

    A miner that looks at a whole batch at once (`UniformHistogramMiner`) sees as many rows as our loss shows it.

    Arguments:
        miner: one of PML's; it is copied.
        temperature: :math:`\tau`, by which the scores were divided.

    Returns:
        A miner. It guarantees nothing, so nothing bounds mutual information.

    Raises:
        ValueError: for a temperature that is not a finite number of at least 1e-6, and for a miner that reads the
            embeddings (angular, distance-weighted), their positions, or ranks the pairs of the whole batch (HDC); for
            what is no miner of PML. A subclass of your own is refused when it reads the embeddings.

    Example:
        >>> from pytorch_metric_learning.miners import TripletMarginMiner
        >>> semihard = from_pml_miner(TripletMarginMiner(margin=0.2, type_of_triplets="semihard"), temperature=0.1)
        >>> semihard(torch.tensor([[8.0, 7.0, 5.0, 9.0]]), torch.tensor([0]))
        tensor([[0., 0., -inf, -inf]])

    References:
        | PyTorch Metric Learning (Musgrave et al., 2020)
        | https://arxiv.org/abs/2008.09164
    """
    checked_temperature("from_pml_miner", temperature)
    if not isinstance(miner, BaseMiner):
        raise ValueError(f"from_pml_miner: got {miner!r}, expected a miner of pytorch-metric-learning")
    for kind, reason in _UNSUITED.items():
        if isinstance(miner, kind):
            raise ValueError(f"from_pml_miner: {type(miner).__name__} cannot mine scores: {reason}")
    return _FromMiner(miner, temperature)


def as_pml_loss(
    objective: Callable[..., Tensor] = kpair_loss,
    *,
    critic: Callable[[Tensor, Tensor], Tensor] | None = None,
    miner: WeighsNegatives | None = None,
    several: bool | None = None,
) -> BaseMetricLossFunction:
    r"""Makes an objective a loss of PML.

    It is called ``(embeddings, labels=None, indices_tuple=None, ref_emb=None, ref_labels=None)``. An objective of one
    positive, such as `kpair_loss`, gets a row for every pair of an anchor and a positive, whose candidates are that
    positive and the anchor's negatives, and PML's reducer takes their mean: with `kpair_loss` it is PML's
    ``NTXentLoss``. An objective of several, such as `supcon_loss`, gets a row for every anchor that has a positive,
    with the mask of all of them: ``SupConLoss``.

    Without `indices_tuple` labels decide, or `ref_emb` where there are none: as in `as_pml_miner`, self pairs included.
    With it only its pairs count, each once, however often it repeats them; of triplets a positive has those negatives
    that it came with.

    PML's wrappers admit losses by the names of their classes. So this one's is ``NTXentLoss``, and `CrossBatchMemory`
    and `SelfSupervisedLoss` take it.

    The matrix of scores is formed; where that is too large, `contrastive.KPairLoss` streams.

    Arguments:
        objective: ``(scores, targets, *, log_weights=None) -> [rows]``.
        critic: what scores are; None: `Cosine` at its temperature of 0.1. Its parameters are the loss's.
        miner: weighs the candidates of every row. Of an objective of several positives only a miner that looks at
            nothing but negatives (its facts say `monotone`).
        several: whether the objective takes a mask of positives. None: whether it is one of this library's that do.

    Returns:
        A subclass of PML's ``BaseMetricLossFunction``.

    Raises:
        ValueError: for an objective of several positives with a miner that looks at the positive; when called, for
            labels and references that do not fit, and what `objective` refuses.

    Example:
        >>> loss = as_pml_loss(critic=Cosine(temperature=0.5))
        >>> loss(torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
        tensor(0.2395)

    References:
        | PyTorch Metric Learning (Musgrave et al., 2020)
        | https://arxiv.org/abs/2008.09164
    """
    if several is None:
        several = _innermost(objective) in _TAKE_MASKS
    if several and miner is not None and not facts_of(miner).monotone:
        raise ValueError(
            f"as_pml_loss: {miner!r} may look at the positive, and the objective has several, expected a miner whose "
            "facts say that it is monotone"
        )
    return NTXentLoss(objective, critic=Cosine() if critic is None else critic, miner=miner, several=several)


class _AsMiner(BaseMiner):  # type: ignore[misc]  # PML is untyped
    """What `as_pml_miner` returns."""

    def __init__(self, miner: WeighsNegatives, *, k: int, critic: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.miner = miner
        self.k = k
        self.critic = critic

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mines triplets; not `mine`, for the base class wants labels."""
        self.reset_stats()
        with torch.no_grad():
            mates = _Mates.of("as_pml_miner", embeddings, labels, ref_emb, ref_labels)
            rows = self._symmetric_rows(embeddings) if ref_emb is None else None
            if rows is not None:
                a, p, n = _of_batch(rows, mates)
            else:
                candidates = embeddings if ref_emb is None else ref_emb
                a, p, n = _joined(self._strips(embeddings, candidates, mates.of_usable_anchors(len(candidates))), mates)
        self.output_assertion((a, p, n))
        return a, p, n

    def _symmetric_rows(self, x: Tensor) -> Tensor | None:
        """Rows whose products are the scores of a batch against itself, where the hardest negative is all we ask."""
        facts = facts_of(self.miner)
        if not (facts.hardest and facts.mass == 1 and factorises(self.critic)):
            return None
        with without_autocast(x):
            factors = factors_of(self.critic, x, x)
        if factors.anchors is not factors.candidates or not float(factors.scale) > 0:
            return None
        return UnitRows(factors.anchors, unit=factors.unit).scaled(float(factors.scale) ** 0.5)

    def _strips(self, x: Tensor, y: Tensor, mates: "_Mates") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        facts = facts_of(self.miner)
        x = x if len(mates.anchors) == len(x) else x[mates.anchors]
        if facts.hardest:
            step = max(_ROWS, _RANKED // max(1, len(y)))
        else:
            step = min(_ROWS, max(_FEWEST_ROWS, _MINED // max(1, len(y))))
        with without_autocast(x), fast_products(as_float32(x[:0]), len(x) * len(y) * x.shape[1]):
            score = _scorer(self.critic, x, y, step)
            for start in range(0, len(x), step):
                part = slice(start, start + step)
                anchors, strip = mates.anchors[part], score(part)
                row, positive = mates.pairs(part)
                own = strip[row, positive]
                # A critic may know of absent candidates itself.
                absent = (row, positive) if not facts.hardest and float(strip.amin()) > -torch.inf else None
                strip[row, positive] = -torch.inf
                if mates.with_self:
                    others = positive != anchors[row]
                    row, positive, own = row[others], positive[others], own[others]
                if facts.hardest:
                    assert isinstance(facts.mass, int)
                    pair, negative = _hardest(strip, row, facts.mass)
                elif facts.monotone:
                    weights = self._by_anchor(strip, row, positive, own, anchors, absent)
                    pair, negative = _chosen(weights, row, self.k, weighs=facts.mass == "all")
                else:
                    pair, negative = self._by_pair(strip, row, positive, own, anchors)
                yield anchors[row[pair]], positive[pair], negative

    def _by_anchor(
        self,
        strip: Tensor,
        row: Tensor,
        positive: Tensor,
        own: Tensor,
        anchors: Tensor,
        absent: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """The weights of anchors, -inf wherever there is no negative: any of their positives will do as the target."""
        first = torch.searchsorted(row, torch.arange(len(strip), device=row.device))
        target = positive[first]
        strip.scatter_(1, target[:, None], own[first][:, None])
        if absent is None:
            return self._weights(strip, target, anchors)
        return self._mined(strip, target, anchors).index_put(absent, strip.new_tensor(-torch.inf))

    def _by_pair(
        self, strip: Tensor, row: Tensor, positive: Tensor, own: Tensor, anchors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The negatives of all pairs, each weighed in a row of its own."""
        found = []
        for start in range(0, len(row), len(strip)):
            part = slice(start, start + len(strip))
            rows = strip[row[part]].scatter_(1, positive[part, None], own[part, None])
            weights = self._weights(rows, positive[part], anchors[row[part]])
            pair, negative = _chosen(weights, torch.arange(len(rows), device=row.device), self.k, weighs=False)
            found.append((pair + start, negative))
        pair, negative = (torch.cat(parts) for parts in zip(*found, strict=True))
        return pair, negative

    def _weights(self, scores: Tensor, targets: Tensor, anchors: Tensor) -> Tensor:
        """The miner's log-weights, -inf wherever there is no negative."""
        return self._mined(scores, targets, anchors).masked_fill(~negatives(scores, targets), -torch.inf)

    def _mined(self, scores: Tensor, targets: Tensor, anchors: Tensor) -> Tensor:
        found = weighed("as_pml_miner", self.miner, scores, targets, anchors)
        _, _, log_weights = check_rows("as_pml_miner", scores, targets, found)
        assert log_weights is not None
        return log_weights

    def extra_repr(self) -> str:
        return f"miner={self.miner!r}, k={self.k}"


@dataclass(frozen=True)
class _Mates:
    """Which candidates each anchor shares a label with.

    Arguments:
        anchors: numbers of anchors.
        order: candidates, ordered by label.
        first: where in `order` those of each anchor's label begin.
        count: how many they are.
        with_self: whether each anchor is among them.
    """

    anchors: Tensor
    order: Tensor
    first: Tensor
    count: Tensor
    with_self: bool

    @classmethod
    def of(
        cls, function: str, x: Tensor, labels: Tensor | None, y: Tensor | None, ref_labels: Tensor | None
    ) -> "_Mates":
        """Those of a batch, by labels or, without, by position.

        Raises:
            ValueError: names `function`, what it got and what it expected.
        """
        anchors = torch.arange(len(x), device=x.device)
        if x.ndim != 2 or (y is not None and y.ndim != 2):
            shapes = f"{tuple(x.shape)}" if y is None else f"{tuple(x.shape)} and ref_emb of shape {tuple(y.shape)}"
            raise ValueError(f"{function}: got embeddings of shape {shapes}, expected [rows, d]")
        if labels is None:
            if ref_labels is not None:
                raise ValueError(f"{function}: got ref_labels without labels, expected both or neither")
            if y is None or y is x:
                raise ValueError(
                    f"{function}: got no labels and no ref_emb of its own, expected labels, or ref_emb whose rows are "
                    "the positives of the embeddings'"
                )
            if len(y) < len(x):
                raise ValueError(
                    f"{function}: got no labels, {len(x)} embeddings and {len(y)} rows of ref_emb, "
                    "expected a positive for every row"
                )
            every = torch.arange(len(y), device=x.device)
            return cls(anchors, every, anchors, torch.ones_like(anchors), with_self=False)
        with_self = y is None or y is x or (y.shape == x.shape and torch.equal(y, x))
        if ref_labels is None and (y is None or y is x):
            ref_labels = labels
        if ref_labels is None or (y is None and ref_labels is not labels):
            got = "labels and ref_emb without ref_labels" if ref_labels is None else "ref_labels without ref_emb"
            raise ValueError(f"{function}: got {got}, expected both or neither")
        own = _checked_labels(function, "labels", labels, len(x), x.device)
        others = _checked_labels(function, "ref_labels", ref_labels, len(x if y is None else y), x.device)
        if own.dtype != others.dtype:
            # Integers as floats: those above 2^24 would merge.
            raise ValueError(f"{function}: labels are {labels.dtype}, ref_labels {ref_labels.dtype}, expected one kind")
        ordered, order = others.sort(stable=True)
        first = torch.searchsorted(ordered, own)
        return cls(anchors, order, first, torch.searchsorted(ordered, own, right=True) - first, with_self=with_self)

    def of_usable_anchors(self, candidates: int) -> "_Mates":
        """Those of the anchors that have a positive and a negative."""
        usable = (self.count > int(self.with_self)) & (self.count < candidates)
        if bool(usable.all()):
            return self
        return _Mates(self.anchors[usable], self.order, self.first[usable], self.count[usable], self.with_self)

    def pairs(self, part: slice) -> tuple[Tensor, Tensor]:
        """Some anchors with their mates, themselves included: numbers within the part, and columns."""
        row, place = _ranges(self.first[part], self.count[part])
        return row, self.order[place]


def _checked_labels(function: str, name: str, labels: Tensor, count: int, device: torch.device) -> Tensor:
    if labels.shape != (count,):
        raise ValueError(f"{function}: {name} have shape {tuple(labels.shape)}, expected [{count}]")
    return labels.to(device=device, dtype=torch.float64 if labels.is_floating_point() else torch.int64)


def _ranges(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers from first[i] on, count[i] of them, for one i after the other; and the i of each.

    >>> _ranges(torch.tensor([5, 0]), torch.tensor([2, 3]))
    (tensor([0, 0, 1, 1, 1]), tensor([5, 6, 0, 1, 2]))
    """
    of = torch.arange(len(count), device=count.device).repeat_interleave(count)
    shift = first - (count.cumsum(0) - count)
    return of, torch.arange(len(of), device=of.device) + shift[of]


def _joined(found: Iterator[tuple[Tensor, Tensor, Tensor]], mates: _Mates) -> tuple[Tensor, Tensor, Tensor]:
    """The triplets of all strips, in one buffer that doubles: small pieces would cut up the memory between strips."""
    buffer, total = mates.order.new_empty(3, 4 * len(mates.anchors)), 0
    for part in found:
        end = total + len(part[0])
        if end > buffer.shape[1]:
            larger = buffer.new_empty(3, max(end, 2 * buffer.shape[1]))
            larger[:, :total] = buffer[:, :total]
            buffer = larger
        for column, numbers in zip(buffer, part, strict=True):
            column[total:end] = numbers
        total = end
    a, p, n = buffer[:, :total]
    return a, p, n


def _scorer(critic: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, rows: int) -> Callable[[slice], Tensor]:
    """Forms the scores of up to so many rows of `x` against all of `y`; they may be written to, until the next call."""
    if not factorises(critic):
        return lambda part: as_float32(critic(x[part], y)).clone()
    factors = factors_of(critic, x, y)
    left, right = (UnitRows(z, unit=factors.unit) for z in (factors.anchors, factors.candidates))
    columns = right.scaled(float(factors.scale)).T
    buffer = columns.new_empty(min(rows, len(x)), len(y))

    def score(part: slice) -> Tensor:
        some = left[part]
        return torch.mm(some, columns, out=buffer[: len(some)])

    return score


def _of_batch(u: Tensor, mates: _Mates) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of a batch with the anchor's hardest negative, from one half of the symmetric scores."""
    rows, row, positive = len(u), *mates.pairs(slice(None))
    # A tile is some rows against themselves and all later ones: places in it of the mates, which are no negatives.
    side = max(_ROWS, min(_RANKED // (2 * max(1, rows)), -(-rows // 2)))
    first = row // side * side
    half = positive >= first
    place = ((row - first) * (rows - first) + positive - first)[half]
    places = torch.split(place, (first[half] // side).bincount(minlength=-(-rows // side)).tolist())
    best, negative = u.new_full((rows,), -torch.inf), torch.zeros_like(mates.anchors)
    buffer = u.new_empty(min(side, rows) * rows)

    def better(part: slice, values: Tensor, columns: Tensor) -> None:
        negative[part] = torch.where(values > best[part], columns, negative[part])
        best[part] = torch.maximum(best[part], values)

    with without_autocast(u), fast_products(u[:0], rows**2 * u.shape[1]):
        for start, absent in zip(range(0, rows, side), places, strict=True):
            end = min(start + side, rows)
            flat = buffer[: (end - start) * (rows - start)]
            tile = flat.view(end - start, rows - start)
            torch.mm(u[start:end], u[start:].T, out=tile)
            flat.index_fill_(0, absent, -torch.inf)
            values, columns = largest(tile, 1)
            better(slice(start, end), values.squeeze(1), columns.squeeze(1) + start)
            if end < rows:
                values, columns = largest_of_columns(tile[:, end - start :])
                better(slice(end, None), values, columns + start)
    kept = (row != positive) & (best > -torch.inf)[row]
    a = row[kept]
    return a, positive[kept], negative[a]


def _hardest(strip: Tensor, row: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest-scoring negatives of every pair: numbers of pairs, and columns."""
    values, columns = largest(strip, min(k, strip.shape[1]))
    pair = torch.arange(len(row), device=row.device).repeat_interleave(columns.shape[1])
    negative, kept = columns[row].flatten(), (values > -torch.inf)[row].flatten()
    return (pair, negative) if bool(kept.all()) else (pair[kept], negative[kept])


def _chosen(log_weights: Tensor, row: Tensor, k: int, *, weighs: bool) -> tuple[Tensor, Tensor]:
    """The negatives of every pair: all that are kept, or k that are drawn where weights are soft.

    Arguments:
        log_weights: -inf wherever there is no negative.
        row: the row of weights that is each pair's, ascending.
        k: how many to draw.
        weighs: whether every row is soft, whatever its weights happen to be: equal ones may be 1 by chance.

    Returns:
        Numbers of pairs, and columns.
    """
    top = log_weights.amax(1)
    soft = torch.ones_like(top, dtype=torch.bool) if weighs else (top != 0) & (top != -torch.inf)
    if not bool(soft.all()):
        of, columns = _kept(log_weights, ~soft)
        # A row whose largest weight is 1 may have others below.
        soft[of[log_weights[of, columns] != 0]] = True
        some = ~soft[of]
        of, columns = of[some], columns[some]
    else:
        of = columns = row.new_empty(0)
    count = of.bincount(minlength=len(soft))
    pair, at = _ranges((count.cumsum(0) - count)[row], count[row])
    pairs = soft[row].nonzero().squeeze(1)
    drawn = _drawn(log_weights, row[pairs], pairs, k)
    return torch.cat([pair, drawn[0]]), torch.cat([columns[at], drawn[1]])


def _kept(log_weights: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept in some rows: numbers of rows, and columns. On the CPU numpy is eight times as fast as torch."""
    if log_weights.device.type == "cpu":
        mask = log_weights.numpy() > -math.inf
        mask &= rows.numpy()[:, None]
        place = torch.from_numpy(mask.ravel().nonzero()[0])
    else:
        place = ((log_weights > -torch.inf) & rows[:, None]).flatten().nonzero().squeeze(1)
    return place // log_weights.shape[1], place % log_weights.shape[1]


def _drawn(log_weights: Tensor, row: Tensor, pairs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Draws k negatives of each of some pairs by weight, without replacement: numbers of pairs, and columns."""
    if len(pairs) == 0:
        return pairs, pairs
    if k == 1:  # a row's draws for all of its positives are independent: one cumulative sum serves them
        top = log_weights.amax(1, keepdim=True)
        weights = (log_weights - top).exp_()
        weights[(top == -torch.inf).squeeze(1)] = 1.0  # nothing to draw: left out below
        count = row.bincount(minlength=len(weights))
        columns = weights.multinomial(int(count.max()), replacement=True)
        within = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        some = (top > -torch.inf).squeeze(1)[row]
        return pairs[some], columns[row, within][some]
    found = []
    for start in range(0, len(pairs), len(log_weights)):
        part = slice(start, start + len(log_weights))
        waiting = log_weights.new_empty(len(pairs[part]), log_weights.shape[1]).exponential_()
        keys, columns = (log_weights[row[part]] - waiting.log_()).topk(min(k, log_weights.shape[1]), sorted=False)
        some = keys > -torch.inf
        found.append((pairs[part, None].expand_as(columns)[some], columns[some]))
    pair, negative = (torch.cat(parts) for parts in zip(*found, strict=True))
    return pair, negative


class _FromMiner:
    """What `from_pml_miner` returns."""

    facts = MiningFacts(why="is a miner of pytorch-metric-learning: which negatives it drops is its own matter")

    def __init__(self, miner: BaseMiner, temperature: float) -> None:
        self.miner = copy.deepcopy(miner)
        self.miner.distance = _Given()
        self.temperature = temperature

    def __call__(
        self,
        scores: Float[Tensor, "anchors candidates"],
        targets: Int[Tensor, " anchors"],
        *,
        anchors: Int[Tensor, " anchors"] | None = None,
    ) -> Float[Tensor, "anchors candidates"]:
        scores, targets, _ = check_rows(repr(self), scores, targets)
        present = negatives(scores, targets)
        usable = present.any(1).nonzero().squeeze(1)
        log_weights = torch.full_like(scores, -torch.inf).scatter_(1, targets[:, None], 0.0)
        if len(usable) == 0:
            return log_weights
        seen, present, columns = scores.detach()[usable] * self.temperature, present[usable], scores.shape[1]
        # PML knows positives and negatives, but no absent candidates: they take the place of one that is present.
        stands_for = torch.arange(columns, device=scores.device).where(present, present.int().argmax(1, keepdim=True))
        stands_for.scatter_(1, targets[usable, None], targets[usable, None])
        a1, a2, n = self._pairs(seen.gather(1, stands_for), targets[usable])
        selected = torch.zeros_like(present)
        selected[a2, stands_for[a2, n]] = True
        with_positive = torch.zeros_like(usable, dtype=torch.bool)
        with_positive[a1] = True
        log_weights[usable] = log_weights[usable].masked_fill(selected & with_positive[:, None], 0.0)
        return log_weights

    def _pairs(self, similarities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The anchors whose positives are selected, and the negative pairs."""
        rows, columns = similarities.shape
        x, y = (_NoEmbeddings(count, similarities, type(self.miner).__name__) for count in (rows, columns))
        self.miner.distance.similarities = similarities
        # The label of a candidate is its column's number.
        found = self.miner(x, targets, y, torch.arange(columns, device=targets.device))
        self.miner.distance.similarities = None
        return found[0], found[-2] if len(found) == 4 else found[0], found[-1]

    def __repr__(self) -> str:
        return f"from_pml_miner({type(self.miner).__name__}, temperature={self.temperature})"


class _Given(BaseDistance):  # type: ignore[misc]  # PML is untyped
    """The distance whose values are there already: similarities, of which the larger is the nearer."""

    def __init__(self) -> None:
        super().__init__(normalize_embeddings=False, is_inverted=True)
        self.similarities: Tensor | None = None

    def forward(self, query_emb: object, ref_emb: object = None) -> Tensor:
        assert self.similarities is not None
        return self.similarities


class _NoEmbeddings:
    """Stands where PML expects embeddings: has a length and a device, and refuses to be read."""

    def __init__(self, count: int, like: Tensor, miner: str) -> None:
        self.shape, self.ndim, self.dtype, self.device, self._miner = (count, 1), 2, like.dtype, like.device, miner

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: object) -> NoReturn:
        raise _reads(self._miner)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise _reads(self._miner)

    @classmethod
    def __torch_function__(cls, function: object, types: object, args: Any = (), kwargs: object = None) -> NoReturn:
        raise _reads(next((z._miner for z in args if isinstance(z, cls)), "the miner"))


def _reads(miner: str) -> ValueError:
    return ValueError(f"from_pml_miner: {miner} cannot mine scores: it reads the embeddings themselves")


class NTXentLoss(BaseMetricLossFunction):  # type: ignore[misc]  # PML is untyped
    """What `as_pml_loss` returns; PML's wrappers let it in by this name."""

    def __init__(
        self,
        objective: Callable[..., Tensor],
        *,
        critic: Callable[[Tensor, Tensor], Tensor],
        miner: WeighsNegatives | None,
        several: bool,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.critic = critic
        self.miner = miner
        self.several = several

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Any:
        """The loss of every row, with what PML's reducers want to know of it."""
        if indices_tuple is None:
            selected = _selected_by_labels(embeddings, labels, ref_emb, ref_labels)
        else:
            given = [z.to(embeddings.device) for z in indices_tuple]
            if self.several and len(given) == 3:  # a mask cannot say which negatives came with which positive
                given = [given[0], given[1], given[0], given[2]]
            selected = _selected_by_tuple(given, len(embeddings), len(ref_emb))
        if len(selected[0]) == 0:
            return self.zero_losses()
        scores = as_float32(self.critic(embeddings, ref_emb))
        return self._by_anchor(scores, *selected) if self.several else self._by_pair(scores, *selected)

    def _by_pair(self, scores: Tensor, a: Tensor, p: Tensor, of: Tensor, negative: Tensor) -> Any:
        # The positive of a pair is present in its row, the anchor's other positives are not.
        rows = scores[a].masked_fill(~negative[of], -torch.inf).scatter(1, p[:, None], scores[a, p][:, None])
        log_weights = None if self.miner is None else weighed("as_pml_loss", self.miner, rows, p, a)
        losses = self.objective(rows, p, log_weights=log_weights)
        return {"loss": {"losses": losses, "indices": (a, p), "reduction_type": "pos_pair"}}

    def _by_anchor(self, scores: Tensor, a: Tensor, p: Tensor, of: Tensor, negative: Tensor) -> Any:
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[a, p] = True
        anchors = positive.any(1).nonzero().squeeze(1)
        positive = positive[anchors]
        rows = scores[anchors].masked_fill(~(positive | negative[anchors]), -torch.inf)
        log_weights = None
        if self.miner is not None:
            target = positive.int().argmax(1)  # any will do: the miner looks at negatives
            others = positive.scatter(1, target[:, None], False)
            log_weights = weighed("as_pml_loss", self.miner, rows.masked_fill(others, -torch.inf), target, anchors)
        losses = self.objective(rows, positive, log_weights=log_weights)
        return {"loss": {"losses": losses, "indices": anchors, "reduction_type": "element"}}

    def extra_repr(self) -> str:
        name = getattr(_innermost(self.objective), "__name__", repr(self.objective))
        return f"objective={name}, miner={self.miner!r}"


def _selected_by_labels(
    x: Tensor, labels: Tensor | None, y: Tensor, ref_labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All pairs, as `_selected_by_tuple` gives them."""
    mates = _Mates.of("as_pml_loss", x, labels, y, ref_labels)
    a, p = mates.pairs(slice(None))
    negative = torch.ones(len(x), len(y), dtype=torch.bool, device=x.device)
    negative[a, p] = False
    if mates.with_self:
        a, p = a[a != p], p[a != p]
    return a, p, a, negative


def _selected_by_tuple(given: list[Tensor], rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pairs of anchors and positives, each once; which row of a mask is each one's; the mask of negatives."""
    a, p = given[:2]
    key, of = torch.unique(a * columns + p, return_inverse=True)
    pairs = key // columns, key % columns
    if len(given) == 4:
        negative = torch.zeros(rows, columns, dtype=torch.bool, device=a.device)
        negative[given[2], given[3]] = True
        return *pairs, pairs[0], negative
    negative = torch.zeros(len(key), columns, dtype=torch.bool, device=a.device)
    negative[of, given[2]] = True
    return *pairs, torch.arange(len(key), device=a.device), negative


def _innermost(function: object) -> object:
    """The function within partials."""
    while isinstance(function, partial):
        function = function.func
    return function
