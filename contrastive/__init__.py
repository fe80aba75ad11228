"""Contrastive (InfoNCE) learning as metric learning."""

from contrastive.objectives import decoupled_loss, kpair_loss, pairwise_loss, supcon_loss
