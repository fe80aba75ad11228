"""What the paper's claims are judged by, and the pages that are made of the lines."""

import dataclasses
import json
import sys

import pytest

from benchmarks import curves, series
from benchmarks.tschannen2020 import (
    __main__ as everything,
)
from benchmarks.tschannen2020 import (
    architectures,
    claims,
    critics,
    invertible,
    report,
    reproduction,
    runs,
)


def line(seed, critic, bound, accuracy, **more):
    plan = critics.EXPERIMENT.plan("quick", "paper", "mnist")
    (config,) = (row for row in plan if (row["critic"], row["objective"]) == (critic, "nwj"))
    return {
        "experiment": "critics", "config": config, "seed": seed, "status": "ok", "test_bound": bound,
        "train_bound": bound, "test_accuracy": accuracy, "cpu_seconds": 1.0, "commit": "abc", "format": series.FORMAT,
        "hardware": {"processor": "p"}, **more,
    }  # fmt: skip


def test_differences_are_paired_by_seed():
    rows = [line(s, c, 1.0 * s + (c == "concat"), 0.5) for s in (0, 1, 2) for c in ("bilinear", "concat")]
    del rows[0]
    (claim,) = (claim for claim in critics.CLAIMS if claim.text == "I_NWJ: concat above bilinear")
    assert claims.differences(claim, rows) == claims.Differences((1.0, 1.0))
    constant = claims.Claim(6, "t", "test_bound", {"critic": "concat"}, 0.5)
    assert claims.differences(constant, rows) == claims.Differences((0.5, 1.5, 2.5))
    start = claims.Claim(3, "t", "test_bound", {"critic": "concat"}, "test_accuracy")
    assert claims.differences(start, rows) == claims.Differences((0.5, 1.5, 2.5))
    rows[1] |= {"status": "diverged"}
    assert claims.differences(claim, rows) == claims.Differences((1.0,), lost=1)
    with pytest.raises(ValueError, match="several runs of seed 0 hold"):
        claims.differences(
            claims.Claim(6, "t", "test_bound", {}, 0.5), [line(0, c, 1.0, 0.5) for c in ("bilinear", "concat")]
        )


def test_accuracies_by_the_converged_probe():
    """The ends of the curve, where the published probe read the last and the first codes."""
    claim = claims.Claim(3, "t", "test_accuracy", {}, "start_test_accuracy")
    curves = {"accuracy": [0.5, 0.6, 0.75], "inverse_error": [1e-6, 1e-5, 2e-3]}
    rows = [line(0, "concat", 1.0, 0.7, start_test_accuracy=0.6, curves=curves)]
    lost_at_once = {"curves": {**curves, "inverse_error": [2e-3, 0.0, 0.0]}}
    assert claims.differences(claim, rows).values == pytest.approx((0.1,))
    assert claims.differences(claims.by_converged_probe(claim), rows).values == pytest.approx((0.25,))
    assert claims.by_converged_probe(dataclasses.replace(claim, figure="test_bound")) is None
    assert claims.figure_of(rows[0], "invertible_accuracy") == 0.6
    assert claims.figure_of(lost_at_once, "invertible_accuracy") is None
    assert claims.figure_of({"fast_accuracy": 0.3}, "converged_accuracy") == 0.3


def test_estimates_on_training_batches():
    """Beside every held-out one, from the start of the same curve; a condition names the batches it is of."""
    curves = {"train_bound": [-2.0, 1.0, 3.0]}
    rows = [{**line(0, "concat", 2.0, 0.7, start_bound=-1.0, curves=curves), "train_bound": 3.0}]
    claim = claims.Claim(3, "t", "test_bound", {}, "start_bound")
    held_out, fresh = claims.twins(claim)
    assert (held_out, fresh.text) == (claim, "the same, on training batches")
    assert [claims.differences(each, rows).values for each in (held_out, fresh)] == [(3.0,), (5.0,)]
    assert claims.differences(claims.on_training_batches(dataclasses.replace(claim, versus=1.0)), rows).values == (2.0,)
    assert claims.twins(dataclasses.replace(claim, condition=True)) == (dataclasses.replace(claim, condition=True),)
    by_probes = claims.twins(dataclasses.replace(claim, figure="test_accuracy", versus=0.5))
    assert [each.text for each in by_probes] == ["t", "the same, by the converged probe"]


def test_conditions_are_met_or_not_and_are_no_parts():
    """Runs that were to end at equal estimates, and did by I_NCE at 2 nats only: that is no finding on the paper."""
    plan = [row for row in architectures.EXPERIMENT.plan("quick", "paper", "mnist") if row["target"]]

    def run(config, seed):
        off = 0.01 * seed + (config["encoder"] == "convnet") * (config["objective"] == "nwj") * 2.0
        bound = config["target"] - off - (config["target"] == 4.0)
        accuracy = 0.8 + 0.1 * (config["encoder"] == "convnet") + 0.001 * seed
        figures = {
            "test_bound": bound,
            "train_bound": bound,
            "test_accuracy": accuracy,
            "curves": {"accuracy": [accuracy]},
        }
        return line(seed, "concat", None, None) | {"experiment": "architectures", "config": config, **figures}

    rows = [run(config, seed) for config in plan for seed in (0, 1)]
    total = reproduction._total(5, rows, "quick").split(".<br>")
    # Apart and together at both targets: at 4 nats the encoders are equal, though not where they were to be.
    assert total[0] == "of 4 parts 2 reproduced, 2 not tested (of 16 conditions 7 met)"
    assert total[1] == "accuracy at equal I_NCE, target 2: ConvNet above MLP: +0.1000 ± 0.0000 (2): reproduced"
    assert total[3].endswith("(2): not tested (its condition is not shown)")
    words = {claim.text: reproduction._cell(claim, rows).partition(": ")[2] for claim in architectures.CLAIMS}
    assert words["condition: I_EST training at I_NCE = 2: ConvNet near MLP"] == "met"
    assert words["condition: I_EST training at I_NCE = 4: MLP near the target"] == "not met"
    assert reproduction._total(8, rows, "quick").startswith(
        "not tested.<br>I_NCE: bilinear above inner product: not run"
    )


def test_lines_stand_in_the_order_of_the_plan():
    rows = [line(seed, critic, 1.0, 0.5) for seed in (1, 0) for critic in ("concat", "bilinear")]
    old = {**line(2, "concat", 1.0, 0.5), "config": {**rows[0]["config"], "iterations": 7}}
    shown = [(row["config"]["critic"], row["seed"]) for row in reproduction._of_plan([*rows, old], "quick")]
    assert shown == [("bilinear", 0), ("bilinear", 1), ("concat", 0), ("concat", 1)]
    plan = [rows[0]["config"]] * 2  # as figure 4c has, whatever the data set
    assert [row["seed"] for row in reproduction._ordered(rows, {"critics": plan, "invertible": plan})] == [0, 1]
    assert len(reproduction._ordered(rows, {"": plan})) == 2


def test_tables_of_another_data_set_have_no_figures():
    rows = [line(0, "concat", 1.0, 0.5), line(0, "concat", 2.0, 0.6)]
    rows[1]["config"] = {**rows[1]["config"], "data": "fashion-mnist"}
    here, there = reproduction._levels(rows, "quick"), reproduction._levels(rows, "quick", "fashion-mnist")
    assert "| mnist, mlp, concat, nwj | 1 | 0.5000 |" in here
    assert "(tschannen2020/critics.png)" in here
    assert "fashion" not in here
    assert "| fashion-mnist, mlp, concat, nwj | 1 | 0.6000 |" in there
    assert "png" not in there
    assert "| mnist" not in there


def test_troubled_runs_are_told_with_preset_and_products():
    rounded = {**line(3, "concat", -3.0, 0.5)["config"], "products": "bfloat16"}
    row = line(3, "concat", -3.0, 0.5, curves={"iteration": [], "test_bound": []}) | {"config": rounded}
    (told,) = reproduction._troubled([row, line(0, "concat", 1.0, 0.5)]).split("\n")
    assert told.startswith(
        "- quick, astray: mnist, mlp, concat, nwj, products in bfloat16, seed 3: I_EST held out -3.0"
    )
    assert reproduction._troubled([]) == "None."


def test_a_claim_is_not_tested_without_what_it_takes():
    at = claims.Claim(5, "equal", "train_bound", {"critic": "concat"}, {"critic": "bilinear"}, "zero")
    claim = claims.Claim(5, "t", "test_accuracy", {"critic": "concat"}, {"critic": "bilinear"}, given=(at,))
    rows = [line(s, c, 2.0, 0.5 + 0.1 * (c == "concat") + 0.01 * s) for s in (0, 1) for c in ("bilinear", "concat")]
    assert claims.judged(claim, rows)[1] == "reproduced"
    rows[1]["train_bound"] = 3.0
    assert claims.judged(claim, rows)[1] == "not tested (its condition is not shown)"
    assert claims.judged(claim, rows[:2])[1] == "not tested (one seed)"


def test_no_claim_counts_a_seed_twice():
    """Figure 9 has bilinear critics as well, figure 1 two bounds: all of the plan's runs are there, for two seeds."""
    for experiment in everything.EXPERIMENTS.values():
        for preset in ("quick", "paper"):
            plan = experiment.plan(preset, "paper", experiment.datasets[0])
            figures = dict.fromkeys((name for claim in experiment.claims for name in (claim.figure, claim.versus)
                                     if isinstance(name, str)), 0.5)  # fmt: skip
            figures["curves"] = {"accuracy": [0.5], "inverse_error": [0.0]}
            rows = [{"config": config, "seed": seed, "status": "ok", **figures} for config in plan for seed in (0, 1)]
            planned = [claim for claim in experiment.claims if any(curves.holds(row, claim.of) for row in plan)]
            assert all(len(claims.differences(claim, rows).values) == 2 for claim in planned)
            assert preset == "quick" or planned == list(experiment.claims)


def test_the_page(tmp_path, monkeypatch):
    curves = {"iteration": [0, 5, 10], "test_bound": [0.0, 1.0, 2.0], "train_bound": [0.0, 1.0, 2.0]}
    curves["accuracy"] = [0.8, 0.8, 0.7]
    rows = [line(s, c, 2.0, 0.7, curves=curves) for s in (0, 1) for c in ("bilinear", "concat")]
    rows[0] |= {"status": "failed", "error": "ValueError: <worst>"}
    rows[1] |= {"status": "diverged", "diverged_at": 7, "curves": {k: v[:2] for k, v in curves.items()}}
    results = tmp_path / "lines.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--preset", "quick", "--report-only", "--results", str(results), "--folder", str(tmp_path / "page")]
    monkeypatch.setattr(sys, "argv", ["tschannen2020", *arguments])
    everything.main()
    page = (tmp_path / "page" / "report.html").read_text()
    assert "ValueError: &lt;worst&gt;" in page
    assert "left the floats at step 7" in page
    assert "(+ 1 diverged or failed)" in page
    assert (tmp_path / "page" / "critics.png").stat().st_size > 1000


def test_the_page_of_another_data_set(tmp_path, monkeypatch, capsys):
    """What does not take it is left out, or refused by name; its page goes elsewhere."""
    (tmp_path / "lines.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    common = ["x", "--preset", "quick", "--report-only", "--results", "lines.jsonl", "--data"]
    monkeypatch.setattr(sys, "argv", [*common, "cifar10", "--only", "critics"])
    with pytest.raises(SystemExit) as caught:
        everything.main()
    assert caught.value.code == 2
    assert "--data cifar10: critics is an experiment on mnist" in capsys.readouterr().err
    (config,) = (
        row
        for row in critics.EXPERIMENT.plan("quick", "paper", "fashion-mnist")
        if (row["critic"], row["objective"]) == ("concat", "nwj")
    )
    curves = {"iteration": [0, 5], "test_bound": [0.0, 1.0], "train_bound": [0.0, 1.0], "accuracy": [0.5, 0.6]}
    row = line(0, "concat", 2.0, 0.7, curves=curves) | {"config": config}
    (tmp_path / "lines.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(sys, "argv", [*common, "fashion-mnist"])
    everything.main()
    page = (tmp_path / "runs" / "tschannen2020-quick-fashion-mnist" / "report.html").read_text()
    assert "Preset quick, fashion-mnist." in page
    assert "fashion-mnist, mlp, concat, nwj" in page


def test_where_a_run_left_the_floats():
    lost = line(0, "concat", None, None) | {"status": "diverged", "diverged_at": 400}
    assert report.told_troubles([lost])[0].endswith("left the floats at step 400")
    noticed = lost | {"diverged_after": 200}
    assert report.told_troubles([noticed])[0].endswith("left the floats between steps 200 and 400")


def test_the_page_of_claims_is_what_the_lines_say():
    made = reproduction.page(series.recorded(runs.RESULTS))
    assert reproduction.PAGE.read_text(encoding="utf-8") == made, "python -m benchmarks.tschannen2020.reproduction"


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [
        (["not tested at this budget", "not tested (one seed)"], "not tested"),
        (["reproduced"], "**reproduced**"),
        (["reproduced", "reproduced"], "**reproduced**, all 2 parts"),
        (
            ["reproduced", "undecided (the interval contains 0)", "NOT reproduced", "NOT reproduced"],
            "of 4 parts 1 reproduced, 1 undecided, 2 NOT reproduced",
        ),
        (["reproduced", "not tested at this budget"], "of 2 parts 1 reproduced, 1 not tested"),
    ],
)
def test_a_claim_holds_where_all_of_its_parts_do(verdicts, told):
    assert reproduction._together(verdicts) == told


def test_the_page_keeps_budgets_and_products_apart():
    def row(config, seed, accuracy):
        measured = {"test_accuracy": accuracy, "test_bound": 3.0, "train_bound": 3.0, "start_test_accuracy": 0.8}
        measured["curves"] = {"iteration": [0, 1], "accuracy": [0.7, accuracy]}
        spent = {"cpu_seconds": 1800.0, "seconds": 2000.0, "commit": "abc", "hardware": {"processor": "Some"}}
        return {"experiment": "invertible", "config": config, "seed": seed, "status": "ok", **measured, **spent}

    (quick, other), (paper, _) = (invertible.EXPERIMENT.plan(preset, "paper", "mnist") for preset in ("quick", "paper"))
    rows = [row(quick, seed, 0.81) for seed in (0, 1)]
    rows += [{**row({**quick, "products": "bfloat16"}, seed, 0.83), "rounded": True} for seed in (0, 1)]
    rows += [
        {**row({**other, "products": products}, seed, 0.8), "rounded": False}  # by a processor that cannot
        for seed in (0, 1) for products in ("float32", "bfloat16")
    ]  # fmt: skip
    rows += [row({**quick, "iterations": 7}, seed, 0.99) for seed in (0, 1)]
    rows += [row(paper, 0, 0.86)]
    before, _, after = reproduction.page(rows).partition("## With the paper's iterations")
    text = "accuracy by I_NCE after training above the start"
    assert f"| {text} | +0.0100 ± 0.0000 (2): reproduced | +0.0600 (1): not tested (one seed) |" in before
    told = (
        "1 are there, of seed 0: 0.5 hours of processor time, one core a run, 0.6 by the clock if one followed another"
    )
    assert told in " ".join(after.split())
    assert "| invertible | realnvp | nce | accuracy | +0.0200 | +0.0200 to +0.0200 | 2 |" in after
    assert "| invertible | realnvp | nwj |" not in after


@pytest.mark.parametrize(
    ("expected", "values", "told"),
    [
        ("positive", [], "not tested"),
        ("positive", [0.1], "not tested (one seed)"),
        ("positive", [0.10, 0.11, 0.12], "reproduced"),
        ("positive", [-0.10, -0.11, -0.12], "NOT reproduced"),
        ("positive", [0.1, -0.1, 0.05], "undecided (the interval contains 0)"),
        ("positive", [0.0, 0.0, 0.0], "undecided (the interval contains 0)"),
        ("negative", [0.0, 0.0, 0.0], "undecided (the interval contains 0)"),
        ("negative", [-0.10, -0.11, -0.12], "reproduced"),
        ("negative", [0.10, 0.11, 0.12], "NOT reproduced"),
        ("not positive", [0.001, -0.001, 0.0], "reproduced"),
        ("not positive", [0.01, -0.01, 0.0], "undecided (the interval contains 0.005)"),
        ("not positive", [0.10, 0.11, 0.12], "NOT reproduced"),
        ("not negative", [0.001, -0.001, 0.0], "reproduced"),
        (
            "not negative",
            [0.1, -0.1],
            "undecided (the interval contains -0.005)",
        ),  # two seeds say nothing of an absence
        ("not negative", [-0.10, -0.11, -0.12], "NOT reproduced"),
        ("zero", [0.05, 0.051], "reproduced"),
        ("zero", [0.05, 0.06], "undecided (the interval contains 0.1)"),
        ("zero", [0.3, -0.3], "undecided (the interval contains -0.1 and 0.1)"),
        ("zero", [0.25, 0.26], "NOT reproduced"),
        ("zero", [0.1, 0.1], "reproduced"),  # the border is within
        ("always negative", [-0.2, -0.1], "reproduced"),
        ("always negative", [-0.2, 0.0], "NOT reproduced"),  # and here it is not
    ],
)
def test_verdicts(expected, values, told):
    claim = claims.Claim(1, "t", "test_bound", {}, 0.0, expected, 0.005)
    assert claims.verdict(claim, claims.Differences(tuple(values))).startswith(told)
    if told == "reproduced":
        assert claims.verdict(claim, claims.Differences(tuple(values), lost=1)) == "undecided (1 lost)"


def test_runs_that_are_lost():
    """Whether they failed or have no number: nothing is said without them."""
    inverse = claims.Claim(1, "t", "inverse_error", {}, 1e-3, "always negative")
    rows = [line(seed, "concat", 1.0, 0.5, inverse_error=1e-6) for seed in range(3)]
    assert reproduction._cell(inverse, rows) == "at most 1.0e-06 (3): reproduced"
    rows[1]["inverse_error"] = None
    assert reproduction._cell(inverse, rows) == "at most 1.0e-06 (2 of 3): undecided (1 lost)"
    assert claims.judged(dataclasses.replace(inverse, expected="negative"), rows)[1] == "undecided (1 lost)"
    lost = [{**row, "status": "diverged"} for row in rows]
    assert reproduction._cell(inverse, lost) == "not tested (3 lost)"
    assert reproduction._cell(inverse, []) == ""


def test_what_twenty_seeds_would_say():
    claim = claims.Claim(1, "t", "test_bound", {}, 0.0)
    found = claims.Differences((0.1, -0.1, 0.15))  # 0.05 +- 0.13: the interval of twenty is 0.06 to either side
    assert claims.verdict(claim, found).startswith("undecided")
    assert claims.with_seeds(claim, found, 20).startswith("undecided")
    assert claims.with_seeds(claim, found, 40) == "reproduced"


def test_one_inverse_above_the_tolerance_fails_the_claim():
    """At any evaluation: it may grow and shrink."""
    (claim,) = (c for c in invertible.CLAIMS if c.figure == "worst_inverse_error" and c.of == {"objective": "nce"})
    row = {"status": "ok", "config": {"objective": "nce"}, "inverse_error": 1e-6, "inverse_error_float64": 1e-12}
    errors = [
        {**row, "seed": seed, "cpu_seconds": 1.0, "curves": {"inverse_error": [1e-7, error, 1e-6]}}
        for seed, error in enumerate((1e-6, 1e-6, 2e-3))
    ]
    assert "inverse off by 1.0e-06 at most (within" in report.arms(errors[:2])[1][6]
    assert "inverse off by 2.0e-03 at most (ABOVE" in report.arms(errors)[1][6]
    assert claims.verdict(claim, claims.differences(claim, errors[:2])) == "reproduced"
    assert claims.verdict(claim, claims.differences(claim, errors)) == "NOT reproduced"
    assert claims.verdict(claim, claims.differences(claim, errors[2:])) == "NOT reproduced"  # one is enough


def test_an_estimate_that_ends_below_0_is_listed():
    """It is a number, so the run is ok; as an estimate it says nothing."""
    curves = {"iteration": [0, 5, 10], "test_bound": [1.0, 0.5, -3.0], "train_bound": [1.0, -1.0, -3.0]}
    rows = [line(3, "concat", -3.0, 0.5, curves=curves), line(0, "concat", 3.0, 0.5)]
    rows.append({**line(4, "concat", 0.5, 0.5, curves=curves), "train_bound": -0.1})
    told = [f"astray: mnist, mlp, concat, nwj, seed {row}" for row in (3, 4)]
    assert report.told_troubles(rows) == [
        f"{told[0]}: I_EST held out -3.0000 at the end, below 0 since the evaluation at step 10",
        f"{told[1]}: I_EST training -0.1000 at the end, below 0 since the evaluation at step 5",
    ]
    curves["test_bound"][2] = rows[0]["test_bound"] = None  # as a line has what is no number
    expected = "I_EST held out no number at the end, below 0 since the evaluation at step 10"
    assert expected in report.told_troubles(rows)[0]
    rows[0]["config"] = {**rows[0]["config"], "objective": "labels"}  # which has no estimate
    assert len(report.told_troubles(rows)) == 1


def test_when_a_target_was_met():
    """At the first evaluation that is within a tenth of a nat of it, seed by seed."""
    config = next(row for row in architectures.EXPERIMENT.plan("quick", "paper", "mnist") if row["target"] == 2.0)

    def run(seed, *heights):
        curves = {"iteration": [1000 * i for i in range(len(heights))], "train_bound": list(heights)}
        return {**line(seed, "concat", heights[-1], 0.5, curves=curves), "config": config}

    rows = [run(1, 0.5, 1.95, 0.0), run(0, None, 2.3, 2.09), run(2, 0.5, 1.89)]
    (cell,) = [row[-2] for row in report.arms(rows)[1:]]
    assert cell == "target met at iteration 2,000, 1,000, never"
    assert report.arms(rows[2:])[1][-2] == "target never met"
    diverged = {**run(3, 1.0), "status": "diverged"}
    assert report.arms([*rows, diverged])[1][-2] == cell
    assert report.arms([line(0, "concat", 1.0, 0.5)])[1][-2] == ""  # no target


def test_what_both_pages_say_of_a_claim():
    """Elsewhere than on MNIST a part holds or does not; of an error every run must be below, so the worst is told."""
    claim = claims.Claim(4, "t", "test_bound", {"critic": "concat"}, {"critic": "bilinear"})
    rows = [line(seed, c, 1.0 - (c == "concat") - 0.1 * seed, 0.5) for seed in (0, 1) for c in ("bilinear", "concat")]
    assert claims.in_words(claim, rows)[3] == "NOT reproduced"
    elsewhere = [{**row, "config": {**row["config"], "data": "fashion-mnist"}} for row in rows]
    assert claims.in_words(claim, elsewhere)[3] == "does not hold"
    inverse = claims.Claim(1, "t", "error", {}, 1e-3, "always negative")
    rows = [line(seed, "concat", 1.0, 0.5, error=10.0**-seed) for seed in (4, 5)]
    assert claims.in_words(inverse, rows)[1:] == ("at most 1.0e-04", "", "reproduced")


def test_parts_with_lost_runs_are_told_of_in_the_outlook(monkeypatch):
    claim = claims.Claim(1, "t", "test_bound", {}, 0.0)
    parts = [
        (claim, claims.Differences((0.1, -0.1, 0.15)), "undecided (the interval contains 0)"),
        (claim, claims.Differences((0.1, 0.1), lost=1), "undecided (1 lost)"),
        (
            dataclasses.replace(claim, condition=True),
            claims.Differences((0.1, -0.1)),
            "undecided (the interval contains 0)",
        ),
    ]
    monkeypatch.setattr(reproduction, "_verdicts", lambda number, rows, preset: parts if number == 1 else [])
    assert reproduction._outlook([]).startswith("of 2 undecided parts at quick 1 would be undecided, 1 have lost runs")
