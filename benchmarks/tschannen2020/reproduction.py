"""Writes docs/reproduction.md from the lines of results.jsonl: baselines, claims with verdicts, further columns.

    python -m benchmarks.tschannen2020.reproduction

Every figure of ours is counted from the lines; a test compares the page with what this makes of them.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from benchmarks import lines
from benchmarks.curves import figure, holds
from benchmarks.series import recorded
from benchmarks.tschannen2020 import report
from benchmarks.tschannen2020.__main__ import EXPERIMENTS
from benchmarks.tschannen2020.claims import (
    NEAR,
    Claim,
    Differences,
    by_converged_probe,
    figure_of,
    in_words,
    judged,
    mean_and_interval,
    on_training_batches,
    short,
    twins,
    with_seeds,
)
from benchmarks.tschannen2020.runs import RESULTS, Config
from contrastive import InnerProduct
from contrastive.files import write_text
from contrastive.testing import assert_identity

__all__ = ["PAGE", "page"]

Row = dict[str, Any]
PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
FIGURES = PAGE.with_name("tschannen2020")
# What the paper says of each claim; most of it is a plot without numbers.
PAPER = {
    1: "accuracy rises, by both bounds, though the encoder loses nothing (figures 1a, 1b)",
    2: "an encoder that loses nothing falls far below raw pixels' 85 % (figure 1c)",
    3: "condition numbers grow over training, as I_EST and accuracy do (figures 2, 5)",
    4: "by I_NWJ the concatenated critic has the higher estimate and the lower accuracy than the bilinear one; I_NCE "
    "of all is near its cap, log 128 = 4.85 nats (figures 3, 6)",
    5: "at equal I_EST, 2 or 4 nats, met after about 7,000 iterations, the ConvNet is more accurate than the MLP; with "
    "labels both get about 94 % (figures 4a, 4b, 7)",
    6: "with dependent negatives both estimates pass the information, 0.0204 nats; with independent ones they do not "
    "(figure 4c)",
    7: "I_NCE is the multi-class K-pair loss (equation 5)",
    8: "without parameters, as the inner product, the bound is weak, and the representation is not worse for it "
    "(argued for in section 4, without a figure)",
}
README = Path(__file__).with_name("README.md")
CIFAR = {"data": "cifar10", "encoder": "pixels", "noise": 0.0}
FASHION = {"data": "fashion-mnist", "encoder": "pixels"}
BASELINES = (
    ("linear, raw upper half", {"data": "mnist", "encoder": "pixels", "noise": 0.0}, "about 85 %"),
    ("linear, with noise 0.05", {"data": "mnist", "encoder": "pixels", "noise": 0.05}, "about 84 %"),
    ("MLP trained with labels", {"data": "mnist", "encoder": "mlp", "objective": "labels"}, "about 94 %"),
    ("ConvNet trained with labels", {"data": "mnist", "encoder": "convnet", "objective": "labels"}, "about 94 %"),
    ("CIFAR-10, linear, upper 14 rows, colour", {**CIFAR, "grey": None}, "about 24 %"),
    ("CIFAR-10, linear, upper 14 rows, grey", {**CIFAR, "grey": True}, "about 24 %"),
    ("Fashion-MNIST, linear, raw upper half", {**FASHION, "noise": 0.0}, "none"),
    ("Fashion-MNIST, linear, with noise", {**FASHION, "noise": 0.05}, "none"),
    ("Fashion-MNIST, MLP trained with labels", {**FASHION, "encoder": "mlp", "objective": "labels"}, "none"),
    ("Fashion-MNIST, ConvNet trained with labels", {**FASHION, "encoder": "convnet", "objective": "labels"}, "none"),
)


def page(rows: Sequence[Row]) -> str:
    """The whole page.

    Arguments:
        rows: all lines; those of other plans and variants are left out.
    """
    quick, full = (_of_plan(rows, preset) for preset in ("quick", "paper"))
    shown = [*quick, *full]
    # A processor may have computed in float32 all the same: then the line says so.
    rounded = _ordered([row for row in rows if row.get("rounded", True)], {"": _rounded(quick)})
    return _TEXT.format(
        provenance=lines.provenance([*shown, *rounded]),
        baselines=lines.markdown(_baselines(shown)),
        summary=lines.markdown(_summary(shown)),
        near=NEAR,
        other_probe=_changed(shown, by_converged_probe),
        other_batches=_changed(shown, on_training_batches),
        outlook=_outlook(shown),
        claims=_sections(shown),
        figures=_levels(quick, "quick"),
        hours=_hours(full),
        levels=_levels(full, "paper"),
        fashion=_levels(quick, "quick", "fashion-mnist"),
        products=lines.markdown(_products(quick, rounded)) if rounded else "Not run yet.",
        mined=lines.markdown(_mined(shown)),
        troubled=_troubled([*shown, *rounded]),
        deviations=_deviations(),
    )


def _deviations() -> str:
    """The list of the experiments' page, which is kept there."""
    _, heading, after = README.read_text(encoding="utf-8").partition("## Deviations from the paper, numbered\n\n")
    assert heading, f"{README} has lost its list of deviations"
    return after.partition("\n\n## ")[0].replace("](#", "](../benchmarks/tschannen2020/README.md#")


def _of_plan(rows: Sequence[Row], preset: str) -> list[Row]:
    """The lines of a preset as it is now; one whose budget was another keeps its line and is not shown."""
    plans = {
        name: [config for data in experiment.datasets for config in experiment.plan(preset, "paper", data)]
        for name, experiment in EXPERIMENTS.items()
    }
    return _ordered(rows, plans)


def _ordered(rows: Sequence[Row], plans: dict[str, list[Config]]) -> list[Row]:
    """The lines of these configurations, in their order, seed by seed; the name "" is of any experiment."""
    return [
        row
        for name, plan in plans.items()
        for i, config in enumerate(plan)
        if config not in plan[:i]  # figure 4c has no images, so one plan for all data sets
        for row in sorted(rows, key=lambda row: int(row["seed"]))
        if row["config"] == config and name in ("", row["experiment"])
    ]


def _shown(rows: Sequence[Row], name: str) -> list[Row]:
    """The lines of a figure: of the data set that the paper has there."""
    return [row for row in rows if _is_of(row, name, EXPERIMENTS[name].datasets[0])]


def _picture(name: str, preset: str) -> str:
    return f"{name}.png" if preset == "quick" else f"{name}-{preset}.png"


def _is_of(row: Row, experiment: str, data: str) -> bool:
    return bool(row["experiment"] == experiment and row["config"].get("data", data) == data)


def _rounded(rows: Sequence[Row]) -> list[Config]:
    """The configurations of lines, with products in bfloat16."""
    return [{**row["config"], "products": "bfloat16"} for row in rows if row["config"].get("products") == "float32"]


def _baselines(rows: Sequence[Row]) -> list[list[str]]:
    """By preset: with the paper's iterations labels are learnt for longer."""
    table = [["what", "paper", "quick (seeds)", "quick, converged probe", "the paper's iterations (seeds)"]]
    for name, where, said in BASELINES:
        wanted = [
            row
            for row in rows
            if row["experiment"] in ("baselines", "architectures")
            and holds(row["config"], where)
            and row["status"] == "ok"
        ]
        quick, full = ([row for row in wanted if row["config"]["preset"] == preset] for preset in ("quick", "paper"))
        trained = where["encoder"] != "pixels"
        probed = f"{100 * _mean_of(quick, 'converged_accuracy'):.1f} %" if quick else ""
        table.append([name, said, _percent(quick), probed, _percent(full) if trained else "the same"])
    return table


def _mean_of(rows: Sequence[Row], name: str) -> float:
    return statistics.fmean(cast(float, figure_of(row, name)) for row in rows)


def _percent(rows: Sequence[Row]) -> str:
    return f"{100 * _mean_of(rows, 'test_accuracy'):.1f} % ({len(rows)})" if rows else "not run yet"


# What stands side by side: a head, the preset, the data set.
COLUMNS = (
    ("quick", "quick", "mnist"),
    ("the paper's iterations", "paper", "mnist"),
    ("Fashion-MNIST, quick", "quick", "fashion-mnist"),
    ("CIFAR-10, quick", "quick", "cifar10"),
    ("CIFAR-10, the paper's iterations", "paper", "cifar10"),
)


def _parts(number: int) -> list[tuple[str, Claim]]:
    """The parts of a claim and the experiments that test them; CIFAR-10's repeat others'."""
    return [
        (name, claim)
        for name, experiment in EXPERIMENTS.items()
        for claim in experiment.claims
        if claim.number == number and name != "cifar10"
    ]


def _experiment_on(claim: Claim, name: str, data: str) -> str | None:
    """Which experiment tests a claim on a data set; None where there is none."""
    if data == "cifar10":
        return data if claim in EXPERIMENTS[data].claims else None
    return name if data == "mnist" or EXPERIMENTS[name].uses_data else None


def _rows_of(claim: Claim, name: str, rows: Sequence[Row], preset: str, data: str) -> list[Row]:
    """The lines that test it."""
    on = _experiment_on(claim, name, data)
    return [row for row in rows if on and row["config"]["preset"] == preset and _is_of(row, on, data)]


def _sections(rows: Sequence[Row]) -> str:
    """Every claim with its parts, data sets and budgets side by side."""
    return "\n\n".join(
        f"### Claim {number}\n\nThe paper: {said}.\n\n{lines.markdown(_section(number, rows))}"
        for number, said in PAPER.items()
    )


def _section(number: int, rows: Sequence[Row]) -> list[list[str]]:
    if number == 7:
        return [["part", "verdict"], ["I_NCE = log K - L, the multi-class K-pair loss", f"{_identity()}: reproduced"]]
    asked = [(name, claim, each) for name, claim in _parts(number) for each in twins(claim)]
    columns = [
        [_cell(each, _rows_of(claim, name, rows, preset, data)) for name, claim, each in asked]
        for _, preset, data in COLUMNS
    ]
    shown = [(head, cells) for (head, *_), cells in zip(COLUMNS, columns, strict=True) if any(cells)]
    parts = [[each.text, *cells] for (*_, each), *cells in zip(asked, *(cells for _, cells in shown), strict=True)]
    return [["part", *(head for head, _ in shown)], *parts]


def _cell(claim: Claim, rows: Sequence[Row]) -> str:
    """Mean difference, half its interval, seeds, verdict; nothing where no run is."""
    found, middle, _, words = in_words(claim, rows)
    if not found.values and not found.lost:
        return ""
    seeds = f"{len(found.values)}" + (f" of {len(found.values) + found.lost}" if found.lost else "")
    if not found.values:
        return words
    spread = len(found.values) > 1 and claim.expected != "always negative"
    half = f" ± {short(lines.half_width(found.values))}" if spread else ""
    return f"{middle}{half} ({seeds}): {words}"


def _identity() -> str:
    """Claim 7 needs no training: value and gradient, here and now."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(32, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    assert_identity(InnerProduct(), x, y)
    return "value and gradient, float64, within 1e-12 (`python -m pytest tests/test_identity.py`: every critic)"


def _verdicts(number: int, rows: Sequence[Row], preset: str) -> list[tuple[Claim, Differences, str]]:
    """Of all parts of a claim, its conditions among them, on MNIST."""
    return [(claim, *judged(claim, _rows_of(claim, name, rows, preset, "mnist"))) for name, claim in _parts(number)]


def _summary(rows: Sequence[Row]) -> list[list[str]]:
    """A line a claim: its main effects, and how many of its parts held, at either budget."""
    table = [["claim", "the paper says", "quick, MNIST", "the paper's iterations, MNIST"]]
    for number, said in PAPER.items():
        cells = (
            ["**reproduced**, exactly"] * 2 if number == 7 else [_total(number, rows, p) for p in ("quick", "paper")]
        )
        table.append([str(number), said, *cells])
    return table


def _total(number: int, rows: Sequence[Row], preset: str) -> str:
    """Of a claim the verdict over its parts, then its main effects."""
    verdicts = _verdicts(number, rows, preset)
    parts = _together([words for claim, _, words in verdicts if not claim.condition])
    conditions = [words for claim, _, words in verdicts if claim.condition]
    if conditions:
        parts += f" (of {len(conditions)} conditions {conditions.count('reproduced')} met)"
    cells = [
        f"{claim.text}: {_cell(claim, _rows_of(claim, name, rows, preset, 'mnist')) or 'not run'}"
        for name, claim in _parts(number)
        if claim.main
    ]
    return ".<br>".join([parts, *cells])


def _together(verdicts: Sequence[str]) -> str:
    """What the parts of a claim come to."""
    kinds = ("reproduced", "undecided", "NOT reproduced", "not tested")
    counts = {kind: sum(words.startswith(kind) for words in verdicts) for kind in kinds}
    if counts["not tested"] == len(verdicts):
        return "not tested"
    if counts["reproduced"] == len(verdicts):
        return "**reproduced**" if len(verdicts) == 1 else f"**reproduced**, all {len(verdicts)} parts"
    return f"of {len(verdicts)} parts " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def _outlook(rows: Sequence[Row]) -> str:
    """What twenty seeds would add: the verdicts of undecided parts, if means and deviations stayed what they are."""
    sentences = []
    for preset, name in (("quick", "at quick"), ("paper", "with the paper's iterations")):
        open_ = [
            (claim, found)
            for number in PAPER
            for claim, found, words in _verdicts(number, rows, preset)
            if words.startswith("undecided") and not claim.condition
        ]
        then = [with_seeds(claim, found, 20).partition(" (")[0] for claim, found in open_ if not found.lost]
        counts = {kind: then.count(kind) for kind in ("reproduced", "NOT reproduced", "undecided")}
        known = [f"{count} would be {kind}" for kind, count in counts.items() if count]
        if len(then) < len(open_):
            known.append(f"{len(open_) - len(then)} have lost runs")
        parts = f"{len(open_)} undecided part{'s' * (len(open_) != 1)}"
        sentences.append(f"of {parts} {name} {', '.join(known) or 'nothing is left'}")
    return ";\n".join(sentences)


def _changed(rows: Sequence[Row], other: Callable[[Claim], Claim | None]) -> str:
    """The parts on MNIST whose verdict is another by their twin."""
    items = []
    for number in PAPER:
        for name, claim in _parts(number):
            for preset, budget in (("quick", "quick"), ("paper", "the paper's iterations")):
                twin, own = other(claim), _rows_of(claim, name, rows, preset, "mnist")
                if twin is None or not own:
                    continue
                before, after = judged(claim, own)[1], judged(twin, own)[1]
                if before != after:
                    some = own[0]["config"].get("probe_rows") if other is by_converged_probe else None
                    images = f", of {some:,} training images," if some else ""
                    how = twin.text.removeprefix("the same, ")
                    items.append(f"- claim {number}, {claim.text} ({budget}): {before}; {how}{images} {after}.")
    return "\n".join(items) or "- none."


def _mined(rows: Sequence[Row]) -> list[list[str]]:
    """What is claimed beyond the paper: mining."""
    asked = [(claim, each) for claim in EXPERIMENTS["critics"].claims if claim.number is None for each in twins(claim)]
    columns = [column for column in COLUMNS if column[2] != "cifar10"]
    return [
        ["what", *(head for head, *_ in columns)],
        *([each.text, *(_effect(claim, each, rows, *column) for _, *column in columns)] for claim, each in asked),
    ]


def _effect(claim: Claim, asked: Claim, rows: Sequence[Row], preset: str, data: str) -> str:
    return _cell(asked, _rows_of(claim, "critics", rows, preset, data)).partition(":")[0] or "not run"


def _levels(rows: Sequence[Row], preset: str, data: str | None = None) -> str:
    """Of every experiment what its arms came to, and its figure; without one on another data set than the paper's."""
    parts = []
    for name, experiment in EXPERIMENTS.items():
        own = _shown(rows, name)
        if data:  # figure 4c, which has no images, is on no other
            own = [row for row in rows if row["experiment"] == name and row["config"].get("data") == data]
        if own:
            picture = f"![{experiment.title}]({FIGURES.name}/{_picture(name, preset)})"
            parts += [
                f"**{experiment.title}**",
                lines.markdown(report.arms(own)),
                *([picture] if experiment.panels and not data else []),
            ]
    return "\n\n".join(parts) or "Not run yet."


def _troubled(rows: Sequence[Row]) -> str:
    """A line a run, with its preset."""
    return "\n".join(
        f"- {row['config']['preset']}, {line}" for row in rows for line in report.told_troubles([row])
    ) or "None."  # fmt: skip


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
    spent, wall = (sum(row[key] for row in found) / 3600 for key in ("cpu_seconds", "seconds"))
    return (
        f"Of the {len(wanted)} runs of one\n"
        f"seed (MNIST and figure 4c) {len(found)} are there, of seed 0: {spent:.1f} hours of processor time, one\n"
        f"core a run, {wall:.1f} by the clock if one followed another, evaluations and probes included."
    )


def _products(exact: Sequence[Row], rounded: Sequence[Row]) -> list[list[str]]:
    """Paired by configuration and seed: what rounding the products of training steps changes."""
    table = [["experiment", "encoder", "bound", "what", "bfloat16 - float32", "95 % interval", "seeds"]]
    pairs: dict[tuple[str, ...], list[tuple[Row, Row]]] = {}
    for row in rounded:
        as_float32 = {**row["config"], "products": "float32"}
        target = row["config"].get("target")
        bound = str(row["config"].get("objective", "")) + (f", target {target:g}" if target else "")
        name = (row["experiment"], str(row["config"].get("encoder")), bound)
        for other in exact:
            if other["config"] == as_float32 and other["seed"] == row["seed"] and other["experiment"] == name[0]:
                pairs.setdefault(name, []).append((row, other))
    for name, found in pairs.items():
        for key, what in (("test_accuracy", "accuracy"), ("test_bound", "I_EST held out")):
            values = [a[key] - b[key] for a, b in found if a.get(key) is not None and b.get(key) is not None]
            if values:
                table.append([*name, what, *mean_and_interval(values), str(len(values))])
    return table


_TEXT = """# The paper, reproduced

*Written by `python -m benchmarks.tschannen2020.reproduction` from the lines of
[results.jsonl](../benchmarks/tschannen2020/results.jsonl); do not edit.* Tschannen et al., *On Mutual
Information Maximization for Representation Learning* (ICLR 2020, [arXiv
1907.13625](https://arxiv.org/abs/1907.13625)).

Images are cut in two. Two encoders and a critic, which scores pairs of an upper and a lower half in batches of 128,
are trained to maximise an estimate of the information between the halves, **I_EST**: **I_NCE** (InfoNCE, at most log
128) or **I_NWJ** (Nguyen, Wainwright and Jordan). Then a linear classifier, the **probe**, reads the class off the
upper half's code. *Held out* is what was measured on test images (figure 4c: on fresh batches); all accuracies are.

The preset `quick` has fewer iterations and larger learning rates than the paper: directions, not levels. `paper` has
the paper's iterations, one to five seeds instead of twenty. [How to run both](../benchmarks/tschannen2020/README.md).

{provenance}

## Baselines

Accuracy on 10,000 test images, by the published probe (scikit-learn's SAGA, C = 10, tolerance 0.1), and by one that
goes on nearly to the minimum of the same objective (in the rows trained with labels that probe saw 10,000 images,
elsewhere all).

{baselines}

The paper's "about 24 %" on CIFAR-10 is not what its probe gives on the upper 14 rows in colour (of pictures that were
JPEG once, [deviation 7](#deviations-from-the-paper-numbered)). On the same rows turned grey (0.299 R + 0.587 G +
0.114 B) it nearly is: the published figure fits pictures without colour, though the text speaks of three channels.
`python -m benchmarks.tschannen2020.baselines --data cifar10 --data-root DATA --results mine.jsonl` gives both. The
difference comes neither from the probe's tolerance (the converged one is beside it), nor from the order in which
pixels are flattened, which no linear probe sees, nor from the number of rows, nor from scaling ([deviation
5](#deviations-from-the-paper-numbered)).

## The claims

Every claim is taken in parts. A part is a difference, paired by seed, or what lies above a level (accuracies in
fractions, estimates in nats, condition numbers in log10), given as *mean ± half the 95 % t-interval (seeds):
verdict*. It is **reproduced** if the whole interval is where the paper puts it, **NOT reproduced** if all of it lies
elsewhere, **undecided** if it contains the limit (named in brackets), and **not tested** with one seed, or if its
condition is not shown. "2 of 3" seeds: one run left the floats. On other data sets at quick a part *holds* or *does
not hold*. A **condition** says of our runs that they got where they had to get, as claim 5's to equal estimates; it
is *met* or *not met*, says nothing of the paper, and is not counted as a part. The error of an inverse must be below
its tolerance in every run.

The limits are ours: "near" is within {near:g} nats, near its cap above nine tenths of it, "not worse" by less than
one point of accuracy, "not above the information" by more than 0.005 nats (for claim 6's sampling). "Grows" is the
end less the start, and an untrained critic starts below zero, so a growth may pass the cap. The paper plots curves
and prints few numbers; those it prints stand in the second column. Three are not judged: "far", "about 94 %" (the
baselines above are beside it) and "after about 7,000 iterations" (the tables of figure 4 below say when the target
was met). A claim holds if all of its parts do; below that its main effects:

{summary}

Intervals are 95 % each, not of all parts together. An interval from twenty seeds, as many as the paper has, is 0.38
times as wide as one from five and 0.19 times as wide as one from three. If means and deviations stayed what they are
here (a deviation from three seeds may be off by a factor of two or more; parts that are not tested are not counted):
{outlook}.

### Two probes

The published probe stops early: its tolerance of 0.1 is met long before the objective reaches its minimum. The curves
of the figures are of a probe that goes on nearly to the minimum, and what a code is worth depends on which of the two
is asked. Below, every part on accuracy has a second line, by the last point of its curve. At quick, figures 1, 4, 8
and 9 fit that probe to 10,000 training images, and there the lines differ by that as well; elsewhere both are fitted
to all. Verdicts on MNIST that change with the probe:

{other_probe}

Both probes scale every column of a code to [0, 1]. Some columns of raw pixels are constant and stay 0; an encoder
that starts near the identity makes them nearly constant, and scaling makes large what is next to nothing. So figure 1
starts at another accuracy than raw pixels have. (Figure 2's pixels carry noise: none of their columns is constant.)

### Two estimates

The paper plots I_EST on training batches; the parts ask for the held-out one, and have a second line for the other.
Verdicts on MNIST that change:

{other_batches}

{claims}

## The figures, at the preset quick

In the paper's arrangement: means and standard deviations over seeds. Tables have both estimates side by side, and
both probes.

{figures}

## With the paper's iterations

21,000 iterations at 1e-4 (figure 4c 20,000, figure 1c 4,001 of the encoder at 1e-6, CIFAR-10 63,000 at 1e-5, of which
figure 8 was run and figure 9 was not). {hours}
± are standard deviations over seeds.

{levels}

## Fashion-MNIST, at the preset quick

The paper has no such column. ± are standard deviations over seeds.

{fashion}

## Matrix products in bfloat16

The encoders of figures 1 and 4 at full iterations are trained within autocast to bfloat16 where the processor has
instructions for it; whatever is measured is computed in float32. What that changes at the preset `quick`, by the same
seeds (over 21,000 iterations it was not measured; figure 1c was run in bfloat16 only; the ConvNet's runs by I_NWJ to
2 and to 4 nats are the same runs, see below):

{products}

## The inner product, and mined negatives

The paper argues for the inner product (claim 8) and names mining as a way on; it shows neither. Their levels stand
with figure 3's above. `hcl 1` weights each negative by the exponential of its score (Robinson et al., 2021, beta =
1), `top 16` keeps an anchor's 16 highest-scored negatives, both without labels. I_EST held out is the honest bound,
without mining, whatever was trained; "mined loss: bound" says that the loss that was mined may itself be called one,
of the value given (deviation 19). Paired by seed, mean ± half the 95 % interval (seeds), at both budgets:

{mined}

## Runs that failed, left the floats or went astray

A run leaves the floats if its scores or weights become NaN or infinite. It is astray if its estimate ends as NaN or
below 0, which the best constant critic reaches; such runs count in everything above, whereas one that left the floats
has no figures ("2 of 3"). Growth of I_NWJ by an astray run is growth from a start far below. (Below both targets the
gradient of |I_EST - t| does not depend on t: there the runs to 2 and to 4 nats are one and the same.)

{troubled}

## Deviations from the paper, numbered

{deviations}

## Corrections to what is printed

1. The published "testing" curves of I_EST are averages over fresh training batches. Both are computed here.
2. Below the paper's eq. 4: eq. 3 normalises over y, so its optimal critic is log p(y|x) - log p(y) + c(x), not log
   p(y|x); that of eq. 4 is 1 + log p(y|x) - log p(y). Appendix D (eq. 8) normalises over x. At 2 nats and K = 64 eq.
   3 reads -0.77 with log p(y|x), 1.82 with the log ratio.
3. Printed nowhere: with dependent negatives (figure 4c) I_NWJ of the best critic tends to 0.10814 nats, a KL
   divergence, and I_NCE with a bilinear critic to 0.2025; the information is 0.020411.
4. In a much-read blog's table of bounds ([estimators](estimators.md)) the denominator of NCE must run over f(x_i,
   y_j); Barber-Agakov pairs log q(y|x) with h(Y); its "tractable NCE" is the leave-one-out upper bound, in a column
   of lower ones.

More, each tested: [estimators](estimators.md).
"""


def main() -> None:
    """Writes the page and its figures."""
    rows = recorded(RESULTS)
    write_text(PAGE, page(rows))
    FIGURES.mkdir(exist_ok=True)
    for preset in ("quick", "paper"):
        for name, experiment in EXPERIMENTS.items():
            drawn = figure(experiment.panels, _shown(_of_plan(rows, preset), name), columns=experiment.columns)
            if drawn is not None:
                drawn.savefig(FIGURES / _picture(name, preset), dpi=70, metadata={"Software": None})
    print(PAGE)


if __name__ == "__main__":
    main()
