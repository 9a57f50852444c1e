"""Other seeds beside this controller: measured here, or read from their reports on the same windows."""

import json
import pathlib

from ..errors import CalibrationError
from . import measure, quality

SAME = ("model", "fingerprint", "engine", "text_digests")  # of two reports whose windows can be compared
FIGURES = ("delta", "error", "full")  # of a mean over windows, what the spread is made of


def entry(controller, means):
    """means: {length as text: mean over windows, with FIGURES at least}."""
    return {"seed": controller.description["training"].get("seed"), "lengths": means}


def told(file, about, lengths, excerpts):
    """The figures of another controller's report.json; refused unless its windows are these."""
    try:
        report = json.loads(pathlib.Path(file).read_text())
        theirs, found, facts = report["about"], report["quality"]["lengths"], report["training"]["facts"]
        other = next((name for name in SAME if theirs[name] != about[name]), None)
        if other:
            raise CalibrationError(f"--also {file}: its {other} is {theirs[other]}, here it is {about[other]}")
        for length in lengths:
            counts = {name: row["windows"] for name, row in found.get(str(length), {}).items() if name != "mean"}
            if len(counts) != len(theirs["text_digests"]) or set(counts.values()) != {excerpts}:
                raise CalibrationError(f"--also {file}: windows of {length} tokens by text are {counts or 'missing'}, here {excerpts} each")
        return {"seed": facts.get("seed"), "lengths": {str(n): {k: found[str(n)]["mean"][k] for k in FIGURES} for n in lengths}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"--also {file}: not a report of a controller's quality and training "
                               f"({type(error).__name__}: {error})") from error


def read(also, about, lengths, excerpts):
    """also: directories of controllers, or report.json files. -> Controllers, and entries of those that have a report."""
    return [told(other, about, lengths, excerpts) if pathlib.Path(other).is_file() else measure.Controller(other) for other in also]


def compare(engine, mine, others, texts, lengths):
    """mine: this controller's own entry; others: what `read` gave. -> entries, mine first."""
    def measured(other):
        return entry(other, {str(n): quality.table(engine, texts[n], n, other)[0]["mean"] for n in lengths})

    found = [other if isinstance(other, dict) else measured(other) for other in others]
    return [{"name": f"controller {number}", **e} for number, e in enumerate([mine, *found], 1)]
