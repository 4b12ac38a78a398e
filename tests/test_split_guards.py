"""Splits on random tables: every planted leak is found with its ids, no clean one is accused, every scheme is sound."""

import dataclasses
import functools
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from feature_extraction.errors import InputError
from mil.cohort import Cohort, CohortRow
from mil.labels import ONE_CLASS
from mil.splits.draws import SplitSettings
from mil.splits.file import read_split
from mil.splits.guards import check_split, find_faults
from mil.splits.ids import alike, difference
from mil.splits.schemes import SCHEMES, draw_split, make_split
from mil.splits.site_balance import balanced_sites, imbalance
from mil.splits.sites import site_association, site_groups
from mil.splits.table import PARTS, SplitRow, SplitTable, table_of
from mil.splits.twins import SlideContents, find_twins

N_TABLES = 500
NUMBER = "500123"
"""Of no slide of a random table."""
Fault = Callable[[np.random.Generator, SplitTable], tuple[SplitTable, tuple[str, ...]]]


@functools.cache
def random_case(number: int) -> tuple[Cohort, SplitTable]:
    """A clean cohort and a clean table of it that none of our schemes drew; ids in one of four styles."""
    generator = np.random.default_rng(number)
    n_folds = int(generator.integers(3, 5))
    n_patients = [int(generator.integers(n_folds, n_folds + 3)) for _ in range(generator.integers(2, 4))]
    offset = int(generator.integers(0, 40))
    styles = ("{:04}", "TCGA-{:02}-XY", "pat{}", "Fall {} é")
    style = styles[number % len(styles)]
    rows, parts = [], [{} for _ in range(n_folds)]
    for label, count in enumerate(n_patients):
        for place in range(count):
            patient = style.format(offset + len({row.patient_id for row in rows}))
            for slide in range(generator.integers(1, 3)):
                slide_id = f"{1000 * slide + int(patient):06}" if patient.isdigit() else f"{patient}_{slide}.v1"
                rows.append(CohortRow(slide_id=slide_id, patient_id=patient, label=f"class {label}", site=None))
                for fold in range(n_folds):
                    turn = (place + fold) % n_folds
                    parts[fold][slide_id] = "test" if turn == 0 else "val" if turn == 1 else "train"
    cohort = Cohort(rows=tuple(rows[place] for place in generator.permutation(len(rows))))
    return cohort, table_of(cohort, parts, scheme="kfold")


def _replaced(table: SplitTable, old: SplitRow, *new: SplitRow) -> SplitTable:
    return dataclasses.replace(table, rows=(*(row for row in table.rows if row is not old), *new))


def _some_row(generator: np.random.Generator, table: SplitTable) -> SplitRow:
    return table.rows[generator.integers(len(table.rows))]


def _elsewhere(generator: np.random.Generator, row: SplitRow) -> tuple[str, ...]:
    """Other parts than these in one fold."""
    fold = int(generator.integers(len(row.parts)))
    other = [part for part in PARTS if part != row.parts[fold]][generator.integers(2)]
    return (*row.parts[:fold], other, *row.parts[fold + 1 :])


def patient_on_two_sides(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    twin = dataclasses.replace(row, slide_id="another slide", parts=_elsewhere(generator, row))
    return _replaced(table, row, row, twin), ("two sides", row.patient_id)


def val_is_test(generator: np.random.Generator, table: SplitTable):
    fold = int(generator.integers(table.n_folds))

    def put(row: SplitRow, part: str) -> SplitRow:
        return dataclasses.replace(row, parts=(*row.parts[:fold], part, *row.parts[fold + 1 :]))

    test = table.part(fold, "test")
    rows = [put(row, "") if row.parts[fold] == "val" else row for row in table.rows]
    planted = dataclasses.replace(table, rows=(*rows, *(put(row, "val") for row in test)))
    return planted, ("val and test are the same", min(row.slide_id for row in test))


def unknown_slide(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    return _replaced(table, row, dataclasses.replace(row, slide_id="X-99")), ("X-99", "not in the labels table")


def slide_without_a_row(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    return _replaced(table, row), (row.slide_id, "no row in the split")


def slide_id_without_its_zeros(generator: np.random.Generator, table: SplitTable):
    """The labels table has the zeros, see `cohort_of`."""
    row = _some_row(generator, table)
    lost = str(generator.choice([NUMBER, f"{NUMBER}.0"]))
    return _replaced(table, row, dataclasses.replace(row, slide_id=lost)), (lost, f"'00{NUMBER}'", "zeros")


def cohort_of(plant: Fault, cohort: Cohort, planted: SplitTable) -> Cohort:
    """The labels table that a planted split is held against."""
    if plant is not slide_id_without_its_zeros:
        return cohort
    left = {row.slide_id for row in planted.rows}
    rows = (row if row.slide_id in left else dataclasses.replace(row, slide_id=f"00{NUMBER}") for row in cohort.rows)
    return Cohort(rows=tuple(rows))


def patient_id_without_its_zeros(generator: np.random.Generator, table: SplitTable):
    return _under_another_name(generator, table, "007", "7", "zeros")


def patient_id_in_another_case(generator: np.random.Generator, table: SplitTable):
    return _under_another_name(generator, table, "Patient-A", "patient-a", "case")


def patient_id_with_a_blank(generator: np.random.Generator, table: SplitTable):
    return _under_another_name(generator, table, "PatientA", "Patient A", "blanks")


def _under_another_name(generator: np.random.Generator, table: SplitTable, first: str, second: str, what: str):
    """One patient under two names, the second one in another part."""
    row = _some_row(generator, table)
    other = dataclasses.replace(row, slide_id="one more", patient_id=second, parts=_elsewhere(generator, row))
    return _replaced(table, row, dataclasses.replace(row, patient_id=first), other), (repr(first), repr(second), what)


def slide_id_with_a_suffix(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    name = f"{row.slide_id}{generator.choice(['.svs', '.SVS', '.ndpi', '.ome.tif', '.h5'])}"
    twin = dataclasses.replace(row, slide_id=name, patient_id="somebody else", parts=_elsewhere(generator, row))
    return _replaced(table, row, row, twin), (repr(row.slide_id), repr(name), "suffix")


def two_labels_of_a_patient(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    twin = dataclasses.replace(row, slide_id="another slide", label="class 9")
    return _replaced(table, row, row, twin), ("more than one label", f"patient {row.patient_id}: {row.label}, class 9")


def another_label_than_the_table(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    changed = [dataclasses.replace(r, label="class 9") if r.patient_id == row.patient_id else r for r in table.rows]
    planted = dataclasses.replace(table, rows=tuple(changed))
    return planted, ("another label", row.slide_id, f"(class 9, expected {row.label})")


def another_patient_than_the_table(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    changed = dataclasses.replace(row, patient_id="new")
    return _replaced(table, row, changed), ("another patient", f"{row.slide_id} (new, expected {row.patient_id})")


def class_without_a_part(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    fold = int(generator.integers(table.n_folds))
    part = row.parts[fold]
    rows = [
        dataclasses.replace(r, parts=(*r.parts[:fold], "", *r.parts[fold + 1 :]))
        if (r.label, r.parts[fold]) == (row.label, part)
        else r
        for r in table.rows
    ]
    return dataclasses.replace(table, rows=tuple(rows)), (f"fold {fold}: no {part} slide of class {row.label}",)


def label_that_is_none(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    cell = str(generator.choice(["", "NA", "nan", "None", "<NA>", "n/a", "#N/A", "[Not Available]"]))
    return _replaced(table, row, dataclasses.replace(row, label=cell)), (row.slide_id, f"label={cell!r}")


def slide_that_is_there_twice(generator: np.random.Generator, table: SplitTable):
    row = _some_row(generator, table)
    return _replaced(table, row, row, row), (row.slide_id, "more than once")


FAULTS: tuple[Fault, ...] = (
    patient_on_two_sides,
    val_is_test,
    unknown_slide,
    slide_without_a_row,
    slide_id_without_its_zeros,
    patient_id_without_its_zeros,
    patient_id_in_another_case,
    patient_id_with_a_blank,
    slide_id_with_a_suffix,
    two_labels_of_a_patient,
    another_label_than_the_table,
    another_patient_than_the_table,
    class_without_a_part,
    label_that_is_none,
    slide_that_is_there_twice,
)


def _is_named(faults: tuple[str, ...], needles: tuple[str, ...]) -> bool:
    return any(all(needle in fault for needle in needles) for fault in faults)


def _require_found(plant: Fault, number: int) -> None:
    cohort, table = random_case(number)
    planted, needles = plant(np.random.default_rng(number), table)
    faults = find_faults(planted, cohort=cohort_of(plant, cohort, planted))
    assert _is_named(faults, needles), (number, needles, faults)


@pytest.mark.parametrize("place", range(len(FAULTS)), ids=lambda place: FAULTS[place].__name__)
def test_a_planted_fault_is_found_with_its_ids(place: int) -> None:
    """Every table has three of the fifteen faults, one at a time."""
    for number in range(place % 5, N_TABLES, 5):
        _require_found(FAULTS[place], number)


@pytest.mark.long
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_every_planted_fault_is_found_in_every_random_table_with_its_ids(plant: Fault) -> None:
    for number in range(N_TABLES):
        _require_found(plant, number)


def test_no_clean_table_is_accused() -> None:
    for number in range(N_TABLES):
        cohort, table = random_case(number)
        assert find_faults(table, cohort=cohort) == (), number
        ids = [row.slide_id for row in cohort.rows]
        contents = SlideContents(keys={name: frozenset((f"rows {name}",)) for name in ids}, unread=())
        assert find_twins(cohort.rows, contents) == ((), ()), number


def test_the_same_slide_of_two_patients_or_labels_is_found_in_every_random_table() -> None:
    for number in range(N_TABLES):
        generator, (cohort, _) = np.random.default_rng(number), random_case(number)
        rows = cohort.rows
        first, second = (rows[place] for place in generator.choice(len(rows), 2, replace=False))
        keys = {row.slide_id: frozenset((f"slide {row.slide_id}", f"rows {row.slide_id}")) for row in rows}
        keys[second.slide_id] |= {f"slide {first.slide_id}"}
        faults, notes = find_twins(rows, SlideContents(keys=keys, unread=()))
        named = faults if first.patient_id != second.patient_id else notes
        assert len(faults) + len(notes) == 1
        assert _is_named(named, (first.slide_id, second.slide_id, first.patient_id)), number


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_file_with_a_planted_fault_is_refused_with_a_remedy(plant: Fault, tmp_path: Path) -> None:
    for number in range(4):
        cohort, table = random_case(number)
        planted, needles = plant(np.random.default_rng(number), table)
        path = tmp_path / "kfold.csv"
        path.write_text(planted.to_csv())
        with pytest.raises(InputError) as caught:
            check_split(read_split(path), cohort=cohort_of(plant, cohort, planted))
        said = str(caught.value)
        assert all(needle in said for needle in needles) or "slide of class" in said  # what reading alone finds
        assert any(word in str(caught.value) for word in ("correct the file", "expected ids, a label"))


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("007", "7", "zeros"),
        ("007", "7.0", "zeros"),
        ("12", "12.0", "zeros"),
        ("A 1", "A1", "blanks"),
        ("A\u00a01", "A1", "blanks"),
        ("É1", "e\u0301 1", "case"),
        ("s1", "S1", "case"),
        ("S1.svs", "S1", "suffix"),
        ("s1.ome.tif", "S1.h5", "suffix"),
        ("0012.svs", "12", "zeros"),
    ],
)
def test_ids_written_in_two_ways_are_one(first: str, second: str, what: str) -> None:
    assert what in (difference(first, second) or "")
    assert alike([second, first, "x"]) == alike([first, second]) != []


@pytest.mark.parametrize(
    ("first", "second"),
    [("10", "1"), ("P007", "P7"), ("S1.1", "S1.2"), ("A-1", "A_1"), ("1.5", "1.50"), (".svs", ".h5"), ("0", "1")],
)
def test_ids_that_differ_in_more_are_two(first: str, second: str) -> None:
    assert difference(first, second) is None
    assert alike([first, second]) == []


# Schemes


def random_cohort(number: int, *, n_sites: int = 0, fewest: int = 6) -> Cohort:
    """Classes of ``fewest`` to 15 patients with 1 to 3 slides, rows in any order; some patients are at two sites."""
    generator = np.random.default_rng(number)
    rows = []
    for label in range(generator.integers(2, 4)):
        for patient in range(generator.integers(fewest, 16)):
            site = int(generator.integers(n_sites)) if n_sites else None
            for slide in range(generator.integers(1, 4)):
                is_moved = site is not None and slide and generator.random() < 0.03
                place = None if site is None else f"site {(site + bool(is_moved)) % n_sites}"
                name = f"p{label}x{patient}"
                rows.append(CohortRow(slide_id=f"{name}-{slide}", patient_id=name, label=f"class {label}", site=place))
    return Cohort(rows=tuple(rows[place] for place in generator.permutation(len(rows))))


def folds_of(table: SplitTable) -> Iterator[dict[str, str]]:
    """Patient to part for each fold; a patient in two parts fails."""
    for fold in range(table.n_folds):
        parts: defaultdict[str, set[str]] = defaultdict(set)
        for row in table.rows:
            parts[row.patient_id].add(row.parts[fold])
        assert all(len(found) == 1 for found in parts.values())
        yield {patient: min(found) for patient, found in parts.items()}


def drawn(cohort: Cohort, **settings: object) -> SplitTable | None:
    """None where this cohort has no such split."""
    try:
        table, _ = draw_split(cohort, SplitSettings(**settings))
    except InputError:
        return None
    assert find_faults(table, cohort=cohort) == ()
    assert [row.slide_id for row in table.rows] == [
        row.slide_id for row in sorted(cohort.rows, key=lambda row: (row.patient_id, row.slide_id))
    ]
    return table


def times_tested(table: SplitTable) -> Counter[str]:
    return Counter(patient for parts in folds_of(table) for patient, part in parts.items() if part == "test")


def test_repeated_folds_test_each_patient_once_a_repeat_and_begin_with_kfold() -> None:
    for number in range(15):
        cohort = random_cohort(number)
        table = drawn(cohort, scheme="repeated_kfold", folds=3, repeats=4, seed=number)
        assert table is not None
        assert table.n_folds == 12
        assert times_tested(table) == dict.fromkeys(cohort.labels_of_patients(), 4)
        first = make_split(cohort, folds=3, seed=number)
        assert [row.parts[:3] for row in table.rows] == [row.parts for row in first.rows]
        repeats = {tuple(row.parts[start : start + 3] for row in table.rows) for start in range(0, 12, 3)}
        assert len(repeats) == 4


def test_monte_carlo_draws_the_share_of_every_class_anew() -> None:
    for number in range(15):
        cohort = random_cohort(number)
        labels = cohort.labels_of_patients()
        table = drawn(cohort, scheme="monte_carlo", folds=6, test_fraction=0.3, seed=number)
        assert table is not None
        tests = set()
        for parts in folds_of(table):
            for label, total in Counter(labels.values()).items():
                counts = Counter(parts[patient] for patient, given in labels.items() if given == label)
                assert abs(counts["test"] - 0.3 * total) <= 0.5
                assert abs(counts["val"] - 0.2 * (total - counts["test"])) <= 1
                assert min(counts[part] for part in PARTS) >= 1
            tests.add(tuple(parts.values()))
        assert len(tests) == 6


@pytest.mark.parametrize("scheme", ["site_preserved", "leave_one_site_out"])
def test_sites_stay_whole_and_each_patient_is_tested_once(scheme: str) -> None:
    n_drawn = 0
    for number in range(40):
        cohort = random_cohort(number, n_sites=3 + number % 5)
        sites = site_groups(cohort)
        table = drawn(cohort, scheme=scheme, folds=2 + number % 2, seed=number)
        if table is None:
            continue
        n_drawn += 1
        assert times_tested(table) == dict.fromkeys(cohort.labels_of_patients(), 1)
        for parts in folds_of(table):
            test = {sites[patient] for patient, part in parts.items() if part == "test"}
            assert test.isdisjoint(sites[patient] for patient, part in parts.items() if part != "test")
            assert set(parts.values()) == set(PARTS)
            assert scheme == "site_preserved" or len(test) == 1
    assert n_drawn >= 30


def test_every_scheme_gives_the_same_split_for_the_same_seed_in_any_order_of_rows() -> None:
    extra = {"few_shot": {"shots": 2}, "monte_carlo": {"test_fraction": 0.25}}
    cohort = random_cohort(0, n_sites=5, fewest=12)
    for name in SCHEMES:
        backwards = Cohort(rows=cohort.rows[::-1])
        settings = {"scheme": name, "folds": 2, **extra.get(name, {})}
        tables = [drawn(rows, seed=seed, **settings) for seed in (4, 4, 5) for rows in (cohort, backwards)]
        assert tables[0] is not None
        assert all(table == tables[0] for table in tables[:4])
        assert tables[4] == tables[5] != tables[0] or name == "site_preserved"


def test_the_new_draws_are_the_same_in_every_process_and_version() -> None:
    """Golden hashes, as for k-fold; not of ``site_preserved``, where another solver may break ties otherwise."""
    cohort = random_cohort(0, n_sites=4, fewest=9)
    hashes = {
        name: draw_split(cohort, SplitSettings(scheme=name, folds=3, seed=7))[0].sha256()[:12]
        for name in ("repeated_kfold", "monte_carlo", "leave_one_site_out")
    }
    assert hashes == {
        "repeated_kfold": "e08288ac7ba3",
        "monte_carlo": "a49ebdd30d57",
        "leave_one_site_out": "06f3492642e7",
    }


def test_site_folds_are_as_even_as_the_best_of_all_assignments() -> None:
    n_found = 0
    for number in range(25):
        generator = np.random.default_rng(number)
        n_sites, folds, n_classes = generator.integers(3, 7), int(generator.integers(2, 4)), generator.integers(2, 4)
        counts = generator.integers(0, 9, (n_sites, n_classes))
        counts = counts[counts.sum(axis=1) > 0]
        if len(counts) < folds or counts.sum(axis=0).min() < 1:
            continue
        every = [np.array(fold) for fold in itertools.product(range(folds), repeat=len(counts))]
        sums = [np.stack([counts[fold == f].sum(axis=0) for f in range(folds)]) for fold in every]
        allowed = [
            imbalance(counts, fold, folds)
            for fold, per_fold in zip(every, sums, strict=True)
            if len(set(fold.tolist())) == folds and per_fold.min() >= 1 and (counts.sum(axis=0) - per_fold).min() >= 2
        ]
        found = balanced_sites(counts, folds, in_every_fold=np.ones(counts.shape[1], bool))
        assert (found is None) == (not allowed)
        if found is not None:
            n_found += 1
            assert found.imbalance == pytest.approx(min(allowed), abs=1e-9)
            assert found.is_exact
            assert found.gap == 0
    assert n_found >= 10


def test_where_the_search_stops_without_proof_the_gap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    counts = generator.poisson(generator.gamma(1, 10, (18, 1)) * generator.dirichlet(np.ones(3), 18)) + 1
    monkeypatch.setattr("mil.splits.site_balance.MOST_WORK", 0)
    monkeypatch.setattr("mil.splits.site_balance.FEWEST_NODES", 1)
    found = balanced_sites(counts, 4, in_every_fold=np.ones(3, bool))
    assert found is not None
    assert not found.is_exact
    assert 0 < found.gap < 1
    assert found.bound < found.imbalance < 0.45  # .48 without the exchanges at the end


def _two_sites(*labels: tuple[str, str]) -> Cohort:
    """Six patients for each (site, label)."""
    pairs = [(site, label, n) for site, label in labels for n in range(6)]
    return Cohort(
        rows=tuple(
            CohortRow(slide_id=f"{site}{label}{n}", patient_id=f"{site}{label}{n}", label=label, site=site or None)
            for site, label, n in pairs
        )
    )


BALANCED = (("A", "x"), ("A", "y"), ("B", "x"), ("B", "y"))


@pytest.mark.parametrize(
    ("cohort", "settings", "message"),
    [
        (BALANCED, {"scheme": "site_preserved", "folds": 3}, r"folds=3: expected 3 or more sites, got 2 \(A, B\)"),
        (
            (*BALANCED, ("C", "x")),
            {"scheme": "site_preserved", "folds": 3},
            r"y \(2: A, B\); use folds=2, or scheme=leave_one_site_out",
        ),
        (
            (("A", "x"), ("B", "y")),
            {"scheme": "leave_one_site_out"},
            r"class x \(site A\), y \(site B\) is at one site",
        ),
        ((("A", "x"), ("A", "y")), {"scheme": "leave_one_site_out"}, "expected two or more sites, got A"),
        ((*BALANCED, ("", "x")), {"scheme": "site_preserved", "folds": 2}, "no site for slide x0, x1"),
        ((*BALANCED, ("a", "x")), {"scheme": "leave_one_site_out"}, "two names of one site: 'A' and 'a'"),
        (BALANCED, {"scheme": "kfold", "repeats": 2}, "leave repeats out, or set scheme=repeated_kfold"),
        (BALANCED, {"scheme": "few_shot", "shots": 1, "test_fraction": 0.2}, "set scheme=monte_carlo"),
        (BALANCED, {"scheme": "monte_carlo", "test_fraction": 1.0}, "test_fraction=1.0"),
        (BALANCED, {"scheme": "repeated_kfold", "repeats": 0}, "repeats=0"),
    ],
)
def test_a_scheme_that_cannot_be_is_refused_with_what_can(
    cohort: tuple[tuple[str, str], ...], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        draw_split(_two_sites(*cohort), SplitSettings(**settings))


def test_sites_that_share_a_patient_are_one() -> None:
    cohort = _two_sites(*BALANCED, ("C", "x"), ("C", "y"))
    moved = dataclasses.replace(cohort.rows[0], slide_id="second", site="C")
    groups = site_groups(Cohort(rows=(*cohort.rows, moved)))
    assert Counter(groups.values()) == {"A + C": 24, "B": 12}


def test_the_association_of_site_and_label_is_that_of_the_textbook() -> None:
    assert site_association(_two_sites(("A", "x"), ("A", "y")), ONE_CLASS) is None
    none = site_association(_two_sites(*BALANCED), ONE_CLASS)
    assert none is not None
    assert (none.cramers_v, none.p_value, none.one_class_sites, none.reason) == (0, 1, {}, "")
    full = site_association(_two_sites(("A", "x"), ("B", "y")), ONE_CLASS)
    assert full is not None
    assert full.cramers_v == pytest.approx(1)
    assert full.p_value == pytest.approx(0.000532, rel=0.01)  # chi² = 12 with one degree of freedom
    assert full.one_class_sites == {"A": "x", "B": "y"}
    assert full.reason
