"""Encoders, and the files that bring a trained one back."""

import json

import pytest
import torch
from torch import nn

from contrastive.critics import Bilinear
from contrastive.encoders import (
    MLP,
    ConvNet,
    ImageEncoder,
    Recipe,
    StridedConvNet,
    Timm,
    build,
    glorot_uniform_,
    load_encoder,
    save_encoder,
    truncated_normal_,
)
from contrastive.errors import InputError

CONVNET = Recipe("ConvNet", {"channels": 1, "widths": [4, 8]}, {"hidden": [16], "out": 6}, [0.3], [0.2])
RECIPES = {
    "convnet": CONVNET,
    "mlp": Recipe("MLP", {"dim": 64, "hidden": [16], "out": 8}, None, [0.3], [0.2]),
    "timm": Recipe("Timm", {"name": "resnet10t", "channels": 1}, {"hidden": [], "out": 6}, [0.3], [0.2]),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_round_trip(tmp_path, recipe):
    encoder, projector = build(recipe, seed=3)
    images = torch.randint(0, 256, (4, 1, 8, 8) if recipe.encoder != "Timm" else (4, 1, 32, 32), dtype=torch.uint8)
    encoder(images)  # batch norms have statistics of their own now
    encoder.eval(), projector.eval()
    save_encoder(tmp_path, recipe, encoder, projector, Bilinear(4))
    loaded = load_encoder(tmp_path)
    assert torch.equal(loaded(images), encoder(images))
    assert loaded(images).shape == (4, encoder.out_dim)
    assert torch.equal(load_encoder(tmp_path, projection=True)(images), projector(encoder(images)))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert json.loads((tmp_path / "encoder.json").read_text())["encoder"] == recipe.encoder


def test_seed_decides_the_weights_and_nothing_else():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, again, other = (build(CONVNET, seed=s)[0].state_dict() for s in (1, 1, 2))
    key = "backbone.layers.0.weight"
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])
    assert torch.equal(torch.get_rng_state(), state)


def test_uint8_and_floats_are_the_same_image():
    encoder = build(CONVNET)[0].eval()
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.allclose(encoder(images), encoder(images.float() / 255))


def test_standardises():
    seen = []

    class Spy(nn.Module):
        out_dim = 1

        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :1]

    ImageEncoder(Spy(), [0.5], [0.25])(torch.ones(1, 1, 2, 2))
    assert torch.allclose(seen[0], torch.full((1, 1, 2, 2), 2.0))


def test_wrong_channels_are_named():
    with pytest.raises(ValueError, match=r"ImageEncoder: got images of shape \(2, 3, 8, 8\)"):
        build(CONVNET)[0](torch.rand(2, 3, 8, 8))


def test_unknown_timm_name_has_its_nearest():
    with pytest.raises(InputError, match="nearest: resnet18"):
        Timm("resnet1", 1)


def test_widths():
    assert ConvNet(3, widths=(2, 4, 6)).out_dim == 6
    assert MLP(5, hidden=(), out=2)(torch.zeros(3, 5)).shape == (3, 2)


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"encoder\.json is missing"):
        load_encoder(tmp_path)
    encoder, projector = build(CONVNET)
    save_encoder(tmp_path, CONVNET, encoder, projector, nn.Identity())
    weights = (tmp_path / "encoder.safetensors").read_bytes()
    (tmp_path / "encoder.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match=r"damaged: its checksum is not the one in encoder\.json"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(weights)
    text = (tmp_path / "encoder.json").read_text()
    (tmp_path / "encoder.json").write_text(text.replace("8\n", "9\n"))
    with pytest.raises(InputError, match="another architecture"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text(text.replace("ConvNet", "system"))
    with pytest.raises(InputError, match="no encoder 'system'"):
        load_encoder(tmp_path)
    old = text.replace("weights_sha256", "kpair")  # of a version that wrote no checksum
    (tmp_path / "encoder.json").write_text(old)
    load_encoder(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(tmp_path)


def test_saved_files_follow_the_umask(tmp_path):
    encoder, projector = build(CONVNET)
    save_encoder(tmp_path, CONVNET, encoder, projector, nn.Identity())
    (tmp_path / "plain").touch()
    assert (tmp_path / "encoder.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_papers_encoders_have_the_papers_sizes():
    """238k and 220k parameters (Tschannen et al., 2020, figure 4)."""

    def size(module):
        return sum(p.numel() for p in module.parameters())

    assert size(MLP(392, hidden=(300, 300), out=100, batch_norm=False)) == 238_300
    assert size(StridedConvNet(1)) == 219_748


def test_strided_convolutions_pad_as_tensorflow_and_norm_over_everything():
    net = StridedConvNet(2, widths=(3,), out=4)
    x = torch.randn(5, 2, 7, 8)
    with torch.no_grad():
        net.norm.weight.normal_()
        # 7 rows: 4 of padding, two on each side; 8 columns: 3, one left and two right.
        padded = torch.zeros(5, 2, 11, 11)
        padded[:, :, 2:9, 1:9] = x
        h = nn.functional.conv2d(padded, net.convolutions[0].weight, net.convolutions[0].bias, stride=2).relu()
        assert h.shape == (5, 3, 4, 4)
        flat = h.flatten(1)
        normed = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = normed.view_as(h) * net.norm.weight[:, None, None] + net.norm.bias[:, None, None]
        torch.testing.assert_close(net(x), net.last(h.mean((2, 3))), atol=1e-5, rtol=1e-5)


def test_skips_go_around_every_layer():
    net = MLP(6, hidden=(6, 6), out=6, batch_norm=False, skips=True)
    x = torch.randn(4, 6)
    h = x
    for block in net.layers[:2]:
        h = h + block[0](h).relu()
    assert torch.equal(net(x), h + net.layers[2][0](h))


def test_starts():
    net = MLP(400, hidden=(400,), out=400, batch_norm=False, skips=True, std=1e-4)
    weights = torch.cat([p.flatten() for name, p in net.named_parameters() if name.endswith("weight")])
    assert float(weights.detach().abs().max()) <= 2e-4
    # A normal cut at two deviations keeps .8796 of its deviation.
    assert float(weights.detach().std()) == pytest.approx(0.8796e-4, rel=0.01)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))
    net = StridedConvNet(1)
    glorot_uniform_(net)
    edge = (6 / (25 * (64 + 128))) ** 0.5
    assert float(net.convolutions[1].weight.detach().abs().max()) == pytest.approx(edge, rel=0.01)
    assert not net.last.bias.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(4, hidden=(5,), out=4, skips=True), r"MLP: hidden is \[5\] and out 4, expected 4 everywhere"),
        (lambda: StridedConvNet(1, widths=()), r"StridedConvNet: widths are \[\]"),
        (lambda: truncated_normal_(nn.Linear(2, 2), 0.0), r"truncated_normal_: std is 0\.0, expected"),
    ],
)
def test_refusals_of_the_papers_encoders(make, message):
    with pytest.raises(ValueError, match=message):
        make()
