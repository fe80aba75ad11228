"""Files that are whole or absent: written beside, then renamed over."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

__all__ = ["remove_scraps", "replacing", "save_tensors", "sha256_of", "write_bytes", "write_text"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary name in the same folder; it takes the place of `path` if the block succeeds, and goes if not.

    Arguments:
        path: of the file to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Writes a folder's names to the disk: until then a power failure may bring an old file back, or none."""
    with suppress(OSError):  # Windows opens no folder, and some network file systems flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_scraps(folder: Path) -> None:
    """Removes what `replacing` left of files that were being written when their process was killed.

    Arguments:
        folder: in which nobody else is writing; it need not exist.
    """
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9]+", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Arguments:
        path: of the file.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file.

    Arguments:
        path: of the file.
        content: its bytes.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8.

    Arguments:
        path: of the file.
        text: its content.
    """
    write_bytes(path, text.encode())


def save_tensors(path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors, readable to whom the umask allows (safetensors itself makes private files).

    Arguments:
        path: of the file.
        tensors: by name.
        metadata: words that the file carries beside them.
    """
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(content, temporary, None if metadata is None else dict(metadata))
        temporary.chmod(mode)
