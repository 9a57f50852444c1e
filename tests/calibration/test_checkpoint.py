"""Both formats of one model are read as the same model; what cannot be read is named."""

import gguf
import numpy as np
import pytest
import torch
from conftest import CONFIG, random_tensors, tokens, write_directory

from metattn_calibration import checkpoint
from metattn_calibration.errors import CalibrationError
from metattn_calibration.model import Model


def joined_pairs(rows, heads):
    """Rows of each head in the order of GGUF's llama: (0, d/2, 1, d/2 + 1, ...)."""
    dim, rest = rows.shape[0] // heads, rows.shape[1:]
    return rows.reshape(heads, 2, dim // 2, *rest).swapaxes(1, 2).reshape(-1, *rest)


def write_gguf(path, config, tensors, quantise=False, **overrides):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_tokenizer_model(overrides.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(overrides.get("pre", "gpt-2"))
    writer.add_token_list(tokens())
    writer.add_token_types([3] * 3 + [1] * 256)
    writer.add_token_merges([])
    names = {v: k for k, v in checkpoint.GGUF_LAYER_NAMES.items()}
    top = {v: k for k, v in checkpoint.GGUF_TOP_NAMES.items()}
    for name, value in tensors.items():
        data, parts = value.numpy(), name.split(".")
        if ".q_proj." in name or ".k_proj." in name:
            data = joined_pairs(data, config.heads if ".q_proj." in name else config.kv_heads)
        short = f"blk.{parts[2]}.{names['.'.join(parts[3:-1])]}.weight" if parts[1] == "layers" else \
            f"{top['.'.join(parts[:-1])]}.weight"
        if quantise and data.ndim == 2 and data.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(short, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(short, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf_and_directory_give_the_same_model(tmp_path, loaded, ids):
    other = checkpoint.load(write_gguf(tmp_path / "m.gguf", CONFIG, random_tensors(CONFIG)))
    assert other.config.heads == CONFIG.heads and other.config.vocab == CONFIG.vocab
    for name, value in loaded.tensors.items():
        assert torch.equal(other.tensors[name], value), name
    assert checkpoint.fingerprint(other.config, other.tensors) == checkpoint.fingerprint(CONFIG, loaded.tensors)
    with torch.no_grad():
        a, b = (Model(c, torch.float32).dense(ids) for c in (loaded, other))
    assert (a - b).abs().max() < 1e-5


def test_both_tokenizers_agree_and_lose_nothing(tmp_path, loaded):
    other = checkpoint.load(write_gguf(tmp_path / "m.gguf", CONFIG, random_tensors(CONFIG)))
    text = "A ship, 1851:\n<|im_end|>\té ok"
    assert other.tokenizer.encode(text) == loaded.tokenizer.encode(text)
    assert loaded.tokenizer.decode(loaded.tokenizer.encode(text)) == text
    assert 2 in loaded.tokenizer.encode(text)  # <|im_end|> is one token


def test_quantised_tensors_are_read(tmp_path, loaded):
    other = checkpoint.load(write_gguf(tmp_path / "q.gguf", CONFIG, random_tensors(CONFIG), quantise=True))
    for name, value in loaded.tensors.items():
        assert (other.tensors[name] - value).abs().max() <= value.abs().max() / 127, name
    # norms are never quantised: the fingerprint stays
    assert checkpoint.fingerprint(other.config, other.tensors) == checkpoint.fingerprint(CONFIG, loaded.tensors)


def test_fnv1a64_gives_the_published_values():
    assert checkpoint.fnv1a64(b"") == 0xCBF29CE484222325
    assert checkpoint.fnv1a64(b"a") == 0xAF63DC4C8601EC8C
    assert checkpoint.fnv1a64(b"foobar") == 0x85944171F73967E8


def test_fingerprint_covers_numbers_and_norms(loaded):
    before = checkpoint.fingerprint(CONFIG, loaded.tensors)
    changed = dict(loaded.tensors)
    changed["model.layers.1.post_attention_layernorm.weight"] = \
        changed["model.layers.1.post_attention_layernorm.weight"] + 1e-3
    assert checkpoint.fingerprint(CONFIG, changed) != before


def test_a_missing_tensor_is_named(tmp_path):
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(CalibrationError, match="layers.1.mlp.up_proj"):
        checkpoint.load(write_directory(tmp_path / "m", CONFIG, tensors))


def test_a_wrong_shape_is_named(tmp_path):
    tensors = random_tensors(CONFIG)
    tensors["model.norm.weight"] = torch.ones(5)
    with pytest.raises(CalibrationError, match="model.norm.weight.*5"):
        checkpoint.load(write_directory(tmp_path / "m", CONFIG, tensors))


@pytest.mark.parametrize("overrides,field", [({"tokenizer": "llama"}, "tokenizer.ggml.model"),
                                             ({"pre": "nobody"}, "tokenizer.ggml.pre")])
def test_an_unknown_tokenizer_is_named(tmp_path, overrides, field):
    with pytest.raises(CalibrationError, match=field):
        checkpoint.load(write_gguf(tmp_path / "m.gguf", CONFIG, random_tensors(CONFIG), **overrides))


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all"])
def test_a_file_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CalibrationError, match="x.gguf"):
        checkpoint.load(tmp_path / "x.gguf")


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CalibrationError, match="nowhere"):
        checkpoint.load(tmp_path / "nowhere")
