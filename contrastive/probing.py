"""What a simple classifier reads off frozen embeddings: k-NN, linear, one hidden layer; what clusterings are worth.

The probes answer one question, how much of the label is there to be read, in bounded time; the
protocol of a paper belongs to the experiment that repeats it.

>>> import torch
>>> train = torch.tensor([[1.0, 0.1], [1.0, 0.2], [0.1, 1.0], [0.2, 1.0]])
>>> knn_accuracy(train, [0, 0, 1, 1], torch.tensor([[3.0, 1.0], [1.0, 3.0]]), [0, 1], k=2)
1.0
"""

import warnings
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from contrastive.errors import InputError
from contrastive.retrieval import RANKING_BLOCK, Backend, Labels, Rows, as_pair, label_ids, raised, search

__all__ = ["cluster_accuracy", "knn_accuracy", "knn_vote", "linear_accuracy", "mlp_accuracy"]

LINEAR_ITERATIONS = 100
MLP_STEPS = 2000


def knn_vote(
    neighbours: Int64[Tensor, "queries k"], scores: Float[Tensor, "queries k"], *, temperature: float = 0.1
) -> Int64[Tensor, " queries"]:
    r"""Classifies each query by the weighted vote of its neighbours.

    .. math::
        \arg\max_c \sum_{j \le k} e^{s_{ij} / \tau} [c_{ij} = c]

    Arguments:
        neighbours: :math:`c_{ij}`, the class of the j-th neighbour, the nearest first.
        scores: :math:`s_{ij}`, larger is nearer.
        temperature: :math:`\tau`, positive. The larger, the more equal the votes.

    Returns:
        A class for each query. Of classes with equal votes the one with the nearest neighbour wins.

    Raises:
        InputError: the temperature is not positive.

    Example:
        >>> neighbours = torch.tensor([[0, 1, 1]])
        >>> knn_vote(neighbours, torch.tensor([[0.9, 0.85, 0.85]]))
        tensor([1])
        >>> knn_vote(neighbours, torch.tensor([[0.9, 0.5, 0.5]]))
        tensor([0])

    References:
        | Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al., 2018)
        | https://arxiv.org/abs/1805.01978
    """
    if not 0 < temperature < float("inf"):
        raise InputError(f"knn_vote: temperature is {temperature}, expected a positive number")
    # Relative to the nearest: the largest weight is 1, and a small temperature overflows nothing.
    weights = ((scores - scores.amax(1, keepdim=True)).double() / temperature).exp()
    strip = max(1, RANKING_BLOCK // neighbours.shape[1] ** 2)
    chosen = []
    for classes, weight in zip(torch.split(neighbours, strip), torch.split(weights, strip), strict=True):
        # For each neighbour the votes of its class: the number of classes does not matter.
        votes = torch.where(classes[:, :, None] == classes[:, None, :], weight[:, None, :], 0.0).sum(2)
        first = (votes == votes.amax(1, keepdim=True)).to(torch.int8).argmax(1, keepdim=True)
        chosen.append(classes.gather(1, first).squeeze(1))
    return torch.cat(chosen)


def knn_accuracy(
    train: Rows,
    train_labels: Labels,
    test: Rows,
    test_labels: Labels,
    *,
    k: int = 20,
    temperature: float = 0.1,
    backend: Backend = "auto",
) -> float:
    r"""Computes the accuracy of the k-nearest-neighbour classifier by cosine, votes weighted by :math:`e^{s / \tau}`.

    Arguments:
        train: shape [train, dim], finite.
        train_labels: one a row, integers or strings.
        test: shape [test, dim].
        test_labels: one a row. A label that does not occur in training counts as wrong.
        k: neighbours that vote, at least 1; all of the training rows if there are fewer.
        temperature: :math:`\tau` of `knn_vote`.
        backend: as in `contrastive.search`.

    Returns:
        The share of test rows that are classified correctly.

    Raises:
        InputError: for shapes, dtypes or labels that do not fit, NaN or infinite values, `k` less than 1.

    Example:
        >>> knn_accuracy(torch.eye(2), ["a", "b"], torch.eye(2), ["a", "c"])
        0.5

    References:
        | Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al., 2018)
        | https://arxiv.org/abs/1805.01978
    """
    x, classes, queries, truth = _checked("knn_accuracy", train, train_labels, test, test_labels)
    if isinstance(k, bool) or k < 1:
        raise InputError(f"knn_accuracy: k is {k}, expected at least 1")
    ranking = search(queries, x, min(k, len(x)), backend=backend)
    return _share(knn_vote(classes.to(x.device)[ranking.ids], ranking.scores, temperature=temperature).cpu(), truth)


def linear_accuracy(train: Rows, train_labels: Labels, test: Rows, test_labels: Labels, *, seed: int = 0) -> float:
    """Computes the accuracy of multinomial logistic regression on standardised embeddings.

    scikit-learn's `StandardScaler` and `LogisticRegression` (L-BFGS, C = 1), stopped after 100
    iterations at the latest, which bounds the time; on rows of hundreds of columns it has not
    converged by then, and more iterations rather lower the accuracy.

    Arguments:
        train: shape [train, dim], finite. A constant column is no trouble.
        train_labels: one a row, integers or strings.
        test: shape [test, dim].
        test_labels: one a row. A label that does not occur in training counts as wrong.
        seed: accepted as in `mlp_accuracy`; L-BFGS starts at zero and draws nothing.

    Returns:
        The share of test rows that are classified correctly.

    Raises:
        InputError: for shapes, dtypes or labels that do not fit, NaN or infinite values.

    Example:
        >>> train = torch.tensor([[0.0, 1.0], [0.2, 1.0], [0.8, 1.0], [1.0, 1.0]])
        >>> linear_accuracy(train, [0, 0, 1, 1], torch.tensor([[0.1, 1.0], [0.9, 1.0]]), [0, 1])
        1.0

    References:
        | Understanding intermediate layers using linear classifier probes (Alain and Bengio, 2016)
        | https://arxiv.org/abs/1610.01644
    """
    from sklearn.linear_model import LogisticRegression

    x, classes, queries, truth = _checked("linear_accuracy", train, train_labels, test, test_labels)
    model = LogisticRegression(C=1.0, max_iter=LINEAR_ITERATIONS, random_state=seed)
    return _fitted_accuracy(model, x, classes, queries, truth)


def mlp_accuracy(train: Rows, train_labels: Labels, test: Rows, test_labels: Labels, *, seed: int = 0) -> float:
    """Computes the accuracy of a network with one hidden layer of 256 on standardised embeddings.

    scikit-learn's `StandardScaler` and `MLPClassifier` (ReLU, Adam, learning rate 0.001). Batches are
    a 32nd of the rows, within 16 and 512; training ends after 2000 steps, rounded up to epochs and
    within 20 and 100 of them. With 1000 rows or more it stops early, after 15 % of these epochs without
    progress on a held-out tenth of the training rows, and keeps the best weights; with fewer, or where
    that tenth cannot hold every class, it trains to the end.

    Arguments:
        train: shape [train, dim], finite. A constant column is no trouble.
        train_labels: one a row, integers or strings.
        test: shape [test, dim].
        test_labels: one a row. A label that does not occur in training counts as wrong.
        seed: of the initial weights, the order of rows and the held-out tenth.

    Returns:
        The share of test rows that are classified correctly: the same for the same seed, input and
        number of threads.

    Raises:
        InputError: for shapes, dtypes or labels that do not fit, NaN or infinite values.

    Example:
        >>> circle = torch.linspace(0.0, 6.28, 400)
        >>> points = torch.stack([circle.cos(), circle.sin()], 1) * torch.tensor([1.0, 3.0]).repeat(200)[:, None]
        >>> labels = torch.tensor([0, 1]).repeat(200)
        >>> linear_accuracy(points, labels, points, labels) < 0.7 < mlp_accuracy(points, labels, points, labels)
        True

    References:
        | Understanding intermediate layers using linear classifier probes (Alain and Bengio, 2016)
        | https://arxiv.org/abs/1610.01644
    """
    from sklearn.neural_network import MLPClassifier

    x, classes, queries, truth = _checked("mlp_accuracy", train, train_labels, test, test_labels)
    counts = classes.bincount()
    counts = counts[counts > 0]
    held_out = -(-len(x) // 10)
    stratifies = int(counts.min()) >= 2 and held_out >= max(100, len(counts))
    rows = len(x) - stratifies * held_out
    batch = min(max(len(x) // 32, 16), 512, rows)
    epochs = min(max(-(-MLP_STEPS * batch // rows), 20), 100)
    model = MLPClassifier(
        hidden_layer_sizes=(256,),
        batch_size=batch,
        learning_rate_init=1e-3,
        max_iter=epochs,
        early_stopping=stratifies,
        validation_fraction=0.1,
        n_iter_no_change=epochs * 3 // 20 if stratifies else epochs,
        random_state=seed,
    )
    return _fitted_accuracy(model, x, classes, queries, truth)


def cluster_accuracy(clusters: Labels, labels: Labels) -> float:
    r"""Computes the accuracy of a clustering: clusters are named by labels, one to one, as well as can be.

    .. math::
        \max_\pi \frac1n \sum_i [\pi(k_i) = c_i], \qquad \pi \text{ one-to-one}

    The names are chosen by the very labels that judge, as is custom: with few rows and many clusters that is worth
    something by itself. Clusters beyond the number of labels get no name and count as wrong.

    Arguments:
        clusters: :math:`k_i`, one a row, integers or strings.
        labels: :math:`c_i`, likewise.

    Returns:
        The share of rows whose cluster has their label's name.

    Raises:
        InputError: for labels that do not fit, none of them, or another number of them.

    Example:
        >>> cluster_accuracy(torch.tensor([2, 2, 7, 7]), ["a", "a", "b", "a"])
        0.75

    References:
        | The Hungarian Method for the Assignment Problem (Kuhn, 1955)
        | https://doi.org/10.1002/nav.3800020109
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # it ships no types

    (found,) = label_ids("cluster_accuracy", ("clusters", clusters, len(clusters)))
    (truth,) = label_ids("cluster_accuracy", ("labels", labels, len(clusters)))
    if not len(found):
        raise InputError("cluster_accuracy: there are no rows")
    counts = torch.zeros(int(found.max()) + 1, int(truth.max()) + 1, dtype=torch.int64)
    counts.index_put_((found, truth), torch.ones_like(found), accumulate=True)
    named = linear_sum_assignment(counts.numpy(), maximize=True)
    return float(counts.numpy()[named].sum()) / len(found)


def _checked(
    function: str, train: Rows, train_labels: Labels, test: Rows, test_labels: Labels
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The rows on their device, the classes on the CPU."""
    x, queries = map(raised, as_pair(function, train, test, ("train", "test")))
    classes, truth = label_ids(
        function, ("train_labels", train_labels, len(x)), ("test_labels", test_labels, len(queries))
    )
    return x, classes, queries, truth


def _fitted_accuracy(model: Any, x: Tensor, classes: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Standardises, fits on the training rows, and scores on the test rows."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import StandardScaler

    if bool((classes == classes[0]).all()):  # scikit-learn refuses; the only class there is, is the answer
        return _share(classes[:1].expand(len(truth)), truth)
    scaler = StandardScaler()
    fitted: NDArray[Any] = scaler.fit_transform(x.cpu().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit of iterations is part of the definition
        model.fit(fitted, classes.numpy())
    predicted = model.predict(scaler.transform(queries.cpu().numpy()))
    return _share(torch.from_numpy(np.asarray(predicted, dtype=np.int64)), truth)


def _share(predicted: Int64[Tensor, " queries"], truth: Int64[Tensor, " queries"]) -> float:
    return float((predicted == truth).double().mean())
