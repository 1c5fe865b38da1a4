"""What a model answers for each sample, and the .npz file that keeps it: every score follows from this."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from ferdist.augment.kinds import KINDS
from ferdist.data.record import Integers
from ferdist.errors import RunError, reason_of
from ferdist.evaluation.benchmark import Cell
from ferdist.io import MIB, atomic_path, check_unpacked, open_untrusted, writing

Probabilities = npt.NDArray[np.float32]

LIMIT: Final = 512 * MIB
"""Largest file that is read, packed or not: 100,000 faces of 8 classes under 150 cells."""
MOST_CELLS: Final = 10_000
CELL: Final = ("kind", "severity", "fill")
"""The arrays of a file that name its cells."""


@dataclass(frozen=True)
class Predictions:
    """What a model answers for each sample, once, or once under each cell of the occlusion benchmark.

    Attributes:
        index: int64 (N,), sample numbers in the beton, ascending.
        label: int64 (N,).
        probabilities: float32 (N, K), rows sum to 1; (M, N, K) where there are cells.
        beton_sha256: of the file that the samples came from.
        cells: M cells of the benchmark; empty where the images were shown as they are.
        checksums: of the N images of each cell, M.
        cluster: int64 (N,), what intervals resample (subjects, or groups of copies); None without cells.
    """

    index: Integers
    label: Integers
    probabilities: Probabilities
    beton_sha256: str
    cells: tuple[Cell, ...] = ()
    checksums: tuple[str, ...] = ()
    cluster: Integers | None = None

    def correct(self) -> npt.NDArray[np.bool_]:
        """Which samples are recognised, bool (N,), or (M, N) where there are cells."""
        return np.asarray(self.probabilities.argmax(axis=-1) == self.label)

    def select(self, keep: npt.NDArray[np.bool_] | Integers) -> Predictions:
        """The samples where ``keep`` (N,) is true, or those at these positions in this order."""
        return replace(
            self,
            index=self.index[keep],
            label=self.label[keep],
            probabilities=self.probabilities[..., keep, :],
            cluster=None if self.cluster is None else self.cluster[keep],
        )

    def cell(self, number: int) -> Predictions:
        """Those under one cell, (N, K)."""
        return Predictions(self.index, self.label, self.probabilities[number], self.beton_sha256)

    def merged_into(self, path: Path) -> None:
        """Put these cells into a file; one that is about other samples, or cannot be read, is replaced."""
        try:
            older = Predictions.load(path)
        except RunError:
            older = self
        if self.beton_sha256 != older.beton_sha256 or not np.array_equal(self.index, older.index):
            older = self
        rows = {
            cell: (checksum, answers)
            for one in (older, self)
            for cell, checksum, answers in zip(one.cells, one.checksums, one.probabilities, strict=True)
        }
        cells = sorted(rows, key=place_of)
        checksums, probabilities = zip(*(rows[cell] for cell in cells), strict=True)
        whole = replace(self, cells=tuple(cells), checksums=checksums, probabilities=np.stack(probabilities))
        whole.save(path)

    def save(self, path: Path) -> None:
        """Write a compressed .npz, whole or not at all.

        Raises:
            RunError: if it cannot be written.
        """
        names = ("index", "label", "probabilities", "beton_sha256")
        arrays: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.cells:
            named = {name: [getattr(cell, name) for cell in self.cells] for name in CELL}
            arrays |= {"cluster": self.cluster, **named, "checksum": self.checksums}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)

    @staticmethod
    def load(path: Path) -> Predictions:
        """Read what `save` wrote.

        Raises:
            RunError: if the file is missing or does not hold predictions.
        """
        try:
            with open_untrusted(path, LIMIT) as file:
                check_unpacked(file, LIMIT)
                with np.load(file, allow_pickle=False) as stored:
                    return _checked(dict(stored))
        except Exception as error:  # numpy raises whatever a damaged file makes it
            raise RunError(f"{path}: cannot be read as predictions: {reason_of(error)}") from None


def _checked(stored: dict[str, Any]) -> Predictions:
    """Predictions from the arrays of a file. Raises KeyError or ValueError if they are none."""
    probabilities, label, index = stored["probabilities"], stored["label"], stored["index"]
    texts = {name: stored[name] for name in ("beton_sha256", *CELL, "checksum") if name in stored}
    if any(one.size > MOST_CELLS for one in texts.values()):
        raise ValueError(f"more than {MOST_CELLS} cells")
    plain = {name: one.tolist() for name, one in texts.items()}
    cells: tuple[Cell, ...] = ()
    if "kind" in plain:
        rows = zip(*(plain[name] for name in CELL), strict=True)
        cells = tuple(msgspec.convert(dict(zip(CELL, row, strict=True)), Cell) for row in rows)
    checksums = msgspec.convert(plain["checksum"] if cells else (), tuple[str, ...])
    cluster = stored["cluster"] if cells else None
    samples = [one for one in (index, label, cluster) if one is not None]
    if any(one.ndim != 1 or one.dtype.kind != "i" for one in samples):
        raise ValueError("samples are not whole numbers")
    shape = (len(cells),) * bool(cells) + label.shape
    if any(one.shape != label.shape for one in samples) or probabilities.shape[:-1] != shape:
        raise ValueError("labels and probabilities do not match")
    classes = probabilities.shape[-1]
    if len(checksums) != len(cells) or not ((label >= 0) & (label < classes)).all():
        raise ValueError("labels and classes, or cells and checksums, do not match")
    if (index < 0).any() or not (np.diff(index) > 0).all():
        raise ValueError("samples are not in ascending order")
    if probabilities.dtype.kind != "f" or not ((probabilities >= 0) & (probabilities <= 1.01)).all():
        raise ValueError("probabilities are not numbers from 0 to 1")
    sha256 = msgspec.convert(plain["beton_sha256"], str)
    return Predictions(index, label, probabilities, sha256, cells, checksums, cluster)


def place_of(cell: Cell) -> tuple[int, str, str, int]:
    """Where a cell stands in the benchmark, to sort by; kinds of other versions come last."""
    kinds = list(KINDS)
    if cell.kind not in kinds:
        return len(kinds), cell.kind, cell.fill, cell.severity
    fills = [fill.name for fill in KINDS[cell.kind].fills]
    at = fills.index(cell.fill) if cell.fill in fills else len(fills)
    return kinds.index(cell.kind), "", str(at), cell.severity


def check_same_samples(first: Predictions, second: Predictions) -> None:
    """Refuse to compare predictions for different samples.

    Raises:
        RunError: if data, samples or labels differ.
    """
    if first.beton_sha256 != second.beton_sha256:
        raise RunError(
            f"cannot be compared: scored on different data (beton sha256 {first.beton_sha256[:12]} and "
            f"{second.beton_sha256[:12]}): evaluate both on the same file"
        )
    if not np.array_equal(first.index, second.index):
        common = len(np.intersect1d(first.index, second.index))
        raise RunError(
            f"cannot be compared: scored on different samples ({len(first.index)} and {len(second.index)}, "
            f"{common} of them in common): evaluate both on the same split"
        )
    if not np.array_equal(first.label, second.label):
        raise RunError("cannot be compared: scored by different labels: train both with the same data.labels")


def join(parts: Sequence[Predictions]) -> Predictions:
    """The predictions for several parts of the data, such as held-out folds, as one, by ascending index.

    A cell's checksum becomes the sha256 of the parts' checksums, in the order of their first samples.

    Raises:
        RunError: if cells or data differ or a sample occurs twice.
    """
    parts = sorted(parts, key=lambda part: part.index[:1].tolist())
    first = parts[0]
    if any((part.cells, part.beton_sha256) != (first.cells, first.beton_sha256) for part in parts):
        raise RunError("predictions for different cells or data cannot be pooled: evaluate all parts alike")
    whole = side_by_side(parts)
    if len(np.unique(whole.index)) < len(whole.index):
        raise RunError("predictions for the same samples cannot be pooled: give each part once")
    checksums = tuple(joined_checksum(sums) for sums in zip(*(p.checksums for p in parts), strict=True))
    return replace(whole, checksums=checksums).select(np.argsort(whole.index))


def side_by_side(parts: Sequence[Predictions]) -> Predictions:
    """Predictions one after another, such as what several models say of the same samples."""
    clusters = [part.cluster for part in parts if part.cluster is not None]
    return replace(
        parts[0],
        index=np.concatenate([part.index for part in parts]),
        label=np.concatenate([part.label for part in parts]),
        probabilities=np.concatenate([part.probabilities for part in parts], axis=-2),
        cluster=np.concatenate(clusters) if clusters else None,
    )


def joined_checksum(checksums: Iterable[str]) -> str:
    """One sha256 (hex) for several."""
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


def by_sequence(predictions: Predictions, sequence: Integers) -> Predictions:
    """One prediction per video sequence and label: the mean of its frames' probabilities.

    CK+'s eight classes take the neutral first frame from the sequence whose last frames show another
    expression: these are two things to recognise.

    Args:
        predictions: per frame, without cells; a row's ``index`` becomes that of its first frame.
        sequence: int64 (N,), the sequence of each prediction's sample.
    """
    pairs = np.column_stack([sequence, predictions.label])
    _, first, group = np.unique(pairs, axis=0, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), predictions.probabilities.shape[1]))
    np.add.at(sums, group, predictions.probabilities)
    means = (sums / np.bincount(group)[:, None]).astype(np.float32)
    return replace(predictions.select(first), probabilities=means)
