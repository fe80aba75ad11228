"""``kpair evaluate`` of files, and ``kpair doctor``: figures, tables, resuming, and bad input in one sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive import _faiss, neighbours
from contrastive.assessment import Assessment
from contrastive.cli import main
from contrastive.cli.doctor import _problems
from contrastive.retrieval import evaluate_retrieval

needs_faiss = pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")


@pytest.fixture
def x(tmp_path, monkeypatch):
    """Sixty rows of six classes, in a file."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    rows = torch.randn(6, 8, generator=generator)[labels] + torch.randn(60, 8, generator=generator)
    np.savez("x.npz", embeddings=rows.numpy(), labels=labels.numpy())
    return rows, labels


def run(capsys, *words, status=0):
    assert main(["evaluate", *words]) == status
    return capsys.readouterr()


def figures():
    with open("out.json", encoding="utf-8") as file:  # noqa: PTH123  # in the working directory
        return json.load(file)


def test_metrics_by_name(x, capsys):
    names = "recall,coverage,precision@3,ndcg@5,knn,mrr,map,cmc@2"
    shown = run(capsys, "x.npz", "--metrics", names, "--k", "1,4", "--json", "out.json").out
    expected = evaluate_retrieval(*x, ks=(1, 4), metrics=names.split(","))
    found = figures()
    assert found["figures"] == pytest.approx(expected.mean)
    assert found["class_intervals"].keys() == found["intervals"].keys() == expected.mean.keys()
    assert found["index_recall"] is None
    for word in (*expected.mean, "95 % interval", "over classes"):
        assert word in shown
    assert "neighbours found" not in shown
    # What was not asked for is not there; without names the defaults and more are.
    run(capsys, "x.npz", "--json", "out.json")
    assert set(figures()["figures"]) > {"recall@1", "recall@10", "precision@1", "r_precision", "map@r", "uniformity"}
    assert any("k = 100 left out" in note for note in figures()["notes"])


def test_a_sample_of_the_queries_searches_the_whole_gallery(x, capsys):
    rows, labels = x
    names = ("recall@1", "ndcg@5", "map@r")
    whole = evaluate_retrieval(rows, labels, metrics=names)
    words = ("x.npz", "--metrics", ",".join(names), "--sample", "20", "--json", "out.json")
    shown = run(capsys, *words).out
    some = evaluate_retrieval(rows, labels, metrics=names, sample=20)
    assert len(some.queries) == 20
    assert bool((some.queries.diff() > 0).all())
    for name in names:
        assert torch.equal(some.per_query[name], whole.per_query[name][some.queries])
    assert figures()["figures"] == pytest.approx(some.mean)
    assert (figures()["queries"], figures()["searched"]) == (60, 20)
    assert "20 of 60 queries were searched for, a random choice." in shown
    # Those that count are drawn from; a sample of all of them is none.
    labels = torch.where(torch.arange(60) < 30, labels, torch.arange(60) + 10)
    assert bool((evaluate_retrieval(rows, labels, metrics=names, sample=20).queries < 30).all())
    assert evaluate_retrieval(rows, labels, metrics=names, sample=20).excluded == 30
    assert evaluate_retrieval(rows, x[1], metrics=names, sample=60).mean == whole.mean
    # Two files without labels: row i of the gallery is the match of row i.
    np.save("q.npy", rows.numpy())
    np.save("g.npy", (rows + 0.1).numpy())
    run(capsys, "q.npy", "--gallery", "g.npy", "--sample", "7", "--json", "out.json")
    assert figures()["searched"] == 7


@needs_faiss
def test_an_approximate_search_says_so_beside_every_figure(x, capsys):
    words = ("x.npz", "--backend", "IVF8,Flat", "--nprobe", "1", "--k", "1,5", "--json", "out.json")
    shown = run(capsys, *words).out
    found = figures()["index_recall"]
    assert 0 < found < 1
    assert shown.count(f"{100 * found:.1f} %") >= len(figures()["intervals"]) + 1
    assert "neighbours found" in shown
    assert "IVF8,Flat is approximate" in shown
    run(capsys, *words, "--report", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert "Neighbours found" in page
    found = figures()["index_recall"]  # of a deeper search, for the page
    assert page.count(f'data-heading="neighbours found">{100 * found:.1f}\u202f%</td>') >= len(figures()["intervals"])
    run(capsys, "x.npz", "--k", "1,5", "--report", "page.html")
    assert "Neighbours found" not in Path("page.html").read_text(encoding="utf-8")


def test_lists_of_relevant_items(x, capsys, tmp_path):
    rows, labels = x
    np.save("q.npy", rows[:2].numpy())
    np.save("g.npy", rows.numpy())
    lists = [[j for j in range(60) if labels[j] == labels[i] and j != i] for i in range(2)]
    (tmp_path / "r.json").write_text(json.dumps(lists))
    words = ("q.npy", "--gallery", "g.npy", "--relevant", "r.json", "--k", "2", "--metrics", "recall,ndcg")
    run(capsys, *words, "--json", "out.json")
    expected = evaluate_retrieval(rows[:2], gallery=rows, relevant=lists, ks=(2,), metrics=("recall", "ndcg"))
    assert figures()["figures"] == pytest.approx(expected.mean)


def test_several_labels_a_row(x, capsys):
    rows, labels = x
    np.save("e.npy", rows.numpy())
    np.save("l.npy", torch.nn.functional.one_hot(labels).numpy())
    run(capsys, "e.npy", "--labels", "l.npy", "--k", "1,5", "--json", "out.json")
    expected = evaluate_retrieval(rows, labels, ks=(1, 5)).mean
    assert {name: figures()["figures"][name] for name in expected} == pytest.approx(expected)
    # With a gallery there is no classifier to fit.
    np.save("g.npy", rows.flip(0).numpy())
    run(capsys, "e.npy", "--labels", "l.npy", "--gallery", "g.npy", "--gallery-labels", "l.npy", "--json", "out.json")
    assert "linear" not in figures()["figures"]


def test_a_killed_evaluation_goes_on(x, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(neighbours, "RANKING_BLOCK", 130)  # ten queries a strip and fewer
    words = ("x.npz", "--k", "1,10", "--metrics", "recall,map@r", "--json", "out.json")
    run(capsys, *words)
    expected = figures()
    (tmp_path / "out.json").unlink()
    seen = []
    whole = Assessment._values

    def dies(self, run, part, ids, scores):
        seen.append(len(ids))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return whole(self, run, part, ids, scores)

    monkeypatch.setattr(Assessment, "_values", dies)
    assert "interrupted; what was under way goes on with" in run(capsys, *words, "--resume", "auto", status=130).err
    assert not (tmp_path / "out.json").exists()
    assert len(list((tmp_path / "out.json.parts").glob("*.safetensors"))) == 2
    done = sum(seen[:2])
    other = run(capsys, *words[:2], "1,5", *words[3:], "--resume", "auto", status=2).err
    assert "is of an evaluation with other k: remove it" in other
    seen.clear()
    seen += [0] * 5  # does not die again
    run(capsys, *words, "--resume", "auto")
    assert sum(seen) == 60 - done
    assert figures() == expected
    assert not (tmp_path / "out.json.parts").exists()


def test_progress_is_shown_on_request(x, capsys):
    assert "searching" in run(capsys, "x.npz", "--progress", "true").err
    assert run(capsys, "x.npz").err == ""


BAD = {
    "one class": (lambda e, y: (e, y * 0), [], "all labels are the same"),
    "all singletons": (lambda e, y: (e, np.arange(60)), [], "every label occurs once"),
    "NaN": (lambda e, y: (np.where(np.arange(60)[:, None] == 7, np.nan, e), y), [], "in 1 row, the first is row 7"),
    "many NaN": (lambda e, y: (e * np.nan, y), [], "the first is row 0 (then 1, 2, 3, 4, 5, ...)"),
    "infinite": (lambda e, y: (np.where(e == e[3], np.inf, e), y), [], "the first is row 3"),
    "empty": (lambda e, y: (e[:0], y[:0]), [], "neither of them 0"),
    "one row": (lambda e, y: (e[:1], y[:1]), [], "every label occurs once"),
    "integers": (lambda e, y: (e.astype(int), y), [], "expected floats"),
    "fewer labels": (lambda e, y: (e, y[:-1]), [], "60 embeddings, and there are 59 labels"),
    "float labels": (lambda e, y: (e, y / 2), [], "expected one integer or string a row"),
    "k = 0": (None, ["--k", "0"], "--k is 0"),
    "k beyond": (None, ["--k", "1,60"], "k is 60, expected 1 to 59"),
    "metric at 0": (None, ["--metrics", "recall@0"], "metrics hold 'recall@0'"),
    "unknown metric": (None, ["--metrics", "recal"], "metrics hold 'recal', expected names of recall"),
    "no metric": (None, ["--metrics", ","], "metrics hold none"),
    "unknown back end": (None, ["--backend", "scann"], "backend is 'scann'"),
    "nprobe": (None, ["--nprobe", "0"], "--nprobe is 0"),
    "no gallery": (None, ["--gallery", "nope.npy"], "nope.npy does not exist"),
    "no relevant": (None, ["--relevant", "nope.json"], "nope.json cannot be read"),
    "both": (None, ["--relevant", "r.json", "--labels", "l.txt"], "leave --labels and --gallery-labels out"),
    "resume": (None, ["--resume", "auto"], "--resume auto needs --json"),
    "sample": (None, ["--sample", "0"], "--sample is 0, expected at least 1 query"),
    "misspelt": (None, ["--metric", "cosin"], "--metric is cosin"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(x, capsys, tmp_path, case):
    change, words, message = BAD[case]
    if change is not None:
        rows, labels = change(x[0].numpy(), x[1].numpy())
        np.savez("x.npz", embeddings=rows, labels=labels)
    before = sorted(tmp_path.iterdir())
    out = [] if case == "resume" else ["--json", "out.json"]
    error = run(capsys, "x.npz", *words, *out, status=2)
    assert error.out == ""
    (line,) = error.err.splitlines()
    assert line.startswith("kpair: error: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["x.npy", "x.pt", "x.npz"])
def test_a_pickle_is_refused(x, capsys, tmp_path, name):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    assert "cannot be read" in run(capsys, name, status=2).err
    assert not (tmp_path / "ran").exists()


def test_where_nothing_can_be_written_nothing_is_searched(x, capsys):
    error = run(capsys, "x.npz", "--json", "nowhere/out.json", status=2)
    assert "nowhere is no folder" in error.err
    assert error.out == ""


def test_default_k_beyond_a_small_gallery_are_left_out(x, capsys):
    """Also where rows are matched: nobody asked for k = 10."""
    np.save("a.npy", x[0][:7].numpy())
    np.save("b.npy", x[0][:7].numpy())
    for words in ((), ("--sample", "3")):
        run(capsys, "a.npy", "--gallery", "b.npy", "--json", "out.json", *words)
        assert {"recall@1", "recall@5"} <= figures()["figures"].keys()
        assert "recall@10" not in figures()["figures"]
        assert "k = 10 left out: beyond the gallery." in figures()["notes"]
    told = run(capsys, "a.npy", "--gallery", "b.npy", "--k", "10", status=2).err
    assert "expected 1 to 7" in told


def test_a_folder_as_a_file_to_write_is_refused_first(x, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    told = run(capsys, "x.npz", "--json", "there", "--report", "page.html", status=2).err
    assert "--json: there cannot be written: it is a folder" in told
    assert not (tmp_path / "page.html").exists()


def test_mismatched_widths(x, capsys):
    np.savez("g.npz", embeddings=np.ones((5, 3), dtype=np.float32), labels=np.arange(5))
    error = run(capsys, "x.npz", "--gallery", "g.npz", status=2).err
    assert "embeddings have shape (60, 8) and gallery (5, 3), expected the same width" in error


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json", "out.json"]) == 0
    shown, found = capsys.readouterr().out, figures()
    for word in ("torch", "faiss", "GPUs", "float32 products", "threads", torch.__version__.split("+")[0]):
        assert word in shown
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["faiss"]["usable"] == _faiss.available()
    assert main(["doctor", "--jsn", "x"]) == 2


def test_doctor_names_what_stands_in_the_way(monkeypatch, capsys):
    facts = {
        "faiss": {"distributions": ["faiss-cpu 1.15", "faiss-gpu 1.15"], "usable": False},
        "torch": {"GPUs": []},
        "threads": {"torch": 8, "processors": 2, "KMP_DUPLICATE_LIB_OK": "TRUE"},
    }
    first, second, third, fourth = _problems(facts)
    assert "faiss-cpu 1.15 and faiss-gpu 1.15 install the same module" in first
    assert "cannot be imported" in second
    assert "8 threads on 2 processors" in third
    assert "KMP_DUPLICATE_LIB_OK" in fourth
    facts["faiss"] = {"distributions": [], "usable": True, "flavour": "GPU", "GPUs": 0}
    assert "built for GPUs and finds none" in _problems(facts)[0]
    facts["faiss"]["flavour"], facts["torch"]["GPUs"] = "CPU", ["H100"]
    assert "torch has a GPU and this FAISS has none" in _problems(facts)[0]
    monkeypatch.setattr("importlib.metadata.packages_distributions", lambda: {"faiss": ["faiss-cpu", "numpy"]})
    assert main(["doctor"]) == 0
    assert "install the same module faiss" in capsys.readouterr().out
