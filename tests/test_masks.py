"""Masks: each against its loop, with facts of candidates and without, in strips, in both directions, with a queue."""

import copy
import math
import pickle

import pytest
import torch
from references import INF, close, dropping, gradient, refused, scores_with_gaps

from contrastive import Cosine, InnerProduct, KPairLoss, infonce_bound, kpair_loss, ntxent_loss, supcon_loss
from contrastive.scores import MiningFacts, partners, without_self
from miners import (
    detached,
    detect_false_negatives,
    duplicates,
    empty_rows,
    false_negatives,
    masks,
    same_group,
    same_label,
)


def facts(count, kinds=3):
    return torch.randint(kinds, (count,))


# What makes a mask of integers, and whether it drops candidate j of anchor i, given their facts and the score.
BY_FACT = {
    "same_label": (same_label, lambda a, b, s: a == b),
    "same_group": (same_group, lambda a, b, s: a != b),
    "duplicates": (duplicates, lambda a, b, s: a == b),
    "duplicates and near copies": (
        lambda *ids: duplicates(*ids, threshold=0.8),
        lambda a, b, s: a == b or s >= 0.8,
    ),
}


@pytest.fixture(params=BY_FACT, ids=str)
def by_fact(request):
    return BY_FACT[request.param]


def likeness(support, candidates):
    """The largest cosine of a candidate with one of the views, by its definition."""

    def cosine(a, b):
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))

    return [[max(cosine(view, z) for view in views) for z in candidates.tolist()] for views in support.tolist()]


def found_by_loop(support, candidates, apart, k, threshold):
    """Huynh et al. (2022), section 3.2: among the k likest, and above the threshold; own columns take no part."""
    found = torch.zeros(len(support), len(candidates), dtype=torch.bool)
    for i, row in enumerate(likeness(support, candidates)):
        others = [j for j in range(len(candidates)) if not apart[i, j]]
        nearest = sorted(others, key=lambda j: row[j], reverse=True)[:k]
        for j in nearest:
            found[i, j] = row[j] > threshold
    return found


class TestEveryMaskOfFacts:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_equals_its_loop(self, by_fact, dtype):
        make, drop = by_fact
        scores, targets = scores_with_gaps(8, 8, dtype=dtype)
        scores[3] = -INF
        own, others = facts(8), facts(13)
        wide, column = scores_with_gaps(8, 13, dtype=dtype)
        for s, t, candidates in ((scores, targets, None), (wide, column, others)):
            columns = own if candidates is None else candidates
            expected = dropping(lambda i, j, s=s, c=columns: drop(int(own[i]), int(c[j]), float(s[i, j])))(s, t)
            found = make(own, candidates)(s, t)
            assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert torch.equal(found.double(), expected)
            assert {-INF, 0.0} == set(found.flatten().tolist())
            assert not found.gather(1, t[:, None]).any()

    def test_the_anchors_facts_serve_where_there_are_as_many_columns(self, by_fact):
        make, _ = by_fact
        scores, targets = scores_with_gaps(8, 8)
        own, others = facts(8), facts(13)
        assert torch.equal(make(own, others)(scores, targets), make(own)(scores, targets))
        # Of two that fit, the candidates'.
        other = (own + 1) % 3
        assert torch.equal(make(own, other)(scores, targets), make(own, other.clone())(scores, targets))
        assert not torch.equal(make(own, other)(scores, targets), make(own)(scores, targets))

    def test_strips_are_rows_of_the_whole(self, by_fact):
        make, _ = by_fact
        scores, targets = scores_with_gaps(9, 13)
        miner = make(facts(9), facts(13))
        whole = miner(scores, targets)
        for rows in (torch.arange(3, 7), torch.tensor([8]), torch.tensor([5, 0, 5])):
            assert torch.equal(miner(scores[rows], targets[rows], anchors=rows), whole[rows])
        assert torch.equal(miner(scores, targets, anchors=torch.arange(9)), whole)
        assert torch.equal(miner(scores[:4], targets[:4]), whole[:4])  # without numbers: the first rows

    @pytest.mark.parametrize("large", [2**24, 2**53, 2**62])
    def test_numbers_are_compared_exactly(self, by_fact, large):
        make, drop = by_fact
        own = torch.tensor([large, large + 1, large, -large])
        scores, diagonal = torch.zeros(4, 4), torch.arange(4)
        expected = dropping(lambda i, j: drop(int(own[i]), int(own[j]), 0.0))(scores, diagonal)
        assert torch.equal(make(own)(scores, diagonal).double(), expected)
        assert torch.equal(make(own, own.clone())(scores, diagonal).double(), expected)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
    def test_any_integers(self, by_fact, dtype):
        make, _ = by_fact
        scores, targets = scores_with_gaps(5, 7)
        own, others = facts(5), facts(7)
        assert torch.equal(make(own.to(dtype), others)(scores, targets), make(own, others)(scores, targets))

    def test_a_lone_fact_and_a_common_one(self, by_fact):
        make, drop = by_fact
        scores, diagonal = torch.zeros(4, 4), torch.arange(4)
        for own in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
            found = make(own)(scores, diagonal)
            others = found[~torch.eye(4, dtype=torch.bool)]
            assert (others == (-INF if drop(int(own[0]), int(own[1]), 0.0) else 0.0)).all()

    def test_autocast_pickle_and_copies(self, by_fact):
        make, _ = by_fact
        scores, targets = scores_with_gaps(5, 7, dtype=torch.float32)
        miner = make(facts(5), facts(7))
        found = miner(scores, targets)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(miner(scores, targets), found)
        for other in (pickle.loads(pickle.dumps(miner)), copy.deepcopy(miner), detached(miner)):
            assert torch.equal(other(scores, targets), found)
            assert other.facts == miner.facts
        assert "5 " in repr(miner)
        assert "7 candidates" in repr(miner)

    def test_inputs_are_left_alone(self, by_fact):
        make, _ = by_fact
        scores, targets = scores_with_gaps(5, 7)
        own, others = facts(5), facts(7)
        before = [x.clone() for x in (scores, targets, own, others)]
        make(own, others)(scores.requires_grad_(), targets)
        assert all(torch.equal(a, b) for a, b in zip((scores.detach(), targets, own, others), before, strict=True))

    @pytest.mark.parametrize("columns", [1, 8, 12])
    def test_facts_of_another_number_of_candidates(self, by_fact, columns):
        make, _ = by_fact
        scores, targets = torch.zeros(6, columns), torch.zeros(6, dtype=torch.int64)
        with refused("6 anchors", "9 candidates", str((6, columns)), "expected 9 or 6 columns"):
            make(facts(6), facts(9))(scores, targets)
        with refused("6 anchors", str((6, columns)), "expected 6 columns"):
            make(facts(6))(scores, targets)

    def test_anchors_without_a_fact(self, by_fact):
        make, _ = by_fact
        scores, targets = torch.zeros(6, 9), torch.zeros(6, dtype=torch.int64)
        with refused("of 5 anchors, expected those of 6"):
            make(facts(5), facts(9))(scores, targets)
        for rows in ([0, 1, 2, 3, 4, 6], [-1, 0, 1, 2, 3, 4]):
            with refused("of 6 anchors", f"rows {min(rows)} to {max(rows)}"):
                make(facts(6), facts(9))(scores, targets, anchors=torch.tensor(rows))
        with refused("anchors have shape (2,)", "[6]"):
            make(facts(6), facts(9))(scores, targets, anchors=torch.arange(2))

    @pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(4, dtype=torch.bool), torch.zeros(4, 1).long()])
    def test_facts_that_are_none(self, by_fact, bad):
        make, _ = by_fact
        word = "dtype" if bad.ndim == 1 else "shape"
        with refused(word):
            make(bad)
        with refused(word):
            make(facts(4), bad)

    @pytest.mark.parametrize("bad", [[1, 2, 3, 4], torch.arange(4).numpy(), "abcd"], ids=lambda bad: type(bad).__name__)
    def test_facts_that_are_no_tensor(self, by_fact, bad):
        make, _ = by_fact
        words = f"are of type {type(bad).__name__}", "expected a tensor of integers"
        with refused(*words):
            make(bad)
        with refused(*words):
            make(facts(4), bad)

    def test_nothing_bounds(self, by_fact):
        make, _ = by_fact
        miner = make(facts(6))
        assert miner.facts == MiningFacts(why=miner.facts.why)
        bound = infonce_bound(torch.randn(6, 6), miner=miner)
        assert bound.status == "not a bound"
        assert miner.facts.why in bound.reason


def test_a_group_that_the_anchor_tells_is_said_to_bound():
    reason = infonce_bound(torch.randn(4, 4), miner=same_group(facts(4))).reason
    for word in ("I(X;Y | group)", "function of the anchor", "A.2"):
        assert word in reason


class TestDuplicates:
    def test_a_score_at_the_threshold_is_a_copy(self):
        scores = torch.tensor([[9.0, 0.5, 0.75, 1.0, -INF]])
        assert duplicates(threshold=0.75)(scores, torch.tensor([0])).tolist() == [[0.0, 0.0, -INF, -INF, 0.0]]

    def test_the_anchors_older_key_in_a_queue(self):
        ids, queued = torch.tensor([4, 5]), torch.tensor([9, 5, 4, 4])
        found = duplicates(ids, torch.cat([ids, queued]))(torch.zeros(2, 6), torch.arange(2))
        assert found.tolist() == [[0.0, 0.0, 0.0, 0.0, -INF, -INF], [0.0, 0.0, 0.0, -INF, 0.0, 0.0]]

    def test_either_reason_is_enough(self):
        ids = torch.tensor([4, 5, 4])
        scores = torch.tensor([[0.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
        found = duplicates(ids, threshold=2.0)(scores, torch.arange(3))
        assert found.tolist() == [[0.0, -INF, -INF], [0.0, 0.0, 0.0], [-INF, 0.0, 0.0]]

    def test_options(self):
        with refused("duplicates", "got nothing", "ids of the anchors, a threshold or both"):
            duplicates()
        with refused("duplicates", "got ids of candidates"):
            duplicates(None, facts(3), threshold=1.0)
        for threshold in (math.nan, INF, -INF):
            with refused("duplicates", "threshold", str(threshold)):
                duplicates(threshold=threshold)


class TestFalseNegatives:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("k", [1, 3, 100])
    @pytest.mark.parametrize("threshold", [-2.0, 0.3, 0.7, 1.5])
    def test_equals_its_loop(self, dtype, k, threshold):
        support, candidates = torch.randn(7, 3, 4).to(dtype), (5 * torch.randn(11, 4)).to(dtype)
        for targets in (None, torch.tensor([3, 3, 10, 0, 1, 2, 9]), torch.rand(7, 11) < 0.3):
            apart = torch.eye(7, 11, dtype=torch.bool) if targets is None else targets
            if apart.dtype != torch.bool:
                apart = torch.zeros(7, 11, dtype=torch.bool).scatter(1, apart[:, None], True)
            found = detect_false_negatives(support, candidates, targets, k=k, threshold=threshold)
            assert torch.equal(found, found_by_loop(support, candidates, apart, k, threshold))
            assert not (found & apart).any()
        assert found.any() == (threshold < 1)

    def test_the_defaults_are_the_papers(self):
        support = torch.randn(40, 2, 3)
        candidates = torch.randn(60, 3)
        found = detect_false_negatives(support, candidates)
        assert torch.equal(found, detect_false_negatives(support, candidates, k=10, threshold=0.7))
        assert found.sum(1).max() == 10
        assert torch.equal(found, found_by_loop(support, candidates, torch.eye(40, 60, dtype=torch.bool), 10, 0.7))

    def test_the_own_column_takes_no_place_among_the_k(self):
        y = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]])
        assert detect_false_negatives(y[:, None], y, k=1)[0].tolist() == [False, True, False]
        none = torch.zeros(3, 3, dtype=torch.bool)
        assert detect_false_negatives(y[:, None], y, none, k=1)[0].tolist() == [True, False, False]

    def test_the_threshold_itself_is_not_above_it(self):
        support, candidates = torch.tensor([[[2.0, 0.0]]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]])
        targets = torch.tensor([0])
        assert detect_false_negatives(support, candidates, targets, threshold=1.0).tolist() == [[False, False]]
        assert detect_false_negatives(support, candidates, targets, threshold=0.999).tolist() == [[False, True]]

    @pytest.mark.parametrize("scored", [1, 50, 66, 10**9])
    def test_blocks_change_nothing(self, monkeypatch, scored):
        support, candidates = torch.randn(7, 3, 4), torch.randn(11, 4)
        expected = detect_false_negatives(support, candidates, k=2, threshold=0.1)
        monkeypatch.setattr(masks, "SCORED", scored)
        assert torch.equal(detect_false_negatives(support, candidates, k=2, threshold=0.1), expected)
        assert expected.any()

    def test_blocks_are_bounded(self, monkeypatch):
        seen = []

        def spy(u, v):
            seen.append(len(u) * len(v))
            return u @ v.T

        monkeypatch.setattr(masks, "product", spy)
        monkeypatch.setattr(masks, "SCORED", 1000)
        detect_false_negatives(torch.randn(50, 2, 4), torch.randn(70, 4))
        assert max(seen) <= 1000
        assert sum(seen) == 50 * 2 * 70

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_lengths_do_not_matter(self, scale):
        support, candidates = torch.randn(5, 2, 4), torch.randn(9, 4)
        support[1, 0], candidates[3] = 0, 0
        expected = detect_false_negatives(support, candidates, k=4, threshold=0.2)
        assert torch.equal(detect_false_negatives(scale * support, candidates, k=4, threshold=0.2), expected)
        assert torch.equal(detect_false_negatives(support, scale * candidates, k=4, threshold=0.2), expected)

    def test_a_zero_row_is_like_nothing(self):
        support, candidates = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]), torch.tensor([[0.0, 0.0], [1.0, 0.1]])
        none = torch.zeros(1, 2, dtype=torch.bool)
        assert detect_false_negatives(support, candidates, none, k=1).tolist() == [[False, True]]
        assert detect_false_negatives(0 * support, candidates, none, threshold=-0.5).tolist() == [[True, True]]

    def test_autocast_changes_nothing(self):
        support, candidates = torch.randn(50, 2, 4), torch.randn(80, 4)
        expected = detect_false_negatives(support, candidates, k=5, threshold=0.5)
        miner, scores = false_negatives(support, candidates), torch.randn(50, 80)
        mined = miner(scores, torch.arange(50))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(detect_false_negatives(support, candidates, k=5, threshold=0.5), expected)
            assert torch.equal(miner(scores, torch.arange(50)), mined)

    def test_elimination_drops_what_is_found(self):
        support, candidates = torch.randn(7, 3, 4), torch.randn(11, 4)
        scores, targets = scores_with_gaps(7, 11, absent=0.0)
        found = false_negatives(support, candidates, k=3, threshold=0.2)(scores, targets)
        expected = detect_false_negatives(support, candidates, targets, k=3, threshold=0.2)
        assert torch.equal(found, torch.zeros_like(scores).masked_fill(expected, -INF))
        assert expected.any()
        for rows in (torch.arange(2, 5), torch.tensor([6])):
            miner = false_negatives(support, candidates, k=3, threshold=0.2)
            assert torch.equal(miner(scores[rows], targets[rows], anchors=rows), found[rows])

    def test_absent_candidates_take_no_place_either(self):
        # NT-Xent: the self pair is the likest of all, and no candidate.
        z = torch.randn(8, 3)
        targets = partners(8)
        scores = without_self(z @ z.T)
        found = false_negatives(z[:, None], z, k=1, threshold=-1.0)(scores, targets)
        dropped = (found == -INF) & (scores > -INF)
        assert (dropped.sum(1) == 1).all()
        apart = torch.eye(8, dtype=torch.bool).scatter(1, targets[:, None], True)
        assert torch.equal(dropped, found_by_loop(z[:, None], z, apart, 1, -1.0))

    def test_where_only_the_pairs_are_columns_their_candidates_serve(self):
        support, candidates = torch.randn(6, 2, 4), torch.randn(9, 4)
        scores, diagonal = torch.randn(6, 6), torch.arange(6)
        found = false_negatives(support, candidates, threshold=0.1)(scores, diagonal)
        assert torch.equal(found, false_negatives(support, candidates[:6], threshold=0.1)(scores, diagonal))

    def test_attraction_is_more_positives(self):
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
        scores, own = Cosine(temperature=0.5)(x, y), torch.eye(6, dtype=torch.bool)
        found = detect_false_negatives(torch.stack([x, y], 1), y, k=2, threshold=0.1)
        # Huynh et al. (2022), eq. 4: the mean over the sample's own and the found of -log of their share.
        shares = scores.softmax(1).log()
        expected = [-shares[i, found[i] | own[i]].mean() for i in range(6)]
        close(supcon_loss(scores, found | own), torch.stack(expected), 1e-13)
        assert found.any()

    def test_bad_input(self):
        support, candidates = torch.randn(4, 2, 3), torch.randn(5, 3)
        for call in (detect_false_negatives, false_negatives):
            name = call.__name__
            for k in (0, -1, True, 1.5):
                with refused(name, f"k is {k}"):
                    call(support, candidates, k=k)
            with refused(name, "threshold is nan"):
                call(support, candidates, threshold=math.nan)
            with refused(name, "(4, 2, 3)", "(5, 4)"):
                call(support, torch.randn(5, 4))
            with refused(name, "(4, 3)", "[anchors, views, d]"):
                call(support[:, 0], candidates)
            with refused(name, "(4, 0, 3)", "a view at least"):
                call(support[:, :0], candidates)
            with refused(name, "torch.int64"):
                call(support, candidates.long())
            for value in (math.nan, INF):
                broken = support.clone()
                broken[2, 1, 0] = value
                with refused(name, "row 2 of the support"):
                    call(broken, candidates)
                broken = candidates.clone()
                broken[3, 1] = value
                with refused(name, "row 3 of the candidates"):
                    call(support, broken)
        with refused("(4, 4)", "(4, 5)"):
            detect_false_negatives(support, candidates, torch.zeros(4, 4, dtype=torch.bool))
        with refused("targets have shape (5,)"):
            detect_false_negatives(support, candidates, torch.zeros(5, dtype=torch.int64))
        with refused("without targets", "4 candidates"):
            detect_false_negatives(support, candidates[:3])
        miner = false_negatives(support, candidates)
        with refused("views of 4 anchors and 5 candidates", "(4, 6)", "expected 5 or 4 columns"):
            miner(torch.zeros(4, 6), torch.arange(4))
        with refused("views of 4 anchors, expected those of 5"):
            miner(torch.zeros(5, 5), torch.arange(5))
        with refused("views of 4 anchors", "rows 4 to 4"):
            miner(torch.zeros(1, 5), torch.tensor([0]), anchors=torch.tensor([4]))
        with refused("views of 4 anchors and 3 candidates", "(4, 4)"):
            false_negatives(support, candidates[:3])(torch.zeros(4, 4), torch.arange(4))

    def test_says_what_it_is(self):
        miner = false_negatives(torch.randn(4, 2, 3), torch.randn(5, 3), k=7, threshold=0.6)
        assert repr(miner) == "false_negatives(4 anchors, 5 candidates, k=7, threshold=0.6)"
        assert infonce_bound(torch.randn(4, 5), miner=miner).status == "not a bound"
        assert pickle.loads(pickle.dumps(miner)).facts == miner.facts

    def test_nothing_to_compare(self):
        assert detect_false_negatives(torch.randn(0, 2, 3), torch.randn(5, 3)).shape == (0, 5)
        assert false_negatives(torch.randn(2, 1, 3), torch.randn(2, 3))(torch.zeros(0, 2), facts(0)).shape == (0, 2)

    def test_the_weights_pass_no_gradient_to_the_views(self):
        support, candidates = torch.randn(4, 1, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
        assert not false_negatives(support, candidates)(candidates @ candidates.T, torch.arange(4)).requires_grad


class TestInTheLoss:
    """300 pairs and a queue of 40: two strips of anchors, and the direction back without the queue."""

    @pytest.fixture
    def batch(self):
        x, y = (torch.randn(300, 6, dtype=torch.float64) for _ in range(2))
        return x, y, torch.randn(40, 6, dtype=torch.float64)

    @pytest.fixture(params=["same_label", "same_group", "duplicates", "near copies", "false_negatives"])
    def miner(self, request, batch):
        x, y, queue = batch
        own, queued = facts(300, 5), facts(40, 5)
        if request.param == "near copies":
            return duplicates(threshold=1.0)
        if request.param == "false_negatives":
            return false_negatives(torch.stack([x, y], 1), torch.cat([y, queue]), k=20)
        make = {"same_label": same_label, "same_group": same_group, "duplicates": duplicates}[request.param]
        return make(own, torch.cat([own, queued]))

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_streamed_is_stored(self, batch, miner, symmetric):
        x, y, queue = (z.clone().requires_grad_() for z in batch)
        found = []
        for tiled in (False, True):
            loss = KPairLoss(Cosine(temperature=0.5), miner=miner, symmetric=symmetric, tiled=tiled)(
                x, y, negatives=queue
            )
            found.append((loss, *gradient(loss, x, y, queue)))
        for stored, streamed in zip(*found, strict=True):
            close(streamed, stored, 1e-12)

    def test_both_directions_by_hand(self, batch, miner):
        x, y, queue = batch
        critic, diagonal = Cosine(temperature=0.5), torch.arange(300)
        scores = critic(x, torch.cat([y, queue]))
        there = kpair_loss(scores, log_weights=miner(scores, diagonal)).mean()
        back = kpair_loss(scores[:, :300].T, log_weights=miner(scores[:, :300].T.contiguous(), diagonal)).mean()
        close(KPairLoss(critic, miner=miner)(x, y, negatives=queue), (there + back) / 2, 1e-12)
        uniform = KPairLoss(critic)(x, y, negatives=queue)
        assert abs(float(uniform) - float((there + back) / 2)) > 1e-3

    def test_the_direction_back_compares_pairs(self, batch):
        x, y, queue = batch
        own, queued = facts(300, 5), facts(40, 5)
        scores = InnerProduct()(x, y)
        back = kpair_loss(scores.T.masked_fill((own[:, None] == own) & ~torch.eye(300, dtype=torch.bool), -INF)).mean()
        both = scores.masked_fill((own[:, None] == own) & ~torch.eye(300, dtype=torch.bool), -INF)
        there = kpair_loss(torch.cat([both, (x @ queue.T).masked_fill(own[:, None] == queued, -INF)], 1)).mean()
        loss = KPairLoss(InnerProduct(), miner=same_label(own, torch.cat([own, queued])))(x, y, negatives=queue)
        close(loss, (there + back) / 2, 1e-12)

    def test_two_views(self):
        z = torch.randn(12, 4, dtype=torch.float64)
        own = facts(6).repeat(2)
        miner = same_label(own)
        scores = z @ z.T
        mined = ntxent_loss(scores, log_weights=miner(without_self(scores), partners(12)))
        criterion = KPairLoss(InnerProduct(), miner=miner, intra_view=True)
        close(criterion(z[:6], z[6:]), mined.mean(), 1e-13)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_and_autocast(self, batch, miner, dtype):
        x, y, queue = (z.to(dtype).requires_grad_() for z in batch)
        criterion = KPairLoss(Cosine(temperature=0.5), miner=miner)
        loss = criterion(x, y, negatives=queue)
        assert loss.dtype == torch.float32
        assert all(torch.isfinite(g).all() for g in gradient(loss, x, y, queue))
        wide = [z.detach().float() for z in (x, y, queue)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(
                criterion(wide[0], wide[1], negatives=wide[2]), criterion(wide[0], wide[1], negatives=wide[2])
            )

    def test_labels_of_another_length(self, batch):
        x, y, queue = batch
        with refused("same_label", "labels of 300 anchors and 300 candidates", "(", "300 columns"):
            KPairLoss(Cosine(), miner=same_label(facts(300)))(x, y, negatives=queue)
        for tiled in (False, True):
            with refused("same_label", "labels of 299 anchors"):
                KPairLoss(Cosine(), miner=same_label(facts(299)), tiled=tiled)(x, y)


class TestEmptyRows:
    def test_a_row_without_negatives_costs_nothing_and_is_counted(self):
        labels = torch.tensor([1, 1, 1, 2])
        scores = torch.randn(4, 4, dtype=torch.float64)
        scores[3] = torch.tensor([-INF, -INF, -INF, 0.5])  # no negatives of its own
        scores.requires_grad_()
        log_weights = same_label(labels)(scores, torch.arange(4))
        assert empty_rows(scores, log_weights=log_weights).tolist() == [False, False, False, True]
        log_weights = same_label(torch.tensor([1, 1, 1, 1]))(scores, torch.arange(4))
        assert empty_rows(scores, log_weights=log_weights).tolist() == [True] * 4
        loss = kpair_loss(scores, log_weights=log_weights)
        assert not loss.any()
        assert not gradient(loss, scores)[0].any()

    def test_without_mining_and_padding(self):
        scores = torch.zeros(4, 3)
        scores[1] = -INF
        scores[2] = torch.tensor([-INF, 1.0, -INF])
        targets = torch.tensor([2, 0, 1, 0])
        assert empty_rows(scores, targets).tolist() == [False, False, True, False]
        only_padding = torch.tensor([[-INF, 0.0, 0.0], [0.0, 0.0, 0.0]])
        assert empty_rows(scores[1:3], targets[1:3], log_weights=only_padding).tolist() == [False, True]
        assert empty_rows(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)).tolist() == [True, True]
        assert empty_rows(torch.zeros(0, 3)).tolist() == []

    def test_weights_of_absent_candidates_do_not_count(self):
        scores = torch.tensor([[0.0, -INF]])
        assert empty_rows(scores, log_weights=torch.zeros(1, 2)).tolist() == [True]

    def test_a_broken_weight_is_no_missing_one(self):
        log_weights = torch.tensor([[0.0, math.nan]])
        assert empty_rows(torch.zeros(1, 2), log_weights=log_weights).tolist() == [False]

    def test_shapes(self):
        with refused("empty_rows", "log_weights have shape (2, 3)"):
            empty_rows(torch.zeros(2, 2), log_weights=torch.zeros(2, 3))
