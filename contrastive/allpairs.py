r"""The hardest negatives of every row of one set, exactly, without its matrix of scores.

>>> rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
>>> AllPairs("example", rows).top(1).ids.flatten()
tensor([1, 0, 3, 2])
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from contrastive import retrieval
from contrastive.errors import InputError
from contrastive.retrieval import Ranking

__all__ = ["AllPairs"]

# Pairs of rows whose score is computed anew at a time (32 MB of each, at 128 numbers a row in float64).
_PAIRS = 2**15


class AllPairs:
    r"""Rows prepared for the search of each one's hardest negatives among the others.

    A pair (i, j) counts if :math:`j \ne i`, their classes differ, and their score is not above the threshold. A score
    is computed in float64 from the two rows alone, once the search has found the pair: no digit depends on blocks,
    threads or the library of products.

    Arguments:
        function: name of the caller, for messages.
        rows: finite, as `contrastive.retrieval.as_rows` returns them.
        metric: as in `contrastive.search`.
        classes: of every row; rows of one class are no negatives of each other.
        threshold: in units of the score: what scores above it is no negative.

    Raises:
        InputError: for an unknown metric, a threshold that is NaN, scores that overflow.
    """

    def __init__(
        self,
        function: str,
        rows: Float[Tensor, "rows dim"],
        *,
        metric: str = "cosine",
        classes: Int64[Tensor, " rows"] | None = None,
        threshold: float | None = None,
    ) -> None:
        if threshold is not None and math.isnan(threshold):
            raise InputError(f"{function}: threshold is {threshold}, expected a score")
        self.function, self.metric, self.threshold = function, metric, threshold
        self.rows, _ = retrieval._prepared(function, rows, rows, metric, rows.dtype)
        self.classes = None if classes is None else classes.to(rows.device)

    def top(self, k: int, first: int = 0, last: int | None = None) -> Ranking:
        r"""Finds the k hardest negatives of some rows.

        Arguments:
            k: how many, from 1 to the number of rows less 1.
            first: the first of these rows.
            last: the one after the last; None: all that follow.

        Returns:
            Ids and float32 scores, hardest first, equal scores by id; -1 and :math:`-\infty` where there are fewer.

        Raises:
            InputError: for a `k` that does not fit.
        """
        if isinstance(k, bool) or not 1 <= k < len(self.rows):
            raise InputError(f"{self.function}: k is {k}, expected 1 to {len(self.rows) - 1}, the other rows")
        parts = [self._ranked(k, *strip) for strip in self._strips(k, first, last)]
        return Ranking(torch.cat([part.ids for part in parts]), torch.cat([part.scores for part in parts]))

    def _strips(self, k: int, first: int, last: int | None) -> Iterator[tuple[int, int]]:
        last = len(self.rows) if last is None else last
        height = max(2, retrieval.BLOCK // max(retrieval.BLOCK_WIDTH, 4 * k))
        for start in range(first, last, height):
            yield start, min(start + height, last)

    def _ranked(self, k: int, first: int, last: int) -> Ranking:
        """By ranking whole blocks of scores."""
        x, own = self.rows[first:last], torch.arange(first, last, device=self.rows.device)
        width = min(len(self.rows), max(retrieval.BLOCK_WIDTH, 4 * k))
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(self.rows), width):
            scores = self._scores(x, start, start + width)
            columns = torch.arange(start, start + scores.shape[1], device=x.device)
            scores.masked_fill_(own[:, None] == columns, -torch.inf)
            if self.classes is not None:
                scores.masked_fill_(self.classes[own][:, None] == self.classes[columns], -torch.inf)
            if self.threshold is not None:
                scores.masked_fill_(scores > self.threshold, -torch.inf)
            values, chosen = retrieval._largest(scores, min(k, scores.shape[1]))
            chosen = chosen + start
            if best is not None:  # both halves are in order, and the earlier ids come first
                values, chosen = torch.cat([best[0], values], 1), torch.cat([best[1], chosen], 1)
                values, order = values.sort(dim=1, descending=True, stable=True)
                values, chosen = values[:, :k], chosen.gather(1, order[:, :k])
            best = values, chosen
        assert best is not None
        present = (best[0] > -torch.inf).flatten()
        row = own.repeat_interleave(k)[present]
        return self.ranking(k, first, last, row, best[1].flatten()[present])

    def _scores(self, x: Tensor, start: int, end: int) -> Tensor:
        scores = retrieval.similarity(x, self.rows[start:end], self.metric)
        return scores - x.square().sum(1, keepdim=True) if self.metric == "euclidean" else scores

    def ranking(
        self, k: int, first: int, last: int, row: Int64[Tensor, " pairs"], column: Int64[Tensor, " pairs"]
    ) -> Ranking:
        r"""The k best of the pairs that were found, by their scores computed anew.

        Arguments:
            k: how many of each row.
            first: the first row.
            last: the one after the last.
            row: of each pair, in no order; no pair twice.
            column: of each pair.

        Returns:
            As `top`.
        """
        scores = self.score(row, column)
        counts = column != row
        if self.classes is not None:
            counts &= self.classes[row] != self.classes[column]
        if self.threshold is not None:
            counts &= scores <= self.threshold
        row, column, scores = row[counts], column[counts], scores[counts]
        # By row, then score, then id: the last key first, each sort keeping the order of the one before.
        order = column.argsort(stable=True)
        order = order[scores[order].argsort(descending=True, stable=True)]
        order = order[row[order].argsort(stable=True)]
        row, column, scores = row[order] - first, column[order], scores[order]
        place = torch.arange(len(row), device=row.device) - _starts(row, last - first)[row]
        kept = place < k
        row, place = row[kept], place[kept]
        ids = torch.full((last - first, k), -1, dtype=torch.int64, device=row.device)
        values = torch.full((last - first, k), -torch.inf, dtype=torch.float32, device=row.device)
        ids[row, place], values[row, place] = column[kept], scores[kept]
        return Ranking(ids, values)

    def score(self, row: Int64[Tensor, " pairs"], column: Int64[Tensor, " pairs"]) -> Float32[Tensor, " pairs"]:
        """The scores of pairs, each from its two rows alone.

        Arguments:
            row: of each pair.
            column: of each pair.
        """
        parts = [self.rows.new_empty(0, dtype=torch.float32)]
        for start in range(0, len(row), _PAIRS):
            x = self.rows[row[start : start + _PAIRS]].double()
            y = self.rows[column[start : start + _PAIRS]].double()
            value = -(x - y).square_().sum(1) if self.metric == "euclidean" else x.mul_(y).sum(1)
            parts.append(value.float() + 0.0)  # no negative zero
        return torch.cat(parts)


def _starts(row: Tensor, rows: int) -> Tensor:
    """Where each row's entries begin in a list that is sorted by row."""
    counts = torch.bincount(row, minlength=rows)
    return counts.cumsum(0) - counts
