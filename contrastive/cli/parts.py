"""Parts of an evaluation beside its JSON file, so that a killed one goes on where it was."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from contrastive.errors import InputError
from contrastive.files import save_tensors, sha256_of, write_text

__all__ = ["digest", "remove", "resumed"]

_FINGERPRINT = "fingerprint.json"


def digest(path: Path) -> str:
    """The SHA-256 of a file.

    Arguments:
        path: of the file.

    Raises:
        InputError: for a file that cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def resumed(
    out: Path, fingerprint: Mapping[str, Any], rest: Callable[[int], Iterable[dict[str, Tensor]]]
) -> Iterator[dict[str, Tensor]]:
    """Yields the parts that were kept, then those that are left, each kept before the next is begun.

    Arguments:
        out: the JSON file that the evaluation will write.
        fingerprint: of files and options: parts of others are refused.
        rest: gives the parts that follow so many queries.

    Raises:
        InputError: for parts of other files or options, or a folder that cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = _folder(out)
    try:
        if not folder.exists():
            new = folder.with_name(f".{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
            write_text(new / _FINGERPRINT, json.dumps(fingerprint, indent=2) + "\n")
            new.rename(folder)
        found = json.loads((folder / _FINGERPRINT).read_text(encoding="utf-8"))
        if different := [name for name in fingerprint if found.get(name) != fingerprint[name]]:
            raise InputError(
                f"--resume: {folder} is of an evaluation with other {', '.join(different)}: remove it to start anew"
            )
        done = 0
        while (path := folder / f"{done:012}.safetensors").exists():
            part = load_file(path)
            done += len(part["tied"])
            yield part
        for part in rest(done):
            save_tensors(folder / f"{done:012}.safetensors", part)
            done += len(part["tied"])
            yield part
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise InputError(f"--resume: {folder} cannot be used: {error}") from error


def remove(out: Path) -> None:
    """Removes the parts of an evaluation that is written.

    Arguments:
        out: its JSON file.
    """
    shutil.rmtree(_folder(out), ignore_errors=True)


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")
