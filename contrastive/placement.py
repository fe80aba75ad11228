r"""Where relevant items stand in the whole gallery: counted, for which nothing has to be ranked.

Average precision and reciprocal rank look at relevant items alone. How many items score higher than one of these is
read off the sorted scores of the query, and sorting numbers is far cheaper than ranking items.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from contrastive.metrics import chance_of_none
from contrastive.ranking import ascending

__all__ = ["Placement"]

# Entries of a block of ranks within groups of equal score.
_RANKS = 2**22


@dataclass(frozen=True)
class Placement:
    """The places of each query's relevant items, the best first; a group is what scores the same.

    Arguments:
        counted: whether there is such an item: queries have not equally many.
        before: how many items score higher.
        size: items in its group.
        hits_before: relevant items that score higher.
        hits: relevant items in its group.
    """

    counted: Bool[Tensor, "queries most"]
    before: Int64[Tensor, "queries most"]
    size: Int64[Tensor, "queries most"]
    hits_before: Int64[Tensor, "queries most"]
    hits: Int64[Tensor, "queries most"]

    @classmethod
    def of(
        cls,
        scores: Float[Tensor, "queries items"],
        queries: Int64[Tensor, " pairs"],
        items: Int64[Tensor, " pairs"],
    ) -> "Placement":
        r"""Counts.

        Arguments:
            scores: of all items; :math:`-\infty` is no item.
            queries: the row of each pair of a query and a relevant item, not decreasing; at least one a row.
            items: its column.
        """
        relevant = queries.bincount(minlength=len(scores))
        first = relevant.cumsum(0) - relevant
        # Negated, so that the best come first and what is missing last.
        values = scores.new_full((len(scores), int(relevant.max())), torch.inf)
        values[queries, torch.arange(len(queries), device=queries.device) - first[queries]] = -scores[queries, items]
        values = values.sort(1).values
        negated = ascending(scores.neg())
        before, upto = (torch.searchsorted(negated, values, right=right) for right in (False, True))
        hits_before, hits_upto = (torch.searchsorted(values, values, right=right) for right in (False, True))
        return cls(values < torch.inf, before, upto - before, hits_before, hits_upto - hits_before)

    def average_precision(self) -> Float32[Tensor, " queries"]:
        r"""The mean, over relevant items, of the precision at their rank; among equal scores over all orders.

        An item of a group of t, h of them relevant, a items and H relevant ones above it, stands at each place m with
        chance 1/t, and then :math:`H + 1 + (m - 1)(h - 1)/(t - 1)` of a + m are relevant. Summed over m with harmonic
        numbers.
        """
        a, size, above, hits = (x.double() for x in (self.before, self.size, self.hits_before, self.hits))
        others = (hits - 1) / (size - 1).clamp_min(1.0)
        harmonic = torch.where(self.size == 1, 1 / (a + 1), torch.digamma(a + size + 1) - torch.digamma(a + 1))
        precision = ((above + 1 - others * (a + 1)) * harmonic + size * others) / size.clamp_min(1.0)
        return (torch.where(self.counted, precision, 0.0).sum(1) / self.counted.sum(1)).float()

    def reciprocal_rank(self) -> Float32[Tensor, " queries"]:
        """One over the rank of the first relevant item; among equal scores the mean over all orders."""
        before, size, hits = (x[:, 0] for x in (self.before, self.size, self.hits))
        found = 1 / (before + 1).double()
        mixed = (size > hits).nonzero().squeeze(1)
        ranks = torch.arange(1, int(size.max()) + 1, device=size.device)
        for rows in torch.split(mixed, max(1, _RANKS // len(ranks))):
            t, h, a = (x[rows, None] for x in (size, hits, before))
            place = ranks.expand(len(rows), -1)
            first = chance_of_none(t, h, place - 1) * h / (t - place + 1).clamp_min(1).double()
            found[rows] = (first / (a + place).double()).sum(1)
        return found.float()

    def tied(self) -> Bool[Tensor, " queries"]:
        """Whether a relevant item scores as another item does."""
        return (self.counted & (self.size > 1)).any(1)
