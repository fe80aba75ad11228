"""Embeddings and labels from files: .npy, .npz, .safetensors, .parquet and .pt, never by running a pickle.

Embeddings that are larger than the memory are mapped. A table, or an archive that is compressed, cannot be: it is
unpacked into a temporary file first, part by part, and that file is mapped.
"""

import json
import pickle
import re
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive.errors import InputError

__all__ = ["read", "read_labels", "read_names", "read_relevant"]

Labels = Tensor | list[str] | list[list[str]] | list[list[int]]

_SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".pt")
# Bytes of an array from which on it is unpacked into a file, and what is unpacked at a time: bytes, or rows of a table.
_LARGE = 2**26
_BYTES, _ROWS = 2**22, 2**11
_FLOATS = {"halffloat": np.float16, "float": np.float32, "double": np.float64}  # as a table calls them


def read(path: Path, *, mapped: bool = False) -> tuple[Tensor, Labels | None]:
    """Reads embeddings, and labels where the file holds them.

    A file of several arrays holds ``embeddings`` (or one two-dimensional array of any name) and, if it can,
    ``labels``; a parquet table a list column ``embedding`` or ``embeddings`` and a column ``label`` or ``labels``.

    Arguments:
        path: of the file.
        mapped: leave the embeddings on the disk until they are looked at. Those of a .parquet or a compressed .npz file
            are unpacked into the folder of temporary files (TMPDIR), where they take their whole size until they are
            no longer used.

    Returns:
        Embeddings ``[n, d]``, and labels or None.

    Raises:
        InputError: for a file that cannot be read, is of another kind, or would run code.
    """
    arrays = _arrays(path, mapped=mapped)
    named = [key for key in ("embeddings", "embedding", "features", "") if key in arrays]
    if named:
        found = [arrays[named[0]]]
    else:
        found = [array for array in arrays.values() if isinstance(array, Tensor) and array.ndim == 2]
    if len(found) != 1:
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
        # "01" is another label than "1".
        numbers = all(_is_integer(word) and str(int(word)) == word for word in words)
        return torch.tensor([int(word) for word in words]) if numbers else words
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


class _Arrays(Mapping[str, Any]):
    """What a file holds, by name: read when it is asked for."""

    def __init__(self, path: Path, read: Mapping[str, Callable[[], Any]]) -> None:
        self._path, self._read = path, read

    def __contains__(self, key: object) -> bool:
        return key in self._read

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __getitem__(self, key: str) -> Any:
        with _readable(self._path):
            return self._read[key]()


def _arrays(path: Path, *, mapped: bool = False) -> Mapping[str, Any]:
    """What a file holds, by name; an unnamed array is called ''."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    with _readable(path):
        if path.suffix == ".npy":
            # "c": memory that may be written to, as torch asks, and never is.
            return {"": _array(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))}
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return _Arrays(path, {key: partial(_member, path, key, mapped) for key in archive.files})
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".parquet":
            names = _parquet_file(path).schema_arrow.names
            return _Arrays(path, {name: partial(_parquet_column, path, name, mapped) for name in names})
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(loaded, Tensor):
        return {"": loaded}
    if isinstance(loaded, dict):
        return {str(key): value for key, value in loaded.items()}
    raise InputError(f"{path} holds a {type(loaded).__name__}, expected a tensor or a dict of tensors")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what a reader says of a file into one sentence."""
    try:
        yield
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


def _unpacked(parts: Iterable[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers in a temporary file, mapped: the file is gone when they are.

    Arguments:
        parts: their bytes, in order.
        dtype: of the numbers.
    """
    with tempfile.TemporaryFile(prefix="kpair-") as file:
        for part in parts:
            file.write(part)
        file.flush()
        return np.memmap(file, dtype, mode="c")


def _member(path: Path, key: str, mapped: bool) -> Tensor | list[str]:
    """An array of an archive, mapped where it is large."""
    found = _mapped_member(path, f"{key}.npy") if mapped else None
    if found is None:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = archive[key]
    return _array(found)


def _mapped_member(path: Path, name: str) -> NDArray[Any] | None:
    """A large array of numbers: where it lies in the archive if it is not compressed, else unpacked."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        if name not in archive.NameToInfo or archive.getinfo(name).file_size < _LARGE:
            return None
        info = archive.getinfo(name)
        with archive.open(info) as member:
            read_header = headers.get(np.lib.format.read_magic(member))
            shape, fortran, dtype = read_header(member) if read_header is not None else ((), False, np.dtype(object))
            if fortran or dtype.kind != "f":
                return None
            if info.file_size - member.tell() != int(np.prod(shape)) * dtype.itemsize:
                raise ValueError(f"{name} is damaged")
            file_header = struct.Struct("<26xHH")
            file.seek(info.header_offset)
            offset = info.header_offset + file_header.size + sum(file_header.unpack(file.read(file_header.size)))
            offset += member.tell()
            if info.compress_type == zipfile.ZIP_STORED and offset % dtype.itemsize == 0:
                return np.memmap(path, dtype, mode="c", offset=offset, shape=shape)
            return _unpacked(iter(partial(member.read, _BYTES), b""), dtype).reshape(shape)


def _parquet_file(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install 'kpair[parquet]'") from None
    return parquet.ParquetFile(path, memory_map=True)


class _Irregular(Exception):
    """A column is no matrix."""


def _parquet_column(path: Path, name: str, mapped: bool) -> Tensor | list[Any]:
    """A column of a table, mapped where it is a large matrix."""
    with _parquet_file(path) as file:
        kind = getattr(file.schema_arrow.field(name).type, "value_type", None)
        if mapped and str(kind) in _FLOATS and _size_of_column(file.metadata, name) >= _LARGE:
            with suppress(_Irregular):  # of which more is said below
                found = _unpacked(_matrices(path, name, file), np.dtype(_FLOATS[str(kind)]))
                return torch.from_numpy(found.reshape(file.metadata.num_rows, -1))
        return _column(path, name, file.read(columns=[name])[name].combine_chunks())


def _size_of_column(metadata: Any, name: str) -> int:
    """Its bytes when it is no longer compressed."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == name)


def _matrices(path: Path, name: str, file: Any) -> Iterator[NDArray[Any]]:
    """Some rows of a column after the others."""
    width: int | None = None
    for batch in file.iter_batches(_ROWS, columns=[name]):
        rows = None if batch.column(0).null_count else _column(path, name, batch.column(0))
        if not isinstance(rows, Tensor) or width not in (None, rows.shape[1]):
            raise _Irregular
        width = rows.shape[1]
        yield rows.numpy()


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
