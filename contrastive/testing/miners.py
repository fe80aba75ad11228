"""The battery for miners: callables that weigh the negatives of a matrix of scores."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from contrastive.objectives import kpair_loss
from contrastive.scores import MiningFacts
from contrastive.testing.reports import Report, copies, near, refuses, require, run_checks

__all__ = ["assert_miner", "check_miner"]

Miner = Callable[..., Tensor]

ANCHORS, CANDIDATES = 6, 9


def check_miner(miner: Miner, *, exempt: Collection[str] = ()) -> Report:
    """Runs the battery for miners.

    Miners may draw: each call starts from the same seed. Those that carry facts about rows or columns (labels, groups)
    must carry them for 6 anchors and 9 candidates.

    Arguments:
        miner: ``(scores, targets, *, anchors=None) -> log_weights``; where it has `facts`
            (`contrastive.scores.MiningFacts`), what it promises of every row is held against it.
        exempt: names of checks that do not apply.

    Returns:
        What holds and what does not.

    Raises:
        ValueError: for an exempt name that is none.

    Example:
        >>> from miners import topk
        >>> check_miner(topk(2)).holds
        True
    """
    return run_checks(miner, _CHECKS, exempt)


def assert_miner(miner: Miner, *, exempt: Collection[str] = ()) -> None:
    """Asserts that a miner passes its battery.

    Arguments:
        miner: as in `check_miner`.
        exempt: as in `check_miner`.

    Raises:
        AssertionError: with what failed.
        ValueError: as `check_miner`.
    """
    check_miner(miner, exempt=exempt).raise_failures()


# --- shapes and values ----------------------------------------------------------------------------------------------


def _other_shapes_are_refused(miner: Miner) -> None:
    scores, targets = _scores()
    wrong = {
        "scores of one dimension": (scores[0], targets),
        "scores of three dimensions": (scores[None], targets),
        "scores of integers": (scores.long(), targets),
        "too few targets": (scores, targets[:-1]),
        "targets of floats": (scores, targets.double()),
        "a target beyond the last candidate": (scores, targets + CANDIDATES),
    }
    for what, arguments in wrong.items():
        with refuses(what):
            miner(*arguments)


def _weights_have_the_scores_shape(miner: Miner) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        scores, targets = _scores(dtype)
        found = _mined(miner, scores, targets)
        require(found.shape == scores.shape, f"weights have shape {tuple(found.shape)}, expected {tuple(scores.shape)}")
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        require(found.dtype == wanted, f"weights of {dtype} scores have dtype {found.dtype}, expected {wanted}")


def _weights_are_neither_nan_nor_infinite(miner: Miner) -> None:
    for name, (scores, targets) in _corners().items():
        found = _mined(miner, scores, targets)
        require(not torch.isnan(found).any(), f"{name}: a weight is NaN")
        require((found < torch.inf).all(), f"{name}: a log-weight is +inf")


def _the_target_is_unweighted(miner: Miner) -> None:
    if _facts(miner).proposal:
        return  # it undoes a distribution, at the target as well
    scores, targets = _scores()
    found = _mined(miner, scores, targets).gather(1, targets[:, None])
    require(not found.any(), f"the target's log-weight is {float(found.abs().max()):.4g}, expected 0")


def _a_broken_score_is_not_hidden(miner: Miner) -> None:
    for value in (torch.nan, torch.inf):
        scores, targets = _scores()
        scores[2, 4] = value
        with refuses(f"a score of {value}, by the miner or by the loss behind it"):
            kpair_loss(scores, targets, log_weights=_mined(miner, scores, targets))


def _empty_and_lonely_rows_are_defined(miner: Miner) -> None:
    for shape in ((0, 0), (0, 4), (3, 1), (1, 1)):
        scores = torch.zeros(shape, requires_grad=True)
        targets = torch.zeros(shape[0], dtype=torch.int64)
        found = _mined(miner, scores, targets)
        require(found.shape == shape, f"scores of shape {shape}: weights have shape {tuple(found.shape)}")
        _finite(kpair_loss(scores, targets, log_weights=found), scores, f"scores of shape {shape}")


def _losses_stay_finite_in_every_corner(miner: Miner) -> None:
    for name, (scores, targets) in _corners().items():
        for dtype in (torch.float64, torch.float32):
            leaf = scores.to(dtype).requires_grad_()
            _finite(kpair_loss(leaf, targets, log_weights=_mined(miner, leaf, targets)), leaf, name)


def _gradients_are_those_of_the_weights(miner: Miner) -> None:
    scores, targets = _scores()
    if not _mined(miner, scores.requires_grad_(), targets).requires_grad:
        return  # constant, or detached
    try:
        torch.autograd.gradcheck(lambda s: kpair_loss(s, targets, log_weights=_mined(miner, s, targets)), (scores,))
    except RuntimeError as error:  # gradcheck's own finding
        raise AssertionError(" ".join(str(error).split())[:200]) from error


# --- properties -----------------------------------------------------------------------------------------------------


def _absent_candidates_change_nothing(miner: Miner) -> None:
    if _facts(miner).drawn:
        return  # it draws by a column's place
    scores, targets = _scores()
    wide = scores.clone()
    wide[:, -2:] = -torch.inf
    narrow, targets = scores[:, :-2], targets.clamp(max=CANDIDATES - 3)
    wide = wide.scatter(1, targets[:, None], scores.gather(1, targets[:, None]))
    found, expected = _mined(miner, wide, targets)[:, :-2], _mined(miner, narrow, targets)
    near(found, expected, 1e-12, "with two absent candidates")


def _rows_do_not_see_each_other(miner: Miner) -> None:
    if _facts(miner).drawn:
        return  # it draws for a whole strip
    scores, targets = _scores()
    found = _mined(miner, scores, targets)
    for row in (0, 3):
        anchors = torch.tensor([row])
        alone = _mined(miner, scores[row : row + 1], targets[row : row + 1], anchors=anchors)
        near(alone, found[row : row + 1], 1e-13, f"row {row} alone")


def _the_order_of_candidates_does_not_matter(miner: Miner) -> None:
    if _facts(miner).drawn:
        return  # it draws by a column's place
    scores, targets = _scores()
    order = torch.tensor([4, 2, 8, 0, 6, 1, 3, 7, 5])
    moved = _mined(miner, scores[:, order], order.argsort()[targets])
    near(moved, _mined(miner, scores, targets)[:, order], 1e-12, "candidates in another order")


def _inputs_are_left_alone(miner: Miner) -> None:
    scores, targets = _scores()
    before = scores.clone(), targets.clone()
    _mined(miner, scores, targets)
    require(torch.equal(scores, before[0]) and torch.equal(targets, before[1]), "the scores or targets are changed")


def _views_are_read_as_they_are(miner: Miner) -> None:
    scores, targets = _scores()
    expected = _mined(miner, scores, targets)
    strided = torch.stack([targets, targets], 1)[:, 0]
    near(_mined(miner, scores.T.contiguous().T, strided), expected, 1e-13, "transposed scores")


def _survives_pickle_and_deepcopy(miner: Miner) -> None:
    scores, targets = _scores()
    expected = _mined(miner, scores, targets)
    for way, other in copies(miner):
        near(_mined(other, scores, targets), expected, 0.0, f"{way}, it gives other weights")


def _the_same_seed_gives_the_same_weights(miner: Miner) -> None:
    scores, targets = _scores()
    near(_mined(miner, scores, targets), _mined(miner, scores, targets), 0.0, "called twice")


def _autocast_changes_nothing(miner: Miner) -> None:
    scores, targets = _scores(torch.float32)
    expected = _mined(miner, scores, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = _mined(miner, scores, targets)
    near(found, expected, 1e-6, "under autocast")


# --- what it promises -----------------------------------------------------------------------------------------------


def _the_mass_it_promises_is_there(miner: Miner) -> None:
    mass = _facts(miner).mass
    if mass is None or _facts(miner).proposal:
        return
    for name, (scores, targets) in _corners().items():
        weights = _mined(miner, scores, targets).double().exp()
        present = (scores > -torch.inf).scatter(1, targets[:, None], False)
        found = weights.masked_fill(~present, 0.0).sum(1)
        wanted = present.sum(1).double()
        if mass != "all":
            wanted = wanted.clamp(max=mass)
        row = int((found - wanted).argmin())
        require(
            (found >= wanted * (1 - 1e-5)).all(),
            f"{name}: the weights of row {row} sum to {float(found[row]):.6g}, its facts say {float(wanted[row]):g}",
        )


def _monotone_is_monotone(miner: Miner) -> None:
    if not _facts(miner).monotone or _facts(miner).drawn:
        return
    scores, targets = _scores()
    found = _mined(miner, scores, targets)
    for row in range(ANCHORS):
        others = [j for j in range(CANDIDATES) if j != int(targets[row])]
        ordered = found[row, others][scores[row, others].argsort()]
        falls = bool((ordered[1:] < ordered[:-1] - 1e-12).any())
        require(not falls, f"row {row}: a higher score has a lower weight, its facts say monotone")


_CHECKS = (
    _other_shapes_are_refused,
    _weights_have_the_scores_shape,
    _weights_are_neither_nan_nor_infinite,
    _the_target_is_unweighted,
    _a_broken_score_is_not_hidden,
    _empty_and_lonely_rows_are_defined,
    _losses_stay_finite_in_every_corner,
    _gradients_are_those_of_the_weights,
    _absent_candidates_change_nothing,
    _rows_do_not_see_each_other,
    _the_order_of_candidates_does_not_matter,
    _inputs_are_left_alone,
    _views_are_read_as_they_are,
    _survives_pickle_and_deepcopy,
    _the_same_seed_gives_the_same_weights,
    _autocast_changes_nothing,
    _the_mass_it_promises_is_there,
    _monotone_is_monotone,
)


def _scores(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(ANCHORS, CANDIDATES, dtype=torch.float64, generator=generator)
    return scores.to(dtype), torch.randperm(CANDIDATES, generator=generator)[:ANCHORS]


def _corners() -> dict[str, tuple[Tensor, Tensor]]:
    """Ordinary scores, gaps, padding, ties, one negative, scores of +-1e4."""
    scores, targets = _scores()
    shape = (ANCHORS, CANDIDATES)
    own = torch.zeros(shape, dtype=torch.bool).scatter(1, targets[:, None], True)
    gaps = scores.masked_fill(~own & (torch.arange(CANDIDATES) % 3 == 1), -torch.inf)
    padded = scores.clone()
    padded[2] = -torch.inf
    first = (~own).int().argmax(1, keepdim=True)
    lonely = torch.full_like(scores, -torch.inf).scatter(1, targets[:, None], 0.5).scatter(1, first, 0.7)
    return {
        "ordinary scores": (scores, targets),
        "absent candidates": (gaps, targets),
        "a row without any candidate": (padded, targets),
        "nothing but positives": (scores.masked_fill(~own, -torch.inf), targets),
        "one negative a row": (lonely, targets),
        "equal scores": (torch.zeros_like(scores), targets),
        "scores of 1e4": (1e4 * scores.sign() + scores, targets),
    }


def _mined(miner: Miner, scores: Tensor, targets: Tensor, **options: Tensor) -> Tensor:
    torch.manual_seed(5)
    return miner(scores, targets, **options)


def _facts(miner: Miner) -> MiningFacts:
    facts = getattr(miner, "facts", None)
    return facts if isinstance(facts, MiningFacts) else MiningFacts()


def _finite(value: Tensor, leaf: Tensor, what: str) -> None:
    require(torch.isfinite(value).all(), f"{what}: the loss is not finite")
    (gradient,) = torch.autograd.grad(value.sum(), leaf)
    require(torch.isfinite(gradient).all(), f"{what}: the gradient is not finite")
