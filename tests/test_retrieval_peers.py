"""Our metrics beside those of others: values of a normal distribution; see also test_retrieval_adversarial, _defects.

pytorch-metric-learning, scikit-learn and torchmetrics come with the package; ranx with the extra ``bench``.
"""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive.retrieval import evaluate_retrieval


def ranked(seed, queries=6, items=9):
    """Queries and items by inner product, and which are relevant: at least one each."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(queries, 4, generator=generator), torch.randn(items, 4, generator=generator)
    relevant = torch.rand(queries, items, generator=generator) < 0.3
    relevant[torch.arange(queries), torch.randint(0, items, (queries,), generator=generator)] = True
    return x, y, x @ y.T, relevant


def ours(x, y, relevant, names, ks):
    lists = [row.nonzero().flatten().tolist() for row in relevant]
    return evaluate_retrieval(x, gallery=y, relevant=lists, ks=ks, metrics=names, metric="inner_product").mean


# --- pytorch-metric-learning ------------------------------------------------------------------------------------------


def pml(x, labels, *reference, k=None, include=("mean_average_precision", "mean_reciprocal_rank")):
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = (*include, "precision_at_1", "r_precision", "mean_average_precision_at_r")
    knn = CustomKNN(LpDistance(normalize_embeddings=False), batch_size=64)
    calculator = AccuracyCalculator(include=names, k=k, device=torch.device("cpu"), knn_func=knn)
    return calculator.get_accuracy(x, labels, *reference)


THEIR_NAMES = {
    "mean_average_precision": "map",
    "mean_reciprocal_rank": "mrr",
    "precision_at_1": "precision@1",
    "r_precision": "r_precision",
    "mean_average_precision_at_r": "map@r",
}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(5, 40), st.integers(1, 9), st.booleans())
def test_all_metrics_of_the_calculator(seed, rows, classes, alone):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 3, generator=generator), torch.randn(rows + 4, 3, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    others = torch.randint(0, classes, (rows + 4,), generator=generator)
    labels[1] = others[0] = labels[0]
    reference = () if alone else (y, others)
    gallery = {} if alone else {"gallery": y, "gallery_labels": others}
    theirs = pml(x, labels, *reference)
    found = evaluate_retrieval(x, labels, metrics=tuple(THEIR_NAMES.values()), metric="euclidean", **gallery).mean
    for name, our_name in THEIR_NAMES.items():
        assert found[our_name] == pytest.approx(theirs[name], abs=1e-5), name


# --- torchmetrics -----------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_torchmetrics(seed, k):
    theirs = pytest.importorskip("torchmetrics.functional.retrieval", reason="torchmetrics is not installed")
    x, y, scores, relevant = ranked(seed)
    scores = scores - scores.min() + 1  # see test_retrieval_defects
    functions = {
        f"recall@{k}": lambda s, r: theirs.retrieval_hit_rate(s, r, top_k=k),
        f"coverage@{k}": lambda s, r: theirs.retrieval_recall(s, r, top_k=k),
        f"precision@{k}": lambda s, r: theirs.retrieval_precision(s, r, top_k=k),
        f"mrr@{k}": lambda s, r: theirs.retrieval_reciprocal_rank(s, r, top_k=k),
        f"ndcg@{k}": lambda s, r: theirs.retrieval_normalized_dcg(s, r.long(), top_k=k),
        "r_precision": theirs.retrieval_r_precision,
        "map": theirs.retrieval_average_precision,
        "mrr": theirs.retrieval_reciprocal_rank,
    }
    found = ours(x, y, relevant, tuple(functions), ())
    for name, function in functions.items():
        expected = torch.stack([function(s, r) for s, r in zip(scores, relevant, strict=True)]).mean()
        assert found[name] == pytest.approx(float(expected), abs=1e-5), name


# --- scikit-learn -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.booleans())
def test_scikit_learn(seed, k, tied):
    from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

    generator = torch.Generator().manual_seed(seed)
    # Small integers tie: scikit-learn averages the gains of equal scores too.
    x = torch.randint(-2, 3, (7, 3), generator=generator).float() if tied else torch.randn(7, 3, generator=generator)
    y = torch.randint(-2, 3, (12, 3), generator=generator).float() if tied else torch.randn(12, 3, generator=generator)
    grades = torch.randint(0, 4, (7, 12), generator=generator)
    grades[:, 3] += 1
    lists = [dict(enumerate(map(float, row))) for row in grades.tolist()]
    found = evaluate_retrieval(
        x, gallery=y, relevant=lists, ks=(k,), metrics=("ndcg", "map"), metric="inner_product"
    ).mean
    scores = (x @ y.T).numpy()
    assert found[f"ndcg@{k}"] == pytest.approx(ndcg_score(grades.numpy(), scores, k=k), abs=1e-5)
    if not tied:  # there it takes the worst rank of a tie
        expected = label_ranking_average_precision_score((grades > 0).numpy(), scores)
        assert found["map"] == pytest.approx(expected, abs=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_votes_of_two_classes(seed, k):
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(12, 3, generator=generator), torch.randn(9, 3, generator=generator)
    labels, truth = (torch.randint(0, 2, (n,), generator=generator) for n in (12, 9))
    labels[:2] = torch.tensor([0, 1])
    k = 2 * k - 1  # no draws
    model = KNeighborsClassifier(k, algorithm="brute").fit(x, labels)
    options = {"ks": (k,), "metrics": ("knn",), "metric": "euclidean"}
    found = evaluate_retrieval(y, truth, gallery=x, gallery_labels=labels, **options).mean
    assert found[f"knn@{k}"] == pytest.approx(model.score(y, truth), abs=1e-6)


# --- ranx -------------------------------------------------------------------------------------------------------------

# Each metric of a graded ranking, as ranx 0.3.21 gives them: two queries, of which the second finds its one item third.
RANX = {
    "recall@1": [1.0, 0.0],
    "coverage@2": [0.5, 0.0],
    "precision@2": [0.5, 0.0],
    "r_precision": [0.5, 0.0],
    "map": [0.83333333, 0.33333333],
    "map@2": [0.5, 0.0],
    "mrr": [1.0, 0.33333333],
    "mrr@2": [1.0, 0.0],
    "ndcg@2": [0.38009377, 0.0],
}
RANX_NAMES = {"recall@1": "hit_rate@1", "coverage@2": "recall@2", "r_precision": "r-precision"}


def test_values_of_ranx():
    gallery = torch.tensor([[0.9, 0.7], [0.1, 0.8], [0.8, 0.9]])
    options = {"ks": (), "metrics": tuple(RANX), "metric": "inner_product"}
    result = evaluate_retrieval(torch.eye(2), gallery=gallery, relevant=[{0: 1.0, 1: 2.0}, {0: 1.0}], **options)
    for name, values in RANX.items():
        assert result.per_query[name].tolist() == pytest.approx(values, abs=1e-6), name
    # Burges's gain is 2^g - 1 of the grade.
    burges = evaluate_retrieval(torch.eye(2), gallery=gallery, relevant=[{0: 1.0, 1: 3.0}, {0: 1.0}], **options)
    assert burges.per_query["ndcg@2"].tolist() == pytest.approx([0.27541155, 0.0], abs=1e-6)


@pytest.mark.slow
def test_ranx():
    ranx = pytest.importorskip("ranx", reason="the extra bench is not installed: ranx")
    values = {name: [] for name in RANX}
    for seed in range(10):
        x, y, scores, relevant = ranked(seed)
        qrels = ranx.Qrels(
            {f"q{i}": {f"d{j}": 1 for j in r.nonzero().flatten().tolist()} for i, r in enumerate(relevant)}
        )
        of_run = {f"q{i}": {f"d{j}": s for j, s in enumerate(row)} for i, row in enumerate(scores.tolist())}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numba's, of its compilation
            theirs = ranx.evaluate(qrels, ranx.Run(of_run), [RANX_NAMES.get(name, name) for name in RANX])
        found = ours(x, y, relevant, tuple(RANX), ())
        for name in RANX:
            assert found[name] == pytest.approx(theirs[RANX_NAMES.get(name, name)], abs=1e-5), name
            values[name].append(found[name])
    assert all(len(set(np.round(of_name, 6))) > 1 for of_name in values.values())
