"""Runs of the engine: `metattn eval` and `metattn generate`, a process each, their JSON read and kept in the store."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

from .. import data
from ..errors import CalibrationError
from .costs import Costs
from .store import Store, digest

MAGIC, VERSION = 0x4345444D, 2  # of a decision log
CHARACTERS = 6  # of a text for one token, at most, when excerpts are cut
LAST = 64       # positions whose bytes stand for decoding at that length


@dataclasses.dataclass
class Excerpt:
    text: str    # name of the text it is from
    number: int
    file: pathlib.Path
    digest: str


class Controller:
    """A controller directory as the engine is given it."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        try:
            self.description = json.loads((self.directory / "controller.json").read_text())
            self.digest = digest(self.directory / "controller.json", self.directory / "controller.safetensors")
            self.costs = Costs.of(self.description)
        except (OSError, ValueError, KeyError) as error:
            raise CalibrationError(f"{self.directory}: {error}") from error

    def tilted(self, offset, directory):
        """The same controller with `offset` added to full's offsets, as a directory beside the store."""
        target = pathlib.Path(directory) / f"{self.digest}-{offset:+g}"
        target.mkdir(parents=True, exist_ok=True)
        description = json.loads(json.dumps(self.description))
        for layer in description["offsets"]:
            for head in layer:
                head[0] += offset
        (target / "controller.json").write_text(json.dumps(description))
        link = target / "controller.safetensors"
        if not link.exists():
            link.symlink_to((self.directory / "controller.safetensors").resolve())
        return Controller(target)


class Engine:
    def __init__(self, binary, model, store: Store, options=(), quiet=False):
        """options: flags for every call, such as --threads 2."""
        self.binary, self.model, self.store, self.options = str(binary), str(model), store, list(options)
        self.quiet = quiet
        self.version = self._run(["--version"]).strip()

    def _run(self, arguments):
        command = [self.binary, *map(str, arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise CalibrationError(f"--engine {self.binary}: {error}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise CalibrationError(f"{self.binary} {arguments[0]} ended with {done.returncode}: {last}")
        return done.stdout

    def _json(self, arguments):
        out = self._run([arguments[0], "--model", self.model, *self.options, *arguments[1:], "--json"])
        try:
            return json.loads(out)
        except ValueError as error:
            raise CalibrationError(f"{self.binary} {arguments[0]} --json printed no JSON: {out[:200]!r}") from error

    def note(self, text):
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def evaluate(self, excerpt, length, controller=None, flags=(), record=False):
        """One window of `length` tokens. record: with the shares per layer and KV head and the bytes of the last rows."""
        key = ["eval", self.version, pathlib.Path(self.model).name, excerpt.digest, length,
               controller.digest if controller else None, list(map(str, flags)), record]
        arguments = ["eval", "--text", excerpt.file, "--context", length, "--max-tokens", length, *flags]
        if controller:
            arguments += ["--controller", controller.directory]

        def measured():
            self.note(f"eval {excerpt.text} #{excerpt.number}, {length} tokens, {' '.join(map(str, flags)) or 'as shipped'}"
                      f"{'' if controller else ', unmodified'}")
            if not record:
                return self._json(arguments)
            with tempfile.TemporaryDirectory(dir=self.store.directory) as folder:
                found = self._json([*arguments, "--record-decisions", folder])
                return {**found, **decisions(folder, controller, found["attention_bytes_ratio"])}

        return self.store.get(key, measured)

    def answer(self, prompt, tokens, controller=None):
        """Greedy continuation of a prompt."""
        key = ["generate", self.version, pathlib.Path(self.model).name, digest(prompt), tokens,
               controller.digest if controller else None]

        def measured():
            with tempfile.NamedTemporaryFile("w", dir=self.store.directory, suffix=".txt", encoding="utf-8") as file:
                file.write(prompt)
                file.flush()
                arguments = ["generate", "--prompt-file", file.name, "--temperature", 0, "--max-tokens", tokens]
                found = self._json(arguments + (["--controller", controller.directory] if controller else []))
            return {k: found.get(k) for k in ("text", "prompt_tokens", "routing")}

        return self.store.get(key, measured)


def read_log(folder):
    """The decisions of a one-rank run -> [N] records: position, cells [layers, heads], their margins."""
    file = pathlib.Path(folder) / "rank-0.decisions"
    raw = file.read_bytes()
    magic, version, layers, heads, begin, end = np.frombuffer(raw, "<i4", 6).tolist() if len(raw) >= 24 else [0] * 6
    if (magic, version, begin, end) != (MAGIC, VERSION, 0, heads) or layers < 1 or heads < 1:
        raise CalibrationError(f"{file}: not the decision log of a run with one rank")
    record = np.dtype([("request", "<u8"), ("position", "<i8"), ("cells", "u1", (layers, heads)), ("margins", "<f4", (layers, heads))])
    if (len(raw) - 24) % record.itemsize:
        raise CalibrationError(f"{file}: ends in the middle of a record")
    return np.frombuffer(raw, record, offset=24)


def decisions(folder, controller, engine_ratio):
    """-> counts [layers, KV heads, 3] of eligible rows, and the bytes of the last rows over dense."""
    log = read_log(folder)
    position, cells = log["position"], log["cells"]
    costs, count = controller.costs, cells.shape[1] * cells.shape[2]
    full, linear = ((cells == m).sum((1, 2)) for m in (0, 1))
    whole = costs.ratio(position, full, linear, count)
    if abs(whole - engine_ratio) > 1e-6:
        raise CalibrationError(f"bytes by the decisions are {whole:.6f} of dense, the engine counted {engine_ratio:.6f}: "
                               "report/costs.py and the engine differ")
    eligible = cells[costs.far(position) > 0]
    last = position > position.max() - LAST
    return {"counts": np.stack([(eligible == m).sum(0) for m in range(3)], -1).tolist(),
            "last_bytes_ratio": costs.ratio(position[last], full[last], linear[last], count)}


def excerpts(arguments, length, count, directory):
    """{text name: [Excerpt]}, evenly spaced over each FILE[:FROM-TO], cut at the end of a word."""
    directory, out = pathlib.Path(directory), {}
    directory.mkdir(parents=True, exist_ok=True)
    for argument in arguments:
        name, text = data.named_text(argument)
        size, found = CHARACTERS * length, []
        room = max(0, len(text) - size)
        for number in range(count if room else 1):
            begin = room * number // max(1, count - 1)
            begin = begin and text.find(" ", begin) + 1
            piece = text[begin:begin + size]
            file = directory / f"{digest(piece)}.txt"
            if not file.exists():
                file.write_text(piece, encoding="utf-8")
            found.append(Excerpt(name, number, file, file.stem))
        out[name] = found
    return out


def mean_error(differences):
    """Mean and standard error over windows; None where there is one only."""
    d = np.asarray(differences, dtype=float)
    return float(d.mean()), float(d.std(ddof=1) / len(d) ** 0.5) if len(d) > 1 else None
