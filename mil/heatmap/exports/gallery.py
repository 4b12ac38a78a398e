"""A page of tiles: those that say most for and against each class, read from the slide."""

from importlib.resources import files
from typing import get_args

from jinja2 import Environment, StrictUndefined

from mil.heatmap.about import USE
from mil.heatmap.exports.mapped import Mapped
from mil.heatmap.exports.regions import Side
from mil.heatmap.exports.top_tiles import TopTile, open_slide, top_tiles

TEMPLATE = "gallery.html.j2"
TILES = 12
"""Of each class and side."""


def gallery_html(mapped: Mapped) -> str | None:
    """The page, the class of the pictures first; None when the slide is not at hand.

    Every string in it is escaped, nothing in it is fetched, nothing in it runs.

    Args:
        mapped: The map.

    Raises:
        SlideError: The slide cannot be opened or read.
    """
    slide = open_slide(mapped.explanation.bag.slide_id, mapped.path)
    if slide is None:
        return None
    layer = mapped.explanation.map_layer()
    with slide:
        shown: list[tuple[str, dict[Side, list[TopTile]]]] = [
            (mapped.classes[column], {side: top_tiles(mapped, column, side, TILES, slide) for side in get_args(Side)})
            for column in sorted(range(len(mapped.classes)), key=lambda column: column != mapped.shown)
            if layer[:, column].any()
        ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("mil.heatmap.exports") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        slide_id=mapped.explanation.bag.slide_id,
        classes=shown,
        layer=mapped.layer,
        is_sparse=mapped.explanation.is_sparse,
        about=mapped.about,
        use=USE,
    )
