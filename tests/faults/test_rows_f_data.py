"""Data and output: rows 31 to 33 of docs/reliability.md, and what stands below them there."""

import html
import io
import json
import os
import re
import resource
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import children
import numpy as np
import pytest
import torch
from loops import fit_loop
from PIL import Image

from contrastive import report
from contrastive.archives import unpack
from contrastive.assessment import Assessment
from contrastive.cli import main
from contrastive.data import cifar10, folder
from contrastive.errors import InputError
from contrastive.gallery_page import Items, metrics_of_page, write_gallery_page

TRAIN = ["train", "--data", "digits", "--epochs", "1"]


def noise(path, mode="RGB", seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(path)
    return path


# --- 31: images -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Two classes of good images, among them CMYK and 16 bits, and one of each kind that cannot be read."""
    root = tmp_path / "pictures"
    for label in ("cat", "dog"):
        for index in range(8):
            noise(root / label / f"{index}.png", seed=index)
    noise(root / "cat" / "cmyk.jpg", "CMYK")
    noise(root / "cat" / "sixteen.png", "I;16")
    bad = root / "dog"
    (bad / "zero.png").write_bytes(b"")
    whole = (root / "cat" / "0.png").read_bytes()
    (bad / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (bad / "text.jpg").write_text("no image")
    (bad / "gone.png").symlink_to("nowhere")
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (bad / "bomb.png").write_bytes(start + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    return root


BAD = {"zero.png", "truncated.png", "text.jpg", "gone.png", "bomb.png"}


def test_row31_images_that_cannot_be_read_are_named_and_counted_in_the_report(pictures, tmp_path, capsys):
    words = ["train", "--data", f"folder:{pictures}", "--image-size", "16", "--epochs", "1", "--batch-size", "4",
             "--encoder.widths", "[4]", "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(words) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["images"]["skipped"] == len(BAD)
    assert metrics["images"]["train"] + metrics["images"]["test"] == 18
    note = next(note for note in metrics["notes"] if "unreadable" in note)
    assert note.startswith("5 unreadable images were skipped: dog/bomb.png: too many pixels")
    assert "5 unreadable images were skipped" in (tmp_path / "run" / "report.html").read_text()
    capsys.readouterr()
    assert main([*words[:-1], str(tmp_path / "other"), "--corrupt", "refuse"]) == 2
    assert "5 of 23 images cannot be read, the first is dog/bomb.png: too many pixels" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_row31_every_sample_has_its_reason(pictures):
    loaded = folder(pictures, size=16)
    said = dict(line.split(": ", 1) for line in loaded.skipped)
    assert {Path(name).name for name in said} == BAD
    assert all(said.values())
    names = {Path(name).name for part in (loaded.train, loaded.test) for name in part.names}
    assert {"cmyk.jpg", "sixteen.png"} <= names


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self").exists(), reason="no folder that root may not write")
def test_row31_a_data_root_that_cannot_be_written(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data", "cifar10", "--data-root", "/proc/self/data", "--download"]) == 2
    shown = capsys.readouterr().err
    assert "/proc/self/data" in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- 32: archives ---------------------------------------------------------------------------------------------------


def tar_of(path, *members):
    """A tar file of (name, type or content, link)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, what, *link in members:
            member = tarfile.TarInfo(name)
            if isinstance(what, bytes) and len(what) != 1:
                member.size = len(what)
                archive.addfile(member, io.BytesIO(what))
            else:
                member.type, member.linkname = what, link[0] if link else ""
                archive.addfile(member)
    return path


def zip_of(path, *members):
    """A zip file of (name, content, mode)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, *mode in members:
            member = zipfile.ZipInfo(name)
            member.external_attr = (mode or [0])[0] << 16
            archive.writestr(member, content)
    return path


HOSTILE = {
    "up": lambda p: tar_of(p, ("good", b"ok"), ("../evil", b"evil")),
    "up, within": lambda p: tar_of(p, ("a/../../evil", b"evil")),
    "absolute": lambda p: tar_of(p, (f"{p.parent}/evil", b"evil")),
    "symbolic link": lambda p: tar_of(p, ("link", tarfile.SYMTYPE, str(p.parent)), ("link/evil", b"evil")),
    "hard link": lambda p: tar_of(p, ("evil", tarfile.LNKTYPE, "/etc/passwd")),
    "device": lambda p: tar_of(p, ("evil", tarfile.CHRTYPE)),
    "pipe": lambda p: tar_of(p, ("evil", tarfile.FIFOTYPE)),
    "zip, up": lambda p: zip_of(p, ("good", b"ok"), ("../evil", b"evil")),
    "zip, absolute": lambda p: zip_of(p, (f"{p.parent}/evil", b"evil")),
    "zip, backslashes": lambda p: zip_of(p, ("..\\evil", b"evil")),
    "zip, drive": lambda p: zip_of(p, ("C:/evil", b"evil")),
    "zip, symbolic link": lambda p: zip_of(p, ("evil", b"/etc/passwd", stat.S_IFLNK | 0o777)),
    "cut off": lambda p: p.write_bytes(tar_of(p, ("good", b"ok" * 90_000)).read_bytes()[:120]),
    "no archive": lambda p: p.write_bytes(b"hello"),
    "empty": lambda p: p.write_bytes(b""),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_row32_nothing_is_written_outside_or_at_all(tmp_path, kind):
    place, target = tmp_path / "in", tmp_path / "in" / "target"
    place.mkdir()
    archive = place / "archive"
    HOSTILE[kind](archive)
    with pytest.raises(InputError, match=f"{archive} (holds|cannot be unpacked)"):
        unpack(archive, target)
    assert {path.name for path in tmp_path.rglob("*")} <= {"in", "archive", "target"}
    assert not target.exists() or not list(target.iterdir())


def test_row32_a_damaged_stream_is_refused(tmp_path):
    """Each compression has an error of its own."""
    content = bytearray(zip_of(tmp_path / "a.zip", ("a", b"content" * 9)).read_bytes())
    for method in (8, 9, 12, 14):  # deflate, unknown, bzip2, LZMA: what is stored as it is, is none of them
        content[8] = content[content.index(b"PK\x01\x02") + 10] = method
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.zip cannot be unpacked"):
            unpack(tmp_path / "a.zip", tmp_path / "target")


def test_row32_a_million_members_and_too_many_bytes_are_refused_at_once(tmp_path):
    header = tarfile.TarInfo("x").tobuf()  # an empty file
    with (tmp_path / "many.tar").open("wb") as file:
        for _ in range(1000):
            file.write(header * 1000)
    with pytest.raises(InputError, match="more than 100000 files"):
        unpack(tmp_path / "many.tar", tmp_path / "target")
    zip_of(tmp_path / "many.zip", *((f"{i}", b"") for i in range(2000)))
    with pytest.raises(InputError, match="more than 1000 files"):
        unpack(tmp_path / "many.zip", tmp_path / "target", most_members=1000)
    tar_of(tmp_path / "bomb.tar", ("zeros", bytes(10_000_000)))
    assert (tmp_path / "bomb.tar").stat().st_size < 20_000
    with pytest.raises(InputError, match="more than 1000000 bytes"):
        unpack(tmp_path / "bomb.tar", tmp_path / "target", most_bytes=1_000_000)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_row32_another_checksum_is_refused_and_the_right_one_unpacked(tmp_path, algorithm):
    import hashlib

    archive = tar_of(tmp_path / "a.tgz", ("folder/file", b"content"))
    right = hashlib.new(algorithm, archive.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"has the checksum {right}, expected 0"):
        unpack(archive, tmp_path / "target", checksum="0" * len(right))
    assert not (tmp_path / "target").exists()
    unpack(archive, tmp_path / "target", checksum=right)
    assert (tmp_path / "target/folder/file").read_bytes() == b"content"
    unpack(zip_of(tmp_path / "b.zip", ("folder/", b""), ("folder/other", b"more")), tmp_path / "target")
    assert (tmp_path / "target/folder/other").read_bytes() == b"more"


def test_row32_a_data_set_by_a_hostile_archive_leaves_nothing(tmp_path, monkeypatch):
    import hashlib

    from torchvision.datasets import CIFAR10

    archive = tar_of(tmp_path / "evil.tgz", ("cifar-10-batches-py/data_batch_1", b"x" * 9), ("../../evil", b"evil"))
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(
        "torchvision.datasets.utils.download_url", lambda url, root, name, md5: shutil.copy(archive, Path(root) / name)
    )
    root = tmp_path / "root"
    with pytest.raises(InputError, match="leads out of its folder"):
        cifar10(root, download=True)
    assert not list(root.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"evil.tgz", "root"}


# --- 33: names ------------------------------------------------------------------------------------------------------


def test_row33_hostile_names_are_text_and_the_page_needs_no_network(tmp_path):
    names = ["<script>alert(1)</script>", "\"onload='x'", "\u202egnp.exe", "two\nlines", "../../etc/passwd", "&lt;"]
    names += [f"{i}.png" for i in range(6)]
    x, labels = torch.randn(12, 4), [f"class {name}" for name in names[:3]] * 4
    page = tmp_path / "page.html"
    assessment = Assessment("hostile", x, labels, metrics=metrics_of_page(11))
    result = assessment.result(assessment.parts())
    write_gallery_page(page, assessment, result, title=names[0], queries=Items(labels=labels, names=names))
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert html.escape("<script>alert(1)</script>") in text
    assert "\u202e" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:|//|/|\.\.)""", text)
    assert not re.search(r"url\(\s*['\"]?(https?:|//)", text)


# --- too little memory ----------------------------------------------------------------------------------------------

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no telling how much memory is taken")


@needs_proc
def test_out_of_memory_gives_advice_and_no_report(tmp_path):
    x, labels, page, figures = (tmp_path / name for name in ("x.npy", "labels.npy", "page.html", "figures.json"))
    np.save(x, np.ones((100_000, 256), np.float32))
    np.save(labels, np.arange(100_000) % 10)
    train = [*TRAIN, "--batch-size", "1024", "--encoder.widths", "[2048, 8]", "--out", tmp_path / "run"]
    evaluate = ["evaluate", x, "--labels", labels, "--backend", "torch", "--report", page, "--json", figures]
    for words, room, advice in ((train, 400 << 20, "a smaller --batch-size"), (evaluate, 130 << 20, "a smaller --k")):
        shown, words = tmp_path / "shown", [str(word) for word in words]
        assert children.run(children.with_a_limit, resource.RLIMIT_AS, room, main, words, output=shown) == 2
        last = shown.read_text().splitlines()[-1]
        assert last.startswith("kpair: error: out of memory (")
        assert advice in last
        assert "Traceback" not in shown.read_text()
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {".lock", "config.yaml", "metrics.csv"}
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "labels.npy", "run", "shown"}


def test_out_of_memory_in_the_report_leaves_none(tmp_path, monkeypatch, capsys):
    """After the training, when half of the folder is written."""
    words = [*TRAIN, "--limit", "64", "--batch-size", "16", "--encoder.widths", "[4, 8]", "--out", str(tmp_path)]
    write = report.write_bytes

    def no_page(path, content):
        if path.suffix == ".html":
            raise MemoryError
        write(path, content)

    monkeypatch.setattr(report, "write_bytes", no_page)
    assert main(words) == 2
    assert "out of memory (no more to be had): a smaller --batch-size" in capsys.readouterr().err
    found = {path.name for path in tmp_path.iterdir()}
    assert "figures" in found
    assert not found & {"metrics.json", "report.html"}


# --- the same seed twice --------------------------------------------------------------------------------------------


def test_one_seed_is_one_result_also_where_torch_is_told_to_be_deterministic(tmp_path):
    found = []
    for name, strict in (("a", False), ("b", True)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        torch.use_deterministic_algorithms(strict)
        try:
            found.append(fit_loop(tmp_path / name / "checkpoints"))
        finally:
            torch.use_deterministic_algorithms(False)
    assert found[0] == found[1]
