"""A training loop that a user might write, which may be killed anywhere, and a fingerprint of where it ended."""
# ruff: noqa: NPY002  # the global generator of NumPy, which users draw from

import hashlib
import os
import random
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from contrastive import Cosine, KPairLoss, checkpoints
from contrastive.batches import EpochBatches, Seeded
from contrastive.checkpoints import check_state, load_checkpoint, newest_checkpoint, save_checkpoint
from contrastive.distributed import GlobalBatch
from contrastive.encoders import Recipe, build
from contrastive.randomness import random_state, set_random_state
from miners import Queue, annealed, hcl

EPOCHS, BATCH, ITEMS = 3, 8, 52
IMAGES = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe("ConvNet", {"channels": 1, "widths": [4, 8]}, {"hidden": [8], "out": 4}, [0.5], [0.3])
torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.2  # workers of a killed process are gone sooner


class Pictures(Dataset):
    """Items that are augmented when they are asked for, by three generators."""

    def __init__(self):
        self.items = torch.rand(ITEMS, 6, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        views = [self.items[index] * (1 + 0.2 * random.random()) + 0.2 * torch.randn(6) for _ in range(2)]
        return views[0], views[1] + 0.1 * float(np.random.rand())


class Net(nn.Module):
    """Dropout draws, batch norm and the queue have state, the scale is of the loss."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))
        self.criterion = KPairLoss(Cosine(0.2, learnable=True))
        self.queue = Queue(24, 4)


def own_loop(folder, workers=0, every=3, die_at=None, die_in_save=None, rank=0, world=1, batch=BATCH):
    """Trains from the newest checkpoint on, saving every so many steps; returns the fingerprint of all its state.

    `die_at`: kills itself before that step; `die_in_save`: when it has written so many pieces of checkpoints.
    """
    if die_in_save is not None:
        _kill_while_writing(die_in_save)
    torch.manual_seed(rank)
    random.seed(rank)
    np.random.seed(rank)
    sampler = EpochBatches(ITEMS, batch, seed=4, rank=rank, world=world, seeded=True)
    context = "fork" if workers else None  # a child of a fork server would start one of its own
    loader = DataLoader(Seeded(Pictures()), batch_sampler=sampler, num_workers=workers, multiprocessing_context=context)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=EPOCHS * len(sampler))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=4)
    parts = {"optimiser": optimiser, "schedule": schedule, "scaler": scaler, "sampler": sampler}
    miner, step = annealed(hcl, start=2.0, end=0.0, steps=15), 0
    if (newest := newest_checkpoint(folder)) is not None:
        state = load_checkpoint(newest)
        check_state(net, state["net"], source=newest)
        net.load_state_dict(state["net"])
        for name, part in parts.items():
            part.load_state_dict(state[name])
        step, last_loss = state["step"], state["loss"]
        set_random_state(state["random"])
    while sampler.epoch < EPOCHS:
        for x, y in sampler.counted(loader):
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            net.criterion.miner = miner.at(step)
            x, y = net.body(torch.cat([x, y]) + 0.1 * random.random()).chunk(2)
            loss = net.criterion(x, y, negatives=net.queue.keys() if len(net.queue) else None)
            net.queue.enqueue(y.detach())
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            if world > 1:
                for parameter in net.parameters():
                    dist.all_reduce(parameter.grad)
                for buffer in net.body.buffers():  # as DistributedDataParallel does
                    dist.broadcast(buffer, 0)
            scaler.step(optimiser)
            scaler.update()
            schedule.step()
            mean = loss.detach().clone()
            if world > 1:
                dist.all_reduce(mean)  # what the first rank saves is true of all
            step, last_loss = step + 1, float(mean)
            if step % every == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"net": net.state_dict(), "step": step, "loss": last_loss, "random": random_state()}
                if rank == 0:
                    save_checkpoint(f"{folder}/step-{step}.ckpt", state)
                if world > 1:
                    dist.barrier()  # no rank goes on from a step that is not saved
    ends = {name: part.state_dict() for name, part in parts.items()}
    ends |= {"net": net.state_dict(), "random": random_state()["ranks"][rank], "loss": last_loss}
    return " ".join(f"{name}:{fingerprint(end)}" for name, end in ends.items())


class WithQueue(nn.Module):
    """A criterion with negatives of earlier batches."""

    def __init__(self):
        super().__init__()
        self.loss, self.queue = GlobalBatch(KPairLoss(Cosine())), Queue(20, 4)

    def forward(self, x, y):
        loss = self.loss(x, y, negatives=self.queue.keys() if len(self.queue) else None)
        self.queue.enqueue(y.detach())
        return loss


def fit_loop(folder, every=3, die_at=None, die_in_save=None, rank=0, world=1):
    """`contrastive.training.fit`, with a queue and a view that draws from three generators, otherwise as `own_loop`."""
    from contrastive.training import fit

    if world > 1:  # what torchrun sets and Lightning asks for
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "TORCHELASTIC_RUN_ID": "tests"}
        os.environ |= {f"{prefix}RANK": str(rank) for prefix in ("", "LOCAL_")}
        os.environ |= {f"{prefix}WORLD_SIZE": str(world) for prefix in ("", "LOCAL_")}
    if die_in_save is not None:
        _kill_while_writing(die_in_save)
    steps = 0

    def view(images):
        nonlocal steps
        if steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return images * (0.9 + 0.2 * random.random()) + 0.2 * float(np.random.rand()) * torch.randn_like(images)

    encoder, projector = build(RECIPE, seed=0)
    criterion = WithQueue()
    result = fit(
        encoder, projector, criterion, IMAGES, view=view, out=Path(folder).parent, epochs=4, batch_size=8, seed=5,
        resume_from=newest_checkpoint(folder), checkpoint_every=every, accelerator="cpu",
    )  # fmt: skip
    return fingerprint(
        [encoder.state_dict(), projector.state_dict(), criterion.state_dict(), result.final_loss, result.steps]
    )


def write_own_loop(path, *arguments, **options):
    """`own_loop` in a process of its own."""
    path.write_text(own_loop(*arguments, **options))


def fingerprint(value):
    """The SHA-256 of everything in a state."""
    sha256 = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            sha256.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(part, dict):
            for key in part:
                add([str(key), part[key]])
        elif isinstance(part, list | tuple):
            for inner in part:
                add(inner)
        else:
            sha256.update(repr(part).encode())

    add(value)
    return sha256.hexdigest()


def _kill_while_writing(pieces):
    write, written = checkpoints._Hashed.write, 0

    def fatal(self, content):
        nonlocal written
        written += 1
        if written == pieces:
            write(self, bytes(content)[: len(content) // 2])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, content)

    checkpoints._Hashed.write = fatal
