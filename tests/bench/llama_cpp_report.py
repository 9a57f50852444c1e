"""Joins what llama_cpp.sh collected: `greedy FOLDER` compares continuations, `report FOLDER BUILT_WITH TEXT` prints JSON."""

import json
import os
import pathlib
import sys


def load(folder, name):
    return json.loads(pathlib.Path(folder, name).read_text())


def greedy(folder):
    ours = load(folder, "ours.greedy")["text"]
    theirs = load(folder, "theirs.greedy")
    for setting in ("flash_off", "flash_on"):
        if ours != theirs[setting]:
            sys.exit(f"the engines do not agree, so nothing is timed: metattn continues {ours!r}, llama.cpp "
                     f"({setting}) {theirs[setting]!r}")
    print(f"both engines continue with {ours!r}", file=sys.stderr)


def best(result, figure):
    """The better of flash attention on and off, with the setting's name."""
    return max(((result[s][figure], s) for s in ("flash_off", "flash_on")), key=lambda pair: pair[0])


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def report(folder, built_with, text):
    theirs = {c: load(folder, f"theirs.{c}") for c in (0, 4096)}
    ours = {c: load(folder, f"ours.{c}") for c in (0, 4096)}
    ranks = load(folder, "ours.ranks")
    works = [("prefill_512", 0, "prefill_tokens_per_s"), ("decode_context_0", 0, "decode_tokens_per_s"),
             ("decode_context_4096", 4096, "decode_tokens_per_s")]
    rows = {}
    for name, context, figure in works:
        peer, setting = best(theirs[context], figure)
        mine = ours[context][figure]
        rows[name] = {"metattn": round(mine, 1), "llama_cpp": round(peer, 1), "llama_cpp_setting": setting,
                      "ratio": round(mine / peer, 3)}
    splits = {}
    for name, figure in (("prefill_512", "prefill_tokens_per_s"), ("decode_context_0", "decode_tokens_per_s")):
        splits[name] = {"tokens_per_s": round(ranks[figure], 1), "of_one_rank": round(ranks[figure] / ours[0][figure], 3)}
    print(json.dumps({
        "unit": "tokens/s", "threads": ours[0]["threads_per_rank"], "works": rows,
        f"ranks_{ranks['ranks']}x{ranks['threads_per_rank']}": splits,
        "metattn_isa": ours[0]["isa"], "llama_cpp": theirs[0]["engine"], "llama_cpp_built_with": built_with,
        "llama_cpp_system": theirs[0]["system"], "cpu": cpu(), "load_average": os.getloadavg()[0],
        "text": pathlib.Path(text).name,
    }, indent=2))


if __name__ == "__main__":
    {"greedy": greedy, "report": report}[sys.argv[1]](*sys.argv[2:])
