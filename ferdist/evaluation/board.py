"""The robustness curves in TensorBoard: a view of what results.json holds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def show_robustness(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Write the accuracy under each kind of occlusion as scalars; what was in the folder is replaced.

    Args:
        folder: for the event file, a run of its own in TensorBoard.
        entries: of results.json, of one benchmark. The step is the covered share of the image in percent,
            and the severity for noise, which covers nothing.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as board:
        for entry in entries:
            damage = entry["occlusion"]
            covered = damage["covered"]
            step = damage["severity"] if covered is None else round(100 * covered)
            board.add_scalar(f"occlusion/{damage['kind']}, {damage['fill']}", entry["accuracy"], step)
