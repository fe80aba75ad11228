"""Checkpoints and resuming: rows 25 to 30 of docs/reliability.md."""
# ruff: noqa: NPY002  # the global generator of NumPy, which users draw from

import ast
import json
import os
import pickle
import random
import resource
import signal
import subprocess
import time
import zipfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import children
import numpy as np
import pytest
import soak
import torch
from loops import IMAGES, RECIPE, fit_loop, own_loop, write_own_loop
from torch import nn
from torch.utils.data import DataLoader

from contrastive import runs, training, vectors
from contrastive.batches import EpochBatches, epoch_batches
from contrastive.checkpoints import check_state, load_checkpoint, locked, newest_checkpoint, save_checkpoint
from contrastive.cli import main
from contrastive.cli.configuration import read_options
from contrastive.criterion import KPairLoss
from contrastive.critics import Cosine
from contrastive.encoders import Recipe, build, load_encoder, save_encoder
from contrastive.errors import InputError
from contrastive.files import remove_scraps
from contrastive.randomness import random_state, set_random_state
from contrastive.training import fit

ROOT = Path(__file__).resolve().parents[2]
OTHER = Recipe("ConvNet", {"channels": 1, "widths": [4, 6]}, {"hidden": [8], "out": 4}, [0.5], [0.3])
SMALL = ["train", "--data", "digits", "--limit", "64", "--batch-size", "16", "--encoder.widths", "[4,8]"]


def content(step):
    return {"step": step, "model": {"weight": torch.full((2000,), float(step))}, "words": ["a", ("b", None)]}


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def noise(images):
    return images + 0.2 * torch.randn_like(images)


def train(out, recipe=RECIPE, *, resume_from=None, epochs=4, view=noise, criterion=None, **options):
    """A small training; its modules and what `fit` returned."""
    encoder, projector = build(recipe, seed=0)
    options = {"batch_size": 8, "lr": 1e-2, "seed": 5} | options
    result = fit(
        encoder, projector, criterion or KPairLoss(Cosine()), IMAGES, view=view, out=out, epochs=epochs,
        resume_from=resume_from,
        **options,
    )  # fmt: skip
    return nn.Sequential(encoder, projector), result


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True)
    if done.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(disk):
    """Leaves room for a few kB."""
    free = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - 4096))


# --- 25: killed anywhere --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return own_loop(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kills", ["between steps", "in a save"])
def test_row25_killed_anywhere_a_loop_of_ones_own_ends_bit_for_bit_where_it_would_have(
    tmp_path, uninterrupted, workers, kills
):
    folder, ended, draw = tmp_path / "checkpoints", tmp_path / "ended", random.Random(f"{workers} {kills}")
    folder.mkdir()
    scraps = 0
    for _ in range(3):
        way = {"die_at": draw.randrange(18)} if kills == "between steps" else {"die_in_save": draw.randrange(2, 400)}
        status = children.run(partial(write_own_loop, ended, folder, workers, **way))
        scraps += any(path.name.startswith(".") for path in folder.iterdir())
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert scraps or kills == "between steps"  # it did die in the middle of a file
    if not ended.exists():
        assert children.run(partial(write_own_loop, ended, folder, workers)) == 0
    assert ended.read_text() == uninterrupted
    remove_scraps(folder)
    assert all(path.name.startswith("step-") for path in folder.iterdir())


def test_row25_without_its_parts_it_would_end_elsewhere(tmp_path, uninterrupted, monkeypatch):
    """Each part of the state counts: the fingerprint finds that it was not brought back."""
    assert own_loop(tmp_path) == uninterrupted
    for part in ("net", "optimiser", "schedule", "scaler", "sampler", "random", "step"):
        folder = tmp_path / part
        folder.mkdir()
        state = load_checkpoint(tmp_path / "step-9.ckpt")
        other = load_checkpoint(tmp_path / "step-6.ckpt")
        save_checkpoint(folder / "step-9.ckpt", state | {part: other[part]})
        with suppress(ValueError):  # the schedule of the learning rate is at its end before the epochs are
            assert own_loop(folder) != uninterrupted, part


@pytest.mark.parametrize(
    "kills",
    [
        [{"die_at": 20}],
        [{"die_in_save": 500}],
        [{"die_at": 7}, {"die_at": 4}],  # resumed at an epoch's end, then in the middle of the next
        [{"die_at": 13}, {"die_at": 10}],
        [{"die_at": 7}, {"die_at": 7}],  # at two epochs' ends
    ],
)
def test_row25_fit_with_a_queue_and_foreign_generators_ends_bit_for_bit(tmp_path, kills):
    for name in ("whole", "broken"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
    for way in kills:
        assert children.run(partial(fit_loop, tmp_path / "broken" / "checkpoints", **way)) == -signal.SIGKILL
    random.random(), np.random.rand(), torch.rand(3)
    assert newest_checkpoint(tmp_path / "broken" / "checkpoints") is not None
    assert fit_loop(tmp_path / "broken" / "checkpoints") == fit_loop(tmp_path / "whole" / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "kills"),
    [
        ("two ranks", [(0, {"die_at": 5}), (1, {"die_at": 7})]),
        ("two ranks, two workers", [(0, {"die_in_save": 400})]),
        ("fit, two ranks", [(1, {"die_at": 10}), (0, {"die_in_save": 300})]),  # first in the middle of an epoch
    ],
)
def test_row25_over_two_ranks_of_which_one_is_killed_it_ends_bit_for_bit(tmp_path, what, kills):
    for victim, way in kills:
        assert soak.Run(what, tmp_path / "broken", victim=victim, **way).ended()[victim] == -signal.SIGKILL
    assert newest_checkpoint(tmp_path / "broken" / "checkpoints") is not None
    runs = [soak.Run(what, tmp_path / name) for name in ("whole", "broken")]
    assert [run.ended() for run in runs] == [[0, 0], [0, 0]]
    assert runs[0].prints() == runs[1].prints()


@pytest.mark.parametrize("workers", [0, 2])
def test_row25_the_sampler_is_a_pure_function_and_goes_on_anywhere(workers):
    def stream(sampler, count):
        loader = DataLoader(range(31), batch_sampler=sampler, num_workers=workers)
        found = []
        while len(found) < count:
            for batch in sampler.counted(loader):
                found.append(batch.tolist())
                if len(found) == count:
                    break
        return found

    whole = stream(EpochBatches(31, 5, seed=1), 15)
    assert [len({item for batch in whole[i : i + 6] for item in batch}) for i in (0, 6)] == [30, 30]
    for taken in (1, 5, 6, 7, 11):
        torch.manual_seed(3)
        sampler = EpochBatches(31, 5, seed=1)
        start = stream(sampler, taken)
        drawn = torch.rand(1)
        resumed = EpochBatches(31, 5, seed=1)
        resumed.load_state_dict(sampler.state_dict())
        assert start + stream(resumed, 15 - taken) == whole
        torch.manual_seed(3)
        assert torch.equal(drawn, torch.rand(1))  # no loader drew from the global generator


def test_row25_every_epoch_has_other_seeds_of_workers_and_the_same_ones_again():
    class Loader:
        def __init__(self, sampler):
            self.loader = DataLoader(range(12), batch_sampler=sampler)

        def __iter__(self):
            batches = iter(self.loader)
            seen.append(batches._base_seed)
            return batches

    found = []
    for rank in (0, 0, 1):
        seen = []
        sampler = EpochBatches(12, 3, seed=1, rank=rank, world=2)
        torch.manual_seed(len(found))  # whatever the training drew
        while sampler.epoch < 3:
            list(sampler.counted(Loader(sampler)))
        found.append(seen)
    assert found[0] == found[1]
    assert len({*found[0], *found[2]}) == 6


def test_row25_ranks_share_what_one_process_would_take():
    one = [ids.tolist() for ids in epoch_batches(50, 12, seed=2, epoch=3)]
    for world in (2, 3):
        parts = [epoch_batches(50, 12 // world, seed=2, epoch=3, rank=rank, world=world) for rank in range(world)]
        assert [torch.cat(step).tolist() for step in zip(*parts, strict=True)] == one


def test_row25_another_number_of_ranks_is_allowed_and_announced():
    sampler = EpochBatches(96, 4, seed=1, rank=1, world=2)
    sampler.load_state_dict({"epoch": 1, "given": 6, "batch_size": 4, "world": 2})
    for batch, world, given in ((8, 1, 6), (4, 1, 12), (4, 3, 4), (5, 2, 4)):
        other = EpochBatches(96, batch, seed=1, world=world)
        with pytest.warns(UserWarning, match=rf"saved by 2 rank.*continued by {world} .*not bit for bit"):
            other.load_state_dict(sampler.state_dict())
        assert (other.epoch, other.given) == (1, given)
    other = EpochBatches(10, 4)  # the last items make no batch: the next epoch is what goes on
    with pytest.warns(UserWarning, match="not bit for bit"):
        other.load_state_dict({"epoch": 0, "given": 9, "batch_size": 1, "world": 1})
    assert (other.epoch, other.given) == (1, 0)
    states = random_state()
    with pytest.warns(UserWarning, match=r"saved by 2 rank\(s\) and continued by 1: .*not bit for bit"):
        set_random_state({"ranks": states["ranks"] * 2})


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "take 0 items"), ({"batch_size": 11}, "take 11 items a step, expected 1 to 10"),
    ({"batch_size": 6, "world": 2}, "take 12 items"), ({"batch_size": 2, "world": 2, "rank": 2}, "rank is 2"),
])  # fmt: skip
def test_row25_a_sampler_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EpochBatches(10, **options)


# --- 26: what cannot be written -------------------------------------------------------------------------------------


def test_row26_a_full_disk_leaves_the_checkpoint_before(small_disk):
    save_checkpoint(small_disk / "step-1.ckpt", content(1))
    fill(small_disk)
    for name in ("step-2.ckpt", "step-1.ckpt"):  # a new one, and one that stands where the old one stood
        with pytest.raises(
            InputError, match=r"cannot be written \(No space left on device\); what was saved before is"
        ):
            save_checkpoint(small_disk / name, content(2))
        assert files(small_disk) == ["filler", "step-1.ckpt"]
    assert load_checkpoint(newest_checkpoint(small_disk))["step"] == 1


def test_row26_a_training_on_a_full_disk_stops_and_goes_on_bit_for_bit(small_disk, tmp_path):
    whole, result = train(tmp_path / "whole", checkpoint_every=3)
    steps = 0

    def view(images):
        nonlocal steps
        steps += 1
        if steps == 8:
            fill(small_disk)
        return images + 0.2 * torch.randn_like(images)

    with pytest.raises(InputError, match="No space left on device"):
        train(small_disk, checkpoint_every=3, view=view)
    assert files(small_disk / "checkpoints") == ["step-00000003.ckpt", "step-00000006.ckpt"]
    (small_disk / "filler").unlink()
    resumed, again = train(small_disk, checkpoint_every=3, resume_from=newest_checkpoint(small_disk / "checkpoints"))
    assert again.final_loss == result.final_loss
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_row26_a_read_only_disk_leaves_the_checkpoint_before(small_disk):
    save_checkpoint(small_disk / "step-1.ckpt", content(1))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(InputError, match="Read-only file system"):
        save_checkpoint(small_disk / "step-2.ckpt", content(2))
    with pytest.raises(InputError, match="Read-only file system"), locked(small_disk):
        pass
    assert files(small_disk) == ["step-1.ckpt"]


def _save_too_much(folder):
    try:
        save_checkpoint(folder / "step-2.ckpt", content(2) | {"more": torch.zeros(50_000)})
    except InputError as error:
        return 0 if "File too large" in str(error) else 3
    return 4


def test_row26_a_limit_of_file_sizes_leaves_the_checkpoint_before(tmp_path):
    save_checkpoint(tmp_path / "step-1.ckpt", content(1))
    assert children.run(children.with_a_limit, resource.RLIMIT_FSIZE, 100_000, _save_too_much, tmp_path) == 0
    assert files(tmp_path) == ["step-1.ckpt"]
    assert load_checkpoint(newest_checkpoint(tmp_path))["step"] == 1


def test_row26_the_command_says_it_in_a_sentence_and_exits_with_2(tmp_path):
    words = [*SMALL, "--epochs", "2", "--out", str(tmp_path / "run")]
    shown = tmp_path / "shown"
    assert children.run(children.with_a_limit, resource.RLIMIT_FSIZE, 20_000, main, words, output=shown) == 2
    last = shown.read_text().splitlines()[-1]
    assert last.startswith("kpair: error: ")
    assert "File too large" in last
    assert "Traceback" not in shown.read_text()
    assert not list(tmp_path.rglob(".*.[0-9]*"))


# --- 27: damaged files ----------------------------------------------------------------------------------------------


def test_row27_every_flipped_bit_is_found(tmp_path):
    path = tmp_path / "step-1.ckpt"
    save_checkpoint(path, content(1))
    whole = path.read_bytes()
    draw = random.Random(0)
    places = [draw.randrange(len(whole)) for _ in range(200)] + list(range(len(whole) - 80, len(whole)))
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged: its checksum|has no checksum"):
            load_checkpoint(path)
    path.write_bytes(whole)
    assert load_checkpoint(path)["step"] == 1


def _foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path, whole: path.write_bytes(whole[: len(whole) // 2]), "has no checksum at its end"),
        (lambda path, whole: path.write_bytes(whole[:-1]), "has no checksum at its end"),
        (lambda path, whole: path.write_bytes(whole[:10]), "has no checksum at its end"),
        (lambda path, whole: path.write_bytes(whole + b"x"), "has no checksum at its end"),
        (lambda path, whole: path.write_bytes(whole[:100] + whole[101:]), "is damaged"),
        (lambda path, whole: path.write_bytes(b""), "is empty"),
        (lambda path, whole: path.write_bytes(b"hello\n" * 100), "no checkpoint of this library"),
        (lambda path, whole: torch.save({"step": 2}, path), "no checkpoint of this library"),
        (lambda path, whole: _foreign_zip(path), "no checkpoint of this library"),
        (lambda path, whole: (path.unlink(), path.mkdir()), "cannot be read"),
        (lambda path, whole: (path.unlink(), path.symlink_to("nowhere")), "cannot be read"),
    ],
)
def test_row27_the_newest_whole_checkpoint_is_found_and_the_damaged_one_named(tmp_path, spoil, why):
    for step in (9, 10, 11):
        save_checkpoint(tmp_path / f"step-{step}.ckpt", content(step))
    newest = tmp_path / "step-11.ckpt"
    spoil(newest, newest.read_bytes())
    with pytest.raises(InputError, match=f"step-11.ckpt.*{why}"):
        load_checkpoint(newest)
    with pytest.warns(UserWarning, match=f"step-11.ckpt.*{why}.*; trying the checkpoint before"):
        found = newest_checkpoint(tmp_path)
    assert found == tmp_path / "step-10.ckpt"  # not 9, which comes later in the alphabet
    (tmp_path / "step-10.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="step-1[01].ckpt"):
        assert newest_checkpoint(tmp_path) == tmp_path / "step-9.ckpt"


def test_row27_an_encoder_with_a_flipped_bit_is_not_loaded(tmp_path):
    encoder, projector = build(RECIPE)
    save_encoder(tmp_path, RECIPE, encoder, projector, nn.Identity())
    path = tmp_path / "encoder.safetensors"
    whole = path.read_bytes()
    for place in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"encoder\.safetensors is damaged"):
            load_encoder(tmp_path)


# --- 28: files that would run code ----------------------------------------------------------------------------------


class Malice:
    """Writes a file as soon as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _with_checksum(path):
    """What an attacker would do as well: the right checksum."""
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("ab") as file:
        file.write(b"\nsha256:" + digest.encode() + b"\n")


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("form", ["torch", "pickle", "legacy"])
def test_row28_a_malicious_pickle_is_refused_and_nothing_is_run(tmp_path, form, checksum):
    done, path = tmp_path / "done", tmp_path / "step-2.ckpt"
    evil = {"state_dict": Malice(done), "global_step": 3, "last_loss": 0.0}
    if form == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=form == "torch")
    if checksum:
        _with_checksum(path)
    save_checkpoint(tmp_path / "step-1.ckpt", content(1))
    with pytest.raises(
        InputError, match=r"nothing of it was run|is not a checkpoint" if checksum else "has no checksum"
    ):
        load_checkpoint(path)
    with pytest.warns(UserWarning, match="step-2.ckpt"):
        assert newest_checkpoint(tmp_path) == tmp_path / "step-1.ckpt"
    with pytest.raises(InputError):
        train(tmp_path / "run", resume_from=path)
    with pytest.raises(InputError):
        vectors.read(path.rename(tmp_path / "embeddings.pt"))
    assert not done.exists()
    # The trap is a trap: whoever unpickles it runs it.
    if form == "pickle":
        pickle.loads((tmp_path / "embeddings.pt").read_bytes())
        assert done.exists()


def test_row28_nothing_in_the_library_unpickles():
    for path in [*(ROOT / "contrastive").rglob("*.py"), *(ROOT / "miners").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            called = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if path != ROOT / "contrastive" / "testing" / "reports.py":  # it loads what it has just dumped itself
                assert called not in ("pickle.load", "pickle.loads", "joblib.load"), path
            if called == "torch.load":
                assert options["weights_only"] == "True", path
            if called == "np.load":
                assert options["allow_pickle"] == "False", path


# --- 29: another architecture ---------------------------------------------------------------------------------------


def test_row29_another_architecture_is_a_list_of_differences_and_nothing_is_loaded(tmp_path):
    train(tmp_path, epochs=1)
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    encoder, projector = build(OTHER, seed=3)
    before = {key: value.clone() for key, value in nn.Sequential(encoder, projector).state_dict().items()}
    with pytest.raises(InputError) as caught:
        fit(
            encoder, projector, KPairLoss(Cosine()), IMAGES, view=lambda x: x, out=tmp_path, epochs=2, batch_size=8,
            resume_from=checkpoint,
        )  # fmt: skip
    message = str(caught.value)
    assert f"{checkpoint} is of another architecture, nothing was loaded (" in message
    assert "shapes differ, 0 keys are missing, 0 are not expected" in message
    assert "encoder.backbone.layers.4.weight is [8, 4, 3, 3], expected [6, 4, 3, 3]" in message
    after = nn.Sequential(encoder, projector).state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_row29_missing_and_surplus_keys_are_named():
    module = nn.Linear(3, 2)
    state = {"weight": torch.zeros(2, 3), "gain": torch.zeros(7)}
    words = r"x.ckpt .*\(0 shapes differ, 1 keys are missing, 1 are not expected\): bias \[2\] is missing; gain"
    with pytest.raises(InputError, match=words):
        check_state(module, state, source="x.ckpt")
    with pytest.raises(InputError, match="and 14 more"):
        check_state(module, {f"layer{i}": torch.zeros(1) for i in range(18)}, source="x.ckpt")
    check_state(module, module.state_dict(), source="x.ckpt")


def test_row29_a_checkpoint_of_something_else_says_what_it_lacks(tmp_path):
    save_checkpoint(tmp_path / "step-1.ckpt", content(1))
    with pytest.raises(InputError, match="no checkpoint of a training: state_dict, global_step, steps missing"):
        train(tmp_path, resume_from=tmp_path / "step-1.ckpt")


def test_row29_a_checkpoint_of_a_longer_training(tmp_path):
    train(tmp_path, epochs=1)
    with pytest.raises(InputError, match="is of a training of 6 steps, expected 12"):
        train(tmp_path, epochs=2, resume_from=newest_checkpoint(tmp_path / "checkpoints"))


def test_row29_an_encoder_of_another_architecture(tmp_path):
    encoder, projector = build(RECIPE)
    save_encoder(tmp_path, RECIPE, encoder, projector, nn.Identity())
    recipe = json.loads((tmp_path / "encoder.json").read_text())
    recipe["arguments"]["widths"] = [4, 6]
    (tmp_path / "encoder.json").write_text(json.dumps(recipe))
    with pytest.raises(InputError, match=r"another architecture.*\[8, 4, 3, 3\], expected \[6, 4, 3, 3\]"):
        load_encoder(tmp_path)


# --- 30: asked to stop, and two at once -----------------------------------------------------------------------------


def _wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline and process.exitcode is None:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_row30_asked_to_stop_it_saves_and_says_how_to_go_on(tmp_path, number, status):
    run, checkpoints, shown = tmp_path / "run", tmp_path / "run" / "checkpoints", tmp_path / "shown"
    words = [*SMALL, "--epochs", "400", "--out", str(run), "--checkpoint-every", "30", "--resume", "auto"]
    runs.claim(run, read_options(words[1:]), resume=False)
    checkpoints.mkdir()
    scrap = checkpoints / ".step-00000030.ckpt.4711"
    scrap.write_bytes(b"half")  # of a process that was killed in the middle of a save
    process = children.start(main, words, output=shown)
    _wait_for(lambda: any(checkpoints.glob("*.ckpt")), process)
    os.kill(process.pid, number)
    assert children.ended(process) == status
    assert "--resume auto" in shown.read_text()
    assert "Traceback" not in shown.read_text()
    stopped = load_checkpoint(newest_checkpoint(checkpoints))["global_step"]
    assert stopped % 30  # the step at which it was asked, not an earlier one
    assert len(files(checkpoints)) == 2


def test_row30_stopped_in_the_middle_of_an_epoch_it_ends_bit_for_bit_where_it_would_have(tmp_path):
    whole, result = train(tmp_path / "whole")
    steps = 0

    def view(images):
        nonlocal steps
        steps += 1
        if steps == 9:
            os.kill(os.getpid(), signal.SIGTERM)
        return images + 0.2 * torch.randn_like(images)

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path / "stopped", view=view)
    assert caught.value.code == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    newest = newest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert newest.name == "step-00000009.ckpt"
    resumed, again = train(tmp_path / "stopped", resume_from=newest)
    assert again.final_loss == result.final_loss
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_row30_sigterm_before_the_first_step_is_no_ctrl_c(tmp_path, monkeypatch):
    """Lightning hears it then, and says it at the first step."""
    listen = training._StopRequest.listen

    def late(self):
        os.kill(os.getpid(), signal.SIGTERM)
        listen(self)

    monkeypatch.setattr(training._StopRequest, "listen", late)
    with pytest.raises(SystemExit) as caught:
        train(tmp_path)
    assert caught.value.code == 143


def test_row30_a_second_signal_does_not_wait(tmp_path):
    def view(images):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, view=view)
    assert newest_checkpoint(tmp_path / "checkpoints") is None


def _hold(folder, ready):
    with locked(folder):
        ready.touch()
        time.sleep(600)


def test_row30_two_runs_in_one_folder_and_a_lock_that_dies_with_its_process(tmp_path, capsys):
    run = tmp_path / "run"
    words = [*SMALL, "--out", str(run), "--resume", "auto"]
    runs.claim(run, read_options(words[1:]), resume=False)
    process = children.start(_hold, run, tmp_path / "ready")
    _wait_for((tmp_path / "ready").exists, process)
    assert main(words) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{run} is in use by another run (process {process.pid} on " in message
    assert files(run) == [".lock", "config.yaml"]
    process.kill()
    process.join()
    with locked(run):
        pass
