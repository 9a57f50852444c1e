"""A tiny random Llama-like model with a byte tokenizer, as a Hugging Face directory; everything runs in seconds."""

import json
import pathlib
import random
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "engine" / "calibration"))

import torch  # noqa: E402

from metattn_calibration import checkpoint  # noqa: E402
from metattn_calibration.mechanisms import Geometry  # noqa: E402
from metattn_calibration.paper.export import byte_alphabet  # noqa: E402

CONFIG = checkpoint.ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, head_dim=16, vocab=259, ffn=48,
                                rope_base=10000.0, max_positions=256)
GEOMETRY = Geometry(window=32, sinks=2, block=16)
WORDS = "the whale and a ship sailed over cold water while captain counted white birds on long masts in fog".split()


def random_tensors(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in checkpoint.expected_shapes(config).items():
        value = torch.randn(shape, generator=generator)
        tensors[name] = 1 + 0.1 * value if len(shape) == 1 else value * (1.5 / shape[1] ** 0.5)
    return tensors


def tokens():
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + byte_alphabet()


def write_directory(path, config, tensors):
    import tokenizers
    from safetensors.torch import save_file
    from tokenizers import decoders, models, pre_tokenizers

    path.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, str(path / "model.safetensors"))
    (path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "num_hidden_layers": config.layers, "hidden_size": config.hidden, "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "vocab_size": config.vocab,
        "intermediate_size": config.ffn, "rms_norm_eps": config.norm_eps, "rope_theta": config.rope_base,
        "max_position_embeddings": config.max_positions}))
    inner = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens())}, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.add_special_tokens(tokens()[:3])
    inner.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory):
    return write_directory(tmp_path_factory.mktemp("model"), CONFIG, random_tensors(CONFIG))


@pytest.fixture(scope="session")
def loaded(model_directory):
    return checkpoint.load(model_directory)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    rng, path = random.Random(5), tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(" ".join(" ".join(rng.choices(WORDS, k=9)).capitalize() + "." for _ in range(400)))
    return path


@pytest.fixture
def ids(loaded):
    return torch.randint(3, loaded.config.vocab, (150,), generator=torch.Generator().manual_seed(2))
