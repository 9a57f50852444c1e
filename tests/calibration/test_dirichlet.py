"""Closed forms against Monte Carlo and finite differences."""

import math

import pytest
import torch

from metattn_calibration import dirichlet

CASES = [([2.0, 5.0, 3.0], [1.0, 4.0, 2.0]), ([0.8, 3.0, 6.0], [0.51, 1.5, 1.2]), ([30.0, 2.0, 1.0], [0.01, 0.86, 0.71])]
DRAWS = 200_000


def double(x):
    return torch.tensor(x, dtype=torch.float64)


def samples(b):
    torch.manual_seed(1)
    return torch.distributions.Dirichlet(b).sample((DRAWS,)).clamp(min=1e-300)


def mean_and_error(values):
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


@pytest.mark.parametrize("b,p", CASES)
def test_kl_agrees_with_monte_carlo(b, p):
    b, p = double(b), double(p)
    a = samples(b)
    log_ratio = torch.distributions.Dirichlet(b).log_prob(a) - torch.distributions.Dirichlet(p).log_prob(a)
    mean, error = mean_and_error(log_ratio)
    assert abs(dirichlet.kl(b, p).item() - mean) < 5 * error


@pytest.mark.parametrize("b,p", CASES)
def test_expected_log_likelihood_agrees_with_monte_carlo(b, p):
    w = double([0.2, 0.7, 0.1])
    mean, error = mean_and_error((samples(double(b)).log() * w).sum(-1))
    assert abs(dirichlet.expected_log_likelihood(double(b), w).item() - mean) < 5 * error


@pytest.mark.parametrize("b,p", CASES)
def test_expected_entropy_agrees_with_monte_carlo(b, p):
    mean, error = mean_and_error(torch.special.entr(samples(double(b))).sum(-1))
    assert abs(dirichlet.expected_entropy(double(b)).item() - mean) < 5 * error


@pytest.mark.parametrize("b,p", CASES)
def test_gradient_of_kl_is_the_closed_form_and_the_finite_difference(b, p):
    b, p = double(b).requires_grad_(True), double(p)
    dirichlet.kl(b, p).backward()
    with torch.no_grad():
        b0, p0 = b.sum(), p.sum()
        closed = (b - p) * torch.polygamma(1, b) - (b0 - p0) * torch.polygamma(1, b0)
        assert torch.allclose(b.grad, closed, rtol=1e-9)
        for k in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[k] = 1e-6 * b[k].item()
            difference = (dirichlet.kl(b + step, p) - dirichlet.kl(b - step, p)) / (2 * step[k])
            assert abs(difference.item() - b.grad[k].item()) < 1e-5 * (1 + abs(difference.item()))


def test_the_elbo_is_largest_at_prior_plus_evidence():
    p, w, evidence = double([0.6, 1.9, 2.0]), double([0.1, 0.65, 0.25]), 12.0
    best = (p + evidence * w).requires_grad_(True)
    dirichlet.negative_elbo(best, w, p, evidence).backward()
    assert best.grad.abs().max() < 1e-12
    at_best = dirichlet.negative_elbo(best.detach(), w, p, evidence)
    for seed in range(20):
        torch.manual_seed(seed)
        other = best.detach() * torch.exp(0.2 * torch.randn(3, dtype=torch.float64))
        assert dirichlet.negative_elbo(other, w, p, evidence) > at_best


def test_the_elbo_agrees_with_monte_carlo():
    b, p, w = double([2.0, 5.0, 3.0]), double([1.0, 2.0, 2.0]), double([0.3, 0.3, 0.4])
    a = samples(b)
    posterior, prior = torch.distributions.Dirichlet(b), torch.distributions.Dirichlet(p)
    mean, error = mean_and_error(posterior.log_prob(a) - prior.log_prob(a) - 7 * (a.log() * w).sum(-1))
    assert abs(dirichlet.negative_elbo(b, w, p, 7.0).item() - mean) < 5 * error


def test_cost_prior_prefers_what_is_cheap_and_is_flat_without_a_weight():
    prior = dirichlet.cost_prior((1.0, 0.07, 0.07), 1.0)
    assert prior[0] < prior[1] == prior[2]
    assert abs(prior.sum().item() - 5.5) < 1e-5
    assert torch.allclose(dirichlet.cost_prior((1.0, 0.07, 0.07), 0.0), torch.full((3,), 0.5 + 4 / 3))


def test_uncertainty_is_one_when_even_and_zero_when_sure():
    assert abs(dirichlet.uncertainty(torch.full((3,), 1 / 3)).item() - 1) < 1e-6
    assert dirichlet.uncertainty(torch.tensor([0.0, 1.0, 0.0])).item() == 0
    assert abs(dirichlet.uncertainty(double([0.5, 0.5, 0.0])).item() - math.log(2) / math.log(3)) < 1e-12
