"""Batches that the encoder's memory does not hold: encoded in chunks, each again on the way back (GradCache)."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["Chunked", "in_chunks", "refuse_what_joins_rows"]


def in_chunks(encoder: nn.Module, *inputs: Tensor, size: int) -> Tensor:
    """Encodes a batch in chunks; what a chunk leaves behind is its embeddings alone.

    The loss sees all embeddings at once, so a contrastive batch is as large as ever. In the backward pass each chunk is
    encoded once more, with the draws (dropout) and the autocast of the first time, and forgotten after its gradient:
    one forward pass more in exchange for the memory of `size` rows. Value and gradient are those of
    ``torch.cat([encoder(chunk) for chunk in chunks])``.

    A parameter's gradient is added up over the chunks before DistributedDataParallel sees it: one all-reduce a step,
    without ``no_sync``. The chunks have to be inside: `Chunked`, or a module that calls this function.

    Arguments:
        encoder: rows to rows, each by itself. Batch normalisation in training mode does not: its statistics would be
            those of a chunk, and counted twice. Use layer or group norms, or freeze it.
        inputs: what it takes, all with as many rows.
        size: rows of a chunk.

    Returns:
        The embeddings of all rows.

    Raises:
        ValueError: for a size below 1, inputs of different lengths, an encoder in training mode with batch
            normalisation, or within a DistributedDataParallel of its own, which would synchronise every chunk.

    Example:
        >>> encoder, images = nn.Linear(4, 2), torch.randn(10, 4)
        >>> torch.testing.assert_close(in_chunks(encoder, images, size=3), encoder(images))

    References:
        | Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (Gao et al., 2021)
        | https://arxiv.org/abs/2101.06983
        | Training Deep Nets with Sublinear Memory Cost (Chen et al., 2016)
        | https://arxiv.org/abs/1604.06174
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"in_chunks: size is {size!r}, expected an integer of at least 1")
    if len({len(x) for x in inputs}) != 1:
        lengths = ", ".join(str(len(x)) for x in inputs)
        raise ValueError(f"in_chunks: got inputs of {lengths or 'no'} rows, expected as many of each")
    refuse_what_joins_rows(encoder)
    if len(inputs[0]) <= size:
        return _rows(encoder(*inputs), len(inputs[0]))
    chunks = zip(*(torch.split(x, size) for x in inputs), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_rows(encoder(*chunk), len(chunk[0])) for chunk in chunks])
    return torch.cat([_rows(checkpoint(encoder, *chunk, use_reentrant=False), len(chunk[0])) for chunk in chunks])


class Chunked(nn.Module):
    """Creates an encoder that takes any batch in chunks of `size` rows: `in_chunks` as a module.

    With DistributedDataParallel this is what goes inside: ``DistributedDataParallel(Chunked(encoder, 64))``.

    Arguments:
        encoder: as in `in_chunks`.
        size: rows of a chunk.

    Example:
        >>> Chunked(nn.Linear(4, 2), 3)(torch.zeros(10, 4)).shape
        torch.Size([10, 2])
    """

    def __init__(self, encoder: nn.Module, size: int) -> None:
        super().__init__()
        self.encoder, self.size = encoder, size

    def forward(self, *inputs: Tensor) -> Tensor:
        """Encodes all rows; raises as `in_chunks`."""
        return in_chunks(self.encoder, *inputs, size=self.size)

    def extra_repr(self) -> str:  # noqa: D102
        return f"size={self.size}"


def refuse_what_joins_rows(encoder: nn.Module) -> None:
    """The check that an encoder can take its rows apart.

    Arguments:
        encoder: in the mode in which it will be called.

    Raises:
        ValueError: as `in_chunks`.
    """
    for name, module in encoder.named_modules():
        where = f"{type(module).__name__} ({name})" if name else type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            raise ValueError(
                f"in_chunks: the encoder holds {where} in training mode, whose statistics would be those of a chunk "
                "and enter its running ones twice; use layer or group norms, or put it into evaluation mode"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"in_chunks: the encoder holds {where}, which would synchronise every chunk; put the chunks inside: "
                "DistributedDataParallel(Chunked(encoder, size))"
            )


def _rows(encoded: Tensor, count: int) -> Tensor:
    if not isinstance(encoded, Tensor) or encoded.shape[:1] != (count,):
        shape = tuple(encoded.shape) if isinstance(encoded, Tensor) else type(encoded).__name__
        raise ValueError(f"in_chunks: the encoder made {shape} of {count} rows, expected a tensor of as many")
    return encoded
