"""What others get wrong, shown on what is installed, and ours beside it.

A defect that a new version mends makes its test fail: the claim goes then. Defects of losses and miners are elsewhere.
"""

import itertools
import warnings

import pytest
import torch

from contrastive import _faiss
from contrastive.errors import InputError
from contrastive.metrics import average_precision, precision_at, reciprocal_rank
from contrastive.retrieval import evaluate_retrieval

needs_faiss = pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
NOTHING = torch.zeros(1, 5, dtype=torch.bool)


# --- pytorch-metric-learning 2.9 --------------------------------------------------------------------------------------

NAMES = ("mean_average_precision", "mean_reciprocal_rank", "precision_at_1", "r_precision")


def calculator(x, labels, *reference, k=None):
    """With its default search, which is FAISS'."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    return AccuracyCalculator(include=NAMES, k=k, device=torch.device("cpu")).get_accuracy(x, labels, *reference)


def ours(x, labels, y=None, of_y=None):
    options = {"gallery": y, "gallery_labels": of_y, "metric": "euclidean"}
    return evaluate_retrieval(x, labels, metrics=("map", "mrr", "precision@1", "r_precision"), **options).mean


@needs_faiss
class TestTheCalculator:
    def test_a_k_beyond_the_gallery(self):
        # What is not there has index -1, which reads the label of the last row.
        x, labels = torch.randn(10, 4), torch.arange(10) // 5
        assert calculator(x, labels, k=20)["mean_average_precision"] > 1.2
        assert calculator(x, labels, k=100)["mean_average_precision"] > 4.12
        for name in ("map@20", "recall@10", "precision@100"):
            with pytest.raises(InputError, match="expected a k of 1 to 9"):
                evaluate_retrieval(x, labels, metrics=(name,))
        assert all(0 <= value <= 1 for value in ours(x, labels).values())

    def test_classes_that_float32_cannot_tell_apart(self):
        x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        labels = torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1])
        assert calculator(x, labels)["precision_at_1"] == 1.0
        assert ours(x, labels)["precision@1"] == 0.0

    def test_embeddings_that_are_no_numbers(self):
        x, labels = torch.randn(10, 4), torch.arange(10) % 5
        broken = x.clone()
        broken[3] = torch.nan
        assert calculator(x * torch.nan, labels, x, labels)["precision_at_1"] == pytest.approx(0.2)
        assert 0 < calculator(x, labels, broken, labels)["mean_average_precision"] < 1
        with pytest.raises(ValueError, match="must be equal to query"):  # refused, and the reason is another
            calculator(broken, labels)
        for queries, gallery in ((x * torch.nan, x), (x, broken)):
            with pytest.raises(InputError, match="holds NaN or infinity in 1"):
                evaluate_retrieval(queries, labels, gallery=gallery, gallery_labels=labels)

    def test_no_queries(self):
        x, labels = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
        with pytest.raises(RuntimeError, match="cannot reshape"):
            calculator(x[:0], labels[:0], x, labels)
        message = r"embeddings has shape \(0, 2\), expected \[rows, dim\], neither of them 0"
        with pytest.raises(InputError, match=message):
            evaluate_retrieval(x[:0], labels[:0], gallery=x, gallery_labels=labels)

    def test_nothing_to_be_found(self):
        x, labels = torch.randn(4, 2), torch.arange(4)
        assert all(value != value for value in calculator(x, labels).values())
        with pytest.raises(InputError, match="no query has a relevant item"):
            ours(x, labels)

    def test_the_order_of_the_data(self):
        # Collapsed embeddings read chance, 9 of 19, in whatever order the classes come.
        x, labels = torch.ones(20, 4), torch.arange(20)
        theirs = [calculator(x, of_x)["precision_at_1"] for of_x in (labels // 10, labels % 2)]
        assert theirs == [pytest.approx(0.5), pytest.approx(0.45)]
        for of_x in (labels // 10, labels % 2):
            assert ours(x, of_x)["precision@1"] == pytest.approx(9 / 19)

    def test_strings(self):
        x, labels = torch.eye(4).repeat(2, 1), [*"abcdabcd"]
        with pytest.raises(AttributeError):
            calculator(x, labels)
        assert ours(x, labels)["map"] == 1.0

    def test_recall_at_k_has_two_meanings(self):
        # It has neither (issue 283): both are here, by name.
        x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        found = evaluate_retrieval(x, torch.zeros(4, dtype=torch.int64), ks=(1,), metrics=("recall", "coverage")).mean
        assert found == {"recall@1": 1.0, "coverage@1": pytest.approx(1 / 3)}


# --- torchmetrics 1.9 -------------------------------------------------------------------------------------------------


@pytest.fixture
def torchmetrics():
    return pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")


class TestTorchmetrics:
    def test_scores_that_are_not_positive(self, torchmetrics):
        # As cosines are. The one relevant item ranks first, and is none for half of the metrics.
        of = torchmetrics.functional.retrieval
        scores, relevant = torch.tensor([-0.5, -0.8]), torch.tensor([True, False])
        assert float(of.retrieval_average_precision(scores, relevant)) == 0.0
        assert float(of.retrieval_reciprocal_rank(scores, relevant)) == 0.0
        assert float(of.retrieval_precision(scores, relevant, top_k=1)) == 0.0
        assert float(of.retrieval_recall(scores, relevant, top_k=1)) == 0.0
        assert float(of.retrieval_hit_rate(scores, relevant, top_k=1)) == 1.0
        gallery = torch.tensor([[-0.5, 1.0], [-0.8, 1.0]])
        names = ("map", "mrr", "precision@1", "coverage@1", "recall@1")
        options = {"metrics": names, "metric": "inner_product"}
        found = evaluate_retrieval(torch.eye(2)[:1], gallery=gallery, relevant=[[0]], **options).mean
        assert found == dict.fromkeys(names, 1.0)

    def test_average_precision_cut_at_k(self, torchmetrics):
        # It divides by what was found: 1.0 with one of two relevant items.
        scores, relevant = torch.arange(5, 0, -1).float(), torch.tensor([True, False, False, False, True])
        theirs = torchmetrics.functional.retrieval.retrieval_average_precision(scores, relevant, top_k=1)
        assert float(theirs) == 1.0
        assert float(average_precision(relevant[None, :1], torch.tensor([2]))) == 0.5

    def test_a_query_without_a_relevant_item(self, torchmetrics):
        # It counts as 0 in the mean; here it is left out, and counted.
        scores, relevant = torch.tensor([0.9, 0.1, 0.9, 0.1]), torch.tensor([True, False, False, False])
        theirs = torchmetrics.retrieval.RetrievalMAP()(scores, relevant, indexes=torch.tensor([0, 0, 1, 1]))
        assert float(theirs) == 0.5
        x = torch.eye(2)
        result = evaluate_retrieval(x, gallery=x.clone(), relevant=[[0], []], metrics=("map",))
        assert (result.mean["map"], result.excluded) == (1.0, 1)

    def test_equal_scores(self, torchmetrics):
        # One of six equal items is relevant: a hit at 1 or none, by its place.
        of = torchmetrics.functional.retrieval
        relevant = torch.eye(6, dtype=torch.bool)
        hits = {float(of.retrieval_hit_rate(torch.ones(6), row, top_k=1)) for row in relevant}
        ranks = {float(of.retrieval_reciprocal_rank(torch.ones(6), row)) for row in relevant}
        assert hits == {0.0, 1.0}
        assert len(ranks) == 6
        for item in range(6):
            check_one_of_six(item)

    def test_scores_that_are_no_numbers(self, torchmetrics):
        scores, relevant = torch.tensor([torch.nan, 1.0, 2.0]), torch.tensor([False, True, False])
        assert float(torchmetrics.functional.retrieval.retrieval_average_precision(scores, relevant)) == pytest.approx(
            1 / 3
        )
        gallery = torch.tensor([[torch.nan], [1.0], [2.0]])
        with pytest.raises(InputError, match="gallery holds NaN or infinity in 1 row, the first is row 0"):
            evaluate_retrieval(torch.ones(1, 1), gallery=gallery, relevant=[[1]], metrics=("map",))


def check_one_of_six(item):
    names = ("recall@1", "mrr")
    found = evaluate_retrieval(torch.ones(1, 2), gallery=torch.ones(6, 2), relevant=[[item]], metrics=names).mean
    assert found["recall@1"] == pytest.approx(1 / 6)
    assert found["mrr"] == pytest.approx(sum(1 / rank for rank in range(1, 7)) / 6)


# --- ranx 0.3 ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
class TestRanx:
    @pytest.fixture
    def reciprocal_rank(self):
        ranx = pytest.importorskip("ranx", reason="the extra bench is not installed: ranx")

        def of(relevant, scores):
            runs = {name: {f"d{j}": score for j, score in enumerate(row)} for name, row in scores.items()}
            judged = {name: {f"d{j}": 1 for j in items} for name, items in relevant.items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numba's, of its compilation
                return float(ranx.evaluate(ranx.Qrels(judged), ranx.Run(runs), "mrr"))

        return of

    def test_equal_scores(self, reciprocal_rank):
        # The order in which they are written decides.
        found = [reciprocal_rank({"q": [item]}, {"q": [1.0] * 6}) for item in range(6)]
        assert found == pytest.approx([1 / rank for rank in range(1, 7)])
        for item in range(6):
            check_one_of_six(item)

    def test_a_query_without_a_relevant_item(self, reciprocal_rank):
        assert reciprocal_rank({"a": [0], "b": []}, {"a": [0.9, 0.1], "b": [0.1, 0.9]}) == 0.5
        x = torch.eye(2)
        result = evaluate_retrieval(x, gallery=x.clone(), relevant=[[0], []], metrics=("mrr",))
        assert (result.mean["mrr"], result.excluded) == (1.0, 1)

    def test_scores_that_are_no_numbers(self, reciprocal_rank):
        assert reciprocal_rank({"q": [1]}, {"q": [float("nan"), 0.8]}) == 1.0
        gallery = torch.tensor([[torch.nan], [0.8]])
        with pytest.raises(InputError, match="gallery holds NaN or infinity in 1 row, the first is row 0"):
            evaluate_retrieval(torch.ones(1, 1), gallery=gallery, relevant=[[1]], metrics=("mrr",))


# --- scikit-learn 1.9 -------------------------------------------------------------------------------------------------


class TestScikitLearn:
    def test_average_precision_of_equal_scores(self):
        # Every relevant item has the worst rank of its tie: collapsed embeddings read 1/6, and chance is 0.41.
        from sklearn.metrics import label_ranking_average_precision_score

        relevant = torch.eye(6).long()
        assert label_ranking_average_precision_score(relevant[:1].numpy(), torch.ones(1, 6).numpy()) == (
            pytest.approx(1 / 6)
        )
        found = evaluate_retrieval(torch.ones(1, 2), gallery=torch.ones(6, 2), relevant=[[0]], metrics=("map",)).mean
        assert found["map"] == pytest.approx(sum(1 / rank for rank in range(1, 7)) / 6)

    def test_votes_that_draw(self):
        # The class that sorts first wins: the same query is right or wrong by what its classes are called.
        from sklearn.neighbors import KNeighborsClassifier

        x = torch.tensor([[0.0], [1.0]])
        for place, (labels, theirs) in itertools.product((0.5, 0.4), (([0, 1], 1.0), ([1, 0], 0.0))):
            query = torch.tensor([[place]])
            model = KNeighborsClassifier(2, algorithm="brute").fit(x, labels)
            truth = torch.tensor(labels[:1])
            assert model.score(query, truth) == theirs
            options = {"metrics": ("knn@2",), "metric": "euclidean"}
            found = evaluate_retrieval(query, truth, gallery=x, gallery_labels=torch.tensor(labels), **options).mean
            assert found["knn@2"] == 0.5


# --- OpenMetricLearning: not among the extras, so that only ours is shown ---------------------------------------------


def test_where_open_metric_learning_is_not_right():
    # There precision is NaN without a relevant item, and cmc and map read 1.0 if nothing was retrieved.
    assert float(precision_at(NOTHING, 5)) == float(reciprocal_rank(NOTHING)) == 0.0
    assert float(average_precision(NOTHING, torch.tensor([3]))) == 0.0
    # map@5 is 1.0 with one of ten relevant items found.
    assert float(average_precision(torch.tensor([[True] + [False] * 4]), torch.tensor([10]))) == pytest.approx(0.1)
