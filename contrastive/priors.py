r"""Prior matching: codes are brought to a distribution of one's choice by a discriminator that tells them from it.

No pairs and no negatives: what is matched is the distribution of all codes together. The discriminator's objective
estimates a divergence between two distributions of codes, in nats, and no information between two variables.

>>> import torch
>>> codes = torch.randn(8, 2, requires_grad=True)
>>> matching = PriorMatching(nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)))
>>> encoder_loss, discriminator_loss = matching(codes)
>>> (0.1 * encoder_loss.mean() + discriminator_loss.mean()).backward()
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from contrastive.rows import softplus
from contrastive.wrappers import refuse_batch_norm

__all__ = ["PriorMatching", "gradient_penalty"]

_APART = (
    "codes and draws of the prior are normalised apart, which hides from the discriminator how they differ. Use "
    "LayerNorm, or no norm"
)


class PriorMatching(nn.Module):
    r"""Creates the adversarial losses that make codes, squashed into the unit cube, uniform (Deep InfoMax's prior).

    With codes :math:`y_i`, :math:`z_i = \operatorname{sigmoid}(y_i)`, fresh uniform draws :math:`u_i` and logits D,

    .. math::
        E_i &= \log(1 + e^{-D(z_i)}) \\
        D_i &= \log(1 + e^{-D(u_i)}) + \log(1 + e^{D(z_i)})
            + \tfrac{\lambda}{2} \bigl(\lVert \nabla D(u_i) \rVert^2 + \lVert \nabla D(z_i) \rVert^2\bigr)

    The encoder minimises the mean of E, which reaches the codes alone; the discriminator that of D, which reaches the
    discriminator alone. Their sum may therefore go through one backward pass and one optimiser, with a weight on E
    (the paper's :math:`\gamma`). E is the form that does not saturate, as in the authors' code; the paper writes
    :math:`\log(1 - \operatorname{sigmoid} D(z_i))`.

    :math:`\log 4 - \operatorname{mean}_i D_i` without the penalty is a lower bound in expectation, for any
    discriminator, on twice the Jensen-Shannon divergence between the codes' distribution and the uniform one.

    Arguments:
        discriminator: ``[n, d] -> [n, 1]``, a logit of being a draw of the prior, of every row by itself. Batch norm is
            refused. Nothing leaks through it as in CPC, but codes and draws pass it apart: both are brought to one mean
            and deviation, and the discriminator is blind to the very difference that it is to find. A row's slope would
            hold what it does to its neighbours, and a D of single rows, of which the bound below is, would not exist.
        penalty: :math:`\lambda`; 0 computes none.

    Raises:
        ValueError: for a penalty that is negative or not finite, and for a discriminator with a batch norm.

    Example:
        >>> encoder_loss, _ = PriorMatching(nn.Linear(3, 1))(torch.zeros(5, 3))
        >>> encoder_loss.shape
        torch.Size([5])

    References:
        | Learning Deep Representations by Mutual Information Estimation and Maximization (Hjelm et al., 2019)
        | https://arxiv.org/abs/1808.06670
        | Adversarial Autoencoders (Makhzani et al., 2015)
        | https://arxiv.org/abs/1511.05644
        | Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018)
        | https://arxiv.org/abs/1801.04406
    """

    def __init__(self, discriminator: nn.Module, *, penalty: float = 1.0) -> None:
        super().__init__()
        if not 0 <= penalty < float("inf"):
            raise ValueError(f"PriorMatching: penalty is {penalty}, expected a number of at least 0")
        refuse_batch_norm("PriorMatching", discriminator, reason=_APART)
        self.discriminator = discriminator
        self.penalty = penalty

    def forward(self, codes: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Draws n points of the prior (torch's global generator) and returns E and D of every row.

        Raises:
            ValueError: for codes that are no floating-point matrix, and a discriminator that gives no column of logits.
        """
        if codes.ndim != 2 or not codes.is_floating_point():
            raise ValueError(
                f"PriorMatching: codes have shape {tuple(codes.shape)} and dtype {codes.dtype}, "
                "expected floating-point [n, d]"
            )
        false = torch.sigmoid(codes)
        true = torch.rand_like(codes)
        # The encoder's loss must not train the discriminator: it sees a copy whose weights are constants.
        constant = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        encoder_loss = softplus(-self._logits(functional_call(self.discriminator, constant, (false,)), codes))
        false = false.detach()
        discriminator_loss = softplus(-self._logits(self.discriminator(true), codes))
        discriminator_loss = discriminator_loss + softplus(self._logits(self.discriminator(false), codes))
        if self.penalty:
            slopes = gradient_penalty(self.discriminator, true) + gradient_penalty(self.discriminator, false)
            discriminator_loss = discriminator_loss + self.penalty / 2 * slopes
        return encoder_loss, discriminator_loss

    @staticmethod
    def _logits(found: Tensor, codes: Tensor) -> Tensor:
        if found.shape != (len(codes), 1):
            raise ValueError(
                f"PriorMatching: the discriminator gave shape {tuple(found.shape)}, expected [{len(codes)}, 1]"
            )
        return found.squeeze(1)

    def extra_repr(self) -> str:  # noqa: D102
        return f"penalty={self.penalty}"


def gradient_penalty(function: Callable[[Tensor], Tensor], x: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    r"""Computes the squared length of a function's gradient at every row, differentiable in its parameters.

    .. math::
        \lVert \nabla_x D(x_i) \rVert^2

    Zero-centred, where points are: not the distance of the length from 1 between them (WGAN-GP).

    Arguments:
        function: ``[n, ...] -> [n, 1]`` or ``[n]``, each row by itself.
        x: where; no gradient flows back into it.

    Returns:
        One number a row.

    Example:
        >>> gradient_penalty(lambda x: 3 * x.sum(1), torch.zeros(2, 4))
        tensor([36., 36.])

    References:
        | Which Training Methods for GANs do actually Converge? (Mescheder et al., 2018)
        | https://arxiv.org/abs/1801.04406
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():  # an evaluation without gradients still has a penalty
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(function(x).sum(), x, create_graph=differentiable)
    return slope.flatten(1).square().sum(1)
