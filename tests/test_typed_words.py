"""Command lines as they are typed: a bare phrase is what is searched for, and nothing else is taken for one."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_extraction.errors import InputError
from mil.cli import main
from mil.typed_words import with_key

KEYS = ["features=x", "out=y"]
TYPABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1)


@settings(max_examples=50, deadline=None)
@given(TYPABLE.filter(lambda text: text[0] not in "-~+" and "=" not in text))
def test_a_bare_phrase_becomes_the_query_letter_by_letter(text: str):
    command, word, *rest = with_key(["search", text, *KEYS])
    override = OverridesParser.create().parse_override(word)
    assert (command, override.key_or_group, override.value(), rest) == ("search", "text", text, KEYS)


@pytest.mark.parametrize(
    "words",
    [
        ["search", *KEYS, "text=keratin pearls"],
        ["search", "like=S1:0,0", "+a.b=1", "~labels", "--cfg", "job", "encoder.spec/x=1"],
        ["train", "keratin", "features=x"],
        ["search"],
    ],
)
def test_a_line_without_a_bare_phrase_stays_as_it_is(words: list[str]):
    assert with_key(words) == words


def test_the_phrase_may_stand_anywhere_and_hold_what_looks_like_a_formula():
    assert with_key(["search", *KEYS, "nuclei, N/C = 1"]) == ["search", *KEYS, "text='nuclei, N/C = 1'"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["keratin", "pearls"], "'keratin' and 'pearls' are two words, expected one text; put a phrase in quotes"),
        (["necrosis", "text=blood"], "'necrosis' stands for text=…, which is given too; give one of them"),
    ],
)
def test_two_texts_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(InputError, match="text"):
        with_key(["search", *words, *KEYS])
    assert main(["search", *words, *KEYS]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["necrosis", "keratin pearls", "tumour's edge, 5 µm"])
def test_the_command_is_given_the_phrase(text: str, capsys: pytest.CaptureFixture[str]):
    assert main(["search", text, *KEYS, "--cfg", "job"]) == 0
    assert f"text: {text}\n" in capsys.readouterr().out
