from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ferdist.data.ckplus import read_ckplus
from ferdist.data.folds import assign_folds, check_folds, fold_evenness, unevenness
from ferdist.data.record import FaceDataset, Integers
from ferdist.errors import DataError


def make_dataset(subjects: int = 30, per_subject: int = 7, *, with_subjects: bool = True) -> FaceDataset:
    samples = subjects * per_subject
    return FaceDataset.of(
        "mine",
        np.zeros((samples, 1, 2, 2), dtype=np.uint8),
        np.random.default_rng(0).integers(0, 3, samples),
        ("a", "b", "c"),
        [str(row) for row in range(samples)],
        subjects=[f"S{row // per_subject:02d}" if with_subjects else "" for row in range(samples)],
    )


def subjects_per_fold(dataset: FaceDataset) -> list[set[int]]:
    return [set(dataset.subject[dataset.fold == k].tolist()) for k in range(int(dataset.fold.max()) + 1)]


@pytest.mark.parametrize("folds", [2, 5, 30])
def test_every_subject_lies_in_one_fold(folds: int) -> None:
    held_out = subjects_per_fold(assign_folds(make_dataset(), folds, seed=0))
    assert len(held_out) == folds
    assert all(held_out)
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == 30


def test_the_seed_decides() -> None:
    dataset = make_dataset()
    first, again, other = (assign_folds(dataset, 5, seed).fold for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


@pytest.mark.parametrize("folds", [-1, 0, 1, 31])
def test_impossible_numbers_of_folds(folds: int) -> None:
    with pytest.raises(DataError, match=rf"mine: cannot make {folds} folds of 30 subjects; ask for 2 to 30"):
        assign_folds(make_dataset(), folds, seed=0)


def test_samples_without_subject_are_refused() -> None:
    with pytest.raises(DataError, match="mine: 210 of 210 samples have no subject"):
        assign_folds(make_dataset(with_subjects=False), 5, seed=0)


def test_folds_beyond_every_class_are_refused() -> None:
    small = make_dataset(subjects=12, per_subject=1)
    largest = int(np.bincount(small.labels).max())
    with pytest.raises(DataError, match=f"no class has more than {largest} samples"):
        assign_folds(small, largest + 1, seed=0)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(DataError, match="mine: seed -1 is negative"):
        assign_folds(make_dataset(), 5, seed=-1)


def test_check_folds_sees_a_shared_subject_and_gaps() -> None:
    def ints(*values: int) -> Integers:
        return np.array(values, dtype=np.int64)

    check_folds(ints(0, 0, 1), ints(1, 1, 0))
    with pytest.raises(DataError, match="subject 4 lies in folds 0, 1"):
        check_folds(ints(3, 4, 4), ints(0, 0, 1))
    with pytest.raises(DataError, match="fold 1 is empty"):
        check_folds(ints(0, 1), ints(0, 2))
    with pytest.raises(DataError, match="without a fold"):
        check_folds(ints(0, 1), ints(0, -1))


def test_unevenness_is_zero_only_when_even() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert unevenness(labels, np.array([0, 1, 0, 1, 0, 1])) == 0
    assert unevenness(labels, np.array([0, 1, 0, 1, 1, 1])) == pytest.approx(2 + 2 * 1 / 3)


def test_fold_evenness_counts() -> None:
    dataset = assign_folds(make_dataset(), 5, seed=0)
    evenness = json.loads(json.dumps(fold_evenness(dataset)))
    samples = np.bincount(dataset.fold)
    of_class_a = np.bincount(dataset.fold[dataset.labels == 0])
    people = [len(held_out) for held_out in subjects_per_fold(dataset)]
    assert evenness["samples"] == [samples.min(), samples.max()]
    assert evenness["subjects"] == [min(people), max(people)]
    assert evenness["per_class"]["a"] == [of_class_a.min(), of_class_a.max()]


def test_real_ckplus_folds_are_even(real_data: Path) -> None:
    dataset = assign_folds(read_ckplus(real_data / "ckplus48.zip"), 10, seed=0)
    evenness = fold_evenness(dataset)
    low, high = evenness["samples"]
    assert 90 <= low <= high <= 105
    for name, share in zip(dataset.classes, np.bincount(dataset.labels) / 10, strict=True):
        least, most = evenness["per_class"][name]
        assert share - 6 <= least <= most <= share + 6, name
    for sequence in range(len(dataset.sequence_names)):
        assert len(set(dataset.fold[dataset.sequence == sequence])) == 1
