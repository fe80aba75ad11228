r"""Critics: modules that score every anchor against every candidate, ``(x [N, d], y [M, d']) -> [N, M]``.

In order of capacity: parameter-less (`InnerProduct`, `Cosine`, `NegativeSquaredDistance`), `Bilinear`,
`Separable` (a product of two towers), `Concat` (a network of the pair; it does not factorise).
Tschannen et al. (2020) find the bound tighter and the representation worse as the capacity grows.

Scores come out in at least float32, also under autocast: a log-sum of bfloat16 logits keeps two digits.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive import _handwritten
from contrastive._handwritten import writable
from contrastive.factors import Factors, product
from contrastive.scores import as_float32, checked_temperature

__all__ = [
    "Bilinear",
    "Concat",
    "Cosine",
    "InnerProduct",
    "NegativeSquaredDistance",
    "Separable",
    "score_penalty",
    "soft_clip",
]


class InnerProduct(nn.Module):
    r"""Creates the parameter-less inner-product critic, :math:`s_{ij} = x_i^\top y_j / \tau`.

    With a shared encoder this is the critic of Sohn's (2016) multi-class N-pair loss.

    Arguments:
        temperature: :math:`\tau > 0`.

    Raises:
        ValueError: for a temperature that is not a finite number of at least 1e-6.

    Example:
        >>> InnerProduct()(torch.eye(2), torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = checked_temperature("InnerProduct", temperature)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Scores every row of `x` against every row of `y`."""
        return self.factors(x, y).scores()

    def factors(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Factors:
        """The rows as they are."""
        _check_pair("InnerProduct", x, y)
        return Factors(*_both_as_float32(x, y), scale=1 / self.temperature)

    def extra_repr(self) -> str:  # noqa: D102
        return f"temperature={self.temperature}"


class Cosine(nn.Module):
    r"""Creates the cosine critic, :math:`s_{ij} = \cos(x_i, y_j) / \tau`.

    A zero vector has no direction: its scores are 0 and so is its gradient.

    Arguments:
        temperature: :math:`\tau > 0`; scores lie in :math:`[-1/\tau, 1/\tau]`.
        learnable: whether :math:`\log \tau` is a parameter, as in CLIP (Radford et al., 2021).

    Raises:
        ValueError: for a temperature that is not a finite number of at least 1e-6.

    Example:
        >>> Cosine(temperature=0.5)(torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        tensor([[2., 0.]])

    References:
        | A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)
        | https://arxiv.org/abs/2002.05709
    """

    def __init__(self, temperature: float = 0.1, *, learnable: bool = False) -> None:
        super().__init__()
        log_temperature = torch.tensor(math.log(checked_temperature("Cosine", temperature)))
        self.log_temperature: Tensor
        if learnable:
            self.log_temperature = nn.Parameter(log_temperature)
        else:
            self._temperature = float(temperature)
        self.learnable = learnable

    @property
    def temperature(self) -> Tensor | float:
        r"""The current :math:`\tau`."""
        return as_float32(self.log_temperature).exp() if self.learnable else self._temperature

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Scores every row of `x` against every row of `y`."""
        return self.factors(x, y).scores()

    def factors(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Factors:
        """The rows, to be scaled to unit length."""
        _check_pair("Cosine", x, y)
        return Factors(*_both_as_float32(x, y), scale=1 / self.temperature, unit=True)

    def extra_repr(self) -> str:  # noqa: D102
        return f"temperature={float(torch.as_tensor(self.temperature).detach()):.4g}, learnable={self.learnable}"


class NegativeSquaredDistance(nn.Module):
    r"""Creates the critic :math:`s_{ij} = -\lVert x_i - y_j \rVert^2 / \tau`, the score of triplet losses.

    Arguments:
        temperature: :math:`\tau > 0`.

    Raises:
        ValueError: for a temperature that is not a finite number of at least 1e-6.

    Example:
        >>> NegativeSquaredDistance()(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[-25.]])
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = checked_temperature("NegativeSquaredDistance", temperature)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        """Scores every row of `x` against every row of `y`."""
        return self.factors(x, y).scores().clamp_max(0.0)

    def factors(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Factors:
        r"""Two more columns for the squares, :math:`[x, |x|^2, 1]^\top [2y, -1, -|y|^2]`.

        Rows are taken relative to the mean candidate: the difference of squares far from the origin keeps no digits.
        """
        _check_pair("NegativeSquaredDistance", x, y)
        x, y = as_float32(x), as_float32(y)
        if len(y):
            centre = y.detach().mean(0)
            x, y = x - centre, y - centre
        one = torch.ones_like
        x_square, y_square = x.square().sum(1, keepdim=True), y.square().sum(1, keepdim=True)
        return Factors(
            torch.cat([x, x_square, one(x_square)], 1),
            torch.cat([2 * y, -one(y_square), -y_square], 1),
            scale=1 / self.temperature,
        )

    def extra_repr(self) -> str:  # noqa: D102
        return f"temperature={self.temperature}"


class Bilinear(nn.Module):
    r"""Creates the bilinear critic, :math:`s_{ij} = x_i^\top W y_j`.

    Arguments:
        dim_x: width d of the anchors.
        dim_y: width d' of the candidates; None means `dim_x`.

    Example:
        >>> Bilinear(4, 3)(torch.zeros(2, 4), torch.zeros(5, 3)).shape
        torch.Size([2, 5])

    References:
        | Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018)
        | https://arxiv.org/abs/1807.03748
    """

    def __init__(self, dim_x: int, dim_y: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim_x, dim_y or dim_x))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
        """Scores every row of `x` against every row of `y`."""
        return self.factors(x, y).scores()

    def factors(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> Factors:
        r""":math:`x^\top W` and the candidates."""
        _check_widths("Bilinear", x, y, *self.weight.shape)
        return Factors(product(x, self.weight.T), as_float32(y))


class Separable(nn.Module):
    r"""Creates the separable critic, :math:`s_{ij} = \phi(x_i)^\top \psi(y_j)` with two MLPs.

    Arguments:
        dim_x: width d of the anchors.
        dim_y: width d' of the candidates; None means `dim_x`.
        hidden: units of a hidden layer.
        out: width of :math:`\phi` and :math:`\psi`.
        layers: number of hidden layers (ReLU); 0 makes both towers linear.

    Raises:
        ValueError: for a negative number of layers.

    Example:
        >>> Separable(4, 3, hidden=8, out=2)(torch.zeros(2, 4), torch.zeros(5, 3)).shape
        torch.Size([2, 5])

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """

    def __init__(
        self, dim_x: int, dim_y: int | None = None, *, hidden: int = 100, out: int = 100, layers: int = 1
    ) -> None:
        super().__init__()
        self.tower_x = _tower(dim_x, hidden, out, layers)
        self.tower_y = _tower(dim_y or dim_x, hidden, out, layers)
        self.dims = (dim_x, dim_y or dim_x)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
        """Scores every row of `x` against every row of `y`."""
        return self.factors(x, y).scores()

    def factors(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> Factors:
        """What the two towers make of the rows."""
        _check_widths("Separable", x, y, *self.dims)
        return Factors(as_float32(self.tower_x(x)), as_float32(self.tower_y(y)))


class Concat(nn.Module):
    r"""Creates the concatenated critic, :math:`s_{ij} = \mathrm{MLP}([x_i; y_j])`.

    The first layer is split, :math:`W[x; y] = W_x x + W_y y`: the N·M concatenated inputs never exist.
    Memory is still N·M·`hidden` floats a layer; with one hidden layer, on the CPU, 8·M·`hidden` in all.

    Arguments:
        dim_x: width d of the anchors.
        dim_y: width d' of the candidates; None means `dim_x`.
        hidden: units of a hidden layer.
        layers: number of hidden layers (ReLU), at least 1.

    Raises:
        ValueError: for fewer than one hidden layer.

    Example:
        >>> Concat(4, 3, hidden=8)(torch.zeros(2, 4), torch.zeros(5, 3)).shape
        torch.Size([2, 5])

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """

    def __init__(self, dim_x: int, dim_y: int | None = None, *, hidden: int = 200, layers: int = 1) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"Concat: layers is {layers}, expected at least 1")
        self.first_x = nn.Linear(dim_x, hidden)
        self.first_y = nn.Linear(dim_y or dim_x, hidden, bias=False)
        self.rest = nn.Sequential(nn.ReLU(), *_hidden_layers(hidden, layers - 1), nn.Linear(hidden, 1))
        self.dims = (dim_x, dim_y or dim_x)

    def forward(self, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]) -> Float[Tensor, "n m"]:
        """Scores every row of `x` against every row of `y`."""
        return self.pairs(*self.split(x, y))

    def split(
        self, x: Float[Tensor, "n d"], y: Float[Tensor, "m e"]
    ) -> tuple[Float[Tensor, "n h"], Float[Tensor, "m h"]]:
        """The first layer of the anchors and of the candidates, each by itself."""
        _check_widths("Concat", x, y, *self.dims)
        return self.first_x(x), self.first_y(y)

    def pairs(self, x: Float[Tensor, "n h"], y: Float[Tensor, "*n m h"]) -> Float[Tensor, "n m"]:
        """The other layers of every pair; what the loss calls strip by strip when batches are large.

        `y` holds the candidates of all anchors ``[m, h]``, or those of each ``[n, m, h]``.
        """
        last = self.rest[-1]
        if len(self.rest) == 2 and type(last) is nn.Linear and y.ndim == 2 and _in_strips(x, y):
            inputs = (x, y, last.weight[0])
            return _handwritten.apply(_pairs_value, _pairs_slopes, _pairs_plain, *inputs) + last.bias
        scores: Tensor = self.rest(x[:, None] + y)
        return as_float32(scores.squeeze(2))


# One hidden layer, on the CPU: all pairs' units at once would be written to memory and read back half a dozen times, a
# few anchors' stay in the cache. They are computed again on the way back, which costs less than fetching them.
_ANCHORS = 8


def _in_strips(x: Tensor, y: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == y.dtype and x.dtype in (torch.float32, torch.float64) and writable(x)


def _pairs_plain(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    return (x[:, None] + y).relu() @ weight


def _pairs_value(x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, tuple[()]]:
    scores, units = x.new_empty(len(x), len(y)), x.new_empty(_ANCHORS, *y.shape)
    for i in range(0, len(x), _ANCHORS):
        some = x[i : i + _ANCHORS, None]
        active = torch.add(some, y, out=units[: len(some)]).relu_()
        torch.mv(active.flatten(0, 1), weight, out=scores[i : i + _ANCHORS].view(-1))
    return scores, ()


def _pairs_slopes(upstream: Tensor, inputs: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """All that is needed are sums over j and over i of p_ijk: the slope of score ij where unit k is active, else 0."""
    x, y, weight = inputs
    of_x, of_y, units = torch.empty_like(x), torch.zeros_like(y), x.new_empty(_ANCHORS, *y.shape)
    for i in range(0, len(x), _ANCHORS):
        some, slope = x[i : i + _ANCHORS, None], upstream[i : i + _ANCHORS, :, None]
        p = torch.add(some, y, out=units[: len(some)])
        torch.ops.aten.threshold_backward.grad_input(slope.expand_as(p), p, 0, grad_input=p)
        torch.sum(p, 1, out=of_x[i : i + _ANCHORS])
        of_y += p.sum(0)
    # The units are sums, so their products with p are those of the sums.
    return of_x * weight, of_y * weight, (x * of_x).sum(0) + (y * of_y).sum(0)


def soft_clip(scores: Float[Tensor, "n m"], bound: float) -> Float[Tensor, "n m"]:
    r"""Bounds scores smoothly, :math:`c \tanh(s / c)`: no critic can win by their size alone.

    Arguments:
        scores: an absent candidate (:math:`-\infty`) stays absent.
        bound: c > 0; AMDIM's released runs use 20.

    Raises:
        ValueError: for a bound that is not a positive number.

    Example:
        >>> soft_clip(torch.tensor([[0.1, 100.0, -torch.inf]]), 20.0)
        tensor([[ 0.1000, 19.9982,    -inf]])

    References:
        | Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)
        | https://arxiv.org/abs/1906.00910
    """
    if not 0 < bound < math.inf:
        raise ValueError(f"soft_clip: bound is {bound}, expected a positive number")
    absent = scores == -torch.inf
    return (bound * torch.tanh(scores.masked_fill(absent, 0.0) / bound)).masked_fill(absent, -torch.inf)


def score_penalty(scores: Float[Tensor, "n m"]) -> Float[Tensor, ""]:
    r"""Computes the mean square of the scores that are present, :math:`\operatorname{mean}_{ij} s_{ij}^2`.

    Added to a loss it keeps scores where a `soft_clip` still has a gradient; AMDIM weighs it by 0.05 and takes it of
    the scores before the clip.

    Arguments:
        scores: at least one is present.

    Example:
        >>> score_penalty(torch.tensor([[1.0, 3.0, -torch.inf]]))
        tensor(5.)

    References:
        | Learning Representations by Maximizing Mutual Information Across Views (Bachman et al., 2019)
        | https://arxiv.org/abs/1906.00910
    """
    absent = scores == -torch.inf
    return scores.masked_fill(absent, 0.0).square().sum() / (~absent).sum()


def _both_as_float32(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both raised to float32; one copy where they are one tensor, which tells that the scores are symmetric."""
    raised = as_float32(x)
    return raised, raised if y is x else as_float32(y)


def _tower(dim: int, hidden: int, out: int, layers: int) -> nn.Sequential:
    if layers < 0:
        raise ValueError(f"Separable: layers is {layers}, expected at least 0")
    if layers == 0:
        return nn.Sequential(nn.Linear(dim, out))
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), *_hidden_layers(hidden, layers - 1), nn.Linear(hidden, out))


def _hidden_layers(hidden: int, count: int) -> list[nn.Module]:
    return [module for _ in range(count) for module in (nn.Linear(hidden, hidden), nn.ReLU())]


def _check_widths(critic: str, x: Tensor, y: Tensor, dim_x: int, dim_y: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != dim_x or y.shape[1] != dim_y:
        raise ValueError(
            f"{critic}: got anchors of shape {tuple(x.shape)} and candidates of shape {tuple(y.shape)}, "
            f"expected [N, {dim_x}] and [M, {dim_y}]"
        )


def _check_pair(critic: str, x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{critic}: got anchors of shape {tuple(x.shape)} and candidates of shape {tuple(y.shape)}, "
            "expected [N, d] and [M, d]"
        )
