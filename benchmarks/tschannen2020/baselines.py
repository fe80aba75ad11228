"""What a linear probe reads off raw pixels of the upper half, with noise and without.

python -m benchmarks.tschannen2020.baselines --preset quick --data-root DATA
"""

from typing import Any

import torch

from benchmarks.tschannen2020 import probe
from benchmarks.tschannen2020.data import Halves
from benchmarks.tschannen2020.runs import Config, Experiment, Tick, main
from contrastive.batches import derived_seed


def plan(preset: str, variant: str, data: str) -> list[Config]:
    """Without noise, and with that of figure 2.

    Arguments:
        preset: its name.
        variant: text and code do not differ here.
        data: name of the data set.
    """
    return [{"preset": preset, "variant": variant, "data": data, "encoder": "pixels", "noise": n} for n in (0.0, 0.05)]


def run(config: Config, data: Halves | None, seed: int, tick: Tick) -> dict[str, Any]:
    """Fits both probes.

    Arguments:
        config: of `plan`.
        data: on what.
        seed: of the noise and of SAGA.
        tick: is told the share that is done.
    """
    assert data is not None
    generator = torch.Generator().manual_seed(derived_seed(seed, 4))
    train, test = (
        split.views(slice(None), noise=config["noise"], generator=generator)[0] for split in (data.train, data.test)
    )
    rows = (train, data.train.labels, test, data.test.labels)
    return {
        "iterations": 0,
        "test_bound": None,
        "train_bound": None,
        "test_accuracy": probe.saga_accuracy(*rows, seed=seed),
        "fast_accuracy": probe.fast_accuracy(*rows),
    }


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
