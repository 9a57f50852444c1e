"""One training run on disk: settings, the state of each stage, a log of JSON lines, progress with the time left.

A stage saves its state under its name; whatever it needs at random comes from (seed, stage, step), so a run that was
interrupted and resumed does exactly what an undisturbed one does.
"""

import hashlib
import io
import json
import os
import pathlib
import random
import sys
import time

import torch

from .errors import CalibrationError
from .export import replace

SAVE_SECONDS = 60  # between two states of one stage


def seed_of(*key):
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:6], "little")


class Run:
    """nominal: stage -> seconds it is expected to take on the reference machine (two cores with AMX)."""

    def __init__(self, directory, settings, nominal, quiet=False):
        self.directory, self.settings, self.nominal, self.quiet = pathlib.Path(directory), settings, nominal, quiet
        self.directory.mkdir(parents=True, exist_ok=True)
        self._done, self._worked, self._begin, self._saved, self._shown = 0.0, 0.0, time.monotonic(), 0.0, 0.0
        file = self.directory / "settings.json"
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if file.exists() and file.read_text() != text:
            raise CalibrationError(f"{file}: a run with other settings is unfinished here; use another --out or remove "
                                   f"{self.directory}")
        replace(file, text.encode())

    def rng(self, *key):
        return random.Random(seed_of(self.settings["seed"], *key))

    def generator(self, *key):
        return torch.Generator().manual_seed(seed_of(self.settings["seed"], *key))

    def load(self, stage):
        """The last saved state of a stage or None."""
        file = self.directory / f"{stage}.pt"
        if not file.exists():
            return None
        try:
            state = torch.load(file, map_location="cpu")
        except Exception as error:  # pickle and zip errors of several kinds
            raise CalibrationError(f"{file}: damaged ({error}); remove it to repeat that stage") from error
        self.skip(stage, state["step"] / max(1, state["steps"]))
        return state

    def skip(self, stage, share=1.0):
        """That part of a stage is not done again: it counts in the time left only."""
        self._done += self.nominal.get(stage, 0.0) * share

    def save(self, stage, step, steps, values, force=False):
        """Saves when the stage is over or the last save is SAVE_SECONDS ago."""
        now = time.monotonic()
        if not force and step < steps and now - self._saved < SAVE_SECONDS:
            return
        buffer = io.BytesIO()
        torch.save({"step": step, "steps": steps, **values}, buffer)
        replace(self.directory / f"{stage}.pt", buffer.getvalue())
        self._saved = now

    def log(self, stage, **values):
        values = {"time": round(time.time(), 1), "elapsed": round(time.monotonic() - self._begin, 1),
                  "cpu": round(time.process_time(), 1), "stage": stage, "peak_gb": round(peak_memory(), 2), **values}
        with open(self.directory / "log.jsonl", "a") as file:
            file.write(json.dumps(values) + "\n")

    def progress(self, stage, step, steps, note="", share=None):
        """After a step. share: of the stage's nominal time that this step took (default: equal steps)."""
        amount = self.nominal.get(stage, 0.0) * (1 / max(1, steps) if share is None else share)
        self._done, self._worked = self._done + amount, self._worked + amount
        now = time.monotonic()
        if self.quiet or (now - self._shown < 10 and step < steps):
            return
        self._shown = now
        left = max(0.0, sum(self.nominal.values()) - self._done) * (now - self._begin) / max(1e-9, self._worked)
        memory = peak_memory()
        print(f"{stage} {step}/{steps}, {left / 60:.0f} min left, {memory:.1f} GB: {note}", file=sys.stderr, flush=True)


def peak_memory():
    """Peak resident size of this process in GB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20) if os.name == "posix" else 0.0
