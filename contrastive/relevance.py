r"""Which items of a gallery are relevant to a query: the same label, a label in common, or a list of ids.

>>> import torch
>>> relevance = SharedLabels.of(
...     "example", [["cat", "night"], ["dog"]], [["night"], ["dog", "day"], ["cat", "night"]], rows=(2, 3)
... )
>>> relevance.total
tensor([2, 1])
>>> relevance.gains(torch.tensor([0]), torch.tensor([[2, 1, 0]]))
tensor([[2., 0., 1.]])
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from contrastive.errors import InputError

__all__ = ["Judged", "Labels", "Relevance", "Relevant", "SameLabel", "SharedLabels", "label_ids", "several"]

Labels: TypeAlias = (
    Tensor | NDArray[Any] | Sequence[str] | Sequence[int] | Sequence[Collection[str]] | Sequence[Collection[int]]
)
"""Labels, one a row: integers of 64 bits, or strings. Several a row: collections of them, or a matrix of 0 and 1."""

Relevant: TypeAlias = Sequence[Collection[int]] | Sequence[Mapping[int, float]]
"""For each query the ids of its relevant items, or their grades by id."""

# Entries of a block of comparisons of label sets.
_BLOCK = 2**23


class Relevance(ABC):
    """Says of queries and gallery items, both by row, how relevant one is to the other.

    Arguments:
        total: how many items of the gallery are relevant to each query, itself left out.
    """

    total: Int64[Tensor, " queries"]

    @abstractmethod
    def gains(
        self, rows: Int64[Tensor, " rows"], ids: Int64[Tensor, "rows items"]
    ) -> Bool[Tensor, "rows items"] | Float32[Tensor, "rows items"]:
        """How relevant items are to queries: true or a positive grade, false or 0.

        Arguments:
            rows: of the queries.
            ids: rows of the gallery, some for each of these queries.
        """

    @abstractmethod
    def pairs(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
        """All relevant items of some queries: the place of each query in `rows`, not decreasing, and its item.

        Where the gallery is the queries, a query itself may be among them.

        Arguments:
            rows: of the queries.
        """

    @abstractmethod
    def ideal(self, rows: Int64[Tensor, " rows"], width: int) -> Float[Tensor, "rows width"]:
        """The largest gains a query can find, in decreasing order, filled up with zeros.

        Arguments:
            rows: of the queries.
            width: how many.
        """


@dataclass(frozen=True)
class SameLabel(Relevance):
    """Relevant is what has the query's label.

    Arguments:
        queries: the class of each query.
        gallery: the class of each gallery item, numbered alike.
        total: as in `Relevance`.
    """

    queries: Int64[Tensor, " queries"]
    gallery: Int64[Tensor, " gallery"]
    total: Int64[Tensor, " queries"]

    @classmethod
    def of(
        cls, queries: Int64[Tensor, " queries"], gallery: Int64[Tensor, " gallery"], *, alone: bool = False
    ) -> "SameLabel":
        """Counts the classes.

        Arguments:
            queries: the class of each query, as `label_ids` numbers them.
            gallery: the class of each gallery item.
            alone: the gallery is the queries; a query is not relevant to itself.
        """
        counts = gallery.bincount(minlength=int(queries.max()) + 1)
        return cls(queries, gallery, counts[queries] - int(alone))

    def gains(self, rows: Int64[Tensor, " rows"], ids: Int64[Tensor, "rows items"]) -> Bool[Tensor, "rows items"]:
        """Whether the classes are equal."""
        return self.gallery[ids] == self.queries[rows, None]

    def pairs(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
        """The members of each query's class, itself among them."""
        members, first, count = self._members
        classes = self.queries[rows]
        return _spread(first[classes], count[classes], members)

    @cached_property
    def _members(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gallery by class, where each class begins, and how many it has."""
        count = self.gallery.bincount(minlength=int(self.queries.max()) + 1)
        return self.gallery.argsort(stable=True), count.cumsum(0) - count, count

    def ideal(self, rows: Int64[Tensor, " rows"], width: int) -> Float[Tensor, "rows width"]:
        """A one for each relevant item."""
        return (torch.arange(width, device=self.queries.device) < self.total[rows, None]).float()


@dataclass(frozen=True)
class SharedLabels(Relevance):
    """Relevant is what has a label in common with the query; the gain is how many.

    Arguments:
        queries: 1 where a query has a label.
        gallery: 1 where a gallery item has it.
        total: as in `Relevance`.
        alone: the gallery is the queries.
    """

    queries: Float32[Tensor, "queries labels"]
    gallery: Float32[Tensor, "gallery labels"]
    total: Int64[Tensor, " queries"]
    alone: bool

    @classmethod
    def of(
        cls,
        function: str,
        queries: Labels | None,
        gallery: Labels | None,
        *,
        rows: tuple[int, int],
        device: torch.device | None = None,
    ) -> "SharedLabels":
        """Reads label sets.

        Arguments:
            function: name of the caller, for messages.
            queries: collections of labels, or a matrix of 0 and 1.
            gallery: of the gallery; None: the gallery is the queries.
            rows: how many queries and gallery items there are.
            device: of the embeddings.

        Raises:
            InputError: for labels of two kinds, a matrix of other numbers, or another number of rows.
        """
        alone = gallery is None
        sets = [("labels", queries)] if gallery is None else [("labels", queries), ("gallery_labels", gallery)]
        for (name, labels), count in zip(sets, rows, strict=False):
            if labels is None or not several(labels):
                raise InputError(f"{function}: {name} have one label a row, expected several a row as in the other")
            if len(labels) != count:
                raise InputError(f"{function}: {len(labels)} {name} for {count} rows, expected one set a row")
        matrices = [matrix.to(device or "cpu") for matrix in _indicators(function, sets)]
        x, y = matrices[0], matrices[-1]
        if x.shape[1] != y.shape[1]:
            raise InputError(
                f"{function}: labels have shape {tuple(x.shape)} and gallery_labels {tuple(y.shape)}, "
                "expected the same number of columns"
            )
        step = max(1, _BLOCK // len(y))
        total = torch.cat([(part @ y.T > 0).sum(1) for part in torch.split(x, step)])
        return cls(x, y, total - (x.any(1).long() if alone else 0), alone)

    def gains(self, rows: Int64[Tensor, " rows"], ids: Int64[Tensor, "rows items"]) -> Float32[Tensor, "rows items"]:
        """How many labels are shared."""
        step = max(1, _BLOCK // (ids.shape[1] * self.queries.shape[1]))
        parts = [
            (self.gallery[i] @ self.queries[r, :, None]).squeeze(2)
            for r, i in zip(torch.split(rows, step), torch.split(ids, step), strict=True)
        ]
        return torch.cat(parts)

    def pairs(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
        """What shares a label, the query itself among it."""
        found, step = [], max(1, _BLOCK // len(self.gallery))
        for start in range(0, len(rows), step):
            place, item = (self.queries[rows[start : start + step]] @ self.gallery.T).nonzero(as_tuple=True)
            found.append((start + place, item))
        places, items = (torch.cat(column) for column in zip(*found, strict=True))
        return places, items

    def ideal(self, rows: Int64[Tensor, " rows"], width: int) -> Float[Tensor, "rows width"]:
        """The largest numbers of shared labels."""
        best, width = [], min(width, len(self.gallery))
        for part in torch.split(rows, max(1, _BLOCK // len(self.gallery))):
            shared = self.queries[part] @ self.gallery.T
            if self.alone:
                shared[torch.arange(len(part), device=part.device), part] = 0.0
            best.append(shared.topk(width, dim=1).values)
        return torch.cat(best)


@dataclass(frozen=True)
class Judged(Relevance):
    """Relevant is what a list says, with its grade.

    Arguments:
        keys: query times size of the gallery plus row of the gallery, sorted.
        grades: of these pairs, positive.
        total: as in `Relevance`.
        size: of the gallery.
    """

    keys: Int64[Tensor, " pairs"]
    grades: Float32[Tensor, " pairs"]
    total: Int64[Tensor, " queries"]
    size: int

    @classmethod
    def of(
        cls,
        function: str,
        relevant: Relevant,
        *,
        queries: int,
        size: int,
        gallery_ids: Int64[Tensor, " gallery"] | None = None,
        alone: bool = False,
        device: torch.device | None = None,
    ) -> "Judged":
        """Reads judgments.

        Arguments:
            function: name of the caller, for messages.
            relevant: for each query ids of the gallery, or grades by id; a grade of 0 says not relevant.
            queries: how many there are.
            size: of the gallery.
            gallery_ids: of its rows; None: the row number is the id.
            alone: the gallery is the queries; what a query says of itself does not count.
            device: of the embeddings.

        Raises:
            InputError: for another number of queries, an id that the gallery does not hold, a grade that is negative or
                not finite.
        """
        if len(relevant) != queries:
            raise InputError(
                f"{function}: relevant holds {len(relevant)} lists for {queries} queries, expected one each"
            )
        row_of = None if gallery_ids is None else {int(i): row for row, i in enumerate(gallery_ids.tolist())}
        grades: dict[int, float] = {}
        for query, items in enumerate(relevant):
            for i in items:
                grade = float(items[i]) if isinstance(items, Mapping) else 1.0
                number = _as_id(function, i, query)
                row = number if row_of is None else row_of.get(number, -1)
                if not 0 <= row < size:
                    raise InputError(
                        f"{function}: relevant names id {i} for query {query}, expected ids of the gallery"
                    )
                if not 0 <= grade < float("inf"):
                    raise InputError(
                        f"{function}: relevant grades id {i} of query {query} with {grade}, "
                        "expected a finite grade of at least 0"
                    )
                if grade > 0 and not (alone and row == query):
                    grades[query * size + row] = grade
        order = sorted(grades)
        keys = torch.tensor(order, dtype=torch.int64, device=device)
        values = torch.tensor([grades[key] for key in order], dtype=torch.float64).float().to(device)
        lost = (values == 0) | values.isinf()
        if bool(lost.any()):
            key = order[int(lost.nonzero()[0])]
            raise InputError(
                f"{function}: relevant grades an item of query {key // size} with {grades[key]}, "
                "expected 0 or a number between 1e-45 and 3e38, as float32 holds it"
            )
        total = torch.div(keys, size, rounding_mode="floor").bincount(minlength=queries)
        return cls(keys, values, total, size)

    def gains(self, rows: Int64[Tensor, " rows"], ids: Int64[Tensor, "rows items"]) -> Float32[Tensor, "rows items"]:
        """The grades of listed items."""
        if len(self.keys) == 0:
            return torch.zeros_like(ids, dtype=torch.float32)
        wanted = rows[:, None] * self.size + ids
        place = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        return torch.where(self.keys[place] == wanted, self.grades[place], 0.0)

    def pairs(self, rows: Int64[Tensor, " rows"]) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
        """What the lists hold."""
        return _spread((self.total.cumsum(0) - self.total)[rows], self.total[rows], self.keys % self.size)

    def ideal(self, rows: Int64[Tensor, " rows"], width: int) -> Float[Tensor, "rows width"]:
        """The largest grades."""
        query, grades = _spread((self.total.cumsum(0) - self.total)[rows], self.total[rows], self.grades)
        order = grades.argsort(descending=True, stable=True)
        order = order[query[order].argsort(stable=True)]
        count = self.total[rows]
        rank = torch.arange(len(query), device=query.device) - (count.cumsum(0) - count)[query]
        ideal = self.grades.new_zeros(len(rows), width)
        kept = rank < width
        ideal[query[kept], rank[kept]] = grades[order][kept]
        return ideal


def _as_id(function: str, given: Any, query: int) -> int:
    """An id as an integer; of a mask, whose trues would pass for the id 1, there is none."""
    of_a_mask = isinstance(given, bool | np.bool_) or (isinstance(given, Tensor) and given.dtype == torch.bool)
    if not of_a_mask:
        with suppress(TypeError):  # of floats and strings
            return index(given)
    raise InputError(f"{function}: relevant holds {given!r} for query {query}, expected integers, ids of the gallery")


def _spread(first: Tensor, count: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of a row and an item, where each row has a run of items."""
    places = torch.arange(len(count), device=count.device).repeat_interleave(count)
    within = torch.arange(len(places), device=count.device) - (count.cumsum(0) - count)[places]
    return places, items[first[places] + within]


# --- labels -----------------------------------------------------------------------------------------------------------


def several(labels: Labels | None) -> bool:
    """Whether rows have several labels each: a matrix, or a sequence of collections.

    Arguments:
        labels: of any kind.
    """
    if isinstance(labels, Tensor | np.ndarray):
        return labels.ndim == 2 and labels.shape[1] > 1
    return labels is not None and len(labels) > 0 and not isinstance(labels[0], str | int | np.integer)


def label_ids(function: str, *labels: tuple[str, Labels | None, int]) -> list[Int64[Tensor, " rows"]]:
    """Class numbers 0, 1, ... in sorted order, shared by all the labels given as (name, labels, number of rows).

    Compared as Python objects or as int64, never as floats: those merge ids above 2**24.
    """
    columns = [_label_column(function, name, values, rows) for name, values, rows in labels]
    kinds = {isinstance(column, list) for column in columns}
    if len(kinds) > 1:
        named = " and ".join(f"{name} are {type(values).__name__}" for name, values, _ in labels)
        raise InputError(f"{function}: {named}, expected integers in both or strings in both")
    if kinds == {True}:
        strings = [column for column in columns if isinstance(column, list)]
        number = {label: i for i, label in enumerate(sorted({label for column in strings for label in column}))}
        return [torch.tensor([number[label] for label in column]) for column in strings]
    tensors = [column for column in columns if isinstance(column, Tensor)]
    _, inverse = np.unique(torch.cat(tensors).numpy(), return_inverse=True)
    return list(torch.split(torch.from_numpy(inverse), [len(column) for column in tensors]))


def _label_column(function: str, name: str, labels: Labels | None, rows: int) -> Tensor | list[str]:
    """Integers as an int64 tensor on the CPU, strings as a list."""
    if labels is None:
        raise InputError(f"{function}: {name} are None, expected {rows} integers or strings")
    column: Tensor | NDArray[Any] | list[str]
    if isinstance(labels, Tensor | np.ndarray):
        column = labels
    else:
        strings = [isinstance(label, str) for label in labels]
        if not strings:
            raise InputError(f"{function}: {name} are empty, expected integers or strings")
        if any(strings) and not all(strings):
            raise InputError(
                f"{function}: {name} hold {sum(strings)} strings among {len(strings)}, "
                f"expected {rows} integers or strings"
            )
        column = [str(label) for label in labels] if strings[0] else np.array(labels)
    if isinstance(column, np.ndarray):
        if column.ndim == 1 and (column.dtype.kind in "UT" or _all_strings(column)):
            column = [str(label) for label in column]
        elif column.dtype.kind not in "iub" or (column.dtype == np.uint64 and bool((column >> np.uint64(63)).any())):
            raise InputError(f"{function}: {name} have dtype {column.dtype}, expected integers or strings")
        else:
            column = torch.from_numpy(column.astype(np.int64))
    if isinstance(column, Tensor):
        if column.is_floating_point() or column.is_complex():
            raise InputError(f"{function}: {name} have dtype {column.dtype}, expected integers or strings")
        if column.ndim != 1:
            raise InputError(f"{function}: {name} have shape {tuple(column.shape)}, expected [{rows}]")
        column = column.detach().to(device="cpu", dtype=torch.int64)
    if len(column) != rows:
        raise InputError(f"{function}: {len(column)} {name} for {rows} rows, expected one a row")
    return column


def _all_strings(column: NDArray[Any]) -> bool:
    return column.dtype == object and all(isinstance(label, str) for label in column)


def _indicators(function: str, sets: Sequence[tuple[str, Labels | None]]) -> list[Float32[Tensor, "rows labels"]]:
    """A matrix of 0 and 1 for each of these label sets, their columns alike."""
    matrices = [isinstance(labels, Tensor | np.ndarray) for _, labels in sets]
    if any(matrices) and not all(matrices):
        raise InputError(f"{function}: a matrix in one of labels and gallery_labels, expected one in both or in none")
    if all(matrices):
        found = [torch.as_tensor(labels).detach() for _, labels in sets]
        for (name, _), matrix in zip(sets, found, strict=True):
            if matrix.ndim != 2 or not bool(((matrix == 0) | (matrix == 1)).all()):
                raise InputError(
                    f"{function}: {name} have shape {tuple(matrix.shape)} and dtype {matrix.dtype}, "
                    "expected a matrix [rows, labels] of 0 and 1"
                )
        return [matrix.float() for matrix in found]
    # Collections, for matrices have returned: mypy does not see that.
    rows: list[list[list[Any]]] = []
    for name, labels in sets:
        for place, row in enumerate(labels or ()):
            if isinstance(row, str | bytes) or not isinstance(row, Iterable):
                raise InputError(
                    f"{function}: row {place} of {name} is {row!r}, expected a collection of labels, as other rows have"
                )
        rows.append([list(row) for row in labels or ()])  # type: ignore[arg-type]  # every row was looked at above
    words = {word for of_set in rows for row in of_set for word in row}
    if len({isinstance(word, str) for word in words}) > 1:
        raise InputError(f"{function}: label sets hold strings and integers, expected one kind")
    number = {word: i for i, word in enumerate(sorted(words))}
    found = []
    for of_set in rows:
        matrix = torch.zeros(len(of_set), max(1, len(number)))
        for row, labels_of_row in enumerate(of_set):
            matrix[row, [number[word] for word in labels_of_row]] = 1.0
        found.append(matrix)
    return found
