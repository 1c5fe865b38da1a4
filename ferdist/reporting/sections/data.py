"""What the data hold, by the manifests of the betons."""

from __future__ import annotations

from collections.abc import Sequence

from ferdist.config import flatten
from ferdist.data.beton import Manifest
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import value_text
from ferdist.table import MISSING, Number, Table, count


def data(runs: Sequence[Run], album: Album) -> Section:
    """Samples per split, fold and class of each beton, and what its audit found."""
    manifests = {run.manifest.sha256: run.manifest for run in runs if run.manifest is not None}.values()
    return Section(
        "data",
        "Data",
        missing=() if manifests else ("No manifest of the data can be read here.",),
        text=[f"{one.name}: {count(one.samples, 'sample')}, beton sha256 {one.sha256}." for one in manifests],
        tables=[*map(parts_table, manifests)],
        folded_tables=[*map(audit_table, manifests)],
    )


def parts_table(manifest: Manifest) -> Table:
    """Splits and folds of a beton with their samples per class."""
    parts = {f"split {name}": (part, MISSING) for name, part in manifest.splits.items()}
    parts |= {f"fold {name}": (part, count(len(part["subjects"]))) for name, part in manifest.folds.items()}
    return Table.of(
        "Samples per split, fold and class",
        (
            {
                "Part": name,
                "Samples": count(part["samples"]),
                "Subjects": Number(subjects),
                **dict(zip(manifest.classes, map(count, part["per_class"]), strict=True)),
            }
            for name, (part, subjects) in parts.items()
        ),
    )


def audit_table(manifest: Manifest) -> Table:
    """What the audit of the data found: a row per finding."""
    return Table.of(
        "Audit of the data",
        (
            {"Finding": key.replace("_", " ").replace(".", ": "), "Value": value_text(value)}
            for key, value in flatten(manifest.audit).items()
        ),
    )
