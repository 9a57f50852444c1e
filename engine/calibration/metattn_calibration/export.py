"""The controller directory: controller.safetensors + controller.json, written and read as the engine defines it."""

import json
import math
import os
import pathlib

import torch
from safetensors.torch import load_file, save

from . import checkpoint as checkpoints
from .controller import EPSILON, Policy, byte_weights
from .errors import CalibrationError
from .mechanisms import Geometry
from .retrofit import Retrofit

COST_WEIGHT_LEVELS = [0.0, 0.5, 1.0, 2.0]
BF16 = {"controller.x", "controller.x_skip", "linear.w_q", "linear.w_k"}
CONTROLLER_NAMES = ("x", "x_skip", "scalar_mean", "scalar_scale", "scalars", "bias", "out", "out_bias", "scalars_skip")


def tensors_of(retrofit, rounding=byte_weights):
    """Every tensor of controller.safetensors; matrices that are read per row are bfloat16. rounding: of those of x before that."""
    out = {}
    for layer, (phi, controller) in enumerate(zip(retrofit.maps, retrofit.controllers)):
        values = {"linear." + name: p.detach() for name, p in phi.named_parameters()}
        values.update({"controller." + name: t for name, t in controller.folded(rounding).items()})
        for name, value in values.items():
            if not torch.isfinite(value).all():
                raise CalibrationError(f"layers.{layer}.{name}: not finite; training diverged")
            out[f"layers.{layer}.{name}"] = value.to(torch.bfloat16 if name in BF16 else torch.float32).contiguous()
    return out


def describe(loaded, retrofit, policy, mix, training, max_context):
    """controller.json as a dictionary. mix [layers, Hkv, 3], shares measured at calibration."""
    c, g = loaded.config, retrofit.geometry
    return {
        "format": "metattn-controller", "version": 1,
        "base_model": {"fingerprint": checkpoints.fingerprint(c, loaded.tensors), "layers": c.layers, "hidden": c.hidden,
                       "heads": c.heads, "kv_heads": c.kv_heads, "head_dim": c.head_dim, "vocab": c.vocab},
        "max_context": max_context, "window": g.window, "sinks": g.sinks, "block": g.block,
        "window_scope": "block", "linear_scope": "far", "decisions": "kv_head", "features": "retrofit",
        "hidden_width": retrofit.width, "activation": "gelu_tanh", "link": "softplus", "epsilon": EPSILON,
        "temperature": 1.0, "feature_map": retrofit.feature_map, "eta": policy.eta, "uncertain_policy": "full",
        "cost_weight": 0.0, "cost_weight_levels": COST_WEIGHT_LEVELS,
        "offsets": rounded(policy.offsets), "mix": rounded(mix), "training": training,
    }


def rounded(values, digits=6):
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    return [rounded(v, digits) for v in values] if isinstance(values, list) else round(values, digits)


def write(directory, tensors, description):
    """Both files, each replaced at once, so that a reader never sees half of one."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    replace(directory / "controller.safetensors", save(tensors, metadata={"format": "metattn-controller"}))
    replace(directory / "controller.json", (json.dumps(description, indent=1) + "\n").encode())


def replace(path, data):
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(directory, config=None):
    """-> Retrofit, Policy, description. The retrofit computes what the engine computes: rounded, folded weights."""
    directory = pathlib.Path(directory)
    file = directory / "controller.json"
    try:
        description = json.loads(file.read_text())
        tensors = load_file(str(directory / "controller.safetensors"))
    except Exception as error:  # the safetensors library has its own exceptions
        raise CalibrationError(f"{directory}: {error}") from error
    try:
        base = description["base_model"]
        shape = checkpoints.ModelConfig(base["layers"], base["hidden"], base["heads"], base["kv_heads"],
                                        base["head_dim"], base["vocab"], ffn=1)
        geometry = Geometry(description["window"], description["sinks"], description["block"])
        policy = Policy(torch.tensor(description["offsets"], dtype=torch.float32), float(description["eta"]))
        retrofit = Retrofit.fresh(shape, geometry, description["feature_map"], width=description["hidden_width"])
    except KeyError as error:
        raise CalibrationError(f"{file}: field {error} is missing or unknown") from error
    if config is not None:
        for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab"):
            if getattr(config, field) != getattr(shape, field):
                raise CalibrationError(f"{file}: base_model.{field} is {getattr(shape, field)}, the model has "
                                       f"{getattr(config, field)}")
    if policy.offsets.shape != (shape.layers, shape.kv_heads, 3) or not torch.isfinite(policy.offsets).all() \
            or not math.isfinite(policy.eta):
        raise CalibrationError(f"{file}: offsets must be {shape.layers} x {shape.kv_heads} x 3 finite numbers")
    fill(retrofit, tensors, directory / "controller.safetensors")
    return retrofit, policy, description


@torch.no_grad()
def fill(retrofit, tensors, file):
    for layer, (phi, controller) in enumerate(zip(retrofit.maps, retrofit.controllers)):
        targets = {"linear." + n: p for n, p in phi.named_parameters()}
        targets.update({"controller." + n: getattr(controller, n) for n in CONTROLLER_NAMES})
        for name, target in targets.items():
            value = tensors.get(f"layers.{layer}.{name}")
            if value is None or value.shape != target.shape:
                got = "missing" if value is None else f"of shape {tuple(value.shape)}, expected {tuple(target.shape)}"
                raise CalibrationError(f"{file}: layers.{layer}.{name} is {got}")
            if not torch.isfinite(value).all():
                raise CalibrationError(f"{file}: layers.{layer}.{name} is not finite")
            target.copy_(value.float())
