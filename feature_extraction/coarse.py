"""The coarse look at a slide, taken from the feature file that an earlier pass made."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from feature_extraction.errors import DamagedFileError, SlideError
from feature_extraction.reading import ChosenTiles, ClassWords, CoarseTiles, ReadingRule, choose_tiles
from feature_extraction.store import check_features


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoarseReading:
    """How the tiles of a slide are chosen by its coarse features.

    Attributes:
        folder: Of the coarse features.
        rule: How the budget is spent.
        words: What is looked for.
    """

    folder: Path
    rule: ReadingRule
    words: ClassWords

    def choose(
        self,
        slide_id: str,
        slide_fingerprint: str,
        coords_lv0: Int64[np.ndarray, "tile 2"],
        size_lv0: tuple[float, float],
    ) -> tuple[Int64[np.ndarray, " chosen"], ChosenTiles]:
        """Rows of the tiles to read, ascending, and why.

        Args:
            slide_id: The slide.
            slide_fingerprint: Of the slide as it is now.
            coords_lv0: Corners of the tiles with tissue.
            size_lv0: Width and height of them.

        Raises:
            SlideError: The slide has no whole coarse features of this configuration (code E-reading).
        """
        try:
            file = check_features(
                self.folder / f"{slide_id}.h5",
                extraction_fingerprint=self.rule.coarse_fingerprint,
                slide_fingerprint=slide_fingerprint,
            )
            features = file.features_of("joint")
        except (DamagedFileError, OSError) as error:
            cause = str(error) if isinstance(error, DamagedFileError) else error.strerror or type(error).__name__
            raise SlideError(
                slide_id=slide_id,
                stage="plan",
                cause=f"its coarse features in {self.folder.parent.name}/{self.folder.name} cannot be used: {cause}",
                remedy=f"see what failures.csv in the folder {self.folder.parent.name} says of it, then run the same "
                "command again",
                code="E-reading",
            ) from error
        coarse = CoarseTiles(
            features=features,
            coords_lv0=file.coords_lv0,
            size_lv0=file.header.size_lv0(),
            content_sha256=file.content_sha256,
        )
        return choose_tiles(coords_lv0, size_lv0, coarse, self.words, self.rule)
