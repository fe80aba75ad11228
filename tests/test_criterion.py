"""KPairLoss: two directions, each with its own mined rows, the extra columns of one of them, streamed or stored."""

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import references
import torch
from pytorch_metric_learning.losses import NTXentLoss
from references import INF, close, gradient, refused
from torch import nn

from contrastive import (
    Bilinear,
    Concat,
    Cosine,
    InnerProduct,
    KPairLoss,
    NegativeSquaredDistance,
    Separable,
    _strips,
    _tiles,
    criterion,
    infonce_bound,
    kpair_loss,
)
from contrastive.scores import partners
from miners import counted, detached, hardest, hcl, semihard, topk

ROOT = Path(__file__).resolve().parents[1]


def pairs(batch=6, dim=4, dtype=torch.float64):
    return torch.randn(batch, dim, dtype=dtype), torch.randn(batch, dim, dtype=dtype)


def mean(values):
    return sum(values) / len(values)


MINERS = [
    (None, None),
    (topk(2), references.topk(2)),
    (hardest(), references.topk(1)),
    (semihard(0.5), references.semihard(0.5)),
    (hcl(1.0), references.hcl(1.0)),
    (detached(hcl(1.0, 0.1)), references.hcl(1.0, 0.1)),
]


@pytest.mark.parametrize(("miner", "weigh"), MINERS, ids=[repr(miner) for miner, _ in MINERS])
def test_is_the_mean_of_both_directions_each_with_its_own_rows(miner, weigh):
    x, y = pairs()
    critic = Bilinear(4).double()
    scores, diagonal = critic(x, y).detach(), torch.arange(6)

    def direction(rows):
        return mean(references.kpair(rows, diagonal, None if weigh is None else weigh(rows, diagonal)))

    there, back = direction(scores), direction(scores.T)
    assert abs(there - back) > 1e-3
    loss = KPairLoss(critic, miner=miner)(x, y)
    assert loss.shape == ()
    assert loss.item() == pytest.approx((there + back) / 2, abs=1e-13)
    assert KPairLoss(critic, miner=miner, symmetric=False)(x, y).item() == pytest.approx(there, abs=1e-13)


def test_the_miner_sees_each_directions_scores():
    seen = []

    def spy(scores, targets, *, anchors=None):
        seen.append((scores, targets))
        return torch.zeros_like(scores)

    x, y = pairs()
    queue = torch.randn(3, 4, dtype=torch.float64)
    KPairLoss(InnerProduct(), miner=spy)(x, y, negatives=queue)
    (there, there_targets), (back, back_targets) = seen
    assert torch.equal(there, torch.cat([x @ y.T, x @ queue.T], 1))
    assert torch.equal(back, (x @ y.T).T)
    assert there_targets.tolist() == back_targets.tolist() == list(range(6))


@pytest.mark.parametrize("miner", [None, topk(2), hcl(1.0)], ids=repr)
def test_negatives_are_columns_of_one_direction(miner):
    x, y = pairs()
    queue = torch.randn(5, 4, dtype=torch.float64)
    critic, diagonal = Cosine(temperature=0.5), torch.arange(6)

    def direction(rows):
        return kpair_loss(rows, log_weights=None if miner is None else miner(rows, diagonal)).mean()

    there, back = direction(critic(x, torch.cat([y, queue]))), direction(critic(y, x))
    found = KPairLoss(critic, miner=miner)(x, y, negatives=queue)
    assert float(found) == pytest.approx(float((there + back) / 2), abs=1e-14)
    alone = KPairLoss(critic, miner=miner, symmetric=False)(x, y, negatives=queue)
    assert float(alone) == pytest.approx(float(there), abs=1e-14)
    none = KPairLoss(critic, miner=miner)(x, y, negatives=queue[:0])
    assert float(none) == float(KPairLoss(critic, miner=miner)(x, y))


def test_one_direction_without_mining_is_log_k_less_infonce():
    x, y = pairs(64)
    critic = InnerProduct()
    loss = KPairLoss(critic, symmetric=False)(x, y)
    bound = infonce_bound(critic(x, y))
    assert loss.item() == pytest.approx(bound.cap - bound.value, abs=1e-13)


@pytest.mark.parametrize("miner", [None, topk(2), semihard(0.1), hcl(1.0, 0.1)], ids=repr)
@pytest.mark.parametrize("batch", [0, 1])
def test_a_batch_of_one_and_of_none(miner, batch):
    x, y = pairs(batch)
    x.requires_grad_()
    y.requires_grad_()
    loss = KPairLoss(Cosine(), miner=miner)(x, y)
    assert float(loss.detach()) == 0.0
    assert not any(g.any() for g in gradient(loss, x, y))
    queued = KPairLoss(Cosine(), miner=miner)(x, y, negatives=torch.randn(3, 4, dtype=torch.float64))
    assert torch.isfinite(queued)


def test_widths_may_differ():
    critic = Concat(4, 3, hidden=5)
    x, y, queue = torch.randn(6, 4), torch.randn(6, 3), torch.randn(2, 3)
    loss = KPairLoss(critic)(x, y, negatives=queue)
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.first_x.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    x, y = (v.to(dtype).requires_grad_() for v in pairs())
    criterion = KPairLoss(Cosine(temperature=0.05), miner=hcl(1.0))
    loss = criterion(x, y)
    assert loss.dtype == torch.float32
    assert float(loss.detach()) == pytest.approx(float(criterion(x.detach().double(), y.detach().double())), rel=1e-5)
    assert all(torch.isfinite(g).all() for g in gradient(loss, x, y))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.02, 1e-3])
def test_low_temperatures_in_low_precision_where_a_peer_reads_a_cap(dtype, temperature):
    """Every positive is turned away from its anchor and another candidate is not: the loss is about 2/t."""
    x = torch.randn(3, 4).repeat_interleave(2, 0)
    x[1::2] *= -1
    x, y = x.to(dtype), (0.1 * torch.randn(6, 4) - x).to(dtype)
    leaves = [v.clone().requires_grad_() for v in (x, y)]
    exact = [v.double().requires_grad_() for v in (x, y)]
    for options in ({}, {"symmetric": False}, {"intra_view": True}):
        expected = KPairLoss(Cosine(temperature), tiled=False, **options)(*exact)
        slopes = gradient(expected, *exact)
        assert float(expected.detach()) > 1.8 / temperature
        for tiled in (False, True):
            for autocast in (False, True):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                    loss = KPairLoss(Cosine(temperature), tiled=tiled, **options)(*leaves)
                assert loss.dtype == torch.float32
                # A float32 cosine errs by a few eps, of which the temperature makes as many eps of 1/t.
                assert float(loss.detach()) == pytest.approx(
                    float(expected.detach()), rel=0, abs=2.0**-20 / temperature
                )
                for found, wanted in zip(gradient(loss, *leaves), slopes, strict=True):
                    assert found.dtype == dtype
                    # Rounded once to half precision; the weights beside it err as the exponents do.
                    close(found * temperature, wanted * temperature, torch.finfo(dtype).eps + 2.0**-18 / temperature)
    labels = torch.arange(6)
    peer = NTXentLoss(temperature)(x.float(), labels, ref_emb=y.float(), ref_labels=labels.clone())
    one_direction = KPairLoss(Cosine(temperature), symmetric=False)(x, y)
    assert float(peer) < 88 < float(one_direction)  # log(ratio + tiny)


def test_autocast():
    x, y = pairs(dtype=torch.float32)
    criterion = KPairLoss(Cosine(temperature=0.05), miner=topk(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion(x, y)
    assert torch.equal(loss, criterion(x, y))


def test_gradients():
    x, y = pairs(3)
    queue = torch.randn(2, 4, dtype=torch.float64)
    criterion = KPairLoss(Cosine(temperature=0.5), miner=hcl(1.0))
    inputs = tuple(v.requires_grad_() for v in (x, y, queue))
    assert torch.autograd.gradcheck(lambda a, b, q: criterion(a, b, negatives=q), inputs)
    assert torch.autograd.gradgradcheck(lambda a, b, q: criterion(a, b, negatives=q), inputs)


def test_parameters_of_critic_and_miner_are_its_own():
    class Margin(nn.Module):
        def __init__(self):
            super().__init__()
            self.margin = nn.Parameter(torch.tensor(0.3))

        def forward(self, scores, targets, *, anchors=None):
            return self.margin.expand_as(scores).scatter(1, targets[:, None], 0.0)

    criterion = KPairLoss(Cosine(learnable=True), miner=Margin())
    assert set(criterion.state_dict()) == {"critic.log_temperature", "miner.margin"}
    criterion(*pairs(dtype=torch.float32)).backward()
    assert all(p.grad.any() for p in criterion.parameters())


def test_any_callable_is_a_critic():
    x, y = pairs()
    loss = KPairLoss(lambda a, b: a @ b.T)(x, y)
    torch.testing.assert_close(loss, KPairLoss(InnerProduct())(x, y), rtol=1e-14, atol=1e-14)


def test_what_does_not_fit_is_refused():
    x, y = pairs()
    with refused("KPairLoss", "6 anchors", "5 positives"):
        KPairLoss(Cosine())(x, y[:5])
    with refused("KPairLoss", "critic", "(6,)", "[6, 6]"):
        KPairLoss(lambda a, b: (a * b).sum(1))(x, y)
    with refused("KPairLoss", "critic", "(6, 5)", "[6, 6]"):
        KPairLoss(lambda a, b: a @ b[:5].T)(x, y)
    with refused("KPairLoss", "critic", "(6, 6)", "[6, 3]"):
        KPairLoss(lambda a, b: torch.zeros(6, 6))(x, y, negatives=x[:3])
    with refused("KPairLoss", "(3, 5)"):
        KPairLoss(Cosine())(x, y, negatives=torch.zeros(3, 5))
    with refused("kpair_loss", "log_weights", "(6, 1)"):
        KPairLoss(Cosine(), miner=lambda s, t, anchors=None: torch.zeros(6, 1))(x, y)
    x[2, 0] = float("nan")
    with refused("KPairLoss", "row 2", "NaN"):
        KPairLoss(InnerProduct())(x, y)
    with refused("kpair_loss", "row 2", "NaN"):
        KPairLoss(lambda a, b: a @ b.T)(x, y)
    for critic in (Cosine(), NegativeSquaredDistance(), Separable(4).double(), Concat(4).double()):
        for miner in (None, topk(2), hcl(1.0)):
            for tiled in (False, True):
                with refused("row 2", "NaN"):
                    KPairLoss(critic, miner=miner, tiled=tiled)(x, y)


@pytest.mark.parametrize("tiled", [False, True])
def test_a_miner_that_returns_nothing_is_not_taken_for_no_miner(tiled):
    def forgets(scores, targets, *, anchors=None):
        topk(1)(scores, targets)

    x, y = pairs()
    for critic in (Cosine(), Concat(4).double()):
        for miner in (forgets, counted(forgets)):
            with refused("KPairLoss", "forgets", "returned NoneType", "log-weights of shape (6, 6)"):
                KPairLoss(critic, miner=miner, tiled=tiled)(x, y)


def is_streamed(loss, x):
    """Whether a loss was streamed: then it can be differentiated once."""
    try:
        torch.autograd.grad(loss, x, create_graph=True)
    except RuntimeError as error:
        if "differentiable once" not in str(error):
            raise
        return True
    return False


class TestStreamedOrStored:
    # How it is asked: (options, rows of the matrix, its columns) for 10 pairs.
    ASKED = (({}, 10, 10), ({"symmetric": False}, 10, 10), ({"intra_view": True}, 20, 20))

    @pytest.mark.parametrize(("options", "rows", "columns"), ASKED)
    @pytest.mark.parametrize("extra", [0, 5])
    def test_the_number_of_scores_decides(self, monkeypatch, options, rows, columns, extra):
        x, y = pairs(10)
        x.requires_grad_()
        queue = torch.randn(extra, 4, dtype=torch.float64) if extra else None
        for critic in (Cosine(), InnerProduct(), NegativeSquaredDistance(), Bilinear(4).double()):
            loss = KPairLoss(critic, **options)
            monkeypatch.setattr(criterion, "_MANY", rows * (columns + extra))
            assert not is_streamed(loss(x, y, negatives=queue), x)
            monkeypatch.setattr(criterion, "_MANY", rows * (columns + extra) - 1)
            assert is_streamed(loss(x, y, negatives=queue), x)

    def test_a_critic_of_pairs_is_streamed_earlier(self, monkeypatch):
        x, y = pairs(10)
        x.requires_grad_()
        loss = KPairLoss(Concat(4, hidden=3).double())
        monkeypatch.setattr(criterion, "_MANY_OF_PAIRS", 100)
        assert not is_streamed(loss(x, y), x)
        monkeypatch.setattr(criterion, "_MANY_OF_PAIRS", 99)
        assert is_streamed(loss(x, y), x)

    def test_the_user_decides_otherwise(self, monkeypatch):
        x, y = pairs(10)
        x.requires_grad_()
        anything = [Cosine(), Concat(4, hidden=3).double(), lambda a, b: a @ b.T]
        for critic in anything:
            for miner in (None, hcl(1.0)):
                assert is_streamed(KPairLoss(critic, miner=miner, tiled=True)(x, y), x)
        for name in ("_MANY", "_MANY_OF_PAIRS"):
            monkeypatch.setattr(criterion, name, 1)
        for critic in anything:
            for miner in (None, hcl(1.0)):
                assert not is_streamed(KPairLoss(critic, miner=miner, tiled=False)(x, y), x)
        # Of a critic nothing is known about: it may need the whole batch.
        assert not is_streamed(KPairLoss(anything[2])(x, y), x)

    def test_a_miner_sees_all_rows_or_some(self, monkeypatch):
        monkeypatch.setattr(_strips, "_FEWEST_ROWS", 3)
        monkeypatch.setattr(_strips, "_STRIP", 30)
        seen = []

        def spy(scores, targets, *, anchors=None):
            seen.append((len(scores), scores.shape[1], anchors.tolist()))
            return torch.zeros_like(scores)

        KPairLoss(Cosine(), miner=spy, tiled=False)(*pairs(7))
        assert seen == [(7, 7, list(range(7)))] * 2
        seen.clear()
        KPairLoss(Cosine(), miner=spy, tiled=True)(*pairs(7))
        assert seen == [(4, 7, [0, 1, 2, 3]), (3, 7, [4, 5, 6])] * 2

    @pytest.mark.parametrize("options", [{}, {"symmetric": False}, {"intra_view": True}], ids=repr)
    @pytest.mark.parametrize("miner", [None, topk(2), hcl(1.0, 0.1)], ids=repr)
    @pytest.mark.parametrize("extra", [0, 5])
    @pytest.mark.parametrize("tiled", [False, True])
    def test_every_way_is_the_loss_of_the_masked_matrix(self, monkeypatch, options, miner, extra, tiled):
        for name, value in {"_STRIP": 60, "_FEWEST_ROWS": 3, "_MINED": 50, "_SCORED": 60}.items():
            monkeypatch.setattr(_strips, name, value)
        monkeypatch.setattr(_tiles, "_TILE", 5)
        both_views, batch = "intra_view" in options, 9
        rows = 2 * batch if both_views else batch
        targets = partners(rows) if both_views else torch.arange(rows)
        mask = (torch.rand(rows, rows + extra) < 0.3).scatter(1, targets[:, None], False)
        for critic in (
            Cosine(0.3, learnable=True),
            NegativeSquaredDistance(2.0),
            Separable(4, hidden=5, out=3),
            Concat(4, hidden=5),
        ):
            critic.double()
            x, y, queue = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (batch, batch, extra))
            inputs = [x, y, queue, *critic.parameters()]
            for absent in (None, mask, lambda r, c: mask[r][:, c]):
                anchors = torch.cat([x, y]) if both_views else x
                scores = critic(anchors, torch.cat([anchors if both_views else y, queue]))
                gone = torch.zeros_like(mask) if absent is None else mask
                if both_views:
                    gone = gone | torch.eye(rows, rows + extra, dtype=torch.bool)
                scores = scores.masked_fill(gone, -INF)

                def mean_of(s, t):
                    log_weights = None if miner is None else miner(s, t)
                    return kpair_loss(s, t, log_weights=log_weights).mean()

                expected = mean_of(scores, targets)
                if not options:
                    expected = (expected + mean_of(scores[:, :batch].T, targets)) / 2
                loss = KPairLoss(critic, miner=miner, tiled=tiled, **options)
                found = loss(x, y, negatives=queue if extra else None, absent=absent)
                close(found.detach(), expected.detach(), 1e-12)
                for a, b in zip(gradient(found, *inputs), gradient(expected, *inputs), strict=True):
                    close(a, b, 1e-12)

    def test_duplicates_are_no_negatives(self):
        # Slowly: rows 0 and 3 are one image.
        x, y = pairs()
        absent = torch.zeros(6, 6, dtype=torch.bool)
        absent[0, 3] = absent[3, 0] = True
        rows = InnerProduct()(x, y).masked_fill(absent, -INF)
        expected = mean(references.symmetric(rows))
        for tiled in (False, True):
            assert KPairLoss(InnerProduct(), tiled=tiled)(x, y, absent=absent).item() == pytest.approx(
                expected, abs=1e-13
            )

    def test_intra_view_is_ntxent(self):
        x, y = pairs()
        z = torch.cat([x, y])
        expected = mean(references.ntxent(Cosine(0.5)(z, z)))
        for tiled in (False, True):
            found = KPairLoss(Cosine(0.5), intra_view=True, tiled=tiled)(x, y)
            assert found.item() == pytest.approx(expected, abs=1e-13)

    def test_options_and_input_that_do_not_fit(self):
        with refused("KPairLoss", "intra_view", "symmetric=False"):
            KPairLoss(Cosine(), intra_view=True, symmetric=False)
        x, y = pairs()
        for tiled in (False, True):
            for critic in (Cosine(), lambda a, b: a @ b.T):
                loss = KPairLoss(critic, tiled=tiled)
                for wrong in (torch.zeros(6, 5) > 0, torch.zeros(1, 6) > 0, torch.zeros(6) > 0, torch.zeros(6, 6)):
                    with refused("KPairLoss", "absent", str(tuple(wrong.shape)), str(wrong.dtype), "[6, 6]"):
                        loss(x, y, absent=wrong)
                with refused("KPairLoss", "absent", "(6, 6)", "[6, 8]"):
                    loss(x, y, negatives=x[:2], absent=torch.zeros(6, 6) > 0)
                with refused("KPairLoss", "absent", "(6, 6)", "[12, 12]"):
                    KPairLoss(critic, intra_view=True, tiled=tiled)(x, y, absent=torch.zeros(6, 6) > 0)
                with refused("absent", "(6, 1)", "[6, 6]"):
                    loss(x, y, absent=lambda r, c: torch.zeros(len(r), 1) > 0)
                with refused("KPairLoss", "()", "[N, d"):
                    loss(x[0, 0], y[0, 0])
                with refused("KPairLoss", "(4,)", "[N, d"):
                    loss(x[0], y[0])
                with refused("KPairLoss", "(6, 2, 2)", "[N, d"):
                    loss(x.view(6, 2, 2), y.view(6, 2, 2))
                for dtype in (torch.int64, torch.bool):
                    with refused("KPairLoss", str(dtype), "floating-point"):
                        loss(x.to(dtype), y.to(dtype))
                with refused("KPairLoss", "(6, 4)", "(6, 3)", "[N, d]"):
                    KPairLoss(critic, intra_view=True, tiled=tiled)(x, y[:, :3])
                with refused("absent", "row 2"):
                    loss(x, y, absent=torch.arange(36).view(6, 6) == 14)

    def test_a_batch_of_none_does_not_look_at_the_queue(self):
        x, y = pairs(0)
        for tiled in (False, True):
            for critic in (Cosine(), Concat(4, hidden=3).double()):
                found = KPairLoss(critic, tiled=tiled)(
                    x, y, negatives=torch.full((3, 4), math.nan, dtype=torch.float64)
                )
                assert float(found.detach()) == 0.0

    @pytest.mark.parametrize("tiled", [None, False, True])
    def test_copies_and_what_is_saved(self, tiled):
        x, y = pairs(dtype=torch.float32)
        for critic in (Cosine(0.2, learnable=True), Separable(4, hidden=5, out=3), Concat(4, hidden=3)):
            loss = KPairLoss(critic, miner=hcl(1.0, 0.1), intra_view=True, tiled=tiled)
            expected = loss(x, y)
            expected.backward()
            for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
                assert torch.equal(twin(x, y), expected)
                assert (twin.symmetric, twin.intra_view, twin.tiled) == (True, True, tiled)
            fresh = KPairLoss(copy.deepcopy(critic), miner=hcl(1.0, 0.1), intra_view=True, tiled=tiled)
            for p in fresh.parameters():
                p.data.zero_()
            fresh.load_state_dict(loss.state_dict())
            assert torch.equal(fresh(x, y), expected)

    def test_autocast_over_pairs(self):
        x, y = pairs(dtype=torch.float32)
        for critic in (Concat(4, hidden=5), Separable(4, hidden=5, out=3)):
            losses = []
            for tiled in (False, True):
                critic.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = KPairLoss(critic, tiled=tiled)(x.bfloat16(), y.bfloat16())
                loss.backward()
                assert loss.dtype == torch.float32
                losses.append([loss.detach(), *(p.grad.clone() for p in critic.parameters())])
            for a, b in zip(*losses, strict=True):
                close(a, b, 2.0**-7)

    @pytest.mark.parametrize("critic", [Cosine(), InnerProduct(), NegativeSquaredDistance()], ids=repr)
    def test_stored_it_can_be_transformed(self, critic):
        x, y = pairs()
        x.requires_grad_()
        for options in ({}, {"symmetric": False}, {"intra_view": True}):
            loss = KPairLoss(critic, **options)
            close(torch.func.grad(loss)(x.detach(), y), gradient(loss(x, y), x)[0], 1e-14)

    @pytest.mark.parametrize("miner", [hardest(), topk(5), hcl(1.0), semihard(0.1)], ids=repr)
    def test_mined_it_can_be_transformed(self, miner):
        x, y = pairs()
        x.requires_grad_()
        loss = KPairLoss(Cosine(), miner=miner)
        close(torch.func.grad(loss)(x.detach(), y), gradient(loss(x, y), x)[0], 1e-12)

    def test_batches_of_matrices(self):
        scores = torch.randn(3, 4, 4, dtype=torch.float64)
        scores[0, 2] = -INF  # padding
        expected = torch.stack([kpair_loss(s) for s in scores])
        close(torch.func.vmap(kpair_loss)(scores), expected, 1e-14)
        hessian = torch.func.jacrev(torch.func.grad(lambda s: kpair_loss(s).sum()))(scores[1])
        share = scores[1].softmax(1)
        rows = torch.diag_embed(share) - share[:, :, None] * share[:, None]
        close(hessian[torch.arange(4), :, torch.arange(4)], rows, 1e-12)


COMPILED = """
import sys
import torch
from contrastive import Concat, Cosine, KPairLoss
from miners import distance_weighted, hcl, random_subset, ring, semihard, topk

backend = sys.argv[1]
x, y, q = (torch.randn(n, 8, requires_grad=True) for n in (40, 40, 7))
cases = [(Cosine(learnable=True), None), (Cosine(), topk(3)), (Cosine(), hcl(1.0)), (Concat(8, hidden=5), None)]
# Miners that look at values where a compiler could not.
cases += [(Cosine(), m) for m in (topk(6), ring(0.1, 0.5), distance_weighted(0.1, 8), distance_weighted(0.1, 8, k=1))]
cases += [(Cosine(), m) for m in (distance_weighted(0.1, 8, k=3), random_subset(6), semihard(0.2))]
if backend != "eager":
    cases = cases[:1]  # it takes seconds for each
for critic, miner in cases:
    for tiled in (False, True):
        torch.compiler.reset()
        criterion = KPairLoss(critic, miner=miner, tiled=tiled)
        inputs = [x, y, q, *criterion.parameters()]
        compiled = torch.compile(criterion, backend=backend)
        for _ in range(2):
            torch.manual_seed(0)
            found = compiled(x, y, negatives=q)
            torch.manual_seed(0)
            expected = criterion(x, y, negatives=q)
            torch.testing.assert_close(found, expected)
            pairs = zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True)
            for a, b in pairs:
                torch.testing.assert_close(a, b)
        if backend == "eager" and miner is None:  # around an encoder, as in a training loop
            encoder = torch.nn.Linear(8, 8)
            step = torch.compile(lambda a, b: criterion(encoder(a), encoder(b)), backend=backend)
            step(x, y).backward()
            assert encoder.weight.grad.abs().sum() > 0
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_it_compiles(backend):
    # In a process of its own: the compiler cannot see through the tests' checks of signatures.
    run = subprocess.run(
        [sys.executable, "-c", COMPILED, backend], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == ["done"]
