r"""Contrastive (InfoNCE) learning as metric learning.

Losses are multi-class K-pair objectives that equal InfoNCE exactly, up to log K; miners plug in as log-weights;
retrieval is evaluated exactly.

>>> import torch
>>> from contrastive import Cosine, KPairLoss
>>> criterion = KPairLoss(Cosine(temperature=0.1))
>>> float(criterion(torch.eye(8), torch.eye(8))) < 0.01
True
"""

from contrastive.bounds import Bound, infonce_bound, nwj_bound, pool_infonce
from contrastive.criterion import KPairLoss
from contrastive.critics import Bilinear, Concat, Cosine, InnerProduct, NegativeSquaredDistance, Separable
from contrastive.encoders import load_encoder
from contrastive.errors import InputError
from contrastive.lists import list_scores
from contrastive.objectives import (
    additive_margin_loss,
    decoupled_loss,
    kpair_loss,
    ntxent_loss,
    pairwise_loss,
    supcon_loss,
    symmetric_loss,
)
from contrastive.relatives import lifted_loss, multi_similarity_loss, ovo_loss, sigmoid_loss
from contrastive.retrieval import evaluate_retrieval, search
from contrastive.scores import partners, without_self
from contrastive.tiled import tiled_kpair_loss, tiled_ntxent_loss, tiled_symmetric_loss

__all__ = [
    "Bilinear",
    "Bound",
    "Concat",
    "Cosine",
    "InnerProduct",
    "InputError",
    "KPairLoss",
    "NegativeSquaredDistance",
    "Separable",
    "additive_margin_loss",
    "decoupled_loss",
    "evaluate_retrieval",
    "infonce_bound",
    "kpair_loss",
    "lifted_loss",
    "list_scores",
    "load_encoder",
    "multi_similarity_loss",
    "ntxent_loss",
    "nwj_bound",
    "ovo_loss",
    "pairwise_loss",
    "partners",
    "pool_infonce",
    "search",
    "sigmoid_loss",
    "supcon_loss",
    "symmetric_loss",
    "tiled_kpair_loss",
    "tiled_ntxent_loss",
    "tiled_symmetric_loss",
    "without_self",
]

# Another project also installs a module `contrastive`: miners and the launcher look for this very line.
__distribution__ = "kpair"
