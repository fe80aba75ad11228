r"""Contrastive (InfoNCE) learning as metric learning.

Losses are multi-class K-pair objectives that equal InfoNCE exactly, up to log K; miners plug in as log-weights;
retrieval is evaluated exactly.

>>> import torch
>>> from contrastive import Cosine, KPairLoss
>>> criterion = KPairLoss(Cosine(temperature=0.1))
>>> float(criterion(torch.eye(8), torch.eye(8))) < 0.01
True
"""

from contrastive.bounds import Bound, infonce_bound, nwj_bound
from contrastive.criterion import KPairLoss
from contrastive.critics import Bilinear, Concat, Cosine, InnerProduct, NegativeSquaredDistance, Separable
from contrastive.encoders import load_encoder
from contrastive.errors import InputError
from contrastive.objectives import decoupled_loss, kpair_loss, pairwise_loss, supcon_loss
from contrastive.retrieval import evaluate_retrieval, search

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
    "decoupled_loss",
    "evaluate_retrieval",
    "infonce_bound",
    "kpair_loss",
    "load_encoder",
    "nwj_bound",
    "pairwise_loss",
    "search",
    "supcon_loss",
]

# Another project also installs a module `contrastive`: miners and the launcher look for this very line.
__distribution__ = "kpair"
