"""The linter of prompt sets: every defect of a set at once, each with its place and what to do.

An **error** is what makes the words mean something else than they say, and no text bank is made of it: what is wrong
with the form of the file (`parse_prompt_set`), a text that is cut, the same text for two classes or twice, another
class's name in a concept, an unfilled placeholder, markup, remnants of generated lists, invisible or look-alike
characters, several backgrounds, fewer than two classes, a label that has no prompts. A **warning** is what may be meant
and mostly is not: near the token limit, near-duplicates, the class's own name in a concept, negations, generic text,
a class known by its label only, very unequal numbers of names, typographic characters, no source, an unread draft, a
class that no label has. What an encoder makes of the words (two classes in one direction, a concept nearer to another
class, other words and yet the same vector) is a warning too: it is a finding about both, and the same words may serve
another encoder.

To add a rule, write one function and name it in ``RULES``.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from feature_extraction import prompt_rules as words
from feature_extraction.encoder import Encoder
from feature_extraction.prompt_inspection import Inspected, Measured, Rule, error, place_of, warning
from feature_extraction.prompt_words import canonical
from feature_extraction.prompts import Defect, PromptRow, PromptSet, parse_prompt_set

SAME_DIRECTION = 0.98
"""Classes whose vectors have a larger cosine are one class to the encoder."""
SAME_VECTOR = 1 - 1e-6
"""From this cosine on two sentences are one to the encoder; batches of other sizes differ by less."""
ROWS_AT_ONCE = 1000
NEAR_LIMIT = 0.9
"""Share of the context from which on a sentence is close to being cut."""


def too_long(seen: Inspected) -> Iterator[Defect]:
    """Sentences that the text tower would cut."""
    for row, n_tokens, cut in _measured_rows(seen):
        if cut and seen.measured:
            what = (
                f"{n_tokens} tokens, {seen.measured.encoder} reads {seen.measured.context_length}; cut off: '… {cut}'"
            )
            yield error("too-long", place_of(row), what, f"shorten {row.text!r}")


def near_limit(seen: Inspected) -> Iterator[Defect]:
    """Sentences that another template or tokenizer would cut."""
    limit = seen.measured.context_length if seen.measured else None
    for row, n_tokens, cut in _measured_rows(seen):
        if limit is not None and not cut and n_tokens > NEAR_LIMIT * limit:
            what = f"{n_tokens} of {limit} tokens: {row.text!r}"
            yield warning("near-limit", place_of(row), what, "shorten it; other tokenizers cut elsewhere")


def classes_in_one_direction(seen: Inspected) -> Iterator[Defect]:
    """Two classes that the encoder does not tell apart by their words."""
    if seen.measured is None:
        return
    vectors = seen.measured.vectors
    present = [entry.name for entry in seen.prompts.classes if (entry.name, "") in vectors]
    for first, second in combinations(present, 2):
        cosine = float(vectors[first, ""] @ vectors[second, ""])
        if cosine > SAME_DIRECTION:
            what = f"cosine {cosine:.3f} to {seen.measured.encoder}, above {SAME_DIRECTION}"
            remedy = "word them further apart, or take another encoder"
            yield warning("classes-too-close", f"classes {first} and {second}", what, remedy)


def concepts_of_another_class(seen: Inspected) -> Iterator[Defect]:
    """A concept that lies closer to another class than to its own."""
    vectors = seen.measured.vectors if seen.measured else {}
    classes = [owner for owner, concept in vectors if not concept]
    for (owner, concept), vector in vectors.items():
        if not concept or owner not in classes:
            continue
        cosines = {name: float(vector @ vectors[name, ""]) for name in classes}
        nearest = max(cosines, key=cosines.__getitem__)
        if cosines[nearest] > cosines[owner]:
            what = f"closer to class {nearest} (cosine {cosines[nearest]:.3f}) than to its own ({cosines[owner]:.3f})"
            yield warning("concept-of-another-class", f"class {owner}, concept {concept}", what, "reword or remove it")


def words_without_effect(seen: Inspected) -> Iterator[Defect]:
    """Sentences of different words with one vector: the encoder does not read what they differ in."""
    for first, second in seen.measured.twins if seen.measured else ():
        what = f"the same vector as {second.text!r}: {first.text!r}"
        yield warning("words-without-effect", place_of(first), what, "use words that this encoder's tokenizer knows")


RULES: tuple[Rule, ...] = (
    words.too_few_classes,
    words.several_backgrounds,
    words.placeholder_of_templates,
    words.foreign_placeholders_of_templates,
    words.templates_without_effect,
    words.repeated_texts,
    words.repeated_sentences,
    words.names_in_concepts,
    words.negations,
    words.unfilled_placeholders,
    words.remnants,
    words.strange_characters,
    words.generic_texts,
    words.labels_as_names,
    words.unequal_names,
    words.sources,
    words.labels_and_classes,
    words.lengths_without_encoder,
    too_long,
    near_limit,
    classes_in_one_direction,
    concepts_of_another_class,
    words_without_effect,
)


def lint(
    prompts: PromptSet, *, encoder: Encoder | None = None, labels: Iterable[str] | None = None
) -> tuple[Defect, ...]:
    """Every defect of a set whose form is right, in the order of the rules.

    Args:
        prompts: The set.
        encoder: Whose limit and directions count; None to look at the words alone.
        labels: Class names of the labels table, None when there is none.
    """
    measured = None if encoder is None else measure(prompts, encoder)
    given = None if labels is None else frozenset(labels)
    return _defects(Inspected(prompts=prompts, labels=given, measured=measured))


def refusals(prompts: PromptSet, encoder: Encoder) -> tuple[Defect, ...]:
    """The errors for which no bank is made with this encoder; no text is embedded for it."""
    return errors_of(_defects(Inspected(prompts=prompts, measured=measure(prompts, encoder, has_vectors=False))))


def lint_file(path: Path, *, encoder: Encoder | None = None, labels: Iterable[str] | None = None) -> tuple[Defect, ...]:
    """Every defect of a file, of its form first.

    Raises:
        InputError: It is nothing like a prompt set.
    """
    prompts, defects = parse_prompt_set(path)
    return (*defects, *lint(prompts, encoder=encoder, labels=labels))


def errors_of(defects: Iterable[Defect]) -> tuple[Defect, ...]:
    """Those with which no bank is made."""
    return tuple(defect for defect in defects if defect.severity == "error")


def measure(prompts: PromptSet, encoder: Encoder, *, has_vectors: bool = True) -> Measured:
    """Token counts of every sentence, and vectors of the classes and concepts from the sentences that fit.

    Args:
        prompts: The set.
        encoder: Its text tower.
        has_vectors: Whether texts are embedded; without, rules about directions have nothing to say.
    """
    rows = tuple(prompts.rows())
    limit = encoder.spec.context_length
    n_tokens = encoder.count_tokens([row.text for row in rows])
    cut = [
        "" if limit is None or count <= limit else _cut_words(row.text, limit, encoder)
        for row, count in zip(rows, n_tokens, strict=True)
    ]
    fitting = [row for row, tail in zip(rows, cut, strict=True) if has_vectors and not tail]
    texts = [row.text for row in fitting]
    embeddings = encoder.embed_texts(texts).numpy().astype(np.float64) if texts else np.empty((0, 0))
    return Measured(
        encoder=encoder.spec.name,
        context_length=limit,
        rows=rows,
        n_tokens=tuple(n_tokens),
        cut=tuple(cut),
        vectors=_vectors(fitting, embeddings),
        twins=tuple(_twins(fitting, embeddings)),
    )


def _defects(seen: Inspected) -> tuple[Defect, ...]:
    return tuple(defect for rule in RULES for defect in rule(seen))


def _vectors(
    rows: Sequence[PromptRow], embeddings: Float64[np.ndarray, "row dim"]
) -> Mapping[tuple[str, str], Float64[np.ndarray, " dim"]]:
    """(class, "") and (class, concept) to the re-normalised mean of its sentences, as a bank would have it."""
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        if row.role != "nontask":
            places[row.class_name, row.owner if row.role == "concept" else ""].append(place)
    means = {owner: embeddings[chosen].mean(axis=0) for owner, chosen in places.items()}
    return {owner: mean / np.linalg.norm(mean) for owner, mean in means.items()}


def _twins(
    rows: Sequence[PromptRow], embeddings: Float64[np.ndarray, "row dim"]
) -> Iterator[tuple[PromptRow, PromptRow]]:
    """Each sentence with the first one that has its vector, unless they differ in case or punctuation only."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        is_same = embeddings[start : start + ROWS_AT_ONCE] @ embeddings.T > SAME_VECTOR
        for row, first in zip(rows[start:], is_same.argmax(axis=1), strict=False):
            if canonical(row.text) != canonical(rows[first].text):
                yield row, rows[first]


def _cut_words(text: str, limit: int, encoder: Encoder) -> str:
    """The words after the longest beginning that fits."""
    parts = text.split(" ")
    counts = encoder.count_tokens([" ".join(parts[:end]) for end in range(1, len(parts) + 1)])
    n_kept = sum(count <= limit for count in counts)
    return " ".join(parts[n_kept:])


def _measured_rows(seen: Inspected) -> Iterator[tuple[PromptRow, int, str]]:
    if seen.measured is not None:
        yield from zip(seen.measured.rows, seen.measured.n_tokens, seen.measured.cut, strict=True)
