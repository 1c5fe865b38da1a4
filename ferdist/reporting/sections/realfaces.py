"""Really occluded and turned faces: what the runs score beside what is published."""

from __future__ import annotations

from collections.abc import Sequence

from ferdist.evaluation.published import REAL_FACES, real_faces_table
from ferdist.evaluation.results import started_from
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.table import Table

TEXT = (
    "The lists are those of Wang et al. (Region Attention Networks, IEEE TIP 2020). A face is scored once, "
    "however many lines name it; names that the data lack are not scored. Published systems differ in "
    "starting weights, images and sizes; a quoted score was read in another text than its authors'.",
)


def real_faces(runs: Sequence[Run], album: Album) -> Section | None:
    """The scores on the faces of published lists; None where no run has any."""
    table = measured_table(runs)
    if not table.rows:
        return None
    shown = {row[table.head.index("Model")] for row in table.rows}
    points = [f"{one.name}: {one.source}." for one in REAL_FACES if one.name in shown]
    return Section("real-faces", "Really occluded and turned faces", TEXT, tables=(table,), points=points)


def measured_table(runs: Sequence[Run]) -> Table:
    """As `real_faces_table`, of all evaluations of the runs."""
    return real_faces_table(
        (run.name if len(runs) > 1 else run.model, started_from(run.config), one)
        for run in runs
        for one in run.evaluations
    )
