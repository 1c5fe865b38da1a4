"""The sections of a report's page, each with its data, charts, tables and words in one file.

A section is a function of the runs and the album of their faces; it returns None where it does not apply. To
add one, write it in a file of its own and enter it in ``SECTIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.sections.attention import attention
from ferdist.reporting.sections.calibration import calibration
from ferdist.reporting.sections.classes import classes
from ferdist.reporting.sections.data import data
from ferdist.reporting.sections.evaluations import comparison, evaluations
from ferdist.reporting.sections.gallery import gallery
from ferdist.reporting.sections.mistakes import mistakes
from ferdist.reporting.sections.occlusion import occlusion
from ferdist.reporting.sections.protocol import protocol
from ferdist.reporting.sections.realfaces import real_faces
from ferdist.reporting.sections.training import training

SECTIONS: Final[tuple[Callable[[Sequence[Run], Album], Section | None], ...]] = (
    comparison,
    evaluations,
    classes,
    mistakes,
    occlusion,
    real_faces,
    gallery,
    attention,
    calibration,
    training,
    protocol,
    data,
)
"""In the order of the page."""


def build_sections(runs: Sequence[Run], album: Album, data: str = "") -> list[Section]:
    """All sections that apply to the runs; ``data`` names their data in a page on several data sets."""
    built = (build(runs, album) for build in SECTIONS)
    return [section.placed(data) for section in built if section is not None]
