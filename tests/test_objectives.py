"""One property table over all objectives, and the equalities that make one kernel of many losses."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import references
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import CosFaceLoss, NPairsLoss, NTXentLoss, SupConLoss
from references import INF, close, gradient, refused, scores_with_gaps

from contrastive import (
    Cosine,
    KPairLoss,
    NegativeSquaredDistance,
    additive_margin_loss,
    decoupled_loss,
    kpair_loss,
    lifted_loss,
    multi_similarity_loss,
    ntxent_loss,
    ovo_loss,
    pairwise_loss,
    sigmoid_loss,
    supcon_loss,
    symmetric_loss,
)
from contrastive.objectives import each_positive_loss
from contrastive.rows import softplus
from contrastive.scores import partners, without_self
from miners import debiased, detached, hcl, topk


def hinge(difference):
    return torch.relu(difference + 1.0)


@dataclass(frozen=True)
class Case:
    """An objective, its slow reference, what a row of n equal scores s costs, and what it does not share, and why."""

    objective: Callable
    loop: Callable
    equal: Callable
    exempt: dict = field(default_factory=dict)


ABSOLUTE = {"test_shift_of_a_row": "scores are measured against a constant, not against each other"}
ALONE = dict.fromkeys(
    ["test_rows_with_nothing_but_the_positive_are_solved", "test_one_candidate_and_a_batch_of_one"],
    "the positive has a term of its own, whatever stands beside it",
)


def softplus_of(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# A new objective is one more line, unless it takes a square matrix only: those are in SQUARE.
OBJECTIVES = {
    "kpair_loss": Case(kpair_loss, references.kpair, lambda n, s: math.log(n)),
    "decoupled_loss": Case(decoupled_loss, references.decoupled, lambda n, s: math.log(n - 1) if n > 1 else 0.0),
    "pairwise_loss": Case(pairwise_loss, references.pairwise, lambda n, s: math.log(2) if n > 1 else 0.0),
    "pairwise_loss, hinge": Case(
        functools.partial(pairwise_loss, link=hinge),
        functools.partial(references.pairwise, link=references.hinge),
        lambda n, s: 1.0 if n > 1 else 0.0,
    ),
    "supcon_loss": Case(supcon_loss, references.kpair, lambda n, s: math.log(n)),
    "supcon_loss, others left out": Case(
        functools.partial(supcon_loss, keep_positives=False), references.kpair, lambda n, s: math.log(n)
    ),
    "additive_margin_loss": Case(
        functools.partial(additive_margin_loss, margin=0.7),
        functools.partial(references.additive_margin, margin=0.7),
        lambda n, s: math.log1p((n - 1) * math.exp(0.7)),
    ),
    "ovo_loss": Case(ovo_loss, references.ovo, lambda n, s: (n - 1) * math.log(2)),
    "lifted_loss": Case(lifted_loss, references.lifted, lambda n, s: math.log(n - 1) + 1.0 if n > 1 else 0.0),
    "lifted_loss, softplus": Case(
        functools.partial(lifted_loss, margin=-0.5, link=softplus),
        functools.partial(references.lifted, margin=-0.5, link=references.softplus),
        lambda n, s: math.log1p((n - 1) * math.exp(-0.5)),
    ),
    "multi_similarity_loss": Case(
        multi_similarity_loss,
        references.multi_similarity,
        lambda n, s: (
            softplus_of(-2 * (s - 0.5)) / 2 + (softplus_of(math.log(n - 1) + 50 * (s - 0.5)) / 50 if n > 1 else 0.0)
        ),
        ABSOLUTE | ALONE,
    ),
    "sigmoid_loss": Case(
        sigmoid_loss,
        references.sigmoid,
        lambda n, s: softplus_of(10.0 - s) + (n - 1) * softplus_of(s - 10.0),
        ABSOLUTE | ALONE,
    ),
}
name_of = {key: key.split(",")[0] for key in OBJECTIVES}

# Scores of +-1e4: with differences of the order of 1 beside them, far apart, tied, alone.
EXTREME = torch.tensor(
    [
        [10000.0, 9999.5, 9999.0, 9998.0, -INF],
        [-10000.0, -9999.5, -9999.0, -9998.0, -9990.0],
        [10000.0, -10000.0, -10000.0, -10000.0, -10000.0],
        [-10000.0, 10000.0, 9999.0, -10000.0, -INF],
        [10000.0, 10000.0, 10000.0, 10000.0, 10000.0],
        [-10000.0, -INF, -INF, -INF, -INF],
        [-INF, -INF, -INF, -INF, -INF],
    ],
    dtype=torch.float64,
)


def random_log_weights(scores, targets, *, dropped=0.2):
    log_weights = torch.randn_like(scores).masked_fill(torch.rand_like(scores) < dropped, -INF)
    return log_weights.scatter(1, targets[:, None], 0.0)


@pytest.fixture(params=OBJECTIVES)
def case(request):
    found = OBJECTIVES[request.param]
    if request.function.__name__ in found.exempt:
        pytest.skip(f"{request.param}: {found.exempt[request.function.__name__]}")
    return found


@pytest.fixture
def objective(case):
    return case.objective


@pytest.fixture(params=OBJECTIVES)
def named(request):
    return name_of[request.param], OBJECTIVES[request.param].objective


def test_what_is_exempt_is_a_property():
    for case in OBJECTIVES.values():
        assert all(hasattr(TestEveryObjective, name) for name in case.exempt)


class TestEveryObjective:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equals_its_loop(self, case, weighted):
        objective, loop = case.objective, case.loop
        scores, targets = scores_with_gaps(6, 9)
        scores[2] = -INF
        scores[3] = torch.full((9,), -INF, dtype=torch.float64).scatter(0, targets[3], 1.5)
        log_weights = random_log_weights(scores, targets) if weighted else None
        close(objective(scores, targets, log_weights=log_weights), loop(scores, targets, log_weights), 1e-13)

    def test_takes_the_diagonal_without_targets(self, objective):
        scores = torch.randn(3, 5)
        assert torch.equal(objective(scores), objective(scores, torch.arange(3)))

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-11), (torch.float32, 1e-6), (torch.float16, 1e-6), (torch.bfloat16, 1e-6)],
    )
    @pytest.mark.parametrize("weighted", [False, True])
    def test_scores_of_ten_thousand(self, case, dtype, tolerance, weighted):
        objective, loop = case.objective, case.loop
        scores = EXTREME.to(dtype)
        targets = torch.zeros(len(scores), dtype=torch.int64)
        log_weights = random_log_weights(EXTREME, targets).to(dtype) if weighted else None
        close(objective(scores, targets, log_weights=log_weights), loop(scores, targets, log_weights), tolerance)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("scores", [EXTREME, EXTREME / 1e4], ids=["1e4", "1"])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_gradient_in_low_precision(self, objective, dtype, scores, weighted):
        targets = torch.zeros(len(scores), dtype=torch.int64)
        given = [scores.to(dtype), *([random_log_weights(scores, targets).to(dtype)] if weighted else [])]

        def gradients(inputs):
            inputs = [x.requires_grad_() for x in inputs]
            log_weights = inputs[1] if weighted else None
            return gradient(objective(inputs[0], targets, log_weights=log_weights), *inputs)

        for actual, expected in zip(gradients(given), gradients([x.detach().double() for x in given]), strict=True):
            assert actual.dtype == dtype
            assert torch.isfinite(actual).all()
            close(actual, expected, max(torch.finfo(dtype).eps, 2e-6))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_single(self, case, dtype):
        objective, loop = case.objective, case.loop
        scores, targets = scores_with_gaps(8, 12, dtype=dtype, scale=5.0)
        log_weights = random_log_weights(scores, targets)
        loss = objective(scores, targets, log_weights=log_weights)
        assert loss.dtype == torch.float32
        close(loss, loop(scores, targets, log_weights), 1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_autocast_changes_nothing(self, objective, dtype):
        scores, targets = scores_with_gaps(4, 6, dtype=dtype)
        log_weights = random_log_weights(scores, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = objective(scores, targets, log_weights=log_weights)
        assert loss.dtype == dtype
        assert torch.equal(loss, objective(scores, targets, log_weights=log_weights))

    @pytest.mark.parametrize("weighted", [False, True])
    def test_padding_rows_cost_nothing_and_move_nothing(self, objective, weighted):
        scores, targets = scores_with_gaps(5, 9)
        padding = torch.tensor([False, True, False, True, False])
        scores = scores.masked_fill(padding[:, None], -INF).requires_grad_()
        log_weights = None
        if weighted:
            # Whatever stands in a padding row: the miners write zeros, a hand-made mask may write -inf throughout.
            log_weights = random_log_weights(scores.detach(), targets)
            log_weights[1] = -INF
            log_weights[3] = 7.0
            log_weights.requires_grad_()
        loss = objective(scores, targets, log_weights=log_weights)
        assert loss[padding].tolist() == [0.0, 0.0]
        for found in gradient(loss, *[x for x in (scores, log_weights) if x is not None]):
            assert torch.isfinite(found).all()
            assert not found[padding].any()
            assert found[~padding].any()
        kept = None if log_weights is None else log_weights[~padding]
        assert torch.equal(loss[~padding], objective(scores[~padding], targets[~padding], log_weights=kept))

    @pytest.mark.parametrize("gap", ["absent", "dropped"])
    @pytest.mark.parametrize("value", [0.0, 3.0, -1e4, 1e4])
    def test_rows_with_nothing_but_the_positive_are_solved(self, objective, gap, value):
        scores = torch.tensor([[value, 0.3, -0.2], [1.0, 0.0, 0.0]])
        log_weights = torch.zeros(2, 3)
        (scores if gap == "absent" else log_weights)[0, 1:] = -INF
        scores.requires_grad_()
        log_weights.requires_grad_()
        loss = objective(scores, torch.tensor([0, 0]), log_weights=log_weights)
        assert float(loss[0].detach()) == 0.0
        by_score, by_weight = gradient(loss, scores, log_weights)
        assert by_score[0].tolist() == [0.0, 0.0, 0.0]
        assert by_weight[0, 1:].tolist() == [0.0, 0.0]
        assert torch.isfinite(by_score).all()
        assert torch.isfinite(by_weight).all()

    def test_one_candidate_and_a_batch_of_one(self, objective):
        for scores in (torch.tensor([[3.0]]), torch.randn(4, 1)):
            scores.requires_grad_()
            targets = torch.zeros(len(scores), dtype=torch.int64)
            loss = objective(scores, targets)
            assert loss.tolist() == [0.0] * len(scores)
            assert not gradient(loss, scores)[0].any()

    @pytest.mark.parametrize("candidates", [0, 5])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_an_empty_batch(self, objective, candidates, dtype):
        scores = torch.zeros(0, candidates, dtype=dtype, requires_grad=True)
        loss = objective(scores, log_weights=torch.zeros_like(scores))
        assert loss.shape == (0,)
        assert loss.dtype == (torch.float32 if dtype == torch.float16 else dtype)
        assert gradient(loss, scores)[0].shape == (0, candidates)
        assert torch.equal(loss, objective(scores, torch.zeros(0, dtype=torch.int64)))

    @pytest.mark.parametrize("value", [0.0, 1e4, -1e4])
    def test_equal_scores(self, case, value):
        for candidates in (1, 2, 7):
            loss = case.objective(torch.full((1, candidates), value))
            assert float(loss) == pytest.approx(case.equal(candidates, value), abs=1e-6, rel=3e-7)

    def test_ties_share_the_gradient(self, objective):
        scores = torch.tensor([[0.5, 1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
        (found,) = gradient(objective(scores), scores)
        assert found[0, 1] == found[0, 2] == found[0, 3]

    @pytest.mark.parametrize("difference", [-1e4, -40.0, -1.0, 15.0, 21.0, 30.0, 39.0, 41.0, 1e4])
    def test_all_digits_of_a_single_difference(self, case, difference):
        # A softplus that turns linear at 20 is off by 2e-9 there.
        scores = torch.tensor([[0.0, difference]], dtype=torch.float64)
        close(case.objective(scores), case.loop(scores, torch.tensor([0])), 1e-15)

    def test_shift_of_a_row(self, objective):
        scores, targets = scores_with_gaps(5, 7)
        log_weights = random_log_weights(scores, targets)
        shifts = torch.tensor([0.0, 1.0, -3.0, 40.0, -100.0], dtype=torch.float64)[:, None]
        moved = objective(scores + shifts, targets, log_weights=log_weights)
        close(moved, objective(scores, targets, log_weights=log_weights), 1e-13)

    def test_order_of_candidates_and_anchors(self, objective):
        scores, targets = scores_with_gaps(5, 7)
        log_weights = random_log_weights(scores, targets)
        loss = objective(scores, targets, log_weights=log_weights)
        columns, rows = torch.randperm(7), torch.randperm(5)
        moved = objective(scores[:, columns], columns.argsort()[targets], log_weights=log_weights[:, columns])
        close(moved, loss, 1e-14)
        close(objective(scores[rows], targets[rows], log_weights=log_weights[rows]), loss[rows], 1e-14)

    @pytest.mark.parametrize("weight", [0.0, 1e4, -1e4, -INF])
    def test_an_absent_candidate_is_no_candidate(self, objective, weight):
        scores, targets = scores_with_gaps(4, 6, absent=0.0)
        log_weights = random_log_weights(scores, targets)
        wide = torch.cat([scores, torch.full((4, 2), -INF, dtype=torch.float64)], 1).requires_grad_()
        wide_weights = torch.cat([log_weights, torch.full((4, 2), weight, dtype=torch.float64)], 1).requires_grad_()
        narrow, narrow_weights = scores.requires_grad_(), log_weights.requires_grad_()
        loss = objective(wide, targets, log_weights=wide_weights)
        expected = objective(narrow, targets, log_weights=narrow_weights)
        close(loss, expected.detach(), 1e-15)
        for found, kept in zip(
            gradient(loss, wide, wide_weights), gradient(expected, narrow, narrow_weights), strict=True
        ):
            close(found[:, :6], kept, 1e-15)
            assert found[:, 6:].tolist() == [[0.0, 0.0]] * 4

    def test_gradients_of_first_and_second_order(self, objective):
        scores, targets = scores_with_gaps(3, 5, absent=0.0)
        log_weights = random_log_weights(scores, targets, dropped=0.0)

        # The target's log-weight is 0 by definition: what the objectives make of another value is not compared.
        def weighted(s, w):
            return objective(s, targets, log_weights=w.scatter(1, targets[:, None], 0.0))

        inputs = (scores.requires_grad_(), log_weights.requires_grad_())
        assert torch.autograd.gradcheck(weighted, inputs)
        assert torch.autograd.gradgradcheck(weighted, inputs)
        assert torch.autograd.gradcheck(lambda s: objective(s, targets), inputs[:1])

    def test_gradients_beside_gaps(self, objective):
        scores, targets = scores_with_gaps(4, 6)
        scores[1] = -INF
        present = scores > -INF
        log_weights = random_log_weights(scores, targets)

        def filled(values):
            return objective(
                torch.full_like(scores, -INF).masked_scatter(present, values), targets, log_weights=log_weights
            )

        assert torch.autograd.gradcheck(filled, (scores[present].requires_grad_(),))

    def test_inputs_are_left_alone_and_need_not_be_contiguous(self, objective):
        scores, targets = scores_with_gaps(4, 6)
        scores[2] = -INF
        log_weights = random_log_weights(scores, targets)
        before = [x.clone() for x in (scores, targets, log_weights)]
        loss = objective(scores, targets, log_weights=log_weights)
        for x, y in zip((scores, targets, log_weights), before, strict=True):
            assert torch.equal(x, y)
        strided = scores.T.contiguous().T, torch.stack([targets, targets], 1)[:, 0]
        assert not any(x.is_contiguous() for x in strided)
        assert torch.equal(loss, objective(*strided, log_weights=log_weights.repeat(1, 2)[:, :6]))

    @pytest.mark.parametrize("weighted", [False, True])
    def test_an_absent_target_is_refused(self, named, weighted):
        name, objective = named
        scores = torch.zeros(3, 4)
        scores[1, 2] = -INF
        log_weights = torch.zeros(3, 4) if weighted else None
        with refused(name, "row 1", "absent"):
            objective(scores, torch.tensor([0, 2, 0]), log_weights=log_weights)

    @pytest.mark.parametrize("value", [math.nan, INF])
    @pytest.mark.parametrize("column", [0, 1, 2])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_nan_and_infinite_scores_are_refused_wherever_they_stand(self, named, value, column, weighted):
        name, objective = named
        scores = torch.zeros(3, 4)
        scores[0] = -INF
        scores[2, column] = value
        log_weights = None
        if weighted:
            log_weights = torch.zeros(3, 4)
            log_weights[:, 2] = -INF  # a dropped candidate's score is checked like any other
        with refused(name, "row 2", "NaN or +inf score"):
            objective(scores, torch.zeros(3, dtype=torch.int64), log_weights=log_weights)

    @pytest.mark.parametrize("value", [math.nan, INF])
    def test_a_broken_positive_is_refused_where_it_stands_alone(self, named, value):
        name, objective = named
        for scores in (torch.tensor([[0.0], [value]]), torch.tensor([[0.0, 1.0], [value, -INF]])):
            with refused(name, "row 1", "NaN or +inf score"):
                objective(scores, torch.tensor([0, 0]))

    @pytest.mark.parametrize("shape", [(4,), (1, 3, 4), ()])
    def test_scores_of_another_rank_are_refused(self, named, shape):
        name, objective = named
        with refused(name, str(shape), "[anchors, candidates]"):
            objective(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_what_does_not_float_is_refused(self, named, dtype):
        name, objective = named
        with refused(name, "scores", str(dtype), "floating-point"):
            objective(torch.zeros(3, 4, dtype=dtype))
        with refused(name, "log_weights", str(dtype), "floating-point"):
            objective(torch.zeros(3, 4), log_weights=torch.zeros(3, 4, dtype=dtype))

    def test_targets_that_do_not_fit_are_refused(self, named):
        name, objective = named
        scores = torch.zeros(3, 4)
        for wrong in ([0], [0, 1], [0, 1, 2, 3]):  # one would broadcast in silence
            with refused(name, f"({len(wrong)},)", "[3]"):
                objective(scores, torch.tensor(wrong))
        for wrong in (-1, 4):
            with refused(name, str(wrong), "[0, 3]"):
                objective(scores, torch.tensor([0, wrong, 1]))
        with refused(name, "torch.float32", "integer"):
            objective(scores, torch.zeros(3))
        with refused(name, "(3, 2)", "at least 3 candidates"):
            objective(scores[:, :2])

    @pytest.mark.parametrize("value", [math.nan, INF])
    def test_nan_and_infinite_log_weights_are_refused(self, named, value):
        name, objective = named
        log_weights = torch.zeros(3, 4)
        log_weights[1, 2] = value
        with refused(name, "row 1", "log_weights"):
            objective(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), log_weights=log_weights)


class TestKpair:
    def test_is_cross_entropy(self):
        scores, targets = scores_with_gaps(8, 8)
        assert torch.equal(kpair_loss(scores, targets), F.cross_entropy(scores, targets, reduction="none"))
        mined = kpair_loss(scores, targets, log_weights=torch.zeros_like(scores))
        close(mined, F.cross_entropy(scores, targets, reduction="none"), 1e-14)

    def test_with_two_candidates_is_the_logistic_triplet(self):
        positive, negative = torch.randn(2, 9, dtype=torch.float64)
        scores = torch.stack([positive, negative], 1)
        targets = torch.zeros(9, dtype=torch.int64)
        close(kpair_loss(scores, targets), F.softplus(negative - positive), 1e-15)
        close(pairwise_loss(scores, targets), F.softplus(negative - positive), 1e-15)

    def test_a_queue_is_more_columns(self):
        q, k, queue = (F.normalize(torch.randn(n, 8, dtype=torch.float64)) for n in (5, 5, 11))
        # He et al. (2020), algorithm 1: the positive first, then the queue; the other keys do not take part.
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.07
        moco = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64), reduction="none")
        in_batch = (q @ k.T / 0.07).masked_fill(~torch.eye(5, dtype=torch.bool), -INF)
        close(kpair_loss(torch.cat([in_batch, q @ queue.T / 0.07], 1)), moco, 1e-14)

    @pytest.mark.parametrize("weighted", [False, True])
    def test_without_weight_at_the_target_is_decoupled(self, weighted):
        scores, targets = scores_with_gaps(6, 7)
        log_weights = random_log_weights(scores, targets) if weighted else torch.zeros_like(scores)
        left_out = log_weights.scatter(1, targets[:, None], -INF)
        close(
            kpair_loss(scores, targets, log_weights=left_out),
            decoupled_loss(scores, targets, log_weights=log_weights),
            1e-14,
        )

    def test_dropping_every_candidate_is_refused(self):
        with refused("kpair_loss", "row 1", "log_weights"):
            kpair_loss(torch.zeros(2, 3), log_weights=torch.tensor([[0.0] * 3, [-INF] * 3]))


# Objectives of a square matrix: name, (objective, its loop, its scores made of random ones).
SQUARE = {
    "ntxent_loss": (ntxent_loss, references.ntxent, lambda s: s.clone().fill_diagonal_(math.nan)),
    "symmetric_loss": (symmetric_loss, references.symmetric, lambda s: s),
    "symmetric_loss, decoupled": (
        functools.partial(symmetric_loss, objective=decoupled_loss),
        functools.partial(references.symmetric, loop=references.decoupled),
        lambda s: s,
    ),
}


@pytest.fixture(params=SQUARE)
def square(request):
    return SQUARE[request.param]


def padded(scores, *pairs):
    """The rows and columns of some pairs, or views, -inf."""
    scores = scores.clone()
    scores[list(pairs)] = scores[:, list(pairs)] = -INF
    return scores


class TestEverySquareObjective:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.float16, 2e-6), (torch.bfloat16, 2e-6)],
    )
    @pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
    def test_equals_its_loop(self, square, dtype, tolerance, offset):
        objective, loop, drawn = square
        scores = drawn(torch.randn(8, 8, dtype=torch.float64) * 3 + offset).to(dtype)
        loss = objective(scores)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(loss, loop(scores), tolerance)

    def test_scores_far_apart(self, square):
        objective, loop, drawn = square
        scores = drawn(torch.randn(6, 6, dtype=torch.float64).sign() * 1e4)
        close(objective(scores.float()), loop(scores), 1e-6)

    def test_padding_costs_nothing_and_moves_nothing(self, square):
        objective, _, drawn = square
        scores = drawn(torch.randn(6, 6, dtype=torch.float64))
        kept = [0, 2, 3, 5]  # both views of a sample go
        wide = padded(scores, 1, 4).requires_grad_()
        narrow = scores[kept][:, kept].requires_grad_()
        loss, expected = objective(wide), objective(narrow)
        assert loss[[1, 4]].tolist() == [0.0, 0.0]
        close(loss[kept], expected.detach(), 1e-14)
        found, inner = gradient(loss, wide)[0], gradient(expected, narrow)[0]
        close(found[kept][:, kept], inner, 1e-14)
        assert not found[[1, 4]].any()
        assert not found[:, [1, 4]].any()

    def test_order_of_pairs_and_a_shift_of_all_scores(self, square):
        objective, _, drawn = square
        scores = drawn(torch.randn(8, 8, dtype=torch.float64))
        pairs = torch.tensor([1, 2, 0, 3])
        order = torch.cat([pairs, pairs + 4])  # two views move together; to the others it is an order of pairs
        loss = objective(scores)
        close(objective(scores[order][:, order]), loss[order], 1e-14)
        close(objective(scores + 7.0), loss, 1e-13)

    @pytest.mark.parametrize("size", [0, 2])
    def test_an_empty_batch_and_a_single_sample(self, square, size):
        objective, loop, drawn = square
        scores = drawn(torch.randn(size, size)).requires_grad_()
        loss = objective(scores)
        assert loss.shape == (size,)
        close(loss, loop(scores.detach()), 1e-6)
        assert gradient(loss, scores)[0].isfinite().all()

    def test_gradients_of_first_and_second_order(self, square):
        objective, _, _ = square
        scores = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(objective, (scores,))
        assert torch.autograd.gradgradcheck(objective, (scores,))

    @pytest.mark.parametrize("value", [math.nan, INF])
    def test_nan_and_infinite_scores_are_refused(self, square, value):
        objective, _, _ = square
        scores = torch.zeros(4, 4)
        scores[2, 1] = value
        with refused("_loss", "row 2", "NaN or +inf score"):
            objective(scores)

    def test_an_absent_target_is_refused(self, square):
        objective, _, _ = square
        scores = torch.zeros(4, 4)
        scores[1, 1] = scores[1, 3] = -INF
        with refused("_loss", "row 1", "absent"):
            objective(scores)

    @pytest.mark.parametrize("shape", [(2, 4), (4, 2), (4,), (2, 2, 2), ()])
    def test_another_shape_is_refused(self, square, shape):
        objective, _, _ = square
        name = "ntxent_loss" if objective is ntxent_loss else "symmetric_loss"
        with refused(name, str(shape), "expected"):
            objective(torch.zeros(shape))

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
    def test_scores_that_do_not_float_are_refused(self, square, dtype):
        objective, _, _ = square
        name = "ntxent_loss" if objective is ntxent_loss else "symmetric_loss"
        with refused(name, str(dtype), "floating-point"):
            objective(torch.zeros(4, 4, dtype=dtype))


class TestNtxent:
    def test_equals_the_peer(self):
        first, second = (F.normalize(torch.randn(4, 5, dtype=torch.float64)) for _ in range(2))
        z = torch.cat([first, second])
        close(ntxent_loss(z @ z.T / 0.5).mean(), NTXentLoss(0.5)(z, torch.arange(4).repeat(2)), 1e-14)

    @pytest.mark.parametrize("value", [math.nan, INF, -INF, 0.0, 1e4])
    def test_whatever_stands_at_the_self_pair_is_left_out(self, value):
        scores = torch.randn(6, 6, dtype=torch.float64)
        changed = scores.clone().fill_diagonal_(value).requires_grad_()
        loss = ntxent_loss(changed)
        assert torch.equal(loss, ntxent_loss(scores))
        (found,) = gradient(loss, changed)
        assert found.isfinite().all()
        assert not found.diagonal().any()

    def test_is_kpair_of_its_pieces_mined_or_not(self):
        scores = torch.randn(8, 8, dtype=torch.float64)
        pieces = without_self(scores), partners(8)
        log_weights = hcl(1.0)(*pieces)
        assert torch.equal(ntxent_loss(scores), kpair_loss(*pieces))
        assert torch.equal(ntxent_loss(scores, log_weights=log_weights), kpair_loss(*pieces, log_weights=log_weights))
        close(ntxent_loss(scores, log_weights=log_weights), references.ntxent(scores, log_weights), 1e-13)

    def test_an_odd_number_of_views_is_refused(self):
        with refused("ntxent_loss", "(3, 3)", "even"):
            ntxent_loss(torch.zeros(3, 3))

    def test_log_weights_that_do_not_fit_are_refused_in_its_own_name(self):
        with refused("ntxent_loss", "(1, 4)", "(4, 4)"):
            ntxent_loss(torch.zeros(4, 4), log_weights=torch.zeros(1, 4))
        with refused("ntxent_loss", "row 0", "log_weights"):
            ntxent_loss(torch.zeros(4, 4), log_weights=torch.full((4, 4), math.nan))


class TestSymmetric:
    def test_is_the_criterion(self):
        x, y = torch.randn(6, 5), torch.randn(6, 5)
        critic = Cosine(temperature=0.3)
        close(symmetric_loss(critic(x, y)).mean(), float(KPairLoss(critic)(x, y)), 1e-6)

    def test_a_symmetric_matrix_has_one_direction(self):
        scores = torch.randn(5, 5, dtype=torch.float64)
        close(symmetric_loss(scores + scores.T), kpair_loss(scores + scores.T), 1e-14)

    def test_a_miner_sees_the_rows_of_each_direction(self):
        scores = torch.randn(6, 6, dtype=torch.float64)
        targets, miner = torch.arange(6), topk(2)

        def mined(s):
            return kpair_loss(s, log_weights=miner(s, targets))

        close(symmetric_loss(scores, objective=mined), (mined(scores) + mined(scores.T)) / 2, 1e-15)

    def test_any_objective_sees_single_precision(self):
        scores = torch.tensor([[1000.0, 0.0], [0.0, 0.5]], dtype=torch.float16)
        assert symmetric_loss(scores, objective=lambda s: s.diagonal() * s.diagonal()).tolist() == [1e6, 0.25]

    def test_the_other_direction_is_checked_too(self):
        scores = torch.zeros(3, 3)
        scores[1] = -INF  # its column is not: as an anchor, y_1 has no positive
        with refused("kpair_loss", "row 1", "absent"):
            symmetric_loss(scores)


class TestAdditiveMargin:
    @pytest.mark.parametrize("margin", [0.0, 0.4, 5.0, -1.0])
    def test_is_subtracted_from_the_positive(self, margin):
        scores, targets = scores_with_gaps(6, 7)
        log_weights = random_log_weights(scores, targets)
        moved = scores - margin * F.one_hot(targets, 7).double()
        close(additive_margin_loss(scores, targets, margin=margin), kpair_loss(moved, targets), 1e-14)
        close(
            additive_margin_loss(scores, targets, margin=margin, log_weights=log_weights),
            kpair_loss(moved, targets, log_weights=log_weights),
            1e-14,
        )

    def test_equals_the_peer_in_score_units(self):
        peer = CosFaceLoss(num_classes=5, embedding_size=4, margin=0.35, scale=30.0).double()
        z, labels = torch.randn(8, 4, dtype=torch.float64), torch.randint(5, (8,))
        cosines = F.normalize(z) @ F.normalize(peer.W, dim=0)
        close(additive_margin_loss(30 * cosines, labels, margin=30 * 0.35).mean(), peer(z, labels), 1e-13)

    def test_keeps_the_digits_of_a_small_margin_beside_large_scores(self):
        scores = torch.tensor([[1e4, 1e4]])
        close(additive_margin_loss(scores, margin=1e-4), [math.log1p(math.exp(1e-4))], 2e-7)

    @pytest.mark.parametrize("margin", [math.nan, INF, -INF])
    def test_a_margin_that_is_not_finite_is_refused(self, margin):
        with refused("additive_margin_loss", str(margin), "finite"):
            additive_margin_loss(torch.zeros(2, 2), margin=margin)


class TestPairwise:
    def test_is_never_more_than_kpair(self):
        scores, targets = scores_with_gaps(50, 9, scale=3.0)
        assert (pairwise_loss(scores, targets) <= kpair_loss(scores, targets) + 1e-14).all()

    def test_hinge_on_distances_is_the_margin_triplet_loss(self):
        x, y = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
        scores = NegativeSquaredDistance()(x, y)
        for i in range(5):
            triplets = [
                F.triplet_margin_with_distance_loss(
                    x[i], y[i], y[j], distance_function=lambda a, b: (a - b).square().sum(-1), margin=1.0
                )
                for j in range(5)
                if j != i
            ]
            close(pairwise_loss(scores, link=hinge)[i], torch.stack(triplets).mean(), 1e-13)

    def test_weights_are_a_share(self):
        scores, targets = scores_with_gaps(4, 6)
        log_weights = random_log_weights(scores, targets)
        one = pairwise_loss(scores, targets, log_weights=log_weights)
        close(pairwise_loss(scores, targets, log_weights=log_weights + 3.0), one, 1e-14)

    def test_a_link_that_is_undefined_at_a_dropped_pair(self):
        scores = torch.tensor([[0.0, 1.0, -INF, 50.0]], requires_grad=True)
        log_weights = torch.tensor([[0.0, 0.0, 0.0, -INF]])
        loss = pairwise_loss(scores, link=lambda d: (10.0 - d).sqrt(), log_weights=log_weights)
        assert loss.tolist() == [3.0]
        assert gradient(loss, scores)[0].isfinite().all()

    def test_a_bounded_link_does_not_hide_a_broken_score(self):
        scores = torch.tensor([[0.0, INF, 1.0]])
        with refused("pairwise_loss", "row 0", "+inf"):
            pairwise_loss(scores, link=torch.sigmoid)
        with refused("pairwise_loss", "row 0", "absent"):
            pairwise_loss(torch.tensor([[-INF, 2.0]]), link=torch.sigmoid)

    def test_a_link_that_overflows_is_refused(self):
        with refused("pairwise_loss", "row 0", "link"):
            pairwise_loss(torch.tensor([[0.0, 1e4]]), link=torch.exp)


def labelled(anchors=8, classes=3):
    """A batch of one view with labels: the self pair is absent, the class mates are positives."""
    z = F.normalize(torch.randn(anchors, 5, dtype=torch.float64))
    labels = torch.arange(anchors) % classes
    positives = (labels[:, None] == labels).fill_diagonal_(False)
    return z, labels, positives


class TestSupcon:
    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equals_its_loop(self, keep, weighted):
        z, _, positives = labelled()
        scores = (z @ z.T / 0.3).fill_diagonal_(-INF)
        positives[2] = False  # an anchor without a class mate
        log_weights = torch.randn_like(scores).masked_fill(torch.rand_like(scores) < 0.2, -INF) if weighted else None
        loss = supcon_loss(scores, positives, log_weights=log_weights, keep_positives=keep)
        close(loss, references.supcon(scores, positives, log_weights, keep_positives=keep), 1e-13)
        assert loss[2] == 0

    @pytest.mark.parametrize("keep", [True, False])
    def test_is_one_row_of_kpair_per_positive(self, keep):
        z, _, positives = labelled()
        scores = (z @ z.T / 0.3).fill_diagonal_(-INF)
        anchors, columns = positives.nonzero(as_tuple=True)
        rows = scores[anchors]
        if not keep:
            others = positives[anchors].scatter(1, columns[:, None], False)
            rows = rows.masked_fill(others, -INF)
        losses = kpair_loss(rows, columns)
        means = torch.stack([losses[anchors == i].mean() for i in range(len(scores))])
        close(supcon_loss(scores, positives, keep_positives=keep), means, 1e-14)

    def test_equals_the_peers(self):
        z, labels, positives = labelled()
        scores = (z @ z.T / 0.3).fill_diagonal_(-INF)
        close(supcon_loss(scores, positives).mean(), SupConLoss(0.3)(z, labels), 1e-13)
        # NTXentLoss is the mean over positive pairs, so an anchor counts once for each of its positives.
        pairs = positives.sum(1)
        left_out = supcon_loss(scores, positives, keep_positives=False)
        close((left_out * pairs).sum() / pairs.sum(), NTXentLoss(0.3)(z, labels), 1e-13)

    @pytest.mark.parametrize("keep", [True, False])
    def test_order_and_shift(self, keep):
        z, _, positives = labelled()
        scores = (z @ z.T / 0.3).fill_diagonal_(-INF)
        loss = supcon_loss(scores, positives, keep_positives=keep)
        rows, columns = torch.randperm(8), torch.randperm(8)
        moved = scores[rows][:, columns] + torch.linspace(-100, 100, 8, dtype=torch.float64)[:, None]
        close(supcon_loss(moved, positives[rows][:, columns], keep_positives=keep), loss[rows], 1e-13)

    def test_a_mask_of_one_positive_is_a_target(self):
        scores, targets = scores_with_gaps(5, 7)
        mask = F.one_hot(targets, 7).bool()
        assert torch.equal(supcon_loss(scores, mask), supcon_loss(scores, targets))

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
    def test_scores_of_ten_thousand(self, keep, dtype, tolerance):
        scores = EXTREME.to(dtype)
        positives = (torch.arange(5) < 2).expand(len(scores), 5) & (scores > -INF)
        loss = supcon_loss(scores, positives, keep_positives=keep)
        close(loss, references.supcon(scores, positives, keep_positives=keep), tolerance)

    @pytest.mark.parametrize("keep", [True, False])
    def test_gradients_with_several_positives(self, keep):
        scores = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        positives = torch.rand(4, 6) < 0.4
        positives[1], positives[2] = False, True  # none, and nothing else

        def loss(s):
            return supcon_loss(s, positives, keep_positives=keep)

        assert torch.autograd.gradcheck(loss, (scores,))
        assert torch.autograd.gradgradcheck(loss, (scores,))

    def test_what_stands_at_positives_is_ignored(self):
        z, _, positives = labelled()
        scores = (z @ z.T).fill_diagonal_(-INF)
        log_weights = torch.randn_like(scores)
        wild = log_weights.masked_fill(positives, math.nan)
        assert torch.equal(
            supcon_loss(scores, positives, log_weights=wild), supcon_loss(scores, positives, log_weights=log_weights)
        )

    @pytest.mark.parametrize("value", [math.nan, INF])
    @pytest.mark.parametrize("keep", [True, False])
    def test_a_row_without_a_positive_is_checked_too(self, value, keep):
        scores = torch.zeros(2, 3)
        scores[1, 2] = value
        with refused("supcon_loss", "row 1"):
            supcon_loss(scores, torch.tensor([[True, False, False], [False] * 3]), keep_positives=keep)

    def test_an_absent_positive_is_refused(self):
        scores = torch.tensor([[0.0, 1.0, 2.0], [0.0, -INF, 2.0]])
        with refused("supcon_loss", "row 1", "absent"):
            supcon_loss(scores, torch.tensor([[True, True, False], [True, True, False]]))

    @pytest.mark.parametrize("loss", [supcon_loss, each_positive_loss, lifted_loss])
    def test_labels_without_a_single_positive_are_refused(self, loss):
        nobody = torch.zeros(3, 4, dtype=torch.bool)
        with refused(loss.__name__, "no row has a positive"):
            loss(torch.zeros(3, 4), nobody)
        scores = torch.full((3, 4), -INF)
        assert not loss(scores, nobody).any()  # padding throughout needs none
        scores[1, 2] = 0.0
        with refused(loss.__name__, "no row has a positive"):
            loss(scores, nobody)

    @pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,)])
    def test_a_mask_of_another_shape_is_refused(self, shape):
        with refused("supcon_loss", str(shape), "(2, 3)"):
            supcon_loss(torch.zeros(2, 3), torch.zeros(shape, dtype=torch.bool))


class TestEachPositive:
    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.float16, 2e-6), (torch.bfloat16, 2e-6)],
    )
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("offset", [0.0, 1e4])
    def test_equals_its_loop(self, dtype, tolerance, weighted, offset):
        scores, targets = scores_with_gaps(6, 9, scale=3.0)
        positives = ((torch.rand(6, 9) < 0.3) & (scores > -INF)).scatter(1, targets[:, None], True)
        positives[2] = False  # without a class mate
        scores[4] = -INF  # padding, whatever its mask says
        positives[4, 1] = True
        scores = (scores + offset).to(dtype)
        log_weights = random_log_weights(scores, targets) if weighted else None
        loss = each_positive_loss(scores, positives, log_weights=log_weights)
        expected = references.each_positive(scores, positives & (scores > -INF), log_weights)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        close(loss, expected, tolerance)
        assert not loss[~positives].any()
        assert not loss[[2, 4]].any()

    def test_the_mean_of_a_row_is_supcon_without_the_other_positives(self):
        z, _, positives = labelled()
        scores = (z @ z.T / 0.3).fill_diagonal_(-INF)
        means = each_positive_loss(scores, positives).sum(1) / positives.sum(1)
        close(means, supcon_loss(scores, positives, keep_positives=False), 1e-14)

    def test_gradients_of_first_and_second_order(self):
        scores = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        log_weights = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
        positives = torch.rand(4, 6) < 0.4
        positives[1], positives[2] = False, True  # none, and nothing else

        def loss(s, w):
            return each_positive_loss(s, positives, log_weights=w)

        assert torch.autograd.gradcheck(loss, (scores, log_weights))
        assert torch.autograd.gradgradcheck(loss, (scores, log_weights))

    def test_a_broken_row_is_named(self):
        positives = torch.tensor([[True, False, False], [True, True, False]])
        for value, word in ((math.nan, "NaN or +inf score"), (INF, "NaN or +inf score"), (-INF, "absent")):
            scores = torch.zeros(2, 3)
            scores[1, 1] = value
            with refused("each_positive_loss", "row 1", word):
                each_positive_loss(scores, positives)


class TestPeersWithOnePositive:
    def test_npairs_and_one_direction_of_ntxent_are_cross_entropy(self):
        x, y = (F.normalize(torch.randn(6, 5, dtype=torch.float64)) for _ in range(2))
        labels = torch.arange(6)
        one_direction = NTXentLoss(0.2)(x, labels, ref_emb=y, ref_labels=labels.clone())
        close(kpair_loss(x @ y.T / 0.2).mean(), one_direction, 1e-14)
        interleaved = torch.stack([x, y], 1).flatten(0, 1)
        close(kpair_loss(x @ y.T).mean(), NPairsLoss()(interleaved, labels.repeat_interleave(2)), 1e-14)


class TestHardNegativeLearning:
    """HCL and debiasing against the official criterion, in all of its regimes."""

    @staticmethod
    def ours(first, second, miner, temperature):
        z = torch.cat([first, second])
        scores = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), -INF)
        targets = torch.arange(len(z)).roll(len(first))
        return kpair_loss(scores, targets, log_weights=miner(scores, targets))

    @pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.3, 0.6, 0.9])
    @pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
    @pytest.mark.parametrize("temperature", [0.5, 0.2])
    def test_equals_the_official_criterion(self, tau_plus, beta, temperature):
        noise = torch.randn(6, 4, dtype=torch.float64)
        first = F.normalize(noise).requires_grad_()
        second = F.normalize(noise + 0.7 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
        official = references.hcl_criterion(first, second, temperature=temperature, beta=beta, tau_plus=tau_plus)
        floor = -1 / temperature
        miner = hcl(beta, tau_plus, min_score=floor) if beta else debiased(tau_plus, min_score=floor)
        loss = self.ours(first, second, miner, temperature)
        close(loss, official.detach(), 1e-12)
        for found, expected in zip(gradient(loss, first, second), gradient(official, first, second), strict=True):
            close(found, expected, 1e-12)

    def test_the_cases_above_reach_the_clamp(self):
        noise = torch.randn(6, 4, dtype=torch.float64)
        first = F.normalize(noise)
        second = F.normalize(noise + 0.7 * torch.randn(6, 4, dtype=torch.float64))
        shares = []
        for tau_plus in (0.1, 0.3, 0.6, 0.9):
            loss = references.hcl_criterion(first, second, temperature=0.5, beta=1.0, tau_plus=tau_plus)
            clamped = torch.log1p(10 * torch.exp(-2 - (first * second).sum(1) / 0.5)).repeat(2)
            shares.append(float((loss - clamped).abs().lt(1e-12).double().mean()))
        assert shares[0] < 0.5 < shares[-1]

    def test_without_tilt_and_correction_is_plain(self):
        scores, targets = scores_with_gaps(5, 8)
        for miner in (hcl(0.0), debiased(0.0)):
            close(kpair_loss(scores, targets, log_weights=miner(scores, targets)), kpair_loss(scores, targets), 1e-14)

    @pytest.mark.parametrize("miner", [hcl(1.0), hcl(2.0, 0.1), debiased(0.1)], ids=repr)
    def test_detached_keeps_the_value_and_changes_the_gradient(self, miner):
        scores = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
        targets = torch.arange(5)
        attached = kpair_loss(scores, targets, log_weights=miner(scores, targets))
        stopped = kpair_loss(scores, targets, log_weights=detached(miner)(scores, targets))
        assert torch.equal(attached, stopped)
        with_weights, without = gradient(attached, scores)[0], gradient(stopped, scores)[0]
        assert (with_weights - without).abs().max() > 0.02 * with_weights.abs().max()

    def test_as_many_hard_negatives_as_there_are_is_no_mining(self):
        scores, targets = scores_with_gaps(5, 8)
        close(kpair_loss(scores, targets, log_weights=topk(7)(scores, targets)), kpair_loss(scores, targets), 1e-14)
