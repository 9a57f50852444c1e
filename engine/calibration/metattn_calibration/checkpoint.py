"""A checkpoint on disk (one GGUF file or a Hugging Face directory) -> configuration, float32 tensors, tokenizer.

Tensor names are Hugging Face's, and so is the order of a head's dimensions: RoPE turns the pairs (i, i + d/2). GGUF's
"llama" architecture stores q and k rows for the pairs (2i, 2i + 1); they are put back here, so that a feature map means
the same whichever file it was trained on.
"""

import dataclasses
import json
import pathlib

import numpy as np
import torch

from . import tokenizer as tokenizers_
from .errors import CalibrationError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    ffn: int
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    max_positions: int = 8192

    @property
    def group(self):
        """Query heads per KV head."""
        return self.heads // self.kv_heads


@dataclasses.dataclass
class Checkpoint:
    config: ModelConfig
    tensors: dict  # Hugging Face name -> float32 tensor
    tokenizer: object


def load(path):
    path = pathlib.Path(path)
    if path.is_dir():
        return _load_directory(path)
    if not path.is_file():
        raise CalibrationError(f"{path}: no such checkpoint; give a GGUF file or a Hugging Face directory")
    return _load_gguf(path)


def check(config, where):
    """Rejects numbers that the forward pass could not run with."""
    for field in ("layers", "hidden", "heads", "kv_heads", "head_dim", "vocab", "ffn", "max_positions"):
        if getattr(config, field) < 1:
            raise CalibrationError(f"{where}: {field} is {getattr(config, field)}, expected at least 1")
    if config.heads % config.kv_heads:
        raise CalibrationError(f"{where}: {config.heads} heads do not divide into {config.kv_heads} KV heads")
    if config.head_dim % 2:
        raise CalibrationError(f"{where}: head_dim {config.head_dim} is odd; rotary positions need pairs")
    return config


def expected_shapes(config):
    """Every tensor the model needs, biases and the untied head apart."""
    c, head = config, config.head_dim
    shapes = {"model.embed_tokens.weight": (c.vocab, c.hidden), "model.norm.weight": (c.hidden,)}
    for l in range(c.layers):
        p = f"model.layers.{l}."
        shapes.update({
            p + "input_layernorm.weight": (c.hidden,),
            p + "post_attention_layernorm.weight": (c.hidden,),
            p + "self_attn.q_proj.weight": (c.heads * head, c.hidden),
            p + "self_attn.k_proj.weight": (c.kv_heads * head, c.hidden),
            p + "self_attn.v_proj.weight": (c.kv_heads * head, c.hidden),
            p + "self_attn.o_proj.weight": (c.hidden, c.heads * head),
            p + "mlp.gate_proj.weight": (c.ffn, c.hidden),
            p + "mlp.up_proj.weight": (c.ffn, c.hidden),
            p + "mlp.down_proj.weight": (c.hidden, c.ffn),
        })
    return shapes


def _checked(config, tensors, where):
    for name, shape in expected_shapes(config).items():
        if name not in tensors:
            raise CalibrationError(f"{where}: tensor {name} is missing")
        if tuple(tensors[name].shape) != shape:
            raise CalibrationError(f"{where}: tensor {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    for name in tensors:
        if "q_norm" in name or "k_norm" in name:
            raise CalibrationError(f"{where}: {name}: models with QK norm cannot be calibrated yet")
    return tensors


# ---- Hugging Face directory ----------------------------------------------------------------------------------------


def _load_directory(path):
    from safetensors.torch import load_file

    file = path / "config.json"
    try:
        raw = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{file}: {error}") from error
    config = check(_config_of_json(raw, file), file)
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise CalibrationError(f"{path}: no *.safetensors file")
    tensors = {}
    for shard in shards:
        tensors.update({name: t.float() for name, t in load_file(str(shard)).items()})
    return Checkpoint(config, _checked(config, tensors, path), tokenizers_.from_json(path / "tokenizer.json"))


def _config_of_json(raw, file):
    try:
        heads, hidden = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        scaling = raw.get("rope_scaling") or {}
        if scaling.get("rope_type", scaling.get("type", "default")) != "default":
            raise CalibrationError(f"{file}: rope_scaling {scaling} cannot be calibrated yet")
        base = raw.get("rope_theta") or (raw.get("rope_parameters") or {}).get("rope_theta", 10000.0)
        return ModelConfig(
            layers=int(raw["num_hidden_layers"]), hidden=hidden, heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads), head_dim=int(raw.get("head_dim") or hidden // heads),
            vocab=int(raw["vocab_size"]), ffn=int(raw["intermediate_size"]), norm_eps=float(raw["rms_norm_eps"]),
            rope_base=float(base), max_positions=int(raw["max_position_embeddings"]))
    except KeyError as error:
        raise CalibrationError(f"{file}: field {error} is missing (only Llama-like models can be calibrated)") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CalibrationError(f"{file}: {error}") from error


# ---- GGUF ------------------------------------------------------------------------------------------------------------

GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
}
GGUF_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _load_gguf(path):
    import gguf

    try:
        reader = gguf.GGUFReader(str(path))
        values = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # a damaged file makes the library fail in many ways
        raise CalibrationError(f"{path}: not a readable GGUF file: {error}") from error
    config = check(_config_of_gguf(values, path), path)
    interleaved = values["general.architecture"] == "llama"
    tensors = {}
    for tensor in reader.tensors:
        name = hugging_face_name(tensor.name)
        if name is None:
            raise CalibrationError(f"{path}: tensor {tensor.name} is not one of a Llama-like model")
        try:
            data = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            raise CalibrationError(f"{path}: tensor {tensor.name}: type {tensor.tensor_type.name}: {error}") from error
        data = torch.from_numpy(data.reshape([int(n) for n in reversed(tensor.shape)]).copy())
        if interleaved and ".q_proj." in name:
            data = split_pairs(data, config.heads)
        elif interleaved and ".k_proj." in name:
            data = split_pairs(data, config.kv_heads)
        tensors[name] = data
    return Checkpoint(config, _checked(config, tensors, path), tokenizers_.from_gguf(values, path))


def hugging_face_name(gguf_name):
    parts = gguf_name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in GGUF_LAYER_NAMES:
        return f"model.layers.{parts[1]}.{GGUF_LAYER_NAMES[parts[2]]}.{parts[3]}"
    if len(parts) == 2 and parts[0] in GGUF_TOP_NAMES:
        return f"{GGUF_TOP_NAMES[parts[0]]}.{parts[1]}"
    return None


def split_pairs(rows, heads):
    """Rows of each head from the order (0, d/2, 1, d/2 + 1, ...) to (0, 1, ..., d - 1)."""
    rest = rows.shape[1:]
    return rows.reshape(heads, -1, 2, *rest).transpose(1, 2).reshape(-1, *rest).contiguous()


def _config_of_gguf(values, path):
    arch = values.get("general.architecture")
    if arch not in ("llama", "qwen2"):
        raise CalibrationError(f"{path}: general.architecture is {arch!r}; llama and qwen2 can be calibrated")
    scaling = values.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        raise CalibrationError(f"{path}: {arch}.rope.scaling.type {scaling!r} cannot be calibrated yet")
    try:
        heads, hidden = int(values[f"{arch}.attention.head_count"]), int(values[f"{arch}.embedding_length"])
        head_dim = int(values.get(f"{arch}.attention.key_length", hidden // heads))
        if int(values.get(f"{arch}.rope.dimension_count", head_dim)) != head_dim:
            raise CalibrationError(f"{path}: {arch}.rope.dimension_count differs from the head size {head_dim}")
        return ModelConfig(
            layers=int(values[f"{arch}.block_count"]), hidden=hidden, heads=heads,
            kv_heads=int(values.get(f"{arch}.attention.head_count_kv", heads)), head_dim=head_dim,
            vocab=len(values["tokenizer.ggml.tokens"]), ffn=int(values[f"{arch}.feed_forward_length"]),
            norm_eps=float(values[f"{arch}.attention.layer_norm_rms_epsilon"]),
            rope_base=float(values.get(f"{arch}.rope.freq_base", 10000.0)),
            max_positions=int(values[f"{arch}.context_length"]))
    except KeyError as error:
        raise CalibrationError(f"{path}: metadata {error} is missing") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise CalibrationError(f"{path}: {error}") from error


def fingerprint(config, tensors):
    """FNV-1a 64 over the model's numbers and all norm weights, which no format quantises."""
    c = config
    text = (f"layers={c.layers} hidden={c.hidden} heads={c.heads} kv_heads={c.kv_heads} "
            f"head_dim={c.head_dim} vocab={c.vocab}\n")
    names = ["model.norm.weight"]
    for l in range(c.layers):
        names += [f"model.layers.{l}.input_layernorm.weight", f"model.layers.{l}.post_attention_layernorm.weight"]
    data = text.encode("ascii") + b"".join(tensors[n].numpy().astype("<f4").tobytes() for n in names)
    return "fnv1a64:%016x" % fnv1a64(data)


def fnv1a64(data):
    value = 14695981039346656037
    for byte in data:
        value = ((value ^ byte) * 1099511628211) & 0xFFFFFFFFFFFFFFFF
    return value
