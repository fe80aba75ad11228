"""Files that are whole or absent: written beside, then renamed over."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

__all__ = ["replacing", "save_tensors", "write_bytes", "write_text"]


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
    finally:
        temporary.unlink(missing_ok=True)


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
