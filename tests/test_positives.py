"""Positives that are chosen: each against its loop, and as targets of objectives and miners."""

import pytest
import torch
from references import INF, close, gradient, refused, scores_with_gaps

from contrastive import Cosine, KPairLoss, decoupled_loss, kpair_loss, pairwise_loss, supcon_loss
from contrastive.scores import without_self
from miners import (
    Queue,
    empty_rows,
    hard_positive,
    hcl,
    nearest_positive,
    positives,
    semihard,
    semihard_positive,
    topk,
    without_other_positives,
)


def rows(anchors=40, candidates=9, dtype=torch.float64):
    """Random scores and several present positives in every row, one at least."""
    scores, targets = scores_with_gaps(anchors, candidates)
    mask = (torch.rand(anchors, candidates) < 0.4).scatter(1, targets[:, None], True) & (scores > -INF)
    return scores.to(dtype), mask


def hardest_by_loop(row, ours):
    return min(ours, key=lambda j: row[j])


def semihard_by_loop(row, ours):
    """The hardest positive that is easier than the hardest negative; none: the easiest."""
    hardest_negative = max((row[j] for j in range(len(row)) if j not in ours), default=-INF)
    above = [j for j in ours if row[j] > hardest_negative]
    return min(above, key=lambda j: row[j]) if above else max(ours, key=lambda j: row[j])


CHOICES = [(hard_positive, hardest_by_loop), (semihard_positive, semihard_by_loop)]


@pytest.mark.parametrize(("choose", "by_loop"), CHOICES, ids=["hard", "semihard"])
class TestChosenByScore:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_equals_its_loop(self, choose, by_loop, dtype):
        scores, mask = rows(dtype=dtype)
        found = choose(scores, mask)
        expected = [by_loop(row, mask[i].nonzero().flatten().tolist()) for i, row in enumerate(scores.tolist())]
        assert found.tolist() == expected
        assert found.dtype == torch.int64
        assert mask.gather(1, found[:, None]).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_low_precision_and_autocast(self, choose, by_loop, dtype):
        scores, mask = rows(dtype=dtype)
        found = choose(scores, mask)
        expected = [by_loop(row, mask[i].nonzero().flatten().tolist()) for i, row in enumerate(scores.tolist())]
        assert torch.equal(scores.gather(1, found[:, None])[:, 0], scores[range(40), expected])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(choose(scores, mask), found)

    def test_scores_of_ten_thousand(self, choose, by_loop):
        scores, mask = rows()
        for shifted in (scores + 1e4, scores * 1e4):
            expected = [by_loop(row, mask[i].nonzero().flatten().tolist()) for i, row in enumerate(shifted.tolist())]
            assert choose(shifted, mask).tolist() == expected

    def test_padding_one_positive_and_nothing_but_positives(self, choose, by_loop):
        scores = torch.tensor([[-INF, -INF, -INF], [5.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-INF, 1.0, 2.0]])
        mask = torch.tensor([[False, True, False], [False, True, False], [True, True, True], [False, True, True]])
        assert choose(scores, mask).tolist() == [0, 1, 1, 1]
        assert choose(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool)).tolist() == []
        padded = without_other_positives(scores, choose(scores, mask), mask)
        assert kpair_loss(padded, choose(scores, mask))[0] == 0

    def test_an_anchor_without_a_positive(self, choose, by_loop):
        scores, mask = rows(4, 5)
        mask[2] = False
        with refused(choose.__name__, "row 2 has no positive"):
            choose(scores, mask)
        scores[2] = -INF
        assert choose(scores, mask)[2] == 0

    def test_refused(self, choose, by_loop):
        scores, mask = rows(4, 5)
        with refused(choose.__name__, "(4, 3)", "(4, 5)"):
            choose(scores, mask[:, :3])
        with refused(choose.__name__, "dtype torch.int64"):
            choose(scores, torch.arange(4))
        with refused(choose.__name__, "positive of row 1 is absent"):
            choose(torch.tensor([[1.0, 2.0], [1.0, -INF]]), torch.tensor([[True, False], [True, True]]))
        broken = scores.clone()
        broken[3, 0] = float("nan")
        with refused(choose.__name__, "row 3"):
            choose(broken, mask)

    def test_scores_that_need_a_gradient(self, choose, by_loop):
        scores, mask = rows(4, 5)
        before = mask.clone()
        assert torch.equal(choose(scores.clone().requires_grad_(), mask), choose(scores, mask))
        assert torch.equal(mask, before)

    @pytest.mark.parametrize("miner", [None, topk(2), hcl(1.0), semihard(1.0)], ids=repr)
    @pytest.mark.parametrize("objective", [kpair_loss, decoupled_loss, pairwise_loss, supcon_loss])
    def test_any_objective_and_miner_takes_the_targets(self, choose, by_loop, miner, objective):
        scores, mask = rows(12, 8)
        scores.requires_grad_()
        targets = choose(scores, mask)
        alone = without_other_positives(scores, targets, mask)
        weights = None if miner is None else miner(alone, targets)
        loss = objective(alone, targets, log_weights=weights)
        by_hand = []
        for i in range(12):
            columns = [int(targets[i]), *(~mask[i]).nonzero().flatten().tolist()]
            row, first = scores[i : i + 1, columns], torch.tensor([0])
            by_hand.append(objective(row, first, log_weights=None if miner is None else miner(row, first)))
        close(loss, torch.cat(by_hand).detach(), 1e-12)
        mined = torch.autograd.grad(loss.sum(), scores, retain_graph=True)[0]
        close(mined, gradient(torch.cat(by_hand), scores)[0], 1e-12)
        others = mask.scatter(1, targets[:, None], False)
        assert not mined[others].any()

    def test_a_batch_with_labels(self, choose, by_loop):
        z, labels = torch.randn(30, 4), torch.arange(30) % 5
        scores = without_self(Cosine()(z, z))
        mask = (labels[:, None] == labels) & ~torch.eye(30, dtype=torch.bool)
        targets = choose(scores, mask)
        assert torch.equal(labels[targets], labels)
        assert (targets != torch.arange(30)).all()
        kept = without_other_positives(scores, targets, mask)
        assert not empty_rows(kept, targets).any()
        assert ((kept > -INF).sum(1) == 25).all()  # 24 negatives and one positive


def test_semihard_falls_back_to_the_easiest():
    scores = torch.tensor([[1.0, 3.0, 2.0, 5.0], [1.0, 3.0, 2.0, 1.5], [1.0, 3.0, 2.0, 0.0]])
    mask = torch.tensor([[True, True, True, False]] * 3)
    assert semihard_positive(scores, mask).tolist() == [1, 2, 0]


def test_semihard_is_above_the_negative_and_not_beside_it():
    mask = torch.tensor([[True, True, True, False]])
    assert semihard_positive(torch.tensor([[1.0, 3.0, 2.0, 2.0]]), mask).tolist() == [1]


class TestWithoutOtherPositives:
    def test_keeps_target_and_negatives(self):
        scores, mask = rows(6, 5)
        targets = hard_positive(scores, mask)
        found = without_other_positives(scores, targets, mask)
        for i in range(6):
            for j in range(5):
                gone = mask[i, j] and j != targets[i]
                assert found[i, j] == (-INF if gone else scores[i, j])

    def test_equals_supcon_without_other_positives_where_there_is_one(self):
        scores, mask = rows(6, 5)
        per_positive = []
        for i in range(6):
            losses = []
            for p in mask[i].nonzero().flatten():
                targets = torch.zeros(6, dtype=torch.int64)
                targets[i] = p
                row = without_other_positives(scores[i : i + 1], p[None], mask[i : i + 1])
                losses.append(kpair_loss(row, p[None]))
            per_positive.append(torch.cat(losses).mean())
        close(supcon_loss(scores, mask, keep_positives=False), torch.stack(per_positive), 1e-12)

    def test_refused(self):
        scores, mask = rows(4, 5)
        targets = torch.zeros(4, dtype=torch.int64)
        with refused("without_other_positives", "(4, 4)", "(4, 5)"):
            without_other_positives(scores, targets, mask[:, :4])
        with refused("without_other_positives", "torch.float64"):
            without_other_positives(scores, targets, mask.double())
        with refused("without_other_positives", "targets have shape (3,)"):
            without_other_positives(scores, targets[:3], mask)


class TestNearest:
    @staticmethod
    def by_loop(queries, queue):
        found = []
        for x in queries.double():
            cosines = [float(x @ k / (x.norm() * k.norm())) for k in queue.double()]
            found.append(queue[max(range(len(queue)), key=cosines.__getitem__)])
        return torch.stack(found)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_equals_its_loop(self, dtype):
        queries, queue = torch.randn(30, 6).to(dtype), (torch.randn(50, 6) * torch.rand(50, 1) * 9).to(dtype)
        found = nearest_positive(queries, queue)
        assert found.dtype == dtype
        assert torch.equal(found, self.by_loop(queries, queue))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest_positive(queries, queue), found)

    def test_a_zero_key_is_no_neighbour(self):
        queue = torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
        assert nearest_positive(torch.tensor([[1.0, 0.0]]), queue).tolist() == [[1.0, 1.0]]

    def test_dtypes_may_differ(self):
        queries, queue = torch.randn(30, 6), torch.randn(50, 6)
        found = nearest_positive(queries.double(), queue)
        assert torch.equal(found, nearest_positive(queries, queue))
        assert nearest_positive(queries.half(), queue).dtype == torch.float32

    @pytest.mark.parametrize("scored", [1, 120, 10**9])
    def test_blocks_change_nothing(self, monkeypatch, scored):
        queries, queue = torch.randn(30, 6), torch.randn(50, 6)
        expected = nearest_positive(queries, queue)
        seen, plain = [], positives.product

        def spy(u, v):
            seen.append(len(u) * len(v))
            return plain(u, v)

        monkeypatch.setattr(positives, "SCORED", scored)
        monkeypatch.setattr(positives, "product", spy)
        assert torch.equal(nearest_positive(queries, queue), expected)
        assert max(seen) <= max(50, scored)
        assert sum(seen) == 30 * 50

    def test_gradient_flows_to_the_other_view_alone(self):
        queue = Queue(20, 4, dtype=torch.float64)
        queue.enqueue(torch.randn(15, 4))
        x, y = (torch.randn(8, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
        criterion = KPairLoss(Cosine(), miner=hcl(1.0), symmetric=False)
        loss = criterion(nearest_positive(x, queue.keys()), y)
        neighbours = self.by_loop(x.detach(), queue.keys())
        close(loss, criterion(neighbours, y).detach(), 1e-12)
        by_x, by_y = gradient(loss, x, y)
        assert not by_x.any()
        assert by_y.any()

    def test_gradients_do_not_reach_a_queue_that_requires_them(self):
        queue = torch.randn(5, 4, requires_grad=True)
        assert not nearest_positive(torch.randn(2, 4), queue).requires_grad

    def test_refused(self):
        queries, queue = torch.randn(3, 4), torch.randn(5, 4)
        with refused("nearest_positive", "(0, 4)", "a key at least"):
            nearest_positive(queries, Queue(5, 4).keys())
        with refused("nearest_positive", "(3, 4)", "(5, 3)"):
            nearest_positive(queries, queue[:, :3])
        queue[4, 1] = float("nan")
        with refused("row 4 of the queue"):
            nearest_positive(queries, queue)
        with refused("row 0 of the queries"):
            nearest_positive(torch.full((2, 4), INF), torch.randn(5, 4))
        assert nearest_positive(torch.randn(0, 4), torch.randn(5, 4)).shape == (0, 4)
