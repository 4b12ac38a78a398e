"""`promptmil convert` on caches that CLAM's and TRIDENT's own code made of two slides of the cohort."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import peer_folders as peers
import pytest

from feature_extraction.commands import settings
from feature_extraction.encoder import Encoder
from feature_extraction.encoders.hf_clip import HfClipSource
from feature_extraction.errors import MismatchError
from feature_extraction.interop.layouts import READERS
from feature_extraction.interop.placing import place
from feature_extraction.interop.proof import prove
from feature_extraction.mpp import Mpp
from feature_extraction.slides import SlideRecord
from feature_extraction.store import FeatureFile
from feature_extraction.text_bank import bank_name, read_bank, write_bank
from mil.bag import Bag
from mil.cli import main
from mil.feature_folder import FeatureFolder
from mil.parts import Pooling
from mil.zeroshot import slide_logits, softmax

pytestmark = [pytest.mark.pipeline, pytest.mark.xdist_group("convert_real")]  # one extraction for all of them

SLIDES = ("DP002-S1", "DP004-S1")
TOOLS = ("trident", "clam", "stamp")


class Cohort(NamedTuple):
    """The two slides, our own extraction of them, the words, and what was converted."""

    data: Path
    root: Path
    encoder: tuple[str, str]

    @property
    def slides(self) -> Path:
        return self.root / "slides.csv"

    def converted(self, tool: str) -> FeatureFolder:
        return FeatureFolder(self.root / tool)

    def imported(self, tool: str, out: Path, *words: str) -> int:
        source = f"source={self.data}/peer_caches/{tool}"
        return peers.convert(f"from={tool}", source, f"out={out}", *self.encoder, *words)


@pytest.fixture(scope="module")
def cohort(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("cohort")
    encoder = ("encoder=hf_clip", f"encoder.path={shared_data}/encoders/lc25000_dual_encoder")
    made = Cohort(shared_data, root, encoder)
    files = [shared_data / "cohort" / "slides" / f"{slide_id}.svs" for slide_id in SLIDES]
    made.slides.write_text("path\n" + "".join(f"{path}\n" for path in files))
    words = (*encoder, f"slides={made.slides}", "qc=false", "device=cpu")
    assert main(["extract", *words, f"out={root}/ours"]) == 0
    assert main(["prompts", *encoder, "prompts=lung", f"out={root}/bank"]) == 0
    for tool in TOOLS:
        assert made.imported(tool, root / tool, "space=joint", f"slides={made.slides}") == 0
    return made


def shared_rows(first: FeatureFile, second: FeatureFile) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the tiles that both have."""
    of_first = {tuple(corner): row for row, corner in enumerate(first.coords_lv0.tolist())}
    pairs = [(of_first[key], row) for row, key in enumerate(map(tuple, second.coords_lv0.tolist())) if key in of_first]
    rows = np.array(pairs).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def bag(file: FeatureFile, rows: np.ndarray) -> Bag:
    return Bag(
        slide_id=file.header.slide_id,
        features=np.asarray(file.features())[rows],
        coords_lv0=file.coords_lv0[rows],
        size_lv0=file.header.size_lv0(),
    )


@pytest.mark.parametrize("tool", TOOLS)
def test_every_real_cache_is_verified_on_its_slides(cohort: Cohort, tool: str):
    told = peers.summary(cohort.root / tool)
    assert (told["done"], told["verified"], told["declared"]) == (2, 2, 0)
    folder = cohort.converted(tool)
    header = folder.header
    ours = FeatureFolder(cohort.root / "ours").header
    assert header.encoder_fingerprint == ours.encoder_fingerprint
    assert (header.tile_mpp, header.tile_size_px, header.size_lv0()) == (0.5, 224, (224.0, 224.0))
    assert (header.slide_mpp_x, header.space, header.normalized) == (0.5, "joint", False)
    assert folder.slide_ids() == list(SLIDES)


@pytest.mark.parametrize("tool", ["trident", "stamp"])
@pytest.mark.parametrize("slide_id", SLIDES)
def test_zero_shot_on_a_converted_cache_is_that_on_our_own_extraction(cohort: Cohort, tool: str, slide_id: str):
    ours, theirs = (FeatureFolder(cohort.root / name).open(slide_id) for name in ("ours", tool))
    left, right = shared_rows(ours, theirs)
    assert len(right) >= 40
    first, second = bag(ours, left), bag(theirs, right)
    cosines = (first.unit_rows() * second.unit_rows()).sum(axis=1)
    assert cosines.min() >= 0.999
    bank = read_bank(cohort.root / "bank")
    classes = list(bank.class_names())
    for rule in (Pooling(rule="margin", top_j=5), Pooling(rule="topj", top_j=5), Pooling(rule="mean", top_j=1)):
        both = softmax(np.stack([slide_logits(one, bank, classes, rule) for one in (first, second)]))
        assert np.abs(both[0] - both[1]).max() < (0.02 if tool == "stamp" else 0.001)  # that cache is of bf16
        assert both[0].argmax() == both[1].argmax()


@pytest.mark.parametrize("slide_id", SLIDES)
def test_the_vectors_of_clam_are_what_we_make_of_its_tiles(cohort: Cohort, slide_id: str):
    """CLAM's grid begins at the tissue, so no tile of it is on ours: its own tiles are embedded."""
    reader = READERS["clam"]
    file = next(f for f in reader.find(cohort.data / "peer_caches" / "clam") if f.slide_id == slide_id)
    peer = reader.open(file)
    placement = place(slide_id, peer, Mpp(x=0.5, y=0.5, source="table"), None, None)
    record = SlideRecord(slide_id=slide_id, path=cohort.data / "cohort" / "slides" / f"{slide_id}.svs")
    some = np.arange(1, len(peer.coords), 3)
    stored = peer.read(0, len(peer.coords))[some]
    proof = prove(_encoder(cohort), "joint", record, placement, 224, (some, stored))
    assert len(proof.cosines) == len(some) > 20
    assert proof.worst >= 0.999


def test_the_whole_command_gives_the_same_classes(cohort: Cohort, tmp_path: Path):
    """Where the tiles are ours too; CLAM's lie across the borders of the pictures that these slides are made of."""
    predictions = {}
    for name in ("ours", "trident", "stamp"):
        words = (f"features={cohort.root}/{name}", f"bank={cohort.root}/bank", f"out={tmp_path}/{name}")
        assert main(["zeroshot", *words]) == 0
        predictions[name] = (tmp_path / name / "predictions.csv").read_text().splitlines()
    assert len(predictions["ours"]) == 3
    columns = predictions["ours"][0].split(",")
    chosen = {
        name: [max((c for c in columns if c.startswith("p_")), key=lambda c: float(cells[c])) for cells in table]
        for name, lines in predictions.items()
        for table in [[dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]]]
    }
    assert chosen["trident"] == chosen["stamp"] == chosen["ours"] == ["p_LUAD", "p_LUSC"]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_real_cache_goes_out_and_comes_back_the_same(cohort: Cohort, tmp_path: Path, tool: str):
    out = tmp_path / "out"
    assert peers.convert(f"to={tool}", f"source={cohort.root}/{tool}", f"out={out}") == 0
    words = (*cohort.encoder, "space=joint", "default_mpp=0.5")
    assert peers.convert(f"from={tool}", f"source={out}", f"out={tmp_path}/back", *words) == 0
    for slide_id in SLIDES:
        before, after = (FeatureFolder(p).open(slide_id) for p in (cohort.root / tool, tmp_path / "back"))
        assert before.content_sha256 == after.content_sha256


@pytest.mark.parametrize("tool", TOOLS)
def test_a_cache_that_is_declared_of_another_space_is_refused(cohort: Cohort, tmp_path: Path, tool: str):
    with pytest.raises(MismatchError, match=r"have 256 values, the backbone space of .* has 384"):
        cohort.imported(tool, tmp_path / "wrong", "space=backbone", "default_mpp=0.5")


def test_words_of_another_encoder_are_refused_with_both_fingerprints(
    cohort: Cohort, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bank = read_bank(cohort.root / "bank")
    other = bank.__class__(
        **{name: getattr(bank, name) for name in bank.__slots__ if name != "encoder_fingerprint"},
        encoder_fingerprint="ab" * 32,
    )
    write_bank(tmp_path / bank_name(other), other)
    words = (f"features={cohort.root}/trident", f"bank={tmp_path}", f"out={tmp_path}/zs")
    assert main(["zeroshot", *words]) == 2
    said = capsys.readouterr().err
    assert "abababab" in said
    assert cohort.converted("trident").header.encoder_fingerprint[:8] in said


def test_the_wrong_slide_is_found_out(cohort: Cohort, tmp_path: Path):
    table = tmp_path / "slides.csv"
    paths = [cohort.data / "cohort" / "slides" / f"{slide_id}.svs" for slide_id in SLIDES]
    table.write_text("path,slide_id\n" + "".join(f"{p},{i}\n" for p, i in zip(paths, SLIDES[::-1], strict=True)))
    with pytest.raises(MismatchError, match="worst has cosine"):
        cohort.imported("trident", tmp_path / "out", "space=joint", f"slides={table}")


def _encoder(cohort: Cohort) -> Encoder:
    path = cohort.encoder[1].partition("=")[2]
    return HfClipSource(path=path, tile_mpp=0.5).load(settings.device("cpu"))
