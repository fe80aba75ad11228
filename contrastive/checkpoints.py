"""Checkpoints that survive: whole or absent on disk, checked byte by byte before they are believed, never run as code.

>>> from tempfile import TemporaryDirectory
>>> import torch
>>> model = torch.nn.Linear(2, 1)
>>> with TemporaryDirectory() as folder:
...     for step in (1, 2):
...         save_checkpoint(Path(folder) / f"step-{step}.ckpt", {"step": step, "model": model.state_dict()})
...     newest = newest_checkpoint(folder)
...     load_checkpoint(newest)["step"]
2

A file is what `torch.save` writes, and after it a line ``sha256:`` with the checksum of all that stands before, so
`torch.load` reads it as well. A flipped bit, which torch and safetensors load in silence, is found.
"""

import errno
import hashlib
import os
import pickle
import re
import socket
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from contrastive.errors import InputError
from contrastive.files import replacing

__all__ = ["check_state", "load_checkpoint", "locked", "newest_checkpoint", "save_checkpoint"]

_MARK = b"\nsha256:"
_TRAILER = len(_MARK) + 64 + 1  # the mark, the digits, a line break


class _Hashed:
    """A file that is written once from start to end, what its bytes add up to, and why it could not be written."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        self.sha256.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def save_checkpoint(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a checkpoint beside, flushes it to the disk and renames it over; a failure leaves the old file.

    Arguments:
        path: of the file; its folders are made.
        content: tensors, numbers, strings, and lists, tuples and dicts of them: what `load_checkpoint` can read
            without running code.

    Raises:
        InputError: where it cannot be written: a full disk, a quota, a limit of file sizes, a folder that is read-only.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            hashed = _Hashed(file)
            try:
                torch.save(dict(content), hashed)  # type: ignore[arg-type]  # asks for no more than write and flush
            except RuntimeError:  # torch closes its archive all the same, fails at that and says so instead
                if hashed.failure is None:
                    raise
                raise hashed.failure from None
            file.write(_MARK + hashed.sha256.hexdigest().encode() + b"\n")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); what was saved before is untouched"
        ) from error


def load_checkpoint(path: str | os.PathLike[str], *, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint, if it is whole; no code that a file may hold is run.

    Arguments:
        path: of a file that `save_checkpoint` wrote.
        map_location: where its tensors shall be, as in `torch.load`.

    Raises:
        InputError: for a file that is missing, empty, cut off, changed by as much as a bit, of another program, or
            that holds more than tensors and plain values.
    """
    return _load(Path(path), map_location, mapped=False)


def newest_checkpoint(folder: str | os.PathLike[str], pattern: str = "*.ckpt") -> Path | None:
    """The newest checkpoint that is whole; each one that is not is named in a warning.

    Arguments:
        folder: that holds checkpoints; it need not exist.
        pattern: of their names; the newest is the last in order, numbers compared as numbers.

    Returns:
        Its path; None where there is none.
    """
    for path in sorted(Path(folder).glob(pattern), key=_in_order, reverse=True):
        try:
            _load(path, "cpu", mapped=True)
        except InputError as error:
            warnings.warn(f"{error}; trying the checkpoint before", stacklevel=2)
        else:
            return path
    return None


def check_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str | os.PathLike[str]) -> None:
    """Refuses a state of another architecture before any of it is loaded: torch itself loads what fits and then raises.

    Arguments:
        module: that the state is meant for; left alone.
        state: as `torch.nn.Module.state_dict` gives it.
        source: where the state is from, for the message.

    Raises:
        InputError: names the keys that are missing, those that nothing asked for, and the shapes that differ.
    """
    own = module.state_dict()
    missing = [f"{key} {list(own[key].shape)} is missing" for key in own if key not in state]
    surplus = [f"{key} {list(state[key].shape)} is not expected" for key in state if key not in own]
    others = [
        f"{key} is {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    found = others + missing + surplus
    if found:
        more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
        raise InputError(
            f"{source} is of another architecture, nothing was loaded ({len(others)} shapes differ, "
            f"{len(missing)} keys are missing, {len(surplus)} are not expected): {'; '.join(found[:6])}{more}"
        )


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a folder for one process: a second one that asks for it is refused. The lock dies with its process.

    On Windows, which has no such lock, nothing is refused.

    Arguments:
        folder: an existing folder; a file ``.lock`` is left in it.

    Raises:
        InputError: where another process holds it, named by number and machine.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path = Path(folder) / ".lock"
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                warnings.warn(f"{folder} cannot be locked ({error.strerror}): start no second run in it", stacklevel=3)
                yield
                return
            file.seek(0)
            raise InputError(
                f"{folder} is in use by another run ({file.read().strip() or 'unknown'}): wait for it, stop it, or "
                "choose another folder"
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _load(path: Path, map_location: Any, *, mapped: bool) -> dict[str, Any]:
    try:
        _verify(path)
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        what = "holds more than tensors and plain values, and nothing of it was run"
        raise InputError(f"{path} is refused: it {what}") from error
    except InputError:
        raise
    except Exception as error:  # whole and yet unreadable: a checksum under a file of something else
        raise InputError(f"{path} is not a checkpoint ({str(error).strip().splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, expected the dict of a checkpoint")
    return content


def _verify(path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            raise InputError(f"{path} is empty")
        file.seek(max(0, size - _TRAILER))
        trailer = file.read()
        if len(trailer) < _TRAILER or not trailer.startswith(_MARK) or not trailer.endswith(b"\n"):
            raise InputError(f"{path} has no checksum at its end: it is cut off, or no checkpoint of this library")
        file.seek(0)
        sha256, left = hashlib.sha256(), size - _TRAILER
        while left and (part := file.read(min(left, 1 << 20))):
            sha256.update(part)
            left -= len(part)
        if sha256.hexdigest().encode() != trailer[len(_MARK) : -1]:
            raise InputError(f"{path} is damaged: its checksum is another one")


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Digits by their number, the rest by its letters: step-9 comes before step-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]
