"""Ablations of the layer-local stage: rows once, controllers trained per variant with all else equal, losses closed loop.

Every variant has the feature maps of the shipped controller, the gate off, and a tilt on full that gives the wanted share,
closed loop, on text kept aside from the calibration; losses are on held-out text, in Python. The tuned controller itself
stands beside them.
"""

import dataclasses

import numpy as np
import torch

from .. import data, dirichlet, evaluate, settle, train_controllers
from ..attention import attend_causal
from ..controller import Controller, Policy
from ..mechanisms import FULL, LINEAR, LOCAL, squared_error
from ..retrofit import Retrofit, RoutedAttention
from .costs import Costs

NO_GATE, NEVER = 1.01, -1e4


@dataclasses.dataclass
class Bench:
    """What the variants share."""
    job: object            # found, held: calibration text; retrofit: the shipped one
    description: dict
    sample: object
    harm_of: torch.Tensor  # sensitivities [layers, Hkv]
    share: float
    steps: int
    length: int
    test: list             # data.Source
    count: int             # excerpts of each
    known: dict = dataclasses.field(default_factory=dict)

    @property
    def delta(self):
        return train_controllers.threshold(self.sample, self.harm_of, min(0.9, self.share * 1.2))

    def targets(self):
        """[layers, Hkv, N, 3], as training makes them."""
        return torch.stack([train_controllers.labels(r, s, self.delta) for r, s in zip(self.sample.layers, self.harm_of)])

    def kept_aside(self):
        chosen = settle.texts(self.job.run, self.job.held, (self.length,), 1)
        key = "kept aside"
        if key not in self.known:
            self.known[key] = [evaluate.losses(self.job.model, evaluate.full_attention, ids) for _, ids in chosen]
        return chosen, self.known[key]


class Joined(torch.nn.Module):
    """A controller that reads the scalars of all query heads; with one decision (kv_heads = 1) it is repeated for every head."""

    def __init__(self, inner, kv_heads):
        super().__init__()
        self.inner, self.kv_heads = inner, kv_heads

    def forward(self, x, s):
        return self.inner(x, joined(s, len(self.inner.scalars))).expand(self.kv_heads, -1, -1)


def joined(scalars, copies):
    """[Hkv, N, 1 + 4 g] -> [copies, N, 1 + 4 Hq]: log n, then the scalars of all query heads."""
    return torch.cat([scalars[0, :, :1], *scalars[..., 1:]], -1).expand(copies, -1, -1)


class Tally:
    """Decisions per position, summed over layers and KV heads; what RoutedAttention asks is passed on."""

    def __init__(self, inner):
        self.inner, self.full, self.linear = inner, 0, 0

    def __call__(self, *arguments):
        choice = self.inner(*arguments)
        self.full = self.full + (choice == FULL).sum(0).numpy()
        self.linear = self.linear + (choice == LINEAR).sum(0).numpy()
        return choice


class TalliedSubject(evaluate.Subject):
    """Keeps a Tally of every forward pass."""

    def routed(self, decide=None):
        attention = super().routed(decide)
        attention.decide = Tally(attention.decide)
        self.__dict__.setdefault("tallies", []).append(attention.decide)
        return attention


class Oracle:
    """Sees the exact errors: full where the better of linear and local would harm most."""

    def __init__(self, harm_of, threshold):
        self.harm_of, self.threshold, self.margins = harm_of, threshold, []

    def __call__(self, layer, rows, x, q, k, v):
        first, kv_heads = rows.o_near.shape[1] - rows.o_linear.shape[1], k.shape[0]
        exact = attend_causal(q, k, v)[0][:, first:]
        linear, local = (squared_error(o, exact, kv_heads) * self.harm_of[layer][:, None]
                         for o in (rows.o_linear, rows.o_near[:, first:]))
        least = torch.minimum(linear, local)
        self.margins.append(least[:, ::5].flatten())
        return torch.where(least > self.threshold, FULL, torch.where(linear <= local, LINEAR, LOCAL))


def random_rows(share, generator):
    def decide(layer, rows, x, q, k, v):
        drawn = torch.rand(k.shape[0], rows.o_linear.shape[1], generator=generator)
        return torch.where(drawn < share, FULL, LINEAR)

    return decide


def static_heads(chosen, otherwise):
    """chosen [layers, Hkv]: read everything always. otherwise [layers, Hkv]: what the others do."""
    def decide(layer, rows, x, q, k, v):
        return torch.where(chosen[layer], FULL, otherwise[layer])[:, None].expand(-1, rows.o_linear.shape[1])

    return decide


def best_heads(bench, count):
    """The `count` heads whose better alternative harms most on the sampled text rows."""
    text, linear, local = bench.sample.weights == 1, [], []
    for part, harm_of in zip(bench.sample.layers, bench.harm_of):
        for target, errors in ((linear, part.linear), (local, part.local)):
            target.append((errors[:, text] * harm_of[:, None]).mean(1))
    linear, local = torch.stack(linear), torch.stack(local)
    least = torch.minimum(linear, local)
    chosen = torch.zeros_like(least, dtype=torch.bool).flatten()
    chosen[least.flatten().topk(count).indices] = True
    return chosen.view_as(least), torch.where(linear <= local, LINEAR, LOCAL)


def trained(bench, targets, heads=None, cost_weight=1.0):
    """heads: None, controllers as shipped; else they read all scalars and make that many decisions. -> Retrofit"""
    config, sample, old = bench.job.model.config, bench.sample, bench.job.retrofit
    fresh = Retrofit.fresh(config, old.geometry, old.feature_map, seed=1, width=old.width)
    controllers = fresh.controllers
    if heads is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            controllers = [Controller(config.hidden, config.heads, heads, old.width) for _ in range(config.layers)]
        sample = dataclasses.replace(sample, layers=[dataclasses.replace(r, scalars=joined(r.scalars, heads))
                                                     for r in sample.layers])
    prior = dirichlet.cost_prior(train_controllers.COSTS, cost_weight)
    for step, objective in enumerate(train_controllers.train_stacked(controllers, sample, targets, bench.steps,
                                                                     torch.Generator().manual_seed(1), prior), 1):
        bench.job.run.progress("ablations", step, bench.steps, f"objective {objective:.2f}")
    if heads is not None:
        controllers = [Joined(c, config.kv_heads) for c in controllers]
    return Retrofit(old.geometry, old.maps, controllers, old.feature_map, old.width)


def policy_for(bench, retrofit, linear=0.0):
    """The tilt that gives the share: a quantile on the sampled rows, then corrected once closed loop."""
    job, config = bench.job, bench.job.model.config
    policy = Policy.neutral(config.layers, config.kv_heads, NO_GATE)
    policy.offsets[..., LINEAR] = linear
    with torch.no_grad():
        tilt = train_controllers.tilt_for(retrofit.controllers, bench.sample, bench.share) if linear == 0 else 0.0
        policy.offsets[..., FULL] = -tilt
        for _ in range(1 if linear == 0 else 2):
            _, found, _ = settle.closed_loop(job.model, retrofit, policy, *bench.kept_aside())
            policy.offsets[..., FULL] -= settle.changes(found, bench.share, retrofit.geometry.first, 0.0)[0]
    return policy


def token_targets(bench):
    """[layers, 1, N, 3]: harms summed over the KV heads, the limit raised by their number."""
    parts = []
    for part, harm_of in zip(bench.sample.layers, bench.harm_of):
        summed = dataclasses.replace(part, **{name: (getattr(part, name) * harm_of[:, None]).sum(0, keepdim=True)
                                              for name in ("linear", "local")})
        parts.append(summed)
    one, sample = torch.ones(len(parts), 1), dataclasses.replace(bench.sample, layers=parts)
    delta = train_controllers.threshold(sample, one, min(0.9, bench.share * 1.2))
    return torch.stack([train_controllers.labels(r, s, delta) for r, s in zip(parts, one)])


def two_way_targets(bench):
    """Labels without linear: what local cannot serve goes to full; the limit is chosen for the same share."""
    layers = [dataclasses.replace(r, linear=r.local) for r in bench.sample.layers]
    delta = train_controllers.threshold(dataclasses.replace(bench.sample, layers=layers), bench.harm_of,
                                        min(0.9, bench.share * 1.2))
    parts = torch.stack([train_controllers.labels(r, s, delta) for r, s in zip(layers, bench.harm_of)])
    adequate = parts[..., LINEAR]
    return torch.stack([1 - adequate, torch.zeros_like(adequate), adequate], -1)


def result(bench, name, stage, retrofit, policy=None, decide=None):
    subject = TalliedSubject(bench.job.model, bench.job.tokenizer, retrofit, policy)
    found = evaluate.on_texts(subject, bench.test, bench.length, bench.count, decide, bench.known)
    costs, cells = Costs.of(bench.description), bench.job.model.config.layers * bench.job.model.config.kv_heads
    first = retrofit.geometry.first
    position = np.arange(bench.length)
    zeros = np.zeros(first)
    bytes_ratio = float(np.mean([costs.ratio(position, *(np.concatenate([zeros, c]) for c in (t.full, t.linear)), cells)
                                 for t in subject.tallies]))
    return {"name": name, "stage": stage, **found["all"].pop("share"), **found["all"], "bytes_ratio": bytes_ratio,
            "texts": {text: row["delta"] for text, row in found.items() if text != "all"}}


def heads_for(bench, bytes_ratio):
    """How many static heads read as many bytes as that, the others taking their better alternative."""
    costs, cells, position = Costs.of(bench.description), bench.harm_of.numel(), np.arange(bench.length)

    def gap(count):
        chosen, otherwise = best_heads(bench, count)
        linear = int((~chosen & (otherwise == LINEAR)).sum())
        return abs(costs.ratio(position, *(np.full(bench.length, n) for n in (count, linear)), cells) - bytes_ratio)

    return min(range(1, cells + 1), key=gap)


def variants(bench, shipped, done):
    """Name -> function that measures it, in the order of the table. shipped: the controller's own Policy; done: results."""
    old, wide = bench.job.retrofit, bench.job.model.config.kv_heads
    local_stage = "layer-local"

    def controllers(name, targets, heads=None, cost_weight=1.0, linear=0.0):
        retrofit = trained(bench, targets(), heads, cost_weight)
        return result(bench, name, local_stage, retrofit, policy_for(bench, retrofit, linear))

    def static():
        chosen, otherwise = best_heads(bench, heads_for(bench, done["recipe"]["bytes_ratio"]))
        return result(bench, "static heads", "no controller", old, None, static_heads(chosen, otherwise))

    def oracle():
        decide = Oracle(bench.harm_of, bench.delta)
        for _, ids in bench.kept_aside()[0]:
            with torch.no_grad():
                bench.job.model.hidden(ids, RoutedAttention(old, decide=decide))
        margins = torch.cat(decide.margins).sort().values
        decide.threshold = margins[int((1 - bench.share) * len(margins))].item()
        return result(bench, "error oracle", "no controller", old, None, decide)

    return {
        "shipped": lambda: result(bench, "shipped", "tuned end to end", old, shipped),
        "recipe": lambda: controllers("recipe", bench.targets),
        "no prior": lambda: controllers("no prior", bench.targets, cost_weight=0.0),
        "no linear": lambda: controllers("no linear", lambda: two_way_targets(bench), linear=NEVER),
        "token-shared": lambda: controllers("token-shared", lambda: token_targets(bench), heads=1),
        "all heads": lambda: controllers("all heads", bench.targets, heads=wide),
        "static": static,
        "random": lambda: result(bench, "random rows", "no controller", old, None,
                                 random_rows(bench.share, torch.Generator().manual_seed(1))),
        "oracle": oracle,
    }


def measure(bench, shipped, store, key):
    """Every variant, kept in the store by `key` and its name."""
    done = {}
    for name, run in variants(bench, shipped, done).items():
        done[name] = store.get([*key, name], run)
    return {"share": bench.share, "rows": len(bench.sample.weights), "steps": bench.steps, "length": bench.length,
            "variants": list(done.values())}
