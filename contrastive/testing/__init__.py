r"""Checks for anybody's pytest: of critics, objectives, criteria, miners and evaluators, ours or your own.

.. code-block:: python

    from contrastive.testing import assert_criterion, assert_identity, assert_miner

    def test_my_miner():
        assert_miner(my_miner(k=3))

    def test_my_loss():
        assert_criterion(MyLoss(temperature=0.1))

Each ``check_...`` runs a battery and returns a report; each ``assert_...`` raises with the first failures named. A
check that does not apply is left out by its name: ``exempt=["autocast_changes_nothing"]``. `check_identity` holds one
identity against your critic:

.. math::
    I_{NCE} = \log K - L_{K\text{-pair}}
"""

from contrastive.testing.criteria import assert_criterion, check_criterion
from contrastive.testing.evaluators import assert_evaluator, check_evaluator
from contrastive.testing.identity import IdentityCheck, assert_identity, check_identity
from contrastive.testing.miners import assert_miner, check_miner
from contrastive.testing.objectives import assert_objective, check_objective
from contrastive.testing.reports import Report

__all__ = [
    "IdentityCheck",
    "Report",
    "assert_criterion",
    "assert_evaluator",
    "assert_identity",
    "assert_miner",
    "assert_objective",
    "check_criterion",
    "check_evaluator",
    "check_identity",
    "check_miner",
    "check_objective",
]
