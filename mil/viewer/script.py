"""Data as scripts: a page opened from a file may load those, and nothing else."""

import base64
import json

import numpy as np
from jaxtyping import Num

from feature_extraction.files import without_nan

NAMESPACE = "promptmil"


def script_text(name: str, content: object) -> str:
    """A script that sets ``promptmil.<name>``; no text in ``content`` can end the script or its line.

    Args:
        name: Of the property.
        content: Plain data; nan becomes null.
    """
    said = json.dumps(without_nan(content), allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        said = said.replace(letter, f"\\u{ord(letter):04x}")
    return f'"use strict";\nvar {NAMESPACE} = globalThis.{NAMESPACE} || {{}};\n{NAMESPACE}.{name} = {said};\n'


def as_base64(values: Num[np.ndarray, " tile"], kind: str) -> str:
    """An array's bytes, so that a page has every bit of its numbers.

    Args:
        values: One a tile.
        kind: NumPy's name of the type of the bytes, such as ``<f8``.
    """
    return base64.b64encode(values.astype(kind).tobytes()).decode()
