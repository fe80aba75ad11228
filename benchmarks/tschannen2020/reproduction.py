"""Writes docs/reproduction.md from the lines of results.jsonl: baselines, claims with verdicts, further columns.

    python -m benchmarks.tschannen2020.reproduction

Nothing on the page is typed in but what the paper says; a test compares the page with what this makes of the lines.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import lines
from benchmarks.curves import figure, holds
from benchmarks.series import recorded
from benchmarks.tschannen2020 import report
from benchmarks.tschannen2020.__main__ import EXPERIMENTS
from benchmarks.tschannen2020.runs import RESULTS, Claim, Config
from contrastive.files import write_text

__all__ = ["PAGE", "page", "verdict"]

Row = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
FIGURES = PAGE.with_name("tschannen2020")
# What the paper says of each claim; most of it is a plot without numbers.
PAPER = {
    1: "accuracy rises, by both bounds (fig. 1a, 1b)",
    2: "far below raw pixels' 85 % (fig. 1c)",
    3: "condition numbers grow over training (fig. 2, 5)",
    4: "concat: tightest I_NWJ, lowest accuracy (fig. 3, 6)",
    5: "ConvNet above MLP at equal I_EST (fig. 4a, 4b, 7)",
    6: "dependent: above 0.0204 nats; i.i.d.: not (fig. 4c)",
    8: "argued for in section 4, not shown",
}
CIFAR = {"data": "cifar10", "encoder": "pixels", "noise": 0.0}
BASELINES = (
    ("linear, raw upper half", {"data": "mnist", "encoder": "pixels", "noise": 0.0}, "about 85 %"),
    ("linear, with noise 0.05", {"data": "mnist", "encoder": "pixels", "noise": 0.05}, "about 84 %"),
    ("MLP trained with labels", {"data": "mnist", "encoder": "mlp", "objective": "labels"}, "about 94 %"),
    ("ConvNet trained with labels", {"data": "mnist", "encoder": "convnet", "objective": "labels"}, "about 94 %"),
    ("CIFAR-10, linear, upper 14 rows, colour", {**CIFAR, "grey": None}, "about 24 %"),
    ("CIFAR-10, linear, upper 14 rows, grey", {**CIFAR, "grey": True}, "about 24 %"),
    ("Fashion-MNIST, linear, raw upper half", {"data": "fashion-mnist", "encoder": "pixels", "noise": 0.0}, "none"),
    ("Fashion-MNIST, linear, with noise", {"data": "fashion-mnist", "encoder": "pixels", "noise": 0.05}, "none"),
)


def verdict(claim: Claim, values: Sequence[float]) -> str:
    """What the differences say: an interval needs two seeds, a tolerance must hold for every one.

    Arguments:
        claim: what is expected of them.
        values: one a seed.
    """
    if not values:
        return "not tested at this budget"
    if claim.expected == "always negative":
        return "reproduced" if max(values) < 0 else "NOT reproduced"
    if len(values) < 2:
        return "not tested (one seed has no interval)"
    middle, half = statistics.fmean(values), lines.half_width(values)
    low, high = middle - half, middle + half
    if claim.expected == "zero":
        if low >= -report.NEAR and high <= report.NEAR:
            return "reproduced"
        apart = low > report.NEAR or high < -report.NEAR
        return "NOT reproduced" if apart else f"undecided (the interval passes {report.NEAR:g})"
    kept = {
        "positive": low > 0,
        "negative": high < 0,
        # The claim is an absence: it falls where the interval lies on the other side altogether.
        "not positive": low <= 0,
        "not negative": high >= 0,
    }[claim.expected]
    if kept:
        return "reproduced"
    return "undecided (the interval holds 0)" if low <= 0 <= high else "NOT reproduced"


def page(rows: Sequence[Row]) -> str:
    """The whole page.

    Arguments:
        rows: all lines; those of other plans and variants are left out.
    """
    quick, full = (_of_plan(rows, preset) for preset in ("quick", "paper"))
    rounded = [row for row in rows if row["config"] in _rounded(quick)]
    return _TEXT.format(
        figures=_figures(quick, "quick"),
        full_figures=_figures(full, "paper"),
        provenance=lines.provenance([*quick, *full, *rounded]),
        baselines=lines.markdown(_baselines(quick)),
        summary=lines.markdown(_summary(quick, full)),
        claims=lines.markdown(_claims(quick, ("Fashion-MNIST", "CIFAR-10"))),
        near=report.NEAR,
        full=lines.markdown(_with_runs(_claims(full, ("CIFAR-10",)))) if full else "Not run yet.",
        hours=_hours(full),
        levels=lines.markdown(report.arms(full)) if full else "",
        products=lines.markdown(_products(quick, rounded)) if rounded else "Not run yet.",
        critics=lines.markdown(report.arms([row for row in quick if _is_of(row, "critics", "mnist")])),
        mined=lines.markdown(_mined(quick)),
        troubled="\n".join(f"- {line}" for line in report.told_troubles([*quick, *full])) or "None.",
    )


def _of_plan(rows: Sequence[Row], preset: str) -> list[Row]:
    """The lines of a preset as it is now; one whose budget was another keeps its line and is not shown."""
    plans = {
        (name, data): experiment.plan(preset, "paper", data)
        for name, experiment in EXPERIMENTS.items()
        for data in experiment.datasets
    }
    return [
        row
        for row in rows
        if any(row["config"] in plan for (name, _), plan in plans.items() if name == row["experiment"])
    ]


def _shown(rows: Sequence[Row], name: str) -> list[Row]:
    """The lines of a figure: of the data set that the paper has there."""
    return [row for row in rows if _is_of(row, name, EXPERIMENTS[name].datasets[0])]


def _picture(name: str, preset: str) -> str:
    return f"{name}.png" if preset == "quick" else f"{name}-{preset}.png"


def _figures(rows: Sequence[Row], preset: str) -> str:
    """The figures of a preset, of all experiments that have runs."""
    return "\n\n".join(
        f"![{experiment.title}]({FIGURES.name}/{_picture(name, preset)})"
        for name, experiment in EXPERIMENTS.items()
        if experiment.panels and _shown(rows, name)
    )


def _is_of(row: Row, experiment: str, data: str) -> bool:
    return bool(row["experiment"] == experiment and row["config"].get("data", data) == data)


def _rounded(rows: Sequence[Row]) -> list[Config]:
    """The configurations of lines, with products in bfloat16."""
    return [{**row["config"], "products": "bfloat16"} for row in rows if row["config"].get("products") == "float32"]


def _baselines(rows: Sequence[Row]) -> list[list[str]]:
    table = [["what", "paper", "ours", "seeds"]]
    for name, where, said in BASELINES:
        wanted = [row for row in rows if row["experiment"] in ("baselines", "architectures")]
        found = [row["test_accuracy"] for row in wanted if holds(row["config"], where) and row["status"] == "ok"]
        ours = f"{100 * statistics.fmean(found):.1f} %" if found else "not run yet"
        table.append([name, said, ours, str(len(found))])
    return table


def _claims(rows: Sequence[Row], others: Sequence[str]) -> list[list[str]]:
    """A line a claim: effect and verdict on MNIST, and on other data sets beside it."""
    table = [
        ["claim", "what", "paper", "effect", "95 % interval", "seeds", "verdict"]
        + [f"{name}: effect, seeds, verdict" for name in others]
    ]
    for name, experiment in EXPERIMENTS.items():
        for claim in experiment.claims:
            if claim.number is None or name == "cifar10":
                continue
            values = report.differences(claim, [row for row in rows if _is_of(row, name, "mnist")])
            said, words = PAPER[claim.number], verdict(claim, values)
            beside = [_beside(claim, name, rows, data) for data in others]
            table.append([str(claim.number), claim.text, said, *report.told(values), str(len(values)), words, *beside])
    exact = "exact: `python -m pytest tests/test_identity.py`, value and gradient, float64, within 1e-12"
    table.append(
        ["7", "I_NCE = log K - L, the multi-class K-pair loss", "eq. 5", exact, "", "", "reproduced"]
        + ["(no images)"] * len(others)
    )
    return [table[0], *sorted(table[1:], key=lambda line: int(line[0]))]


def _summary(quick: Sequence[Row], full: Sequence[Row]) -> list[list[str]]:
    """A line a claim: how many of its parts held, at either budget."""
    table = [["claim", "paper", "quick, MNIST", "the paper's iterations, MNIST"]]
    for number, said in PAPER.items():
        told = []
        for rows in (quick, full):
            verdicts = [
                verdict(claim, report.differences(claim, [row for row in rows if _is_of(row, name, "mnist")]))
                for name, experiment in EXPERIMENTS.items()
                for claim in experiment.claims
                if claim.number == number and name != "cifar10"
            ]
            told.append(_together(verdicts))
        table.append([str(number), said, *told])
    exact = "reproduced, exactly"
    return [table[0], *sorted([*table[1:], ["7", "eq. 5", exact, exact]], key=lambda line: int(line[0]))]


def _together(verdicts: Sequence[str]) -> str:
    """What the parts of a claim come to."""
    counts = {
        "reproduced": sum(told == "reproduced" for told in verdicts),
        "undecided": sum(told.startswith("undecided") for told in verdicts),
        "NOT reproduced": sum(told == "NOT reproduced" for told in verdicts),
        "not tested": sum(told.startswith("not tested") for told in verdicts),
    }
    if counts["not tested"] == len(verdicts):
        return "not tested"
    if counts["reproduced"] == len(verdicts):
        return "**reproduced**" if len(verdicts) == 1 else f"**reproduced**, all {len(verdicts)} parts"
    return f"of {len(verdicts)} parts " + ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _mined(rows: Sequence[Row]) -> list[list[str]]:
    """What is claimed beyond the paper: mining."""
    table = [["what", "effect", "95 % interval", "seeds", "Fashion-MNIST: effect, seeds, verdict"]]
    for claim in EXPERIMENTS["critics"].claims:
        if claim.number is None:
            values = report.differences(claim, [row for row in rows if _is_of(row, "critics", "mnist")])
            beside = _beside(claim, "critics", rows, "Fashion-MNIST")
            table.append([claim.text, *report.told(values), str(len(values)), beside])
    return table


def _with_runs(table: list[list[str]]) -> list[list[str]]:
    """Without the claims that no run is there for, on either data set."""
    return [line for line in table if line[5] != "0" or "reproduced" in line[-1] or "tested" in line[-1]]


def _beside(claim: Claim, name: str, rows: Sequence[Row], data: str) -> str:
    """What another data set says of a claim; CIFAR-10 has an experiment of its own, with claims of others."""
    if not EXPERIMENTS[name].uses_data:
        return "(no images)"
    if data == "CIFAR-10":
        if claim not in EXPERIMENTS["cifar10"].claims:
            return "(no such run)"
        name = "cifar10"
    values = report.differences(
        claim, [row for row in rows if _is_of(row, name, data.lower().replace("cifar-", "cifar"))]
    )
    return f"{report.told(values)[0]}, {len(values)}, {verdict(claim, values)}" if values else "not run yet"


def _hours(rows: Sequence[Row]) -> str:
    """What one seed of the whole MNIST set took, as far as it was run."""
    wanted = [
        (name, config)
        for name, experiment in EXPERIMENTS.items()
        if name not in ("baselines", "cifar10")
        for config in experiment.plan("paper", "paper", "mnist")
    ]
    found = [
        row
        for name, config in wanted
        for row in rows
        if row["experiment"] == name and row["config"] == config and row["seed"] == 0
    ]
    spent = sum(row["cpu_seconds"] for row in found) / 3600
    return (
        f"Of the {len(wanted)} runs of one seed on MNIST, {len(found)} are there; they took {spent:.1f} hours of one\n"
        f"core, evaluations and probes included: {spent / 2:.1f} hours on two cores."
    )


def _products(exact: Sequence[Row], rounded: Sequence[Row]) -> list[list[str]]:
    """Paired by configuration and seed: what rounding the products of training steps changes."""
    table = [["experiment", "encoder", "bound", "what", "bfloat16 - float32", "95 % interval", "pairs"]]
    pairs: dict[tuple[str, ...], list[tuple[Row, Row]]] = {}
    for row in rounded:
        as_float32 = {**row["config"], "products": "float32"}
        name = (row["experiment"], str(row["config"].get("encoder")), str(row["config"].get("objective", "")))
        for other in exact:
            if other["config"] == as_float32 and other["seed"] == row["seed"] and other["experiment"] == name[0]:
                pairs.setdefault(name, []).append((row, other))
    for name, found in pairs.items():
        for key, what in (("test_accuracy", "accuracy"), ("test_bound", "I_EST held out")):
            values = [a[key] - b[key] for a, b in found if a.get(key) is not None and b.get(key) is not None]
            if values:
                table.append([*name, what, *report.told(values), str(len(values))])
    return table


_TEXT = """# The paper, reproduced

*Written by `python -m benchmarks.tschannen2020.reproduction` from the lines of
[results.jsonl](../benchmarks/tschannen2020/results.jsonl); do not edit.* Tschannen et al., *On Mutual
Information Maximization for Representation Learning* (ICLR 2020, [arXiv
1907.13625](https://arxiv.org/abs/1907.13625)). Most of it is the preset `quick`: fewer iterations and larger
learning rates than the paper's, so directions, not levels; [the paper's own
iterations](#with-the-papers-iterations) are below, as far as they were run. How to run it, and every deviation
from the paper, numbered: [the experiments' page](../benchmarks/tschannen2020/README.md).

{provenance}

## Baselines

Accuracy on 10,000 test images, by the published probe (SAGA, C = 10, tolerance 0.1).

{baselines}

The paper's "about 24 %" on CIFAR-10 is not what its probe gives on the upper 14 rows in colour. On the same
rows turned grey (0.299 R + 0.587 G + 0.114 B) it nearly is: the published figure fits pictures without colour,
though the text speaks of three channels. `python -m benchmarks.tschannen2020.baselines --data cifar10
--data-root DATA` gives both.

## The claims

Effects are differences paired by seed (accuracies in fractions, estimates in nats, condition numbers in log10),
with 95 % t-intervals. One seed has no interval and is no test. "Near" means that the whole interval is within
{near:g} nats. Every line is a part of a claim; the claim as a whole holds where all of its parts do:

{summary}

Twenty seeds, as many as the paper has, would make an interval a fifth as wide as three do at the same spread
(t of 19 over the root of 20, 0.47 deviations, beside 2.48): at the effects seen that would decide all that is
undecided here but for what lies next to its border.

{claims}

## The figures, at the preset quick

In the paper's arrangement: means and standard deviations over seeds.

{figures}

## With the paper's iterations

The preset `paper`: 21,000 iterations at 1e-4 (figure 4c 20,000, figure 1c 4,001 of the encoder at 1e-6, CIFAR-10
63,000 at 1e-5). {hours}
Claims without a run are left out.

{full}

{levels}

{full_figures}

## Products in bfloat16

The encoders of figures 1 and 4 at full iterations are trained within autocast to bfloat16 where the processor has
instructions for it; whatever is measured is computed in float32. What that changes at the preset `quick`, by the same
seeds:

{products}

## The inner product, and mined negatives

Columns the paper argues for but does not show. I_EST held out is the honest bound, without mining, whatever was
trained.

{critics}

Paired by seed:

{mined}

## Runs that failed or left the floats

{troubled}

## Corrections to what is printed

1. The published "testing" curves of I_EST are averages over fresh training batches. Both are computed here.
2. Below the paper's eq. 4: eq. 3 normalises over y, so its optimal critic is log p(y|x) - log p(y) + c(x), not
   log p(y|x); that of eq. 4 is 1 + log p(y|x) - log p(y). Appendix D (eq. 8) normalises over x. At 2 nats and K = 64
   eq. 3 reads -0.77 with log p(y|x), 1.82 with the log ratio.
3. With dependent negatives (figure 4c) I_NWJ tends to 0.10814 nats, a KL divergence, and I_NCE with a bilinear
   critic to 0.2025; the information is 0.020411.
4. In the blog's table of bounds the denominator of NCE must run over f(x_i, y_j); Barber-Agakov pairs log q(y|x)
   with h(Y); its "tractable NCE" is the leave-one-out upper bound, in a column of lower ones.

More, each tested: [estimators](estimators.md).
"""


def main() -> None:
    """Writes the page and its figures."""
    rows = recorded(RESULTS)
    write_text(PAGE, page(rows))
    FIGURES.mkdir(exist_ok=True)
    for preset in ("quick", "paper"):
        for name, experiment in EXPERIMENTS.items():
            drawn = figure(experiment.panels, _shown(_of_plan(rows, preset), name))
            if drawn is not None:
                drawn.savefig(FIGURES / _picture(name, preset), dpi=70, metadata={"Software": None})
    print(PAGE)


if __name__ == "__main__":
    main()
