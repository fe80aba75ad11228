"""Critics: each against a double loop, in every precision and at the edges."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from references import INF, gradient, refused

from contrastive import Bilinear, Concat, Cosine, InnerProduct, NegativeSquaredDistance, Separable, factors, kpair_loss
from contrastive.factors import Factors, UnitRows, factorises, factors_of, normalize


def inner(critic, x, y):
    return float(sum(a * b for a, b in zip(x.tolist(), y.tolist(), strict=True))) / critic.temperature


def cosine(critic, x, y):
    lengths = math.hypot(*x.tolist()) * math.hypot(*y.tolist())
    return inner(critic, x, y) / lengths


def distance(critic, x, y):
    return -sum((a - b) ** 2 for a, b in zip(x.tolist(), y.tolist(), strict=True)) / critic.temperature


def bilinear(critic, x, y):
    weight = critic.weight.tolist()
    return sum(a * weight[i][j] * b for i, a in enumerate(x.tolist()) for j, b in enumerate(y.tolist()))


def separable(critic, x, y):
    return float((critic.tower_x(x) * critic.tower_y(y)).sum())


def concat(critic, x, y):
    """The literal concatenation through one first layer of the same weights."""
    weight = torch.cat([critic.first_x.weight, critic.first_y.weight], 1)
    return float(critic.rest(F.linear(torch.cat([x, y]), weight, critic.first_x.bias)))


# Name: (how it is made, its loop, width of x, width of y). A new critic is one more line.
CRITICS = {
    "InnerProduct": (InnerProduct, inner, 5, 5),
    "InnerProduct(0.2)": (lambda: InnerProduct(temperature=0.2), inner, 5, 5),
    "Cosine": (Cosine, cosine, 5, 5),
    "Cosine(0.5)": (lambda: Cosine(temperature=0.5), cosine, 5, 5),
    "Cosine(learnable)": (lambda: Cosine(temperature=0.5, learnable=True), cosine, 5, 5),
    "NegativeSquaredDistance": (NegativeSquaredDistance, distance, 5, 5),
    "NegativeSquaredDistance(3)": (lambda: NegativeSquaredDistance(temperature=3.0), distance, 5, 5),
    "Bilinear": (lambda: Bilinear(5), bilinear, 5, 5),
    "Bilinear(5, 3)": (lambda: Bilinear(5, 3), bilinear, 5, 3),
    "Separable": (lambda: Separable(5, hidden=7, out=4), separable, 5, 5),
    "Separable(5, 3)": (lambda: Separable(5, 3, hidden=7, out=4, layers=3), separable, 5, 3),
    "Separable(layers=0)": (lambda: Separable(5, 3, out=4, layers=0), separable, 5, 3),
    "Concat": (lambda: Concat(5, hidden=7), concat, 5, 5),
    "Concat(5, 3)": (lambda: Concat(5, 3, hidden=7, layers=3), concat, 5, 3),
}
# They compute in float32 even where autocast would not; the networks' layers run in bfloat16, by autocast's leave.
PARAMETERLESS = [name for name in CRITICS if name.startswith(("InnerProduct", "Cosine", "NegativeSquaredDistance"))]
# Tempered critics, with the sentence that names them.
TEMPERED = [InnerProduct, Cosine, NegativeSquaredDistance]


@pytest.fixture(params=CRITICS)
def case(request):
    make, loop, dim_x, dim_y = CRITICS[request.param]
    return make(), loop, dim_x, dim_y


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


class TestEveryCritic:
    def test_equals_its_double_loop(self, case):
        critic, loop, dim_x, dim_y = case
        critic.double()
        x, y = torch.randn(4, dim_x, dtype=torch.float64), torch.randn(6, dim_y, dtype=torch.float64)
        with torch.no_grad():
            expected = torch.tensor([[float(loop(critic, a, b)) for b in y] for a in x], dtype=torch.float64)
            found = critic(x, y)
        assert found.dtype == torch.float64
        close(found, expected, 1e-13)

    def test_gradients_of_first_and_second_order(self, case):
        critic, _, dim_x, dim_y = case
        critic.double()
        x = torch.randn(2, dim_x, dtype=torch.float64, requires_grad=True)
        y = torch.randn(3, dim_y, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(critic, (x, y))
        assert torch.autograd.gradgradcheck(critic, (x, y))
        for parameter in critic.parameters():
            assert gradient(critic(x, y), parameter)[0].abs().max() > 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_gives_float32_scores(self, case, dtype):
        critic, _, dim_x, dim_y = case
        x, y = torch.randn(4, dim_x).to(dtype).requires_grad_(), torch.randn(6, dim_y).to(dtype)
        critic.to(dtype)
        found = critic(x, y)
        assert found.dtype == torch.float32
        exact = copy.deepcopy(critic).double()(x.double(), y.double())
        # Without layers in half precision nothing is rounded after the inputs.
        network = isinstance(critic, Separable | Concat)
        close(found, exact, 8 * torch.finfo(dtype).eps if network else 2e-6)
        assert torch.isfinite(gradient(found, x)[0]).all()

    def test_autocast_gives_float32_scores(self, case):
        critic, _, dim_x, dim_y = case
        x, y = torch.randn(4, dim_x), torch.randn(6, dim_y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = critic(x, y)
            halved = critic(x.bfloat16(), y.bfloat16())
        assert found.dtype == halved.dtype == torch.float32
        if not isinstance(critic, Separable | Concat):
            assert torch.equal(found, critic(x, y))
            assert torch.equal(halved, critic(x.bfloat16(), y.bfloat16()))

    def test_edges_of_shape(self, case):
        critic, _, dim_x, dim_y = case
        for n, m in ((0, 0), (0, 3), (3, 0), (1, 1)):
            x, y = torch.randn(n, dim_x, requires_grad=True), torch.randn(m, dim_y, requires_grad=True)
            found = critic(x, y)
            assert found.shape == (n, m)
            assert all(torch.isfinite(g).all() for g in gradient(found, x, y))

    def test_rows_and_columns_are_scored_one_by_one(self, case):
        critic, _, dim_x, dim_y = case
        critic.double()
        x, y = torch.randn(4, dim_x, dtype=torch.float64), torch.randn(6, dim_y, dtype=torch.float64)
        close(critic(x[1:3], y[2:5]), critic(x, y)[1:3, 2:5], 1e-14)

    def test_inputs_are_left_alone_and_need_not_be_contiguous(self, case):
        critic, _, dim_x, dim_y = case
        x, y = torch.randn(dim_x, 4), torch.randn(dim_y, 6)
        before = x.clone(), y.clone()
        close(critic(x.T, y.T), critic(x.T.contiguous(), y.T.contiguous()), 1e-6)
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])

    def test_wrong_shapes_are_refused(self, case):
        critic, _, dim_x, dim_y = case
        name = type(critic).__name__
        for x_shape, y_shape in (
            ((2, dim_x), (3, dim_y + 1)),
            ((2, dim_x + 1), (3, dim_y)),
            ((dim_x,), (3, dim_y)),
            ((2, dim_x), (dim_y,)),
            ((1, 2, dim_x), (3, dim_y)),
        ):
            with refused(name, str(x_shape), str(y_shape), "expected [N, "):
                critic(torch.zeros(x_shape), torch.zeros(y_shape))

    def test_copies_print_and_load(self, case):
        critic, _, dim_x, dim_y = case
        assert type(critic).__name__ in repr(critic)
        x, y = torch.randn(4, dim_x), torch.randn(6, dim_y)
        scores = critic(x, y)
        twin = copy.deepcopy(critic)
        assert torch.equal(twin(x, y), scores)
        state = {name: value.clone() for name, value in critic.state_dict().items()}
        with torch.no_grad():
            for parameter in critic.parameters():
                parameter.add_(1.0)
        critic.load_state_dict(state)
        assert torch.equal(critic(x, y), scores)


class TestTemperature:
    @pytest.mark.parametrize("critic", TEMPERED)
    @pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, INF, -INF, 1e-30, 9e-7])
    def test_is_a_number_that_training_can_follow(self, critic, temperature):
        with refused(critic.__name__, "temperature", str(temperature)):
            critic(temperature=temperature)

    @pytest.mark.parametrize("temperature", [0.0, 1e-30, math.nan])
    def test_of_a_learnable_one_too(self, temperature):
        with refused("Cosine", str(temperature)):
            Cosine(temperature=temperature, learnable=True)

    @pytest.mark.parametrize("critic", TEMPERED)
    def test_divides_the_scores(self, critic):
        x, y = torch.randn(3, 4), torch.randn(5, 4)
        close(critic(temperature=0.25)(x, y), 4 * critic(temperature=1.0)(x, y), 1e-6)
        assert torch.isfinite(critic(temperature=1e-6)(x, y)).all()

    def test_learnable(self):
        critic = Cosine(temperature=0.07, learnable=True)
        assert list(critic.state_dict()) == ["log_temperature"]
        assert critic.temperature.item() == pytest.approx(0.07, rel=1e-6)
        x = torch.randn(4, 5)
        kpair_loss(critic(x, x)).mean().backward()
        assert critic.log_temperature.grad.abs() > 0
        other = Cosine(temperature=1.0, learnable=True)
        other.load_state_dict(critic.state_dict())
        assert torch.equal(other(x, x), critic(x, x))
        # In the logarithm no step of an optimiser can make it negative.
        with torch.no_grad():
            critic.log_temperature.fill_(-30.0)
        assert critic.temperature > 0

    def test_fixed(self):
        critic = Cosine(temperature=0.07)
        assert not list(critic.parameters())
        assert not critic.state_dict()
        assert critic.temperature == 0.07


class TestCosine:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_a_zero_vector_scores_zero_and_moves_nothing(self, dtype):
        x = torch.randn(3, 4).to(dtype)
        x[1] = 0
        y = torch.randn(2, 4).to(dtype)
        y[0] = 0
        x.requires_grad_()
        y.requires_grad_()
        scores = Cosine()(x, y)
        assert not scores[1].any()
        assert not scores[:, 0].any()
        of_x, of_y = gradient(kpair_loss(scores, torch.tensor([1, 0, 1])), x, y)
        assert torch.isfinite(of_x).all()
        assert torch.isfinite(of_y).all()
        assert not of_x[1].any()
        assert not of_y[0].any()
        assert of_x[0].any()

    @pytest.mark.parametrize(
        ("dtype", "scale"),
        [
            (torch.float32, 1e-30),
            (torch.float32, 1e-37),
            (torch.float32, 1e30),
            (torch.float32, 1e37),
            (torch.float64, 1e-300),
            (torch.float64, 1e300),
            (torch.bfloat16, 1e-30),
            (torch.bfloat16, 1e30),
            (torch.float16, 2.0**-12),
            (torch.float16, 2.0**13),
        ],
    )
    def test_length_does_not_matter(self, dtype, scale):
        x, y = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
        x = x.to(dtype)
        scaled = (x.double() * scale).to(dtype)
        expected = Cosine()(scaled.double() / scale, y.to(dtype).double())
        close(Cosine()(scaled, y.to(dtype)), expected, 1e-12 if dtype == torch.float64 else 1e-5)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_gradient_of_tiny_and_huge_vectors(self, scale):
        x = torch.randn(3, 4, dtype=torch.float64)
        tiny = (x * scale).float().requires_grad_()
        exact = tiny.detach().double().requires_grad_()
        y = torch.randn(3, 4)
        found = gradient(kpair_loss(Cosine()(tiny, y)), tiny)[0].double() * scale
        expected = gradient(kpair_loss(Cosine()(exact, y.double())), exact)[0] * scale
        close(found, expected, 1e-4)

    def test_scores_stay_within_the_temperature(self):
        x = torch.randn(50, 3)
        scores = Cosine(temperature=0.1)(x, torch.cat([x, -x]))
        assert scores.abs().max() <= 10.0 * (1 + 1e-6)
        close(scores.diag(), torch.full((50,), 10.0), 1e-6)

    def test_normalize(self):
        x = torch.randn(6, 4, dtype=torch.float64)
        close(normalize(x), F.normalize(x), 1e-15)
        assert normalize(torch.zeros(2, 0)).shape == (2, 0)
        assert torch.autograd.gradcheck(normalize, (x.requires_grad_(),))

    def test_a_second_derivative_passes_a_zero_row(self):
        x = torch.randn(3, 4, dtype=torch.float64)
        x[1] = 0.0
        x.requires_grad_()
        (slope,) = torch.autograd.grad((normalize(x) * torch.arange(12.0).view(3, 4)).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(slope.square().sum(), x)
        assert bool(torch.isfinite(second).all())
        assert second[1].tolist() == [0.0] * 4
        assert float(second[0].abs().max()) > 0


class TestNegativeSquaredDistance:
    def test_is_never_positive_and_zero_at_home(self):
        x = torch.randn(40, 6)
        scores = NegativeSquaredDistance()(x, x)
        assert scores.max() <= 0
        assert scores.diag().abs().max() < 1e-5
        same = x[:1].expand(3, 6).clone().requires_grad_()
        assert torch.isfinite(gradient(NegativeSquaredDistance()(same, same), same)[0]).all()


class TestNetworks:
    def test_concat_needs_a_hidden_layer(self):
        with refused("Concat", "layers", "0"):
            Concat(3, layers=0)

    def test_capacity(self):
        def count(critic):
            return sum(p.numel() for p in critic.parameters())

        assert count(Bilinear(5, 3)) == 15
        assert count(Bilinear(5)) == 25
        assert count(Separable(5, 3, hidden=7, out=4, layers=2)) == (5 * 7 + 7) + (3 * 7 + 7) + 2 * (56 + 7 * 4 + 4)
        assert count(Concat(5, 3, hidden=7, layers=2)) == 8 * 7 + 7 + 56 + 8
        # Tschannen et al. (2020), figure 3: 10k for the bilinear critic, about 40k for both networks.
        assert (count(Bilinear(100)), count(Separable(100)), count(Concat(100))) == (10_000, 40_400, 40_401)

    @pytest.mark.parametrize("n", [0, 1, 8, 19])
    def test_the_gradient_of_a_concatenated_critic_is_that_of_the_plain_form(self, n):
        critic = Concat(4, 3, hidden=7).double()
        x = torch.randn(n, 4, dtype=torch.float64, requires_grad=True)
        y = torch.randn(11, 3, dtype=torch.float64, requires_grad=True)
        inputs, upstream = [x, y, *critic.parameters()], torch.randn(n, 11, dtype=torch.float64)
        fast, plain = critic(x, y), critic.rest(critic.first_x(x)[:, None] + critic.first_y(y)).squeeze(2)
        assert torch.allclose(fast, plain, rtol=1e-13, atol=1e-14)
        found, expected = (torch.autograd.grad(z, inputs, upstream) for z in (fast, plain))
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)

    def test_a_concatenated_critic_can_be_differentiated_twice(self):
        critic = Concat(4, hidden=7).double()
        x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)

        def twice(scores):
            (slope,) = torch.autograd.grad(scores.sin().sum(), x, create_graph=True)
            return torch.autograd.grad(slope.square().sum(), [x, critic.first_y.weight, critic.rest[-1].weight])

        plain = critic.rest(critic.first_x(x)[:, None] + critic.first_y(x)).squeeze(2)
        for a, b in zip(twice(critic(x, x)), twice(plain), strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)

    def test_a_separable_critic_factorises_and_a_concatenated_one_does_not(self):
        x, y = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, 5, dtype=torch.float64)
        assert torch.linalg.matrix_rank(Separable(5, hidden=20, out=3).double()(x, y)) <= 3
        assert torch.linalg.matrix_rank(Concat(5, hidden=50, layers=2).double()(x, y)) > 3


class TestFactors:
    FACTORISED = tuple(name for name in CRITICS if not name.startswith("Concat"))

    @pytest.mark.parametrize("name", FACTORISED)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
    def test_they_give_the_scores(self, name, dtype):
        make, _, dim_x, dim_y = CRITICS[name]
        critic = make().to(dtype)
        x, y = torch.randn(4, dim_x).to(dtype), torch.randn(6, dim_y).to(dtype)
        found = critic.factors(x, y)
        assert factorises(critic)
        assert found.anchors.dtype == found.candidates.dtype == (dtype if dtype.itemsize > 2 else torch.float32)
        scores = critic(x, y)
        # Of a distance nothing is left but the rounding where it is 0: scores are clamped there.
        close(found.scores(), scores, 1e-14 if dtype == torch.float64 else 2e-6)
        u, v = (normalize(z) if found.unit else z for z in (found.anchors, found.candidates))
        scale = found.scale.detach() if isinstance(found.scale, torch.Tensor) else found.scale
        close(scale * (u @ v.T), scores, 1e-13 if dtype == torch.float64 else 4e-6)

    def test_concat_has_none(self):
        assert not factorises(Concat(5))
        assert not factorises(lambda a, b: a @ b.T)

    @pytest.mark.parametrize("scale", [1.0, 0.5, -2.0, torch.tensor(0.5), torch.tensor([0.5])])
    @pytest.mark.parametrize("unit", [False, True])
    def test_scale(self, scale, unit):
        x, y = torch.randn(3, 4), torch.randn(5, 4)
        expected = float(scale) * (F.normalize(x) @ F.normalize(y).T if unit else x @ y.T)
        close(Factors(x, y, scale, unit).scores(), expected, 1e-6)

    def test_half_precision_is_raised_and_one_tensor_stays_one(self):
        class Mine:
            def __init__(self, dtype):
                self.dtype = dtype

            def factors(self, x, y):
                raised = x.to(self.dtype)
                return Factors(raised, raised if y is x else y.to(self.dtype), 0.5, unit=True)

        x, y = torch.randn(3, 4), torch.randn(5, 4)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            found = factors_of(Mine(dtype), x, y)
            assert found.anchors.dtype == found.candidates.dtype == (dtype if dtype.itemsize > 2 else torch.float32)
            assert torch.equal(found.scores(), Mine(dtype).factors(x, y).scores())
            assert (found.scale, found.unit) == (0.5, True)
            same = factors_of(Mine(dtype), x, x)
            assert same.anchors is same.candidates
            assert same.scores().dtype == (dtype if dtype.itemsize > 2 else torch.float32)


class TestUnitRows:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("size", [1.0, 1e-14, 1e14, 1e-16, 1e-25, 1e25, 1e-37, 1e37])
    def test_are_those_of_normalize(self, monkeypatch, dtype, size):
        monkeypatch.setattr(factors, "_ROWS", 3)
        x = (torch.randn(7, 4, dtype=torch.float64) * size).to(dtype)
        rows = UnitRows(x, unit=True)
        tolerance = 4 * torch.finfo(dtype).eps
        close(rows[:], normalize(x), tolerance)
        close(rows[2:5], normalize(x)[2:5], tolerance)
        for scale in (3.0, -1e3, 1e-6):
            close(rows.scaled(scale) / scale, normalize(x), tolerance)
        assert rows.largest_norm() == 1.0

    @pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-155, 1e155, 1e200, 1e300])
    def test_doubles_of_any_length(self, monkeypatch, size):
        monkeypatch.setattr(factors, "_ROWS", 3)
        x = torch.randn(7, 4, dtype=torch.float64) * size
        close(UnitRows(x, unit=True)[:], normalize(x), 1e-15)
        x[::2] /= size  # beside ordinary ones
        close(UnitRows(x, unit=True)[:], normalize(x), 1e-15)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_broken_row_stays_broken_and_a_zero_row_zero(self, monkeypatch, dtype):
        monkeypatch.setattr(factors, "_ROWS", 3)
        x = torch.randn(8, 4, dtype=dtype)
        x[1, 2], x[4, 0], x[5] = math.nan, INF, 0.0
        for found in (UnitRows(x, unit=True)[:], UnitRows(x, unit=True).scaled(2.0) / 2, normalize(x)):
            assert found[1].isnan().all()
            assert found[4].isnan().any()
            assert not found[5].any()
            kept = [0, 2, 3, 6, 7]
            close(found[kept], F.normalize(x[kept]), 1e-6)

    def test_edges_of_shape(self):
        for shape in ((0, 4), (3, 0), (0, 0)):
            rows = UnitRows(torch.zeros(shape), unit=True)
            assert rows[:].shape == rows.scaled(2.0).shape == shape
            assert UnitRows(torch.zeros(shape), unit=False).largest_norm() == 0.0

    def test_rows_as_they_are(self):
        x = torch.randn(7, 4)
        rows = UnitRows(x, unit=False)
        assert torch.equal(rows[2:5], x[2:5])
        assert torch.equal(rows.scaled(3.0), 3.0 * x)
        assert rows.largest_norm() == pytest.approx(float(x.norm(dim=1).max()))
        assert math.isnan(UnitRows(torch.full((2, 3), math.nan), unit=False).largest_norm())

    @pytest.mark.parametrize("unit", [False, True])
    @pytest.mark.parametrize("size", [1.0, 1e-20, 1e20])
    def test_gradients_are_pulled_back(self, unit, size):
        x = (torch.randn(7, 4, dtype=torch.float64) * size).requires_grad_()
        upstream = torch.randn(7, 4, dtype=torch.float64)
        u = normalize(x) if unit else x
        (expected,) = torch.autograd.grad(3.0 * u, x, upstream)
        rows = UnitRows(x.detach(), unit=unit)
        for length in (1.0, 0.25):
            found = upstream[2:5].clone()
            rows.pull_back_(found, slice(2, 5), 3.0, length * rows[2:5], length)
            close(found * (size if unit else 1.0), expected[2:5] * (size if unit else 1.0), 1e-13)
