r"""Checks for anybody's pytest: the identity of InfoNCE and the K-pair loss, for your own critic.

.. math::
    I_{NCE} = \log K - L_{K\text{-pair}}
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive._streaming import check_pairs
from contrastive.objectives import kpair_loss

__all__ = ["IdentityCheck", "assert_identity", "check_identity"]


@dataclass(frozen=True)
class IdentityCheck:
    r"""What `check_identity` found, in nats and float64.

    Arguments:
        infonce: :math:`I_{NCE}`, computed from its definition.
        objective: :math:`\log K - L`.
        value_error: their absolute difference.
        gradient_errors: largest absolute difference of the gradients, by the name of what is differentiated
            (``"x"``, ``"y"``, ``"critic.weight"``, ...).
        atol: the tolerance asked for.
    """

    infonce: float
    objective: float
    value_error: float
    gradient_errors: dict[str, float]
    atol: float

    @property
    def holds(self) -> bool:
        """Whether values and all gradients agree within `atol`; NaN agrees with nothing."""
        return all(error <= self.atol for error in (self.value_error, *self.gradient_errors.values()))


def check_identity(
    critic: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch dx"],
    y: Float[Tensor, "batch dy"],
    *,
    objective: Callable[[Tensor], Tensor] = kpair_loss,
    atol: float = 1e-12,
) -> IdentityCheck:
    r"""Compares InfoNCE with :math:`\log K - L`, values and gradients, in float64.

    .. math::
        I_{NCE} = \frac1K \sum_i \log \frac{e^{f(x_i, y_i)}}{\frac1K \sum_j e^{f(x_i, y_j)}}

    Arguments:
        critic: ``(x, y) -> scores [K, K]``; a module is copied and its parameters are differentiated too.
        x: a batch of K anchors; widened to float64, left alone.
        y: their positives, row by row.
        objective: the loss claimed equal, ``scores -> [K]`` or a scalar.
        atol: tolerance of every difference; relative to 1, so keep scores of the order of 1 to 100.

    Returns:
        The two values and all differences; `.holds` says whether they are within `atol`.

    Raises:
        ValueError: for batches that are not [K, d] of a floating-point dtype, of equal length and of one pair at
            least; when the critic's scores are not a K x K matrix of float64, or the objective returns something else
            than K losses or their mean; what `objective` refuses, in its own name.

    Example:
        >>> from contrastive.critics import Bilinear
        >>> check_identity(Bilinear(4), torch.randn(8, 4), torch.randn(8, 4)).holds
        True
    """
    check_pairs("check_identity", x, y)
    if not len(x):
        raise ValueError("check_identity: got no pairs, expected one at least: log 0 is no ceiling")
    if isinstance(critic, nn.Module):
        critic = copy.deepcopy(critic).double()
        parameters = {f"critic.{name}": p for name, p in critic.named_parameters() if p.requires_grad}
    else:
        parameters = {}
    leaves = {
        "x": x.detach().double().requires_grad_(),
        "y": y.detach().double().requires_grad_(),
        **parameters,
    }
    scores = critic(leaves["x"], leaves["y"])
    if scores.shape != (len(x), len(x)) or scores.dtype != torch.float64:
        raise ValueError(
            f"check_identity: the critic's scores have shape {tuple(scores.shape)} and dtype {scores.dtype}, "
            f"expected [{len(x)}, {len(x)}] and torch.float64"
        )
    log_k = math.log(len(x))
    # Relative to the largest of its row, nothing changes but the digits that a logarithm of e^10000 would lose.
    shifted = scores - scores.detach().amax(1, keepdim=True)
    infonce = (shifted.diag() - (torch.logsumexp(shifted, 1) - log_k)).mean()
    losses = objective(scores)
    if losses.shape not in {(), (len(x),)}:
        raise ValueError(
            f"check_identity: the objective returned shape {tuple(losses.shape)}, expected [{len(x)}] or a scalar"
        )
    claimed = log_k - losses.mean()
    expected = _gradients(infonce, list(leaves.values()))
    actual = _gradients(claimed, list(leaves.values()))
    return IdentityCheck(
        infonce=float(infonce.detach()),
        objective=float(claimed.detach()),
        value_error=float((infonce - claimed).detach().abs()),
        gradient_errors={name: _largest_difference(e, a) for name, e, a in zip(leaves, expected, actual, strict=True)},
        atol=atol,
    )


def assert_identity(
    critic: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "batch dx"],
    y: Float[Tensor, "batch dy"],
    *,
    objective: Callable[[Tensor], Tensor] = kpair_loss,
    atol: float = 1e-12,
) -> None:
    r"""Asserts that :math:`I_{NCE} = \log K - L` holds for this critic, values and gradients.

    Arguments:
        critic: as in `check_identity`.
        x: as in `check_identity`.
        y: as in `check_identity`.
        objective: as in `check_identity`.
        atol: as in `check_identity`.

    Raises:
        AssertionError: names both values and every difference above `atol`.
        ValueError: as `check_identity`.

    Example:
        >>> from contrastive.critics import Cosine
        >>> assert_identity(Cosine(), torch.randn(8, 4), torch.randn(8, 4))
    """
    check = check_identity(critic, x, y, objective=objective, atol=atol)
    if not check.holds:
        errors = {"value": check.value_error, **check.gradient_errors}
        broken = ", ".join(f"{name} by {error:.3g}" for name, error in errors.items() if not error <= atol)
        raise AssertionError(
            f"I_NCE = {check.infonce:.15g} but log K - L = {check.objective:.15g}; "
            f"they differ in {broken}, more than atol = {atol:g}"
        )


def _gradients(value: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The gradients; None for a leaf on which `value` does not depend, and for all where it depends on none."""
    if not value.requires_grad:
        return (None,) * len(leaves)
    return torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)


def _largest_difference(a: Tensor | None, b: Tensor | None) -> float:
    """The largest absolute difference of two gradients; None means that nothing depends on the leaf: zero."""
    if a is None and b is None:
        return 0.0
    a = torch.zeros_like(b) if a is None else a  # type: ignore[arg-type]  # one of the two is a tensor
    b = torch.zeros_like(a) if b is None else b
    return float((a - b).abs().max()) if a.numel() else 0.0
