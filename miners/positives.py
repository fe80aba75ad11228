"""Positives that are chosen: a neighbour in a queue, or one of several of the anchor's own."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from contrastive.factors import normalize, product
from contrastive.scores import check_positives, check_rows, eager_on_cpu
from miners._rows import SCORED, refuse_broken_rows

__all__ = ["hard_positive", "nearest_positive", "semihard_positive", "without_other_positives"]


def nearest_positive(
    queries: Float[Tensor, "anchors d"], queue: Float[Tensor, "filled d"]
) -> Float[Tensor, "anchors d"]:
    r"""Replaces every query by its nearest neighbour in a queue, by cosine (NNCLR).

    .. math::
        \operatorname{NN}(x_i) = k_{m}, \qquad m = \arg\max_m \cos(x_i, k_m)

    The neighbour is scored in the place of the anchor, against the other view; gradient flows to that view alone. For a
    queue that is independent of the batch it is a function of x, so :math:`\log K - L` bounds
    :math:`I(\operatorname{NN}(X); Y) \le I(X;Y)` (``docs/theory.md``, A.5). A queue that holds keys of the batch's own
    items, as one longer than an epoch does, is not, and then nothing bounds: a key may tell what the anchor does not.

    Arguments:
        queries: :math:`x_i`.
        queue: what the neighbours are taken from, such as `Queue.keys`. A key of the query's own item is one of them.

    Returns:
        The neighbours, as they are in the queue, without gradient. Among equal cosines any is taken. Cosines are formed
        in blocks: memory does not grow with the number of queries.

    Raises:
        ValueError: for an empty queue, another width, or NaN or infinite values.

    Example:
        >>> from contrastive import Cosine, KPairLoss
        >>> from miners import Queue
        >>> queue, criterion = Queue(8, 4), KPairLoss(Cosine(), symmetric=False)
        >>> queue.enqueue(torch.randn(6, 4))
        >>> x, y = torch.randn(3, 4), torch.randn(3, 4)
        >>> there = criterion(nearest_positive(x, queue.keys()), y)
        >>> loss = (there + criterion(nearest_positive(y, queue.keys()), x)) / 2
        >>> queue.enqueue(x)

    References:
        | With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations (Dwibedi
          et al., 2021)
        | https://arxiv.org/abs/2104.14548
    """
    if queries.ndim != 2 or queue.ndim != 2 or queries.shape[1] != queue.shape[1] or not len(queue):
        raise ValueError(
            f"nearest_positive: got queries of shape {tuple(queries.shape)} and a queue of shape {tuple(queue.shape)}, "
            "expected [anchors, d] and [filled, d], with a key at least"
        )
    refuse_broken_rows("nearest_positive", "queries", queries)
    refuse_broken_rows("nearest_positive", "queue", queue)
    u, v = normalize(queries.detach()), normalize(queue.detach())
    dtype = torch.promote_types(u.dtype, v.dtype)
    v = v.to(dtype)
    nearest = [product(part.to(dtype), v).argmax(1) for part in torch.split(u, max(1, SCORED // len(v)))]
    return queue.detach()[torch.cat(nearest)]


def hard_positive(
    scores: Float[Tensor, "anchors candidates"], positives: Bool[Tensor, "anchors candidates"]
) -> Int[Tensor, " anchors"]:
    r"""Chooses the lowest-scoring positive of every anchor that has several (batch-hard).

    .. math::
        t(i) = \arg\min_{p \in P(i)} s_{ip}

    What is returned are targets, for any objective and miner. The other positives are no negatives: make them absent.

    >>> from contrastive import kpair_loss
    >>> scores = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    >>> positives = torch.tensor([[True, True, False, False]])
    >>> targets = hard_positive(scores, positives)
    >>> targets
    tensor([1])
    >>> kpair_loss(without_other_positives(scores, targets, positives), targets)
    tensor([1.4076])

    It has at least the loss of a positive that is chosen by a die. So :math:`\log(1 + N) - L` with N negatives bounds
    mutual information where it does for each of the positives: views of one image beside other images, but not a class
    beside other classes, whose negatives are not drawn like the positive (``docs/theory.md``, A.6).

    Arguments:
        scores: as in `contrastive.kpair_loss`.
        positives: P, as in `contrastive.supcon_loss`.

    Returns:
        The column of each anchor's hardest positive; 0 for padding. Among equal scores any is taken.

    Raises:
        ValueError: as `contrastive.supcon_loss`, and, on the CPU, for an anchor without a positive: leave it out, or
            make it padding.

    References:
        | In Defense of the Triplet Loss for Person Re-Identification (Hermans et al., 2017)
        | https://arxiv.org/abs/1703.07737
    """
    scores, positive, _ = _checked("hard_positive", scores, positives)
    return _lowest(scores, positive)


def semihard_positive(
    scores: Float[Tensor, "anchors candidates"], positives: Bool[Tensor, "anchors candidates"]
) -> Int[Tensor, " anchors"]:
    r"""Chooses the hardest positive that still scores above every negative, or else the easiest positive.

    .. math::
        t(i) = \arg\min_{p \in P'(i)} s_{ip}, \quad P'(i) = \{p \in P(i) : s_{ip} > \max_{n \notin P(i)} s_{in}\},
        \qquad \text{or } \arg\max_{p \in P(i)} s_{ip} \text{ for empty } P'(i)

    The counterpart of semi-hard negatives: hard positives that are out of reach, such as outliers of a class, may pull
    it into one point (Xuan et al., who take the easiest positive always). Nothing bounds mutual information
    (``docs/theory.md``, theorem D): say so by ``infonce_bound(..., independent=False)``.

    Arguments:
        scores: as in `contrastive.kpair_loss`.
        positives: P, as in `contrastive.supcon_loss`; everything else that is present is a negative.

    Returns:
        Targets, as `hard_positive`: to be used with `without_other_positives`. An anchor without negatives gets its
        hardest positive.

    Raises:
        ValueError: as `hard_positive`.

    Example:
        >>> scores = torch.tensor([[3.0, 1.0, 2.5, 2.0], [0.0, 1.0, 0.5, 2.0]])
        >>> semihard_positive(scores, torch.tensor([[True, True, True, False]] * 2))
        tensor([2, 1])

    References:
        | Improved Embeddings with Easy Positive Triplet Mining (Xuan et al., 2020)
        | https://arxiv.org/abs/1904.04370
        | FaceNet: A Unified Embedding for Face Recognition and Clustering (Schroff et al., 2015)
        | https://arxiv.org/abs/1503.03832
    """
    scores, positive, negative = _checked("semihard_positive", scores, positives)
    if not scores.numel():
        return _lowest(scores, positive)
    hardest = scores.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
    above = positive & (scores > hardest)
    easiest = scores.masked_fill(~positive, -torch.inf).argmax(1)
    return torch.where(above.any(1), _lowest(scores, above), easiest)


def without_other_positives(
    scores: Float[Tensor, "anchors candidates"],
    targets: Int[Tensor, " anchors"],
    positives: Bool[Tensor, "anchors candidates"],
) -> Float[Tensor, "anchors candidates"]:
    r"""Makes the positives absent that are not the target, so that none counts as a negative.

    Arguments:
        scores: as in `contrastive.kpair_loss`.
        targets: the positive of each anchor that stays.
        positives: the mask of all.

    Returns:
        The scores, in at least float32, :math:`-\infty` at the other positives.

    Raises:
        ValueError: for shapes and dtypes that do not fit.

    Example:
        >>> without_other_positives(torch.zeros(1, 3), torch.tensor([1]), torch.tensor([[True, True, False]]))
        tensor([[-inf, 0., 0.]])
    """
    scores, targets, _ = check_rows("without_other_positives", scores, targets)
    if positives.dtype != torch.bool or positives.shape != scores.shape:
        raise ValueError(
            f"without_other_positives: positives have shape {tuple(positives.shape)} and dtype {positives.dtype}, "
            f"expected {tuple(scores.shape)} and torch.bool"
        )
    return scores.masked_fill(positives.to(scores.device).scatter(1, targets[:, None], False), -torch.inf)


def _checked(function: str, scores: Tensor, positives: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scores, and the masks of positives and negatives; every row that is no padding has a positive."""
    if positives.dtype != torch.bool:  # columns would do for a loss, but there would be nothing to choose
        raise ValueError(f"{function}: positives have dtype {positives.dtype}, expected torch.bool")
    scores, positive, negative, _ = check_positives(function, scores.detach(), positives)
    if eager_on_cpu(scores):
        alone = negative.any(1) & ~positive.any(1)
        if bool(alone.any()):
            raise ValueError(f"{function}: row {int(alone.nonzero()[0])} has no positive, expected one at least")
    return scores, positive, negative


def _lowest(scores: Tensor, chosen: Tensor) -> Tensor:
    """The column of the lowest score among those chosen; 0 where none is."""
    if not scores.numel():
        return torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return scores.masked_fill(~chosen, torch.inf).argmin(1)
