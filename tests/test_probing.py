"""Probes: k-NN against loops and scikit-learn, the fitted ones by what they must and must not be able to read."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from contrastive import _faiss, probing
from contrastive.errors import InputError
from contrastive.probing import cluster_accuracy, knn_accuracy, knn_vote, linear_accuracy, mlp_accuracy

PROBES = [knn_accuracy, linear_accuracy, mlp_accuracy]
probes = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
fitted = pytest.mark.parametrize("probe", PROBES[1:], ids=lambda probe: probe.__name__)


@pytest.fixture
def models(monkeypatch):
    """The classifiers that were fitted."""
    seen = []
    fit = probing._fitted_accuracy
    monkeypatch.setattr(probing, "_fitted_accuracy", lambda model, *rest: seen.append(model) or fit(model, *rest))
    return seen


def blobs(rows, classes=3, dim=6, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return centres[labels] + noise * torch.randn(rows, dim, generator=generator), labels


# --- k nearest neighbours ---------------------------------------------------------------------------------------------


def slow_knn_accuracy(train, train_labels, test, test_labels, k, temperature):
    right = 0
    for x, truth in zip(test.tolist(), test_labels.tolist(), strict=True):
        cosines = []
        for y, label in zip(train.tolist(), train_labels.tolist(), strict=True):
            lengths = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
            cosines.append((sum(a * b for a, b in zip(x, y, strict=True)) / lengths, label))
        votes = {}
        for cosine, label in sorted(cosines, reverse=True)[:k]:
            votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=votes.get) == truth
    return right / len(test)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (7, 0.01), (7, 10.0), (500, 0.2)])
def test_knn_accuracy_equals_the_loop(backend, k, temperature):
    if backend == "faiss" and not _faiss.available():
        pytest.skip("faiss is not installed")
    x, labels = blobs(80, noise=2.0)
    y, truth = blobs(60, noise=2.0, seed=1)
    accuracy = knn_accuracy(x, labels, y, truth, k=k, temperature=temperature, backend=backend)
    expected = slow_knn_accuracy(x, labels, y, truth, k, temperature)
    assert accuracy == expected
    assert type(accuracy) is float
    assert 0.34 < accuracy < 0.99


def test_the_default_is_twenty_neighbours_at_a_tenth():
    x, labels = blobs(200, noise=2.0)
    y, truth = blobs(150, noise=2.0, seed=1)
    assert knn_accuracy(x, labels, y, truth) == slow_knn_accuracy(x, labels, y, truth, 20, 0.1)


def test_unweighted_votes_are_scikit_learns():
    from sklearn.neighbors import KNeighborsClassifier

    x, labels = blobs(300, classes=2, noise=2.0)
    y, truth = blobs(200, classes=2, noise=2.0, seed=1)
    expected = KNeighborsClassifier(9, metric="cosine", algorithm="brute").fit(x, labels).score(y, truth)
    assert knn_accuracy(x, labels, y, truth, k=9, temperature=1e6) == expected  # odd k, two classes: no tie


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2**31))
def test_votes_do_not_depend_on_strips_or_shifts(queries, k, seed):
    generator = torch.Generator().manual_seed(seed)
    neighbours = torch.randint(0, 4, (queries, k), generator=generator)
    scores = torch.rand(queries, k, generator=generator).sort(dim=1, descending=True).values.double()
    chosen = knn_vote(neighbours, scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "RANKING_BLOCK", 1)
        assert torch.equal(knn_vote(neighbours, scores), chosen)
    assert torch.equal(knn_vote(neighbours, scores - 3.0), chosen)
    for row, weights, label in zip(neighbours.tolist(), (scores / 0.1).exp().tolist(), chosen.tolist(), strict=True):
        votes = {c: sum(w for r, w in zip(row, weights, strict=True) if r == c) for c in row}
        assert votes[label] == pytest.approx(max(votes.values()))


def test_of_equal_votes_the_nearest_wins():
    neighbours = torch.tensor([[5, 2], [2, 5]])
    assert knn_vote(neighbours, torch.zeros(2, 2)).tolist() == [5, 2]


def test_small_temperatures_do_not_overflow():
    neighbours = torch.tensor([[1, 0, 0]])
    scores = torch.tensor([[1.0, 0.9, 0.9]])
    assert knn_vote(neighbours, scores, temperature=1e-6).tolist() == [1]
    assert knn_vote(neighbours, torch.tensor([[1.0, 0.9999, 0.9999]]), temperature=1e-3).tolist() == [0]
    assert knn_vote(neighbours, -scores.flip(1) * 1e6, temperature=1e-6).tolist() == [1]
    assert knn_vote(neighbours, scores, temperature=1e6).tolist() == [0]


def test_options_of_knn_that_do_not_fit_are_refused():
    x, labels = blobs(10)
    for k in (0, -1):
        with pytest.raises(InputError, match=f"knn_accuracy: k is {k}, expected at least 1"):
            knn_accuracy(x, labels, x, labels, k=k)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match=f"temperature is {temperature}, expected a positive number"):
            knn_accuracy(x, labels, x, labels, temperature=temperature)


# --- all probes -------------------------------------------------------------------------------------------------------


@probes
def test_reads_what_is_there_and_nothing_else(probe):
    x, labels = blobs(600, noise=0.3)
    y, truth = blobs(300, noise=0.3, seed=1)
    assert probe(x, labels, y, truth) > 0.97
    shuffled = truth[torch.randperm(len(truth))]
    assert probe(x, labels, y, shuffled) < 0.5


@probes
def test_kinds_of_input_and_of_labels(probe):
    x, labels = blobs(90, noise=2.0)
    y, truth = blobs(60, noise=2.0, seed=1)
    expected = probe(x, labels, y, truth)
    before = x.clone(), labels.clone()
    assert probe(x.numpy(), labels.numpy(), y.numpy(), truth.tolist()) == expected
    # Labels far above 2**24, and strings: of the same order, hence the same to the last digit.
    assert probe(x, labels + 2**53, y, truth + 2**53) == expected
    assert probe(x, [f"c{c}" for c in labels], y, [f"c{c}" for c in truth]) == expected
    assert probe(torch.stack([x, x], 2)[:, :, 0], labels, y, truth) == expected
    assert probe(x.clone().requires_grad_(), labels, y, truth) == expected
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


@probes
def test_labels_unseen_in_training_are_wrong(probe):
    x, labels = blobs(200, classes=2, noise=0.1)
    y, truth = blobs(100, classes=2, noise=0.1, seed=1)
    accuracy = probe(x, labels, y, truth)
    assert accuracy == 1.0
    truth[:25] = 17
    assert probe(x, labels, y, truth) == 0.75
    assert probe(x, labels, y, torch.full((100,), -3)) == 0.0


@probes
def test_a_single_class(probe):
    x, _ = blobs(30)
    assert probe(x, [4] * 30, x, [4] * 15 + [2] * 15) == 0.5


@probes
def test_constant_columns_and_zero_rows(probe):
    x, labels = blobs(300, noise=0.3)
    y, truth = blobs(100, noise=0.3, seed=1)
    x = torch.cat([x, torch.zeros(300, 2), torch.full((300, 1), 0.1)], 1)
    y = torch.cat([y, torch.zeros(100, 2), torch.full((100, 1), 0.1)], 1)
    x[0], y[0] = 0.0, 0.0
    assert probe(x, labels, y, truth) > 0.95
    assert 0.0 <= probe(torch.ones(20, 3), labels[:20], torch.ones(10, 3), truth[:10]) <= 1.0


@probes
def test_no_warning_and_no_global_state(probe):
    x, labels = blobs(300, dim=20, noise=3.0)
    state, theirs = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe(x, labels, x, labels)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == theirs).all()  # noqa: NPY002


@probes
def test_what_does_not_fit_is_refused(probe):
    name = probe.__name__
    x, labels = blobs(20)
    with pytest.raises(InputError, match=rf"{name}: train have shape \(20, 6\) and test \(20, 3\), expected the same"):
        probe(x, labels, x[:, :3], labels)
    with pytest.raises(InputError, match=f"{name}: 19 test_labels for 20 rows"):
        probe(x, labels, x, labels[1:])
    with pytest.raises(InputError, match=f"{name}: train_labels have dtype torch.float32"):
        probe(x, labels.float(), x, labels)
    with pytest.raises(InputError, match=f"{name}: train_labels are list and test_labels are Tensor"):
        probe(x, ["a"] * 20, x, labels)
    broken = x.clone()
    broken[3:5] = torch.nan
    with pytest.raises(InputError, match=f"{name}: test holds NaN or infinity in 2 rows, the first is row 3"):
        probe(x, labels, broken, labels)
    with pytest.raises(InputError, match=rf"{name}: train has shape \(0, 6\)"):
        probe(x[:0], labels[:0], x, labels)


# --- fitted probes ----------------------------------------------------------------------------------------------------


@fitted
def test_the_same_seed_gives_the_same(probe):
    x, labels = blobs(300, noise=2.0)
    y, truth = blobs(200, noise=2.0, seed=1)
    assert probe(x, labels, y, truth, seed=3) == probe(x, labels, y, truth, seed=3)


def test_another_seed_gives_another_network():
    x, labels = blobs(120, noise=4.0)
    y, truth = blobs(400, noise=4.0, seed=1)
    assert len({mlp_accuracy(x, labels, y, truth, seed=seed) for seed in range(4)}) > 1


@fitted
def test_columns_are_standardised(probe):
    x, labels = blobs(300, noise=1.5)
    y, truth = blobs(200, noise=1.5, seed=1)
    scale, shift = torch.tensor([1e-6, 1e6, 1.0, 1e-3, 1e3, 1.0]), torch.tensor([0.0, 1e6, -5.0, 0.0, 0.0, 0.0])
    expected = probe(x.double(), labels, y.double(), truth)
    moved = probe(x.double() * scale + shift, labels, y.double() * scale + shift, truth)
    assert moved == pytest.approx(expected, abs=0.011)


def test_linear_equals_the_optimum_of_its_objective():
    # sum_i cross-entropy + |W|^2 / 2 (C = 1, the intercept free), minimised by another program.
    x, labels = blobs(150, noise=1.5)
    y, truth = blobs(300, noise=1.5, seed=1)
    mean, deviation = x.double().mean(0), x.double().std(0, correction=0)
    train, test = (x.double() - mean) / deviation, (y.double() - mean) / deviation
    weight = torch.zeros(3, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure():
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(train @ weight.T + bias, labels, reduction="sum")
        loss = loss + weight.square().sum() / 2
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = ((test @ weight.T + bias).argmax(1) == truth).double().mean()
    assert linear_accuracy(x, labels, y, truth) == pytest.approx(float(expected), abs=0.004)


def test_only_the_network_reads_rings():
    angle = 6.283 * torch.rand(800)
    radius = torch.tensor([1.0, 2.0]).repeat(400)
    x = torch.stack([angle.cos(), angle.sin()], 1) * radius[:, None]
    labels = (radius > 1.5).long()
    assert linear_accuracy(x[:600], labels[:600], x[600:], labels[600:]) < 0.65
    assert mlp_accuracy(x[:600], labels[:600], x[600:], labels[600:]) > 0.95


@pytest.mark.parametrize(("rows", "classes"), [(2, 2), (12, 3), (40, 20), (61, 30), (33, 2)])
def test_the_network_takes_any_number_of_rows(rows, classes):
    # Too few to hold out a tenth that has every class: it trains without stopping early.
    x, labels = torch.randn(rows, 4), torch.arange(rows) % classes
    assert 0.0 <= mlp_accuracy(x, labels, x, labels) <= 1.0
    labels[-1] = 77  # a class of one row
    assert 0.0 <= mlp_accuracy(x, labels, x, labels) <= 1.0


@pytest.mark.parametrize(("classes", "lone", "stops"), [(5, False, True), (5, True, False), (200, False, False)])
def test_the_network_stops_early_where_a_tenth_can_hold_every_class(models, monkeypatch, classes, lone, stops):
    monkeypatch.setattr(probing, "MLP_STEPS", 10)
    x, labels = torch.randn(1200, 2), torch.arange(1200) % classes
    if lone:
        labels[-1] = 77
    assert 0.0 <= mlp_accuracy(x, labels, x, labels) <= 1.0
    assert models[0].early_stopping == stops


def test_the_limits_of_iterations(models):
    # Labels are noise: nothing converges, and scikit-learn's warning about it must not leak.
    x, labels = torch.randn(1500, 200), torch.randint(0, 4, (1500,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear_accuracy(1e-3 * x.cumsum(1), labels, x, labels)
        mlp_accuracy(x[:300, :3], labels[:300], x[:, :3], labels)  # 19 steps an epoch
        mlp_accuracy(x, labels, x, labels)
    linear, small, large = models
    assert linear.n_iter_.tolist() == [100]
    assert (small.n_iter_, small.early_stopping, small.batch_size) == (100, False, 16)
    assert large.early_stopping
    assert large.batch_size == 46
    assert (
        large.n_iter_ < large.max_iter == 69
    )  # 2000 steps of 46 on 1350 rows; stopped before, there is nothing to learn


def test_the_limits_of_many_rows(models, monkeypatch):
    from sklearn.neural_network import MLPClassifier

    monkeypatch.setattr(MLPClassifier, "fit", lambda self, x, y: self)
    monkeypatch.setattr(MLPClassifier, "predict", lambda self, x: np.zeros(len(x), dtype=np.int64))
    labels = torch.arange(60000) % 10
    assert mlp_accuracy(torch.randn(60000, 2), labels, torch.randn(10, 2), labels[:10]) == 0.1
    assert (models[0].batch_size, models[0].max_iter, models[0].n_iter_no_change) == (512, 20, 3)


@pytest.mark.data
def test_fashion_mnist_pixels(data_root):
    pytest.importorskip("torchvision")
    from torchvision.datasets import FashionMNIST

    train, test = FashionMNIST(data_root, train=True), FashionMNIST(data_root, train=False)
    x, y = (part.data[:2000].flatten(1) / 255 for part in (train, test))
    accuracies = [probe(x, train.targets[:2000], y, test.targets[:2000]) for probe in PROBES]
    assert all(0.75 < accuracy < 0.88 for accuracy in accuracies), accuracies


# --- clusterings ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_cluster_accuracy_is_the_best_of_all_namings(rows, clusters, labels, seed):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, clusters, (rows,), generator=generator).tolist()
    truth = torch.randint(0, labels, (rows,), generator=generator).tolist()
    # Names for all clusters: the labels, and as many that nothing has.
    names = [*range(labels), *range(-clusters, 0)]
    best = max(
        sum(naming[k] == c for k, c in zip(found, truth, strict=True))
        for naming in itertools.permutations(names, clusters)
    )
    assert cluster_accuracy(torch.tensor(found), torch.tensor(truth)) == best / rows


def test_cluster_accuracy_of_what_does_not_fit():
    assert cluster_accuracy(["x", "y"], torch.tensor([7, -3])) == 1.0
    with pytest.raises(InputError, match="cluster_accuracy: 1 labels for 2 rows"):
        cluster_accuracy(torch.tensor([0, 1]), torch.tensor([0]))
    with pytest.raises(InputError, match="no rows"):
        cluster_accuracy(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
