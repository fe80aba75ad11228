r"""Rows that several machines hold: each rank of torch.distributed a part of them, and all get the same answers.

A query goes to every rank, each finds its nearest among the rows it holds, and the findings are merged: the larger
score first, among equals the lower id, whoever holds it.

>>> import torch
>>> rows = Shard(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), ids=torch.tensor([5, 7, 2]))  # on every rank
>>> search_shards("example", rows, rows, 1, exclude_self=True).ids.flatten()
tensor([7, 5, 7])
"""

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from contrastive import _faiss
from contrastive.collectives import Group, gather_rows, rank_of, sum_over_ranks, world_size
from contrastive.errors import InputError
from contrastive.launch import of_all, together
from contrastive.neighbours import (
    BLOCK,
    RANKING_BLOCK,
    Metric,
    Progress,
    Ranking,
    Rows,
    Search,
    Space,
    Target,
    as_rows,
    own_rows,
    precision,
    raised,
    refuse_others,
)
from contrastive.ranking import in_order

__all__ = ["Shard", "ShardSearch", "as_queries", "search_shards"]

# Items beyond the k nearest that are scored at least, so that most queries are sure at once.
_MORE = 16


class Shard:
    """This rank's part of rows that the ranks of torch.distributed hold together. Every rank must call.

    Where it stands in the place of rows, every rank calls the same functions in the same order, with the labels of its
    own rows, and gets the same result. Parts may be of any size, 0 included.

    Arguments:
        rows: shape [rows, dim], finite; a memory map is read a block at a time.
        ids: what to call them, at least 0. An id that occurs again, as in the padding of a distributed sampler, is the
            same row and counts once, the first that is there. None: rows are numbered through all ranks, rank 0 first.
        group: of the ranks that hold the rows; None: all.

    Raises:
        InputError: on every rank, for rows or ids of any of them that do not fit.
    """

    def __init__(self, rows: Rows, *, ids: Int64[Tensor, " rows"] | None = None, group: Group = None) -> None:
        self.group = group
        x, numbers = together(lambda: _checked(rows, ids), group)
        parts = of_all((len(x), (x.shape[1], precision(x)), numbers is not None), group)
        self.lengths = [length for length, _, _ in parts]
        if len({kind for _, kind, _ in parts}) > 1:
            raise InputError("Shard: rows are of different widths or dtypes on the ranks, expected the same")
        if len({named for _, _, named in parts}) > 1:
            raise InputError("Shard: ids are given on some ranks, expected all or none")
        if sum(self.lengths) == 0:
            raise InputError("Shard: rows are empty on all ranks, expected at least one")
        first = sum(self.lengths[: rank_of(group)])
        here = torch.arange(first, first + len(x), device=x.device)
        (everywhere,) = gather_rows(here if numbers is None else numbers, lengths=self.lengths, group=group)
        ordered, order = everywhere.sort(stable=True)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[1:] = ordered[1:] != ordered[:-1]
        self.ids = ordered[new]
        # Of every place the row that counts, of every row its place.
        self._first = order[new]
        self._place = torch.empty_like(order).scatter_(0, order, new.cumsum(0) - 1)
        self.own = self._place[here]
        counts = (self._first[self.own] == here).nonzero().squeeze(1)
        self.places, order = self.own[counts].sort()
        counts = counts[order]
        in_order = len(counts) == len(x) and bool((counts.diff() == 1).all())
        self.rows = x if in_order else x[counts]  # a memory map stays one
        self.shape, self.dtype, self.device = torch.Size((len(self.ids), x.shape[1])), precision(x), x.device

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, places: Int64[Tensor, " some"]) -> Float[Tensor, "some dim"]:
        """Rows by their place among all, in the order of ids. Every rank must ask for the same."""
        found = torch.zeros(len(places), self.shape[1], dtype=self.dtype, device=self.device)
        here = self.held(places)
        found[here >= 0] = raised(self.rows[here[here >= 0]])
        return sum_over_ranks(found, self.group)

    def held(self, places: Int64[Tensor, " some"]) -> Int64[Tensor, " some"]:
        """Where rows stand in `rows`; -1 for those that another rank holds.

        Arguments:
            places: of them among all.
        """
        if not len(self.places):
            return torch.full_like(places, -1)
        at = torch.searchsorted(self.places, places).clamp_max(len(self.places) - 1)
        return torch.where(self.places[at] == places, at, -1)

    def of_every_row(self, name: str, values: Any) -> Any:
        """What every rank knows of its own rows, put together in the order of ids.

        Arguments:
            name: of the values, for messages.
            values: a tensor or a sequence, one a row.

        Raises:
            InputError: on every rank, for another number of values than rows, or two values of one id.
        """
        values = torch.from_numpy(values) if isinstance(values, np.ndarray) and values.dtype.kind in "biu" else values
        together(lambda: _refuse_other_length(name, len(values), len(self.own)), self.group)
        if isinstance(values, Tensor):
            values = values.to(self.device, values.dtype if values.is_floating_point() else torch.int64)
        kinds = of_all((values.dtype, values.shape[1:]) if isinstance(values, Tensor) else None, self.group)
        if None not in kinds:
            if len(set(kinds)) > 1:
                raise InputError(f"Shard: {name} are of different dtypes or widths on the ranks, expected the same")
            (everywhere,) = gather_rows(values, lengths=self.lengths, group=self.group)
            chosen: Any = everywhere[self._first]
            differ = (everywhere != chosen[self._place]).view(len(everywhere), -1).any(1).nonzero().squeeze(1).tolist()
        else:
            mine = values.tolist() if isinstance(values, Tensor) else list(values)
            listed = [value for part in of_all(mine, self.group) for value in part]
            chosen = of_place = [listed[row] for row in self._first.tolist()]
            again = (self._first[self._place] != torch.arange(len(listed), device=self.device)).nonzero().squeeze(1)
            differ = [row for row in again.tolist() if listed[row] != of_place[int(self._place[row])]]
        if differ:
            raise InputError(
                f"Shard: {name} of id {int(self.ids[self._place[differ[0]]])} differ where it occurs again, "
                "expected the same"
            )
        return chosen


def _checked(rows: Rows, ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if len(rows):
        x = as_rows("Shard", "rows", rows)
    else:
        x = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows.detach()
        if x.ndim != 2 or x.shape[1] == 0 or not x.is_floating_point():
            raise InputError(
                f"Shard: rows have dtype {x.dtype} and shape {tuple(x.shape)}, expected floats [rows, dim]"
            )
    if ids is None:
        return x, None
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.shape != x.shape[:1]:
        raise InputError(f"Shard: ids have dtype {ids.dtype} and shape {tuple(ids.shape)}, expected {len(x)} integers")
    if len(ids) and int(ids.min()) < 0:
        raise InputError(f"Shard: ids hold {int(ids.min())}, expected ids of at least 0")
    return x, ids.detach().to(x.device, torch.int64)


def _refuse_other_length(name: str, found: int, rows: int) -> None:
    if found != rows:
        raise InputError(f"Shard: {found} {name} for {rows} rows, expected one a row")


# --- search -----------------------------------------------------------------------------------------------------------


class ShardSearch:
    """Some queries against a gallery of shards: what `Search` is of one process. Every rank calls the same.

    A product of matrices rounds as the library cuts it, and that depends on how many rows there are. So every rank
    finds a few more than k of its rows by whatever back end, scores these anew, each from its two rows alone, and asks
    for more until nothing that was left out can be among the k best. (`faiss.merge_knn_results` is no help: of equal
    scores it keeps those of the higher rank.)

    Arguments:
        function: name of the caller, for messages.
        queries: a shard; or rows, the same on all ranks.
        gallery: a shard.
        metric: as in `contrastive.search`.
        backend: as in `contrastive.search`; an index is of the rank's own rows, and its answers do depend on them.
        nprobe: of an inverted file.
        own: for each query the place in the gallery that it must not return, or None.
        rows: the queries to run; None means all.
        progress: is told how far it is.
    """

    def __init__(
        self,
        function: str,
        queries: Shard | Tensor,
        gallery: Shard,
        *,
        metric: str,
        backend: str = "auto",
        nprobe: int = 32,
        own: Int64[Tensor, " queries"] | None = None,
        rows: Int64[Tensor, " run"] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.function, self.queries, self.gallery, self.metric = function, queries, gallery, metric
        self.progress = progress
        self.rows = torch.arange(len(queries), device=gallery.device) if rows is None else rows
        self.own = own if own is None or rows is None else own[rows]
        self.approximate = _faiss.is_factory(backend)
        dtype = torch.float32 if backend == "faiss" or self.approximate else gallery.dtype
        held = gallery.rows if len(gallery.rows) else gallery.rows.new_zeros(1, gallery.shape[1])
        centre = _centre(held, gallery) if metric == "euclidean" else None
        space = Space.of(function, held, metric, dtype, centre=centre)
        space = replace(space, longest=max(of_all(space.longest if len(gallery.rows) else 0.0, gallery.group)))
        self._target = together(
            lambda: Target(function, held, metric=metric, backend=backend, nprobe=nprobe, space=space), gallery.group
        )

    @property
    def size(self) -> int:
        """How many rows the gallery has."""
        return len(self.gallery)

    def after(self, skip: int, progress: Progress | None = None) -> "ShardSearch":
        """As `Search.after`."""
        return self.only(torch.arange(skip, len(self.rows), device=self.rows.device), progress)

    def only(self, places: Int64[Tensor, " some"], progress: Progress | None = None) -> "ShardSearch":
        """As `Search.only`."""
        some = copy(self)
        some.rows, some.progress = self.rows[places], progress
        some.own = None if self.own is None else self.own[places]
        return some

    def rankings(
        self, k: int, *, exact: bool = False
    ) -> Iterator[tuple[slice, Int64[Tensor, "s k"], Float[Tensor, "s k"]]]:
        """As `Search.rankings`; ids are places in the gallery."""
        count, length = len(self.rows), max(1, min(RANKING_BLOCK // (k + 2), 4096))
        starts = range(0, count, length)
        for done, start in enumerate(starts):
            part = slice(start, min(start + length, count))
            places = torch.arange(part.start, part.stop, device=self.rows.device)
            scores, ids = self.only(places)._merged(k, by_index=self.approximate and not exact)
            if self.progress is not None:
                self.progress(done + 1, len(starts))
            yield part, ids, scores

    def settled(self, places: Int64[Tensor, " some"], k: int) -> tuple[Tensor, Tensor]:
        """As `Search.settled`."""
        return self.only(places)._merged(k, by_index=False)

    def equal(
        self, places: Int64[Tensor, " some"], values: Float[Tensor, "some 1"]
    ) -> Iterator[tuple[Int64[Tensor, " found"], Int64[Tensor, " found"]]]:
        """As `Search.equal`, of the items that this rank holds."""
        search = self.only(places)._local()
        if not len(self.gallery.rows):
            return
        x = search.strip(slice(None))
        error, step = self._target.space.error(x)[:, None], max(1, BLOCK // x.shape[1])
        for items, block in search.scores(torch.arange(len(places), device=places.device)):
            near = ((block - values).abs() <= error).nonzero()
            for query, column in (pairs.unbind(1) for pairs in torch.split(near, step)):
                found = items[column]
                same = (search.scored(x[query], found[:, None]) == values[query]).squeeze(1)
                yield query[same], self.gallery.places[found[same]]

    def total(self, counts: Tensor) -> Tensor:
        """The sum over ranks of what each counted of its `equal`."""
        return sum_over_ranks(counts, self.gallery.group)

    def _local(self) -> Search:
        """The same queries against the rows that this rank holds."""
        own = None if self.own is None else self.gallery.held(self.own)
        return Search(self.function, self.queries[self.rows], self._target, own=own)

    def _merged(self, k: int, *, by_index: bool) -> tuple[Tensor, Tensor]:
        search, count, here = self._local(), len(self.rows), min(k, len(self.gallery.rows))
        scores = torch.full((count, k), -torch.inf, dtype=self._target.space.dtype, device=self.gallery.device)
        places = torch.full((count, k), -1, device=self.gallery.device)
        if here:
            found, ids = _all_of(search.rankings(here)) if by_index else _by_pairs(search, here)
            # No place for what was not found, or is the query itself: of -1 an offset would make a row.
            scores[:, :here] = found
            places[:, :here] = torch.where(found > -torch.inf, self.gallery.places[ids.clamp_min(0)], -1)
        ranks = world_size(self.gallery.group)
        of_ranks = gather_rows(scores, places, lengths=[count] * ranks, group=self.gallery.group)
        scores, places = (x.view(ranks, count, k).transpose(0, 1).flatten(1) for x in of_ranks)
        scores, order = scores.sort(dim=1, descending=True)
        scores, places = in_order(scores, places.gather(1, order))
        return scores[:, :k], places[:, :k]


def _centre(held: Tensor, gallery: Shard) -> Tensor:
    """Near the mean of all rows, on a grid so coarse that the order in which ranks are summed does not show.

    Arguments:
        held: by this rank; a row of zeros where it holds none.
        gallery: of all.
    """
    parts = torch.split(held, max(1, BLOCK // held.shape[1]))
    mean = sum_over_ranks(torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0), gallery.group)
    mean /= len(gallery)
    largest = max(of_all(max(float(part.abs().max()) for part in parts), gallery.group))
    step = math.ldexp(1.0, math.frexp(largest)[1] - 8)
    return ((mean / step).round() * step).to(gallery.dtype)


def _by_pairs(search: Search, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest of each query by `Search.scored`, equal scores by row; -inf for what it must not return."""
    size, space, device = len(search.rows), search.target.space, search.rows.device
    scores = torch.empty(size, k, dtype=space.dtype, device=device)
    ids = torch.empty(size, k, dtype=torch.int64, device=device)
    left, asked = torch.arange(size, device=device), k + max(_MORE, k // 4)
    while len(left):
        asked, unsure = min(asked, search.size), []
        for some in torch.split(left, max(1, RANKING_BLOCK // asked)):
            run = search.only(some)
            rounded, items = _all_of(run.rankings(asked, exact=True))
            x = run.strip(slice(None))
            values = run.scored(x, items).masked_fill(rounded == -torch.inf, -torch.inf)
            values, order = values.sort(dim=1, descending=True)
            values, items = in_order(values, items.gather(1, order))
            scores[some], ids[some] = values[:, :k], items[:, :k]
            most = rounded[:, -1] + space.error(x)  # that any of the others can score
            unsure.append(some[values[:, k - 1] <= most])
        left = torch.cat(unsure) if asked < search.size else left[:0]
        asked *= 4
    return scores, ids


def _all_of(parts: Iterator[tuple[slice, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    columns = [(scores, ids) for _, ids, scores in parts]
    scores, ids = (torch.cat(column) for column in zip(*columns, strict=True))
    return scores, ids


def search_shards(
    function: str,
    queries: Shard | Rows,
    gallery: Shard,
    k: int,
    *,
    metric: Metric = "cosine",
    backend: str = "auto",
    exclude_self: bool | Tensor = False,
    nprobe: int = 32,
    on_progress: Progress | None = None,
) -> Ranking:
    """`contrastive.search` where the gallery is a shard.

    Arguments:
        function: name of the caller, for messages.
        queries: a shard, or rows that are the same on all ranks.
        gallery: a shard.
        k: as in `contrastive.search`, and so are all others.
        metric: what is near.
        backend: who searches.
        exclude_self: whether queries must not return themselves, or their ids.
        nprobe: of an inverted file.
        on_progress: is told how far it is.

    Returns:
        The ranking of this rank's own queries; of all, where they are the same on all ranks. By the gallery's ids.

    Raises:
        InputError: as `contrastive.search`.
    """
    x = as_queries(function, queries, gallery)
    own: Tensor | None = None
    if exclude_self is True and queries is not gallery:
        raise InputError(
            f"{function}: exclude_self=True with a gallery that is not the queries, expected the same shard"
        )
    if exclude_self is True:
        own = torch.arange(len(x), device=gallery.device)
    elif exclude_self is not False:
        ids: bool | Tensor = exclude_self
        if isinstance(x, Shard) and isinstance(exclude_self, Tensor):
            ids = x.of_every_row("exclude_self", exclude_self)
        own = own_rows(function, ids, torch.empty(len(x), 0, device=gallery.device), len(gallery), gallery.ids)
    largest = len(gallery) - (own is not None)
    if isinstance(k, bool) or not 1 <= k <= largest:
        rest = " without the query itself" if own is not None else ""
        raise InputError(f"{function}: k is {k}, expected 1 to {largest}, the size of the gallery{rest}")
    search = ShardSearch(
        function, x, gallery, metric=metric, backend=backend, nprobe=nprobe, own=own, progress=on_progress
    )
    wanted = torch.unique(x.own) if isinstance(x, Shard) else torch.arange(len(x), device=gallery.device)
    parts = []
    for part, places, scores in search.rankings(k):
        mine = wanted[(wanted >= part.start) & (wanted < part.stop)] - part.start
        parts.append((places[mine], scores[mine]))
    places, scores = (torch.cat(column) for column in zip(*parts, strict=True))
    if isinstance(x, Shard):
        rows = torch.searchsorted(wanted, x.own)
        places, scores = places[rows], scores[rows]
    return Ranking(torch.where(places < 0, -1, gallery.ids[places.clamp_min(0)]), scores)


def as_queries(function: str, queries: Shard | Rows, gallery: Shard) -> Shard | Tensor:
    """Queries for a gallery of shards: of its width, device and precision.

    Arguments:
        function: name of the caller, for messages.
        queries: a shard, or rows that are the same on all ranks.
        gallery: a shard.

    Raises:
        InputError: for others.
    """
    x = queries if isinstance(queries, Shard) else as_rows(function, "queries", queries)
    refuse_others(function, ("queries", x.shape, x.device), ("the gallery", gallery.shape, gallery.device))
    if isinstance(x, Shard):
        if x.dtype != gallery.dtype:
            raise InputError(f"{function}: queries are {x.dtype} and the gallery {gallery.dtype}, expected one dtype")
        return x
    return x if precision(x) == gallery.dtype else x.to(gallery.dtype)
