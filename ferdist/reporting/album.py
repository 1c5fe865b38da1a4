"""The faces that a report shows: read from the beton on this disk, if it is the one that the run used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ferdist.data.beton import Beton, BetonLoader, Labels, labels_of, open_beton
from ferdist.data.record import Images, Integers
from ferdist.errors import DataError
from ferdist.evaluation.benchmark import Benchmark, Cell
from ferdist.evaluation.evaluate import benchmark_on, read_images
from ferdist.reporting.load import Evaluation, Run
from ferdist.runtime.folder import RunFolder

HIDDEN = "The pictures of faces are left out, as asked for by --no-faces."


@dataclass(frozen=True)
class Faces:
    """The data that a run was scored on.

    Attributes:
        beton: that the run was trained on.
        labels: that it was scored by.
        indices: int64 (M,), the samples of the split, or of the fold that the run held out.
        mean: of the training pixels, per channel, in [0, 1] units.
        loader: of ``beton``.
    """

    beton: Beton
    labels: Labels
    indices: Integers
    mean: tuple[float, ...]
    loader: BetonLoader

    def images(self, index: Integers) -> Images:
        """The images of these samples in this order, uint8 (B, C, H, W)."""
        return read_images(self.beton, self.loader, index)

    def benchmark(self, cells: Sequence[Cell]) -> Benchmark:
        """What makes the images that the run was scored on under these cells."""
        return benchmark_on(self.beton, self.loader, self.indices, self.mean, cells)


@dataclass(frozen=True)
class Album:
    """The betons of the runs of a report, each opened and checked once.

    Attributes:
        shown: whether faces may be shown.
    """

    shown: bool = True
    _betons: dict[Path, Beton] = field(default_factory=dict)

    def faces(self, run: Run, evaluation: Evaluation) -> Faces:
        """The data that an evaluation of a run was made on; for runs that are pooled, those of the first one.

        Raises:
            FerdistError: if they are not to be had here: the sentence says why.
        """
        folder = RunFolder(run.folder)
        config = folder.stored_config()
        path = Path(config.data.path)
        trained_on = folder.stored_environment().get("beton_sha256")
        if evaluation.data != run.data or evaluation.beton_sha256 not in ("", trained_on):
            raise DataError(
                f"{run.folder}: other data were scored than the run's own, and it does not say where"
            )
        if path not in self._betons:
            self._betons[path] = open_beton(path, checksum=True)
        beton = self._betons[path]
        if beton.manifest.sha256 != trained_on:
            raise DataError(f"{path}: not the data that the run was trained on: its checksum is another")
        holdout = config.data.holdout
        return Faces(
            beton,
            labels_of(beton, config.data.labels),
            beton.indices(evaluation.split, holdout),
            tuple(beton.normalisation(holdout)[0]),
            BetonLoader(beton, batch_size=256, device=torch.device("cpu")),
        )
