"""`kpair`, of which rank 1 is killed at the third step of the first attempt."""

import os
import signal
import sys

from contrastive.cli import main
from contrastive.views import RandomView

_forward, _steps = RandomView.forward, [0]


def _until_killed(self, images):
    _steps[0] += 1
    if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and _steps[0] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return _forward(self, images)


RandomView.forward = _until_killed
sys.exit(main())
