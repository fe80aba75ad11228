"""KPairLoss: two directions, each with its own mined rows, and the extra columns of one of them."""

import pytest
import references
import torch
from references import gradient, refused
from torch import nn

from contrastive import Bilinear, Concat, Cosine, InnerProduct, KPairLoss, infonce_bound, kpair_loss
from miners import detached, hardest, hcl, semihard, topk


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
