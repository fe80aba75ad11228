"""Everything of ours that the public batteries are run over, and their reports: each battery runs once."""

import functools
import inspect
from contextlib import contextmanager
from functools import partial

import jaxtyping
import torch
from miner_table import TABLE, Fitted

import contrastive
import contrastive.interop
import miners
from contrastive import (
    Bilinear,
    Concat,
    Cosine,
    InnerProduct,
    KPairLoss,
    NegativeSquaredDistance,
    Separable,
    additive_margin_loss,
    decoupled_loss,
    evaluate_retrieval,
    kpair_loss,
    lifted_loss,
    multi_similarity_loss,
    ntxent_loss,
    ovo_loss,
    pairwise_loss,
    sigmoid_loss,
    supcon_loss,
    symmetric_loss,
)
from contrastive.testing import check_criterion, check_evaluator, check_miner, check_objective
from miners import false_negatives, hcl, same_group, same_label, topk

OBJECTIVES = [
    kpair_loss, decoupled_loss, pairwise_loss, partial(pairwise_loss, link=torch.relu), supcon_loss,
    partial(supcon_loss, keep_positives=False), ntxent_loss, symmetric_loss,
    partial(symmetric_loss, objective=decoupled_loss), partial(additive_margin_loss, margin=0.5), ovo_loss,
    lifted_loss, partial(lifted_loss, link=torch.nn.functional.softplus), multi_similarity_loss, sigmoid_loss,
]  # fmt: skip
CRITERIA = [
    KPairLoss(Cosine()),
    KPairLoss(Cosine(), tiled=True),
    KPairLoss(Cosine(), tiled=False),
    KPairLoss(Cosine(learnable=True), miner=hcl(1.0)),
    KPairLoss(Cosine(), miner=topk(2), symmetric=False),
    KPairLoss(Cosine(), intra_view=True),
    KPairLoss(InnerProduct()),
    KPairLoss(NegativeSquaredDistance()),
    KPairLoss(Bilinear(5)),
    KPairLoss(Separable(5)),
    KPairLoss(Concat(5)),
]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 0, 1, 2, 3, 3, 3])
WITH_FACTS = [same_label(*LABELS), same_group(*LABELS), false_negatives(torch.randn(6, 2, 4), torch.randn(9, 4), k=2)]
MINERS = [miner for miner, _ in TABLE if not isinstance(miner, Fitted)]


def evaluator(backend, metric):
    """The k-th recall of `evaluate_retrieval`."""
    return partial(_recall, backend=backend, metric=metric)


def _recall(x, y, k, **options):
    return evaluate_retrieval(x, y, ks=(k,), **options).mean[f"recall@{k}"]


EVALUATORS = [evaluator(backend, metric) for backend in ("torch", "faiss") for metric in ("cosine", "euclidean")]

# What does not apply, and why.
EXEMPT = {
    # A linear layer in float32 takes nothing else, as torch's own do not.
    Separable: ["half_precision_is_near", "vectors_of_zero_are_finite"],
    Concat: ["half_precision_is_near", "vectors_of_zero_are_finite"],
}


@functools.cache
def reports(kind):
    """The report of every subject of a kind, by its name."""
    checks, subjects = {
        "objective": (check_objective, OBJECTIVES),
        "criterion": (check_criterion, CRITERIA),
        "miner": (check_miner, MINERS),
        "evaluator": (check_evaluator, EVALUATORS),
    }[kind]
    with as_users_call_it():
        return {
            f"{place} {' '.join(repr(subject).split())}": checks(
                subject, exempt=EXEMPT.get(type(getattr(subject, "critic", None)), [])
            )
            for place, subject in enumerate(subjects)
        }


@contextmanager
def as_users_call_it():
    """Without jaxtyping's checks, whose errors would hide the library's: see `references.refused`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def with_parameter(name):
    """Every public function and class that takes a parameter of this name."""
    found = []
    for module in (contrastive, miners, contrastive.interop):
        for word in module.__all__:
            thing = getattr(module, word)
            is_error = isinstance(thing, type) and issubclass(thing, Exception)
            if callable(thing) and not is_error and name in inspect.signature(thing).parameters:
                found.append(thing)
    return found
