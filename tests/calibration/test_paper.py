"""The paper's setting: formulas against loops in double, causality, the ELBO's gradient, the gate."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from metattn_calibration import dirichlet
from metattn_calibration.paper import measure, mechanisms, train
from metattn_calibration.paper.model import LINKS, PaperModel, Setting

SMALL = Setting(hidden=32, heads=2, ffn=48, window=5, width=8, length=24)
ROUTED = [link for link in LINKS if link]


def lively(link, seed=3, setting=SMALL):
    """A model whose controllers are far from even and whose weights are of ordinary size."""
    model = PaperModel.fresh(setting, link, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.3 if tensor.dim() > 1 else 0.1))
    return model


def in_double(model):
    for controller in model.controllers:
        controller.double()
    weights = {n: t.detach().double() for n, t in model.weights.items()}
    return PaperModel(model.setting, model.link, weights, model.controllers)


def drawn(count=2, seed=0):
    return torch.randint(0, 256, (count, SMALL.length), generator=torch.Generator().manual_seed(seed))


def test_the_mechanisms_equal_their_definition_row_by_row():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 19, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    got = mechanisms.outputs(q, k, v, window=5)

    def softmax_over(b, h, t, first):
        score = [(q[b, h, t] @ k[b, h, j]).item() / math.sqrt(8) for j in range(first, t + 1)]
        weights = [math.exp(s - max(score)) for s in score]
        return sum(w * v[b, h, j] for w, j in zip(weights, range(first, t + 1))) / sum(weights)

    def phi(x):
        return torch.where(x > 0, x + 1, x.exp())

    for b in range(2):
        for h in range(3):
            state, mass = torch.zeros(8, 8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
            for t in range(19):
                state += torch.outer(phi(k[b, h, t]), v[b, h, t])
                mass += phi(k[b, h, t])
                for index, expected in ((0, softmax_over(b, h, t, 0)), (2, softmax_over(b, h, t, max(0, t - 4))),
                                        (1, phi(q[b, h, t]) @ state / (phi(q[b, h, t]) @ mass))):
                    assert (got[index, b, h, t] - expected).abs().max() < 1e-12
    assert torch.equal(got[0], mechanisms.full(q, k, v))


def test_the_prior_is_the_papers_formula_of_its_costs():
    assert all(abs(p - (0.01 + 1 - c)) < 1e-12 for p, c in zip(mechanisms.PRIOR, mechanisms.COSTS))


def test_what_a_row_reads_is_counted_in_tokens_over_dense():
    costs = mechanisms.read_costs(length=64, window=16, dim=32)
    assert costs[63].tolist() == [1, (32 * 32 + 32) * 4 / (2 * 2 * 32) / 64, 16 / 64]
    assert costs[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("link", ROUTED)
def test_the_controller_is_the_contracts_formula(link):
    model = in_double(lively(link))
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    got, p = model.energies(1, x), model.controllers[1].values()
    for t in range(7):
        u = torch.stack([x[0, t].pow(2).sum().sqrt() / math.sqrt(32), torch.tensor(t / 23, dtype=torch.float64)])
        before = p["x"] @ x[0, t] + p["scalars"][0] @ u + p["bias"][0]
        hidden = 0.5 * before * (1 + torch.tanh(math.sqrt(2 / math.pi) * (before + 0.044715 * before ** 3)))
        assert (got[0, t] - (p["out"][0] @ hidden + p["out_bias"][0])).abs().max() < 1e-12
    out = model.forward(drawn())
    assert all(torch.allclose(m.sum(-1), torch.ones(2, 24, dtype=torch.float64)) for m in out.mean)
    if link == "softplus":
        for m, b in zip(out.mean, out.concentrations):
            assert torch.allclose(m, b / b.sum(-1, keepdim=True)) and b.min() >= SMALL.epsilon


@pytest.mark.parametrize("link", LINKS)
def test_later_tokens_change_nothing(link):
    model, ids = in_double(lively(link)), drawn()
    changed = ids.clone()
    changed[:, 11:] = (changed[:, 11:] + 7) % 256
    with torch.no_grad():
        before, after = (model.forward(i).logits for i in (ids, changed))
        shorter = model.forward(ids[:, :11]).logits
    assert torch.equal(before[:, :11], after[:, :11]) and (before[:, 11:] - after[:, 11:]).abs().max() > 1e-3
    assert (before[:, :11] - shorter).abs().max() < 1e-12


def test_the_mixture_of_certain_weights_is_the_mechanism_alone():
    model, ids = in_double(lively("softplus")), drawn()
    plain = PaperModel(SMALL, None, model.weights, [])
    with torch.no_grad():
        forced = model.forward(ids, lambda mean: F.one_hot(torch.zeros(mean.shape[:-1], dtype=torch.int64), 3).double())
        assert (forced.logits - plain.forward(ids).logits).abs().max() < 1e-12


@pytest.mark.parametrize("energy", [-60.0, -10.0, -4.6, -1.0, 0.0, 3.0, 30.0, 300.0])
def test_the_gradient_of_the_kl_in_the_energies_is_finite_and_moderate(energy):
    e = torch.tensor([[[energy, 0.3, -0.2]]], requires_grad=True)
    kl = train.prior_kl([F.softplus(e) + 0.01])
    kl.backward()
    assert torch.isfinite(kl) and kl >= 0 and torch.isfinite(e.grad).all() and e.grad.abs().max() < 3
    b = (F.softplus(e.detach().double()) + 0.01)[0, 0]
    p = torch.tensor(mechanisms.PRIOR, dtype=torch.float64)
    closed = (b - p) * torch.polygamma(1, b) - (b.sum() - p.sum()) * torch.polygamma(1, b.sum())
    expected = closed * e.detach().double().sigmoid()[0, 0]
    assert torch.allclose(e.grad.double()[0, 0], expected, rtol=1e-3, atol=1e-5)


def test_the_objective_is_the_loss_plus_the_weighted_kl_of_every_layer():
    model, ids = lively("softplus"), drawn(3)
    total, loss, kl = train.objective(model, ids, 0.25)
    out = model.forward(ids[:, :-1])
    prior = torch.tensor(mechanisms.PRIOR, dtype=torch.float64)
    by_hand = sum(torch.distributions.kl_divergence(torch.distributions.Dirichlet(b.double()),
                                                    torch.distributions.Dirichlet(prior)).mean() for b in out.concentrations)
    assert abs(kl.item() - by_hand.item()) < 1e-9 * by_hand.item()
    assert abs(total.item() - loss.item() - 0.25 * kl.item()) < 1e-5
    total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert train.objective(lively("softmax"), ids, 0.25)[2] == 0.0


def test_models_of_one_seed_start_from_the_same_weights():
    models = [PaperModel.fresh(SMALL, link, 5) for link in LINKS]
    assert all(torch.equal(t, m.weights[n]) for m in models[1:] for n, t in models[0].weights.items())
    for a, b in zip(models[0].controllers, models[1].controllers):
        assert all(torch.equal(v, b.values()[n]) for n, v in a.values().items())


@pytest.mark.parametrize("eta", [0.0, 0.5, 0.9, 1.0])
def test_the_gate_and_its_figures_are_those_of_a_loop_over_rows(eta):
    model, cut = lively("softplus"), drawn(5, seed=8)
    found = measure.evaluate(model, cut, eta)
    with torch.no_grad():
        out = model.forward(cut, measure.gate(eta))
    names = ("full", "linear", "local", "cost", "expected_cost", "read", "mixture")
    sums, rows = dict.fromkeys(names, 0.0), 0
    for mean_layer, weights_layer in zip(out.mean, out.weights):
        for b in range(5):
            for t in range(SMALL.length):
                mean, rows, n = mean_layer[b, t], rows + 1, t + 1
                u = dirichlet.uncertainty(mean).item()
                is_mixed = eta == 0 or (eta < 1 and u >= eta)
                w = mean.tolist() if is_mixed else [float(k == mean.argmax().item()) for k in range(3)]
                assert weights_layer[b, t].tolist() == w
                read = [1.0, min(1.0, (16 * 16 + 16) / 16 / n), min(n, 5) / n]
                sums["cost"] += sum(a * c for a, c in zip(w, mechanisms.COSTS))
                sums["expected_cost"] += sum(a * c for a, c in zip(mean.tolist(), mechanisms.COSTS))
                sums["read"] += 1.0 if is_mixed else sum(a * c for a, c in zip(w, read))
                sums["mixture"] += is_mixed
                for name, value in zip(names, w):
                    sums[name] += value
    for name in names:
        assert abs(found[name] - sums[name] / rows) < 1e-6
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), cut[:, 1:].flatten()).item()
    assert abs(found["nll"] - expected) < 1e-5 and found["predictions"] == 5 * 23
    assert 0 < measure.evaluate(model, cut, 0.9)["mixture"] < 1  # the middle of the sweep tells rows apart


def test_a_held_out_text_is_cut_into_whole_windows():
    cut = measure.windows(torch.arange(100), 24)
    assert cut.shape == (4, 24) and cut.flatten().tolist() == list(range(96))


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [train.rate(s, 200) for s in range(200)]
    assert rates[9] == max(rates) == train.RATE and rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert abs(rates[-1] / train.RATE - 0.1) < 1e-3


def test_a_loss_is_learned():
    """A text of one repeated word is predicted almost surely after few steps."""
    setting = dataclasses.replace(SMALL, layers=1)
    ids = torch.tensor(list(b"abcdefg " * 200))
    model = PaperModel.fresh(setting, "softplus", 1)
    optimiser, generator = torch.optim.AdamW(model.parameters(), 1e-2), torch.Generator().manual_seed(1)
    for _ in range(60):
        total, loss, _ = train.objective(model, train.excerpts(ids, setting.length, 8, generator), 0.01)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    assert loss.item() < 0.5
