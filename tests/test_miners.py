"""One contract over all miners, each against its loop; then what is special about single ones."""

import copy
import dataclasses
import itertools
import math
import pickle
import re
from functools import partial

import pytest
import references
import torch
from references import INF, gradient, refused, scores_with_gaps
from test_bounds import CHANNELS, largest

import miners
from contrastive import Cosine, KPairLoss, additive_margin_loss, infonce_bound, kpair_loss
from contrastive.scores import MiningFacts, negatives
from miners import (
    Counted,
    Miner,
    annealed,
    chain,
    counted,
    debiased,
    detached,
    distance_weighted,
    duplicates,
    false_negatives,
    hardest,
    hcl,
    importance,
    margin,
    multi_similarity,
    random_subset,
    ring,
    same_group,
    same_label,
    semihard,
    topk,
)


class Fitted:
    """A miner that carries facts of rows and columns, made for the number of columns that it meets."""

    def __init__(self, make):
        self.make, self.facts = make, make(9).facts

    def __call__(self, scores, targets, *, anchors=None):
        return self.make(scores.shape[1])(scores, targets, anchors=anchors)

    def __repr__(self):
        return repr(self.make(9))


def kinds(count):
    """Facts of three kinds."""
    return torch.arange(count) % 3


def by_label(columns):
    return same_label(kinds(200), kinds(columns))


def by_group(columns):
    return same_group(kinds(200), kinds(columns))


def by_support(columns):
    return false_negatives(torch.eye(3)[kinds(200)][:, None], torch.eye(3)[kinds(columns)], k=100, threshold=0.5)


# (miner, its slow reference). A new miner is at least one more line.
TABLE = [
    (topk(1), references.topk(1)),
    (topk(3), references.topk(3)),
    (topk(100), references.topk(100)),
    (hardest(), references.topk(1)),
    (semihard(0.7), references.semihard(0.7)),
    (semihard(0.7, fallback=hardest()), references.semihard(0.7, references.hardest_of)),
    (hcl(0.0), references.hcl(0.0)),
    (hcl(1.0), references.hcl(1.0)),
    (hcl(50.0), references.hcl(50.0)),
    (hcl(1.0, 0.1), references.hcl(1.0, 0.1)),
    (hcl(1.0, 0.6), references.hcl(1.0, 0.6)),
    (hcl(2.0, 0.3, min_score=-8.0), references.hcl(2.0, 0.3, -8.0)),
    (debiased(0.0), references.hcl(0.0)),
    (debiased(0.1), references.hcl(0.0, 0.1)),
    (debiased(0.9, min_score=-8.0), references.hcl(0.0, 0.9, -8.0)),
    (duplicates(threshold=0.7), references.below(0.7)),
    (detached(hcl(1.0)), references.hcl(1.0)),
    (detached(topk(2)), references.topk(2)),
    (ring(0.0, 0.5), references.ring(0.0, 0.5)),
    (ring(0.25, 0.75), references.ring(0.25, 0.75)),
    (ring(0.9, 1.0), references.ring(0.9, 1.0)),
    (ring(0.0, 1.0), references.hcl(0.0)),
    (multi_similarity(0.7), references.multi_similarity_mining(0.7)),
    (multi_similarity(0.0, fallback=hardest()), references.multi_similarity_mining(0.0, references.hardest_of)),
    (margin(0.0), references.margin(0.0)),
    (margin(1.5), references.margin(1.5)),
    (distance_weighted(0.5, 8), references.distance_weighted(0.5, 8)),
    (distance_weighted(0.25, 3, cutoff=0.1, limit=1.99), references.distance_weighted(0.25, 3, 0.1, 1.99)),
    (distance_weighted(0.5, 8, k=2), references.distance_drawn(0.5, 8, 2)),
    (distance_weighted(0.5, 8, k=100), references.distance_drawn(0.5, 8, 100)),
    (random_subset(1), references.random_subset(1)),
    (random_subset(3), references.random_subset(3)),
    (random_subset(100), references.random_subset(100)),
    (Fitted(by_label), references.dropping(lambda i, j: i % 3 == j % 3)),
    (Fitted(by_group), references.dropping(lambda i, j: i % 3 != j % 3)),
    (Fitted(by_support), references.dropping(lambda i, j: i % 3 == j % 3)),
    (counted(topk(3)), references.topk(3)),
    (importance(-2.0, log_p=-1.5), references.constant(0.5, positive=True)),
    (importance(-2.0, log_p=-2.5, positive=False), references.constant(-0.5, positive=False)),
    (annealed(hcl, start=1.0, end=0.0, steps=10), references.hcl(1.0)),
    (chain(topk(3)), references.topk(3)),
    (chain(topk(3), hcl(1.0)), references.chain(references.topk(3), references.hcl(1.0))),
    (chain(hcl(1.0), topk(3)), references.chain(references.hcl(1.0), references.topk(3))),
    (chain(topk(3), topk(5), topk(2)), references.topk(2)),
    (
        chain(ring(0.25, 1.0), debiased(0.1), margin(1.0)),
        references.chain(references.ring(0.25, 1.0), references.hcl(0.0, 0.1), references.margin(1.0)),
    ),
    (
        chain(distance_weighted(0.5, 8), topk(4), hcl(0.5)),
        references.chain(references.distance_weighted(0.5, 8), references.topk(4), references.hcl(0.5)),
    ),
    (chain(topk(4), random_subset(2)), references.chain(references.topk(4), references.random_subset(2))),
    (
        chain(random_subset(4), hcl(1.0), topk(2)),
        references.chain(references.random_subset(4), references.hcl(1.0), references.topk(2)),
    ),
    (
        chain(random_subset(4), distance_weighted(0.5, 8, k=2)),
        references.chain(references.random_subset(4), references.distance_drawn(0.5, 8, 2)),
    ),
]
NOT_MINERS = {
    "Bank",
    "Counted",
    "Draw",
    "Miner",
    "PoolProposal",
    "Queue",
    "class_means",
    "detect_false_negatives",
    "empty_rows",
    "hard_class_batches",
    "hard_positive",
    "mine_negatives",
    "mix_hardest",
    "nearest_positive",
    "neighbour_batches",
    "semihard_positive",
    "without_other_positives",
}


@pytest.fixture(params=TABLE, ids=lambda row: repr(row[0]))
def case(request):
    return request.param


@pytest.fixture
def miner(case):
    return case[0]


@pytest.fixture
def fixed(miner):
    """The miners that do not draw."""
    if miner.facts.drawn:
        pytest.skip("draws by a column's place and over whole strips: `TestDraws` compares frequencies")
    return miner


@pytest.fixture
def unplaced(fixed):
    """The miners that know nothing of a column's place."""
    if isinstance(fixed, Fitted):
        pytest.skip("columns that move take their facts along: tests/test_masks.py")
    return fixed


def mine(miner, *arguments, **options):
    """Calls a miner or its loop; one that draws draws the same each time."""
    torch.manual_seed(5)
    return miner(*arguments, **options)


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def rows(dtype=torch.float64):
    """Ordinary rows, then padding, nothing but the positive, one negative only, ties, equal scores, +-1e4."""
    scores, targets = scores_with_gaps(11, 7)
    scores[2] = -INF
    scores[3] = scores[3].new_full((7,), -INF).scatter(0, targets[3], 1.5)
    scores[4] = torch.tensor([0.5, 0.1, *[-INF] * 5])
    scores[5] = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.2, 0.2, -INF])
    scores[6] = 0.25
    scores[7] = torch.tensor([10000.0, 9999.5, 9999.0, 9998.0, -10000.0, -INF, -INF])
    scores[8] = torch.tensor([-10000.0, 10000.0, 9999.0, -9999.5, -10000.0, -INF, -INF])
    scores[9] = torch.tensor([10000.0, -9999.5, -9999.0, -10000.0, -10000.0, -INF, -INF])
    scores[10] = -10000.0
    targets[4:] = 0
    return scores.to(dtype), targets


def without_ties(anchors=6, candidates=9):
    return scores_with_gaps(anchors, candidates)


def test_every_exported_miner_has_its_line():
    named = {repr(miner).split("(")[0] for miner, _ in TABLE}
    assert set(miners.__all__) - NOT_MINERS <= named | {"counted"}


class TestEveryMiner:
    def test_equals_its_loop(self, case):
        miner, loop = case
        scores, targets = without_ties()
        scores[1] = -INF
        scores[2] = scores[2].new_full((9,), -INF).scatter(0, targets[2], 1.0)
        present = scores > -INF
        found = mine(miner, scores, targets)
        close(found[present], mine(loop, scores, targets)[present], 1e-12)

    def test_shape_dtype_target_and_values(self, miner):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            scores, targets = rows(dtype)
            found = mine(miner, scores, targets)
            assert found.shape == scores.shape
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert miner.facts.proposal or not found.gather(1, targets[:, None]).any()
            assert not torch.isnan(found).any()
            assert (found < INF).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_low_precision_sees_the_rounded_scores(self, case, dtype):
        miner, loop = case
        scores, targets = without_ties(40, 9)
        scores = scores.to(dtype)
        # Rounding makes ties, and among them any may be kept: rows with a tie are the business of another test.
        distinct = torch.tensor([len(set(row)) == len(row) for row in scores.masked_fill(scores == -INF, 0).tolist()])
        distinct |= torch.tensor(
            [len({s for s in row if s > -INF}) == sum(s > -INF for s in row) for row in scores.tolist()]
        )
        assert distinct.sum() > 20
        scores, targets = scores[distinct], targets[distinct]
        present = scores > -INF
        # beta = 50 stretches the scores, and with them the rounding of float32, by 50.
        # A cosine near 1 loses digits to 2 - 2 s, and the density is a power of the rest.
        tolerance = 1e-4 if "50.0" in repr(miner) else 2e-5 if "distance" in repr(miner) else 3e-6
        close(mine(miner, scores, targets)[present], mine(loop, scores, targets)[present], tolerance)

    @pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [(torch.float64, 1e-11), (torch.float32, 3e-6), (torch.float16, 3e-6), (torch.bfloat16, 3e-6)],
    )
    def test_scores_of_ten_thousand(self, case, dtype, tolerance):
        miner, loop = case
        scores = torch.tensor(
            [
                [10000.0, 9999.5, 9999.0, 9998.0, -10000.0, -INF],
                [-10000.0, 10000.0, 9999.0, -9999.5, -9990.0, -INF],
                [10000.0, -9999.5, -9999.0, -10000.0, 3.0, -INF],
                [9999.75, 10000.0, 9999.5, 9990.0, 9980.0, 9970.0],
            ],
            dtype=torch.float64,
        )
        if dtype in (torch.float16, torch.bfloat16):  # steps of 8 and 64 there: keep the rows free of ties
            scores = (scores / 500).round() * 512 + torch.arange(6) * 64 * (scores > -INF)
        scores, targets = scores.to(dtype), torch.zeros(4, dtype=torch.int64)
        present = scores > -INF
        close(mine(miner, scores, targets)[present], mine(loop, scores, targets)[present], tolerance)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_loss_and_gradient_stay_finite_in_every_corner(self, miner, dtype):
        scores, targets = rows(dtype)
        scores.requires_grad_()
        loss = kpair_loss(scores, targets, log_weights=mine(miner, scores, targets))
        # Nothing but the positive: the loss is its log-weight.
        assert loss[[2, 3]].tolist() == [0.0, 0.5 if miner.facts.proposal else 0.0]
        found = gradient(loss, scores)[0]
        assert torch.isfinite(loss).all()
        assert torch.isfinite(found).all()
        assert not found[[2, 3]].any()
        assert not found[scores == -INF].any()
        assert found[:2].any()

    def test_gradient_through_the_weights(self, miner):
        scores, targets = scores_with_gaps(4, 6, absent=0.0)
        stopped, unchanged = repr(miner).startswith("detached"), scores.clone()

        def loss(s):
            # Where the weights are detached the gradient is that of constant weights.
            log_weights = mine(miner, unchanged, targets) if stopped else mine(miner, s, targets)
            return kpair_loss(s, targets, log_weights=log_weights)

        scores.requires_grad_()
        assert torch.autograd.gradcheck(loss, (scores,))
        assert torch.autograd.gradgradcheck(loss, (scores,), atol=1e-4 if "50.0" in repr(miner) else 1e-5)
        mined = kpair_loss(scores, targets, log_weights=mine(miner, scores, targets))
        close(gradient(mined, scores)[0], gradient(loss(scores), scores)[0], 1e-15)

    def test_absent_candidates_change_nothing(self, unplaced):
        miner = unplaced
        scores, targets = scores_with_gaps(5, 7, absent=0.0)
        expected = kpair_loss(scores, targets, log_weights=mine(miner, scores, targets))
        places = torch.tensor([3, 0, 6, 1, 2, 5, 4])
        wide = torch.full((5, 12), -INF, dtype=torch.float64)
        wide[:, places] = scores
        moved = places[targets]
        log_weights = mine(miner, wide, moved)
        close(log_weights[:, places], mine(miner, scores, targets), 1e-13)
        absent = wide == -INF
        for value in (0.0, -INF, 1e4, -1e4):
            assert torch.equal(
                kpair_loss(wide, moved, log_weights=log_weights.masked_fill(absent, value)),
                kpair_loss(wide, moved, log_weights=log_weights),
            )
        close(kpair_loss(wide, moved, log_weights=log_weights), expected, 1e-13)

    def test_rows_do_not_see_each_other(self, fixed):
        miner = fixed
        scores, targets = rows()
        found = mine(miner, scores, targets)
        for i in range(len(scores)):
            if not isinstance(miner, Fitted):
                assert torch.equal(miner(scores[i : i + 1], targets[i : i + 1]), found[i : i + 1])
            assert torch.equal(
                miner(scores[i : i + 1], targets[i : i + 1], anchors=torch.tensor([i])), found[i : i + 1]
            )

    def test_order_of_candidates(self, unplaced):
        miner = unplaced
        scores, targets = without_ties()
        columns = torch.randperm(9)
        moved = mine(miner, scores[:, columns], columns.argsort()[targets])
        present = scores[:, columns] > -INF  # what stands elsewhere does not matter
        close(moved[present], mine(miner, scores, targets)[:, columns][present], 1e-13)

    def test_shift_of_a_row(self, miner):
        if any(word in repr(miner) for word in ("min_score", "threshold", "distance")):
            return  # absolute scores: `TestDebiasing` moves the floor along
        scores, targets = without_ties()
        shifts = torch.tensor([0.0, 0.5, -2.0, 8.0, -64.0, 256.0], dtype=torch.float64)[:, None]
        close(mine(miner, scores + shifts, targets), mine(miner, scores, targets), 1e-10)

    def test_inputs_are_left_alone_and_need_not_be_contiguous(self, miner):
        scores, targets = rows()
        before = scores.clone(), targets.clone()
        found = mine(miner, scores, targets)
        assert torch.equal(scores, before[0])
        assert torch.equal(targets, before[1])
        strided = scores.T.contiguous().T, torch.stack([targets, targets], 1)[:, 0]
        assert not any(x.is_contiguous() for x in strided)
        close(mine(miner, *strided), found, 1e-15)

    def test_survives_pickle_and_deepcopy(self, miner):
        scores, targets = rows()
        for other in (pickle.loads(pickle.dumps(miner)), copy.deepcopy(miner), copy.copy(miner)):
            assert repr(other) == repr(miner)
            assert other.facts == miner.facts
            assert torch.equal(mine(other, scores, targets), mine(miner, scores, targets))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_autocast_changes_nothing(self, miner, dtype):
        scores, targets = rows(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = mine(miner, scores, targets)
        assert torch.equal(found, mine(miner, scores, targets))

    def test_without_negatives_or_rows(self, miner):
        for shape in ((0, 0), (0, 4), (3, 1), (1, 1)):
            scores = torch.randn(shape, requires_grad=True)
            targets = torch.zeros(shape[0], dtype=torch.int64)
            found = mine(miner, scores, targets)
            assert found.shape == shape
            loss = kpair_loss(scores, targets, log_weights=found)
            assert miner.facts.proposal or not (found.any() or loss.any())
            assert not gradient(loss, scores)[0].any()

    def test_one_negative_that_is_harder_than_the_positive(self, case):
        miner, loop = case
        scores = torch.tensor([[0.0, 0.5], [0.0, -0.5]], dtype=torch.float64)
        targets = torch.zeros(2, dtype=torch.int64)
        found = mine(miner, scores, targets)
        close(found, mine(loop, scores, targets), 1e-14)
        if repr(miner) == "semihard(margin=0.7)":
            assert found.tolist() == [[0.0, -INF], [0.0, 0.0]]
        elif isinstance(miner, Miner) and not any(
            word in repr(miner) for word in ("min_score", "margin", "importance", "multi_", "chain", "thres")
        ):
            # One negative is the hardest, the mean and the smallest at once: debiasing raises it when it is hard, by
            # (e^.5 - tau) / (1 - tau) over e^.5, and leaves it at the floor, itself, when it is easy.
            tau = miner.rule.keywords.get("tau_plus", 0.0)
            expected = math.log((math.exp(0.5) - tau) / (1 - tau) / math.exp(0.5))
            assert found.tolist() == [[0.0, pytest.approx(expected, abs=1e-14)], [0.0, pytest.approx(0.0, abs=1e-14)]]

    def test_facts_are_true(self, miner):
        scores, targets = scores_with_gaps(200, 8, absent=0.3, scale=3.0)
        scores = (2 * scores).round() / 2  # with ties
        weights = mine(miner, scores, targets).exp()
        present = negatives(scores, targets)
        facts = miner.facts
        count = present.sum(1)
        weighted = (weights * present).sum(1)
        if facts.mass is not None:
            mass = (count if facts.mass == "all" else count.clamp_max(facts.mass)).double()
            assert (weighted >= mass * (1 - 1e-12)).all()
            if "margin" not in repr(miner) and not repr(miner).startswith("chain"):  # of these "at least" is all
                close(weighted, mass, 1e-12)
            if facts.mass != "all":
                assert ((present & (weights > 0)).sum(1) <= mass).all()
        if facts.monotone and not facts.drawn:
            order = scores.masked_fill(~present, -INF).argsort(1)
            ranked, counted = weights.gather(1, order), present.gather(1, order)
            tied = scores.gather(1, order).diff(dim=1) == 0
            rises = ranked.diff(dim=1) >= -1e-12
            assert (rises | tied | ~counted[:, :-1]).all()
        if facts.mass is not None and facts.monotone:
            # What the bound needs: the weighted sum is at least W times the plain mean, or at least that of W negatives
            # drawn uniformly by the same noise.
            floor = (scores.exp() * present).sum(1) / count.clamp_min(1) * mass
            if facts.drawn:
                twice = repr(miner).startswith("chain(random_subset(k=4), distance")
                uniform = chain(random_subset(4), random_subset(2)) if twice else random_subset(facts.mass)
                uniform = mine(uniform, scores, targets).exp()
                floor = (uniform * scores.exp() * present).sum(1)
            assert ((weights * scores.exp() * present).sum(1) >= floor * (1 - 1e-12)).all()
        if facts.hardest:
            lowest = scores.masked_fill(~present | (weights == 0), torch.inf).amin(1)
            highest = scores.masked_fill(~present | (weights > 0), -torch.inf).amax(1)
            assert ((weights == 0) | (weights == 1)).all()
            assert (lowest >= highest).all()
        if facts.proposal:
            assert torch.equal(weights, torch.full_like(scores, math.exp(0.5)))
        assert bool(facts.why) != (facts.proposal or (facts.mass is not None and facts.monotone))

    def test_is_a_plain_callable_with_a_readable_name(self, miner):
        if isinstance(miner, Fitted):
            assert re.match(r"(same_label|same_group|false_negatives)\(200 \w+, 9 candidates", repr(miner))
            return
        assert isinstance(miner, Miner | Counted)
        assert eval(repr(miner), vars(miners).copy())(*without_ties()).shape == (6, 9)


def test_the_facts_that_are_claimed():
    assert topk(3).facts == MiningFacts(mass=3, monotone=True, hardest=True)
    assert hardest().facts == MiningFacts(mass=1, monotone=True, hardest=True)
    assert hcl(2.0).facts == debiased(0.0).facts == MiningFacts(mass="all", monotone=True)
    assert detached(topk(3)).facts == topk(3).facts
    assert ring(0.0, 1.0).facts == margin(0.5).facts == MiningFacts(mass="all", monotone=True)
    assert distance_weighted(0.1, 128).facts == MiningFacts(mass="all", monotone=True)
    assert distance_weighted(0.1, 128, k=4).facts == random_subset(4).facts
    assert random_subset(4).facts == MiningFacts(mass=4, monotone=True, drawn=True)
    assert importance(0.0).facts == MiningFacts(proposal=True)
    assert annealed(topk, start=9, end=2, steps=3).facts == topk(9).facts
    for miner, why in (
        (semihard(1.0), "drops the hardest negatives"),
        (semihard(1.0, fallback=hardest()), "drops the hardest negatives"),
        (ring(0.1, 1.0), "drops the hardest negatives"),
        (ring(0.0, 0.9), "depends on how many there are"),
        (multi_similarity(0.1), "the positive's score"),
        (multi_similarity(0.1, fallback=hardest()), "the positive's score"),
        (hcl(1.0, 0.1), "subtracts"),
        (debiased(0.1), "subtracts"),
        (importance(0.0, positive=False), "not the positive"),
        (distance_weighted(0.1, 128, limit=1.5), "limit"),
        (distance_weighted(0.1, 128, limit=1.5, k=2), "limit"),
    ):
        assert why in miner.facts.why
        assert miner.facts == MiningFacts(why=miner.facts.why)
        bound = infonce_bound(torch.randn(4, 6), miner=miner)
        assert bound.status == "not a bound"
        assert f"{miner!r} {miner.facts.why}" in bound.reason


class TestTopk:
    def test_keeps_exactly_k_of_equal_scores(self):
        scores, targets = torch.zeros(4, 9), torch.tensor([0, 3, 8, 5])
        found = topk(4)(scores, targets)
        assert ((found == 0).sum(1) == 5).all()
        assert ((found == -INF).sum(1) == 4).all()

    def test_never_counts_the_target(self):
        scores = torch.tensor([[9.0, 1.0, 3.0, 2.0]])
        assert topk(2)(scores, torch.tensor([0])).tolist() == [[0.0, -INF, 0.0, 0.0]]

    @pytest.mark.parametrize("k", [0, -1, 1.5, True, "3", None, math.nan])
    def test_options(self, k):
        with refused("topk", repr(k)):
            topk(k)


class TestHclWithAndWithoutGaps:
    """Where no candidate is absent the mask is saved: both ways are one."""

    @pytest.mark.parametrize("width", [2, 9, 1100])
    @pytest.mark.parametrize("tau_plus", [0.0, 0.1])
    @pytest.mark.parametrize("beta", [0.0, 1.0, 20.0])
    def test_equals_its_loop(self, beta, tau_plus, width):
        for absent in (0.0, 0.3):
            scores, targets = scores_with_gaps(3, width, absent=absent)
            present = scores > -INF
            found, expected = hcl(beta, tau_plus)(scores, targets), references.hcl(beta, tau_plus)(scores, targets)
            close(found[present], expected[present], 1e-11)

    @pytest.mark.parametrize("tau_plus", [0.0, 0.1])
    @pytest.mark.parametrize("beta", [0.0, 1.0, 20.0])
    def test_one_absent_candidate_more_changes_no_weight_and_no_gradient(self, beta, tau_plus):
        narrow, targets = scores_with_gaps(5, 8, absent=0.0)
        wide = torch.cat([narrow, torch.full((5, 1), -INF, dtype=torch.float64)], 1)
        upstream = torch.randn(5, 8, dtype=torch.float64)
        narrow.requires_grad_()
        wide.requires_grad_()
        found, expected = hcl(beta, tau_plus)(wide, targets), hcl(beta, tau_plus)(narrow, targets)
        close(found[:, :8].detach(), expected.detach(), 1e-13)
        # Plus the scores: without tilting the weights do not depend on them.
        by_wide = gradient(found[:, :8] * upstream + wide[:, :8], wide)[0]
        by_narrow = gradient(expected * upstream + narrow, narrow)[0]
        close(by_wide[:, :8], by_narrow, 1e-12)
        assert not by_wide[:, 8].any()


class TestSemihard:
    def test_the_window_is_open(self):
        scores = torch.tensor([[1.0, 1.0, 0.75, 0.5, 0.25]])
        assert semihard(0.5)(scores, torch.tensor([0])).tolist() == [[0.0, -INF, 0.0, -INF, -INF]]

    def test_the_window_does_not_move_with_the_size_of_the_scores(self):
        offsets = torch.tensor([[0.0, -(2**-9), -0.1953125, -0.19921875, -0.203125]])
        for miner in (semihard(0.1995), semihard(0.2)):
            close(miner(offsets + 10000.0, torch.tensor([0])), miner(offsets, torch.tensor([0])), 0.0)

    def test_a_row_without_any_takes_the_fallback(self):
        scores = torch.tensor([[0.0, 2.0, -9.0], [0.0, 2.0, -0.5]])
        targets = torch.tensor([0, 0])
        assert semihard(1.0)(scores, targets).tolist() == [[0.0, -INF, -INF], [0.0, -INF, 0.0]]
        mined = semihard(1.0, fallback=hardest())(scores, targets)
        assert mined.tolist() == [[0.0, 0.0, -INF], [0.0, -INF, 0.0]]

    def test_the_fallback_is_told_which_anchors(self):
        seen = []

        def spy(scores, targets, *, anchors=None):
            seen.append(anchors)
            return torch.zeros_like(scores)

        anchors = torch.tensor([5, 6])
        semihard(1.0, fallback=spy)(torch.zeros(2, 3), torch.tensor([0, 0]), anchors=anchors)
        assert seen[0] is anchors

    @pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, -INF])
    def test_options(self, margin):
        with refused("semihard", str(margin)):
            semihard(margin)

    def test_an_endless_margin_keeps_all_that_are_easier(self):
        scores = torch.tensor([[0.0, 2.0, -9.0, -1e4]])
        assert semihard(INF)(scores, torch.tensor([0])).tolist() == [[0.0, -INF, 0.0, 0.0]]


class TestDebiasing:
    @pytest.mark.parametrize(("beta", "tau_plus"), [(0.0, 0.1), (1.0, 0.3), (2.0, 0.9)])
    def test_a_floor_moves_with_the_scores(self, beta, tau_plus):
        scores, targets = without_ties()
        for shift in (-3.0, 0.0, 5.0, 1e4):
            moved = hcl(beta, tau_plus, min_score=-4.0 + shift)(scores + shift, targets)
            close(moved, hcl(beta, tau_plus, min_score=-4.0)(scores, targets), 1e-10)

    def test_the_floor_is_a_cosine_of_minus_one(self):
        scores = torch.tensor([[4.0, -1.0, -1.0]], dtype=torch.float64)
        found = debiased(0.9, min_score=-5.0)(scores, torch.tensor([0]))
        close(found, torch.tensor([[0.0, -4.0, -4.0]]), 1e-14)

    def test_negatives_below_the_clamp_get_no_gradient(self):
        scores = torch.tensor([[4.0, -1.0, -2.0]], requires_grad=True)
        targets = torch.tensor([0])
        loss = kpair_loss(scores, targets, log_weights=debiased(0.9, min_score=-5.0)(scores, targets))
        assert gradient(loss, scores)[0][0, 1:].tolist() == pytest.approx([0.0, 0.0], abs=1e-7)

    @pytest.mark.parametrize("beta", [-0.1, INF, math.nan])
    def test_beta(self, beta):
        with refused("hcl", "beta", str(beta)):
            hcl(beta)

    @pytest.mark.parametrize("tau_plus", [-0.1, 1.0, math.nan, 2.0])
    @pytest.mark.parametrize("make", [lambda t: hcl(1.0, t), debiased], ids=["hcl", "debiased"])
    def test_tau_plus(self, make, tau_plus):
        with refused("tau_plus", str(tau_plus)):
            make(tau_plus)

    @pytest.mark.parametrize("min_score", [math.nan, INF])
    @pytest.mark.parametrize("make", [lambda m: hcl(1.0, 0.1, min_score=m), lambda m: debiased(0.1, min_score=m)])
    def test_min_score(self, make, min_score):
        with refused("min_score", str(min_score)):
            make(min_score)


class TestDetached:
    def test_takes_any_callable_and_promises_nothing_for_it(self):
        def squares(scores, targets, *, anchors=None):
            return scores.square().scatter(1, targets[:, None], 0.0)

        scores = torch.randn(3, 4, requires_grad=True)
        found = detached(squares)(scores, torch.arange(3))
        assert not found.requires_grad
        assert torch.equal(found, squares(scores.detach(), torch.arange(3)))
        assert detached(squares).facts == MiningFacts()

    def test_hands_on_the_anchors(self):
        seen = []

        def spy(scores, targets, *, anchors=None):
            seen.append(anchors)
            return torch.zeros_like(scores)

        anchors = torch.tensor([4, 2])
        detached(spy)(torch.zeros(2, 3), torch.tensor([0, 0]), anchors=anchors)
        assert seen[0] is anchors

    def test_hands_on_the_step(self):
        miner = detached(annealed(topk, start=5, end=1, steps=4))
        assert repr(miner.at(3)) == "detached(topk(k=2))"
        assert repr(miner.at(3).at(4)) == "detached(topk(k=2))"


class TestRing:
    @pytest.mark.parametrize(
        ("lower", "upper", "count", "ranks"),
        [
            (0.0, 0.1, 5, [0]),
            (0.1, 0.15, 5, [1]),  # no rank's share is in it: the next one
            (0.95, 1.0, 5, [4]),  # nor is there a next one
            (0.2, 0.4, 5, [1]),
            (0.2, 0.4, 1, [0]),
            (0.07, 0.08, 100, [7]),  # 0.07 * 100 is 7.000000000000001
            (0.28, 0.29, 100, [28]),  # 0.29 * 100 is 28.999999999999996
            (0.0, 0.3, 10, [0, 1, 2]),
        ],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_ranks(self, lower, upper, count, ranks, dtype):
        places = torch.randperm(count + 1)
        scores = torch.cat([torch.tensor([0.5]), -torch.arange(count)])[places].to(dtype)[None]
        target = int((places == 0).nonzero())
        found = ring(lower, upper)(scores, torch.tensor([target]))[0]
        kept = sorted(-int(score) for score in scores[0, found == 0.0] if score != 0.5)
        assert kept == ranks

    def test_a_row_with_gaps_has_ranks_of_its_own(self):
        scores = torch.tensor([[9.0, 4.0, 3.0, 2.0, 1.0], [9.0, -INF, 4.0, -INF, 3.0]])
        found = ring(0.5, 1.0)(scores, torch.tensor([0, 0]))
        assert (found == 0.0).tolist() == [[True, False, False, True, True], [True, False, False, False, True]]

    def test_of_equal_scores_as_many_as_of_others(self):
        found = ring(0.25, 0.5)(torch.zeros(3, 9), torch.tensor([0, 4, 8]))
        assert ((found == 0.0).sum(1) == 3).all()

    @pytest.mark.parametrize(
        ("lower", "upper"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.0, 1.1), (math.nan, 0.5), (0.1, math.nan)]
    )
    def test_options(self, lower, upper):
        with refused("ring", "quantiles out of order", str(lower), str(upper)):
            ring(lower, upper)


class TestMultiSimilarity:
    def test_the_window_is_open_and_has_no_upper_end(self):
        scores = torch.tensor([[1.0, 1.0, 0.75, 0.5, 0.25, 1e4]])
        assert multi_similarity(0.5)(scores, torch.tensor([0])).tolist() == [[0.0, 0.0, 0.0, -INF, -INF, 0.0]]
        assert multi_similarity(0.0)(scores, torch.tensor([0])).tolist() == [[0.0, -INF, -INF, -INF, -INF, 0.0]]

    def test_a_row_without_any(self):
        scores, targets = torch.tensor([[1.0, -1.0, -2.0]], requires_grad=True), torch.tensor([0])
        loss = kpair_loss(scores, targets, log_weights=multi_similarity(0.5)(scores, targets))
        assert loss.tolist() == [0.0]
        assert not gradient(loss, scores)[0].any()
        mined = multi_similarity(0.5, fallback=annealed(topk, start=1, end=2, steps=1))
        assert mined(scores.detach(), targets).tolist() == [[0.0, 0.0, -INF]]
        assert mined.at(1)(scores.detach(), targets).tolist() == [[0.0, 0.0, 0.0]]

    @pytest.mark.parametrize("epsilon", [-0.1, INF, math.nan])
    def test_options(self, epsilon):
        with refused("multi_similarity", str(epsilon)):
            multi_similarity(epsilon)


class TestMargin:
    @pytest.mark.parametrize("m", [0.0, 0.5, 20.0])
    def test_is_the_additive_margin_loss(self, m):
        scores, targets = scores_with_gaps(5, 7)
        found = kpair_loss(scores, targets, log_weights=margin(m)(scores, targets))
        close(found, additive_margin_loss(scores, targets, margin=m), 1e-14)

    @pytest.mark.parametrize("m", [-0.1, INF, math.nan])
    def test_options(self, m):
        with refused("margin", str(m)):
            margin(m)


class TestDistanceWeighted:
    def test_every_row_has_its_own_normalisation(self):
        # In 512 dimensions the weights of these rows are e^200 apart: by a maximum of the batch one would be all zero.
        scores = torch.tensor([[1.0, 0.9, 0.8, 0.7], [1.0, 0.08, 0.05, 0.03]])
        weights = distance_weighted(1.0, 512)(scores, torch.tensor([0, 0])).exp()
        close(weights[:, 1:].sum(1), torch.tensor([3.0, 3.0]), 1e-6)
        assert (weights[:, 1] > weights[:, 2]).all()

    @pytest.mark.parametrize("k", [None, 3])
    def test_a_row_beyond_the_limit_is_uniform(self, k):
        scores = torch.tensor([[1.0, -0.1, -0.5, -1.0, -INF]])
        found = distance_weighted(1.0, 16, k=k)(scores, torch.tensor([0]))
        assert found[0, :4].tolist() == [0.0, 0.0, 0.0, 0.0]

    def test_a_distance_below_the_cutoff_is_the_cutoff(self):
        # Rounding makes cosines of more than 1, and another critic's scores are none at all.
        scores = torch.tensor([[1.0, 1.0, 1.0000001, 0.95, 50.0, 0.1]])
        found = distance_weighted(1.0, 16)(scores, torch.tensor([0]))
        assert torch.isfinite(found).all()
        assert (found[0, 1:5] == found[0, 1]).all()
        assert found[0, 5] < found[0, 1]

    def test_the_gradient_is_that_of_the_formula(self):
        scores = torch.tensor([[1.0, 0.4, 0.2, 0.99, -0.5]], dtype=torch.float64, requires_grad=True)
        found = distance_weighted(1.0, 8)(scores, torch.tensor([0]))
        slope = gradient(found[0, 1] - found[0, 2], scores)[0][0]
        # log w = -3 log d^2 - 5/2 log(1 - d^2 / 4), d^2 = 2 - 2 s
        by_formula = [6 / (2 - 2 * s) - 5 / 4 / (1 - (2 - 2 * s) / 4) for s in (0.4, 0.2)]
        close(slope, torch.tensor([0.0, by_formula[0], -by_formula[1], 0.0, 0.0], dtype=torch.float64), 1e-12)

    @pytest.mark.parametrize("dim", [3, 4, 16, 128, 2048])
    def test_is_called_monotone_exactly_where_it_is(self, dim):
        turn = math.sqrt(4 * (dim - 2) / (2 * dim - 5))
        cosines = torch.linspace(1, -0.99, 4001, dtype=torch.float64)
        targets = torch.tensor([0])
        for limit in (1.4, turn - 1e-3, turn + 1e-3, 1.9):
            if limit < 2:
                miner = distance_weighted(1.0, dim, limit=limit)
                falls = miner(cosines[None], targets)[0, 1:].diff()
                assert miner.facts.monotone == bool((falls[falls.isfinite()] <= 1e-12).all()) == (limit < turn)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"temperature": 0.0}, ["temperature is 0.0"]),
            ({"temperature": math.nan}, ["temperature is nan"]),
            ({"temperature": INF}, ["temperature is inf"]),
            ({"dim": 2}, ["dim is 2"]),
            ({"dim": 8.0}, ["dim is 8.0"]),
            ({"cutoff": 0.0}, ["cutoff is 0.0"]),
            ({"cutoff": math.nan}, ["cutoff is nan"]),
            ({"cutoff": 1.4}, ["cutoff is 1.4", "limit is 1.4"]),
            ({"limit": 2.0}, ["limit is 2.0"]),
            ({"limit": math.nan}, ["limit is nan"]),
            ({"k": 0}, ["k is 0"]),
            ({"k": 2.5}, ["k is 2.5"]),
        ],
        ids=str,
    )
    def test_options(self, options, words):
        with refused("distance_weighted", *words):
            distance_weighted(**({"temperature": 0.1, "dim": 8} | options))


def draws(rates, k):
    """Every set of k that draws without replacement may keep, with its probability: rates [rows, N].

    Where no rate is left the rest are drawn uniformly.
    """
    rows, count = rates.shape
    for ordered in itertools.permutations(range(count), k):
        probability, left = rates.new_ones(rows), torch.ones(count, dtype=torch.bool)
        for j in ordered:
            total = (rates * left).sum(1)
            some = total > 0
            share = rates[:, j] / torch.where(some, total, 1.0)
            probability = probability * torch.where(some, share, 1 / float(left.sum()))
            left = left & (torch.arange(count) != j)
        yield list(ordered), probability


def included(rates, k):
    """The probability with which each is kept."""
    found = torch.zeros_like(rates)
    for kept, probability in draws(rates, k):
        found[:, kept] += probability[:, None]
    return found


class TestDraws:
    SCORES = torch.tensor([[1.0, 0.9, 0.5, -INF, 0.3, 0.1, -0.4, -0.6]])
    NEGATIVES = torch.tensor([1, 2, 4, 5, 6, 7])

    @pytest.mark.parametrize("k", [1, 2, 5])
    @pytest.mark.parametrize("kind", ["uniform", "distance"])
    @pytest.mark.parametrize("alone", [False, True])
    def test_frequencies(self, kind, k, alone):
        # k = 5 has the four within the limit, and one of the two beyond it.
        miner = random_subset(k) if kind == "uniform" else distance_weighted(1.0, 5, k=k)
        if kind == "uniform":
            rates = torch.ones(1, 6, dtype=torch.float64)
        else:
            soft = distance_weighted(1.0, 5)(self.SCORES.double(), torch.tensor([0]))
            rates = soft[:, self.NEGATIVES].exp()
            assert (rates == 0).sum() == 2
        expected = included(rates, k)[0]
        times = 1500 if alone else 20000
        if alone:
            found = torch.cat([miner(self.SCORES, torch.tensor([0])) for _ in range(times)])
        else:
            found = miner(self.SCORES.expand(times, -1), torch.zeros(times, dtype=torch.int64))
        kept = found[:, self.NEGATIVES] == 0.0
        assert (kept.sum(1) == k).all()
        frequency = kept.double().mean(0)
        assert ((frequency - expected).abs() <= 4.5 * (expected * (1 - expected) / times).sqrt() + 1e-12).all()

    def test_are_made_anew_and_follow_the_seed(self):
        scores, targets = torch.zeros(4, 50), torch.zeros(4, dtype=torch.int64)
        for miner in (random_subset(5), distance_weighted(1.0, 8, k=5)):
            found = mine(miner, scores, targets)
            assert not torch.equal(miner(scores, targets), found)
            assert not torch.equal(found[0], found[1])
            assert torch.equal(mine(miner, scores, targets), found)

    def test_equal_weights_are_drawn_alike_by_the_same_noise(self):
        scores, targets = torch.zeros(40, 30), torch.zeros(40, dtype=torch.int64)
        expected = mine(random_subset(4), scores, targets)
        assert torch.equal(mine(distance_weighted(1.0, 8, k=4), scores, targets), expected)

    @pytest.mark.parametrize("k", [1, 2])
    @pytest.mark.parametrize("kind", ["uniform", "distance"])
    @pytest.mark.parametrize("channel", CHANNELS)
    def test_are_a_bound_for_an_adversary_too(self, channel, kind, k):
        channel = CHANNELS[channel]
        miner = random_subset(k) if kind == "uniform" else distance_weighted(0.3, 4, k=k)
        soft = hcl(0.0) if kind == "uniform" else distance_weighted(0.3, 4)

        def value(critic):
            """log(1 + k) - E L over the channel and all draws."""
            scores = channel.scores(critic)
            rates = soft(scores, channel.targets())[:, 1:].exp()
            loss = 0.0
            for kept, probability in draws(rates, k):
                row = scores[:, [0, *(1 + j for j in kept)]]
                loss = loss + probability * kpair_loss(row, channel.targets())
            return claimed.constant - channel.mean(loss)

        claimed = infonce_bound(channel.scores(torch.zeros(4, 4)), channel.targets(), miner=miner)
        assert claimed.status == "bound"
        assert claimed.constant == pytest.approx(math.log(1 + k))
        best = largest(value, steps=40)
        assert best <= channel.information + 1e-12
        if channel.information > 0.5 and kind == "uniform":
            assert best > 0.3 * channel.information  # the adversary climbs

    def test_from_what_is_weighted_are_none(self):
        channel = CHANNELS["independent"]
        assert chain(hcl(10.0), random_subset(1)).facts.mass is None

        def value(critic):
            scores, targets = channel.scores(critic), channel.targets()
            log_weights = hcl(10.0)(scores, targets)
            losses = [kpair_loss(scores[:, [0, j]], targets, log_weights=log_weights[:, [0, j]]) for j in (1, 2, 3)]
            return math.log(2) - channel.mean(torch.stack(losses).mean(0))

        assert largest(value) > channel.information + 0.05

    def test_their_value_is_log_1_plus_k_less_the_loss(self):
        scores = torch.randn(200, 9, dtype=torch.float64)
        targets = torch.zeros(200, dtype=torch.int64)
        torch.manual_seed(5)
        bound = infonce_bound(scores, targets, miner=random_subset(3))
        loss = kpair_loss(scores, targets, log_weights=mine(random_subset(3), scores, targets))
        assert bound.value == pytest.approx(math.log(4) - float(loss.mean()), abs=1e-12)

    @pytest.mark.parametrize("k", [0, -1, 1.5, True, math.nan])
    def test_options(self, k):
        with refused("random_subset", repr(k)):
            random_subset(k)


class TestImportance:
    LOG_Q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]).log()
    LOG_P = torch.tensor([0.5, 0.3, 0.2]).log()

    def test_is_the_ratio_at_the_positive_too(self):
        scores, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        ratio = self.LOG_P - self.LOG_Q
        close(importance(self.LOG_Q, log_p=self.LOG_P)(scores, targets), ratio, 1e-7)
        alone = importance(self.LOG_Q, log_p=self.LOG_P, positive=False)(scores, targets)
        close(alone, ratio.scatter(1, targets[:, None], 0.0), 1e-7)
        close(importance(self.LOG_Q[1])(scores, targets), -self.LOG_Q[1].expand(4, 3), 1e-7)
        close(importance(0.0, log_p=self.LOG_Q)(scores.double(), targets), self.LOG_Q, 1e-12)

    def test_of_some_anchors(self):
        scores, targets, anchors = torch.randn(2, 3), torch.tensor([1, 2]), torch.tensor([3, 1])
        found = importance(self.LOG_Q, log_p=self.LOG_P)(scores, targets, anchors=anchors)
        close(found, self.LOG_P - self.LOG_Q[anchors], 1e-7)

    def test_is_a_bound_by_theorem_c(self):
        scores, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
        miner = importance(self.LOG_Q, log_p=self.LOG_P)
        bound = infonce_bound(scores, targets, miner=miner)
        loss = kpair_loss(scores, targets, log_weights=self.LOG_P - self.LOG_Q)
        assert bound.status == "bound"
        assert bound.value == pytest.approx(math.log(3) - float(loss.mean()), abs=1e-6)
        assert infonce_bound(scores, targets, miner=detached(miner)) == dataclasses.replace(
            bound, reason=bound.reason.replace(repr(miner), repr(detached(miner)))
        )

    def test_survives_pickle(self):
        miner = pickle.loads(pickle.dumps(importance(self.LOG_Q, log_p=self.LOG_P)))
        assert repr(miner) == "importance(log_q=[4, 3], log_p=[3])"
        close(miner(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])), self.LOG_P - self.LOG_Q, 1e-7)

    def test_a_trained_proposal_gets_its_gradient(self):
        log_q = self.LOG_Q.clone().requires_grad_()
        loss = kpair_loss(
            torch.zeros(4, 3),
            torch.tensor([0, 1, 2, 0]),
            log_weights=importance(log_q)(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])),
        )
        assert gradient(loss, log_q)[0].all()

    @pytest.mark.parametrize(
        ("q", "is_at"),
        [([0.5, 0.0, 0.5], "-inf at [1]"), ([[0.5, 0.4], [-0.1, 0.6]], "nan at [1, 0]"), ([INF, 0.1], "inf at [0]")],
    )
    def test_a_q_that_is_not_positive(self, q, is_at):
        log_q = torch.tensor(q).log()
        with refused(f"importance: log_q is {is_at}, expected the logarithm of a positive number"):
            importance(log_q)
        with refused(f"importance: log_p is {is_at}, expected"):
            importance(0.0, log_p=log_q)

    @pytest.mark.parametrize("value", [math.nan, INF, -INF])
    def test_a_number_that_is_none(self, value):
        with refused(f"importance: log_q is {value}, expected"):
            importance(value)

    def test_shapes(self):
        scores, targets = torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])
        for log_q in (torch.zeros(2, 4, 3), torch.zeros(3, dtype=torch.int64)):
            with refused("importance", "log_q", "[candidates] or [anchors, candidates]"):
                importance(log_q)
        for log_q, words in (
            (torch.zeros(4), ["log_q is of 4 candidates", "3 of the scores"]),
            (torch.zeros(1), ["log_q is of 1 candidates", "3 of the scores"]),
            (torch.zeros(4, 1), ["log_q is of 1 candidates", "3 of the scores"]),
            (torch.zeros(1, 3), ["log_q is of 1 anchors", "4 of the scores"]),
            (torch.zeros(5, 3), ["log_q is of 5 anchors", "4 of the scores"]),
        ):
            with refused("importance", *words):
                importance(log_q)(scores, targets)
            with refused("importance", *(word.replace("log_q", "log_p") for word in words)):
                importance(0.0, log_p=log_q)(scores, targets)
        with refused("importance", "log_q is of 4 anchors", "rows 2 to 5"):
            importance(self.LOG_Q)(scores, targets, anchors=torch.tensor([2, 3, 4, 5]))

    def test_in_strips_with_a_queue(self, monkeypatch):
        few_rows_at_a_time(monkeypatch)
        x, y, q = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (7, 7, 5))
        miner = importance(torch.randn(7, 12, dtype=torch.float64), log_p=torch.randn(12, dtype=torch.float64))
        losses = [
            KPairLoss(Cosine(0.5), miner=miner, symmetric=False, tiled=tiled)(x, y, negatives=q)
            for tiled in (True, False)
        ]
        close(losses[0], losses[1], 1e-13)
        for found, expected in zip(*(gradient(loss, x, y, q) for loss in losses), strict=True):
            close(found, expected, 1e-13)


class TestChain:
    def test_what_one_drops_is_absent_for_the_next(self):
        scores = torch.tensor([[0.0, 4.0, 3.0, 2.0, 1.0]])
        targets = torch.tensor([0])
        found = chain(ring(0.25, 1.0), topk(2))(scores, targets)
        assert found.tolist() == [[0.0, -INF, 0.0, 0.0, -INF]]
        assert chain(topk(2), ring(0.25, 1.0))(scores, targets).tolist() == [[0.0, -INF, 0.0, -INF, -INF]]

    def test_log_weights_add_those_of_the_target_too(self):
        scores, targets = torch.zeros(1, 3), torch.tensor([1])
        miner = chain(importance(-1.0), margin(0.5), importance(0.25))
        assert miner(scores, targets).tolist() == [[1.25, 0.75, 1.25]]

    def test_a_target_without_weight_stays_for_the_next(self):
        def decoupled(scores, targets, *, anchors=None):
            return torch.zeros_like(scores).scatter(1, targets[:, None], -INF)

        scores = torch.tensor([[1.0, 0.9, 0.0]])
        found = chain(decoupled, semihard(0.5))(scores, torch.tensor([0]))
        assert found.tolist() == [[-INF, 0.0, -INF]]

    def test_hands_on_the_anchors_and_the_step(self):
        seen = []

        def spy(scores, targets, *, anchors=None):
            seen.append(anchors)
            return torch.zeros_like(scores)

        anchors = torch.tensor([4, 2])
        miner = chain(spy, annealed(topk, start=9, end=1, steps=8), spy)
        miner.at(6)(torch.zeros(2, 3), torch.tensor([0, 0]), anchors=anchors)
        assert seen == [anchors, anchors]
        assert "topk(k=3)" in repr(miner.at(6))
        assert chain(topk(1)).at(5).schedule is None

    @pytest.mark.parametrize(
        ("parts", "facts"),
        [
            ([topk(3)], MiningFacts(mass=3, monotone=True, hardest=True)),
            ([importance(0.0)], MiningFacts(proposal=True)),
            ([semihard(1.0)], semihard(1.0).facts),
            ([hcl(1.0), hcl(2.0)], MiningFacts(mass="all", monotone=True)),
            ([hcl(1.0), margin(1.0), distance_weighted(0.1, 8)], MiningFacts(mass="all", monotone=True)),
            ([hcl(1.0), topk(4)], MiningFacts(mass=4, monotone=True)),
            ([topk(4), hcl(1.0)], MiningFacts(mass=4, monotone=True)),
            ([topk(4), hcl(1.0), topk(6), topk(5)], MiningFacts(mass=4, monotone=True)),
            ([chain(hcl(1.0), topk(4)), hardest()], MiningFacts(mass=1, monotone=True)),
            ([random_subset(9), topk(4)], MiningFacts(mass=4, monotone=True, drawn=True)),
            ([topk(4), random_subset(9)], MiningFacts(mass=4, monotone=True, drawn=True)),
            ([distance_weighted(0.1, 8, k=9), hcl(1.0)], MiningFacts(mass=9, monotone=True, drawn=True)),
            ([random_subset(9), random_subset(2), margin(1.0)], MiningFacts(mass=2, monotone=True, drawn=True)),
            ([detached(chain(topk(9), random_subset(3))), hcl(1.0)], MiningFacts(mass=3, monotone=True, drawn=True)),
        ],
        ids=str,
    )
    def test_facts(self, parts, facts):
        assert chain(*parts).facts == facts

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ([topk(4), semihard(1.0)], ["semihard(margin=1.0)", "which drops the hardest"]),
            ([ring(0.1, 1.0), semihard(1.0)], ["ring(lower=0.1, upper=1.0)", "which drops the hardest"]),
            ([topk(4), lambda s, t, anchors=None: torch.zeros_like(s)], ["<lambda>", "guarantees no constant mass"]),
            ([importance(0.0), topk(4)], ["importance", "undoes a proposal only by itself"]),
            ([topk(4), importance(0.0)], ["importance", "undoes a proposal only by itself"]),
            ([hcl(1.0), random_subset(2)], ["random_subset(k=2), which draws", "hcl(beta=1.0, tau_plus=0.0)"]),
            ([chain(hcl(1.0), topk(4)), random_subset(2)], ["random_subset(k=2), which draws", "hcl"]),
            ([detached(chain(hcl(1.0), topk(4))), random_subset(2)], ["random_subset(k=2), which draws", "hcl"]),
            ([chain(topk(4), semihard(1.0)), hcl(1.0)], ["semihard(margin=1.0)"]),
        ],
        ids=str,
    )
    def test_facts_that_are_none_say_which_part_breaks_them(self, parts, words):
        facts = chain(*parts).facts
        assert facts == MiningFacts(why=facts.why)
        for word in words:
            assert word in facts.why

    def test_of_nothing(self):
        with refused("chain", "no miners"):
            chain()


class TestAnnealed:
    def test_moves_linearly_and_stays(self):
        miner = annealed(hcl, start=2.0, end=1.0, steps=4)
        betas = [miner.at(step).rule.keywords["beta"] for step in range(7)]
        assert betas == [2.0, 1.75, 1.5, 1.25, 1.0, 1.0, 1.0]
        assert repr(miner.at(1)) == "hcl(beta=1.75, tau_plus=0.0)"
        assert miner.at(1).at(3) is not miner.at(3)
        assert repr(miner.at(1).at(3)) == repr(miner.at(1))

    def test_between_ints_counts_in_ints(self):
        miner = annealed(topk, start=10, end=3, steps=5)
        assert [repr(miner.at(step)) for step in range(6)] == [f"topk(k={k})" for k in (10, 9, 7, 6, 4, 3)]

    def test_ends_where_it_is_told_to(self):
        assert 0.2 + (0.9 - 0.2) != 0.9
        assert annealed(hcl, start=0.2, end=0.9, steps=3).at(3).rule.keywords["beta"] == 0.9

    def test_of_another(self):
        make = partial(annealed_tilt_among, beta=2.0)
        miner = annealed(make, start=4, end=2, steps=2)
        assert repr(miner.at(1)) == "chain(topk(k=3), hcl(beta=1.0, tau_plus=0.0))"
        assert miner.facts == MiningFacts(mass=4, monotone=True)

    def test_survives_pickle_and_deepcopy_with_its_schedule(self):
        miner = chain(
            annealed(topk, start=9, end=3, steps=6), annealed(partial(hcl, tau_plus=0.1), start=1.0, end=0.0, steps=9)
        )
        for other in (pickle.loads(pickle.dumps(miner)), copy.deepcopy(miner), copy.copy(miner)):
            for step in (0, 4, 99):
                assert repr(other.at(step)) == repr(miner.at(step))

    def test_other_miners_are_the_same_at_every_step(self):
        for miner, _ in TABLE:
            if isinstance(miner, Miner) and "annealed" not in repr(miner):
                assert miner.at(0) is miner.at(10**9) is miner

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"start": math.nan}, ["start is nan"]),
            ({"end": INF}, ["end is inf"]),
            ({"steps": 0}, ["steps is 0"]),
            ({"steps": 2.5}, ["steps is 2.5"]),
        ],
        ids=str,
    )
    def test_options(self, options, words):
        with refused("annealed", *words):
            annealed(hcl, **({"start": 1.0, "end": 0.0, "steps": 5} | options))

    def test_both_ends_are_tried_at_once(self):
        with refused("hcl", "beta is -1.0"):
            annealed(hcl, start=1.0, end=-1.0, steps=5)
        with refused("topk", "k is 0"):
            annealed(topk, start=0, end=5, steps=5)

    def test_a_step_before_the_first(self):
        for miner in (topk(1), annealed(hcl, start=1.0, end=0.0, steps=5)):
            with refused(repr(miner), "step is -1"):
                miner.at(-1)


def annealed_tilt_among(k, *, beta):
    return chain(topk(k), annealed(hcl, start=beta, end=0.0, steps=2))


def few_rows_at_a_time(monkeypatch):
    """Strips of three rows, and a miner that sees two of them at a time."""
    for name, value in {"_STRIP": 1, "_FEWEST_ROWS": 1, "_MOST_ROWS": 3, "_MINED": 30}.items():
        monkeypatch.setattr(f"contrastive._strips.{name}", value)


def easiest(k):
    """The k lowest scores: what no draw can fall below."""

    def rule(scores, targets, *, anchors=None):
        return topk(k)(scores.masked_fill(scores > -INF, 0) - scores.masked_fill(scores == -INF, 0), targets)

    return rule


class TestInTheCriterion:
    """Streamed or stored, in both directions, with a queue beside."""

    @pytest.mark.parametrize("queue", [0, 5])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_strips_are_the_matrix(self, miner, symmetric, queue, monkeypatch):
        few_rows_at_a_time(monkeypatch)
        x, y, q = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (8, 8, queue))

        def loss(by, *, tiled):
            criterion = KPairLoss(Cosine(0.5), miner=by, symmetric=symmetric, tiled=tiled)
            return criterion(x, y, negatives=q if queue else None)

        if not miner.facts.drawn:
            found, expected = loss(miner, tiled=True), loss(miner, tiled=False)
            close(found, expected, 1e-13)
            for a, b in zip(gradient(found, x, y, q), gradient(expected, x, y, q), strict=True):
                close(a, b, 1e-12)
            return
        k = miner.facts.mass
        for tiled in (True, False):
            found = mine(loss, miner, tiled=tiled)
            pulled = gradient(found, x, y, q)
            assert all(torch.isfinite(z).all() for z in pulled)
            assert pulled[0].any()
            if "hcl" not in repr(miner):  # weights of 1
                low, high = loss(easiest(k), tiled=False), loss(topk(k), tiled=False)
                assert low - 1e-12 <= found <= high + 1e-12

    @pytest.mark.parametrize("tiled", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"])
    def test_half_precision(self, miner, dtype, tiled):
        halved = torch.float32 if dtype == "autocast" else dtype
        x, y, q = (torch.randn(n, 4).to(halved).requires_grad_() for n in (8, 8, 5))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "autocast"):
            loss = KPairLoss(Cosine(0.5), miner=miner, tiled=tiled)(x, y, negatives=q)
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert all(torch.isfinite(z).all() for z in gradient(loss, x, y, q))

    @pytest.mark.parametrize("tiled", [False, True])
    def test_a_batch_of_one_has_no_negative(self, miner, tiled):
        x, y = (torch.randn(1, 4, requires_grad=True) for _ in range(2))
        loss = KPairLoss(Cosine(0.5), miner=miner, tiled=tiled)(x, y)
        assert loss.item() == (0.5 if miner.facts.proposal else 0.0)
        assert not any(z.any() for z in gradient(loss, x, y))


@pytest.mark.parametrize("value", [math.nan, INF])
@pytest.mark.parametrize("column", [0, 2])
def test_a_broken_score_is_named_behind_every_miner(miner, value, column):
    scores, targets = torch.randn(4, 5), torch.zeros(4, dtype=torch.int64)
    scores[3, column] = value
    with refused("row 3", "NaN or +inf score"):
        kpair_loss(scores, targets, log_weights=mine(miner, scores, targets))
    with refused("infonce_bound", "row 3", "NaN or +inf score"):
        infonce_bound(scores, targets, miner=miner)


class TestCounted:
    def starving(self):
        """Two of four anchors keep no negative; the fifth row is padding and no anchor."""
        scores = torch.tensor([[5.0, 1.0, 0.0], [1.0, 5.0, 2.0], [2.0, 0.0, -INF], [0.0, 1.0, 3.0], [-INF] * 3])
        return scores, torch.tensor([0, 0, 0, 0, 0])

    def test_counts_the_anchors_left_with_their_positive_alone(self):
        miner = counted(multi_similarity(0.5))
        assert math.isnan(miner.empty_rows())
        scores, targets = self.starving()
        miner(scores, targets)
        assert miner.empty_rows() == 0.5
        assert miner.figures() == {"empty_rows": 0.5}
        miner(scores[:1], targets[:1])
        assert miner.empty_rows() == 0.6  # so far
        miner.begin(1)
        assert math.isnan(miner.empty_rows())

    def test_absent_candidates_count_as_much_as_dropped_ones(self):
        miner = counted(topk(2))
        miner(torch.tensor([[1.0, -INF], [1.0, 0.0]]), torch.tensor([0, 0]))
        assert miner.empty_rows() == 0.5

    def test_follows_the_schedule_of_its_miner(self):
        miner = counted(annealed(topk, start=5, end=1, steps=4))
        scores, targets = torch.randn(3, 9), torch.arange(3)
        for step, k in ((0, 5), (2, 3), (4, 1), (99, 1)):
            miner.begin(step)
            assert torch.equal(miner(scores, targets), topk(k)(scores, targets))
            assert miner.facts == topk(k).facts

    def test_any_callable_and_what_it_guarantees(self):
        miner = counted(lambda scores, targets, *, anchors=None: torch.zeros_like(scores))
        assert miner.facts == MiningFacts()
        scores = torch.randn(4, 4)
        assert infonce_bound(scores, miner=counted(topk(2))) == infonce_bound(scores, miner=topk(2))

    @pytest.mark.parametrize("tiled", [False, True])
    def test_the_share_is_that_of_all_anchors_streamed_or_stored(self, tiled, monkeypatch):
        few_rows_at_a_time(monkeypatch)
        x, y = (torch.randn(16, 4, requires_grad=True) for _ in range(2))
        miner = counted(semihard(0.2))
        KPairLoss(Cosine(0.5), miner=miner, tiled=tiled)(x, y).backward()
        scores = Cosine(0.5)(x, y)
        empty = [miners.empty_rows(s, log_weights=semihard(0.2)(s, torch.arange(16))) for s in (scores, scores.T)]
        expected = torch.cat(empty).double().mean()
        assert 0 < expected < 1
        assert miner.empty_rows() == float(expected)
