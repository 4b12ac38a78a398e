"""What words alone give away: placeholders, markup, look-alikes, negations. Pure functions of one text."""

import re
import unicodedata
from collections.abc import Sequence

_GENERIC = """
a abnormal an and area biopsy cancer cell cells disease finding findings h&e high histologic histological histology
histopathology image images in is lesion low micrograph microscopic microscopy normal of or pathological pathology
patch pattern patterns photo photomicrograph picture region sample section shows showing slide specimen stain stained
structure structures the this tile tissue tissues tumor tumors tumour tumours with
"""
GENERIC = frozenset(_GENERIC.split())
"""Words that every tile of a slide deserves."""
LONG_WORD = 4
"""Letters of one token, on average, where a tokenizer must cut the words of a profession into pieces."""

_PLACEHOLDER = re.compile(r"CLASSNAME|\{[^{}]*\}|\[[A-Za-z_ ]+\]|<[A-Za-z_ ]+>|%s|\$\{?\w+\}?|_{3,}|\bclass_?name\b")
_MARKUP = re.compile(r"\*\*|`|^#+\s|</\w+>|<\w+\s[^>]*>|&\w+;|\\n|https?://")
_LIST_REMNANT = re.compile(
    r"^\s*(?:[-*\u2022\u00b7\u2013\u2014]\s|\(?\d{1,2}[.):]\s|\(?[a-z][.)]\s|step \d)", re.IGNORECASE
)
_CHAT_REMNANT = re.compile(
    r"^\s*(?:sure[,!.]|certainly|of course|here (?:is|are)\b|here's|as an ai\b|i (?:cannot|can't|am)\b|answer:|note:)",
    re.IGNORECASE,
)
_TERMS_WITH_NO = re.compile(r"\bno special type\b|\bnot otherwise specified\b", re.IGNORECASE)
_NEGATION = re.compile(
    r"\b(?:no|not|without|absent|absence of|lack|lacks|lacking|devoid of|free of|never|neither|nor|instead of|"
    r"rather than|unlike|non-?(?:cancerous|malignant|neoplastic|tumou?r|tumou?rous|diseased|invasive))\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:[&'][^\W_]+)*")
_GREEK_LIKE_LATIN = frozenset(
    "\N{GREEK CAPITAL LETTER ALPHA}\N{GREEK CAPITAL LETTER BETA}\N{GREEK CAPITAL LETTER EPSILON}"
    "\N{GREEK CAPITAL LETTER ZETA}\N{GREEK CAPITAL LETTER ETA}\N{GREEK CAPITAL LETTER IOTA}"
    "\N{GREEK CAPITAL LETTER KAPPA}\N{GREEK CAPITAL LETTER MU}\N{GREEK CAPITAL LETTER NU}"
    "\N{GREEK CAPITAL LETTER OMICRON}\N{GREEK CAPITAL LETTER RHO}\N{GREEK CAPITAL LETTER TAU}"
    "\N{GREEK CAPITAL LETTER UPSILON}\N{GREEK CAPITAL LETTER CHI}\N{GREEK SMALL LETTER OMICRON}"
    "\N{GREEK SMALL LETTER NU}"
)
_INVISIBLE = frozenset({"Cc", "Cf", "Co", "Cn", "Cs"})


def find_placeholder(text: str) -> str:
    """The first place that somebody was to fill in, empty when there is none."""
    return _first(_PLACEHOLDER, text)


def find_markup(text: str) -> str:
    """The first piece of Markdown, HTML or an address, empty when there is none."""
    return _first(_MARKUP, text)


def find_list_remnant(text: str) -> str:
    """A bullet or a number that the text starts with, empty when there is none."""
    return _first(_LIST_REMNANT, text)


def find_chat_remnant(text: str) -> str:
    """What a language model says before it answers, empty when there is none."""
    return _first(_CHAT_REMNANT, text)


def find_negation(text: str) -> str:
    """The first word that denies; terms such as ``no special type`` are names and not meant."""
    return _first(_NEGATION, _TERMS_WITH_NO.sub(" ", text))


def find_strange(text: str) -> str:
    """Characters that nobody sees (controls, zero-width) or that pass for Latin ones, as code points; else empty."""
    invisible = [
        mark for mark in text if unicodedata.category(mark) in _INVISIBLE or mark == "\N{REPLACEMENT CHARACTER}"
    ]
    mixed = [mark for word in _WORD.findall(text) for mark in _foreign_letters(word)]
    return ", ".join(f"U+{ord(mark):04X}" for mark in dict.fromkeys(invisible + mixed))


def find_typographic(text: str) -> str:
    """Curly quotes, long dashes and unusual spaces, as code points; else empty."""
    found = [
        mark
        for mark in text
        if not mark.isascii() and unicodedata.category(mark) in ("Pd", "Pi", "Pf", "Ps", "Pe", "Po", "Zs", "Zl", "Zp")
    ]
    return ", ".join(f"U+{ord(mark):04X}" for mark in dict.fromkeys(found))


def is_generic(text: str) -> bool:
    """Whether every word of it would fit any tile."""
    words = [word.casefold() for word in _WORD.findall(text)]
    return all(word in GENERIC for word in words)


def canonical(text: str) -> str:
    """The text without case, spaces and punctuation."""
    return " ".join(word.casefold() for word in _WORD.findall(text))


def contains_name(text: str, name: str) -> bool:
    """Whether a name stands in a text as whole words, in the singular or with an s."""
    return re.search(rf"(?:^|\s){re.escape(canonical(name))}(?:e?s)?(?:\s|$)", canonical(text)) is not None


def estimated_tokens(text: str) -> int:
    """About how many tokens a CLIP-like tokenizer makes of it, start and end included; rather too many."""
    words: Sequence[str] = re.findall(r"[^\W_]+|[^\w\s]", text)
    return 2 + sum(-(-len(word) // LONG_WORD) for word in words)


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[0].strip() if found else ""


def _foreign_letters(word: str) -> list[str]:
    """Letters of another script in a word that has Latin letters: they look alike and are other tokens."""
    scripts = {mark: unicodedata.name(mark, "?").split()[0] for mark in word if mark.isalpha()}
    if "LATIN" not in scripts.values():
        return []
    return [
        mark
        for mark, script in scripts.items()
        if script in ("CYRILLIC", "ARMENIAN", "FULLWIDTH") or (script == "GREEK" and mark in _GREEK_LIKE_LATIN)
    ]
