"""Self-supervised training whose negatives are the whole data set, at the cost of K.

    python -m benchmarks.pool.images --data-root DATA [--seeds 3] [--seconds 60] [--arms pool] [--temperatures 0.1 0.2]

Fashion-MNIST, 15,000 images, the small network of ``benchmarks.mining``; every arm trains for the same processor time
on one thread, its learning rate on a cosine over that time. One direction, x to y, cosine at one temperature:

- ``untrained``: the network as it begins;
- ``in-batch``: the other 127 pairs of a batch of 128;
- ``in-batch, both``: both directions of it;
- ``queue``: 4,096 keys of earlier steps beside them (stale);
- ``bank``: all 15,000 newest keys (stale), as in instance discrimination (Wu et al., 2018);
- ``whole``: all 15,000, encoded afresh every step, without gradient but for the batch's own;
- ``pool``: K = 128 drawn from all 15,000 by a proposal from the bank, encoded afresh, exact weights (theorem C).
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pool.runs import run
from contrastive import Cosine, KPairLoss, evaluate_retrieval, infonce_bound, kpair_loss, list_scores
from contrastive.batches import derived_seed
from contrastive.data import ImageData, channel_statistics, fashion_mnist, limit
from contrastive.encoders import Recipe, build
from contrastive.probing import knn_accuracy, linear_accuracy
from contrastive.retrieval import instance_recall
from contrastive.views import RandomView
from miners import PoolProposal, Queue

ARMS = ("untrained", "in-batch", "in-batch, both", "queue", "bank", "whole", "pool")
BATCH, K, QUEUE, DIM = 128, 128, 4096, 64


class Trainer:
    """One run."""

    def __init__(self, data: ImageData, arm: str, temperature: float, seed: int) -> None:
        mean, deviation = channel_statistics(data.train.images)
        recipe = Recipe(
            "ConvNet",
            {"channels": 1, "widths": (16, 32, 64)},
            {"hidden": (64,), "out": DIM, "batch_norm": False},
            mean,
            deviation,
        )
        self.encoder, self.projector = build(recipe, seed=seed)
        self.model = nn.Sequential(self.encoder, self.projector)
        self.images, self.arm, self.seed, self.temperature = data.train.images, arm, seed, temperature
        self.view = RandomView(1)
        self.critic = Cosine(temperature)
        self.queue = Queue(QUEUE, DIM)
        self.bank = torch.zeros(len(self.images), DIM)
        self.order: list[int] = []

    def batch(self, step: int) -> Tensor:
        """Rows of the next batch; every epoch its own order."""
        if len(self.order) < BATCH:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, step))
            self.order = torch.randperm(len(self.images), generator=generator).tolist()
        rows, self.order = self.order[:BATCH], self.order[BATCH:]
        return torch.tensor(rows)

    def embed(self, rows: Tensor) -> Tensor:
        """Projections of a fresh view of each image."""
        projections: Tensor = self.model(self.view(self.images[rows].float() / 255))
        return projections

    def loss(self, step: int) -> Tensor:
        """Of one step."""
        rows = self.batch(step)
        torch.manual_seed(derived_seed(self.seed, step))
        if self.arm == "pool":
            return self._pool(rows)
        x, y = self.embed(torch.cat([rows, rows])).chunk(2)
        if self.arm.startswith("in-batch"):
            return KPairLoss(self.critic, symmetric="both" in self.arm)(x, y)
        if self.arm == "queue":
            loss = KPairLoss(self.critic, symmetric=False)(x, y, negatives=self.queue.keys())
            self.queue.enqueue(y.detach())
            return loss
        if self.arm == "whole":
            self.renew(step)
        # The newest keys of all images; those of the batch are its own fresh ones.
        keys = self.bank.clone()
        scores = torch.cat([self.critic(x, y), self.critic(x, keys).index_fill(1, rows, -torch.inf)], 1)
        self.bank[rows] = nn.functional.normalize(y.detach())
        return kpair_loss(scores).mean()

    @torch.no_grad()
    def renew(self, step: int) -> None:
        """A fresh key of every image."""
        for rows in torch.arange(len(self.images)).split(500):
            torch.manual_seed(derived_seed(self.seed, step, int(rows[0])))
            self.bank[rows] = nn.functional.normalize(self.embed(rows))

    def _pool(self, rows: Tensor) -> Tensor:
        # Anchors are embedded together with their positives, so that batch norm sees one kind of batch; what is drawn
        # depends on the anchors alone, so it comes second.
        x, y = self.embed(torch.cat([rows, rows])).chunk(2)
        proposal = PoolProposal(self.bank, metric="cosine", temperature=self.temperature, uniform=0.1)
        draw = proposal.draw_shared(x, rows, K)
        drawn, place = torch.unique(draw.columns[0, 1:], return_inverse=True)
        keys = self.embed(drawn)
        # Candidates: the batch's positives, of which each anchor sees its own, then what was drawn.
        columns = torch.cat([torch.arange(len(rows))[:, None], (len(rows) + place).expand(len(rows), -1)], 1)
        scores = list_scores(self.critic, x, torch.cat([y, keys]), columns)
        self.bank[rows], self.bank[drawn] = (nn.functional.normalize(z.detach()) for z in (y, keys))
        targets = torch.zeros(len(rows), dtype=torch.int64)
        return kpair_loss(scores, targets, log_weights=draw.log_weights).mean()


def train(data: ImageData, arm: str, temperature: float, seed: int, seconds: float) -> dict[str, Any]:
    """Trains for so many seconds of the processor, then measures."""
    trainer = Trainer(data, arm, temperature, seed)
    if arm == "untrained":
        return {"iterations": 0, "train_loss": None, **measure(data, trainer)}
    optimizer = torch.optim.Adam(trainer.model.parameters(), 2e-3, weight_decay=1e-5)
    start = time.process_time()
    if arm in ("bank", "pool"):
        trainer.renew(0)  # a first key of every image, in the same budget
    step = 0
    while (spent := (time.process_time() - start) / seconds) < 1:
        warm = min(1.0, 10 * spent + 0.02)
        optimizer.param_groups[0]["lr"] = 2e-3 * warm * (1 + math.cos(math.pi * spent)) / 2
        loss = trainer.loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return {"iterations": step, "train_loss": float(loss.detach()), **measure(data, trainer)}


@torch.no_grad()
def measure(data: ImageData, trainer: Trainer) -> dict[str, Any]:
    """Figures on test images."""
    encoder, projector = trainer.encoder.eval(), trainer.projector.eval()

    def features(images: Tensor) -> Tensor:
        return torch.cat([encoder(part.float() / 255) for part in images.split(500)])

    train, test = features(data.train.images), features(data.test.images)
    labels = data.train.labels, data.test.labels
    torch.manual_seed(0)
    x, y = (
        torch.cat([projector(encoder(trainer.view(part.float() / 255))) for part in data.test.images.split(500)])
        for _ in range(2)
    )
    critic = trainer.critic
    inside = [infonce_bound(critic(x[i : i + 128], y[i : i + 128])).value for i in range(0, 9984, 128)]
    whole = [
        infonce_bound(critic(x[i : i + 250], y), torch.arange(i, i + 250)).value for i in range(0, len(x) - 249, 250)
    ]
    return {
        "test_accuracy": linear_accuracy(train, labels[0], test, labels[1]),
        "knn": knn_accuracy(train, labels[0], test, labels[1]),
        "recall@1": evaluate_retrieval(test, labels[1], ks=(1,)).mean["recall@1"],
        "instance_recall@1": instance_recall(x, y, metric="cosine").mean["recall@1"],
        "test_bound": sum(inside) / len(inside),
        "test_bound_whole": sum(whole) / len(whole),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor time, on one thread")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.1])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = limit(fashion_mnist(given.data_root), 15_000)
    for seed in range(given.seeds):
        for temperature in given.temperatures:
            for arm in given.arms:
                config = {"arm": arm, "temperature": temperature, "seconds": given.seconds, "k": K, "batch": BATCH}
                work = (arm, temperature, seed, given.seconds)
                run("images", config, seed, lambda work=work: train(data, *work))


if __name__ == "__main__":
    main()
