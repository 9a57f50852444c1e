"""A small Llama-like character model whose attention is a posterior-mean mixture of three mechanisms, decided per token.

Batched and trainable, unlike the frozen `metattn_calibration.model.Model`, which a test holds it to. Weights carry their
Hugging Face names, so exporting is writing them down.
"""

import dataclasses

import torch
import torch.nn.functional as F

from ..checkpoint import ModelConfig, expected_shapes
from ..controller import Controller, energies
from ..model import rms_norm, rotary_tables, rotate
from . import mechanisms

LINKS = ("softplus", "softmax", None)  # Dirichlet concentrations; the prior-free baseline; plain full attention


@dataclasses.dataclass(frozen=True)
class Setting:
    """The paper's where it says (layers, hidden, length, epsilon, temperature), ours where it does not."""
    layers: int = 2
    hidden: int = 128
    length: int = 64
    heads: int = 4
    ffn: int = 352
    window: int = 16
    width: int = 32          # of the controller's hidden layer
    epsilon: float = 0.01
    temperature: float = 1.0

    @property
    def config(self):
        return ModelConfig(self.layers, self.hidden, self.heads, self.heads, self.hidden // self.heads, vocab=256,
                           ffn=self.ffn, max_positions=self.length)


@dataclasses.dataclass
class Output:
    logits: torch.Tensor      # [B, T, 256]
    mean: list                # per layer [B, T, 3], the posterior mean; empty without a link
    concentrations: list      # per layer [B, T, 3]; empty unless the link is softplus
    weights: list             # per layer [B, T, 3], what the outputs were mixed with


class PaperModel:
    """link: of LINKS. weights: Hugging Face name -> tensor. controllers: one a layer, none without a link."""

    def __init__(self, setting, link, weights, controllers):
        self.setting, self.link, self.weights, self.controllers = setting, link, weights, controllers
        dtype = weights["model.norm.weight"].dtype
        self.cos, self.sin = rotary_tables(setting.config, dtype)
        self.rounds = False  # K and V to bfloat16, as the engine stores them

    @classmethod
    def fresh(cls, setting, link, seed):
        """Models of one seed start from the same weights whatever their link."""
        generator, weights = torch.Generator().manual_seed(seed), {}
        shapes = {**expected_shapes(setting.config), "lm_head.weight": (256, setting.hidden)}
        for name, shape in shapes.items():
            if len(shape) == 1:
                value = torch.ones(shape)
            else:
                value = torch.randn(shape, generator=generator) * 0.02
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    value /= (2 * setting.layers) ** 0.5
            weights[name] = value.requires_grad_(True)
        return cls(setting, link, weights, cls.fresh_controllers(setting, link, seed))

    @staticmethod
    def fresh_controllers(setting, link, seed):
        if link is None:
            return []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            controllers = [Controller(setting.hidden, 1, 1, setting.width, count=2) for _ in range(setting.layers)]
            for controller in controllers:
                torch.nn.init.normal_(controller.out, std=0.02)
        for controller in controllers:  # the paper's controller is the MLP alone
            controller.x_skip.requires_grad_(False), controller.scalars_skip.requires_grad_(False)
        return controllers

    def parameters(self):
        parts = list(self.weights.values()) + [p for c in self.controllers for p in c.parameters()]
        return [p for p in parts if p.requires_grad]

    def energies(self, layer, x):
        """x [B, T, D] -> [B, T, 3]. Features beside x: its root mean square, and the position over the longest."""
        batch, length, hidden = x.shape
        size = x.norm(dim=-1) / hidden ** 0.5
        position = torch.arange(length, dtype=x.dtype) / (self.setting.length - 1)
        scalars = torch.stack([size, position.clamp(max=1).expand(batch, length)], -1)
        rows = energies(self.controllers[layer].values(), x.reshape(-1, hidden), scalars.reshape(1, -1, 2))
        return rows[0].view(batch, length, 3)

    def _attend(self, layer, x, out, decide):
        c, p = self.setting.config, f"model.layers.{layer}.self_attn."
        q, k, v = (F.linear(x, self.weights[f"{p}{n}_proj.weight"]).unflatten(-1, (c.heads, c.head_dim)).transpose(1, 2)
                   for n in "qkv")
        q, k = rotate(q, self.cos, self.sin), rotate(k, self.cos, self.sin)
        if self.rounds:
            k, v = k.bfloat16().to(k.dtype), v.bfloat16().to(v.dtype)
        if self.link is None:
            o = mechanisms.full(q, k, v)
        else:
            e = self.energies(layer, x)
            if self.link == "softplus":
                b = F.softplus(e) + self.setting.epsilon
                mean = b / b.sum(-1, keepdim=True)
                out.concentrations.append(b)
            else:
                mean = (e / self.setting.temperature).softmax(-1)
            out.mean.append(mean)
            out.weights.append(mean if decide is None else decide(mean))
            shares = out.weights[-1].permute(2, 0, 1)[:, :, None, :, None]  # [3, B, 1, T, 1]
            o = (shares * mechanisms.outputs(q, k, v, self.setting.window)).sum(0)
        return F.linear(o.transpose(1, 2).flatten(-2), self.weights[p + "o_proj.weight"])

    def forward(self, ids, decide=None):
        """ids [B, T]. decide(mean [B, T, 3]) -> weights of the mechanisms; default: the mean itself."""
        w, epsilon, out = self.weights, self.setting.config.norm_eps, Output(None, [], [], [])
        stream = F.embedding(ids, w["model.embed_tokens.weight"])
        for layer in range(self.setting.layers):
            p = f"model.layers.{layer}."
            stream = stream + self._attend(layer, rms_norm(stream, w[p + "input_layernorm.weight"], epsilon), out, decide)
            y = rms_norm(stream, w[p + "post_attention_layernorm.weight"], epsilon)
            gate, up = F.linear(y, w[p + "mlp.gate_proj.weight"]), F.linear(y, w[p + "mlp.up_proj.weight"])
            stream = stream + F.linear(F.silu(gate) * up, w[p + "mlp.down_proj.weight"])
        out.logits = F.linear(rms_norm(stream, w["model.norm.weight"], epsilon), w["lm_head.weight"])
        return out
