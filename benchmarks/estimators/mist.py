"""Beside torch-mist in one process: accuracy on exact tasks, and time, by turns.

    python -m benchmarks.estimators.mist [--seeds 1]
    python -m benchmarks.estimators.mist --table

Needs torch-mist (extra `bench`; it asks for numpy below 2). Same 8,000 pairs, same 2,000 held out, batches of 128,
towers of two layers of 256, 32 wide, Adam at 5e-4 (the default of both), at most 400 steps; each library stops by its
own rule. torch-mist runs at its defaults (one negative a pair but for InfoNCE) and with all other pairs of the batch as
negatives, and its better figure counts. Times are processor times of one thread: 100 steps without validation.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import lines
from contrastive import estimate_mi
from contrastive.catalogue import INFONCE, NWJ, SMILE, Estimator
from contrastive.tasks import all_tasks

RESULTS = Path(__file__).with_name("results.jsonl")
TASKS = ("gaussian-2", "sparse-5-spiral", "1v1-additive-0.1", "gaussian-6")
ESTIMATORS: dict[str, Estimator] = {"infonce": INFONCE, "nwj": NWJ, "smile": SMILE}
PACKAGES = ("torch", "kpair", "torch-mist", "numpy")
TRAINED, HELD_OUT, PAIRS, STEPS = 8000, 2000, 128, 400


def ours(x: Tensor, y: Tensor, name: str, seed: int, **options: Any) -> float:
    """The value of this library on the 2,000 held-out pairs: it splits as `theirs` does, by the same permutation."""
    settings: dict[str, Any] = {"steps": STEPS, "pairs": PAIRS, "validation": 0.08, "held_out": 0.2, "every": 50}
    return estimate_mi(x, y, ESTIMATORS[name], seed=seed, **(settings | options)).value


def theirs(
    x: Tensor, y: Tensor, name: str, seed: int, *, defaults: bool, steps: int = STEPS, stop: bool = True
) -> float:
    """The held-out value of torch-mist."""
    from torch_mist import estimate_mi as estimate

    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    trained, held = order[:TRAINED], order[TRAINED:]
    options: dict[str, Any] = {} if defaults else {"neg_samples": 0 if name == "infonce" else -1}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        found = estimate(
            (x[trained], y[trained]),
            name,
            test_data=(x[held], y[held]),
            valid_percentage=0.1 if stop else 0.0,
            max_iterations=steps,
            batch_size=PAIRS,
            early_stopping=stop,
            fast_train=not stop,
            verbose=False,
            logger=False,
            hidden_dims=[256, 256],
            k_dim=32,
            critic_type="separable",
            **options,
        )
    return float(found if not isinstance(found, tuple) else found[0])


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """A value and the processor time that it took."""
    start = time.process_time()
    value = work()
    return value, time.process_time() - start


def accuracy(task_name: str, name: str, seed: int) -> dict[str, Any]:
    """Both libraries on one draw; who goes first changes with the seed."""
    torch.manual_seed(1000 + seed)
    task = all_tasks()[task_name]
    x, y = task.draw(TRAINED + HELD_OUT)
    ways = {
        "kpair": lambda: ours(x, y, name, seed),
        "torch-mist": lambda: theirs(x, y, name, seed, defaults=True),
        "torch-mist, all negatives": lambda: theirs(x, y, name, seed, defaults=False),
    }
    found: dict[str, Any] = {"information": task.information}
    for way in list(ways)[:: 1 if seed % 2 == 0 else -1]:
        value, seconds = timed(ways[way])
        found[way] = {"value": round(value, 4), "seconds": round(seconds, 2)}
    return found


def speed(name: str, rounds: int = 3, steps: int = 100) -> dict[str, Any]:
    """Milliseconds a step, by turns, without validation or early end; evaluation is within."""
    torch.manual_seed(0)
    x, y = all_tasks()["gaussian-2"].draw(TRAINED + HELD_OUT)
    ways = {
        "kpair": lambda: ours(x, y, name, 0, steps=steps, validation=0.0),
        "torch-mist": lambda: theirs(x, y, name, 0, defaults=True, steps=steps, stop=False),
        "torch-mist, all negatives": lambda: theirs(x, y, name, 0, defaults=False, steps=steps, stop=False),
    }
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, work in ways.items():
            taken[way].append(1000 * timed(work)[1] / steps)
    return {way: [round(t, 3) for t in times] for way, times in taken.items()}


def table() -> str:
    """Errors of both libraries, and milliseconds a step."""
    runs = [line for line in lines.read(RESULTS) if line["experiment"] == "mist"]
    ways = ("kpair", "torch-mist", "torch-mist, all negatives")
    rows = [["task", "true", "estimator", "seeds", *ways, *(f"{way}, s" for way in ways)]]
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in runs:
        cells.setdefault((line["config"]["task"], line["config"]["estimator"]), []).append(line)
    errors: dict[str, list[float]] = {way: [] for way in (*ways, "the peer's better")}
    for (task, name), group in cells.items():
        good = [line for line in group if line["status"] == "ok"]
        if not good:
            rows.append([task, "", name, "failed", *[""] * 6])
            continue
        truth = good[0]["information"]
        mean = {way: statistics.fmean(line[way]["value"] for line in good) for way in ways}
        for way in ways:
            errors[way].append(abs(mean[way] - truth))
        errors["the peer's better"].append(min(abs(mean[way] - truth) for way in ways[1:]))
        seconds = [f"{statistics.median(line[way]['seconds'] for line in good):.1f}" for way in ways]
        rows.append([task, f"{truth:.2f}", name, str(len(good)), *(f"{mean[way]:.2f}" for way in ways), *seconds])
    summary = [["mean absolute error", *errors], ["", *(f"{statistics.fmean(e):.3f}" for e in errors.values())]]
    fast = [["ms a step (quartiles)", *ways, "times as fast as the peer's faster"]]
    for line in lines.read(RESULTS):
        if line["experiment"] == "mist speed" and line["status"] == "ok":
            middle = {way: statistics.quantiles(line[way], n=4) for way in ways}
            ratio = min(middle[way][1] for way in ways[1:]) / middle["kpair"][1]
            fast.append(
                [
                    line["config"]["estimator"],
                    *(f"{middle[way][1]:.2f} [{middle[way][0]:.2f}, {middle[way][2]:.2f}]" for way in ways),
                    f"{ratio:.1f}",
                ]
            )
    return "\n\n".join(lines.markdown(part) for part in (rows, summary, fast))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.table:
        print(table())
        return
    for name in ESTIMATORS:
        lines.run(RESULTS, "mist speed", {"estimator": name}, 0, lambda n=name: speed(n), packages=PACKAGES)
    for seed in range(given.seeds):
        for task in TASKS:
            for name in ESTIMATORS:
                config = {"task": task, "estimator": name}
                work = lambda t=task, n=name, s=seed: accuracy(t, n, s)  # noqa: E731
                lines.run(RESULTS, "mist", config, seed, work, packages=PACKAGES)


if __name__ == "__main__":
    main()
