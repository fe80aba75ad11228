"""IIC, IMSAT, Deep CCA and MINE: what each is judged by, what chooses, and what cannot be swapped."""

import math

import pytest
import torch

from benchmarks import series
from benchmarks.systems import deep_cca, iic, imsat, mine, results_page, runs
from benchmarks.systems.data import Images, made_up
from contrastive.catalogue import mine_with
from contrastive.data import ImageSplit
from contrastive.errors import InputError


def options(tmp_path, *words):
    given = ["--preset", "smoke", "--made-up", "--quiet", "--results", str(tmp_path / "lines.jsonl"), *words]
    return series.parsed(runs.parser(""), runs.SEEDS, given)


@pytest.mark.parametrize(
    ("system", "words"),
    [
        (iic.SYSTEM, ("--miner", "hcl 1")),
        (imsat.SYSTEM, ("--critic", "bilinear")),
        (deep_cca.SYSTEM, ("--critic", "cosine")),
        (mine.SYSTEM, ("--miner", "top 16")),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_block_that_a_system_has_not_cannot_be_swapped(system, words, tmp_path):
    with pytest.raises(InputError, match=f"{system.name} has no {words[0][2:]} to swap"):
        runs.perform([system], options(tmp_path, *words))
    assert not (tmp_path / "lines.jsonl").exists()


def test_iic_chooses_its_head_on_held_out_images_without_labels(monkeypatch):
    images = made_up("mnist", 60)
    images = Images(images.train, ImageSplit(images.held_out.images, None), images.test)
    learner = iic.build((1, 28, 28), widths=(4, 8), heads=3)
    learner.modules.eval()
    seen = []

    def informations(given, heads, *, lam=1.0):
        seen.append(given)
        return torch.tensor([0.1, 0.3, 0.2])

    monkeypatch.setattr(learner.modules, "informations", informations)
    monkeypatch.setattr(iic, "probed", lambda *given: {})
    accuracies = iter([0.2, 0.5, 0.9])
    monkeypatch.setattr(iic, "cluster_accuracy", lambda *given: next(accuracies))
    assert learner.measure(images, images.test) == {"clusters": 0.5, "clusters, worst head": 0.2}
    (given,) = seen
    assert torch.equal(given, images.held_out.images.float() / 255)


class TwoKinds(torch.nn.Module):
    """Two views of four images, the first two of one kind."""

    def forward(self, images):
        return 100 * torch.eye(2).repeat_interleave(2, 0).repeat(2, 1)


@torch.no_grad()
def test_iic_of_a_batch_that_is_told_apart_is_the_log_of_its_classes():
    learner = iic.build((1, 28, 28), widths=(4, 8), heads=2, classes=2, bfloat16=False)
    model = learner.modules.eval()
    model.view, model.encoder = torch.nn.Identity(), TwoKinds()
    model.judged = torch.nn.ModuleList([torch.nn.Identity()] * 2)
    assert float(learner.bound(torch.rand(4, 1, 28, 28)).value) == pytest.approx(0.6931, abs=1e-3)
    assert learner.bound(torch.rand(4, 1, 28, 28)).status == "not a bound"


def test_imsat_goes_a_quarter_of_the_way_to_the_tenth_neighbour(monkeypatch):
    images = made_up("mnist", 30).train.images
    learner = imsat.build((1, 28, 28), hidden=(8, 8), bfloat16=False)
    learner.prepare(images)
    seen = []

    def loss(model, x, logits, *, radius, xi):
        seen.append(radius)
        return logits.sum(1)

    monkeypatch.setattr(imsat, "virtual_adversarial_loss", loss)
    rows = torch.tensor([4, 17, 9])
    learner.loss(images[rows].float() / 255, rows)
    flat = (2 * images.double() / 255 - 1).flatten(1)
    for row, found in zip(rows.tolist(), seen[0].tolist(), strict=True):
        distances = sorted(float((flat[row] - other).norm()) for i, other in enumerate(flat) if i != row)
        assert found == pytest.approx(distances[9] / 4, rel=1e-5)


@torch.no_grad()
def test_imsat_reports_the_information_of_an_image_and_its_class():
    learner = imsat.build((1, 2, 2), hidden=(2,), classes=2, bfloat16=False)
    learner.modules.eval()
    encoder, classifier = learner.modules
    classifier.weight.copy_(torch.tensor([[1e4, 0.0], [0.0, 1e4]]))
    encoder.encoder[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    black_and_white = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    found = learner.bound(black_and_white)
    assert found.value == pytest.approx(0.6931, abs=1e-4)
    assert (found.status, found.cap) == ("bound", pytest.approx(0.6931, abs=1e-4))


def test_deep_cca_is_judged_by_directions_of_other_images():
    # Halves that know nothing of each other: on the images that choose the directions they correlate all the same.
    noise = Images(*(ImageSplit(torch.randint(0, 256, (n, 1, 4, 8), dtype=torch.uint8), None) for n in (60, 60, 600)))
    assert deep_cca.total(deep_cca.left, deep_cca.right, noise, noise.test, k=10) < 1.5
    assert deep_cca.total(deep_cca.left, deep_cca.right, noise, noise.train, k=10) > 5
    # And halves that are the same, all of them.
    half = torch.randint(0, 256, (100, 1, 4, 4), dtype=torch.uint8)
    same = ImageSplit(torch.cat([half, half], 3), None)
    assert deep_cca.total(deep_cca.left, deep_cca.right, Images(same, same, same), same, k=50) == pytest.approx(
        16, abs=0.1
    )


def test_mine_is_held_against_the_pilot_where_it_is_least_ahead_of_it():
    estimates = {2: 1.8, 4: 3.5, 6: 7.5, 8: 7.0, 10: 9.0}  # the pilot's are 0.27, 0.91, 1.99, 3.35 and 4.39 off
    row = {"trained": {f"of {level} nats": value for level, value in estimates.items()}}
    assert mine.nearer(row) == pytest.approx(0.27 - 0.2)
    row["trained"]["of 6 nats"] = 9.0  # too high is as far off as too low
    assert mine.nearer(row) == pytest.approx(1.99 - 3.0)
    assert results_page.schedule([row]).splitlines()[4] == "| 6 | 9.00 | 9.00 | +3.00 | +50 % | -1.99 |"
    row["trained"]["of 6 nats"] = None
    assert mine.nearer(row) == -math.inf
    assert results_page.schedule([row]).splitlines()[4] == "| 6 | lost |  |  |  | -1.99 |"


def test_mine_climbs_the_schedule_and_a_lost_level_is_no_figure(monkeypatch, tmp_path):
    def climb(estimator, family, seed, steps, make, tick):
        assert (estimator.name, family, steps) == (mine_with().name, "gaussian", 2)
        assert make(20, 20)(torch.zeros(3, 20), torch.zeros(3, 20)).shape == (3, 3)
        return {"levels": {"2": {"value": 1.5}, "4": {"value": float("nan")}}}

    monkeypatch.setattr(mine, "climb", climb)
    for words in ((), ("--critic", "separable")):
        (row,) = runs.perform([mine.SYSTEM], options(tmp_path, *words))
        assert row["status"] == "ok", row
        assert row["trained"] == {"of 2 nats": 1.5, **dict.fromkeys((f"of {i} nats" for i in (4, 6, 8, 10)), None)}
