"""Our kernel beside other people's code: the same value and the same gradient, from the same embeddings.

What a peer computes otherwise (a temperature that underflows, a bank that drops its tail) is no matter of this file.
"""

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import NPairsLoss, NTXentLoss, SelfSupervisedLoss, SupConLoss

from contrastive import (
    Cosine,
    InnerProduct,
    KPairLoss,
    decoupled_loss,
    kpair_loss,
    ntxent_loss,
    partners,
    supcon_loss,
    symmetric_loss,
    without_self,
)

LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])


def views(x, y, temperature):
    """The scores of both views among themselves; the losses below leave the self pair out."""
    z = torch.cat([x, y])
    return Cosine(temperature)(z, z)


def one_view(x, temperature):
    return without_self(Cosine(temperature)(x, x))


def class_mates():
    return (LABELS[:, None] == LABELS).fill_diagonal_(False)


def both_directions(scores):
    diagonal = torch.arange(len(scores))
    return (F.cross_entropy(scores, diagonal) + F.cross_entropy(scores.T, diagonal)) / 2


def npairs(x, y):
    pairs = torch.stack([x, y], 1).flatten(0, 1)  # NPairsLoss takes the first two of every label
    return NPairsLoss()(pairs, torch.arange(len(x)).repeat_interleave(2))


def per_positive(x, y):
    """NTXentLoss averages over positive pairs: an anchor counts once for each of its positives."""
    pairs = class_mates().sum(1)
    losses = supcon_loss(one_view(x, 0.3), class_mates(), keep_positives=False)
    return (losses * pairs).sum() / pairs.sum()


# What it is: (ours, theirs), both of the embeddings of two views.
PEERS = {
    "cross_entropy": (
        lambda x, y: KPairLoss(InnerProduct(temperature=2.0), symmetric=False)(x, y),
        lambda x, y: F.cross_entropy(x @ y.T / 2.0, torch.arange(len(x))),
    ),
    "cross_entropy, both directions (CLIP)": (
        lambda x, y: symmetric_loss(Cosine(0.07)(x, y)).mean(),
        lambda x, y: both_directions(F.normalize(x) @ F.normalize(y).T / 0.07),
    ),
    "PML NPairsLoss": (lambda x, y: kpair_loss(Cosine(1.0)(x, y)).mean(), npairs),
    "PML NTXentLoss, one direction": (
        lambda x, y: kpair_loss(Cosine(0.2)(x, y)).mean(),
        lambda x, y: SelfSupervisedLoss(NTXentLoss(0.2), symmetric=False)(x, y),
    ),
    "PML NTXentLoss, two views": (
        lambda x, y: ntxent_loss(views(x, y, 0.2)).mean(),
        lambda x, y: SelfSupervisedLoss(NTXentLoss(0.2))(x, y),
    ),
    "PML NTXentLoss, labels": (per_positive, lambda x, y: NTXentLoss(0.3)(x, LABELS)),
    "PML SupConLoss": (
        lambda x, y: supcon_loss(one_view(x, 0.3), class_mates()).mean(),
        lambda x, y: SupConLoss(0.3)(x, LABELS),
    ),
}


def agree(ours, theirs, tolerance=1e-12, unused=()):
    x, y = torch.randn(2, 7, 5, dtype=torch.float64)
    leaves = {"x": x.requires_grad_(), "y": y.requires_grad_()}
    found, expected = ours(x, y), theirs(x, y)
    assert found.shape == expected.shape == ()
    assert float((found - expected).detach().abs()) <= tolerance
    for name, leaf in leaves.items():
        slopes = [
            torch.autograd.grad(value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for value in (found, expected)
        ]
        assert float((slopes[0] - slopes[1]).abs().max()) <= tolerance
        assert slopes[0].any() or name in unused


@pytest.mark.parametrize("name", PEERS)
def test_values_and_gradients(name):
    agree(*PEERS[name], unused=("y",) if name in ("PML NTXentLoss, labels", "PML SupConLoss") else ())


@pytest.fixture(scope="module")
def lightly():
    """The peer's losses, imported when they are needed: that takes seconds, and reaches for nothing on the network."""
    import lightly.loss

    return lightly.loss


class TestLightly:
    def test_ntxent_of_two_views(self, lightly):
        agree(lambda x, y: ntxent_loss(views(x, y, 0.5)).mean(), lightly.NTXentLoss(temperature=0.5))

    def test_ntxent_with_a_memory_bank_is_a_queue_of_columns(self, lightly):
        peer = lightly.NTXentLoss(temperature=0.1, memory_bank_size=(11, 5)).double()
        bank = F.normalize(peer.memory_bank.bank)  # was of unit length in float32
        peer.memory_bank.bank = bank.clone()  # the peer writes the batch into it

        def ours(x, y):
            positive = Cosine(0.1)(x, y).diag()[:, None]
            return kpair_loss(torch.cat([positive, Cosine(0.1)(x, bank)], 1), torch.zeros(7, dtype=torch.int64)).mean()

        agree(ours, peer)

    def test_dcl_is_decoupled(self, lightly):
        def ours(x, y):
            return decoupled_loss(without_self(views(x, y, 0.5)), partners(14)).mean()

        agree(ours, lightly.DCLLoss(temperature=0.5))
