r"""What losses of rows share: sums that keep their digits, and the refusal of a row that is broken.

Everything here works on what `check_rows` or `check_positives` returned, and is differentiable twice.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from contrastive.scores import check_values, eager_on_cpu, negatives, target_scores

__all__ = [
    "differences",
    "largest",
    "logsumexp_or",
    "refuse_infinite",
    "refuse_undefined",
    "softplus",
    "without_padding",
]


def softplus(x: Tensor) -> Tensor:
    r"""Computes :math:`\log(1 + e^x)` with all digits; torch's default gives up :math:`e^{-x}` beyond x = 20.

    >>> float(softplus(torch.tensor(21.0, dtype=torch.float64)) - 21.0) > 7e-10
    True
    """
    return F.softplus(x, threshold=40.0)


def logsumexp_or(x: Float[Tensor, "anchors candidates"], empty: float) -> Float[Tensor, " anchors"]:
    """Row-wise logsumexp; a row that is -inf throughout gives `empty`, with gradient 0 instead of NaN."""
    nothing = (x == -torch.inf).all(1)
    return torch.logsumexp(x.masked_fill(nothing[:, None], 0.0), 1).masked_fill(nothing, empty)


def largest(weighted: Float[Tensor, "anchors candidates"]) -> Float[Tensor, "anchors 1"]:
    """The largest entry of each row, cut off from the graph; 0 for a row that is -inf throughout.

    Scores are subtracted from it before anything is added up: with scores of 1e4 a log-sum would lose the digits.
    """
    found = weighted.detach().amax(1, keepdim=True)
    return found.masked_fill(found == -torch.inf, 0.0)


def differences(
    function: str, scores: Tensor, targets: Tensor
) -> tuple[Float[Tensor, "anchors candidates"], Bool[Tensor, "anchors candidates"]]:
    r"""The differences :math:`s_{ij} - s_{i,t(i)}` of the negatives that are present, 0 elsewhere, and their mask."""
    kept = negatives(scores, targets)
    found = (scores - target_scores(scores, targets)).masked_fill(~kept, 0.0)
    # A link may be bounded, or the weight 0: the differences tell of a broken score where the loss does not.
    refuse_undefined(function, found.detach().abs().amax(1), scores, targets)
    return found, kept


def without_padding(
    scores: Tensor, targets: Tensor, log_weights: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rows without any candidate become zeros, cut off from the graph; returns the mask of the others, None for all."""
    padding = (scores == -torch.inf).all(1) if not eager_on_cpu(scores) else _absent_target_rows(scores, targets)
    if eager_on_cpu(scores) and not bool(padding.any()):
        return scores, log_weights, None
    if log_weights is not None:
        log_weights = log_weights.masked_fill(padding[:, None], 0.0)
    return scores.masked_fill(padding[:, None], 0.0), log_weights, ~padding


def _absent_target_rows(scores: Tensor, targets: Tensor) -> Tensor:
    """Padding rows. The targets alone tell in most cases: the whole matrix is read only if one of them is absent."""
    absent = target_scores(scores, targets).squeeze(1) == -torch.inf
    if bool(absent.any()):
        absent = absent & (scores == -torch.inf).all(1)
    return absent


def refuse_undefined(
    function: str, loss: Tensor, scores: Tensor, targets: Tensor, suspect: str = "its log_weights hold"
) -> None:
    """Names the row whose loss is undefined.

    The losses and the targets tell: the matrix is read again only when one of them is not finite.
    """
    if not eager_on_cpu(loss):
        return
    finite = torch.isfinite(loss) & torch.isfinite(target_scores(scores, targets).squeeze(1))
    if bool(finite.all()):
        return
    check_values(function, scores, targets)
    row = int((~finite).nonzero()[0])
    raise ValueError(
        f"{function}: the loss of row {row} is not finite: {suspect} a NaN or +inf, or drop every candidate"
    )


def refuse_infinite(function: str, loss: Tensor, suspect: str = "its log_weights hold") -> None:
    """Names the row whose loss is not finite although its scores are, as `check_positives` made sure."""
    if eager_on_cpu(loss) and not bool(torch.isfinite(loss).all()):
        row = int((~torch.isfinite(loss)).nonzero()[0])
        raise ValueError(f"{function}: the loss of row {row} is not finite: {suspect} a NaN or +inf")
