"""Byte-level BPE tokenizers: from a tokenizer.json, or rebuilt from a GGUF's vocabulary and merges."""

from .errors import CalibrationError

# The splitting rules that GGUF names in tokenizer.ggml.pre; "digits": every digit alone, then GPT-2's rule.
LLAMA3_RULE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2_RULE = LLAMA3_RULE.replace(r"\p{N}{1,3}", r"\p{N}")
RULES = {"smollm": "digits", "gpt-2": "gpt2", "default": "gpt2", "llama-bpe": LLAMA3_RULE, "qwen2": QWEN2_RULE}
CONTROL, USER_DEFINED = 3, 4


class Tokenizer:
    def __init__(self, inner):
        self._inner = inner

    def encode(self, text):
        """Token ids, nothing added at either end."""
        return self._inner.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self._inner.decode(list(ids), skip_special_tokens=False)

    def has(self, token):
        return self._inner.token_to_id(token) is not None


def from_json(path):
    import tokenizers

    if not path.is_file():
        raise CalibrationError(f"{path}: missing; a Hugging Face directory needs its tokenizer.json")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_file(str(path)))
    except Exception as error:  # the library raises bare Exception
        raise CalibrationError(f"{path}: {error}") from error


def from_gguf(values, path):
    import tokenizers
    from tokenizers import decoders, models

    if values.get("tokenizer.ggml.model") != "gpt2":
        raise CalibrationError(f"{path}: tokenizer.ggml.model is {values.get('tokenizer.ggml.model')!r}; "
                               "only byte-level BPE (gpt2) can be read from a GGUF file")
    tokens, merges = values["tokenizer.ggml.tokens"], values.get("tokenizer.ggml.merges", [])
    pairs = [tuple(m.split(" ", 1)) for m in merges]
    bad = next((m for m, p in zip(merges, pairs) if len(p) != 2), None)
    if bad is not None:
        raise CalibrationError(f"{path}: tokenizer.ggml.merges: {bad!r} is not a pair")
    inner = tokenizers.Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    inner.pre_tokenizer = _pre_tokenizer(values.get("tokenizer.ggml.pre", "default"), path)
    inner.decoder = decoders.ByteLevel()
    kinds = values.get("tokenizer.ggml.token_type", [])
    added = [(t, k) for t, k in zip(tokens, kinds) if k in (CONTROL, USER_DEFINED)]
    inner.add_special_tokens([tokenizers.AddedToken(t, normalized=False, special=True) for t, k in added if k == CONTROL])
    inner.add_tokens([tokenizers.AddedToken(t, normalized=False) for t, k in added if k == USER_DEFINED])
    return Tokenizer(inner)


def _pre_tokenizer(name, path):
    from tokenizers import Regex, pre_tokenizers

    if name not in RULES:
        raise CalibrationError(f"{path}: tokenizer.ggml.pre is {name!r}; known are {', '.join(sorted(RULES))}")
    rule = RULES[name]
    if rule == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    first = (pre_tokenizers.Digits(individual_digits=True) if rule == "digits"
             else pre_tokenizers.Split(Regex(rule), "isolated"))
    return pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule == "digits")])
