r"""How embeddings lie on the sphere, alignment and uniformity; how an encoder bends its space, Jacobians.

>>> import torch
>>> corners = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
>>> alignment(corners, corners)
0.0
>>> round(uniformity(corners), 3)
-4.396
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.errors import InputError
from contrastive.retrieval import Rows, as_pair, as_rows, similarity, unit_rows

__all__ = ["alignment", "jacobian_condition_numbers", "spread", "uniformity"]

SIDE = 1024


def alignment(x: Rows, y: Rows, *, alpha: float = 2.0) -> float:
    r"""Computes the alignment of pairs: how far apart the two views of a thing lie.

    .. math::
        \frac1n \sum_i \lVert \bar x_i - \bar y_i \rVert^\alpha, \qquad \bar x = x / \lVert x \rVert

    Arguments:
        x: shape [pairs, dim]. A zero vector stays at the origin.
        y: shape [pairs, dim]: row i is the positive of row i of `x`.
        alpha: the exponent, positive.

    Returns:
        A number in :math:`[0, 2^\alpha]`, smaller is better: 0 where each pair points the same way.

    Raises:
        InputError: for shapes or dtypes that do not fit, NaN or infinite values, alpha not positive.

    Example:
        >>> alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))
        2.0

    References:
        | Understanding Contrastive Representation Learning through Alignment and Uniformity on the
          Hypersphere (Wang and Isola, 2020)
        | https://arxiv.org/abs/2005.10242
    """
    x, y = as_pair("alignment", x, y, ("x", "y"))
    if len(x) != len(y):
        raise InputError(f"alignment: x has shape {tuple(x.shape)} and y {tuple(y.shape)}, expected as many rows")
    if not 0 < alpha < float("inf"):
        raise InputError(f"alignment: alpha is {alpha}, expected a positive number")
    # The difference, not 2 - 2 cos: that loses all digits where the pairs nearly agree.
    squared = (unit_rows(x) - unit_rows(y)).double().square().sum(1)
    return float(squared.pow(alpha / 2).mean())


def spread(x: Rows) -> float:
    r"""Computes how far directions lie from their mean: 0 where an encoder has collapsed to one direction.

    .. math::
        \frac1n \sum_i \Bigl\lVert \bar x_i - \frac1n \sum_j \bar x_j \Bigr\rVert^2, \qquad \bar x = x / \lVert x \rVert

    Arguments:
        x: shape [n, dim], at least one row. A zero vector stays at the origin.

    Returns:
        A number in [0, 1].

    Raises:
        InputError: for shapes or dtypes that do not fit, NaN or infinite values, no rows.

    Example:
        >>> spread(torch.tensor([[1.0, 0.0], [0.0, 2.0]])), spread(torch.ones(3, 2))
        (0.5, 0.0)
    """
    directions = unit_rows(as_rows("spread", "x", x)).double()
    return float((directions - directions.mean(0)).square().sum(1).mean())


def uniformity(x: Rows, *, t: float = 2.0) -> float:
    r"""Computes uniformity: the log of the mean Gaussian potential over pairs of different rows.

    .. math::
        \log \frac{1}{n (n - 1)} \sum_{i \ne j} e^{-t \lVert \bar x_i - \bar x_j \rVert^2}, \qquad
        \bar x = x / \lVert x \rVert

    Summed in log space and block by block: the matrix of all pairs never exists.

    Arguments:
        x: shape [rows, dim], at least two rows. A zero vector stays at the origin.
        t: the sharpness of the potential, positive.

    Returns:
        A number in :math:`[-4t, 0]`, smaller is better: 0 where all rows point the same way.

    Raises:
        InputError: for a shape or dtype that does not fit, NaN or infinite values, t not positive.

    Example:
        >>> uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]]))
        -8.0

    References:
        | Understanding Contrastive Representation Learning through Alignment and Uniformity on the
          Hypersphere (Wang and Isola, 2020)
        | https://arxiv.org/abs/2005.10242
    """
    x = unit_rows(as_rows("uniformity", "x", x))
    rows = len(x)
    if rows < 2:
        raise InputError(f"uniformity: x has shape {tuple(x.shape)}, expected at least 2 rows")
    if not 0 < t < float("inf"):
        raise InputError(f"uniformity: t is {t}, expected a positive number")
    length = x.square().sum(1)
    blocks = []
    for first in range(0, rows, SIDE):
        a = slice(first, first + SIDE)
        for second in range(first, rows, SIDE):  # pairs i < j: the others are equal
            b = slice(second, second + SIDE)
            distance = (length[a, None] + length[b] - 2.0 * similarity(x[a], x[b], "inner_product")).clamp_min(0.0)
            if first == second:
                distance = distance.masked_fill(torch.ones_like(distance, dtype=torch.bool).tril(), torch.inf)
            blocks.append(torch.logsumexp((-t * distance).flatten(), 0).double())
    pairs = torch.tensor(rows * (rows - 1) / 2, dtype=torch.float64, device=x.device)
    return float(torch.logsumexp(torch.stack(blocks), 0) - pairs.log())


def jacobian_condition_numbers(
    encoder: Callable[[Tensor], Tensor], x: Float[Tensor, "n dim"], *, chunk: int = 32
) -> Float[Tensor, " n"]:
    r"""Computes the condition number of the encoder's Jacobian at every row.

    .. math::
        \kappa(x) = \sigma_{\max} / \sigma_{\min} \text{ of } \partial g(x) / \partial x

    An encoder with a large one is invertible on paper and loses directions to rounding all the same.

    Arguments:
        encoder: rows ``[n, dim]`` to features ``[n, out]``, each row by itself (no batch norm in training mode).
        x: where, finite.
        chunk: rows at a time: memory is ``chunk * dim * out`` numbers.

    Returns:
        Numbers of at least 1, float64; infinity where the smallest singular value is 0.

    Raises:
        ValueError: for rows that are no matrix, and fewer than one at a time.

    Example:
        >>> stretch = torch.diag(torch.tensor([4.0, 2.0]))
        >>> jacobian_condition_numbers(lambda x: x @ stretch, torch.zeros(3, 2))
        tensor([2., 2., 2.], dtype=torch.float64)

    References:
        | On Mutual Information Maximization for Representation Learning (Tschannen et al., 2020)
        | https://arxiv.org/abs/1907.13625
    """
    if x.ndim != 2:
        raise ValueError(f"jacobian_condition_numbers: x has shape {tuple(x.shape)}, expected [n, dim]")
    if chunk < 1:
        raise ValueError(f"jacobian_condition_numbers: chunk is {chunk}, expected at least 1")

    def of_row(row: Tensor) -> Tensor:
        return encoder(row[None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(of_row))
    with torch.no_grad():
        # Singular values in float64: the smallest of an ill-conditioned map are below float32's rounding.
        values = [torch.linalg.svdvals(jacobian(part).double()) for part in torch.split(x, chunk)]
    # A Jacobian of zeros has the ratio 0 / 0.
    return torch.cat([(s[:, 0] / s[:, -1]).masked_fill(s[:, -1] == 0, torch.inf) for s in values])
