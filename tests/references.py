"""Slow references, written straight from the papers' formulas, and what the test modules share.

The loops run over `Decimal` with 50 digits: there the formulas can stand as they are printed, e^10000 and all, without
the shifts and the log-sums that the library needs, and without rounding of their own. Scores go in as tensors, floats
come out; -inf is an absent candidate, and `exp` of it is 0.
"""

import functools
import itertools
import math
from contextlib import contextmanager
from decimal import Decimal, localcontext

import jaxtyping
import pytest
import torch

INF = math.inf


@contextmanager
def refused(*words):
    """Expects a ValueError whose message holds all `words`, with the signatures unchecked as they are for users.

    Under pytest jaxtyping checks every signature before the function runs, and its own error would hide the library's.
    jaxtyping reads this switch at every call, so the very functions that the other tests call are called here.
    """
    checked = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are checked below
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", checked)
    for word in words:
        assert word in str(caught.value)


def scores_with_gaps(anchors, candidates, *, absent=0.2, dtype=torch.float64, scale=1.0):
    """Random scores, random targets, and a share of absent candidates that spares the targets."""
    scores = scale * torch.randn(anchors, candidates, dtype=torch.float64)
    targets = torch.randint(candidates, (anchors,))
    gaps = (torch.rand(anchors, candidates) < absent).scatter(1, targets[:, None], False)
    return scores.masked_fill(gaps, -INF).to(dtype), targets


def close(actual, expected, tolerance):
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def gradient(loss, *inputs):
    """The gradients of the sum of `loss`; zeros where it does not depend on an input."""
    return torch.autograd.grad(loss.sum(), inputs, allow_unused=True, materialize_grads=True)


def _exactly(function):
    @functools.wraps(function)
    def with_many_digits(*args, **kwargs):
        with localcontext(prec=50):
            return function(*args, **kwargs)

    return with_many_digits


def _decimals(x):
    return [[Decimal(value) for value in row] for row in x.tolist()]


def _rows(scores, targets, log_weights):
    """Scores, target and log-weights of every row; None for the scores of a row without any candidate."""
    weights = torch.zeros_like(scores) if log_weights is None else log_weights
    for row, target, weight in zip(_decimals(scores), targets.tolist(), _decimals(weights), strict=True):
        yield (None if all(s == Decimal("-inf") for s in row) else row), target, weight


def softplus(d):
    return (1 + d.exp()).ln()


def hinge(d):
    return max(Decimal(0), d + 1)


@_exactly
def kpair(scores, targets, log_weights=None):
    """Sohn (2016), eq. 6, weighted: log(sum_j w_ij exp(s_ij - s_it)), with w_it = 1."""
    return [
        0.0 if row is None else float(sum(w.exp() * (s - row[t]).exp() for s, w in zip(row, weights, strict=True)).ln())
        for row, t, weights in _rows(scores, targets, log_weights)
    ]


@_exactly
def decoupled(scores, targets, log_weights=None):
    """Yeh et al. (2022): the same sum without the positive; 0 where nothing is left."""
    losses = []
    for row, t, weights in _rows(scores, targets, log_weights):
        total = 0 if row is None else sum(weights[j].exp() * (row[j] - row[t]).exp() for j in range(len(row)) if j != t)
        losses.append(float(total.ln()) if total else 0.0)
    return losses


@_exactly
def pairwise(scores, targets, log_weights=None, *, link=softplus):
    """The weighted mean over negatives of link(s_ij - s_it): Schroff et al. (2015) with the hinge."""
    losses = []
    for row, t, weights in _rows(scores, targets, log_weights):
        pairs = [] if row is None else [j for j in range(len(row)) if j != t and row[j].is_finite()]
        total = sum(weights[j].exp() for j in pairs)
        kept = [j for j in pairs if weights[j].is_finite()]
        losses.append(float(sum(weights[j].exp() / total * link(row[j] - row[t]) for j in kept)))
    return losses


@_exactly
def supcon(scores, positives, log_weights=None, *, keep_positives=True):
    """Khosla et al. (2020), eq. 2: the mean over positives p of -log(e^{s_ip} / sum_a e^{s_ia})."""
    losses = []
    for i, (row, _, weights) in enumerate(_rows(scores, torch.zeros(len(scores)), log_weights)):
        ours = [j for j, is_positive in enumerate(positives[i].tolist()) if is_positive]
        others = [j for j in range(scores.shape[1]) if j not in ours]
        total = Decimal(0)
        for p in ours:
            rivals = sum(weights[j].exp() * (row[j] - row[p]).exp() for j in others)
            rivals += sum((row[j] - row[p]).exp() for j in ours if keep_positives and j != p)
            total += (1 + rivals).ln()
        losses.append(float(total / len(ours)) if ours else 0.0)
    return losses


def each_positive(scores, positives, log_weights=None):
    """The loss at every positive: SupCon of that positive alone, the others among neither positives nor candidates."""
    losses = torch.zeros(scores.shape, dtype=torch.float64)
    for i, p in positives.nonzero().tolist():
        others = positives[i].clone()
        others[p] = False
        kept = ~others
        alone = torch.zeros(1, int(kept.sum()), dtype=torch.bool)
        alone[0, int(kept[:p].sum())] = True
        losses[i, p] = supcon(
            scores[i : i + 1, kept], alone, None if log_weights is None else log_weights[i : i + 1, kept]
        )[0]
    return losses


@_exactly
def additive_margin(scores, targets, log_weights=None, *, margin):
    """Wang et al. (2018), L_AMS, in score units: -log(e^(s_t - m) / (e^(s_t - m) + sum_j!=t e^(s_j))), weighted."""
    m, losses = Decimal(margin), []
    for row, t, weights in _rows(scores, targets, log_weights):
        if row is None:
            losses.append(0.0)
            continue
        rest = sum(weights[j].exp() * row[j].exp() for j in range(len(row)) if j != t)
        losses.append(-float(((row[t] - m).exp() / ((row[t] - m).exp() + rest)).ln()))
    return losses


@_exactly
def ntxent(scores, log_weights=None):
    """Chen et al. (2020), eq. 1: -log(e^{s_ij} / sum_{k != i} e^{s_ik}), j the other view of the sample, weighted."""
    views, losses = len(scores), []
    for i, (row, _, weights) in enumerate(_rows(scores, torch.zeros(views), log_weights)):
        j = i + views // 2 if i < views // 2 else i - views // 2
        others = [k for k in range(views) if k != i]
        if row is None or all(row[k] == Decimal("-inf") for k in others):
            losses.append(0.0)
            continue
        total = sum((weights[k].exp() if k != j else 1) * row[k].exp() for k in others)
        losses.append(-float((row[j].exp() / total).ln()))
    return losses


def symmetric(scores, *, loop=kpair):
    """Radford et al. (2021), figure 3: the cross-entropies with labels 0 .. n - 1 of both axes, halved."""
    labels = torch.arange(len(scores))
    by_row, by_column = loop(scores, labels), loop(scores.T, labels)
    return [(a + b) / 2 for a, b in zip(by_row, by_column, strict=True)]


@_exactly
def ovo(scores, targets, log_weights=None):
    """Sohn (2016), N-pair-ovo: sum_j log(1 + exp(s_ij - s_it)), weighted."""
    losses = []
    for row, t, weights in _rows(scores, targets, log_weights):
        pairs = [] if row is None else [j for j in range(len(row)) if j != t and row[j].is_finite()]
        losses.append(float(sum(weights[j].exp() * softplus(row[j] - row[t]) for j in pairs)))
    return losses


def _positives_and_negatives(scores, targets, log_weights):
    """Of every row: the scores of the positives, and the negatives' scores and weights; targets a mask or columns."""
    for i, (row, _, weights) in enumerate(_rows(scores, torch.zeros(len(scores)), log_weights)):
        ours = targets[i].nonzero().flatten().tolist() if targets.dtype == torch.bool else [int(targets[i])]
        if row is None:
            yield [], []
        else:
            yield (
                [row[p] for p in ours],
                [(s, weights[n].exp()) for n, s in enumerate(row) if n not in ours and s.is_finite()],
            )


@_exactly
def lifted(scores, targets, log_weights=None, *, margin=1.0, link=lambda x: max(Decimal(0), x)):
    """Hermans et al. (2017), L_LG: [log sum_p e^D(a,p) + log sum_n e^(m - D(a,n))]_+, with s = -D, weighted."""
    losses = []
    for positives, negatives in _positives_and_negatives(scores, targets, log_weights):
        far = sum((-s).exp() for s in positives)
        near = sum(w * (s + Decimal(margin)).exp() for s, w in negatives)
        losses.append(float(link(far.ln() + near.ln())) if far and near else 0.0)
    return losses


@_exactly
def multi_similarity(scores, targets, log_weights=None, *, alpha=2.0, beta=50.0, base=0.5):
    """Wang et al. (2019), eq. 15: log(1 + sum_p e^(-a(S - l))) / a + log(1 + sum_n e^(b(S - l))) / b, weighted."""
    a, b, threshold = Decimal(alpha), Decimal(beta), Decimal(base)
    losses = []
    for positives, negatives in _positives_and_negatives(scores, targets, log_weights):
        pulled = (Decimal(1) + sum((-a * (s - threshold)).exp() for s in positives)).ln() / a
        pushed = (Decimal(1) + sum(w * (b * (s - threshold)).exp() for s, w in negatives)).ln() / b
        losses.append(float(pulled + pushed))
    return losses


@_exactly
def sigmoid(scores, targets, log_weights=None, *, bias=-10.0):
    """Zhai et al. (2023), algorithm 1: minus the sum of log 1 / (1 + e^(-z (s + b))), z = +-1, weighted."""
    b, losses = Decimal(bias), []
    for positives, negatives in _positives_and_negatives(scores, targets, log_weights):
        total = sum((1 / (1 + (-(s + b)).exp())).ln() for s in positives)
        total += sum(w * (1 / (1 + (s + b).exp())).ln() for s, w in negatives)
        losses.append(-float(total))
    return losses


@_exactly
def nwj(scores, targets):
    """Nguyen et al. (2010): mean of s at the pairs, less mean of e^(s - 1) at all the others."""
    rows = [(row, t) for row, t, _ in _rows(scores, targets, None) if row is not None]
    pairs = [row[t] for row, t in rows]
    others = [s for row, t in rows for j, s in enumerate(row) if j != t and s.is_finite()]
    return float(sum(pairs) / len(pairs) - sum((s - 1).exp() for s in others) / len(others))


def _mined(weigh):
    """A loop over rows: `weigh(row, target, negatives)` gives the weight of every negative, a dict of Decimals."""

    @_exactly
    def miner(scores, targets):
        log_weights = torch.zeros(scores.shape, dtype=torch.float64)
        for i, (row, t, _) in enumerate(_rows(scores, targets, None)):
            negatives = [] if row is None else [j for j in range(len(row)) if j != t and row[j].is_finite()]
            if negatives:
                for j, weight in weigh(row, t, negatives).items():
                    log_weights[i, j] = float(weight.ln()) if weight else -INF
        return log_weights

    return miner


def topk(k):
    """Weight 1 for the k negatives of the highest score."""

    def weigh(row, t, negatives):
        kept = sorted(negatives, key=lambda j: row[j], reverse=True)[:k]
        return {j: Decimal(j in kept) for j in negatives}

    return _mined(weigh)


def semihard(margin, fallback=None):
    """Schroff et al. (2015): d_ap < d_an < d_ap + m, in scores; `fallback(row, t, negatives)` for a row without any."""

    def weigh(row, t, negatives):
        kept = [j for j in negatives if row[t] - Decimal(margin) < row[j] < row[t]]
        if not kept and fallback is not None:
            return fallback(row, t, negatives)
        return {j: Decimal(j in kept) for j in negatives}

    return _mined(weigh)


def hardest_of(row, t, negatives):
    """The fallback that keeps the hardest negative."""
    hardest = max(negatives, key=lambda j: row[j])
    return {j: Decimal(j == hardest) for j in negatives}


def below(threshold):
    """Weight 1 for the negatives that score below a threshold."""
    return _mined(lambda row, t, negatives: {j: Decimal(row[j] < Decimal(threshold)) for j in negatives})


def dropping(drop):
    """Weight 0 for the negatives that `drop(i, j)` names by their row and column."""

    def miner(scores, targets):
        found = torch.zeros(scores.shape, dtype=torch.float64)
        for i in range(scores.shape[0]):
            for j in range(scores.shape[1]):
                if j != int(targets[i]) and drop(i, j):
                    found[i, j] = -INF
        return found

    return miner


def hcl(beta, tau_plus=0.0, min_score=None):
    """Robinson et al. (2021), with the debiasing of Chuang et al. (2020), as in their criterion (`hcl_criterion`)."""

    def weigh(row, t, negatives):
        count = len(negatives)
        importance = {j: (Decimal(beta) * row[j]).exp() for j in negatives}
        mean = sum(importance.values()) / count
        weights = {j: importance[j] / mean for j in negatives}
        total = sum(weights[j] * row[j].exp() for j in negatives)
        smallest = min(row[j] for j in negatives) if min_score is None else Decimal(min_score)
        tau = Decimal(tau_plus)
        debiased = max((total - tau * count * row[t].exp()) / (1 - tau), count * smallest.exp())
        return {j: weights[j] * (debiased / total if tau_plus else 1) for j in negatives}

    return _mined(weigh)


def ring(lower, upper):
    """Wu et al. (2021): the negatives whose rank from the hardest, as a share, is in [lower, upper); one at least."""
    low, high = Decimal(str(lower)), Decimal(str(upper))

    def weigh(row, t, negatives):
        ranked = sorted(negatives, key=lambda j: row[j], reverse=True)
        shares = [Decimal(rank) / len(ranked) for rank in range(len(ranked))]
        kept = [j for j, share in zip(ranked, shares, strict=True) if low <= share < high]
        if not kept:  # the first rank beyond the lower end, or the last there is
            kept = [next((j for j, share in zip(ranked, shares, strict=True) if share >= low), ranked[-1])]
        return {j: Decimal(j in kept) for j in negatives}

    return _mined(weigh)


def multi_similarity_mining(epsilon, fallback=None):
    """Wang et al. (2019), eq. 10: S_ij > S_ip - epsilon, with one positive."""

    def weigh(row, t, negatives):
        kept = [j for j in negatives if row[j] > row[t] - Decimal(epsilon)]
        if not kept and fallback is not None:
            return fallback(row, t, negatives)
        return {j: Decimal(j in kept) for j in negatives}

    return _mined(weigh)


def margin(m):
    """The same weight e^m for every negative."""
    return _mined(lambda row, t, negatives: dict.fromkeys(negatives, Decimal(m).exp()))


def constant(log_ratio, *, positive):
    """The same weight p/q for every candidate, or for every negative."""

    def miner(scores, targets):
        found = torch.full(scores.shape, log_ratio, dtype=torch.float64)
        return found if positive else found.scatter(1, targets[:, None], 0.0)

    return miner


def _inverse_densities(temperature, dim, cutoff, limit):
    """Wu et al. (2017), eq. 4: 1 / q(d), q(d) = d^(n-2) (1 - d^2 / 4)^((n-3)/2), d from `cutoff`, 0 from `limit` on."""

    def weigh(row, t, negatives):
        weights = {}
        for j in negatives:
            d = max((max(Decimal(0), 2 - 2 * Decimal(temperature) * row[j])).sqrt(), Decimal(cutoff))
            density = d ** (dim - 2) * (1 - d * d / 4) ** (Decimal(dim - 3) / 2) if d <= Decimal(limit) else None
            weights[j] = Decimal(0) if density is None else 1 / density
        return weights if any(weights.values()) else dict.fromkeys(negatives, Decimal(1))

    return weigh


def distance_weighted(temperature, dim, cutoff=0.5, limit=1.4):
    """Wu et al. (2017) as soft weights of mean 1."""
    density = _inverse_densities(temperature, dim, cutoff, limit)

    def weigh(row, t, negatives):
        weights = density(row, t, negatives)
        return {j: w * len(negatives) / sum(weights.values()) for j, w in weights.items()}

    return _mined(weigh)


def random_subset(k):
    """k negatives without replacement: the first of N clocks to ring, all at rate 1."""
    return _race(k, lambda row, t, negatives: dict.fromkeys(negatives, Decimal(1)))


def distance_drawn(temperature, dim, k, cutoff=0.5, limit=1.4):
    """Wu et al. (2017): k negatives without replacement, at rates 1 / q(d); at rate 0 when no others are left."""
    return _race(k, _inverse_densities(temperature, dim, cutoff, limit))


def _race(k, rates):
    """Keeps the first k of exponential clocks. The library's noise is drawn again: seed before either."""

    @_exactly
    def miner(scores, targets):
        single = torch.float64 if scores.dtype == torch.float64 else torch.float32
        noise = torch.empty(scores.shape, dtype=single).uniform_()
        found = torch.full(scores.shape, -INF, dtype=torch.float64).scatter(1, targets[:, None], 0.0)
        for i, ((row, t, _), clock) in enumerate(zip(_rows(scores, targets, None), _decimals(noise), strict=True)):
            negatives = [] if row is None else [j for j in range(len(row)) if j != t and row[j].is_finite()]
            rate, clock = rates(row, t, negatives), [-(1 - u).ln() for u in clock]
            race = sorted(negatives, key=lambda j: (not rate[j], clock[j] / (rate[j] or 1)))
            found[i, race[:k]] = 0.0
        return found

    return miner


def chain(*loops):
    """One after another; what one drops has the score -inf for the next."""

    def miner(scores, targets):
        total = torch.zeros(scores.shape, dtype=torch.float64)
        for loop in loops:
            dropped = (total == -INF).scatter(1, targets[:, None], False)
            total = total + loop(scores.masked_fill(dropped, -INF), targets)
        return total

    return miner


def hcl_criterion(first, second, *, temperature, beta, tau_plus):
    """The criterion of the official code (estimator 'hard'), with its exponentials: one loss per anchor.

    https://github.com/joshr17/HCL/blob/main/image/main.py
    """
    batch = len(first)
    out = torch.cat([first, second])
    neg = torch.exp(out @ out.T / temperature)
    mask = ~torch.eye(batch, dtype=torch.bool).repeat(2, 2)
    neg = neg.masked_select(mask).view(2 * batch, -1)
    pos = torch.exp((first * second).sum(-1) / temperature)
    pos = torch.cat([pos, pos])
    count = batch * 2 - 2
    imp = (beta * neg.log()).exp()
    reweighted = (imp * neg).sum(-1) / imp.mean(-1)
    rest = (-tau_plus * count * pos + reweighted) / (1 - tau_plus)
    rest = torch.clamp(rest, min=count * math.e ** (-1 / temperature))
    return -torch.log(pos / (pos + rest))


class Channel:
    """A discrete channel p(x, y) with every draw of a positive and N negatives written out: no sampling error.

    A tabular critic f[x, y] scores the rows, so the expectation of a loss is a weighted sum over rows.
    """

    def __init__(self, joint, negatives):
        symbols = len(joint)
        draws = torch.tensor(list(itertools.product(range(symbols), repeat=2 + negatives)))
        self.x, self.y = draws[:, 0], draws[:, 1:]
        self.probability = joint[self.x, self.y[:, 0]] * joint.sum(0)[self.y[:, 1:]].prod(1)
        independent = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
        self.information = float((joint * (joint / independent).log()).sum())
        self.symbols = symbols

    def scores(self, critic):
        """One row for every draw; its positive is column 0."""
        return critic[self.x[:, None], self.y]

    def targets(self):
        return torch.zeros(len(self.x), dtype=torch.int64)

    def mean(self, losses):
        return (self.probability * losses).sum()


def score_matrix(x, metric):
    """Scores of all pairs of rows in float64."""
    x = x.double()
    if metric == "euclidean":
        return -(x[:, None] - x).square().sum(2)
    if metric == "cosine":
        x = torch.nn.functional.normalize(x, dim=1)
    return x @ x.T


def awkward(kind, generator, rows=700):
    """Rows on which a filter of little precision errs the most."""
    x = torch.randn(rows, 20, generator=generator)
    if kind == "near duplicates":  # of which bfloat16 cannot tell any two apart
        return torch.randn(1, 20, generator=generator) + 1e-4 * x
    if kind == "one direction":
        return torch.ones(20) + 0.05 * x
    if kind == "lengths":
        return x * torch.logspace(-3, 3, rows)[torch.randperm(rows, generator=generator)][:, None]
    if kind == "sorted":  # the best ones come last
        return x[(x @ x[-1]).argsort()]
    return {"tiny": 1e-18, "huge": 1e17, "plain": 1.0}[kind] * x


AWKWARD = ["plain", "near duplicates", "one direction", "lengths", "sorted", "tiny", "huge"]


def write_stl10(folder, *, train=6, test=3, unlabelled=4):
    """The published format: an image is red, green, blue; each of them column by column; labels count from 1."""
    folder.mkdir(parents=True)
    for number, (kind, count) in enumerate((("train", train), ("test", test), ("unlabeled", unlabelled))):
        pixels = bytearray()
        for image in range(count):
            for channel in range(3):
                for column in range(96):
                    for row in range(96):
                        pixels.append((7 * image + 50 * channel + 2 * row + column + 100 * number) % 256)
        (folder / f"{kind}_X.bin").write_bytes(bytes(pixels))
        if kind != "unlabeled":
            (folder / f"{kind}_y.bin").write_bytes(bytes(image % 10 + 1 for image in range(4, 4 + count)))
    return folder
