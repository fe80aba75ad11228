r"""Pairs whose mutual information and best critic are known exactly: what estimators are measured against.

Gaussian, Student and additive-noise laws in closed form, and what becomes of them when x and y are each bent by an
invertible function, which changes no information and can make it much harder to find. Draws use torch's global
generator.

>>> import torch
>>> task = gaussian(2.0)
>>> x, y = task.draw(64)
>>> task.log_ratio(x, y).shape, task.information
(torch.Size([64, 64]), 2.0)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Chi2

__all__ = [
    "Bend",
    "Task",
    "additive",
    "all_tasks",
    "asinh",
    "bent",
    "bimodal",
    "correlated",
    "cubic",
    "dense",
    "gaussian",
    "half_cube",
    "normal_cdf",
    "sparse",
    "spiral",
    "student",
    "swiss_roll",
    "wiggly",
]


@dataclass(frozen=True)
class Task:
    """A joint law.

    Arguments:
        name: for tables.
        information: I(X;Y) in nats, exact.
        draw: n pairs.
        log_ratio: log p(y|x) - log p(y) of every x against every y; the best critic.
        entropy: h(Y) in nats; None where it is not at hand.
    """

    name: str
    information: float
    draw: Callable[[int], tuple[Tensor, Tensor]]
    log_ratio: Callable[[Tensor, Tensor], Tensor]
    entropy: float | None = None


def gaussian(information: float, dim: int = 20) -> Task:
    r"""Creates pairs of standard normals whose coordinates are correlated one by one.

    .. math::
        y = \rho x + \sqrt{1 - \rho^2}\, \varepsilon, \qquad I = -\tfrac{d}{2} \log(1 - \rho^2)

    Arguments:
        information: I, in nats.
        dim: d.

    Raises:
        ValueError: for a negative information, one that no correlation below 1 has in doubles (18 nats a coordinate),
            and a dimension below 1.

    Example:
        >>> gaussian(6.0).name
        'Gaussian, d = 20, I = 6'

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    if not (0 <= information < math.inf and dim >= 1):
        raise ValueError(f"gaussian: got information {information} and dim {dim}, expected at least 0 and 1")
    rho = math.sqrt(1 - math.exp(-2 * information / dim))
    if rho == 1:
        raise ValueError(
            f"gaussian: {information} nats in {dim} coordinates need a correlation nearer to 1 than doubles go"
        )

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, dim)
        return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(n, dim)

    def log_ratio(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        inner = rho * x @ y.T - rho**2 / 2 * (x.square().sum(1)[:, None] + y.square().sum(1))
        return information + inner / (1 - rho**2)

    entropy = dim / 2 * math.log(2 * math.pi * math.e)
    return Task(f"Gaussian, d = {dim}, I = {information:g}", information, draw, log_ratio, entropy)


def correlated(covariance: Float[Tensor, "d d"], dim_x: int, *, name: str = "") -> Task:
    r"""Creates jointly normal pairs of any covariance: x is the first coordinates, y the others.

    .. math::
        I = \tfrac12 \log \frac{\det \Sigma_x \det \Sigma_y}{\det \Sigma}

    Arguments:
        covariance: :math:`\Sigma`, of x and y together.
        dim_x: how many coordinates are x.
        name: for tables.

    Raises:
        ValueError: for a matrix that is no covariance, and a dim_x that leaves x or y empty.

    Example:
        >>> task = correlated(torch.tensor([[2.0, 0.4], [0.4, 2.0]]), 1)
        >>> round(task.information, 7)  # of Tschannen et al.'s appendix E
        0.020411
    """
    sigma = covariance.double()
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1] or not 1 <= dim_x < len(sigma):
        raise ValueError(
            f"correlated: got shape {tuple(covariance.shape)} and dim_x {dim_x}, expected [d, d] and 1 to d-1"
        )
    root, failed = torch.linalg.cholesky_ex(sigma)
    if bool(failed) or not bool(torch.allclose(sigma, sigma.T)):
        raise ValueError("correlated: the matrix is not symmetric and positive definite, expected a covariance")
    blocks = sigma.clone()
    blocks[:dim_x, dim_x:] = blocks[dim_x:, :dim_x] = 0.0
    information = float(torch.logdet(blocks) - torch.logdet(sigma)) / 2
    precision = torch.linalg.inv(blocks) - torch.linalg.inv(sigma)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, len(sigma)) @ root.T.float()
        return z[:, :dim_x], z[:, dim_x:]

    def log_ratio(x: Float[Tensor, "n dx"], y: Float[Tensor, "m dy"]) -> Float[Tensor, "n m"]:
        p = precision.to(x.dtype)
        own_x = ((x @ p[:dim_x, :dim_x]) * x).sum(1)[:, None]
        own_y = ((y @ p[dim_x:, dim_x:]) * y).sum(1)
        inner = x @ p[:dim_x, dim_x:] @ y.T
        found: Tensor = information + (own_x + own_y) / 2 + inner
        return found

    entropy = float(torch.logdet(2 * math.pi * math.e * sigma[dim_x:, dim_x:])) / 2
    return Task(name or f"Gaussian, {dim_x} and {len(sigma) - dim_x}", information, draw, log_ratio, entropy)


def dense(dim: int, correlation: float = 0.5) -> Task:
    """Creates normals of which any two coordinates, in x or in y, have the same correlation.

    Arguments:
        dim: of x, and of y.
        correlation: in [0, 1).

    Raises:
        ValueError: as `correlated`.

    Example:
        >>> round(dense(25).information, 4)
        1.2922

    References:
        | Beyond Normal: On the Evaluation of Mutual Information Estimators (Czyz et al., 2023)
        | https://arxiv.org/abs/2306.11078
    """
    sigma = torch.full((2 * dim, 2 * dim), correlation, dtype=torch.float64).fill_diagonal_(1.0)
    return correlated(sigma, dim, name=f"dense Gaussian, {dim} and {dim}")


def sparse(dim: int, correlation: float = 0.8, *, pairs: int = 2) -> Task:
    """Creates normals of which a few pairs of coordinates are correlated, the rest is noise.

    Arguments:
        dim: of x, and of y.
        correlation: of those pairs.
        pairs: how many.

    Raises:
        ValueError: as `correlated`, and for more pairs than coordinates.

    Example:
        >>> round(sparse(25).information, 4)
        1.0217

    References:
        | Beyond Normal: On the Evaluation of Mutual Information Estimators (Czyz et al., 2023)
        | https://arxiv.org/abs/2306.11078
    """
    if not 0 <= pairs <= dim:
        raise ValueError(f"sparse: pairs is {pairs}, expected 0 to {dim}")
    sigma = torch.eye(2 * dim, dtype=torch.float64)
    for k in range(pairs):
        sigma[k, dim + k] = sigma[dim + k, k] = correlation
    return correlated(sigma, dim, name=f"sparse Gaussian, {dim} and {dim}")


def student(dim: int, freedom: int) -> Task:
    r"""Creates two halves of one multivariate t with identity dispersion: uncorrelated, and dependent all the same.

    Arguments:
        dim: of x, and of y.
        freedom: degrees of freedom; 1 is Cauchy.

    Raises:
        ValueError: for a dimension below 1 and degrees that are not positive.

    Example:
        >>> round(student(1, 1).information, 4)
        0.2242

    References:
        | Beyond Normal: On the Evaluation of Mutual Information Estimators (Czyz et al., 2023)
        | https://arxiv.org/abs/2306.11078
    """
    if not (dim >= 1 and 0 < freedom < math.inf):
        raise ValueError(f"student: got dim {dim} and freedom {freedom}, expected at least 1 and a positive number")
    lg, f, d = math.lgamma, float(freedom), float(dim)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        z = torch.randn(n, 2 * dim) / (Chi2(torch.tensor(f)).sample((n, 1)) / f).sqrt()
        return z[:, :dim], z[:, dim:]

    constant = lg((f + 2 * d) / 2) + lg(f / 2) - 2 * lg((f + d) / 2)

    def log_ratio(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
        a, b = x.square().sum(1)[:, None] / f, y.square().sum(1) / f
        both = torch.log1p(a + b) * (f + 2 * d) / 2
        return constant - both + (torch.log1p(a) + torch.log1p(b)) * (f + d) / 2

    # E log(1 + |z|^2 / f) over k coordinates is psi((f + k) / 2) - psi(f / 2).
    psi = {k: float(torch.digamma(torch.tensor((f + k) / 2, dtype=torch.float64))) for k in (0.0, d, 2 * d)}
    information = constant - (f + 2 * d) / 2 * (psi[2 * d] - psi[0.0]) + (f + d) * (psi[d] - psi[0.0])
    entropy = d / 2 * math.log(f * math.pi) + lg(f / 2) - lg((f + d) / 2) + (f + d) / 2 * (psi[d] - psi[0.0])
    return Task(f"Student, {dim} and {dim}, {freedom} degrees", information, draw, log_ratio, entropy)


def additive(noise: float) -> Task:
    r"""Creates uniform x on (0, 1), and y = x plus uniform noise within :math:`\pm \varepsilon`.

    .. math::
        I = \varepsilon - \log 2\varepsilon \;\; (\varepsilon \le \tfrac12), \qquad
        I = \tfrac{1}{4 \varepsilon} \;\; (\varepsilon > \tfrac12)

    Arguments:
        noise: :math:`\varepsilon`.

    Raises:
        ValueError: for noise that is not positive.

    Example:
        >>> round(additive(0.1).information, 4), round(additive(0.75).information, 4)
        (1.7094, 0.3333)

    References:
        | Beyond Normal: On the Evaluation of Mutual Information Estimators (Czyz et al., 2023)
        | https://arxiv.org/abs/2306.11078
    """
    if not noise > 0:
        raise ValueError(f"additive: noise is {noise}, expected a positive number")

    def draw(n: int) -> tuple[Tensor, Tensor]:
        x = torch.rand(n, 1)
        return x, x + noise * (2 * torch.rand(n, 1) - 1)

    def log_ratio(x: Float[Tensor, "n 1"], y: Float[Tensor, "m 1"]) -> Float[Tensor, "n m"]:
        inside = (y.T - x).abs() <= noise
        density = ((y + noise).clamp_max(1) - (y - noise).clamp_min(0)) / (2 * noise)  # of y
        return torch.where(inside, -math.log(2 * noise) - density.clamp_min(1e-12).log().T, -1e4)

    information = noise - math.log(2 * noise) if noise <= 0.5 else 1 / (4 * noise)
    return Task(
        f"uniform plus uniform noise {noise:g}", information, draw, log_ratio, information + math.log(2 * noise)
    )


@dataclass(frozen=True)
class Bend:
    """An invertible function of one side.

    Arguments:
        name: for tables.
        forward: rows to rows, one to one.
        inverse: back again, to float32's digits; of a forward value that rounding took to the end of the range, that of
            the last number before it.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]


def bent(task: Task, x: Bend | None, y: Bend | None = None) -> Task:
    """Creates the task with each side bent; neither information nor log-ratio change.

    Arguments:
        task: what is bent.
        x: the function of x; None leaves it.
        y: that of y.

    Example:
        >>> task = bent(gaussian(1.0, 1), normal_cdf, normal_cdf)
        >>> task.name, task.information
        ('Gaussian, d = 1, I = 1; x and y: normal CDF', 1.0)
    """

    def draw(n: int) -> tuple[Tensor, Tensor]:
        a, b = task.draw(n)
        return (x.forward(a) if x else a), (y.forward(b) if y else b)

    def log_ratio(a: Tensor, b: Tensor) -> Tensor:
        return task.log_ratio(x.inverse(a) if x else a, y.inverse(b) if y else b)

    if x is not None and x is y:
        how = f"; x and y: {x.name}"
    else:
        how = "".join(f"; {side}: {bend.name}" for side, bend in (("x", x), ("y", y)) if bend)
    return Task(task.name + how, task.information, draw, log_ratio)


def _cdf(x: Tensor) -> Tensor:
    found: Tensor = torch.special.ndtr(x.double())
    return found


def _inverse_normal_cdf(p: Tensor) -> Tensor:
    limits = torch.finfo(p.dtype)  # beyond 5.4 deviations a float32 is 1, and the inverse of that infinite
    found: Tensor = torch.special.ndtri(p.clamp(limits.tiny, 1 - limits.eps / 2).double())
    return found.to(p.dtype)


def _inverse(function: Callable[[Tensor], Tensor], span: float) -> Callable[[Tensor], Tensor]:
    """Inverts an increasing function of the line by halving intervals, as far as doubles go."""

    def inverse(y: Tensor) -> Tensor:
        low = torch.full_like(y, -span, dtype=torch.float64)
        high = -low
        for _ in range(60):
            middle = (low + high) / 2
            below = function(middle) < y
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return ((low + high) / 2).to(y.dtype)

    return inverse


def _wiggle(x: Tensor) -> Tensor:
    return x + 0.4 * torch.sin(x) + 0.2 * torch.sin(1.7 * x + 1) + 0.03 * torch.sin(3.3 * x - 2.5)


def _mixture(x: Tensor) -> Tensor:
    """The distribution function of an even mixture of normals at -2 and 2, of deviation 0.5."""
    return (_cdf((x + 2) / 0.5) + _cdf((x - 2) / 0.5)) / 2


def _turn(x: Tensor, sign: float) -> Tensor:
    """Turns the first two coordinates by an angle that grows with the length, which stays what it is."""
    angle = sign * 2.0 * x.square().sum(1) / x.shape[1]
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)
    return torch.cat([turned, x[:, 2:]], 1)


def _roll(x: Tensor) -> Tensor:
    t = 1.5 * math.pi * (1 + 2 * torch.special.ndtr(x))
    return torch.cat([t * t.cos(), t * t.sin()], 1) / 21


def _unroll(x: Tensor) -> Tensor:
    t = 21 * torch.linalg.vector_norm(x.double(), dim=1, keepdim=True)
    found: Tensor = torch.special.ndtri(((t / (1.5 * math.pi) - 1) / 2).clamp(1e-9, 1 - 1e-9))
    return found.to(x.dtype)


# By its logarithm: torch's own is (1 + erf) / 2, which has lost the left tail.
normal_cdf = Bend("normal CDF", lambda x: torch.special.log_ndtr(x.double()).exp().to(x.dtype), _inverse_normal_cdf)
cubic = Bend("cube", lambda x: x**3, lambda x: x.sign() * x.abs() ** (1 / 3))
half_cube = Bend("half-cube", lambda x: x * x.abs().sqrt(), lambda x: x.sign() * x.abs() ** (2 / 3))
asinh = Bend("asinh", torch.asinh, torch.sinh)
wiggly = Bend("wiggly", _wiggle, _inverse(_wiggle, 100.0))
bimodal = Bend(
    "bimodal",
    lambda x: _inverse(_mixture, 12.0)(_cdf(x)).to(x.dtype),
    lambda x: torch.special.ndtri(_mixture(x)).to(x.dtype),
)
spiral = Bend("spiral", lambda x: _turn(x, 1.0), lambda x: _turn(x, -1.0))  # at least two coordinates
swiss_roll = Bend("Swiss roll", _roll, _unroll)  # of one coordinate, to two


def all_tasks() -> dict[str, Task]:
    """The tasks that estimators are compared on, by name: laws and bends of Poole et al. (2019) and Czyz et al. (2023).

    Example:
        >>> len(all_tasks())
        40
    """
    line = gaussian(-math.log(1 - 0.75**2) / 2, 1)
    found = {f"gaussian-{i}": gaussian(float(i)) for i in (2, 4, 6, 8, 10)}
    found |= {f"cubic-{i}": bent(gaussian(float(i)), None, cubic) for i in (2, 4, 6, 8, 10)}
    found |= {
        "1v1-normal-0.75": line,
        "1v1-normal-cdf": bent(line, normal_cdf, normal_cdf),
        "1v1-bimodal": bent(line, bimodal, bimodal),
        "1v1-wiggly": bent(line, wiggly, wiggly),
        "1v1-half-cube": bent(line, half_cube, half_cube),
        "1v1-swiss-roll": bent(line, swiss_roll, normal_cdf),
        "1v1-additive-0.1": additive(0.1),
        "1v1-additive-0.75": additive(0.75),
        "student-1-1": student(1, 1),
        "student-1-1-asinh": bent(student(1, 1), asinh, asinh),
    }
    found |= {f"student-{d}-{f}": student(d, f) for d, f in ((2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3))}
    found |= {f"dense-{d}": dense(d) for d in (2, 3, 5, 25, 50)}
    found |= {f"sparse-{d}": sparse(d) for d in (2, 3, 5, 25)}
    found |= {f"sparse-{d}-spiral": bent(sparse(d), spiral, spiral) for d in (3, 5, 25)}
    found["sparse-5-half-cube"] = bent(sparse(5), half_cube, half_cube)
    found["sparse-5-normal-cdf"] = bent(sparse(5), normal_cdf, normal_cdf)
    return found
