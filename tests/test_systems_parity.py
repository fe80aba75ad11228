"""The comparison with released code, of checkouts that are made up: what it runs, prints, refuses and leaves behind."""

import sys
from types import ModuleType

import pytest
import torch

from benchmarks.systems import parity

CRITERION = """
import pandas
import utils
from model import Model
import references

assert not hasattr(pandas, "DataFrame")
print("as chatty as theirs")

def criterion(out_1, out_2, tau_plus, batch_size, beta, estimator):
    assert len(out_1) == batch_size
    return references.hcl_criterion(out_1, out_2, temperature=temperature, beta=beta, tau_plus=tau_plus).mean()
"""


def test_the_table_of_what_is_there(tmp_path, capsys, monkeypatch):
    installed = ModuleType("pandas")
    installed.DataFrame = object
    monkeypatch.setitem(sys.modules, "pandas", installed)
    (tmp_path / "HCL" / "image").mkdir(parents=True)
    (tmp_path / "HCL" / "image" / "main.py").write_text(CRITERION)
    before = dict(sys.modules), list(sys.path)
    parity.main([str(tmp_path)])
    assert {name for name in sys.modules.keys() - before[0].keys() if name in ("main", "utils", "model")} == set()
    assert sys.path == before[1]
    assert sys.modules["pandas"] is installed
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert head == ["what", "theirs", "ours", "gradients apart"]
    assert len(rows) == 6
    for what, theirs, ours, apart in rows[:-1]:
        assert float(theirs) == pytest.approx(float(ours), rel=1e-6), what
        assert float(apart) < 3e-6, what
    assert rows[-1][0].endswith("temperature 0.01")
    assert (rows[-1][1], rows[-1][3]) == ("inf", "nan")
    assert 15 < float(rows[-1][2]) < 25


def test_values_and_gradients_that_differ_are_told_apart():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert parity.compared("a", lambda: x.sum(), lambda: x.sum() + 1, [x]) == ["a", "3.0000000", "4.0000000", "0e+00"]
    told = parity.compared("b", lambda: (3 * x).sum(), lambda: (x * torch.tensor([4.0, 2.0])).sum(), [x])
    assert told == ["b", "9.0000000", "8.0000000", "2e-01"]


def test_what_does_not_run_is_said():
    x = torch.zeros(2, requires_grad=True)

    def stops():
        raise RuntimeError("in place")

    def stops_later():
        y = x.exp()
        total = y.sum()
        y.mul_(2)
        return total

    assert parity.compared("a", stops, x.sum, [x]) == ["a", "does not run", "0.0000000", ""]
    assert parity.compared("b", stops_later, x.sum, [x]) == ["b", "2.0000000, backward does not run", "0.0000000", ""]


def test_a_folder_without_any_of_them_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parity.main([str(tmp_path)])
    assert ended.value.code == 2
    assert f"error: {tmp_path} holds none of amdim-public, DIM, CMC, HCL, IIC" in capsys.readouterr().err
