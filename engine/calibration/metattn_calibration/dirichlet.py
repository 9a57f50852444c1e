"""Closed forms of the Dirichlet posterior. Last axis: mechanisms (full, linear, local).

The controller's training objective is an exact ELBO: a row is N_eff observations of a soft label w over mechanisms, the
concentrations b are its posterior, and the prior p says what attention costs. Its optimum is b = p + N_eff E[w | x].
"""

import math

import torch

PRIOR_FLOOR, PRIOR_STRENGTH = 0.5, 4.0


def cost_prior(costs, weight=1.0):
    """p_k = floor + strength * softmax_k(-weight c_k): cost enters the objective through the prior only."""
    return PRIOR_FLOOR + PRIOR_STRENGTH * torch.softmax(-weight * torch.as_tensor(costs, dtype=torch.float32), 0)


def kl(b, p):
    """KL[Dir(b) || Dir(p)]."""
    b0, p0 = b.sum(-1), p.sum(-1)
    return (torch.lgamma(b0) - torch.lgamma(p0) + (torch.lgamma(p) - torch.lgamma(b)).sum(-1)
            + ((b - p) * (torch.digamma(b) - torch.digamma(b0)[..., None])).sum(-1))


def expected_log_likelihood(b, w):
    """E[sum_k w_k log a_k] under Dir(b)."""
    return (w * (torch.digamma(b) - torch.digamma(b.sum(-1, keepdim=True)))).sum(-1)


def negative_elbo(b, w, p, evidence):
    """-(evidence * E[log likelihood of w] - KL[Dir(b) || Dir(p)]), per row."""
    return kl(b, p.expand_as(b)) - evidence * expected_log_likelihood(b, w)


def uncertainty(mean):
    """U = H(posterior mean) / ln K, in [0, 1]."""
    return torch.special.entr(mean).sum(-1) / math.log(mean.shape[-1])


def expected_entropy(b):
    """E[H(a)] under Dir(b): the part of U that more evidence would not remove (in nats)."""
    b0 = b.sum(-1, keepdim=True)
    return -(b / b0 * (torch.digamma(b + 1) - torch.digamma(b0 + 1))).sum(-1)
