"""The released code beside ours, on equal tensors: the table of docs/systems.md under parity.

    for name in joshr17/HCL xu-ji/IIC Philip-Bachman/amdim-public rdevon/DIM HobbitLong/CMC; do
        git clone https://github.com/$name OFFICIAL/${name#*/}
    done
    python -m benchmarks.systems.parity OFFICIAL

Nothing of theirs is in this repository: their files are run from where they are. What such a file imports and the loss
does not use (a model, a data loader, draws on a GPU) is left empty. Float32 on the CPU, 16 images, width 32.
"""

import argparse
import importlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock, patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import lines, series
from contrastive import InnerProduct
from contrastive.assignments import discrete_information
from contrastive.errors import InputError
from contrastive.estimators import donsker_varadhan, jensen_shannon
from contrastive.lists import list_scores
from contrastive.noise import NoiseContrast
from contrastive.objectives import ntxent_loss
from contrastive.pairings import contrast, listed, other_groups
from contrastive.scores import partners, without_self
from contrastive.taps import random_place
from contrastive.terms import Term, maximised, total
from miners import Bank, hcl

N, WIDTH = 16, 32
Row = list[str]


def compared(what: str, theirs: Callable[[], Tensor], ours: Callable[[], Tensor], inputs: Sequence[Tensor]) -> Row:
    """Both values, and how far the gradients are apart, relative to the largest of ours.

    Arguments:
        what: is compared.
        theirs: a scalar.
        ours: likewise.
        inputs: what both are differentiated by.
    """
    told, gradients = [], []
    for loss in (theirs, ours):
        try:
            value = loss()
        except RuntimeError:
            told.append("does not run")
            continue
        told.append(f"{value.item():.7f}")
        try:
            gradients.append(torch.autograd.grad(value, inputs))
        except RuntimeError:
            told[-1] += ", backward does not run"
    apart = ""
    if len(gradients) == 2:
        apart = f"{max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True)):.0e}"
    return [what, *told, apart]


def of_hcl(folder: Path) -> Iterator[Row]:
    """The criterion of SimCLR with hard negatives; its temperature is a global variable."""
    main = imported(folder / "image", "main", pandas=(), utils=(), model=("Model",))
    main.device = torch.device("cpu")

    def case(beta: float, tau_plus: float, temperature: float, noise: float, *, kind: str = "hard") -> Row:
        torch.manual_seed(0)
        first = F.normalize(torch.randn(N, WIDTH))
        second = F.normalize(first + noise * torch.randn(N, WIDTH))
        views = [first.requires_grad_(), second.requires_grad_()]
        miner = hcl(beta, tau_plus, min_score=-1 / temperature)

        def ours() -> Tensor:
            scores = without_self(torch.cat(views) @ torch.cat(views).T / temperature)
            return ntxent_loss(scores, log_weights=miner(scores, partners(2 * N))).mean()

        main.temperature = temperature
        what = f"HCL, {kind}, beta {beta:g}, tau+ {tau_plus:g}, temperature {temperature:g}"
        return compared(what, lambda: main.criterion(*views, tau_plus, N, beta, kind), ours, views)

    yield case(0.0, 0.0, 0.5, 0.7, kind="easy")
    yield case(0.0, 0.1, 0.5, 0.7)
    yield case(1.0, 0.1, 0.5, 0.7)
    yield case(1.0, 0.5, 0.5, 0.15)  # close positives: every row is clamped
    yield case(6.0, 0.1, 0.07, 0.7)
    yield case(1.0, 0.1, 0.01, 0.7)


def of_iic(folder: Path) -> Iterator[Row]:
    """The information of two classes."""
    loss = imported(folder / "code" / "utils" / "cluster", "IID_losses").IID_loss
    for lam, scale in ((1.0, 3.0), (1.5, 1.0)):
        torch.manual_seed(0)
        logits = scale * torch.randn(N, WIDTH)
        views = [logits, logits + scale / 2 * torch.randn(N, WIDTH)]
        views = [view.requires_grad_() for view in views]
        yield compared(
            f"IIC, lambda {lam:g}, logits of deviation {scale:g}",
            lambda views=views, lam=lam: loss(*(view.softmax(1) for view in views), lamb=lam)[0],
            lambda views=views, lam=lam: -discrete_information(*views, lam=lam),
            views,
        )


def of_amdim(folder: Path) -> Iterator[Row]:
    """The three tasks of a batch, both directions, with the penalty."""
    costs = imported(folder, "costs").NCE_MI_MULTI(tclip=20.0)
    taps = (("1", "5"), ("1", "7"), ("a 5", "5"))
    terms = [Term(*pair, InnerProduct(WIDTH**0.5), pairing=other_groups, clip=20.0, penalty=5e-2) for pair in taps]

    def flat(places: Tensor) -> Tensor:
        return places.transpose(0, 1).reshape(1, WIDTH, -1)

    for scale in (1.0, 3.0, 6.0):
        torch.manual_seed(0)
        views = [{str(side): scale * torch.randn(N, WIDTH, side, side) for side in (1, 5, 7)} for _ in range(2)]
        for view in views:
            view["a 5"] = random_place(view["5"])
        x, y = views
        inputs = [each.requires_grad_() for each in (x["1"], y["7"], x["5"])]
        sources = [view[tap].flatten(1) for view in views for tap in ("1", "a 5")]
        targets = [flat(view[tap]) for view in views for tap in ("5", "7")]
        yield compared(
            f"AMDIM, 1 -> 5, 1 -> 7, 5 -> 5, c 20, features of deviation {scale:g}",
            lambda s=sources, t=targets: sum(costs(*s, *t, torch.eye(N), "train")),
            lambda x=x, y=y: total(terms, x, y, both=True),
            inputs,
        )


def of_dim(folder: Path) -> Iterator[Row]:
    """The losses between the codes of images and their 64 places; positives are masked by -10 there."""
    losses = imported(folder, "cortex_DIM.functions.dim_losses")
    images = torch.arange(N)
    pairing = other_groups(images, images.repeat_interleave(64))

    def case(
        what: str,
        theirs: Callable[[Tensor, Tensor], Tensor],
        objective: Callable[..., Tensor],
        *,
        score: float = 0.0,
        spread: float = 1.0,
    ) -> Row:
        torch.manual_seed(0)
        code = (1.0 if score else 0.0) + (0.05 if score else 1.0) * torch.randn(N, WIDTH, 1)
        places = score / WIDTH + spread * torch.randn(N, WIDTH, 64)
        inputs = [places.requires_grad_(), code.requires_grad_()]

        def ours() -> Tensor:
            return objective(code.flatten(1) @ places.transpose(1, 2).flatten(0, 1).T, pairing).mean()

        return compared(f"Deep InfoMax, {what}", lambda: theirs(places, code), ours, inputs)

    def shifted(places: Tensor, code: Tensor) -> Tensor:
        return losses.fenchel_dual_loss(places, code, "JSD") + 2 * math.log(2)

    yield case("Jensen-Shannon (theirs + log 4)", shifted, maximised(jensen_shannon))
    yield case("NCE", losses.infonce_loss, contrast)
    yield case("NCE, scores about -30", losses.infonce_loss, contrast, score=-30.0, spread=0.2)
    yield case("Donsker-Varadhan", losses.donsker_varadhan_loss, maximised(donsker_varadhan))


def of_cmc(folder: Path) -> Iterator[Row]:
    """The first batch against a memory of 500 items, 64 drawn for each; and the memory after it."""
    draws = {"NCE.alias_multinomial": ("AliasMethod",)}
    average = imported(folder, "NCE.NCEAverage", **draws).NCEAverage
    criterion = imported(folder, "NCE.NCECriterion").NCECriterion
    torch.manual_seed(0)
    items, rows = 500, torch.arange(N)
    queries = F.normalize(torch.randn(N, WIDTH)).requires_grad_()
    columns = torch.cat([rows[:, None], torch.randint(N, items, (N, 64))], 1)
    keys = F.normalize(torch.randn(items, WIDTH))

    def scored(*, softmax: bool) -> tuple[Tensor, Tensor]:
        memory = average(WIDTH, items, 64, T=0.07, use_softmax=softmax)
        memory.memory_l.copy_(keys)
        memory.memory_ab.copy_(keys)
        return memory(queries, queries.detach(), rows, columns)[0].squeeze(2), memory.memory_l

    def ours(objective: Callable[..., Tensor]) -> Tensor:
        return objective(list_scores(InnerProduct(0.07), queries, keys, columns), listed(rows, columns)).mean()

    classes = torch.zeros(N, dtype=torch.int64)
    yield compared(
        "CMC, binary",
        lambda: criterion(items)(scored(softmax=False)[0]).sum(),
        lambda: ours(NoiseContrast()),
        [queries],
    )
    yield compared(
        "CMC, softmax", lambda: F.cross_entropy(scored(softmax=True)[0], classes), lambda: ours(contrast), [queries]
    )
    bank = Bank(items, WIDTH)
    bank.keys.copy_(keys)
    bank.update(rows, queries.detach())
    apart = float((bank.keys - scored(softmax=True)[1]).abs().max())
    yield ["CMC, memory after an update: largest difference", "", f"{apart:.0e}", ""]


OFFICIAL = {"amdim-public": of_amdim, "DIM": of_dim, "CMC": of_cmc, "HCL": of_hcl, "IIC": of_iic}


def imported(folder: Path, name: str, **empty: Sequence[str]) -> Any:
    """A module of theirs. Of what it brings in nothing stays behind.

    Arguments:
        folder: on the path meanwhile.
        name: of the module.
        empty: modules that it imports and the loss does not use, and the names that they must have; these do nothing.
    """
    stubs = {}
    for each, names in empty.items():
        stubs[each] = ModuleType(each)
        vars(stubs[each]).update({inner: Mock() for inner in names})
    with patch.dict(sys.modules, stubs), patch.object(sys, "path", [str(folder), *sys.path]):
        return importlib.import_module(name)


def main(given: Sequence[str] | None = None) -> None:
    """Prints the table of what is there.

    Arguments:
        given: the words of the command line; None for those of the process.
    """
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("official", type=Path, help=f"folder that holds any of {', '.join(OFFICIAL)}")
    folder = made.parse_args(given).official
    with series.refusals(), warnings.catch_warnings(), redirect_stdout(sys.stderr):
        there = {name: of for name, of in OFFICIAL.items() if (folder / name).is_dir()}
        if not there:
            raise InputError(f"{folder} holds none of {', '.join(OFFICIAL)}; git clone https://github.com/joshr17/HCL")
        warnings.simplefilter("ignore")  # theirs, of torch's deprecations
        rows = [row for name, of in there.items() for row in of(folder / name)]
    print(lines.markdown([["what", "theirs", "ours", "gradients apart"], *rows]))


if __name__ == "__main__":
    main()
