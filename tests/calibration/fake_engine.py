#!/usr/bin/env python3
"""What `metattn eval` and `metattn generate` print, without a model: for the tests of the report's reader only.

The loss is a fixed function of the flags, decisions are a fixed pattern, bytes are counted by a loop of its own. Nothing here
says anything about the engine.
"""

import argparse
import json
import pathlib
import re
import struct
import sys

WINDOW, SINKS, BLOCK, D, GROUP = 256, 4, 64, 16, 2
LAYERS, HEADS = 1, 1


def mechanism(position, share):
    return 0 if position % 100 < round(100 * share) else 1 + (position % 100 == 99)


def bytes_of(n, far, chosen):
    """One row of one KV head."""
    token, f = 4 * D, 2 * D
    if far <= 0:
        return n * token
    read = (n - far) * token + 2 * GROUP * D * D + 4 * f
    return read + (far * token if chosen == 0 else f * D * 4 if chosen == 1 else 0)


def evaluate(args):
    share = args.force_share
    if share is None:
        offset = 0.0
        if args.controller:
            offset = json.loads((pathlib.Path(args.controller) / "controller.json").read_text())["offsets"][0][0][0]
        share = 0.2 + 0.1 * offset - 0.02 * args.cost_weight + 0.5 * (0.98 - args.eta)
        share = round(min(0.9, max(0.0, share)), 2)
    read = dense = 0
    counts, records = [0, 0, 0], []
    for t in range(args.context):
        far = max(0, t - WINDOW + 1) // BLOCK * BLOCK - SINKS
        chosen = mechanism(t, share)
        read, dense = read + bytes_of(t + 1, far, chosen), dense + (t + 1) * 4 * D
        counts[chosen] += far > 0
        records.append(struct.pack("<QqBf", 1, t, chosen if far > 0 else 2, 0))
    if args.record_decisions:
        folder = pathlib.Path(args.record_decisions)
        (folder / "rank-0.decisions").write_bytes(struct.pack("<II4i", 0x4345444D, 2, LAYERS, HEADS, 0, HEADS) + b"".join(records))
    dense_nll = 3 + 0.001 * (len(pathlib.Path(args.text).read_text()) % 7)
    if not args.controller:
        return {"nll": dense_nll, "share": None, "uncertainty": None, "attention_bytes_ratio": 1.0}
    return {"nll": dense_nll + 0.1 * (1 - share), "uncertainty": 0.7, "attention_bytes_ratio": read / dense,
            "share": {name: c / sum(counts) for name, c in zip(("full", "linear", "local"), counts)}}


def generate(args):
    """Knows the key where no controller routes; with one it forgets keys that end in an even digit."""
    prompt = pathlib.Path(args.prompt_file).read_text()
    key = re.search(r"\d{5}", prompt)[0]
    found = {"text": f" {key}", "prompt_tokens": len(prompt), "routing": None}
    if args.controller:
        found.update(routing={"full": 0.2}, text=f" {key}" if int(key) % 2 else " 00000")
    return found


def main():
    if "--version" in sys.argv:
        print("metattn 0 (fake)")
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=("eval", "generate"))
    for flag in ("model", "text", "controller", "record-decisions", "prompt-file"):
        parser.add_argument("--" + flag)
    for flag, value in (("force-share", None), ("cost-weight", 0.0), ("eta", 0.98), ("temperature", None)):
        parser.add_argument("--" + flag, type=float, default=value)
    for flag in ("context", "max-tokens"):
        parser.add_argument("--" + flag, type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.command == "eval" and len(pathlib.Path(args.text).read_text()) < args.context:
        print(f"ERROR --text: too few tokens, one window of --context {args.context} does not fit", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(evaluate(args) if args.command == "eval" else generate(args)))


if __name__ == "__main__":
    main()
