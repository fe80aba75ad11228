"""Repeats `kpair train` over seeds and arms, and prints every figure with its interval.

    python -m benchmarks.main_job --preset pilot --seeds 5 --data-root DATA

Each run is one line of ``results.jsonl`` beside this file, failed ones too; runs that are there already are not
repeated, so an interrupted series goes on. The table is made from that file alone (``--table`` makes it again).
Runs are processes of their own, one after the other: figures of memory and time are of one training each.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks import lines

RESULTS = Path(__file__).with_name("results.jsonl")

# `pilot` is the budget of the first feasibility study: 15,000 images, 4 epochs, batches of 256, a 16-32-64 network.
# `defaults` spends as many images on our own defaults (batches of 128, a 32-64-128 network).
BUDGET = ["--data", "fashion-mnist", "--limit", "15000", "--epochs", "4"]
PRESETS = {
    "pilot": [*BUDGET, "--batch-size", "256", "--encoder.widths", "[16,32,64]"],
    "defaults": BUDGET,
    "fashion-mnist": ["--data", "fashion-mnist"],
    "mnist": ["--data", "mnist"],
    "cifar10": ["--data", "cifar10"],
    "omniglot": ["--data", "omniglot"],
    "digits": ["--data", "digits"],
}
ARMS = {"uniform": [], "hcl": ["--miner", "hcl", "--miner.beta", "1"]}
FIGURES = ("knn", "linear", "mlp", "recall@1", "map@r", "instance_recall@1")


def run(preset: str, arm: str, seed: int, data_root: str | None) -> dict:
    """Trains once and returns the line of this run."""
    options = [*PRESETS[preset], *ARMS[arm], "--seed", str(seed)]
    if data_root is not None and preset != "digits":
        options += ["--data-root", data_root]
    line = {
        "experiment": f"main_job/{preset}",
        "config": {"arm": arm, "options": [*PRESETS[preset], *ARMS[arm]]},
        "seed": seed,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.perf_counter()
        command = [sys.executable, "-m", "kpair", "train", *options, "--out", str(out), "--progress", "false"]
        done = subprocess.run(command, capture_output=True, text=True)
        line |= {"status": "ok" if done.returncode == 0 else "failed", "seconds": round(time.perf_counter() - start, 1)}
        if done.returncode == 0:
            metrics = json.loads((out / "metrics.json").read_text())
            line |= {
                "iterations": metrics["training"]["steps"],
                "test_accuracy": metrics["encoder"]["linear"],
                "test_bound": metrics["bound"]["value"],
                "train_bound": None,
                **{name: metrics[name] for name in ("encoder", "untrained", "pixels", "cost")},
                "versions": {k: metrics["environment"][k] for k in ("torch", "python", "processor", "threads")},
            }
        else:
            line |= {"iterations": 0, "test_accuracy": None, "test_bound": None, "train_bound": None}
            line["error"] = done.stderr.strip().splitlines()[-1:]
            line["versions"] = {"torch": version("torch")}
    return {**line, "commit": lines.commit()}


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % t-interval, in percent."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return f"{100 * mean:5.1f}"
    return f"{100 * mean:5.1f} ± {100 * lines.half_width(values):.1f}"


def table(preset: str) -> str:
    """Every run, the means by arm, the baselines, and the paired difference of the miner."""
    runs = [line for line in lines.read(RESULTS) if line["experiment"] == f"main_job/{preset}"]
    good = [line for line in runs if line["status"] == "ok"]
    rows = [("", *FIGURES, "images/s", "peak MB", "seconds")]
    for line in good:
        cost = line["cost"]
        cells = [f"{100 * line['encoder'][f]:.1f}" for f in FIGURES if line["encoder"].get(f) is not None]
        tail = (f"{cost['images_per_second']:.0f}", f"{cost['peak_mb']:.0f}", f"{line['seconds']:.0f}")
        rows.append((f"{line['config']['arm']}, seed {line['seed']}", *cells, *tail))
    for arm in ARMS:
        of_arm = [line for line in good if line["config"]["arm"] == arm]
        if of_arm:
            cells = [interval([line["encoder"][f] for line in of_arm]) for f in FIGURES]
            rows.append((f"{arm}, mean of {len(of_arm)}", *cells, "", "", ""))
    for baseline in ("untrained", "pixels"):
        if good:
            cells = [
                interval([line[baseline][f] for line in good if line["config"]["arm"] == "uniform"]) for f in FIGURES
            ]
            rows.append((baseline, *cells, "", "", ""))
    by_seed = {arm: {line["seed"]: line["encoder"] for line in good if line["config"]["arm"] == arm} for arm in ARMS}
    paired = sorted(by_seed["uniform"].keys() & by_seed["hcl"].keys())
    if paired:
        cells = [interval([by_seed["hcl"][s][f] - by_seed["uniform"][s][f] for s in paired]) for f in FIGURES]
        rows.append((f"hcl - uniform, {len(paired)} pairs", *cells, "", "", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = "\n".join(" | ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    text += f"\ncommits: {', '.join(sorted({line['commit'] for line in good}))}"
    failed = [line for line in runs if line["status"] != "ok"]
    return text + "".join(f"\nfailed: {line['config']['arm']}, seed {line['seed']}: {line['error']}" for line in failed)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="pilot")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args()
    if not options.table:
        found = lines.read(RESULTS)
        there = [(line["experiment"], line["config"], line["seed"]) for line in found if line["status"] == "ok"]
        for seed in range(options.seeds):
            for arm in options.arms:
                config = {"arm": arm, "options": [*PRESETS[options.preset], *ARMS[arm]]}
                if (f"main_job/{options.preset}", config, seed) not in there:
                    line = run(options.preset, arm, seed, options.data_root)
                    lines.append(RESULTS, line)
                    print(f"{options.preset}, {arm}, seed {seed}: {line['status']}, {line['seconds']} s", flush=True)
    print(table(options.preset))


if __name__ == "__main__":
    main()
