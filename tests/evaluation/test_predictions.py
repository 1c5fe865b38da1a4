"""Predictions: the file, its cells, and what is made of several."""

from __future__ import annotations

import io
import os
import resource
import zipfile
from collections.abc import Callable
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


def archive(path: Path, **arrays: object) -> None:
    plain = {"index": [0, 1], "label": [1, 0], "probabilities": np.eye(2), "beton_sha256": "0" * 64}
    np.savez(path, **plain | arrays)  # type: ignore[arg-type]


def huge_header(path: Path) -> None:
    """An array of 10^12 numbers by its header."""
    archive(path)
    content = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("extra.npy", content.getvalue())


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("index.npy", "w") as member:
        for _ in range(600):
            member.write(bytes(2**20))


CELLS = {"kind": ["mask"], "severity": [1], "fill": ["drawn"], "checksum": ["x"], "cluster": [0, 1]}
COVERED = {**CELLS, "probabilities": np.eye(2)[None]}
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (lambda path: archive(path, index=np.array([{}, {}])), "allow_pickle=False"),
    "huge header": (huge_header, "."),
    "bomb": (bomb, "larger than 512 MiB when unpacked"),
    "fifo": (os.mkfifo, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "label": (lambda path: archive(path, label=[0, 2]), "labels and classes"),
    "negative label": (lambda path: archive(path, label=[0, -1]), "labels and classes"),
    "float label": (lambda path: archive(path, label=[0.0, 1.0]), "not whole numbers"),
    "order": (lambda path: archive(path, index=[1, 0]), "ascending order"),
    "negative index": (lambda path: archive(path, index=[-1, 0]), "ascending order"),
    "scalar": (lambda path: archive(path, index=3, label=3, probabilities=[0.5]), "not whole numbers"),
    "nan": (lambda path: archive(path, probabilities=np.full((2, 2), np.nan)), "from 0 to 1"),
    "text": (lambda path: archive(path, probabilities=[["a", "b"]] * 2), "from 0 to 1"),
    "sha": (lambda path: archive(path, beton_sha256=[1, 2]), "Expected `str`, got `array`"),
    "cells": (lambda path: archive(path, **COVERED | {"severity": ["1"]}), "Expected `int`, got `str`"),
    "cells without a name": (lambda path: archive(path, kind=["mask"]), "severity|fill"),
    "cells and cells": (lambda path: archive(path, **COVERED | {"fill": ["a", "b"]}), "shorter|longer"),
    "checksums": (lambda path: archive(path, **COVERED | {"checksum": ["x", "y"]}), "checksums"),
    "cluster": (lambda path: archive(path, **COVERED | {"cluster": [1]}), "do not match"),
    "many cells": (lambda path: archive(path, **COVERED | {"kind": np.zeros(10**6, "U1")}), "10000 cells"),
}


def test_what_odd_files_are_made_from_is_whole(tmp_path: Path) -> None:
    archive(tmp_path / "p.npz")
    assert Predictions.load(tmp_path / "p.npz").label.tolist() == [1, 0]
    archive(tmp_path / "p.npz", **COVERED)
    assert Predictions.load(tmp_path / "p.npz").cells == (Cell("mask", 1, "drawn"),)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    write, message = ODD[name]
    write(tmp_path / "p.npz")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RunError, match=rf"p\.npz: cannot be read as predictions: .*({message})") as caught:
        Predictions.load(tmp_path / "p.npz")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "KiB: a GiB"


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
