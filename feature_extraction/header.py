"""What a feature file says about itself beside its rows."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureHeader:
    """Everything a feature file says about itself beside its rows. Field names are the HDF5 attributes' names.

    Attributes:
        slide_id: The slide.
        slide_fingerprint: Of the slide file the tiles were read from; empty when another tool read them and the slide
            was not at hand.
        encoder: Name of the encoder.
        encoder_fingerprint: SHA-256 of its weight tensors.
        extraction_fingerprint: SHA-256 of everything that determines the rows but the slide.
        space: Space of ``features``: ``joint`` or ``backbone``.
        normalized: Whether rows of ``features`` have unit length.
        logit_scale: Natural logarithm of the encoder's factor on the cosine.
        logit_bias: Added to the scaled cosine.
        licence: Of the encoder's weights.
        licence_ancestry: JSON list, licences of what they were derived from.
        slide_mpp_x: µm per level-0 pixel along x.
        slide_mpp_y: µm per level-0 pixel along y.
        mpp_source: Where that came from.
        tile_mpp: µm per tile pixel.
        tile_size_px: Side of a tile in its own pixels.
        tile_size_lv0: JSON [width, height] of a tile in level-0 pixels.
        step_lv0: JSON [x, y] from one tile to the next in level-0 pixels.
        read_level: Pyramid level the tiles were read from, -1 when another tool did not say.
        level0_width: Level-0 pixels, 0 when another tool did not say.
        level0_height: Level-0 pixels, 0 when another tool did not say.
        bounds_lv0: JSON [x, y, width, height] of the scanned area.
        objective_power: As the slide says, 0 when it does not.
        transform: JSON, how a tile became the network's input.
        tissue: JSON, how tissue was found.
        precision: Arithmetic of the encoder.
        reader: What decoded the pixels.
        created_with: Program and version.
        slide_sha256: Over every byte of the slide's files, empty when it was not computed.
        fingerprint_source: How the encoder is known: ``computed`` (we embedded), ``verified`` (another tool did, and
            some tiles embedded again agree) or ``declared`` (the user says so).
        reading: JSON, by what the tiles were chosen among those with tissue; empty when all of them were read.
    """

    slide_id: str
    slide_fingerprint: str
    encoder: str
    encoder_fingerprint: str
    extraction_fingerprint: str
    space: str
    normalized: bool
    logit_scale: float
    logit_bias: float
    licence: str
    licence_ancestry: str
    slide_mpp_x: float
    slide_mpp_y: float
    mpp_source: str
    tile_mpp: float
    tile_size_px: int
    tile_size_lv0: str
    step_lv0: str
    read_level: int
    level0_width: int
    level0_height: int
    bounds_lv0: str
    objective_power: float
    transform: str
    tissue: str
    precision: str
    reader: str
    created_with: str
    slide_sha256: str = ""
    fingerprint_source: str = "computed"
    reading: str = ""

    def size_lv0(self) -> tuple[float, float]:
        """Width and height of a tile in level-0 pixels."""
        width, height = json.loads(self.tile_size_lv0)
        return float(width), float(height)

    def tile_step_lv0(self) -> tuple[float, float]:
        """From one tile to the next along x and y, in level-0 pixels."""
        x, y = json.loads(self.step_lv0)
        return float(x), float(y)
