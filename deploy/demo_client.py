#!/usr/bin/env python3
"""The demo's terminal: several `metattnctl generate` at once, their tokens as they come, then what they cost.

Standard library only. Each job's text is printed in lines that begin with the job's name; a line goes out when it is
full or when its oldest token has waited for half a second.
"""

import argparse
import codecs
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

WIDTH = 96
PATIENCE = 1.0  # seconds a token may wait for its line to fill

CHATS = [
    ("chat 1", "What is the capital of France, and what is it known for?"),
    ("chat 2", "Explain in three sentences why the sky is blue."),
    ("chat 3", "Give me three tips for learning to play the guitar."),
]
LONG_TOKENS = 4000
BYTES_PER_TOKEN = 3.55  # of our documents with SmolLM2's tokenizer; the summary prints the exact count
COLOURS = [36, 33, 32, 35]

# The line metattnctl ends with on standard error.
SUMMARY = re.compile(r"\[(\d+) prompt tokens.*?, (\d+) generated, (\w+); first token after (\S+) ms, "
                     r"then (\S+) tokens/s;")


class Job:
    """One metattnctl process and the text of it that has not been printed yet."""

    def __init__(self, name, command, colour):
        self.name, self.colour = name, colour
        self.pending, self.oldest = "", None
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a read may end inside a character
        self.events = tempfile.TemporaryFile()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.events)
        os.set_blocking(self.process.stdout.fileno(), False)

    def add(self, data):
        self.pending += self.decoder.decode(data)
        self.oldest = self.oldest or time.monotonic()
        self.emit(final=False)

    def emit(self, final):
        """Prints full lines, and what is left when it has waited long enough."""
        overdue = self.oldest is not None and time.monotonic() - self.oldest > PATIENCE
        text = self.pending
        while text:
            line, newline, rest = text.partition("\n")
            if len(line) > WIDTH:
                cut = line.rfind(" ", 0, WIDTH) + 1 or WIDTH
                line, rest, newline = text[:cut], text[cut:], "\n"
            elif not newline and not final:
                cut = line.rfind(" ")  # the last word may go on
                if not overdue or cut < 1:
                    break
                line, rest, overdue = text[:cut], text[cut:], False
            self.print(line)
            text = rest
        if len(text) < len(self.pending):
            self.oldest = time.monotonic()
        self.pending = text

    def print(self, line):
        if not line.strip():
            return
        tag = f"[{self.name}]"
        if sys.stdout.isatty():
            tag = f"\x1b[{self.colour}m{tag}\x1b[0m"
        print(tag, line.strip(), flush=True)

    def error_text(self):
        self.events.seek(0)
        return self.events.read().decode(errors="replace").strip()


def run(jobs):
    """Prints until every job has ended."""
    selector = selectors.DefaultSelector()
    for job in jobs:
        selector.register(job.process.stdout, selectors.EVENT_READ, job)
    while selector.get_map():
        for key, _ in selector.select(timeout=0.1):
            data = key.fileobj.read()
            if data:
                key.data.add(data)
            elif data == b"":
                selector.unregister(key.fileobj)
                key.data.emit(final=True)
        for job in jobs:
            job.emit(final=False)
    for job in jobs:
        job.process.wait()


def scrape(url):
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.read().decode()


def by_rank(text, name):
    pattern = rf'^{name}\{{[^}}]*rank="(\d+)"[^}}]*\}} (\S+)$'
    sums = {}
    for match in re.finditer(pattern, text, re.M):
        sums[int(match.group(1))] = sums.get(int(match.group(1)), 0.0) + float(match.group(2))
    return sums


def print_ranks(before, after):
    columns = [("step s", "metattn_rank_step_seconds_total"), ("attention s", "metattn_rank_attention_seconds_total"),
               ("collective wait s", "metattn_rank_collective_wait_seconds_total"),
               ("transfer s", "metattn_rank_collective_transfer_seconds_total")]
    print(f"\n{'rank':<8}" + "".join(f"{title:>19}" for title, _ in columns))
    old = {name: by_rank(before, name) for _, name in columns}
    new = {name: by_rank(after, name) for _, name in columns}
    for rank in sorted(new[columns[0][1]]):
        cells = (new[name].get(rank, 0.0) - old[name].get(rank, 0.0) for _, name in columns)
        print(f"{rank:<8}" + "".join(f"{cell:>19.2f}" for cell in cells))


def print_routing(before, after):
    """Where the tokens of the run read their context, and what attention read of what full attention would have."""
    def gained(name, labels=""):
        pattern = rf"^{name}\{{[^}}]*{labels}[^}}]*\}} (\S+)$"
        new, old = (sum(float(v) for v in re.findall(pattern, text, re.M)) for text in (after, before))
        return new - old

    rows = {m: gained("metattn_rank_routed_rows_total", f'mechanism="{m}"') for m in ("full", "linear", "local")}
    dense, total = gained("metattn_rank_attention_dense_bytes_total"), sum(rows.values())
    if total > 0:
        shares = ", ".join(f"{m} {100 * n / total:.1f} %" for m, n in rows.items())
        print(f"\nrouting: of rows (token, layer, KV head) with a context beyond the window {shares}")
    if dense > 0:
        read = gained("metattn_rank_attention_read_bytes_total")
        print(f"attention read {read / 1e9:.2f} GB of the {dense / 1e9:.2f} GB that full attention reads: "
              f"{100 * (1 - read / dense):.0f} % saved")


def print_jobs(jobs):
    """One line a job from the line metattnctl ends with; True when all have one."""
    print(f"\n{'job':<10}{'prompt':>9}{'generated':>11}{'first token ms':>16}{'then tokens/s':>15}  ended by")
    complete = True
    for job in jobs:
        match = SUMMARY.search(job.error_text())
        if job.process.returncode != 0 or not match:
            print(f"{job.name:<10} failed with code {job.process.returncode}: {job.error_text()}")
            complete = False
            continue
        prompt, generated, reason, first, rate = match.groups()
        print(f"{job.name:<10}{prompt:>9}{generated:>11}{first:>16}{rate:>15}  {reason}")
    return complete


def counter(text, name):
    return sum(float(v) for v in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.M))


def start_jobs(args, folder):
    with open(args.documents, "rb") as file:
        text = file.read(int(LONG_TOKENS * BYTES_PER_TOKEN)).decode("utf-8", errors="ignore")
    prompt_file = os.path.join(folder, "prompt")
    with open(prompt_file, "w", encoding="utf-8") as file:
        file.write(text + "\n\nWhat is the software described above? Answer in a few sentences.")
    base = [args.ctl, "generate", "--server", args.server, "--chat"]
    commands = [(name, [*base, "--max-tokens", "120", text]) for name, text in CHATS]
    commands.append(("document", [*base, "--max-tokens", "120", "--repetition-penalty", "1.1", "--prompt-file",
                                  prompt_file]))
    return [Job(name, command, colour) for (name, command), colour in zip(commands, COLOURS)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ctl", required=True, help="the metattnctl program")
    parser.add_argument("--server", required=True, help="host:port")
    parser.add_argument("--metrics", required=True, help="URL of the metrics")
    parser.add_argument("--documents", required=True, help="file that the long prompt is cut from")
    args = parser.parse_args()

    before, begin = scrape(args.metrics), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        jobs = start_jobs(args, folder)
        try:
            run(jobs)
        except KeyboardInterrupt:
            return 130
        finally:
            for job in jobs:
                if job.process.poll() is None:
                    job.process.terminate()
                    job.process.wait()
    elapsed, after = time.monotonic() - begin, scrape(args.metrics)

    complete = print_jobs(jobs)
    totals = [counter(after, n) - counter(before, n)
              for n in ("metattn_prompt_tokens_total", "metattn_generation_tokens_total")]
    print(f"\ntogether: {totals[0]:.0f} prompt and {totals[1]:.0f} generated tokens in {elapsed:.1f} s")
    print_ranks(before, after)
    print_routing(before, after)
    print(f"\nmetrics: {args.metrics}")
    return 0 if complete else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
