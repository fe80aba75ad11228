"""Embeddings and labels from files: .npy, .npz, .safetensors, .parquet and .pt, never by running a pickle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from contrastive.errors import InputError

__all__ = ["read", "read_labels"]

Labels = Tensor | list[str]

_SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".pt")


def read(path: Path, *, mapped: bool = False) -> tuple[Tensor, Labels | None]:
    """Reads embeddings, and labels where the file holds them.

    A file of several arrays holds ``embeddings`` (or one two-dimensional array of any name) and, if it can,
    ``labels``; a parquet table a list column ``embedding`` or ``embeddings`` and a column ``label`` or ``labels``.

    Arguments:
        path: of the file.
        mapped: leave the embeddings of a .npy file on the disk until they are looked at.

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
        words = [line.strip() for line in lines if line.strip()]
        return torch.tensor([int(word) for word in words]) if all(_is_integer(word) for word in words) else words
    arrays = _arrays(path)
    found = next((arrays[key] for key in ("labels", "label", "") if key in arrays), None)
    if found is None:
        raise InputError(f"{path} holds {', '.join(arrays) or 'nothing'}: expected an array 'labels'")
    return _checked_labels(path, found)


def _arrays(path: Path, *, mapped: bool = False) -> Mapping[str, Tensor | list[str]]:
    """What a file holds, by name; an unnamed array is called ''."""
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{path}: expected a file that ends in {', '.join(_SUFFIXES)}")
    try:
        if path.suffix == ".npy":
            # "c": memory that may be written to, as torch asks, and never is.
            return {"": _array(np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False))}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {key: _array(archive[key]) for key in archive.files}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".parquet":
            return _parquet(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:
        # Every reader has exceptions of its own for a damaged file, and none of them is a defect of ours.
        reason = str(error).strip().splitlines()
        raise InputError(f"{path} cannot be read: {reason[0] if reason else type(error).__name__}") from error
    if isinstance(loaded, Tensor):
        return {"": loaded}
    if isinstance(loaded, dict):
        return {str(key): value for key, value in loaded.items()}
    raise InputError(f"{path} holds a {type(loaded).__name__}, expected a tensor or a dict of tensors")


def _parquet(path: Path) -> dict[str, Tensor | list[str]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: parquet needs pyarrow: pip install 'kpair[parquet]'") from None
    table = parquet.read_table(path).to_pydict()
    return {key: _array(np.array(column)) for key, column in table.items()}


def _array(array: np.ndarray) -> Tensor | list[str]:
    if array.dtype.kind in "US":
        return [str(word) for word in array.tolist()]
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(np.ascontiguousarray(array))


def _checked_labels(path: Path, labels: Any) -> Labels:
    if isinstance(labels, list) and all(isinstance(word, str) for word in labels):
        return labels
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point() and not labels.is_complex():
        return labels.to(torch.int64)
    raise InputError(f"{path}: labels are {_describe(labels)}, expected one integer or string a row")


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _is_integer(word: str) -> bool:
    return word.lstrip("-").isdigit()
