"""What the licences of an encoder's weights allow: shown, carried along, and refused where a profile forbids them.

An embedding, a model trained on it and a report of it all come from the weights, so their licence goes with each. This
is a record of what the sources state and no legal advice.
"""

from collections.abc import Sequence

from feature_extraction.errors import InputError

PROFILES = ("any", "commercial")
COMMERCIAL = frozenset({"mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-2.0", "cc-by-4.0"})
"""SPDX names (lower case) that allow commercial use. What is not among them is not known to."""


def forbidding(licence: str, ancestry: Sequence[str]) -> list[str]:
    """The licences, of the weights or of what they were derived from, that are not known to allow commercial use."""
    return [name for name in dict.fromkeys((licence, *ancestry)) if name.strip().lower() not in COMMERCIAL]


def licence_line(encoder: str, licence: str, ancestry: Sequence[str]) -> str:
    """One line for the console and reports."""
    derived = f", derived from {', '.join(ancestry)}" if ancestry else ""
    limits = forbidding(licence, ancestry)
    use = "; commercial use is not known to be allowed" if limits else ""
    return f"weights of {encoder}: licence {licence}{derived}{use}"


def require_profile(profile: object, *, encoder: str, licence: str, ancestry: Sequence[str]) -> None:
    """Refuse weights that ``licence_profile`` does not allow.

    Raises:
        InputError: An unknown profile, or a licence that is not known to allow commercial use under ``commercial``.
    """
    if profile not in PROFILES:
        raise InputError(f"licence_profile={profile}: expected {' or '.join(PROFILES)}")
    limits = forbidding(licence, ancestry) if profile == "commercial" else []
    if limits:
        raise InputError(
            f"licence_profile=commercial: the weights of {encoder} come under {', '.join(limits)}, which "
            f"{'is' if len(limits) == 1 else 'are'} not known to allow commercial use; choose another encoder, or set "
            "licence_profile=any if you have the right"
        )
