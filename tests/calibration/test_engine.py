"""The routed model in the engine against the closed-loop forward pass of the calibration: an implementation of its own."""

import json
import os
import pathlib
import subprocess

import numpy as np
import pytest
import torch
from conftest import random_tensors, write_directory

from metattn_calibration import checkpoint, export
from metattn_calibration.controller import Policy
from metattn_calibration.mechanisms import Geometry
from metattn_calibration.model import Model
from metattn_calibration.report.measure import read_log
from metattn_calibration.retrofit import Retrofit, RoutedAttention

BUILD = pathlib.Path(__file__).resolve().parents[2] / "build" / "release"
TOOL = pathlib.Path(os.environ.get("METATTN_ROUTED_LOGITS") or BUILD / "bin" / "routed_logits")
CONFIG = checkpoint.ModelConfig(layers=3, hidden=64, heads=6, kv_heads=3, head_dim=32, vocab=259, ffn=96,
                                rope_base=10000.0, max_positions=1024)
GEOMETRY = Geometry(window=64, sinks=4, block=64)
TOKENS = 700

pytestmark = pytest.mark.skipif(not TOOL.exists(), reason="no built engine: build/release/bin/routed_logits or METATTN_ROUTED_LOGITS")


def lively(config, feature_map):
    """Random maps and controllers in which every weight counts and every mechanism wins somewhere."""
    retrofit = Retrofit.fresh(config, GEOMETRY, feature_map, width=8)
    generator = torch.Generator().manual_seed(3)

    def normal(parameter, size):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)

    with torch.no_grad():
        for phi, controller in zip(retrofit.maps, retrofit.controllers):
            for name, parameter in phi.named_parameters():
                normal(parameter, 0.05 if name == "kappa" else 0.3)
            phi.log_gain -= 3 if feature_map == "hedgehog" else 7
            phi.kappa += 1
            for parameter in controller.parameters():
                normal(parameter, 2 / parameter.shape[-1] ** 0.5)
            normal(controller.scalar_mean, 0.5)
            controller.scalar_mean += 2
            controller.scalar_scale.fill_(0.3)
    return retrofit


def eligible(folder, tokens, geometry):
    """The recorded decisions of the eligible rows and their margins, [layers, Hkv, E]."""
    rows = read_log(folder)
    assert rows["position"].tolist() == list(range(tokens))
    return (torch.from_numpy(rows[name][geometry.first:].copy()).permute(1, 2, 0) for name in ("cells", "margins"))


def loss(logits, ids):
    return torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item()


class Engine:
    """What routed_logits makes of a model, its controller and tokens."""

    def __init__(self, folder, device, rounding, eta, ids):
        given = {"model": str(folder / "model"), "controller": str(folder / "controller"), "device": device, "eta": eta,
                 "window": GEOMETRY.window, "sinks": GEOMETRY.sinks, "tokens": ids.tolist(), "rounding": rounding}
        out = folder / device
        out.mkdir(exist_ok=True)
        done = subprocess.run([TOOL, out], input=json.dumps(given), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        self.bound = float(done.stdout)
        self.logits = torch.from_numpy(np.fromfile(out / "logits", "<f4").reshape(len(ids), -1).copy())
        self.decisions, self.margins = eligible(out, len(ids), GEOMETRY)


class Calibration:
    """The same of the calibration's own forward pass, in float32; `given`: other decisions than its own."""

    def __init__(self, model, retrofit, policy, ids, given=None):
        self.ids, self.policy, self.given, self.decisions, self.margins = ids, policy, given, [], []
        self.retrofit = retrofit
        with torch.no_grad():
            self.logits = model.logits(model.hidden(ids, RoutedAttention(retrofit, policy, self._decide)))

    def _decide(self, layer, rows, x, *_):
        b = self.retrofit.controllers[layer](x[self.retrofit.geometry.first:], rows.scalars)
        best = ((b / b.sum(-1, keepdim=True)).log() + self.policy.offsets[layer][:, None]).topk(2).values
        self.margins.append(best[..., 0] - best[..., 1])
        self.decisions.append(self.policy.decide(layer, b))
        return self.decisions[-1] if self.given is None else self.given[layer]

    def loss(self):
        return loss(self.logits, self.ids)


@pytest.fixture(scope="module", params=["hedgehog", "elu1"])
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    write_directory(folder / "model", CONFIG, random_tensors(CONFIG))
    loaded = checkpoint.load(folder / "model")
    policy = Policy(0.3 * torch.randn(CONFIG.layers, CONFIG.kv_heads, 3, generator=torch.Generator().manual_seed(4)), eta=0.97)
    written = lively(CONFIG, request.param)
    export.write(folder / "controller", export.tensors_of(written), export.describe(
        loaded, written, policy, torch.full((CONFIG.layers, CONFIG.kv_heads, 3), 1 / 3), {"seed": 3}, 1024))
    retrofit, policy, _ = export.read(folder / "controller", loaded.config)
    ids = torch.randint(3, CONFIG.vocab, (TOKENS,), generator=torch.Generator().manual_seed(2))
    return folder, Model(loaded, torch.float32), retrofit, policy, ids


@pytest.mark.parametrize("device,rounding,equal", [("ref", 2.0 ** -23, 0.999), ("cpu", 2.0 ** -9, 0.98)])
def test_the_routed_model_is_the_one_that_was_calibrated(device, rounding, equal, world, capsys):
    folder, model, retrofit, policy, ids = world
    engine = Engine(folder, device, rounding, policy.eta, ids)
    own, given = Calibration(model, retrofit, policy, ids), Calibration(model, retrofit, policy, ids, engine.decisions)
    same = (torch.stack(own.decisions) == engine.decisions).float().mean().item()
    away = (given.logits - engine.logits).abs().max().item()
    score = (torch.stack(given.margins) - engine.margins).abs().max().item()
    moved = abs(own.loss() - loss(engine.logits, ids))
    with capsys.disabled():
        print(f"\n{device}: {same:.4%} of {engine.decisions.numel()} decisions equal, NLL differs by {moved:.2g}; with the "
              f"engine's decisions margins by {score:.2g}, logits by {away:.2g}, bound {engine.bound:.2g}")
    shares = torch.bincount(engine.decisions.flatten(), minlength=3) / engine.decisions.numel()
    assert shares.min() > 0.1
    assert same >= equal
    assert moved < 0.002 * own.loss()
    assert away <= engine.bound and score <= engine.bound
    with torch.no_grad():
        dense = model.logits(model.dense(ids))
    assert (dense - engine.logits).abs().max() > 2 * engine.bound  # a wider one would prove nothing
