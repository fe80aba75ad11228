"""Fast products: a setting that is there while it is used, and no trace of it or of anything else afterwards."""

import threading

import pytest
import torch

from benchmarks.speed import measure
from contrastive import Concat, Cosine, KPairLoss, gemm
from contrastive.gemm import fast_products, rounded_products
from miners import hcl

LARGE = 2**24


def setting():
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.fixture(autouse=True)
def _restored():
    """Leaves the process as it was, whatever a test chose or broke."""
    yield
    torch.set_float32_matmul_precision("highest")
    for place in (torch.backends.mkldnn.matmul, torch.backends.mkldnn, torch.backends):
        place.fp32_precision = "none"
    gemm._inside = 0


@pytest.fixture
def exact(monkeypatch):
    """As on a processor whose oneDNN computes in float32, whichever this one is."""
    monkeypatch.setattr(gemm, "exact", lambda: True)


@pytest.fixture
def x():
    return torch.randn(4, 4)


class TestRounded:
    """The permission does not ask what the processor makes of it."""

    @pytest.mark.parametrize("exact", [False, True])
    def test_it_is_given_inside_and_taken_back(self, exact, x, monkeypatch):
        monkeypatch.setattr(gemm, "exact", lambda: exact)
        for before in ("none", "ieee"):
            torch.backends.mkldnn.matmul.fp32_precision = before
            with rounded_products():
                assert setting() == "bf16"
                with fast_products(x, LARGE):
                    assert setting() == "bf16"
                assert setting() == "bf16"
            assert setting() == before

    def test_what_somebody_chose_stays(self):
        torch.backends.mkldnn.matmul.fp32_precision = "tf32"
        with rounded_products():
            assert setting() == "tf32"
        assert setting() == "tf32"

    def test_after_an_exception(self):
        with pytest.raises(KeyError), rounded_products():
            raise KeyError
        assert setting() == "none"

    def test_products_are_those_of_rounded_numbers_at_worst(self):
        a, b = torch.randn(64, 256), torch.randn(256, 64)
        with rounded_products():
            found = a @ b
        # Each factor of a sum of 256 terms errs by 2^-9 of itself at most, that is where bfloat16 is.
        bound = (a.abs() @ b.abs()) * 2**-8
        assert found.dtype == torch.float32
        assert bool(((found.double() - a.double() @ b.double()).abs() <= bound).all())


@pytest.mark.usefixtures("exact")
class TestScope:
    def test_the_setting_is_there_inside_and_restored_after(self, x):
        for before in ("none", "ieee"):
            torch.backends.mkldnn.matmul.fp32_precision = before
            with fast_products(x, LARGE):
                assert setting() == "bf16"
            assert setting() == before

    def test_after_an_exception(self, x):
        with pytest.raises(KeyError), fast_products(x, LARGE):
            raise KeyError
        assert setting() == "none"
        with fast_products(x, LARGE):
            assert setting() == "bf16"

    def test_nested(self, x):
        with fast_products(x, LARGE):
            with fast_products(x, LARGE):
                assert setting() == "bf16"
            assert setting() == "bf16"
            with pytest.raises(KeyError), fast_products(x, LARGE):
                raise KeyError
            assert setting() == "bf16"
        assert setting() == "none"

    def test_overlapping_threads(self, x):
        first_in, second_in, first_out = (threading.Event() for _ in range(3))
        seen = {}

        def first():
            with fast_products(x, LARGE):
                first_in.set()
                assert second_in.wait(10)
            seen["first out"] = setting()
            first_out.set()

        def second():
            assert first_in.wait(10)
            with fast_products(x, LARGE):
                second_in.set()
                assert first_out.wait(10)
                seen["second in"] = setting()

        threads = [threading.Thread(target=f) for f in (first, second)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(20)
        assert seen == {"first out": "bf16", "second in": "bf16"}
        assert setting() == "none"

    def test_many_threads(self, x):
        def work():
            for _ in range(200):
                with fast_products(x, LARGE):
                    assert setting() == "bf16"

        threads = [threading.Thread(target=work) for _ in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert setting() == "none"
        assert gemm._inside == 0

    @pytest.mark.parametrize(("precision", "expected"), [("high", "tf32"), ("medium", "bf16")])
    def test_a_choice_of_the_users_is_left_alone(self, x, precision, expected):
        torch.set_float32_matmul_precision(precision)
        with fast_products(x, LARGE):
            assert setting() == expected
        assert setting() == expected
        assert torch.get_float32_matmul_precision() == precision

    def test_the_strictest_choice_is_met_and_kept(self, x):
        torch.set_float32_matmul_precision("highest")
        with fast_products(x, LARGE):
            pass
        assert setting() == "ieee"
        assert torch.get_float32_matmul_precision() == "highest"

    @pytest.mark.parametrize("chosen", ["ieee", "tf32", "bf16"])
    def test_a_setting_that_is_inherited_stays_so(self, x, chosen):
        torch.backends.fp32_precision = chosen
        with fast_products(x, LARGE):
            assert setting() == ("bf16" if chosen == "ieee" else chosen)
        assert setting() == chosen
        torch.backends.fp32_precision = "tf32"
        assert setting() == "tf32"
        torch.backends.fp32_precision = "none"
        assert setting() == "none"

    def test_a_choice_made_meanwhile_stays(self, x):
        with fast_products(x, LARGE):
            torch.backends.mkldnn.matmul.fp32_precision = "tf32"
        assert setting() == "tf32"

    def test_nothing_happens_for_few_products_or_another_type(self, x):
        for other, size in ((x, LARGE - 1), (x.double(), LARGE), (x.bfloat16(), LARGE), (x.to("meta"), LARGE)):
            with fast_products(other, size):
                assert setting() == "none"


class TestProbe:
    def test_without_it_nothing_happens(self, x, monkeypatch):
        monkeypatch.setattr(gemm, "exact", lambda: False)
        with fast_products(x, LARGE):
            assert setting() == "none"

    def test_it_tells_bfloat16_products(self, monkeypatch):
        if not gemm.exact.__wrapped__():
            pytest.skip("this processor's oneDNN does not multiply in float32")
        plain = torch.Tensor.__matmul__

        def rounded(a, b):
            return plain(a.bfloat16(), b.bfloat16()).float() if a.dtype == torch.float32 else plain(a, b)

        monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
        assert not gemm.exact.__wrapped__()
        assert setting() == "none"

    def test_without_onednn(self, monkeypatch):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not gemm.exact.__wrapped__()

    def test_it_multiplies_in_single_precision_whatever_the_default(self, monkeypatch):
        seen = []
        plain = torch.Tensor.__matmul__

        def spy(a, b):
            seen.append((a.dtype, a.device.type))
            return plain(a, b)

        monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                gemm.exact.__wrapped__()
        finally:
            torch.set_default_dtype(torch.float32)
        assert (torch.float32, "cpu") in seen

    def test_products_inside_are_true_float32(self):
        a, b = torch.randn(256, 256), torch.randn(256, 256)
        with fast_products(a, 256**3):
            found = a @ b
        expected = a.double() @ b.double()
        assert (found - expected).abs().max() < 4e-6 * expected.abs().max()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_peer_is_given_no_precision_that_is_not_exact(monkeypatch, bfloat16):
    plain = torch.Tensor.__matmul__

    def multiplied(a, b):
        if bfloat16 and torch.get_float32_matmul_precision() == "medium" and a.dtype == torch.float32:
            return plain(a.bfloat16(), b.bfloat16()).float()
        return plain(a.double(), b.double()).to(a.dtype)

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiplied)
    assert measure.exact_precisions() == (["highest"] if bfloat16 else ["highest", "medium"])
    assert torch.get_float32_matmul_precision() == "highest"


def everything():
    return (
        setting(),
        torch.backends.mkldnn.fp32_precision,
        torch.backends.fp32_precision,
        torch.get_float32_matmul_precision(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "criterion",
    [
        KPairLoss(Cosine()),
        KPairLoss(Cosine(), symmetric=False),
        KPairLoss(Cosine(), miner=hcl(1.0)),
        KPairLoss(Concat(64, hidden=4)),
    ],
    ids=["symmetric", "one direction", "mined", "pairs"],
)
def test_a_loss_leaves_the_process_as_it_was(criterion, tiled, autocast):
    gemm.exact.cache_clear()  # the probe, too
    x, y = (torch.randn(520, 64, requires_grad=True) for _ in range(2))  # 2^24 products and a few
    criterion.tiled = tiled
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        before = everything()
        loss = criterion(x, y)
        assert everything() == before
    before = everything()
    loss.backward()
    assert everything() == before
    with torch.no_grad():
        criterion(x, y)
        with pytest.raises(ValueError, match="row 3"):
            criterion(x.detach().index_fill(0, torch.tensor(3), torch.nan), y)
        assert not torch.is_grad_enabled()
    assert everything() == before
