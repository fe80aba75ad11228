"""Noise-contrastive estimation: every pair is classified, drawn together or by noise."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive.pairings import Pairing
from contrastive.relatives import sigmoid_loss
from contrastive.scores import WeighsNegatives, as_float32

__all__ = ["NoiseContrast"]


class NoiseContrast(nn.Module):
    r"""Creates the binary objective of CMC: the K-pair loss's older relative, with a normaliser that is estimated.

    .. math::
        L_i = -\log \sigma(u_{i,t(i)}) - \sum_{j \in N(i)} \log\bigl(1 - \sigma(u_{ij})\bigr), \qquad
        u_{ij} = s_{ij} - \log Z - \log m

    with m negatives of an anchor, drawn uniformly, and Z the mean of :math:`e^s`. It is `contrastive.sigmoid_loss` with
    the bias :math:`-\log Z m`. Z is an average over batches, kept as a logarithm and saved with the model: the released
    code freezes the first batch's, whose keys are random.

    Its value is no estimate of mutual information.

    Arguments:
        decay: of the average, in [0, 1).

    Raises:
        ValueError: for a decay outside [0, 1).

    Example:
        >>> from contrastive.pairings import in_batch
        >>> rows = torch.arange(3)
        >>> NoiseContrast()(torch.zeros(3, 3), in_batch(rows, rows))   # -log(1/3) - 2 log(2/3)
        tensor([1.9095, 1.9095, 1.9095])

    References:
        | Noise-Contrastive Estimation: A New Estimation Principle for Unnormalized Statistical Models (Gutmann and
          Hyvarinen, 2010)
        | https://proceedings.mlr.press/v9/gutmann10a.html
        | Contrastive Multiview Coding (Tian et al., 2020)
        | https://arxiv.org/abs/1906.05849
    """

    log_average: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"NoiseContrast: decay is {decay}, expected a number in [0, 1)")
        self.decay = decay
        # NaN: no batch yet.
        self.register_buffer("log_average", torch.tensor(math.nan))

    def forward(
        self,
        scores: Float[Tensor, "anchors candidates"],
        pairing: Pairing,
        *,
        miner: WeighsNegatives | None = None,
    ) -> Float[Tensor, " anchors"]:
        """Moves the average and computes the loss of each anchor; a miner is refused.

        Raises:
            ValueError: for a miner, and as `contrastive.sigmoid_loss`.
        """
        if miner is not None:
            raise ValueError(f"NoiseContrast: its negatives must be drawn from the noise, but got the miner {miner!r}")
        scores = as_float32(pairing.masked(scores))
        present = scores.detach() > -torch.inf
        now = torch.logsumexp(scores.detach().flatten(), 0) - present.sum().log()
        before = self.log_average
        kept = math.log(self.decay) if self.decay else -math.inf
        moved = torch.logaddexp(kept + before, math.log1p(-self.decay) + now)
        average = torch.where(torch.isnan(before), now, moved)
        negatives = present.sum(1).double().mean().to(scores.dtype) - 1
        loss = sigmoid_loss(scores, pairing.targets, bias=-(average + negatives.log()))
        if self.training:  # not by scores that were refused, nor that are no numbers: it would never recover
            self.log_average.copy_(torch.where(torch.isfinite(now), average, before))
        return loss
