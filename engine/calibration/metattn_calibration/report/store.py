"""Where a report's measurements are kept: a line of JSON each, so that a run that was interrupted continues."""

import hashlib
import json
import math
import pathlib

from ..errors import CalibrationError
from ..export import replace


class Store:
    """Key -> value on disk; keys are anything that json.dumps takes."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.file, self.values = self.directory / "measured.jsonl", {}
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                key, value = json.loads(line)
            except ValueError as error:
                if number == len(lines):  # the run ended while it wrote this line
                    continue
                raise CalibrationError(f"{self.file}:{number}: damaged ({error}); remove the line to measure it again") from error
            self.values[self._name(key)] = value

    @staticmethod
    def _name(key):
        return json.dumps(key, sort_keys=True)

    def get(self, key, measure):
        """The stored value, else measure()'s, stored at once."""
        name = self._name(key)
        if name not in self.values:
            value = json.loads(json.dumps(clean(measure())))  # what a later run will read
            with open(self.file, "a") as file:
                file.write(json.dumps([key, value]) + "\n")
            self.values[name] = value
        return self.values[name]


def clean(value):
    """Without numbers that JSON has no word for: they become null."""
    if isinstance(value, dict):
        return {k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def digest(*parts):
    """Of files (their content) and texts, in order."""
    sums = hashlib.sha256()
    for part in parts:
        sums.update(part.read_bytes() if isinstance(part, pathlib.Path) else str(part).encode())
        sums.update(b"\0")
    return sums.hexdigest()[:16]


def write_json(path, value):
    replace(pathlib.Path(path), (json.dumps(clean(value), indent=1) + "\n").encode())
