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
from contrastive.chunks import Chunked, in_chunks
from contrastive.criterion import KPairLoss
from contrastive.critics import Bilinear, Concat, Cosine, InnerProduct, NegativeSquaredDistance, Separable
from contrastive.distributed import GlobalBatch, gather_rows, mean_over_ranks
from contrastive.encoders import load_encoder
from contrastive.errors import InputError
from contrastive.estimation import Estimate, estimate_mi
from contrastive.estimators import (
    Mine,
    barber_agakov,
    club,
    donsker_varadhan,
    flo,
    infonce,
    interpolated,
    jensen_shannon,
    leave_one_out_upper,
    nwj,
    nwj_of_log_ratio,
    smile,
    symmetric_infonce,
    tractable_nce,
    tuba,
    variational_upper,
)
from contrastive.ksg import ksg
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
from contrastive.shards import Shard
from contrastive.tiled import tiled_kpair_loss, tiled_ntxent_loss, tiled_symmetric_loss

__all__ = [
    "Bilinear",
    "Bound",
    "Chunked",
    "Concat",
    "Cosine",
    "Estimate",
    "GlobalBatch",
    "InnerProduct",
    "InputError",
    "KPairLoss",
    "Mine",
    "NegativeSquaredDistance",
    "Separable",
    "Shard",
    "additive_margin_loss",
    "barber_agakov",
    "club",
    "decoupled_loss",
    "donsker_varadhan",
    "estimate_mi",
    "evaluate_retrieval",
    "flo",
    "gather_rows",
    "in_chunks",
    "infonce",
    "infonce_bound",
    "interpolated",
    "jensen_shannon",
    "kpair_loss",
    "ksg",
    "leave_one_out_upper",
    "lifted_loss",
    "list_scores",
    "load_encoder",
    "mean_over_ranks",
    "multi_similarity_loss",
    "ntxent_loss",
    "nwj",
    "nwj_bound",
    "nwj_of_log_ratio",
    "ovo_loss",
    "pairwise_loss",
    "partners",
    "pool_infonce",
    "search",
    "sigmoid_loss",
    "smile",
    "supcon_loss",
    "symmetric_infonce",
    "symmetric_loss",
    "tiled_kpair_loss",
    "tiled_ntxent_loss",
    "tiled_symmetric_loss",
    "tractable_nce",
    "tuba",
    "variational_upper",
    "without_self",
]

# Another project also installs a module `contrastive`: miners and the launcher look for this very line.
__distribution__ = "kpair"
