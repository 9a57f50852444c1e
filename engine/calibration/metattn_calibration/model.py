"""A frozen Llama-like model whose attention is a function given by the caller.

One sequence at a time, no padding. Every layer calls `attention(layer, x, q, k, v) -> o [Hq, T, d]` with x the output
of the attention pre-norm and q, k after RoPE. What it returns feeds the rest of the layer, so a routing policy is one
function and routing is closed loop by construction. The residual stream is float32; products run in bfloat16 where the
CPU multiplies it natively. K and V are rounded to bfloat16 always, as the engine stores them.
"""

import pathlib

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute

from .attention import attend_causal

HEAD_ROWS = 128  # rows of logits held at once: small enough to stay in the cache


def best_dtype():
    """bfloat16 where the CPU has instructions for it, else float32."""
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return torch.float32
    return torch.bfloat16 if "amx_bf16" in flags or "avx512_bf16" in flags else torch.float32


def rms_norm(x, weight, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def rotary_tables(config, dtype):
    """cos and sin [max_positions, d / 2]."""
    position = torch.arange(config.max_positions, dtype=torch.float64)
    angle = position[:, None] / config.rope_base ** (torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x, cos, sin):
    """RoPE on [*, T, d]: turns the pairs (i, i + d/2)."""
    (a, b), length = x.chunk(2, -1), x.shape[-2]
    a, b, cos, sin = a.to(cos.dtype), b.to(cos.dtype), cos[:length], sin[:length]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Model:
    def __init__(self, checkpoint, dtype=None):
        self.config, self.dtype = checkpoint.config, dtype or best_dtype()
        c, w = self.config, checkpoint.tensors
        self.embedding = w["model.embed_tokens.weight"].to(self.exact)
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        self.head = head.to(self.dtype).contiguous()
        self.final_norm = w["model.norm.weight"].to(self.exact)
        self.layers = [self._layer(w, l) for l in range(c.layers)]
        self.cos, self.sin = rotary_tables(c, self.exact)

    @property
    def exact(self):
        """Type of everything that is not a matrix product."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def _layer(self, w, l):
        p = f"model.layers.{l}."

        def joined(names, suffix):
            parts = [w.get(p + n + suffix) for n in names]
            return None if parts[0] is None else torch.cat(parts).to(self.dtype).contiguous()

        qkv, gate_up = [f"self_attn.{n}_proj" for n in "qkv"], ["mlp.gate_proj", "mlp.up_proj"]
        return {
            "norm1": w[p + "input_layernorm.weight"].to(self.exact),
            "norm2": w[p + "post_attention_layernorm.weight"].to(self.exact),
            "qkv": joined(qkv, ".weight"), "qkv_bias": joined(qkv, ".bias"),
            "o": joined(["self_attn.o_proj"], ".weight"), "gate_up": joined(gate_up, ".weight"),
            "down": joined(["mlp.down_proj"], ".weight"),
        }

    def norm(self, x, weight):
        return rms_norm(x, weight, self.config.norm_eps)

    def project(self, layer, x):
        """Normed x [T, D] -> q, k (after RoPE), v; k and v hold bfloat16 values whatever their type."""
        c, weights = self.config, self.layers[layer]
        y = F.linear(x.to(self.dtype), weights["qkv"], weights["qkv_bias"])
        y = y.view(len(x), c.heads + 2 * c.kv_heads, c.head_dim).transpose(0, 1)
        q, k = (rotate(part, self.cos, self.sin) for part in (y[:c.heads], y[c.heads:c.heads + c.kv_heads]))
        v = y[c.heads + c.kv_heads:].contiguous()
        if self.dtype != torch.float64:  # double is for checks of formulas: nothing is rounded there
            k, v = k.bfloat16(), v.bfloat16()
        return q.to(self.dtype), k.to(self.dtype), v.to(self.dtype)

    def block(self, layer, stream, attention):
        """One layer: residual stream in, residual stream out."""
        weights = self.layers[layer]
        x = self.norm(stream, weights["norm1"])
        o = attention(layer, x, *self.project(layer, x))
        o = o.to(self.dtype).transpose(0, 1).reshape(len(stream), -1)
        stream = stream + F.linear(o, weights["o"]).to(self.exact)
        y = F.linear(self.norm(stream, weights["norm2"]).to(self.dtype), weights["gate_up"])
        gate, up = y.chunk(2, -1)
        return stream + F.linear(F.silu(gate) * up, weights["down"]).to(self.exact)

    def hidden(self, ids, attention, save_memory=False):
        """Final normed hidden states [T, D]. save_memory: layers are computed again in the backward pass."""
        stream = self.embedding[ids]
        for layer in range(self.config.layers):
            if save_memory:
                stream = recompute(self.block, layer, stream, attention, use_reentrant=False)
            else:
                stream = self.block(layer, stream, attention)
        return self.norm(stream, self.final_norm)

    def dense(self, ids):
        """Hidden states of the unmodified model."""
        return self.hidden(ids, full_attention)

    def logits(self, hidden):
        return F.linear(hidden.to(self.dtype), self.head).to(self.exact)

    def nll(self, hidden, ids):
        """Negative log likelihood of ids[1:], one per token."""
        parts = []
        for begin in range(0, len(ids) - 1, HEAD_ROWS):
            end = min(begin + HEAD_ROWS, len(ids) - 1)
            parts.append(F.cross_entropy(self.logits(hidden[begin:end]), ids[begin + 1:end + 1], reduction="none"))
        return torch.cat(parts)


def full_attention(layer, x, q, k, v):
    return attend_causal(q, k, v)[0]
