r"""One direction of the K-pair loss, in strips: some anchors against all candidates, weighed by any miner.

A strip holds whole rows, so its losses and its gradient are formed while it is there, and forgotten. A miner runs once
on every strip, random ones included.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from contrastive._tiles import LOG2E, Absent, absent_in, exponents, losses_of, number_of, parts, refuse_undefined
from contrastive.factors import UnitRows
from contrastive.gemm import fast_products
from contrastive.objectives import kpair_loss
from contrastive.scores import WeighsNegatives, as_float32, check_rows, check_values, eager_on_cpu, weighed

__all__ = ["one_direction", "one_direction_scored", "parameters_of", "refuse_strangers"]

# Floats of a strip, and the rows it has at least and at most: every strip reads and writes the gradient of all
# candidates, so a few rows would not be worth it.
_STRIP, _FEWEST_ROWS, _MOST_ROWS = 2**21, 64, 256
# Floats of the rows that a miner sees at once: it makes several copies of them, which should stay in the cache.
_MINED = 2**18
# Candidates whose gradients are finished at once.
_COLUMNS = 4096
# Pairs that a critic which does not factorise scores at once; it may hold hundreds of floats for each.
_SCORED = 2**16


def one_direction(
    function: str,
    u: Tensor,
    v: Tensor,
    scale: Tensor | float,
    *parameters: Tensor,
    targets: Tensor,
    unit: bool,
    absent: Absent | None,
    miner: WeighsNegatives | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """The mean loss of the rows of `u` among those of `v`, and the gradients of `u`, `v`, `scale` and `parameters`.

    Arguments:
        function: name of the public caller, for messages.
        u: anchors, at least one.
        v: candidates.
        scale: as in `contrastive.factors.Factors`.
        parameters: of the miner.
        targets: the column of each anchor's positive.
        unit: as in `contrastive.factors.Factors`.
        absent: which pairs are absent.
        miner: weighs the rows; None: uniform.
        needed: which of the gradients are.

    Raises:
        ValueError: for an undefined score or weight, or an absent target; names the row.
    """
    alpha = number_of(scale, unit=unit)
    count, columns = u.shape[0], v.shape[0]
    anchors, candidates = UnitRows(u, unit=unit), UnitRows(v, unit=unit)
    unit_of_log = LOG2E if miner is None else 1.0  # a miner sees scores in nats
    scaled = candidates.scaled(alpha * unit_of_log)
    longest = anchors.largest_norm(), abs(alpha) * LOG2E * candidates.largest_norm()
    bound = longest[0] * longest[1] * 1.0001
    highest, lowest = exponents(u.dtype, columns)
    # Exponentials and rows are multiplied before they are divided by the sum: room for rows of a usual length as well.
    bounded = bound <= min(highest - 16, -lowest) and all(2.0**-16 <= z <= 2.0**16 for z in longest)
    losses, positive = u.new_empty(count, 1), u.new_empty(count, 1)
    gradient, each = any(needed), 1 / count
    du, dv = torch.empty_like(u), torch.zeros_like(scaled)
    dparameters = [torch.zeros_like(p) for p in parameters] if gradient else []
    along = []
    step = min(count, _MOST_ROWS, max(_FEWEST_ROWS, _STRIP // columns))
    buffer = u.new_empty(step, columns)
    with fast_products(u, count * columns * u.shape[1]):
        for rows in parts(count, step):
            left, target = anchors[rows], targets[rows]
            strip = buffer[: rows.stop - rows.start]
            torch.mm(left, scaled.T, out=strip)
            if absent is not None:
                strip.masked_fill_(absent_in(absent, rows, slice(0, columns), u.device), -math.inf)
            own = torch.gather(strip, 1, target[:, None], out=positive[rows])
            if miner is None:
                losses[rows], share = _uniform_(strip, target, own, bounded=bounded, masked=absent is not None)
            else:
                share = None
                for part in parts(len(strip), max(1, _MINED // columns)):
                    numbers = torch.arange(rows.start + part.start, rows.start + part.stop, device=u.device)
                    losses[numbers], extra = _mined_(
                        function, strip[part], target[part], numbers, miner, parameters if gradient else None
                    )
                    for total, piece in zip(dparameters, extra, strict=True):
                        total += piece
            if gradient:
                torch.mm(strip, scaled, out=du[rows])
                if share is not None:
                    du[rows].mul_(share)
                dv.addmm_(strip.T, left if share is None else left * share)
                if needed[2]:  # the scores are homogeneous in the scale
                    along.append((left * du[rows]).sum(dtype=torch.float64))
                anchors.pull_back_(du[rows], rows, each / unit_of_log, left, 1.0)
    value = losses.mean()
    refuse_undefined(function, value, losses, positive)
    if not gradient:
        return value, [None] * len(needed)
    dscale = None
    if isinstance(scale, Tensor) and needed[2]:
        dscale = (torch.stack(along).sum() * (each / unit_of_log / alpha)).to(scale).reshape(scale.shape)
    for part in parts(columns, _COLUMNS):
        candidates.pull_back_(dv[part], part, each * alpha, scaled[part], alpha * unit_of_log)
    return value, [du, dv, dscale, *(p.mul_(each) for p in dparameters)]


def _uniform_(strip: Tensor, target: Tensor, own: Tensor, *, bounded: bool, masked: bool) -> tuple[Tensor, Tensor]:
    """The losses of a strip in units of log 2, which becomes its gradient but for one factor a row, returned as well.

    Arguments:
        strip: scores.
        target: as in `one_direction`.
        own: the positives' scores.
        bounded: whether the exponentials can be summed as they are.
        masked: whether candidates may be absent.
    """
    column = target[:, None]
    strip.scatter_(1, column, -math.inf)
    if not bounded:
        # The lowest float, not -inf: an absent score relative to it is still -inf, not NaN.
        top = strip.amax(1, keepdim=True).clamp_min_(torch.finfo(strip.dtype).min)
        own = own - top
        strip.sub_(top)
    sums = strip.exp2_().sum(1, keepdim=True)
    whole = own.exp2().add_(sums)
    share = (whole.masked_fill_(whole == 0, math.inf) if masked else whole).reciprocal_()  # 0 for padding
    strip.scatter_(1, column, -sums)  # what the positive lacks of the whole
    return losses_of(sums.log2_(), own, masked=masked), share


def _mined_(
    function: str,
    strip: Tensor,
    target: Tensor,
    numbers: Tensor,
    miner: WeighsNegatives,
    parameters: tuple[Tensor, ...] | None,
) -> tuple[Tensor, list[Tensor]]:
    """The losses of mined rows, which become their gradient, and the sums of the parameters' gradients.

    Without `parameters` (an empty tuple will do) no gradient flows through the weights.
    """
    column = target[:, None]
    with torch.set_grad_enabled(parameters is not None):
        seen = strip.detach().requires_grad_(parameters is not None)
        log_weights = weighed(function, miner, seen, target, numbers)
        _, _, checked = check_rows(function, seen, target, log_weights)
        assert checked is not None
        checked = checked.to(strip.dtype)
    weights, own = checked.detach(), strip.gather(1, column)
    padding = own == -math.inf
    if not eager_on_cpu(own) or bool(padding.any()):
        padding &= (strip == -math.inf).all(1, keepdim=True)
        weights = weights.masked_fill(padding, 0.0)  # whatever a miner makes of nothing
    own_weight = weights.gather(1, column)
    weighted = (strip + weights).scatter_(1, column, -math.inf)
    top = weighted.amax(1, keepdim=True).clamp_min_(torch.finfo(strip.dtype).min)
    exponentials = weighted.sub_(top).mul_(LOG2E).exp2_()
    log_sum = exponentials.sum(1, keepdim=True).log_().add_(top)
    # log(e^n + w e^p) - p with the positive apart, so that a small loss keeps its digits.
    losses = torch.logaddexp(log_sum - own, own_weight)
    losses.masked_fill_(padding, 0.0)
    _refuse_broken(function, losses, strip, target, numbers)
    whole = (own + losses).masked_fill_(padding, math.inf)
    share = (top - whole).exp_()
    rest = (log_sum - whole).exp_()  # the share of the negatives: what the positive's gradient is, exactly
    if parameters is None or not checked.requires_grad:
        torch.mul(exponentials, share, out=strip).scatter_(1, column, -rest)
        return losses, [torch.zeros_like(p) for p in parameters or ()]
    if numbers[0] == 0:
        refuse_strangers(function, "miner", checked, [seen, *parameters])
    by_weight = exponentials.mul_(share).scatter_(1, column, (own_weight - losses).exp_().masked_fill_(padding, 0.0))
    through, *extra = torch.autograd.grad(
        checked, [seen, *parameters], by_weight, allow_unused=True, materialize_grads=True
    )
    torch.add(by_weight.scatter_(1, column, -rest), through, out=strip)
    return losses, extra


def _refuse_broken(function: str, losses: Tensor, strip: Tensor, target: Tensor, numbers: Tensor) -> None:
    """Names the first anchor of a strip whose loss is undefined."""
    if not eager_on_cpu(losses) or math.isfinite(losses.sum()):
        return
    check_values(function, strip, target, first=int(numbers[0]))
    row = int(numbers[int((~losses.isfinite()).nonzero()[0, 0])])
    raise _broken_weights(function, row)


def _broken_weights(function: str, row: int) -> ValueError:
    return ValueError(
        f"{function}: the loss of row {row} is not finite: its log_weights hold a NaN or +inf, or drop every candidate"
    )


def one_direction_scored(
    function: str,
    score: Callable[[Tensor, Tensor], Tensor],
    a: Tensor,
    b: Tensor,
    *parameters: Tensor,
    targets: Tensor,
    absent: Absent | None,
    miner: WeighsNegatives | None,
    needed: tuple[bool, ...],
) -> tuple[Tensor, list[Tensor | None]]:
    """As `one_direction`, with the scores of any differentiable ``score(a[rows], b) -> [rows, len(b)]``."""
    inputs = (a, b, *parameters)
    gradient = any(needed)
    dtype = as_float32(a[:0]).dtype
    totals = [torch.zeros_like(z, dtype=dtype) if asked else None for z, asked in zip(inputs, needed, strict=True)]
    losses = a.new_empty(len(a), dtype=dtype)
    for rows in parts(len(a), max(1, _SCORED // len(b))):
        numbers = torch.arange(rows.start, rows.stop, device=a.device)
        with torch.set_grad_enabled(gradient):
            left, right = (z.detach().requires_grad_(gradient) for z in (a[rows], b))
            scores = score(left, right)
            if scores.shape != (len(left), len(b)):
                raise ValueError(
                    f"{function}: the critic's scores have shape {tuple(scores.shape)}, expected {[len(left), len(b)]}"
                )
            if absent is not None:
                scores = scores.masked_fill(absent_in(absent, rows, slice(0, len(b)), a.device), -math.inf)
            log_weights = (
                None if miner is None else weighed(function, miner, as_float32(scores), targets[rows], numbers)
            )
            leaves = (left, right, *parameters)
            if gradient and rows.start == 0:
                refuse_strangers(function, "critic", scores, leaves)
                if log_weights is not None:
                    refuse_strangers(function, "miner", log_weights, leaves)
            try:
                strip = kpair_loss(scores, targets[rows], log_weights=log_weights)
            except ValueError:
                # Names the row of the whole batch.
                check_values(function, scores, targets[rows], first=rows.start)
                if log_weights is not None and log_weights.shape == scores.shape:
                    broken = ~torch.logsumexp(scores + log_weights, 1).isfinite() & (scores > -math.inf).any(1)
                    if bool(broken.any()):
                        raise _broken_weights(function, rows.start + int(broken.nonzero()[0])) from None
                raise
        losses[rows] = strip.detach()
        if not strip.requires_grad:
            continue
        asked = [k for k, total in enumerate(totals) if total is not None]
        found = torch.autograd.grad(
            strip, [leaves[k] for k in asked], torch.ones_like(strip), allow_unused=True, materialize_grads=True
        )
        for k, piece in zip(asked, found, strict=True):
            total = totals[k]
            if total is not None:
                (total[rows] if k == 0 else total).add_(piece)
    gradients = [None if t is None else t.div_(len(a)).to(z.dtype) for t, z in zip(totals, inputs, strict=True)]
    return losses.mean(), gradients


def refuse_strangers(function: str, what: str, result: Tensor, known: Sequence[Tensor]) -> None:
    """Refuses a result that depends on tensors whose gradient would be lost: they are not among those known."""
    leaves, seen, stack = {id(z) for z in known}, set(), [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) not in leaves:
            raise ValueError(
                f"{function}: the {what} depends on a tensor of shape {tuple(variable.shape)} that requires a gradient "
                f"and is no parameter of it, expected an nn.Module that owns its parameters (or tiled=False)"
            )
        stack.extend(following for following, _ in node.next_functions)


def parameters_of(*callables: object) -> list[nn.Parameter]:
    """The parameters that those of the callables which are modules own and train, each once."""
    found = {id(p): p for c in callables if isinstance(c, nn.Module) for p in c.parameters() if p.requires_grad}
    return list(found.values())
