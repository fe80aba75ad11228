"""What estimators are functions of, made from pairs: scores, baselines, log-ratios, conditionals; trained together.

Each is a module ``(x, y) -> arguments`` of a batch of pairs, in the order in which an `Estimator` takes them.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive.critics import Concat, Separable
from contrastive.lists import list_scores

__all__ = [
    "Arguments",
    "Conditional",
    "GaussianConditional",
    "OwnConditional",
    "OwnConditionalAndNormal",
    "Pairs",
    "Scores",
    "ScoresAndBaseline",
    "ScoresAndLogRatio",
    "default_critic",
]

HIDDEN = 256


class Scores(nn.Module):
    """Creates the scores alone.

    Arguments:
        critic: ``(x [n, dx], y [n, dy]) -> [n, n]``; None means `default_critic`.
        dim_x: width of x.
        dim_y: width of y.
    """

    def __init__(self, critic: nn.Module | None, dim_x: int, dim_y: int) -> None:
        super().__init__()
        self.critic = default_critic(dim_x, dim_y) if critic is None else critic

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """The matrix of scores."""
        return (self.critic(x, y),)


class ScoresAndBaseline(nn.Module):
    """Creates scores and a log-baseline of every candidate, a perceptron.

    Arguments:
        critic: as in `Scores`.
        dim_x: width of x.
        dim_y: width of y.
        hidden: units of the baseline's two layers.
    """

    def __init__(self, critic: nn.Module | None, dim_x: int, dim_y: int, *, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.critic = default_critic(dim_x, dim_y) if critic is None else critic
        self.log_baseline = _perceptron(dim_y, hidden, 1)

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """The matrix of scores, and one number a candidate."""
        return self.critic(x, y), self.log_baseline(y).squeeze(1)


class ScoresAndLogRatio(nn.Module):
    """Creates scores and a second critic, of the pairs alone.

    Arguments:
        critic: as in `Scores`.
        dim_x: width of x.
        dim_y: width of y.
        hidden: units of the second critic's two layers.
    """

    def __init__(self, critic: nn.Module | None, dim_x: int, dim_y: int, *, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.critic = default_critic(dim_x, dim_y) if critic is None else critic
        self.log_ratio = Concat(dim_x, dim_y, hidden=hidden, layers=2)

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """The matrix of scores, and one number a pair."""
        own = torch.arange(len(x), device=x.device)[:, None]
        return self.critic(x, y), list_scores(self.log_ratio, x, y, own).squeeze(1)


class GaussianConditional(nn.Module):
    r"""Creates a model of y given x: a Gaussian whose means and variances are perceptrons of x.

    .. math::
        \log q(y_j | x_i) = -\tfrac12 \sum_k \Bigl(\frac{(y_{jk} - \mu_k(x_i))^2}{v_k(x_i)} + \log 2 \pi v_k(x_i)\Bigr)

    Arguments:
        dim_x: width of x.
        dim_y: width of y.
        hidden: units of a layer, of two.

    Example:
        >>> GaussianConditional(3, 2)(torch.zeros(4, 3), torch.zeros(5, 2)).shape
        torch.Size([4, 5])
    """

    def __init__(self, dim_x: int, dim_y: int, *, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.body = _perceptron(dim_x, hidden, 2 * dim_y)

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "m dy"]) -> Float[Tensor, "n m"]:
        """The log-density of every y given every x."""
        mean, log_variance = (z[:, None] for z in self.body(x).chunk(2, dim=1))
        return self._log_density(y, mean, log_variance)

    def own(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> Float[Tensor, " n"]:
        """The log-density of every y given its own x."""
        return self._log_density(y, *self.body(x).chunk(2, dim=1))

    @staticmethod
    def _log_density(y: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        squares = (y - mean).square() * torch.exp(-log_variance)
        return -(squares + log_variance + math.log(2 * math.pi)).sum(-1) / 2


class Conditional(nn.Module):
    """Creates the log-density of every y given every x, by a learnt `GaussianConditional`.

    Arguments:
        critic: another model of it, ``(x [n, dx], y [n, dy]) -> [n, n]``.
        dim_x: width of x.
        dim_y: width of y.
    """

    def __init__(self, critic: nn.Module | None, dim_x: int, dim_y: int) -> None:
        super().__init__()
        self.conditional = GaussianConditional(dim_x, dim_y) if critic is None else critic

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """The matrix of log-densities."""
        return (self.conditional(x, y),)


class OwnConditional(Conditional):
    """Creates the same of the pairs alone."""

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """The log-density of every y given its own x."""
        if isinstance(self.conditional, GaussianConditional):
            return (self.conditional.own(x, y),)
        return (self.conditional(x, y).diagonal(),)


class OwnConditionalAndNormal(OwnConditional):
    """Creates the same beside a model of y alone that knows nothing: the standard normal."""

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """The log-density of every y given its own x, and that of the normal."""
        return (*super().forward(x, y), -(y.square() + math.log(2 * math.pi)).sum(1) / 2)


class Pairs(nn.Module):
    """Creates the pairs themselves, for an estimator without a critic.

    Arguments:
        critic: None.
        dim_x: width of x.
        dim_y: width of y.

    Raises:
        ValueError: for a critic.
    """

    def __init__(self, critic: nn.Module | None, dim_x: int, dim_y: int) -> None:
        super().__init__()
        if critic is not None:
            raise ValueError(f"Pairs: critic is {critic!r}, expected None: the estimator reads the pairs themselves")

    def forward(self, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"]) -> tuple[Tensor, ...]:
        """Both as they are."""
        return x, y


Arguments = Callable[[nn.Module | None, int, int], nn.Module]


def default_critic(dim_x: int, dim_y: int) -> Separable:
    """Creates the critic of Poole et al.'s experiments: separable, two layers of 256, 32 wide.

    Arguments:
        dim_x: width of x.
        dim_y: width of y.
    """
    return Separable(dim_x, dim_y, hidden=HIDDEN, out=32, layers=2)


def _perceptron(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out)
    )
