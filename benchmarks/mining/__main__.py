"""Trains arms over paired seeds and prints the table.

    python -m benchmarks.mining --data omniglot --preset tune --data-root DATA
    python -m benchmarks.mining --data omniglot --preset report --data-root DATA
    python -m benchmarks.mining --table

Each run is one line of ``results.jsonl`` beside this file, failed ones too; runs that are there already are not
repeated, so an interrupted series goes on. The tables are made from that file alone. One process trains one run after
the other on one thread.
"""

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks import lines
from benchmarks.mining.arms import ARMS
from benchmarks.mining.training import load, run

RESULTS = Path(__file__).with_name("results.jsonl")
TEMPERATURES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Preset:
    """What a series runs unless the command line says otherwise.

    Arguments:
        split: ``tune`` leaves the test images aside.
        arms: by name.
        temperatures: None takes each arm's best of the ``tune`` series.
        seeds: of the runs.
        steps: None for the task's.
    """

    split: str
    arms: tuple[str, ...]
    temperatures: tuple[float, ...] | None
    seeds: tuple[int, ...]
    steps: int | None = None


FAMILIES = tuple(name for name, arm in ARMS.items() if arm.family != "beyond")
PRESETS = {
    "smoke": Preset("tune", ("uniform", "hcl 1"), (0.1,), (0,), 5),
    "tune": Preset("tune", FAMILIES, TEMPERATURES, (100, 101)),
    "report": Preset("test", FAMILIES, None, tuple(range(10))),
    "fixed": Preset("test", ("uniform", "hcl 1"), (0.5,), tuple(range(10))),
}


def read() -> list[dict]:
    """All runs so far."""
    return lines.read(RESULTS)


def ranked(series: str, arm: str) -> list[float]:
    """The temperatures of an arm, the best mean recall@1 on held-out training images first."""
    values = defaultdict(list)
    for line in read():
        if line["experiment"] == f"{series}/tune" and line["config"]["arm"] == arm and line["status"] == "ok":
            values[line["config"]["temperature"]].append(line["figures"]["recall@1"])
    if not values:
        raise SystemExit(f"{arm} has no temperature yet: run --preset tune first, or pass --temperatures")
    return sorted(values, key=lambda t: (-statistics.mean(values[t]), t))


def attempt(experiment: str, config: dict, seed: int, task: object, steps: int | None) -> dict:
    """Trains once and returns the line of this run, also where it failed."""
    arm = ARMS[config["arm"]]
    if not task.by_class:
        arm = replace(arm, intra_view=True)
    line = {"experiment": experiment, "config": config, "seed": seed}
    miner = arm.miner(config["temperature"])
    line |= {"miner": "none" if miner is None else repr(miner), "iterations": steps or task.steps}
    start = time.perf_counter()
    try:
        line |= {"status": "ok", "figures": run(task, arm, config["temperature"], seed, steps)}
    except (FloatingPointError, ValueError, RuntimeError) as error:
        line |= {"status": "failed", "figures": None, "error": f"{type(error).__name__}: {error}"}
    return {
        **line,
        "seconds": round(time.perf_counter() - start, 1),
        "commit": lines.commit(),
        "versions": {"torch": torch.__version__, "kpair": version("kpair"), "threads": torch.get_num_threads()},
    }


def series(data: str, name: str, options: argparse.Namespace) -> None:
    """Runs what is missing of a preset."""
    preset = PRESETS[name]
    task = load(data, preset.split, options.data_root, options.images)
    of = f"mining/{data if task.by_class else f'{data}-{len(task.train)}'}"
    experiment = f"{of}/{name}"
    there = [(line["experiment"], line["config"], line["seed"]) for line in read()]
    for seed in options.seeds or preset.seeds:
        for arm in options.arms or preset.arms:
            temperatures = options.temperatures or preset.temperatures or ranked(of, arm)[:1]
            if options.best:
                temperatures = ranked(of, arm)[: options.best]
            for temperature in temperatures:
                config = {"arm": arm, "temperature": temperature}
                if (experiment, config, seed) in there:
                    continue
                line = attempt(experiment, config, seed, task, preset.steps)
                lines.append(RESULTS, line)
                there.append((experiment, config, seed))
                told = "failed" if line["figures"] is None else f"recall@1 {100 * line['figures']['recall@1']:.2f}"
                print(f"{name}, {arm}, {temperature}, seed {seed}: {told}, {line['seconds']} s", flush=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> str:
    """Mean and half-width of the 95 % t-interval, in points."""
    mean = 100 * statistics.mean(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {100 * lines.half_width(values):.2f}"


def difference(values: dict[int, float], reference: dict[int, float]) -> str:
    """Mean paired difference with its 95 % t-interval."""
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return ""
    text = interval([values[seed] - reference[seed] for seed in seeds])
    return f"{text if text.startswith('-') else '+' + text} ({len(seeds)})"


def by_arm(experiment: str, figure: str) -> dict[tuple[str, float], dict[int, float]]:
    """The figures of a series: by arm and temperature, then by seed."""
    values: dict[tuple[str, float], dict[int, float]] = defaultdict(dict)
    for line in read():
        if line["experiment"] == experiment and line["status"] == "ok":
            config = line["config"]
            values[config["arm"], config["temperature"]][line["seed"]] = line["figures"][figure]
    return values


def tuning_table(data: str) -> str:
    """Recall@1 on held-out alphabets: an arm a row, a temperature a column, the chosen one in bold."""
    values = by_arm(f"mining/{data}/tune", "recall@1")
    temperatures = sorted({temperature for _, temperature in values})
    rows = [("arm", *map(str, temperatures))]
    for arm in ARMS:
        if any(name == arm for name, _ in values):
            cells = []
            for temperature in temperatures:
                seeds = values.get((arm, temperature))
                text = "" if not seeds else f"{100 * statistics.mean(seeds.values()):.1f} ({len(seeds)})"
                cells.append(f"**{text}**" if temperature == ranked(f"mining/{data}", arm)[0] else text)
            rows.append((arm, *cells))
    return lines.markdown(rows)


def results_table(experiment: str, figures: tuple[str, ...]) -> str:
    """An arm and temperature a row: mean, difference to the reference at each of its temperatures, every seed."""
    of = {figure: by_arm(experiment, figure) for figure in figures}
    first = figures[0]
    head = [*figures, *(f"difference in {figure} (pairs) from the reference" for figure in figures[:2])]
    rows = [("arm", "temperature", *head, f"{first} of every seed")]
    keys = sorted(of[first], key=lambda key: (list(ARMS).index(key[0]), key[1]))
    for arm, temperature in keys:
        cells = [interval(list(of[figure][arm, temperature].values())) for figure in figures]
        references = [key for key in keys if key[0] == ARMS[arm].reference != arm]
        for figure in figures[:2]:
            values = of[figure]
            texts = [(key[1], difference(values[arm, temperature], values[key])) for key in references]
            cells.append("; ".join(f"{text} at {at}" for at, text in texts if text))
        seeds = of[first][arm, temperature]
        listed = ", ".join(f"{seed}: {100 * seeds[seed]:.1f}" for seed in sorted(seeds))
        rows.append((arm, str(temperature), *cells, listed))
    return lines.markdown(rows)


def tables() -> str:
    """Every table that has lines, and the failed runs."""
    parts = []
    for experiment in dict.fromkeys(line["experiment"] for line in read()):
        _, data, name = experiment.split("/")
        if name == "tune":
            body = tuning_table(data)
        elif data == "omniglot":
            body = results_table(experiment, ("recall@1", "map@r", "features_recall@1"))
        else:
            body = results_table(experiment, ("linear", "knn", "map@r", "instance_recall@1"))
        parts.append(f"### {data}, {name}\n\n{body}")
    failed = [line for line in read() if line["status"] != "ok"]
    parts += [
        f"failed: {line['experiment']}, {line['config']}, seed {line['seed']}: {line['error']}" for line in failed
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Runs what is missing, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("omniglot", "fashion-mnist", "cifar10"), default="omniglot")
    parser.add_argument("--preset", choices=PRESETS, default="report")
    parser.add_argument("--arms", nargs="+", choices=ARMS)
    parser.add_argument("--temperatures", nargs="+", type=float)
    parser.add_argument("--best", type=int, help="only the best so many temperatures of each arm")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--images", type=int, default=15_000, help="training images of fashion-mnist and cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    if options.table:
        print(tables())
        return
    torch.set_num_threads(1)
    series(options.data, options.preset, options)


if __name__ == "__main__":
    main()
