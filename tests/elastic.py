"""`kpair`, of which rank 1 is killed at the third step of the first attempt."""

import os
import signal
import sys

from contrastive.cli import main
from contrastive.views import RandomView


def _killed_once() -> None:
    forward, steps = RandomView.forward, [0]

    def until_killed(self, images):
        steps[0] += 1
        if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and steps[0] == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, images)

    RandomView.forward = until_killed


if __name__ == "__main__":  # who looks for doctests imports every module
    _killed_once()
    sys.exit(main())
