r"""Virtual adversarial training: the view of an input that changes a classifier's answer most, and the price for it.

>>> import torch
>>> model = nn.Linear(4, 3)
>>> x = torch.randn(5, 4)
>>> virtual_adversarial_loss(model, x, model(x), radius=0.5).shape
torch.Size([5])
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from contrastive.assignments import divergence
from contrastive.factors import normalize

__all__ = ["untracked_statistics", "virtual_adversarial_loss", "virtual_adversarial_view"]

Model = Callable[[Tensor], Tensor]


def virtual_adversarial_view(
    model: Model,
    x: Float[Tensor, "n ..."],
    logits: Float[Tensor, "n classes"],
    *,
    radius: Float[Tensor, " n"] | float,
    xi: float = 10.0,
    iterations: int = 1,
) -> Float[Tensor, "n ..."]:
    r"""Finds, at a given distance from every input, where the model's answer differs most.

    .. math::
        x_i + \epsilon_i d_i, \qquad
        d \leftarrow \frac{g}{\lVert g \rVert}, \quad
        g = \nabla_d D\bigl(p(y|x) \,\Vert\, p(y|x + \xi d)\bigr), \quad d_0 \text{ a random direction}

    The divergence is smallest, 0, at d = 0: its gradient there vanishes, and the one at a small :math:`\xi d` is the
    Hessian times d, so that each iteration is a step of the power method. The pass must not move running statistics of
    batch norms: see `untracked_statistics`. Their batch statistics couple the rows of a batch; a row's gradient then
    holds its effect on the others, too, as in the authors' code.

    Arguments:
        model: inputs to logits ``[n, classes]``.
        x: the inputs; they are no part of the graph.
        logits: of `x`, which are known already; no gradient flows into them.
        radius: :math:`\epsilon`, in units of the input, one for each row or one for all.
        xi: :math:`\xi`, how far from the input the gradient is taken; 10 in IMSAT, 1e-6 in the paper.
        iterations: of the power method, at least 1.

    Returns:
        Inputs, cut off from the graph. A row where the model does not change stays where it is.

    Raises:
        ValueError: for a radius of another length, fewer than 1 iteration, a `xi` that is not positive; otherwise as
            `contrastive.assignments.divergence`.

    Example:
        >>> steep = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = steep.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # reads the first column alone
        >>> x = torch.zeros(1, 2)
        >>> (virtual_adversarial_view(steep, x, steep(x), radius=0.5) - x).abs()
        tensor([[0.5000, 0.0000]])

    References:
        | Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised Learning (Miyato
          et al., 2018)
        | https://arxiv.org/abs/1704.03976
    """
    if not xi > 0 or iterations < 1:
        raise ValueError(f"virtual_adversarial_view: xi is {xi} and iterations {iterations}; expected both positive")
    epsilon = torch.as_tensor(radius, dtype=x.dtype, device=x.device)
    if epsilon.shape not in ((), (len(x),)):
        raise ValueError(
            f"virtual_adversarial_view: radius has shape {tuple(epsilon.shape)}, expected [{len(x)}] or a number"
        )
    x, logits = x.detach(), logits.detach()
    d = _directions(torch.randn_like(x))
    with torch.enable_grad():
        for _ in range(iterations):
            d.requires_grad_()
            (slope,) = torch.autograd.grad(divergence(logits, model(x + xi * d)).sum(), d)
            d = _directions(slope)
    return x + epsilon.expand(len(x)).reshape(-1, *[1] * (x.ndim - 1)) * d


def virtual_adversarial_loss(
    model: Model,
    x: Float[Tensor, "n ..."],
    logits: Float[Tensor, "n classes"],
    *,
    radius: Float[Tensor, " n"] | float,
    xi: float = 10.0,
    iterations: int = 1,
) -> Float[Tensor, " n"]:
    r"""Computes how much the answer changes in the worst direction: virtual adversarial training (R-VAT, IMSAT).

    .. math::
        D\bigl(p(y|x_i) \,\Vert\, p(y|x_i + \epsilon_i d_i)\bigr)

    Both the target and the view are constants; the gradient is that of the answer at the view. It is a divergence in
    nats between two answers, and no information.

    Arguments:
        model: as in `virtual_adversarial_view`; batch norms keep their running statistics in both passes.
        x: the inputs.
        logits: of `x`, from the pass that the rest of the objective needs anyway.
        radius: as in `virtual_adversarial_view`. IMSAT takes a quarter of the distance to the tenth neighbour.
        xi: likewise.
        iterations: likewise.

    Returns:
        One value a row.

    Raises:
        ValueError: as `virtual_adversarial_view`.

    References:
        | Learning Discrete Representations via Information Maximizing Self-Augmented Training (Hu et al., 2017)
        | https://arxiv.org/abs/1702.08720
    """
    with untracked_statistics(model):
        view = virtual_adversarial_view(model, x, logits, radius=radius, xi=xi, iterations=iterations)
        return divergence(logits.detach(), model(view))


@contextmanager
def untracked_statistics(model: Model) -> Iterator[None]:
    """Keeps batch norms in training mode from moving their running statistics: inputs that were made up are no data.

    They still normalise by the batch's own statistics, and nothing changes in evaluation mode.

    Arguments:
        model: with batch norms anywhere inside; what is no module has none.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with untracked_statistics(norm):
        ...     _ = norm(torch.randn(5, 2) + 100)
        >>> norm.running_mean
        tensor([0., 0.])
    """
    inner = model.modules() if isinstance(model, nn.Module) else ()
    norms = (module for module in inner if isinstance(module, nn.modules.batchnorm._BatchNorm))
    tracked = [module for module in norms if module.track_running_stats]
    for module in tracked:
        module.track_running_stats = False  # read at every call
    try:
        yield
    finally:
        for module in tracked:
            module.track_running_stats = True


def _directions(d: Tensor) -> Tensor:
    """Rows of length 1, also where their squares would underflow; a zero row stays zero."""
    return normalize(d.detach().flatten(1)).view_as(d)
