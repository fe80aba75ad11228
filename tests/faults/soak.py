"""Random kills and disk faults, over one rank and two, until the time is up: python tests/faults/soak.py --minutes 30.

Every round trains to the end through a few faults and compares, bit for bit, with the same training left in peace. What
is counted: faults survived, by kind; checkpoints lost (the newest whole one after a fault is older than before it, or,
where the fault was damage to it, older than the one before it); rounds that ended on other bits.
"""

import argparse
import errno
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import children
import torch
import torch.distributed as dist
from loops import fit_loop, own_loop

from contrastive.checkpoints import load_checkpoint, newest_checkpoint
from contrastive.errors import InputError
from contrastive.files import remove_scraps


@dataclass
class Tally:
    """What a soak has seen."""

    rounds: int = 0
    survived: Counter = field(default_factory=Counter)
    lost: int = 0
    different: int = 0
    failed: int = 0  # an ending that is neither the fault's nor a training's

    def line(self, minutes):
        """One line of JSON."""
        return json.dumps(
            {
                "minutes": round(minutes, 1), "rounds": self.rounds, "faults_survived": sum(self.survived.values()),
                "lost_checkpoints": self.lost, "bit_differences": self.different, "unexplained_endings": self.failed,
                "by_kind": dict(sorted(self.survived.items())),
            }
        )  # fmt: skip


def soak(minutes=math.inf, *, rounds=math.inf, seed=0, report=print):
    """Goes on until the time is up, or for so many rounds; returns the tally."""
    draw, tally, start = random.Random(seed), Tally(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        disk = Path(folder) / "disk"
        disk.mkdir()
        mounted = not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True
        ).returncode
        try:
            wanted = {what: _in_peace(what, Path(folder) / what) for what in LOOPS}
            while time.monotonic() - start < 60 * minutes and tally.rounds < rounds:
                what = draw.choice(list(LOOPS))
                _round(what, disk, wanted[what], draw, tally, mounted)
                for path in disk.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                if tally.rounds % 20 == 0:
                    report(tally.line((time.monotonic() - start) / 60), flush=True)
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", disk], check=True)
    return tally


def _in_peace(what, folder):
    run = Run(what, folder)
    assert run.ended() == [0] * run.world, what
    return run.prints()


def _round(what, disk, wanted, draw, tally, mounted):
    tally.rounds += 1
    kinds = [
        "kill",
        "kill in a save",
        "kill from outside",
        "truncated",
        "flipped bit",
        "emptied",
        "limit of file sizes",
    ]
    kinds += ["full disk"] if mounted else []
    kinds += ["SIGTERM"] if LOOPS[what][0] is fit_loop else []
    story = []
    for _ in range(draw.randint(1, 4)):
        kind = draw.choice(kinds)
        before = _steps(disk)
        if kind in DAMAGE:
            if len(before) < 2:
                continue
            path = newest_checkpoint(disk / "checkpoints")
            path.write_bytes(DAMAGE[kind](path.read_bytes(), draw))
            expected = before[-2]
        else:
            status, shown = _break(what, kind, disk, draw)
            if status == 0:  # the end came first: nothing is left to break
                break
            if status not in EXPECTED[kind]:
                tally.failed += 1
                print("unexplained", what, kind, status, shown, flush=True)
            expected = before[-1] if before else 0
        after = _steps(disk)
        if (after[-1] if after else 0) < expected:
            tally.lost += 1
        tally.survived[kind] += 1
        story.append((kind, before, after))
    run = Run(what, disk)
    statuses = run.ended()
    if statuses != [0] * run.world:
        tally.failed += 1
        print(f"{what}: the last attempt ended with {statuses}: {run.shown()}", flush=True)
    elif run.prints() != wanted:
        tally.different += 1
        found = [[a.split(":")[0] for a, b in zip(x.split(), y.split(), strict=True) if a != b]
                 for x, y in zip(run.prints(), wanted, strict=True)]  # fmt: skip
        print(f"{what}: other bits of {found} after {story}", flush=True)


def _break(what, kind, disk, draw):
    """Runs into one fault; the status of the rank that met it first, and the last words of all."""
    step, pieces, victim = draw.randrange(24), draw.randrange(2, 900), draw.randrange(2)
    options = {}
    if kind == "kill":
        options = {"die_at": step}
    elif kind == "kill in a save":
        options, victim = {"die_in_save": pieces}, 0
    elif kind == "limit of file sizes":
        options, victim = {"limit": draw.choice([5_000, 12_000])}, 0
    elif kind == "full disk":
        free = os.statvfs(disk)
        left = draw.choice([4096, 20_000, 60_000])
        (disk / "filler").write_bytes(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    run = Run(what, disk, victim=min(victim, LOOPS[what][1] - 1), **options)
    if kind in ("kill from outside", "SIGTERM"):
        time.sleep(draw.random() * 1.5)
        for process in run.processes if kind == "SIGTERM" else run.processes[: draw.randint(1, run.world)]:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    statuses = run.ended()
    (disk / "filler").unlink(missing_ok=True)
    remove_scraps(disk / "checkpoints")
    if statuses == [0] * run.world:
        return 0, ""
    return next((s for s in statuses if s in EXPECTED[kind]), statuses[0]), run.shown()


# Rank 0 or 1 may be the one that dies; the other one notices and ends with an error of its own.
EXPECTED = {
    "kill": {-signal.SIGKILL}, "kill in a save": {-signal.SIGKILL}, "kill from outside": {-signal.SIGKILL},
    "SIGTERM": {143, -signal.SIGTERM}, "full disk": {2}, "limit of file sizes": {2},
}  # fmt: skip


def _flip(content, draw):
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


DAMAGE = {
    "truncated": lambda content, draw: content[: draw.randrange(len(content))],
    "flipped bit": _flip,
    "emptied": lambda content, draw: b"",
}


def _steps(disk):
    """The steps of the checkpoints that are whole."""
    found = []
    for path in (disk / "checkpoints").glob("*.ckpt"):
        try:
            content = load_checkpoint(path)
        except InputError:
            continue
        found.append(content.get("step", content.get("global_step")))
    return sorted(found)


class Run:
    """The ranks of one attempt."""

    def __init__(self, what, disk, *, victim=0, **fault):
        self.disk, (self.loop, self.world, options) = disk, LOOPS[what]
        (disk / "checkpoints").mkdir(parents=True, exist_ok=True)
        (disk / "store").unlink(missing_ok=True)
        for path in disk.glob("print-*"):
            path.unlink()
        self.processes = [
            children.start(
                partial(_rank, self.loop, disk, rank, self.world, options | (fault if rank == victim else {})),
                output=disk / f"shown-{rank}",
            )
            for rank in range(self.world)
        ]

    def ended(self):
        """The exit statuses."""
        return [children.ended(process, 180) for process in self.processes]

    def shown(self):
        """The last lines of every rank; one that was killed at once may not have begun."""
        paths = [self.disk / f"shown-{rank}" for rank in range(self.world)]
        return [path.read_text()[-800:] if path.exists() else "" for path in paths]

    def prints(self):
        """The fingerprint of every rank."""
        return [(self.disk / f"print-{rank}").read_text() for rank in range(self.world)]


def _rank(loop, disk, rank, world, options):
    limit = options.pop("limit", None)
    if world > 1:
        place = f"file://{disk}/store"
        dist.init_process_group("gloo", place, rank=rank, world_size=world, timeout=timedelta(seconds=30))
        options |= {"rank": rank, "world": world}
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    warnings.simplefilter("ignore")
    try:
        found = loop(disk / "checkpoints", **options)
    except InputError:
        return 2
    except OSError as error:  # the curve beside the checkpoint: `kpair` says it in a sentence
        if error.errno in (errno.ENOSPC, errno.EFBIG):
            return 2
        raise
    (disk / f"print-{rank}").write_text(found)
    return 0


LOOPS = {
    "one rank": (own_loop, 1, {"batch": 16 // 2}),
    "one rank, two workers": (own_loop, 1, {"workers": 2}),
    "two ranks": (own_loop, 2, {"batch": 4}),
    "two ranks, two workers": (own_loop, 2, {"batch": 4, "workers": 2}),
    "fit": (fit_loop, 1, {}),
    "fit, two ranks": (fit_loop, 2, {}),
}


def main():
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of damaged checkpoints that are passed over
    start = time.monotonic()
    tally = soak(options.minutes, seed=options.seed)
    print(tally.line((time.monotonic() - start) / 60))
    return 1 if tally.lost or tally.different or tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
