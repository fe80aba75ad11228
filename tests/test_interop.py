"""pytorch-metric-learning both ways, with its real classes: tuples against loops, values against its own losses."""

import copy
import dataclasses
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.trainers import MetricLossOnly
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from references import refused

from contrastive import (
    Cosine,
    InnerProduct,
    KPairLoss,
    infonce_bound,
    interop,
    kpair_loss,
    lifted_loss,
    ntxent_loss,
    supcon_loss,
    without_self,
)
from contrastive.factors import Factors
from contrastive.interop import as_pml_loss, as_pml_miner, from_pml_miner
from contrastive.scores import MiningFacts
from miners import hardest, hcl, semihard, topk

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3, 1])  # 3 has no positive in the batch
REF_LABELS = torch.tensor([1, 0, 5, 2, 2, 0, 3, 1, 1, 0, 2])


def batch(rows, d=5):
    return torch.randn(rows, d, dtype=torch.float64)


def without_facts(miner):
    return lambda scores, targets, *, anchors=None: miner(scores, targets, anchors=anchors)


def by_columns(miner):
    return dataclasses.replace(miner, facts=dataclasses.replace(miner.facts, hardest=True))


def by_weights(miner):
    return dataclasses.replace(miner, facts=dataclasses.replace(miner.facts, hardest=False))


def looped(miner, x, labels, y, ref_labels, *, itself):
    """One row for every pair, one call for every row."""
    scores = F.normalize(x) @ F.normalize(y).T
    found = set()
    for a in range(len(x)):
        for p in range(len(y)):
            if labels[a] != ref_labels[p] or (itself and a == p):
                continue
            row = [float(s) if ref_labels[n] != labels[a] or n == p else -math.inf for n, s in enumerate(scores[a])]
            row = torch.tensor([row], dtype=torch.float64)
            weights = miner(row, torch.tensor([p]), anchors=torch.tensor([a]))[0]
            found |= {(a, p, n) for n in range(len(y)) if n != p and row[0, n] > -math.inf and weights[n] > -math.inf}
    return found


def triplets(found):
    assert all(z.dtype == torch.int64 and z.ndim == 1 for z in found)
    rows = list(zip(*(z.tolist() for z in found), strict=True))
    assert len(rows) == len(set(rows))
    return set(rows)


HARD = {
    "hardest, columns": by_columns(hardest()),
    "hardest, weights": by_weights(hardest()),
    "topk, columns": by_columns(topk(3)),
    "topk, weights": by_weights(topk(3)),
    "topk, pairs": without_facts(topk(3)),
    "more than there are": by_columns(topk(50)),
    "more than there are, weights": by_weights(topk(50)),
    "semihard": semihard(0.5),
    "semihard or hardest": semihard(0.1, fallback=hardest()),
}


@pytest.fixture(params=[1, 4, None], ids=["strips of one row", "strips of four", "one strip"])
def _strips(request, monkeypatch):
    """Boundaries between strips show up nowhere."""
    if request.param:
        for name in ("_FEWEST_ROWS", "_ROWS", "_MINED", "_RANKED"):
            monkeypatch.setattr(interop, name, request.param)


@pytest.mark.usefixtures("_strips")
@pytest.mark.parametrize("name", HARD)
class TestTriplets:
    def test_of_labels(self, name):
        x = batch(9)
        expected = looped(HARD[name], x, LABELS, x, LABELS, itself=True)
        assert triplets(as_pml_miner(HARD[name])(x, LABELS)) == expected
        assert {a for a, _, _ in expected} <= set(range(9)) - {7}

    def test_of_labels_and_references(self, name):
        x, y = batch(9), batch(11)
        expected = looped(HARD[name], x, LABELS, y, REF_LABELS, itself=False)
        assert triplets(as_pml_miner(HARD[name])(x, LABELS, y, REF_LABELS)) == expected

    def test_without_labels(self, name):
        x, y = batch(7), batch(10)
        expected = looped(HARD[name], x, range(7), y, range(10), itself=False)
        assert expected
        assert triplets(as_pml_miner(HARD[name])(x, ref_emb=y)) == expected


class TestOneOfPmls:
    @pytest.mark.parametrize("rows", [40, 600])
    def test_hardest_finds_the_negatives_of_batch_hard(self, rows):
        x, labels = batch(rows, 8), torch.arange(rows) // 4
        a, _, n = pml_miners.BatchHardMiner(distance=CosineSimilarity())(x, labels)
        for miner in (by_columns(hardest()), by_weights(hardest())):
            found = as_pml_miner(miner)(x, labels)
            assert len(found[0]) == 3 * rows
            assert {(i, k) for i, _, k in triplets(found)} == set(zip(a.tolist(), n.tolist(), strict=True))

    def test_semihard_finds_its_triplets(self):
        x, labels = batch(60, 8), torch.arange(60) // 4
        theirs = pml_miners.TripletMarginMiner(0.3, "semihard", distance=CosineSimilarity())
        expected = triplets(theirs(x, labels))
        assert len(expected) > 100
        assert triplets(as_pml_miner(semihard(0.3))(x, labels)) == expected

    def test_is_one_of_its_miners(self):
        miner = as_pml_miner(topk(2))
        assert isinstance(miner, pml_miners.BaseMiner)
        assert "topk(k=2)" in repr(miner)
        x = batch(9)
        miner(x, LABELS)
        assert miner.num_triplets == 28
        for twin in (copy.deepcopy(miner), pickle.loads(pickle.dumps(miner))):
            assert triplets(twin(x, LABELS)) == triplets(miner(x, LABELS))

    def test_no_gradient_and_no_graph(self):
        x = batch(9).requires_grad_()
        seen = []

        def miner(scores, targets, *, anchors=None):
            seen.append(scores.requires_grad)
            return topk(2)(scores, targets, anchors=anchors)

        as_pml_miner(miner)(x, LABELS)
        assert seen
        assert not any(seen)


def test_the_hardest_of_a_batch_by_a_critic_of_negative_scale():
    class Opposite(torch.nn.Module):
        def factors(self, x, y):
            return Factors(x, y, scale=-2.0)

        def forward(self, x, y):
            return -2.0 * x @ y.T

    x, opposite = batch(9), Opposite()
    plain = as_pml_miner(hardest(), critic=lambda x, y: opposite(x, y))
    assert triplets(as_pml_miner(hardest(), critic=opposite)(x, LABELS)) == triplets(plain(x, LABELS))


class TestSelfPairs:
    """The pitfalls of deciding by the identity of labels."""

    def pairs(self, *batch):
        return {(a, p) for a, p, _ in triplets(as_pml_miner(topk(2))(*batch))}

    def mates(self):
        return {(a, p) for a in range(9) for p in range(9) if a != p and LABELS[a] == LABELS[p]}

    def test_a_copy_of_the_labels_or_of_the_batch_makes_none(self):
        x = batch(9)
        for others in ((x, LABELS), (x, LABELS.clone()), (x.clone(), LABELS), (x.clone(), LABELS.clone())):
            assert self.pairs(x, LABELS, *others) == self.mates()
        a, p, _ = pml_miners.BatchHardMiner()(x, LABELS, x, LABELS.clone())
        assert p[a == 7].tolist() == [7]  # its only positive is itself

    def test_two_views_with_the_same_labels_keep_the_diagonal(self):
        x, y, labels = batch(9), batch(9), torch.arange(9)
        assert self.pairs(x, labels, y, labels) == {(i, i) for i in range(9)}
        assert len(pml_miners.BatchHardMiner()(x, labels, y, labels)[0]) == 0

    def test_equal_rows_of_a_batch_are_no_self_pairs(self):
        x = batch(4)[[0, 0, 1, 1]]
        assert self.pairs(x, torch.tensor([0, 0, 1, 1])) == {(0, 1), (1, 0), (2, 3), (3, 2)}


class TestNothingToMine:
    @pytest.mark.parametrize("miner", [topk(2), by_columns(topk(2)), hcl(1.0), semihard(0.5)], ids=repr)
    @pytest.mark.parametrize(
        "labels", [[0, 0, 0], [0, 1, 2], [], [4]], ids=["no negatives", "no positives", "no rows", "one row"]
    )
    def test_gives_empty_tuples(self, miner, labels):
        found = as_pml_miner(miner)(batch(len(labels)), torch.tensor(labels, dtype=torch.int64))
        assert [z.shape for z in found] == [(0,)] * 3
        assert triplets(found) == set()

    def test_no_miner_is_asked_about_an_anchor_without_a_positive_or_a_negative(self):
        def miner(scores, targets, *, anchors=None):
            raise AssertionError

        for labels in ([0, 0, 0], [0, 1, 2]):
            assert len(as_pml_miner(miner)(batch(3), torch.tensor(labels))[0]) == 0

    def test_a_batch_of_one_without_labels(self):
        assert triplets(as_pml_miner(topk(2))(batch(1), ref_emb=batch(1))) == set()


class TestLabels:
    def test_large_ids_are_apart(self):
        labels = torch.tensor([2**53, 2**53 + 1, 2**53, 2**53 + 1])
        assert {p for _, p, _ in triplets(as_pml_miner(hardest())(batch(4), labels))} == {0, 1, 2, 3}
        assert len(as_pml_miner(hardest())(batch(4), labels)[0]) == 4

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.float32, torch.bool])
    def test_of_any_type(self, dtype):
        x, labels = batch(4), torch.tensor([0, 1, 0, 1])
        assert triplets(as_pml_miner(topk(1))(x, labels.to(dtype))) == triplets(as_pml_miner(topk(1))(x, labels))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((LABELS[:3],), r"labels have shape \(3,\), expected \[9\]"),
            ((LABELS[:, None],), r"labels have shape \(9, 1\)"),
            ((None,), "no labels and no ref_emb of its own"),
            ((None, batch(8)), "9 embeddings and 8 rows of ref_emb"),
            ((None, batch(9), LABELS), "ref_labels without labels"),
            ((LABELS, batch(9)), "labels and ref_emb without ref_labels"),
            ((LABELS, None, LABELS.clone()), "ref_labels without ref_emb"),
            ((LABELS, batch(9), LABELS.double()), "labels are torch.int64, ref_labels torch.float64"),
            ((LABELS, batch(9)[0], LABELS), r"ref_emb of shape \(5,\)"),
        ],
    )
    def test_refused(self, arguments, message):
        with pytest.raises(ValueError, match=f"as_pml_miner: .*{message}"):
            as_pml_miner(topk(1))(batch(9), *arguments)

    def test_the_batch_itself_is_no_other_view(self):
        x = batch(9)
        with pytest.raises(ValueError, match="no labels and no ref_emb of its own"):
            as_pml_miner(topk(1))(x, ref_emb=x)

    @pytest.mark.parametrize("k", [0, -1, True])
    def test_k_is_refused(self, k):
        with pytest.raises(ValueError, match="as_pml_miner: k is"):
            as_pml_miner(topk(1), k=k)


def soft(scores, targets, *, anchors=None):
    """Weights of every second anchor are soft, those of the others 0 and 1."""
    weights = topk(2)(scores, targets)
    tilted = (3 * scores).scatter(1, targets[:, None], 0.0)
    return torch.where(anchors[:, None] % 2 == 0, tilted, weights)


class TestSoftWeights:
    """4,000 anchors that are all the same, one positive, five negatives."""

    def draws(self, miner, k, times=4000):
        x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        angles = torch.tensor([0.1, 0.4, 0.8, 1.2, 1.6, 2.5], dtype=torch.float64)
        y = torch.stack([angles.cos(), angles.sin()], 1)
        labels, ref_labels = torch.zeros(times, dtype=torch.int64), torch.tensor([0, 1, 1, 2, 3, 3])
        a, p, n = as_pml_miner(miner, k=k)(x.expand(times, 2), labels, y, ref_labels)
        assert torch.equal(a, torch.arange(times).repeat_interleave(k))
        assert not p.any()
        weights = miner((x @ y.T), torch.tensor([0]))[0].exp()[1:]
        return n.view(times, k) - 1, weights / weights.sum()

    @pytest.mark.parametrize("miner", [hcl(3.0), without_facts(hcl(3.0))], ids=["anchors", "pairs"])
    def test_one_is_drawn_by_its_weight(self, miner):
        n, p = self.draws(miner, 1)
        share = n.flatten().bincount(minlength=5) / len(n)
        assert ((share - p).abs() < 4.5 * (p * (1 - p) / len(n)).sqrt()).all()

    @pytest.mark.parametrize("miner", [hcl(3.0), without_facts(hcl(3.0))], ids=["anchors", "pairs"])
    def test_two_are_drawn_without_replacement(self, miner):
        n, p = self.draws(miner, 2)
        assert (n[:, 0] != n[:, 1]).all()
        # One after the other: p_i p_j / (1 - p_i), in either order.
        expected = p[:, None] * p / (1 - p[:, None])
        expected = (expected + expected.T).triu(1)
        low, high = n.sort(1).values.T
        share = (low * 5 + high).bincount(minlength=25).view(5, 5) / len(n)
        assert ((share - expected).abs() <= 4.5 * (expected * (1 - expected) / len(n)).sqrt()).all()

    def test_every_positive_has_draws_of_its_own(self):
        x, labels = batch(200), torch.arange(200) // 100
        for k in (1, 3):
            found = as_pml_miner(hcl(0.5), k=k)(x, labels)
            assert len(triplets(found)) == 200 * 99 * k
            drawn = found[2][found[0] == 0].unique()
            assert len(drawn) > 50

    def test_more_than_there_are(self):
        found = triplets(as_pml_miner(hcl(1.0), k=9)(batch(6), torch.tensor([0, 0, 1, 1, 1, 0])))
        assert len(found) == 6 * 2 * 3

    @pytest.mark.parametrize("k", [1, 2])
    def test_equal_weights_are_drawn_as_well(self, k):
        x, labels = torch.ones(8, 3), torch.arange(8) // 2
        for miner in (hcl(0.0), hcl(1.0)):
            assert len(as_pml_miner(miner, k=k)(x, labels)[0]) == 8 * k

    @pytest.mark.parametrize("k", [1, 2])
    def test_weights_far_apart(self, k):
        """Their ratio leaves the floats; the hardest is drawn all the same."""
        x, labels = batch(6), torch.arange(6) // 2
        found = triplets(as_pml_miner(hcl(1e5), k=k)(x, labels))
        assert found == triplets(as_pml_miner(topk(k))(x, labels))

    @pytest.mark.parametrize("k", [1, 2])
    def test_a_row_is_soft_whose_largest_weight_is_one(self, k):
        def relative(scores, targets, *, anchors=None):
            others = scores.scatter(1, targets[:, None], -math.inf)
            return (scores - others.amax(1, keepdim=True)).scatter(1, targets[:, None], 0.0)

        found = as_pml_miner(relative, k=k)(batch(12), torch.arange(12) // 3)
        assert len(triplets(found)) == 12 * 2 * k

    @pytest.mark.usefixtures("_strips")
    @pytest.mark.parametrize("k", [1, 2])
    def test_soft_rows_beside_others(self, k):
        x, labels = batch(12), torch.arange(12) // 3
        found = triplets(as_pml_miner(soft, k=k)(x, labels))
        expected = triplets(as_pml_miner(topk(2))(x, labels))
        assert {t for t in found if t[0] % 2} == {t for t in expected if t[0] % 2}
        drawn = [t for t in found if t[0] % 2 == 0]
        assert len(drawn) == 6 * 2 * k
        assert all(labels[a] == labels[p] != labels[n] and a != p for a, p, n in found)


class TestScores:
    def test_are_cosines(self):
        seen = []

        def miner(scores, targets, *, anchors=None):
            seen.append(scores)
            return topk(1)(scores, targets)

        x, y = 7 * batch(3), batch(3)
        as_pml_miner(miner)(x, ref_emb=y)
        torch.testing.assert_close(seen[0], F.normalize(x) @ F.normalize(y).T, rtol=1e-12, atol=1e-12)

    def test_are_the_critics(self):
        x, labels = batch(8), torch.arange(8) // 2
        for critic in (InnerProduct(), lambda a, b: a @ b.T):
            found = as_pml_miner(hardest(), critic=critic)(x, labels)
            absent = (x @ x.T).masked_fill(labels[:, None] == labels, -math.inf)
            assert torch.equal(found[2], absent.argmax(1))
        assert not torch.equal(found[2], as_pml_miner(hardest())(x, labels)[2])

    def test_a_strip_has_few_rows(self):
        shapes = []

        def critic(a, b):
            shapes.append((len(a), len(b)))
            return a @ b.T

        x, labels = torch.randn(3000, 4), torch.arange(3000) // 3
        for miner in (topk(1), by_columns(topk(1)), semihard(0.1)):
            assert len(as_pml_miner(miner, critic=critic)(x, labels)[0]) > 0
        assert all(rows <= 350 and columns == 3000 for rows, columns in shapes)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_of_half_precision(self, dtype):
        x, labels = batch(12).to(dtype), torch.arange(12) // 3
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = triplets(as_pml_miner(topk(2))(x, labels))
        assert found == triplets(as_pml_miner(topk(2))(x.float(), labels))

    def test_facts_about_anchors_meet_their_rows(self):
        seen = []

        def miner(scores, targets, *, anchors=None):
            seen.extend(anchors.tolist())
            return topk(1)(scores, targets)

        as_pml_miner(miner)(batch(9), LABELS)
        assert seen == [0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6, 6, 8, 8]

    def test_weights_of_another_shape_are_refused(self):
        with pytest.raises(ValueError, match="as_pml_miner: log_weights have shape"):
            as_pml_miner(lambda scores, targets, *, anchors=None: scores[:, :2])(batch(9), LABELS)

    def test_no_weights_are_refused(self):
        with refused("as_pml_miner", "returned NoneType"):
            as_pml_miner(lambda scores, targets, *, anchors=None: None)(batch(9), LABELS)


# The losses of pytorch-metric-learning that take tuples.
TAKE_TUPLES = {
    "TripletMarginLoss": pml_losses.TripletMarginLoss,
    "NTXentLoss": pml_losses.NTXentLoss,
    "MultiSimilarityLoss": pml_losses.MultiSimilarityLoss,
    "SupConLoss": pml_losses.SupConLoss,
    "CircleLoss": pml_losses.CircleLoss,
    "ContrastiveLoss": pml_losses.ContrastiveLoss,
    "AngularLoss": pml_losses.AngularLoss,
    "MarginLoss": pml_losses.MarginLoss,
    "TupletMarginLoss": pml_losses.TupletMarginLoss,
    "NCALoss": pml_losses.NCALoss,
    "GeneralizedLiftedStructureLoss": pml_losses.GeneralizedLiftedStructureLoss,
    "IntraPairVarianceLoss": pml_losses.IntraPairVarianceLoss,
    "SignalToNoiseRatioContrastiveLoss": pml_losses.SignalToNoiseRatioContrastiveLoss,
    "kpair": as_pml_loss,
    "supcon": partial(as_pml_loss, supcon_loss),
}
MINERS = {"topk": topk(3), "hcl": hcl(3.0), "semihard": semihard(0.5, fallback=hardest())}


def trains(loss_of, steps=5):
    """A few steps of a loss on one small batch, and its values."""
    weight = torch.nn.Linear(10, 4)
    images = torch.randn(24, 10)
    optimizer = torch.optim.Adam(weight.parameters(), lr=0.02)
    values = []
    for step in range(steps):
        loss = loss_of(weight(images))
        optimizer.zero_grad()
        loss.backward()
        assert weight.weight.grad.isfinite().all()
        assert weight.weight.grad.any() or step
        optimizer.step()
        values.append(float(loss.detach()))
    assert all(map(math.isfinite, values))
    return values


def falls(loss_of):
    values = trains(loss_of, steps=60)
    return sum(values[-10:]) < 0.95 * sum(values[:10])


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("loss", TAKE_TUPLES)
class TestTrains:
    labels = torch.arange(24) // 3

    def test_on_labels(self, loss, miner):
        criterion, mined = TAKE_TUPLES[loss](), as_pml_miner(MINERS[miner])
        trains(lambda z: criterion(z, self.labels, mined(z, self.labels)))

    def test_without_labels(self, loss, miner):
        criterion, mined = TAKE_TUPLES[loss](), as_pml_miner(MINERS[miner])
        rows = torch.arange(12)

        def of(z):
            x, y = z[:12], z[12:]
            return criterion(x, rows, mined(x, ref_emb=y), y, rows.clone())

        trains(of)

    def test_in_a_cross_batch_memory(self, loss, miner):
        memory = pml_losses.CrossBatchMemory(TAKE_TUPLES[loss](), 4, memory_size=60, miner=as_pml_miner(MINERS[miner]))
        found = []
        memory.miner.register_forward_hook(lambda module, arguments, output: found.append((arguments, output)))
        trains(lambda z: memory(z, self.labels))
        (_, labels, refs, ref_labels), (a, p, n) = found[-1]
        assert len(refs) == 60
        assert len(a) > 24
        assert (labels[a] == ref_labels[p]).all()
        assert (labels[a] != ref_labels[n]).all()


@pytest.mark.parametrize("loss", ["NTXentLoss", "MultiSimilarityLoss", "kpair"])
def test_a_loss_falls(loss):
    labels = torch.arange(24) // 3
    criterion, mined = TAKE_TUPLES[loss](), as_pml_miner(topk(3))
    assert falls(lambda z: criterion(z, labels, mined(z, labels)))


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # in its progress bar
def test_in_a_trainer():
    images, labels = torch.randn(48, 10), torch.arange(48) // 4
    trunk, embedder = torch.nn.Linear(10, 6), torch.nn.Linear(6, 4)
    before = copy.deepcopy(trunk.state_dict())
    optimizers = {
        f"{name}_optimizer": torch.optim.SGD(module.parameters(), lr=0.1)
        for name, module in {"trunk": trunk, "embedder": embedder}.items()
    }
    for loss in (pml_losses.TripletMarginLoss(), as_pml_loss()):
        trainer = MetricLossOnly(
            models={"trunk": trunk, "embedder": embedder},
            optimizers=optimizers,
            batch_size=16,
            loss_funcs={"metric_loss": loss},
            mining_funcs={"tuple_miner": as_pml_miner(topk(2))},
            dataset=torch.utils.data.TensorDataset(images, labels),
            data_device=torch.device("cpu"),
            dataloader_num_workers=0,
        )
        trainer.train(num_epochs=1)
        assert all(p.isfinite().all() for p in trunk.parameters())
    assert not torch.equal(before["weight"], trunk.state_dict()["weight"])


def agree(ours, theirs, *leaves, tolerance=1e-6):
    found, expected = ours(*leaves), theirs(*leaves)
    assert found.shape == expected.shape == ()
    assert abs(float(found - expected)) <= tolerance
    assert float(expected) > 0.01
    for leaf in leaves:
        slopes = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (found, expected)]
        assert float((slopes[0] - slopes[1]).abs().max()) <= tolerance
        assert slopes[1].any()


def leaves(*rows):
    return [batch(n).requires_grad_() for n in rows]


LOSSES = {
    "kpair is NTXentLoss": (
        lambda: as_pml_loss(critic=Cosine(0.2)),
        lambda: pml_losses.NTXentLoss(temperature=0.2),
    ),
    "supcon is SupConLoss": (
        lambda: as_pml_loss(supcon_loss, critic=Cosine(0.2)),
        lambda: pml_losses.SupConLoss(temperature=0.2),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
class TestLosses:
    @pytest.fixture
    def ours(self, name):
        return LOSSES[name][0]()

    @pytest.fixture
    def theirs(self, name):
        return LOSSES[name][1]()

    def test_on_labels(self, ours, theirs):
        agree(lambda x: ours(x, LABELS), lambda x: theirs(x, LABELS), *leaves(9))

    def test_on_references(self, ours, theirs):
        agree(
            lambda x, y: ours(x, LABELS, None, y, REF_LABELS),
            lambda x, y: theirs(x, LABELS, None, y, REF_LABELS),
            *leaves(9, 11),
        )

    def test_without_labels_it_is_that_of_numbers(self, ours, theirs):
        rows = torch.arange(9)
        agree(
            lambda x, y: ours(x, ref_emb=y),
            lambda x, y: theirs(x, rows, ref_emb=y, ref_labels=rows.clone()),
            *leaves(9, 9),
        )

    def test_on_pairs_of_its_miners(self, ours, theirs):
        (x,) = leaves(9)
        for miner in (
            pml_miners.MultiSimilarityMiner(0.01),
            pml_miners.PairMarginMiner(0.3, 0.0, distance=CosineSimilarity()),
        ):
            pairs = miner(x, LABELS)
            assert 0 < len(pairs[0]) < 14
            assert 0 < len(pairs[2]) < 58
            agree(lambda z, pairs=pairs: ours(z, LABELS, pairs), lambda z, pairs=pairs: theirs(z, LABELS, pairs), x)

    def test_on_triplets_of_our_miners(self, ours, theirs):
        """PML counts a negative once for every triplet of it: it is given pairs, each once."""
        (x,) = leaves(9)
        a, p, n = as_pml_miner(topk(2))(x, LABELS)
        pairs = (*torch.stack([a, p]).unique(dim=1), *torch.stack([a, n]).unique(dim=1))
        agree(lambda z: ours(z, LABELS, (a, p, n)), lambda z: theirs(z, LABELS, pairs), x)

    def test_in_a_cross_batch_memory(self, ours, theirs):
        memories = [pml_losses.CrossBatchMemory(loss, 5, memory_size=20) for loss in (ours, theirs)]
        for _ in range(4):
            agree(*(lambda x, memory=memory: memory(x, LABELS) for memory in memories), *leaves(9))

    @pytest.mark.parametrize("symmetric", [True, False])
    def test_in_a_self_supervised_loss(self, ours, theirs, symmetric):
        agree(*(pml_losses.SelfSupervisedLoss(loss, symmetric) for loss in (ours, theirs)), *leaves(7, 7))

    def test_is_one_of_its_losses(self, ours, theirs):
        assert isinstance(ours, pml_losses.BaseMetricLossFunction)
        x = batch(9)
        for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert float(twin(x, LABELS)) == float(ours(x, LABELS))

    def test_nothing_selected_is_zero_with_a_gradient(self, ours, theirs):
        (x,) = leaves(4)
        none = torch.empty(0, dtype=torch.int64)
        for value in (ours(x, torch.arange(4)), ours(x, torch.zeros(4, dtype=torch.int64), (none, none, none))):
            assert float(value) == 0
            value.backward()
            assert not x.grad.any()


class Silent:
    """A miner that forgot its return."""

    facts = MiningFacts(mass="all", monotone=True)

    def __call__(self, scores, targets, *, anchors=None):
        pass


class TestOurLoss:
    def test_is_our_ntxent(self):
        x, y = batch(7), batch(7)
        loss = as_pml_loss(critic=Cosine(0.5))
        both = torch.cat([x, y])
        found = loss(both, torch.arange(7).repeat(2))
        torch.testing.assert_close(found, ntxent_loss(Cosine(0.5)(both, both)).mean(), rtol=1e-12, atol=0.0)
        one = loss(x, ref_emb=y)
        torch.testing.assert_close(one, KPairLoss(Cosine(0.5), symmetric=False)(x, y), rtol=1e-12, atol=0.0)

    def test_a_large_loss_is_not_cut_off(self):
        x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
        labels = torch.tensor([0, 0, 1, 1])
        loss = as_pml_loss(critic=Cosine(0.02))
        assert float(loss(x[:3], labels[:3])) == pytest.approx((100.6931 + 0.6931) / 2, abs=1.0)
        assert float(pml_losses.NTXentLoss(0.02)(x[:3], labels[:3])) < 50

    def test_one_pair_each_is_no_zero(self):
        x = batch(3)
        pairs = tuple(torch.tensor([i]) for i in (0, 1, 0, 2))
        scores = Cosine()(x, x)
        expected = F.softplus(scores[0, 2] - scores[0, 1])
        torch.testing.assert_close(as_pml_loss()(x, None, pairs), expected, rtol=1e-12, atol=0.0)
        assert float(pml_losses.NTXentLoss()(x, torch.tensor([0, 0, 1]), pairs)) == 0

    def test_repeats_count_once(self):
        x = batch(4)
        once = tuple(torch.tensor(z) for z in ([0, 0], [1, 1], [2, 3]))
        thrice = tuple(z.repeat(3) for z in once)
        assert float(as_pml_loss()(x, None, once)) == float(as_pml_loss()(x, None, thrice))

    def test_negatives_of_a_triplet_belong_to_its_positive(self):
        x = batch(5)
        scores = Cosine()(x, x)
        found = as_pml_loss()(x, None, tuple(torch.tensor(z) for z in ([0, 0], [1, 2], [3, 4])))
        expected = (F.softplus(scores[0, 3] - scores[0, 1]) + F.softplus(scores[0, 4] - scores[0, 2])) / 2
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)

    def test_a_miner_of_its_own_is_a_miner_of_tuples(self):
        x = batch(9)
        for miner in (topk(2), semihard(1.0)):
            tuples = as_pml_miner(miner, critic=Cosine(0.1))(x, LABELS)
            selected = as_pml_loss()(x, LABELS, tuples)
            own = as_pml_loss(miner=miner)(x, LABELS)
            pairs = len({(a, p) for a, p, _ in triplets(tuples)})
            torch.testing.assert_close(own * 14, selected * pairs, rtol=1e-12, atol=0.0)

    def test_several_positives_with_a_miner(self):
        x = batch(9)
        scores = without_self(Cosine()(x, x))
        mates = (LABELS[:, None] == LABELS).fill_diagonal_(False)
        kept = scores.masked_fill(mates, -math.inf)
        threshold = kept.topk(2).values[:, -1:]
        weights = torch.zeros_like(scores).masked_fill(~mates & (kept < threshold), -math.inf)
        expected = supcon_loss(scores, mates, log_weights=weights)[mates.any(1)].mean()
        found = as_pml_loss(supcon_loss, miner=topk(2))(x, LABELS)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
        with pytest.raises(ValueError, match=r"semihard.*may look at the positive"):
            as_pml_loss(supcon_loss, miner=semihard(0.1))

    @pytest.mark.parametrize("objective", [kpair_loss, supcon_loss])
    def test_a_miner_that_returns_nothing(self, objective):
        with refused("as_pml_loss", "returned NoneType"):
            as_pml_loss(objective, miner=Silent())(batch(9), LABELS)

    def test_whether_an_objective_takes_several(self):
        x = batch(9)

        def own(scores, targets, *, log_weights=None):
            return supcon_loss(scores, targets, log_weights=log_weights, keep_positives=False)

        found = as_pml_loss(partial(supcon_loss, keep_positives=False))(x, LABELS)
        assert float(found) == float(as_pml_loss(own, several=True)(x, LABELS))
        assert float(found) < float(as_pml_loss(supcon_loss)(x, LABELS))
        assert float(as_pml_loss(lifted_loss)(x, LABELS)) > 0
        alone = as_pml_loss(supcon_loss, several=False)(x, LABELS)
        torch.testing.assert_close(alone, as_pml_loss()(x, LABELS), rtol=1e-12, atol=0.0)

    def test_a_learnt_temperature_is_its_parameter(self):
        loss = as_pml_loss(critic=Cosine(0.1, learnable=True))
        (parameter,) = loss.parameters()
        loss(batch(9), LABELS).backward()
        assert float(parameter.grad) != 0

    def test_neither_labels_nor_references(self):
        with pytest.raises(ValueError, match="as_pml_loss: got no labels and no ref_emb"):
            as_pml_loss()(batch(9))


# Miners of pytorch-metric-learning that go by a distance alone.
PMLS = {
    "BatchHard": pml_miners.BatchHardMiner,
    "BatchEasyHard": pml_miners.BatchEasyHardMiner,
    "BatchEasyHard, easy negatives": partial(pml_miners.BatchEasyHardMiner, "easy", "easy"),
    "BatchEasyHard, in a range": partial(
        pml_miners.BatchEasyHardMiner, "hard", "hard", allowed_neg_range=(-0.5, 0.5), allowed_pos_range=(-0.3, 1.0)
    ),
    "BatchEasyHard, all": partial(pml_miners.BatchEasyHardMiner, "all", "hard"),
    "BatchEasyHard, semihard positives": partial(pml_miners.BatchEasyHardMiner, "semihard", "hard"),
    "MultiSimilarity": pml_miners.MultiSimilarityMiner,
    "MultiSimilarity, wide": partial(pml_miners.MultiSimilarityMiner, 0.5),
    "PairMargin": partial(pml_miners.PairMarginMiner, 0.2, 0.1),
    "TripletMargin": pml_miners.TripletMarginMiner,
    "TripletMargin, hard": partial(pml_miners.TripletMarginMiner, type_of_triplets="hard"),
    "TripletMargin, semihard": partial(pml_miners.TripletMarginMiner, type_of_triplets="semihard"),
    "TripletMargin, easy": partial(pml_miners.TripletMarginMiner, type_of_triplets="easy"),
}


def kept(log_weights):
    assert set(log_weights.unique().tolist()) <= {0.0, -math.inf}
    return log_weights == 0


def selected(found, rows, columns, positive):
    """What a tuple keeps: its negatives, of anchors whose positive it keeps."""
    a1, p, a2, n = lmu.convert_to_pairs(found, None)
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[a2, n] = True
    anchors = torch.zeros(rows, 1, dtype=torch.bool)
    anchors[a1] = True
    assert positive[a1, p].all()
    return (mask & anchors) | positive


@pytest.mark.parametrize("name", PMLS)
class TestFromPml:
    def test_selects_what_it_selects_from_embeddings(self, name):
        x, y, rows = batch(12), batch(15), torch.arange(15)
        found = PMLS[name](distance=CosineSimilarity())(x, rows[:12], y, rows)
        expected = selected(found, 12, 15, torch.eye(12, 15, dtype=torch.bool))
        assert 12 < expected.sum() < 12 * 15
        log_weights = from_pml_miner(PMLS[name](), temperature=0.1)(Cosine(0.1)(x, y), rows[:12])
        assert torch.equal(kept(log_weights), expected)

    def test_absent_candidates_are_as_if_they_were_not_there(self, name):
        miner = from_pml_miner(PMLS[name](), temperature=0.1)
        scores = Cosine(0.1)(batch(20), batch(9))
        targets = torch.randint(9, (20,))
        present = (torch.rand(20, 9) < 0.6).scatter(1, targets[:, None], True)
        found = kept(miner(scores.masked_fill(~present, -math.inf), targets))
        for i in range(20):
            columns = present[i].nonzero().squeeze(1)
            target = (columns == targets[i]).nonzero()[0]
            alone = torch.zeros(9, dtype=torch.bool)
            alone[columns] = kept(miner(scores[i, columns][None], target))[0]
            assert torch.equal(found[i], alone)
        assert found.sum() > 20

    def test_edge_rows(self, name):
        miner = from_pml_miner(PMLS[name](), temperature=1.0)
        scores = torch.full((3, 4), -math.inf)
        scores[0, 1] = 0.5
        scores[2] = torch.tensor([0.9, 0.5, 0.4, 0.3])
        found = miner(scores, torch.tensor([1, 0, 0]))
        assert torch.equal(kept(found)[:2], torch.tensor([[False, True, False, False], [True, False, False, False]]))
        assert kept(found)[2, 0]
        alone = miner(scores[2:], torch.tensor([0]))
        assert torch.equal(found[2:], alone)
        assert miner(scores[:2], torch.tensor([1, 0])).shape == (2, 4)
        assert miner(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (0, 4)

    def test_in_our_losses(self, name):
        x, y = leaves(40, 40)
        values = []
        for tiled in (True, False):
            criterion = KPairLoss(Cosine(0.2), miner=from_pml_miner(PMLS[name](), temperature=0.2), tiled=tiled)
            values.append(criterion(x, y))
        torch.testing.assert_close(*values, rtol=1e-10, atol=0.0)
        values[0].backward()
        assert x.grad.any()

    def test_is_no_bound(self, name):
        miner = from_pml_miner(PMLS[name](), temperature=0.1)
        bound = infonce_bound(Cosine(0.1)(batch(12), batch(12)), miner=miner)
        assert bound.status == "not a bound"
        assert "pytorch-metric-learning" in bound.reason

    def test_the_miner_itself_stays_as_it_is(self, name):
        theirs = PMLS[name]()
        before = theirs.distance
        ours = pickle.loads(pickle.dumps(from_pml_miner(theirs, temperature=0.1)))
        ours(torch.randn(4, 4), torch.arange(4))
        assert theirs.distance is before
        assert repr(ours).startswith(f"from_pml_miner({type(theirs).__name__}")


class TestSingleMiners:
    def test_the_temperature_is_undone(self):
        x, y = batch(12), batch(12)
        found = [
            from_pml_miner(pml_miners.TripletMarginMiner(0.3), temperature=t)(Cosine(t)(x, y), torch.arange(12))
            for t in (1.0, 0.25, 0.125)
        ]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])
        other = from_pml_miner(pml_miners.TripletMarginMiner(0.3), temperature=1.0)(
            Cosine(0.125)(x, y), torch.arange(12)
        )
        assert not torch.equal(found[0], other)

    def test_a_dropped_positive_drops_its_row(self):
        miner = from_pml_miner(pml_miners.PairMarginMiner(pos_margin=0.8, neg_margin=0.1), temperature=1.0)
        scores = torch.tensor([[0.9, 0.5, 0.4], [0.5, 0.7, 0.0]])
        log_weights = miner(scores, torch.tensor([0, 1]))
        assert kept(log_weights).tolist() == [[True, False, False], [True, True, False]]
        assert float(kpair_loss(scores, torch.tensor([0, 1]), log_weights=log_weights)[0]) == 0

    def test_one_positive_of_all_anchors(self):
        """A queue: the positive of every anchor stands in column 0."""
        scores = torch.tensor([[0.5, 0.9, 0.1], [0.5, 0.1, 0.9]])
        miner = from_pml_miner(pml_miners.BatchHardMiner(), temperature=1.0)
        assert kept(miner(scores, torch.tensor([0, 0]))).tolist() == [[True, True, False], [True, False, True]]

    def test_the_histogram(self):
        x, rows = batch(12), torch.arange(12)
        y = batch(12)
        theirs = pml_miners.UniformHistogramMiner(5, 20, 20)
        torch.manual_seed(1)
        found = pml_miners.UniformHistogramMiner(5, 20, 20, distance=CosineSimilarity())(x, rows, y, rows.clone())
        torch.manual_seed(1)
        log_weights = from_pml_miner(theirs, temperature=0.5)(Cosine(0.5)(x, y), rows)
        assert torch.equal(kept(log_weights), selected(found, 12, 12, torch.eye(12, dtype=torch.bool)))

    def test_of_two_views(self):
        z = batch(12)
        scores, targets = without_self(Cosine(0.1)(z, z)), torch.arange(12).roll(6)
        found = kept(from_pml_miner(pml_miners.BatchHardMiner(), temperature=0.1)(scores, targets))
        a, p, n = pml_miners.BatchHardMiner(distance=CosineSimilarity())(z, torch.arange(6).repeat(2))
        assert torch.equal(p, targets)
        expected = torch.zeros(12, 12, dtype=torch.bool)
        expected[a, p] = expected[a, n] = True
        assert torch.equal(found, expected)


class ReadsRows(pml_miners.BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return embeddings[labels]


class ReadsNorms(pml_miners.BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return embeddings.norm(dim=1)


class ReadsProducts(pml_miners.BaseMiner):
    def mine(self, embeddings, labels, ref_emb, ref_labels):
        return torch.matmul(torch.ones(1, 1), ref_emb)


class TestRefused:
    @pytest.mark.parametrize(
        ("miner", "message"),
        [
            (pml_miners.AngularMiner(), "AngularMiner cannot mine scores: it reads angles"),
            (pml_miners.DistanceWeightedMiner(), "DistanceWeightedMiner.*miners.distance_weighted"),
            (pml_miners.HDCMiner(), "HDCMiner.*whole batch"),
            (pml_miners.EmbeddingsAlreadyPackagedAsTriplets(), "positions of rows"),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
    )
    def test_at_once(self, miner, message):
        with pytest.raises(ValueError, match=f"from_pml_miner: .*{message}"):
            from_pml_miner(miner, temperature=0.1)

    @pytest.mark.parametrize("other", [topk(2), pml_losses.TripletMarginLoss(), pml_miners.BatchHardMiner, None])
    def test_what_is_no_miner_of_pml(self, other):
        with refused("from_pml_miner: got ", "expected a miner of pytorch-metric-learning"):
            from_pml_miner(other, temperature=0.1)

    @pytest.mark.parametrize("kind", [ReadsRows, ReadsNorms, ReadsProducts])
    def test_when_it_reads(self, kind):
        with pytest.raises(ValueError, match=f"from_pml_miner: {kind.__name__} cannot mine scores: it reads"):
            from_pml_miner(kind(), temperature=0.1)(torch.randn(3, 3), torch.arange(3))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
    def test_temperature(self, temperature):
        with pytest.raises(ValueError, match="from_pml_miner: temperature is"):
            from_pml_miner(pml_miners.BatchHardMiner(), temperature=temperature)

    def test_facts_are_declared(self):
        facts = from_pml_miner(pml_miners.BatchHardMiner(), temperature=1.0).facts
        assert facts.why
        assert facts == MiningFacts(why=facts.why)
