"""Batch normalisation over the batch of all ranks, on any device."""

from typing import TypeVar

import torch
from torch import Tensor, nn

from contrastive.collectives import sum_over_ranks, world_size

__all__ = ["GlobalBatchNorm", "global_batch_norms"]

Module = TypeVar("Module", bound=nn.Module)


def global_batch_norms(module: Module) -> Module:
    """Replaces every `BatchNorm` within a module by one over the batch of all ranks; parameters and buffers are kept.

    Statistics of a rank's own share tell its members from others', which a contrastive loss learns to use, and make the
    result depend on the number of ranks. `torch.nn.SyncBatchNorm` does the same on GPUs, in one kernel, and is left
    alone; on processors it refuses.

    Arguments:
        module: changed in place.

    Returns:
        The module, or, where it is a batch normalisation itself, the one in its place.

    Raises:
        ValueError: for a batch normalisation of another kind than torch's and timm's `BatchNormAct2d`.

    Example:
        >>> type(global_batch_norms(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))[1])
        <class 'contrastive.norms.GlobalBatchNorm'>
    """
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        if isinstance(module, GlobalBatchNorm | nn.SyncBatchNorm):
            return module
        kind = type(module)
        # timm's normalises, drops and activates, by children in this order. (Its import takes half a second.)
        of_timm = kind.__module__.startswith("timm.") and kind.__name__ == "BatchNormAct2d"
        if kind not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d) and not of_timm:
            raise ValueError(
                f"global_batch_norms: {kind.__name__} is a batch normalisation of its own kind, expected torch's or "
                "timm's"
            )
        return GlobalBatchNorm.like(module)  # type: ignore[return-value]  # a module in a module's place
    for name, child in module.named_children():
        replaced = global_batch_norms(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    r"""Creates a batch normalisation with the statistics of all ranks' rows.

    .. math::
        \mu = \frac1N \sum_r \sum_{i \in r} x_i, \qquad \sigma^2 = \frac1N \sum_r \sum_{i \in r} (x_i - \mu)^2

    Ranks may have different numbers of rows. In evaluation mode, or on one rank, it is torch's.

    References:
        | Batch Normalization (Ioffe and Szegedy, 2015)
        | https://arxiv.org/abs/1502.03167
    """

    @classmethod
    def like(cls, norm: nn.modules.batchnorm._BatchNorm) -> "GlobalBatchNorm":
        """One with the parameters, buffers, options and children of another.

        Arguments:
            norm: torch's, or one that calls its children one after another on what is normalised.
        """
        new = cls(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        new.affine, new.track_running_stats, new.training = norm.affine, norm.track_running_stats, norm.training
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(new, name, getattr(norm, name))
        for name, child in norm.named_children():  # what follows it
            new.add_module(name, child)
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"GlobalBatchNorm: got shape {tuple(input.shape)}, expected [batch, channels, ...]")

    def forward(self, input: Tensor) -> Tensor:
        """Normalises every channel; every rank must call in training mode."""
        if world_size() == 1 or not (self.training or self.running_mean is None):
            return self._followed(super().forward(input))
        self._check_input_dim(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        over = [0, *range(2, x.ndim)]
        across = (1, -1, *[1] * (x.ndim - 2))
        count = torch.full((1,), x.numel() / max(x.shape[1], 1), dtype=x.dtype, device=x.device)
        sums, total = torch.split(sum_over_ranks(torch.cat([x.sum(over), count])), [self.num_features, 1])
        centred = x - (sums / total).view(across)
        variance = sum_over_ranks(centred.square().sum(over)) / total
        if self.running_mean is not None and self.training and self.track_running_stats:
            self._track(sums.detach() / total.detach(), variance.detach() * (total.detach() / (total.detach() - 1)))
        y = centred * (variance + self.eps).rsqrt().view(across)
        if self.weight is not None:
            y = y * self.weight.view(across) + self.bias.view(across)
        return self._followed(y.to(input.dtype))

    def _followed(self, y: Tensor) -> Tensor:
        for child in self.children():
            y = child(y)
        return y

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)
