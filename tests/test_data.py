"""Data sets by name: counts, ranges and splits of the real ones, files that are missing, damaged or downloaded."""

import functools
import hashlib
import http.server
import io
import pickle
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import check, message
from PIL import Image
from references import write_stl10

from contrastive import data
from contrastive.data import (
    ImageSplit,
    cifar10,
    digits,
    fashion_mnist,
    limit,
    mnist,
    omniglot,
    stl10,
)

RED, GREEN = (200, 30, 20), (20, 200, 30)


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
