"""Miners made of miners."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from contrastive.scores import MiningFacts, WeighsNegatives, facts_of
from miners.masks import empty_rows
from miners.miner import Miner, changes, miner_at

__all__ = ["Counted", "annealed", "chain", "counted", "detached"]


def detached(miner: WeighsNegatives) -> Miner:
    """Stops the gradient through a miner's weights.

    The loss keeps its value and changes its gradient: for HCL by up to a quarter of the largest entry. The official
    HCL code does not detach.

    Arguments:
        miner: any miner; its facts are kept.

    Raises:
        ValueError: for a `counted` one.

    Example:
        >>> import torch
        >>> from miners import hcl
        >>> scores = torch.zeros(2, 3, requires_grad=True)
        >>> detached(hcl(1.0))(scores, torch.tensor([0, 1])).requires_grad
        False
    """
    _refuse_counted("detached", miner)
    return Miner(
        partial(_detached, miner=miner),
        name=f"detached({miner!r})",
        facts=facts_of(miner),
        schedule=partial(_detached_at, miner=miner) if changes(miner) else None,
    )


def chain(*miners: WeighsNegatives) -> Miner:
    r"""Applies miners one after another: what one drops is absent for the next, and log-weights add.

    .. math::
        \log w_{ij} = \sum_m \log w^{(m)}_{ij}

    So ``chain(topk(64), hcl(1.0))`` tilts among the 64 hardest, and ``chain(topk(64), random_subset(8))`` draws from
    them. Monotone miners of constant mass make one: the smallest of their masses is left. Only draws come before
    weights: drawn from what is already weighted, ``log(1 + k) - L`` would exceed mutual information where the draw
    misses all that has weight.

    Arguments:
        miners: at least one.

    Raises:
        ValueError: without any, and for a `counted` one.

    Example:
        >>> from miners import margin, topk
        >>> chain(topk(2), margin(1.0))(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([[0., 1., -inf, 1.]])
    """
    if not miners:
        raise ValueError("chain: got no miners, expected at least one")
    for miner in miners:
        _refuse_counted("chain", miner)
    return Miner(
        partial(_chain, miners=miners),
        name=f"chain({', '.join(map(repr, miners))})",
        facts=_composed(miners),
        schedule=partial(_chain_at, miners=miners) if any(map(changes, miners)) else None,
    )


def annealed(make: Callable[[Any], Miner], *, start: int | float, end: int | float, steps: int) -> Miner:
    r"""Moves an option of a miner from one value to another over the first steps of a training, linearly.

    .. math::
        v(t) = a + (b - a) \min(t / T, 1)

    `Miner.at` gives the miner of a step, which ``contrastive.training.fit`` is told by its `each_step`. Called itself,
    it is that of step 0, and its facts are that one's.

    Arguments:
        make: the function of one option, at module level if the miner shall be pickled: ``hcl``, or
            ``partial(hcl, tau_plus=0.1)``.
        start: a, its value at step 0.
        end: b, its value from step T on. Between two ints the value is rounded to an int, which `topk` needs; write
            2.0 for an option that is no count.
        steps: T, at least 1.

    Raises:
        ValueError: for ends that are not finite or that `make` refuses, and for fewer than one step.

    Example:
        >>> from miners import hcl, topk
        >>> annealed(hcl, start=2.0, end=0.0, steps=100).at(50)
        hcl(beta=1.0, tau_plus=0.0)
        >>> annealed(topk, start=256, end=8, steps=1000).at(5000)
        topk(k=8)

    References:
        | Contrastive Learning with Hard Negative Samples (Robinson et al., 2021), annealing
        | https://arxiv.org/abs/2010.04592
    """
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"annealed: start is {start}, end is {end}, expected finite numbers")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"annealed: steps is {steps!r}, expected an integer of at least 1")
    schedule = partial(_annealed_at, make=make, start=start, end=end, steps=steps)
    schedule(steps)  # what is refused is refused now
    first = schedule(0)
    name = f"annealed({getattr(make, '__name__', repr(make))}, start={start}, end={end}, steps={steps})"
    return Miner(first.rule, name=name, facts=first.facts, schedule=schedule)


def counted(miner: WeighsNegatives) -> "Counted":
    """Counts the anchors that a miner leaves without any negative: their loss is 0, and they teach nothing.

    Weights and facts stay the miner's. It holds a count, so it is no part of another miner: count outermost.
    ``contrastive.training.fit`` logs the share of every step with ``each_step=miner.begin, each_loss=miner.figures``.

    Arguments:
        miner: any miner.

    Example:
        >>> import torch
        >>> from miners import semihard
        >>> miner = counted(semihard(1.0))
        >>> log_weights = miner(torch.tensor([[5.0, 1.0], [0.5, 1.0]]), torch.tensor([0, 1]))
        >>> miner.empty_rows()
        0.5
    """
    return Counted(miner)


class Counted:
    """What `counted` returns: the miner, and the rows it has seen since `begin`.

    Arguments:
        miner: any miner.
    """

    def __init__(self, miner: WeighsNegatives) -> None:
        self._made = self._miner = miner
        self._empty: Tensor | int = 0
        self._rows: Tensor | int = 0

    def begin(self, step: int) -> None:
        """Counts anew, by the miner of this step (`Miner.at`); the `each_step` of ``contrastive.training.fit``.

        Arguments:
            step: how many steps were taken before, at least 0.
        """
        self._miner = miner_at(self._made, step)
        self._empty = self._rows = 0

    @property
    def facts(self) -> MiningFacts:
        """What the miner of this step guarantees."""
        return facts_of(self._miner)

    def empty_rows(self) -> float:
        """The share of anchors, 0 to 1, that were left with their positive alone; nan where none was seen."""
        rows = int(self._rows)
        return int(self._empty) / rows if rows else math.nan

    def figures(self) -> dict[str, float]:
        """`empty_rows` by name: the `each_loss` of ``contrastive.training.fit``."""
        return {"empty_rows": self.empty_rows()}

    def __call__(
        self,
        scores: Float[Tensor, "anchors candidates"],
        targets: Int[Tensor, " anchors"],
        *,
        anchors: Int[Tensor, " anchors"] | None = None,
    ) -> Float[Tensor, "anchors candidates"]:
        """Weighs as the miner does, and counts."""
        log_weights = self._miner(scores, targets, anchors=anchors)
        # Tensors: a number would make the host wait for the device at every step.
        self._empty = self._empty + empty_rows(scores, targets, log_weights=log_weights).sum()
        self._rows = self._rows + (scores != -torch.inf).any(1).sum()
        return log_weights

    def __repr__(self) -> str:
        return repr(self._made)


def _detached(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, miner: WeighsNegatives) -> Tensor:
    return miner(scores.detach(), targets, anchors=anchors).detach()


def _detached_at(step: int, *, miner: WeighsNegatives) -> Miner:
    return detached(miner_at(miner, step))


def _chain(scores: Tensor, targets: Tensor, anchors: Tensor | None, *, miners: tuple[WeighsNegatives, ...]) -> Tensor:
    first, *rest = miners
    log_weights = first(scores, targets, anchors=anchors)
    for miner in rest:
        dropped = (log_weights == -torch.inf).scatter(1, targets[:, None], False)
        log_weights = log_weights + miner(scores.masked_fill(dropped, -torch.inf), targets, anchors=anchors)
    return log_weights


def _chain_at(step: int, *, miners: tuple[WeighsNegatives, ...]) -> Miner:
    return chain(*(miner_at(miner, step) for miner in miners))


def _annealed_at(step: int, *, make: Callable[[Any], Miner], start: int | float, end: int | float, steps: int) -> Miner:
    value = end if step >= steps else start + (end - start) * (step / steps)
    if isinstance(start, int) and isinstance(end, int):
        value = round(value)
    return make(value).at(step)


def _refuse_counted(function: str, miner: WeighsNegatives) -> None:
    """Its count is of its own calls, its steps are begun by the training, and its parts would not be seen."""
    if isinstance(miner, Counted):
        raise ValueError(f"{function}: counted({miner!r}) is no part of another miner: count outermost")


def _composed(miners: tuple[WeighsNegatives, ...]) -> MiningFacts:
    """The facts of a chain.

    Let every part be monotone with mass k (the k kept weigh 1) or "all", and W be the weights so far. On the
    negatives S that are left W is monotone, of sum at least the smallest mass so far, and of mean at least 1. Weights
    of mean 1 on S keep all three: by Chebyshev's sum inequality they do not lower the sum. So do the k highest of S:
    there the mean of W is no lower, so their sum is at least k.

    A draw is compared with the uniform draw of the same noise, score by score, which the next draw and the weights
    after it keep. It needs weights of 1 before it: the mean over S says nothing of what is drawn.
    """
    if len(miners) == 1:
        return facts_of(miners[0])
    masses: list[int] = []
    weighs: WeighsNegatives | None = None
    drawn = False
    for miner in (part for whole in miners for part in _parts(whole)):
        facts = facts_of(miner)
        if facts.proposal:
            return MiningFacts(why=f"holds {miner!r}, which undoes a proposal only by itself")
        if facts.mass is None or not facts.monotone:
            why = facts.why or "guarantees no constant mass of monotone weights in every row"
            return MiningFacts(why=f"holds {miner!r}, which {why}")
        if facts.drawn and weighs is not None:
            return MiningFacts(why=f"holds {miner!r}, which draws from what {weighs!r} has weighed")
        drawn = drawn or facts.drawn
        if facts.mass == "all":
            weighs = miner
        else:
            masses.append(facts.mass)
    return MiningFacts(mass=min(masses) if masses else "all", monotone=True, drawn=drawn)


def _parts(miner: WeighsNegatives) -> Iterator[WeighsNegatives]:
    """The miners that are no chains in a chain of chains: the mass of one does not say that what is kept weighs 1."""
    rule = miner.rule if isinstance(miner, Miner) else None
    if isinstance(rule, partial) and rule.func is _chain:
        for part in rule.keywords["miners"]:
            yield from _parts(part)
    elif isinstance(rule, partial) and rule.func is _detached:
        yield from _parts(rule.keywords["miner"])
    else:
        yield miner
