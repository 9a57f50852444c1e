"""Calibration texts: retrieval prompts, and what is taken from files."""

import gzip
import random

import pytest
import torch

from metattn_calibration import data, prompts
from metattn_calibration.errors import CalibrationError


@pytest.fixture
def source(loaded, text_file):
    return data.sources(loaded.tokenizer, [str(text_file)], "none")[0]


@pytest.mark.parametrize("form", sorted({**prompts.PASS_KEYS, **prompts.HELD_OUT}))
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_pass_key_is_said_once_and_asked_for_at_the_end(loaded, source, form, depth):
    needle = prompts.Needle(form, "58213", depth)
    prompt = prompts.pass_key(loaded.tokenizer, source, 700, random.Random(1), needle)
    text = loaded.tokenizer.decode(prompt.ids.tolist())
    assert len(prompt.ids) == 700 and text.endswith(" 58213") and text.count("58213") == 2
    assert loaded.tokenizer.decode(prompt.ids[-prompt.answer:].tolist()) == " 58213"
    place = text.index("58213") / len(text)
    assert abs(place - depth * 0.75) < 0.25


def test_exactly_the_rows_that_predict_an_answer_weigh_more(loaded, source):
    prompt = prompts.pass_key(loaded.tokenizer, source, 500, random.Random(2))
    heavy = (prompt.weights > 1).nonzero()[:, 0]
    assert heavy.tolist() == list(range(499 - prompt.answer, 499))
    prompt = prompts.lookups(loaded.tokenizer, source, 900, random.Random(2))
    predicted = loaded.tokenizer.decode(prompt.ids[1:][prompt.weights[:-1] > 1].tolist())
    text = loaded.tokenizer.decode(prompt.ids.tolist())
    assert len(predicted.split()) == 5
    for value in predicted.split():
        assert value.isdigit() and text.count(value) >= 2


def test_held_out_forms_are_never_drawn_for_training():
    forms = {prompts.any_needle(random.Random(i)).form for i in range(300)}
    assert forms == set(prompts.PASS_KEYS)
    assert not forms & set(prompts.HELD_OUT)


def test_a_repeated_passage_was_read_at_least_300_tokens_before(source):
    ids = prompts.repeats(source, 2000, random.Random(3), count=1).ids
    original = data.excerpt(source, 2000, random.Random(3))
    changed = (ids != original).nonzero()[:, 0]
    begin, end = changed[0].item(), changed[-1].item() + 1
    passage = ids[begin:end]
    earlier = [i for i in range(0, begin - 299) if torch.equal(original[i:i + len(passage)], passage)]
    assert earlier and len(passage) >= 20


def test_every_kind_of_text_is_drawn_and_has_its_length(loaded, source):
    kinds = set()
    for seed in range(60):
        kind, prompt = prompts.mixed(loaded.tokenizer, [source], 600, random.Random(seed))
        kinds.add(kind)
        assert len(prompt.ids) == len(prompt.weights) == 600
    assert kinds == {k for k, _ in prompts.MIX}


def test_a_part_of_a_file_can_be_named(tmp_path):
    file = tmp_path / "x.txt"
    file.write_text("0123456789")
    assert data.named_text(f"{file}:20-50")[1] == "234"
    assert data.named_text(str(file))[1] == "0123456789"
    for wrong in (f"{file}:50-20", f"{file}:0-101", str(tmp_path / "absent.txt")):
        with pytest.raises(CalibrationError, match="x.txt|absent.txt"):
            data.named_text(wrong)


def test_held_out_text_is_disjoint_from_training_text(source):
    (train,), (held,) = data.hold_out([source], 0.25)
    assert torch.equal(torch.cat([train.ids, held.ids]), source.ids)
    assert train.text + held.text == source.text


PROSE = "The tool reads a file and writes what it has found to the standard output in a readable form. "


def test_documentation_is_prose_from_plain_and_compressed_files(tmp_path):
    listing = "x = y(1, 2, 3);  {[ 0xFF | 0x01 ]} ;; $$$ 12 13 14 15 16 17 18 19 20 21 22 23\n" * 5
    (tmp_path / "README").write_text("\n\n".join([PROSE * 8, listing, PROSE * 20]))
    with gzip.open(tmp_path / "guide.txt.gz", "wb") as file:
        file.write(("\n" + PROSE.replace(" ", "\n", 3) * 30).encode())
    (tmp_path / "changelog.txt").write_text(PROSE * 30)
    (tmp_path / "broken.txt.gz").write_bytes(b"\x1f\x8b not gzip")
    text = data.documentation((tmp_path,))
    assert text.count("standard output") == 28 + 30
    assert "0xFF" not in text
    assert text == data.documentation((tmp_path,))


def test_a_machine_without_documentation_trains_on_the_named_texts(loaded, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "documentation", lambda roots=(): "")
    assert [s.kind for s in data.sources(loaded.tokenizer, [str(text_file)], "auto")] == ["text"]
    with pytest.raises(CalibrationError, match="documentation"):
        data.sources(loaded.tokenizer, [str(text_file)], str(tmp_path))
