"""The command line, as its users meet it: a process, its exit status, what it leaves behind."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import chromium
import numpy as np
import pytest
import torch
from PIL import Image

from contrastive import cli, load_encoder, runs
from contrastive.cli import main
from contrastive.cli.configuration import read_options
from contrastive.cli.names import miner_of, set_up

pytestmark = pytest.mark.slow

# A network and a data set that train in a second or two.
SMALL = ["--encoder.widths", "[8,16]", "--limit", "300", "--batch-size", "64", "--epochs", "3", "--progress", "false"]
FIGURES = {"recall@1", "recall@5", "recall@10", "map@r", "knn", "linear", "instance_recall@1"}


def kpair(*words, cwd, env=None, check=None):
    """Runs the command; `check` is the expected exit status."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    environment.pop("PYTHONPATH", None) if env is None else None
    done = subprocess.run(
        [sys.executable, "-m", "kpair", *map(str, words)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run, shared by the tests that only look."""
    folder = tmp_path_factory.mktemp("cli")
    kpair("train", *SMALL, "--miner", "hcl", "--miner.beta", "0.5", "--out", "run", cwd=folder, check=0)
    return folder / "run"


def test_the_run_folder(run):
    names = {path.name for path in run.iterdir()}
    assert names == {
        ".lock", "checkpoints", "config.yaml", "embeddings.safetensors", "encoder.json", "encoder.safetensors",
        "figures", "metrics.csv", "metrics.json", "report.html",
    }  # fmt: skip
    assert {float(row["empty_rows"]) for row in csv_rows(run / "metrics.csv") if row["loss"]} == {0.0}
    assert "Anchors without a negative" not in (run / "report.html").read_text(encoding="utf-8")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["class_intervals"].keys() == metrics["intervals"].keys() - {
        "instance_recall@1",
        "instance_recall@10",
    }
    assert metrics["counts"].keys() == {"excluded", "tied", "dropped"}
    for column in ("encoder", "pixels", "untrained"):
        assert metrics[column].keys() >= FIGURES
        assert all(0 <= metrics[column][name] <= 1 for name in FIGURES)
    assert metrics["cost"].keys() >= {"seconds", "images_per_second", "peak_mb"}
    assert metrics["bound"]["status"] == "bound"
    assert metrics["bound"]["value"] <= metrics["bound"]["cap"] == pytest.approx(np.log(64))


def test_the_encoder_in_one_line(run):
    encoder = load_encoder(run)
    assert encoder(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 16)


def test_evaluate_a_run_again(run, tmp_path):
    done = kpair("evaluate", run, "--json", "again.json", "--report", "page.html", cwd=tmp_path, check=0)
    assert "recall@1" in done.stdout
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "instance_recall@1" in page
    assert page.count("data:image/png;base64,") == 360  # all test images
    metrics, again = json.loads((run / "metrics.json").read_text()), json.loads((tmp_path / "again.json").read_text())
    assert again["encoder"] == metrics["encoder"]
    assert again["pixels"] == metrics["pixels"]
    assert again["bound"] == metrics["bound"]


def test_evaluate_embeddings(run, tmp_path):
    done = kpair("evaluate", run / "embeddings.safetensors", "--k", "1,5", "--json", "x.json", cwd=tmp_path, check=0)
    assert "recall@5" in done.stdout
    figures = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert figures["recall@1"] == pytest.approx(json.loads((run / "metrics.json").read_text())["encoder"]["recall@1"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--k", "1,5000"], "5000"),
        (["--k", "0"], "--k is 0"),
        (["--k", "one"], "--k is 'one'"),
        (["--labels", "nope.txt"], "nope.txt cannot be read"),
        (["--gallery-labels", "x.txt"], "needs --gallery"),
        (["--json", "nowhere/x.json"], "cannot be written"),
        (["--data-root", "x"], "--data-root goes with a run"),
    ],
)
def test_bad_evaluation_is_one_sentence(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    status = main(["evaluate", str(run / "embeddings.safetensors"), *words])
    _one_sentence(subprocess.CompletedProcess(words, status, *capsys.readouterr()), message)


def test_two_files_without_labels_are_matched_by_row(tmp_path):
    x = np.eye(12, dtype=np.float32)
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", np.roll(x, 1, axis=0) + 0.5 * x)
    kpair("evaluate", "a.npy", "--gallery", "b.npy", "--k", "1,2", "--json", "x.json", cwd=tmp_path, check=0)
    figures = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert figures["recall@1"] == 0.0
    assert figures["recall@2"] == 1.0
    assert figures["uniformity"] < 0


def test_query_and_gallery_files(tmp_path):
    x = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "q.npz", embeddings=x[:2])
    np.savez(tmp_path / "g.npz", embeddings=x, labels=np.array(["a", "b", "c", "d"]))
    (tmp_path / "q.txt").write_text("a\nc\n")
    kpair(
        "evaluate",
        "q.npz",
        "--labels",
        "q.txt",
        "--gallery",
        "g.npz",
        "--k",
        "1,4",
        "--json",
        "x.json",
        cwd=tmp_path,
        check=0,
    )
    figures = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert figures["recall@1"] == 0.5
    assert figures["recall@4"] == 1.0


def test_the_configuration_repeats_the_run(run, tmp_path):
    kpair("train", "--config", run / "config.yaml", "--out", "again", cwd=tmp_path, check=0)
    ours, theirs = (json.loads((folder / "metrics.json").read_text()) for folder in (run, tmp_path / "again"))
    for key in ("encoder", "untrained", "pixels", "bound", "training"):
        assert ours[key] == theirs[key]
    assert (run / "encoder.safetensors").read_bytes() == (tmp_path / "again" / "encoder.safetensors").read_bytes()


def test_killed_and_resumed_ends_bit_for_bit_the_same(run, tmp_path):
    words = [
        "train",
        "--config",
        str(run / "config.yaml"),
        "--out",
        "killed",
        "--checkpoint-every",
        "3",
        "--epochs",
        "40",
    ]
    kpair(*[w if w != "killed" else "whole" for w in words], cwd=tmp_path, check=0)
    process = subprocess.Popen(
        [sys.executable, "-m", "kpair", *words],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.time() + 120
    while not any(checkpoints.glob("step-*[1-9]?.ckpt")) and time.time() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "metrics.json").exists()
    _one_sentence(kpair(*words, cwd=tmp_path), "--resume auto")
    done = kpair(*words, "--resume", "auto", cwd=tmp_path, check=0)
    assert "resuming" in done.stderr
    whole, killed = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed"))
    assert killed["training"] == whole["training"]
    assert killed["encoder"] == whole["encoder"]
    for name in ("encoder.safetensors", "metrics.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "nothing is left to do" in kpair(*words, "--resume", "auto", cwd=tmp_path, check=0).stdout


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_in_a_browser(run, width):
    program = chromium.find_chromium()
    if program is None:
        pytest.skip("no Chromium on this machine")
    with chromium.Browser(program) as browser:
        page = browser.visit(run / "report.html", width=width)
    assert page.inner_width == width
    assert page.scroll_width <= page.client_width, page.overflowing
    assert not page.messages
    assert not page.requests
    assert page.broken_images == 0
    assert "hardest negatives" in page.text.lower()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes, 20 images each, one of them damaged."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, shade in (("dark <b>", 40), ("light", 200)):
        (folder / label).mkdir()
        for i in range(20):
            pixels = np.clip(generator.normal(shade, 30, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i:02}.png")
    damaged = folder / "light" / "07.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return folder


def test_anchors_that_a_miner_leaves_without_negatives_are_counted_and_reported(pictures, tmp_path):
    words = ["train", "--data", f"folder:{pictures}", "--image-size", "16", "--batch-size", "8", "--epochs", "2"]
    words += ["--miner", "multi-similarity", "--miner.epsilon", "0.0"]
    done = kpair(*words, "--out", "run", cwd=tmp_path, check=0)
    shares = [float(row["empty_rows"]) for row in csv_rows(tmp_path / "run" / "metrics.csv") if row["loss"]]
    assert 0 < sum(shares) / len(shares) <= 1
    said = f"left {sum(shares) / len(shares):.1%} of the anchors without any negative"
    notes = json.loads((tmp_path / "run" / "metrics.json").read_text())["notes"]
    assert sum(said in note for note in notes) == 1
    assert said in " ".join(done.stdout.split())
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert said in page
    assert "Anchors without a negative" in page


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_images(pictures, tmp_path):
    words = ["train", "--data", f"folder:{pictures}", "--image-size", "16", "--batch-size", "8", "--epochs", "2"]
    kpair(*words, "--out", "run", cwd=tmp_path, check=0)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["images"]["skipped"] == 1
    assert any("07.png" in note for note in metrics["notes"])
    assert "<b>" not in (tmp_path / "run" / "report.html").read_text()
    _one_sentence(kpair(*words, "--corrupt", "refuse", "--out", "other", cwd=tmp_path), "07.png")
    assert not (tmp_path / "other").exists()


def test_the_newest_unfinished_run_is_found_behind_a_gap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = {"data": "digits", "epochs": 3}
    assert runs.unfinished_folder("digits", config) is None
    for name in ("digits-2", "digits-10", "digits-x", "digits-more-3"):
        runs.claim(Path("runs") / name, config, resume=False)
    assert runs.next_folder("digits").name == "digits-1"
    assert runs.unfinished_folder("digits", config) == Path("runs") / "digits-10"
    (tmp_path / "runs" / "digits-10" / "metrics.json").write_text("{}")
    assert runs.unfinished_folder("digits", config) == Path("runs") / "digits-2"
    assert runs.unfinished_folder("digits", config | {"epochs": 4}) is None


def test_the_smallest_score_of_a_learnt_temperature_is_not_known():
    config = {"miner": {"name": "debiased", "tau_plus": 0.1, "min_score": None}, "temperature": None}
    told = [repr(miner_of(config | {"critic": {"name": "cosine", "learnable": which}})) for which in (False, True)]
    assert told == ["debiased(tau_plus=0.1, min_score=-10.0)", "debiased(tau_plus=0.1)"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluate", "x.npy"], "kpair: interrupted\n"),
        (["train"], "kpair: interrupted; what was under way goes on with --resume auto\n"),
    ],
)
def test_an_interrupted_command_says_what_goes_on(words, told, monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, words[0], stop)
    assert cli.main(words) == 130
    assert capsys.readouterr().err == told


def test_a_folder_without_labels(pictures, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, path in enumerate(sorted(pictures.glob("*/*.png"))):
        (flat / f"{i}.png").write_bytes(path.read_bytes())
    words = ["--image-size", "16", "--batch-size", "8", "--epochs", "1", "--out", "run"]
    kpair("train", "--data", f"folder:{flat}", *words, cwd=tmp_path, check=0)
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())["encoder"]
    assert figures["recall@1"] is None
    assert 0 <= figures["instance_recall@1"] <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "fashon-mnist"], "did you mean fashion-mnist?"),
        (["--data", "mnist", "--data-root", "nowhere"], "nowhere"),
        (["--data", "mnist"], "--data-root"),
        (["--data", "folder:nowhere"], "nowhere"),
        (["--data", "folder:empty"], "empty"),
        (["--temperature", "0"], "--temperature is 0"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--epohcs", "3"], "did you mean --epochs?"),
        (["--config", "misspelt.yaml"], "did you mean batch_size?"),
        (["--miner", "hlc"], "did you mean hcl?"),
        (["--miner", "hcl", "--miner.beta", "-1"], "beta is -1"),
        (["--miner", "topk", "--miner.k", "0"], "k is 0"),
        (["--miner", "ring", "--miner.lower", "0.5", "--miner.upper", "0.2"], "quantiles out of order"),
        (["--miner", "margin", "--miner.m", "-1"], "m is -1"),
        (["--miner", "random-subset", "--miner.k", "0"], "k is 0"),
        (["--miner", "multi-similarity", "--miner.epsilon", "-1"], "epsilon is -1"),
        (["--miner", "distance-weighted", "--miner.limit", "3"], "limit is 3"),
        (["--miner", "distance-weighted", "--critic", "bilinear"], "expected the critic cosine"),
        (["--miner", "distance-weighted", "--critic.learnable", "true"], "and not learnable"),
        (["--miner", "distance-weighted", "--projector.out", "2"], "dim is 2"),
        (["--encoder", "timm:resnet1"], "nearest: resnet18"),
        (["--critic", "bilinear", "--temperature", "1"], "has none"),
        (["--batch-size", "100000"], "--batch-size is 100000"),
        (["--limit", "1"], "1"),
        (["--lr", "-1"], "--lr is -1"),
        (["--out", "taken"], "taken"),
        (["--accelerator", "warp"], "--accelerator"),
        (["--seed", "4294967296"], "--seed is"),
        (["--encoder", "timm:vit_tiny_patch16_224"], "8 x 8"),
        (["--encoder.widths", "[-5]"], "widths are [-5]"),
        (["--projector.hidden", "[0]"], "hidden is [0]"),
        (["--critic", "separable", "--critic.layers", "-1"], "layers is -1"),
        (["--view.zoom", "0.5"], "zoom is 0.5"),
        (["--view.erase", "2"], "erase 2"),
        (["--data", "folder:two"], "two"),
        (["--precision", "7"], "--precision"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTRASTIVE_DATA", raising=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for i in range(6):
        Image.fromarray(np.full((9, 9), 40 * i, dtype=np.uint8)).save(tmp_path / "two" / f"{i}.png")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    (tmp_path / "misspelt.yaml").write_text("bach_size: 3\n")
    before = sorted(tmp_path.rglob("*"))
    status = main(["train", *words])
    _one_sentence(subprocess.CompletedProcess(words, status, *capsys.readouterr()), message)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["ring", "--miner.lower", "0.1", "--miner.upper", "0.5"], "ring(lower=0.1, upper=0.5)"),
        (["multi-similarity", "--miner.epsilon", "1"], "multi_similarity(epsilon=1.0)"),
        (["margin", "--miner.m", "0.5"], "margin(m=0.5)"),
        (["random-subset", "--miner.k", "8"], "random_subset(k=8)"),
        (
            ["distance-weighted", "--temperature", "0.2", "--projector.out", "24"],
            "distance_weighted(temperature=0.2, dim=24, cutoff=0.5, limit=1.4)",
        ),
        (
            ["distance-weighted", "--miner.k", "4", "--projector", "none", "--encoder.widths", "[8,16]"],
            "distance_weighted(temperature=0.1, dim=16, cutoff=0.5, limit=1.4, k=4)",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_miners_by_name_with_what_the_configuration_fills_in(words, name):
    assert repr(set_up(read_options(["--miner", *words])).miner) == name


@pytest.mark.parametrize("words", [["--metric", "euclidean"], ["--nprobe", "4"]], ids=lambda words: words[0])
def test_evaluate_a_run_takes_no_options_of_files(run, capsys, words):
    status = main(["evaluate", str(run), *words])
    _one_sentence(subprocess.CompletedProcess([], status, *capsys.readouterr()), f"{words[0]} goes with a file")


@pytest.mark.parametrize(
    ("skip", "why"), [("0", "the encoder's output is not finite"), ("9", "measured after the epoch")]
)
def test_training_that_explodes_is_one_sentence(tmp_path, capsys, skip, why):
    """At the first step that is not finite; or, where all others of the epoch are skipped, at its end."""
    words = ["train", *SMALL, "--lr", "1e30", "--skip-steps", skip, "--out", str(tmp_path / "run")]
    with nullcontext() if skip == "0" else pytest.warns(UserWarning, match="is skipped"):
        status = main(words)
    done = subprocess.CompletedProcess([], status, *capsys.readouterr())
    _one_sentence(done, "training stopped at step")
    assert why in done.stderr
    assert list((tmp_path / "run").glob("failed-step-*.safetensors"))


def test_unknown_command_and_help(tmp_path, capsys):
    _one_sentence(kpair("trian", cwd=tmp_path), "did you mean train?")
    assert main(["--help"]) == main(["--version"]) == main([]) == 0
    assert "kpair 0." in capsys.readouterr().out
    for words, shown in [(["--help"], "--batch-size"), (["--miner", "hcl", "--print_config"], "beta: 1.0")]:
        with pytest.raises(SystemExit) as stop:
            main(["train", *words])
        assert stop.value.code == 0
        assert shown in capsys.readouterr().out


def test_a_foreign_contrastive_is_named(tmp_path):
    (tmp_path / "contrastive").mkdir()
    (tmp_path / "contrastive" / "__init__.py").write_text("import nothing_of_this_name\n")
    done = kpair("train", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    _one_sentence(done, f"Python finds {tmp_path / 'contrastive' / '__init__.py'}")


def test_the_installed_command(tmp_path):
    command = Path(sys.executable).with_name("kpair")
    if not command.exists():
        pytest.fail("kpair is not installed as a command beside this Python")
    assert subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, check=True).stdout


def _one_sentence(done, message):
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("kpair: training in")]
    assert line.startswith("kpair: error: ")
    assert message in line
