"""What an encoder is worth: retrieval, probes and the held-out bound, beside raw pixels and an untrained encoder.

Class-level figures (recall@k, MAP@R, k-NN, probes) use the encoder's features of the test images as they are.
Instance-level figures use the projection, where the objective was trained: a view of each test image must find
another view of the same image among all of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from contrastive.batches import derived_seed
from contrastive.bounds import infonce_bound
from contrastive.data import ImageData, ImageSplit
from contrastive.errors import InputError
from contrastive.factors import normalize
from contrastive.geometry import alignment, spread, uniformity
from contrastive.objectives import kpair_loss
from contrastive.probing import knn_accuracy, linear_accuracy, mlp_accuracy
from contrastive.report import HardNegatives, Neighbours
from contrastive.retrieval import evaluate_retrieval, instance_recall, search
from contrastive.scores import WeighsNegatives
from contrastive.wrappers import in_evaluation_mode

__all__ = [
    "Evaluation",
    "Model",
    "calibrate",
    "embed",
    "evaluate_model",
    "hard_negatives",
    "held_out_bound",
    "held_out_figures",
    "pixels",
    "view_pairs",
]

_CHUNK = 500  # images at a time: bounded memory whatever the encoder
_LARGEST_PIXELS = 32  # a probe on 12,288 columns of 50,000 images takes hours and gigabytes
_VIEWS, _HARD, _PAIRS = 1, 2, 3  # streams of the evaluation's random numbers


@dataclass(frozen=True)
class Model:
    """A representation: images to features, and images to the space in which the critic scores.

    Arguments:
        features: of images ``[n, c, h, w]``, uint8 or floats in [0, 1].
        projections: likewise.
    """

    features: Callable[[Tensor], Tensor]
    projections: Callable[[Tensor], Tensor]

    @staticmethod
    def of(encoder: nn.Module, projector: nn.Module) -> "Model":
        """The representation of an encoder and its projector."""
        return Model(encoder, nn.Sequential(encoder, projector))


def pixels() -> Model:
    """The representation that is none: pixels in [0, 1], flattened; large images are averaged to 32 x 32 first."""
    return Model(_flat, _flat)


@dataclass(frozen=True)
class Evaluation:
    """All figures of a run.

    Arguments:
        figures: for ``encoder``, ``untrained`` and ``pixels``, each figure's value; None: not defined for this data.
        intervals: 95 % bootstrap intervals, over queries, of the encoder's retrieval figures.
        class_intervals: likewise over classes; empty without labels.
        counts: of its retrieval: queries that were ``excluded`` and ``tied``, and the k that were ``dropped``, as in
            `contrastive.RetrievalResult`.
        bound: the held-out bound of the trained critic, in nats.
        notes: what a reader must know: excluded queries, dropped k, which split the probes used.
        similarities: cosine similarities of held-out positive and negative pairs.
        embeddings: the encoder's features of the test images.
        projections: the projector's outputs for them.
        neighbours: retrieval of some test images.
    """

    figures: dict[str, dict[str, float | None]]
    intervals: dict[str, tuple[float, float]]
    class_intervals: dict[str, tuple[float, float]]
    counts: dict[str, int | tuple[int, ...]]
    bound: dict[str, Any]
    similarities: dict[str, tuple[np.ndarray, np.ndarray]]
    embeddings: Float[Tensor, "n d"]
    projections: Float[Tensor, "n e"]
    neighbours: Neighbours
    notes: list[str] = field(default_factory=list)


def evaluate_model(
    data: ImageData,
    models: dict[str, Model],
    critic: Callable[[Tensor, Tensor], Tensor],
    *,
    view: Callable[[Tensor], Tensor],
    batch_size: int,
    seed: int = 0,
    ks: Sequence[int] | None = None,
    metrics: Sequence[str] | None = None,
    on_step: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """Measures each representation in the same way, on the same images and the same views.

    Arguments:
        data: probes are fitted on its training images, everything else is measured on its test images; where
            the classes are disjoint, probes are fitted on every second test image of a class.
        models: by name; the one called ``encoder`` is shown in detail.
        critic: the trained critic, for the bound.
        view: draws a random view of every image, at training strength.
        batch_size: number of candidates of the bound.
        seed: of the views and of the MLP probe.
        ks: of recall@k, refused where they exceed the gallery; None: 1, 5, 10, 100, as far as it reaches.
        metrics: of retrieval, as in `contrastive.evaluate_retrieval`; None: its defaults.
        on_step: is told what is measured next.

    Returns:
        Figures, intervals, bound, and what the report shows.

    Raises:
        InputError: for a k beyond the gallery.
    """
    labels, notes = data.test.labels, []
    if labels is None:
        notes.append("The images carry no labels: class-level figures are not defined, instance-level ones are.")
    elif int((torch.bincount(labels) > 0).sum()) < 2 or int(torch.bincount(labels).max()) < 2:
        notes.append("No two classes, or no two test images of one: class-level figures are not defined.")
        labels = None
    figures: dict[str, dict[str, float | None]] = {}
    similarities = {}
    intervals: dict[str, tuple[float, float]] = {}
    class_intervals: dict[str, tuple[float, float]] = {}
    counts: dict[str, int | tuple[int, ...]] = {}
    fit_rows, score_rows = _probe_rows(data)
    if data.class_disjoint:
        notes.append(
            "The test classes do not occur in training: probes are fitted on every second test image of a class."
        )
    for name, model in models.items():
        on_step(f"{name}: embedding")
        test = embed(model.features, data.test.images)
        first, second = view_pairs(model.projections, data.test.images, view, seed=seed)
        row: dict[str, float | None] = {}
        if labels is not None:
            on_step(f"{name}: retrieval")
            options: dict[str, Any] = ({} if ks is None else {"ks": ks}) | (
                {} if metrics is None else {"metrics": metrics}
            )
            retrieval = evaluate_retrieval(test, labels, **options)
            row |= retrieval.mean
            fit = embed(model.features, data.train.images) if fit_rows is None else test[fit_rows]
            fit_labels = data.train.labels if fit_rows is None else labels[fit_rows]
            scored, score_labels = test[score_rows], labels[score_rows]
            if fit_labels is not None:
                on_step(f"{name}: probes")
                row["knn"] = knn_accuracy(fit, fit_labels, scored, score_labels)
                row["linear"] = linear_accuracy(fit, fit_labels, scored, score_labels, seed=seed)
                row["mlp"] = mlp_accuracy(fit, fit_labels, scored, score_labels, seed=seed)
        else:
            row |= dict.fromkeys(("recall@1", "recall@5", "recall@10", "map@r", "knn", "linear", "mlp"))
        instance = instance_recall(first, second, ks=tuple(k for k in (1, 10) if k <= len(first)))
        row |= {f"instance_{key}": value for key, value in instance.mean.items()}
        row["alignment"] = float(alignment(first, second))
        row["uniformity"] = float(uniformity(first))
        figures[name] = row
        similarities[name] = _similarities(first, second, seed)
        if name == "encoder":
            embeddings, projections = test, embed(model.projections, data.test.images)
            pair = first, second
            notes += _collapse(embeddings, projections)
            intervals = {f"instance_{key}": value for key, value in instance.interval.items()}
            if labels is not None:
                intervals |= retrieval.interval
                class_intervals = retrieval.class_interval
                counts = {"excluded": retrieval.excluded, "tied": retrieval.tied, "dropped": retrieval.dropped}
                if retrieval.excluded:
                    notes.append(f"{retrieval.excluded} queries are the only image of their class: excluded.")
                if retrieval.dropped:
                    beyond = ", ".join(map(str, retrieval.dropped))
                    notes.append(f"k = {beyond} is left out: the gallery holds {len(test) - 1} other images.")
    if data.skipped:
        shown = "; ".join(data.skipped[:3]) + (" ..." if len(data.skipped) > 3 else "")
        notes.append(f"{len(data.skipped)} unreadable images were skipped: {shown}")
    if min(data.test.images.shape[2:]) > _LARGEST_PIXELS:
        notes.append(f"Pixels are averaged to {_LARGEST_PIXELS} x {_LARGEST_PIXELS} before they are compared.")
    on_step("bound and gallery")
    return Evaluation(
        figures=figures,
        intervals=intervals,
        class_intervals=class_intervals,
        counts=counts,
        bound=held_out_bound(critic, *pair, batch_size=batch_size),
        similarities=similarities,
        embeddings=embeddings,
        projections=projections,
        neighbours=_neighbours(data, embeddings),
        notes=notes,
    )


def _collapse(embeddings: Tensor, projections: Tensor) -> list[str]:
    """What a reader must know of an encoder that gives every image the same vector."""
    return [
        f"The encoder has collapsed: {what} of all test images are nearly one vector, and figures of them are chance."
        for what, vectors in (("features", embeddings), ("projections", projections))
        if spread(vectors) < 1e-5  # float32 rounds at 1e-7
    ]


def embed(model: Callable[[Tensor], Tensor], images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Applies a model to images a chunk at a time; the result is on the CPU.

    Arguments:
        model: images to vectors; a module is put into evaluation mode and back.
        images: any number.
    """
    with _evaluating(model) as device:
        return torch.cat([model(chunk.to(device)).float().cpu() for chunk in _chunks(images)])


def view_pairs(
    model: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    view: Callable[[Tensor], Tensor],
    *,
    seed: int,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Embeds two random views of every image: the same views for every model.

    Arguments:
        model: images to vectors.
        images: any number.
        view: draws a random view of every image.
        seed: of the views; the caller's random state is left alone.
    """
    first, second = [], []
    with _evaluating(model) as device, torch.random.fork_rng():
        for i, chunk in enumerate(_chunks(images)):
            torch.manual_seed(derived_seed(seed, _VIEWS, i))
            x, y = view(torch.cat([chunk, chunk]).float() / 255).to(device).chunk(2)
            first.append(model(x).float().cpu())
            second.append(model(y).float().cpu())
    return torch.cat(first), torch.cat(second)


def held_out_bound(
    critic: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    *,
    batch_size: int,
) -> dict[str, Any]:
    r"""Evaluates a trained critic by InfoNCE with uniform weights on held-out pairs, batch by batch.

    Whatever miner it was trained with, this is a lower bound on the mutual information of two views.

    Arguments:
        critic: ``(x, y) -> scores``.
        x: first views.
        y: second views of the same images.
        batch_size: number of candidates K; all of them, where there are fewer.

    Returns:
        ``value``, ``cap``, ``constant`` (nats), ``candidates``, ``batches``, ``status``, ``reason``, and the 95 %
        ``interval`` over batches (None for fewer than two).
    """
    size = min(batch_size, len(x))
    with _evaluating(critic) as device:
        bounds = [
            infonce_bound(critic(x[i : i + size].to(device), y[i : i + size].to(device)))
            for i in range(0, len(x) - size + 1, size)
        ]
    values = np.array([bound.value for bound in bounds])
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return {
        "value": float(values.mean()),
        "cap": bounds[0].cap,
        "constant": bounds[0].constant,
        "candidates": size,
        "batches": len(values),
        "status": bounds[0].status,
        "reason": bounds[0].reason,
        "interval": None if half is None else [float(values.mean() - half), float(values.mean() + half)],
    }


def held_out_figures(
    data: ImageData,
    model: Model,
    critic: Callable[[Tensor, Tensor], Tensor],
    *,
    view: Callable[[Tensor], Tensor],
    batch_size: int,
    seed: int,
    images: int = 2000,
) -> dict[str, float]:
    """A few figures of some test images, cheap enough for every epoch: for curves, nothing is chosen by them.

    Arguments:
        data: the test images are used.
        model: the encoder under training.
        critic: likewise.
        view: at training strength.
        batch_size: number of candidates of the bound.
        seed: of the views.
        images: how many test images, a fixed random choice.

    Returns:
        ``held_out_bound`` (nats), ``held_out_instance_recall@1`` and, where classes repeat, ``held_out_recall@1``.
    """
    order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
    held_out = data.test.subset(order[:images])
    x, y = view_pairs(model.projections, held_out.images, view, seed=seed)
    figures = {
        "held_out_bound": float(held_out_bound(critic, x, y, batch_size=batch_size)["value"]),
        "held_out_instance_recall@1": instance_recall(x, y).mean["recall@1"],
    }
    if held_out.labels is not None and int(torch.bincount(held_out.labels).max()) > 1:
        features = embed(model.features, held_out.images)
        figures["held_out_recall@1"] = evaluate_retrieval(features, held_out.labels, ks=(1,)).mean["recall@1"]
    return figures


def hard_negatives(
    split: ImageSplit,
    model: Callable[[Tensor], Tensor],
    critic: Callable[[Tensor, Tensor], Tensor],
    miner: WeighsNegatives | None,
    *,
    view: Callable[[Tensor], Tensor],
    batch_size: int,
    seed: int = 0,
    anchors: int = 6,
    hardest: int = 8,
) -> HardNegatives | None:
    """Looks at one training batch through the trained critic: which negatives pull hardest, and with what weight.

    Arguments:
        split: the training images.
        model: images to projections.
        critic: ``(x, y) -> scores``.
        miner: as in training.
        view: as in training.
        batch_size: as in training.
        seed: of the batch and its views.
        anchors: how many to show.
        hardest: negatives of each.

    Returns:
        None where a batch holds no negative.
    """
    size = min(batch_size, len(split))
    if size < 2:
        return None
    generator = torch.Generator().manual_seed(derived_seed(seed, _HARD))
    rows = torch.randperm(len(split), generator=generator)[:size]
    with _evaluating(model) as device, _evaluating(critic), torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, _HARD))
        images = split.images[rows]
        views = view(torch.cat([images, images]).float() / 255)
        x, y = model(views.to(device)).float().chunk(2)
        scores = critic(x, y).float()
        targets = torch.arange(size, device=scores.device)
        log_weights = torch.zeros_like(scores) if miner is None else miner(scores, targets).float()
    scores, log_weights, targets = scores.cpu(), log_weights.cpu(), targets.cpu()
    shares = torch.softmax(scores + log_weights, 1)
    # Interesting anchors: those that the loss works on.
    shown = kpair_loss(scores, targets, log_weights=log_weights).topk(min(anchors, size)).indices
    ranked = scores[shown].scatter(1, shown[:, None], -torch.inf)
    values, columns = ranked.topk(min(hardest, size - 1), dim=1)
    shots = (views.clamp(0, 1) * 255).round().to(torch.uint8)
    labels = None if split.labels is None else split.labels[rows]
    return HardNegatives(
        anchors=shots[:size][shown],
        positives=shots[size:][shown],
        positive_scores=scores[shown, shown],
        negatives=shots[size:][columns],
        scores=values,
        weights=log_weights[shown].gather(1, columns).exp(),
        shares=shares[shown].gather(1, columns),
        same_class=None if labels is None else labels[columns] == labels[shown][:, None],
    )


def calibrate(encoder: nn.Module, images: UInt8[Tensor, "n c h w"]) -> None:
    """Moves an untrained encoder's batch norms to the statistics of the images: the baseline is not handicapped.

    By at most ten batches of 500 at the momentum that training has, two thirds of the way at 0.1. (All of it, by their
    mean, reads one to two points less by a linear probe of 4,000 images of MNIST, and by nearest neighbours the same.)

    Arguments:
        encoder: changed in place; weights stay.
        images: training images; some of them serve.
    """
    encoder.train()
    with torch.no_grad():
        for chunk in _chunks(images[:5000]):
            if len(chunk) > 1:
                encoder(chunk.to(_device(encoder)))
    encoder.eval()


@contextmanager
def _evaluating(model: Callable[..., Tensor]) -> Iterator[torch.device]:
    """No gradients, and a module in evaluation mode for the time being; gives its device."""
    with torch.no_grad():
        if not isinstance(model, nn.Module):
            yield torch.device("cpu")
            return
        with in_evaluation_mode(model):
            yield _device(model)


def _device(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _chunks(images: Tensor) -> Iterator[Tensor]:
    return (images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK))


def _flat(images: Tensor) -> Tensor:
    images = images if images.is_floating_point() else images.float() / 255
    if min(images.shape[2:]) > _LARGEST_PIXELS:
        images = nn.functional.adaptive_avg_pool2d(images, (_LARGEST_PIXELS, _LARGEST_PIXELS))
    return images.flatten(1)


def _probe_rows(data: ImageData) -> tuple[Int[Tensor, " f"] | None, Int[Tensor, " s"]]:
    """Test rows on which probes are fitted (None: on the training images) and on which they are scored."""
    everything = torch.arange(len(data.test))
    if not data.class_disjoint or data.test.labels is None:
        return None, everything
    order = torch.argsort(data.test.labels, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = everything
    first_of_class = torch.searchsorted(data.test.labels[order], data.test.labels)
    odd = (ranks - first_of_class) % 2 == 1
    return everything[~odd], everything[odd]


def _similarities(first: Tensor, second: Tensor, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosine similarities of all positive pairs and of as many random negative pairs."""
    x, y = normalize(first), normalize(second)
    generator = torch.Generator().manual_seed(derived_seed(seed, _PAIRS))
    n = len(x)
    other = (torch.arange(n) + torch.randint(1, max(n, 2), (n,), generator=generator)) % n
    return (x * y).sum(1).numpy(), (x * y[other]).sum(1).numpy()


def _neighbours(data: ImageData, embeddings: Tensor, queries: int = 12, k: int = 10) -> Neighbours:
    """Some test images, of as many classes as there are, and their nearest others."""
    labels, names = data.test.labels, data.classes
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.test), generator=generator)
    if labels is not None:
        # One of each class before the second of any.
        seen: dict[int, int] = {}
        turn = []
        for row in order.tolist():
            label = int(labels[row])
            seen[label] = seen.get(label, 0) + 1
            turn.append(seen[label])
        order = order[torch.argsort(torch.tensor(turn), stable=True)]
    rows = order[: min(queries, len(order))]
    k = min(k, len(embeddings) - 1)
    if k < 1:
        raise InputError(f"the test split holds {len(embeddings)} image, expected at least 2")
    # One more than shown: each query finds itself as well, though among exact copies not always first.
    found = search(embeddings[rows], embeddings, k + 1)
    own = found.ids == rows[:, None]
    own[:, -1] |= ~own.any(1)
    ids, scores = found.ids[~own].view(len(rows), k), found.scores[~own].view(len(rows), k)
    if labels is None:
        return Neighbours(queries=data.test.images[rows], neighbours=data.test.images[ids], scores=scores)
    return Neighbours(
        queries=data.test.images[rows],
        neighbours=data.test.images[ids],
        scores=scores,
        query_labels=[names[i] for i in labels[rows].tolist()],
        neighbour_labels=[[names[i] for i in line] for line in labels[ids].tolist()],
        correct=labels[ids] == labels[rows][:, None],
    )
