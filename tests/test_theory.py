"""docs/theory.md: that its links hold, and what it claims beyond the other tests, by symbols and by exact enumeration.

No sampling anywhere: a discrete channel is written out draw by draw, so that an inequality is one up to rounding. A
counterexample is a channel and a critic that can be checked by hand; where the page prints its value, so does the test.
"""

import ast
import functools
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch
import torch.nn.functional as F
from references import INF, Channel, gradient
from test_bounds import CHANNELS, estimate

from contrastive import (
    InnerProduct,
    additive_margin_loss,
    decoupled_loss,
    infonce_bound,
    kpair_loss,
    lifted_loss,
    multi_similarity_loss,
    ovo_loss,
    pairwise_loss,
    sigmoid_loss,
    supcon_loss,
)
from miners import (
    debiased,
    hard_positive,
    hcl,
    nearest_positive,
    semihard,
    semihard_positive,
    topk,
    without_other_positives,
)

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "theory.md"
LINK = re.compile(r"\[(test_\w+\.py)((?:::\w+)+)\]\(\.\./tests/(test_\w+\.py)\)")


@functools.cache
def collected(file):
    """The tests of a file as pytest names them, without running it: `name` and `Class::name`."""
    found = set()
    for node in ast.parse((TESTS / file).read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            found.update(
                f"{node.name}::{child.name}"
                for child in node.body
                if isinstance(child, ast.FunctionDef) and child.name.startswith("test_")
            )
    return found


def test_every_link_names_a_test_that_exists():
    text = PAGE.read_text()
    links = LINK.findall(text)
    assert links
    assert len(links) == text.count("](../tests/") == len(re.findall(r"test_\w+\.py::", text))  # none is misspelt
    for file, name, target in links:
        assert file == target
        assert name.removeprefix("::") in collected(file), f"{file}{name}"


def test_every_statement_links_to_a_test():
    text = re.sub(r"^```.*?^```", "", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    # A statement runs from its number, "**3.2**" or "**Theorem A", to the next one or to the next heading.
    starts = r"^(?=#{2,3} |\*\*\d+\.\d+\*\*|\*\*(?:Lemma|Theorem|Corollary))"
    blocks = [block for block in re.split(starts, text, flags=re.MULTILINE) if block.startswith("**")]
    assert len(blocks) > 20
    for block in blocks:
        assert LINK.search(block), block
    # A claim may be a row of a table as well; the second row of a table is its rule.
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 3
    for row in itertools.chain.from_iterable(table.splitlines()[2:] for table in tables):
        assert LINK.search(row), row
    # Every numbered section holds a statement, and numbers are given once.
    numbers = re.findall(r"^\*\*(\d+\.\d+)\*\*", text, flags=re.MULTILINE)
    assert len(set(numbers)) == len(numbers)
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        assert LINK.search(section) or section.startswith(("Notation", "References")), section


# --- The identity, by symbols ---


def symbolic_infonce(row, target):
    """The paper's definition: log of e^s at the positive over the mean of e^s."""
    return sympy.log(sympy.exp(row[target]) / (sympy.Rational(1, len(row)) * sum(map(sympy.exp, row))))


def symbolic_kpair(row, target):
    return sympy.log(1 + sum(sympy.exp(s - row[target]) for j, s in enumerate(row) if j != target))


@pytest.fixture(params=[2, 3, 4, 5])
def k(request):
    return request.param


class TestSymbolically:
    def test_values(self, k):
        row = sympy.symbols(f"s:{k}", real=True)
        for target in range(k):
            # Both logarithms are of positive numbers: their sum is log K if and only if the product is K.
            product = sympy.exp(symbolic_infonce(row, target) + symbolic_kpair(row, target))
            assert sympy.simplify(product) == k

    def test_all_partial_derivatives(self, k):
        row = sympy.symbols(f"s:{k}", real=True)
        for target in range(k):
            difference = symbolic_infonce(row, target) - (sympy.log(k) - symbolic_kpair(row, target))
            for s in row:
                assert sympy.simplify(sympy.diff(difference, s)) == 0

    def test_the_library_computes_these_expressions(self, k):
        symbols = sympy.symbols(f"s:{k}", real=True)
        scores = (3 * torch.randn(k, k, dtype=torch.float64)).requires_grad_()
        loss = kpair_loss(scores)
        (found,) = gradient(loss, scores)
        for i, row in enumerate(scores.tolist()):
            infonce = symbolic_infonce(symbols, i)
            at = dict(zip(symbols, row, strict=True))
            assert math.log(k) - float(loss[i].detach()) == pytest.approx(float(infonce.evalf(30, at)), abs=1e-14)
            derivatives = [-float(sympy.diff(infonce, s).evalf(30, at)) for s in symbols]
            assert found[i].tolist() == pytest.approx(derivatives, abs=1e-14)

    def test_sohns_formula_as_printed(self, k):
        anchor, positive = sympy.symbols("a:2", real=True), sympy.symbols("p:2", real=True)
        others = [sympy.symbols(f"n{j}_:2", real=True) for j in range(k - 1)]

        def inner(u, v):
            return sum(a * b for a, b in zip(u, v, strict=True))

        printed = sympy.log(1 + sum(sympy.exp(inner(anchor, n) - inner(anchor, positive)) for n in others))
        infonce = symbolic_infonce([inner(anchor, v) for v in (positive, *others)], 0)
        assert sympy.simplify(sympy.exp(infonce + printed)) == k
        for v in (*anchor, *positive, *others[0]):
            assert sympy.simplify(sympy.diff(infonce + printed, v)) == 0


class TestSohn:
    def test_the_kernel_with_an_inner_product_and_one_encoder(self):
        encoder = torch.nn.Linear(5, 3, dtype=torch.float64)
        f, g = encoder(torch.randn(2, 6, 5, dtype=torch.float64))
        printed = torch.stack(
            [torch.log(1 + sum(torch.exp(f[i] @ g[j] - f[i] @ g[i]) for j in range(6) if j != i)) for i in range(6)]
        )
        loss = kpair_loss(InnerProduct()(f, g))
        torch.testing.assert_close(loss, printed, rtol=0, atol=1e-13)
        both = torch.autograd.grad(loss.sum() - printed.sum(), tuple(encoder.parameters()), retain_graph=True)
        assert max(float(difference.abs().max()) for difference in both) <= 1e-12
        assert all(slope.any() for slope in gradient(loss, encoder.weight))

    def test_one_versus_one_lies_above_and_the_mean_of_pairs_below(self):
        scores = 3 * torch.randn(200, 6, dtype=torch.float64)
        targets = torch.randint(6, (200,))
        mean_of_pairs, kernel = pairwise_loss(scores, targets), kpair_loss(scores, targets)
        assert (mean_of_pairs <= kernel + 1e-13).all()
        assert (kernel <= ovo_loss(scores, targets) + 1e-13).all()


# --- What is the kernel and what is not ---


def multi_positive(scores, targets):
    """The sum over positives (columns 0 and 1) inside the log: SupCon-in, MIL-NCE."""
    return torch.logsumexp(scores, 1) - torch.logsumexp(scores[:, :2], 1)


def departure_from_linear(loss, candidates=5):
    """How far e^L u_t is from a linear form in u = e^s: nothing for sum_j w_ij u_j, the kernel."""

    def form(u):
        return loss(u.log(), torch.zeros(len(u), dtype=torch.int64)).exp() * u[:, 0]

    u, v = 0.2 + 2 * torch.rand(2, 50, candidates, dtype=torch.float64)
    return float((form(u) + form(v) - form(u + v)).abs().max())


def weighted_kernel(*log_weights):
    """The kernel with the same weights in every row, whatever the scores."""
    weights = torch.tensor([log_weights], dtype=torch.float64)
    return lambda scores, targets: kpair_loss(scores, targets, log_weights=weights.expand_as(scores))


def hinge(scores, targets):
    return pairwise_loss(scores, targets, link=lambda d: torch.relu(d + 1.0))


class TestTheKernel:
    @pytest.mark.parametrize(
        "loss",
        [
            kpair_loss,
            decoupled_loss,
            weighted_kernel(0.0, 0.7, 0.7, 0.7, 0.7),  # additive margin
            weighted_kernel(-0.3, 0.7, -INF, 0.1, -1.0),  # importance weights, a negative dropped
        ],
        ids=["plain", "decoupled", "margin", "importance"],
    )
    def test_is_linear_in_the_exponentials(self, loss):
        assert departure_from_linear(loss) < 1e-12

    @pytest.mark.parametrize(
        "loss",
        [
            hinge,
            pairwise_loss,
            ovo_loss,
            multi_positive,
            lambda s, t: lifted_loss(s, torch.tensor([True, True, False, False, False]).expand_as(s)),
            lambda s, t: supcon_loss(s, torch.tensor([True, True, False, False, False]).expand_as(s)),
            lambda s, t: sigmoid_loss(s, t, bias=0.0),
            lambda s, t: multi_similarity_loss(s, t, beta=5.0),
        ],
        ids=["hinge", "pairs", "one versus one", "SupCon-in", "lifted", "SupCon-out", "sigmoid", "multi-similarity"],
    )
    def test_what_is_not_one_row_of_it(self, loss):
        assert departure_from_linear(loss) > 1e-2

    def test_of_one_negative_the_logistic_link_is_and_the_hinge_is_not(self):
        assert departure_from_linear(pairwise_loss, candidates=2) < 1e-12
        assert departure_from_linear(hinge, candidates=2) > 1e-2

    def test_a_weight_on_every_negative_is_a_margin(self):
        scores, targets = torch.randn(7, 5, dtype=torch.float64), torch.zeros(7, dtype=torch.int64)
        lowered = kpair_loss(scores - 0.4 * F.one_hot(targets, 5).double(), targets)  # the positive has to win by 0.4
        weighted = weighted_kernel(0.0, *[0.4] * 4)(scores, targets)
        torch.testing.assert_close(weighted, lowered, rtol=0, atol=1e-14)
        torch.testing.assert_close(additive_margin_loss(scores, targets, margin=0.4), lowered, rtol=0, atol=1e-14)

    def test_weights_that_read_the_scores_reach_any_loss(self):
        scores = torch.randn(7, 5, dtype=torch.float64)
        targets = torch.randint(5, (7,))
        loss = hinge(scores, targets)
        rest = scores.scatter(1, targets[:, None], -INF).logsumexp(1) - scores.gather(1, targets[:, None])[:, 0]
        log_weights = (torch.expm1(loss).log() - rest)[:, None].expand(7, 5).scatter(1, targets[:, None], 0.0)
        torch.testing.assert_close(kpair_loss(scores, targets, log_weights=log_weights), loss, rtol=0, atol=1e-13)


# --- Bounds, by enumeration ---


def climb(value, rows, columns, *, starts=2, steps=80):
    """The largest expectation that a critic of any table reaches: random ones, then gradient ascent from them."""
    best = -INF
    for start in range(starts):
        generator = torch.Generator().manual_seed(start)
        critic = (1 + 2 * start) * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
        critic.requires_grad_()
        ascent = torch.optim.Adam([critic], lr=0.1, maximize=True)
        for _ in range(steps):
            ascent.zero_grad()
            current = value(critic)
            best = max(best, float(current.detach()))
            current.backward()
            ascent.step()
    return best


def random_critics(rows, columns, count=20):
    return [
        scale * torch.randn(rows, columns, dtype=torch.float64) for scale in (0.3, 2.0, 20.0) for _ in range(count // 2)
    ]


def joint_of(symbols):
    """A lopsided channel: neither its marginals nor its two directions are alike."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(symbols, symbols, generator=generator, dtype=torch.float64)
    joint = 0.3 * noise + torch.eye(symbols, dtype=torch.float64)
    joint[:, 0] *= 2
    return joint / joint.sum()


def views_of(joint, negatives):
    """A channel whose rows begin with two positives, independent given the anchor, and their mask."""
    channel = Channel(joint, negatives + 1)
    conditional = joint / joint.sum(1, keepdim=True)
    own, others = channel.y[:, :2], channel.y[:, 2:]
    views = conditional[channel.x[:, None], own].prod(1)
    channel.probability = joint.sum(1)[channel.x] * views * joint.sum(0)[others].prod(1)
    return channel, (torch.arange(2 + negatives) < 2).expand(len(channel.x), -1)


def coin(negatives):
    """A fair coin, and another one that has nothing to do with it: I = 0."""
    channel = Channel(torch.full((2, 2), 0.25, dtype=torch.float64), negatives)
    assert channel.information == 0.0
    return channel


def heads(height):
    """A critic that looks at y alone: `height` for heads, 0 for tails."""
    return torch.tensor([[0.0, height], [0.0, height]], dtype=torch.float64)


def dropped_where(condition):
    """The miner that drops the negatives of which `condition(scores, targets)` holds."""

    def miner(scores, targets):
        return torch.zeros_like(scores).masked_fill(condition(scores, targets), -INF).scatter(1, targets[:, None], 0.0)

    return miner


def negatives_only(scores, targets):
    return scores.scatter(1, targets[:, None], -INF)


def keeps_below(scores, targets):
    """Semi-hard without a margin, its weight of 1 spread evenly over the negatives below the positive."""
    kept = (scores < scores.gather(1, targets[:, None])).scatter(1, targets[:, None], False)
    count = kept.sum(1, keepdim=True).clamp_min(1).double()
    return (-count.log()).expand_as(scores).masked_fill(~kept, -INF).scatter(1, targets[:, None], 0.0)


def log_ratio_to_uniform(scores, targets, log_weights, mass):
    """log of (sum_j w_j e^(s_j)) / (W m): a row passes the test of theorem B where it is at least 0."""
    rest = negatives_only(scores, targets)
    count = scores.shape[1] - 1
    return torch.logsumexp(rest + log_weights, 1) - torch.logsumexp(rest, 1) + math.log(count / mass)


class TestTheoremA:
    def test_the_ratio_has_mean_one(self):
        channel = CHANNELS["independent"]
        for critic in random_critics(4, 4):
            loss = kpair_loss(channel.scores(critic), channel.targets())
            assert float(channel.mean(4 * (-loss).exp())) == pytest.approx(1.0, abs=1e-12)

    def test_both_directions_and_their_mean(self):
        joint = joint_of(4)
        there, back = Channel(joint, 3), Channel(joint.T, 3)
        assert there.information == pytest.approx(back.information, abs=1e-14)

        def directions(critic):
            constant = math.log(4)
            return estimate(there, critic, constant=constant), estimate(back, critic.T, constant=constant)

        for critic in random_critics(4, 4):
            assert max(directions(critic)) <= there.information + 1e-12
        best = climb(lambda critic: sum(directions(critic)) / 2, 4, 4)
        assert 0.6 * there.information < best <= there.information + 1e-12

    def test_draws_without_replacement(self):
        # Four pairs; the batch is all of them in random order. x says which half y is in, one bit.
        x, y = torch.tensor([0, 0, 1, 1]), torch.arange(4)
        orders = torch.tensor(list(itertools.permutations(range(4))))
        targets = torch.zeros(len(orders), dtype=torch.int64)

        def value(critic):
            rows = critic[x[orders[:, 0]][:, None], y[orders]]
            return math.log(4) - kpair_loss(rows, targets).mean()

        assert math.log(2) - 1e-2 < climb(value, 2, 4, steps=200) <= math.log(2) + 1e-12

    def test_an_epoch_whose_views_are_drawn_anew(self):
        # Two images, both in every batch; x says which one, y is a fair bit of the first and 0 of the second.
        critic = torch.tensor([[0.0, 50.0], [0.0, -50.0]], dtype=torch.float64)
        losses = [kpair_loss(critic[:, torch.tensor([bit, 0])]).mean() for bit in (0, 1)]
        value = math.log(2) - float(sum(losses)) / 2
        joint = torch.tensor([[0.25, 0.25], [0.5, 0.0]], dtype=torch.float64)
        entropies = [float(torch.special.entr(law).sum()) for law in (joint.sum(0), joint.sum(1), joint)]
        information = entropies[0] + entropies[1] - entropies[2]
        assert value == pytest.approx(math.log(2) / 2, abs=1e-12)
        assert information == pytest.approx(0.2158, abs=1e-4)
        assert value > information

    def test_negatives_that_share_what_the_anchor_tells(self):
        # Z = g(X) is the upper bit of X; the negatives are drawn from p(y | Z): a bound on I(X;Y|Z) and so on I(X;Y).
        joint, bit = joint_of(4), torch.tensor([0, 0, 1, 1])
        channel = Channel(joint, 2)
        given = torch.stack([joint[bit == z].sum(0) for z in (0, 1)])
        given = given / given.sum(1, keepdim=True)
        negatives = given[bit[channel.x][:, None], channel.y[:, 1:]].prod(1)
        channel.probability = joint[channel.x, channel.y[:, 0]] * negatives
        assert float(channel.probability.sum()) == pytest.approx(1.0, abs=1e-12)
        conditional = sum(float(p.sum()) * Channel(p / p.sum(), 1).information for p in (joint[:2], joint[2:]))
        best = climb(lambda critic: estimate(channel, critic, constant=math.log(3)), 4, 4)
        assert 0.3 * conditional < best <= conditional + 1e-12 < channel.information

    def test_two_views_with_log_b(self):
        # B = 2 images of two views each; candidates: the other view, and both views of the other image.
        joint = joint_of(3)
        joint = (joint + joint.T) / 2
        information = Channel(joint, 1).information
        views = torch.tensor(list(itertools.product(range(3), repeat=4)))
        probability = joint[views[:, 0], views[:, 1]] * joint[views[:, 2], views[:, 3]]
        targets = torch.zeros(len(views), dtype=torch.int64)

        def value(critic):
            return math.log(2) - (probability * kpair_loss(critic[views[:, :1], views[:, 1:]], targets)).sum()

        assert climb(value, 3, 3) <= information + 1e-12

    def test_neighbours_from_an_independent_queue(self):
        # The four symbols lie along a line; the queues were drawn by somebody else.
        joint = joint_of(4)
        channel = Channel(joint, 2)
        places = torch.tensor([[1.0, -1.0], [1.0, -0.2], [1.0, 0.3], [1.0, 2.0]], dtype=torch.float64)
        values = []
        for queue in (places[[0]], places[[0, 3]] + 0.1, places[[1, 2, 3]]):
            found = nearest_positive(places[channel.x], queue)  # in batches of all draws
            key = (found[:, None] == queue).all(2).int().argmax(1)
            merged = torch.zeros(len(queue), 4, dtype=torch.float64)
            for x in range(4):
                (own,) = key[channel.x == x].unique().tolist()  # a function of x
                merged[own] += joint[x]
            merged = merged[merged.sum(1) > 0]
            told = float((merged * (merged / merged.sum(1, keepdim=True) / joint.sum(0)).log()).sum())

            def value(critic, key=key):
                return math.log(3) - channel.mean(kpair_loss(critic[key[:, None], channel.y], channel.targets()))

            best = climb(value, len(queue), 4)
            assert 0.5 * told - 1e-4 <= best <= told + 1e-12
            values.append(told)
        assert values[0] == pytest.approx(0.0, abs=1e-12)
        assert 0.1 < values[1] < values[2] < channel.information

    def test_neighbours_from_a_queue_of_the_rows_own_items_exceed(self):
        # Items of tags 0 and 1 and of two bits each; a key is the tag and, shorter, the bit. x is the tag, y the bit.
        height, values = 40.0, []
        for bits in itertools.product((-1.0, 1.0), repeat=2):
            queue = torch.tensor([[1.0, 0.0, 0.1 * bits[0]], [0.0, 1.0, 0.1 * bits[1]]], dtype=torch.float64)
            anchors = nearest_positive(torch.eye(2, 3, dtype=torch.float64), queue)
            scores = height * (anchors[:, 2:] * torch.tensor(bits, dtype=torch.float64) > 0)
            values.append(float(math.log(2) - kpair_loss(scores.double()).mean()))
        assert sum(values) / 4 == pytest.approx(math.log(2) / 2, abs=1e-12)

    @pytest.mark.parametrize("name", ["lopsided", "independent"])
    def test_the_hardest_of_several_positives(self, name):
        # Two other views of the anchor's image, and two other images. Where I is 0 an easier positive would exceed it.
        joint = {"lopsided": joint_of(3), "independent": torch.full((3, 3), 1 / 9, dtype=torch.float64)}[name]
        channel, positives = views_of(joint, 2)

        def value(critic):
            scores = channel.scores(critic)
            targets = hard_positive(scores, positives)
            alone = without_other_positives(scores, targets, positives)
            return math.log(3) - channel.mean(kpair_loss(alone, targets))

        best = climb(value, 3, 3)
        assert 0.2 * channel.information - 0.05 < best <= channel.information + 1e-12

    def test_it_is_an_expectation(self):
        channel = coin(3)
        values = math.log(4) - kpair_loss(channel.scores(heads(2.0)), channel.targets())
        assert float(values.max()) > 1.0  # a row of luck
        assert float(channel.mean(values)) < 0


class TestTriplet:
    def test_log_2_less_the_loss(self):
        joint = joint_of(4)
        one, many = Channel(joint, 1), Channel(joint, 3)
        for channel, loss in ((one, kpair_loss), (many, pairwise_loss)):
            best = climb(lambda f, c=channel, g=loss: estimate(c, f, constant=math.log(2), loss=g), 4, 4)
            assert 0.4 * channel.information < best <= min(channel.information, math.log(2)) + 1e-12

    def test_more_negatives_raise_the_ceiling(self):
        joint = torch.eye(4, dtype=torch.float64) / 4  # I = log 4
        sure = 50 * torch.eye(4, dtype=torch.float64)
        values = [
            float(estimate(Channel(joint, n), sure, constant=math.log(1 + n))) / math.log(1 + n) for n in (1, 2, 3)
        ]
        caps = [math.log(1 + n) for n in (1, 2, 3)]
        assert values[0] * caps[0] < values[1] * caps[1] < values[2] * caps[2] < math.log(4)


class TestTheoremB:
    @pytest.mark.parametrize("mass", [0.1, 1.0, 2.0, 3.0])
    def test_the_ratio_has_mean_at_most_one(self, mass):
        channel = CHANNELS["independent"]
        for critic in random_critics(4, 4):
            spread = weighted_kernel(0.0, *[math.log(mass / 3)] * 3)
            ratio = (1 + mass) * (-spread(channel.scores(critic), channel.targets())).exp()
            assert float(channel.mean(ratio)) <= 1 + 1e-12

    def test_beyond_n_it_has_not(self):
        channel, critic = coin(1), heads(3.0)
        ratio = 4 * (-weighted_kernel(0.0, math.log(3.0))(channel.scores(critic), channel.targets())).exp()
        assert float(channel.mean(ratio)) > 1.1

    @pytest.mark.parametrize("mass", [0.3, 2.0, 3.0])
    def test_a_constant_weight(self, mass):
        channel, weights = CHANNELS["noisy"], weighted_kernel(0.0, *[math.log(mass / 3)] * 3)

        def value(critic):
            return math.log1p(mass) - channel.mean(weights(channel.scores(critic), channel.targets()))

        assert climb(value, 4, 4) <= channel.information + 1e-12

    def test_more_weight_or_more_columns_cost_value_only(self):
        scores, targets = torch.randn(50, 6, dtype=torch.float64), torch.zeros(50, dtype=torch.int64)
        plain = kpair_loss(scores, targets)
        assert (weighted_kernel(0.0, *[0.8] * 5)(scores, targets) >= plain).all()
        synthetic = torch.cat([scores, 3 * torch.randn(50, 4, dtype=torch.float64)], 1)
        assert (kpair_loss(synthetic, targets) >= plain).all()

    def test_hcl_reads_less_than_uniform(self):
        scores, targets = 2 * torch.randn(50, 6, dtype=torch.float64), torch.zeros(50, dtype=torch.int64)
        for beta in (0.5, 1.0, 4.0):
            mined = kpair_loss(scores, targets, log_weights=hcl(beta)(scores, targets))
            assert (mined > kpair_loss(scores, targets)).all()

    def test_rows_that_fail_may_fall_back_to_uniform_weights(self):
        def with_fallback(scores, targets):
            weights = keeps_below(scores, targets)
            passes = log_ratio_to_uniform(scores, targets, weights, 1.0) >= -1e-12
            uniform = torch.full_like(weights, -math.log(3)).scatter(1, targets[:, None], 0.0)
            return torch.where(passes[:, None], weights, uniform)

        for name in ("independent", "noisy"):
            channel = CHANNELS[name]
            value = {
                miner: climb(lambda f, c=channel, m=miner: estimate(c, f, constant=math.log(2), miner=m), 4, 4)
                for miner in (with_fallback, keeps_below)
            }
            assert value[with_fallback] <= channel.information + 1e-12
            assert value[keeps_below] > channel.information + 0.01

    def test_top_k_with_log_k_exceeds_by_a_constant_critic(self):
        channel = coin(3)
        for kept in (1, 2):
            value = float(estimate(channel, heads(0.0), constant=math.log(4), miner=topk(kept)))
            assert value == pytest.approx(math.log(4 / (1 + kept)), abs=1e-12)
            assert value > channel.information

    def test_a_mass_chosen_row_by_row_certifies_nothing(self):
        # One negative, kept where it scores below the positive: its own mass is 1 there and 0 elsewhere.
        channel = coin(1)
        scores, targets = channel.scores(heads(30.0)), channel.targets()
        weights = keeps_below(scores, targets)
        passing = weights[:, 1] == 0
        loss = kpair_loss(scores, targets, log_weights=weights)
        per_row = channel.mean(torch.log1p(passing.double()) - loss)
        assert float(per_row) == pytest.approx(math.log(2) / 4, abs=1e-9)
        share = channel.mean(passing.double())
        passing_only = channel.mean(torch.where(passing, math.log(2) - loss, 0.0)) / share
        assert float(passing_only) == pytest.approx(math.log(2), abs=1e-9)


def told(log_weights):
    """The miner that answers what it was told."""
    return lambda scores, targets, *, anchors=None: log_weights


def drawn_from(proposal, joint, negatives):
    """A channel whose negatives come from q(y|x), and its log-weights log p(y)/q(y|x), the target's included."""
    channel = Channel(joint, negatives)
    channel.probability = joint[channel.x, channel.y[:, 0]] * proposal[channel.x[:, None], channel.y[:, 1:]].prod(1)
    log_weights = (joint.sum(0) / proposal).log()[channel.x[:, None], channel.y]
    return channel, log_weights


JOINT = joint_of(4)
CONDITIONAL = JOINT / JOINT.sum(1, keepdim=True)
SKEWED = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).expand(4, 4)
PROPOSALS = {
    "skewed": SKEWED,  # independent of x
    "half": (CONDITIONAL + JOINT.sum(0)) / 2,
    "hard": 0.9 * CONDITIONAL + 0.1 * SKEWED,
}


class TestTheoremC:
    @pytest.mark.parametrize("name", PROPOSALS)
    def test_weights_in_the_denominator_alone(self, name):
        channel, log_weights = drawn_from(PROPOSALS[name], JOINT, 3)

        def value(critic):
            return estimate(channel, critic, constant=math.log(4), miner=told(log_weights))

        assert climb(value, 4, 4) <= channel.information + 1e-12
        for critic in random_critics(4, 4):
            assert float(value(critic)) <= channel.information + 1e-12

    def test_the_ratio_has_mean_one(self):
        independent = JOINT.sum(1, keepdim=True) * JOINT.sum(0)
        channel, log_weights = drawn_from(PROPOSALS["hard"], independent, 3)
        for critic in random_critics(4, 4):
            loss = kpair_loss(channel.scores(critic), channel.targets(), log_weights=log_weights)
            assert float(channel.mean(4 * (-loss).exp())) == pytest.approx(1.0, abs=1e-12)

    def test_a_known_hard_proposal_is_tighter_than_uniform_draws(self):
        channel, log_weights = drawn_from(PROPOSALS["half"], JOINT, 3)
        hard = climb(lambda f: estimate(channel, f, constant=math.log(4), miner=told(log_weights)), 4, 4)
        uniform = Channel(JOINT, 3)
        assert hard > climb(lambda f: estimate(uniform, f, constant=math.log(4)), 4, 4) + 0.01

    @pytest.mark.parametrize("name", PROPOSALS)
    def test_weights_at_the_numerator_cost_their_mean_logarithm(self, name):
        channel, log_weights = drawn_from(PROPOSALS[name], JOINT, 3)
        for critic in random_critics(4, 4):
            scores, targets = channel.scores(critic), channel.targets()
            textbook = kpair_loss(scores + log_weights, targets)  # logQ: the corrected scores, top and bottom
            subtracted = math.log(4) - channel.mean(textbook) - channel.mean(log_weights[:, 0])
            theorem = math.log(4) - channel.mean(kpair_loss(scores, targets, log_weights=log_weights))
            assert float(subtracted) == pytest.approx(float(theorem), abs=1e-11)

    def test_what_is_forgotten_is_a_divergence(self):
        channel, log_weights = drawn_from(PROPOSALS["skewed"], JOINT, 1)
        marginal = JOINT.sum(0)
        divergence = (marginal * (marginal / SKEWED[0]).log()).sum()
        assert float(channel.mean(log_weights[:, 0])) == pytest.approx(float(divergence), abs=1e-12)

    def test_textbook_logq_exceeds(self):
        channel, log_weights = unfair_coin()
        value = math.log(2) - channel.mean(kpair_loss(channel.scores(heads(0.0)) + log_weights, channel.targets()))
        assert float(value) == pytest.approx(UNFAIR["textbook"], abs=1e-12)
        assert float(value) > 0.05

    def test_weights_on_the_negatives_alone_exceed_by_a_constant_critic(self):
        channel, log_weights = unfair_coin()
        negatives = told(log_weights * torch.tensor([0.0, 1.0]))
        value = estimate(channel, heads(0.0), constant=math.log(2), miner=negatives)
        assert float(value) == pytest.approx(UNFAIR["negatives"], abs=1e-12)
        assert float(value) > 0.05

    def test_no_weights_exceed(self):
        channel, _ = unfair_coin()
        value = estimate(channel, heads(math.log(3.0)), constant=math.log(2))
        assert float(value) == pytest.approx(UNFAIR["none"], abs=1e-12)
        assert float(value) > 0.05

    def test_inside_a_pool_the_ceiling_is_the_pools(self):
        # Pools of M = 5 that hold the positive, and one negative drawn from q(j | x, pool): log K is log 2. The pool is
        # exchangeable, so that nothing depends on where the positive lies: position 0.
        symbols, size = 4, 5
        joint = 0.97 * torch.eye(symbols, dtype=torch.float64) / symbols + 0.03 / symbols**2
        channel = Channel(joint, size - 1)
        x, pool = channel.x.repeat_interleave(size), channel.y.repeat_interleave(size, 0)
        negative = torch.arange(size).repeat(len(channel.x))
        hardness = 3 * torch.eye(symbols, dtype=torch.float64)[x[:, None], pool]
        proposal = 0.9 * torch.softmax(hardness, 1) + 0.1 / size
        probability = channel.probability.repeat_interleave(size) * proposal.gather(1, negative[:, None])[:, 0]
        assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
        columns = torch.stack([torch.zeros_like(negative), negative], 1)
        log_weights = -math.log(size) - proposal.gather(1, columns).log()  # p/q, with p = 1/M exactly
        drawn, targets = pool.gather(1, columns), torch.zeros(len(x), dtype=torch.int64)

        def value(critic):
            loss = kpair_loss(critic[x[:, None], drawn], targets, log_weights=log_weights)
            return math.log(2) - (probability * loss).sum()

        best = climb(value, symbols, symbols, starts=1, steps=100)
        assert math.log(2) + 0.1 < best <= min(channel.information, math.log(size)) + 1e-12

    def test_draws_shared_by_a_batch(self):
        # Pools of M = 4 with the positives of two anchors, in places 0 and 1 (the pool is exchangeable), and a negative
        # for both, by the mean of their proposals. Anchor 0 knows that its positive is not in place 1: prior 3.
        symbols, size = 3, 4
        draws = torch.tensor(list(itertools.product(range(symbols), repeat=2 + size)))
        hardness = 3 * torch.eye(symbols, dtype=torch.float64)
        anchors, pool = draws[:, :2], draws[:, 2:]
        shared = sum(0.45 * torch.softmax(hardness[anchors[:, i, None], pool], 1) for i in (0, 1)) + 0.1 / size
        foreign = shared[:, 1]
        negative = torch.arange(size).repeat(len(draws))
        x, pool, shared = (z.repeat_interleave(size, 0) for z in (anchors, pool, shared))
        columns = torch.stack([torch.zeros_like(negative), negative], 1)
        log_weights = -math.log(size - 1) - shared.gather(1, columns).log()
        log_weights[negative == 1, 1] = -INF
        drawn, targets = pool.gather(1, columns), torch.zeros(len(x), dtype=torch.int64)

        def losses(critic):
            return kpair_loss(critic[x[:, :1], drawn], targets, log_weights=log_weights)

        for noise in (0.03, 1.0):  # all but certain, and I = 0
            joint = (1 - noise) * torch.eye(symbols, dtype=torch.float64) / symbols + noise / symbols**2
            of_pool = joint[anchors[:, 0], draws[:, 2]] * joint[anchors[:, 1], draws[:, 3]]
            of_pool = of_pool * joint.sum(0)[draws[:, 4:]].prod(1)
            probability = of_pool.repeat_interleave(size) * shared.gather(1, negative[:, None])[:, 0]
            assert float(probability.sum()) == pytest.approx(1.0, abs=1e-12)
            information = Channel(joint, 1).information
            best = climb(lambda f, p=probability: math.log(2) - (p * losses(f)).sum(), symbols, symbols, starts=1)
            assert information / 4 - 0.4 < best <= information + 1e-12
        for critic in random_critics(symbols, symbols):  # the law is Q itself
            ratio = float((probability * 2 * (-losses(critic)).exp()).sum())
            assert ratio == pytest.approx(1 - float((of_pool * foreign**2).sum()), abs=1e-12)


def unfair_coin():
    """I = 0; y is heads three times in four, a negative once in four. Weights p/q: heads 3, tails 1/3."""
    joint = torch.tensor([0.25, 0.75], dtype=torch.float64).expand(2, 2) / 2
    proposal = torch.tensor([0.75, 0.25], dtype=torch.float64).expand(2, 2)
    return drawn_from(proposal, joint, 1)


# By hand, with K = 2 and the four cases (y, negative): (heads, heads), (heads, tails), (tails, heads), (tails, tails).
UNFAIR = {
    # -log(w_1 / (w_1 + w_2)) is log 2 where both are alike, log(10/9) and log 10 where not.
    "textbook": math.log(2) - (6 / 16 * math.log(2) + 9 / 16 * math.log(10 / 9) + 1 / 16 * math.log(10)),
    "negatives": math.log(2) - (1 / 4 * math.log(4) + 3 / 4 * math.log(4 / 3)),
    # The critic log 3 for heads: e^(s_2 - s_1) is 1, 1/3, 3, 1.
    "none": math.log(2) - (6 / 16 * math.log(2) + 9 / 16 * math.log(4 / 3) + 1 / 16 * math.log(4)),
}


def classes(count, negatives, height, miner, most=None):
    """log K - L, y = x on `count` equal classes (I = log count), the critic `height` where y is x and 0 elsewhere.

    Rows differ in their number of false negatives, which is binomial; beyond `most` the largest loss is assumed.
    """
    numbers = torch.arange((negatives if most is None else most) + 1)
    rows = torch.where(torch.arange(negatives) < numbers[:, None], height, 0.0).double()
    rows = torch.cat([torch.full_like(rows[:, :1], height), rows], 1)
    share = torch.tensor(1 / count, dtype=torch.float64)
    probability = torch.distributions.Binomial(negatives, share).log_prob(numbers.double()).exp()
    targets = torch.zeros(len(rows), dtype=torch.int64)
    loss = kpair_loss(rows, targets, log_weights=miner(rows, targets))
    rest = (1 - probability.sum()).clamp_min(0) * math.log1p(2 * negatives)
    return float(math.log1p(negatives) - (probability * loss).sum() - rest)


class TestNever:
    """Theorem D: for each an explicit channel and critic whose log K - L lies above I."""

    def test_decoupled_has_no_ceiling(self):
        # y = x, one bit. A false negative costs 0, any other reads the height: log 2 + height / 2.
        channel = Channel(torch.eye(2, dtype=torch.float64) / 2, 1)
        for height in (1.0, 10.0, 1000.0):
            critic = height * torch.eye(2, dtype=torch.float64)
            value = float(estimate(channel, critic, constant=math.log(2), loss=decoupled_loss))
            assert value == pytest.approx(math.log(2) + height / 2, abs=1e-9)

    def test_debiased_with_the_right_prior(self):
        # One bit, two negatives, tau+ = 1/2: a row with one false negative costs nothing once it is corrected.
        value = classes(2, 2, 40.0, debiased(0.5))
        assert value == pytest.approx(0.75 * math.log(3), abs=1e-12)
        assert value > math.log(2) + 0.1

    def test_debiased_with_ten_classes(self):
        value = classes(10, 50, 10.0, debiased(0.1))
        assert value == pytest.approx(3.49, abs=0.005)
        assert value > math.log(10) + 1

    def test_hcl_with_a_prior_by_hand(self):
        # With one negative HCL is the debiased loss, whatever beta; e^-a = 0.8 and tau+ = 3/4.
        channel = coin(1)
        for beta in (0.0, 1.0, 4.0):
            miner = hcl(beta, 0.75, min_score=-20.0)
            value = float(estimate(channel, heads(-math.log(0.8)), constant=math.log(2), miner=miner))
            assert value == pytest.approx(math.log(10 / 9) / 4, abs=1e-12)

    def test_hcl_with_a_small_prior(self):
        value = classes(1000, 10_000, math.log(1000) / 2, hcl(1.0, 0.1, min_score=-20.0), most=60)
        assert value > math.log(1000) + 2

    def test_semihard(self):
        # A constant critic scores no negative below the positive: no loss, so that any constant > 0 exceeds I = 0.
        channel = coin(3)
        value = estimate(channel, heads(0.0), constant=1e-3, miner=semihard(INF))
        assert float(value) == pytest.approx(1e-3, abs=1e-15)

    def test_semihard_positives(self):
        # Heads wherever there is one, three times in four, whatever the negative.
        channel, positives = views_of(torch.full((2, 2), 0.25, dtype=torch.float64), 1)
        scores = channel.scores(heads(math.log(3.0)))
        targets = semihard_positive(scores, positives)
        loss = kpair_loss(without_other_positives(scores, targets, positives), targets)
        by_hand = math.log(2) / 2 - 3 / 8 * math.log(4 / 3) - 1 / 8 * math.log(4)
        assert float(math.log(2) - channel.mean(loss)) == pytest.approx(by_hand, abs=1e-12)
        assert by_hand > 0.06

    def test_elimination_of_the_hardest(self):
        channel = coin(2)
        miner = dropped_where(
            lambda s, t: F.one_hot(negatives_only(s, t).argmax(1), s.shape[1]).bool()  # the suspected false negative
        )
        value = float(estimate(channel, heads(math.log(3.0)), constant=math.log(2), miner=miner))
        by_hand = math.log(2) / 2 - 3 / 8 * math.log(4 / 3) - 1 / 8 * math.log(4)
        assert value == pytest.approx(by_hand, abs=1e-12)
        assert value > 0.06

    def test_elimination_above_a_threshold(self):
        channel = coin(2)
        miner = dropped_where(lambda s, t: s > 0.7)
        assert float(estimate(channel, heads(0.0) + 1.0, constant=1e-3, miner=miner)) == pytest.approx(1e-3, abs=1e-15)

    def test_negatives_that_share_a_cause(self):
        # Z is a fair bit, drawn once a batch. Given Z = 0 the pairs (x, y) are 00, 01, 11 with 1/4, 1/2, 1/4;
        # given Z = 1 all bits are flipped. x and y alone are two fair coins: I(X;Y) = 0.
        given = torch.tensor([[[0.25, 0.5], [0.0, 0.25]], [[0.25, 0.0], [0.5, 0.25]]], dtype=torch.float64)
        assert torch.equal(given.mean(0), torch.full((2, 2), 0.25, dtype=torch.float64))

        def value(critic, candidates):
            total = 0.0
            for table in given:
                channel = Channel(table, candidates - 1)
                total = total + estimate(channel, critic, constant=math.log(candidates)) / 2
            return total

        # The critic log 2 where y is x and 0 elsewhere.
        found = float(value(math.log(2) * torch.eye(2, dtype=torch.float64), 2))
        by_hand = 3 / 8 * math.log(2) - 1 / 4 * math.log(3 / 2) - 1 / 8 * math.log(3)
        assert found == pytest.approx(by_hand, abs=1e-12)
        assert found > 0.02
        assert climb(lambda f: value(f, 2), 2, 2) == pytest.approx(by_hand, abs=1e-6)
        assert climb(lambda f: value(f, 6), 2, 2) > by_hand + 0.01

    @pytest.mark.parametrize(("covariance", "reads"), [(0.5, 0.0597), (0.9, 0.2055)])
    def test_gaussians_that_share_a_cause(self, covariance, reads):
        def pairs(shape, covariance, generator):
            first, second = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
            return first, covariance * first + math.sqrt(1 - covariance**2) * second

        def batches(count, seed, *, shared):
            generator = torch.Generator().manual_seed(seed)
            cause = pairs((count, 1 if shared else 16), -covariance, generator)
            noise = pairs((count, 16), covariance, generator)
            return cause[0] + noise[0], cause[1] + noise[1]

        def value(theta, x, y):
            y = y[:, None]
            scores = theta[0] * x[:, :, None] * y + theta[1] * y**2 + theta[2] * y
            return math.log(16) - kpair_loss(scores.flatten(0, 1), torch.arange(16).repeat(len(x))).mean()

        def best(x, y):
            theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
            ascent = torch.optim.LBFGS([theta], max_iter=30, line_search_fn="strong_wolfe")

            def closure():
                ascent.zero_grad()
                loss = -value(theta, x, y)
                loss.backward()
                return loss

            ascent.step(closure)
            return theta.detach()

        theta = best(*batches(2000, 0, shared=True))
        assert float(value(theta, *batches(4000, 1, shared=True))) == pytest.approx(reads, abs=0.004)
        theta = best(*batches(2000, 2, shared=False))
        assert float(value(theta, *batches(4000, 3, shared=False))) < 0.001

    def test_stale_scores(self):
        # A critic that adds a constant to every score says nothing, unless the negatives were scored before it did.
        channel = coin(3)
        scores = channel.scores(heads(0.0)) + torch.tensor([5.0, 0.0, 0.0, 0.0])
        value = math.log(4) - channel.mean(kpair_loss(scores, channel.targets()))
        assert float(value) == pytest.approx(math.log(4) - math.log1p(3 * math.exp(-5)), abs=1e-12)

    def test_what_remains_is_the_uniform_bound(self):
        # The honest companion: whatever a critic was trained with, theorem A holds for it on fresh pairs.
        channel = CHANNELS["noisy"]
        critic = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
        ascent = torch.optim.Adam([critic], lr=0.1, maximize=True)
        for _ in range(60):
            ascent.zero_grad()
            mined = estimate(channel, critic, constant=math.log(4), miner=debiased(0.5, min_score=-20.0))
            mined.backward()
            ascent.step()
        found = infonce_bound(channel.scores(critic), channel.targets(), miner=debiased(0.5, min_score=-20.0))
        assert found.status == "not a bound"
        assert float(mined.detach()) > channel.information + 0.05
        assert 0 < float(estimate(channel, critic.detach(), constant=math.log(4))) <= channel.information


class TestCaps:
    def test_of_theorem_c(self):
        # log K - E log w_t, reached where the positive outscores everything.
        channel, log_weights = drawn_from(PROPOSALS["half"], JOINT, 3)
        cap = math.log(4) - channel.mean(log_weights[:, 0])
        for critic in random_critics(4, 4):
            scores = channel.scores(critic)
            assert (kpair_loss(scores, channel.targets(), log_weights=log_weights) >= log_weights[:, 0] - 1e-12).all()
        alone = torch.tensor([[500.0, 0.0, 0.0, 0.0]], dtype=torch.float64).expand_as(log_weights)
        reached = math.log(4) - channel.mean(kpair_loss(alone, channel.targets(), log_weights=log_weights))
        assert float(reached) == pytest.approx(float(cap), abs=1e-12)

    def test_a_certain_critic_falls_short_of_log_k(self):
        # y = x on m classes: false negatives cost what the cap promises. By hand: L = log(1 + n), n of them binomial.
        for count in (2, 10, 1000):
            share = [math.comb(7, n) * (1 / count) ** n * (1 - 1 / count) ** (7 - n) for n in range(8)]
            loss = sum(p * math.log1p(n) for n, p in enumerate(share))
            value = classes(count, 7, 60.0, hcl(0.0))
            assert value == pytest.approx(math.log(8) - loss, abs=1e-12)
            assert value < min(math.log(8), math.log(count))


class TestCorrections:
    def test_the_best_critic_is_the_log_ratio_and_not_the_log_conditional(self):
        joint = joint_of(4)
        channel = Channel(joint, 3)
        conditional = (joint / joint.sum(1, keepdim=True)).log()
        ratio = conditional - joint.sum(0).log()
        critic = (ratio + torch.randn(4, 1, dtype=torch.float64)).requires_grad_()  # any c(x) may be added
        value = estimate(channel, critic, constant=math.log(4))
        (slope,) = torch.autograd.grad(value, critic)
        best = float(value.detach())
        assert float(slope.abs().max()) < 1e-12
        assert climb(lambda f: estimate(channel, f, constant=math.log(4)), 4, 4) <= best + 1e-12
        assert float(estimate(channel, conditional, constant=math.log(4))) < best - 0.005
        # Normalised over x, from y's side, the log-conditional p(y|x) is one: it is log-ratio + c(y).
        back = Channel(joint.T, 3)
        transposed = conditional.T.clone().requires_grad_()
        (slope,) = torch.autograd.grad(estimate(back, transposed, constant=math.log(4)), transposed)
        assert float(slope.abs().max()) < 1e-12

    def test_a_denominator_of_the_positive_reads_nothing(self):
        scores = torch.randn(5, 5, dtype=torch.float64)
        repeated = scores.diag()[:, None].expand(5, 5)  # e^f(x_i, y_i) in every term of the sum over j
        assert (math.log(5) - kpair_loss(repeated)).abs().max() < 1e-14

    def test_leaving_the_positive_out_gives_an_upper_bound(self):
        joint = joint_of(4)
        back = Channel(joint.T, 3)  # anchors y, candidates x
        exact = (joint / joint.sum(1, keepdim=True)).log().T  # log p(y|x)
        left_out = estimate(back, exact, constant=math.log(3), loss=decoupled_loss)
        kept = estimate(back, exact, constant=math.log(4))
        assert float(kept) < back.information < float(left_out)
        # With any other critic it is neither.
        assert float(estimate(back, 0 * exact, constant=math.log(3), loss=decoupled_loss)) < back.information

    def test_the_gaussians_of_figure_4c(self):
        cause = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
        own = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
        zero = torch.zeros(2, dtype=torch.float64)
        # A pair (x_i, y_i) shares Z and its own noise; x_i with another's y_j shares Z alone.
        pairs = torch.distributions.MultivariateNormal(zero, cause + own)
        crossed = cause.clone().fill_diagonal_(2.0)
        others = torch.distributions.MultivariateNormal(zero, crossed)
        assert float(torch.distributions.kl_divergence(pairs, others)) == pytest.approx(0.10814, abs=5e-6)
        rho = float((cause + own)[0, 1]) / 2
        assert -0.5 * math.log1p(-(rho**2)) == pytest.approx(0.020411, abs=5e-7)

        # K -> infinity: E s(x, y) - E log E[e^s(x, y') | Z] with s = w x y, by Gauss-Hermite quadrature.
        nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(40))
        weights = weights / weights.sum()
        # x and Z_2 by Cholesky of their covariance [[2, -.5], [-.5, 1]]; y' given Z has mean Z_2 and variance 1.
        x = math.sqrt(2) * nodes
        z = -0.5 / math.sqrt(2) * nodes[:, None] + math.sqrt(1 - 0.125) * nodes

        def limit(w):
            inner = torch.logsumexp(w * x[:, None, None] * (z[:, :, None] + nodes) + weights.log(), 2)
            return w * 0.4 - float((weights[:, None] * weights * inner).sum())

        for w in (0.1, 0.3, 0.45, 0.6):
            assert limit(w) == pytest.approx(0.9 * w - w**2, abs=1e-6)
        assert limit(0.45) == pytest.approx(0.2025, abs=1e-6)
