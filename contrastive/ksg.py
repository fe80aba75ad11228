"""The nearest-neighbour estimate of mutual information: no critic, no training, the reference in low dimensions."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["as_pairs", "ksg"]

# Relative to the scale of a column: less than any digit that counts, enough to part equal values.
_JITTER = 1e-10
# Of a distance, relative: between it and the next one that jitter tells apart.
_ROUNDING = 1e-12
# Rows whose distances to all others are held at once.
_ROWS = 512


def ksg(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    *,
    neighbours: int = 10,
    standardise: bool = True,
    seed: int = 0,
) -> float:
    r"""Estimates mutual information by the distances of nearest neighbours (Kraskov, Stögbauer and Grassberger).

    .. math::
        \hat I_{KSG} = \psi(k) + \psi(n) - \operatorname{mean}_i \bigl(\psi(n^x_i + 1) + \psi(n^y_i + 1)\bigr)

    with :math:`n^x_i` the number of other points nearer to i in x than its k-th neighbour is in :math:`(x, y)`, where
    the distance is the larger of the Euclidean ones in x and in y. Not a bound. Good in a few dimensions; it reads far
    too little where dimension and information are high (2.4 of 10 nats of 20 correlated pairs, from 3,000 points). Time
    grows with n squared but for a single x and a single y.

    Arguments:
        x: one row a point, continuous.
        y: likewise.
        neighbours: k.
        standardise: whether every column is scaled to unit deviation first; it changes no information.
        seed: of the jitter (1e-10 of the scale) that parts ties.

    Returns:
        The estimate in nats, which may be below 0.

    Raises:
        ValueError: for x and y of different lengths, values that are not finite, and neighbours outside [1, n - 1].

    Example:
        >>> x = torch.randn(1000)
        >>> ksg(x, x + torch.randn(1000)) > 0.2  # 0.35
        True

    References:
        | Estimating Mutual Information (Kraskov et al., 2004)
        | https://arxiv.org/abs/cond-mat/0305641
    """
    from sklearn.neighbors import KDTree

    a, b = (z.double().cpu() for z in as_pairs("ksg", x, y))
    n = len(a)
    if not 1 <= neighbours < n:
        raise ValueError(f"ksg: neighbours is {neighbours}, expected 1 to {n - 1} of {n} points")
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for z in (a, b):
        scale = z.std(0)
        scale = torch.where(scale > 0, scale, 1.0)
        z = (z - z.mean(0)) / scale if standardise else z
        noise = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        columns.append((z + _JITTER * (noise if standardise else noise * scale)).numpy())
    if a.shape[1] == b.shape[1] == 1:
        both = np.concatenate(columns, 1)
        distances = KDTree(both, metric="chebyshev").query(both, k=neighbours + 1)[0][:, -1]
    else:
        distances = _by_blocks(torch.from_numpy(columns[0]), torch.from_numpy(columns[1]), neighbours).numpy()
    # Strictly nearer than the k-th neighbour; the point itself is counted, which is the formula's + 1.
    radius = distances * (1 - _ROUNDING)
    counts = [KDTree(z).query_radius(z, radius, count_only=True) for z in columns]
    psi = [torch.digamma(torch.as_tensor(count, dtype=torch.float64)).mean() for count in counts]
    first = torch.digamma(torch.tensor([neighbours, n], dtype=torch.float64)).sum()
    return float(first - psi[0] - psi[1])


def _by_blocks(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], neighbours: int) -> Float[Tensor, " n"]:
    """The distance of every point to its k-th neighbour, the larger of those in x and in y."""
    exact = "donot_use_mm_for_euclid_dist"
    found = []
    for rows in torch.split(torch.arange(len(x)), _ROWS):
        far = torch.maximum(torch.cdist(x[rows], x, compute_mode=exact), torch.cdist(y[rows], y, compute_mode=exact))
        found.append(far.kthvalue(neighbours + 1, dim=1).values)  # the nearest is the point itself
    return torch.cat(found)


def as_pairs(
    function: str,
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n e"]]:
    """Pairs as two matrices, whatever they came as: the check of what is estimated from samples.

    Arguments:
        function: name of the caller, for the message.
        x: numbers of any kind, one row a point; further dimensions are flattened.
        y: likewise.

    Returns:
        Both in at least float32, integers in float64.

    Raises:
        ValueError: names `function`, what it got and what it expected.
    """
    found = []
    for name, given in (("x", x), ("y", y)):
        z = torch.as_tensor(given).detach()
        if not z.ndim or z.is_complex() or not z.numel():
            raise ValueError(
                f"{function}: {name} has shape {tuple(z.shape)} and dtype {z.dtype}, expected rows of numbers"
            )
        z = z.reshape(len(z), -1)
        # Large integers need a double's digits; halves do not.
        z = z.float() if z.dtype in (torch.float16, torch.bfloat16) else z if z.is_floating_point() else z.double()
        if not bool(torch.isfinite(z).all()):
            row = int((~torch.isfinite(z)).any(1).nonzero()[0])
            raise ValueError(f"{function}: row {row} of {name} holds a value that is not finite")
        found.append(z)
    if len(found[0]) != len(found[1]):
        raise ValueError(f"{function}: x has {len(found[0])} rows and y {len(found[1])}, expected pairs")
    return found[0], found[1]
