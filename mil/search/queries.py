"""What a search looks for, as vectors: words embedded on the spot, or a tile that is there already."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from feature_extraction.encoder import Encoder
from feature_extraction.errors import InputError, MismatchError
from feature_extraction.header import FeatureHeader
from feature_extraction.prompts import PLACEHOLDER
from mil.feature_folder import FeatureFolder, require_space
from mil.search.scores import Queries


def queries_of_words(
    texts: Sequence[str], against: Sequence[str], templates: Sequence[str], encoder: Encoder
) -> Queries:
    """Each text as the re-normalised mean of its sentences, one a template; the competitors likewise.

    Args:
        texts: What is looked for, one query each.
        against: What a tile may be like instead.
        templates: Sentences with `PLACEHOLDER` in them.
        encoder: With a text tower.

    Raises:
        InputError: A text is empty or there twice, or a sentence is longer than the text tower reads.
    """
    words = [text.strip() for text in (*texts, *against)]
    if not all(words) or not texts:
        raise InputError("text=…: expected words to look for, got none; give a phrase")
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        raise InputError(f"text, against: {twice[0]!r} is there twice; a phrase cannot be its own competitor")
    if not templates or not all(PLACEHOLDER in template for template in templates):
        raise InputError(f"templates: expected sentences with {PLACEHOLDER} in them, got {list(templates)}")
    sentences = [template.replace(PLACEHOLDER, word) for word in words for template in templates]
    _require_short(sentences, encoder)
    vectors = encoder.embed_texts(sentences).numpy().astype(np.float64).reshape(len(words), len(templates), -1)
    means = _unit(vectors.mean(axis=1))
    return Queries(
        names=tuple(words[: len(texts)]),
        vectors=means[: len(texts)],
        competitors=means[len(texts) :],
        scale=float(np.exp(encoder.logit_scale)),
    )


def require_encoder(encoder: Encoder, header: FeatureHeader) -> None:
    """Refuse words of another encoder than the features'.

    Raises:
        MismatchError: Other weights; equal width is no proof.
    """
    if encoder.fingerprint != header.encoder_fingerprint:
        raise MismatchError(
            f"encoder={encoder.spec.name} ({encoder.fingerprint[:8]}): the features are of {header.encoder} "
            f"({header.encoder_fingerprint[:8]}), and their cosine means nothing; give the features' encoder=…"
        )


def query_of_tile(folder: FeatureFolder, like: str, space: str) -> Queries:
    """A tile as the query, ranked by the cosine.

    Args:
        folder: Of the features.
        like: ``<slide_id>:<x_lv0>,<y_lv0>``, the tile's top-left corner.
        space: In which tiles are compared.

    Raises:
        InputError: It cannot be read so, or the slide has no such tile.
        MismatchError: The features are in other spaces only.
        DamagedFileError: The slide's file is missing or damaged.
    """
    require_space(space, folder)
    slide_id, corner = _parsed(like)
    file = folder.open(slide_id)
    gaps = np.abs(file.coords_lv0 - corner).max(axis=1)
    if len(gaps) == 0 or gaps.min() > 0:
        near = "" if len(gaps) == 0 else f"; the nearest is at {','.join(map(str, file.coords_lv0[gaps.argmin()]))}"
        raise InputError(f"like={like}: slide {slide_id} has no tile with this top-left corner{near}")
    row = int(gaps.argmin())
    vector = np.asarray(file.features_of(space)[row : row + 1], np.float64)
    return Queries(
        names=(f"like {slide_id} at {corner[0]},{corner[1]}",),
        vectors=_unit(vector),
        competitors=np.empty((0, vector.shape[1])),
        scale=1.0,
        origin=(slide_id, row),
    )


def _parsed(like: str) -> tuple[str, tuple[int, int]]:
    slide_id, _, corner = like.rpartition(":")
    try:
        x, y = (int(value) for value in corner.split(","))
    except ValueError as error:
        raise InputError(f"like={like}: expected <slide_id>:<x_lv0>,<y_lv0>, whole level-0 pixels") from error
    return slide_id, (x, y)


def _require_short(sentences: Sequence[str], encoder: Encoder) -> None:
    limit = encoder.spec.context_length
    for sentence, n_tokens in zip(sentences, encoder.count_tokens(sentences), strict=True):
        if limit is not None and n_tokens > limit:
            raise InputError(f"text: {sentence!r} has {n_tokens} tokens, {encoder.spec.name} reads {limit}; shorten it")


def _unit(vectors: Float64[np.ndarray, "row dim"]) -> Float64[np.ndarray, "row dim"]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
