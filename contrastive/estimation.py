r"""From samples to nats: a critic is trained on some of the pairs, and judged on others that it has not seen.

>>> import torch
>>> x = torch.randn(2000, 1)
>>> found = estimate_mi(x, x + torch.randn(2000, 1), steps=200)  # 0.35 nats
>>> found.bound.direction, found.status
('lower', 'ok')
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive.arguments import Conditional
from contrastive.bounds import Bound
from contrastive.catalogue import INFONCE, Estimator
from contrastive.ksg import as_pairs

__all__ = ["Estimate", "estimate_mi"]


@dataclass(frozen=True)
class Estimate:
    """What `estimate_mi` found.

    Arguments:
        bound: the value on held-out pairs, its cap, and what may be claimed of it; the value is nan after a divergence.
        interval: the 95 % t-interval of the mean over held-out batches, which are disjoint and hence independent given
            the critic. It is about the estimator's expectation for this critic, not about I(X;Y); for the exponentials
            of NWJ and its like, whose tails are heavy, it is too narrow.
        training: the value on as many training batches: what it is above `bound.value`, the critic has learnt by heart.
        pairs: K, of a batch.
        batches: how many held-out batches.
        steps: how many were made.
        chosen: the step whose critic is judged: the best on validation pairs, neither trained on nor held out.
        curve: the validation values by step.
        diverged: the step at which scores or objective left the floats, or the first validation, where none was a
            number; None: never.
        seconds: of training.
        module: what was trained, ``(x, y) -> arguments`` of the estimator, x and y as they were given.
    """

    bound: Bound
    interval: tuple[float, float]
    training: float
    pairs: int
    batches: int
    steps: int
    chosen: int
    curve: tuple[tuple[int, float], ...] = field(repr=False)
    diverged: int | None
    seconds: float
    module: nn.Module = field(repr=False)

    @property
    def value(self) -> float:
        """The estimate in nats, on held-out pairs."""
        return self.bound.value

    @property
    def status(self) -> str:
        """Whether it is one: ok, or diverged."""
        return "ok" if self.diverged is None else "diverged"

    def __str__(self) -> str:
        if self.diverged is not None:
            return f"diverged at step {self.diverged}: no estimate ({self.bound.reason})"
        kind = f"{self.bound.direction} bound" if self.bound.status == "bound" else "not a bound"
        cap = f", at most {self.bound.cap:.2f}" if math.isfinite(self.bound.cap) else ""
        return (
            f"{self.value:.3f} nats, {kind}{cap} ({self.bound.reason}); "
            f"{self.batches} held-out batches of {self.pairs} pairs, "
            f"95 % [{self.interval[0]:.3f}, {self.interval[1]:.3f}] of their mean; in training {self.training:.3f}"
        )


def estimate_mi(
    x: Tensor | np.ndarray,
    y: Tensor | np.ndarray,
    estimator: Estimator = INFONCE,
    critic: nn.Module | None = None,
    *,
    steps: int = 5000,
    pairs: int = 128,
    lr: float = 5e-4,
    held_out: float = 0.2,
    validation: float = 0.2,
    every: int = 100,
    patience: int | None = 10,
    standardise: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Estimate:
    r"""Estimates the mutual information of paired samples by training a critic.

    The pairs are split at random in three: the critic is trained on the first part, the step at which it is judged is
    chosen on the second, and the estimate comes from the third, in B batches of the size that it was trained with:

    .. math::
        \hat I = \frac1B \sum_b \hat I_{est}(f(x_b, y_b)), \qquad
        f = \arg\max_f \mathbb{E}\, \hat I_{est}(f(x, y)) \text{, approximately}

    with the estimator's formula (`Estimator.formula`), in nats, and the 95 % t-interval of the mean over batches.

    Arguments:
        x: independent samples, one row each; further dimensions are flattened.
        y: what was drawn together with x, row by row.
        estimator: of `contrastive.catalogue`.
        critic: ``(x [K, dx], y [K, dy]) -> scores [K, K]``, trained in place; for estimators of a conditional a model
            of :math:`\log p(y_j|x_i)`. It sees standardised columns, see `standardise`. None:
            `contrastive.arguments.default_critic`, or a Gaussian conditional.
        steps: at most.
        pairs: K, of a batch in training and in evaluation. InfoNCE cannot read more than log K.
        lr: of Adam.
        held_out: share of the pairs that the estimate comes from; at least two batches.
        validation: share of the pairs that choose the step; 0 takes the last one.
        every: steps from one validation to the next.
        patience: validations without a new best after which training ends; None: never.
        standardise: whether columns are shifted and scaled by the training pairs' means and deviations first. It
            changes no information.
        seed: of the split, the batches and the weights (not of a critic that is given). Random numbers drawn elsewhere
            do not change.
        device: where to train; None: where x is.

    Returns:
        Value, interval, what is claimed, the training value beside it, and the trained module. A run that leaves the
        floats is no error: it ends with ``status == "diverged"``, the step and the value nan.

    Raises:
        ValueError: for x and y that are no pairs of finite numbers, too few of them for two held-out batches, one of
            training and, if asked for, one of validation; for an estimator that is not of the catalogue, a critic that
            cannot be called, and options out of range.

    Example:
        >>> x = torch.randn(3000, 2)
        >>> found = estimate_mi(x, x + torch.randn(3000, 2), steps=300, pairs=64)  # 0.69 nats
        >>> print(found)
        0... nats, lower bound, at most 4.16 (InfoNCE: log K less the K-pair loss ...

    References:
        | On Variational Bounds of Mutual Information (Poole et al., 2019)
        | https://arxiv.org/abs/1905.06922
    """
    a, b = as_pairs("estimate_mi", x, y)
    if not isinstance(estimator, Estimator):
        raise ValueError(
            f"estimate_mi: estimator is {estimator!r}, expected one of contrastive.catalogue, such as NWJ: "
            "a function of scores does not say what it claims"
        )
    if critic is not None and (isinstance(critic, type) or not callable(critic)):
        raise ValueError(f"estimate_mi: critic is {critic!r}, expected a module (x, y) -> scores, such as Bilinear(2)")
    _check_options(steps=steps, every=every, pairs=pairs, lr=lr, patience=patience)
    sizes = _sizes(len(a), pairs, held_out, validation)
    place = torch.device(device) if device is not None else a.device
    with torch.random.fork_rng([place] if place.type == "cuda" else []):
        # `torch.manual_seed` seeds every GPU as well, and a training on the CPU brings none back.
        (torch.manual_seed if place.type == "cuda" else torch.default_generator.manual_seed)(seed)
        parts = torch.split(torch.randperm(len(a)), sizes)
        trained, validated, judged = ((a[part].to(place), b[part].to(place)) for part in parts)
        module = _Prepared(estimator.arguments(critic, a.shape[1], b.shape[1]), *trained, standardise=standardise)
        run = _Run(estimator, module.to(place), pairs)
        start = time.perf_counter()
        run.train(trained, validated, steps=steps, lr=lr, every=every, patience=patience)
        seconds = time.perf_counter() - start
        values = run.values(judged)
        training = run.values(trained, at_most=len(judged[0]) // pairs)
    mean, half = _mean_and_half_width(values)
    if run.diverged is None and not math.isfinite(mean):
        run.diverged = run.chosen or run.steps
    lost = run.diverged is not None
    nan = math.nan
    return Estimate(
        bound=estimator.claim(nan if lost else mean, pairs, learnt=True),
        interval=(nan, nan) if lost else (mean - half, mean + half),
        training=nan if lost else _mean_and_half_width(training)[0],
        pairs=pairs,
        batches=len(values),
        steps=run.steps,
        chosen=run.chosen,
        curve=tuple(run.curve),
        diverged=run.diverged,
        seconds=seconds,
        module=module.eval(),
    )


class _Prepared(nn.Module):
    """The arguments of an estimator from pairs as they were given: columns are shifted and scaled first."""

    def __init__(
        self, inner: nn.Module, x: Float[Tensor, "n dx"], y: Float[Tensor, "n dy"], *, standardise: bool
    ) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = next((p.dtype for p in inner.parameters()), torch.float32)
        for name, z in (("x", x), ("y", y)):
            scale, mean = torch.std_mean(z, 0)
            unit = ~(scale > 10 * torch.finfo(z.dtype).eps * mean.abs())  # a constant column, up to rounding
            self.register_buffer(f"{name}_mean", mean if standardise else torch.zeros_like(mean))
            self.register_buffer(
                f"{name}_scale", scale.masked_fill(unit, 1.0) if standardise else torch.ones_like(mean)
            )

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        # Doubles keep their digits until they are near 0.
        a = (x.reshape(len(x), -1) - self.get_buffer("x_mean")) / self.get_buffer("x_scale")
        b = (y.reshape(len(y), -1) - self.get_buffer("y_mean")) / self.get_buffer("y_scale")
        found: tuple[Tensor, ...] = self.inner(a.to(self.dtype), b.to(self.dtype))
        if isinstance(self.inner, Conditional):  # a density of y, in y's own units
            return tuple(z - self.get_buffer("y_scale").log().sum().to(z.dtype) for z in found)
        return found


class _Run:
    """One training run: what is optimised, what is chosen, and where it left the floats."""

    def __init__(self, estimator: Estimator, module: nn.Module, pairs: int) -> None:
        self.estimator, self.module, self.pairs = estimator, module, pairs
        self.objective: Callable[..., Tensor] = estimator.objective() if estimator.objective else estimator.value
        # A stateful objective is for gradients only; another objective has its own best step.
        self.judge = estimator.value if isinstance(self.objective, nn.Module) else self.objective
        self.steps = self.chosen = 0
        self.curve: list[tuple[int, float]] = []
        self.diverged: int | None = None

    def train(
        self,
        pairs: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        *,
        steps: int,
        lr: float,
        every: int,
        patience: int | None,
    ) -> None:
        """Trains, and leaves the module as it was at the best validated step."""
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        if not parameters:
            return
        optimizer = torch.optim.Adam(parameters, lr, fused=True)
        best, kept = -math.inf, copy.deepcopy(self.module.state_dict())
        self.module.train()
        for step, (x, y) in enumerate(_batches(*pairs, self.pairs, steps), start=1):
            self.steps = step
            arguments = self.module(x, y)
            objective = self.objective(*arguments) if _finite(arguments) else None
            if objective is None or not _finite([objective]):
                self.diverged = step
                return
            optimizer.zero_grad()
            (-objective).backward()  # type: ignore[no-untyped-call]  # torch's
            optimizer.step()
            if len(validation[0]) and (step % every == 0 or step == steps):
                value = _mean_and_half_width(self.values(validation, by=self.judge))[0]
                self.module.train()
                self.curve.append((step, value))
                if value > best:
                    best, self.chosen, kept = value, step, copy.deepcopy(self.module.state_dict())
                elif patience is not None and step - self.chosen >= patience * every:
                    break
        if self.curve and not self.chosen:
            self.diverged = self.curve[0][0]  # no validation was a number
        elif self.curve:
            self.module.load_state_dict(kept)
        else:
            self.chosen = self.steps

    @torch.no_grad()
    def values(
        self, pairs: tuple[Tensor, Tensor], *, at_most: int | None = None, by: Callable[..., Tensor] | None = None
    ) -> list[float]:
        """The value of every whole batch; nan where the module left the floats."""
        self.module.eval()
        count = len(pairs[0]) // self.pairs
        found = []
        for i in range(count if at_most is None else min(count, at_most)):
            batch = slice(i * self.pairs, (i + 1) * self.pairs)
            arguments = self.module(pairs[0][batch], pairs[1][batch])
            known = _finite(arguments)
            found.append(float((by or self.estimator.value)(*(z.double() for z in arguments))) if known else math.nan)
        return found


def _batches(x: Tensor, y: Tensor, pairs: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches of fresh orders, as many as there are steps."""
    made = 0
    while made < steps:
        for part in torch.split(torch.randperm(len(x), device=x.device), pairs):
            if len(part) < pairs or made == steps:
                break
            made += 1
            yield x[part], y[part]


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(z.detach()).all()) for z in tensors)


def _mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half the width of its 95 % t-interval; infinite for a single value."""
    from scipy import stats  # type: ignore[import-untyped]  # it ships no types; scikit-learn brings it

    if len(values) < 2 or not all(map(math.isfinite, values)):
        return sum(values) / len(values), math.inf  # which keeps what is no number, as `min` does not
    quantile = float(stats.t.ppf(0.975, len(values) - 1))
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def _sizes(count: int, pairs: int, held_out: float, validation: float) -> list[int]:
    for name, share in (("held_out", held_out), ("validation", validation)):
        if not 0 <= share < 1:
            raise ValueError(f"estimate_mi: {name} is {share}, expected a share in [0, 1)")
    judged, validated = int(count * held_out), int(count * validation)
    trained = count - judged - validated
    for name, size, least in (
        ("training", trained, pairs),
        ("validation", validated, pairs if validation else 0),
        ("held-out", judged, 2 * pairs),
    ):
        if size < least:
            raise ValueError(
                f"estimate_mi: {count} pairs leave {size} {name} ones, expected at least {least} "
                f"for batches of {pairs}: give more pairs, other shares or smaller batches"
            )
    return [trained, validated, judged]


def _check_options(*, steps: int, every: int, pairs: int, lr: float, patience: int | None) -> None:
    least = (("steps", steps, 1), ("every", every, 1), ("pairs", pairs, 2), ("patience", patience, 1))
    for name, given, smallest in least:
        if given is not None and given < smallest:
            raise ValueError(f"estimate_mi: {name} is {given}, expected at least {smallest}")
    if not 0 < lr < math.inf:
        raise ValueError(f"estimate_mi: lr is {lr}, expected a positive number")
