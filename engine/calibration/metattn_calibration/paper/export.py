"""A trained model as the engine reads it: a Hugging Face directory with a byte tokenizer, and the controller beside it."""

import json
import pathlib
import types

import torch
from safetensors.torch import load_file, save

from .. import checkpoint
from .. import export as controllers
from ..controller import Controller, Policy, unrounded
from ..errors import CalibrationError
from ..mechanisms import EluMap
from .model import LINKS, PaperModel, Setting

BLOCK = 64  # tokens of the engine's pages
CONTROLLER = "controller"


def byte_alphabet():
    """The 256 characters that byte-level BPE writes bytes with, in order of the bytes."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    other = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(other)) for b in range(256)]


def write_model(model, directory):
    """config.json, model.safetensors, tokenizer.json: token i is byte i, nothing is added."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    directory, c = pathlib.Path(directory), model.setting.config
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {n: t.detach().float().contiguous() for n, t in model.weights.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise CalibrationError(f"{name}: not finite; training diverged")
    description = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_act": "silu",
        "num_hidden_layers": c.layers, "hidden_size": c.hidden, "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim, "vocab_size": c.vocab, "intermediate_size": c.ffn,
        "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_base, "max_position_embeddings": c.max_positions,
        "tie_word_embeddings": False, "attention_bias": False}
    inner = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(byte_alphabet())}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    controllers.replace(directory / "model.safetensors", save(tensors, metadata={"format": "pt"}))
    controllers.replace(directory / "config.json", (json.dumps(description, indent=1) + "\n").encode())
    controllers.replace(directory / "tokenizer.json", inner.to_str().encode())


def _routing(setting, parts):
    """What `controllers.tensors_of`, `describe` and `fill` read of a Retrofit."""
    c, maps = setting.config, []
    for _ in parts:
        phi = EluMap(c.heads, c.kv_heads, c.head_dim)
        torch.nn.init.zeros_(phi.log_gain), torch.nn.init.zeros_(phi.kappa)  # linear stands alone here: neither is used
        maps.append(phi)
    geometry = types.SimpleNamespace(window=setting.window, sinks=0, block=BLOCK)
    return types.SimpleNamespace(geometry=geometry, maps=maps, controllers=parts, width=setting.width, feature_map="elu1")


def write(model, directory, mix, training):
    """mix [layers, 3]. Without a link only the Hugging Face directory."""
    write_model(model, directory)
    if model.link is None:
        return
    setting, c = model.setting, model.setting.config
    routing = _routing(setting, model.controllers)
    heads = mix[:, None].expand(-1, c.kv_heads, -1)
    description = controllers.describe(checkpoint.load(directory), routing,
                                       Policy.neutral(c.layers, c.kv_heads, eta=0.0), heads, training, setting.length)
    description.update(
        window_scope="exact", linear_scope="all", decisions="token", features="paper", link=model.link,
        epsilon=setting.epsilon, temperature=setting.temperature, uncertain_policy="mixture", cost_weight_levels=[0.0])
    tensors = controllers.tensors_of(routing, rounding=unrounded)  # a published setting is measured as it was trained
    controllers.write(pathlib.Path(directory) / CONTROLLER, tensors, description)


def read(directory):
    """The model as the engine runs it: exported weights (some are bfloat16), K and V rounded to bfloat16."""
    directory = pathlib.Path(directory)
    loaded, file = checkpoint.load(directory), directory / CONTROLLER / "controller.json"
    c = loaded.config
    if not file.exists():
        setting, link, parts = Setting(c.layers, c.hidden, c.max_positions, c.heads, c.ffn), None, []
    else:
        try:
            d = json.loads(file.read_text())
            setting = Setting(c.layers, c.hidden, d["max_context"], c.heads, c.ffn, d["window"], d["hidden_width"],
                              d["epsilon"], d["temperature"])
            link, is_paper = d["link"], (d["window_scope"], d["linear_scope"], d["decisions"], d["features"])
        except (OSError, ValueError, KeyError) as error:
            raise CalibrationError(f"{file}: {error!r}") from error
        if is_paper != ("exact", "all", "token", "paper") or link not in LINKS:
            raise CalibrationError(f"{file}: not a controller of the paper's setting")
        parts = [Controller(c.hidden, 1, 1, setting.width, count=2) for _ in range(c.layers)]
        tensors = file.with_name("controller.safetensors")
        controllers.fill(_routing(setting, parts), load_file(str(tensors)), tensors)
    model = PaperModel(setting, link, loaded.tensors, parts)
    model.rounds = True
    return model
