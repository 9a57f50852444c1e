"""WikiText to running text: every rule, and files."""

import json

import pytest

from metattn_calibration import cli, wikitext


@pytest.mark.parametrize("corpus, plain", [
    ("a well @-@ known town of 1 @,@ 000 people , 2 @.@ 5 km away .", "a well-known town of 1,000 people, 2.5 km away."),
    ('He said , " it is so " ; then left .', 'He said, "it is so"; then left.'),
    ("Moby 's ship did n't sink ( yet ) [ 1 ] : it 's $ 5 or £ 6", "Moby's ship didn't sink (yet) [1]: it's $5 or £6"),
    ("a species of <unk> lobster", "a species of lobster"),
    ("the ' old ' one", "the 'old' one"),
    (" = Title = \n \n Text .", " = Title = \n \n Text."),
])
def test_rules(corpus, plain):
    assert wikitext.detokenise(corpus) == plain


def test_quotes_do_not_reach_over_lines():
    assert wikitext.detokenise('a " b\n c " d') == 'a " b\n c " d'


def test_command(tmp_path, capsys):
    source, target = tmp_path / "wiki.raw", tmp_path / "plain.txt"
    source.write_text("One , two .", encoding="utf-8")
    assert cli.main(["detokenise", str(source), str(target)]) == 0
    assert target.read_text(encoding="utf-8") == "One, two."
    assert json.loads(capsys.readouterr().out) == {"read": 11, "written": 9}


def test_a_missing_file_is_named(tmp_path, capsys):
    assert cli.main(["detokenise", str(tmp_path / "none"), str(tmp_path / "out")]) == 1
    assert "none" in capsys.readouterr().err
