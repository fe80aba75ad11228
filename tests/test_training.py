"""Training: the order of batches, exact resume, figures that are finite or a run that stops."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from contrastive.batches import Batches, derived_seed
from contrastive.checkpoints import load_checkpoint, newest_checkpoint, save_checkpoint
from contrastive.criterion import KPairLoss
from contrastive.critics import Cosine
from contrastive.encoders import Recipe, build
from contrastive.errors import InputError
from contrastive.training import fit, read_history
from miners import Counted, annealed, chain, counted, hcl, multi_similarity, random_subset, topk

IMAGES = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe("ConvNet", {"channels": 1, "widths": [4, 8]}, {"hidden": [8], "out": 4}, [0.5], [0.3])


def noise(images):
    return images + 0.2 * torch.randn_like(images)


class Stop(Exception):
    """The machine fails."""


def mine_at(criterion, miner, told, step):
    told.append(step)
    criterion.miner = miner.at(step)


def train(out, *, epochs=4, fail_at=None, resume=False, miner=None, told=None, **options):
    """Trains a small network; returns its weights and the result. `fail_at`: raises at that step.

    `told` is a list of the steps that the miner is told.
    """
    encoder, projector = build(RECIPE, seed=0)
    counting = isinstance(miner, Counted)
    criterion = KPairLoss(Cosine(), miner=miner if counting else None)
    each_step = miner.begin if counting else partial(mine_at, criterion, miner, told if told is not None else [])
    encoder.eval()  # whatever its caller did with it before
    steps = 0

    def view(images):
        nonlocal steps
        steps += 1
        if fail_at is not None and steps == fail_at:
            raise Stop
        return noise(images)

    options = {"batch_size": 8, "lr": 1e-2, "seed": 5, "each_epoch": lambda: {"held_out_bound": 1.0}} | options
    checkpoint = newest_checkpoint(out / "checkpoints") if resume else None
    result = fit(
        encoder,
        projector,
        criterion,
        IMAGES,
        view=view,
        out=out,
        epochs=epochs,
        resume_from=checkpoint,
        each_step=None if miner is None else each_step,
        **options,
    )
    return nn.Sequential(encoder, projector).state_dict(), result


def test_what_a_step_tells_is_logged_beside_its_loss_and_resumes(tmp_path):
    counting = counted(multi_similarity(0.0))

    def run(out, **options):
        return train(out, each_loss=counting.figures, miner=counting, **options)

    run(tmp_path / "whole")
    whole = read_history(tmp_path / "whole")
    shares = [row["empty_rows"] for row in whole if "loss" in row]
    assert len(shares) == 24
    assert 0 <= min(shares) < max(shares) <= 1
    assert all("empty_rows" not in row for row in whole if "loss" not in row)
    with pytest.raises(Stop):
        run(tmp_path / "broken", fail_at=9, checkpoint_every=3)
    run(tmp_path / "broken", resume=True, checkpoint_every=3)
    assert read_history(tmp_path / "broken") == whole


@pytest.mark.slow
def test_norms_that_were_frozen_stay_frozen(tmp_path):
    """Within an encoder that trains; `fit` puts the rest into training mode, before each epoch's measures and after."""
    encoder, projector = build(RECIPE, seed=0)
    norms = [part for part in encoder.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    norms[0].eval()
    projector.eval()  # all of it: whatever its caller did with it before
    before = [norm.running_mean.clone() for norm in norms]
    modes = []

    def view(images):
        modes.append((norms[0].training, norms[1].training, projector.training))
        return noise(images)

    fit(
        encoder, projector, KPairLoss(Cosine()), IMAGES, view=view, out=tmp_path, epochs=2, batch_size=8, lr=1e-2,
        seed=5, each_epoch=lambda: {"mode": float(encoder.training)},
    )  # fmt: skip
    assert set(modes) == {(False, True, True)}
    assert torch.equal(norms[0].running_mean, before[0])
    assert not torch.equal(norms[1].running_mean, before[1])
    assert [row["mode"] for row in read_history(tmp_path) if "mode" in row] == [0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [50, 25, 17, 16, 10, 9])
def test_every_short_training_has_a_schedule(tmp_path, batch_size):
    """2 to 10 steps: torch divides by a tenth of them, less one."""
    steps = 2 * (50 // batch_size)
    train(tmp_path, epochs=2, batch_size=batch_size)
    assert len([row for row in read_history(tmp_path) if "loss" in row]) == steps


@pytest.mark.slow
def test_a_line_that_a_full_disk_cut_off_is_left_out(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "broken", fail_at=9, checkpoint_every=3)
    with (tmp_path / "broken" / "metrics.csv").open("a") as file:
        file.write("1,,0.0")
    train(tmp_path / "broken", resume=True, checkpoint_every=3)
    assert read_history(tmp_path / "broken") == read_history(tmp_path / "whole")


@pytest.mark.slow
def test_another_number_of_ranks_is_announced(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, fail_at=9, checkpoint_every=3)
    newest = newest_checkpoint(tmp_path / "checkpoints")
    save_checkpoint(newest, load_checkpoint(newest) | {"world": 2})
    with pytest.warns(UserWarning, match=r"saved by 2 rank\(s\) and is continued by 1: .*not bit for bit"):
        train(tmp_path, resume=True, checkpoint_every=3)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_batches_cover_each_epoch_once_in_a_new_order():
    batches = Batches(IMAGES, 8, seed=1)
    epochs = [[ids for ids, _ in batches] for _ in range(2)]
    for epoch in epochs:
        seen = torch.cat(epoch)
        assert len(seen) == 48 == len(seen.unique())
    assert not torch.equal(epochs[0][0], epochs[1][0])
    again = [ids for ids, _ in Batches(IMAGES, 8, seed=1)]
    assert all(torch.equal(a, b) for a, b in zip(again, epochs[0], strict=True))
    ids, images = next(iter(Batches(IMAGES, 8, seed=1)))
    assert torch.equal(images, IMAGES[ids])


@pytest.mark.parametrize("taken", [0, 1, 5, 6, 7, 11, 12])
def test_batches_go_on_where_they_were(taken):
    def stream(batches, count):
        found = []
        while len(found) < count:
            for ids, _ in batches:
                found.append(ids.tolist())
                if len(found) == count:
                    break
        return found

    whole = stream(Batches(IMAGES, 8, seed=1), 18)
    first = Batches(IMAGES, 8, seed=1)
    start = stream(first, taken)
    second = Batches(IMAGES, 8, seed=1)
    second.load_state_dict(first.state_dict())
    assert start + stream(second, 18 - taken) == whole


def test_derived_seeds_differ():
    seeds = {derived_seed(a, b) for a in range(50) for b in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint_every", "fail_at"), [(None, 20), (None, 7), (2, 5), (4, 17), (3, 24)], ids=lambda value: str(value)
)
def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(tmp_path, checkpoint_every, fail_at):
    whole, result = train(tmp_path / "whole", checkpoint_every=checkpoint_every)
    with pytest.raises(Stop):
        train(tmp_path / "broken", checkpoint_every=checkpoint_every, fail_at=fail_at)
    torch.rand(7)  # another place in the global random stream must not matter
    resumed, resumed_result = train(tmp_path / "broken", checkpoint_every=checkpoint_every, resume=True)
    assert equal(whole, resumed)
    assert resumed_result.final_loss == result.final_loss
    assert resumed_result.steps == result.steps == 24
    assert read_history(tmp_path / "broken") == read_history(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_resumed_twice_at_an_epochs_end(tmp_path):
    whole, result = train(tmp_path / "whole", checkpoint_every=6)
    for resume in (False, True):
        with pytest.raises(Stop):
            train(tmp_path / "broken", checkpoint_every=6, fail_at=8, resume=resume)
    resumed, resumed_result = train(tmp_path / "broken", checkpoint_every=6, resume=True)
    assert equal(whole, resumed)
    assert resumed_result.steps == result.steps
    assert read_history(tmp_path / "broken") == read_history(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("fail_at", [20, 7])
@pytest.mark.parametrize(
    "miner",
    [
        annealed(hcl, start=4.0, end=0.0, steps=20),
        chain(annealed(topk, start=6, end=2, steps=15), random_subset(3)),
    ],
    ids=repr,
)
def test_a_miner_that_changes_with_the_step_resumes_bit_for_bit(tmp_path, miner, fail_at):
    told, first, rest = [], [], []
    whole, result = train(tmp_path / "whole", checkpoint_every=3, miner=miner, told=told)
    assert told == list(range(24))
    with pytest.raises(Stop):
        train(tmp_path / "broken", checkpoint_every=3, miner=miner, told=first, fail_at=fail_at)
    torch.rand(7)
    resumed, resumed_result = train(tmp_path / "broken", checkpoint_every=3, miner=miner, told=rest, resume=True)
    assert first == list(range(fail_at))
    assert rest == list(range((fail_at - 1) // 3 * 3, 24))
    assert equal(whole, resumed)
    assert resumed_result.final_loss == result.final_loss
    # The schedule counts: with the miner of step 0 throughout another network is trained.
    constant, _ = train(tmp_path / "constant", checkpoint_every=3, miner=miner.at(0))
    assert not equal(whole, constant)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every", [None, 3, 24])
def test_a_run_that_was_killed_after_its_last_step_takes_no_other(tmp_path, checkpoint_every):
    whole, result = train(tmp_path, checkpoint_every=checkpoint_every)
    history = read_history(tmp_path)
    resumed, again = train(tmp_path, checkpoint_every=checkpoint_every, resume=True)
    assert equal(whole, resumed)
    assert (again.final_loss, again.steps) == (result.final_loss, 24)
    assert read_history(tmp_path) == history


@pytest.mark.slow
def test_figures_lost_between_the_checkpoint_and_the_epochs_end_are_measured_again(tmp_path):
    calls = 0

    def each_epoch():
        nonlocal calls
        calls += 1
        if calls == 2 and not (tmp_path / "failed").exists():
            (tmp_path / "failed").touch()
            raise Stop
        return {"held_out_bound": 2.0}

    with pytest.raises(Stop):
        train(tmp_path, checkpoint_every=3, each_epoch=each_epoch)
    train(tmp_path, checkpoint_every=3, each_epoch=each_epoch, resume=True)
    measured = [(row["step"], row["epoch"]) for row in read_history(tmp_path) if "held_out_bound" in row]
    assert measured == [(5, 0), (11, 1), (17, 2), (23, 3)]


@pytest.mark.slow
def test_one_seed_one_result_and_another_seed_another(tmp_path):
    first, one = train(tmp_path / "a")
    again, two = train(tmp_path / "b")
    other, three = train(tmp_path / "c", seed=6)
    assert equal(first, again)
    assert one.final_loss == two.final_loss != three.final_loss
    assert not equal(first, other)


@pytest.mark.slow
def test_the_history_has_every_step_and_epoch(tmp_path):
    train(tmp_path)
    rows = read_history(tmp_path)
    assert [row["step"] for row in rows if "loss" in row] == list(range(24))
    assert [row["step"] for row in rows if "held_out_bound" in row] == [5, 11, 17, 23]
    assert len(list((tmp_path / "checkpoints").glob("*"))) == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    whole, _ = train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "broken", fail_at=20)
    newest = max((tmp_path / "broken" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=r"step-\d+.ckpt has no checksum .* trying the checkpoint before"):
        resumed, _ = train(tmp_path / "broken", resume=True)
    assert equal(whole, resumed)


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "checkpoints") is None
    assert read_history(tmp_path) == []


@pytest.mark.slow
def test_training_that_is_not_finite_stops_and_saves_the_batch(tmp_path):
    def view(images):
        return noise(images) if torch.initial_seed() % 2 else noise(images) * float("nan")

    encoder, projector = build(RECIPE, seed=0)
    with pytest.raises(InputError, match=r"training stopped at step \d+ \(epoch 0\)") as caught:
        fit(
            encoder,
            projector,
            KPairLoss(Cosine()),
            IMAGES,
            view=view,
            out=tmp_path,
            epochs=3,
            batch_size=8,
            skip_steps=0,
        )
    (saved,) = tmp_path.glob("failed-step-*.safetensors")
    assert str(saved) in str(caught.value)
    batch = load_file(saved)
    assert batch["ids"].shape == (8,)
    assert batch["views"].shape == (16, 1, 8, 8)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops(tmp_path):
    class Broken(nn.Module):
        def forward(self, x, y):
            return (x * y).sum() * float("inf")

    encoder, projector = build(RECIPE, seed=0)
    with pytest.raises(InputError, match=r"step 0 .*the loss is (nan|-?inf)"):
        fit(encoder, projector, Broken(), IMAGES, view=noise, out=tmp_path, epochs=1, batch_size=8, skip_steps=0)


@pytest.mark.slow
def test_scores_that_overflow_stop_with_the_batch_saved(tmp_path):
    encoder, projector = build(RECIPE, seed=0)

    def huge(x, y):
        return (x @ y.T) * 1e38 * 1e38

    with pytest.raises(InputError, match=r"step 0 .*NaN or \+inf"):
        fit(encoder, projector, KPairLoss(huge), IMAGES, view=noise, out=tmp_path, epochs=1, batch_size=8)
    assert list(tmp_path.glob("failed-step-0.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_every", [None, 1])
def test_a_last_step_that_breaks_the_weights_is_noticed(tmp_path, checkpoint_every):
    """One step an epoch: no next step notices, and neither a checkpoint nor a figure may come of it."""
    with pytest.raises(InputError, match="weights that are not finite"):
        train(tmp_path, epochs=1, batch_size=50, lr=float("inf"), checkpoint_every=checkpoint_every)
    assert not list((tmp_path / "checkpoints").glob("*"))
    assert list(tmp_path.glob("failed-step-*.safetensors"))


@pytest.mark.parametrize("batch_size", [0, 1, 51])
def test_batch_size_is_checked(tmp_path, batch_size):
    with pytest.raises(InputError, match="expected 2 to 50"):
        train(tmp_path, batch_size=batch_size)


@pytest.mark.slow
def test_it_learns(tmp_path):
    _, result = train(tmp_path, epochs=20)
    losses = [row["loss"] for row in read_history(tmp_path) if "loss" in row]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert result.images_per_second > 0
    assert 0 <= result.loading_share < 1
