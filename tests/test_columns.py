"""Columns: the queue, filled by one process and by several, and synthetic negatives."""

import copy
import math
import pickle

import pytest
import torch
from ranks import run_ranks
from references import INF, close, gradient, refused, scores_with_gaps

from contrastive import Bilinear, Concat, Cosine, InnerProduct, KPairLoss, kpair_loss
from contrastive.lists import list_scores
from miners import Queue, debiased, duplicates, hardest, hcl, mix_hardest, same_label, semihard, topk

MINERS = [None, topk(3), hardest(), semihard(0.5), hcl(1.0), debiased(0.1), duplicates(threshold=1.5)]


def batches(*lengths, dim=4, dtype=torch.float32):
    return [torch.randn(length, dim, dtype=dtype) for length in lengths]


def fill(queue, keys, ids=None):
    for batch, numbers in zip(keys, ids or [None] * len(keys), strict=True):
        queue.enqueue(batch, numbers)
    return queue


class TestFirstInFirstOut:
    @pytest.mark.parametrize(
        "lengths", [(), (1,), (3, 3), (7,), (3, 3, 3), (5, 5, 5, 5), (7, 7), (0, 2, 0, 6, 0), (1,) * 20, (6, 7, 1, 2)]
    )
    def test_keeps_the_newest_in_order(self, lengths):
        keys = batches(*lengths)
        ids = list(torch.arange(sum(lengths)).split(lengths))
        queue = fill(Queue(7, 4), keys, ids)
        expected = torch.cat([*keys, torch.zeros(0, 4)])[-7:]
        assert len(queue) == len(expected) == min(7, sum(lengths))
        assert torch.equal(queue.keys(), expected)
        assert torch.equal(queue.ids(), torch.arange(sum(lengths))[-7:])
        assert torch.equal(fill(Queue(7, 4), keys).keys(), expected)

    def test_starts_empty(self):
        queue = Queue(5, 3)
        assert len(queue) == 0
        assert queue.keys().shape == (0, 3)
        assert queue.ids().shape == (0,)
        assert queue.ids().dtype == torch.int64

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_dtypes(self, dtype):
        queue = Queue(5, 4, dtype=dtype)
        keys = torch.randn(3, 4, dtype=torch.float64)
        queue.enqueue(keys)
        queue.enqueue(keys.half())
        assert queue.keys().dtype == dtype
        assert torch.equal(queue.keys(), torch.cat([keys.to(dtype)[1:], keys.half().to(dtype)]))
        x, y = torch.randn(3, 4).to(dtype), torch.randn(3, 4).to(dtype)
        loss = KPairLoss(Cosine(), miner=topk(2))(x, y, negatives=queue.keys())
        assert torch.isfinite(loss)

    def test_the_module_is_cast_without_its_numbers(self):
        ids = [torch.tensor([2**53 + 1, 1, 2**62]), torch.tensor([-5, 7, 8])]
        for cast in (torch.nn.Module.half, torch.nn.Module.double, torch.nn.Module.bfloat16):
            queue = cast(fill(Queue(5, 4), batches(3, 3), ids))
            assert queue.ids().tolist() == [1, 2**62, -5, 7, 8]
            queue.enqueue(torch.randn(2, 4), torch.tensor([2**24 + 1, 2**24]))
            assert queue.ids().tolist() == [-5, 7, 8, 2**24 + 1, 2**24]
            assert queue.keys().dtype != torch.float32

    def test_keys_are_taken_without_gradient_and_are_a_copy(self):
        keys = torch.randn(3, 4, requires_grad=True)
        queue = Queue(4, 4)
        queue.enqueue(keys)
        seen = queue.keys()
        assert not seen.requires_grad
        before = seen.clone()
        with torch.no_grad():
            keys.zero_()
        queue.enqueue(torch.randn(4, 4))
        assert torch.equal(seen, before)
        assert not list(queue.parameters())

    def test_the_gradient_of_a_loss_may_be_taken_after_enqueuing(self):
        queue, x, y = Queue(4, 4), torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
        queue.enqueue(torch.randn(4, 4))
        keys = queue.keys()
        for tiled in (True, False):
            loss = KPairLoss(Cosine(), miner=hcl(1.0), tiled=tiled)(x, y, negatives=keys)
            expected = gradient(KPairLoss(Cosine(), miner=hcl(1.0), tiled=tiled)(x, y, negatives=keys.clone()), x)[0]
            queue.enqueue(torch.randn(2, 4))
            assert torch.equal(gradient(loss, x)[0], expected)

    @pytest.mark.parametrize("scope", [torch.inference_mode, torch.no_grad])
    def test_keys_formed_without_autograd(self, scope):
        queue = Queue(4, 4)
        with scope():
            keys = torch.randn(3, 4) + 1
        queue.enqueue(keys)
        assert torch.equal(queue.keys(), keys)

    def test_under_autocast(self):
        queue, layer = Queue(4, 4), torch.nn.Linear(4, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            keys = layer(torch.randn(3, 4))
            queue.enqueue(keys)
            assert queue.keys().dtype == torch.float32
        assert keys.dtype == torch.bfloat16
        assert torch.equal(queue.keys(), keys.float())


class TestSaved:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("lengths", [(), (3,), (5, 4), (7,)])
    @pytest.mark.parametrize("with_ids", [True, False])
    def test_goes_on_in_a_fresh_module_bit_for_bit(self, tmp_path, dtype, lengths, with_ids):
        keys = batches(*lengths)
        ids = [torch.randint(2**62, (length,)) for length in lengths] if with_ids else None
        queue = fill(Queue(7, 4, dtype=dtype), keys, ids)
        torch.save(queue.state_dict(), tmp_path / "queue.pt")
        other = Queue(7, 4, dtype=dtype)
        other.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
        more = batches(3, 6)
        numbers = [torch.randint(2**62, (length,)) for length in (3, 6)] if with_ids else [None, None]
        for k in range(3):
            assert len(other) == len(queue)
            assert torch.equal(other.keys(), queue.keys())
            if with_ids:
                assert torch.equal(other.ids(), queue.ids())
            elif len(queue):
                with refused("without ids"):
                    other.ids()
            if k < 2:
                queue.enqueue(more[k], numbers[k])
                other.enqueue(more[k], numbers[k])
        assert all(torch.equal(a, b) for a, b in zip(queue.buffers(), other.buffers(), strict=True))

    def test_within_a_model(self, tmp_path):
        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder, self.queue = torch.nn.Linear(3, 4), Queue(5, 4)

        model, fresh = Model(), Model()
        fill(model.queue, batches(3, 4), [torch.arange(3), torch.arange(4)])
        torch.save(model.state_dict(), tmp_path / "model.pt")
        fresh.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
        assert torch.equal(fresh.queue.keys(), model.queue.keys())
        assert fresh.queue.ids().tolist() == [1, 2, 0, 1, 2, 3][-5:]
        assert "Queue(size=5, dim=4)" in repr(model)

    def test_copies_and_pickles(self):
        queue = fill(Queue(5, 4), batches(3, 4))
        for other in (copy.deepcopy(queue), pickle.loads(pickle.dumps(queue))):
            assert torch.equal(other.keys(), queue.keys())
            other.enqueue(torch.randn(1, 4))
            assert not torch.equal(other.keys(), queue.keys())


class TestRefused:
    @pytest.mark.parametrize("bad", [0, -1, 2.0, True, None])
    def test_sizes(self, bad):
        with refused("Queue: size", repr(bad)):
            Queue(bad, 4)
        with refused("Queue: dim", repr(bad)):
            Queue(4, bad)
        with refused("Queue: dtype is torch.int64"):
            Queue(4, 4, dtype=torch.int64)

    def test_keys(self):
        queue = fill(Queue(5, 4), batches(3))
        before = queue.keys()
        with refused("Queue.enqueue", "got 6 keys", "at most 5"):
            queue.enqueue(torch.randn(6, 4))
        with refused("(2, 3)", "[batch, 4]"):
            queue.enqueue(torch.randn(2, 3))
        with refused("(4,)", "[batch, 4]"):
            queue.enqueue(torch.randn(4))
        with refused("dtype torch.int64"):
            queue.enqueue(torch.zeros(2, 4).long())
        for value in (math.nan, INF, -INF):
            keys = torch.randn(3, 4)
            keys[1, 2] = value
            with refused("row 1 of the keys", "NaN or infinite"):
                queue.enqueue(keys)
        assert torch.equal(queue.keys(), before)

    def test_keys_that_the_dtype_cannot_hold(self):
        queue = Queue(5, 4, dtype=torch.float16)
        with refused("row 0 of the keys"):
            queue.enqueue(torch.full((2, 4), 1e5))
        assert len(queue) == 0

    def test_ids(self):
        queue = Queue(5, 4)
        keys = torch.randn(2, 4)
        with refused("ids have shape (3,)", "[2]"):
            queue.enqueue(keys, torch.arange(3))
        with refused("ids have shape (1,)", "[2]"):
            queue.enqueue(keys, torch.arange(1))
        for ids in (torch.zeros(2), torch.zeros(2, dtype=torch.bool)):
            with refused("ids have dtype"):
                queue.enqueue(keys, ids)
        queue.enqueue(keys, torch.arange(2))
        with refused("ids are missing"):
            queue.enqueue(keys)
        assert queue.ids().tolist() == [0, 1]
        other = fill(Queue(5, 4), [keys])
        with refused("ids are given"):
            other.enqueue(keys, torch.arange(2))
        with refused("Queue.ids", "without ids"):
            other.ids()
        assert torch.equal(other.keys(), keys)


class TestAsNegatives:
    @pytest.mark.parametrize("miner", MINERS, ids=repr)
    @pytest.mark.parametrize("tiled", [True, False])
    def test_a_loop_over_columns_by_hand(self, miner, tiled):
        """Two encoders, four steps; every step's columns are written out from what was kept by hand."""
        first, second, critic = torch.nn.Linear(3, 4).double(), torch.nn.Linear(5, 4).double(), Bilinear(4).double()
        criterion = KPairLoss(critic, miner=miner, tiled=tiled)
        queue, kept = Queue(10, 4, dtype=torch.float64), []
        for _ in range(4):
            x = first(torch.randn(4, 3, dtype=torch.float64))
            y = second(torch.randn(4, 5, dtype=torch.float64))
            loss = criterion(x, y, negatives=queue.keys())
            there = torch.stack(
                [torch.stack([critic(x[i : i + 1], z[None])[0, 0] for z in [*y, *kept]]) for i in range(4)]
            )
            back = there[:, :4].T
            directions = []
            for scores in (there, back):
                weights = None if miner is None else miner(scores, torch.arange(4))
                directions.append(kpair_loss(scores, log_weights=weights).mean())
            expected = sum(directions) / 2
            close(loss, expected.detach(), 1e-12)
            weights = [*first.parameters(), *second.parameters(), *critic.parameters()]
            for a, b in zip(
                torch.autograd.grad(loss, weights, retain_graph=True), gradient(expected, *weights), strict=True
            ):
                close(a, b, 1e-11)
            queue.enqueue(y)
            kept = [*kept, *y.detach()][-10:]
        assert len(queue) == 10

    def test_the_current_positives_are_never_among_the_negatives(self):
        queue = Queue(12, 4)
        for step in range(6):
            y = torch.randn(4, 4)
            seen = queue.keys()
            assert len(seen) == min(12, 4 * step)
            assert not (seen[:, None] == y).all(2).any()
            queue.enqueue(y)
            assert (queue.keys()[-4:] == y).all()

    def test_an_older_key_of_an_item_is_dropped_by_its_id(self):
        x, y, ids = torch.randn(4, 4), torch.randn(4, 4), torch.tensor([10, 11, 12, 13])
        queue = Queue(8, 4)
        queue.enqueue(torch.randn(3, 4), torch.tensor([99, 11, 98]))
        miner = duplicates(ids, torch.cat([ids, queue.ids()]))
        critic = Cosine()
        scores = torch.cat([critic(x, y), critic(x, queue.keys())], 1)
        assert scores[1, 5] > -INF
        scores[1, 5] = -INF
        expected = (kpair_loss(scores).mean() + kpair_loss(scores[:, :4].T).mean()) / 2
        close(KPairLoss(critic, miner=miner)(x, y, negatives=queue.keys()), expected, 1e-6)

    def test_labels_of_keys(self):
        x, y, labels = torch.randn(4, 4), torch.randn(4, 4), torch.tensor([1, 2, 1, 3])
        queue = fill(Queue(8, 4), batches(5), [torch.tensor([1, 1, 2, 3, 9])])
        found = same_label(labels, torch.cat([labels, queue.ids()]))(torch.zeros(4, 9), torch.arange(4))
        assert found[0].tolist() == [0.0, 0.0, -INF, 0.0, -INF, -INF, 0.0, 0.0, 0.0]
        assert torch.isfinite(
            KPairLoss(Cosine(), miner=same_label(labels, torch.cat([labels, queue.ids()])))(
                x, y, negatives=queue.keys()
            )
        )

    def test_an_empty_queue_is_none(self):
        x, y = torch.randn(4, 4), torch.randn(4, 4)
        criterion = KPairLoss(Cosine(), miner=topk(2))
        assert torch.equal(criterion(x, y, negatives=Queue(8, 4).keys()), criterion(x, y))


# The lengths of each rank's batch, step by step: even and uneven.
RANKS = [
    (dtype, lengths)
    for dtype in (torch.float32, torch.float16, torch.bfloat16)
    for lengths in ([(2, 2), (3, 3), (1, 1)], [(1, 3), (4, 0), (0, 0), (0, 5)])
]


def _rank(rank, world):
    """One of several processes: enqueues batches of its own lengths, then asks for what must be refused."""
    generator = torch.Generator().manual_seed(rank)
    found = []
    for dtype, lengths in RANKS:
        queue, alone, sent = Queue(9, 3, dtype=dtype), Queue(9, 3, dtype=dtype), []
        for step, counts in enumerate(lengths):
            keys = torch.randn(counts[rank], 3, generator=generator)
            ids = torch.arange(counts[rank]) + 100 * rank + 1000 * step + 2**60
            queue.enqueue(keys, ids)
            alone.enqueue(keys, ids, gather=False)
            sent.append((keys, ids))
        messages = []
        for count, ids in ((5, torch.arange(5)), (2, torch.arange(2) if rank else None)):
            try:
                queue.enqueue(torch.randn(count, 3), ids)
            except ValueError as error:
                messages.append(str(error))
        unnumbered = Queue(9, 3, dtype=dtype)
        unnumbered.enqueue(sent[0][0])
        found.append((queue.keys(), queue.ids(), alone.ids(), sent, messages, unnumbered.keys()))
    return found


@pytest.mark.slow
def test_all_ranks_hold_the_keys_of_all_ranks():
    both = run_ranks(_rank, 2)
    for (dtype, _), *ranks in zip(RANKS, *both, strict=True):
        sent = [part for pair in zip(ranks[0][3], ranks[1][3], strict=True) for part in pair]
        for keys, ids, alone, own, messages, unnumbered in ranks:
            assert torch.equal(keys, torch.cat([z.to(dtype) for z, _ in sent])[-9:])
            assert torch.equal(ids, torch.cat([z for _, z in sent])[-9:])
            assert torch.equal(alone, torch.cat([z for _, z in own])[-9:])
            assert torch.equal(unnumbered, torch.cat([z.to(dtype) for z, _ in sent[:2]]))
            assert "got 10 keys, expected at most 9" in messages[0]
            assert "some ranks gave ids and others did not" in messages[1]


def mixed_by_loop(x, candidates, scores, targets, *, hardest, pairs, with_anchor):
    """Kalantidis et al. (2020), section 3, one vector at a time, with the draws in the order of the library."""
    anchors = len(x)
    drawn = [torch.rand(anchors, pairs) for _ in range(2)]
    shares = [torch.rand(anchors, pairs, 1, dtype=torch.float64)]
    if with_anchor:
        drawn.append(torch.rand(anchors, with_anchor))
        shares.append(torch.rand(anchors, with_anchor, 1, dtype=torch.float64))
    found = torch.zeros(anchors, pairs + with_anchor, candidates.shape[1], dtype=torch.float64)

    def normalized(z):
        return z / z.square().sum().sqrt()

    for i in range(anchors):
        negatives = [j for j in range(len(candidates)) if j != int(targets[i]) and scores[i, j] > -INF]
        ranked = sorted(negatives, key=lambda j: float(scores[i, j]), reverse=True)[:hardest]

        def pick(table, m, ranked=ranked, i=i):
            return normalized(candidates[ranked[int(table[i, m] * len(ranked))]])

        for m in range(pairs if ranked else 0):
            a = shares[0][i, m, 0]
            found[i, m] = normalized(a * pick(drawn[0], m) + (1 - a) * pick(drawn[1], m))
        for m in range(with_anchor if ranked else 0):
            b = shares[1][i, m, 0] / 2
            found[i, pairs + m] = normalized(b * normalized(x[i]) + (1 - b) * pick(drawn[2], m))
    return found


class TestMixtures:
    @pytest.mark.parametrize(
        ("hardest", "pairs", "with_anchor"), [(3, 5, 0), (3, 5, 2), (1, 4, 4), (1024, 6, 3), (2, 0, 3), (2, 0, 0)]
    )
    def test_equal_their_loop(self, hardest, pairs, with_anchor):
        x, candidates = batches(7, 11, dtype=torch.float64)
        scores, targets = scores_with_gaps(7, 11)
        scores[2] = -INF
        scores[3] = scores[3].new_full((11,), -INF).scatter(0, targets[3], 1.0)
        scores[4] = scores[4].new_full((11,), -INF).scatter(0, torch.stack([targets[4], (targets[4] + 1) % 11]), 1.0)
        options = {"hardest": hardest, "pairs": pairs, "with_anchor": with_anchor}
        torch.manual_seed(3)
        mixed, absent = mix_hardest(x, candidates, scores, targets, **options)
        torch.manual_seed(3)
        close(mixed, mixed_by_loop(x, candidates, scores, targets, **options), 1e-12)
        assert absent.shape == mixed.shape[:2]
        assert absent.tolist() == [[i in (2, 3)] * (pairs + with_anchor) for i in range(7)]

    def test_the_diagonal_is_the_default(self):
        x, y = batches(5, 5)
        scores = x @ y.T
        torch.manual_seed(3)
        mixed, _ = mix_hardest(x, y, scores, pairs=4)
        torch.manual_seed(3)
        assert torch.equal(mix_hardest(x, y, scores, torch.arange(5), pairs=4)[0], mixed)

    def test_the_shares_are_uniform(self):
        # Two orthogonal negatives, and an anchor that is orthogonal to both: a mixture tells its share.
        x, candidates = torch.tensor([[0.0, 0.0, 2.0, 0.0]]), torch.eye(4)[[3, 0, 1]] * 5
        mixed, _ = mix_hardest(x, candidates, torch.tensor([[9.0, 1.0, 0.0]]), pairs=40000, with_anchor=40000)
        pairs, with_anchor = mixed[0, :40000], mixed[0, 40000:]
        assert not pairs[:, 2:].any()
        assert not with_anchor[:, 3].any()
        close(mixed[0].norm(dim=1), torch.ones(80000), 1e-6)
        both = (pairs[:, :2] > 0).all(1)
        assert both.double().mean() == pytest.approx(0.5, abs=0.02)  # the same negative twice, half of the time
        a = pairs[both, 0] / pairs[both, :2].sum(1)
        b = with_anchor[:, 2] / with_anchor[:, :3].sum(1)
        for share, top in ((a, 1.0), (b, 0.5)):
            assert 0 <= share.min() < 0.01 * top
            assert 0.99 * top < share.max() <= top
            assert float(share.mean()) == pytest.approx(top / 2, abs=0.02 * top)
            assert float(share.var()) == pytest.approx(top**2 / 12, rel=0.05)
        chosen = (with_anchor[:, 0] > 0).double().mean()
        assert float(chosen) == pytest.approx(0.5, abs=0.02)

    def test_only_the_hardest_are_mixed(self):
        candidates = torch.eye(8)
        scores = torch.tensor([[9.0, 1.0, 7.0, 3.0, 2.0, 8.0, -INF, 0.0]])
        mixed, _ = mix_hardest(torch.ones(1, 8), candidates, scores, hardest=3, pairs=500)
        assert (mixed[0] != 0).any(0).tolist() == [False, False, True, True, False, True, False, False]
        log_weights = torch.zeros(1, 8)
        log_weights[0, [2, 3]] = -INF  # dropped by a miner
        mixed, _ = mix_hardest(torch.ones(1, 8), candidates, scores, hardest=3, pairs=500, log_weights=log_weights)
        assert (mixed[0] != 0).any(0).tolist() == [False, True, False, False, True, True, False, False]
        _, absent = mix_hardest(torch.ones(1, 8), candidates, scores, pairs=2, log_weights=torch.full((1, 8), -INF))
        assert absent.tolist() == [[True, True]]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_dtypes_and_autocast(self, dtype):
        x, y = batches(5, 9, dtype=dtype)
        scores = Cosine()(x, y)
        torch.manual_seed(3)
        mixed, _ = mix_hardest(x, y, scores, hardest=3, pairs=4, with_anchor=2)
        assert mixed.dtype == dtype
        torch.manual_seed(3)
        wide, _ = mix_hardest(x.float(), y.float(), scores, hardest=3, pairs=4, with_anchor=2)
        close(mixed, wide, {torch.float32: 0, torch.float16: 1e-3, torch.bfloat16: 1e-2}[dtype])
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(mix_hardest(x, y, scores, hardest=3, pairs=4, with_anchor=2)[0], mixed)

    @pytest.mark.parametrize("critic", [Cosine(), InnerProduct(), Concat(4, 4, hidden=5), Bilinear(4)], ids=repr)
    def test_are_columns_of_their_anchor(self, critic):
        x, y = torch.randn(4, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
        queue = Queue(6, 4)
        queue.enqueue(torch.randn(5, 4))
        candidates = torch.cat([y, queue.keys()])
        scores = critic(x, candidates)
        mixed, absent = mix_hardest(x, candidates, scores, hardest=3, pairs=4, with_anchor=2)
        assert not mixed.requires_grad
        extra = list_scores(critic, x, mixed.flatten(0, 1), torch.arange(24).view(4, 6)).masked_fill(absent, -INF)
        wide = torch.cat([scores, extra], 1)
        for miner in (None, topk(3), hcl(1.0)):
            loss = kpair_loss(wide, log_weights=None if miner is None else miner(wide, torch.arange(4)))
            by_hand = []
            for i in range(4):
                row = critic(x[i : i + 1], torch.cat([candidates, mixed[i]]))
                weights = None if miner is None else miner(row, torch.tensor([i]))
                by_hand.append(kpair_loss(row, torch.tensor([i]), log_weights=weights))
            close(loss, torch.cat(by_hand).detach(), 1e-5)
            for a, b in zip(
                torch.autograd.grad(loss.sum(), (x, y), retain_graph=True),
                torch.autograd.grad(torch.cat(by_hand).sum(), (x, y), retain_graph=True),
                strict=True,
            ):
                close(a, b, 1e-4)

    def test_absent_ones_change_nothing(self):
        x, y = batches(3, 3)
        scores = Cosine()(x, y).masked_fill(~torch.eye(3, dtype=torch.bool), -INF)
        scores[1] = -INF
        mixed, absent = mix_hardest(x, y, scores, pairs=4, with_anchor=1)
        assert absent.all()
        assert not mixed.any()
        extra = list_scores(Cosine(), x, mixed.flatten(0, 1), torch.arange(15).view(3, 5)).masked_fill(absent, -INF)
        assert kpair_loss(torch.cat([scores, extra], 1)).tolist() == [0.0, 0.0, 0.0]

    def test_widths_may_differ_without_the_anchor(self):
        x, y = torch.randn(3, 5), torch.randn(3, 4)
        assert mix_hardest(x, y, torch.randn(3, 3), pairs=2)[0].shape == (3, 2, 4)
        with refused("mix_hardest", "width 5", "4"):
            mix_hardest(x, y, torch.randn(3, 3), pairs=2, with_anchor=1)

    def test_refused(self):
        x, y = batches(3, 5)
        for name, bad in [(n, b) for n in ("pairs", "with_anchor") for b in (-1, True, 1.0)] + [("hardest", 0)]:
            with refused(f"mix_hardest: {name} is {bad}"):
                mix_hardest(x, y, torch.randn(3, 5), **{name: bad})
        for a, c in ((x[:2], y), (x, y[:4]), (x[0], y), (x, y[None])):
            with refused("mix_hardest", str(tuple(a.shape)), str(tuple(c.shape)), "(3, 5)"):
                mix_hardest(a, c, torch.randn(3, 5))
        with refused("mix_hardest", "without targets"):
            mix_hardest(x, y[:2], torch.randn(3, 2))

    def test_no_rows(self):
        mixed, absent = mix_hardest(torch.randn(0, 4), torch.randn(5, 4), torch.randn(0, 5), pairs=3)
        assert mixed.shape == (0, 3, 4)
        assert absent.shape == (0, 3)
