"""Embeddings from files, without running a pickle."""

import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contrastive.errors import InputError
from contrastive.vectors import read, read_labels

X = np.arange(12, dtype=np.float32).reshape(4, 3)
Y = np.array([0, 1, 1, 2**30])


def npy(path):
    np.save(path, X)


def npz(path):
    np.savez(path, embeddings=X, labels=Y)


def safetensors(path):
    save_file({"embeddings": torch.tensor(X), "projections": torch.tensor(X), "labels": torch.tensor(Y)}, path)


def parquet(path):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"embedding": list(X), "label": Y}), path)


def pt(path):
    torch.save({"embeddings": torch.tensor(X), "labels": torch.tensor(Y)}, path)


@pytest.mark.parametrize("write", [npy, npz, safetensors, parquet, pt], ids=lambda f: f.__name__)
def test_formats(tmp_path, write):
    path = tmp_path / f"x.{write.__name__}"
    write(path)
    embeddings, labels = read(path)
    assert torch.equal(embeddings, torch.tensor(X))
    if write is npy:
        assert labels is None
    else:
        assert labels.dtype == torch.int64
        assert labels.tolist() == Y.tolist()


def test_strings(tmp_path):
    np.savez(tmp_path / "x.npz", embeddings=X, labels=np.array(["cat", "dog", "dog", "<b>"]))
    assert read(tmp_path / "x.npz")[1] == ["cat", "dog", "dog", "<b>"]
    (tmp_path / "y.txt").write_text("cat\ndog\n\ndog\n")
    assert read_labels(tmp_path / "y.txt") == ["cat", "dog", "dog"]
    (tmp_path / "z.txt").write_text("3\n-1\n")
    assert read_labels(tmp_path / "z.txt").tolist() == [3, -1]
    np.save(tmp_path / "y.npy", Y)
    assert read_labels(tmp_path / "y.npy").tolist() == Y.tolist()


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "x.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "z.pt")
    np.save(tmp_path / "y.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name in ("x.pt", "z.pt", "y.npy"):
        with pytest.raises(InputError, match="cannot be read"):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.bin", b"", "expected a file that ends in"),
        ("x.npy", b"", "cannot be read"),
        ("x.npz", b"PK", "cannot be read"),
        ("x.safetensors", b"\x00" * 20, "cannot be read"),
        ("x.pt", b"nothing", "cannot be read"),
    ],
)
def test_bad_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / name)


def test_wrong_contents(tmp_path):
    for array in (X.astype(int), X[0], np.array(["a"])):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(InputError, match=r"expected floats \[rows, width\]|expected a two-dim"):
            read(tmp_path / "x.npy")
    np.savez(tmp_path / "x.npz", a=X, b=X)
    with pytest.raises(InputError, match="holds a, b"):
        read(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", embeddings=X, labels=X[:, 0])
    with pytest.raises(InputError, match="expected one integer or string a row"):
        read(tmp_path / "x.npz")


def test_big_endian(tmp_path):
    np.save(tmp_path / "x.npy", X.astype(">f4"))
    assert torch.equal(read(tmp_path / "x.npy")[0], torch.tensor(X))
