"""Pairs whose mutual information and log-ratio are known exactly (Czyz et al., 2023, and the Gaussian schedule)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Chi2


@dataclass(frozen=True)
class Task:
    """A joint law.

    Arguments:
        name: for the table.
        information: I(X;Y) in nats, exact.
        draw: n pairs.
        log_ratio: log p(y|x) - log p(y) of every x against every y; the best critic.
    """

    name: str
    information: float
    draw: Callable[[int], tuple[Tensor, Tensor]]
    log_ratio: Callable[[Tensor, Tensor], Tensor]


def gaussian(information: float, dim: int = 20, *, cubic: bool = False) -> Task:
    """Correlated coordinates, as in Poole et al. (2019); cubic: y cubed, which changes no information."""
    rho = math.sqrt(1 - math.exp(-2 * information / dim))

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, dim)
        y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n, dim)
        return x, y**3 if cubic else y

    def log_ratio(x: Tensor, y: Tensor) -> Tensor:
        y = y.sign() * y.abs() ** (1 / 3) if cubic else y
        inner = rho * x @ y.T - rho**2 / 2 * (x.square().sum(1)[:, None] + y.square().sum(1))
        return information + inner / (1 - rho**2)

    return Task(f"Gaussian, d = {dim}, I = {information:g}{', cubed' if cubic else ''}", information, draw, log_ratio)


def student(dim: int, freedom: int) -> Task:
    """Two halves of one multivariate t with identity dispersion: uncorrelated, and dependent all the same."""
    lg, f, d = math.lgamma, float(freedom), float(dim)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 2 * dim) / (Chi2(torch.tensor(f)).sample((n, 1)) / f).sqrt()
        return z[:, :dim], z[:, dim:]

    constant = lg((f + 2 * d) / 2) + lg(f / 2) - 2 * lg((f + d) / 2)

    def log_ratio(x: Tensor, y: Tensor) -> Tensor:
        a, b = x.square().sum(1)[:, None] / f, y.square().sum(1) / f
        both = torch.log1p(a + b) * (f + 2 * d) / 2
        return constant - both + (torch.log1p(a) + torch.log1p(b)) * (f + d) / 2

    # E log(1 + |z|^2 / f) over k coordinates is psi((f + k) / 2) - psi(f / 2).
    psi = {k: float(torch.digamma(torch.tensor((f + k) / 2, dtype=torch.float64))) for k in (0.0, d, 2 * d)}
    information = constant - (f + 2 * d) / 2 * (psi[2 * d] - psi[0.0]) + (f + d) * (psi[d] - psi[0.0])
    return Task(f"Student, {dim} and {dim}, {freedom} degrees", information, draw, log_ratio)


def additive(noise: float) -> Task:
    """Uniform x on (0, 1), y = x plus uniform noise within +-noise (at most 1/2)."""
    assert noise <= 0.5

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(n, 1)
        return x, x + noise * (2 * torch.rand(n, 1) - 1)

    def log_ratio(x: Tensor, y: Tensor) -> Tensor:
        inside = (y.T - x).abs() <= noise
        density = ((y + noise).clamp_max(1) - (y - noise).clamp_min(0)) / (2 * noise)  # of y
        return torch.where(inside, -math.log(2 * noise) - density.clamp_min(1e-12).log().T, -1e4)

    return Task(f"uniform plus uniform noise {noise:g}", noise - math.log(2 * noise), draw, log_ratio)


TASKS = {
    **{f"gaussian-{i}": gaussian(float(i)) for i in (2, 4, 6, 8, 10)},
    "cubic-6": gaussian(6.0, cubic=True),
    "dense-25": gaussian(1.2922, 25),
    "student-1-1": student(1, 1),
    "student-5-2": student(5, 2),
    "additive-0.1": additive(0.1),
    "additive-0.01": additive(0.01),
}
