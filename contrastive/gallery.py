r"""A gallery that is searched again and again, added to, saved and mapped back into memory.

>>> import torch
>>> gallery = Gallery(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ids=torch.tensor([10, 20]))
>>> gallery.add(torch.tensor([[0.6, 0.8]]), ids=torch.tensor([15]))
>>> gallery.search(torch.tensor([[0.1, 0.9]]), 2).ids
tensor([[20, 15]])
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from contrastive import _faiss
from contrastive.errors import InputError
from contrastive.files import save_tensors
from contrastive.neighbours import (
    Backend,
    Metric,
    Progress,
    Ranking,
    Rows,
    Search,
    Space,
    Target,
    as_rows,
    in_order_of_ids,
    own_rows,
    precision,
    refuse_others,
    rows_in_order,
)

__all__ = ["Gallery"]

_FORMAT = "kpair gallery 1"


class Gallery:
    r"""Rows to be searched, prepared once: what `contrastive.search` does anew on every call.

    Arguments:
        rows: shape [rows, dim], finite.
        ids: what to call them, each once, at least 0; None: 0, 1, ..., and added rows go on from there.
        metric: as in `contrastive.search`.
        backend: as in `contrastive.search`; a FAISS factory string trains and fills an index, and searches are
            approximate.
        nprobe: of an inverted file (IVF), how many of its lists are searched.

    Raises:
        InputError: as `contrastive.search`.

    Example:
        >>> rows = torch.eye(3)
        >>> gallery = Gallery(rows, metric="euclidean")
        >>> gallery.search(rows, 1, exclude_self=torch.arange(3)).scores.flatten().round()
        tensor([-2., -2., -2.])

    References:
        | Billion-scale similarity search with GPUs (Johnson et al., 2017)
        | https://arxiv.org/abs/1702.08734
    """

    def __init__(
        self,
        rows: Rows,
        *,
        ids: Int64[Tensor, " rows"] | None = None,
        metric: Metric = "cosine",
        backend: Backend = "auto",
        nprobe: int = 32,
    ) -> None:
        checked = as_rows("Gallery", "rows", rows)
        self._named = ids is not None
        self._metric, self._backend, self._nprobe = metric, backend, nprobe
        self._ids = torch.arange(len(checked), device=checked.device)
        if ids is not None:
            self._ids, order = in_order_of_ids("Gallery", ids, checked)
            checked = rows_in_order(checked, order)
        self._target = Target("Gallery", checked, metric=metric, backend=backend, nprobe=nprobe)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Int64[Tensor, " rows"]:
        """What the rows are called, in the order in which they are kept."""
        return self._ids

    def add(self, rows: Rows, *, ids: Int64[Tensor, " rows"] | None = None) -> None:
        """Adds rows. The gallery is as it was if they are refused.

        Arguments:
            rows: shape [rows, dim], finite, on the gallery's device.
            ids: what to call them, if the gallery was given ids, and only then.

        Raises:
            InputError: for rows or ids that do not fit, or ids that are there already.
        """
        more = self._fitting("add", "rows", rows)
        if (ids is not None) != self._named:
            raise InputError(
                "Gallery.add: ids are missing, expected one a row"
                if self._named
                else "Gallery.add: ids are given, and the gallery has none of its own"
            )
        new = torch.arange(len(self), len(self) + len(more), device=more.device) if ids is None else ids
        all_rows = torch.cat([self._target.rows, more])
        integers = not (new.is_floating_point() or new.is_complex() or new.dtype == torch.bool)
        names = torch.cat([self._ids, new.to(self._ids)]) if integers and len(new) == len(more) else new
        ordered, order = in_order_of_ids("Gallery.add", names, all_rows)
        if self._target.index is None:
            # Equal scores come by id: rows are kept in that order. An index keeps its own, see `search`.
            all_rows = rows_in_order(all_rows, order)
            names = ordered
        self._target = self._target.extended("Gallery.add", all_rows, more)
        self._ids = names

    def search(
        self,
        queries: Rows,
        k: int,
        *,
        exclude_self: Int64[Tensor, " queries"] | None = None,
        on_progress: Progress | None = None,
    ) -> Ranking:
        """Finds the k nearest rows of every query.

        Arguments:
            queries: shape [queries, dim], finite, on the gallery's device; computed in its precision.
            k: how many, from 1 to the size of the gallery (less 1 with `exclude_self`).
            exclude_self: the id that each query has in the gallery, and must not return; None: it has none.
            on_progress: is told how many steps are done, and of how many.

        Returns:
            The ranking, in ids of the gallery; equal scores in the order of ids.

        Raises:
            InputError: for queries or a `k` that do not fit, or ids that the gallery does not hold.
        """
        x = self._fitting("search", "queries", queries)
        ordered, order = self._ids.sort()
        own = None if exclude_self is None else own_rows("Gallery.search", exclude_self, x, len(self), ordered)
        own = None if own is None else order[own]
        largest = len(self) - (own is not None)
        if isinstance(k, bool) or not 1 <= k <= largest:
            rest = " without the query itself" if own is not None else ""
            raise InputError(f"Gallery.search: k is {k}, expected 1 to {largest}, the size of the gallery{rest}")
        found = Search("Gallery.search", x, self._target, own=own, progress=on_progress)
        parts = [(ids, scores) for _, ids, scores in found.rankings(k)]
        rows, scores = (torch.cat(column) for column in zip(*parts, strict=True))
        ids = self._ids[rows.clamp_min(0)]
        if self._target.index is not None:  # its rows may stand in another order than their ids, and some be missing
            order = ids.argsort(dim=1)
            scores, by_score = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
            order = order.gather(1, by_score)
            ids, rows = ids.gather(1, order), rows.gather(1, order)
        return Ranking(ids.masked_fill(rows < 0, -1), scores)

    def save(self, path: str | Path) -> None:
        """Writes the gallery, whole or not at all; an index goes with it.

        The file is safetensors: ``kpair evaluate --gallery`` and others read its ``embeddings`` as they are.

        Arguments:
            path: of the file, which ends in .safetensors.

        Raises:
            InputError: for another ending, or a file that cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise InputError(f"Gallery.save: {path}: expected a name that ends in .safetensors")
        tensors = {"embeddings": self._target.rows, "ids": self._ids}
        if self._target.index is not None:
            tensors["index"] = torch.from_numpy(_faiss.to_bytes(self._target.index))
        if self._target.space.centre is not None:
            tensors["centre"] = self._target.space.centre
        metadata = {
            "format": _FORMAT,
            "metric": self._metric,
            "backend": self._backend,
            "nprobe": str(self._nprobe),
            "named": str(self._named),
        }
        try:
            save_tensors(path, tensors, metadata=metadata)
        except OSError as error:
            raise InputError(f"Gallery.save: {path} cannot be written: {error}") from error

    @staticmethod
    def load(path: str | Path) -> "Gallery":
        """Maps a gallery that was saved: its rows stay on the disk until they are searched, block by block.

        Arguments:
            path: of the file.

        Returns:
            The gallery, on the CPU. Searches give what they gave before it was saved.

        Raises:
            InputError: for a file that cannot be read or is no gallery, or whose back end is not there.
        """
        from safetensors import safe_open

        name = f"Gallery.load: {path}"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors has exceptions of its own
            reason = str(error).strip().splitlines()
            raise InputError(f"{name} cannot be read: {reason[0] if reason else type(error).__name__}") from error
        if metadata.get("format") != _FORMAT or not {"embeddings", "ids"} <= tensors.keys():
            raise InputError(f"{name} is no gallery, expected a file of Gallery.save")
        rows = as_rows(name, "embeddings", tensors["embeddings"])
        gallery = Gallery.__new__(Gallery)
        gallery._metric, gallery._backend = metadata["metric"], metadata["backend"]
        gallery._nprobe, gallery._named = int(metadata["nprobe"]), metadata["named"] == "True"
        gallery._ids = tensors["ids"]
        index: Any | None = None
        if "index" in tensors:
            index = _faiss.from_bytes(name, tensors["index"].numpy())
            _faiss.set_nprobe(index, gallery._nprobe)
            if index.ntotal != len(rows):
                raise InputError(f"{name}: its index holds {index.ntotal} rows of {len(rows)}: it is damaged")
        in_order_of_ids(name, gallery._ids, rows)
        space: Space | None = None
        if index is not None:
            space = Space.of(name, rows, gallery._metric, torch.float32, centre=tensors.get("centre"))
        gallery._target = Target(
            name,
            rows,
            metric=gallery._metric,
            backend=gallery._backend,
            nprobe=gallery._nprobe,
            index=index,
            space=space,
        )
        return gallery

    def _fitting(self, function: str, name: str, rows: Rows) -> Tensor:
        checked = as_rows(f"Gallery.{function}", name, rows)
        mine = self._target.rows
        refuse_others(
            f"Gallery.{function}", (name, checked.shape, checked.device), ("the gallery", mine.shape, mine.device)
        )
        return checked if precision(checked) == precision(mine) else checked.to(precision(mine))
