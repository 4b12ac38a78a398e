"""Which slides an earlier run has done: the one question before any work."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from feature_extraction.errors import DamagedFileError
from feature_extraction.files import is_valid
from feature_extraction.mpp import MppRule
from feature_extraction.segment import facts_in, is_found_by
from feature_extraction.slides import SlideRecord
from feature_extraction.status import Outcome
from feature_extraction.store import FeatureFile, check_features
from feature_extraction.work import Lane


def find_done(lane: Lane, record: SlideRecord, identify: Callable[[], str]) -> Outcome | None:
    """The outcome of an earlier run, if its file is whole and is what this run would make.

    Args:
        lane: What would be made, and where.
        record: The slide.
        identify: Gives the fingerprint of the slide file as it is now; only asked when there is a file to compare.
    """
    extraction = lane.extraction
    found: list[FeatureFile] = []

    def check(path: Path) -> None:
        file = check_features(path, extraction_fingerprint=lane.fingerprint)
        if file.header.slide_fingerprint != identify():
            raise DamagedFileError(f"{path.name}: made from another version of the slide file")
        if not _same_mpp(file, record, extraction.mpp):
            raise DamagedFileError(f"{path.name}: made with another mpp than this run would use")
        if not is_found_by(file.header.tissue, extraction.tissue, record.slide_id):
            raise DamagedFileError(f"{path.name}: made with another annotation")
        n_failed = len(file.failed_coords_lv0)
        if n_failed > extraction.tolerate_bad_tiles * (file.shape[0] + n_failed):
            raise DamagedFileError(f"{path.name}: lacks more tiles than are tolerated now")
        found.append(file)

    return _outcome_of(found[0]) if is_valid(lane.folder / f"{record.slide_id}.h5", check) else None


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
        reader=file.header.reader,
        file=file.path.name,
        **asdict(facts_in(json.loads(file.header.tissue))),
    )
