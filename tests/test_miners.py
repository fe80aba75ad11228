"""One contract over all miners, each against its loop, alone and in the criterion."""

import copy
import math
import pickle
import re

import pytest
import torch
from miner_table import TABLE, Fitted, few_rows_at_a_time, mine, without_ties
from references import INF, close, gradient, refused, scores_with_gaps

import miners
from contrastive import Cosine, KPairLoss, infonce_bound, kpair_loss
from contrastive.scores import MiningFacts, negatives
from miners import (
    Counted,
    Miner,
    annealed,
    chain,
    debiased,
    detached,
    distance_weighted,
    hardest,
    hcl,
    importance,
    margin,
    multi_similarity,
    random_subset,
    ring,
    semihard,
    topk,
)

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
        pytest.skip("draws by a column's place and over whole strips: tests/test_draws.py compares frequencies")
    return miner


@pytest.fixture
def unplaced(fixed):
    """The miners that know nothing of a column's place."""
    if isinstance(fixed, Fitted):
        pytest.skip("columns that move take their facts along: tests/test_masks.py")
    return fixed


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
            return  # absolute scores: tests/test_weights.py moves the floor along
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
