"""What a microscopist might write below each drawing: names, details and templates, some of them held out."""

from collections.abc import Mapping
from dataclasses import dataclass

from numpy.random import Generator

from feature_extraction.synthetic.tissue import TISSUES, Tissue


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Words for one tissue.

    Attributes:
        names: What it is called.
        details: What is seen in it.
        held_out: Names and details kept from training; their words occur in it, in other phrases.
    """

    names: tuple[str, ...]
    details: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A text and what it says.

    Attributes:
        text: The words.
        tissues: The tissues it may refer to.
        is_composed: Whether all of them must be there (two tissues side by side), not any one.
    """

    text: str
    tissues: frozenset[Tissue]
    is_composed: bool = False


TEMPLATES = (
    "{}", "{}.", "an H&E image of {}", "a photomicrograph showing {}", "histology of {}", "this tile shows {}",
    "{} in a tissue section", "presence of {}", "a field with {}", "haematoxylin and eosin stain of {}",
)  # fmt: skip
HELD_OUT_TEMPLATES = (
    "an image of {}.",
    "a stained section showing {}",
    "{} is shown in this field",
    "microscopy of {}",
)
JOINTS = ("{} next to {}", "{} and {}", "{} adjacent to {}", "{} beside {}", "border of {} with {}")

WORDS: Mapping[Tissue, Words] = {
    "glandular": Words(
        names=("adenocarcinoma", "glandular carcinoma", "gland-forming carcinoma", "acinar adenocarcinoma",
               "malignant glands", "invasive adenocarcinoma", "well differentiated adenocarcinoma", "atypical glands"),
        details=("back-to-back irregular glands with lumens", "crowded glands of atypical cells",
                 "stratified hyperchromatic nuclei around lumens", "cribriform malignant glands",
                 "irregular tumour glands with enlarged nuclei", "fused glands with nuclear crowding",
                 "tumor cells forming acini", "pleomorphic columnar cells lining a lumen"),
        held_out=("carcinoma with gland formation", "crowded malignant glands",
                  "atypical columnar cells forming glands"),
    ),
    "keratinizing": Words(
        names=("squamous cell carcinoma", "keratinizing carcinoma", "keratinising squamous carcinoma",
               "epidermoid carcinoma", "keratinizing squamous cell carcinoma", "invasive squamous carcinoma"),
        details=("keratin pearls", "concentric keratin whorls", "squamous pearls with lamellar keratin",
                 "polygonal cells with intercellular bridges", "eosinophilic keratin swirls", "keratinization",
                 "dense pink cytoplasm and keratin", "nests of squamous cells with pearl formation"),
        held_out=("carcinoma with keratin pearls", "squamous carcinoma with keratinization", "whorls of pink keratin"),
    ),
    "solid": Words(
        names=("solid carcinoma", "poorly differentiated carcinoma", "undifferentiated tumour", "solid tumor sheets"),
        details=("solid sheets of atypical cells", "sheets of large pleomorphic cells", "prominent nucleoli in sheets",
                 "solid growth without lumens", "large cells with high nuclear grade"),
        held_out=("poorly differentiated solid tumour", "sheets of undifferentiated large cells"),
    ),
    "benign_glands": Words(
        names=("benign glands", "normal glands", "regular glandular epithelium", "normal mucosal glands",
               "benign glandular tissue", "reactive benign glands"),
        details=("round glands with basal nuclei", "evenly spaced regular glands", "small uniform nuclei at the base",
                 "single layer of bland columnar cells", "round regular lumens lined by bland epithelium"),
        held_out=("regular benign round glands", "bland glands with uniform basal nuclei"),
    ),
    "lymphocytes": Words(
        names=("lymphocytes", "lymphoid tissue", "a lymphoid aggregate", "lymphocytic infiltrate", "a lymph follicle"),
        details=("sheets of small round dark nuclei", "dense inflammation", "chronic inflammatory cells",
                 "small lymphoid cells with scant cytoplasm"),
        held_out=("a dense lymphoid infiltrate", "aggregate of small lymphocytes"),
    ),
    "stroma": Words(
        names=("stroma", "fibrous stroma", "connective tissue", "collagen", "fibrous tissue", "desmoplastic stroma"),
        details=("wavy collagen fibres", "spindle cells between fibres", "collagen bundles with fibroblasts",
                 "pink fibers with spindle nuclei"),
        held_out=("fibrous connective tissue", "wavy bundles of collagen with spindle cells"),
    ),
    "alveoli": Words(
        names=("alveoli", "normal lung", "lung parenchyma", "normal lung parenchyma", "alveolar tissue"),
        details=("thin alveolar walls", "air spaces with thin septa", "open air spaces", "delicate alveolar septa"),
        held_out=("lung with open alveoli", "alveolar air spaces with delicate walls"),
    ),
    "mucin": Words(
        names=("mucin", "mucus", "a mucin pool", "extracellular mucin", "mucinous material"),
        details=("pale bluish mucin with strands", "pools of mucus", "floating cells in mucin"),
        held_out=("pools of extracellular mucin", "pale mucus with strands"),
    ),
    "necrosis": Words(
        names=("necrosis", "necrotic tissue", "necrotic debris", "coagulative necrosis"),
        details=("granular eosinophilic debris", "ghost cells and nuclear dust", "dead cells with karyorrhexis"),
        held_out=("granular necrotic debris", "dead tissue with nuclear dust"),
    ),
    "blood": Words(
        names=("blood", "haemorrhage", "hemorrhage", "red blood cells", "erythrocytes"),
        details=("packed red cells", "fresh bleeding", "pools of erythrocytes"),
        held_out=("pools of red blood cells", "fresh blood"),
    ),
    "pen": Words(
        names=("pen", "pen mark", "ink", "marker ink", "an artefact of a pen"),
        details=("coloured ink on the glass", "a felt pen stroke", "pen marking on the slide"),
        held_out=("a mark of a felt pen", "coloured marker stroke"),
    ),
    "glass": Words(
        names=("glass", "empty glass", "white background", "an empty slide", "blank background"),
        details=("clear glass with dust", "an empty area", "white empty space of the slide"),
        held_out=("blank empty glass", "clear white background"),
    ),
}  # fmt: skip

ORDINARY = frozenset[Tissue](("stroma", "alveoli", "lymphocytes", "benign_glands", "mucin", "necrosis", "blood"))
TUMOUR = frozenset[Tissue](("glandular", "keratinizing", "solid"))
GENERIC: tuple[tuple[str, frozenset[Tissue]], ...] = (
    *((text, ORDINARY) for text in (
        "normal tissue", "benign tissue", "non-neoplastic tissue", "healthy tissue", "unremarkable tissue",
        "uninvolved tissue", "background tissue", "uninvolved background tissue", "ordinary benign tissue",
        "normal", "benign", "tissue away from the lesion",
    )),
    *((text, TUMOUR) for text in ("carcinoma", "tumour", "malignant tumor", "cancer", "invasive cancer", "malignancy")),
    *((text, frozenset[Tissue](("pen", "glass"))) for text in ("slide background", "outside the tissue")),
)  # fmt: skip


def random_caption(rng: Generator, tissue: Tissue, other: Tissue | None) -> Caption:
    """A training caption for a tile of one tissue, or of two side by side."""
    if other is not None:
        pair = [_phrase(rng, tissue), _phrase(rng, other)]
        rng.shuffle(pair)
        text = _pick(rng, JOINTS).format(*pair)
        return Caption(text=_pick(rng, TEMPLATES).format(text), tissues=frozenset((tissue, other)), is_composed=True)
    generic = [entry for entry in GENERIC if tissue in entry[1]]
    if generic and rng.random() < 0.2:
        text, tissues = generic[rng.integers(len(generic))]
        return Caption(text=_pick(rng, TEMPLATES).format(text), tissues=tissues)
    return Caption(text=_pick(rng, TEMPLATES).format(_phrase(rng, tissue)), tissues=frozenset((tissue,)))


def held_out_captions() -> dict[Tissue, list[str]]:
    """Captions of phrases and templates that training never saw."""
    return {
        tissue: [template.format(phrase) for phrase in WORDS[tissue].held_out for template in HELD_OUT_TEMPLATES]
        for tissue in TISSUES
    }


def training_words() -> list[str]:
    """Every text that training composes its captions from."""
    texts = [*TEMPLATES, *JOINTS, *(text for text, _ in GENERIC)]
    for words in WORDS.values():
        texts += [*words.names, *words.details]
    return texts


def _phrase(rng: Generator, tissue: Tissue) -> str:
    """A name, a detail, or both."""
    words = WORDS[tissue]
    draw = rng.random()
    if draw < 0.45:
        return _pick(rng, words.names)
    if draw < 0.8:
        return _pick(rng, words.details)
    return f"{_pick(rng, words.names)} with {_pick(rng, words.details)}"


def _pick(rng: Generator, texts: tuple[str, ...]) -> str:
    return texts[int(rng.integers(len(texts)))]
