"""Embeddings and labels from files: .npy, .npz, .safetensors, .parquet and .pt, never by running a pickle."""

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrastive.errors import InputError

__all__ = ["read", "read_labels", "read_names", "read_relevant"]

Labels = Tensor | list[str] | list[list[str]] | list[list[int]]

_SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".pt")


def read(path: Path, *, mapped: bool = False) -> tuple[Tensor, Labels | None]:
    """Reads embeddings, and labels where the file holds them.

    A file of several arrays holds ``embeddings`` (or one two-dimensional array of any name) and, if it can,
    ``labels``; a parquet table a list column ``embedding`` or ``embeddings`` and a column ``label`` or ``labels``.

    Arguments:
        path: of the file.
        mapped: leave the embeddings of a .npy, .safetensors or .pt file on the disk until they are looked at.

    Returns:
        Embeddings ``[n, d]``, and labels or None.

    Raises:
        InputError: for a file that cannot be read, is of another kind, or would run code.
    """
    arrays = _arrays(path, mapped=mapped)
    named = [arrays[key] for key in ("embeddings", "embedding", "features", "") if key in arrays]
    found = named or [array for array in arrays.values() if isinstance(array, Tensor) and array.ndim == 2]
    if len(found) == 0 or (not named and len(found) > 1):
        raise InputError(
            f"{path} holds {', '.join(arrays) or 'nothing'}: expected a two-dimensional array 'embeddings'"
        )
    embeddings = found[0]
    if not isinstance(embeddings, Tensor) or embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise InputError(f"{path}: embeddings are {_describe(embeddings)}, expected floats [rows, width]")
    labels = next((arrays[key] for key in ("labels", "label") if key in arrays), None)
    return embeddings, None if labels is None else _checked_labels(path, labels)


def read_labels(path: Path) -> Labels:
    """Reads labels: one a line of a text file (.txt, .csv without header), or an array of integers or strings.

    Several a row are a matrix of 0 and 1, or a parquet column of lists.

    Arguments:
        path: of the file.

    Raises:
        InputError: for a file that cannot be read or holds no labels.
    """
    if path.suffix in (".txt", ".csv"):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        words = "\n".join(lines).rstrip().split("\n") if any(line.strip() for line in lines) else []
        words = [word.strip() for word in words]
        if "" in words:
            raise InputError(f"{path}: line {words.index('') + 1} is empty, expected a label on every line")
        if not words:
            raise InputError(f"{path} is empty, expected a label on every line")
        return torch.tensor([int(word) for word in words]) if all(_is_integer(word) for word in words) else words
    arrays = _arrays(path)
    found = next((arrays[key] for key in ("labels", "label", "") if key in arrays), None)
    if found is None:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected an array 'labels'")
    return _checked_labels(path, found)


def read_names(path: Path, *, within: bool = False) -> list[str] | None:
    """Reads what rows are called, such as the files they are of.

    One a line of a text file (.txt, .csv without header); or the strings ``names`` of a file of arrays, also called
    ``name``, ``paths``, ``path``, ``files`` or ``file``. A name with a line break needs such a file.

    Arguments:
        path: of the file.
        within: the file is one of embeddings, and need not hold names.

    Returns:
        The names; None where a file of embeddings holds none.

    Raises:
        InputError: for a file that cannot be read or, unless `within`, holds no names.
    """
    if path.suffix in (".txt", ".csv"):
        try:
            # Not splitlines(), which breaks at characters that file names may hold.
            text = path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
    if within and path.suffix not in (".npz", ".parquet", ".pt"):  # the others hold numbers only
        return None
    arrays = _arrays(path, mapped=True)
    named = [arrays[key] for key in ("names", "name", "paths", "path", "files", "file") if key in arrays]
    named = named or ([arrays[""]] if "" in arrays else [])
    for found in named:
        if isinstance(found, list) and all(isinstance(word, str) for word in found):
            return found
    if within:
        return None
    raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected strings 'names', one a row")


def read_relevant(path: Path) -> list[dict[int, float]]:
    """Reads which items are relevant to each query: a JSON list with, for each query, a list of rows or grades by row.

    Arguments:
        path: of the file: ``[[3, 17], [4]]``, or ``[{"3": 2, "17": 1}, {"4": 1}]``.

    Returns:
        Grades by row.

    Raises:
        InputError: for a file that cannot be read or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise InputError(f"{path} holds a {type(content).__name__}, expected a list with one entry a query")
    relevant = []
    for query, items in enumerate(content):
        try:
            relevant.append(_graded(items))
        except (TypeError, ValueError, OverflowError):  # the last for Infinity, and integers no float can hold
            raise InputError(f"{path}: query {query} has {items!r:.40}, expected rows, or grades by row") from None
    return relevant


def _graded(items: Any) -> dict[int, float]:
    """Grades by row; what only could be read as rows, such as a string of digits or 1.7, is refused."""
    if isinstance(items, dict):
        return {int(row): float(grade) for row, grade in items.items()}
    if not isinstance(items, list) or any(isinstance(row, bool) or not isinstance(row, int) for row in items):
        raise TypeError
    return dict.fromkeys(items, 1.0)


def _arrays(path: Path, *, mapped: bool = False) -> Mapping[str, Any]:
    """What a file holds, by name; an unnamed array is called ''."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".npy":
            # "c": memory that may be written to, as torch asks, and never is.
            return {"": _array(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))}
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {key: _array(archive[key]) for key in archive.files}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".parquet":
            return _parquet(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} cannot be read: it is damaged, or a pickle of other things than tensors, which is never run"
        ) from error
    except Exception as error:
        # Every reader has exceptions of its own for a damaged file, and none of them is a defect of ours.
        reason = str(error).strip().splitlines()
        raise InputError(f"{path} cannot be read: {reason[0] if reason else type(error).__name__}") from error
    if isinstance(loaded, Tensor):
        return {"": loaded}
    if isinstance(loaded, dict):
        return {str(key): value for key, value in loaded.items()}
    raise InputError(f"{path} holds a {type(loaded).__name__}, expected a tensor or a dict of tensors")


def _parquet(path: Path) -> dict[str, Tensor | list[Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install 'kpair[parquet]'") from None
    table = parquet.read_table(path, memory_map=True)
    return {name: _column(path, name, table[name].combine_chunks()) for name in table.column_names}


def _column(path: Path, name: str, column: Any) -> Tensor | list[Any]:
    """A column of numbers, strings, or lists of them; lists of numbers of one length are a matrix."""
    import pyarrow as pa

    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise InputError(f"{path}: {name} is missing in {column.null_count} rows, the first is row {row}")
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _column(path, name, column.dictionary_decode())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        values, lengths = column.flatten(), column.value_lengths().to_numpy(zero_copy_only=False)
        if values.null_count:
            raise InputError(f"{path}: {name} has missing numbers in its lists, expected none")
        if pa.types.is_floating(kind.value_type) and len(lengths) and (lengths == lengths[0]).all():
            matrix = values.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
            return torch.from_numpy(np.require(matrix, requirements=["C", "W"]))
        return list(column.to_pylist())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return list(column.to_pylist())
    return _array(column.to_numpy(zero_copy_only=False))


def _array(array: np.ndarray) -> Tensor | list[str]:
    if array.dtype.kind == "S":
        return [word.decode("utf-8", "surrogateescape") for word in array.tolist()]
    if array.dtype.kind == "U":
        return [str(word) for word in array.tolist()]
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))  # a copy where torch could not write


def _checked_labels(path: Path, labels: Any) -> Labels:
    if isinstance(labels, list) and all(isinstance(word, str) for word in labels):
        return labels
    if isinstance(labels, list) and labels and all(isinstance(row, list) for row in labels):
        return labels
    if isinstance(labels, Tensor) and labels.ndim == 2 and bool(((labels == 0) | (labels == 1)).all()):
        return labels.bool()
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() and not labels.is_complex():
        return labels.to(torch.int64)
    raise InputError(
        f"{path}: labels are {_describe(labels)}, expected one integer or string a row, or a matrix of 0 and 1"
    )


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _is_integer(word: str) -> bool:
    """Whether a word is an integer of 64 bits; larger ids are names, as good as any."""
    return re.fullmatch(r"-?[0-9]{1,19}", word) is not None and -(2**63) <= int(word) < 2**63
