"""Soft labels: what teachers say of the training samples, learned beside the labels (Hinton et al., 2015)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ferdist.data.beton import Beton, Labels
from ferdist.errors import DataError
from ferdist.evaluation.predictions import Predictions


def soften(labels: Labels, files: str, weight: float, beton: Beton) -> Labels:
    """Labels whose targets are mixed with the mean probabilities of teachers.

    Args:
        labels: of the beton.
        files: of predictions for samples of the beton, with commas between them; none where it is empty.
        weight: share of the teachers in the targets, in [0, 1].
        beton: the data.

    Returns:
        The same labels with other targets for the samples that every file has and that can be learned.

    Raises:
        RunError: if a file cannot be read.
        DataError: if a file is of other data or classes, or holds no probabilities.
    """
    if not files:
        return labels
    targets = labels.targets.copy()
    mean = np.zeros_like(targets, dtype=np.float64)
    votes = np.zeros(len(targets), dtype=np.int64)
    names = files.split(",")
    for name in names:
        teacher = Predictions.load(Path(name.strip()))
        _check(teacher, name, targets, beton)
        mean[teacher.index] += teacher.probabilities / len(names)
        votes[teacher.index] += 1
    softened = (votes == len(names)) & (targets.sum(axis=1) > 0)
    targets[softened] = ((1 - weight) * targets + weight * mean)[softened]
    return replace(labels, targets=targets)


def _check(teacher: Predictions, name: str, targets: npt.NDArray[np.float32], beton: Beton) -> None:
    place = f"data.soft_labels: {name}"
    if teacher.beton_sha256 != beton.manifest.sha256:
        raise DataError(f"{place}: the predictions are not for {beton.path}: evaluate the teacher on it")
    index, probabilities = teacher.index, teacher.probabilities
    shape = (len(index), targets.shape[1])
    if probabilities.shape != shape:
        raise DataError(f"{place}: probabilities are {probabilities.shape}, not {shape}: its classes differ")
    if len(index) and index.max() >= len(targets):
        raise DataError(f"{place}: it has samples that {beton.path} does not have")
    if not np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-3):
        raise DataError(f"{place}: its rows are not probabilities: they must sum to 1")
