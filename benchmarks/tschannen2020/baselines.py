"""What a linear probe reads off raw pixels of the upper half, with noise and without.

python -m benchmarks.tschannen2020.baselines --preset quick --data-root DATA
"""

from typing import Any

import torch
from torch import Tensor

from benchmarks.tschannen2020 import probe
from benchmarks.tschannen2020.data import Halves
from benchmarks.tschannen2020.runs import Config, Experiment, Tick, main
from benchmarks.under_way import UnderWay
from contrastive.batches import derived_seed


def plan(preset: str, variant: str, data: str) -> list[Config]:
    """Without noise, and with that of figure 2; pictures in colour also turned grey.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: name of the data set.
    """
    shared = {"preset": preset, "variant": variant, "data": data, "encoder": "pixels"}
    grey = [{**shared, "noise": 0.0, "grey": True}] if data == "cifar10" else []
    return [*({**shared, "noise": noise} for noise in (0.0, 0.05)), *grey]


def run(config: Config, data: Halves | None, seed: int, tick: Tick, keep: UnderWay | None = None) -> dict[str, Any]:
    """Fits both probes.

    Arguments:
        config: of `plan`.
        data: on what.
        seed: of the noise and of SAGA.
        tick: is told the share that is done.
        keep: nothing; it takes seconds.
    """
    assert data is not None
    generator = torch.Generator().manual_seed(derived_seed(seed, 4))
    train, test = (
        split.views(slice(None), noise=config["noise"], generator=generator)[0] for split in (data.train, data.test)
    )
    if config.get("grey"):
        train, test = (_grey(x, data) for x in (train, test))
    rows = (train, data.train.labels, test, data.test.labels)
    return {
        "iterations": 0,
        "test_bound": None,
        "train_bound": None,
        "test_accuracy": probe.saga_accuracy(*rows, seed=seed),
        "fast_accuracy": probe.fast_accuracy(*rows),
    }


def _grey(x: Tensor, data: Halves) -> Tensor:
    """ITU-R BT.601's weights, as everybody's conversion has them."""
    return torch.einsum("c,ncp->np", torch.tensor([0.299, 0.587, 0.114]), x.unflatten(1, (data.shape[0], -1)))


EXPERIMENT = Experiment(
    "baselines",
    "Raw pixels of the upper half, linear",
    plan,
    run,
    lambda config: 5.0,
    (),
    (),
    datasets=("mnist", "fashion-mnist", "cifar10", "made-up"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
