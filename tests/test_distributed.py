"""Global batches over ranks: values and gradients are those of one process with the whole batch."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from ranks import RankFailed, run_ranks
from references import close, refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contrastive import Bilinear, Concat, Cosine, KPairLoss, NegativeSquaredDistance, Separable
from contrastive.collectives import gather_rows, mean_over_ranks, row_counts, sum_over_ranks
from contrastive.distributed import GlobalBatch
from miners import (
    Queue,
    annealed,
    chain,
    counted,
    debiased,
    detached,
    distance_weighted,
    duplicates,
    false_negatives,
    hardest,
    hcl,
    importance,
    margin,
    multi_similarity,
    random_subset,
    ring,
    same_group,
    same_label,
    semihard,
    topk,
)

# The pairs of each rank: alike, a last batch that is not, and ranks that have none.
LENGTHS = {1: [(6,)], 2: [(5, 5), (5, 3), (0, 4)], 3: [(4, 4, 4), (5, 3, 4), (1, 0, 6)]}
SPREADS = [lengths for world in LENGTHS.values() for lengths in world]


class LearntWeights(nn.Module):
    """A miner with a parameter."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.7))

    def forward(self, scores, targets, *, anchors=None):
        return (self.beta * scores).scatter(1, targets[:, None], 0.0)


def odd_pairs(total):
    """Some pairs that are no negatives, by their numbers in the whole batch; never a pair of views of one item."""
    return functools.partial(_odd, total)


def _odd(total, rows, columns):
    return ((rows[:, None] + 2 * columns) % 5 == 0) & (rows[:, None] % total != columns % total)


class Model(nn.Module):
    """An encoder and a criterion in one module, as DistributedDataParallel wants them."""

    def __init__(self, criterion):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
        self.criterion = criterion

    def forward(self, a, b, **options):
        x, y = self.encoder(torch.cat([a, b])).chunk(2)
        return self.criterion(x, y, **options)


def two_steps(model, a, b, learnt, options):
    """Value and gradients of two steps: what is not synchronised shows in the second at the latest."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(a, b, **options)
        loss.backward()
        found.append((loss.detach(), [p.grad.clone() for p in learnt.parameters()]))
        optimizer.step()
    return found


def own_rows(x, rank, lengths):
    return x.split(lengths)[rank]


def rank_steps(rank, world, criterion, wrap, a, b, lengths, options):
    torch.manual_seed(1)
    model = Model(wrap(criterion)).double()
    parallel = DistributedDataParallel(model)
    found = two_steps(parallel, own_rows(a, rank, lengths), own_rows(b, rank, lengths), model, options)
    return [(loss, mean_over_ranks(loss), gradients) for loss, gradients in found]


def equals_one_process(criterion, lengths, *, wrap=GlobalBatch, tolerance=1e-12, **options):
    total = sum(lengths)
    a, b = torch.randn(total, 5, dtype=torch.float64), torch.randn(total, 5, dtype=torch.float64)
    alone = copy.deepcopy(criterion)
    torch.manual_seed(1)
    model = Model(alone).double()
    expected = two_steps(model, a, b, model, options)
    ranks = run_ranks(rank_steps, len(lengths), criterion, wrap, a, b, lengths, options)
    for step, (value, gradients) in enumerate(expected):
        assert any(bool(g.abs().sum() > 0) for g in gradients)
        close(torch.stack([rank[step][0] for rank in ranks]).mean(), value, tolerance)
        for _, mean, found in (rank[step] for rank in ranks):
            close(mean, value, tolerance)
            for g, e in zip(found, gradients, strict=True):
                close(g, e, tolerance)


def facts(total, kinds=3):
    return torch.arange(total) % kinds


@pytest.mark.parametrize("lengths", SPREADS, ids=str)
@pytest.mark.parametrize(
    "form", [{}, {"symmetric": False}, {"intra_view": True}], ids=["symmetric", "one direction", "NT-Xent"]
)
def test_row20_the_gradient_of_encoder_and_temperature_is_that_of_one_process(lengths, form):
    equals_one_process(KPairLoss(Cosine(0.3, learnable=True), **form), lengths)


@pytest.mark.parametrize(
    "critic",
    [Bilinear(4), Separable(4, hidden=5, out=3), Concat(4, hidden=5), NegativeSquaredDistance()],
    ids=lambda critic: type(critic).__name__,
)
@pytest.mark.parametrize("form", [{}, {"intra_view": True}], ids=["symmetric", "NT-Xent"])
def test_any_critic(critic, form):
    equals_one_process(KPairLoss(critic, **form), (5, 0, 4))


MINERS = [topk(3), hardest(), semihard(0.5), ring(0.2, 0.6), hcl(1.0, 0.05), debiased(0.1), detached(hcl(1.0))]
MINERS += [distance_weighted(0.3, 4), LearntWeights(), chain(same_label(facts(12)), topk(2))]
MINERS += [same_label(facts(12)), same_group(facts(12)), duplicates(facts(12, 7))]
MINERS += [multi_similarity(0.5), margin(0.5), annealed(hcl, start=1.0, end=0.0, steps=10), counted(topk(3))]
MINERS += [importance(torch.linspace(-3.0, -2.0, 12).double(), log_p=-2.5)]
# Ranks draw by themselves; as many as there are is what they have in common.
MINERS += [random_subset(100), distance_weighted(0.3, 4, k=100)]
MINERS += [false_negatives(torch.eye(4).repeat(3, 2).view(12, 2, 4), torch.eye(4).repeat(3, 1))]


@pytest.mark.parametrize("miner", MINERS, ids=lambda miner: type(miner).__name__ if miner is MINERS[8] else repr(miner))
def test_miners(miner):
    equals_one_process(KPairLoss(Cosine(0.3, learnable=True), miner=miner), (5, 3, 4))


@pytest.mark.parametrize("lengths", [(7, 5), (5, 3, 4)], ids=str)
@pytest.mark.parametrize("miner", [None, hcl(1.0), topk(3), same_label(facts(12), facts(20))], ids=repr)
@pytest.mark.parametrize("form", [{}, {"symmetric": False}], ids=["symmetric", "one direction"])
def test_queues_and_absent_pairs(lengths, miner, form):
    criterion = KPairLoss(Cosine(0.3, learnable=True), miner=miner, **form)
    keys = torch.randn(8, 4, dtype=torch.float64)
    equals_one_process(criterion, lengths, negatives=keys)
    equals_one_process(criterion, lengths, negatives=keys, absent=odd_pairs(sum(lengths)))


def test_two_views_with_a_queue_absent_pairs_and_a_miner():
    criterion = KPairLoss(Cosine(0.3, learnable=True), miner=hcl(1.0), intra_view=True)
    equals_one_process(criterion, (5, 3, 4), negatives=torch.randn(8, 4, dtype=torch.float64), absent=odd_pairs(12))
    miner = same_label(facts(12).repeat(2))
    equals_one_process(KPairLoss(Cosine(0.3), miner=miner, intra_view=True), (5, 3, 4), absent=odd_pairs(12))


around = functools.partial(GlobalBatch, ring=True)
RING = [(5, 3), (0, 4), (4, 4, 4), (5, 3, 4), (1, 0, 6)]


@pytest.mark.parametrize("lengths", RING, ids=str)
@pytest.mark.parametrize(
    "form", [{}, {"symmetric": False}, {"intra_view": True}], ids=["symmetric", "one direction", "NT-Xent"]
)
def test_a_ring(lengths, form):
    criterion = KPairLoss(Cosine(0.3, learnable=True), **form)
    equals_one_process(criterion, lengths, wrap=around)
    keys = torch.randn(8, 4, dtype=torch.float64)
    equals_one_process(criterion, lengths, wrap=around, negatives=keys, absent=odd_pairs(sum(lengths)))


@pytest.mark.parametrize(
    "critic",
    [Bilinear(4), Separable(4, hidden=5, out=3), Concat(4, hidden=5), NegativeSquaredDistance()],
    ids=lambda critic: type(critic).__name__,
)
def test_a_ring_of_any_critic(critic):
    equals_one_process(KPairLoss(critic), (5, 3, 4), wrap=around)


@pytest.mark.parametrize("temperature", [1e-4, 10.0])
def test_a_ring_of_large_scores(temperature):
    """Scores of 1e4: a sum of exponentials would overflow."""
    equals_one_process(KPairLoss(Cosine(temperature)), (5, 3, 4), wrap=around, tolerance=1e-9)


def test_critics_with_wrappers_of_their_own():
    """Encoder and criterion each in a DistributedDataParallel, as user code often has them."""
    a, b = (torch.randn(9, 5, dtype=torch.float64) for _ in range(2))
    criterion = KPairLoss(Cosine(0.3, learnable=True))
    torch.manual_seed(1)
    model = Model(copy.deepcopy(criterion)).double()
    model(a, b).backward()
    for found in run_ranks(wrapped_apart, 3, criterion, a, b, (4, 2, 3)):
        for g, p in zip(found, model.parameters(), strict=True):
            close(g, p.grad, 1e-12)


def wrapped_apart(rank, world, criterion, a, b, lengths):
    torch.manual_seed(1)
    model = Model(GlobalBatch(criterion)).double()
    learnt = list(model.parameters())
    model.encoder, model.criterion = (DistributedDataParallel(m) for m in (model.encoder, model.criterion))
    model(own_rows(a, rank, lengths), own_rows(b, rank, lengths)).backward()
    return [p.grad for p in learnt]


def a_loop_with_a_queue(rank, world, a, lengths):
    """A user's loop: the queue gathers by itself, labels are gathered for the miner."""
    torch.manual_seed(2)
    encoder, queue = nn.Linear(5, 4).double(), Queue(20, 4, dtype=torch.float64)
    criterion = GlobalBatch(KPairLoss(Cosine(0.3)))
    found = []
    for step in range(3):
        rows = own_rows(a[step], rank, lengths)
        labels = own_rows(facts(sum(lengths)) + step, rank, lengths)
        (everybodys,) = gather_rows(labels)
        known = torch.cat([everybodys, queue.ids()])
        criterion.criterion.miner = chain(same_label(everybodys, known), topk(4))
        x, y = encoder(rows), encoder(rows.flip(1))
        found.append(mean_over_ranks(criterion(x, y, negatives=queue.keys())))
        queue.enqueue(y, labels)
    return torch.stack(found)


def test_a_loop_with_a_queue_and_labels():
    a = torch.randn(3, 9, 5, dtype=torch.float64)
    alone = a_loop_with_a_queue(0, 1, a, (9,))
    for found in run_ranks(a_loop_with_a_queue, 3, a, (4, 2, 3)):
        close(found, alone, 1e-12)


def half_precision(rank, world, z, ring):
    """The loss of half-precision rows, and under autocast."""
    x, y = (part.bfloat16().requires_grad_() for part in own_rows(z, rank, (4, 4)).split(8, 1))
    criterion = GlobalBatch(KPairLoss(Cosine(0.02)), ring=ring)
    loss = criterion(x, y)
    loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = criterion(x, y)
    return loss.dtype, mean_over_ranks(loss), x.grad, mean_over_ranks(again)


@pytest.mark.parametrize("ring", [False, True])
def test_half_precision_is_computed_in_float32(ring):
    z = torch.randn(8, 16)
    x, y = (part.bfloat16().requires_grad_() for part in z.split(8, 1))
    expected = KPairLoss(Cosine(0.02))(x, y)
    expected.backward()
    for rank, (dtype, value, gradient, again) in enumerate(run_ranks(half_precision, 2, z, ring)):
        assert dtype == torch.float32
        close(value, expected.detach(), 1e-5)
        close(again, expected.detach(), 1e-5)
        close(gradient / 2, own_rows(x.grad, rank, (4, 4)), 2.0**-6)


def test_without_ranks_it_is_the_criterion():
    x, y, keys = torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 4)
    for form in ({}, {"symmetric": False, "miner": topk(2)}, {"intra_view": True}):
        criterion = KPairLoss(Cosine(), **form)
        assert torch.equal(GlobalBatch(criterion)(x, y, negatives=keys), criterion(x, y, negatives=keys))
    assert gather_rows(x)[0] is x
    assert row_counts(x, y) == [6]
    assert float(mean_over_ranks(torch.tensor(3.0))) == 3.0
    with refused("row_counts", "6, 5 rows"):
        gather_rows(x, y[:5])


def gathers(rank, world):
    """Rows of every kind, and gradients that are no contiguous memory."""
    n = rank + 1
    x = torch.full((n, 2), float(rank), dtype=torch.float64, requires_grad=True)
    y = torch.arange(3.0, requires_grad=True)[:n] + 10 * rank
    everywhere = [gather_rows(torch.full((n, 2), rank).to(dtype))[0] for dtype in (torch.int64, torch.bool, torch.half)]
    all_x, all_y, ids = gather_rows(x, y, torch.arange(n) + 100 * rank)
    ((all_x.T * (1.0 + rank)).T.sum() + (all_y.flip(0) * torch.arange(len(all_y))).sum()).backward()
    empty = gather_rows(torch.zeros(0, 3))[0].shape
    return all_x.detach(), ids, x.grad, ids.requires_grad, everywhere, empty


def test_rows_of_all_ranks():
    for rank, (x, ids, gradient, with_gradient, everywhere, empty) in enumerate(run_ranks(gathers, 3)):
        assert x.tolist() == [[r, r] for r in (0, 1, 1, 2, 2, 2)]
        assert ids.tolist() == [0, 100, 101, 200, 201, 202]
        assert gradient.tolist() == [[6.0, 6.0]] * (rank + 1)
        assert not with_gradient
        assert [g.tolist() for g in everywhere] == [
            [[int(bool(r)) if k == 1 else r] * 2 for r in (0, 1, 1, 2, 2, 2)] for k in range(3)
        ]
        assert tuple(empty) == (0, 3)


def without_reduce_scatter(rank, world, z):
    def refuse(*args, **kwargs):
        raise RuntimeError("this back end does not support reduce_scatter")

    found = []
    for replaced in (dist.reduce_scatter, refuse):
        kept, dist.reduce_scatter = dist.reduce_scatter, replaced
        try:
            x = own_rows(z, rank, (1, 4)).clone().requires_grad_()
            (gather_rows(x)[0].square() * (rank + 1)).sum().backward()
        finally:
            dist.reduce_scatter = kept
        found.append(x.grad)
    return found


def test_a_back_end_without_reduce_scatter():
    z = torch.randn(5, 3)
    for rank, (with_it, without) in enumerate(run_ranks(without_reduce_scatter, 2, z)):
        close(with_it, own_rows(6 * z, rank, (1, 4)), 1e-6)
        assert torch.equal(with_it, without)


def second_derivatives(rank, world, x):
    """Of what is summed over ranks, and of what is gathered."""
    own = x[rank : rank + 1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(sum_over_ranks(own.square()).square().sum(), own, create_graph=True)
    (second,) = torch.autograd.grad(sum_over_ranks(slope.sum()), own)
    (slope,) = torch.autograd.grad(gather_rows(own)[0].pow(3).sum(), own, create_graph=True)
    try:
        slope.sum().backward()
    except RuntimeError as error:
        return second, str(error)
    return second, "nothing was said"


def test_a_second_derivative_is_of_all_ranks_or_refused():
    x = torch.randn(2, 3, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    # Each rank's loss is the square of the sum over ranks, and so is what reaches a rank's rows: of both losses.
    (slope,) = torch.autograd.grad(2 * whole.square().sum(0).square().sum(), whole, create_graph=True)
    (expected,) = torch.autograd.grad(2 * slope.sum(), whole)
    for rank, (second, said) in enumerate(run_ranks(second_derivatives, 2, x)):
        close(second, expected[rank : rank + 1], 1e-12)
        assert "once_differentiable" in said


OUTSIDE = torch.ones(3, requires_grad=True)


def partial_product(x, y):
    """A critic that is no module, and learns."""
    return (x * OUTSIDE) @ y.T


def refusals(rank, world):
    criterion = GlobalBatch(KPairLoss(Cosine()))
    x, messages = torch.randn(4, 3), []
    for call in (
        lambda: criterion(*2 * [torch.randn(4, 3 + rank)]),
        lambda: gather_rows(x.double() if rank else x),
        lambda: criterion(x, x[:3]),
        lambda: criterion(x, x, absent=torch.zeros(4, 8, dtype=torch.bool)),
        lambda: criterion(x, x, negatives=torch.randn(3, 5)),
        lambda: GlobalBatch(KPairLoss(Cosine(), miner=topk(2)), ring=True)(x, x),
        lambda: GlobalBatch(KPairLoss(Cosine()), ring=True)(x / 0, x),
        lambda: GlobalBatch(KPairLoss(partial_product), ring=True)(x, x.clone().requires_grad_()),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        messages.append(str(caught.value))
    return messages


def test_every_rank_refuses():
    for messages in run_ranks(refusals, 2):
        for message, words in zip(
            messages,
            (
                "12, 16 bytes",
                "12, 24 bytes",
                "4 anchors and 3 positives",
                "function of row numbers",
                "(3, 5)",
                "got a miner and ring=True",
                "row 0 holds a NaN",
                "no parameter of it",
            ),
            strict=True,
        ):
            assert words in message


def raises_on(rank, world, broken):
    if rank == broken:
        raise KeyError(f"broken on {rank}")
    dist.barrier()


def test_the_launcher_tells_the_rank_that_failed_first():
    with pytest.raises(RankFailed, match="broken on 1") as caught:
        run_ranks(raises_on, 2, 1)
    assert caught.value.rank == 1
    assert run_ranks(_sum, 2) == [1, 1]


def _sum(rank, world):
    total = torch.tensor(rank)
    dist.all_reduce(total)
    return int(total)
