"""Predictions: the file, its cells, and what is made of several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ferdist.errors import RunError
from ferdist.evaluation.benchmark import Cell
from ferdist.evaluation.predictions import Predictions, by_sequence, join, joined_checksum
from tests.evaluation.conftest import answers


def of(label: list[int], probabilities: npt.ArrayLike) -> Predictions:
    rows = np.asarray(probabilities, np.float32)
    return Predictions(np.arange(len(label)), np.array(label), rows, "0" * 64)


def test_predictions_come_back_from_their_file(tmp_path: Path) -> None:
    p = answers([1, 0])
    p.save(tmp_path / "a" / "p.npz")
    back = Predictions.load(tmp_path / "a" / "p.npz")
    assert np.array_equal(back.probabilities, p.probabilities)
    assert back.probabilities.dtype == np.float32
    assert (back.beton_sha256, back.cells, back.cluster) == (p.beton_sha256, (), None)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"nothing", {"label": np.arange(3)}, None])
def test_a_file_that_does_not_hold_predictions_is_refused(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "run" / "predictions" / "p.npz"
    if isinstance(content, dict):
        replace(answers([1, 0]), **content).save(path)
    elif content is not None:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"p\.npz: cannot be read as predictions"):
        Predictions.load(path)
    answers([[1, 0]], (Cell("mask", 1, "drawn"),), [0, 1]).merged_into(path)
    assert len(Predictions.load(path).cells) == 1


def test_a_file_keeps_the_cells_of_earlier_evaluations(tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "occlusion" / "d.npz"
    mask, square = Cell("mask", 1, "drawn"), Cell("square", 2, "mean")
    answers([[1, 0], [1, 1]], (mask, Cell("glasses", 1, "drawn")), [3, 4]).merged_into(path)
    newer = answers([[0, 0], [0, 1]], (square, mask), [3, 4])
    newer.merged_into(path)
    stored = Predictions.load(path)
    assert stored.cells == (square, Cell("glasses", 1, "drawn"), mask), "in the order of the benchmark"
    assert stored.correct().tolist() == [[False, False], [True, True], [False, True]]
    assert stored.checksums == tuple(f"sum of {cell}" for cell in stored.cells)
    assert stored.cluster.tolist() == [3, 4]
    assert stored.probabilities.dtype == np.float32
    replace(newer, index=newer.index + 1).merged_into(path)
    assert Predictions.load(path).cells == (square, mask), "other samples: another evaluation"


def test_a_sequence_is_the_mean_of_its_frames() -> None:
    p = of([1, 1, 0, 0], [[0.9, 0.1], [0.0, 1.0], [0.6, 0.4], [0.3, 0.7]])
    whole = by_sequence(p, np.array([5, 5, 2, 2]))
    np.testing.assert_allclose(whole.probabilities, [[0.45, 0.55], [0.45, 0.55]], atol=1e-6)
    assert whole.label.tolist() == [0, 1]
    assert whole.index.tolist() == [2, 0]


def test_a_sequence_with_two_labels_is_two_things_to_recognise() -> None:
    """CK+ with 8 classes: the first frame is neutral, the last show the expression."""
    p = of([2, 0, 0, 2, 1], np.eye(3)[[2, 0, 0, 2, 1]])
    whole = by_sequence(p, np.array([4, 4, 4, 7, 7]))
    assert len(whole.label) == 4
    assert (whole.probabilities.argmax(1) == whole.label).all()


def test_folds_are_pooled() -> None:
    cells = (Cell("mask", 1, "drawn"), Cell("glasses", 1, "drawn"))
    whole = answers([[1, 0, 1, 1], [0, 0, 1, 0]], cells, [4, 5, 4, 6])

    def part(rows: list[int]) -> Predictions:
        return whole.select(np.array(rows))

    folds = [replace(part([1, 3]), checksums=("b", "d")), replace(part([0, 2]), checksums=("a", "c"))]
    pooled = join(folds)
    assert pooled.checksums == (joined_checksum(["a", "b"]), joined_checksum(["c", "d"]))
    assert np.array_equal(pooled.index, whole.index)
    assert np.array_equal(pooled.cluster, whole.cluster)
    assert np.array_equal(pooled.correct(), whole.correct())
    assert pooled.checksums == join(folds[::-1]).checksums
    with pytest.raises(RunError, match="the same samples cannot be pooled"):
        join([folds[0], folds[0]])
    with pytest.raises(RunError, match="different cells or data cannot be pooled"):
        join([folds[0], replace(folds[1], beton_sha256="1")])
