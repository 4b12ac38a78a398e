"""An encoder's card, the ``spec:`` block of its yaml, as an `EncoderSpec`: facts that are known without its weights."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import cast

from feature_extraction.encoder import EncoderSpec
from feature_extraction.errors import InputError

Triple = tuple[float, float, float]


def read_spec(card: Mapping[str, object]) -> EncoderSpec:
    """Check a card and make it an `EncoderSpec`.

    Raises:
        InputError: An unknown or missing key, or a value that cannot be; all defects at once.
    """
    known = {field.name: field for field in fields(EncoderSpec)}
    needed = {name for name, field in known.items() if field.default is MISSING}
    name = card.get("name", "?")
    defects = [f"unknown key {key}" for key in sorted(set(card) - set(known))]
    defects += [f"{key} is missing" for key in sorted(needed - set(card))]
    defects += [] if defects else _wrong_values(card)
    if defects:
        raise InputError(f"encoder {name}: its card (spec:) is wrong: {'; '.join(defects)}")
    content = dict(card)
    for key in ("mean", "std"):
        content[key] = _triple(card[key])
    content["licence_ancestry"] = tuple(cast("list[str]", card.get("licence_ancestry", [])))
    return EncoderSpec(**content)  # pyright: ignore[reportArgumentType]  # checked above


def differences(found: EncoderSpec, card: EncoderSpec) -> list[str]:
    """Where the facts that a weights folder states contradict the card, in words; what it leaves open is None there."""
    keys = ("widths", "input_px", "mean", "std", "interpolation", "context_length")
    pairs = [(key, getattr(found, key), getattr(card, key)) for key in keys]
    return [
        f"{key} is {got}, expected {expected}" for key, got, expected in pairs if got is not None and got != expected
    ]


def _wrong_values(card: Mapping[str, object]) -> list[str]:
    widths, ancestry = card["widths"], card.get("licence_ancestry", [])
    found = [
        f"{key} must be a whole number of at least 1, got {card[key]}"
        for key in ("input_px", "resize_px", "tile_px", "context_length")
        if card.get(key) is not None and not _is_count(card[key])
    ]
    if not isinstance(widths, Mapping) or not widths or not set(widths) <= {"joint", "backbone"}:
        found.append(f"widths must say the width of joint, backbone or both, got {widths}")
    elif not all(_is_count(width) for width in widths.values()):
        found.append(f"widths must be whole numbers of at least 1, got {widths}")
    elif card.get("has_text", True) != ("joint" in widths):
        found.append("has_text must be true exactly when there is a joint space")
    found += [f"{key} must be three numbers, got {card[key]}" for key in ("mean", "std") if _triple(card[key]) is None]
    if card.get("interpolation", "bicubic") not in ("bicubic", "bilinear"):
        found.append(f"interpolation must be bicubic or bilinear, got {card['interpolation']}")
    if not isinstance(ancestry, list | tuple) or not all(isinstance(licence, str) for licence in ancestry):
        found.append(f"licence_ancestry must be a list of licences, got {ancestry}")
    return found


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _triple(values: object) -> Triple | None:
    if not isinstance(values, list | tuple) or len(values) != 3:
        return None
    if not all(isinstance(value, int | float) for value in values):
        return None
    r, g, b = (float(value) for value in values)
    return r, g, b
