"""Which slides an earlier run has done: the one question before any work."""

from pathlib import Path

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import is_valid
from feature_extraction.mpp import MppRule
from feature_extraction.slide import fingerprint_file
from feature_extraction.slides import SlideRecord
from feature_extraction.status import Outcome
from feature_extraction.store import FeatureFile, check_features
from feature_extraction.work import Extraction


def find_done(folder: Path, record: SlideRecord, extraction: Extraction, fingerprint: str) -> Outcome | None:
    """The outcome of an earlier run, if its file is whole and is what this run would make.

    Args:
        folder: The feature folder.
        record: The slide.
        extraction: What would be made.
        fingerprint: Of that, with the encoder.
    """
    found: list[FeatureFile] = []

    def check(path: Path) -> None:
        slide = fingerprint_file(record.path)
        file = check_features(path, extraction_fingerprint=fingerprint, slide_fingerprint=slide)
        if not _same_mpp(file, record, extraction.mpp):
            raise DamagedFileError(f"{path.name}: made with another mpp than this run would use")
        n_failed = len(file.failed_coords_lv0)
        if n_failed > extraction.tolerate_bad_tiles * (file.shape[0] + n_failed):
            raise DamagedFileError(f"{path.name}: lacks more tiles than are tolerated now")
        found.append(file)

    return _outcome_of(found[0]) if is_valid(folder / f"{record.slide_id}.h5", check) else None


def _same_mpp(file: FeatureFile, record: SlideRecord, rule: MppRule) -> bool:
    """Whether this run would use the mpp that the file was made with."""
    used = (file.header.slide_mpp_x, file.header.slide_mpp_y)
    if record.mpp is not None:
        return used == record.mpp
    source = file.header.mpp_source
    if source == "default":
        return used == (rule.default_mpp, rule.default_mpp)
    return source != "table" and (source != "objective" or rule.from_objective)


def _outcome_of(file: FeatureFile) -> Outcome:
    return Outcome(
        slide_id=file.header.slide_id,
        status="done" if file.shape[0] else "empty",
        n_tiles=file.shape[0],
        n_failed=len(file.failed_coords_lv0),
        slide_mpp=file.header.slide_mpp_x,
        mpp_source=file.header.mpp_source,
        file=file.path.name,
    )
