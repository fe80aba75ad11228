r"""The K-pair loss without its matrix: exact value and gradient, streamed.

The loss is a log-sum over scores, so some of them can be summed and forgotten; memory is that of a tile, whatever the
batch. For critics that factorise (`contrastive.factors.Factorises`: all of `contrastive.critics` but `Concat`) the time
is that of the matrix products and little else. Both directions are summed from the same tiles; one direction, and mined
rows, are streamed in strips of some anchors against all candidates. Any other critic is scored strip by strip.

Value and gradient are formed together in the forward pass, and the backward pass multiplies. That is why these
functions return the mean over anchors, where `contrastive.objectives` returns one value per anchor: the gradient must
know beforehand how anchors are weighed. For the same reason they are differentiable once; a second time is refused.

The range of the logits does not matter: where a bound on them (Cauchy-Schwarz; :math:`1/\tau` for a cosine) shows that
no sum can leave the floats one shift serves all, and elsewhere every row and column keeps its running maximum.
"""

from jaxtyping import Float, Int
from torch import Tensor

from contrastive._streaming import Critic, direction, directions, views
from contrastive._tiles import Absent
from contrastive.scores import WeighsNegatives

__all__ = ["Absent", "tiled_kpair_loss", "tiled_ntxent_loss", "tiled_symmetric_loss"]


def tiled_kpair_loss(
    critic: Critic,
    x: Float[Tensor, "anchors dx"],
    y: Float[Tensor, "candidates dy"],
    targets: Int[Tensor, " anchors"] | None = None,
    *,
    absent: Absent | None = None,
    miner: WeighsNegatives | None = None,
    stored: bool = False,
) -> Float[Tensor, ""]:
    r"""Computes the mean K-pair loss of anchors among candidates, without the matrix of their scores.

    .. math::
        \mathcal L = \frac1N \sum_i \log \sum_j w_{ij} e^{f(x_i, y_j) - f(x_i, y_{t(i)})}

    It is ``kpair_loss(critic(x, y), targets).mean()``, value and gradient. A queue is further rows of `y`.

    Arguments:
        critic: ``(x [N, d], y [M, d']) -> scores [N, M]``. If it does not factorise, a module: the gradients of its
            own parameters are formed with the loss.
        x: anchors.
        y: candidates.
        targets: the row of `y` that is each anchor's positive; None means row i for anchor i.
        absent: which candidates are absent, asked strip by strip: ``(anchors [m], candidates [M]) -> Bool[m, M]``, of
            row numbers; None: none. A row without any candidate is padding.
        miner: as in `contrastive.KPairLoss`, a module if it has parameters. It sees some anchors against all candidates
            at a time, and runs once on every anchor.
        stored: whether the matrix may be formed should the loss be differentiated twice (unmined, and for a critic that
            factorises).

    Returns:
        The mean loss in nats; 0 for no anchors.

    Raises:
        ValueError: as `contrastive.kpair_loss`, naming the row, and for a critic or miner that depends on parameters
            which are not its own.

    Example:
        >>> import torch
        >>> from contrastive import Cosine, kpair_loss
        >>> x, y = torch.randn(6, 4), torch.randn(9, 4)
        >>> loss = tiled_kpair_loss(Cosine(), x, y)
        >>> torch.testing.assert_close(loss, kpair_loss(Cosine()(x, y)).mean())

    References:
        | Breaking the Memory Barrier: Near Infinite Batch Size Scaling for Contrastive Loss (Cheng et al., 2024)
        | https://arxiv.org/abs/2410.17243
    """
    return direction("tiled_kpair_loss", critic, x, y, targets, absent=absent, miner=miner, stored=stored)


def tiled_symmetric_loss(
    critic: Critic,
    x: Float[Tensor, "batch dx"],
    y: Float[Tensor, "batch dy"],
    *,
    negatives: Float[Tensor, "extra dy"] | None = None,
    absent: Absent | None = None,
    miner: WeighsNegatives | None = None,
    stored: bool = False,
) -> Float[Tensor, ""]:
    r"""Computes the mean of the K-pair losses of both directions, without the matrix of scores.

    .. math::
        \mathcal L = \tfrac12 \bigl(\mathcal L(x \to y) + \mathcal L(y \to x)\bigr)

    It is ``symmetric_loss(critic(x, y)).mean()``, value and gradient. Without a miner, and for a critic that
    factorises, one set of tiles serves both directions; otherwise each streams its own strips.

    Arguments:
        critic: as in `tiled_kpair_loss`.
        x: one side of the pairs.
        y: the other side, row by row.
        negatives: further candidates of the direction x to y, such as a queue.
        absent: as in `tiled_kpair_loss`, of rows of `x` and of `y` followed by `negatives`.
        miner: as in `tiled_kpair_loss`, applied to each direction's own rows.
        stored: whether scores may be kept between the two passes, where one set of tiles serves: N·M floats, a quarter
            fewer products, and the loss can be differentiated twice.

    Returns:
        The mean loss in nats; 0 for no pairs.

    Raises:
        ValueError: as `tiled_kpair_loss`, and when `x` and `y` differ in length.

    Example:
        >>> import torch
        >>> from contrastive import Cosine, symmetric_loss
        >>> x, y = torch.randn(6, 4), torch.randn(6, 4)
        >>> loss = tiled_symmetric_loss(Cosine(), x, y)
        >>> torch.testing.assert_close(loss, symmetric_loss(Cosine()(x, y)).mean())

    References:
        | Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021)
        | https://arxiv.org/abs/2103.00020
    """
    return directions("tiled_symmetric_loss", critic, x, y, negatives, absent=absent, miner=miner, stored=stored)


def tiled_ntxent_loss(
    critic: Critic,
    x: Float[Tensor, "batch d"],
    y: Float[Tensor, "batch d"],
    *,
    negatives: Float[Tensor, "extra d"] | None = None,
    absent: Absent | None = None,
    miner: WeighsNegatives | None = None,
    stored: bool = False,
) -> Float[Tensor, ""]:
    r"""Computes the mean NT-Xent loss of two views, without the matrix of scores.

    .. math::
        \mathcal L = \frac1{2B} \sum_i \log \sum_{j \ne i} w_{ij} e^{f(z_i, z_j) - f(z_i, z_{t(i)})}, \qquad
        z = [x; y], \; t(i) = (i + B) \bmod 2B

    It is ``ntxent_loss(critic(z, z)).mean()``, value and gradient. Unmined, and with one tensor as both
    factors (`InnerProduct`, `Cosine`), the upper triangle of tiles is enough.

    Arguments:
        critic: as in `tiled_kpair_loss`.
        x: first views.
        y: second views, row by row.
        negatives: further candidates of every view, such as a queue.
        absent: as in `tiled_kpair_loss`, of rows of z and of z followed by `negatives`. The self pair always is.
        miner: as in `tiled_kpair_loss`.
        stored: as in `tiled_symmetric_loss`.

    Returns:
        The mean loss of the 2B views in nats; 0 for no pairs.

    Raises:
        ValueError: as `tiled_symmetric_loss`.

    Example:
        >>> import torch
        >>> from contrastive import Cosine, ntxent_loss
        >>> x, y = torch.randn(6, 4), torch.randn(6, 4)
        >>> loss, z = tiled_ntxent_loss(Cosine(), x, y), torch.cat([x, y])
        >>> torch.testing.assert_close(loss, ntxent_loss(Cosine()(z, z)).mean())

    References:
        | A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., 2020)
        | https://arxiv.org/abs/2002.05709
    """
    return views("tiled_ntxent_loss", critic, x, y, negatives, absent=absent, miner=miner, stored=stored)
