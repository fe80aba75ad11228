"""Training on several ranks: equal to one process, refused together, restarted by torchrun."""

import contextlib
import copy
import gc
import io
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from references import close, refused
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contrastive import launch
from contrastive.checkpoints import newest_checkpoint
from contrastive.cli import main
from contrastive.collectives import sum_over_ranks
from contrastive.criterion import KPairLoss
from contrastive.critics import Cosine
from contrastive.distributed import GlobalBatch
from contrastive.encoders import Recipe, build
from contrastive.errors import InputError
from contrastive.norms import GlobalBatchNorm, global_batch_norms
from contrastive.training import fit, read_history
from contrastive.views import RandomView
from miners import hcl

IMAGES = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe("ConvNet", {"channels": 1, "widths": [4, 8]}, {"hidden": [8], "out": 4}, [0.5], [0.3])
ROW_WISE = Recipe("MLP", {"dim": 64, "hidden": [8], "batch_norm": False}, {"hidden": [], "out": 4}, [0.5], [0.3])


def mirrored(images):
    """Two views without a draw: the image and its mirror image."""
    first, second = images.chunk(2)
    return torch.cat([first, second.flip(3)])


def noise(images):
    return images + 0.2 * torch.randn_like(images)


def train(rank, world, out, recipe, view, options, spoil=None):
    encoder, projector = build(recipe, seed=0)
    if spoil is not None:
        spoil(encoder)
    criterion = GlobalBatch(KPairLoss(Cosine(0.2, learnable=True), miner=hcl(1.0)))
    options = {"epochs": 2, "lr": 1e-3, "batch_size": 12, "each_epoch": lambda: {"of_rank": float(rank)}} | options
    options["each_loss"] = lambda: {"told": float(rank)}
    result = fit(encoder, projector, criterion, IMAGES, view=view, out=out, accelerator="cpu", **options)
    everything = nn.ModuleList([encoder, projector, criterion]).state_dict()
    return everything, result.final_loss, read_history(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "recipe", "options"),
    [(2, RECIPE, {}), (2, RECIPE, {"batch_size": 13}), (3, ROW_WISE, {"chunk": 3})],
    ids=["batch norms", "uneven", "chunks"],
)
def test_two_ranks_end_where_one_does(tmp_path, world, recipe, options):
    alone, loss, history = train(0, 1, tmp_path / "alone", recipe, mirrored, options)
    ranks = run_ranks(train, world, tmp_path / "ranks", recipe, mirrored, options)
    for found, of_rank, _ in ranks:
        assert of_rank == ranks[0][1] == pytest.approx(loss, abs=1e-5)
        for key, value in alone.items():
            close(found[key], value, 1e-4)
            assert torch.equal(found[key], ranks[0][0][key])
    written = ranks[0][2]
    assert [row["of_rank"] for row in written if "of_rank" in row] == [0.0, 0.0]
    assert {row["told"] for row in written if "loss" in row} == {(world - 1) / 2}  # the mean over ranks
    assert [row["step"] for row in written] == [row["step"] for row in history]
    for row, other in zip(written, history, strict=True):
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), abs=1e-4)
    assert len(list((tmp_path / "ranks" / "checkpoints").iterdir())) == 2


@pytest.mark.slow
def test_ranks_draw_views_of_their_own_again_and_again(tmp_path):
    ranks = [run_ranks(train, 2, tmp_path / str(k), RECIPE, noise, {}) for k in range(2)]
    assert ranks[0][0][1] == ranks[1][0][1]
    (drawn, measured), (others, by_other) = run_ranks(first_views, 2, tmp_path / "views")
    assert not torch.equal(drawn, others)
    assert (measured, by_other) == (1, 0)


def first_views(rank, world, out):
    """What a rank's view draws at first, and how often it measures."""
    seen, measured = [], []

    def view(images):
        seen.append(torch.randn(3))
        return images

    def measure():
        measured.append(rank)
        return {"figure": 1.0}

    train(rank, world, out, RECIPE, view, {"epochs": 1, "each_epoch": measure})
    return seen[0], len(measured)


def stopped(rank, world, out):
    """Rank 0 alone hears SIGTERM, at its third step: the status of both, and the steps that they have saved."""
    seen = [0]

    def view(images):
        seen[0] += 1
        if rank == 0 and seen[0] == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return mirrored(images)

    with pytest.raises(SystemExit) as ended:
        train(rank, world, out, RECIPE, view, {})
    return ended.value.code, seen[0]


def resumed(rank, world, out):
    options = {"resume_from": newest_checkpoint(out / "checkpoints")}
    return train(rank, world, out, RECIPE, mirrored, options)[0]


@pytest.mark.slow
def test_ranks_stop_after_the_same_step_and_go_on(tmp_path):
    whole = run_ranks(train, 2, tmp_path / "whole", RECIPE, mirrored, {})[0][0]
    assert run_ranks(stopped, 2, tmp_path / "run", timeout=30) == [(143, 3)] * 2
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003.ckpt"]
    for found in run_ranks(resumed, 2, tmp_path / "run"):
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[key], value) for key, value in whole.items())


def unused(encoder):
    encoder.forgotten = nn.Parameter(torch.zeros(3))


def frozen(encoder):
    encoder.forgotten = nn.Parameter(torch.zeros(3), requires_grad=False)


def refused_by(rank, world, *arguments):
    with pytest.raises(InputError) as caught:
        train(rank, world, *arguments)
    return type(caught.value) is launch.RefusedByAll, str(caught.value)


@pytest.mark.slow
def test_row21_a_parameter_that_the_loss_does_not_use(tmp_path):
    for by_all, message in run_ranks(refused_by, 2, tmp_path / "a", RECIPE, noise, {}, unused):
        assert by_all
        assert "the loss of step 0 does not depend on encoder.forgotten" in message
    run_ranks(train, 2, tmp_path / "b", RECIPE, noise, {"epochs": 1}, frozen)
    train(0, 1, tmp_path / "c", RECIPE, noise, {"epochs": 1}, unused)


def with_a_broken_view(rank, world, out, skip_steps):
    """The second rank's views are not finite at the fourth step, and of no other rank's."""
    seen = [0]

    def view(images):
        seen[0] += 1
        return images * math.nan if (rank, seen[0]) == (1, 4) else noise(images)

    options = {"epochs": 2, "batch_size": 12, "skip_steps": skip_steps, "accelerator": "cpu"}
    encoder, projector = build(ROW_WISE, seed=0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            skipped = fit(
                encoder, projector, GlobalBatch(KPairLoss(Cosine())), IMAGES, view=view, out=out, **options
            ).skipped
        except launch.RefusedByAll as error:
            skipped = str(error)
    return (
        skipped,
        encoder.state_dict(),
        [str(warning.message) for warning in said if "skipped" in str(warning.message)],
    )


@pytest.mark.slow
def test_row09_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(tmp_path):
    (skipped, weights, said), (other, others, silent) = run_ranks(with_a_broken_view, 2, tmp_path, 1)
    assert skipped == other == 1
    assert all(
        torch.equal(a, b) and bool(torch.isfinite(a).all())
        for a, b in zip(weights.values(), others.values(), strict=True)
    )
    assert [message.split(":")[0] for message in said] == ["step 3 is skipped"]
    assert silent == []
    views = [load_file(tmp_path / f"failed-step-3-rank-{rank}.safetensors")["views"] for rank in (0, 1)]
    assert [bool(torch.isfinite(batch).all()) for batch in views] == [True, False]
    for stopped, _, _ in run_ranks(with_a_broken_view, 2, tmp_path, 0):
        assert stopped.startswith("training stopped at step 3 (epoch 0): the encoder's output is not finite")


@pytest.mark.slow
def test_chunks_and_batch_normalisation(tmp_path):
    with pytest.raises(InputError, match=r"BatchNorm2d .* in training mode"):
        train(0, 1, tmp_path, RECIPE, noise, {"chunk": 4})
    sizes = set()

    def watched(encoder):
        encoder.register_forward_pre_hook(lambda _, rows: sizes.add(len(rows[0])))

    train(0, 1, tmp_path, ROW_WISE, noise, {"chunk": 5, "epochs": 1}, watched)
    assert sizes == {5, 4}  # of 24 views


@pytest.mark.slow
def test_the_command_with_chunks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--chunk", "16"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("kpair: error: --chunk: the encoder holds BatchNorm2d")
    assert not list(tmp_path.iterdir())
    row_wise = ["--encoder", "mlp", "--encoder.batch_norm", "false", "--projector", "linear", "--chunk", "16"]
    assert main(["train", *SMALL[2:], *row_wise, "--out", "run"]) == 0
    assert main(["train", *SMALL[2:], *row_wise[:-2], "--out", "whole"]) == 0
    ended = [load_file(tmp_path / name / "encoder.safetensors") for name in ("run", "whole")]
    for key, value in ended[1].items():
        close(ended[0][key], value, 1e-4)


def test_ranks_that_have_not_joined(tmp_path, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"contrastive\.launch\.joined"):
        train(0, 1, tmp_path, RECIPE, noise, {})


ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--encoder.widths", "[4]", "--limit", "80", "--batch-size", "40", "--epochs", "1", "--progress", "false"]


def command(rank, world, folder, *by_rank):
    """A command on several ranks, with words of its own for each: its status, and what it says."""
    os.chdir(folder)
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        status = main(["train", *SMALL, *by_rank[rank]])
    return status, said.getvalue(), shown.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (["--lr", "0.1"], ["--lr", "0.2"], "the ranks differ in lr: 0.1 on rank 0, 0.2 on rank 1"),
        ([], ["--limit", "81"], "the ranks differ in limit: 80 on rank 0, 81 on rank 1"),
        ([], ["--seed", "7"], "the ranks differ in seed: 0 on rank 0, 7 on rank 1"),
        ([], ["--lr", "-1"], "rank 1: --lr is -1.0"),
        (["--lr", "-1"], ["--lr", "-1"], "error: --lr is -1.0"),
        (["--out", "taken"], ["--out", "taken"], "taken exists and is not a run"),
    ],
)
def test_row23_ranks_that_differ_are_refused_at_the_start(tmp_path, first, second, words):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    (status, said, _), (other, silent, _) = run_ranks(command, 2, tmp_path, first, second)
    assert status == other == 2
    assert words in said
    assert said.count("\n") == 1
    assert silent == ""
    assert not (tmp_path / "runs").exists()


def exchanged(rank, world):
    facts = {"same": 1.0, "data": f"checksum {rank // 2}"}
    messages = []

    def fails():
        if rank == 1:
            raise InputError("no such file")
        return rank

    for call in (lambda: launch.agree(facts), lambda: launch.together(fails), lambda: launch.by_first(_raises)):
        try:
            call()
        except launch.RefusedByAll as error:
            messages.append(str(error))
    found = launch.together(lambda: rank), launch.by_first(lambda: rank), float(sum_over_ranks(torch.tensor(2.0)))
    with launch.joined():
        assert launch.first() == (rank == 0)
    return messages, found


def _raises():
    raise InputError("taken")


def test_what_one_rank_refuses_all_refuse():
    for rank, (messages, found) in enumerate(run_ranks(exchanged, 3)):
        assert messages == [
            "the ranks differ in data: 'checksum 0' on rank 0, 'checksum 1' on rank 2; expected the same on all",
            "rank 1: no such file",
            "taken",
        ]
        assert found == (rank, 0, 6.0)


def test_alone():
    launch.agree({"a": 1})
    assert launch.together(lambda: 3) == launch.by_first(lambda: 3) == 3
    with pytest.raises(InputError, match=r"^taken$"):
        launch.together(_raises)
    assert launch.first()
    assert not launch.launched()
    assert not launch.restarted()
    assert not launch.of_another_rank(RuntimeError("Connection closed by peer"))


@pytest.mark.parametrize("variable", [None, "1"])
def test_a_warning_where_restarts_are_allowed(monkeypatch, recwarn, variable):
    """A rank that will find no store: it warns before."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "none")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    if variable is not None:
        monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", variable)
    with pytest.raises(ValueError, match="invalid literal"), launch.joined():
        pass
    warned = [str(w.message) for w in recwarn if "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in str(w.message)]
    assert len(warned) == (variable is None)


def norms(rank, world, x, lengths, norm):
    """Two steps of training: outputs, gradients, running statistics, and an output in evaluation mode."""
    layer = nn.Sequential(copy.deepcopy(norm), nn.Tanh())
    if world > 1:
        layer = global_batch_norms(layer)
        assert isinstance(layer[0], GlobalBatchNorm)
    model = layer
    learnt = list(layer.parameters())
    if world > 1 and learnt:
        model = DistributedDataParallel(layer)
    own = x.split(lengths)[rank].clone().requires_grad_()
    weights = torch.arange(x.numel(), dtype=x.dtype).view_as(x).sin()
    for _ in range(2):
        y = model(own)
        loss = (y * weights.split(lengths)[rank]).sum() * world  # whose mean over ranks is the sum over rows
        loss.backward()
    layer.eval()
    return y.detach(), own.grad / world, [p.grad for p in learnt], layer.state_dict(), layer(own).detach()


@pytest.mark.parametrize("lengths", [(4, 4), (5, 3), (1, 7), (3, 1, 4)], ids=str)
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(3), ()),
        (nn.BatchNorm1d(3, momentum=None), (5,)),
        (nn.BatchNorm2d(3, affine=False), (2, 4)),
        (nn.BatchNorm3d(3, track_running_stats=False), (2, 1, 2)),
    ],
    ids=["1d", "1d, cumulative", "2d, not affine", "3d, not tracked"],
)
def test_batch_normalisation_over_all_ranks(lengths, norm, shape):
    norm = norm.double()
    x = torch.randn(8, 3, *shape, dtype=torch.float64) + 100
    y, dx, dp, state, evaluated = norms(0, 1, x, (8,), norm)
    for rank, found in enumerate(run_ranks(norms, len(lengths), x, lengths, norm)):
        for whole, part in ((y, found[0]), (dx, found[1]), (evaluated, found[4])):
            if whole is evaluated and not norm.track_running_stats:
                continue  # statistics of the batch, in evaluation mode too: of whom it is evaluated with
            close(part, whole.split(lengths)[rank], 1e-9)
        for g, e in zip(found[2], dp, strict=True):
            close(g, e, 1e-9)
        assert found[3].keys() == state.keys()
        for key, value in state.items():
            close(found[3][key], value, 1e-12)


def test_which_norms_are_replaced():
    inner = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3).eval(), nn.Sequential(nn.BatchNorm1d(3).half()))
    weights = dict(inner.named_parameters())
    assert global_batch_norms(inner) is inner
    assert [type(m).__name__ for m in inner.modules() if "Norm" in type(m).__name__] == ["GlobalBatchNorm"] * 2
    assert not inner[1].training
    assert all(p is weights[name] for name, p in inner.named_parameters())
    x = torch.randn(4, 3)
    norm = nn.BatchNorm1d(3)
    expected = copy.deepcopy(norm)(x)
    assert torch.equal(global_batch_norms(norm)(x), expected)
    kept = nn.Sequential(nn.SyncBatchNorm(3), nn.InstanceNorm1d(3), nn.LayerNorm(3))
    assert [type(m) for m in global_batch_norms(copy.deepcopy(kept))] == [type(m) for m in kept]
    with refused("GlobalBatchNorm", "(4,)"):
        GlobalBatchNorm(3)._check_input_dim(torch.zeros(4))

    class Own(nn.BatchNorm1d):
        pass

    with refused("global_batch_norms: Own is a batch normalisation of its own kind"):
        global_batch_norms(nn.Sequential(Own(2)))


@pytest.mark.parametrize("training", [True, False])
def test_timms_batch_norms_keep_what_follows_them(monkeypatch, training):
    """They activate as well: replaced by class alone, they would stay those of a rank."""
    norm = BatchNormAct2d(3, act_layer=nn.GELU, act_kwargs={}, inplace=False).train(training)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x, other = 3 * torch.randn(4, 3, 5, 5) + 2, copy.deepcopy(norm)
    replaced = global_batch_norms(norm)
    assert type(replaced) is GlobalBatchNorm
    assert replaced.state_dict().keys() == other.state_dict().keys()
    for world in (1, 2):
        monkeypatch.setattr("contrastive.norms.world_size", lambda world=world: world)
        monkeypatch.setattr("contrastive.norms.sum_over_ranks", lambda value: value)  # the other rank has no rows
        torch.testing.assert_close(replaced(x), other(x))
    torch.testing.assert_close(replaced.state_dict(), other.state_dict())


@pytest.mark.slow
def test_row22_torchrun_restarts_a_killed_rank_and_the_run_ends_where_the_uninterrupted_one_does(tmp_path):
    words = ["train", *SMALL, "--epochs", "4", "--checkpoint-every", "2"]
    whole = run_ranks(plain_command, 2, tmp_path, [*words, "--out", "whole"])
    assert [status for status, _ in whole] == [0, 0]
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
            ROOT / "tests" / "elastic.py", *words, "--out", "broken",
        ],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    ended = [load_file(tmp_path / name / "encoder.safetensors") for name in ("whole", "broken")]
    assert all(torch.equal(ended[1][key], value) for key, value in ended[0].items())
    assert read_history(tmp_path / "broken") == read_history(tmp_path / "whole")
    assert "local_rank: 1" in done.stderr
    assert "exitcode: -9" in done.stderr
    assert done.stderr.count("kpair: resuming in broken on 2 ranks") == 1
    assert "Traceback" not in done.stderr
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in done.stderr


def fails_on(rank, world, folder, failing, error):
    """A command of which one rank fails at the third step: its status, and what is said, a traceback included."""
    seen, forward = [0], RandomView.forward

    def view(self, images):
        seen[0] += 1
        if rank == failing and seen[0] == 3:
            raise error
        return forward(self, images)

    RandomView.forward = view
    os.chdir(folder)
    status, said = 1, io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            status = main(["train", *SMALL, "--epochs", "4", "--out", "run"])
    except KeyError as caught:
        said.write(f"{caught!r}\n")
    finally:
        RandomView.forward = forward
        # This process does not end as it would: what still holds the group must go, for the others to notice.
        error.__traceback__ = None
        gc.collect()
    return status, said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (KeyError("the cause"), 1, "failed, as follows\nKeyError('the cause')"),
        (InputError("the cause"), 2, "the cause"),
        (MemoryError("not enough memory"), 2, "out of memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_row22_the_rank_that_fails_says_why_and_no_other_waits(tmp_path, failing, error, status, cause):
    ranks = run_ranks(fails_on, 2, tmp_path, failing, error, timeout=30)
    assert ranks[failing][0] == status
    assert f"rank {failing}: " in ranks[failing][1]
    assert cause in ranks[failing][1]
    code, said = ranks[1 - failing]
    assert code == 1
    assert said.splitlines()[-1] == f"kpair: rank {1 - failing}: stopped, for another rank has gone"
    assert "the cause" not in said


def plain_command(rank, world, folder, words):
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return main(words), said.getvalue()
