r"""Soft assignments to classes: discrete mutual information (IIC), entropies (RIM, IMSAT), divergences; in nats.

Rows are logits, or log-probabilities, which are logits too; a class that a row excludes is :math:`-\infty`.
:math:`p_{ic}` is the softmax of row i. Nothing is added inside a logarithm: what has no mass adds nothing.

>>> import torch
>>> certain = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
>>> discrete_information(certain, certain)  # log 2
tensor(0.6931)
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from contrastive.factors import product
from contrastive.rows import logsumexp_or
from contrastive.scores import as_float32, eager_on_cpu

__all__ = [
    "conditional_entropy",
    "discrete_information",
    "divergence",
    "entropy_balance",
    "marginal_entropy",
]


def discrete_information(
    logits: Float[Tensor, "n classes"],
    other: Float[Tensor, "n classes"],
    *,
    lam: float = 1.0,
    symmetric: bool = True,
) -> Float[Tensor, ""]:
    r"""Computes the mutual information of the classes of two views, IIC's objective, to be maximised.

    .. math::
        P = \frac1n \sum_i p_i {p'_i}^\top, \quad P \leftarrow \tfrac12 (P + P^\top), \qquad
        \sum_{cd} P_{cd} \bigl(\log P_{cd} - \lambda \log P_{c \cdot} - \lambda \log P_{\cdot d}\bigr)

    With :math:`\lambda = 1` it is the information of two discrete variables whose joint law is P, never more than the
    log of the number of classes. What it says of the views x and x':

    - P of the whole population and not symmetrised: the class of x and that of x' know of each other through the views
      alone, so by data processing it is **at most** I(X;X'), whatever the encoder.
    - Symmetrised, that holds only where the views are exchangeable (both drawn in the same way), when P is symmetric by
      itself. Otherwise it may be more: constant views that differ have no information and read log 2.
    - From n rows it is a plug-in estimate and **no bound**: of hard assignments its bias is
      :math:`(k - k_1 - k_2 + 1) / 2n` to first order, with k the cells of P that are not empty and :math:`k_1, k_2` its
      rows and columns that are not (Miller, 1955): upwards for views that hardly agree, downwards for views that always
      do. On the rows that the encoder was trained with it is too high on top of that.

    With any other :math:`\lambda` the value is :math:`\lambda (H_1 + H_2) - H_{12}`, an objective and no information.

    Arguments:
        logits: of the first view.
        other: of the second view, row i of the same thing.
        lam: :math:`\lambda`; above 1 it weighs equal classes more.
        symmetric: whether the joint is symmetrised.

    Returns:
        The value; gradients are finite where classes are empty and rows certain.

    Raises:
        ValueError: for shapes that differ or are no matrix, no rows, NaN or :math:`+\infty`, a row that excludes every
            class (values are checked in eager mode on the CPU).

    Example:
        >>> discrete_information(torch.zeros(4, 2), torch.zeros(4, 2))  # knows nothing
        tensor(0.)

    References:
        | Invariant Information Clustering for Unsupervised Image Classification and Segmentation (Ji et al., 2019)
        | https://arxiv.org/abs/1807.06653
        | Note on the Bias of Information Estimates (Miller, 1955)
    """
    log_p = _log_probabilities("discrete_information", logits)
    log_q = _log_probabilities("discrete_information", other)
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"discrete_information: logits have shape {tuple(logits.shape)} and other {tuple(other.shape)}, "
            "expected the same"
        )
    # A sum of products that are not negative keeps its digits outside log space, too; what underflows is mass below
    # 1e-38, and adds nothing.
    joint = product(log_p.exp().T, log_q.exp().T) / len(log_p)
    if symmetric:
        joint = (joint + joint.T) / 2
    inner = _log(joint) - lam * _log(joint.sum(1, keepdim=True)) - lam * _log(joint.sum(0, keepdim=True))
    return (joint * inner).sum()


def conditional_entropy(logits: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    r"""Computes the entropy of every row's classes, how undecided it is.

    .. math::
        H_i = -\sum_c p_{ic} \log p_{ic}

    Arguments:
        logits: as in `discrete_information`.

    Returns:
        One value a row; its mean is H(Y|X).

    Raises:
        ValueError: as `discrete_information`.

    Example:
        >>> conditional_entropy(torch.tensor([[0.0, 0.0, -torch.inf]]))
        tensor([0.6931])
    """
    return _entropy(_log_probabilities("conditional_entropy", logits))


def marginal_entropy(logits: Float[Tensor, "n classes"]) -> Float[Tensor, ""]:
    r"""Computes the entropy of the classes of all rows together, largest where classes are equally frequent.

    .. math::
        H = -\sum_c \bar p_c \log \bar p_c, \qquad \bar p_c = \frac1n \sum_i p_{ic}

    Of a batch it is in expectation at most the population's H(Y), for entropy is concave.

    Arguments:
        logits: as in `discrete_information`.

    Returns:
        H(Y), at most the log of the number of classes.

    Raises:
        ValueError: as `discrete_information`.

    Example:
        >>> marginal_entropy(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]))
        tensor(0.6931)
    """
    log_p = _log_probabilities("marginal_entropy", logits)
    return _entropy(logsumexp_or(log_p.T, -torch.inf) - math.log(len(log_p)))


def entropy_balance(logits: Float[Tensor, "n classes"], *, mu: float = 4.0) -> Float[Tensor, ""]:
    r"""Computes the objective of RIM and IMSAT, to be minimised: rows decided, classes equally frequent.

    .. math::
        H(Y|X) - \mu\, H(Y)

    With :math:`\mu = 1` it is :math:`-I(X;Y)`, the information between the input and **its class** under the encoder's
    own p(y|x), not between two views; a batch's I(X;Y) is in expectation at most the population's (and at most the log
    of the number of rows and of classes), a lower bound for a fixed encoder. With any other :math:`\mu` it is an
    objective and no information. It is small for any encoder that cuts the data into equal parts, however it cuts:
    something else must say which cuts are good.

    Arguments:
        logits: as in `discrete_information`.
        mu: :math:`\mu`; IMSAT takes 4, and a tenth of the whole.

    Returns:
        The value.

    Raises:
        ValueError: as `discrete_information`.

    Example:
        >>> entropy_balance(torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]), mu=1.0)  # -log 2
        tensor(-0.6931)

    References:
        | Discriminative Clustering by Regularized Information Maximization (Krause et al., 2010)
        | https://papers.nips.cc/paper/4154
        | Learning Discrete Representations via Information Maximizing Self-Augmented Training (Hu et al., 2017)
        | https://arxiv.org/abs/1702.08720
    """
    log_p = _log_probabilities("entropy_balance", logits)
    return conditional_entropy(log_p).mean() - mu * marginal_entropy(log_p)


def divergence(logits: Float[Tensor, "n classes"], other: Float[Tensor, "n classes"]) -> Float[Tensor, " n"]:
    r"""Computes the Kullback-Leibler divergence of every row's classes from those of another view.

    .. math::
        D_i = \sum_c p_{ic} (\log p_{ic} - \log q_{ic})

    Arguments:
        logits: of p.
        other: of q; infinite where q excludes a class that p does not.

    Returns:
        One value a row, not negative (but for rounding).

    Raises:
        ValueError: as `discrete_information`.

    Example:
        >>> divergence(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, 0.0]]))
        tensor([0.6931])
    """
    log_p, log_q = _log_probabilities("divergence", logits), _log_probabilities("divergence", other)
    if log_p.shape != log_q.shape:
        raise ValueError(
            f"divergence: logits have shape {tuple(logits.shape)} and other {tuple(other.shape)}, expected the same"
        )
    held = log_p > -torch.inf
    difference = log_p.masked_fill(~held, 0.0) - log_q.masked_fill(~held, 0.0)
    # A share that has underflowed, times infinity, is no number.
    return torch.where(difference == torch.inf, torch.inf, log_p.exp() * difference).sum(1)


def _entropy(log_p: Tensor) -> Tensor:
    """Over the last dimension; a class of no mass adds 0, with gradient 0."""
    return -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)


def _log(mass: Tensor) -> Tensor:
    """The logarithm; 0 where there is no mass, with gradient 0, for it is multiplied by that mass."""
    return torch.where(mass > 0, mass, 1.0).log()


def _log_probabilities(function: str, logits: Tensor) -> Tensor:
    """The one check, and what is left of it: normalised rows in at least float32."""
    if logits.ndim != 2 or not logits.is_floating_point() or not logits.numel():
        raise ValueError(
            f"{function}: got logits of shape {tuple(logits.shape)} and dtype {logits.dtype}, "
            "expected floating-point [n, classes] of at least one row"
        )
    log_p = torch.log_softmax(as_float32(logits), 1)
    if eager_on_cpu(log_p) and bool(log_p.isnan().any()):
        row = int(log_p.isnan().any(1).nonzero()[0])
        raise ValueError(f"{function}: row {row} holds a NaN or +inf, or excludes every class (-inf)")
    return log_p
