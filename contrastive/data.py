"""Image data sets, one function each, decoded once into memory as uint8 tensors.

Training never waits for a decoder: a data set is an `ImageData` of two `ImageSplit`, whole in memory. Splits and
orders are fixed; no seed of a training run changes them.

>>> data = digits()
>>> data.train.images.shape, len(data.test)
(torch.Size([1437, 1, 8, 8]), 360)
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int64, UInt8
from torch import Tensor

from contrastive.archives import unpack
from contrastive.errors import InputError
from contrastive.pictures import as_utf8, damaged, decode_files, decode_zip, find_images, printable, reason_of

__all__ = [
    "ImageData",
    "ImageSplit",
    "channel_statistics",
    "cifar10",
    "digits",
    "fashion_mnist",
    "folder",
    "limit",
    "mnist",
    "omniglot",
    "stl10",
]


# eq=False: comparing tensors field by field has no truth value.
@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images of one size with their labels: the training or the test half of a data set.

    Arguments:
        images: pixels from 0 to 255; 1 channel for greyscale, else 3 (red, green, blue).
        labels: index into `ImageData.classes`; None where nothing is labelled.
        names: file name of each image, relative to the folder it was read from; None where there are no files.
    """

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"] | None
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Int[Tensor, " rows"] | Bool[Tensor, " n"]) -> "ImageSplit":
        """The images of some rows, in the order given.

        Arguments:
            rows: row numbers, or a mask over all rows.

        Returns:
            A split of those rows, with their labels and names.
        """
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        return ImageSplit(
            self.images[rows],
            None if self.labels is None else self.labels[rows],
            None if self.names is None else tuple(self.names[row] for row in rows.tolist()),
        )


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set in memory.

    Arguments:
        name: ``"digits"``, ``"mnist"``, ``"folder:pets"``.
        train: what encoders and probes are fitted on.
        test: what they are judged on.
        classes: class names, by label; empty when unlabelled.
        class_disjoint: whether no test class occurs in `train`, so that a probe must be fitted on half of the test
            images.
        skipped: unreadable images that were left out, as ``"name: reason"``.
        mirrored: whether an image means the same after a left-right flip.
        unlabelled: further images without labels, for encoders alone; None where there are none.
    """

    name: str
    train: ImageSplit
    test: ImageSplit
    classes: tuple[str, ...]
    class_disjoint: bool = False
    skipped: tuple[str, ...] = ()
    mirrored: bool = True
    unlabelled: ImageSplit | None = None


def channel_statistics(images: UInt8[Tensor, "n c h w"]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels in [0, 1]: counted, so exact and without a copy in floats.

    Arguments:
        images: any number, at least one.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].reshape(-1), minlength=256).double()
        share = counts / counts.sum()
        mean = (share * values).sum()
        means.append(float(mean))
        deviations.append(max(float((share * (values - mean).square()).sum().sqrt()), 1e-3))
    return means, deviations


def limit(data: ImageData, n: int | None) -> ImageData:
    """Keeps n training images: the first of a fixed random order, the same for every training seed.

    Arguments:
        data: any data set.
        n: how many training images to keep, at least 2; None, or as many as there are, keeps all.

    Returns:
        The data set with fewer training images; the test images stay as they are. A smaller n keeps a subset of what
        a larger one keeps.

    Raises:
        InputError: for n below 2.

    Example:
        >>> len(limit(digits(), 100).train)
        100
    """
    if n is None:
        return data
    if n < 2:
        raise InputError(f"{data.name}: cannot limit the training set to {n} images, contrasting takes at least 2")
    if n >= len(data.train):
        return data
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(7))
    return replace(data, train=data.train.subset(order[:n]))


def digits() -> ImageData:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: no file, no download.

    Returns:
        1,437 training and 360 test images (fixed stratified split), their 17 grey levels spread over 0 to 255.

    References:
        | Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998)
        | https://archive.ics.uci.edu/dataset/80
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    train, test = train_test_split(range(len(labels)), test_size=360, stratify=bunch.target, random_state=0)
    every = ImageSplit(images, labels)
    return ImageData(
        "digits",
        every.subset(torch.tensor(train)),
        every.subset(torch.tensor(test)),
        tuple("0123456789"),
        mirrored=False,
    )


def mnist(root: str | os.PathLike[str] | None, *, download: bool = False) -> ImageData:
    """MNIST: 60,000 + 10,000 handwritten digits of 28 x 28 pixels.

    Arguments:
        root: the folder that holds ``MNIST/raw``, as torchvision lays it out.
        download: whether to fetch what is missing.

    Returns:
        The data set, with 1 channel.

    Raises:
        InputError: for a missing, damaged or unreadable file, or a failed download.

    References:
        | Gradient-Based Learning Applied to Document Recognition (LeCun et al., 1998)
        | https://doi.org/10.1109/5.726791
    """
    from torchvision.datasets import MNIST

    return _mnist_like("mnist", MNIST, root, download, classes=tuple("0123456789"), mirrored=False)


def fashion_mnist(root: str | os.PathLike[str] | None, *, download: bool = False) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 pieces of clothing of 28 x 28 pixels.

    Arguments:
        root: the folder that holds ``FashionMNIST/raw``, as torchvision lays it out.
        download: whether to fetch what is missing.

    Returns:
        The data set, with 1 channel.

    Raises:
        InputError: for a missing, damaged or unreadable file, or a failed download.

    References:
        | Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms (Xiao et al., 2017)
        | https://arxiv.org/abs/1708.07747
    """
    from torchvision.datasets import FashionMNIST

    return _mnist_like(
        "fashion-mnist", FashionMNIST, root, download, classes=tuple(FashionMNIST.classes), mirrored=True
    )


def cifar10(root: str | os.PathLike[str] | None, *, download: bool = False) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels.

    Arguments:
        root: the folder that holds ``cifar-10-batches-py``, as torchvision lays it out, or else ``cifar10-jpeg.zip``
            (members ``cifar10/{train,test}/CLASS/NNNN.jpg``; re-encoded, so pixels differ slightly). The batches are
            pickles: they are loaded only if their checksums are the published ones.
        download: whether to fetch the batches where there is neither.

    Returns:
        The data set, with 3 channels.

    Raises:
        InputError: for a missing, damaged or unreadable file, or a failed download.

    References:
        | Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009)
        | https://www.cs.toronto.edu/~kriz/cifar.html
    """
    from torchvision.datasets import CIFAR10

    name, wanted = "cifar10", "cifar-10-batches-py or cifar10-jpeg.zip"
    base = _data_root(name, root, wanted)
    batches, archive = base / CIFAR10.base_folder, base / "cifar10-jpeg.zip"
    checksums = dict([*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])])
    absent = [file for file in checksums if not _is_file(batches / file)]
    if absent and _is_file(archive):
        return _cifar10_zip(name, archive)
    if absent and download:
        _fetch(name, CIFAR10, base, absent)
    elif absent:
        raise _missing(name, wanted if len(absent) == len(checksums) else f"{CIFAR10.base_folder}/{absent[0]}", base)
    return _cifar10_batches(name, base, batches, checksums)


def stl10(root: str | os.PathLike[str] | None, *, download: bool = False) -> ImageData:
    """STL-10: 5,000 + 8,000 colour images of 96 x 96 pixels, and 100,000 without labels to train an encoder on.

    Arguments:
        root: the folder that holds ``stl10_binary``, as torchvision lays it out.
        download: whether to fetch the archive of 2.6 GB where files are missing.

    Returns:
        The data set, with 3 channels. `ImageData.train` and `test` are labelled; `unlabelled` stays in its file of
        2.8 GB until rows are taken of it.

    Raises:
        InputError: for a missing, damaged or unreadable file, or a failed download.

    References:
        | An Analysis of Single-Layer Networks in Unsupervised Feature Learning (Coates et al., 2011)
        | https://cs.stanford.edu/~acoates/stl10/
    """
    from torchvision.datasets import STL10

    name = "stl10"
    base = _data_root(name, root, STL10.base_folder)
    files = [file for file, _ in (*STL10.train_list, *STL10.test_list)]
    absent = [file for file in files if not _is_file(base / STL10.base_folder / file)]
    if absent and download:
        _fetch(name, STL10, base, absent)
    elif absent:
        raise _missing(
            name, STL10.base_folder if len(absent) == len(files) else f"{STL10.base_folder}/{absent[0]}", base
        )
    return _stl10_binary(name, base / STL10.base_folder)


def omniglot(root: str | os.PathLike[str] | None, *, download: bool = False) -> ImageData:
    """Omniglot's two small background sets with whole alphabets held out: retrieval of classes never seen.

    The 242 characters of 8 alphabets, each drawn by 20 people, are turned by 0, 90, 180 and 270 degrees, and every
    turn of a character is a class of its own. The 50 characters that are in both files are read once.

    Arguments:
        root: the folder that holds ``omniglot/images_background_small1.zip`` and ``...small2.zip``, or the two
            files themselves.
        download: whether to fetch what is missing (from Omniglot's own repository; torchvision's `Omniglot` takes
            other files).

    Returns:
        14,000 training images of 700 classes (5 alphabets) and 5,360 test images of 268 other classes (Balinese,
        Latin, Tagalog): 28 x 28 pixels, 1 channel, white strokes on black.

    Raises:
        InputError: for a missing, damaged or unreadable file, or a failed download.

    References:
        | Human-level concept learning through probabilistic program induction (Lake et al., 2015)
        | https://doi.org/10.1126/science.aab3050
    """
    name = "omniglot"
    base = _data_root(name, root, " and ".join(_OMNIGLOT_MD5))

    def place(file: str) -> Path:
        return base / file if _is_file(base / file) else base / "omniglot" / file

    absent = [file for file in _OMNIGLOT_MD5 if not _is_file(place(file))]
    wanted = " and ".join(f"omniglot/{file}" for file in absent)
    if absent and download:
        from torchvision.datasets.utils import download_url

        with _staging(name, base, f"{wanted} (from {_OMNIGLOT_URL})") as staging:
            for file in absent:
                download_url(_OMNIGLOT_URL + file, staging, md5=_OMNIGLOT_MD5[file])
            _move(staging, base / "omniglot", absent)
    elif absent:
        raise _missing(name, wanted, base, f" (from {_OMNIGLOT_URL})")
    archives = [place(file) for file in _OMNIGLOT_MD5]

    drawings: dict[tuple[str, ...], Tensor] = {}
    for archive in archives:
        paths, images = decode_zip(name, archive, ".png", depth=3, shape=(1, 105, 105))
        for path, image in zip(paths, images, strict=True):
            drawings.setdefault(path, image)  # (alphabet, character, drawing); an alphabet may be in both files
    held_out = {"Balinese", "Latin", "Tagalog"}
    train_paths = sorted(path for path in drawings if path[0] not in held_out)
    test_paths = sorted(path for path in drawings if path[0] in held_out)
    if not train_paths or {path[0] for path in test_paths} != held_out:
        raise InputError(
            f"{name}: {' and '.join(printable(str(archive)) for archive in archives)} do not hold Omniglot's "
            f"alphabets; delete them and fetch them again (--download, from {_OMNIGLOT_URL})"
        )

    classes: list[str] = []

    def split(paths: list[tuple[str, ...]]) -> ImageSplit:
        first = len(classes)
        characters = sorted({path[:2] for path in paths})
        classes.extend(f"{'/'.join(character)}/{turn}" for character in characters for turn in (0, 90, 180, 270))
        of_drawing = torch.tensor([characters.index(path[:2]) for path in paths])
        ink = 255 - torch.stack([drawings[path] for path in paths])
        small = F.interpolate(ink, size=(28, 28), mode="bilinear", antialias=True)
        turned = torch.stack([torch.rot90(small, quarter, (2, 3)) for quarter in range(4)], 1)
        labels = first + 4 * of_drawing[:, None] + torch.arange(4)
        return ImageSplit(turned.flatten(0, 1), labels.flatten())

    train, test = split(train_paths), split(test_paths)
    return ImageData(name, train, test, tuple(classes), class_disjoint=True, mirrored=False)


def folder(path: str | os.PathLike[str], *, size: int = 64, corrupt: str = "skip") -> ImageData:
    """Images in a folder, in one of three layouts.

    ============================================== =======================================================
    layout                                         split
    ============================================== =======================================================
    ``PATH/train/CLASS/*.jpg`` with ``test``       as given (``val`` where there is no ``test``); both may
    or ``val`` beside it                           also be flat, then there are no labels
    ``PATH/CLASS/*.jpg``                           80/20 within each class, fixed; a class of 2 or more has
                                                   at least one test image
    ``PATH/*.jpg``                                 80/20, fixed; no labels
    ============================================== =======================================================

    Class folders are read with everything below them; a lone folder that only wraps other folders is looked through.
    Hidden files, ``__MACOSX`` and links that lead back up are ignored. Classes are sorted by name, over training and
    test images together.

    Every image is decoded by content (PNG, JPEG, BMP, WebP, GIF and TIFF, first frame; PPM and PGM), turned as its
    EXIF orientation says, brought to 8-bit RGB (16 bits are scaled, transparent parts become white), resized to `size`
    at the shorter side with antialiasing and cropped to the centre. If every image is grey, one channel is kept.

    Arguments:
        path: the folder.
        size: height and width of the result, in pixels.
        corrupt: ``"skip"`` leaves an unreadable image out (truncated, empty, far too large, not an image) and names it
            in `ImageData.skipped`; ``"refuse"`` raises.

    Returns:
        The data set; `ImageSplit.names` are paths relative to the folder, bytes that are no UTF-8 escaped.

    Raises:
        InputError: for a folder that is missing, unreadable or without a readable image, for fewer than 2 training
            images or no test image, for images beside class folders, for an unreadable image if `corrupt` is
            ``"refuse"``, and when the images would fill more than a quarter of the machine's memory.
    """
    root = _expanded(path)
    name = "folder:" + printable(root.name if root.name not in ("", "..") else root.resolve().name)
    if size < 1:
        raise InputError(f"{name}: size is {size} pixels, expected at least 1")
    if corrupt not in ("skip", "refuse"):
        raise InputError(f"{name}: corrupt is {corrupt!r}, expected 'skip' or 'refuse'")
    try:
        given_train, given_test = find_images(name, root)
    except OSError as error:
        place = printable(str(error.filename or root))
        raise InputError(f"{name}: {place} cannot be read ({reason_of(error)})") from error
    found = given_train + (given_test or [])
    names = [file.relative_to(root).as_posix() for _, file in found]
    images, failures = decode_files(name, [file for _, file in found], size)
    skipped = tuple(f"{printable(names[row])}: {reason}" for row, reason in failures.items())
    if skipped and corrupt == "refuse":
        raise InputError(
            f"{name}: {len(skipped)} of {len(found)} images cannot be read, the first is {skipped[0]}; "
            "mend or remove them, or have them skipped (corrupt: skip)"
        )
    if not len(images):
        raise InputError(f"{name}: none of the {len(found)} images can be read, the first is {skipped[0]}")

    kept = [row for row in range(len(found)) if row not in failures]
    labelled = found[0][0] is not None
    of_image = [found[row][0] or "" for row in kept]
    classes = sorted(set(of_image)) if labelled else []
    number = {label: index for index, label in enumerate(classes)}
    labels = torch.tensor([number[label] for label in of_image]) if labelled else None
    every = ImageSplit(images, labels, tuple(as_utf8(names[row]) for row in kept))
    if given_test is None:
        in_test = _fifth(labels if labels is not None else torch.zeros(len(kept), dtype=torch.int64))
    else:
        in_test = torch.tensor(kept) >= len(given_train)
    train, test = every.subset(~in_test), every.subset(in_test)
    where = printable(str(root))
    if len(train) < 2:
        raise InputError(f"{name}: {len(train)} readable training image(s) in {where}, expected at least 2")
    if not len(test):
        why = "no class has 2 images to share out" if given_test is None else "none of the test images can be read"
        raise InputError(f"{name}: no test image in {where}: {why}")
    return ImageData(
        name,
        train,
        test,
        tuple(map(as_utf8, classes)),
        class_disjoint=labelled and set(_classes(train)).isdisjoint(_classes(test)),
        skipped=skipped,
    )


# --- MNIST and its like -------------------------------------------------------------------------------------------


def _mnist_like(
    name: str,
    source: Any,
    root: str | os.PathLike[str] | None,
    download: bool,
    *,
    classes: tuple[str, ...],
    mirrored: bool,
) -> ImageData:
    """MNIST or a data set of the same files (`source`: torchvision's class), checked against each other."""
    folder = f"{source.__name__}/raw"
    base = _data_root(name, root, folder)
    files = [*_idx_files("train"), *_idx_files("t10k")]
    absent = [file for file in files if not _is_file(base / folder / file)]
    if absent and download:
        with _staging(name, base, folder) as staging:
            source(staging, download=True)
            _move(staging / folder, base / folder, absent)
    elif absent:
        raise _missing(name, folder if absent == files else f"{folder}/{absent[0]}", base)
    train, test = (_read_idx(name, base / folder, kind, len(classes)) for kind in ("train", "t10k"))
    return ImageData(name, train, test, classes, mirrored=mirrored)


def _idx_files(kind: str) -> tuple[str, str]:
    return f"{kind}-images-idx3-ubyte", f"{kind}-labels-idx1-ubyte"


def _read_idx(name: str, raw: Path, kind: str, classes: int) -> ImageSplit:
    """One split; whatever is wrong with a file names the file."""
    from torchvision.datasets import mnist as idx

    tensors = []
    for file, read in zip(_idx_files(kind), (idx.read_image_file, idx.read_label_file), strict=True):
        try:
            tensors.append(read(raw / file))
        except Exception as error:  # torchvision asserts, indexes and views: any of them means a damaged file
            raise damaged(name, raw / file, reason_of(error)) from error
    images, labels = tensors
    if images.shape[1:] != (28, 28) or not len(images):
        raise damaged(name, raw / _idx_files(kind)[0], f"{len(images)} images of shape {tuple(images.shape[1:])}")
    if len(labels) != len(images):
        raise damaged(name, raw / _idx_files(kind)[1], f"{len(labels)} labels for {len(images)} images")
    if int(labels.max()) >= classes:
        raise damaged(name, raw / _idx_files(kind)[1], f"label {int(labels.max())} among {classes} classes")
    return ImageSplit(images[:, None], labels)


# --- CIFAR-10 -----------------------------------------------------------------------------------------------------


def _cifar10_batches(name: str, base: Path, batches: Path, checksums: dict[str, str]) -> ImageData:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    def split(train: bool) -> tuple[ImageSplit, tuple[str, ...]]:
        data = CIFAR10(base, train=train)  # refuses, before it unpickles, what has another checksum
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSplit(images, torch.tensor(data.targets, dtype=torch.int64)), tuple(data.classes)

    try:
        with warnings.catch_warnings():  # numpy 2.4 warns of pickles as old as these
            warnings.simplefilter("ignore")
            (train, classes), (test, _) = split(True), split(False)
    except OSError as error:
        raise damaged(name, Path(error.filename or batches), reason_of(error)) from error
    except RuntimeError as error:  # it says that something is wrong, not which file
        wrong = [batches / file for file, md5 in checksums.items() if not check_integrity(batches / file, md5)]
        raise damaged(name, wrong[0] if wrong else batches, "wrong checksum") from error
    return ImageData(name, train, test, classes)


def _cifar10_zip(name: str, archive: Path) -> ImageData:
    paths, images = decode_zip(name, archive, ".jpg", depth=3, shape=(3, 32, 32))  # (split, class, file)
    classes = sorted({path[1] for path in paths})
    number = {label: index for index, label in enumerate(classes)}
    every = ImageSplit(images, torch.tensor([number[path[1]] for path in paths]))
    in_train, in_test = (torch.tensor([path[0] == kind for path in paths]) for kind in ("train", "test"))
    if not in_train.any() or not in_test.any():
        raise damaged(name, archive, "no members cifar10/{train,test}/CLASS/*.jpg")
    return ImageData(name, every.subset(in_train), every.subset(in_test), tuple(classes))


# --- STL-10 -------------------------------------------------------------------------------------------------------

_STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def _stl10_binary(name: str, folder: Path) -> ImageData:
    train, test = (
        _stl10_labelled(name, folder / f"{kind}_X.bin", folder / f"{kind}_y.bin") for kind in ("train", "test")
    )
    unlabelled = ImageSplit(_stl10_images(name, folder / "unlabeled_X.bin"), None)
    return ImageData(name, train, test, _STL10_CLASSES, unlabelled=unlabelled)


def _stl10_labelled(name: str, of_images: Path, of_labels: Path) -> ImageSplit:
    images = _stl10_images(name, of_images).contiguous()
    try:
        labels = torch.frombuffer(bytearray(of_labels.read_bytes()), dtype=torch.uint8).long()  # 1 to 10
    except (OSError, ValueError) as error:
        raise damaged(name, of_labels, reason_of(error)) from error
    if len(labels) != len(images):
        raise damaged(name, of_labels, f"{len(labels)} labels for {len(images)} images")
    smallest, largest = (int(end) for end in labels.aminmax())
    if smallest < 1 or largest > len(_STL10_CLASSES):
        raise damaged(name, of_labels, f"labels {smallest} to {largest}, expected 1 to {len(_STL10_CLASSES)}")
    return ImageSplit(images, labels - 1)


def _stl10_images(name: str, file: Path) -> UInt8[Tensor, "n 3 96 96"]:
    """The images of a file, which are read when they are looked at; each channel is stored column by column."""
    size = 3 * 96 * 96
    try:
        length = file.stat().st_size
        if not length or length % size:
            raise damaged(name, file, f"{length} bytes, expected a multiple of {size}: 3 x 96 x 96 an image")
        # A private copy is made of a page that somebody writes to; the file is never changed.
        stored = torch.from_file(str(file), shared=False, size=length, dtype=torch.uint8)
    except (OSError, RuntimeError) as error:
        raise damaged(name, file, reason_of(error)) from error
    return stored.view(-1, 3, 96, 96).transpose(2, 3)


# --- files, downloads, zip files ----------------------------------------------------------------------------------


# The md5 of the files in Omniglot's repository, which has no releases.
_OMNIGLOT_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_OMNIGLOT_MD5 = {
    "images_background_small1.zip": "e704a628b5459e08445c13499850abc4",
    "images_background_small2.zip": "b75a71a51d3b13f821f212756fe481fd",
}


def _data_root(name: str, root: str | os.PathLike[str] | None, wanted: str) -> Path:
    if root is None:
        raise InputError(
            f"{name}: no data root to look for {wanted} in; pass --data-root FOLDER (or set CONTRASTIVE_DATA), "
            "and --download to have it fetched"
        )
    return _expanded(root)


def _missing(name: str, wanted: str, base: Path, source: str = "") -> InputError:
    return InputError(
        f"{name}: no {wanted} under {printable(str(base))}; pass --data-root FOLDER (or set CONTRASTIVE_DATA), "
        f"or --download{source}"
    )


def _expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` replaced, which a shell leaves alone in ``--data-root=~/data``."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user: then it is a file name
        return Path(path)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _fetch(name: str, source: Any, base: Path, absent: Sequence[str]) -> None:
    """Fetches the archive of torchvision's class `source`, and puts what is absent of its folder where it belongs."""
    from torchvision.datasets.utils import download_url

    with _staging(name, base, source.base_folder) as staging:
        download_url(source.url, staging, source.filename, source.tgz_md5)
        unpack(staging / source.filename, staging, checksum=source.tgz_md5)
        _move(staging / source.base_folder, base / source.base_folder, absent)


@contextmanager
def _staging(name: str, base: Path, wanted: str) -> Iterator[Path]:
    """A folder to download into, beside the data: half a file never stands where a whole one is looked for."""
    try:
        base.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".download-", dir=base) as staging:
            yield Path(staging)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        raise InputError(
            f"{name}: the download failed ({reason_of(error)}); check the connection, or put {wanted} under "
            f"{printable(str(base))} yourself"
        ) from error


def _move(source: Path, target: Path, files: Sequence[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in files:
        (source / file).replace(target / file)


def _fifth(labels: Tensor) -> Tensor:
    """A mask of the test images: a fifth of every class, at least one of two."""
    generator = torch.Generator().manual_seed(0)
    in_test = torch.zeros(len(labels), dtype=torch.bool)
    for rows in torch.split(labels.argsort(stable=True), labels.bincount().tolist()):
        count = max(1, round(len(rows) / 5)) if len(rows) > 1 else 0
        in_test[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return in_test


def _classes(split: ImageSplit) -> list[int]:
    return [] if split.labels is None else split.labels.tolist()
