"""How others compute the loss of a global batch: small functions after their code, each right or wrong as it is known.

Every scheme is a function of one rank's embeddings within DistributedDataParallel. Its gradient is projected on that of
one process with the whole batch: `ratio` 1 and `cosine` 1 is right, another ratio is another learning rate, a cosine
below 1 is another objective.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from references import close
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contrastive import Cosine, KPairLoss
from contrastive.distributed import GlobalBatch, gather_rows

PAIRS = 6  # a rank


def everywhere(x):
    """All ranks' rows, without gradient."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return parts


def own_alive(x):
    """All ranks' rows, the own ones with their gradient."""
    parts = everywhere(x)
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def alive(x):
    """All ranks' rows, all with their gradient."""
    return gather_rows(x)[0]


def cross_entropy(logits, *, first=0):
    return F.cross_entropy(logits, torch.arange(len(logits)) + first)


def both_ways(x, y, scale):
    """CLIP's loss of a whole batch."""
    return (cross_entropy(scale * x @ y.T) + cross_entropy(scale * y @ x.T)) / 2


def local_rows(x, y, scale, all_x, all_y):
    """CLIP's loss of this rank's rows among all candidates."""
    first = dist.get_rank() * len(x)
    return (cross_entropy(scale * x @ all_y.T, first=first) + cross_entropy(scale * y @ all_x.T, first=first)) / 2


def open_clip(local_loss, gather_with_grad):
    """open_clip/loss.py, ClipLoss. Without gradient the own rows are put back for the global loss alone."""

    def scheme(x, y, scale):
        gather = alive if gather_with_grad else (lambda z: torch.cat(everywhere(z))) if local_loss else own_alive
        all_x, all_y = gather(x), gather(y)
        return local_rows(x, y, scale, all_x, all_y) if local_loss else both_ways(all_x, all_y, scale)

    return scheme


def own_alive_times_world(x, y, scale):
    return dist.get_world_size() * both_ways(own_alive(x), own_alive(y), scale)


def own_alive_local_rows(x, y, scale):
    return local_rows(x, y, scale, own_alive(x), own_alive(y))


def no_gather(x, y, scale):
    return both_ways(x, y, scale)


def grad_cache(x, y, scale):
    """GradCache, loss.py, DistributedContrastiveLoss; the scale is the encoder's, for the loss has none."""
    return cross_entropy(own_alive(scale * x) @ own_alive(y).T)


class SummedOverRanks(torch.autograd.Function):
    """Inf-CL's GradientGather: what is the same on all ranks gets the sum of their gradients."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def inf_cl(x, y, scale):
    """Inf-CL, with plain scale: the ring's value and gradient are those of the local rows among all keys."""
    return local_rows(x, y, scale, alive(x), alive(y))


def inf_cl_gathered_scale(x, y, scale):
    return inf_cl(x, y, SummedOverRanks.apply(scale))


class Moved(torch.autograd.Function):
    """Rows of the rank `by` places before; the gradient goes back."""

    @staticmethod
    def forward(ctx, x, by):
        ctx.by = by
        return everywhere(x)[(dist.get_rank() - by) % dist.get_world_size()]

    @staticmethod
    def backward(ctx, gradient):
        return Moved.apply(gradient, -ctx.by), None


class Summed(torch.autograd.Function):
    """The sum over ranks; so is the gradient."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return Summed.apply(gradient.contiguous())


def sigmoid_block(x, y, scale, *, positive):
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1 if positive else -torch.ones(len(x), len(y), dtype=x.dtype)
    return -F.logsigmoid(signs * (scale * x @ y.T - 10)).sum() / len(x)


def siglip(exchange):
    """open_clip/loss.py, SigLipLoss: the own block, and those of the other ranks' y as they come by."""

    def scheme(x, y, scale):
        world = dist.get_world_size()
        if exchange == "gather":
            blocks = [z for r, z in enumerate(alive(y).split(len(y))) if r != dist.get_rank()]
        elif exchange == "shift":
            blocks = [y]
            for _ in range(world - 1):
                blocks.append(Moved.apply(blocks[-1], 1))
            blocks = blocks[1:]
        elif exchange == "bidir":
            blocks, right, left = [], y, y
            for _ in range((world - 1) // 2):
                right, left = Moved.apply(right, 1), Moved.apply(left, -1)
                blocks += [right, left]
            if (world - 1) % 2:
                blocks.append(Moved.apply(right, 1))
        else:
            each = [Summed.apply((r == dist.get_rank()) * y) for r in range(world)]
            # The own block with weight 0: left out, this rank would miss the sums of the way back.
            return sigmoid_block(x, y, scale, positive=True) + sum(
                (r != dist.get_rank()) * sigmoid_block(x, z, scale, positive=False) for r, z in enumerate(each)
            )
        own = sigmoid_block(x, y, scale, positive=True)
        return own + sum(sigmoid_block(x, z, scale, positive=False) for z in blocks)

    return scheme


def whole_sigmoid(x, y, scale):
    return sigmoid_block(x, y, scale, positive=True)


def pytorch_metric_learning(efficient):
    def scheme(x, y, scale):
        from pytorch_metric_learning.losses import NTXentLoss
        from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

        numbers = torch.arange(PAIRS) + PAIRS * dist.get_rank()
        loss = DistributedLossWrapper(NTXentLoss(0.1), efficient=efficient)
        return loss(torch.cat([x, y]), numbers.repeat(2))

    return scheme


def whole_pytorch_metric_learning(x, y, scale):
    from pytorch_metric_learning.losses import NTXentLoss

    return NTXentLoss(0.1)(torch.cat([x, y]), torch.arange(len(x)).repeat(2))


def lightly(x, y, scale):
    from lightly.loss import NTXentLoss

    return NTXentLoss(0.1, gather_distributed=True)(x, y)


def whole_lightly(x, y, scale):
    from lightly.loss import NTXentLoss

    return NTXentLoss(0.1)(x, y)


def ours(x, y, scale):
    critic = Cosine(0.1, learnable=True).double()
    del critic.log_temperature
    critic.log_temperature = -scale.log()
    return GlobalBatch(KPairLoss(critic))(x, y)


class Toy(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.encoder, self.log_scale, self.loss = nn.Linear(8, 256), nn.Parameter(torch.tensor(2.0)), loss

    def forward(self, a, b):
        x, y = F.normalize(self.encoder(torch.cat([a, b]))).chunk(2)
        # PML and lightly have no scale: without a part in the loss it would leave the first backward unsynchronised.
        return self.loss(x, y, self.log_scale.exp()) + 0 * self.log_scale


def toy(loss):
    torch.manual_seed(0)
    return Toy(loss).double()


def forward_backward(rank, world, name):
    """The gradients of a scheme, averaged by DistributedDataParallel, and every rank's loss."""
    a, b = pairs(world)
    model = toy(SCHEMES[name].scheme)
    parallel = DistributedDataParallel(model)
    # The second step raises where the first was not synchronised.
    for _ in range(2):
        model.zero_grad()
        loss = parallel(*(z.split(PAIRS)[rank] for z in (a, b)))
        loss.backward()
    return loss.detach(), model.encoder.weight.grad, model.log_scale.grad


def pairs(world):
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(PAIRS * world, 8, dtype=torch.float64, generator=generator)
    return a, a + torch.randn(PAIRS * world, 8, dtype=torch.float64, generator=generator)


def row(scheme, ratio, cosine, scale, shown, *, whole=both_ways, package=None):
    """A line of the table: by world size 2 and 3, or one number for both.

    Arguments:
        scheme: the loss of a rank.
        ratio: of the gradient's projection on the right one to the latter.
        cosine: of the angle between the two.
        scale: ratio of the scale's gradients; None: it has none.
        shown: the loss of a rank: "global", "local" (the mean over ranks is global), "other", or how many times global.
        whole: the loss of one process.
        package: where the scheme comes from, if it is run as it is.
    """
    return SimpleNamespace(
        scheme=scheme, ratio=ratio, cosine=cosine, scale=scale, shown=shown, whole=whole, package=package
    )


def one_of(world):
    return 1 / world


def times(world):
    return world


SCHEMES = {
    "ours": row(ours, 1, 1, 1, "local"),
    "OpenCLIP": row(open_clip(False, False), one_of, 1, 1, "global"),
    "OpenCLIP, gather_with_grad": row(open_clip(False, True), 1, 1, 1, "global"),
    "OpenCLIP, local_loss": row(open_clip(True, False), {2: 0.493, 3: 0.503}, {2: 0.881, 3: 0.902}, 1, "local"),
    "OpenCLIP, local_loss, gather_with_grad": row(open_clip(True, True), 1, 1, 1, "local"),
    **{
        f"SigLIP, {e}": row(siglip(e), 1, 1, 1, "local", whole=whole_sigmoid)
        for e in ("bidir", "shift", "reduce", "gather")
    },
    "PML": row(
        pytorch_metric_learning(False),
        1,
        1,
        None,
        times,
        whole=whole_pytorch_metric_learning,
        package="pytorch_metric_learning",
    ),
    "PML, efficient": row(
        pytorch_metric_learning(True),
        {2: 1.803, 3: 2.847},
        {2: 0.913, 3: 0.936},
        None,
        times,
        whole=whole_pytorch_metric_learning,
        package="pytorch_metric_learning",
    ),
    "lightly": row(lightly, 1, 1, None, "local", whole=whole_lightly, package="lightly"),
    "GradCache": row(grad_cache, one_of, 1, one_of, "global", whole=lambda x, y, scale: cross_entropy(scale * x @ y.T)),
    "Inf-CL, gathered scale": row(inf_cl_gathered_scale, 1, 1, times, "local"),
    "Inf-CL": row(inf_cl, 1, 1, 1, "local"),
    "own rows alive, times W": row(own_alive_times_world, 1, 1, times, times),
    "own rows alive, local rows": row(own_alive_local_rows, {2: 0.887, 3: 0.969}, {2: 0.917, 3: 0.947}, 1, "local"),
    "no gather": row(no_gather, {2: 0.236, 3: 0.511}, {2: 0.531, 3: 0.739}, {2: 0.798, 3: 0.474}, "other"),
}


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", SCHEMES)
def test_scheme(name, world):
    expected = SCHEMES[name]
    if expected.package is not None:
        pytest.importorskip(expected.package, reason=f"{expected.package} is not installed")
    model = toy(expected.whole)
    whole = model(*pairs(world))
    whole.backward()
    whole = whole.detach()
    right = model.encoder.weight.grad.flatten()
    ranks = run_ranks(forward_backward, world, name)
    losses = torch.stack([loss for loss, _, _ in ranks])
    for _, weight, scale in ranks:
        weight = weight.flatten()
        ratio = float(weight @ right / (right @ right))
        cosine = float(weight @ right / (weight.norm() * right.norm()))
        of_scale = float(scale / model.log_scale.grad) if expected.scale is not None else None
        for found, value in ((ratio, expected.ratio), (cosine, expected.cosine), (of_scale, expected.scale)):
            if isinstance(value, dict):
                assert found == pytest.approx(value[world], abs=5e-4)
            elif value is not None:
                assert found == pytest.approx(value(world) if callable(value) else value, rel=1e-12)
    if expected.shown == "local":
        assert float(losses.mean()) == pytest.approx(float(whole), rel=1e-12)
        assert losses.std() > 0.01
    elif expected.shown != "other":
        mean = losses.mean() if name == "PML, efficient" else losses
        close(mean / whole, torch.full_like(mean, 1 if expected.shown == "global" else expected.shown(world)), 1e-12)
