"""Image files: found in folders and archives, decoded safely, whatever they hold."""

import io
import itertools
import os
import stat
import threading
import warnings
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from contrastive.errors import InputError

if TYPE_CHECKING:  # decoders and data sets are imported where they are used: importing this module stays cheap
    from PIL import Image

__all__ = [
    "as_utf8",
    "damaged",
    "decode_files",
    "decode_zip",
    "each_file",
    "files_below",
    "find_images",
    "printable",
    "reason_of",
]

A = TypeVar("A")
B = TypeVar("B")


def decode_zip(
    name: str, archive: Path, suffix: str, *, depth: int, shape: tuple[int, int, int]
) -> tuple[list[tuple[str, ...]], Tensor]:
    """Every image of a zip file, decoded without unpacking, sorted by the last `depth` parts of its path."""
    import zipfile

    import numpy as np
    from PIL import Image

    channels, height, width = shape
    found: list[tuple[tuple[str, ...], zipfile.ZipInfo]] = []
    try:
        opened = zipfile.ZipFile(archive)
    except Exception as error:  # zipfile, zlib and the decoders below each have errors of their own
        raise damaged(name, archive, reason_of(error)) from error
    with opened:
        for member in opened.infolist():
            path = PurePosixPath(member.filename).parts
            hidden = any(part.startswith(".") or part == "__MACOSX" for part in path)
            if len(path) >= depth and member.filename.endswith(suffix) and not hidden:
                found.append((path[-depth:], member))
        if not found:
            raise damaged(name, archive, f"no image *{suffix} in it")
        found.sort(key=lambda pair: pair[0])
        images = np.empty((len(found), height, width, channels), dtype=np.uint8)
        # Not in threads: with images this small nearly all the time is the interpreter's, and threads are slower.
        for row, (_, member) in enumerate(found):
            try:
                if member.file_size > 1 << 16:  # a bomb: these images have a few hundred bytes
                    raise ValueError(f"{member.file_size} bytes")
                with Image.open(io.BytesIO(opened.read(member)), formats=("JPEG", "PNG")) as image:
                    if image.size != (width, height):
                        raise ValueError(f"{image.width} x {image.height} pixels")
                    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
            except Exception as error:
                raise damaged(name, archive, f"{printable(member.filename)}: {reason_of(error)}") from error
            images[row] = pixels.reshape(height, width, channels)
    return [path for path, _ in found], torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def _in_threads(function: Callable[[list[A]], B], items: list[A], *, chunk: int) -> Generator[B, None, None]:
    """The function of every chunk of items, in order; decoders release the interpreter's lock."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(function, [items[first : first + chunk] for first in range(0, len(items), chunk)])
    finally:
        pool.shutdown(cancel_futures=True)  # or an interrupt would wait for all that is queued


# What the file is called decides whether it is meant to be an image; what it holds decides how it is read.
_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
# No other format: some of Pillow's decoders start programs (EPS runs Ghostscript), whatever the extension says.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF", "PPM")

_Found = list[tuple[str | None, Path]]  # class and file


def find_images(name: str, root: Path) -> tuple[_Found, _Found | None]:
    """The training files and the test files, None where the folder leaves the split to us."""
    if not root.is_dir():
        what = "is a file, expected a folder of images" if root.exists() else "does not exist"
        raise InputError(f"{name}: {printable(str(root))} {what}")
    base, (folders, files) = root, _listing(root)
    while not files and len(folders) == 1:  # an archive's wrapper, or a train folder on its own
        inner_folders, inner_files = _listing(folders[0])
        if inner_files or not inner_folders:
            break
        base, folders, files = folders[0], inner_folders, inner_files
    by_name = {folder.name.casefold(): folder for folder in reversed(folders)}
    tests = [by_name[kind] for kind in ("test", "val") if kind in by_name]
    if "train" not in by_name or not tests:
        found = _contents(name, base)
        if not found:
            raise InputError(f"{name}: no image in {printable(str(root))} ({' '.join(sorted(_EXTENSIONS))})")
        return found, None
    train = _contents(name, by_name["train"])
    if not train:
        raise InputError(f"{name}: no image in {printable(str(by_name['train']))}")
    choices = [found for place in tests if (found := _contents(name, place))]
    if not choices:
        raise InputError(f"{name}: no image in {printable(str(tests[0]))}")
    labelled = train[0][0] is not None
    for test in choices:  # test images without classes are of no use beside labelled ones: then val
        if (test[0][0] is not None) == labelled:
            return train, test
    with_classes, without = ("train", tests[0].name) if labelled else (tests[0].name, "train")
    raise InputError(f"{name}: {with_classes} has class folders and {without} has none; give both the same layout")


def files_below(name: str, root: Path) -> list[Path]:
    """Every image file in a folder and its subfolders, sorted by path; what is hidden is left out."""
    if not root.is_dir():
        what = "is a file, expected a folder of images" if root.exists() else "does not exist"
        raise InputError(f"{name}: {printable(str(root))} {what}")
    try:
        return _below(root)
    except OSError as error:
        raise InputError(f"{name}: {printable(str(root))} cannot be read: {reason_of(error)}") from error


def _contents(name: str, folder: Path) -> _Found:
    folders, files = _listing(folder)
    in_folders: _Found = [(place.name, file) for place in folders for file in _below(place)]
    if in_folders and files:
        raise InputError(
            f"{name}: {printable(str(folder))} holds both images and folders of images; "
            "put all of them into class folders, or none"
        )
    return in_folders or [(None, file) for file in files]


def _below(folder: Path) -> list[Path]:
    """Every image file in a folder and its subfolders. No folder is entered twice, so links cannot hang it."""
    found, seen = [], {os.path.realpath(folder.parent), os.path.realpath(folder)}
    waiting = [folder]
    while waiting:
        folders, files = _listing(waiting.pop())
        found += files
        for inner in folders:
            real = os.path.realpath(inner)
            if real not in seen:
                seen.add(real)
                waiting.append(inner)
    return sorted(found)


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Subfolders and image files, sorted; without what is hidden and without links that lead back up."""
    real = Path(os.path.realpath(folder))
    folders, files = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = folder / entry.name
            if _is_folder(entry):
                if not real.is_relative_to(os.path.realpath(path)):
                    folders.append(path)
            elif path.suffix.lower() in _EXTENSIONS:
                files.append(path)
    return sorted(folders), sorted(files)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def decode_files(name: str, files: list[Path], size: int) -> tuple[Tensor, dict[int, str]]:
    """Decodes files into one tensor of those that can be read; of the others, the reason by row."""
    _refuse_beyond_memory(name, len(files), 1, size)
    # Pages of memory count when they are written: a grey data set never pays for all three channels at once.
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    failures: dict[int, str] = {}
    row = kept = 0
    grey = True
    with closing(_each_opened(files, lambda image: _square(image, size), draft=2 * size)) as decoded:
        for image in decoded:
            if isinstance(image, str):
                failures[row] = image
            else:
                if grey and not _is_grey(image):
                    grey = False
                    _refuse_beyond_memory(name, len(files), 3, size)
                images[kept] = image
                kept += 1
            row += 1
    images = images[:kept]
    return images[:, :1] if grey else images, failures  # the splits are copies of its rows, in one channel or three


def each_file(files: list[Path], use: Callable[["Image.Image"], A]) -> list[A | str]:
    """What a function makes of each image, upright and 8-bit RGB; or the reason why it cannot be read.

    Arguments:
        files: as many as fit the memory as results.
        use: is called in several threads.
    """
    return list(_each_opened(files, lambda image: use(_upright(image))))


def _each_opened(
    files: list[Path], use: Callable[["Image.Image"], A], *, draft: int | None = None
) -> Generator[A | str, None, None]:
    """In order. A JPEG may be decoded at a fraction of its size, of at least `draft` pixels a side."""
    from PIL import Image

    def opened(chunk: list[Path]) -> list[A | str]:
        return [_opened(file, use, draft) for file in chunk]

    Image.init()  # here, once: the plugins' registry does not expect threads
    with warnings.catch_warnings():
        # A large image or a strange EXIF field is no news to the user: it is read, or it is skipped with a reason.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with closing(_in_threads(opened, files, chunk=8)) as chunks:
            yield from itertools.chain.from_iterable(chunks)


def _is_grey(image: Tensor) -> bool:
    return bool((image[0] == image[1]).all()) and bool((image[0] == image[2]).all())


_one_large_image = threading.Lock()


def _opened(file: Path, use: Callable[["Image.Image"], A], draft: int | None) -> A | str:
    """What a function makes of the image in a file, or the reason why it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        status = file.stat()  # before opening: a pipe would wait for a writer
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        if not status.st_size:
            return "empty file"
        with Image.open(file, formats=_FORMATS) as image:
            if draft is not None:
                image.draft(None, (draft, draft))
            large = image.width * image.height > 1 << 24
            with _one_large_image if large else nullcontext():
                return use(image)
    except UnidentifiedImageError:
        return "not an image"
    except Image.DecompressionBombError:
        return "too many pixels (a decompression bomb?)"
    except Exception as error:  # anything can be in a file, and every decoder has errors of its own
        return reason_of(error)


def _square(image: "Image.Image", size: int) -> Tensor:
    """The centre of an image, upright, 8-bit RGB."""
    import numpy as np
    from PIL import Image

    image.load()  # some formats hold their orientation behind the pixels
    rgb = _as_rgb(image)
    # Resizing the shorter side and cropping, in one: the centre square commutes with the orientation, and a strip
    # of 1 x 100,000 pixels needs no memory for what is cropped.
    side = min(rgb.size)
    left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
    box = (left, top, left + side, top + side)
    small = rgb.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    return torch.from_numpy(np.array(_turned(small, image))).permute(2, 0, 1)


def _upright(image: "Image.Image") -> "Image.Image":
    """The whole of an image, upright, 8-bit RGB."""
    image.load()
    return _turned(_as_rgb(image), image)


def _turned(picture: "Image.Image", image: "Image.Image") -> "Image.Image":
    """A picture of an image, turned as its EXIF orientation says."""
    from PIL import Image

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # broken metadata, but the pixels are there
        orientation = 1
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _as_rgb(image: "Image.Image") -> "Image.Image":
    """8-bit RGB of any mode; what is transparent shows a white ground."""
    import numpy as np
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow would clip these at 255
        values = np.asarray(image, dtype=np.float64)
        values = np.where(np.isfinite(values), values, 0)
        low, high = float(values.min()), float(values.max())
        if image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")):
            scale = 255 / 65535  # 16 bits, however dark the image
        elif low < 0 or high > 65535:  # no known range: stretched
            values, scale = values - low, 255 / ((high - low) or 1)
        elif high > 255:
            scale = 255 / 65535
        else:
            scale = 255.0 if image.mode == "F" and high <= 1 else 1.0
        return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        return ground.convert("RGB")
    return image.convert("RGB")


def _refuse_beyond_memory(name: str, images: int, channels: int, size: int) -> None:
    memory, needed = _memory(), images * channels * size * size
    if memory is not None and needed > memory / 4:  # splitting them holds everything twice for a moment
        raise InputError(
            f"{name}: {images} images of {channels} x {size} x {size} pixels take {needed / 1e9:.1f} GB, more than "
            f"a quarter of this machine's {memory / 1e9:.1f} GB; choose a smaller size or fewer images"
        )


def _memory() -> int | None:
    """Bytes of memory this process may use, None where the system does not tell."""
    try:
        found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for limit_file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # a container's
        try:
            found.append(int(Path(limit_file).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(found)


# --- words --------------------------------------------------------------------------------------------------------


def reason_of(error: BaseException) -> str:
    """An exception in a few words on one line, without the path that the message names anyway."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(words.split()) or type(error).__name__
    return printable(text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}")


def printable(text: str) -> str:
    """Line breaks, control characters and bytes that are no UTF-8 as escapes: a file name cannot forge a message."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_utf8(name: str) -> str:
    """A file name that can be written: bytes that are no UTF-8 come from the system as lone surrogates."""
    return name.encode("utf-8", "backslashreplace").decode()


def damaged(name: str, file: Path, reason: str) -> InputError:
    """The error for a file that is there and cannot be read."""
    return InputError(
        f"{name}: {printable(str(file))} is damaged or cannot be read ({reason}); "
        "delete it and fetch it again (--download)"
    )
