"""What a search and an evaluation need beyond their inputs: so many megabytes, however many pairs there are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from contrastive import _faiss

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of the process from /proc"),
]

PEAK = """
import json
import sys
from pathlib import Path

import torch
from contrastive import evaluate_retrieval, search

torch.set_num_threads(1)

def status(name):
    (line,) = (l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name + ":"))
    return int(line.split()[1])

def peak(run, *arguments):
    "Megabytes."
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before = status("VmRSS")
    run(*arguments)
    return (status("VmHWM") - before) / 1024

def rows(n):
    return torch.randn(n, 16), torch.arange(n) // 8
"""

OURS = """
runs = {
    "search, auto": lambda x, labels: search(x, x, 10, exclude_self=True),
    "search, torch": lambda x, labels: search(x, x, 10, exclude_self=True, backend="torch"),
    "search, euclidean": lambda x, labels: search(x, x, 10, exclude_self=True, metric="euclidean"),
    "evaluate_retrieval": lambda x, labels: evaluate_retrieval(x, labels, ks=(1, 10)),
    "evaluate_retrieval, whole": lambda x, labels: evaluate_retrieval(x, labels, metrics=("map", "mrr")),
}
if sys.argv[1] == "True":
    runs["search, faiss"] = lambda x, labels: search(x, x, 10, exclude_self=True, backend="faiss")
found = {}
for name, run in runs.items():
    run(*rows(600))  # what is imported and kept the first time
    found[name] = [peak(run, *rows(n)) for n in (4096, 16384)]
print(json.dumps(found))
"""

THEIRS = """
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k=None, device=torch.device("cpu"))
calculator.get_accuracy(*rows(600))
print(json.dumps([peak(calculator.get_accuracy, *rows(n)) for n in (1500, 3000)]))
"""


def measured(code, *words):
    # Every large block is mapped and given back: what one call frees is not there for the next.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-W", "ignore", "-c", PEAK + code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_memory_does_not_grow_with_the_pairs():
    # 16,384 rows against each other are 268 million pairs: a byte for each would be 256 MB, a float32 1 GB.
    found = measured(OURS, str(_faiss.available()))
    assert len(found) == 5 + _faiss.available()
    for name, (few, many) in found.items():
        assert many < 96, name
        assert many < few + 24, name


@pytest.mark.skipif(not _faiss.available(), reason="faiss is not installed")
def test_that_of_the_calculator_does():
    # pytorch-metric-learning, every default but k: 40 bytes for every pair, and so 4 GB for 10,000 rows.
    few, many = measured(THEIRS)
    assert many > 30 * 3000**2 / 2**20
    assert many > 3 * few


MAPPED = """
import threading
import time

from contrastive import neighbours, vectors

neighbours.BLOCK, neighbours.GALLERY_KEPT, neighbours.GALLERY_BLOCK = 2**18, 2**20, 2**20
vectors._LARGE = 2**20

class Watch(threading.Thread):
    "The most memory that is no page of a file."
    peak, over = 0, False
    def run(self):
        while not self.over:
            self.peak = max(self.peak, status("RssAnon"))
            time.sleep(0.002)

def run(path, metric):
    rows, _ = vectors.read(Path(path), mapped=True)
    return search(rows[:64], rows, 5, metric=metric, backend="torch").ids

found = {}
for metric in ("cosine", "euclidean"):
    run(sys.argv[1], metric)  # what is imported and kept the first time
    for path in sys.argv[2:]:
        watch, before = Watch(), status("RssAnon")
        watch.start()
        ids = run(path, metric)
        watch.over = True
        watch.join()
        found[f"{Path(path).name}, {metric}"] = (watch.peak - before) / 1024
        assert ids[:, 0].tolist() == list(range(64)), path
print(json.dumps(found))
"""


def test_a_file_that_is_larger_than_the_memory(tmp_path):
    # 32 MB as float32, of which a search needs blocks of 4 MB: also where they are stored in half precision, in an
    # archive, compressed, or in a table.
    pyarrow = pytest.importorskip("pyarrow", reason="the extra parquet is not installed")
    from pyarrow import parquet

    rows = np.random.default_rng(0).integers(-4, 5, size=(2**17, 64)).astype(np.float32)
    rows[:64] *= 8  # the first are the nearest to themselves by any metric
    np.save(tmp_path / "single.npy", rows)
    np.save(tmp_path / "half.npy", rows.astype(np.float16))
    np.savez(tmp_path / "archive.npz", embeddings=rows)
    for name, some in (("small.parquet", rows[:1000]), ("table.parquet", rows)):
        column = pyarrow.FixedSizeListArray.from_arrays(some.ravel(), 64)
        parquet.write_table(pyarrow.table({"embedding": column}), tmp_path / name, row_group_size=2**16)
    names = ("small.parquet", "single.npy", "half.npy", "archive.npz", "table.parquet")
    found = measured(MAPPED, *(str(tmp_path / name) for name in names))
    assert len(found) == 8
    for name, peak in found.items():
        assert peak < 16, name
