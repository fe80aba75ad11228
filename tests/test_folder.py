"""Folders of images: layouts and splits, every kind of good and bad image."""

import os
import struct
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import check, message
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from contrastive import pictures
from contrastive.data import ImageData, folder

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


def colours(loaded: ImageData):
    """The centre pixel of every image, by file name."""
    return {
        name: tuple(image[:, image.shape[1] // 2, image.shape[2] // 2].tolist())
        for split in (loaded.train, loaded.test)
        for name, image in zip(split.names, split.images, strict=True)
    }


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
