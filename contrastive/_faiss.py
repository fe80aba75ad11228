"""The one place that imports FAISS, an optional dependency, and the hazards that go with it.

torch comes first: both bring an OpenMP runtime, and the one that is mapped first should be torch's.
FAISS is detected by importing it and trying it, never by the name of a distribution: `faiss-cpu`,
`faiss-gpu` and conda's `faiss` install the same module.
"""

import os
import re
import sys
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import torch  # before faiss, see above
from jaxtyping import Float32, Int64, UInt8

from contrastive.errors import InputError

__all__ = [
    "available",
    "build",
    "candidates",
    "flavour",
    "from_bytes",
    "gpu_count",
    "is_factory",
    "knn",
    "safe_by_default",
    "scores",
    "scores_pairs",
    "search",
    "set_nprobe",
    "threads",
    "to_bytes",
    "use_one_thread",
]

GPU_MAX_K = 2048


@cache
def _module() -> Any | None:
    """The module if it imports, has what is needed, and finds the nearer of two points; else None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SWIG's own deprecations, not the caller's business
            import faiss
        if not all(hasattr(faiss, name) for name in ("knn", "METRIC_INNER_PRODUCT", "METRIC_L2")):
            return None
        points = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)
        _, ids = faiss.knn(points, points, 1, metric=faiss.METRIC_INNER_PRODUCT)
    except Exception:  # a broken build raises anything: ImportError, RuntimeError, OSError, AttributeError
        return None
    if ids.tolist() != [[0], [1]]:
        return None
    _guard_children(faiss)
    return faiss


def _guard_children(faiss: Any) -> None:
    """A forked child has no OpenMP threads and waits for them forever: it works on one, as torch's workers do.

    That is FAISS, and torch, which multiplies for it: MKL keeps a number of threads of its own.
    """

    def use_one() -> None:
        faiss.omp_set_num_threads(1)
        torch.set_num_threads(1)

    if hasattr(os, "register_at_fork") and hasattr(faiss, "omp_set_num_threads"):
        os.register_at_fork(after_in_child=use_one)


def available() -> bool:
    """Whether FAISS can be imported and answers a search correctly."""
    return _module() is not None


def safe_by_default() -> bool:
    """Whether ``backend="auto"`` may choose FAISS: on macOS torch and FAISS each bring a libomp, which may crash."""
    return sys.platform != "darwin" and available()


def gpu_count() -> int:
    """The number of GPUs FAISS can use: 0 for a CPU build, without a driver, or without FAISS."""
    faiss = _module()
    if faiss is None or not hasattr(faiss, "get_num_gpus") or not hasattr(faiss, "StandardGpuResources"):
        return 0
    return int(faiss.get_num_gpus())


def flavour() -> dict[str, str | int]:
    """What kind of FAISS this is: its version, where it lies, CPU or GPU, its instructions, its GPUs."""
    faiss = _module()
    assert faiss is not None
    options = faiss.get_compile_options().strip() if hasattr(faiss, "get_compile_options") else "unknown"
    return {
        "version": str(getattr(faiss, "__version__", "unknown")),
        "module": str(faiss.__file__),
        "flavour": "GPU" if hasattr(faiss, "StandardGpuResources") else "CPU",
        "instructions": options,
        "GPUs": gpu_count(),
    }


def threads() -> int | None:
    """How many threads FAISS uses; None without it."""
    faiss = _module()
    return int(faiss.omp_get_max_threads()) if faiss is not None and hasattr(faiss, "omp_get_max_threads") else None


@cache
def _gpu_resources() -> Any:
    """Scratch memory on the GPU, 1.5 GB by default: allocated once."""
    faiss = _module()
    assert faiss is not None
    return faiss.StandardGpuResources()


def knn(
    queries: Float32[np.ndarray, "queries dim"],
    gallery: Float32[np.ndarray, "gallery dim"],
    k: int,
    *,
    inner_product: bool,
) -> tuple[Float32[np.ndarray, "queries k"], Int64[np.ndarray, "queries k"]]:
    """Searches exactly, on a GPU where there is one.

    Arguments:
        queries: finite rows.
        gallery: finite rows, at least `k` of them.
        k: neighbours per query.
        inner_product: by largest inner product; otherwise by smallest squared distance.

    Returns:
        Scores (inner products, or negative squared distances) and rows of the gallery, best first.
    """
    faiss = _module()
    if faiss is None:
        raise RuntimeError("knn: FAISS is not available")
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    # Without a GPU, `knn_gpu` does not raise: it aborts the process.
    if gpu_count() > 0 and k <= GPU_MAX_K:
        values, ids = faiss.knn_gpu(_gpu_resources(), queries, gallery, k, metric=metric)
    else:
        values, ids = faiss.knn(queries, gallery, k, metric=metric)
    return (values if inner_product else -values), ids


def scores_pairs() -> bool:
    """Whether `scores` is there."""
    faiss = _module()
    return faiss is not None and hasattr(faiss, "pairwise_indexed_inner_product")


def scores(
    x: Float32[np.ndarray, "queries dim"],
    row: Int64[np.ndarray, " pairs"],
    y: Float32[np.ndarray, "gallery dim"],
    column: Int64[np.ndarray, " pairs"],
    *,
    inner_product: bool,
) -> Float32[np.ndarray, " pairs"]:
    """Scores pairs, each from its two rows alone.

    Arguments:
        x: queries.
        row: of each pair, the query.
        y: items.
        column: of each pair, the item.
        inner_product: these; otherwise negative squared distances.
    """
    faiss = _module()
    if faiss is None:
        raise RuntimeError("scores: FAISS is not available")
    x, y, row, column = (np.ascontiguousarray(array) for array in (x, y, row, column))
    out = np.empty(len(row), np.float32)
    score = faiss.pairwise_indexed_inner_product if inner_product else faiss.pairwise_indexed_L2sqr
    score(x.shape[1], len(row), *map(faiss.swig_ptr, (x, row, y, column, out)))
    # Zero is zero, whatever its sign.
    return out + 0.0 if inner_product else 0.0 - out


def use_one_thread() -> None:
    """Tells FAISS to use one thread wherever the calling thread asks it for something."""
    faiss = _module()
    if faiss is not None and hasattr(faiss, "omp_set_num_threads"):
        faiss.omp_set_num_threads(1)


def is_factory(text: str) -> bool:
    """Whether a word looks like FAISS's description of an index; FAISS decides whether it is one."""
    return re.match(r"(IVF|IMI|HNSW|NSG|PQ|OPQ|PCA|SQ|LSH|Flat|L2norm|RR|ITQ|IDMap)", text) is not None


def build(
    function: str,
    sample: Float32[np.ndarray, "sample dim"],
    blocks: Iterable[Float32[np.ndarray, "rows dim"]],
    factory: str,
    *,
    inner_product: bool,
    nprobe: int,
) -> Any:
    """Trains and fills an index, on the CPU.

    Arguments:
        function: name of the caller, for messages.
        sample: finite rows of all parts of the gallery, on which it is trained.
        blocks: all rows of the gallery, in order.
        factory: FAISS's description of an index, such as ``"IVF4096,Flat"``.
        inner_product: by largest inner product; otherwise by smallest squared distance.
        nprobe: how many lists of an inverted file are searched; other indexes have none.

    Returns:
        The index, for `search`.

    Raises:
        InputError: without FAISS, and for a factory string that it refuses, or these rows do not suffice for.
    """
    faiss = _module()
    if faiss is None:
        raise InputError(
            f"{function}: index {factory!r} needs FAISS, which is not installed: pip install 'kpair[faiss]'"
        )
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    try:
        index = faiss.index_factory(sample.shape[1], factory, metric)
        index.train(sample)
        for rows in blocks:
            index.add(rows)
    except (RuntimeError, AssertionError) as error:
        # What stands before are C++ names and a line of its source.
        reason = re.split(r"\.(?:cpp|h):\d+: ", str(error))[-1].split("failed: ")[-1].strip() or "it is refused"
        raise InputError(f"{function}: index {factory!r}: {reason}") from None
    set_nprobe(index, nprobe)
    return index


def set_nprobe(index: Any, nprobe: int) -> None:
    """Sets how many lists of an inverted file are searched; another index has none."""
    faiss = _module()
    assert faiss is not None
    with suppress(RuntimeError):  # no inverted file
        faiss.extract_index_ivf(index).nprobe = nprobe


def to_bytes(index: Any) -> UInt8[np.ndarray, " bytes"]:
    """An index as bytes, for `from_bytes`."""
    faiss = _module()
    assert faiss is not None
    content: UInt8[np.ndarray, " bytes"] = faiss.serialize_index(index)
    return content


def from_bytes(function: str, content: UInt8[np.ndarray, " bytes"]) -> Any:
    """The index that `to_bytes` wrote.

    Raises:
        InputError: without FAISS, and for bytes that are none.
    """
    faiss = _module()
    if faiss is None:
        raise InputError(f"{function}: its index needs FAISS, which is not installed: pip install 'kpair[faiss]'")
    try:
        return faiss.deserialize_index(content)
    except (RuntimeError, MemoryError, AssertionError):
        raise InputError(f"{function}: its index is damaged") from None


def candidates(index: Any) -> int:
    """How many rows to ask an index for in the place of one, where what it finds is scored anew.

    An index of shortened codes (PQ, SQ, PCA) orders by rounded scores: among four times as many rows are more of those
    that belong first.

    Arguments:
        index: of `build`.
    """
    try:
        return 4 if index.sa_code_size() < 4 * index.d else 1
    except RuntimeError:  # no codes, as of a graph
        return 1


def search(index: Any, queries: Float32[np.ndarray, "queries dim"], k: int) -> Int64[np.ndarray, "queries k"]:
    """The rows that an index finds, best first by its own scores; -1 after the last one found.

    Arguments:
        index: of `build`.
        queries: finite rows.
        k: how many.
    """
    ids: Int64[np.ndarray, "queries k"] = index.search(np.ascontiguousarray(queries), k)[1]
    return ids
