"""Encoding in chunks: the value and gradient of the whole batch, in the memory of a chunk, one all-reduce a step."""

import copy
import weakref

import pytest
import torch
from ranks import run_ranks
from references import close, gradient, refused
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contrastive import Cosine, KPairLoss
from contrastive.chunks import Chunked, in_chunks
from contrastive.distributed import GlobalBatch
from miners import topk

SIZES = [1, 2, 3, 7, 14, 20]  # one row, even, odd, half, all, more


def encoder_of(dropout=0.0, dtype=torch.float64):
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4))
    return layers.to(dtype)


def one_after_the_other(encoder, inputs, size):
    """What chunks are to equal where the encoder draws."""
    return torch.cat([encoder(chunk) for chunk in inputs.split(size)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("miner", [None, topk(3)], ids=repr)
def test_row24_value_and_gradient_are_those_of_the_whole_batch(size, miner):
    encoder, inputs = encoder_of(), torch.randn(14, 5, dtype=torch.float64, requires_grad=True)
    criterion = KPairLoss(Cosine(0.3), miner=miner)
    learnt = [inputs, *encoder.parameters()]
    expected = criterion(*encoder(inputs).chunk(2))
    found = criterion(*in_chunks(encoder, inputs, size=size).chunk(2))
    close(found, expected.detach(), 1e-13)
    for g, e in zip(gradient(found, *learnt), gradient(expected, *learnt), strict=True):
        close(g, e, 1e-13)
    with torch.no_grad():
        close(Chunked(encoder, size)(inputs), encoder(inputs), 1e-14)


@pytest.mark.parametrize("size", SIZES)
def test_row24_dropout_is_drawn_once(size):
    """The backward pass meets the draws of the forward pass, and leaves the stream of draws alone."""
    encoder, inputs = encoder_of(0.5), torch.randn(14, 5, dtype=torch.float64)
    found = []
    for encode in (one_after_the_other, lambda e, x, s: in_chunks(e, x, size=s)):
        torch.manual_seed(7)
        z = encode(encoder, inputs, size)
        torch.rand(3)
        gradients = gradient(z.square().sum(), *encoder.parameters())
        found.append([z.detach(), *gradients, torch.rand(2)])
    assert (found[0][0] != encoder.eval()(inputs)).any()
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) if a.dtype == torch.float32 else torch.allclose(a, b, rtol=1e-13, atol=1e-13)


def test_autocast_is_that_of_the_first_pass():
    encoder, inputs = encoder_of(0.3, torch.float32), torch.randn(14, 5)
    found = []
    for encode in (one_after_the_other, lambda e, x, s: in_chunks(e, x, size=s)):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = encode(encoder, inputs, 4)
        assert z.dtype == torch.bfloat16
        found.append([z.detach(), *gradient(z.float().square().sum(), *encoder.parameters())])
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-6)


class Watched(nn.Module):
    """Counts how many of its results are alive at once."""

    def __init__(self):
        super().__init__()
        self.alive = self.most = 0

    def forward(self, x):
        kept = (2 * x).tanh()  # tanh saves its result for the way back
        self.alive += len(x)
        self.most = max(self.most, self.alive)
        weakref.finalize(kept.untyped_storage(), self.forget, len(x))
        return kept

    def forget(self, count):
        self.alive -= count


def test_one_chunk_is_remembered_at_a_time():
    inputs = torch.randn(60, 5)
    for encode, rows in ((None, 60), (4, 4)):
        watched = Watched()
        encoder = nn.Sequential(nn.Linear(5, 8), watched, nn.Linear(8, 3))
        z = encoder(inputs) if encode is None else in_chunks(encoder, inputs, size=encode)
        z.square().sum().backward()
        assert rows <= watched.most <= 2 * rows
        del z


class Several(nn.Module):
    def forward(self, ids, mask):
        return (ids * mask).cumsum(1)


def test_several_inputs():
    ids, mask = torch.randn(7, 3, requires_grad=True), torch.rand(7, 3)
    assert torch.equal(in_chunks(Several(), ids, mask, size=2), Several()(ids, mask))
    with refused("in_chunks", "7, 6 rows"):
        in_chunks(Several(), ids, mask[:6], size=2)
    with refused("in_chunks", "no rows"):
        in_chunks(Several(), size=2)


def test_refused():
    inputs = torch.randn(6, 4)
    for size in (0, -1, 2.0, True, None):
        with refused("in_chunks: size is", repr(size)):
            in_chunks(nn.Linear(4, 2), inputs, size=size)
    for wrong, words in ((nn.Flatten(0), "(12,) of 3 rows"), (nn.LSTM(4, 2), "tuple of 3 rows")):
        with refused("in_chunks", words):
            in_chunks(wrong, inputs, size=3)


def test_row24_batch_norms_in_training_mode_are_refused():
    encoder, inputs = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(6, 4)
    for size in (2, 6, 10):
        with refused("BatchNorm1d (1) in training mode", "layer or group norms"):
            in_chunks(encoder, inputs, size=size)
    encoder.eval()
    close(in_chunks(encoder, inputs, size=4), encoder(inputs).detach(), 1e-6)


class Step(nn.Module):
    def __init__(self, size, dropout):
        super().__init__()
        self.encoder = encoder_of(dropout)
        self.criterion = GlobalBatch(KPairLoss(Cosine(0.3, learnable=True), miner=topk(3)).double())
        self.size = size

    def forward(self, inputs):
        z = self.encoder(inputs) if self.size is None else in_chunks(self.encoder, inputs, size=self.size)
        return self.criterion(*z.chunk(2))


def steps(rank, world, inputs, lengths, sizes):
    """The gradients of two steps, and how many all-reduces each took."""
    found = []
    for size in sizes:
        model = Step(size, 0.0)
        parallel, count = DistributedDataParallel(model), [0]

        def counted(state, bucket, count=count):
            count[0] += 1
            state = torch.distributed.all_reduce(bucket.buffer().div_(world), async_op=True)
            return state.get_future().then(lambda done: done.value()[0])

        parallel.register_comm_hook(None, counted)
        for _ in range(2):
            parallel.zero_grad()
            parallel(inputs.split(lengths)[rank]).backward()
        found.append((count[0], [p.grad for p in model.parameters()]))
    try:
        in_chunks(DistributedDataParallel(encoder_of()), inputs, size=4)
    except ValueError as error:
        return found, str(error)


@pytest.mark.parametrize("lengths", [(8, 8), (10, 4, 2)], ids=str)
def test_row24_one_all_reduce_a_step_on_every_rank(lengths):
    inputs, sizes = torch.randn(16, 5, dtype=torch.float64), [None, 1, 3, 8, 100]
    ranks = run_ranks(steps, len(lengths), inputs, lengths, sizes)
    for found, message in ranks:
        assert "DistributedDataParallel(Chunked(encoder, size))" in message
        for count, gradients in found:
            assert count == 2
            for g, e in zip(gradients, ranks[0][0][0][1], strict=True):
                close(g, e, 1e-13)


def test_chunked_is_a_module():
    encoder = encoder_of(dtype=torch.float32)
    chunked = Chunked(encoder, 3)
    assert "size=3" in repr(chunked)
    other = copy.deepcopy(chunked)
    other.load_state_dict(chunked.state_dict())
    assert torch.equal(other(torch.ones(4, 5)), chunked(torch.ones(4, 5)))
