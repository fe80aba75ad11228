"""A memory bank: one key for every item of the data set."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from contrastive.scores import eager_on_cpu
from miners._rows import refuse_broken_rows

__all__ = ["Bank"]


class Bank(nn.Module):
    r"""Creates a memory of one unit key per item, moved towards what the encoder says of it now.

    .. math::
        k_i \leftarrow \frac{m\, k_i + (1 - m)\, z_i}{\lVert m\, k_i + (1 - m)\, z_i \rVert}

    Keys start as random directions, as published: until an item was seen, its key says nothing. Like those of a
    `Queue` they are stale, and nothing bounds mutual information. Everything is saved with the model.

    Arguments:
        items: how many keys.
        dim: their width.
        momentum: m, in [0, 1).

    Raises:
        ValueError: for fewer than two items, a width below 1 or a momentum outside [0, 1).

    Example:
        >>> from contrastive import Cosine
        >>> from contrastive.lists import list_scores
        >>> from contrastive.pairings import contrast, listed
        >>> bank, items, x = Bank(100, 8), torch.tensor([4, 7]), torch.randn(2, 8)
        >>> columns = bank.draw(items, 16)
        >>> loss = contrast(list_scores(Cosine(), x, bank.keys, columns), listed(items, columns))
        >>> bank.update(items, x)
        >>> loss.shape
        torch.Size([2])

    References:
        | Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al., 2018)
        | https://arxiv.org/abs/1805.01978
        | Contrastive Multiview Coding (Tian et al., 2020)
        | https://arxiv.org/abs/1906.05849
    """

    keys: Tensor

    def __init__(self, items: int, dim: int, *, momentum: float = 0.5) -> None:
        super().__init__()
        if items < 2 or dim < 1:
            raise ValueError(f"Bank: items is {items} and dim {dim}, expected at least 2 and 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"Bank: momentum is {momentum}, expected a number in [0, 1)")
        self.register_buffer("keys", F.normalize(torch.randn(items, dim), dim=1))
        self.momentum = momentum

    def draw(self, items: Int[Tensor, " anchors"], k: int) -> Int[Tensor, "anchors columns"]:
        """Draws k items for each anchor, uniformly and with replacement, behind the anchor's own.

        A draw may hit the own item; `contrastive.pairings.listed` makes it absent.

        Arguments:
            items: of the anchors.
            k: draws an anchor.

        Returns:
            Rows of `keys`, ``[anchors, 1 + k]``.

        Raises:
            ValueError: for fewer than one draw, and, on the CPU, items that the bank has not.
        """
        if k < 1:
            raise ValueError(f"Bank.draw: k is {k}, expected at least 1")
        self._check_items("Bank.draw", items)
        drawn = torch.randint(len(self.keys), (len(items), k), device=items.device)
        return torch.cat([items[:, None], drawn], 1)

    @torch.no_grad()
    def update(self, items: Int[Tensor, " anchors"], rows: Float[Tensor, "anchors dim"]) -> None:
        """Moves the keys of some items; call it after the scores are formed.

        Arguments:
            items: whose keys.
            rows: what the encoder says of them; their length does not matter.

        Raises:
            ValueError: for rows of another width, and, on the CPU, NaN or infinite ones, and items that the bank has
                not.
        """
        if rows.shape != (len(items), self.keys.shape[1]):
            raise ValueError(
                f"Bank.update: rows have shape {tuple(rows.shape)}, expected [{len(items)}, {self.keys.shape[1]}]"
            )
        self._check_items("Bank.update", items)
        refuse_broken_rows("Bank.update", "rows", rows)
        rows = F.normalize(rows.to(self.keys), dim=1)
        self.keys[items] = F.normalize(self.momentum * self.keys[items] + (1 - self.momentum) * rows, dim=1)

    def _check_items(self, function: str, items: Tensor) -> None:
        """Refuses what numbers no key: -1 would move the last one."""
        if not (items.numel() and eager_on_cpu(items)):
            return
        if int(items.min()) < 0 or int(items.max()) >= len(self.keys):
            raise ValueError(
                f"{function}: items lie in [{int(items.min())}, {int(items.max())}], expected [0, {len(self.keys) - 1}]"
            )

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"items={self.keys.shape[0]}, dim={self.keys.shape[1]}, momentum={self.momentum}"
