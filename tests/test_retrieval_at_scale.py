"""The benchmark of retrieval at a size that does not fit the memory: a small run of it, and its table."""

from pathlib import Path

import numpy as np
import torch

from benchmarks import lines
from benchmarks.retrieval import rows
from benchmarks.retrieval.__main__ import RESULTS, table, work
from contrastive.retrieval import evaluate_retrieval


def test_the_page_shows_the_lines():
    page = RESULTS.with_name("README.md").read_text()
    assert table([line for line in lines.read(RESULTS) if line["status"] == "ok"]) in page


def test_a_small_run(tmp_path):
    found = work("exact-sample", tmp_path, 1, 0.002)
    x, labels = (np.load(tmp_path / f"2000{end}.npy") for end in ("", "-labels"))
    expected = evaluate_retrieval(x, torch.from_numpy(labels), ks=(1, 10), metrics=("recall",))
    assert found["figures"] == expected.mean
    assert found["searched"] == len(expected.queries) < found["queries"] + 1 == 2001
    assert 0.0 < found["processor_seconds"] < 600.0
    assert 0.1 < found["own_gb"] < found["resident_gb"] + 0.01
    assert sorted(Path(tmp_path).iterdir()) == [tmp_path / "2000-labels.npy", tmp_path / "2000.npy"]
    line = {"config": {"rows": 2000, "options": []}, **found, "processor_seconds": 360.0, "searched": 200}
    assert table([line]).splitlines()[2].endswith("| 1.0 (extrapolated) |")


def test_rows_are_those_of_the_seed(tmp_path):
    first, labels = (np.load(path) for path in rows.write(tmp_path / "a", 1000))
    assert np.array_equal(np.load(rows.write(tmp_path / "b", 1000)[0]), first)
    assert not np.array_equal(np.load(rows.write(tmp_path / "c", 1000, seed=1)[0]), first)
    # A class of rows lies around its centre, 1.5 times as wide as a number of one of the three Gaussians.
    spread = first - np.stack([first[labels == label].mean(0) for label in labels])
    assert abs(spread.std() - 1.5) < 0.05
