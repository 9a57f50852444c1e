"""The controller against its formula written as loops; decisions; the scalars' order."""

import math

import torch
from conftest import GEOMETRY

from metattn_calibration.controller import CLIP, EPSILON, Controller, Policy, byte_weights, first_argmax, scalars
from metattn_calibration.mechanisms import FULL, Near

HIDDEN, GROUP, KV_HEADS, WIDTH, ROWS = 12, 2, 3, 5, 7


def trained(seed=0):
    torch.manual_seed(seed)
    controller = Controller(HIDDEN, GROUP, KV_HEADS, WIDTH)
    with torch.no_grad():
        for parameter in controller.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        controller.standardise(torch.randn(50, HIDDEN) * 3 + 1, torch.randn(KV_HEADS, 50, 9) * 2 - 1)
    return controller


def drawn():
    torch.manual_seed(9)
    return torch.randn(ROWS, HIDDEN) * 3, torch.randn(KV_HEADS, ROWS, 9) * 12


def gelu(x):
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def by_hand(t, x, s):
    """The contract's formula, with the exported tensors, for one row x [D] and KV head's scalars s [S] of head h."""
    out = torch.zeros(KV_HEADS, len(x), 3, dtype=torch.float64)
    for h in range(KV_HEADS):
        for n in range(len(x)):
            u = [max(-CLIP, min(CLIP, ((s[h, n, i] - t["scalar_mean"][h, i]) * t["scalar_scale"][h, i]).item()))
                 for i in range(9)]
            hidden = [gelu(float(t["x"][r].double() @ x[n].double()) + float(t["bias"][h, r])
                           + sum(float(t["scalars"][h, r, i]) * u[i] for i in range(9))) for r in range(WIDTH)]
            for k in range(3):
                e = float(t["out_bias"][h, k]) + float(t["x_skip"][h, k].double() @ x[n].double())
                e += sum(float(t["out"][h, k, r]) * hidden[r] for r in range(WIDTH))
                e += sum(float(t["scalars_skip"][h, k, i]) * u[i] for i in range(9))
                out[h, n, k] = math.log1p(math.exp(-abs(e))) + max(e, 0) + EPSILON
    return out


def test_controller_equals_its_formula_with_the_exported_tensors():
    controller, (x, s) = trained(), drawn()
    with torch.no_grad():
        assert torch.allclose(controller(x, s).double(), by_hand(controller.folded(), x, s), rtol=2e-5, atol=2e-5)


def test_scalars_are_clipped_after_standardisation():
    controller, (x, s) = trained(), drawn()
    with torch.no_grad():
        assert torch.equal(controller(x, s * 1e6), controller(x, s * 1e7))


def test_scalars_come_in_the_order_of_the_contract():
    heads, rows = KV_HEADS * GROUP, 4
    lse, sink, entropy, odds = (torch.randn(heads, rows) for _ in range(4))
    s = scalars(Near(lse, lse, sink, entropy), odds, GEOMETRY.first, KV_HEADS)
    for h in range(KV_HEADS):
        for n in range(rows):
            expected = [math.log(GEOMETRY.first + n + 1)]
            for i in range(h * GROUP, (h + 1) * GROUP):
                expected += [lse[i, n], sink[i, n], entropy[i, n], odds[i, n]]
            assert torch.allclose(s[h, n], torch.tensor([float(e) for e in expected]))


def test_ties_go_to_the_lower_index():
    score = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert first_argmax(score).tolist() == [0, 1, 0]


def test_an_uncertain_row_goes_to_full_and_offsets_move_the_others():
    b = torch.tensor([[[1.0, 1.01, 1.0], [0.1, 9.0, 0.2], [3.0, 4.0, 0.1]]])
    policy = Policy(torch.zeros(1, 1, 3), eta=0.98)
    assert policy.decide(0, b).tolist() == [[FULL, 1, 1]]
    policy.offsets[0, 0, 0] = 0.5
    assert policy.decide(0, b).tolist() == [[FULL, 1, 0]]
    policy.eta = 1.1
    policy.offsets[0, 0, 0] = -5.0
    assert policy.decide(0, b).tolist() == [[1, 1, 1]]


def test_unfolding_a_controller_that_was_read_changes_no_concentration_and_folds_back():
    plain, (x, s) = trained(), drawn()
    with torch.no_grad():
        read = Controller(HIDDEN, GROUP, KV_HEADS, WIDTH)
        for name, value in plain.folded().items():
            getattr(read, name).copy_(value)
        expected = read(x, s)
        folded = {n: t.clone() for n, t in read.folded().items()}
        read.unfold(torch.randn(60, HIDDEN) * 5 - 2)
        assert read.x_mean.abs().max() > 1
        assert torch.allclose(read(x, s), expected, rtol=1e-4, atol=1e-5)
        for name, value in read.folded().items():
            assert torch.allclose(value, folded[name], rtol=1e-4, atol=1e-5), name


def test_byte_weights_are_the_nearest_integers_times_a_power_of_two():
    torch.manual_seed(3)
    w = torch.randn(4, 2, 70) * torch.logspace(-6, 3, 70)
    rounded = byte_weights(w)
    assert rounded.shape == w.shape and torch.equal(rounded.bfloat16().float(), rounded)
    for begin in (0, 32, 64):  # the last group is short
        group, got = w[..., begin:begin + 32], rounded[..., begin:begin + 32]
        step = torch.exp2((group.abs().amax(-1, keepdim=True) / 127).log2().ceil().clamp(min=-14))
        assert ((got / step) == (got / step).round()).all() and (got / step).abs().max() <= 127
        assert ((got - group).abs() <= step / 2).all()


def test_byte_weights_keep_what_is_one_already():
    w = torch.zeros(3, 64)
    w[0, :32], w[1, 40], w[2, 63] = torch.arange(-16, 16) * 4.0, 127.0, -2.0 ** -14
    assert torch.equal(byte_weights(w), w) and torch.equal(byte_weights(torch.zeros(2, 5)), torch.zeros(2, 5))


def test_the_mean_effect_of_rounding_x_is_taken_back_by_the_biases():
    controller = trained()
    exact, rounded = controller.folded(), controller.folded(lambda w: (w * 4).round() / 4)
    assert not torch.equal(exact["x"], rounded["x"])
    for weights, bias in (("x", "bias"), ("x_skip", "out_bias")):
        at_mean = [t[weights] @ controller.x_mean + t[bias] for t in (exact, rounded)]
        assert torch.allclose(*at_mean, atol=1e-4)
