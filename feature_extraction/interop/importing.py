"""Take another tool's feature folder over: one slide after the other, each proved or declared."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from feature_extraction.claims import claim
from feature_extraction.errors import MismatchError, SlideError
from feature_extraction.findings import RECORDS
from feature_extraction.interop.incoming import Import, Incoming, prepare
from feature_extraction.interop.making import find_made, in_made_space, make
from feature_extraction.interop.peer import PeerFile, reading
from feature_extraction.interop.proof import LIMIT, chosen_rows, prove
from feature_extraction.links import require_no_way_out
from feature_extraction.slides import SlideRecord, id_defect
from feature_extraction.status import Outcome, write_record
from feature_extraction.work import journal_path, lock_path

PATIENCE = 3
"""So many slides that contradict what was declared, and none that agrees: then it is the declaration that is wrong."""
NEAR = 0.95
"""Above this cosine it may well be the same encoder."""
OTHER_RESIZING = (
    "another transform, or tiles resized in another way; if you know that it is the same encoder, give the mpp without "
    "the slide files (default_mpp=…, or a CSV that names none), and they are imported as declared"
)
UNPROJECTED = re.compile("conch|musk", re.IGNORECASE)
"""Encoders whose tiles other tools store before the projection into the joint space, unless told otherwise."""


class Importer:
    """Takes slides over and says what became of each.

    Attributes:
        fingerprint_sources: How the encoder of each slide that is done is known, by slide id.
        encoder_names: What the tool calls its encoder.

    Args:
        request: What is asked for.
        on_outcome: Told the outcome of each slide.
    """

    def __init__(self, request: Import, on_outcome: Callable[[Outcome], None] = lambda _: None) -> None:
        self._ask = request
        self._on_outcome = on_outcome
        self._n_agreeing = 0
        self._mismatches: list[MismatchError] = []
        self.fingerprint_sources: dict[str, str] = {}
        self.encoder_names: set[str] = set()

    def run(self, files: Sequence[PeerFile]) -> list[Outcome]:
        """Take all of them over; one that fails costs itself.

        Raises:
            MismatchError: The embeddings are not of the declared encoder and space; nothing was written.
        """
        outcomes: list[Outcome] = []
        shared = Counter(file.slide_id for file in files)
        for file in sorted(files, key=lambda file: file.slide_id not in self._ask.slides):  # the provable ones first
            try:
                _require_usable(self._ask, file, shared[file.slide_id])
                outcome = self._take_over(file)
            except MismatchError as error:
                outcome = Outcome.failed(self._as_failure(file, error))
            except SlideError as error:
                outcome = Outcome.failed(error)
            outcomes.append(outcome)
            self._n_agreeing += outcome.status in ("done", "empty")
            self._on_outcome(outcome)
        if self._mismatches and not self._n_agreeing:
            raise self._mismatches[0]
        return outcomes

    def _as_failure(self, file: PeerFile, error: MismatchError) -> SlideError:
        """A slide that contradicts the declaration costs itself if others agree, and else the run."""
        self._mismatches.append(error)
        if len(self._mismatches) >= PATIENCE and not self._n_agreeing:
            raise error
        remedy = "check that this file is of the same encoder, space and slide as the others"
        return SlideError(slide_id=file.slide_id, stage="match", cause=str(error), remedy=remedy, code="E-mismatch")

    def _take_over(self, file: PeerFile) -> Outcome:
        incoming = prepare(self._ask, file)
        self.encoder_names |= {incoming.peer.encoder} - {""}
        require_no_way_out(self._ask.out, incoming.folder)
        header = find_made(incoming)
        is_new = header is None
        is_proved = header is None and self._is_proved(incoming)  # before anything is written
        with claim(lock_path(incoming.folder, file.slide_id)) as is_ours:
            if not is_ours:
                return Outcome(slide_id=file.slide_id, status="elsewhere", features=incoming.folder.name)
            if header is None:
                header = make(self._ask, incoming, is_proved=is_proved)
            else:  # a run that was killed between its last two steps left it
                journal_path(incoming.folder, file.slide_id).unlink(missing_ok=True)
            outcome = _outcome(incoming, is_new=is_new)
            write_record(incoming.folder / RECORDS, outcome)
        self.fingerprint_sources[file.slide_id] = header.fingerprint_source
        return outcome

    def _is_proved(self, incoming: Incoming) -> bool:
        """Whether the encoder's own embeddings of some tiles are those that are stored; False without the slide.

        Raises:
            MismatchError: They are not, or what was declared cannot be true.
        """
        record = incoming.provable
        self._require_possible(incoming, is_provable=record is not None)
        return record is not None and self._agrees(incoming, record)

    def _agrees(self, incoming: Incoming, record: SlideRecord) -> bool:
        ask, peer = self._ask, incoming.peer
        rows = chosen_rows(incoming.n_tiles)
        with reading(incoming.file):
            stored = np.concatenate([peer.read(int(row), int(row) + 1) for row in rows]).astype(np.float32)
        stored = in_made_space(ask, stored)
        proof = prove(ask.encoder, ask.made_space, record, incoming.placement, peer.geometry.tile_px, (rows, stored))
        if not proof.holds:
            raise MismatchError(
                f"slide={record.slide_id}: of {len(rows)} tiles that {ask.encoder.spec.name} "
                f"({ask.encoder.fingerprint[:8]}) embedded again, the worst has cosine {proof.worst:.4f} with what "
                f"{ask.reader.name} stored ({incoming.source[:8]}), expected at least {LIMIT} in the {ask.made_space} "
                f"space: {OTHER_RESIZING if proof.worst > NEAR else 'another encoder, space, revision or slide'}"
            )
        return True

    def _require_possible(self, incoming: Incoming, *, is_provable: bool) -> None:
        """Refuse what the declaration cannot be true of, or what is most often not true of it and cannot be proved."""
        ask, peer, slide_id = self._ask, incoming.peer, incoming.file.slide_id
        spec = ask.encoder.spec
        expected = spec.widths[ask.space]
        if peer.width != expected and incoming.n_tiles:  # a slide without tiles may not know its width
            offered = ", ".join(f"{space} {width}" for space, width in spec.widths.items())
            raise MismatchError(
                f"slide={slide_id}: its vectors ({ask.reader.name}, {incoming.source[:8]}) have {peer.width} values, "
                f"the {ask.space} space of {spec.name} ({ask.encoder.fingerprint[:8]}) has {expected}; that encoder "
                f"offers {offered}"
            )
        in_made_space(ask, np.ones((1, expected), np.float32))  # an encoder without a projection says so here
        named = UNPROJECTED.search(f"{spec.name} {peer.encoder}")
        if named and ask.space == "joint" and not is_provable:
            raise MismatchError(
                f"slide={slide_id}: {ask.reader.name} stores {named[0].upper()} vectors before their projection unless "
                "told otherwise, and those cannot be compared with text: import them with space=backbone; to use text "
                "they need the encoder's projection and unit length first, which project=true does with the weights. "
                "If they were stored projected, give slides=… so that it can be proved"
            )


def _require_usable(ask: Import, file: PeerFile, n_sharing: int) -> None:
    """Refuse an id that is no name of a file, or of two, and a slide whose row in the slide table is wrong."""
    if file.slide_id in ask.unusable:
        raise ask.unusable[file.slide_id]
    defect = f"is that of {n_sharing} files" if n_sharing > 1 else id_defect(file.slide_id)
    if defect:
        remedy = "rename the files, or convert their folders one at a time into one out each"
        raise SlideError(slide_id=file.slide_id, stage="table", cause=f"the id {defect}", remedy=remedy, code="E-id")


def _outcome(incoming: Incoming, *, is_new: bool) -> Outcome:
    return Outcome(
        slide_id=incoming.file.slide_id,
        status="done" if incoming.n_tiles else "empty",
        is_new=is_new,
        n_tiles=incoming.n_tiles,
        slide_mpp=incoming.placement.mpp.x,
        mpp_source=incoming.placement.mpp.source,
        features=incoming.folder.name,
        file=incoming.path.name,
    )
