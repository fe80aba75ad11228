"""Small pictures of rows: which file is whose, and as text that a page can hold.

A name is a word somebody else wrote: one that is absolute or holds ``..`` is no file of the folder, wherever it leads.
"""

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import torch
from jaxtyping import UInt8
from torch import Tensor

from contrastive.errors import InputError
from contrastive.pictures import decode_files, files_below, printable

__all__ = ["SIDE", "Thumbnails", "files_of_rows", "of_files", "of_images"]

SIDE = 64  # pixels; what a tile of a page shows at twice the density of older screens
LIMIT = 16_000_000  # bytes of all pictures of a page
_CHUNK = 256


@dataclass(frozen=True)
class Thumbnails:
    """Pictures as data URIs.

    Arguments:
        uris: one a file, None where there is no picture.
        missing: how many files are not there, or were never in the folder.
        broken: how many are there and cannot be read as an image.
        left_out: how many would have been beyond the limit of bytes.
        side: the pixels of a side.
    """

    uris: list[str | None]
    missing: int = 0
    broken: int = 0
    left_out: int = 0
    side: int = SIDE


def files_of_rows(option: str, folder: Path, rows: int, names: Sequence[str] | None) -> list[Path | None]:
    """The file of each row: by name within the folder, or, without names, as many sorted files as there are rows.

    Arguments:
        option: the user's, for messages.
        folder: of images.
        rows: how many there are.
        names: paths relative to the folder, one a row, or None.

    Returns:
        For each row its file, None where its name leads out of the folder.

    Raises:
        InputError: for no folder, another number of images or names than rows, or names of which none is a file.

    Example:
        >>> files_of_rows("--images", Path("."), 2, ["pyproject.toml", "../secret.png"])[1] is None
        True
    """
    if names is None:
        files = files_below(option, folder)
        if len(files) != rows:
            raise InputError(
                f"{option}: {printable(str(folder))} holds {len(files)} images for {rows} rows, expected one a row, in "
                "the order of their paths; or say by names which is whose"
            )
        return list(files)
    if not folder.is_dir():
        files_below(option, folder)  # says what it is
    if len(names) != rows:
        raise InputError(f"{option}: {len(names)} names for {rows} rows, expected one a row")
    found = [_inside(folder, name) for name in names]
    if not any(path is not None and _is_file(path) for path in found):
        raise InputError(f"{option}: none of the {rows} names is a file in {printable(str(folder))}")
    return found


def of_files(
    files: Sequence[Path | None], *, limit: int = LIMIT, on_progress: Callable[[int, int], None] | None = None
) -> Thumbnails:
    """Pictures of files: the centre square, upright, shrunk.

    Arguments:
        files: None where a row has none.
        limit: bytes of all pictures; those that come later are left out.
        on_progress: is told how many files are read, and of how many.
    """
    there = [i for i, file in enumerate(files) if file is not None and _is_file(file)]
    side = _side([files[i] for i in there[:20]])
    uris: list[str | None] = [None] * len(files)
    broken = spent = left_out = 0
    for first in range(0, len(there), _CHUNK):
        part = there[first : first + _CHUNK]
        if spent >= limit:
            left_out += len(there) - first
            break
        images, failures = decode_files("thumbnails", [file for i in part if (file := files[i]) is not None], side)
        broken += len(failures)
        good = (i for place, i in enumerate(part) if place not in failures)
        for i, image in zip(good, images, strict=True):
            uri = _uri(image)
            if spent + len(uri) > limit:
                left_out, spent = left_out + 1, limit
                continue
            uris[i], spent = uri, spent + len(uri)
        if on_progress is not None:
            on_progress(first + len(part), len(there))
    return Thumbnails(uris, missing=len(files) - len(there), broken=broken, left_out=left_out, side=side)


def of_images(images: UInt8[Tensor, "n c h w"], *, limit: int = LIMIT) -> Thumbnails:
    """Pictures of images that are in memory.

    Arguments:
        images: any number.
        limit: as in `of_files`.
    """
    uris: list[str | None] = []
    spent = 0
    shrunk = min(images.shape[2:]) > SIDE
    for image in images:
        if spent >= limit:
            uris.append(None)
            continue
        if shrunk:
            small = torch.nn.functional.interpolate(image[None].float(), size=(SIDE, SIDE), mode="area")[0]
            image = small.round().to(torch.uint8)
        uris.append(_uri(image))
        spent += len(uris[-1] or "")
    side = min(SIDE, *images.shape[2:])
    return Thumbnails(uris, left_out=sum(uri is None for uri in uris), side=side)


def _inside(folder: Path, name: str) -> Path | None:
    path = PurePath(name)
    # A backslash separates where it is no part of a name; "C:" and "//host" lead away there as well.
    if not name or "\0" in name or path.is_absolute() or path.drive or ".." in name.replace("\\", "/").split("/"):
        return None
    return folder / path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, a link to itself
        return False


def _side(files: Sequence[Path | None]) -> int:
    """No larger than the images are: small ones are shown pixel by pixel and take fewer bytes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of files that are strange and can be read
        return min(SIDE, max(_short_sides(files), default=SIDE))


def _short_sides(files: Sequence[Path | None]) -> Iterator[int]:
    from PIL import Image

    for file in files:
        try:
            if file is not None:
                with Image.open(file, formats=("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")) as image:
                    yield max(1, min(image.size))
        except Exception:  # a broken file is counted where it is read, whatever its decoder says
            continue


def _uri(image: UInt8[Tensor, "c h w"]) -> str:
    from PIL import Image, features

    c = image.shape[0]
    pixels = image[:3] if c >= 3 else image[:1]
    picture = Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).contiguous().cpu().numpy())
    buffer, small = io.BytesIO(), max(image.shape[1:]) <= 40
    if small:
        picture.save(buffer, "PNG", optimize=True)
    elif features.check("webp"):
        picture.save(buffer, "WEBP", quality=75)
    else:
        picture.save(buffer, "JPEG", quality=75)
    kind = "png" if small else "webp" if features.check("webp") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
