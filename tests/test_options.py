"""The command line's options: parts, nearest names, types in words."""

from collections.abc import Sequence

import pytest

from contrastive.errors import InputError
from contrastive.options import Part, nearest, parse


def hcl(beta: float = 1.0, *, taus: Sequence[int] = (1, 2)) -> str:
    """Weighs.

    Arguments:
        beta: the :math:`\\beta` of the paper, 50 % of it, at most :math:`\\sqrt{n / 2}`.
        taus: several.
    """
    return f"hcl {beta} {taus}"


def topk(k: int) -> str:
    """Keeps.

    Arguments:
        k: how many.
    """
    return f"topk {k}"


PARTS = {"miner": Part({"none": None, "hcl": hcl, "topk": topk, "timm:": hcl}, "none")}


def options(*words):
    def add(parser):
        parser.add_argument("--batch-size", type=int, default=256)
        parser.add_argument("--lr", type=float | None, default=None)
        parser.add_argument("--download", type=bool, default=False)

    return parse(words, prog="kpair test", description="", parts=PARTS, add_options=add)


def test_defaults_and_parts():
    assert options() == {"batch_size": 256, "lr": None, "download": False, "miner": {"name": "none"}}
    assert options("--miner", "hcl")["miner"] == {"name": "hcl", "beta": 1.0, "taus": [1, 2]}
    assert options("--miner=topk", "--miner.k=3")["miner"] == {"name": "topk", "k": 3}
    assert options("--miner", "timm:resnet18")["miner"]["name"] == "timm:resnet18"


def test_a_switch_needs_no_value():
    for words in (["--download"], ["--download", "true"], ["--download", "--lr", "1"], ["--download=true"]):
        assert options(*words)["download"] is True
    assert options("--download", "false")["download"] is False


def test_dashes_and_underscores_are_one():
    assert options("--batch-size", "3") == options("--batch_size", "3") == options("--batch_size=3")


@pytest.mark.parametrize("text", ["miner: hcl", "miner: {name: hcl}", "miner:\n  name: hcl\n  beta: 1.0"])
def test_config_file_and_override(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(f"batch_size: 8\n{text}\n")
    assert options("--config", str(file)) == {
        "batch_size": 8,
        "lr": None,
        "download": False,
        "miner": {"name": "hcl", "beta": 1.0, "taus": [1, 2]},
    }
    assert options("--config", str(file), "--miner.beta", "3", "--batch-size", "4")["miner"]["beta"] == 3.0
    assert options("--config", str(file), "--miner", "topk", "--miner.k", "2")["miner"] == {"name": "topk", "k": 2}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bach-size", "3"], "unknown option --bach-size (did you mean --batch-size?)"),
        (["--miner", "hlc"], "unknown name 'hlc' (did you mean hcl?)"),
        (["--miner", "hcl", "--miner.bta", "1"], "the miner hcl has no such option (did you mean miner.beta?)"),
        (["--miner.k", "1"], "the miner none has no such option"),
        (["--miner", "topk"], "required: --miner.k"),
        (["--miner", "timm:"], "unknown name 'timm:'"),
        (["--batch-size", "x"], "--batch-size is x, expected an integer"),
        (["--batch-size", "2.5"], "--batch-size is 2.5, expected an integer"),
        (["--lr", "fast"], "--lr is fast, expected a number or null"),
        (["--miner", "hcl", "--miner.taus", "3"], "expected a list such as [1, 2]"),
        (["--batch-size"], "expected one argument"),
        (["stray"], "stray"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
def test_bad_words_in_one_sentence(words, message):
    with pytest.raises(InputError) as caught:
        options(*words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bach_size: 3", "unknown option bach_size (did you mean batch_size?)"),
        ("batch_size: x", "--batch-size is x, expected an integer"),
        ("miner: {name: hcl, bta: 1}", "(did you mean miner.beta?)"),
        ("miner: {name: 3}", "unknown name '3'"),
        ("- a\n- b", "holds no options"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_config_in_one_sentence(tmp_path, text, message):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        options("--config", str(file))
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["miner: null", "miner: {name: null}", "miner:"])
def test_no_name_is_the_default(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert options("--config", str(file))["miner"] == {"name": "none"}


def test_nearest():
    assert nearest("zzz", ["epochs"]) == ""


def test_help_shows_the_options_of_the_chosen_part(capsys):
    with pytest.raises(SystemExit) as stop:
        options("--miner", "hcl", "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--miner.beta" in shown
    assert "the beta of the paper, 50 % of it, at most sqrt(n / 2) (type:" in " ".join(shown.split())
    assert "--miner.k" not in shown
