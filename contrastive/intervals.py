"""How far a mean over queries may be off: bootstrap intervals."""

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

__all__ = ["bootstrap_interval"]

RESAMPLES = 1000


def bootstrap_interval(
    values: Float64[Tensor, "queries metrics"],
    *,
    groups: Int64[Tensor, " queries"] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float64[Tensor, "metrics 2"]:
    """The 95 % percentile bootstrap interval of each column's mean; the columns share their resamples.

    Queries of one class fail together. Over queries the interval says how far another draw of queries of these classes
    would move the mean; over classes, how far other classes would.

    Arguments:
        values: one row a query.
        groups: the class of each query: whole classes are drawn. None: queries are.
        resamples: how many times they are drawn anew, with replacement.
        seed: of a generator of its own.

    Returns:
        The 2.5 % and the 97.5 % quantile of the resampled means.

    Example:
        >>> values = torch.tensor([[0.0], [0.0], [1.0], [1.0]], dtype=torch.float64)
        >>> bootstrap_interval(values, groups=torch.tensor([0, 0, 1, 1])).tolist()
        [[0.0, 1.0]]

    References:
        | An Introduction to the Bootstrap (Efron and Tibshirani, 1993)
        | https://doi.org/10.1201/9780429246593
    """
    sizes = torch.ones(len(values), 1, dtype=torch.float64)
    if groups is not None:
        member = torch.from_numpy(np.unique(groups.numpy(), return_inverse=True)[1])
        sizes = torch.bincount(member).double()[:, None]
        values = values.new_zeros(len(sizes), values.shape[1]).index_add_(0, member, values)
    rows, columns = len(values), torch.cat([values, sizes], 1)
    generator = np.random.default_rng(seed)
    means = []
    times = np.empty((min(resamples, max(1, 2**20 // rows)), rows))
    for first in range(0, resamples, len(times)):
        some = times[: resamples - first]
        # How often each row is drawn, one resample at a time: the counts stay in the cache.
        for counts in some:
            counts[:] = np.bincount(generator.integers(0, rows, rows), minlength=rows)
        sums = torch.from_numpy(some) @ columns
        means.append(sums[:, :-1] / sums[:, -1:])
    return torch.quantile(torch.cat(means), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0).T
