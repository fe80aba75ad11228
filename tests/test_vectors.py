"""Embeddings from files, without running a pickle."""

import contextlib
import itertools
import pickle
import tempfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from contrastive import vectors
from contrastive.errors import InputError
from contrastive.vectors import read, read_labels, read_names, read_relevant

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
    (tmp_path / "y.txt").write_text("cat\ndog\ndog\n\n")
    assert read_labels(tmp_path / "y.txt") == ["cat", "dog", "dog"]
    (tmp_path / "z.txt").write_text("3\n-1\n")
    assert read_labels(tmp_path / "z.txt").tolist() == [3, -1]
    np.save(tmp_path / "y.npy", Y)
    assert read_labels(tmp_path / "y.npy").tolist() == Y.tolist()


@pytest.mark.parametrize("word", ["18446744073709551615", "--5", "\u00b2", "-", "07", "9223372036854775808"])
def test_labels_that_are_no_integers_of_64_bits_are_names(tmp_path, word):
    (tmp_path / "y.txt").write_text(f"{word}\n7\n{word}\n", encoding="utf-8")
    assert read_labels(tmp_path / "y.txt") == [word, "7", word]
    (tmp_path / "y.txt").write_text("-9223372036854775808\n9223372036854775807\n")
    assert read_labels(tmp_path / "y.txt").tolist() == [-(2**63), 2**63 - 1]


def test_labels_of_bytes_are_text(tmp_path):
    np.save(tmp_path / "y.npy", np.array([b"cat", "d\u00e9".encode()]))
    assert read_labels(tmp_path / "y.npy") == ["cat", "d\u00e9"]


def test_a_pickle_is_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "x.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "z.pt")
    np.save(tmp_path / "y.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name, message in (
        ("x.pt", "pickle"),
        ("z.pt", "cannot be read.*pickle of other things than tensors"),
        ("y.npy", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            read(tmp_path / name)
        assert not {"\n", "\033"} & set(str(refused.value))
        assert "trust" not in str(refused.value)  # torch tells how to run it all the same
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


def test_a_missing_label_is_named(tmp_path):
    # A line that was left out would move every label after it by one row.
    for content, message in [("cat\n\ndog\n", "line 2 is empty"), ("\n \n", "is empty"), ("", "is empty")]:
        (tmp_path / "y.txt").write_text(content)
        with pytest.raises(InputError, match=message):
            read_labels(tmp_path / "y.txt")
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    for column in (["a", None, "b", None], [1, None, 2, None], [["a"], None, ["b"], None]):
        parquet.write_table(pyarrow.table({"embedding": list(X), "label": column}), tmp_path / "x.parquet")
        with pytest.raises(InputError, match="label is missing in 2 rows, the first is row 1"):
            read(tmp_path / "x.parquet")


def test_several_labels_a_row(tmp_path):
    np.save(tmp_path / "y.npy", np.array([[0, 1, 1], [1, 0, 0]]))
    assert read_labels(tmp_path / "y.npy").tolist() == [[False, True, True], [True, False, False]]
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    labels = [["cat", "night"], [], ["dog"], ["cat"]]
    embeddings = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(X.ravel()), 3)
    parquet.write_table(pyarrow.table({"embeddings": embeddings, "labels": labels}), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert torch.equal(found[0], torch.tensor(X))
    assert found[1] == labels
    chunks = pyarrow.table({"embedding": pyarrow.chunked_array([list(X[:1]), list(X[1:])]), "label": labels})
    parquet.write_table(chunks, tmp_path / "y.parquet", row_group_size=2)
    assert torch.equal(read(tmp_path / "y.parquet")[0], torch.tensor(X))
    ragged = pyarrow.table({"embedding": [[1.0, 2.0], [1.0]], "label": [1, 2]})
    parquet.write_table(ragged, tmp_path / "z.parquet")
    with pytest.raises(InputError, match="expected floats"):
        read(tmp_path / "z.parquet")


def test_relevant_items(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('[[3, 17], {"4": 2, "5": 0.5}, []]')
    assert read_relevant(path) == [{3: 1.0, 17: 1.0}, {4: 2.0, 5: 0.5}, {}]
    for content, message in [
        ("[[1", "cannot be read"),
        ('{"0": [1]}', "holds a dict, expected a list"),
        ('[["a"]]', "query 0 has"),
        ("[[1], 3]", "query 1 has 3"),
        ('["12"]', "query 0 has '12'"),  # no list of 1 and 2
        ("[[1.7]]", "query 0 has"),
        ("[[true]]", "query 0 has"),
        ('[{"1": "x"}]', "query 0 has"),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            read_relevant(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_relevant(tmp_path / "nope.json")


@pytest.mark.parametrize("write", [npy, npz, safetensors, parquet, pt], ids=lambda f: f.__name__)
def test_a_truncated_file_is_refused(tmp_path, write):
    path = tmp_path / f"x.{write.__name__}"
    write(path)
    content = path.read_bytes()
    for length in (0, 1, 9, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        for mapped in (False, True):
            with pytest.raises(InputError, match="cannot be read"):
                read(path, mapped=mapped)


@pytest.mark.parametrize("write", [npy, safetensors, pt], ids=lambda f: f.__name__)
def test_mapped_files_are_not_read_as_a_whole(tmp_path, write, monkeypatch):
    import resource

    monkeypatch.setattr("test_vectors.X", np.zeros((2**18, 64), dtype=np.float32))  # 64 MB
    monkeypatch.setattr("test_vectors.Y", np.zeros(2**18, dtype=np.int64))
    path = tmp_path / f"x.{write.__name__}"
    write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embeddings, _ = read(path, mapped=True)
    assert embeddings.shape == (2**18, 64)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 40_000
    embeddings[0] = 1.0  # never reaches the file
    assert not bool(read(path)[0].any())


def npz_compressed(path):
    np.savez_compressed(path, embeddings=X, labels=Y)


def parquet_of_lists(path):
    """Not compressed, of several groups of rows."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    table = pyarrow.table({"label": Y, "embedding": list(X)})
    parquet.write_table(table, path, compression="none", row_group_size=7)


class TestLargeFiles:
    """Arrays that are not read into memory: what they hold is what they held."""

    @pytest.fixture(autouse=True)
    def large(self, monkeypatch):
        monkeypatch.setattr(vectors, "_LARGE", 1)
        monkeypatch.setattr(vectors, "_BYTES", 100)
        monkeypatch.setattr(vectors, "_ROWS", 5)
        monkeypatch.setattr("test_vectors.Y", np.arange(23))

    @pytest.mark.parametrize(
        ("write", "dtype"),
        [
            *itertools.product([npy, npz, npz_compressed, parquet, parquet_of_lists], ["f2", "f4", "f8"]),
            *itertools.product([npy, npz, npz_compressed], [">f4"]),  # tables have the byte order of the machine
        ],
        ids=lambda value: getattr(value, "__name__", value),
    )
    def test_what_they_hold(self, tmp_path, write, dtype, monkeypatch):
        monkeypatch.setattr("test_vectors.X", np.random.default_rng(0).normal(size=(23, 3)).astype(dtype))
        path = tmp_path / f"x.{write.__name__.split('_')[0]}"
        write(path)
        temporary = tempfile.TemporaryFile
        files = []
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **names: files.append(1) or temporary(**names))
        embeddings, labels = read(path, mapped=True)
        assert embeddings.numpy().dtype == X.dtype.newbyteorder("=")
        assert np.array_equal(embeddings.numpy(), X)
        assert labels is None if write is npy else labels.tolist() == Y.tolist()
        assert len(files) == (write not in (npy, npz))
        embeddings[0] = 1.0  # never reaches the file
        assert np.array_equal(read(path)[0].numpy(), X)

    def test_an_archive_that_lies_about_its_length(self, tmp_path):
        npy(tmp_path / "x.npy")
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:  # what lies behind the array is no part of it
            archive.writestr("embeddings.npy", (tmp_path / "x.npy").read_bytes().replace(b"(4, 3)", b"(9, 3)"))
            archive.writestr("other", bytes(200))
        with pytest.raises(InputError, match=r"cannot be read: embeddings\.npy is damaged"):
            read(tmp_path / "x.npz", mapped=True)

    def test_columns_of_an_archive_in_another_order(self, tmp_path):
        np.savez(tmp_path / "x.npz", labels=Y[:4], embeddings=np.asfortranarray(X))
        assert np.array_equal(read(tmp_path / "x.npz", mapped=True)[0].numpy(), X)

    def test_an_array_that_begins_at_an_odd_byte(self, tmp_path):
        np.savez(tmp_path / "x.npz", other=np.zeros(3, np.int8), embeddings=X)
        embeddings, _ = read(tmp_path / "x.npz", mapped=True)
        assert np.array_equal(embeddings.numpy(), X)
        assert embeddings.data_ptr() % 4 == 0

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([[1.0, 2.0]] * 6 + [[1.0]], "expected floats"),
            ([[1.0, 2.0]] * 5 + [[1.0]] * 5, "expected floats"),
            ([[1.0, 2.0]] * 6 + [None], "embedding is missing in 1 rows, the first is row 6"),
            ([[1.0, 2.0]] * 6 + [[1.0, None]], "embedding has missing numbers in its lists"),
        ],
    )
    def test_a_table_that_holds_no_matrix(self, tmp_path, rows, message):
        pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"embedding": rows}), tmp_path / "x.parquet")
        with pytest.raises(InputError, match=message):
            read(tmp_path / "x.parquet", mapped=True)

    def test_labels_and_names_do_not_read_the_embeddings(self, tmp_path, monkeypatch):
        pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
        from pyarrow import parquet

        names = [*"abcd"]
        parquet.write_table(
            pyarrow.table({"embedding": list(X), "label": Y[:4], "name": names}), tmp_path / "x.parquet"
        )
        np.savez(tmp_path / "x.npz", embeddings=X, labels=Y[:4], names=np.array(names))
        read_of = []
        column, member = vectors._parquet_column, vectors._member
        monkeypatch.setattr(vectors, "_parquet_column", lambda p, n, m: read_of.append(n) or column(p, n, m))
        monkeypatch.setattr(vectors, "_member", lambda p, n, m: read_of.append(n) or member(p, n, m))
        for name in ("x.parquet", "x.npz"):
            assert read_labels(tmp_path / name).tolist() == Y[:4].tolist()
            assert read_names(tmp_path / name, within=True) == names
        assert read_of == ["label", "name", "labels", "names"]

    def test_no_room_for_what_is_unpacked(self, tmp_path, monkeypatch):
        npz_compressed(tmp_path / "x.npz")

        class Full:
            def write(self, part):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **names: contextlib.nullcontext(Full()))
        with pytest.raises(InputError, match=r"x\.npz cannot be read: .*No space left on device"):
            read(tmp_path / "x.npz", mapped=True)
