"""What the data hold, by the manifests of the betons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ferdist.config import flatten
from ferdist.reporting.album import Album
from ferdist.reporting.load import Run
from ferdist.reporting.page import Section
from ferdist.reporting.words import value_text
from ferdist.table import MISSING, Number, Table, count


def data(runs: Sequence[Run], album: Album) -> Section:
    """Samples per split, fold and class of each beton, and what its audit found."""
    manifests = {str(run.manifest.get("sha256")): run.manifest for run in runs if run.manifest is not None}
    return Section(
        "data",
        "Data",
        missing=() if manifests else ("No manifest of the data can be read here.",),
        text=[
            f"{manifest.get('name', 'the data')}: {count(int(manifest['samples']), 'sample')}, "
            f"beton sha256 {checksum}."
            for checksum, manifest in manifests.items()
        ],
        tables=[*map(parts_table, manifests.values())],
        folded_tables=[*map(audit_table, manifests.values())],
    )


def parts_table(manifest: Mapping[str, Any]) -> Table:
    """Splits and folds of a beton with their samples per class."""
    parts = [
        (f"{kind} {name}", part)
        for kind in ("split", "fold")
        for name, part in (manifest.get(f"{kind}s") or {}).items()
    ]
    return Table(
        "Samples per split, fold and class",
        ("Part", "Samples", "Subjects", *map(str, manifest.get("classes", ()))),
        tuple(
            (
                name,
                count(int(part.get("samples", 0))),
                Number(MISSING) if part.get("subjects") is None else count(len(part["subjects"])),
                *(count(int(number)) for number in part.get("per_class", ())),
            )
            for name, part in parts
        ),
    )


def audit_table(manifest: Mapping[str, Any]) -> Table:
    """What the audit of the data found: a row per finding."""
    return Table(
        "Audit of the data",
        ("Finding", "Value"),
        tuple(
            (key.replace("_", " ").replace(".", ": "), value_text(value))
            for key, value in flatten(manifest.get("audit") or {}).items()
        ),
    )
