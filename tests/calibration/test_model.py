"""The frozen model and routed attention inside it."""

import torch
from conftest import GEOMETRY

from metattn_calibration.mechanisms import LINEAR, near
from metattn_calibration.model import Model
from metattn_calibration.retrofit import Retrofit, RoutedAttention, rows_of


def routed(loaded, seed=3):
    """A retrofit whose random controllers use all three mechanisms."""
    retrofit = Retrofit.fresh(loaded.config, GEOMETRY, seed=seed, width=4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for phi in retrofit.maps:
            for parameter in phi.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for controller in retrofit.controllers:
            for parameter in controller.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return retrofit


def plain_logits(checkpoint, ids):
    """The model once more, written straight from its definition in double precision."""
    c, w = checkpoint.config, {n: t.double() for n, t in checkpoint.tensors.items()}
    stream, half = w["model.embed_tokens.weight"][ids], c.head_dim // 2

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[name + ".weight"]

    def turned(x):
        out = torch.empty_like(x)
        for i in range(half):
            angle = torch.arange(len(ids)).double() * c.rope_base ** (-2 * i / c.head_dim)
            out[:, :, i] = x[:, :, i] * angle.cos() - x[:, :, i + half] * angle.sin()
            out[:, :, i + half] = x[:, :, i + half] * angle.cos() + x[:, :, i] * angle.sin()
        return out

    for l in range(c.layers):
        p = f"model.layers.{l}."
        x = norm(stream, p + "input_layernorm")
        q, k, v = ((x @ w[p + f"self_attn.{n}_proj.weight"].T).view(len(ids), -1, c.head_dim).transpose(0, 1) for n in "qkv")
        q, k = turned(q), turned(k)
        k, v = (t.repeat_interleave(c.group, 0) for t in (k, v))
        score = q @ k.transpose(1, 2) / c.head_dim ** 0.5
        score = score + torch.full((len(ids), len(ids)), float("-inf")).triu(1)
        o = (score.softmax(-1) @ v).transpose(0, 1).reshape(len(ids), -1)
        stream = stream + o @ w[p + "self_attn.o_proj.weight"].T
        x = norm(stream, p + "post_attention_layernorm")
        gate, up = (x @ w[p + f"mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        stream = stream + (gate * gate.sigmoid() * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(stream, "model.norm") @ w["model.embed_tokens.weight"].T


def test_forward_equals_the_definition(loaded, ids):
    model = Model(loaded, torch.float64)
    with torch.no_grad():
        assert (model.logits(model.dense(ids)) - plain_logits(loaded, ids)).abs().max() < 1e-9


def test_float32_and_bfloat16_stay_close_to_double(loaded, ids):
    with torch.no_grad():
        exact = Model(loaded, torch.float64)
        nll = exact.nll(exact.dense(ids), ids).mean()
        for dtype, bound in ((torch.float32, 0.01), (torch.bfloat16, 0.1)):
            model = Model(loaded, dtype)
            assert abs(model.nll(model.dense(ids), ids).mean() - nll) < bound


def test_forced_to_full_the_model_is_unmodified(loaded, ids):
    model, retrofit = Model(loaded, torch.float32), routed(loaded)
    everything_full = RoutedAttention(retrofit, decide=lambda layer, rows, *rest: torch.zeros(rows.scalars.shape[:2]).long())
    with torch.no_grad():  # rounding of K and V to bfloat16 may go the other way: sums of a BLAS depend on the shape
        assert (model.hidden(ids, everything_full) - model.dense(ids)).abs().max() < 3e-3


def test_each_mechanism_gives_its_own_output(loaded, ids):
    model, retrofit = Model(loaded, torch.float32), routed(loaded)
    seen = []

    def attention(layer, x, q, k, v):
        rows, first = rows_of(retrofit, layer, q, k, v), GEOMETRY.first
        for choice, expected in ((1, rows.o_linear), (2, near(q, k, v, GEOMETRY).o[:, first:])):
            forced = RoutedAttention(retrofit, decide=lambda *a: torch.full(rows.scalars.shape[:2], choice))
            got = forced(layer, x, q, k, v)
            seen.append(torch.equal(got[:, first:], expected) and torch.equal(got[:, :first], rows.o_near[:, :first]))
        return rows.o_near

    with torch.no_grad():
        model.hidden(ids, attention)
    assert len(seen) == 2 * loaded.config.layers and all(seen)


def test_logits_do_not_depend_on_later_tokens(loaded, ids):
    model, retrofit = Model(loaded, torch.float64), routed(loaded)
    for module in retrofit.maps + retrofit.controllers:
        module.double()
    changed = ids.clone()
    changed[121:] = (changed[121:] + 7) % loaded.config.vocab
    with torch.no_grad():
        attention = RoutedAttention(retrofit)
        a = model.hidden(ids, attention)
        b, short = (model.hidden(x, RoutedAttention(retrofit)) for x in (changed, ids[:121]))
    assert (attention.counts.sum((0, 1)) > 20).all(), "all three mechanisms must take part"
    assert (a[:121] - b[:121]).abs().max() < 1e-10
    assert (a[:121] - short).abs().max() < 1e-10
    assert (a[121:] - b[121:]).abs().max() > 1e-3


def test_counts_add_up_to_the_eligible_rows(loaded, ids):
    model, attention = Model(loaded, torch.float32), RoutedAttention(routed(loaded))
    with torch.no_grad():
        model.hidden(ids, attention)
    assert (attention.counts.sum(-1) == len(ids) - GEOMETRY.first).all()
    assert abs(sum(attention.mean_shares()) - 1) < 1e-6
    assert attention.shares()[..., LINEAR].shape == (loaded.config.layers, loaded.config.kv_heads)


def test_recomputing_layers_changes_no_gradient(loaded, ids):
    gradients = []
    for save_memory in (False, True):
        model, retrofit = Model(loaded, torch.float32), routed(loaded)
        model.hidden(ids, lambda l, x, q, k, v: rows_out(retrofit, l, q, k, v), save_memory).sin().sum().backward()
        gradients.append(retrofit.maps[0].w_k.grad)
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def rows_out(retrofit, layer, q, k, v):
    rows = rows_of(retrofit, layer, q, k, v)
    return torch.cat([rows.o_near[:, :GEOMETRY.first], rows.o_linear], 1)
