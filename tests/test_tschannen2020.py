"""The paper's experiments run at the smoke preset, go on where they stopped, and say what went wrong."""

import dataclasses
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks import curves, series
from benchmarks.tschannen2020 import __main__ as everything
from benchmarks.tschannen2020 import (
    adversarial,
    architectures,
    baselines,
    cifar10,
    conditioning,
    critics,
    data,
    invertible,
    probe,
    report,
    runs,
    sampling,
    training,
)
from benchmarks.under_way import UnderWay
from contrastive.encoders import MLP, truncated_normal_
from contrastive.errors import InputError
from contrastive.flows import RealNVP
from contrastive.gemm import multiplies_in_bfloat16, multiplies_in_float32

NEEDED = {
    "experiment", "config", "seed", "iterations", "test_accuracy", "test_bound", "train_bound", "status", "seconds",
    "commit", "versions", "hardware", "format",
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Flows of two couplings: the sizes of the paper are tested in test_flows.py."""
    monkeypatch.setitem(training.ENCODERS, "realnvp", lambda data: RealNVP(data.dim, couplings=2, hidden=(16,)))
    monkeypatch.setattr(adversarial, "RealNVP", lambda dim, affine: RealNVP(dim, couplings=2, affine=affine))


def options(tmp_path, *arguments):
    made = runs.parser("")
    given = ["--preset", "smoke", "--data", "made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl")]
    return made.parse_args([*given, "--seeds", "1", *arguments])


@pytest.mark.parametrize(
    "module",
    [adversarial, architectures, baselines, cifar10, conditioning, critics, invertible, sampling],
    ids=lambda m: m.__name__,
)
@pytest.mark.slow
def test_every_experiment(module, tmp_path, small):
    rows = runs.perform([module.EXPERIMENT], options(tmp_path))
    assert len(rows) == len(module.EXPERIMENT.plan("smoke", "paper", "made-up"))
    for row in rows:
        assert row["status"] in ("ok", "diverged"), row
        assert set(row) >= NEEDED
        assert row["test_bound"] is None or row["config"]["objective"] != "nce" or row["test_bound"] <= math.log(128)
    assert (curves.figure(module.EXPERIMENT.panels, rows) is not None) == bool(module.EXPERIMENT.panels)
    assert module.EXPERIMENT.title in report.text(module.EXPERIMENT, rows)


def test_it_goes_on_where_it_stopped(tmp_path, monkeypatch):
    lines_file = tmp_path / "lines.jsonl"
    first = runs.perform([sampling.EXPERIMENT], options(tmp_path))
    written = lines_file.read_text().splitlines()
    lines_file.write_text("\n".join(written[:1] + written[2:]) + "\n")
    ran = []
    monkeypatch.setattr(series, "attempt", lambda run, *rest, real=series.attempt: ran.append(run) or real(run, *rest))
    again = runs.perform([sampling.EXPERIMENT], options(tmp_path))
    assert [run.config for run in ran] == [first[1]["config"]]
    figures = [{row["test_bound"] for row in rows} for rows in (first, again)]
    assert figures[0] == figures[1]  # a run depends on its configuration and seed only


def test_some_configurations_only(tmp_path):
    rows = runs.perform([sampling.EXPERIMENT], options(tmp_path, "--where", "objective=nce"))
    every = sampling.EXPERIMENT.plan("smoke", "paper", "made-up")
    assert 0 < len(rows) < len(every)
    assert {row["config"]["objective"] for row in rows} == {"nce"}
    assert [runs._is_meant({"target": 2.0, "miner": None}, [word]) for word in (
        "target=2", "target=2.0", "target=4", "target=two", "miner=None", "miner=0")
    ] == [True, True, False, False, True, False]  # fmt: skip
    with pytest.raises(InputError, match="--where objectiv=nce: no configuration of sampling"):
        runs.perform([sampling.EXPERIMENT], options(tmp_path, "--where", "objectiv=nce"))


def test_a_file_of_another_version_is_refused(tmp_path):
    (tmp_path / "lines.jsonl").write_text(json.dumps({"format": 0, "experiment": "sampling"}) + "\n")
    with pytest.raises(InputError, match=r"line 1: written by format 0, this is format 1.*--results"):
        runs.perform([sampling.EXPERIMENT], options(tmp_path))
    (tmp_path / "lines.jsonl").write_text("no json\n")
    with pytest.raises(InputError, match="is no results file"):
        runs.perform([sampling.EXPERIMENT], options(tmp_path))


def test_the_commands_run_and_write_what_they_say(tmp_path, monkeypatch, capsys):
    given = ["--preset", "smoke", "--data", "made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl")]
    monkeypatch.setattr(sys, "argv", ["sampling", *given])
    runs.main(sampling.EXPERIMENT)
    told = capsys.readouterr().out
    assert told.startswith("## Figure 4c")
    assert "| nwj, dependent | 1 |" in told
    written = (tmp_path / "lines.jsonl").read_text()
    assert len(written.splitlines()) == len(sampling.plan("smoke", "paper", "made-up"))
    folder = tmp_path / "page"
    monkeypatch.setattr(sys, "argv", ["all", *given, "--only", "sampling", "--folder", str(folder)])
    everything.main()
    assert capsys.readouterr().out.split() == [str(folder / "report.html")]
    assert (tmp_path / "lines.jsonl").read_text() == written  # it was there already
    page = (folder / "report.html").read_text()
    assert sampling.EXPERIMENT.title in page
    assert (folder / "sampling.png").read_bytes().startswith(b"\x89PNG")


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    given = ["critics", "--preset", "smoke", "--quiet", "--data-root", str(tmp_path), "--results", str(tmp_path / "x")]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as caught:
        runs.main(critics.EXPERIMENT)
    assert caught.value.code == 2
    assert re.search(
        r"^error: .*no MNIST/raw under .*; pass --data-root FOLDER .* or --download", capsys.readouterr().err
    )
    assert not (tmp_path / "x").exists()


def test_a_failed_run_stays_visible(tmp_path, monkeypatch):
    def broken(config, data, seed, tick, keep):
        raise RuntimeError("no luck")

    experiment = runs.Experiment("sampling", "t", sampling.plan, broken, lambda config: 1.0, (), (), uses_data=False)
    rows = runs.perform([experiment], options(tmp_path))
    assert {row["status"] for row in rows} == {"failed"}
    assert "RuntimeError: no luck" in report.text(experiment, rows)


def test_divergence_is_recorded_with_its_step():
    halves = data.load("made-up", None)
    setting = training.Setting(
        "smoke", "paper", "made-up", "mlp", "bilinear", "nwj", iterations=30, every=10, lr=10.0, bound_batches=1
    )
    found = training.train(setting, halves, 0)
    assert found["status"] == "diverged"
    assert 0 < found["diverged_at"] <= 30
    assert found["test_accuracy"] is None
    assert found["curves"]["iteration"][0] == 0


@pytest.mark.parametrize("miner", ["hcl 1", "top 16"])
def test_a_mined_run_that_diverges_says_so(miner):
    setting = training.Setting(
        "smoke", "paper", "made-up", "mlp", "bilinear", "nce", iterations=6, every=3, lr=1e30, bound_batches=1,
        miner=miner,
    )  # fmt: skip
    found = training.train(setting, data.load("made-up", None), 0)
    assert (found["status"], found["diverged_at"]) == ("diverged", 1)


@pytest.mark.parametrize("objective", ["nce", "nwj"])
def test_sampling_that_diverges_says_so(objective):
    (config,) = (
        c for c in sampling.plan("smoke", "paper", "") if (c["sampling"], c["objective"]) == ("dependent", objective)
    )
    found = sampling.run({**config, "lr": 1e30}, None, 0, lambda share: None)
    assert (found["status"], found["diverged_at"], found["test_bound"]) == ("diverged", 1, None)
    assert len(found["curves"]["iteration"]) == len(found["curves"]["train_bound"]) == 1


def test_a_gradient_whose_square_overflows_stops_adam_and_is_a_divergence(monkeypatch):
    halves = data.load("made-up", None)
    monkeypatch.setattr(training, "_loss", lambda setting, model, *_: 1e22 * model["critic"].weight.sum())
    setting = training.Setting(
        "smoke", "paper", "made-up", "mlp", "bilinear", "nwj", iterations=4, every=2, lr=0.1, bound_batches=1
    )
    found = training.train(setting, halves, 0)
    assert (found["status"], found["diverged_after"], found["diverged_at"]) == ("diverged", 0, 2)
    assert found["curves"]["iteration"] == [0]


@pytest.mark.usefixtures("small")
def test_the_adversary_and_the_sampler_look_for_it_as_well(monkeypatch):
    asked = []
    monkeypatch.setattr(adversarial, "has_left_the_floats", lambda optimiser: asked.append(optimiser) or len(asked) > 2)
    (config,) = adversarial.plan("smoke", "paper", "made-up")
    found = adversarial.run(config | {"iterations": 4}, data.load("made-up", None), 0, lambda share: None)
    assert (found["status"], found["diverged_after"], found["diverged_at"]) == ("diverged", 2, 4)
    assert found["curves"]["iteration"] == [0, 2]
    assert found["test_accuracy"] is None
    monkeypatch.setattr(sampling, "nwj", lambda scores: 1e22 * scores.sum())
    (config,) = (c for c in sampling.plan("smoke", "paper", "") if c["objective"] == "nwj" and c["sampling"][0] == "d")
    found = sampling.run(config | {"iterations": 600}, None, 0, lambda share: None)
    assert (found["status"], found["diverged_at"]) == ("diverged", 0)


def test_a_curve_that_ends_early_has_the_axis_of_the_others(monkeypatch):
    config = {**sampling.plan("smoke", "paper", "")[0], "iterations": 400}
    whole = sampling.run(config, None, 0, lambda share: None)["curves"]["iteration"]
    calls = []
    monkeypatch.setattr(
        sampling, "infonce", lambda s: calls.append(s) or s.mean() * (math.nan if len(calls) > 99 else 1)
    )
    found = sampling.run(config, None, 0, lambda share: None)
    assert found["diverged_at"] == 99
    ended = found["curves"]["iteration"]
    assert ended == whole[: len(ended)]
    assert 1 < len(ended) < len(whole)


def test_lines_say_whether_steps_were_rounded():
    halves = data.load("made-up", None)
    for products in ("float32", "bfloat16"):
        setting = training.Setting(
            "smoke", "paper", "made-up", "mlp", "bilinear", "nce", iterations=1, every=1, lr=1e-3, products=products
        )
        rounded = products == "bfloat16" and multiplies_in_bfloat16()
        assert training.train(setting, halves, 0)["rounded"] == rounded


def test_seeds_decide_everything():
    halves = data.load("made-up", None)
    setting = training.Setting(
        "smoke", "paper", "made-up", "mlp", "bilinear", "nce", iterations=3, every=3, lr=1e-3, noise=0.05
    )
    first, again, other = (training.train(setting, halves, seed) for seed in (1, 1, 2))
    assert first == again
    assert first["test_bound"] != other["test_bound"]


def permission():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_steps_may_round_and_measures_may_not(products):
    halves, seen, before = data.load("made-up", None), set(), permission()

    def look(module, _):
        if isinstance(module, MLP):
            step = torch.is_grad_enabled()
            seen.add((step, torch.is_autocast_enabled("cpu"), multiplies_in_float32() or (step and rounds)))

    rounds = products == "bfloat16" and multiplies_in_bfloat16()
    setting = training.Setting(
        "smoke", "paper", "made-up", "mlp", "bilinear", "nce", iterations=2, every=1, lr=1e-3, products=products
    )
    with torch.nn.modules.module.register_module_forward_pre_hook(look):
        assert training.train(setting, halves, 0)["status"] == "ok"
    assert seen == {(True, rounds, True), (False, False, True)}
    assert permission() == before


@pytest.mark.parametrize("encoder", ["mlp", "convnet", "realnvp"])
def test_a_step_in_bfloat16_is_nearly_one_in_float32(encoder):
    """Its codes are float32 and off by rounding, if the processor rounds."""
    halves = data.load("made-up", None)
    setting = training.Setting("smoke", "paper", "made-up", encoder, "bilinear", "nce", iterations=1, every=1, lr=1e-3)
    model = training.build(setting, halves, 0)["x"]
    if encoder == "realnvp":  # starts at networks that are nearly zero
        truncated_normal_(model, 0.02)
    x, _ = halves.train.views(slice(0, 64), generator=torch.Generator())
    exact, rounded = (training.codes_of_step(model, x, products).detach() for products in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(exact, model(x))
    assert float((rounded - exact).abs().max()) < 0.05 * float(exact.abs().max())
    assert torch.equal(rounded, exact) != multiplies_in_bfloat16()


def test_products_of_the_command_line_go_to_the_experiments_that_know_them(tmp_path):
    given = options(tmp_path)
    for asked, expected in ((None, "float32"), ("bfloat16", "bfloat16")):
        given.products = asked
        assert {config["products"] for config in runs.planned(critics.EXPERIMENT, given)} == {expected}
        assert all("products" not in config for config in runs.planned(sampling.EXPERIMENT, given))


class TestInterrupted:
    """A run goes on at its last evaluation and ends as if nothing had happened."""

    @staticmethod
    def at(share):
        def tick(done):
            if done == share:
                raise KeyboardInterrupt

        return tick

    @pytest.mark.parametrize(
        "given",
        [
            {"encoder": "mlp", "objective": "nwj", "noise": 0.05},
            {"encoder": "residual", "objective": "nce", "measure": "condition", "batch": 16},  # as many Jacobians
            {"encoder": "realnvp", "objective": "nce", "measure": "inverse", "products": "bfloat16"},
            {"encoder": "convnet", "objective": "nce", "target": 2.0, "products": "bfloat16"},
        ],
    )
    def test_training_goes_on_to_the_bit(self, given, tmp_path):
        halves = data.load("made-up", None)
        # An epoch of 512 rows has four batches: the interruption is within the second.
        setting = training.Setting(
            "paper", "paper", "made-up", critic="bilinear", iterations=12, every=3, lr=1e-3, bound_batches=1, **given,
        )  # fmt: skip
        whole = training.train(setting, halves, 0)
        with pytest.raises(KeyboardInterrupt):
            training.train(setting, halves, 0, self.at(0.5), keep=UnderWay(tmp_path / "x.ckpt", "this run"))
        told = []
        again = training.train(setting, halves, 0, told.append, keep=UnderWay(tmp_path / "x.ckpt", "this run"))
        assert told == [0.75, 1.0]
        assert again == whole

    @pytest.mark.usefixtures("small")
    def test_the_adversary_goes_on_to_the_bit(self, tmp_path):
        halves = data.load("made-up", None)
        (config,) = adversarial.plan("smoke", "paper", "made-up")
        config |= {"iterations": 4, "every": 2, "encoder_lr": 1e-3}
        whole = adversarial.run(config, halves, 0, lambda share: None)
        with pytest.raises(KeyboardInterrupt):
            adversarial.run(config, halves, 0, self.at(0.5), UnderWay(tmp_path / "x.ckpt", "this run"))
        told = []
        again = adversarial.run(config, halves, 0, told.append, UnderWay(tmp_path / "x.ckpt", "this run"))
        assert told == [1.0]
        assert again == whole

    def test_the_command_keeps_runs_of_the_paper_preset_alone(self, tmp_path):
        seen = []

        def run(config, halves, seed, tick, keep):
            seen.append(keep)
            return {"test_accuracy": None}

        experiment = runs.Experiment("sampling", "t", sampling.plan, run, lambda config: 1.0, (), (), uses_data=False)
        for preset in ("smoke", "paper"):
            given = options(tmp_path)
            given.preset = preset
            runs.perform([experiment], given)
        assert seen[:4] == [None] * 4
        assert all(keep.path.match("lines.*.under-way.ckpt") for keep in seen[4:])
        assert len({keep.path for keep in seen[4:]}) == len({keep.run for keep in seen[4:]}) == 4


def test_rows_of_a_probe_lie_all_over_the_data():
    """The first of a sorted file are of one class."""
    assert list(range(10))[data.spread(10, None)] == list(range(10))
    assert list(range(10))[data.spread(10, 3)] == [0, 3, 6]
    assert list(range(10))[data.spread(10, 10)] == list(range(10))
    assert list(range(10))[data.spread(10, 64)] == list(range(10))
    halves = data.load("made-up", None)
    ordered = dataclasses.replace(halves.train, labels=halves.train.labels.sort().values)
    setting = training.Setting("smoke", "paper", "made-up", "mlp", "bilinear", "nce", iterations=1, every=1, lr=1e-3)
    _, labels = training._codes(setting, training.build(setting, halves, 0), ordered, 0, 100)
    assert len(labels) == 100
    assert set(labels.tolist()) == set(range(10))


def test_the_inverse_error_is_seen():
    halves = data.load("made-up", None)
    flow = RealNVP(halves.dim, couplings=2, hidden=(8,), affine=True)
    assert training.inverse_error(flow, halves) < 1e-5
    with torch.no_grad():
        flow.networks[0].layers[-1].bias.fill_(-30.0)  # scales of 1e-7: in float32 the inverse is lost
    assert training.inverse_error(flow, halves) > training.INVERSE_TOLERANCE
    for bias in (1e38, float("nan")):
        with torch.no_grad():
            flow.networks[0].layers[-1].bias.fill_(bias)
        assert series._plain(training.inverse_error(flow, halves)) == training.LOST


def test_halves():
    halves = data.load("made-up", None)
    x, y = halves.train.views(slice(0, 4), generator=torch.Generator())
    assert x.shape == y.shape == (4, 392)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    noisy = halves.train.views(slice(0, 4), noise=0.05, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(noisy[0] - x, noisy[1] - y, atol=1e-6)  # the same vector
    assert float((noisy[0] - x).std()) == pytest.approx(0.05, rel=0.1)
    apart = halves.train.views(slice(0, 4), noise=0.05, coupled=False, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(apart[0] - x, apart[1] - y, atol=1e-2)


def test_mnist_is_cut_in_the_middle(data_root):
    halves = data.load("mnist", data_root)
    raw = data.mnist(data_root).test.images[0].flatten()
    assert torch.equal(torch.cat([halves.test.x[0], halves.test.y[0]]), raw)
    assert (len(halves.train), len(halves.test), halves.shape) == (60_000, 10_000, (1, 14, 28))


def test_sampling_has_the_papers_moments():
    generator = torch.Generator().manual_seed(0)
    draws = [sampling.pairs("independent", generator) for _ in range(400)]
    z = torch.cat([torch.cat(pair, 1) for pair in draws])
    assert torch.allclose(z.T.cov(), torch.tensor([[2.0, 0.4], [0.4, 2.0]]), atol=0.06)
    draws = [torch.cat(sampling.pairs("dependent", generator), 1) for _ in range(400)]
    within = torch.stack([batch.T.cov() for batch in draws]).mean(0)
    assert torch.allclose(within, sampling.OWN, atol=0.02)
    assert torch.allclose(torch.stack([batch.mean(0) for batch in draws]).T.cov(), sampling.SHARED, atol=0.2)
    assert pytest.approx(0.0204110, abs=1e-7) == sampling.TRUE


def codes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 10
    means = torch.randn(10, 20, generator=torch.Generator().manual_seed(9))
    return means[labels] + 1.5 * torch.randn(n, 20, generator=generator), labels


@pytest.mark.parametrize("first", [8000, 500])  # all rows from the start, a part of them first
def test_the_fast_probe_reaches_the_minimum(first, monkeypatch):
    from sklearn.linear_model import LogisticRegression

    monkeypatch.setattr(probe, "FIRST_ROWS", first)
    train, labels = codes(2000, 0)
    train, _ = probe.scaled(train, train)
    weights = probe.fit(train, labels, tolerance=1e-5).double()

    def objective(w):
        x = torch.cat([train, torch.ones(len(train), 1)], 1).double()
        fit = torch.nn.functional.cross_entropy(x @ w, labels)
        return float(fit + w[:-1].square().sum() / (2 * probe.C * len(train)))

    model = LogisticRegression(C=probe.C, tol=1e-8, max_iter=1000).fit(train.double().numpy(), labels.numpy())
    peer = torch.from_numpy(np.vstack([model.coef_.T, model.intercept_]))
    assert objective(weights) == pytest.approx(objective(peer), abs=1e-5)
    saga = LogisticRegression(C=probe.C, solver="saga", tol=0.1, random_state=0).fit(train.numpy(), labels.numpy())
    early = torch.from_numpy(np.vstack([saga.coef_.T, saga.intercept_])).double()
    assert objective(probe.fit(train, labels).double()) <= objective(early)


@pytest.mark.data
def test_the_probe_of_curves_is_near_the_minimum(data_root):
    """By the tolerance that curves have, on real pixels, beside a hundredth of it: within 2 % and .3 points."""
    halves = data.load("mnist", data_root)
    some = data.spread(len(halves.train), 10_000)
    train, test = probe.scaled(halves.train.x[some].float() / 255, halves.test.x.float() / 255)
    labels = halves.train.labels[some]
    rough, fine = (probe.fit(train, labels, **given) for given in ({}, {"tolerance": 1e-5, "iterations": 1000}))

    def objective(w):
        fit = torch.nn.functional.cross_entropy(probe._with_one(train).double() @ w.double(), labels)
        return float(fit + w[:-1].double().square().sum() / (2 * probe.C * len(train)))

    def accuracy(w):
        return float((probe._with_one(test) @ w).argmax(1).eq(halves.test.labels).float().mean())

    assert objective(fine) <= objective(rough) <= 1.02 * objective(fine)
    assert accuracy(rough) == pytest.approx(accuracy(fine), abs=0.003)


def test_both_probes_agree():
    rows = (*codes(4000, 0), *codes(4000, 1))
    assert probe.fast_accuracy(*rows) == pytest.approx(probe.saga_accuracy(*rows), abs=0.02)


def test_variants():
    assert conditioning.settings("paper", "code", "mnist", conditioning.BUDGETS["paper"])[0]["independent_noise"]
    assert not conditioning.settings("paper", "paper", "mnist", conditioning.BUDGETS["paper"])[0]["independent_noise"]
    (row,) = adversarial.plan("paper", "code", "mnist")
    assert (row["classifier_lr"], row["encoder_lr"]) == (1e-3, 1e-5)
    (row,) = adversarial.plan("paper", "paper", "mnist")
    assert (row["classifier_lr"], row["encoder_lr"]) == (1e-4, 1e-6)
    assert {row["lr"] for row in critics.EXPERIMENT.plan("paper", "paper", "mnist")} == {1e-4}
    assert {row["lr"] for row in cifar10.EXPERIMENT.plan("paper", "paper", "cifar10")} == {1e-5}


@pytest.mark.parametrize(
    ("words", "experiment", "told"),
    [
        (
            ["--data", "cifar10"],
            critics.EXPERIMENT,
            "error: --data cifar10: critics is an experiment on mnist, fashion",
        ),
        (["--seeds", "0"], critics.EXPERIMENT, "error: --seeds 0: expected at least 1"),
        (["--threads", "0"], critics.EXPERIMENT, "error: --threads 0: expected at least 1"),
    ],
)
def test_what_an_experiment_does_not_take_is_refused(words, experiment, told, tmp_path, monkeypatch, capsys):
    given = ["x", "--preset", "smoke", "--quiet", "--results", str(tmp_path / "x"), *words]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as caught:
        runs.main(experiment)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err


def test_smoke_runs_again_in_every_process():
    """Its lines of before would pass for those of the code as it is now."""
    given = runs.parser("").parse_args(["--preset", "smoke"])
    assert runs.results_of(given) == runs.results_of(given)
    program = "from benchmarks.series import throwaway; print(throwaway('t'))"
    told = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(2)}
    assert len(told) == 2


def test_grey_is_the_weighted_mean_of_the_channels(monkeypatch):
    seen = []
    monkeypatch.setattr(baselines.probe, "saga_accuracy", lambda *rows, seed: seen.append(rows) or 0.5)
    monkeypatch.setattr(baselines.probe, "fast_accuracy", lambda *rows: 0.5)
    pixels = torch.tensor([[255, 0, 0, 0, 255, 0, 255, 255, 0]], dtype=torch.uint8)  # of three channels three pixels
    split = data.Split(pixels, pixels, torch.zeros(1, dtype=torch.int64))
    baselines.run({"noise": 0.0, "grey": True}, data.Halves("t", (3, 1, 3), split, split), 0, lambda share: None)
    assert torch.allclose(seen[0][0], torch.tensor([[0.299 + 0.114, 0.587 + 0.114, 0.0]]))
