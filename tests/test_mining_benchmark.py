"""The benchmark of miners runs every arm, on a task of made-up classes, and makes its tables."""

import json

import pytest
import torch

from benchmarks.mining import __main__ as benchmark
from benchmarks.mining import training
from benchmarks.mining.arms import ARMS
from benchmarks.mining.training import Task, run
from benchmarks.splits import HELD_OUT, with_held_out
from contrastive.data import ImageData, ImageSplit, limit
from contrastive.errors import InputError


def made_up(by_class: bool) -> Task:
    """Forty classes of six noisy images each, a few steps: what a smoke test can wait for."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat_interleave(6)
    classes = torch.rand(40, 1, 12, 12, generator=generator)
    images = 0.7 * classes[labels] + 0.3 * torch.rand(240, 1, 12, 12, generator=generator)
    split = ImageSplit((255 * images).to(torch.uint8), labels)
    return Task(split, split, by_class, lambda x: x, steps=4, batch=64, bounds=2)


@pytest.fixture
def made_up_data(monkeypatch):
    monkeypatch.setattr(benchmark, "load", lambda data, split, root, images: made_up(data == "omniglot"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARMS)
def test_every_arm_trains(name):
    figures = run(made_up(True), ARMS[name], 0.1, seed=0)
    assert 0 <= figures["recall@1"] <= 1
    assert figures["test_bound"] <= figures["bound_cap"]
    mined_views = ARMS[name].intra_view and ARMS[name].miner(0.1) is not None
    assert figures["loss_status"] == "not a bound" or not (ARMS[name].linear or mined_views)


def test_tuning_leaves_the_test_images_aside(monkeypatch):
    numbers = torch.arange(20_000)
    images = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8).view(-1, 1, 1, 2)
    data = ImageData("numbered", ImageSplit(images, numbers), ImageSplit(images[:7], numbers[:7]), ())
    monkeypatch.setattr(training, "fashion_mnist", lambda root: data)
    tune, report = (training.load("fashion-mnist", split, None, 12_000) for split in ("tune", "test"))
    assert torch.equal(tune.train.labels, report.train.labels)
    assert len(tune.train) == 12_000
    assert len(tune.test) == HELD_OUT
    assert not set(tune.train.labels.tolist()) & set(tune.test.labels.tolist())
    assert report.test is data.test


def test_held_out_images_are_of_all_classes_however_many_there_are():
    labels = torch.arange(10).repeat_interleave(100)  # sorted by class, as CIFAR-10's files are
    split = ImageSplit(torch.zeros(1000, 1, 1, 1, dtype=torch.uint8), labels)
    data = ImageData("sorted", split, split, ())
    train, held_out = with_held_out(data, 700, 300)
    assert len(held_out.labels.unique()) == len(train.labels[:50].unique()) == 10
    assert torch.cat([train.labels, held_out.labels]).bincount().tolist() == [100] * 10
    fewer, _ = with_held_out(data, 500, 300)
    assert torch.equal(fewer.labels, limit(data, 500).train.labels)
    assert torch.equal(fewer.labels, train.labels[:500])
    with pytest.raises(InputError, match="sorted: 900 images and 300 held out, but there are 1000"):
        with_held_out(data, 900, 300)


def test_paired_seeds_share_weights_batches_and_views():
    first = run(made_up(True), ARMS["uniform"], 0.1, seed=3)
    again = run(made_up(True), ARMS["uniform"], 0.1, seed=3)
    other = run(made_up(True), ARMS["uniform"], 0.1, seed=4)
    assert first["train_loss"] == again["train_loss"] != other["train_loss"]


def test_what_was_run_is_not_repeated_and_failures_stay(tmp_path, monkeypatch, capsys, made_up_data):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path / "results.jsonl")
    arguments = ["mining", "--preset", "tune", "--arms", "uniform", "hcl 1", "--temperatures", "0.1", "0.2"]
    monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "0"])
    benchmark.main()
    benchmark.main()
    assert len(benchmark.read()) == 4
    assert sorted(benchmark.ranked("mining/omniglot", "uniform")) == [0.1, 0.2]

    monkeypatch.setattr(benchmark, "run", lambda *a: (_ for _ in ()).throw(FloatingPointError("the loss is nan")))
    monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "1"])
    benchmark.main()
    assert [line["status"] for line in benchmark.read()].count("failed") == 4
    assert "failed: mining/omniglot/tune" in benchmark.tables()


def test_a_difference_is_paired_by_seed(tmp_path, monkeypatch):
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(benchmark, "RESULTS", results)
    figures = {"uniform": (0.5, 0.6, 0.7), "hcl 1": (0.52, 0.62, 0.72)}
    with results.open("w") as file:
        for arm, values in figures.items():
            for seed, value in enumerate(values):
                line = {"experiment": "mining/omniglot/report", "status": "ok", "seed": seed}
                line |= {"config": {"arm": arm, "temperature": 0.1}}
                line |= {"figures": {"recall@1": value, "map@r": value, "features_recall@1": value}}
                file.write(json.dumps(line) + "\n")
    assert "+2.00 ± 0.00 (3) at 0.1" in benchmark.tables()


def test_images_are_measured_by_probes():
    figures = run(made_up(False), ARMS["hcl 1"], 0.5, seed=0)
    assert {"linear", "knn", "map@r", "instance_recall@1"} <= figures.keys()
