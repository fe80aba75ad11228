"""Data sets: counts, ranges and splits of the real ones; every kind of good and bad image in synthetic folders."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from references import write_stl10

from contrastive import data, pictures
from contrastive.data import (
    ImageData,
    ImageSplit,
    cifar10,
    digits,
    fashion_mnist,
    folder,
    limit,
    mnist,
    omniglot,
    stl10,
)
from contrastive.errors import InputError

RED, GREEN, BLUE = (200, 30, 20), (20, 200, 30), (30, 20, 200)


def paint(path, colour=RED, *, mode="RGB", size=(12, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def noise(path, seed=0, *, size=(96, 64), **options):
    """An image that no codec can shrink to nothing, so that it can be cut short."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def cut(path, share=0.5):
    encoded = path.read_bytes()
    path.write_bytes(encoded[: int(len(encoded) * share)])
    return path


def classes_of(root, counts):
    for label, count in counts.items():
        for index in range(count):
            paint(root / label / f"{index:02d}.png", (index, 100, 50))
    return root


def check(loaded: ImageData):
    """What holds of every data set."""
    assert loaded.train.images.shape[1:] == loaded.test.images.shape[1:]
    for split in (loaded.train, loaded.test):
        assert split.images.dtype == torch.uint8
        assert split.images.shape[1] in (1, 3)
        assert len(split) == len(split.images) > 0
        if split.labels is None:
            assert loaded.classes == ()
        else:
            assert split.labels.dtype == torch.int64
            assert split.labels.shape == (len(split),)
            assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(loaded.classes)
        if split.names is not None:
            assert len(split.names) == len(split)
    assert len(set(loaded.classes)) == len(loaded.classes)
    if loaded.train.names is not None:
        assert not set(loaded.train.names) & set(loaded.test.names)
    return loaded


def colours(loaded: ImageData):
    """The centre pixel of every image, by file name."""
    return {
        name: tuple(image[:, image.shape[1] // 2, image.shape[2] // 2].tolist())
        for split in (loaded.train, loaded.test)
        for name, image in zip(split.names, split.images, strict=True)
    }


def message(call, *parts):
    """The one sentence of the InputError; it must hold the parts and no line break."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text
    return text


# --- splits and limits ---------------------------------------------------------------------------------------------


def test_a_subset_keeps_images_labels_and_names_together():
    split = ImageSplit(
        torch.arange(4, dtype=torch.uint8).reshape(4, 1, 1, 1), torch.tensor([5, 6, 7, 8]), ("a", "b", "c", "d")
    )
    by_number = split.subset(torch.tensor([3, 1]))
    assert by_number.images.flatten().tolist() == [3, 1]
    assert by_number.labels.tolist() == [8, 6]
    assert by_number.names == ("d", "b")
    by_mask = split.subset(torch.tensor([False, True, False, True]))
    assert by_mask.images.flatten().tolist() == [1, 3]
    assert by_mask.labels.tolist() == [6, 8]
    assert by_mask.names == ("b", "d")
    bare = ImageSplit(split.images, None).subset(torch.tensor([0]))
    assert bare.labels is None
    assert bare.names is None


def test_limit_is_the_start_of_one_fixed_order():
    loaded = digits()
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(7))
    torch.manual_seed(1)
    few = limit(loaded, 50)
    torch.manual_seed(2)
    more = limit(loaded, 80)
    assert torch.equal(few.train.images, loaded.train.images[order[:50]])
    assert torch.equal(few.train.labels, loaded.train.labels[order[:50]])
    assert torch.equal(more.train.images[:50], few.train.images)
    assert few.test is loaded.test
    assert few.classes == loaded.classes
    assert not few.mirrored


def test_limit_leaves_a_smaller_set_alone_and_refuses_less_than_two():
    loaded = digits()
    assert limit(loaded, None) is loaded
    assert limit(loaded, 1437) is loaded
    assert limit(loaded, 10**9) is loaded
    assert len(limit(loaded, 2).train) == 2
    for n in (1, 0, -3):
        message(lambda n=n: limit(loaded, n), "digits", n)


# --- digits and the real data --------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    loaded = check(digits())
    assert loaded.train.images.shape == (1437, 1, 8, 8)
    assert loaded.test.images.shape == (360, 1, 8, 8)
    assert loaded.classes == tuple("0123456789")
    assert not loaded.mirrored
    assert not loaded.class_disjoint
    assert loaded.train.labels.bincount().min() >= 139  # stratified: 174 to 183 images of each digit
    assert loaded.test.labels.bincount().min() >= 34
    # Every image of the original is there once, scaled from 0..16 to 0..255.
    ours = torch.cat([loaded.train.images, loaded.test.images]).flatten(1).double() * 16 / 255
    labels = torch.cat([loaded.train.labels, loaded.test.labels])
    theirs = load_digits()
    assert sorted(map(tuple, torch.column_stack([labels, ours.round()]).tolist())) == sorted(
        map(tuple, np.column_stack([theirs.target, theirs.data]).tolist())
    )
    assert loaded.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    again = digits()
    assert torch.equal(again.train.images, loaded.train.images)
    assert torch.equal(again.test.labels, loaded.test.labels)


@pytest.mark.data
@pytest.mark.parametrize(
    ("load", "mean", "mirrored", "first", "last"),
    [(mnist, 33.32, False, "0", "9"), (fashion_mnist, 72.94, True, "T-shirt/top", "Ankle boot")],
)
def test_the_mnist_family(data_root, load, mean, mirrored, first, last):
    loaded = check(load(data_root))
    assert loaded.train.images.shape == (60_000, 1, 28, 28)
    assert loaded.test.images.shape == (10_000, 1, 28, 28)
    assert float(loaded.train.images.float().mean()) == pytest.approx(mean, abs=0.01)
    assert (loaded.classes[0], loaded.classes[-1], len(loaded.classes)) == (first, last, 10)
    assert loaded.test.labels.bincount(minlength=10).min() > 890
    assert loaded.mirrored is mirrored


@pytest.mark.data
def test_cifar10_straight_from_the_zip(data_root):
    loaded = check(cifar10(data_root))
    assert loaded.train.images.shape == (50_000, 3, 32, 32)
    assert loaded.test.images.shape == (10_000, 3, 32, 32)
    assert loaded.train.labels.bincount().tolist() == [5000] * 10
    assert loaded.test.labels.bincount().tolist() == [1000] * 10
    expected = "airplane automobile bird cat deer dog frog horse ship truck"  # torchvision's order
    assert loaded.classes == tuple(expected.split())
    assert loaded.train.images.float().mean((0, 2, 3)).tolist() == pytest.approx([125.3, 123.0, 113.9], abs=0.3)
    assert loaded.mirrored
    with zipfile.ZipFile(data_root / "cifar10-jpeg.zip") as archive:
        for member, split, row in [
            ("train/frog/0007.jpg", loaded.train, 30_007),
            ("test/cat/0999.jpg", loaded.test, 3999),
        ]:
            with Image.open(io.BytesIO(archive.read(f"cifar10/{member}"))) as image:
                expected = np.asarray(image, dtype=int)
            ours = split.images[row].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(ours - expected).max() <= 2  # two builds of libjpeg may round differently
            assert loaded.classes[split.labels[row]] == member.split("/")[1]


@pytest.mark.data
def test_omniglot_holds_whole_alphabets_out_and_reads_every_drawing_once(data_root):
    loaded = check(omniglot(data_root))
    assert loaded.train.images.shape == (14_000, 1, 28, 28)
    assert loaded.test.images.shape == (5360, 1, 28, 28)
    assert loaded.class_disjoint
    assert not loaded.mirrored
    assert loaded.train.labels.bincount().tolist() == [20] * 700
    assert loaded.test.labels.bincount().tolist() == [0] * 700 + [20] * 268
    assert len(loaded.classes) == 968

    def alphabets(split):
        return {loaded.classes[label].split("/")[0] for label in split.labels.unique().tolist()}

    assert alphabets(loaded.train) == {"Early_Aramaic", "Greek", "Japanese_(katakana)", "Korean", "Sanskrit"}
    assert alphabets(loaded.test) == {"Balinese", "Latin", "Tagalog"}
    # No duplicates: before they are turned, no two images of 242 x 20 are the same.
    upright = torch.cat([split.images.reshape(-1, 4, 28, 28)[:, 0] for split in (loaded.train, loaded.test)])
    assert len(upright.flatten(1).unique(dim=0)) == len(upright) == 4840
    # White strokes on black, smooth edges, the four turns next to each other.
    assert 10 < float(upright.float().mean()) < 30
    assert len(upright.unique()) > 100
    for quarter in range(4):
        assert torch.equal(loaded.test.images[quarter], torch.rot90(loaded.test.images[0], quarter, (1, 2)))
    assert loaded.classes[700:704] == tuple(f"Balinese/character01/{turn}" for turn in (0, 90, 180, 270))
    assert loaded.test.labels[:4].tolist() == [700, 701, 702, 703]


@pytest.mark.data
def test_omniglot_directly_under_the_root(data_root):
    assert len(omniglot(data_root / "omniglot").test) == 5360


# --- missing, damaged, downloaded ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "wanted"),
    [
        (mnist, ["mnist: no MNIST/raw under"]),
        (fashion_mnist, ["fashion-mnist: no FashionMNIST/raw under"]),
        (cifar10, ["cifar10: no cifar-10-batches-py or cifar10-jpeg.zip under"]),
        (stl10, ["stl10: no stl10_binary under"]),
        (
            omniglot,
            ["omniglot/images_background_small1.zip and omniglot/images_background_small2.zip", "brendenlake/omniglot"],
        ),
    ],
)
def test_a_missing_data_set_says_what_where_and_how(tmp_path, load, wanted):
    hints = ["--data-root FOLDER", "CONTRASTIVE_DATA", "--download"]
    message(lambda: load(tmp_path), *wanted, tmp_path, *hints)
    message(lambda: load(tmp_path / "absent"), *wanted, *hints)
    message(lambda: load(None), "no data root", *hints)
    message(lambda: load(None, download=True), "no data root", *hints)
    assert not list(tmp_path.iterdir())


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(root, *, name="MNIST", train=20, test=10):
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for kind, count in (("train", train), ("t10k", test)):
        (raw / f"{kind}-images-idx3-ubyte").write_bytes(idx(np.full((count, 28, 28), count, np.uint8)))
        (raw / f"{kind}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8) % 10))
    return raw


def test_idx_files_are_read_as_they_are(tmp_path):
    write_idx(tmp_path)
    loaded = check(mnist(tmp_path))
    assert loaded.train.images.unique().tolist() == [20]
    assert loaded.test.labels.tolist() == list(range(10))
    assert len(mnist(str(tmp_path)).train) == 20


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("damage", ["empty", "cut", "text", "longer"])
def test_a_damaged_idx_file_is_named(tmp_path, file, damage):
    path = write_idx(tmp_path) / file
    content = path.read_bytes()
    damaged = {"empty": b"", "cut": content[:-3], "text": b"<html>404</html>", "longer": content + b"12345"}[damage]
    path.write_bytes(damaged)
    message(lambda: mnist(tmp_path), "mnist", path, "delete it")


def test_idx_files_that_contradict_each_other(tmp_path):
    raw = write_idx(tmp_path)
    labels = raw / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(19, np.uint8)))
    message(lambda: mnist(tmp_path), labels, "19 labels for 20 images")
    labels.write_bytes(idx(np.full(20, 10, np.uint8)))
    message(lambda: mnist(tmp_path), labels, "label 10")
    labels.unlink()
    message(lambda: mnist(tmp_path), "no MNIST/raw/train-labels-idx1-ubyte")
    images = raw / "t10k-images-idx3-ubyte"
    write_idx(tmp_path / "b")
    (tmp_path / "b/MNIST/raw/t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((10, 8, 8), np.uint8)))
    message(lambda: mnist(tmp_path / "b"), images.name, "(8, 8)")


def omniglot_zip(path, alphabets, *, top, characters=2, drawings=2, size=(105, 105), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__MACOSX/a/b/._0001_01.png", b"no image")
        for alphabet in alphabets:
            for character in range(characters):
                for drawing in range(drawings):
                    pixels = generator.integers(0, 2, (size[1], size[0]), dtype=np.uint8) * 255
                    encoded = io.BytesIO()
                    Image.fromarray(pixels).convert("1").save(encoded, "png")
                    member = f"{top}/{alphabet}/character{character + 1:02d}/{drawing:04d}.png"
                    archive.writestr(member, encoded.getvalue())
    return path


def two_omniglot_zips(root):
    first = omniglot_zip(root / "omniglot/images_background_small1.zip", ["Latin", "Greek", "Balinese"], top="one")
    second = omniglot_zip(root / "omniglot/images_background_small2.zip", ["Latin", "Greek", "Tagalog"], top="two")
    return first, second


def test_omniglot_drops_what_is_in_both_files(tmp_path):
    two_omniglot_zips(tmp_path)
    loaded = check(omniglot(tmp_path))
    assert len(loaded.train) == 2 * 2 * 4  # Greek
    assert len(loaded.test) == 3 * 2 * 2 * 4
    assert loaded.classes[0] == "Greek/character01/0"
    assert len(loaded.classes) == 4 * 2 * 4


def test_damaged_zip_files_are_named(tmp_path):
    first, second = two_omniglot_zips(tmp_path)
    whole = second.read_bytes()
    for damaged in (b"", b"<html>404</html>", whole[: len(whole) // 2]):
        second.write_bytes(damaged)
        message(lambda: omniglot(tmp_path), "omniglot", second, "delete it")
    flipped = bytearray(whole)
    start = whole.index(b"IDAT")
    flipped[start + 10 : start + 20] = b"0123456789"
    second.write_bytes(bytes(flipped))
    message(lambda: omniglot(tmp_path), second, "character01")
    omniglot_zip(second, ["Tagalog"], top="two", size=(50, 50))
    message(lambda: omniglot(tmp_path), second, "50 x 50")
    omniglot_zip(second, [], top="two")
    message(lambda: omniglot(tmp_path), second, "no image")
    omniglot_zip(second, ["Klingon"], top="two")
    message(lambda: omniglot(tmp_path), first, second, "alphabets")
    with zipfile.ZipFile(second, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("two/Tagalog/character01/bomb.png", bytes(10**7))
    message(lambda: omniglot(tmp_path), second, "bomb.png", "10000000 bytes")
    second.unlink()
    text = message(lambda: omniglot(tmp_path), "omniglot/images_background_small2.zip")
    assert "small1" not in text


def cifar_zip(path, splits=("train", "test"), *, size=(32, 32)):
    with zipfile.ZipFile(path, "w") as archive:
        for split in splits:
            for label, colour in (("frog", GREEN), ("cat", RED)):
                for index in range(3):
                    encoded = io.BytesIO()
                    Image.new("RGB", size, colour).save(encoded, "jpeg", quality=95)
                    archive.writestr(f"cifar10/{split}/{label}/{index:04d}.jpg", encoded.getvalue())


def test_a_small_cifar_zip(tmp_path):
    archive = tmp_path / "cifar10-jpeg.zip"
    cifar_zip(archive)
    loaded = check(cifar10(tmp_path))
    assert loaded.classes == ("cat", "frog")
    assert loaded.train.labels.tolist() == loaded.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (loaded.train.images[:3].float().mean((0, 2, 3)) - torch.tensor(RED)).abs().max() < 6
    cifar_zip(archive, ("train",))
    message(lambda: cifar10(tmp_path), archive, "{train,test}")
    cifar_zip(archive, size=(16, 16))
    message(lambda: cifar10(tmp_path), archive, "16 x 16")
    archive.write_bytes(archive.read_bytes()[:1000])
    message(lambda: cifar10(tmp_path), archive)


class Old:
    """Unpickling it warns, as numpy 2.4 does of the real batches."""

    def __reduce__(self):
        return warnings.warn, ("made by an old numpy",)


class Bait:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def cifar_batches(tmp_path, monkeypatch):
    """Batches in the layout of the real ones, two images each; torchvision is told their checksums."""
    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()
    names = [file for file, _ in CIFAR10.train_list + CIFAR10.test_list]
    for number, file in enumerate(names):
        pixels = np.repeat(np.array([[10, 20, 30]], np.uint8) + np.uint8(number), 1024, axis=1).repeat(2, axis=0)
        pixels[:, :32] = 200  # the top line, in red
        (base / file).write_bytes(pickle.dumps({"data": pixels, "labels": [number, 9], "old": Old()}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    md5 = {file: hashlib.md5((base / file).read_bytes()).hexdigest() for file in [*names, "batches.meta"]}
    monkeypatch.setattr(CIFAR10, "train_list", [[file, md5[file]] for file in names[:-1]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[-1], md5[names[-1]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5["batches.meta"]})
    return base


def test_cifar_batches_come_before_the_zip(cifar_batches, tmp_path):
    cifar_zip(tmp_path / "cifar10-jpeg.zip")
    loaded = check(cifar10(tmp_path))
    assert loaded.train.images.shape == (10, 3, 32, 32)
    assert loaded.train.images[2:4, :, 5, 5].tolist() == [[11, 21, 31]] * 2
    assert (loaded.train.images[:, 0, 0] == 200).all()
    assert (loaded.train.images[:, 0, 1:] < 20).all()
    assert loaded.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert loaded.test.labels.tolist() == [5, 9]
    assert loaded.classes == tuple("abcdefghij")
    (cifar_batches / "data_batch_3").unlink()  # not whole: then the zip
    assert cifar10(tmp_path).classes == ("cat", "frog")
    (tmp_path / "cifar10-jpeg.zip").unlink()
    message(lambda: cifar10(tmp_path), "no cifar-10-batches-py/data_batch_3 under")


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_foreign_pickle_is_never_loaded(cifar_batches, tmp_path, file):
    trap = tmp_path / "executed"
    (cifar_batches / file).write_bytes(pickle.dumps(Bait(trap)))
    message(lambda: cifar10(tmp_path), cifar_batches / file, "checksum")
    assert not trap.exists()


def test_stl10_is_read_column_by_column(tmp_path):
    folder = write_stl10(tmp_path / "stl10_binary", train=7)
    before = (folder / "unlabeled_X.bin").read_bytes()
    loaded = check(stl10(tmp_path))
    for number, (split, count) in enumerate(((loaded.train, 7), (loaded.test, 3), (loaded.unlabelled, 4))):
        assert split.images.shape == (count, 3, 96, 96)
        for image, channel, row, column in ((0, 0, 0, 0), (0, 0, 5, 90), (count - 1, 2, 95, 1), (1, 1, 40, 41)):
            expected = (7 * image + 50 * channel + 2 * row + column + 100 * number) % 256
            assert int(split.images[image, channel, row, column]) == expected
    assert loaded.train.labels.tolist() == [4, 5, 6, 7, 8, 9, 0]
    assert [loaded.classes[label] for label in loaded.test.labels] == ["deer", "dog", "horse"]
    assert loaded.unlabelled.labels is None
    assert loaded.mirrored
    chosen = loaded.unlabelled.subset(torch.tensor([2, 0])).images
    assert chosen[:, 0, 0, 0].tolist() == [214, 200]
    loaded.unlabelled.images.fill_(0)  # of this process alone
    assert (folder / "unlabeled_X.bin").read_bytes() == before
    assert len(limit(loaded, 3).unlabelled) == 4


def test_damaged_files_of_stl10_are_named(tmp_path):
    folder = write_stl10(tmp_path / "stl10_binary")

    def spoiled(file, content, *told):
        good = (folder / file).read_bytes()
        (folder / file).write_bytes(content)
        message(lambda: stl10(tmp_path), "stl10", folder / file, "delete it", *told)
        (folder / file).write_bytes(good)

    spoiled("unlabeled_X.bin", bytes(27648 + 1), "27649 bytes, expected a multiple of 27648")
    spoiled("train_X.bin", b"", "0 bytes")
    spoiled("test_y.bin", b"")
    spoiled("test_y.bin", bytes([1, 2]), "2 labels for 3 images")
    spoiled("test_y.bin", bytes([1, 2, 11]), "labels 1 to 11, expected 1 to 10")
    spoiled("test_y.bin", bytes([0, 2, 10]), "labels 0 to 10")
    assert len(stl10(tmp_path).test) == 3
    (folder / "unlabeled_X.bin").unlink()
    message(lambda: stl10(tmp_path), "stl10: no stl10_binary/unlabeled_X.bin under")


def test_stl10_fetches_its_archive(served, tmp_path, monkeypatch):
    import tarfile

    from torchvision.datasets import STL10

    source, address = served
    folder = write_stl10(source / "stl10_binary")
    with tarfile.open(source / "stl10.tar.gz", "w:gz") as archive:
        archive.add(folder, "stl10_binary")
    monkeypatch.setattr(STL10, "url", address + "stl10.tar.gz")
    root = tmp_path / "root"
    message(lambda: stl10(root, download=True), "download failed", "stl10_binary")  # not the published archive
    assert not list(root.iterdir())
    monkeypatch.setattr(STL10, "tgz_md5", hashlib.md5((source / "stl10.tar.gz").read_bytes()).hexdigest())
    assert len(stl10(root, download=True).unlabelled) == 4
    assert [path.name for path in root.iterdir()] == ["stl10_binary"]
    assert len(stl10(root).train) == 6


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10, stl10, omniglot])
def test_a_failed_download_is_one_sentence_and_leaves_nothing(no_network, tmp_path, load):
    root = tmp_path / "new" / "root"
    message(lambda: load(root, download=True), "download failed", "name resolution", root)
    assert not list(root.iterdir())
    message(lambda: load(root), "--download")
    (tmp_path / "file").write_text("")
    message(lambda: load(tmp_path / "file", download=True), "download failed", tmp_path / "file")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder that a local server hands out, and its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    source = tmp_path / "served"
    source.mkdir()
    monkeypatch.setenv("no_proxy", "*")
    handler = functools.partial(Quiet, directory=str(source))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield source, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_download_arrives_whole_or_not_at_all(served, tmp_path, monkeypatch):
    import gzip

    from torchvision.datasets import MNIST

    source, address = served
    raw = write_idx(source)
    resources = []
    for file in sorted(raw.iterdir()):
        packed = source / f"{file.name}.gz"
        packed.write_bytes(gzip.compress(file.read_bytes()))
        resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [address])
    monkeypatch.setattr(MNIST, "resources", resources)
    root = tmp_path / "root"

    last = source / resources[-1][0]
    good = last.read_bytes()
    last.write_bytes(good[: len(good) // 2])  # three files arrive, the last one broken
    message(lambda: mnist(root, download=True), "download failed")
    assert not list(root.iterdir())

    last.write_bytes(good)
    assert len(mnist(root, download=True).train) == 20
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert len(list((root / "MNIST/raw").iterdir())) == 4

    # A second call downloads nothing; a missing file is added, the others stay as they are.
    labels, images = root / "MNIST/raw/train-labels-idx1-ubyte", root / "MNIST/raw/train-images-idx3-ubyte"
    images.write_bytes(idx(np.full((20, 28, 28), 99, np.uint8)))
    labels.unlink()
    assert mnist(root, download=True).train.images.unique().tolist() == [99]
    last.unlink()
    assert len(mnist(root, download=True).train) == 20


def test_omniglot_fetches_its_own_two_files(served, tmp_path, monkeypatch):
    source, address = served
    for path in two_omniglot_zips(source):
        path.rename(source / path.name)
    files = list(data._OMNIGLOT_MD5)
    monkeypatch.setattr(data, "_OMNIGLOT_URL", address)
    root = tmp_path / "root"
    message(lambda: omniglot(root, download=True), "download failed", *files)  # not the published files
    assert not list(root.iterdir())
    md5 = {file: hashlib.md5((source / file).read_bytes()).hexdigest() for file in files}
    monkeypatch.setattr(data, "_OMNIGLOT_MD5", md5)
    assert len(omniglot(root, download=True).train) == 16
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*.zip")) == [f"omniglot/{f}" for f in files]
    assert len(omniglot(root).train) == 16


@pytest.mark.data
def test_the_published_checksums_of_omniglot(data_root):
    for file, md5 in data._OMNIGLOT_MD5.items():
        assert hashlib.md5((data_root / "omniglot" / file).read_bytes()).hexdigest() == md5


# --- folders: layouts and splits -----------------------------------------------------------------------------------


def test_class_folders_are_split_within_each_class(tmp_path):
    classes_of(tmp_path / "pets", {"dog": 20, "cat": 10, "one": 1, "two": 2, "three": 3})
    loaded = check(folder(tmp_path / "pets", size=8))
    assert loaded.name == "folder:pets"
    assert loaded.classes == ("cat", "dog", "one", "three", "two")
    assert loaded.test.labels.bincount(minlength=5).tolist() == [2, 4, 0, 1, 1]
    assert loaded.train.labels.bincount(minlength=5).tolist() == [8, 16, 1, 2, 1]
    assert loaded.mirrored
    assert not loaded.class_disjoint
    assert loaded.skipped == ()
    for split in (loaded.train, loaded.test):
        assert list(split.names) == sorted(split.names)
        for name, label in zip(split.names, split.labels.tolist(), strict=True):
            assert name.split("/")[0] == loaded.classes[label]
    assert len(loaded.train) + len(loaded.test) == 36
    for name, colour in colours(loaded).items():  # the pixels stay with their name
        assert colour == (int(name[-6:-4]), 100, 50)
    torch.manual_seed(123)
    again = folder(tmp_path / "pets", size=8)
    assert again.train.names == loaded.train.names
    assert again.test.names == loaded.test.names
    drawn = [name for name in loaded.test.names if name.startswith("dog/")]
    assert drawn != [f"dog/{index:02d}.png" for index in range(4)]  # at random, not the first ones
    assert drawn != [f"dog/{index:02d}.png" for index in range(16, 20)]


@pytest.mark.parametrize("test_name", ["test", "val", "Test"])
def test_a_given_split_is_kept(tmp_path, test_name):
    classes_of(tmp_path / "train", {"cat": 3, "dog": 2})
    classes_of(tmp_path / test_name, {"dog": 2, "eel": 1})
    paint(tmp_path / "poster.png")
    loaded = check(folder(tmp_path, size=8))
    assert loaded.classes == ("cat", "dog", "eel")
    assert loaded.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert loaded.test.labels.tolist() == [1, 1, 2]
    assert loaded.test.names == tuple(f"{test_name}/{rest}" for rest in ("dog/00.png", "dog/01.png", "eel/00.png"))
    assert not loaded.class_disjoint


def test_a_given_split_of_other_classes_is_class_disjoint(tmp_path):
    classes_of(tmp_path / "train", {"cat": 3, "dog": 2})
    classes_of(tmp_path / "test", {"eel": 2})
    assert folder(tmp_path, size=8).class_disjoint


def test_test_comes_before_val_unless_it_has_no_classes(tmp_path):
    classes_of(tmp_path / "train", {"cat": 3})
    classes_of(tmp_path / "val", {"cat": 2})
    classes_of(tmp_path / "test", {"cat": 1})
    assert folder(tmp_path, size=8).test.names == ("test/cat/00.png",)
    (tmp_path / "test/cat/00.png").rename(tmp_path / "test/00.png")
    (tmp_path / "test/cat").rmdir()
    assert folder(tmp_path, size=8).test.names == ("val/cat/00.png", "val/cat/01.png")
    (tmp_path / "val").rename(tmp_path / "other")
    message(lambda: folder(tmp_path, size=8), "train has class folders and test has none")


def test_flat_folders_are_unlabelled(tmp_path):
    for index in range(10):
        paint(tmp_path / "all" / f"{index}.png")
    loaded = check(folder(tmp_path / "all", size=8))
    assert (len(loaded.train), len(loaded.test)) == (8, 2)
    assert loaded.train.labels is None
    assert loaded.test.labels is None
    assert loaded.classes == ()
    assert not loaded.class_disjoint
    assert folder(tmp_path / "all", size=8).test.names == loaded.test.names
    (tmp_path / "split").mkdir()
    for split, count in (("train", 3), ("test", 1)):
        for index in range(count):
            paint(tmp_path / "split" / split / f"{index}.png")
    loaded = check(folder(tmp_path / "split", size=8))
    assert (len(loaded.train), len(loaded.test)) == (3, 1)
    assert loaded.train.labels is None


def test_a_wrapping_folder_is_looked_through(tmp_path):
    classes_of(tmp_path / "a" / "pets", {"cat": 3, "dog": 3})
    paint(tmp_path / "a/__MACOSX/pets/cat/._00.png")
    loaded = folder(tmp_path / "a", size=8)
    assert loaded.classes == ("cat", "dog")
    assert loaded.train.names[0].startswith("pets/cat/")
    classes_of(tmp_path / "b" / "train", {"cat": 3, "dog": 3})
    assert folder(tmp_path / "b", size=8).classes == ("cat", "dog")
    classes_of(tmp_path / "c", {"cat": 4})
    assert folder(tmp_path / "c", size=8).classes == ("cat",)


def test_class_folders_are_read_with_everything_below_them(tmp_path):
    paint(tmp_path / "cat/2020/summer/a.png")
    for index in range(6):
        paint(tmp_path / f"cat/b{index}.png")
    (tmp_path / "only").mkdir()
    (tmp_path / "cat").rename(tmp_path / "only/cat")
    assert folder(tmp_path / "only", size=8).classes == ("cat",)  # no wrapper: it holds images itself
    (tmp_path / "only/cat").rename(tmp_path / "cat")
    paint(tmp_path / "dog/c.png")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/readme.txt").write_text("no image, no class")
    loaded = folder(tmp_path, size=8)
    assert loaded.classes == ("cat", "dog")
    everything = sorted(["cat/2020/summer/a.png", *(f"cat/b{index}.png" for index in range(6)), "dog/c.png"])
    assert sorted(colours(loaded)) == everything
    assert list(loaded.train.names) == [name for name in everything if name in loaded.train.names]
    assert "cat/2020/summer/a.png" in loaded.train.names


def test_images_beside_class_folders_are_ambiguous(tmp_path):
    classes_of(tmp_path, {"cat": 3})
    paint(tmp_path / "loose.png")
    message(lambda: folder(tmp_path), tmp_path, "both images and folders of images")


def test_hidden_files_and_other_extensions_are_ignored_and_case_is_not_told_apart(tmp_path):
    extensions = ["png", "JPG", "jpeg", "BMP", "webp", "gif", "tif", "TIFF", "ppm", "Pgm"]
    for number, extension in enumerate(extensions):
        path = tmp_path / f"{number}.{extension}"
        paint(path, 77 if extension == "Pgm" else RED, mode="L" if extension == "Pgm" else "RGB")
    paint(tmp_path / ".hidden.png")
    paint(tmp_path / "._0.png")
    paint(tmp_path / ".cache/a.png")
    paint(tmp_path / "__MACOSX/a.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "vector.svg").write_text("<svg/>")
    loaded = check(folder(tmp_path, size=12))
    assert sorted(colours(loaded)) == sorted(f"{number}.{extension}" for number, extension in enumerate(extensions))
    for name, colour in colours(loaded).items():
        expected = (77,) * 3 if name.endswith("Pgm") else RED
        assert np.abs(np.subtract(colour, expected)).max() <= 8, name
    assert loaded.skipped == ()


HOSTILE = [
    "<script>alert(1)<script>",
    "a'b\"c",
    "naïve été",
    "猫",
    "line\nbreak",
    "right\u202etfel",
    "%s{x}",
    "-rf",
    "a,b;c",
]


def test_hostile_and_unicode_names(tmp_path):
    for name in HOSTILE:
        paint(tmp_path / "x" / f"{name}.png")
        paint(tmp_path / f"class {name}" / "1.png")
        paint(tmp_path / f"class {name}" / "2.png")
    (tmp_path / "x" / "new\nline \x1b[31m.png").write_bytes(b"")
    loaded = check(folder(tmp_path, size=8))
    assert loaded.classes == tuple(sorted([*(f"class {name}" for name in HOSTILE), "x"]))
    assert {name for name in colours(loaded) if name.startswith("x/")} == {f"x/{name}.png" for name in HOSTILE}
    assert loaded.skipped == ("x/new\\nline \\x1b[31m.png: empty file",)


@pytest.mark.skipif(sys.platform != "linux", reason="only there a file name is any bytes")
def test_names_that_are_no_utf8_can_be_written(tmp_path):
    for folder_name in (b"caf\xe9", b"bar"):
        for index in range(3):
            paint(tmp_path / os.fsdecode(folder_name) / os.fsdecode(b"\xff%d.png" % index))
    (tmp_path / os.fsdecode(b"bar/bad\xff\n.png")).write_bytes(b"")
    loaded = folder(tmp_path, size=8)
    assert loaded.classes == ("bar", "caf\\udce9")
    for text in (*loaded.classes, *loaded.train.names, *loaded.skipped):
        text.encode("utf-8")
    assert loaded.skipped == ("bar/bad\\udcff\\n.png: empty file",)


def test_links_are_followed_but_not_in_circles(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    classes_of(elsewhere, {"cat": 3})
    pets = classes_of(tmp_path / "pets", {"dog": 3})
    (pets / "cat").symlink_to(elsewhere / "cat", target_is_directory=True)
    (pets / "again").symlink_to(pets, target_is_directory=True)
    (pets / "dog/up").symlink_to(pets, target_is_directory=True)
    (pets / "dog/self").symlink_to(pets / "dog/self")
    (elsewhere / "cat/back").symlink_to(pets / "cat", target_is_directory=True)
    (elsewhere / "cat/a").mkdir()
    (elsewhere / "cat/a/b").symlink_to(elsewhere / "cat/c", target_is_directory=True)
    (elsewhere / "cat/c").mkdir()
    (elsewhere / "cat/c/d").symlink_to(elsewhere / "cat/a", target_is_directory=True)
    paint(elsewhere / "cat/c/once.png")
    (elsewhere / "cat/out").symlink_to(pets, target_is_directory=True)
    loaded = check(folder(pets, size=8))
    expected = {f"{label}/{index:02d}.png" for label in ("cat", "dog") for index in range(3)} | {"cat/c/once.png"}
    assert set(colours(loaded)) == expected
    assert loaded.skipped == ()


# --- folders: pixels -----------------------------------------------------------------------------------------------


def load_one(tmp_path, path, size=12):
    """The image at `path` as the loader gives it, among colour images."""
    for index in range(4):
        paint(path.parent / f"zz-{index}.png", BLUE)
    loaded = folder(path.parent, size=size)
    assert loaded.skipped == ()
    for split in (loaded.train, loaded.test):
        if path.name in split.names:
            return split.images[split.names.index(path.name)]
    raise AssertionError(f"{path.name} is not there")


def centre(image):
    return image[:, image.shape[1] // 2, image.shape[2] // 2].tolist()


def test_sixteen_bit_images_are_scaled_not_clipped(tmp_path):
    ramp = (np.arange(144, dtype=np.uint16).reshape(12, 12) * 455).astype(np.uint16)  # 0 .. 65065
    expected = (ramp / 257).round()
    for name in ("a.png", "b.tif", "c.pgm"):
        path = tmp_path / name / name
        path.parent.mkdir()
        Image.fromarray(ramp).save(path)
        image = load_one(tmp_path, path)
        assert np.abs(image.numpy() - expected).max() <= 1, name
    dark = tmp_path / "dark" / "a.pgm"  # 16 bits, but every value below 256
    dark.parent.mkdir()
    dark.write_bytes(b"P5 12 12 65535\n" + np.full((12, 12), 200, ">u2").tobytes())
    assert centre(load_one(tmp_path, dark)) == [1, 1, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.linspace(0, 1, 144), np.linspace(0, 255, 144)),
        (np.linspace(0, 255, 144), np.linspace(0, 255, 144)),
        (np.linspace(0, 65535, 144), np.linspace(0, 255, 144)),
        (np.linspace(-5, 5, 144), np.linspace(0, 255, 144)),
        (np.full(144, -2.0), np.zeros(144)),
        (np.where(np.arange(144) == 3, np.nan, 0.5), np.where(np.arange(144) == 3, 0, 128)),
    ],
)
def test_floating_point_images(tmp_path, values, expected):
    path = tmp_path / "f.tiff"
    Image.fromarray(values.reshape(12, 12).astype(np.float32)).save(path)
    image = load_one(tmp_path, path)
    assert np.abs(image.numpy() - expected.reshape(12, 12)).max() <= 1


def test_integer_tiff(tmp_path):
    path = tmp_path / "i.tiff"
    Image.fromarray(np.linspace(0, 2**30, 144).reshape(12, 12).astype(np.int32)).save(path)
    image = load_one(tmp_path, path)
    assert np.abs(image.numpy() - np.linspace(0, 255, 144).reshape(12, 12)).max() <= 1


def test_cmyk(tmp_path):
    path = paint(tmp_path / "a.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)
    assert np.abs(np.subtract(centre(load_one(tmp_path, path)), (255, 0, 0))).max() <= 10
    path = paint(tmp_path / "b.tif", (255, 0, 0, 0), mode="CMYK")
    assert centre(load_one(tmp_path, path)) == [0, 255, 255]


def test_transparency_shows_a_white_ground(tmp_path):
    """Hidden colours below transparent pixels must not come out."""
    for mode, colour in (("RGBA", (*RED, 0)), ("LA", (40, 0))):
        path = paint(tmp_path / mode / "a.png", colour, mode=mode)
        assert centre(load_one(tmp_path, path)) == [255, 255, 255]
    path = paint(tmp_path / "half" / "a.png", (0, 0, 0, 128), mode="RGBA")
    assert centre(load_one(tmp_path, path)) == [127, 127, 127]
    path = paint(tmp_path / "opaque" / "a.png", (*RED, 255), mode="RGBA")
    assert centre(load_one(tmp_path, path)) == list(RED)
    for transparency, expected in ((0, [255, 255, 255]), (bytes([255, 0]), list(GREEN))):
        palette = Image.new("P", (12, 12), 0)
        palette.putpalette([*GREEN, *RED])
        path = tmp_path / f"p{transparency!r}" / "a.png"
        path.parent.mkdir()
        palette.save(path, transparency=transparency)
        assert centre(load_one(tmp_path, path)) == expected
    path = paint(tmp_path / "key" / "a.png", RED, transparency=RED)
    assert centre(load_one(tmp_path, path)) == [255, 255, 255]


def test_bilevel_and_palette_images(tmp_path):
    assert centre(load_one(tmp_path, paint(tmp_path / "one" / "a.png", 1, mode="1"))) == [255, 255, 255]
    palette = Image.new("RGB", (12, 12), GREEN).quantize(4)
    (tmp_path / "p").mkdir()
    palette.save(tmp_path / "p" / "a.png")
    assert centre(load_one(tmp_path, tmp_path / "p" / "a.png")) == list(GREEN)


def test_the_first_frame_of_an_animation(tmp_path):
    first, second = Image.new("RGB", (12, 12), RED), Image.new("RGB", (12, 12), GREEN)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.abs(np.subtract(centre(load_one(tmp_path, tmp_path / "a.gif")), RED)).max() <= 8


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation, extension):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:12, :20], pixels[:12, 20:], pixels[12:, :20], pixels[12:, 20:] = RED, GREEN, BLUE, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if extension == "jpg" else {"lossless": True} if extension == "webp" else {}
    path = tmp_path / f"a.{extension}"
    Image.fromarray(pixels).save(path, exif=exif, **options)
    ours = load_one(tmp_path, path, size=24).float()
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    left, top = (expected.width - 24) // 2, (expected.height - 24) // 2
    expected = expected.crop((left, top, left + 24, top + 24))
    assert np.abs(ours.permute(1, 2, 0).numpy() - np.asarray(expected, dtype=float)).max() <= 1


def test_broken_exif_does_not_cost_the_image(tmp_path):
    path = paint(tmp_path / "a.jpg", RED, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    assert np.abs(np.subtract(centre(load_one(tmp_path, path)), RED)).max() <= 8
    text = PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n4\nno hexadecimal digits")
    path = paint(tmp_path / "b.png", GREEN, pnginfo=text)
    assert centre(load_one(tmp_path, path)) == list(GREEN)


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (40, 30), (31, 30)])
def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path, shape):
    ramp = np.add.outer(np.arange(shape[0]) * 2, np.arange(shape[1]))[..., None]
    path = tmp_path / "a.png"
    Image.fromarray((ramp + np.array([0, 20, 40])).astype(np.uint8)).save(path)
    image = load_one(tmp_path, path, size=10)
    assert image.shape == (3, 10, 10)
    # A pixel of the result is the centre of a 3 x 3 cell, counted from the middle.
    cells = [(side - 30) / 2 + 3 * np.arange(10) + 1 for side in shape]
    expected = np.add.outer(cells[0] * 2, cells[1])
    inner = np.s_[1:9, 1:9]  # the filter is cut off where the image ends
    for channel, offset in enumerate((0, 20, 40)):
        assert np.abs(image[channel].numpy() - expected - offset)[inner].max() <= 1


def test_large_images_are_resized_with_antialiasing_and_small_ones_grow(tmp_path):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    for extension in ("png", "jpg"):
        path = tmp_path / extension / f"a.{extension}"
        path.parent.mkdir()
        Image.fromarray(stripes).save(path)
        image = load_one(tmp_path, path, size=16)
        assert (image.float() - 127.5).abs().max() < 4, extension
    path = paint(tmp_path / "dot" / "a.png", GREEN, size=(1, 1))
    assert (load_one(tmp_path, path, size=16) == torch.tensor(GREEN)[:, None, None]).all()
    path = paint(tmp_path / "line" / "a.png", GREEN, size=(1, 60_000))  # resized before the crop: 16 x 960,000
    assert (load_one(tmp_path, path, size=16) == torch.tensor(GREEN)[:, None, None]).all()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    (tmp_path / "same").mkdir()
    Image.fromarray(pixels).save(tmp_path / "same/a.png")
    assert (load_one(tmp_path, tmp_path / "same/a.png", size=16).permute(1, 2, 0).numpy() == pixels).all()


def test_one_channel_if_and_only_if_every_image_is_grey(tmp_path):
    for index in range(12):
        paint(tmp_path / f"{index:02d}.png", index * 5, mode="L")
    paint(tmp_path / "la.png", (90, 255), mode="LA")
    paint(tmp_path / "rgb.png", (91, 91, 91))
    palette = Image.new("L", (12, 12), 92).convert("P")
    palette.save(tmp_path / "p.png")
    grey = check(folder(tmp_path, size=8))
    assert grey.train.images.shape[1] == 1
    assert grey.train.images.is_contiguous()
    expected = {f"{index:02d}.png": (index * 5,) for index in range(12)}
    assert colours(grey) == {**expected, "la.png": (90,), "rgb.png": (91,), "p.png": (92,)}
    for nearly_grey in ((90, 90, 10), (90, 10, 90)):
        paint(tmp_path / "06.png", nearly_grey)
        assert colours(folder(tmp_path, size=8))["06.png"] == nearly_grey
    paint(tmp_path / "06.png", RED)
    coloured = colours(check(folder(tmp_path, size=8)))
    assert coloured["06.png"] == RED
    assert coloured["05.png"] == (25, 25, 25)
    assert coloured["07.png"] == (35, 35, 35)


# --- folders: what cannot be read ----------------------------------------------------------------------------------


@pytest.fixture
def spoiled(tmp_path):
    """Four good images of a class and one of every kind of bad one; returns what should be said of each."""
    root = tmp_path / "pets"
    for index in range(4):
        noise(root / "cat" / f"{index}.png", index)
    bad = root / "dog"
    noise(bad / "good.jpg")
    cut(noise(bad / "truncated.jpg"))
    cut(noise(bad / "truncated.png"))
    cut(noise(bad / "truncated.gif"))
    cut(noise(bad / "truncated.webp"))
    (bad / "empty.png").write_bytes(b"")
    (bad / "text.jpg").write_text("<html>404</html>")
    flipped = bytearray((root / "cat/0.png").read_bytes())
    flipped[len(flipped) // 2] ^= 0xFF
    (bad / "flipped.png").write_bytes(bytes(flipped))
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (bad / "bomb.png").write_bytes(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    (bad / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    (bad / "gone.png").symlink_to(bad / "nowhere.png")
    (bad / "self.png").symlink_to(bad / "self.png")
    os.mkfifo(bad / "pipe.png")
    reasons = {
        "truncated.jpg": "truncated",
        "truncated.png": "",
        "truncated.gif": "truncated",
        "truncated.webp": "",
        "empty.png": "empty file",
        "text.jpg": "not an image",
        "flipped.png": "",
        "bomb.png": "too many pixels",
        "program.png": "not an image",
        "gone.png": "No such file",
        "self.png": "symbolic links",
        "pipe.png": "not a regular file",
    }
    return root, reasons


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_unreadable_images_are_left_out_and_named(spoiled):
    root, reasons = spoiled
    loaded = check(folder(root, size=16))
    assert len(loaded.train) + len(loaded.test) == 5
    assert set(colours(loaded)) == {"cat/0.png", "cat/1.png", "cat/2.png", "cat/3.png", "dog/good.jpg"}
    said = dict(line.split(": ", 1) for line in loaded.skipped)
    assert sorted(said) == sorted(f"dog/{name}" for name in reasons)
    assert list(said) == sorted(said)
    for name, reason in reasons.items():
        assert reason in said[f"dog/{name}"], name
        assert said[f"dog/{name}"]
        assert str(root) not in said[f"dog/{name}"]
        assert "\n" not in said[f"dog/{name}"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_unreadable_images_can_be_refused(spoiled):
    root, reasons = spoiled
    message(lambda: folder(root, size=16, corrupt="refuse"), f"{len(reasons)} of 17", "dog/bomb.png", "pixels")
    for name in reasons:
        (root / "dog" / name).unlink()
    assert len(folder(root, size=16, corrupt="refuse").train) == 4


def test_a_class_without_a_readable_image_is_none(tmp_path):
    classes_of(tmp_path, {"cat": 4, "eel": 4})
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/a.png").write_bytes(b"")
    loaded = check(folder(tmp_path, size=8))
    assert loaded.classes == ("cat", "eel")
    assert loaded.skipped == ("dog/a.png: empty file",)


def test_folders_that_are_no_data_set(tmp_path):
    message(lambda: folder(tmp_path / "absent"), "folder:absent", tmp_path / "absent", "does not exist")
    message(lambda: folder(paint(tmp_path / "a" / "file.png")), "is a file")
    empty = tmp_path / "empty"
    empty.mkdir()
    message(lambda: folder(empty), "no image in", empty)
    (empty / "notes.txt").write_text("")
    (empty / "sub").mkdir()
    message(lambda: folder(empty), "no image in", empty)
    (empty / "a.png").write_bytes(b"")
    (empty / "b.png").write_bytes(b"x")
    message(lambda: folder(empty), "none of the 2 images can be read", "a.png: empty file")


def test_too_few_images(tmp_path):
    paint(tmp_path / "one" / "a.png")
    message(lambda: folder(tmp_path / "one"), "1 readable training image(s)")
    paint(tmp_path / "one" / "b.png")
    message(lambda: folder(tmp_path / "one"), "1 readable training image(s)")
    paint(tmp_path / "one" / "c.png")
    assert len(folder(tmp_path / "one").train) == 2
    singles = classes_of(tmp_path / "singles", {"cat": 1, "dog": 1, "eel": 1})
    message(lambda: folder(singles), "no test image", "2 images")
    split = classes_of(tmp_path / "split" / "train", {"cat": 3}).parent
    (split / "test").mkdir()
    message(lambda: folder(split), "no image in", split / "test")
    (split / "test/cat").mkdir()
    (split / "test/cat/a.png").write_bytes(b"")
    message(lambda: folder(split), "no test image", "none of the test images")
    (split / "train").rename(split / "old")
    (split / "train").mkdir()
    message(lambda: folder(split), "no image in", split / "train")


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    classes_of(tmp_path, {"cat": 3, "dog": 3})
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    message(lambda: folder(tmp_path), tmp_path / "dog", "Permission denied")


def test_options_are_checked(tmp_path):
    classes_of(tmp_path, {"cat": 3})
    message(lambda: folder(tmp_path, size=0), "size is 0")
    message(lambda: folder(tmp_path, corrupt="ignore"), "'ignore'", "'skip'")


def test_what_does_not_fit_in_memory_is_refused(tmp_path, monkeypatch):
    for index in range(10):
        paint(tmp_path / f"{index}.png", 7, mode="L")
    needed = 10 * 16 * 16
    monkeypatch.setattr(pictures, "_memory", lambda: 4 * needed)
    assert len(folder(tmp_path, size=16).train) == 8
    monkeypatch.setattr(pictures, "_memory", lambda: 4 * needed - 1)
    message(lambda: folder(tmp_path, size=16), "10 images of 1 x 16 x 16", "smaller size or fewer images")
    paint(tmp_path / "9.png", RED)  # one colour image, and all take three channels
    monkeypatch.setattr(pictures, "_memory", lambda: 12 * needed - 1)
    message(lambda: folder(tmp_path, size=16), "10 images of 3 x 16 x 16")
    monkeypatch.setattr(pictures, "_memory", lambda: 12 * needed)
    assert len(folder(tmp_path, size=16).train) == 8


def test_the_memory_of_this_machine_is_known():
    assert sys.platform != "linux" or 1 << 28 < pictures._memory() < 1 << 50


def test_no_thread_is_left_after_an_error(tmp_path, monkeypatch):
    for index in range(200):
        paint(tmp_path / f"{index}.png")
    before = threading.active_count()
    monkeypatch.setattr(pictures, "_is_grey", lambda image: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        folder(tmp_path, size=8)
    assert threading.active_count() == before


@pytest.mark.slow
def test_importing_the_module_is_cheap():
    """Neither torchvision nor scikit-learn nor Pillow, whatever else the package imports."""
    source = (
        "import sys, types; package = types.ModuleType('contrastive'); "
        f"package.__path__ = [{str(Path(data.__file__).parent)!r}]; sys.modules['contrastive'] = package; "
        "import contrastive.data; "
        "print({name for name in ('torchvision', 'sklearn', 'PIL') if name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"
