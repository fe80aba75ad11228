"""The readers of embeddings, labels, archives, checkpoints and configurations, fed with what nobody would write.

Each either reads or says what is wrong in an `InputError`; nothing else may come out. KPAIR_FUZZ is the number of
inputs a test tries (default 60): ``KPAIR_FUZZ=20000 pytest tests/faults/test_fuzz.py``.
"""

import contextlib
import io
import json
import os
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from contrastive import vectors
from contrastive.archives import unpack
from contrastive.checkpoints import load_checkpoint, save_checkpoint
from contrastive.cli.configuration import read_options
from contrastive.errors import InputError

fuzzed = settings(
    max_examples=int(os.environ.get("KPAIR_FUZZ", "60")),
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def npz():
    buffer = io.BytesIO()
    np.savez(buffer, embeddings=X, labels=np.arange(4), names=np.array(list("abcd")))
    return buffer.getvalue()


def npy():
    buffer = io.BytesIO()
    np.save(buffer, X)
    return buffer.getvalue()


def pt():
    buffer = io.BytesIO()
    torch.save({"embeddings": torch.from_numpy(X), "labels": torch.arange(4)}, buffer)
    return buffer.getvalue()


def parquet():
    import pyarrow as pa
    from pyarrow import parquet

    buffer = io.BytesIO()
    parquet.write_table(pa.table({"embedding": X.tolist(), "label": list("abcd")}), buffer)
    return buffer.getvalue()


WHOLE = {
    ".npy": npy(), ".npz": npz(), ".pt": pt(), ".parquet": parquet(),
    ".safetensors": save({"embeddings": torch.from_numpy(X.copy()), "labels": torch.arange(4)}),
    ".txt": b"cat\ndog\n3\n4\n",
}  # fmt: skip


@st.composite
def damaged(draw, whole):
    """Bytes of a file, changed, cut, doubled, filled up; or of no file at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        way = draw(st.sampled_from(["byte", "cut", "insert", "remove", "zeros"]))
        if way == "byte" and content:
            content[place] = draw(st.integers(0, 255))
        elif way == "cut":
            del content[place:]
        elif way == "insert":
            content[place:place] = draw(st.binary(max_size=16))
        elif way == "remove":
            del content[place : place + draw(st.integers(1, 16))]
        else:
            content[place : place + 8] = bytes(8)
    return bytes(content)


@pytest.mark.parametrize("suffix", WHOLE)
def test_readers_of_embeddings_labels_and_names(tmp_path, suffix):
    path = tmp_path / f"file{suffix}"

    @fuzzed
    @given(damaged(WHOLE[suffix]))
    def read(content):
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for reader in (vectors.read, vectors.read_labels, vectors.read_names):
                with contextlib.suppress(InputError):
                    reader(path)

    read()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def test_reader_of_relevant_items(tmp_path):
    path = tmp_path / "relevant.json"

    @fuzzed
    @given(JSON)
    @example([[float("inf")]])
    @example([{"3": 10**400}])
    def read(content):
        path.write_text(json.dumps(content))
        with contextlib.suppress(InputError):
            vectors.read_relevant(path)

    read()


def test_checkpoints(tmp_path):
    path = tmp_path / "a.ckpt"
    save_checkpoint(path, {"x": torch.arange(3.0), "step": 1})
    whole = path.read_bytes()

    @fuzzed
    @given(damaged(whole))
    @example(whole)
    @example(whole.replace(torch.tensor(2.0).numpy().tobytes(), torch.tensor(3.0).numpy().tobytes()))  # else sound
    def read(content):
        path.write_bytes(content)
        if content == whole:
            assert load_checkpoint(path)["step"] == 1
        else:
            with pytest.raises(InputError):
                load_checkpoint(path)

    read()


def tgz():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("a", "folder/b"):
            member = tarfile.TarInfo(name)
            member.size = 12
            archive.addfile(member, io.BytesIO(b"twelve bytes"))
    return buffer.getvalue()


@pytest.mark.parametrize("whole", [WHOLE[".npz"], tgz()], ids=["zip", "tar.gz"])  # an .npz is a zip
def test_archives(tmp_path, whole):
    path, target = tmp_path / "archive", tmp_path / "target"

    @fuzzed
    @given(damaged(whole))
    def read(content):
        path.write_bytes(content)
        with contextlib.suppress(InputError):
            unpack(path, target, most_bytes=100_000)
        assert {place.name for place in tmp_path.iterdir()} <= {"archive", "target"}

    read()


KEYS = [
    "data",
    "lr",
    "epochs",
    "miner",
    "encoder",
    "critic",
    "batch_size",
    "seed",
    "temperature",
    "out",
    "corrupt",
    "x",
]


def test_configurations(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    monkeypatch.chdir(tmp_path)
    tree = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), JSON, max_size=4)

    @fuzzed
    @given(tree.map(lambda found: yaml.safe_dump(found, allow_unicode=True)) | st.text(max_size=60))
    def read(text):
        path.write_text(text, encoding="utf-8", errors="replace")
        with contextlib.suppress(InputError), contextlib.redirect_stdout(io.StringIO()):
            read_options(["--config", str(path)])

    read()
    assert [place.name for place in Path(tmp_path).iterdir()] == ["config.yaml"]
