"""The faces that a report shows, from the beton on this disk if it is the one that the run used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from ferdist.charts import MUTED, WIDTH, panel
from ferdist.data.beton import Beton, open_beton
from ferdist.data.record import Images
from ferdist.errors import DataError, FerdistError
from ferdist.evaluation.data import ScoredData
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.load import Run
from ferdist.runtime.folder import RunFolder

HIDDEN: Final = "The pictures of faces are left out, as requested by --no-faces."
MOST_RUNS: Final = 3
"""Runs that faces are shown of, the first ones: each costs about half a megabyte of the page."""


@dataclass(frozen=True)
class Album:
    """The betons of the runs of a report, each opened and checked once.

    Attributes:
        shown: whether faces may be shown.
    """

    shown: bool = True
    _betons: dict[Path, Beton] = field(default_factory=dict)

    def faces(self, run: Run, evaluation: Evaluation) -> ScoredData:
        """The data that an evaluation of a run was made on; for runs that are pooled, those of the first one.

        Raises:
            FerdistError: if they are not available here: the message says why.
        """
        folder = RunFolder(run.folder)
        config = folder.stored_config()
        path = Path(config.data.path)
        trained_on = folder.stored_environment().get("beton_sha256")
        if evaluation.data != run.data or evaluation.beton_sha256 not in ("", trained_on):
            raise DataError(
                f"{run.folder}: the scored data are not the run's own, and their path is not recorded"
            )
        if path not in self._betons:
            self._betons[path] = open_beton(path, checksum=True)
        beton = self._betons[path]
        if beton.manifest.sha256 != trained_on:
            raise DataError(f"{path}: not the data that the run was trained on: the checksums differ")
        holdout, device = config.data.holdout, torch.device("cpu")
        return ScoredData.of(
            beton, config, evaluation.split, holdout, beton.normalisation(holdout)[0], device
        )


@dataclass(frozen=True)
class Tile:
    """A face in a chart.

    Attributes:
        pixels: uint8 (H, W) gray levels or (H, W, 3) colours.
        text: what stands above it, one or two lines; it may reach over tiles to the right without a text.
    """

    pixels: npt.NDArray[Any]
    text: str = ""


def tile_chart(rows: Sequence[Sequence[Tile]], heads: Sequence[str] = ()) -> Figure:
    """Faces in rows and columns, their pixels as they are, below the names of the columns."""
    gap, line = 0.06, 0.18  # inches
    columns = max(map(len, rows))
    side = min((WIDTH - gap * (columns - 1)) / columns, 1.1)
    lines = [max(tile.text.count("\n") + bool(tile.text) for tile in row) for row in rows]
    top = line if heads else 0.0
    height = top + sum(side + gap + line * count for count in lines)
    with panel(height) as (figure, (axes,)):
        figure.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set_axis_off()
        lefts = [column * (side + gap) for column in range(columns)]
        for left, head in zip(lefts, heads, strict=bool(heads)):
            axes.text(left + side / 2, top - 0.06, head, color=MUTED, fontsize=8.5, ha="center")
        for row, count in zip(rows, lines, strict=True):
            top += line * count
            for left, tile in zip(lefts, row, strict=False):
                for number, words in enumerate(reversed(tile.text.split("\n"))):
                    axes.text(left, top - 0.06 - line * number, words, fontsize=8.5)
                pixels = tile.pixels  # as colours, since gray levels would go through a colour map
                colours = pixels if pixels.ndim == 3 else pixels[..., None].repeat(3, axis=-1)
                axes.imshow(colours, interpolation="none", extent=(left, left + side, top + side, top))
            top += side + gap
        axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    return figure


def pixels_of(images: Images) -> Images:
    """Images (B, C, H, W) as `Tile` shows them: (B, H, W), or (B, H, W, 3) where they have colours."""
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images[:, 0]


def in_rows(tiles: Sequence[Tile]) -> list[Sequence[Tile]]:
    """Tiles four a row."""
    return [tiles[start : start + 4] for start in range(0, len(tiles), 4)]


def left_out(run: Run, several: bool, error: FerdistError) -> str:
    """That a run's faces are not shown, and why."""
    return f"{run.name}: " * several + f"The faces are left out: {error}."
