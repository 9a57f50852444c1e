"""The fast kernel and the plain path compute one thing."""

import math

import pytest
import torch

from metattn_calibration import attention


def softmax_by_hand(q, k, v, mask):
    score = torch.einsum("bhid,bhjd->bhij", q.double(), k.double()) / math.sqrt(q.shape[-1]) + mask
    return torch.einsum("bhij,bhjd->bhid", score.softmax(-1), v.double()), score.logsumexp(-1)


@pytest.mark.parametrize("function", [attention.attend, attention.attend_plain])
@pytest.mark.parametrize("rows,keys", [(7, 19), (300, 310)])
def test_masked_attention_equals_the_definition(function, rows, keys):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, rows, 16), torch.randn(3, 2, keys, 16), torch.randn(3, 2, keys, 16)
    mask = torch.zeros(rows, keys).masked_fill_(torch.rand(rows, keys) < 0.4, -math.inf)
    mask[:, 0] = 0
    o, lse = function(q, k, v, mask=mask)
    expected, expected_lse = softmax_by_hand(q, k, v, mask.double())
    assert (o - expected).abs().max() < 2e-6
    assert (lse - expected_lse).abs().max() < 2e-6


@pytest.mark.parametrize("function", [attention.attend, attention.attend_plain])
def test_causal_attention_equals_the_definition(function):
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, 2, 530, 8) for _ in range(3))
    mask = torch.full((530, 530), -math.inf).triu(1)
    o, lse = function(q, k, v, causal=True)
    expected, expected_lse = softmax_by_hand(q, k, v, mask.double())
    assert (o - expected).abs().max() < 2e-6
    assert (lse - expected_lse).abs().max() < 4e-6


def test_both_paths_have_the_same_gradients():
    torch.manual_seed(2)
    gradients = []
    for function in (attention.attend, attention.attend_plain):
        torch.manual_seed(3)
        q, k, v = (torch.randn(1, 2, 40, 8, requires_grad=True) for _ in range(3))
        function(q, k, v, causal=True)[0].sin().sum().backward()
        gradients.append((q.grad, k.grad, v.grad))
    for a, b in zip(*gradients):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("length", [40, 700])
def test_the_gradient_of_chosen_rows_is_that_of_all_rows_where_the_others_get_none(length):
    torch.manual_seed(4)
    tensors = [torch.randn(heads, length, 8, requires_grad=True) for heads in (6, 3, 3)]
    chosen = torch.rand(3, length) < torch.tensor([0.0, 0.3, 0.9])[:, None]
    weight = torch.randn(6, length, 8) * chosen.repeat_interleave(2, 0)[..., None]
    o, lse = attention.attend_causal(*tensors)
    expected = torch.autograd.grad((o * weight).sum(), tensors, retain_graph=True)
    got_o = attention.attend_chosen(*tensors, chosen, lambda: (o.detach(), lse))
    assert (got_o - o).abs().max() < 1e-6
    for a, b in zip(expected, torch.autograd.grad((got_o * weight).sum(), tensors)):
        assert (a - b).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("length", [40, 700])
def test_chosen_rows_alone_are_as_among_all(length, dtype):
    torch.manual_seed(5)
    q, k, v = (torch.randn(heads, length, 8).to(dtype) for heads in (6, 3, 3))
    chosen = torch.rand(3, length) < torch.tensor([0.0, 0.3, 1.1])[:, None]
    difference = (attention.attend_rows(q, k, v, chosen) - attention.attend_causal(q, k, v)[0]).abs()
    assert difference[chosen.repeat_interleave(2, 0)].max() <= (2e-2 if dtype == torch.bfloat16 else 2e-6)
