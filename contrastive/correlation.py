r"""Canonical correlations: of two sets of columns, linear (Hotelling) or of two networks (Deep CCA).

>>> import torch
>>> x = torch.randn(100, 3, dtype=torch.float64)
>>> canonical_correlations(x, x @ torch.randn(3, 3, dtype=torch.float64))  # the same space
tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.scores import eager_on_cpu

__all__ = ["LinearCCA", "canonical_correlations", "linear_cca", "total_correlation"]

# Of a deviation, relative: if less of a column is left after the others, it is rounding (also where float32 is given).
_DEPENDENT = 1e-6


def canonical_correlations(
    x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"], *, ridge: float = 0.0
) -> Float[Tensor, " k"]:
    r"""Computes the canonical correlations of two matrices, differentiably.

    .. math::
        \text{singular values of } T = L_x^{-1} \Sigma_{xy} L_y^{-\top}, \qquad
        L_x L_x^\top = \Sigma_{xx} + r \mathbb{1}, \quad
        \Sigma_{xy} = \tfrac{1}{n - 1} \sum_i (x_i - \bar x)(y_i - \bar y)^\top

    (Cholesky factors in place of the symmetric roots: T is turned, its singular values are the same.) Correlations are
    no nats. For jointly Gaussian x and y, without ridge, :math:`-\frac12 \sum \log(1 - \rho^2)` is I(X;Y); for others
    it is neither a lower nor an upper bound.

    Arguments:
        x: one row a sample.
        y: likewise, row by row of the same thing.
        ridge: r, in squared units of the columns. It makes correlations smaller, and is needed where columns depend on
            each other or rows are few. n rows or fewer than columns have correlations near 1 whatever they are: with a
            ridge they mean as little, and only a batch of several times the width says something.

    Returns:
        :math:`\min(d_x, d_y)` numbers in [0, 1], the largest first, in float64: whitening loses the digits of float32.

    Raises:
        ValueError: for shapes that do not fit, fewer than 2 rows, a negative ridge, values that are not finite; without
            ridge, for no more rows than columns and for columns that depend on each other.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> canonical_correlations(x, torch.tensor([[1.0], [3.0], [2.0], [4.0]]))
        tensor([0.8000], dtype=torch.float64)

    References:
        | Relations Between Two Sets of Variates (Hotelling, 1936)
        | https://doi.org/10.1093/biomet/28.3-4.321
    """
    return _correlations("canonical_correlations", x, y, ridge)


def total_correlation(
    x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"], *, ridge: float = 1e-3, k: int | None = None
) -> Float[Tensor, ""]:
    r"""Computes the sum of the largest canonical correlations, Deep CCA's objective, to be maximised.

    .. math::
        \sum_{j \le k} \rho_j \qquad (k = \min(d_x, d_y): \text{ the nuclear norm of } T)

    (Information theory means something else by the name.) Its gradient in T is :math:`U_k V_k^\top`, which divides
    by no difference of singular values: equal ones are no trouble.

    Arguments:
        x: as in `canonical_correlations`, of one network.
        y: of the other.
        ridge: as in `canonical_correlations`.
        k: how many correlations; None for all.

    Returns:
        The sum, in float64, at most k. It is no information.

    Raises:
        ValueError: as `canonical_correlations`, and for k outside [1, min(dx, dy)].

    Example:
        >>> x = torch.randn(50, 2)
        >>> total_correlation(x, x, ridge=0.0)
        tensor(2., dtype=torch.float64)

    References:
        | Deep Canonical Correlation Analysis (Andrew et al., 2013)
        | https://proceedings.mlr.press/v28/andrew13.html
    """
    found = _correlations("total_correlation", x, y, ridge)
    return found[: _checked_k("total_correlation", k, len(found))].sum()


@dataclass(frozen=True, eq=False)
class LinearCCA:
    """Fitted projections, the pair of the largest correlation first.

    Arguments:
        mean_x: of the columns.
        mean_y: likewise.
        weights_x: columns to canonical variates, of deviation 1 on the rows they were fitted on (but for the ridge).
        weights_y: likewise.
    """

    mean_x: Float[Tensor, " dx"]
    mean_y: Float[Tensor, " dy"]
    weights_x: Float[Tensor, "dx k"]
    weights_y: Float[Tensor, "dy k"]

    def transform(
        self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]
    ) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Maps rows to canonical variates, in float64.

        Arguments:
            x: rows of any sample.
            y: likewise.
        """
        return (x.double() - self.mean_x) @ self.weights_x, (y.double() - self.mean_y) @ self.weights_y

    def correlations(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> Float[Tensor, " k"]:
        """Computes the correlation of each pair of variates, on rows that need not be those it was fitted on.

        Arguments:
            x: at least 2 rows.
            y: likewise.

        Returns:
            Numbers in [-1, 1], signed: a pair that turns round on other rows counts against the sum. 0 for a variate
            that is constant.
        """
        a, b = (z - z.mean(0) for z in self.transform(x, y))
        scale = torch.linalg.vector_norm(a, dim=0) * torch.linalg.vector_norm(b, dim=0)
        return (a * b).sum(0) / torch.where(scale > 0, scale, 1.0)


@torch.no_grad()
def linear_cca(
    x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"], *, k: int | None = None, ridge: float = 0.0
) -> LinearCCA:
    r"""Fits linear canonical correlation analysis in closed form: the baseline, and what reads a pair of networks.

    .. math::
        A = L_x^{-\top} U, \quad B = L_y^{-\top} V, \qquad T = U S V^\top

    Arguments:
        x: as in `canonical_correlations`.
        y: likewise.
        k: pairs of variates; None for all.
        ridge: as in `canonical_correlations`.

    Returns:
        The fitted projections.

    Raises:
        ValueError: as `total_correlation`.

    Example:
        >>> x = torch.randn(40, 3)
        >>> fitted = linear_cca(x, x[:, :2], k=1)
        >>> fitted.correlations(x, x[:, :2]).round(decimals=12)
        tensor([1.], dtype=torch.float64)
    """
    first, second = _sides("linear_cca", x, y, ridge)
    u, s, v = torch.linalg.svd(_between(first, second), full_matrices=False)
    k = _checked_k("linear_cca", k, len(s))
    return LinearCCA(
        first.mean,
        second.mean,
        torch.linalg.solve_triangular(first.factor.mT, u[:, :k], upper=True),
        torch.linalg.solve_triangular(second.factor.mT, v.mT[:, :k], upper=True),
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """One of the two matrices: its mean, its rows without it, and the Cholesky factor of its covariance."""

    mean: Tensor
    centred: Tensor
    factor: Tensor


def _sides(function: str, x: Tensor, y: Tensor, ridge: float) -> tuple[_Side, _Side]:
    """The one check, and both sides."""
    for name, z in (("x", x), ("y", y)):
        if z.ndim != 2 or not z.is_floating_point() or not z.shape[1]:
            raise ValueError(
                f"{function}: {name} has shape {tuple(z.shape)} and dtype {z.dtype}, expected floating-point [n, d]"
            )
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"{function}: x has {len(x)} rows and y {len(y)}, expected as many, at least 2")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"{function}: ridge is {ridge}, expected a number of at least 0")
    width = max(x.shape[1], y.shape[1])
    if not ridge and len(x) <= width:
        raise ValueError(
            f"{function}: {len(x)} rows of {width} columns have a singular covariance; expected more rows than columns "
            "(several times as many, for correlations that mean anything), or a ridge"
        )
    return _side(function, "x", x, ridge), _side(function, "y", y, ridge)


def _side(function: str, name: str, z: Tensor, ridge: float) -> _Side:
    z = z.double()
    if eager_on_cpu(z) and not bool(torch.isfinite(z).all()):
        raise ValueError(f"{function}: {name} holds a NaN or infinite value")
    mean = z.mean(0)
    centred = z - mean
    covariance = centred.mT @ centred / (len(z) - 1)
    covariance = covariance + ridge * torch.eye(len(mean), dtype=z.dtype, device=z.device)
    # The factor is that of the correlations, scaled: columns of other units are no trouble.
    scale = covariance.detach().diagonal().sqrt()
    if not bool((scale > 0).all()):
        raise ValueError(
            f"{function}: column {int((scale <= 0).nonzero()[0])} of {name} is constant; drop it, or give a ridge"
        )
    factor, failed = torch.linalg.cholesky_ex(covariance / scale / scale[:, None])
    # The diagonal is what is left of a column after those before it: rounding, where it depends on them.
    if bool(failed) or bool((factor.diagonal() < _DEPENDENT).any()):
        raise ValueError(
            f"{function}: columns of {name} depend on each other, their covariance is singular; drop some, or give a "
            f"ridge that is larger than {ridge}"
        )
    return _Side(mean, centred, scale[:, None] * factor)


def _between(x: _Side, y: _Side) -> Tensor:
    """T."""
    covariance = x.centred.mT @ y.centred / (len(x.centred) - 1)
    half: Tensor = torch.linalg.solve_triangular(x.factor, covariance, upper=False)
    whole: Tensor = torch.linalg.solve_triangular(y.factor, half.mT, upper=False)
    return whole.mT


def _correlations(function: str, x: Tensor, y: Tensor, ridge: float) -> Tensor:
    return cast(Tensor, torch.linalg.svdvals(_between(*_sides(function, x, y, ridge))))


def _checked_k(function: str, k: int | None, most: int) -> int:
    if k is not None and not 1 <= k <= most:
        raise ValueError(f"{function}: k is {k}, expected 1 to {most}, the smaller width")
    return most if k is None else k
