"""Calibration text: files the user names, documentation of the machine, and their division into token sequences."""

import dataclasses
import gzip
import hashlib
import pathlib
import re

import torch

from .errors import CalibrationError

DOC_ROOTS = ("/usr/share/info", "/usr/share/doc", "/usr/share/perl", "/usr/share/man/man7", "/usr/share/man/man5")
DOC_NAME = re.compile(r"\.(info(-\d+)?|txt|md|rst|pod|[57])(\.gz)?$|^(README|FAQ|INTRO|HOWTO|TUTORIAL|MANUAL)[^/]*$", re.I)
DOC_SKIP = re.compile(r"changelog|copyright|licen[cs]e|authors|thanks|NEWS", re.I)
DOC_BYTES = 3_000_000   # of prose, taken evenly from the roots
DOC_FILE_BYTES = 150_000  # of one file
WORD = re.compile(r"[A-Za-z][a-z']+")


@dataclasses.dataclass
class Source:
    name: str
    kind: str           # "text" or "documentation"
    text: str
    ids: torch.Tensor   # int64


def named_text(argument):
    """FILE or FILE:FROM-TO, in percent of its characters -> name, text."""
    match = re.fullmatch(r"(.*):(\d+)-(\d+)", argument)
    path, begin, end = (match[1], int(match[2]), int(match[3])) if match else (argument, 0, 100)
    if not 0 <= begin < end <= 100:
        raise CalibrationError(f"{argument}: {begin}-{end} is not a part of a file in percent")
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise CalibrationError(f"{path}: {error}") from error
    return pathlib.Path(path).name + (f" {begin}-{end} %" if match else ""), \
        text[len(text) * begin // 100:len(text) * end // 100]


def documentation(roots=DOC_ROOTS, limit=DOC_BYTES):
    """Prose of the machine's documentation, the same for the same files; "" where there is none."""
    parts = []
    for root in roots:
        taken = 0
        for path in sorted(pathlib.Path(root).rglob("*"), key=_shuffled) if pathlib.Path(root).is_dir() else ():
            if taken >= limit // len(roots) or not DOC_NAME.search(path.name) or DOC_SKIP.search(str(path)):
                continue
            prose = prose_of(_read(path))[:DOC_FILE_BYTES]
            if len(prose) > 1500:
                parts.append(prose)
                taken += len(prose)
    return "\n\n\n".join(parts)


def _shuffled(path):
    return hashlib.sha256(str(path).encode()).digest()


def _read(path):
    try:
        if not path.is_file() or path.is_symlink():
            return ""
        data = path.read_bytes()[:2 * DOC_FILE_BYTES]
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                data = file.read(2 * DOC_FILE_BYTES)
    except (OSError, EOFError):
        return ""
    return data.decode("utf-8", errors="replace")


def prose_of(text):
    """The paragraphs that read like sentences, each unwrapped into one line; markup of man pages and info removed."""
    text = re.sub(r'^\.[A-Z][A-Za-z]?[ \t]*|^\.\\".*$|\\f[A-Z]|\\&|^=\w+[ \t]*', "", text, flags=re.M)
    text = re.sub(r"[A-Z]<([^<>]*)>", r"\1", text.replace("\\-", "-").replace("\x1f", "\n\n"))
    kept = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        line = " ".join(paragraph.split())
        letters = sum(map(len, WORD.findall(line)))
        if (len(line) > 150 and letters > 0.72 * len(line)) or (kept and 8 < len(line) < 60 and letters > 0.8 * len(line)):
            kept.append(line)
    return "\n\n".join(kept)


def sources(tokenizer, texts, docs="auto"):
    """docs: "auto" (the machine's), "none", or a directory."""
    found = []
    for argument in texts:
        name, text = named_text(argument)
        found.append(_source(tokenizer, name, "text", text))
    if docs != "none":
        text = documentation() if docs == "auto" else documentation((docs,))
        if text:
            found.append(_source(tokenizer, "documentation", "documentation", text))
        elif docs != "auto":
            raise CalibrationError(f"{docs}: no readable documentation text in it")
    return found


def _source(tokenizer, name, kind, text):
    ids = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
    if len(ids) < 64:
        raise CalibrationError(f"{name}: {len(ids)} tokens are too few to train on")
    return Source(name, kind, text, ids)


def hold_out(found, fraction=0.06):
    """-> sources without, and with nothing but, the last part of each: the offsets are chosen on the latter."""
    train, held = [], []
    for s in found:
        cut, cut_text = (int(len(x) * (1 - fraction)) for x in (s.ids, s.text))
        train.append(dataclasses.replace(s, ids=s.ids[:cut], text=s.text[:cut_text]))
        held.append(dataclasses.replace(s, ids=s.ids[cut:], text=s.text[cut_text:]))
    return train, held


def facts(found):
    """What controller.json says about the texts; the digest shows whether two runs had the same ones."""
    return [{"name": s.name, "kind": s.kind, "tokens": len(s.ids),
             "sha256": hashlib.sha256(s.ids.numpy().astype("<i4").tobytes()).hexdigest()[:16]} for s in found]


def excerpt(source, length, rng):
    """A run of `length` tokens at a place of rng's choice; a short source is repeated."""
    ids = source.ids
    if len(ids) < length + 1:
        ids = ids.repeat(-(-(length + 1) // len(ids)))
    begin = rng.randrange(len(ids) - length)
    return ids[begin:begin + length]


def words(source, count, rng):
    """About `count` characters of the source with white space collapsed, from the start of a sentence."""
    text = source.text
    begin = rng.randrange(max(1, len(text) - count - 400))
    line = " ".join(text[begin:begin + count + 400].split())
    return line[line.find(". ") + 2:]
