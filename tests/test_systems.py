"""The systems run at the smoke preset on made-up images, go on where they stopped, and end in one table and page."""

import dataclasses
import math
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from references import write_stl10

from benchmarks import lines, series
from benchmarks.systems import __main__ as everything
from benchmarks.systems import amdim_hour, cpc, data, pixels, report, results_page, runs, swap, training
from benchmarks.systems.training import Budget
from contrastive.data import stl10
from contrastive.errors import InputError

NEEDED = {
    "experiment", "config", "seed", "iterations", "test_accuracy", "test_bound", "train_bound", "status", "seconds",
    "commit", "versions", "hardware", "format",
}  # fmt: skip
SYSTEMS = everything.SYSTEMS


def options(tmp_path, *words):
    given = ["--preset", "smoke", "--made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl"), *words]
    return series.parsed(runs.parser(""), runs.SEEDS, given)


def refusal(capsys, command):
    """The one sentence of a command that ends with the status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_every_system(system, tmp_path):
    rows = runs.perform([system], options(tmp_path))
    assert len(rows) == len(system.plans["smoke"].arms)
    for row in rows:
        assert row["status"] == "ok", row
        assert set(row) >= NEEDED
        assert row["trained"]
        assert row["test_bound"] is None or row["test_bound"] <= row["bound_cap"]
    assert system.name in report.text(rows)


@pytest.mark.parametrize("system", [s for s in SYSTEMS.values() if s.work is None], ids=lambda s: s.name)
def test_the_papers_preset_is_built_for_the_data_it_names(system, monkeypatch):
    """And maps its images to features. Nobody trains it here; on the meta device it costs nothing."""
    plan = system.plans["paper"]
    name = plan.dataset or system.dataset
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())  # meta has none; it is off here
    for arm in plan.arms.values():
        with torch.device("meta"):
            learner = system.build(data.SHAPES[name], **{**plan.options, **arm})
            for feature in learner.features.values():
                assert len(feature(torch.zeros(2, *data.SHAPES[name]))) == 2
        assert sum(p.numel() for p in learner.modules.parameters()) > 1e5
    # No more images than the data set has, less the held-out ones.
    assert plan.budget.images <= {"cifar10": 45_000, "mnist": 55_000, "stl10": 100_000}[name]


def test_cpc_cuts_a_square_out_of_images_without_colour(monkeypatch):
    """Anywhere while training, in the middle for features."""
    seen, grid = [], cpc.patch_grid
    monkeypatch.setattr(cpc, "RandomView", lambda *args, **options: torch.nn.Identity())
    monkeypatch.setattr(cpc, "patch_grid", lambda images, *given: seen.append(images) or grid(images, *given))
    learner = cpc.build((3, 20, 24), widths=(4, 8), layers=1, patch=4, stride=2, crop=12, grey=True)
    place = torch.arange(20 * 24.0).view(1, 1, 20, 24).expand(6, 3, 20, 24) / 480
    learner.loss(place, torch.arange(6))
    learner.features["context"](place)
    trained, judged = ((480 * (each / 4 + 0.5)).round().int() for each in seen)
    assert trained.shape == judged.shape == (6, 1, 12, 12)
    assert (judged[:, 0, 0, 0] == 4 * 24 + 6).all()
    corners = trained[:, 0, 0, 0]
    assert len(set(corners.tolist())) > 1
    assert (corners % 24 <= 12).all()
    assert (trained - corners[:, None, None, None] == judged - judged[0, 0, 0, 0]).all()
    with pytest.raises(ValueError, match="CPC: got images of 20 x 24 pixels, expected at least 32 a side, the crop"):
        cpc.build((3, 20, 24), crop=32)


def test_images_without_labels_train_the_encoder_and_probes_take_the_labelled(tmp_path, monkeypatch):
    """STL-10 from files of its format, and a step of CPC's paper preset on them, smaller."""
    write_stl10(tmp_path / "stl10_binary", train=40, test=10, unlabelled=12)
    images = data.load("stl10", tmp_path, 10)
    assert images.shape == data.SHAPES["stl10"]
    assert [len(part) for part in (images.train, images.held_out, images.test, images.unlabelled)] == [36, 4, 10, 10]
    whole = stl10(tmp_path)
    assert torch.equal(images.of_encoder, whole.unlabelled.images[:10])
    with pytest.raises(InputError, match="stl10: 13 images without labels, but there are 12"):
        data.load("stl10", tmp_path, 13)
    plan = cpc.SYSTEM.plans["paper"]
    budget = dataclasses.replace(plan.budget, batch=4, steps=3, images=10, points=1)
    smaller = dataclasses.replace(plan, budget=budget, options={**plan.options, "widths": (2, 4, 8)})
    system, fed = dataclasses.replace(cpc.SYSTEM, plans={"paper": smaller}), []
    batches = training.Batches
    monkeypatch.setattr(training, "Batches", lambda images, *a, **k: fed.append(images) or batches(images, *a, **k))
    words = ["--preset", "paper", "--data-root", str(tmp_path), "--results", str(tmp_path / "lines.jsonl"), "--quiet"]
    (row,) = runs.perform([system], series.parsed(runs.parser(""), runs.SEEDS, words))
    assert row["status"] == "ok", row
    assert row["config"]["data"] == "stl10"
    assert torch.equal(fed[0], whole.unlabelled.images[:10])


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    system = SYSTEMS["simclr"]
    first = runs.perform([system], options(tmp_path))
    again = runs.perform([system], options(tmp_path, "--seeds", "2"))
    assert again[0] == first[0]
    assert [row["seed"] for row in again] == [0, 1]
    assert first[0]["curves"] != again[1]["curves"]
    (tmp_path / "lines.jsonl").unlink()
    assert runs.perform([system], options(tmp_path))[0]["curves"] == first[0]["curves"]


def test_a_block_is_swapped_from_the_command_line(tmp_path):
    plain, mined = (
        runs.perform([SYSTEMS["simclr"]], options(tmp_path, *words))
        for words in ([], ["--miner", "hcl 1", "--critic", "bilinear"])
    )
    assert (mined[0]["config"]["miner"], mined[0]["config"]["critic"]) == ("hcl 1", "bilinear")
    assert plain[0]["curves"]["loss"] != mined[0]["curves"]["loss"]
    assert "simclr, hcl 1, bilinear, smoke" in report.text(mined)


@pytest.mark.parametrize(
    ("system", "applies", "others"),
    [
        ("cmc", ["in batch", "three views", "bank, softmax"], ["bank, binary"]),
        ("deep_infomax", ["local, NCE", "global, NCE", "local, NCE, prior"], ["local, JSD", "local, DV"]),
        ("amdim", ["released"], ["mixture"]),
        ("time_contrastive", ["n-pairs", "triplets"], []),
    ],
)
def test_a_miner_goes_to_the_arms_whose_negatives_it_weighs(tmp_path, system, applies, others):
    system = SYSTEMS[system]
    for preset in ("smoke", "quick"):
        found = runs.planned(system, options(tmp_path, "--preset", preset, "--miner", "hcl 1"))
        assert [config["arm"] for config in found] == applies
        assert len(runs.planned(system, options(tmp_path, "--preset", preset))) == len(applies) + len(others)
    for arm in others:
        with pytest.raises(InputError) as caught:
            runs.planned(system, options(tmp_path, "--miner", "hcl 1", "--arms", applies[0], arm))
        told = ", ".join(map(repr, applies))
        assert str(caught.value) == (
            f"{system.name}: no miner weighs the negatives of {arm!r}, expected arms among {told}"
        )
        assert runs.planned(system, options(tmp_path, "--arms", arm))[0]["arm"] == arm  # with its own negatives


@pytest.mark.slow
@pytest.mark.parametrize("system", [s for s in SYSTEMS.values() if "miner" in s.swaps], ids=lambda s: s.name)
def test_what_a_miner_goes_to_runs(system, tmp_path):
    rows = runs.perform([system], options(tmp_path, "--miner", "hcl 1"))
    assert rows
    assert all(row["status"] == "ok" for row in rows), rows


def test_an_arm_that_does_not_exist_is_refused_with_those_that_do(tmp_path, capsys):
    words = ["--preset", "smoke", "--made-up", "--results", str(tmp_path / "x"), "--arms"]
    told = refusal(capsys, lambda: runs.main(SYSTEMS["amdim"], [*words, "released", "mixtures"]))
    assert told == "error: --arms: no arm 'mixtures' of amdim; there are 'released', 'mixture'\n"
    told = refusal(capsys, lambda: runs.main(SYSTEMS["simclr"], [*words, "released"]))
    assert told == "error: --arms: no arm 'released' of simclr; there is one form\n"
    assert "expected arms among 'released'" in refusal(
        capsys, lambda: runs.main(SYSTEMS["amdim"], [*words, "mixture", "--miner", "top 16"])
    )
    assert not (tmp_path / "x").exists()


def test_held_out_images_are_judged_on_in_place_of_test_images():
    images = data.made_up("mnist", 40)
    seen = []

    def measure(images, judged_on):
        seen.append(judged_on)
        return {"linear": 0.5}

    learner = SYSTEMS["simclr"].build((1, 28, 28), widths=(4, 8), out=4)
    learner = dataclasses.replace(learner, measure=measure)
    found = training.run(learner, images, images.held_out, Budget(8, 1, 1e-3, points=1), 0, lambda share: None)
    assert len(seen) == 2
    assert all(split is images.held_out for split in seen)
    assert found["test_accuracy"] == 0.5


def test_a_schedule_warms_up_and_decays():
    cosine = Budget(1, 100, 1.0, warmup=10)
    assert [cosine.rate(0), cosine.rate(9)] == pytest.approx([0.1, 0.98], abs=0.01)
    assert cosine.rate(99) < 1e-3
    stepped = Budget(1, 100, 1.0, warmup=0, decay=(0.6, 0.8))
    assert [stepped.rate(step) for step in (59, 60, 80)] == pytest.approx([1, 0.1, 0.01])


@pytest.mark.parametrize(("broken", "told"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_loss_that_leaves_the_floats_is_a_failed_run_and_the_others_go_on(tmp_path, broken, told):
    """The loss of one seed breaks at its second step; the next seed is trained all the same, and nothing is hidden."""
    system, built, stepped = SYSTEMS["simclr"], [], []

    def build(shape, **given):
        learner = system.build(shape, **given)
        built.append(learner)
        number, losses = len(built), []

        def loss(images, rows):
            losses.append(learner.loss(images, rows))
            stepped.append(number)
            return losses[-1] * (broken if (number, len(losses)) == (1, 2) else 1)

        return dataclasses.replace(learner, loss=loss)

    rows = runs.perform([dataclasses.replace(system, build=build)], options(tmp_path, "--seeds", "2"))
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert rows[0]["error"] == f"FloatingPointError: the loss of step 1 is {told}"
    assert "trained" not in rows[0]
    assert "curves" not in rows[0]
    assert rows[1]["trained"]
    assert stepped == [1, 1, 2, 2]
    assert f"failed: simclr, smoke, seed 0: {rows[0]['error']}" in report.text(rows)
    page = report.write([system], rows, tmp_path / "page", preset="smoke").read_text()
    assert rows[0]["error"] in page
    assert [row["seed"] for row in runs.perform([system], options(tmp_path, "--seeds", "2"))] == [0, 1]  # not again
    assert len(built) == 2


def test_a_failure_of_another_kind_is_a_line_too(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "derived_seed", lambda *parts: 1 / 0)
    rows = runs.perform([SYSTEMS["simclr"]], options(tmp_path))
    assert rows[0]["status"] == "failed"
    assert "failed: simclr, smoke, seed 0: ZeroDivisionError" in report.text(rows)


@pytest.mark.slow
def test_the_command_and_the_page(tmp_path, capsys):
    words = ["--preset", "smoke", "--made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl")]
    everything.main([*words, "--only", "simclr", "--folder", str(tmp_path / "page")])
    page = (tmp_path / "page" / "report.html").read_text()
    assert "SimCLR" in page
    assert "linear" in page
    assert (tmp_path / "page" / "simclr.png").stat().st_size > 1000
    everything.main(["--blocks"])
    assert "| simclr | two augmentations |" in capsys.readouterr().out
    words = ["--report-only", "--results", str(tmp_path / "lines.jsonl")]
    assert "holds no run of the preset quick" in refusal(capsys, lambda: everything.main(words))


def test_a_single_system_writes_its_page(tmp_path, capsys, monkeypatch):
    """All of its own lines, whatever was asked for last; none of others, none of settings that are no more."""
    monkeypatch.chdir(tmp_path)
    moco = SYSTEMS["moco"]
    words = ["--preset", "smoke", "--made-up", "--quiet", "--results", "lines.jsonl"]
    runs.perform([SYSTEMS["simclr"]], options(tmp_path))
    runs.main(moco, words)
    assert "| moco, smoke | 0 |" in (printed := capsys.readouterr().out)
    assert printed.splitlines()[-1] == "runs/moco-smoke/report.html"
    assert (tmp_path / "runs" / "moco-smoke" / "moco.png").stat().st_size > 1000
    runs.main(moco, [*words, "--miner", "hcl 1", "--folder", "page"])
    page = Path("page/report.html").read_text()
    for told in ("MoCo: Momentum Contrast", "<td>moco, smoke</td>", "<td>moco, hcl 1, smoke</td>", "Preset smoke"):
        assert told in page
    assert "simclr" not in page
    plan = dataclasses.replace(moco.plans["smoke"], budget=dataclasses.replace(moco.plans["smoke"].budget, lr=2e-3))
    runs.main(dataclasses.replace(moco, plans={"smoke": plan}), [*words, "--folder", "page"])
    assert "<td>moco, hcl 1, smoke</td>" not in Path("page/report.html").read_text()


def test_missing_data_says_how_to_get_it(tmp_path, capsys):
    words = ["--preset", "quick", "--quiet", "--data-root", str(tmp_path), "--results", str(tmp_path / "x")]
    assert "pass --data-root FOLDER" in refusal(capsys, lambda: runs.main(SYSTEMS["simclr"], words))
    assert not (tmp_path / "x").exists()


def test_the_swap_table(tmp_path, capsys, monkeypatch):
    """One seed of two cells; the others read as not run, and nothing is run twice."""
    words = ["--preset", "smoke", "--made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl")]
    assert len(swap.cells(options(tmp_path))) == 24
    monkeypatch.setattr(swap, "SYSTEMS", swap.SYSTEMS[:1])
    monkeypatch.setattr(swap, "MINERS", ("none", "hcl 1"))
    swap.main(words)
    first = capsys.readouterr().out
    assert "| simclr | own |" in first
    assert "not run" not in first
    monkeypatch.setattr(series, "attempt", lambda *given: 1 / 0)
    monkeypatch.setattr(swap, "MINERS", ("none", "hcl 1", "top 16"))
    swap.main([*words, "--table"])
    assert "not run" in capsys.readouterr().out
    assert "the table has all miners" in refusal(capsys, lambda: swap.main([*words, "--miner", "hcl 1"]))


def test_differences_of_the_swap_table_are_paired_by_seed():
    def row(seed, miner, value):
        config = {"critic": "own", "miner": miner}
        figures = {"random": {"linear": 0.4}, "trained": {"linear": value}}
        return {"experiment": "swap simclr", "config": config, "seed": seed, "status": "ok", **figures}

    rows = [row(0, "none", 0.50), row(1, "none", 0.52), row(1, "hcl 1", 0.55)]
    assert "| simclr | own | 40.0 | 51.0 (2) | 55.0 (+3.0; 1) | not run |" in swap.table(rows)
    assert "| negatives: hcl 1 |  | not run |" in swap.effects(rows)  # of one system only
    every = [row | {"experiment": system.name} for row in rows for system in swap.SYSTEMS]
    assert "| negatives: hcl 1 | +3.0 | +3.0 |" in swap.effects(every)


def test_the_page_of_the_documentation_has_the_table_of_blocks():
    page = (Path(__file__).parents[1] / "docs" / "systems.md").read_text()
    made = lines.markdown(report.blocks(list(SYSTEMS.values())))
    assert f"\n\n{made}\n\n" in page, "python -m benchmarks.systems --blocks"
    assert len(made.splitlines()) == 2 + len(SYSTEMS)


def test_the_page_of_results_is_made_of_the_lines():
    made = results_page.page(series.recorded(runs.RESULTS), series.recorded(results_page.OF_THE_PAPER))
    assert results_page.PAGE.read_text(encoding="utf-8") == made, "python -m benchmarks.systems.results_page"


def test_halves_of_other_products_are_no_further_seeds():
    papers = series.recorded(results_page.OF_THE_PAPER)
    exact = [row for row in papers if row["config"].get("products") != "bfloat16"]
    assert len(exact) < len(papers)
    assert results_page.halves(papers) == results_page.halves(exact)


def test_other_arms_stand_apart_from_the_headline_and_a_failed_one_is_seen():
    rows = [row for row in series.recorded(runs.RESULTS) if row["experiment"] in ("amdim", "pixels of cifar10")]
    rows = [row for row in rows if row["config"]["arm"] in ("", "released")]
    options = {"components": 4}
    mixture = [
        row | {"config": row["config"] | {"arm": "mixture", "options": options}} for row in rows if row["random"]
    ]
    mixture[1] |= {"status": "failed", "error": "no memory"}
    goals, figures = (
        results_page.page(rows + mixture, []).split(f"## {part}\n")[1].split("\n## ")[0]
        for part in ("The figures", "Other arms")
    )
    assert "amdim, released" in goals
    assert "mixture" not in goals
    assert "amdim, released" not in figures
    assert "| amdim, mixture | 0, 2 (1 failed) | linear " in figures
    assert "| amdim, mixture | linear probe at least 8 points above the untrained encoder |" in figures
    assert "failed: amdim, mixture, seed 1: no memory" in figures
    assert "| pixels of cifar10 |" in figures
    assert "pixels of mnist" not in figures


@pytest.mark.parametrize(("values", "told"), [([8.5, 9.0], "met"), ([7.0, 8.0], "NOT met"), ([8.0], "met (one seed)")])
def test_a_goal_is_held_against_the_mean(values, told):
    assert report.verdict(runs.EIGHT_POINTS, values) == told


def test_goals_leave_out_other_negatives_and_critics():
    line = {"experiment": "simclr", "status": "ok", "seed": 0, "random": {"linear": 0.4}, "trained": {"linear": 0.5}}
    config = {"preset": "quick", "judged_on": "test", "arm": "", "miner": "none", "critic": "own"}
    rows = [line | {"config": config}, line | {"config": config | {"miner": "hcl 1"}}]
    assert ["simclr", runs.EIGHT_POINTS.text, "10", "10", "met (one seed)"] in report.goals(
        list(SYSTEMS.values()), rows
    )
    assert (
        len(report.goals(list(SYSTEMS.values()), rows))
        == len([system for system in SYSTEMS.values() if system.goal]) + 1
    )


def test_a_line_of_another_budget_is_no_line_of_the_preset():
    budget = dataclasses.asdict(SYSTEMS["imsat"].plans["quick"].budget)
    row = {"config": {"preset": "quick", "budget": budget, "arm": "", "options": {"hidden": [600, 600]}}}
    assert runs.as_planned(SYSTEMS["imsat"], row)
    assert not runs.as_planned(SYSTEMS["imsat"], {"config": row["config"] | {"options": {"hidden": [1, 1]}}})
    row["config"]["budget"] = budget | {"steps": 1}
    assert not runs.as_planned(SYSTEMS["imsat"], row)


def test_nats_of_the_table_are_of_the_runs_that_have_them():
    line = {"experiment": "simclr", "status": "ok", "iterations": 1, "cpu_seconds": 1.0, "random": {}, "trained": {}}
    config = {"preset": "quick", "judged_on": "test", "arm": "", "miner": "none", "critic": "own"}
    without = line | {"config": config, "seed": 0, "test_bound": None, "bound_status": "no number in nats"}
    bounded = line | {"config": config, "seed": 1, "test_bound": 1.5, "bound_cap": 4.0}
    assert report.table([without, bounded])[1] == ["simclr", "0, 1", "", "1.50, at most 4.00", "1", "1"]


def test_no_bound_is_said_beside_its_number():
    line = {"experiment": "iic", "status": "ok", "iterations": 1, "cpu_seconds": 1.0, "random": {}, "trained": {}}
    config = {"preset": "quick", "judged_on": "test", "arm": "", "miner": "none", "critic": "own"}
    row = line | {"config": config, "seed": 0, "test_bound": 1.5, "bound_cap": 2.3, "bound_status": "not a bound"}
    assert report.table([row])[1][3] == "1.50, at most 2.30 (not a bound)"


def test_an_image_with_too_few_rows_of_patches_is_refused():
    learner = SYSTEMS["cpc"].build((1, 16, 16), widths=(4, 8), layers=1)
    with pytest.raises(ValueError, match="CPC: images of 16 x 16 pixels have 3 rows of patches, expected more than 3"):
        learner.loss(torch.rand(4, 1, 16, 16), torch.arange(4))


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 7, 7), (3, 32, 48), (3, 48, 32)])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_deep_infomax_refuses_images_that_are_small_or_not_square(shape, scope):
    told = rf"^Deep InfoMax: got images of {shape[1]} x {shape[2]} pixels, expected squares of at least 8 pixels a side"
    with pytest.raises(ValueError, match=told):
        SYSTEMS["deep_infomax"].build(shape, scope=scope)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("side", [8, 15, 28])
def test_deep_infomax_takes_other_squares(side, scope):
    learner = SYSTEMS["deep_infomax"].build((1, side, side), scope=scope, widths=(4, 4, 8), hidden=8, code=4, units=8)
    assert torch.isfinite(learner.loss(torch.rand(4, 1, side, side), torch.arange(4)))


def test_a_mixture_refuses_a_miner():
    with pytest.raises(ValueError, match="AMDIM: the mixture's loss weighs no negatives"):
        SYSTEMS["amdim"].build((3, 32, 32), miner=runs.MINERS["hcl 1"], components=2)


def test_a_prior_trains_its_discriminator_and_the_code():
    sizes = {"widths": (4, 8), "hidden": 16, "code": 4, "units": 8, "bfloat16": False}
    images = torch.rand(8, 3, 32, 32)
    gradients = {}
    for prior in (0.0, 1.0):
        torch.manual_seed(0)
        learner = SYSTEMS["deep_infomax"].build((3, 32, 32), prior=prior, **sizes)
        torch.manual_seed(1)
        learner.loss(images, torch.arange(8)).backward()
        named = dict(learner.modules.named_parameters())
        gradients[prior] = next(p.grad for name, p in named.items() if name.endswith("code.weight"))
        assert any(p.shape == (200, 1000) and p.grad.abs().sum() > 0 for p in named.values()) == (prior > 0)
    assert not torch.equal(gradients[0.0], gradients[1.0])


def test_made_up_images_leave_the_results_alone(tmp_path):
    made_up = series.parsed(runs.parser(""), runs.SEEDS, ["--preset", "quick", "--made-up"])
    assert runs.results_of(made_up) != runs.RESULTS
    assert runs.results_of(series.parsed(runs.parser(""), runs.SEEDS, ["--preset", "quick"])) == runs.RESULTS


def test_pixels_are_probed_untrained(tmp_path, capsys):
    pixels.main(["--preset", "smoke", "--made-up", "--results", str(tmp_path / "lines.jsonl"), "--quiet"])
    lines_ = series.recorded(tmp_path / "lines.jsonl")
    assert {line["experiment"] for line in lines_} == {system.name for system in pixels.SYSTEMS}
    assert all(line["status"] == "ok" and line["random"] == {} and "linear" in line["trained"] for line in lines_)
    assert "pixels of mnist, left half" in capsys.readouterr().out


def test_the_pixels_of_left_halves_are_of_left_halves():
    images = torch.rand(3, 1, 4, 6)
    (whole,), (half,) = (pixels.build((1, 4, 6), half=half).features.values() for half in (False, True))
    assert torch.equal(whole(images), images.flatten(1))
    assert torch.equal(half(images), images[..., :3].flatten(1))


def test_the_hour_has_a_curve_of_probes(tmp_path, capsys):
    """A larger budget of AMDIM: its line has held-out probes on the way, and the page says how far it is behind."""
    words = ["--preset", "smoke", "--made-up", "--results", str(tmp_path / "lines.jsonl"), "--quiet"]
    amdim_hour.main(words)
    (line,) = series.recorded(tmp_path / "lines.jsonl")
    curves = line["curves"]
    assert len(curves["iteration"]) == len(curves["held_out_linear"]) == len(curves["held_out_knn"]) == 1
    told = results_page.hour([line])
    reached = 100 * line["trained"]["linear"]
    assert f"reads {reached:.1f} %" in told
    assert f"gap of {91.2 - reached:.1f} points" in " ".join(told.split())
    results_page.picture([line | {"config": line["config"] | {"preset": "quick"}}], tmp_path / "hour.svg")
    assert "published" in (tmp_path / "hour.svg").read_text()
    assert "the presets smoke and quick" in refusal(capsys, lambda: amdim_hour.main([*words, "--preset", "paper"]))


def test_the_last_stretch_of_the_hour_is_told_by_its_figures():
    curves = {"iteration": [1, 1500, 2000], "loss": [9, 3.25, 4.5], "held_out_linear": [0, 0.5, 0.25]}
    told = " ".join(results_page.course(curves).split())
    assert told == (
        "From step 1,500 to 2,000 the loss went from 3.25 to 4.50, and a linear probe of 10,000 training images from "
        "50.0 to 25.0 % of 5,000 held-out ones."
    )
