"""``kpair mine``: the table it writes, what survives a kill, and every sentence it refuses with."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from contrastive import _faiss
from contrastive.allpairs import AllPairs
from contrastive.cli import main
from miners import mine_negatives

parquet = pytest.importorskip("pyarrow.parquet")
needs_faiss = pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """60 rows in blocks of 16 anchors; labels in a file."""
    monkeypatch.chdir(tmp_path)
    module = sys.modules["contrastive.cli.mine"]  # `contrastive.cli.mine` is the function
    monkeypatch.setattr(module, "BLOCK", 16)
    monkeypatch.setattr(module, "_STEP", 5)
    np.save("x.npy", torch.randn(60, 8).numpy())
    (tmp_path / "labels.txt").write_text("".join(f"{'abc'[i % 3]}\n" for i in range(60)))
    return tmp_path


def table(path="n.parquet"):
    return parquet.read_table(path)


def rows_of(ranking):
    return [
        (anchor, negative, rank + 1, score)
        for anchor, (ids, scores) in enumerate(zip(ranking.ids.tolist(), ranking.scores.tolist(), strict=True))
        for rank, (negative, score) in enumerate(zip(ids, scores, strict=True))
        if negative >= 0
    ]


@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
def test_the_table_holds_what_is_mined(folder, capsys, metric):
    assert main(["mine", "x.npy", "--k", "7", "--metric", metric, "--out", "n.parquet"]) == 0
    found = table()
    names = {"anchor": "int64", "negative": "int64", "rank": "int32", "score": "float"}
    assert {field.name: str(field.type) for field in found.schema} == names
    expected = mine_negatives(np.load("x.npy"), 7, metric=metric)
    assert list(zip(*found.to_pydict().values(), strict=True)) == rows_of(expected)
    assert parquet.ParquetFile("n.parquet").num_row_groups == 4
    assert not (folder / "n.parquet.parts").exists()
    out, error = capsys.readouterr()
    assert "60 anchors, 420 pairs in" in out
    assert "MB at most" in out
    assert error == ""


def test_guards_leave_fewer_rows(folder):
    words = ["--labels", "labels.txt", "--threshold", "0.4", "--k", "40", "--out", "n.parquet"]
    assert main(["mine", "x.npy", *words]) == 0
    labels = (folder / "labels.txt").read_text().split()
    expected = rows_of(mine_negatives(np.load("x.npy"), 40, labels=labels, threshold=0.4))
    assert list(zip(*table().to_pydict().values(), strict=True)) == expected
    assert len(expected) < 60 * 40
    assert all(labels[anchor] != labels[negative] and score <= 0.4 for anchor, negative, _, score in expected)


def test_where_nothing_is_left_the_table_is_empty(folder, capsys):
    assert main(["mine", "x.npy", "--threshold", "-2", "--k", "3", "--out", "n.parquet"]) == 0
    assert len(table()) == 0
    assert "60 anchors, 0 pairs" in capsys.readouterr().out


def told_of_progress(monkeypatch):
    """What the bar is told: a list of (done, in all), which grows."""
    module, told = sys.modules["contrastive.cli.mine"], []
    plain = module.progress_bar

    @contextmanager
    def listening(what, *, shown):
        assert what == "mining"
        with plain(what, shown=shown) as show:
            yield lambda done, total: told.append((done, total)) or show(done, total)

    monkeypatch.setattr(module, "progress_bar", listening)
    return told


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_progress_is_shown_on_a_terminal_or_on_request(folder, capsys, monkeypatch, on_a_terminal):
    words = ["mine", "x.npy", "--k", "3", "--out"]
    for options, shown in (([], on_a_terminal), (["--progress", "true"], True), (["--progress", "false"], False)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: on_a_terminal, raising=False)
        assert main([*words, f"n{len(options)}{shown}.parquet", *options]) == 0
        out, error = capsys.readouterr()
        assert "mining" not in out
        assert ("mining" in error and "60/60" in error) == shown
        assert bool(error) == shown


def test_progress_is_that_of_the_anchors(folder, monkeypatch):
    told = told_of_progress(monkeypatch)
    words = ["mine", "x.npy", "--k", "3", "--out", "n.parquet", "--resume", "auto"]
    restore = stop_after(monkeypatch, 9, KeyboardInterrupt())  # in the third block of 16, each in steps of 5, 5, 5, 1
    assert main(words) == 130
    restore()
    assert told == [(done, 60) for done in (0, 5, 10, 15, 16, 21, 26, 31, 32, 37)]
    told.clear()
    assert main(words) == 0
    assert told == [(done, 60) for done in (32, 37, 42, 47, 48, 53, 58, 60)]


def test_the_input_is_not_read_into_memory(folder, monkeypatch):
    seen = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: seen.append(options) or load(path, **options))
    assert main(["mine", "x.npy", "--k", "2", "--out", "n.parquet"]) == 0
    assert seen[0]["mmap_mode"] == "c"
    before = load("x.npy")
    assert main(["mine", "x.npy", "--k", "2", "--metric", "euclidean", "--out", "m.parquet"]) == 0
    assert np.array_equal(before, load("x.npy"))


@pytest.mark.parametrize("kind", ["npz", "fp16", "float64"])
def test_other_files_and_types(folder, kind):
    x = np.load("x.npy")
    np.savez("y.npz", embeddings=x)
    np.save("half.npy", x.astype(np.float16))
    np.save("double.npy", x.astype(np.float64))
    name = {"npz": "y.npz", "fp16": "half.npy", "float64": "double.npy"}[kind]
    assert main(["mine", name, "--k", "5", "--out", "n.parquet"]) == 0
    given = x.astype(np.float16) if kind == "fp16" else x
    expected = mine_negatives(given, 5)
    assert table()["negative"].to_pylist() == [negative for _, negative, _, _ in rows_of(expected)]


def test_one_process_mines(folder, monkeypatch, capsys):
    """Ranks would take each other's parts for those of an earlier run."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    assert main(["mine", "x.npy", "--k", "4", "--out", "n.parquet"]) == 2
    assert "kpair mine is one process: call it without torchrun" in capsys.readouterr().err
    assert not list(folder.glob("n.parquet*"))


# --- interrupted and resumed ------------------------------------------------------------------------------------------


def stop_after(monkeypatch, calls, how):
    """Ends the run within the search, after so many steps of it."""
    top, made = AllPairs.top, []

    def stopping(self, *arguments, **options):
        made.append(1)
        if len(made) > calls:
            raise how
        return top(self, *arguments, **options)

    monkeypatch.setattr(AllPairs, "top", stopping)
    return lambda: monkeypatch.setattr(AllPairs, "top", top)


@pytest.mark.parametrize("index", ["exact", pytest.param("IVF4,Flat", marks=needs_faiss)])
def test_interrupted_anywhere_it_ends_with_the_same_table(folder, monkeypatch, capsys, index):
    words = ["mine", "x.npy", "--k", "4", "--index", index, "--nprobe", "2"]
    assert main([*words, "--out", "whole.parquet"]) == 0
    generator = random.Random(0)
    for trial in range(4):
        out = f"killed{trial}.parquet"
        attempt = 0
        while True:
            restore = stop_after(monkeypatch, generator.randint(1, 9), KeyboardInterrupt())
            status = main([*words, "--out", out, "--resume", "auto"])
            restore()
            if status == 0:
                break
            attempt += 1
            assert status == 130
            assert not (folder / out).exists()
            assert not list((folder / f"{out}.parts").glob(".*"))
        assert attempt > 0
        assert (folder / out).read_bytes() == (folder / "whole.parquet").read_bytes()
    assert "--resume auto" in capsys.readouterr().err


def test_a_kill_loses_a_block_at_most(folder, capsys):
    words = ["x.npy", "--k", "4", "--out", "n.parquet", "--resume", "auto"]
    program = textwrap.dedent(f"""
        import os, signal
        from contrastive.allpairs import AllPairs
        from contrastive.cli import main
        import sys
        module = sys.modules["contrastive.cli.mine"]
        module.BLOCK, module._STEP = 16, 5
        top, made = AllPairs.top, []
        def stopping(self, *arguments, **options):
            made.append(1)
            if len(made) == 11:
                os.kill(os.getpid(), signal.SIGKILL)
            return top(self, *arguments, **options)
        AllPairs.top = stopping
        main(["mine", *{words}])
    """)
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((folder / "n.parquet.parts").glob("0*.parquet"))) == 2
    refused(capsys, ["mine", "x.npy", "--k", "4", "--out", "n.parquet"], "holds an unfinished run")
    refused(capsys, ["mine", *words, "--k", "5"], "is of a run with other k: ")
    refused(capsys, ["mine", *words, "--labels", "labels.txt"], "is of a run with other labels: ")
    np.save("y.npy", np.load("x.npy") + 1)
    refused(capsys, ["mine", "y.npy", *words[1:]], "is of a run with other embeddings: ")
    assert main(["mine", *words]) == 0
    assert "(32 anchors were mined before)" in capsys.readouterr().out
    assert main(["mine", "x.npy", "--k", "4", "--out", "whole.parquet"]) == 0
    assert (folder / "n.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()


def test_a_finished_table_is_left_alone(folder, capsys):
    words = ["mine", "x.npy", "--k", "4", "--out", "n.parquet"]
    assert main(words) == 0
    before = (folder / "n.parquet").read_bytes()
    refused(capsys, words, "n.parquet exists")
    assert main([*words, "--resume", "auto"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    refused(capsys, [*words, "--resume", "auto", "--k", "5"], "holds other negatives")
    assert (folder / "n.parquet").read_bytes() == before


def test_a_disk_that_is_full_keeps_the_parts(folder, monkeypatch, capsys):
    words = ["mine", "x.npy", "--k", "4", "--out", "n.parquet"]
    write, written = parquet.write_table, []

    def full(*arguments, **options):
        written.append(1)
        if len(written) > 2:
            raise OSError(28, "No space left on device")
        return write(*arguments, **options)

    monkeypatch.setattr(parquet, "write_table", full)
    assert main(words) == 2
    assert "No space left on device; --resume auto goes on" in capsys.readouterr().err
    monkeypatch.setattr(parquet, "write_table", write)
    assert main([*words, "--resume", "auto"]) == 0
    assert "(32 anchors were mined before)" in capsys.readouterr().out


# --- an approximate index ---------------------------------------------------------------------------------------------


@needs_faiss
def test_an_index_tells_its_recall(folder, capsys):
    assert main(["mine", "x.npy", "--k", "5", "--index", "IVF4,Flat", "--nprobe", "4", "--out", "n.parquet"]) == 0
    assert "recall of IVF4,Flat against exact search, on 60 anchors: 100.0 %" in capsys.readouterr().out
    assert table()["negative"].to_pylist() == [n for _, n, _, _ in rows_of(mine_negatives(np.load("x.npy"), 5))]
    assert main(["mine", "x.npy", "--k", "5", "--index", "IVF4,Flat", "--nprobe", "1", "--out", "m.parquet"]) == 0
    share = float(capsys.readouterr().out.split("anchors: ")[1].split(" %")[0]) / 100
    pairs = [
        {row[:2] for row in zip(*table(name).to_pydict().values(), strict=True)} for name in ("n.parquet", "m.parquet")
    ]
    assert share == pytest.approx(len(pairs[0] & pairs[1]) / 300, abs=1e-3)
    assert 0.2 < share < 1


@needs_faiss
@pytest.mark.parametrize("metric", ["cosine", "inner_product", "euclidean"])
def test_an_index_is_asked_for_more_where_guards_leave_too_few(metric):
    x, labels = torch.randn(300, 6), torch.arange(300) // 75
    exact = mine_negatives(x, 9, labels=labels, metric=metric)
    found = mine_negatives(x, 9, labels=labels, metric=metric, index="IVF4,Flat", nprobe=4)
    assert torch.equal(found.ids, exact.ids)
    assert torch.equal(found.scores, exact.scores)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(capsys, words, message):
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kpair: error: ")
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "0"], "--k is 0, expected 1 to 59"),
        (["--k", "60"], "--k is 60, expected 1 to 59, the other rows of x.npy"),
        (["--k", "many"], "--k is many, expected an integer"),
        (["--metric", "l2"], "--metric is l2, expected cosine or inner_product or euclidean"),
        (["--threshold", "nan"], "threshold is nan"),
        (["--labels", "short.txt"], "x.npy holds 60 embeddings, and there are 2 labels"),
        (["--labels", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--out", "n.csv"], "--out is n.csv, expected a name that ends in .parquet"),
        (["--out", "nowhere/n.parquet"], "--out: nowhere is no folder"),
        (["--out", "taken.parquet"], "taken.parquet exists"),
        (["--out", "taken.parquet", "--resume", "auto"], "taken.parquet holds other negatives"),
        (["--out", "odd.parquet", "--resume", "auto"], "fingerprint.json cannot be read"),
        (["--nprobe", "0"], "--nprobe is 0"),
        (["--treshold", "1"], "did you mean --threshold?"),
        pytest.param(["--index", "Foo"], "index 'Foo': could not parse index string Foo", marks=needs_faiss),
        pytest.param(
            ["--index", "IVF4096,Flat"], "Number of training points (60) should be at least", marks=needs_faiss
        ),
        pytest.param(["--index", "PQ3"], "should be a multiple of the number of subquantizers", marks=needs_faiss),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_one_sentence_and_leave_nothing(folder, capsys, words, message):
    (folder / "short.txt").write_text("a\nb\n")
    (folder / "taken.parquet").write_text("a thesis")
    (folder / "odd.parquet.parts").mkdir()
    before = sorted(folder.rglob("*"))
    refused(capsys, ["mine", "x.npy", *words], message)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere.npy", None, "nowhere.npy does not exist"),
        (
            "nan.npy",
            np.array([[1.0], [np.nan], [np.inf]]),
            "embeddings holds NaN or infinity in 2 rows, the first is row 1",
        ),
        ("one.npy", np.ones((1, 3)), "one.npy holds 1 row, expected at least 2"),
        ("none.npy", np.ones((0, 3)), "shape (0, 3)"),
        ("flat.npy", np.ones(9), "expected floats [rows, width]"),
        ("whole.npy", np.ones((9, 2), dtype=int), "expected floats [rows, width]"),
        ("words.txt", "text", "words.txt: expected a file that ends in"),
        ("broken.npy", "text", "broken.npy cannot be read"),
        ("large.npy", 1e30 * np.ones((3, 2), dtype=np.float32), "scores may reach"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[-5:] else "",
)
def test_bad_embeddings_are_one_sentence_and_leave_nothing(folder, capsys, name, content, message):
    if isinstance(content, str):
        (folder / name).write_text(content)
    elif content is not None:
        np.save(name, content)
    before = sorted(folder.rglob("*"))
    refused(capsys, ["mine", name, "--k", "1", "--metric", "inner_product"], message)
    assert sorted(folder.rglob("*")) == before


def test_without_pyarrow(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(capsys, ["mine", "x.npy"], "the table needs pyarrow: pip install 'kpair[parquet]'")


def test_without_faiss(folder, capsys, monkeypatch):
    monkeypatch.setattr(_faiss, "_module", lambda: None)
    refused(capsys, ["mine", "x.npy", "--index", "IVF4,Flat"], "needs FAISS, which is not installed")


def test_without_embeddings(capsys):
    refused(capsys, ["mine", "--k", "3"], "required: embeddings")


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["mine", "--help"])
    assert stop.value.code == 0
    assert "--nprobe" in capsys.readouterr().out
