"""A frozen model's routing parts: one feature map and one controller per layer, and routed attention made of them."""

import dataclasses

import torch
import torch.nn.functional as F

from .attention import attend_causal, attend_rows
from .controller import Controller, Policy, scalars
from .mechanisms import FULL, LINEAR, MAPS, Geometry, linear_far, merge_far, near

WIDTH = 32


@dataclasses.dataclass
class Retrofit:
    geometry: Geometry
    maps: list
    controllers: list
    feature_map: str = "hedgehog"
    width: int = WIDTH

    @classmethod
    def fresh(cls, config, geometry=None, feature_map="hedgehog", seed=0, width=WIDTH):
        maps, controllers = [], []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for _ in range(config.layers):
                maps.append(MAPS[feature_map](config.heads, config.kv_heads, config.head_dim))
                controllers.append(Controller(config.hidden, config.group, config.kv_heads, width))
        return cls(geometry or Geometry(), maps, controllers, feature_map, width)

    def parameters(self):
        return [p for module in self.maps + self.controllers for p in module.parameters()]

    def state(self):
        return {"maps": [m.state_dict() for m in self.maps], "controllers": [c.state_dict() for c in self.controllers]}

    def load_state(self, state):
        for name, modules in (("maps", self.maps), ("controllers", self.controllers)):
            for module, values in zip(modules, state[name]):
                module.load_state_dict(values)


@dataclasses.dataclass
class Rows:
    """What one layer's routing needs of its eligible rows (and of all rows: o_near)."""
    o_near: torch.Tensor    # [Hq, T, d]
    o_linear: torch.Tensor  # [Hq, E, d]
    scalars: torch.Tensor   # [Hkv, E, S]


def rows_of(retrofit, layer, q, k, v):
    geometry, p0 = retrofit.geometry, near(q, k, v, retrofit.geometry)
    value, odds = linear_far(retrofit.maps[layer], q, k, v, p0.lse, geometry)
    o_linear = merge_far(p0.o[:, geometry.first:], value, odds)
    return Rows(p0.o, o_linear, scalars(p0, odds, geometry.first, k.shape[0]))


class RoutedAttention:
    """Closed-loop hard routing; counts decisions. Give an instance to Model.hidden.

    decide(layer, rows, x, q, k, v) -> mechanism [Hkv, E]; the default asks the controllers.
    """

    def __init__(self, retrofit, policy=None, decide=None):
        policy = policy or Policy.neutral(len(retrofit.maps), retrofit.controllers[0].scalars.shape[0])
        self.retrofit, self.policy, kv_heads = retrofit, policy, policy.offsets.shape[1]
        self.decide = decide or self._controlled
        self.counts = torch.zeros(len(retrofit.maps), kv_heads, 3, dtype=torch.int64)

    def _controlled(self, layer, rows, x, q, k, v):
        return self.policy.decide(layer, self.retrofit.controllers[layer](x[self.retrofit.geometry.first:], rows.scalars))

    def __call__(self, layer, x, q, k, v):
        first, group = self.retrofit.geometry.first, q.shape[0] // k.shape[0]
        if q.shape[1] <= first:
            return attend_causal(q, k, v)[0]
        rows = rows_of(self.retrofit, layer, q, k, v)
        choice = self.decide(layer, rows, x, q, k, v)
        self.counts[layer] += torch.stack([(choice == m).sum(-1) for m in range(3)], -1)
        picked = choice.repeat_interleave(group, 0)[..., None]
        exact = rows.o_linear.dtype
        far = torch.where(picked == LINEAR, rows.o_linear, rows.o_near[:, first:].to(exact))
        if (choice == FULL).any():
            full = attend_rows(q, k, v, F.pad(choice == FULL, (first, 0)))
            far = torch.where(picked == FULL, full[:, first:].to(exact), far)
        return torch.cat([rows.o_near[:, :first].to(exact), far], 1)

    def shares(self):
        """[layers, Hkv, 3]: share of each mechanism among the rows seen."""
        return self.counts / self.counts.sum(-1, keepdim=True).clamp(min=1)

    def mean_shares(self):
        total = self.counts.sum((0, 1))
        return (total / total.sum().clamp(min=1)).tolist()
