r"""Hard negatives from the whole data set: mined once for all, or by batches that are made of neighbours.

Miners weigh the negatives that a batch happens to hold. Here the data set is searched, so that batches hold hard ones:
the weights stay uniform, the sampler changes. What that does to the bound on mutual information is said in
`neighbour_batches`.

>>> import torch
>>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
>>> mine_negatives(embeddings, 1).ids.flatten()
tensor([1, 0, 3, 2])
>>> [sorted(batch) for batch in neighbour_batches(4, 2, lambda: embeddings)] in ([[0, 1], [2, 3]], [[2, 3], [0, 1]])
True
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from contrastive.allpairs import AllPairs
from contrastive.errors import InputError
from contrastive.factors import without_autocast
from contrastive.retrieval import Labels, Metric, Ranking, Rows, as_rows, label_ids, unit_rows

__all__ = [
    "BatchSampler",
    "HardClassBatches",
    "NeighbourBatches",
    "class_means",
    "hard_class_batches",
    "mine_negatives",
    "neighbour_batches",
]


def mine_negatives(
    embeddings: Rows,
    k: int,
    *,
    labels: Labels | None = None,
    threshold: float | None = None,
    metric: Metric = "cosine",
    index: str | None = None,
    nprobe: int = 32,
) -> Ranking:
    r"""Finds the k hardest negatives of every row among all the others.

    .. math::
        \text{the } k \text{ largest } s_{ij} \text{ with } j \ne i,\; c_j \ne c_i,\; s_{ij} \le \theta

    A row is left out of its own negatives by its number: exact duplicates of it stay, unless the threshold or a label
    says otherwise. The search is exact unless an index is named, equal scores are ordered by id, and a score is a
    function of its two rows alone: neither the number of threads nor the order of work changes a digit. The full matrix
    of scores is never formed.

    Arguments:
        embeddings: shape [rows, dim], finite.
        k: how many, from 1 to the number of rows less 1.
        labels: rows of the same label are no negatives of each other.
        threshold: :math:`\theta`, in units of the score: what scores above it is taken for a duplicate.
        metric: as in `contrastive.search`.
        index: a FAISS factory string such as ``"IVF4096,Flat"``: search approximately. Its finds alone are approximate,
            their scores are not. An index has no order among ties.
        nprobe: of an inverted file, how many of its lists are searched.

    Returns:
        Ids and scores, hardest first. Where a row has fewer than k negatives, the rest of its ids is -1 and of its
        scores :math:`-\infty`.

    Raises:
        InputError: for shapes, dtypes, labels or options that do not fit, NaN or infinite values, an unknown index.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.6, 0.8]])
        >>> mine_negatives(embeddings, 2, threshold=0.9).ids
        tensor([[ 2, -1],
                [ 2, -1],
                [ 1,  0]])

    References:
        | Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval (Xiong et al., 2021)
        | https://arxiv.org/abs/2007.00808
    """
    name = "mine_negatives"
    rows = as_rows(name, "embeddings", embeddings)
    classes = None if labels is None else label_ids(name, ("labels", labels, len(rows)))[0]
    _check_at_least(name, {"nprobe": (nprobe, 1)})
    options: dict[str, Any] = {"metric": metric, "classes": classes, "threshold": threshold}
    return AllPairs(name, rows, **options, index=index, nprobe=nprobe).top(k)


def neighbour_batches(
    items: int,
    batch_size: int,
    embeddings: Callable[[], Rows] | None = None,
    *,
    every: int = 1000,
    warmup: int = 0,
    k: int = 32,
    share: float = 1.0,
    skip: int = 0,
    threshold: float | None = None,
    labels: Labels | None = None,
    metric: Metric = "cosine",
    index: str | None = None,
    nprobe: int = 32,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    background: bool = False,
) -> "NeighbourBatches":
    r"""Makes batches of neighbours in the whole data set, for ``DataLoader(batch_sampler=...)``.

    A batch begins with the first item, in the shuffled order of the epoch, that has not been visited; the unvisited
    ones among its k nearest neighbours join it, then those of the ones that joined, until `share` of the batch is full.
    The rest are the next items in the shuffled order. No item is visited twice in an epoch, and none is left out but
    for a last incomplete batch: with ``share=0``, and before the first embeddings, batches are a plain shuffle.

    Two items are never in one batch if one scores above `threshold` with the other, is among the other's `skip`
    nearest, or has its label: they are suspected to be no negatives of each other. An item that begins no full batch
    for this reason is left out of the epoch, like a last incomplete batch, and after as many of them in a row as a
    batch has items the epoch ends; it is then shorter than ``len``.

    Neighbours are searched anew every so many steps, within the step: a batch is a pure function of seed, epoch, step
    and the embeddings so far, and a run that is killed and resumed sees the very batches it would have seen
    (`NeighbourBatches.state_dict`). With several processes every rank must be given the same embeddings.

    Such candidates depend on each other, and on the anchor by more than its positive: they are not exchangeable. The
    loss bounds nothing then; ask ``infonce_bound(..., independent=False)``, and evaluate the trained critic on random
    batches.

    Arguments:
        items: how many items there are, numbered from 0.
        batch_size: items in a batch, over all ranks.
        embeddings: returns the current embeddings of all items, one a row. None: the caller passes them to
            `NeighbourBatches.refresh` at steps of its own.
        every: steps between two searches.
        warmup: the first search is at the first multiple of `every` that is not below it; batches are random until
            then.
        k: neighbours kept of every item, as far as there are so many.
        share: of a batch that is made of neighbours, in [0, 1].
        skip: nearest neighbours that are kept out of an item's batch. Those that `threshold` or `labels` keep out
            anyway are not counted.
        threshold: score, in units of the metric, above which items are kept out of each other's batch.
        labels: one an item: items of the same label are kept out of each other's batch.
        metric: as in `contrastive.search`.
        index: as in `mine_negatives`.
        nprobe: as in `mine_negatives`.
        seed: of the shuffles.
        rank: of this process: it gets every `world`-th item of each batch.
        world: how many processes there are; divides `batch_size`.
        background: search in a thread, and go on with the old neighbours until it is done. When that is depends on the
            machine: a resumed run is not exact then.

    Raises:
        InputError: for numbers out of range, labels that do not fit; while iterating, for embeddings that do not fit.

    Example:
        >>> embeddings = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> sampler = neighbour_batches(4, 2, lambda: embeddings, metric="euclidean", every=10)
        >>> sorted(sorted(batch) for batch in sampler)
        [[0, 1], [2, 3]]

    References:
        | Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval (Xiong et al., 2021)
        | https://arxiv.org/abs/2007.00808
        | BatchSampler: Sampling Mini-Batches for Contrastive Learning (Yang et al., 2023)
        | https://arxiv.org/abs/2306.03355
    """
    name = "neighbour_batches"
    _check_at_least(name, {"items": (items, 2), "batch_size": (batch_size, 1), "every": (every, 1), "k": (k, 1)})
    _check_at_least(name, {"warmup": (warmup, 0), "skip": (skip, 0), "nprobe": (nprobe, 1)})
    _check_ranks(name, rank, world, "batch_size", batch_size)
    _check_share(name, share)
    if batch_size > items:
        raise InputError(f"{name}: batch_size is {batch_size}, expected at most {items}, the number of items")
    if skip > items - 2:
        raise InputError(f"{name}: skip is {skip}, expected at most {items - 2}: one neighbour must be left")
    classes = None if labels is None else label_ids(name, ("labels", labels, items))[0]
    if classes is not None and batch_size > (different := int(classes.max()) + 1):
        raise InputError(
            f"{name}: batch_size is {batch_size}, expected at most {different}: one item of each label in a batch"
        )
    options: dict[str, Any] = {
        "metric": metric,
        "classes": classes,
        "threshold": threshold,
        "index": index,
        "nprobe": nprobe,
    }
    # What is wrong with these options is said now, not at the first search.
    AllPairs(name, torch.eye(2), metric=metric, threshold=threshold)
    return NeighbourBatches(
        items,
        batch_size,
        embeddings,
        every=every,
        warmup=warmup,
        k=min(k, items - 1 - skip),
        hard=round(share * (batch_size - 1)),
        skip=skip,
        search=options,
        seed=seed,
        part=slice(rank, None, world),
        background=background,
    )


def hard_class_batches(
    labels: Labels,
    classes: int,
    per_class: int = 2,
    means: Callable[[], Rows] | None = None,
    *,
    every: int = 50,
    warmup: int = 0,
    share: float = 1.0,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
) -> "HardClassBatches":
    r"""Makes batches of classes that are near each other: negative class mining, for ``DataLoader(batch_sampler=...)``.

    The first class S of a batch is drawn at random. Then, again and again, the class joins whose mean is closest to any
    that has been chosen,

    .. math::
        \arg\max_{c \notin S}\; \max_{s \in S}\; \cos(\mu_c, \mu_s),

    ties at random, until `share` of the batch is chosen; the rest are drawn at random. Each class gives `per_class`
    examples. A class that joins costs one product of all means with its own. Every draw is a function of seed and step.

    As with `neighbour_batches` the candidates are not exchangeable, and the loss bounds nothing.

    Arguments:
        labels: one an item. Classes of fewer than `per_class` items take no part.
        classes: in a batch.
        per_class: examples of each, at least 1.
        means: returns the current means, one row a class in the sorted order of the labels (`class_means`). None: the
            caller passes them to `HardClassBatches.refresh`.
        every: steps between two calls of `means`.
        warmup: the first call is at the first multiple of `every` that is not below it; classes are drawn at random
            until then.
        share: of the further classes that are chosen by their means, in [0, 1].
        seed: of the draws.
        rank: of this process: it gets an equal part of the classes of each batch.
        world: how many processes there are; divides `classes`.

    Raises:
        InputError: for numbers out of range, too few classes; while iterating, for means that do not fit.

    Example:
        >>> labels = ["a", "a", "b", "b", "c", "c", "d", "d"]
        >>> means = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> sampler = hard_class_batches(labels, 2, 2, lambda: means)
        >>> all(sorted(batch) in ([0, 1, 2, 3], [4, 5, 6, 7]) for batch in sampler)
        True

    References:
        | Improved Deep Metric Learning with Multi-class N-pair Loss Objective (Sohn, 2016), section 3.2.1
        | https://papers.nips.cc/paper/2016/hash/6b180037abbebea991d8b1232f8a8ca9-Abstract.html
    """
    name = "hard_class_batches"
    _check_at_least(name, {"classes": (classes, 1), "per_class": (per_class, 1), "every": (every, 1)})
    _check_at_least(name, {"warmup": (warmup, 0)})
    _check_ranks(name, rank, world, "classes", classes)
    _check_share(name, share)
    ids = label_ids(name, ("labels", labels, len(labels)))[0].numpy()
    members = np.split(np.argsort(ids, kind="stable"), np.bincount(ids).cumsum()[:-1])
    large = sum(len(rows) >= per_class for rows in members)
    if large < classes:
        raise InputError(f"{name}: {large} classes have {per_class} items or more, expected at least {classes}")
    part = slice(rank * classes * per_class // world, (rank + 1) * classes * per_class // world)
    return HardClassBatches(
        members,
        classes,
        per_class,
        means,
        every=every,
        warmup=warmup,
        hard=round(share * (classes - 1)),
        seed=seed,
        part=part,
    )


def class_means(embeddings: Rows, labels: Labels) -> Float[Tensor, "classes dim"]:
    r"""The mean of the unit embeddings of every class, in the sorted order of the labels.

    .. math::
        \mu_c = \frac{1}{n_c} \sum_{i : c_i = c} \frac{z_i}{\lVert z_i \rVert}

    Arguments:
        embeddings: one a row.
        labels: one a row.

    Raises:
        InputError: for labels that do not fit, NaN or infinite values.

    Example:
        >>> class_means(torch.tensor([[0.0, 2.0], [3.0, 0.0], [5.0, 0.0]]), ["b", "a", "a"])
        tensor([[1., 0.],
                [0., 1.]])
    """
    rows = unit_rows(as_rows("class_means", "embeddings", embeddings))
    ids = label_ids("class_means", ("labels", labels, len(rows)))[0].to(rows.device)
    sums = rows.new_zeros(int(ids.max()) + 1, rows.shape[1]).index_add_(0, ids, rows)
    return sums / ids.bincount()[:, None]


# --- samplers ---------------------------------------------------------------------------------------------------------


class BatchSampler(ABC):
    """What both samplers share: where they are, what they have handed out, when they look again.

    A `DataLoader` with workers asks for batches before they are trained on, a fixed number ahead: the batches and the
    steps of a refresh are the same in every run, but the sampler is ahead of the training. `state_dict` can be told.

    Arguments:
        source: returns what `refresh` takes; None where the caller does that.
        every: steps between two calls of it.
        warmup: the first is at the first multiple of `every` that is not below it.
        seed: of all draws.
        part: what this rank gets of a batch.
    """

    def __init__(self, source: Callable[[], Rows] | None, *, every: int, warmup: int, seed: int, part: slice) -> None:
        self.epoch = 0  # the epoch under way, or the next one
        self.given = 0  # batches of it handed out
        self.step = 0  # batches handed out since the beginning
        self._source, self._every, self._warmup, self._seed, self._part = source, every, warmup, seed, part
        self._refreshed = -1  # the step of the latest call
        self._recent: deque[list[int]] = deque(maxlen=256)
        self._again: list[list[int]] = []

    @abstractmethod
    def __len__(self) -> int:
        """Batches in an epoch."""

    @abstractmethod
    def refresh(self, rows: Rows) -> None:
        """Takes what the next batches are made from."""

    @abstractmethod
    def _next(self) -> list[int] | None:
        """The next batch of the epoch, over all ranks; None where no full one is left."""

    @abstractmethod
    def _settle(self) -> None:
        """Waits for what goes on beside: the loader may fork its workers next."""

    def __iter__(self) -> Iterator[list[int]]:
        self._settle()
        return self._rest_of_epoch()

    def _rest_of_epoch(self) -> Iterator[list[int]]:
        if self._again:
            over = self.given == 0  # they were the last ones of an epoch that has been counted already
            while self._again:
                yield self._handed(self._again.pop(0))
            if over:
                return
        if self.given == 0:
            self._recent.clear()
        while (batch := self._planned()) is not None:
            self.step += 1
            self.given += 1
            over = self.given == len(self)
            if over:
                # Said before the last batch is handed out: a checkpoint after it belongs to the next epoch.
                self._end_epoch()
            yield self._handed(batch[self._part])
            if over:
                return
        self._end_epoch()

    def _planned(self) -> list[int] | None:
        due = self.step >= self._warmup and self.step % self._every == 0 and self.step != self._refreshed
        if self._source is not None and due:
            self.refresh(self._source())
            self._refreshed = self.step
        return self._next()

    def _handed(self, batch: list[int]) -> list[int]:
        self._recent.append(batch)
        return batch

    def _end_epoch(self) -> None:
        self.epoch, self.given = self.epoch + 1, 0

    def state_dict(self, *, ahead: int = 0) -> dict[str, Any]:
        """What makes a new sampler of the same options go on with the very next batch.

        Arguments:
            ahead: batches of the epoch that were handed out and not trained on, at most 256: with workers, the loader's
                ``num_workers * prefetch_factor`` or what the epoch has left, if that is less. The new sampler hands
                them out again first.
        """
        if not 0 <= ahead <= len(self._recent):
            raise InputError(
                f"state_dict: ahead is {ahead}, expected 0 to {len(self._recent)}, the latest batches handed out"
            )
        again = [*list(self._recent)[len(self._recent) - ahead :], *self._again]
        return {
            "epoch": self.epoch,
            "given": self.given,
            "step": self.step,
            "refreshed": self._refreshed,
            "again": again,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Arguments:
            state: of `state_dict`, of a sampler of the same options.
        """
        self.epoch, self.given, self.step = state["epoch"], state["given"], state["step"]
        self._refreshed, self._again = state["refreshed"], [list(batch) for batch in state["again"]]
        self._recent.clear()


class NeighbourBatches(BatchSampler):
    """The sampler that `neighbour_batches` makes.

    Arguments:
        items: as there.
        batch_size: as there.
        embeddings: as there.
        every: as there.
        warmup: as there.
        k: as there.
        hard: items of a batch that are taken from neighbours.
        skip: as there.
        search: metric, classes, threshold, index and nprobe.
        seed: as there.
        part: of a batch, for this rank.
        background: as there.
    """

    def __init__(
        self,
        items: int,
        batch_size: int,
        embeddings: Callable[[], Rows] | None,
        *,
        every: int,
        warmup: int,
        k: int,
        hard: int,
        skip: int,
        search: dict[str, Any],
        seed: int,
        part: slice,
        background: bool,
    ) -> None:
        super().__init__(embeddings, every=every, warmup=warmup, seed=seed, part=part)
        self.items, self.batch_size = items, batch_size
        self.neighbours: NDArray[np.int64] | None = None  # [items, k], -1 where there are fewer
        self._k, self._hard, self._skip, self._search = k, hard, skip, search
        self._nearest: NDArray[np.int64] | None = None  # [items, skip]
        self._rows: NDArray[np.float32] | None = None  # what the threshold compares
        self._visited = np.zeros(items, dtype=bool)
        self._order: NDArray[np.int64] | None = None
        self._first = 0  # every item before this place of the order is visited
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="neighbours") if background else None
        self._pending: Future[Any] | None = None
        classes = search["classes"]
        self._classes = None if classes is None else classes.numpy()

    def __len__(self) -> int:
        return self.items // self.batch_size

    def refresh(self, rows: Rows) -> None:
        """Searches the neighbours of all items; the next batch is made of them.

        Arguments:
            rows: the embeddings of all items.

        Raises:
            InputError: for another number of rows, another dtype than a floating-point one, NaN or infinite values.
        """
        if self._thread is None:
            self._take(self._searched(rows))
        elif self._pending is None:
            # What was returned may be a buffer that training goes on to fill.
            copied = rows.clone() if isinstance(rows, Tensor) else np.array(rows)
            self._pending = self._thread.submit(self._searched, copied)

    def _searched(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        name = "neighbour_batches"
        checked = as_rows(name, "embeddings", rows)
        if len(checked) != self.items:
            raise InputError(f"{name}: embeddings have shape {tuple(checked.shape)}, expected {self.items} rows")
        search = AllPairs(name, checked, **self._search)
        ids = search.top(self._k + self._skip).ids.cpu().numpy()
        return ids, None if self._search["threshold"] is None else search.rows.float().cpu().numpy()

    def _take(self, found: tuple[NDArray[np.int64], NDArray[np.float32] | None]) -> None:
        ids, self._rows = found
        self._nearest, self.neighbours = ids[:, : self._skip], ids[:, self._skip :]

    def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._take(pending.result())

    def _next(self) -> list[int] | None:
        if self._pending is not None and self._pending.done():
            self._settle()
        if self.given == 0:
            self._visited[:] = False
        if self.given == 0 or self._order is None:
            self._order = np.random.default_rng((self._seed, self.epoch)).permutation(self.items)
            self._first = 0
        # Each of them may be an item that fits nowhere. Of more in a row there is likely no end: all are of one label.
        for _ in range(self.batch_size):
            if self.items - int(self._visited.sum()) < self.batch_size:
                break
            while self._visited[self._order[self._first]]:
                self._first += 1
            draft = _Draft(self._visited, self._nearest, self._classes, self._rows, self._search)
            draft.add(int(self._order[self._first]))
            if self.neighbours is not None:
                draft.grow(self.neighbours, 1 + self._hard)
            draft.fill(self._order[self._first :], self.batch_size)
            if len(draft.items) == self.batch_size:
                self._visited[draft.items] = True
                return draft.items
            self._visited[draft.items[0]] = True
        return None

    def state_dict(self, *, ahead: int = 0) -> dict[str, Any]:
        """The state of `BatchSampler`, with visited items, neighbours, and the embeddings that a threshold compares.

        A search in the background is waited for.

        Arguments:
            ahead: as in `BatchSampler.state_dict`.
        """
        self._settle()
        arrays = self._visited, self.neighbours, self._nearest, self._rows
        tensors = [None if array is None else torch.from_numpy(array.copy()) for array in arrays]
        return super().state_dict(ahead=ahead) | dict(zip(_ARRAYS, tensors, strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Arguments:
            state: of `state_dict`, of a sampler of the same options.

        Raises:
            InputError: for a state of another number of items.
        """
        if len(state["visited"]) != self.items:
            raise InputError(f"load_state_dict: the state is of {len(state['visited'])} items, expected {self.items}")
        self._pending = None  # what is searched for would take the place of what is loaded
        super().load_state_dict(state)
        arrays: list[Any] = [None if state[key] is None else state[key].numpy().copy() for key in _ARRAYS]
        self._visited, self.neighbours, self._nearest, self._rows = arrays
        self._order = None


_ARRAYS = ("visited", "neighbours", "nearest", "rows")


class _Draft:
    """A batch in the making, and who may still join it.

    Arguments:
        visited: the items that an earlier batch of the epoch holds.
        nearest: of each item, those it must not meet; None: none.
        classes: of each item; None: all differ.
        rows: of each item, compared with the threshold; None: no threshold.
        search: metric and threshold.
    """

    def __init__(
        self,
        visited: NDArray[np.bool_],
        nearest: NDArray[np.int64] | None,
        classes: NDArray[np.int64] | None,
        rows: NDArray[np.float32] | None,
        search: dict[str, Any],
    ) -> None:
        self.items: list[int] = []
        self._visited, self._nearest, self._classes, self._rows = visited, nearest, classes, rows
        self._metric, self._threshold = search["metric"], search["threshold"]
        self._chosen: set[int] = set()
        self._refused: set[int] = set()
        self._taken: set[int] = set()
        self._held = np.empty((0, 0 if rows is None else rows.shape[1]), dtype=np.float32)

    def add(self, item: int) -> None:
        self.items.append(item)
        self._chosen.add(item)
        if self._nearest is not None:
            self._refused.update(self._nearest[item].tolist())
        if self._classes is not None:
            self._taken.add(int(self._classes[item]))
        if self._rows is not None:
            if len(self.items) > len(self._held):
                self._held = np.concatenate([self._held, np.empty((64, self._rows.shape[1]), dtype=np.float32)])
            self._held[len(self.items) - 1] = self._rows[item]

    def grow(self, neighbours: NDArray[np.int64], size: int) -> None:
        """Adds neighbours of the first item, then of the second, and so on."""
        for item in self.items:  # it grows meanwhile
            for other in neighbours[item].tolist():
                if len(self.items) >= size or other < 0:
                    break
                if self._fits(other):
                    self.add(other)

    def fill(self, order: NDArray[np.int64], size: int) -> None:
        """Adds the next items of the order."""
        for first in range(0, len(order), 4 * size):
            some = order[first : first + 4 * size]
            for other in some[~self._visited[some]].tolist():
                if len(self.items) >= size:
                    return
                if self._fits(other):
                    self.add(other)

    def _fits(self, item: int) -> bool:
        if self._visited[item] or item in self._chosen or item in self._refused:
            return False
        if self._nearest is not None and not self._chosen.isdisjoint(self._nearest[item].tolist()):
            return False
        if self._classes is not None and int(self._classes[item]) in self._taken:
            return False
        if self._rows is None:
            return True
        held, row = self._held[: len(self.items)], self._rows[item]
        scores = -np.square(held - row).sum(1) if self._metric == "euclidean" else held @ row
        return bool(scores.max() <= self._threshold)


class HardClassBatches(BatchSampler):
    """The sampler that `hard_class_batches` makes.

    Arguments:
        members: the items of every class.
        classes: as there.
        per_class: as there.
        means: as there.
        every: as there.
        warmup: as there.
        hard: further classes of a batch that are chosen by their means.
        seed: as there.
        part: of a batch, for this rank.
    """

    def __init__(
        self,
        members: list[NDArray[np.int64]],
        classes: int,
        per_class: int,
        means: Callable[[], Rows] | None,
        *,
        every: int,
        warmup: int,
        hard: int,
        seed: int,
        part: slice,
    ) -> None:
        super().__init__(means, every=every, warmup=warmup, seed=seed, part=part)
        self.means: Float[Tensor, "classes dim"] | None = None  # of length 1
        self._members, self._number, self._per_class, self._hard = members, classes, per_class, hard
        self._large = np.array([len(rows) >= per_class for rows in members])

    def __len__(self) -> int:
        items = sum(len(rows) for rows in self._members if len(rows) >= self._per_class)
        return max(1, items // (self._number * self._per_class))

    def refresh(self, rows: Rows) -> None:
        """Takes the means of the classes; the next batch is made by them.

        Arguments:
            rows: one a class, in the sorted order of the labels, those of small classes included.

        Raises:
            InputError: for another number of rows, another dtype than a floating-point one, NaN or infinite values.
        """
        means = as_rows("hard_class_batches", "means", rows)
        if len(means) != len(self._members):
            raise InputError(
                f"hard_class_batches: means have shape {tuple(means.shape)}, expected {len(self._members)} rows"
            )
        self.means = unit_rows(means).cpu().clone()

    def _settle(self) -> None:
        pass

    def _next(self) -> list[int]:
        generator = np.random.default_rng((self._seed, self.step))
        free = self._large.copy()
        chosen: list[int] = []
        nearness = np.full(len(free), -np.inf)
        while len(chosen) < self._number:
            open_classes = np.flatnonzero(free)
            if self.means is not None and 0 < len(chosen) <= self._hard:
                with without_autocast(self.means):  # a loader may be asked within it
                    latest = (self.means @ self.means[chosen[-1]]).numpy()
                nearness = np.maximum(nearness, latest)
                best = nearness[open_classes]
                open_classes = open_classes[best == best.max()]
            chosen.append(int(generator.choice(open_classes)))
            free[chosen[-1]] = False
        return [
            int(item) for one in chosen for item in generator.choice(self._members[one], self._per_class, replace=False)
        ]

    def state_dict(self, *, ahead: int = 0) -> dict[str, Any]:
        """The state of `BatchSampler`, and the means.

        Arguments:
            ahead: as in `BatchSampler.state_dict`.
        """
        return super().state_dict(ahead=ahead) | {"means": None if self.means is None else self.means.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Arguments:
            state: of `state_dict`, of a sampler of the same options.
        """
        super().load_state_dict(state)
        self.means = None if state["means"] is None else state["means"].clone()


# --- validation -------------------------------------------------------------------------------------------------------


def _check_at_least(function: str, numbers: dict[str, tuple[int, int]]) -> None:
    for name, (number, least) in numbers.items():
        if isinstance(number, bool) or number < least:
            raise InputError(f"{function}: {name} is {number}, expected at least {least}")


def _check_share(function: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise InputError(f"{function}: share is {share}, expected a number in [0, 1]")


def _check_ranks(function: str, rank: int, world: int, name: str, size: int) -> None:
    if not 0 <= rank < world:
        raise InputError(f"{function}: rank is {rank} and world {world}, expected a rank from 0 to world - 1")
    if size % world:
        raise InputError(f"{function}: {name} is {size} with {world} ranks, expected a multiple")
