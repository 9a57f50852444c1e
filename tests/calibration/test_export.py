"""The controller directory: what was written is what is read and what the contract says."""

import json

import pytest
import torch
from conftest import CONFIG, GEOMETRY
from safetensors.torch import load_file, save_file
from test_model import routed

from metattn_calibration import export
from metattn_calibration.controller import Policy
from metattn_calibration.errors import CalibrationError
from metattn_calibration.model import Model
from metattn_calibration.retrofit import RoutedAttention


@pytest.fixture
def directory(tmp_path, loaded):
    retrofit = routed(loaded)
    with torch.no_grad():
        for controller in retrofit.controllers:
            controller.x_mean.normal_(), controller.x_scale.uniform_(0.5, 2)
    policy = Policy(torch.randn(CONFIG.layers, CONFIG.kv_heads, 3), eta=0.97)
    mix = torch.full((CONFIG.layers, CONFIG.kv_heads, 3), 1 / 3)
    export.write(tmp_path, export.tensors_of(retrofit), export.describe(loaded, retrofit, policy, mix, {"seed": 1}, 256))
    return tmp_path, retrofit, policy


def test_what_is_read_back_decides_as_what_was_written(directory, loaded, ids):
    path, retrofit, policy = directory
    read, read_policy, _ = export.read(path, loaded.config)
    model, outputs = Model(loaded, torch.float32), []
    with torch.no_grad():
        for parts in ((retrofit, policy), (read, read_policy)):
            attention = RoutedAttention(*parts)
            outputs.append((model.hidden(ids, attention), attention.counts))
    moved = (outputs[0][1] - outputs[1][1]).abs().sum() / 2 / outputs[0][1].sum()
    assert moved < 0.02  # bfloat16 weights: a few decisions near ties
    assert (read_policy.offsets - policy.offsets).abs().max() < 1e-6 and read_policy.eta == policy.eta
    assert read.geometry == GEOMETRY


def test_tensors_have_the_names_types_and_shapes_of_the_contract(directory):
    c, scalars, width = CONFIG, 1 + 4 * CONFIG.group, 4
    expected = {
        "linear.w_q": ((c.heads, c.head_dim, c.head_dim), torch.bfloat16),
        "linear.w_k": ((c.kv_heads, c.head_dim, c.head_dim), torch.bfloat16),
        "linear.log_gain": ((c.heads,), torch.float32), "linear.kappa": ((c.heads,), torch.float32),
        "controller.x": ((width, c.hidden), torch.bfloat16),
        "controller.x_skip": ((c.kv_heads, 3, c.hidden), torch.bfloat16),
        "controller.scalar_mean": ((c.kv_heads, scalars), torch.float32),
        "controller.scalar_scale": ((c.kv_heads, scalars), torch.float32),
        "controller.scalars": ((c.kv_heads, width, scalars), torch.float32),
        "controller.bias": ((c.kv_heads, width), torch.float32),
        "controller.out": ((c.kv_heads, 3, width), torch.float32),
        "controller.out_bias": ((c.kv_heads, 3), torch.float32),
        "controller.scalars_skip": ((c.kv_heads, 3, scalars), torch.float32),
    }
    tensors = load_file(str(directory[0] / "controller.safetensors"))
    assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == \
        {f"layers.{l}.{n}": v for l in range(c.layers) for n, v in expected.items()}


def test_the_description_has_the_fields_of_the_contract(directory):
    description = json.loads((directory[0] / "controller.json").read_text())
    assert description["format"] == "metattn-controller" and description["version"] == 1
    assert description["base_model"]["fingerprint"].startswith("fnv1a64:") and len(description["base_model"]) == 7
    assert (description["window"], description["sinks"], description["block"]) == (32, 2, 16)
    fixed = {"window_scope": "block", "linear_scope": "far", "decisions": "kv_head", "features": "retrofit",
             "hidden_width": 4, "activation": "gelu_tanh", "link": "softplus", "epsilon": 0.1, "temperature": 1.0,
             "feature_map": "hedgehog", "eta": 0.97, "uncertain_policy": "full", "cost_weight": 0.0,
             "cost_weight_levels": [0.0, 0.5, 1.0, 2.0], "max_context": 256, "training": {"seed": 1}}
    assert {k: description[k] for k in fixed} == fixed
    for table in ("offsets", "mix"):
        assert torch.tensor(description[table]).shape == (CONFIG.layers, CONFIG.kv_heads, 3)


def rewrite(path, change):
    file = str(path / "controller.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("change,word", [
    (lambda t: t.pop("layers.1.controller.out"), "missing"),
    (lambda t: t.update({"layers.1.controller.out": torch.zeros(2, 2)}), "shape"),
    (lambda t: t["layers.1.controller.out"].fill_(float("nan")), "finite"),
])
def test_a_damaged_tensor_is_named(directory, change, word):
    rewrite(directory[0], change)
    with pytest.raises(CalibrationError, match=rf"layers\.1\.controller\.out.*{word}"):
        export.read(directory[0])


@pytest.mark.parametrize("field,value,word", [
    ("offsets", [[[0.0, 0.0, float("nan")]]], "offsets"), ("window", 100, "window"), ("feature_map", "other", "other")])
def test_a_wrong_field_is_named(directory, field, value, word):
    file = directory[0] / "controller.json"
    description = json.loads(file.read_text())
    description[field] = value
    file.write_text(json.dumps(description))
    with pytest.raises(CalibrationError, match=word):
        export.read(directory[0])


def test_another_model_is_refused_by_field(directory, loaded):
    import dataclasses

    other = dataclasses.replace(loaded.config, kv_heads=1)
    with pytest.raises(CalibrationError, match="base_model.kv_heads"):
        export.read(directory[0], other)


def test_diverged_training_is_not_exported(loaded):
    retrofit = routed(loaded)
    with torch.no_grad():
        retrofit.maps[1].log_gain[0] = float("inf")
    with pytest.raises(CalibrationError, match=r"layers\.1\.linear\.log_gain"):
        export.tensors_of(retrofit)
