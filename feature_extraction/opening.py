"""Find a slide done, or claim and plan it: once for the slide, for each encoder that wants its rows."""

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from feature_extraction.claims import claim
from feature_extraction.errors import SlideError
from feature_extraction.plan import PlanRules, SlidePlan
from feature_extraction.reader_process import Identify, MakePlan
from feature_extraction.readers import ReaderService
from feature_extraction.resume import find_done
from feature_extraction.slides import SlideRecord
from feature_extraction.staging import Stager
from feature_extraction.status import Outcome
from feature_extraction.work import Lane, SlideWork, journal_path, lock_path


class SlideOpening:
    """One slide on its way into the pipeline.

    Args:
        record: Which.
        readers: Who opens it.
        rules: By what it is planned.
        stager: Brings it to a nearer disk first, None to read it where it is.
    """

    def __init__(self, record: SlideRecord, readers: ReaderService, rules: PlanRules, stager: Stager | None) -> None:
        self._record = record
        self._readers = readers
        self._rules = rules
        self._stager = stager

    def open_for(self, lane: Lane) -> SlideWork | Outcome:
        """The work to do for one encoder, or the outcome where there is none for us."""
        try:
            with ExitStack() as claimed:
                return self._find_or_claim(lane, claimed) or self._work_for(lane, claimed)
        except SlideError as error:
            return Outcome.failed(error)
        except OSError as error:
            return Outcome.failed(disk_error(self._record.slide_id, lane.folder, error))

    def _find_or_claim(self, lane: Lane, claimed: ExitStack) -> Outcome | None:
        """The outcome if there is nothing to do for us, else None with the claim entered."""
        slide_id = self._record.slide_id
        done = find_done(lane, self._record, lambda: self._fingerprint)
        if not claimed.enter_context(claim(lock_path(lane.folder, slide_id))):
            return done or Outcome(slide_id=slide_id, status="elsewhere")
        # Another worker may have sealed it between the question and the claim.
        done = done or find_done(lane, self._record, lambda: self._fingerprint)
        if done is not None:
            journal_path(lane.folder, slide_id).unlink(missing_ok=True)  # left by a kill just after sealing
        return done

    def _work_for(self, lane: Lane, claimed: ExitStack) -> SlideWork:
        work = SlideWork(self._plan, lane)
        try:
            work.require_room()
        except (SlideError, OSError):
            work.close()
            raise
        work.keep(claimed.pop_all())
        return work

    @cached_property
    def _fingerprint(self) -> str:
        """Of the slide file as it is now."""
        record = self._record
        answer = self._readers.ask(Identify(slide_id=record.slide_id, path=record.path)).result()
        if isinstance(answer, SlideError):
            raise answer
        return str(answer)

    @cached_property
    def _plan(self) -> SlidePlan:
        near = self._stager.fetch(self._record) if self._stager is not None else self._record
        answer = self._readers.ask(MakePlan(record=near, rules=self._rules)).result()
        if isinstance(answer, SlidePlan):
            return answer
        raise answer if isinstance(answer, SlideError) else TypeError(f"expected a plan, got {type(answer).__name__}")


def disk_error(slide_id: str, folder: Path, error: OSError) -> SlideError:
    """What to say when a file of a feature folder cannot be read or written."""
    return SlideError(
        slide_id=slide_id,
        stage="write",
        cause=f"a file of {folder.name} could not be read or written: {error.strerror or error}",
        remedy="check the space and the rights of out=…, then run the same command again",
        code="E-disk",
    )
