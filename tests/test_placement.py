"""Average precision and reciprocal rank of the whole gallery, counted, beside a ranking's and those of fractions."""

from fractions import Fraction
from math import comb

import pytest
import torch

from contrastive import neighbours
from contrastive.metrics import average_precision, reciprocal_rank
from contrastive.retrieval import evaluate_retrieval, search

WHOLE = {"metrics": ("map", "mrr"), "ks": ()}


def ranked(x, labels, *, gallery=None, gallery_labels=None, metric="cosine"):
    """The same of a ranking of everything; no ties."""
    alone = gallery is None
    y, of_y = (x, labels) if alone else (gallery, gallery_labels)
    ids = search(x, y, len(y) - alone, exclude_self=alone, metric=metric).ids
    hits = of_y[ids] == labels[:, None]
    counts = hits.any(1)
    hits = hits[counts]
    return {"map": average_precision(hits, hits.sum(1)), "mrr": reciprocal_rank(hits)}


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sides", ["alone", "gallery"])
def test_counted_is_ranked(metric, dtype, sides, monkeypatch):
    x, y = torch.randn(90, 8, dtype=dtype), torch.randn(200, 8, dtype=dtype)
    labels, of_y = torch.randint(0, 6, (90,)), torch.randint(0, 6, (200,))
    more = {} if sides == "alone" else {"gallery": y, "gallery_labels": of_y}
    expected = ranked(x, labels, metric=metric, **more)
    for block in (2**22, 2**9):  # some queries at a time
        monkeypatch.setattr("contrastive.assessment.BLOCK", block)
        found = evaluate_retrieval(x, labels, metric=metric, **more, **WHOLE)
        for name, values in expected.items():
            torch.testing.assert_close(found.per_query[name], values, rtol=1e-5, atol=1e-6)
        assert found.tied == 0


def test_nothing_is_ranked_but_what_other_metrics_ask_for(monkeypatch):
    rankings, asked = neighbours.Search.rankings, []

    def seen(search, k, **options):
        asked.append(k)
        return rankings(search, k, **options)

    monkeypatch.setattr(neighbours.Search, "rankings", seen)
    evaluate_retrieval(torch.randn(50, 4), torch.arange(50) % 5, ks=(3,), metrics=("recall", "map", "mrr"))
    assert asked == [4]  # one more shows a tie at the cut


def test_of_collapsed_embeddings_every_order_is_as_likely():
    labels = torch.arange(40) % 4
    found = evaluate_retrieval(torch.ones(40, 3), labels, **WHOLE)
    t, h = 39, 9  # all others, and those of them that are relevant
    first = [Fraction(comb(t - m, h - 1), comb(t, h)) for m in range(1, t - h + 2)]
    reciprocal = sum(chance / m for m, chance in enumerate(first, 1))
    precision = sum(Fraction(1, t) * (1 + Fraction((m - 1) * (h - 1), t - 1)) / m for m in range(1, t + 1))
    assert found.mean["mrr"] == pytest.approx(float(reciprocal), rel=1e-6)
    assert found.mean["map"] == pytest.approx(float(precision), rel=1e-6)
    assert found.tied == 40


def test_a_query_is_tied_by_its_relevant_items_only():
    gallery = torch.tensor([[3.0], [2.0], [1.0], [1.0]])
    options = {"gallery": gallery, "metric": "inner_product", **WHOLE}
    assert evaluate_retrieval(torch.ones(1, 1), relevant=[[1]], **options).tied == 0
    found = evaluate_retrieval(torch.ones(1, 1), relevant=[[2]], **options)
    assert found.tied == 1
    assert found.mean["map"] == pytest.approx((1 / 3 + 1 / 4) / 2)


def test_sets_of_labels_and_lists_name_the_same_pairs(monkeypatch):
    monkeypatch.setattr("contrastive.relevance._BLOCK", 64)  # sets of two queries at a time
    x = torch.randn(30, 4)
    sets = [[i % 3, 3 + i % 4] for i in range(30)]
    lists = [[j for j in range(30) if set(sets[i]) & set(sets[j])] for i in range(30)]
    expected = evaluate_retrieval(x, relevant=lists, **WHOLE)
    found = evaluate_retrieval(x, sets, **WHOLE)
    for name, values in expected.per_query.items():
        assert torch.equal(found.per_query[name], values)
