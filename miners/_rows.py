"""What miners that read embeddings share: how many scores they form at once, and a refusal."""

import torch
from torch import Tensor

from contrastive.scores import eager_on_cpu

__all__ = ["SCORED", "refuse_broken_rows"]

# Scores that are formed at once.
SCORED = 2**22


def refuse_broken_rows(function: str, what: str, x: Tensor) -> None:
    """Names the first row that holds a NaN or an infinity; in eager mode on the CPU, like all checks of values."""
    if not eager_on_cpu(x):
        return
    broken = ~torch.isfinite(x).flatten(1).all(1)
    if bool(broken.any()):
        raise ValueError(
            f"{function}: row {int(broken.nonzero()[0])} of the {what} holds a NaN or infinite value, "
            "expected finite ones"
        )
