"""One extraction within the test's own process, without the command around it; its reader is the real one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from feature_extraction.counters import Counters, Eta
from feature_extraction.encoder import Encoder
from feature_extraction.encoders.demo import DemoSource
from feature_extraction.extract import Extractor, Listener, Throughput
from feature_extraction.grid import Tiling
from feature_extraction.mpp import MppRule
from feature_extraction.plan import PlanRules
from feature_extraction.slides import SlideRecord, SlideTable
from feature_extraction.status import Outcome
from feature_extraction.tissue import TissueRule
from feature_extraction.work import Extraction, Lane

TILING = Tiling(tile_px=96, tile_mpp=1.0, step_px=96)
CPU = torch.device("cpu")


class OneExtraction:
    """Extracts slides into a folder and keeps what it is told of them.

    Args:
        out: For the feature folder.
        encoder: Whose rows, the demo encoder's by default.
        tissue: Method of the tissue rule.
    """

    def __init__(
        self,
        out: Path,
        *,
        batch_size: int = 8,
        n_threads: int = 2,
        stall_seconds: float = 60.0,
        mix_slides: bool = False,
        encoder: Encoder | None = None,
        tissue: str = "saturation_otsu",
    ) -> None:
        torch.set_num_threads(1)
        rule, mpp = TissueRule(method=tissue), MppRule()
        extraction = Extraction(tiling=TILING, tissue=rule, mpp=mpp, spaces=("joint",))
        usage = Throughput(
            device=CPU, batch_size=batch_size, n_threads=n_threads, mix_slides=mix_slides, stall_seconds=stall_seconds
        )
        self.outcomes: dict[str, Outcome] = {}
        self.lane = Lane.of(encoder or DemoSource().load(CPU), extraction, out)
        self.extractor = Extractor(
            [self.lane],
            PlanRules(tiling=TILING, tissue=rule, mpp=mpp),
            usage,
            listener=Listener(on_outcome=self._tell),
            counters=Counters(n_readers=n_threads),
            eta=Eta(1),
        )

    def run(self, paths: Sequence[Path]) -> dict[str, Outcome]:
        """The outcome of each slide, told once."""
        self.extractor.run(SlideTable(records=tuple(SlideRecord(slide_id=path.stem, path=path) for path in paths)))
        return self.outcomes

    def _tell(self, outcome: Outcome) -> None:
        assert outcome.slide_id not in self.outcomes
        self.outcomes[outcome.slide_id] = outcome
