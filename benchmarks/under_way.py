"""The run under way, on disk: one that is interrupted goes on at the last point of its curves."""

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import lines
from contrastive.checkpoints import load_checkpoint, save_checkpoint
from contrastive.errors import InputError

__all__ = ["UnderWay", "kept"]


class UnderWay:
    """Keeps what a run has reached, in a file of its own.

    Arguments:
        path: of the file.
        run: which run it is, and by which code: what another one left there is not gone on with, but written over.
    """

    def __init__(self, path: Path, run: str) -> None:
        self.path, self.run = path, run
        self.earlier = {"seconds": 0.0, "cpu_seconds": 0.0}  # of the attempts that were interrupted
        self._start = self._clocks()

    def read(self) -> dict[str, Any] | None:
        """What was written of this run last; None where there is nothing, or nothing whole."""
        try:
            found = load_checkpoint(self.path)
        except InputError:
            return None
        if found.get("run") != self.run:
            return None
        self.earlier = found["spent"]
        return found

    def write(self, reached: Mapping[str, Any]) -> None:
        """Puts what was reached in the place of what was there.

        Arguments:
            reached: tensors, numbers, strings, and lists and dicts of them.
        """
        spent = {key: self.earlier[key] + now - self._start[key] for key, now in self._clocks().items()}
        save_checkpoint(self.path, {**reached, "run": self.run, "spent": spent})

    def forget(self) -> None:
        """The run is over, one way or the other."""
        self.path.unlink(missing_ok=True)

    @staticmethod
    def _clocks() -> dict[str, float]:
        return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}


def kept(results: Path, key: str, work: Callable[[UnderWay], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a run that goes on where it was interrupted, and what the interrupted attempts took.

    Arguments:
        results: the lines; the file of the run under way lies beside them, one for each run, so that several processes
            may fill the same lines.
        key: of the run. Another commit starts anew.
        work: does the run, and keeps what it has reached.
    """
    name = hashlib.sha256(key.encode()).hexdigest()[:8]
    keep = UnderWay(results.with_suffix(f".{name}.under-way.ckpt"), f"{key} by {lines.commit()}")
    try:
        found = work(keep)
    except Exception as error:  # a failed run starts anew; an interrupted one does not come here
        if not lines.is_of_the_machine(error):
            keep.forget()
        raise
    keep.forget()
    return {**found, "earlier": keep.earlier}
