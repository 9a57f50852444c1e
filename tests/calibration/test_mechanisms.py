"""P0, full, linear and local against the quadratic definition in double precision."""

import math

import pytest
import torch
from conftest import GEOMETRY

from metattn_calibration.attention import attend_causal
from metattn_calibration.errors import CalibrationError
from metattn_calibration.mechanisms import EluMap, FeatureMap, Geometry, linear_far, merge_far, near, pack, unpack

HEADS, KV_HEADS, DIM = 6, 2, 8
LENGTHS = [GEOMETRY.first, GEOMETRY.first + 1, GEOMETRY.first + 16, 97, 160]


def drawn(length, seed=0):
    torch.manual_seed(seed)
    shapes = (HEADS, KV_HEADS, KV_HEADS)
    return [torch.randn(h, length, DIM, dtype=torch.float64) for h in shapes]


def wide(x):
    return x.repeat_interleave(HEADS // KV_HEADS, 0)


def definition(q, k, v, geometry):
    """(scores, near mask, far mask), each [*, T, T], from the words of the contract."""
    length = q.shape[1]
    score = q @ wide(k).transpose(1, 2) / math.sqrt(DIM)
    is_near, is_far = torch.zeros(length, length, dtype=torch.bool), torch.zeros(length, length, dtype=torch.bool)
    for t in range(length):
        a = geometry.block * (max(0, t - geometry.window + 1) // geometry.block)
        for j in range(t + 1):
            is_near[t, j] = j < geometry.sinks or j >= max(a, geometry.sinks)
            is_far[t, j] = geometry.sinks <= j < a
    return score, is_near, is_far


@pytest.mark.parametrize("length", LENGTHS)
def test_near_partial_equals_its_definition(length):
    q, k, v = drawn(length)
    score, is_near, _ = definition(q, k, v, GEOMETRY)
    score = score.masked_fill(~is_near, -math.inf)
    p, lse = score.softmax(-1), score.logsumexp(-1)
    p0, first = near(q, k, v, GEOMETRY), GEOMETRY.first
    assert (p0.o - p @ wide(v)).abs().max() < 1e-12
    assert p0.lse.shape == (HEADS, length - first)
    if length == first:
        return
    for got, expected in ((p0.lse, lse), (p0.sink, p[..., :GEOMETRY.sinks].sum(-1).log()),
                          (p0.entropy, torch.special.entr(p).sum(-1))):
        assert torch.allclose(got, expected[:, first:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", LENGTHS[1:])
@pytest.mark.parametrize("kind", [FeatureMap, EluMap])
def test_linear_equals_its_definition(length, kind):
    q, k, v = drawn(length, 1)
    phi = kind(HEADS, KV_HEADS, DIM).double()
    with torch.no_grad():
        for parameter in phi.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
        score, is_near, is_far = definition(q, k, v, GEOMETRY)
        lse = score.masked_fill(~is_near, -math.inf).logsumexp(-1)
        if kind is FeatureMap:
            y_q, y_k = torch.einsum("hij,htj->hti", phi.w_q, q), torch.einsum("hij,htj->hti", phi.w_k, k)
            f_q, f_k = (torch.cat([y.softmax(-1), (-y).softmax(-1)], -1) for y in (y_q, y_k))
        else:
            f_q, f_k = (torch.where(x > 0, x + 1, x.exp()) for x in (q, k))
        kernel = (f_q @ wide(f_k).transpose(1, 2)) * is_far
        mass = kernel.sum(-1)
        lse_far = mass.log() + phi.log_gain[:, None] + phi.kappa[:, None] * lse
        first = GEOMETRY.first
        p0 = near(q, k, v, GEOMETRY)
        value, odds = linear_far(phi, q, k, v, p0.lse, GEOMETRY)
        assert torch.allclose(odds, (lse_far - lse)[:, first:], atol=1e-11, rtol=0)
        expected_value = (kernel @ wide(v) / mass[..., None])[:, first:]
        assert torch.allclose(value, expected_value, atol=1e-12, rtol=0)
        e_near, e_far = lse.exp()[:, first:, None], lse_far.exp()[:, first:, None]
        merged = (e_near * p0.o[:, first:] + e_far * expected_value) / (e_near + e_far)
        assert torch.allclose(merge_far(p0.o[:, first:], value, odds), merged, atol=1e-12, rtol=0)


def test_full_is_the_near_partial_merged_with_the_exact_far_span():
    q, k, v = drawn(160, 2)
    score, is_near, is_far = definition(q, k, v, GEOMETRY)
    first, far = GEOMETRY.first, score.masked_fill(~is_far, -math.inf)[:, GEOMETRY.first:]
    p0 = near(q, k, v, GEOMETRY)
    merged = merge_far(p0.o[:, first:], far.softmax(-1) @ wide(v), far.logsumexp(-1) - p0.lse)
    assert torch.allclose(attend_causal(q, k, v)[0][:, first:], merged, atol=1e-12, rtol=0)


@pytest.mark.parametrize("geometry", [GEOMETRY, Geometry(), Geometry(64, 1, 64)])
def test_first_is_the_first_position_whose_frontier_passes_the_sinks(geometry):
    t = torch.arange(2 * geometry.first)
    eligible = geometry.frontier(t) > geometry.sinks
    assert eligible.nonzero()[0].item() == geometry.first


def test_rows_before_the_first_eligible_one_are_exact_in_every_mechanism():
    q, k, v = drawn(160, 3)
    assert torch.allclose(near(q, k, v, GEOMETRY).o[:, :GEOMETRY.first],
                          attend_causal(q, k, v)[0][:, :GEOMETRY.first], atol=1e-13, rtol=0)


def test_packing_rows_by_groups_can_be_undone():
    rows = torch.randn(HEADS, 37, DIM)
    packed = pack(rows, KV_HEADS, 3, 16)
    assert packed.shape == (3, KV_HEADS, HEADS // KV_HEADS * 16, DIM)
    assert torch.equal(unpack(packed, HEADS, 16, 37), rows)


@pytest.mark.parametrize("numbers", [(100, 4, 64), (256, 64, 64), (256, 0, 64), (32, 4, 64)])
def test_a_geometry_that_cannot_be_is_refused(numbers):
    with pytest.raises(CalibrationError, match="window|sinks"):
        Geometry(*numbers)
