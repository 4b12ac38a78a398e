"""Micrometres per pixel of a slide: the chain of sources, and what is believed of them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from feature_extraction.errors import SlideError

MPP_RANGE = (0.05, 4.0)
"""Micrometres per pixel that a microscope scan can have at its finest level; anything else is a wrong tag."""
OBJECTIVE_POWER = "openslide.objective-power"
STATED = ("openslide.mpp-x", "openslide.mpp-y", "aperio.MPP", "aperio.AppMag")
"""Properties that should hold a number; OpenSlide itself passes over Aperio's when they do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MppRule:
    """How a slide's mpp is found when the table does not give it.

    Attributes:
        default_mpp: Used when nothing else is known, None to refuse the slide.
        from_objective: Whether 10 / objective power may stand in for a missing mpp.
    """

    default_mpp: float | None = None
    from_objective: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mpp:
    """Micrometres per level-0 pixel, and where that is known from.

    Attributes:
        x: Along the width.
        y: Along the height.
        source: ``table``, ``openslide``, ``tiff``, ``objective`` or ``default``.
    """

    x: float
    y: float
    source: str


def find_mpp(slide_id: str, properties: Mapping[str, str], table_mpp: tuple[float, float] | None, rule: MppRule) -> Mpp:
    """Follow the chain of sources to the first plausible mpp.

    Order: the slide table, OpenSlide's own value, TIFF resolution tags, the objective power (only when allowed), the
    default. Values outside `MPP_RANGE` are passed over.

    Raises:
        SlideError: None of them; the message lists what was seen.
    """
    if table_mpp is not None:
        return Mpp(x=table_mpp[0], y=table_mpp[1], source="table")
    power = number(properties.get(OBJECTIVE_POWER))
    by_power = 10 / power if power else None
    seen: list[str] = []
    for source, x, y in (
        ("openslide", number(properties.get("openslide.mpp-x")), number(properties.get("openslide.mpp-y"))),
        ("tiff", _tiff_mpp(properties, "X"), _tiff_mpp(properties, "Y")),
        ("objective", by_power, by_power),
    ):
        if x is None or y is None:
            seen += [f"{source} {value:g} for one axis only" for value in (x, y) if value is not None]
            continue
        plausible = all(MPP_RANGE[0] <= value <= MPP_RANGE[1] for value in (x, y))
        if plausible and (source != "objective" or rule.from_objective):
            return Mpp(x=x, y=y, source=source)
        seen.append(f"{source} {x:g} x {y:g} ({'not asked for' if plausible else 'outside .05-4'})")
    if rule.default_mpp is not None:
        return Mpp(x=rule.default_mpp, y=rule.default_mpp, source="default")
    # The text itself stays out of messages: nobody knows what else was written there.
    seen += [f"{key} is no number" for key in STATED if key in properties and number(properties[key]) is None]
    found = "; seen: " + ", ".join(seen) if seen else "; no resolution tag and no objective power in it"
    remedy = "give it in a slides.csv (columns path, mpp), or set default_mpp=…, or mpp_from_objective=true"
    cause = f"no plausible micrometres per pixel in its metadata{found}"
    raise SlideError(slide_id=slide_id, stage="mpp", cause=cause, remedy=remedy, code="E-mpp")


def number(text: str | None) -> float | None:
    """A finite number written with a dot or a comma, or None."""
    if text is None or not re.fullmatch(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?\s*", text):
        return None
    value = float(text.replace(",", "."))
    return value if math.isfinite(value) else None


def _tiff_mpp(properties: Mapping[str, str], axis: str) -> float | None:
    """µm per pixel from a TIFF's resolution tags (pixels per inch or centimetre)."""
    resolution = number(properties.get(f"tiff.{axis}Resolution"))
    unit_um = {"inch": 25_400.0, "centimeter": 10_000.0}.get(properties.get("tiff.ResolutionUnit", ""))
    return unit_um / resolution if resolution and unit_um else None
