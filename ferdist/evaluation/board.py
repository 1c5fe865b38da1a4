"""The occlusion benchmark in TensorBoard: a view of what results.json holds, and where the network looks."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from ferdist.augment.kinds import kind_label
from ferdist.errors import printable
from ferdist.evaluation.attention import Watched
from ferdist.evaluation.records import Evaluation

_log = logging.getLogger(__name__)


def show_benchmark(
    folder: Path, evaluations: Sequence[Evaluation], watched: Sequence[Watched], classes: Sequence[str]
) -> None:
    """Write the accuracy under each kind of occlusion and pictures of attention.

    The step is the covered share of the image in percent, and the severity for noise, which covers nothing.

    Args:
        folder: for the event file, which is replaced; one that cannot be written is a warning.
        evaluations: of one benchmark.
        watched: a picture for each.
        classes: names, in label order.
    """
    from torch.utils.tensorboard import SummaryWriter

    try:
        shutil.rmtree(folder, ignore_errors=True)
        with SummaryWriter(str(folder)) as board:
            for one in evaluations:
                damage = one.occlusion
                assert damage is not None  # of a benchmark
                step = damage.severity if damage.covered is None else round(100 * damage.covered)
                board.add_scalar(printable(f"occlusion/{damage.kind}, {damage.fill}"), one.accuracy, step)
            for looked in watched:
                tag = f"attention/{kind_label(looked.cell.kind)}"
                faces, columns, height, width, _ = (pictures := looked.pictures()).shape
                sheet = pictures.transpose(0, 2, 1, 3, 4).reshape(faces * height, columns * width, 3)
                board.add_image(tag, sheet, dataformats="HWC")
                board.add_text(tag, _legend(looked, classes))
    except OSError as error:
        _log.warning("%s: not written, so TensorBoard lacks the benchmark: %s", folder, error.strerror)


def _legend(watched: Watched, classes: Sequence[str]) -> str:
    """What each row of a picture shows, in markdown."""
    maps = "face, spatial gate, evidence (Grad-CAM)" if watched.gate_size else "face, evidence (Grad-CAM)"
    lines = [f"Columns: {maps}; then the same with the face covered. Rows, from the top:", ""]
    for row, index in enumerate(watched.index):
        said = [
            f"{classes[rows[row].argmax()]} ({rows[row].max():.0%})"
            for rows in (looks.probabilities for looks in watched.looks)
        ]
        true = classes[watched.label[row]]
        lines.append(printable(f"- sample {index}, {true}: predicted {said[0]}, when covered {said[1]}"))
    return "\n".join(lines)
