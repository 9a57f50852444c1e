"""Compares the tokenizer of a GGUF file with Hugging Face tokenizers. Opt-in: needs PyPI packages.

    python3 -m venv VENV && VENV/bin/pip install tokenizers gguf
    VENV/bin/python tests/engine/tokenizer_diff.py --tool build/release/bin/tokenizer_tool \
        --model MODEL.gguf --data ../shared/data [--random-mb 4]

Takes vocabulary, merges and token types from the file, builds the same tokenizer with the library,
and compares ids of every text file whole and of random Unicode, with special tokens read in the
text and without, and the decoded text of both. Prints one JSON object; exits 1 on any difference.
"""
import argparse
import json
import pathlib
import random
import subprocess
import sys

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

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
        expected = [hf.encode(t, add_special_tokens=False).ids for t in texts]
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
    args = parser.parse_args()
    hf = from_gguf(args.model)
    report = {"tokenizers": tokenizers.__version__}
    for path in sorted(pathlib.Path(args.data).iterdir()) if args.data else []:
        report[path.name] = compare(args, hf, path.name, [path.read_bytes().decode("utf-8", "replace")])
    rng, texts, size = random.Random(args.seed), [], 0
    while size < args.random_mb * 1e6:
        texts.append(random_text(rng, rng.choice([3, 20, 200, 2000])))
        size += len(texts[-1].encode())
    report["random"] = compare(args, hf, "random", texts)
    bad = [r for r in report.values() if isinstance(r, dict)
           and (r["different_texts"] or r["different_decoded"])]
    report["tokens"] = sum(r["tokens"] for r in report.values() if isinstance(r, dict))
    print(json.dumps(report, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
