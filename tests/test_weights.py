"""Single miners that weigh by the scores: what is special about each, and what it refuses."""

import math

import pytest
import references
import torch
from miner_table import without_ties
from references import INF, close, gradient, refused, scores_with_gaps

from contrastive import additive_margin_loss, kpair_loss
from miners import annealed, debiased, distance_weighted, hardest, hcl, margin, multi_similarity, ring, semihard, topk


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
