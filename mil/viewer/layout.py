"""Names in an export that several parts of it use."""

FORMAT = 1
"""Of the data; a page and its scripts are written together."""
MANIFEST = "viewer.json"
"""Makes a folder an export, and says which slide each page is of."""
SLIDES = "slides"
"""Holds a folder a slide, named by its id."""
PICTURE_SCRIPT = "picture.js"
"""Says of what pyramid the slide's picture is."""
PICTURE, LIVE = "picture", "live"
"""Folder of the pyramid's tiles: written, or made by the server when they are asked for."""
