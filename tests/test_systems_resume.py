"""A run that is interrupted goes on at the last point of its curves and ends as if nothing had happened."""

import dataclasses

import pytest
import torch

from benchmarks import lines, series
from benchmarks.systems import data, runs, training
from benchmarks.systems.__main__ import SYSTEMS
from benchmarks.systems.training import Budget
from benchmarks.under_way import UnderWay
from contrastive.checkpoints import load_checkpoint, save_checkpoint

FORMS = [(system, arm) for system in SYSTEMS.values() if system.work is None for arm in system.plans["smoke"].arms]


def interrupt(share):
    if share == 0.5:
        raise KeyboardInterrupt


def options(tmp_path, *words):
    given = ["--preset", "smoke", "--made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl"), *words]
    return series.parsed(runs.parser(""), runs.SEEDS, given)


@pytest.mark.parametrize(("system", "arm"), FORMS, ids=lambda value: getattr(value, "name", value))
def test_every_form_of_a_system_goes_on_to_the_bit(system, arm, tmp_path):
    """Queues, banks, slow copies, moving averages, batch norms: whatever a system moves is among its modules."""
    plan = system.plans["smoke"]
    (config,) = runs.planned(system, options(tmp_path, "--arms", arm))
    # Three steps to the interruption, in the middle of an epoch.
    budget = dataclasses.replace(plan.budget, steps=6, points=2, batch=plan.budget.batch // 2)
    images = system.select(data.made_up(system.dataset, plan.budget.images))

    def fitted(tick, keep):
        learner = runs.built(system, config, images.shape, 0)
        learner.prepare(images.train.images)
        return learner, training.fit(learner, images, budget, 0, tick, keep=keep)

    def kept():
        return UnderWay(tmp_path / "x.ckpt", "this run")

    whole, curves = fitted(lambda share: None, None)
    with pytest.raises(KeyboardInterrupt):
        fitted(interrupt, kept())
    told = []
    again, its_curves = fitted(told.append, kept())
    assert told == [1.0]
    assert its_curves == curves
    for name, value in whole.modules.state_dict().items():
        assert torch.equal(value, again.modules.state_dict()[name]), name


@pytest.fixture
def interrupted(tmp_path):
    """A run that was interrupted in the middle, and its file."""
    budget = Budget(batch=16, steps=4, lr=1e-3, images=64, points=2)
    smoke = dataclasses.replace(SYSTEMS["simclr"].plans["smoke"], budget=budget)
    system = dataclasses.replace(SYSTEMS["simclr"], plans={"smoke": smoke})
    (run,) = runs.wanted([system], options(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        series.attempt(run, interrupt)
    (file,) = tmp_path.glob("lines.*.under-way.ckpt")
    return run, file


def attempted(run):
    """Its line, and the shares that were told: [1.0] of one that goes on, [0.5, 1.0] of one that starts."""
    told = []
    return series.attempt(run, told.append), told


def test_the_line_of_a_run_that_went_on_is_that_of_one_that_was_not_interrupted(interrupted):
    run, file = interrupted
    reached = load_checkpoint(file)
    assert 0 < reached["spent"]["cpu_seconds"] < 600
    reached["spent"] = {"seconds": 7200.0, "cpu_seconds": 3600.0}
    save_checkpoint(file, reached)
    line, told = attempted(run)
    assert told == [1.0]
    assert not file.exists()
    whole, told = attempted(run)
    assert told == [0.5, 1.0]
    assert not file.exists()
    differ = {key for key in whole if line[key] != whole[key]}
    assert differ <= {"seconds", "cpu_seconds"}
    assert set(line) == set(whole)
    assert 3600 < line["cpu_seconds"] < 4200
    assert 7200 < line["seconds"] < 7800


@pytest.mark.parametrize("why", ["another run", "another commit", "cut off"])
def test_what_is_of_another_run_or_not_whole_is_not_gone_on_with(interrupted, monkeypatch, why):
    run, file = interrupted
    if why == "another commit":
        monkeypatch.setattr(lines, "commit", lambda: "1234567")
    elif why == "another run":
        save_checkpoint(file, {**load_checkpoint(file), "run": "another"})
    else:
        file.write_bytes(file.read_bytes()[:-100])
    line, told = attempted(run)
    assert line["status"] == "ok"
    assert told == [0.5, 1.0]


def test_a_run_that_failed_starts_anew(interrupted, monkeypatch):
    run, file = interrupted
    with monkeypatch.context() as broken:
        broken.setattr(training, "derived_seed", lambda *parts: 1 / 0)
        line, _ = attempted(run)
    assert line["status"] == "failed"
    assert not file.exists()
