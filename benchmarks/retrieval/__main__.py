"""``python -m benchmarks.retrieval --folder DIR``: `kpair evaluate` of a million and of ten million rows of 128."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lines import markdown, read, run
from benchmarks.retrieval import rows

RESULTS = Path(__file__).with_name("results.jsonl")

# Rows, and the options of the command.
WORK: dict[str, tuple[int, list[str]]] = {
    "exact-sample": (10**6, ["--sample", "20000"]),
    "exact": (10**6, []),
    "ivf": (10**7, ["--backend", "IVF2048,PQ128x4fs", "--nprobe", "64", "--sample", "5000"]),
}


def measured(words: list[str], threads: int) -> dict[str, Any]:
    """Seconds and memory of a command: the process' own, and the pages of files that the kernel lends it."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    peaks = {"RssAnon": 0, "RssFile": 0, "VmHWM": 0}
    before, start = os.times(), time.perf_counter()
    process = subprocess.Popen(words, env=environment)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status")
        try:
            found = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except (OSError, ValueError):
            continue
        for name in peaks:
            peaks[name] = max(peaks[name], int(found.get(name, "0 kB").split()[0]))
        time.sleep(0.2)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds_of_command": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "own_gb": round(peaks["RssAnon"] / 1e6, 2),
        "mapped_gb": round(peaks["RssFile"] / 1e6, 2),
        "resident_gb": round(peaks["VmHWM"] / 1e6, 2),
    }


def work(name: str, folder: Path, threads: int, scale: float) -> dict[str, Any]:
    """One evaluation: its figures, and what it took."""
    count, options = WORK[name]
    count = int(count * scale)
    embeddings, labels = rows.write(folder, count)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        out = Path(place, "figures.json")
        words = ["evaluate", str(embeddings), "--labels", str(labels), "--k", "1,10", "--metrics", "recall", *options]
        took = measured([sys.executable, "-m", "kpair", *words, "--json", str(out), "--progress", "true"], threads)
        found = json.loads(out.read_text())
    kept = ("figures", "intervals", "index_recall", "queries", "searched", "excluded")
    return {"gb": round(embeddings.stat().st_size / 1e9, 2), **took, **{key: found[key] for key in kept}}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """A run a row. What all queries would take is the time of the sample, multiplied: its fixed part as well.

    Arguments:
        lines: of `RESULTS`.
    """
    head = ["rows", "options", "queries", "recall@10, %", "neighbours found, %", "CPU minutes", "own GB", "resident GB"]
    found = [(*head, "all queries, CPU hours")]
    for line in lines:
        low, high = line["intervals"]["recall@10"]
        exact, minutes = line["index_recall"] is None, line["processor_seconds"] / 60
        hours = minutes / 60 * line["queries"] / line["searched"]
        found.append(
            (
                f"{line['config']['rows']:,}",
                f"`{' '.join(line['config']['options'])}`" if line["config"]["options"] else "",
                f"{line['searched']:,}",
                f"{100 * line['figures']['recall@10']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                "100, exact" if exact else f"{100 * line['index_recall']:.1f}",
                f"{minutes:.1f}",
                f"{line['own_gb']:.1f}",
                f"{line['resident_gb']:.1f}",
                f"{hours:.1f} (extrapolated)" if exact and line["searched"] < line["queries"] else "",
            )
        )
    return markdown(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where the rows are written, 0.5 and 5.1 GB; none: print the table")
    parser.add_argument("--work", choices=list(WORK), nargs="+", default=["exact-sample", "ivf"])
    parser.add_argument("--threads", type=int, default=1, help="of OpenMP")
    parser.add_argument("--scale", type=float, default=1.0, help="times as many rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.folder is None:
        print(table([line for line in read(arguments.out) if line["status"] == "ok"]))
        return
    for name in arguments.work:
        config = {"rows": int(WORK[name][0] * arguments.scale), "options": WORK[name][1], "threads": arguments.threads}
        run(
            arguments.out,
            name,
            config,
            0,
            lambda name=name: work(name, arguments.folder, arguments.threads, arguments.scale),
            packages=("torch", "faiss-cpu", "kpair"),
        )


if __name__ == "__main__":
    main()
