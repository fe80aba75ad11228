"""The tables and the figure of the pool bound, from ``results.jsonl`` alone.

python -m benchmarks.pool.report [--figure docs/pool.svg]
"""

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

from benchmarks.lines import half_width, markdown
from benchmarks.pool.runs import runs
from benchmarks.pool.tasks import TASKS

SCHEDULE = (2, 4, 6, 8, 10)


def oracle() -> str:
    """Exact critics."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for line in runs("oracle"):
        found.setdefault(line["config"]["task"], {})[line["config"]["arm"]] = line
    arms = ["uniform", "pool k=16", "pool k=64", "pool k=256", "whole", "smile", "nwj"]
    rows = [["task", "true", *arms, "textbook k=64"]]
    for task, by_arm in found.items():
        cells = [_value(by_arm[arm]) for arm in arms if arm in by_arm]
        truth = f"{by_arm['uniform']['config']['information']:.3f}"
        rows.append([task, truth, *cells, f"{by_arm['pool k=64']['negatives_alone']:.2f}"])
    bad = [["proposal", "I = 6", "I = 10"]]
    names = [arm for arm in found.get("gaussian-10", {}) if arm.startswith("pool")]
    bad += [[arm, *(_value(found[f"gaussian-{i}"][arm]) for i in (6, 10))] for arm in names]
    return f"{markdown(rows)}\n\n{markdown(bad)}"


def _value(line: dict[str, Any]) -> str:
    if line["status"] != "ok":
        return "failed"
    return f"{line['value']:.2f} ({line['spread_of_a_batch']:.2f})"


def over_seeds(experiment: str, figures: dict[str, str], by: tuple[str, ...]) -> str:
    """Means over seeds with the half-width of a t-interval; failed runs are counted."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in in_order(runs(experiment)):
        groups.setdefault(tuple(line["config"][key] for key in by), []).append(line)
    rows = [[*by, "seeds", *figures]]
    for key, found in groups.items():
        good = [run for run in found if run["status"] == "ok"]
        seeds = ", ".join(str(run["seed"]) for run in good) + (f"; {len(found) - len(good)} failed" * (good != found))
        named = [f"{part:.3g}" if isinstance(part, float) else str(part) for part in key]
        rows.append([*named, seeds, *(_mean([run[f] for run in good], format_) for f, format_ in figures.items())])
    return markdown(rows)


def in_order(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of tasks in the order of `TASKS`, others as they are."""
    order = list(TASKS)
    return sorted(found, key=lambda line: order.index(line["config"]["task"]) if "task" in line["config"] else 0)


def noise() -> str:
    """The noise of gradients, a task a row."""
    found = [line for line in in_order(runs("noise")) if line["status"] == "ok"]
    ways = list(found[0]["gradient_noise"]) if found else []
    rows = [[line["config"]["task"], *(f"{line['gradient_noise'][way]:.1f}" for way in ways)] for line in found]
    return markdown([["task", *ways], *rows])


def spreads() -> str:
    """Value and deviation over batches of critics trained in pools; last, SMILE of the critic trained for it."""
    named = ("uniform", "pool_4096", "pool_16384", "whole_4096", "smile", "nwj")
    found = [line for line in in_order(runs("trained")) if line["status"] == "ok" and "uniform_spread" in line]
    of = {(line["config"]["task"], line["seed"], line["config"]["arm"]): line for line in found}
    rows = [["task", "seed", *named, "smile of its own"]]
    for (task, seed, arm), line in of.items():
        if arm == "pool":
            own = of.get((task, seed, "smile"))
            cells = [_with_spread(line, name) for name in named]
            rows.append([task, str(seed), *cells, _with_spread(own, "smile") if own else ""])
    return markdown(rows)


def _with_spread(line: dict[str, Any], name: str) -> str:
    value, spread = line[name], line[f"{name}_spread"]
    return f"{value:{_spec(value, '.2f')}} ({spread:{_spec(spread, '.2f')}})"


def _spec(value: float, spec: str) -> str:
    """As it is wanted, but of an exponential of what a heavy tail scores."""
    return ".1e" if abs(value) > 1e5 else spec


def _mean(values: list[float], spec: str) -> str:
    if not values:
        return ""
    scale = 100 if spec.endswith("%") else 1
    mean = scale * statistics.fmean(values)
    spec = _spec(mean, spec.rstrip("%"))
    half = f" ± {scale * half_width(values):{spec}}" if len(values) > 1 else ""
    return f"{mean:{spec}}{half}"


def figure(path: Path) -> None:
    """The Gaussian schedule: what each estimate reads beside what is true."""
    import matplotlib.pyplot as plt

    found = {(line["config"]["information"], line["config"]["arm"]): line for line in runs("oracle")}
    shown = {
        "uniform": ("InfoNCE, K = 64", "#888888", "o"),
        "smile": ("SMILE (no bound)", "#d95f02", "^"),
        "nwj": ("NWJ", "#7570b3", "s"),
        "whole": ("InfoNCE against all 16,384", "#1b9e77", "D"),
        "pool k=64": ("64 of 16,384 by a known proposal", "#e7298a", "o"),
    }
    plt.rcParams["svg.hashsalt"] = "kpair"
    plot, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    axes.plot([0, 12], [0, 12], color="black", lw=1, label="the truth")
    for level, name in ((64, "log 64"), (16_384, "log 16,384")):
        axes.axhline(math.log(level), color="#bbbbbb", lw=1, ls=":")
        axes.text(10.6, math.log(level), name, color="#777777", fontsize=9, va="center")
    for arm, (label, colour, marker) in shown.items():
        schedule = [found[float(i), arm] for i in SCHEDULE]
        large = arm == "whole"
        axes.errorbar(
            SCHEDULE,
            [run["value"] for run in schedule],
            [run["spread_of_a_batch"] for run in schedule],
            label=label,
            color=colour,
            marker=marker,
            ms=9 if large else 5,
            mfc="none" if large else colour,
            lw=1.5,
            capsize=3,
        )
    axes.set(xlim=(1.5, 10.5), ylim=(0, 14), xlabel="true mutual information, nats", ylabel="estimate, nats")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    plot.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="writes it too")
    given = parser.parse_args()
    print(oracle(), "\n")
    bounds = {"uniform": ".2f", "pool_4096": ".2f", "pool_16384": ".2f", "whole_4096": ".2f"}
    extra = {"smile": ".2f", "nwj": ".2f", "nwj_spread": ".1f"}
    print(over_seeds("trained", bounds | extra, ("task", "information", "arm")), "\n")
    print(spreads(), "\n")
    print(noise())
    halves = {"test_bound": ".2f", "pool": ".2f", "whole": ".2f", "negatives_alone": ".2f"}
    print("\n" + over_seeds("halves", halves, ("arm",)), "\n")
    percents = {"test_accuracy": ".1f%", "knn": ".1f%", "recall@1": ".1f%", "instance_recall@1": ".1f%"}
    nats = {"test_bound": ".2f", "test_bound_whole": ".2f", "iterations": ".0f"}
    print(over_seeds("images", percents | nats, ("arm", "temperature", "seconds")))
    if given.figure:
        figure(given.figure)


if __name__ == "__main__":
    main()
