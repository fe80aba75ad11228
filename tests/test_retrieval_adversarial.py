"""Our metrics beside those of others on hard inputs: ties, duplicates, zeros, few rows, one class, singletons.

Each peer is held against ours only where it is right. torchmetrics, ranx and pytorch-metric-learning let the order of
the data decide between items of equal score: where a gallery is small enough their mean over all of its orders is ours,
and in a large one the queries are compared of which no order changes anything. scikit-learn gives every relevant item
the worst rank of its tie: its average precision is compared where no relevant item is tied; its nDCG averages, as ours.
"""

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from contrastive.retrieval import evaluate_retrieval

# Multiples of 1/16: every product is exact, in whatever order a library adds up.
VECTORS = {
    "of a normal distribution": lambda n, g: (16 * torch.randn(n, 3, generator=g)).round() / 16,
    "small integers": lambda n, g: torch.randint(-1, 2, (n, 2), generator=g).float(),
    "duplicates": lambda n, g: (16 * torch.randn(1 + n // 4, 3, generator=g)).round()[torch.arange(n) % (1 + n // 4)],
    "collapsed": lambda n, g: torch.ones(n, 3),
    "some rows of zeros": lambda n, g: (
        torch.randint(-8, 9, (n, 3), generator=g) * torch.randint(0, 2, (n, 1), generator=g)
    ).float(),
    "axes": lambda n, g: torch.eye(3)[torch.randint(0, 3, (n,), generator=g)],
}
LABELS = {
    "balanced": lambda n, g: torch.arange(n) % 3,
    "one class": lambda n, g: torch.zeros(n, dtype=torch.int64),
    "one class and singletons": lambda n, g: torch.where(torch.arange(n) < 2, 0, torch.arange(n)),
    "nine of ten are of one class": lambda n, g: (torch.rand(n, generator=g) < 0.1).long(),
    "large numbers": lambda n, g: 2**40 + torch.randint(0, 3, (n,), generator=g),
}
UNMERGED = [name for name in LABELS if name != "large numbers"]  # for the calculator, see test_retrieval_defects


@dataclass
class Case:
    """Queries and a gallery, relevance in [0, 3] with something to find for each query, and what is looked at."""

    x: Tensor
    y: Tensor
    grades: Tensor
    k: int

    @property
    def scores(self):
        """Positive integers in the order of the scores: torchmetrics takes an item of score 0 or less for none."""
        return torch.unique(self.x @ self.y.T, return_inverse=True)[1] + 1.0

    @property
    def relevant(self):
        return self.grades > 0

    def orders(self):
        """All orders of a small gallery; of a large one that which it has."""
        rows = range(len(self.y))
        return list(itertools.permutations(rows)) if len(rows) <= 4 else [rows]

    def comparable(self):
        """Queries that are the same in all orders, or of which all orders are looked at."""
        same = self.scores[:, :, None] == self.scores[:, None, :]
        mixed = same & (self.grades[:, :, None] != self.grades[:, None, :])
        return torch.full((len(self.x),), len(self.y) <= 4) | ~mixed.any(2).any(1)

    def ours(self, *names):
        lists = [{j: float(grade) for j, grade in enumerate(row) if grade} for row in self.grades.tolist()]
        options = {"ks": (), "metrics": names, "metric": "inner_product"}
        return evaluate_retrieval(self.x, gallery=self.y, relevant=lists, **options).per_query


@st.composite
def cases(draw, vectors=tuple(VECTORS)):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    queries, items = draw(st.integers(1, 5)), draw(st.integers(2, 4) | st.integers(5, 25))
    rows = VECTORS[draw(st.sampled_from(vectors))](queries + items, generator)
    density = draw(st.sampled_from([0.1, 0.5, 1.0]))  # at 1 everything is relevant
    grades = torch.randint(1, 4, (queries, items), generator=generator)
    grades *= torch.rand(queries, items, generator=generator) < density
    grades[torch.arange(queries), torch.randint(0, items, (queries,), generator=generator)] += 1
    return Case(rows[:queries], rows[queries:], grades, draw(st.integers(1, items)))


@settings(max_examples=20, deadline=None)
@given(cases())
def test_torchmetrics(case):
    theirs = pytest.importorskip("torchmetrics.functional.retrieval", reason="torchmetrics is not installed")
    k = case.k
    functions = {
        f"recall@{k}": lambda s, r, g: theirs.retrieval_hit_rate(s, r, top_k=k),
        f"coverage@{k}": lambda s, r, g: theirs.retrieval_recall(s, r, top_k=k),
        f"precision@{k}": lambda s, r, g: theirs.retrieval_precision(s, r, top_k=k),
        f"mrr@{k}": lambda s, r, g: theirs.retrieval_reciprocal_rank(s, r, top_k=k),
        f"ndcg@{k}": lambda s, r, g: theirs.retrieval_normalized_dcg(s, g, top_k=k),
        "r_precision": lambda s, r, g: theirs.retrieval_r_precision(s, r),
        "map": lambda s, r, g: theirs.retrieval_average_precision(s, r),
        "mrr": lambda s, r, g: theirs.retrieval_reciprocal_rank(s, r),
    }
    found = case.ours(*functions)
    for query in case.comparable().nonzero().flatten().tolist():
        s, r, g = case.scores[query], case.relevant[query], case.grades[query]
        for name, function in functions.items():
            expected = np.mean([float(function(s[[*o]], r[[*o]], g[[*o]])) for o in case.orders()])
            assert float(found[name][query]) == pytest.approx(expected, abs=1e-6), name


RANX = {"recall": "hit_rate@{}", "coverage": "recall@{}", "precision": "precision@{}", "mrr": "mrr@{}", "map": "map@{}"}


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(cases())
def test_ranx(case):
    ranx = pytest.importorskip("ranx", reason="the extra bench is not installed: ranx")
    names = {f"{ours}@{case.k}": theirs.format(case.k) for ours, theirs in RANX.items()}
    names |= {f"ndcg@{case.k}": f"ndcg@{case.k}", "map": "map", "mrr": "mrr", "r_precision": "r-precision"}
    found, kept = case.ours(*names), case.comparable().nonzero().flatten().tolist()
    assume(kept)
    relevant, runs = {}, {}
    for query, (place, order) in itertools.product(kept, enumerate(case.orders())):
        scores, grades = case.scores[query].tolist(), case.grades[query].tolist()
        relevant[f"{query}/{place}"] = {f"d{j}": grades[j] for j in order if grades[j]}
        runs[f"{query}/{place}"] = {f"d{j}": scores[j] for j in order}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numba's, of its compilation
        theirs = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(runs), [*names.values()])
    for ours, name in names.items():
        assert float(found[ours][kept].mean()) == pytest.approx(float(theirs[name]), abs=1e-6), ours


@settings(max_examples=40, deadline=None)
@given(cases())
def test_scikit_learn(case):
    from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

    found = case.ours(f"ndcg@{case.k}", "map")
    scores = case.scores.numpy()
    expected = ndcg_score(case.grades.numpy(), scores, k=case.k)
    assert float(found[f"ndcg@{case.k}"].mean()) == pytest.approx(expected, abs=1e-6)
    tied = (case.scores[:, :, None] == case.scores[:, None, :]).sum(2) > 1
    for query in (~(tied & case.relevant).any(1)).nonzero().flatten().tolist():
        relevant, ours = case.relevant[query].numpy(), float(found["map"][query])
        assert ours == pytest.approx(average_precision_score(relevant, scores[query]), abs=1e-6)
        if not relevant.all():  # 1 by its definition where everything is relevant, and so is ours
            theirs = label_ranking_average_precision_score(relevant[None], scores[query][None])
            assert ours == pytest.approx(theirs, abs=1e-6)
        else:
            assert ours == 1.0


CALCULATOR = {
    "mean_average_precision": "map",
    "mean_reciprocal_rank": "mrr",
    "precision_at_1": "precision@1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "map@r",
}


def calculator(distance):
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    return AccuracyCalculator(include=(*CALCULATOR,), device=torch.device("cpu"), knn_func=CustomKNN(distance))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.integers(2, 4),
    st.sampled_from([*VECTORS]),
    st.sampled_from(UNMERGED),
)
def test_the_calculator_with_a_gallery(seed, queries, items, vectors, labels):
    from pytorch_metric_learning.distances import DotProductSimilarity

    generator = torch.Generator().manual_seed(seed)
    rows = VECTORS[vectors](queries + items, generator)
    of_rows = LABELS[labels](queries + items, generator)[torch.randperm(queries + items, generator=generator)]
    (x, y), (of_x, of_y) = rows.split([queries, items]), of_rows.split([queries, items])
    assume(bool(torch.isin(of_x, of_y).any()))
    theirs = calculator(DotProductSimilarity(normalize_embeddings=False))
    orders = [[*order] for order in itertools.permutations(range(items))]
    expected = [theirs.get_accuracy(x, of_x, y[order], of_y[order]) for order in orders]
    options = {"metrics": (*CALCULATOR.values(),), "metric": "inner_product"}
    found = evaluate_retrieval(x, of_x, gallery=y, gallery_labels=of_y, **options).mean
    for name, ours in CALCULATOR.items():
        assert found[ours] == pytest.approx(np.mean([each[name] for each in expected]), abs=1e-6), name


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 4),
    st.sampled_from([*VECTORS]),
    st.sampled_from(UNMERGED),
)
def test_the_calculator_among_the_others(seed, rows, vectors, labels):
    from pytorch_metric_learning.distances import DotProductSimilarity

    generator = torch.Generator().manual_seed(seed)
    x, of_x = VECTORS[vectors](rows, generator), LABELS[labels](rows, generator)
    assume(bool((of_x.unique(return_counts=True)[1] > 1).any()))
    theirs = calculator(DotProductSimilarity(normalize_embeddings=False))
    orders = [[*order] for order in itertools.permutations(range(rows))]
    expected = [theirs.get_accuracy(x[order], of_x[order]) for order in orders]
    found = evaluate_retrieval(x, of_x, metrics=(*CALCULATOR.values(),), metric="inner_product").mean
    for name, ours in CALCULATOR.items():
        assert found[ours] == pytest.approx(np.mean([each[name] for each in expected]), abs=1e-6), name


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 30), st.sampled_from(UNMERGED))
def test_the_calculator_among_many_others_that_differ(seed, rows, labels):
    from pytorch_metric_learning.distances import LpDistance

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 3, generator=generator)
    of_x = LABELS[labels](rows, generator)
    assume(bool((of_x.unique(return_counts=True)[1] > 1).any()))
    theirs = calculator(LpDistance(normalize_embeddings=False)).get_accuracy(x, of_x)
    found = evaluate_retrieval(x, of_x, metrics=(*CALCULATOR.values(),), metric="euclidean").mean
    for name, ours in CALCULATOR.items():
        assert found[ours] == pytest.approx(theirs[name], abs=1e-6), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30), st.sampled_from([*VECTORS]), st.sampled_from([*LABELS]))
def test_no_order_of_the_data_counts(seed, rows, vectors, labels):
    # What the peers are averaged for above. Every metric is in [0, 1] whatever the input.
    generator = torch.Generator().manual_seed(seed)
    x, of_x = VECTORS[vectors](rows, generator), LABELS[labels](rows, generator)
    assume(bool((of_x.unique(return_counts=True)[1] > 1).any()))
    names = ("recall@1", "coverage@1", "precision@1", "ndcg@1", "knn@1", "r_precision", "map@r", "map", "mrr")
    order = torch.randperm(rows, generator=generator)
    results = [
        evaluate_retrieval(x[o], of_x[o], ks=(), metrics=names, metric="inner_product")
        for o in (torch.arange(rows), order)
    ]
    assert results[0].excluded == results[1].excluded == rows - len(results[0].queries)
    for name in names:
        assert results[1].mean[name] == pytest.approx(results[0].mean[name], abs=1e-6), name
        assert bool(((results[0].per_query[name] >= 0) & (results[0].per_query[name] <= 1)).all())
