"""Compares our tokenizer with Hugging Face tokenizers on one model. Opt-in: needs PyPI packages.

    python3 -m venv VENV && VENV/bin/pip install tokenizers gguf
    VENV/bin/python tests/engine/tokenizer_diff.py --tool build/release/bin/tokenizer_tool \
        --model MODEL.gguf --data ../shared/data [--random-mb 4] [--every-character]

Of a GGUF file it takes vocabulary, merges and token types and builds the same tokenizer with the
library; of a folder it loads tokenizer.json (tests/support/fixtures/tokenizers/NAME, for instance).
Compares ids of every text file whole, of random Unicode and of every assigned character between
letters, digits and spaces, with special tokens read in the text and without, and the decoded text
of both. Prints one JSON object; exits 1 on any difference.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys
import unicodedata

import gguf
import tokenizers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "support/fixtures/tokenizers"))
from pre_tokenizers_hf import pre_tokenizer_for  # noqa: E402
from texts import random_text  # noqa: E402


def from_gguf(path):
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, types, pre = get("tokens"), get("token_type"), get("pre")
    merges = [tuple(line.split(" ")) for line in get("merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges,
                                     ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pre_tokenizer_for(pre)
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True)
                                  for t, kind in zip(tokens, types) if kind in (2, 3)])
    tokenizer.add_tokens([AddedToken(t, normalized=False)
                          for t, kind in zip(tokens, types) if kind == 4])
    return tokenizer


def load(model):
    folder = pathlib.Path(model)
    if folder.is_dir():
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    return from_gguf(model)


def every_character():
    """Texts that show of which class each assigned character is."""
    texts = []
    for first in range(0, 0x110000, 64):
        chars = [chr(c) for c in range(first, first + 64)
                 if not 0xD800 <= c <= 0xDFFF and unicodedata.category(chr(c)) not in ("Cn", "Co")]
        if chars:
            texts.append("".join(f"a{c}b {c}1{c}{c} {c}\n" for c in chars))
    return texts


def run_tool(tool, model, args, values):
    lines = "".join(json.dumps(value) + "\n" for value in values)
    done = subprocess.run([tool, model, *args], input=lines.encode(), stdout=subprocess.PIPE,
                          check=True)
    return [json.loads(line) for line in done.stdout.decode().split("\n")[:-1]]


def compare(args, hf, name, texts):
    """Counts of one set of texts."""
    result = {"texts": len(texts), "bytes": sum(len(t.encode()) for t in texts), "tokens": 0,
              "different_texts": 0, "different_decoded": 0}
    for mode in ("raw", "special"):
        hf.encode_special_tokens = mode == "raw"
        expected = [hf.encode(t, add_special_tokens=mode == "special").ids for t in texts]
        actual = run_tool(args.tool, args.model, ["encode", mode], texts)
        assert len(actual) == len(expected)
        for text, want, got in zip(texts, expected, actual):
            result["tokens"] += len(want)
            if want != got:
                result["different_texts"] += 1
                if result["different_texts"] <= 3:
                    at = next((i for i, (a, b) in enumerate(zip(want, got)) if a != b),
                              min(len(want), len(got)))
                    print(f"{name} {mode}: differs at token {at}: want {want[at:at + 8]} "
                          f"got {got[at:at + 8]}, after {hf.decode(want[max(0, at - 5):at])!r}, "
                          f"text {text[:60]!r}", file=sys.stderr)
    decoded = run_tool(args.tool, args.model, ["decode"], expected)
    for want, got in zip((hf.decode(ids, skip_special_tokens=False) for ids in expected), decoded):
        result["different_decoded"] += want != got
    return result


def main():
    parser = argparse.ArgumentParser()
    for flag in ("--tool", "--model"):
        parser.add_argument(flag, required=True)
    parser.add_argument("--data", help="folder of text files")
    parser.add_argument("--random-mb", type=float, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every-character", action="store_true")
    args = parser.parse_args()
    hf = load(args.model)
    report = {"tokenizers": tokenizers.__version__, "unicode": unicodedata.unidata_version}
    for path in sorted(pathlib.Path(args.data).iterdir()) if args.data else []:
        report[path.name] = compare(args, hf, path.name, [path.read_bytes().decode("utf-8", "replace")])
    rng, texts, size = random.Random(args.seed), [], 0
    while size < args.random_mb * 1e6:
        texts.append(random_text(rng, rng.choice([3, 20, 200, 2000])))
        size += len(texts[-1].encode())
    report["random"] = compare(args, hf, "random", texts)
    if args.every_character:
        report["every_character"] = compare(args, hf, "every_character", every_character())
    bad = [r for r in report.values() if isinstance(r, dict)
           and (r["different_texts"] or r["different_decoded"])]
    report["tokens"] = sum(r["tokens"] for r in report.values() if isinstance(r, dict))
    print(json.dumps(report, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
