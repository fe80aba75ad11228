"""One run: train a small encoder with an arm, measure it on what it has not seen."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.mining.arms import DIM, Arm
from benchmarks.splits import with_held_out
from contrastive import Cosine, KPairLoss, evaluate_retrieval, infonce_bound, pairwise_loss, supcon_loss
from contrastive.batches import Batches, derived_seed
from contrastive.data import ImageData, ImageSplit, channel_statistics, cifar10, fashion_mnist, omniglot
from contrastive.encoders import Recipe, build
from contrastive.pairings import bound, two_views
from contrastive.probing import knn_accuracy, linear_accuracy
from contrastive.retrieval import instance_recall
from contrastive.scores import partners, without_self
from contrastive.views import RandomView
from miners import Miner, Queue
from miners.neighbors import class_means, hard_class_batches

__all__ = ["Figures", "Task", "load", "run"]

Figures = dict[str, float | str]

# Alphabets of the training set that are held out to choose temperatures and combinations by.
TUNING_ALPHABETS = ("Early_Aramaic", "Greek")


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained and measured on.

    Arguments:
        train: images with labels.
        test: likewise.
        by_class: whether positives are two images of a class (Omniglot) rather than two views of an image.
        view: makes a random view of every image.
        steps: of a run.
        batch: images, each seen as two views, of a run that is not by class.
        bounds: batches of held-out pairs that the bound is averaged over.
    """

    train: ImageSplit
    test: ImageSplit
    by_class: bool
    view: Callable[[Tensor], Tensor]
    steps: int
    batch: int = 256
    bounds: int = 100


def load(data: str, split: str, data_root: str | None, images: int = 15_000) -> Task:
    """Reads a task.

    Arguments:
        data: ``omniglot``, ``fashion-mnist`` or ``cifar10``.
        split: ``test``, or ``tune``, which leaves the test images aside: two training alphabets of Omniglot are
            held out instead, and 5,000 further training images of the others.
        data_root: as in `contrastive.data`.
        images: how many training images of `fashion-mnist` and `cifar10`.
    """
    if data == "omniglot":
        characters = omniglot(data_root)
        train, test = characters.train, characters.test
        if split == "tune":
            alphabet = [name.split("/")[0] in TUNING_ALPHABETS for name in characters.classes]
            held_out = torch.tensor(alphabet)[train.labels]
            train, test = train.subset(~held_out), train.subset(held_out)
        view = RandomView(1, zoom=1.2, rotation=10.0, mirror=False, erase=0.0)
        return Task(train, test, True, view, steps=600)
    whole: ImageData = {"fashion-mnist": fashion_mnist, "cifar10": cifar10}[data](data_root)
    train, held_out = with_held_out(whole, images)
    test = whole.test if split == "test" else held_out
    return Task(train, test, False, RandomView(train.images.shape[1]), steps=4 * (len(train) // 256))


def run(task: Task, arm: Arm, temperature: float, seed: int, steps: int | None = None) -> Figures:
    """Trains once and measures.

    Seeds pair arms: initial weights, batches and views are the same, whatever a miner draws, wherever an arm does not
    choose its batches itself.

    Arguments:
        task: what is trained and measured on.
        arm: how.
        temperature: of the cosines.
        seed: of everything.
        steps: other than the task's.
    """
    steps = task.steps if steps is None else steps
    mean, deviation = channel_statistics(task.train.images)
    recipe = Recipe(
        "ConvNet",
        {"channels": task.train.images.shape[1], "widths": (16, 32, 64)},
        {"hidden": (64,), "out": DIM, "batch_norm": False},
        mean,
        deviation,
    )
    encoder, projector = build(recipe, seed=seed)
    model = torch.nn.Sequential(encoder, projector)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps + 1, pct_start=0.1)
    miner, critic = arm.miner(temperature), Cosine(temperature)
    queue = Queue(arm.queue, DIM) if arm.queue else None
    start = time.perf_counter()
    batches = _classes(task, arm, model, seed, steps) if task.by_class else _images(task, seed)
    for step in range(steps):
        images, labels = next(batches)
        torch.manual_seed(derived_seed(seed, step))  # the views' draws; a miner draws after them
        x, y = _two(task, images)
        z = model(task.view(torch.cat([x, y]) / 255))
        weigh = miner.at(step) if isinstance(miner, Miner) else miner
        if arm.all_positives:
            loss = _all_positives(critic, weigh, z, torch.cat(labels))
        else:
            loss = _pairs(arm, critic, weigh, queue, *z.chunk(2), labels)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss of step {step} is {float(loss)}")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if queue is not None:
            queue.enqueue(z.detach(), torch.cat(labels))
    seconds = time.perf_counter() - start
    model.eval()
    measure = _retrieved if task.by_class else _probed
    figures = measure(task, encoder, projector, critic, arm, miner, seed)
    return {**figures, "train_loss": float(loss.detach()), "train_seconds": round(seconds, 2)}


# --- batches ----------------------------------------------------------------------------------------------------------


def _classes(
    task: Task, arm: Arm, model: torch.nn.Module, seed: int, steps: int
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """64 images of classes drawn at random, the images of a class one after the other; without end."""
    images, labels = task.train.images, task.train.labels
    sampler = hard_class_batches(
        labels,
        64 // arm.images,
        arm.images,
        partial(_means, task, model) if arm.near_classes else None,
        every=50,
        warmup=steps // 3,
        share=arm.near_classes,
        seed=seed,
    )
    while True:
        for batch in sampler:
            rows = torch.tensor(batch)
            yield images[rows], (labels[rows][0::2], labels[rows][1::2])


def _means(task: Task, model: torch.nn.Module) -> Tensor:
    """Class means by four images a class: a tenth of a second, every fifty steps."""
    order = task.train.labels.argsort(stable=True)
    counts = task.train.labels.unique(return_counts=True)[1]
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    rows = order[place < 4]
    model.eval()
    means = class_means(_embedded(model, task.train.images[rows]), task.train.labels[rows])
    model.train()
    return means


def _images(task: Task, seed: int) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Shuffled images, epoch after epoch."""
    batches = Batches(task.train.images, task.batch, seed=seed)
    while True:
        for ids, images in batches:
            yield images, (ids, ids)


def _two(task: Task, images: Tensor) -> tuple[Tensor, Tensor]:
    """What becomes the two sides: two images of a class, or an image twice."""
    return (images[0::2], images[1::2]) if task.by_class else (images, images)


# --- losses -----------------------------------------------------------------------------------------------------------


def _pairs(
    arm: Arm,
    critic: Cosine,
    miner: object,
    queue: Queue | None,
    x: Tensor,
    y: Tensor,
    labels: tuple[Tensor, ...],
) -> Tensor:
    if arm.linear:
        return _linear(arm, critic, miner, x, y)
    criterion = KPairLoss(critic, miner=miner, intra_view=arm.intra_view)
    if queue is None or not len(queue):
        return criterion(x, y)
    same = torch.cat(labels)[:, None] == queue.ids()[None]
    absent = torch.cat([torch.zeros(len(same), 2 * len(x), dtype=torch.bool), same], 1)
    return criterion(x, y, negatives=queue.keys(), absent=absent)


def _linear(arm: Arm, critic: Cosine, miner: object, x: Tensor, y: Tensor) -> Tensor:
    """The pairwise loss without a link: every negative pushes alike, wherever it is."""
    if arm.intra_view:
        z = torch.cat([x, y])
        sides = [(without_self(critic(z, z)), partners(len(z)))]
    else:
        scores = critic(x, y)
        sides = [(scores, torch.arange(len(x))), (scores.T, torch.arange(len(x)))]
    weights = [None if miner is None else miner(scores, targets) for scores, targets in sides]
    losses = [
        pairwise_loss(scores, targets, link=lambda difference: difference, log_weights=weight)
        for (scores, targets), weight in zip(sides, weights, strict=True)
    ]
    return torch.cat(losses).mean()


def _all_positives(critic: Cosine, miner: object, z: Tensor, labels: Tensor) -> Tensor:
    """Every other image of the class is a positive; a miner sees the negatives and one of them."""
    scores = without_self(critic(z, z))
    positive = (labels[:, None] == labels) & (scores != -torch.inf)
    log_weights = None
    if miner is not None:
        first = partners(len(z))
        others = positive.scatter(1, first[:, None], False)
        log_weights = miner(scores.masked_fill(others, -torch.inf), first)
    return supcon_loss(scores, positive, log_weights=log_weights, keep_positives=False).mean()


# --- figures ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def _embedded(model: torch.nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part) for part in images.split(128)])


def _retrieved(
    task: Task, encoder: torch.nn.Module, projector: torch.nn.Module, critic: Cosine, arm: Arm, miner: object, seed: int
) -> Figures:
    """Leave-one-out retrieval among classes never seen: of projections, and of the features before them."""
    features = _embedded(encoder, task.test.images)
    with torch.no_grad():
        projections = projector(features)
    found = evaluate_retrieval(projections, task.test.labels, ks=(1, 5)).mean
    before = evaluate_retrieval(features, task.test.labels, ks=(1,)).mean
    sampler = hard_class_batches(task.test.labels, 32, 2, seed=derived_seed(seed, 7))
    batches = [torch.tensor(batch) for batch, _ in zip(_forever(sampler), range(task.bounds), strict=False)]
    pairs = [(projections[rows[0::2]], projections[rows[1::2]]) for rows in batches]
    return {
        "recall@1": found["recall@1"],
        "recall@5": found["recall@5"],
        "map@r": found["map@r"],
        "features_recall@1": before["recall@1"],
        "features_map@r": before["map@r"],
        **_bounds(critic, arm, miner, pairs),
    }


def _forever(sampler: object) -> Iterator[list[int]]:
    while True:
        yield from sampler


def _probed(
    task: Task, encoder: torch.nn.Module, projector: torch.nn.Module, critic: Cosine, arm: Arm, miner: object, seed: int
) -> Figures:
    """Probes on features, and two views of a test image finding each other."""
    train, test = _embedded(encoder, task.train.images), _embedded(encoder, task.test.images)
    torch.manual_seed(derived_seed(999, 0))  # the same views for every run
    model = torch.nn.Sequential(encoder, projector)
    views = [_embedded(model, task.view(task.test.images / 255)) for _ in range(2)]
    starts = range(0, len(views[0]) - task.batch + 1, task.batch)
    pairs = [(views[0][i : i + task.batch], views[1][i : i + task.batch]) for i in starts]
    found = evaluate_retrieval(test, task.test.labels, ks=(1,)).mean
    return {
        "recall@1": found["recall@1"],
        "map@r": found["map@r"],
        "knn": knn_accuracy(train, task.train.labels, test, task.test.labels),
        "linear": linear_accuracy(train, task.train.labels, test, task.test.labels),
        "instance_recall@1": instance_recall(*views).mean["recall@1"],
        **_bounds(critic, arm, miner, pairs),
    }


@torch.no_grad()
def _bounds(critic: Cosine, arm: Arm, miner: object, pairs: list[tuple[Tensor, Tensor]]) -> Figures:
    """InfoNCE of the trained critic on held-out pairs, uniform negatives; and whether the trained loss bounds."""
    bounds = [infonce_bound(critic(x, y)) for x, y in pairs]
    # Keys of older encoders, classes chosen for being near and several positives lie outside every theorem.
    independent = not (arm.queue or arm.near_classes or arm.all_positives)
    x, y = pairs[0]
    if arm.intra_view:  # rows of both views, where negatives come in groups
        both, images = torch.cat([x, y]), torch.arange(len(x), device=x.device).repeat(2)
        mined = bound(critic(both, both), two_views(images, images), miner=miner)
        status = mined.status if independent else "not a bound"
    else:
        status = infonce_bound(critic(x, y), miner=miner, independent=independent).status
    return {
        "test_bound": sum(bound.value for bound in bounds) / len(bounds),
        "bound_status": bounds[0].status,
        "bound_cap": bounds[0].cap,
        "loss_status": "not a bound" if arm.linear else status,  # no log-sum, so nothing to take from log K
    }
