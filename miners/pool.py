r"""Hard negatives from a pool by a known proposal: a bound whose ceiling is the pool's, at the cost of a few scores."""

import math
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.errors import InputError
from contrastive.retrieval import Metric, search, similarity, unit_rows
from contrastive.scores import as_float32, checked_temperature

__all__ = ["Draw", "PoolProposal"]

_NAME = "PoolProposal"
# `torch.multinomial` draws among no more places.
_MOST = 2**24


@dataclass(frozen=True)
class Draw:
    r"""Candidates drawn for every anchor, the positive first, and what undoes the way they were drawn.

    Arguments:
        columns: rows of the pool; column 0 is the anchor's positive.
        log_weights: :math:`\log \omega_{ij} = -\log(M q_{ij})`, the positive's included: for the denominator.
        prior: over how many places of the pool the positive is uniform: M, less the other anchors' positives where the
            draws are shared. The ceiling of the bound is its logarithm.
    """

    columns: Int[Tensor, "anchors k"]
    log_weights: Float[Tensor, "anchors k"]
    prior: int


class PoolProposal:
    r"""Proposes hard negatives from a pool of M candidates in which every anchor's positive is one.

    .. math::
        q_{ij} = (1 - a) \frac{e^{g_{ij}}}{\sum_{l \in T_i} e^{g_{il}}} [j \in T_i] + \frac{a}{M}, \qquad
        g_{ij} = \frac{\text{score}(x_i, y_j)}{\tau}

    with T the `top` candidates of highest score, found by FAISS, or all of the pool. Where the positive stands in the
    pool tells nothing before the anchor is seen: its place is uniform, 1/M exactly. So the negatives' weights
    :math:`1/(M q)` are known, not estimated, and with the positive's own weight beside them
    :math:`\log K - L` bounds mutual information with the ceiling :math:`\log M` (`contrastive.pool_infonce`;
    ``docs/theory.md``, theorem C). A proposal may be stale, cheap or bad: that costs value, never the bound. The scores
    of the loss may not be stale.

    Arguments:
        pool: cheap or stale embeddings of the candidates; where each is the positive of at most one anchor of a batch.
        top: R, how many candidates of an anchor are proposed by their scores; None: all (the matrix of anchors by pool
            is formed, and M is at most 2^24).
        uniform: a in (0, 1], the share drawn from anywhere in the pool. It keeps the weights below 1/a (of shared draws
            below :math:`M / ((M - n + 1) a)`).
        temperature: :math:`\tau`, of the proposal alone.
        metric: of the scores, as in `contrastive.search`.

    Raises:
        InputError: for a pool that is not of finite floats, options out of range, or a `top` beyond the pool.

    Example:
        >>> pool = torch.eye(4)
        >>> proposal = PoolProposal(pool, top=2, uniform=0.5, temperature=0.1)
        >>> draw = proposal.draw(pool[:2], torch.tensor([0, 1]), 3)
        >>> draw.columns[:, 0], draw.log_weights.shape
        (tensor([0, 1]), torch.Size([2, 3]))
        >>> proposal.log_probabilities(pool[:1], torch.tensor([[0, 1, 2, 3]])).exp().sum()
        tensor(1.)

    References:
        | Improving Mutual Information Estimation with Annealed and Energy-Based Bounds (Brekelmans et al., 2022)
        | https://arxiv.org/abs/2303.06992
    """

    def __init__(
        self,
        pool: Float[Tensor, "pool d"],
        *,
        top: int | None = None,
        uniform: float = 0.1,
        temperature: float = 1.0,
        metric: Metric = "inner_product",
    ) -> None:
        if pool.ndim != 2 or not len(pool) or not pool.is_floating_point() or not bool(torch.isfinite(pool).all()):
            raise InputError(f"{_NAME}: the pool is {pool.dtype} {tuple(pool.shape)}, expected finite floats [M, d]")
        if top is not None and (not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= len(pool)):
            raise InputError(f"{_NAME}: top is {top}, expected 1 to {len(pool)}, the size of the pool, or None")
        if not 0 < uniform <= 1:
            raise InputError(f"{_NAME}: uniform is {uniform}, expected a share in (0, 1]: q must reach all of the pool")
        if metric not in get_args(Metric):
            raise InputError(f"{_NAME}: metric is {metric!r}, expected one of {', '.join(get_args(Metric))}")
        checked_temperature(_NAME, temperature)
        self.pool = as_float32(pool.detach())
        self.top, self.uniform, self.temperature, self.metric = top, uniform, temperature, metric

    def __len__(self) -> int:
        return len(self.pool)

    def __repr__(self) -> str:
        return (
            f"{_NAME}({len(self)} candidates, top={self.top}, uniform={self.uniform}, "
            f"temperature={self.temperature}, metric={self.metric!r})"
        )

    @torch.no_grad()
    def draw(self, anchors: Float[Tensor, "anchors d"], targets: Int[Tensor, " anchors"], k: int) -> Draw:
        r"""Draws K - 1 negatives for every anchor, from a list of its own.

        They are drawn with replacement from all of the pool, so that now and then one is the positive: it must stay
        (the bound counts on it). Draws are torch's global ones.

        Arguments:
            anchors: :math:`x_i` in the space of the pool.
            targets: the place of each anchor's positive in the pool.
            k: K, the number of candidates of an anchor, its positive included; at least 2.

        Returns:
            Columns for `contrastive.lists.list_scores` and log-weights for `contrastive.kpair_loss` with
            ``targets=0``.

        Raises:
            InputError: for shapes that do not fit, targets that are no rows of the pool, a `k` below 2, or more than
                2^24 places to draw from by score: `top`, or without it the pool.
        """
        self._check_places(len(self) if self.top is None else self.top, "give a smaller top")
        ids, probabilities = self._tops(anchors, targets, k)
        own = ids.gather(1, torch.multinomial(probabilities, k - 1, replacement=True))
        anywhere = torch.rand(own.shape, device=own.device) < self.uniform
        drawn = torch.where(anywhere, torch.randint(len(self), own.shape, device=own.device), own)
        columns = torch.cat([targets[:, None], drawn], 1)
        return Draw(columns, -math.log(len(self)) - self._mixed(ids, probabilities, columns), len(self))

    @torch.no_grad()
    def draw_shared(self, anchors: Float[Tensor, "anchors d"], targets: Int[Tensor, " anchors"], k: int) -> Draw:
        r"""Draws K - 1 negatives once, for all anchors of a batch: as many to encode, whatever the batch.

        The proposal is the mean of the anchors' own, :math:`\bar q_j = \frac1n \sum_i q_{ij}`. Given where the others'
        positives stand, an anchor's is uniform over the other :math:`M - n + 1` places, so the weight is
        :math:`1/((M - n + 1) \bar q_j)`, and 0 (:math:`-\infty`) at the positives of others.

        Arguments:
            anchors: as in `draw`.
            targets: as in `draw`, all different.
            k: as in `draw`.

        Returns:
            As `draw`; the columns but the first are the same for all anchors.

        Raises:
            InputError: as `draw`, for two anchors with one positive, and for a pool of more than 2^24 whatever `top`.
        """
        self._check_places(len(self), "use draw with a top")
        ids, probabilities = self._tops(anchors, targets, k)
        n, places = len(targets), len(self) - len(targets) + 1
        if len(torch.unique(targets)) < n:
            raise InputError(f"{_NAME}: two anchors have the same positive, expected one place in the pool for each")
        mean = torch.full((len(self),), self.uniform / len(self), dtype=torch.float64, device=ids.device)
        share = (1 - self.uniform) / n
        mean.index_add_(0, ids.flatten(), (share * probabilities.double()).flatten())
        drawn = torch.multinomial(mean, k - 1, replacement=True).expand(n, -1)
        columns = torch.cat([targets[:, None], drawn], 1)
        log_weights = (-math.log(places) - mean.log())[columns].to(self.pool.dtype)
        foreign = torch.isin(drawn, targets) & (drawn != targets[:, None])
        log_weights[:, 1:].masked_fill_(foreign, -torch.inf)
        return Draw(columns, log_weights, places)

    @torch.no_grad()
    def log_probabilities(
        self, anchors: Float[Tensor, "anchors d"], columns: Int[Tensor, "anchors k"]
    ) -> Float[Tensor, "anchors k"]:
        r"""Computes :math:`\log q_{ij}` of some candidates.

        Arguments:
            anchors: as in `draw`.
            columns: rows of the pool, for each anchor.

        Raises:
            InputError: for shapes that do not fit, and columns that are no rows of the pool.
        """
        if anchors.ndim != 2 or anchors.shape[1] != self.pool.shape[1] or columns.shape[:1] != anchors.shape[:1]:
            raise InputError(
                f"{_NAME}: anchors have shape {tuple(anchors.shape)} and columns {tuple(columns.shape)}, "
                f"expected [n, {self.pool.shape[1]}] and [n, k]"
            )
        self._check_rows("columns", columns)
        return self._mixed(*self._proposed(as_float32(anchors)), columns)

    def _check_rows(self, what: str, rows: Tensor) -> None:
        """Refuses what does not number rows of the pool."""
        if rows.dtype == torch.bool or rows.is_floating_point() or rows.is_complex():
            raise InputError(f"{_NAME}: {what} have dtype {rows.dtype}, expected an integer dtype")
        if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < len(self)):
            raise InputError(
                f"{_NAME}: {what} lie in [{int(rows.min())}, {int(rows.max())}], expected [0, {len(self) - 1}]"
            )

    def _check_places(self, places: int, instead: str) -> None:
        if places > _MOST:
            raise InputError(
                f"{_NAME}: {places:,} places to draw from, expected at most {_MOST:,}, which torch.multinomial takes: "
                f"{instead}"
            )

    def _tops(self, anchors: Tensor, targets: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if anchors.ndim != 2 or anchors.shape[1] != self.pool.shape[1] or targets.shape != anchors.shape[:1]:
            raise InputError(
                f"{_NAME}: anchors have shape {tuple(anchors.shape)} and targets {tuple(targets.shape)}, "
                f"expected [n, {self.pool.shape[1]}] and [n]"
            )
        if not isinstance(k, int) or isinstance(k, bool) or k < 2:
            raise InputError(f"{_NAME}: k is {k}, expected at least 2, the positive and one negative")
        self._check_rows("targets", targets)
        if not bool(torch.isfinite(anchors).all()):
            raise InputError(f"{_NAME}: an anchor holds NaN or an infinite value, expected finite anchors")
        return self._proposed(as_float32(anchors.detach()))

    def _proposed(self, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """The proposed rows of each anchor, in ascending order, and their softmax."""
        if self.top is None:
            x, y = (unit_rows(z) if self.metric == "cosine" else z for z in (anchors, self.pool))
            scores = similarity(x, y, self.metric)  # of a distance all but the anchor's square, which softmax ignores
            return torch.arange(len(y), device=y.device).expand_as(scores), torch.softmax(scores / self.temperature, 1)
        ranking = search(anchors, self.pool, self.top, metric=self.metric)
        ids, order = ranking.ids.sort(1)
        return ids, torch.softmax(ranking.scores.gather(1, order) / self.temperature, 1)

    def _mixed(self, ids: Tensor, probabilities: Tensor, columns: Tensor) -> Tensor:
        place = torch.searchsorted(ids.contiguous(), columns.contiguous()).clamp_max(ids.shape[1] - 1)
        proposed = torch.where(ids.gather(1, place) == columns, probabilities.gather(1, place), 0.0)
        return ((1 - self.uniform) * proposed + self.uniform / len(self)).log()
