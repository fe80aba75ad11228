"""What is relevant to what, and evaluations by it: labels, several labels, lists; ties in any order of the data."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import refused

from contrastive import _faiss, neighbours
from contrastive.errors import InputError
from contrastive.intervals import bootstrap_interval
from contrastive.relevance import Judged, SharedLabels
from contrastive.retrieval import evaluate_retrieval

needs_faiss = pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
backends = pytest.mark.parametrize("backend", ["torch", pytest.param("faiss", marks=needs_faiss)])

ALL = ("recall", "coverage", "precision", "ndcg", "r_precision", "map@r", "map", "mrr", "map@2", "mrr@2")


def slow_metrics(ranked, k):
    """Of one query from the gains of all items in order of rank."""
    hits = [g > 0 for g in ranked]
    r = sum(hits)
    precision = [sum(hits[: j + 1]) / (j + 1) for j in range(len(hits))]
    reciprocal = [1 / (j + 1) if hit else 0.0 for j, hit in enumerate(hits)]
    dcg = [sum(g / math.log2(j + 2) for j, g in enumerate(of[:k])) for of in (ranked, sorted(ranked, reverse=True))]
    return {
        f"recall@{k}": float(any(hits[:k])),
        f"cmc@{k}": float(any(hits[:k])),
        f"coverage@{k}": sum(hits[:k]) / r,
        f"precision@{k}": sum(hits[:k]) / k,
        f"ndcg@{k}": dcg[0] / dcg[1],
        "r_precision": sum(hits[:r]) / r,
        "map@r": sum(precision[j] for j in range(r) if hits[j]) / r,
        "map": sum(p for p, hit in zip(precision, hits, strict=True) if hit) / r,
        "map@2": sum(p for p, hit in zip(precision[:2], hits[:2], strict=True) if hit) / r,
        "mrr": max(reciprocal),
        "mrr@2": max(reciprocal[:2]),
    }


# --- ties -------------------------------------------------------------------------------------------------------------


@backends
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.sampled_from(["inner_product", "euclidean"]))
def test_ties_are_the_mean_over_all_orders_of_the_gallery(backend, seed, k, metric):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (3, 2), generator=generator).float()
    y = torch.randint(-1, 2, (4, 2), generator=generator).float()  # their mean is exact
    grades = torch.randint(0, 3, (3, 4), generator=generator)
    grades[0, 0] = 1
    relevant = [{j: float(g) for j, g in enumerate(row) if g} for row in grades.tolist()]
    result = evaluate_retrieval(
        x, gallery=y, relevant=relevant, ks=(k,), metrics=("cmc", *ALL), metric=metric, backend=backend
    )
    scores = x @ y.T if metric == "inner_product" else -(x[:, None] - y).square().sum(2)
    expected = []
    for i in result.queries.tolist():
        of_orders = []
        for order in itertools.permutations(range(4)):
            ranked = sorted(order, key=lambda j: -scores[i, j].item())  # stable: ties in this order
            of_orders.append(slow_metrics([grades[i, j].item() for j in ranked], k))
        expected.append({name: sum(v[name] for v in of_orders) / len(of_orders) for name in of_orders[0]})
    # Without those that rank the whole gallery the ranking ends within ties, of which the rest has to be counted.
    cut = [name for name in result.mean if name not in ("map", "mrr", "r_precision", "map@r")]
    options = {"ks": (), "metrics": cut, "metric": metric, "backend": backend}
    assert evaluate_retrieval(x, gallery=y, relevant=relevant, **options).mean == pytest.approx(
        {name: result.mean[name] for name in cut}, abs=1e-6
    )
    for name, value in result.mean.items():
        assert value == pytest.approx(sum(v[name] for v in expected) / len(expected), abs=1e-5), name


@backends
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(6, 40))
def test_no_order_of_the_rows_matters(backend, seed, rows):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1, 2, (rows, 2), generator=generator).float()
    labels = torch.randint(0, 3, (rows,), generator=generator)
    labels[1] = labels[0]
    order = torch.randperm(rows, generator=generator)
    options = {"ks": (1, 3), "metrics": (*ALL, "knn"), "metric": "inner_product", "backend": backend}
    expected = evaluate_retrieval(x, labels, **options)
    assert evaluate_retrieval(x[order], labels[order], **options).mean == pytest.approx(expected.mean, abs=1e-6)
    by_class = labels.argsort()  # sorted by class, as data sets are
    found = evaluate_retrieval(x[by_class], labels[by_class], **options)
    assert found.mean == pytest.approx(expected.mean, abs=1e-6)
    assert found.tied == expected.tied > 0


@backends
@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
def test_collapsed_embeddings_read_chance(backend, metric):
    labels = torch.arange(300) // 10  # sorted by class: in the order of ids neighbours would be of the same class
    result = evaluate_retrieval(
        torch.full((300, 4), 0.3), labels, ks=(1, 10), metrics=(*ALL[:6], "knn"), metric=metric, backend=backend
    )
    share = 9 / 299
    for name in ("recall@1", "precision@1", "precision@10", "r_precision"):
        assert result.mean[name] == pytest.approx(share, rel=1e-5), name
    missed = math.prod((290 - i) / (299 - i) for i in range(10))
    assert result.mean["recall@10"] == pytest.approx(1 - missed, rel=1e-5)
    assert result.mean["coverage@10"] == pytest.approx(10 / 299, rel=1e-5)
    # All 30 classes draw, but for the query's, which has one item less.
    assert result.mean["knn@10"] == 0.0
    assert result.tied == 300


def test_ties_in_any_block(monkeypatch):
    x, labels = torch.randint(-1, 2, (60, 2)).float(), torch.randint(0, 4, (60,))
    options = {"ks": (1, 3), "metrics": (*ALL, "knn"), "backend": "torch"}
    expected = evaluate_retrieval(x, labels, **options)
    for name, value in (("BLOCK", 64), ("BLOCK_WIDTH", 16), ("GALLERY_KEPT", 1), ("GALLERY_BLOCK", 26)):
        monkeypatch.setattr(neighbours, name, value)
        assert evaluate_retrieval(x, labels, **options).mean == pytest.approx(expected.mean, abs=1e-6), name


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
def test_ties_where_products_round_as_they_are_cut(metric, monkeypatch):
    x, labels = torch.randn(40, 2)[torch.randint(40, (300,))], torch.randint(0, 4, (300,))  # equal rows
    options = {"ks": (1, 3), "metrics": (*ALL, "knn"), "backend": "torch", "metric": metric}
    expected = evaluate_retrieval(x, labels, **options)
    assert expected.tied > 0
    multiply, shapes = neighbours.similarity, set()

    def rounded(x, y, metric, squares=None, **rest):
        shapes.add((len(x), len(y)))
        return multiply(x, y, metric, squares, **rest) * (1 + (len(x) + len(y)) % 11 * 2.0**-20)

    monkeypatch.setattr(neighbours, "similarity", rounded)
    for names in ({"BLOCK": 2**15}, {"BLOCK_WIDTH": 100}, {"GALLERY_KEPT": 1, "GALLERY_BLOCK": 260}):
        for name, value in names.items():
            monkeypatch.setattr(neighbours, name, value)
        assert evaluate_retrieval(x, labels, **options).mean == pytest.approx(expected.mean, abs=1e-6), names
    assert len(shapes) > 1


# --- several labels, lists --------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_sets_matrices_and_lists_agree(seed, alone):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(9, 3, generator=generator), torch.randn(12, 3, generator=generator)
    a, b = (torch.rand(n, 4, generator=generator) < 0.4 for n in (9, 12))
    a[0, 1] = a[1, 1] = b[0, 1] = True
    words = [[f"label {j}" for j in row.nonzero().flatten().tolist()] for row in a]
    other = [{f"label {j}" for j in row.nonzero().flatten().tolist()} for row in b]
    shared = a.float() @ (a if alone else b).float().T
    lists = [{j: g for j, g in enumerate(row) if g and not (alone and i == j)} for i, row in enumerate(shared.tolist())]
    options = {"ks": (1, 4), "metrics": ALL}
    if alone:
        by_set, by_matrix = evaluate_retrieval(x, words, **options), evaluate_retrieval(x, a, **options)
        by_list = evaluate_retrieval(x, relevant=lists, **options)
    else:
        by_set = evaluate_retrieval(x, words, gallery=y, gallery_labels=other, **options)
        by_matrix = evaluate_retrieval(x, a.numpy(), gallery=y, gallery_labels=b.int().numpy(), **options)
        by_list = evaluate_retrieval(x, gallery=y, relevant=lists, **options)
    assert by_set.mean == pytest.approx(by_list.mean, abs=1e-6)
    assert by_matrix.mean == pytest.approx(by_list.mean, abs=1e-6)
    assert by_set.excluded == by_matrix.excluded == by_list.excluded == sum(not row for row in lists)
    assert by_set.class_interval == {}


def test_one_label_a_row_as_a_set_is_that_label():
    x, labels = torch.randn(40, 4), torch.randint(0, 7, (40,))
    options = {"ks": (1, 5), "metrics": ALL}
    expected = evaluate_retrieval(x, labels, **options)
    for several in ([[int(label)] for label in labels], torch.nn.functional.one_hot(labels)):
        assert evaluate_retrieval(x, several, **options).mean == pytest.approx(expected.mean, abs=1e-6)


def test_graded_lists_equal_scikit_learn():
    from sklearn.metrics import ndcg_score

    x, y = torch.randn(20, 5), torch.randn(30, 5)
    y[10:20] = y[:10]  # ties, which scikit-learn averages too
    grades = torch.randint(0, 4, (20, 30)).float() * (torch.rand(20, 30) < 0.3)
    grades[:, 0] = 1.0
    relevant = [dict(enumerate(row)) for row in grades.tolist()]
    result = evaluate_retrieval(
        x, gallery=y, relevant=relevant, ks=(1, 5, 30), metrics=("ndcg",), metric="inner_product"
    )
    for k in (1, 5, 30):
        assert result.mean[f"ndcg@{k}"] == pytest.approx(ndcg_score(grades, x @ y.T, k=k), abs=1e-6)


def test_captions_of_images_by_id():
    # Five captions an image, both encoded to one width: several relevant ids a query, and one the other way.
    images = torch.eye(4)
    captions = images.repeat_interleave(5, 0) + 0.1 * torch.randn(20, 4)
    ids = torch.randperm(1000)[:20]
    relevant = [ids[5 * i : 5 * i + 5].tolist() for i in range(4)]
    order = torch.randperm(20)
    result = evaluate_retrieval(
        images,
        gallery=captions[order],
        relevant=relevant,
        gallery_ids=ids[order],
        ks=(1, 5),
        metrics=("coverage", "map"),
    )
    assert result.mean == {"coverage@1": pytest.approx(0.2), "coverage@5": 1.0, "map": 1.0}
    back = evaluate_retrieval(captions, gallery=images, relevant=[[i // 5] for i in range(20)], ks=(1,))
    assert back.mean["recall@1"] == 1.0


def test_votes_equal_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    x, labels = torch.randn(200, 6), torch.randint(0, 2, (200,))
    y, truth = torch.randn(150, 6), torch.randint(0, 2, (150,))
    result = evaluate_retrieval(y, truth, gallery=x, gallery_labels=labels, ks=(1, 5, 21), metrics=("knn",))
    for k in (1, 5, 21):  # odd, of two classes: no draws
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x, labels)
        assert result.mean[f"knn@{k}"] == pytest.approx(model.score(y, truth), abs=1e-6)


# --- names, counts, intervals -----------------------------------------------------------------------------------------


def test_names_of_metrics():
    x, labels = torch.randn(12, 3), torch.arange(12) % 3
    result = evaluate_retrieval(x, labels, ks=(1, 2), metrics=("recall", "mrr", "ndcg@3", "recall@2", "precision@1"))
    assert list(result.mean) == ["recall@1", "recall@2", "mrr", "ndcg@3", "precision@1"]
    # The default k are dropped where a metric at k is wanted, and only there.
    assert evaluate_retrieval(x, labels, metrics=("map",)).dropped == ()
    assert evaluate_retrieval(x, labels, metrics=("coverage",)).dropped == (100,)
    for wrong in (
        "recal",
        "recall@",
        "recall@0",
        "recall@12",
        "map@12",
        "map@q",
        "mrr@0",
        "r_precision@2",
        "recall@-1",
    ):
        with pytest.raises(InputError, match=f"evaluate_retrieval: metrics hold '{wrong}'"):
            evaluate_retrieval(x, labels, metrics=("recall", wrong))
    with pytest.raises(InputError, match="metrics hold none"):
        evaluate_retrieval(x, labels, metrics=())


def test_what_does_not_fit_is_refused():
    x = torch.randn(3, 2)
    for options, message in [
        ({"relevant": [[1], [0]]}, "relevant holds 2 lists for 3 queries"),
        ({"relevant": [[1], [0], [3]]}, "relevant names id 3 for query 2, expected ids of the gallery"),
        ({"relevant": [[1], [0], [-1]]}, "relevant names id -1 for query 2"),
        ({"relevant": [{1: -1.0}, {}, {}]}, "relevant grades id 1 of query 0 with -1.0"),
        ({"relevant": [{1: math.nan}, {}, {}]}, "relevant grades id 1 of query 0 with nan"),
        ({"relevant": [[0], [1], []]}, "no query has a relevant item"),  # each its own
        ({"relevant": [[1], [0], []], "labels": [0, 0, 0]}, "relevant and labels are given"),
        ({"relevant": [[1], [0], []], "metrics": ("knn",)}, "metrics hold 'knn', expected one label a row"),
        ({"relevant": [[1], [0], []], "gallery_ids": torch.tensor([1, 1, 2])}, "gallery_ids hold 1 more than once"),
        (
            {"relevant": [[1], [0], []], "gallery_ids": torch.tensor([1, 2])},
            "gallery_ids have dtype",
        ),
        ({"relevant": [[1], [0], []], "gallery_ids": torch.tensor([5, 6, 7])}, "relevant names id 1 for query 0"),
        ({"labels": [["a"], ["b"], ["c"]]}, r"no query has a relevant item \(no two rows share a label\)"),
        ({"labels": [["a"], ["a"]]}, "2 labels for 3 rows"),
        ({"labels": [["a"], [1], ["a"]]}, "label sets hold strings and integers"),
        ({"labels": torch.full((3, 2), 2)}, "labels have .* expected a matrix"),
        ({"labels": torch.full((3, 2), 0.5)}, "labels have .* expected a matrix"),
        ({"labels": [["a"]] * 3, "gallery": x + 1, "gallery_labels": ["a"] * 3}, "gallery_labels have one label a row"),
        ({"labels": ["a"] * 3, "gallery": x + 1, "gallery_labels": [["a"]] * 3}, "labels have one label a row"),
        (
            {"labels": torch.eye(3)[:, :2], "gallery": x + 1, "gallery_labels": torch.eye(3)},
            r"labels have shape \(3, 2\) and gallery_labels",
        ),
        ({"labels": torch.eye(3)[:, :2], "gallery": x + 1, "gallery_labels": [["a"]] * 3}, "a matrix in one of"),
    ]:
        with pytest.raises(InputError, match=f"evaluate_retrieval: {message}"):
            evaluate_retrieval(x, **options)


def test_what_is_of_another_kind_is_refused():
    """A mask would be read as the ids 0 and 1, 1.7 as 1, a word as its letters."""
    x = torch.randn(3, 2)
    for options, message in [
        ({"relevant": [[False, True, True], [0], []]}, "relevant holds False for query 0, expected integers"),
        ({"relevant": [[1.7], [0], []]}, "relevant holds 1.7 for query 0"),
        ({"relevant": [torch.tensor([True, False]), [0], []]}, "relevant holds tensor(True) for query 0"),
        ({"relevant": [["1"], [0], []]}, "relevant holds '1' for query 0"),
        ({"labels": [["a"], ["a"], "cat"]}, "row 2 of labels is 'cat', expected a collection"),
        ({"labels": [0.0, 1.0, 0.0]}, "row 0 of labels is 0.0, expected a collection"),
        ({"gallery": x + 1, "gallery_labels": [["a"]] * 3}, "labels have one label a row"),
        ({"labels": [0, 0, 1], "ks": (1.7,)}, "k is 1.7, expected 1 to 2"),
    ]:
        with refused("evaluate_retrieval", message):
            evaluate_retrieval(x, **options)


def test_an_empty_set_of_labels_is_excluded_and_counted():
    result = evaluate_retrieval(torch.randn(4, 2), [["a", "b"], ["b"], [], ["c"]], ks=(1,))
    assert result.excluded == 2
    assert result.queries.tolist() == [0, 1]


def test_gains_by_themselves():
    judged = Judged.of("test", [[2, 0], {1: 3.0, 2: 0.0}], queries=2, size=3)
    assert judged.gains(torch.tensor([1, 0]), torch.tensor([[0, 1, 2], [0, 1, 2]])).tolist() == [[0, 3, 0], [1, 0, 1]]
    assert judged.total.tolist() == [2, 1]
    assert judged.ideal(torch.tensor([1, 0, 1]), 3).tolist() == [[3, 0, 0], [1, 1, 0], [3, 0, 0]]
    shared = SharedLabels.of("test", [[1, 2], [2]], None, rows=(2, 2))
    assert shared.ideal(torch.tensor([0, 1]), 5).tolist() == [[1, 0], [1, 0]]  # itself is left out


def test_the_interval_over_classes_is_wider_where_classes_fail_together():
    values = torch.tensor([[0.0]] * 50 + [[1.0]] * 50, dtype=torch.float64)
    queries = bootstrap_interval(values)
    classes = bootstrap_interval(values, groups=torch.arange(100) // 10)
    assert float(classes.diff(dim=1)) > 2 * float(queries.diff(dim=1))
    # Every query a class of its own is the interval over queries.
    torch.testing.assert_close(bootstrap_interval(values, groups=torch.arange(100)), queries)
    # Classes of unequal size: the mean over queries of the classes drawn.
    values = torch.tensor([[0.0], [1.0], [1.0], [1.0]], dtype=torch.float64)
    generator, member = np.random.default_rng(0), [0, 1, 1, 1]
    means = []
    for _ in range(1000):
        drawn = np.bincount(generator.integers(0, 2, 2), minlength=2)[member]
        means.append((drawn * values[:, 0].numpy()).sum() / drawn.sum())
    found = bootstrap_interval(values, groups=torch.tensor(member))
    torch.testing.assert_close(found[0], torch.tensor(np.quantile(means, [0.025, 0.975])))
    x = torch.randn(60, 4)
    labels = torch.arange(60) % 6
    result = evaluate_retrieval(x, labels, ks=(1,))
    assert set(result.class_interval) == set(result.interval) == set(result.mean)
    assert evaluate_retrieval(x, labels * 0, ks=(1,)).class_interval == {}


@pytest.mark.parametrize("grade", [1e39, 1e-46])
def test_grades_that_float32_does_not_hold_are_refused(grade):
    with pytest.raises(InputError, match=rf"item of query 1 with {re.escape(str(grade))}, expected 0 or a number"):
        evaluate_retrieval(
            torch.eye(2), gallery=torch.eye(2), relevant=[{0: 1.0}, {0: 1.0, 1: grade}], metrics=("ndcg",), ks=(1,)
        )
