"""One property table over all objectives, and the equalities that make one kernel of many losses."""

import functools
import math

import pytest
import references
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NPairsLoss, NTXentLoss, SupConLoss
from references import INF, gradient, refused, scores_with_gaps

from contrastive import NegativeSquaredDistance, decoupled_loss, kpair_loss, pairwise_loss, supcon_loss
from miners import debiased, detached, hcl, topk


def hinge(difference):
    return torch.relu(difference + 1.0)


# Name: (objective, its slow reference, what a row of n equal scores costs). A new objective is one more line.
OBJECTIVES = {
    "kpair_loss": (kpair_loss, references.kpair, math.log),
    "decoupled_loss": (decoupled_loss, references.decoupled, lambda n: math.log(n - 1) if n > 1 else 0.0),
    "pairwise_loss": (pairwise_loss, references.pairwise, lambda n: math.log(2) if n > 1 else 0.0),
    "pairwise_loss, hinge": (
        functools.partial(pairwise_loss, link=hinge),
        functools.partial(references.pairwise, link=references.hinge),
        lambda n: 1.0 if n > 1 else 0.0,
    ),
    "supcon_loss": (supcon_loss, references.kpair, math.log),
    "supcon_loss, others left out": (functools.partial(supcon_loss, keep_positives=False), references.kpair, math.log),
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


def close(actual, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=OBJECTIVES)
def case(request):
    return OBJECTIVES[request.param]


@pytest.fixture
def objective(case):
    return case[0]


@pytest.fixture(params=OBJECTIVES)
def named(request):
    return name_of[request.param], OBJECTIVES[request.param][0]


class TestEveryObjective:
    @pytest.mark.parametrize("weighted", [False, True])
    def test_equals_its_loop(self, case, weighted):
        objective, loop, _ = case
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
        objective, loop, _ = case
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
        objective, loop, _ = case
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
        objective, _, expected = case
        for candidates in (1, 2, 7):
            loss = objective(torch.full((1, candidates), value))
            assert float(loss) == pytest.approx(expected(candidates), abs=1e-6)

    def test_ties_share_the_gradient(self, objective):
        scores = torch.tensor([[0.5, 1.0, 1.0, 1.0]], dtype=torch.float64, requires_grad=True)
        (found,) = gradient(objective(scores), scores)
        assert found[0, 1] == found[0, 2] == found[0, 3]

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

    @pytest.mark.parametrize("margin", [0.0, 0.4, 5.0])
    def test_a_constant_log_weight_is_an_additive_margin(self, margin):
        scores, targets = scores_with_gaps(6, 7)
        hit = F.one_hot(targets, 7).double()
        constant = margin * (1 - hit)
        close(kpair_loss(scores, targets, log_weights=constant), kpair_loss(scores - margin * hit, targets), 1e-14)

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

    def test_two_views_of_a_batch(self):
        first, second = (F.normalize(torch.randn(4, 5, dtype=torch.float64)) for _ in range(2))
        z = torch.cat([first, second])
        scores = (z @ z.T / 0.5).fill_diagonal_(-INF)
        partner = torch.arange(8).roll(4)
        labels = torch.arange(4).repeat(2)
        close(kpair_loss(scores, partner).mean(), NTXentLoss(0.5)(z, labels), 1e-14)


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

    @pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3,)])
    def test_a_mask_of_another_shape_is_refused(self, shape):
        with refused("supcon_loss", str(shape), "(2, 3)"):
            supcon_loss(torch.zeros(2, 3), torch.zeros(shape, dtype=torch.bool))


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
