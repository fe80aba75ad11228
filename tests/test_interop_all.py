"""Everything with everything: our miners in PML, its miners and losses with ours, our objectives in its wrappers."""

import functools
import inspect
import math

import pytest
import references
import torch
import torch.nn.functional as F
from miner_table import TABLE
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from references import INF
from test_interop import LABELS, PMLS, REF_LABELS, batch, triplets

from contrastive import (
    Cosine,
    additive_margin_loss,
    decoupled_loss,
    kpair_loss,
    lifted_loss,
    multi_similarity_loss,
    ovo_loss,
    pairwise_loss,
    sigmoid_loss,
    supcon_loss,
)
from contrastive.interop import as_pml_loss, as_pml_miner, from_pml_miner
from miners import annealed, hcl, topk

ALL = 50  # more than there are negatives: of soft weights every one that is not 0 is drawn


def classes_of(module, base):
    """What a module of PML exports, the base itself aside."""
    found = {name: kind for name, kind in vars(module).items() if inspect.isclass(kind) and issubclass(kind, base)}
    return {name: kind for name, kind in found.items() if kind is not base}


# --- our miners as PML's ----------------------------------------------------------------------------------------------


def mates_of(labels, ref_labels, *, itself):
    """The candidates that share each anchor's label, one list an anchor."""
    return [
        [p for p, other in enumerate(ref_labels) if other == label and not (itself and a == p)]
        for a, label in enumerate(labels)
    ]


def looped(loop, x, labels, y, ref_labels, *, itself, pick):
    """What a slow miner keeps when every anchor is shown its positive number `pick`, one row for every anchor."""
    mates = mates_of(labels, ref_labels, itself=itself)
    scores, targets = F.normalize(x) @ F.normalize(y).T, torch.zeros(len(x), dtype=torch.int64)
    for a, positives in enumerate(mates):
        target = positives[pick] if pick < len(positives) else None
        for n in range(len(y)):
            if target is None or (ref_labels[n] == labels[a] and n != target):
                scores[a, n] = -INF
        targets[a] = 0 if target is None else target
    weights = loop(scores, targets)
    return {
        (a, int(targets[a]), n)
        for a in range(len(x))
        for n in range(len(y))
        if n != targets[a] and scores[a, n] > -INF and weights[a, n] > -INF
    }


def in_all(loop, *arguments, **options):
    return set().union(*(looped(loop, *arguments, **options, pick=pick) for pick in range(4)))


@pytest.mark.parametrize(("miner", "loop"), TABLE, ids=lambda value: repr(value) if hasattr(value, "facts") else "")
class TestEveryMinerOfOurs:
    """Every line of the contract's table, beside its slow reference."""

    def test_of_labels(self, miner, loop):
        x, labels = batch(10), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]  # one positive each: as many rows as the reference draws
        torch.manual_seed(5)
        expected = looped(loop, x, labels, x, labels, itself=True, pick=0)
        torch.manual_seed(5)
        assert triplets(as_pml_miner(miner, k=ALL)(x, torch.tensor(labels))) == expected

    def test_without_labels(self, miner, loop):
        x, y = batch(7), batch(10)
        torch.manual_seed(5)
        expected = looped(loop, x, range(7), y, range(10), itself=False, pick=0)
        torch.manual_seed(5)
        assert triplets(as_pml_miner(miner, k=ALL)(x, ref_emb=y)) == expected

    def test_of_several_positives(self, miner, loop):
        x, y = batch(9), batch(11)
        for others, ref_labels in ((x, LABELS), (y, REF_LABELS)):
            itself = others is x
            given = (x, LABELS) if itself else (x, LABELS, y, REF_LABELS)
            found = triplets(as_pml_miner(miner, k=ALL)(*given))
            asked = (x, LABELS.tolist(), others, ref_labels.tolist())
            if miner.facts.drawn:  # by draws of their own: as many as the reference keeps, of the same candidates
                for a, p in {(a, p) for a, p, _ in in_all(loop, *asked, itself=itself)}:
                    drawn = [n for i, j, n in found if (i, j) == (a, p)]
                    assert all(ref_labels[n] != LABELS[a] for n in drawn)
                    kept = int((loop(torch.zeros(1, 1 + sum(ref_labels != LABELS[a])), torch.tensor([0])) > -INF).sum())
                    assert len(drawn) == kept - 1
            else:
                assert found == in_all(loop, *asked, itself=itself)

    def test_one_is_drawn_where_weights_are_soft(self, miner, loop):
        """The documented k: of soft weights one negative for every positive, of those of weight 0 none."""
        x = batch(9)
        every = triplets(as_pml_miner(miner, k=ALL)(x, LABELS))
        found = triplets(as_pml_miner(miner)(x, LABELS))
        pairs = {(a, p) for a, p, _ in found}
        kept = miner(torch.randn(1, 9), torch.tensor([0]), anchors=torch.tensor([0]))[0, 1:]
        soft = miner.facts.mass == "all" or bool((kept[kept > -INF] != 0).any())
        if miner.facts.drawn:
            assert all(LABELS[a] == LABELS[p] != LABELS[n] for a, p, n in found)
        else:
            assert found <= every
            assert pairs == {(a, p) for a, p, _ in every}
            assert len(found) == (len(pairs) if soft else len(every))


def test_a_miner_that_changes_with_time_stays_at_its_first_step():
    x, of_width = batch(12), annealed(topk, start=5, end=1, steps=4)
    labels = torch.arange(12) // 2
    assert triplets(as_pml_miner(of_width)(x, labels)) == triplets(as_pml_miner(topk(5))(x, labels))
    assert triplets(as_pml_miner(of_width.at(4))(x, labels)) == triplets(as_pml_miner(topk(1))(x, labels))


# --- PML's miners as ours ---------------------------------------------------------------------------------------------

REFUSED_MINERS = {"AngularMiner", "DistanceWeightedMiner", "EmbeddingsAlreadyPackagedAsTriplets", "HDCMiner"}
ALONE = {"UniformHistogramMiner"}  # sees the batch as one: a test of its own in test_interop.py


def test_every_miner_of_pml_is_compared_or_refused():
    compared = {getattr(make, "func", make).__name__ for make in PMLS.values()}
    assert compared | ALONE | REFUSED_MINERS == set(classes_of(pml_miners, pml_miners.BaseMiner))


@pytest.mark.parametrize("name", classes_of(pml_miners, pml_miners.BaseMiner))
def test_every_miner_of_pml_mines_or_says_why_not(name):
    options = {"UniformHistogramMiner": {"num_bins": 10, "pos_per_bin": 20, "neg_per_bin": 20}}.get(name, {})
    theirs = getattr(pml_miners, name)(**options)
    if name in REFUSED_MINERS:
        with pytest.raises(ValueError, match=f"from_pml_miner: {name} cannot mine scores: it"):
            from_pml_miner(theirs, temperature=0.1)
        return
    scores, targets = Cosine(0.1)(batch(12), batch(15)).requires_grad_(), torch.arange(12)
    log_weights = from_pml_miner(theirs, temperature=0.1)(scores, targets)
    assert set(log_weights.unique().tolist()) == {0.0, -INF}
    assert not log_weights.gather(1, targets[:, None]).any()
    loss = kpair_loss(scores, targets, log_weights=log_weights)
    loss.sum().backward()
    dropped = (log_weights == -INF).all(1)
    assert scores.grad.isfinite().all()
    assert scores.grad.any()
    assert not scores.grad[dropped].any()


# --- PML's losses on pairs of ours ------------------------------------------------------------------------------------

WITH_CLASSES = {"num_classes": 8, "embedding_size": 4}
OPTIONS = {
    **dict.fromkeys(
        (
            "ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss",
            "ProxyNCALoss", "SoftTripleLoss", "SphereFaceLoss", "SubCenterArcFaceLoss",
        ),
        WITH_CLASSES,
    ),
    "P2SGradLoss": {"num_classes": 8, "descriptors_dim": 4},
    "RankedListLoss": {"margin": 0.4, "Tn": 5.0},
    "ManifoldLoss": {"l": 4, "K": 4},
    "DynamicSoftMarginLoss": {"min_val": -4.0},  # its histogram has no place for differences of 1.6 and more otherwise
}  # fmt: skip
# What takes no tuples of pairs, in PML's own words; a manifold loss calls its meta-classes so, and takes no labels.
NO_TUPLES = {
    **dict.fromkeys(
        ("InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss", "VICRegLoss"), "indices_tuple is not supported"
    ),
    "ManifoldLoss": "labels .* are not supported",
}
LOSSES_OF_PML = sorted(set(classes_of(pml_losses, pml_losses.BaseMetricLossFunction)) - {"GenericPairLoss"})


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence", "ignore:__array_wrap__")  # PML's own
@pytest.mark.parametrize("miner", [topk(3), hcl(3.0)], ids=repr)
@pytest.mark.parametrize("name", LOSSES_OF_PML)
def test_every_loss_of_pml_takes_a_step_on_our_pairs(name, miner):
    torch.manual_seed(3)
    weight, images, labels = torch.nn.Linear(10, 4), torch.randn(24, 10), torch.arange(24) // 3
    criterion, mined = getattr(pml_losses, name)(**OPTIONS.get(name, {})), as_pml_miner(miner)
    z = weight(images)
    found = mined(z, labels)
    if name in NO_TUPLES:
        with pytest.raises(ValueError, match=NO_TUPLES[name]):
            criterion(z, labels, found)
        return
    criterion(z, labels, found).backward()
    before = weight.weight.detach().clone()
    assert weight.weight.grad.isfinite().all()
    assert weight.weight.grad.any()
    torch.optim.SGD(weight.parameters(), lr=0.1).step()
    assert not torch.equal(before, weight.weight)


# --- our objectives as PML's losses -----------------------------------------------------------------------------------

# Objective, whether it takes a mask of positives, and its slow reference over (scores, targets).
OBJECTIVES = {
    "kpair": (kpair_loss, False, references.kpair),
    "decoupled": (decoupled_loss, False, references.decoupled),
    "pairwise": (pairwise_loss, False, references.pairwise),
    "ovo": (ovo_loss, False, references.ovo),
    "additive margin": (
        functools.partial(additive_margin_loss, margin=2.0),
        False,
        functools.partial(references.additive_margin, margin=2.0),
    ),
    "supcon": (supcon_loss, True, references.supcon),
    "lifted": (lifted_loss, True, references.lifted),
    "multi-similarity": (multi_similarity_loss, True, references.multi_similarity),
    "sigmoid": (sigmoid_loss, True, references.sigmoid),
}


def rows_of(scores, pairs, negatives, *, several):
    """The rows of an objective, one for every pair, or one for every anchor with the mask of its positives.

    Arguments:
        scores: of all anchors against all candidates.
        pairs: anchors and positives.
        negatives: of (anchor, positive), those that go with it.
        several: which of the two.
    """
    rows, targets = [], []
    groups = {a: {p for i, p in pairs if i == a} for a, _ in pairs} if several else None
    for key in sorted(groups if several else pairs):
        positives = groups[key] if several else {key[1]}
        a = key if several else key[0]
        kept = positives | set().union(*(negatives(a, p) for p in positives))
        rows.append([float(s) if j in kept else -INF for j, s in enumerate(scores[a])])
        targets.append([j in positives for j in range(scores.shape[1])] if several else key[1])
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(targets)


@pytest.mark.parametrize("name", OBJECTIVES)
class TestEveryObjectiveOfOurs:
    @pytest.fixture
    def case(self, name):
        objective, several, loop = OBJECTIVES[name]
        return as_pml_loss(objective, critic=Cosine(0.5)), several, loop

    def agree(self, found, loop, several, x, y, pairs, negatives):
        scores = (F.normalize(x) @ F.normalize(y).T / 0.5).detach()
        expected = loop(*rows_of(scores, pairs, negatives, several=several))
        assert float(found.detach()) == pytest.approx(math.fsum(expected) / len(expected), abs=1e-10)
        (slope,) = torch.autograd.grad(found, x)
        assert slope.isfinite().all()
        assert slope.any()

    def by_labels(self, labels, ref_labels, *, without=()):
        """All pairs but those `without`, and the negatives of an anchor."""
        pairs = {(a, p) for a, label in enumerate(labels) for p, other in enumerate(ref_labels) if label == other}
        return pairs - set(without), lambda a, p: {n for n, other in enumerate(ref_labels) if other != labels[a]}

    def test_on_references(self, case):
        loss, several, loop = case
        x, y = batch(9).requires_grad_(), batch(11)
        pairs, negatives = self.by_labels(LABELS.tolist(), REF_LABELS.tolist())
        self.agree(loss(x, LABELS, None, y, REF_LABELS), loop, several, x, y, pairs, negatives)

    def test_on_a_tuple_and_references(self, case):
        loss, several, loop = case
        x, y = batch(9).requires_grad_(), batch(11)
        a, p, n = as_pml_miner(topk(2))(x, LABELS, y, REF_LABELS)
        given = list(zip(a.tolist(), p.tolist(), n.tolist(), strict=True))
        pairs = {(i, j) for i, j, _ in given}

        def negatives(i, j):
            return {k for a, p, k in given if (a, p) == (i, j)}

        self.agree(loss(x, LABELS, (a, p, n), y, REF_LABELS), loop, several, x, y, pairs, negatives)

    @pytest.mark.parametrize("mined", [False, True], ids=["all", "topk"])
    def test_in_a_cross_batch_memory(self, case, mined):
        loss, several, loop = case
        miner = as_pml_miner(topk(2)) if mined else None
        memory = pml_losses.CrossBatchMemory(loss, 5, memory_size=24, miner=miner)
        for step in range(4):  # 9, 18, then full, and over its beginning
            x = batch(9).requires_grad_()
            found = memory(x, LABELS)
            held = min(24, 9 * (step + 1))
            y, ref_labels = memory.embedding_memory[:held].clone(), memory.label_memory[:held]
            itself = [(i, (9 * step + i) % 24) for i in range(9)]
            pairs, every = self.by_labels(LABELS.tolist(), ref_labels.tolist(), without=itself)
            scores = F.normalize(x.detach()) @ F.normalize(y).T

            def hardest(a, p, every=every, scores=scores):
                return set(sorted(every(a, p), key=lambda n: -float(scores[a, n]))[:2])

            self.agree(found, loop, several, x, y, pairs, hardest if mined else every)
