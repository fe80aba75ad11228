"""A queue of keys from earlier batches: more columns of negatives."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive.collectives import gather_rows, world_size
from miners._rows import refuse_broken_rows

__all__ = ["Queue"]


class Queue(nn.Module):
    r"""Creates a queue of detached keys: what enters a full queue pushes out the oldest.

    .. math::
        s_{i, N + m} = f(x_i, k_m), \qquad m = 1, \dots, M

    A queue is columns, so any critic, miner and objective takes it. It starts empty: nothing but what was enqueued is
    ever a negative. Everything is in buffers, and saved with the model.

    Keys are stale: they were scored by an older encoder, so nothing bounds mutual information, and
    ``infonce_bound(independent=False)`` says so. Enqueue *after* the scores are formed, or a batch's positives are
    among its negatives. An item that returns before its older key has left is its own negative, but for `duplicates`.

    Arguments:
        size: M, how many keys there can be.
        dim: their width.
        dtype: in which they are kept.
        device: where they are kept.

    Raises:
        ValueError: for a size or width below 1, or another dtype than a floating-point one.

    Example:
        >>> from contrastive import Cosine, KPairLoss
        >>> from miners import topk
        >>> criterion, queue = KPairLoss(Cosine(), miner=topk(4)), Queue(6, 8)
        >>> for _ in range(2):
        ...     x, y = torch.randn(4, 8), torch.randn(4, 8)
        ...     loss = criterion(x, y, negatives=queue.keys())
        ...     queue.enqueue(y)
        >>> len(queue)
        6

    References:
        | Momentum Contrast for Unsupervised Visual Representation Learning (He et al., 2020)
        | https://arxiv.org/abs/1911.05722
        | Cross-Batch Memory for Embedding Learning (Wang et al., 2020)
        | https://arxiv.org/abs/1912.06798
    """

    _keys: Tensor
    _ids: Tensor
    _oldest: Tensor
    _filled: Tensor
    _with_ids: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"Queue: {name} is {value!r}, expected an integer of at least 1")
        if not dtype.is_floating_point:
            raise ValueError(f"Queue: dtype is {dtype}, expected a floating-point dtype")
        self.register_buffer("_keys", torch.zeros(size, dim, dtype=dtype, device=device))
        self.register_buffer("_ids", torch.zeros(size, dtype=torch.int64, device=device))
        self.register_buffer("_oldest", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("_filled", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("_with_ids", torch.zeros((), dtype=torch.bool, device=device))

    def keys(self) -> Float[Tensor, "filled dim"]:
        """The keys that were enqueued, the oldest first: a copy, which later keys leave alone.

        Example:
            >>> queue = Queue(3, 1)
            >>> queue.enqueue(torch.tensor([[1.0], [2.0]]))
            >>> queue.enqueue(torch.tensor([[3.0], [4.0]]))
            >>> queue.keys().flatten()
            tensor([2., 3., 4.])
        """
        return self._in_order(self._keys)

    def ids(self) -> Int[Tensor, " filled"]:
        """The ids that were enqueued with the keys, in the order of `keys`: their items, labels or groups.

        Raises:
            ValueError: where the keys were enqueued without ids.

        Example:
            >>> queue = Queue(3, 1)
            >>> queue.enqueue(torch.zeros(2, 1), torch.tensor([7, 8]))
            >>> queue.ids()
            tensor([7, 8])
        """
        if len(self) and not bool(self._with_ids):
            raise ValueError("Queue.ids: the keys were enqueued without ids")
        return self._in_order(self._ids)

    @torch.no_grad()
    def enqueue(
        self, keys: Float[Tensor, "batch dim"], ids: Int[Tensor, " batch"] | None = None, *, gather: bool = True
    ) -> None:
        """Adds a batch of keys, the last of them the newest; call it after the scores are formed.

        Where `torch.distributed` runs on several ranks, the keys of all ranks are added, in the order of the ranks, so
        that all hold the same queue; batches may differ in length, and every rank must call.

        Arguments:
            keys: what was scored as candidates; taken without gradient, in the queue's dtype.
            ids: an integer for each of them, kept exactly: all keys in a queue have one or none has.
            gather: whether other ranks' keys are fetched; False where `keys` are those of all ranks already.

        Raises:
            ValueError: for keys of another width, more keys than fit (those of all ranks together), ids of another
                length, or missing, or not missed before; a NaN or infinite key, in the queue's dtype.
        """
        if keys.ndim != 2 or keys.shape[1] != self._keys.shape[1]:
            raise ValueError(
                f"Queue.enqueue: keys have shape {tuple(keys.shape)}, expected [batch, {self._keys.shape[1]}]"
            )
        if not keys.is_floating_point():
            raise ValueError(f"Queue.enqueue: keys have dtype {keys.dtype}, expected a floating-point dtype")
        if ids is not None and ids.shape != keys.shape[:1]:
            raise ValueError(f"Queue.enqueue: ids have shape {tuple(ids.shape)}, expected [{len(keys)}]")
        if ids is not None and (ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex()):
            raise ValueError(f"Queue.enqueue: ids have dtype {ids.dtype}, expected an integer dtype")
        keys = keys.to(self._keys)
        refuse_broken_rows("Queue.enqueue", "keys", keys)
        ids = None if ids is None else ids.to(self._ids)
        if gather and world_size() > 1:
            keys, ids = _of_all_ranks(keys, ids)
        self._add(keys, ids)

    def _add(self, keys: Tensor, ids: Tensor | None) -> None:
        size, count = len(self._keys), len(keys)
        if count > size:
            raise ValueError(f"Queue.enqueue: got {count} keys, expected at most {size}, the size of the queue")
        if not count:
            return
        filled = len(self)
        if filled and bool(self._with_ids) != (ids is not None):
            what = "ids are missing, but the queue has" if ids is None else "ids are given, but the queue has no"
            raise ValueError(f"Queue.enqueue: {what} ids")
        oldest = int(self._oldest)
        places = torch.arange(oldest + filled, oldest + filled + count, device=self._keys.device) % size
        self._keys[places] = keys
        if ids is not None:
            self._ids[places] = ids
        self._with_ids.fill_(ids is not None)
        lost = max(0, filled + count - size)
        self._oldest.fill_((oldest + lost) % size)
        self._filled.fill_(filled + count - lost)

    def _in_order(self, stored: Tensor) -> Tensor:
        oldest, filled = int(self._oldest), len(self)
        return torch.cat([stored[oldest : oldest + filled], stored[: max(0, oldest + filled - len(stored))]])

    def __len__(self) -> int:
        return int(self._filled)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"size={self._keys.shape[0]}, dim={self._keys.shape[1]}"


def _of_all_ranks(keys: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The keys and ids of all ranks, one rank after the other; batches may differ in length."""
    (given,) = gather_rows(torch.tensor([ids is not None], device=keys.device))
    if bool(given.any()) != bool(given.all()):  # every rank sees it, so none is left waiting
        raise ValueError("Queue.enqueue: some ranks gave ids and others did not")
    if ids is None:
        return gather_rows(keys)[0], None
    keys, ids = gather_rows(keys, ids)
    return keys, ids
