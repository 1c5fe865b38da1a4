"""`ferdist prepare`: raw files to a beton.

Each data set is a function below: `data_set` makes it a command, its parameters are the options and its
docstring is the help. Another data set is a file with a reader, which returns a `FaceDataset`, and a function
here that calls it (docs/extending.md).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

import typer

from ferdist.errors import DataError, tell

if TYPE_CHECKING:
    import pandas as pd

    from ferdist.data.record import FaceDataset

DATA_SETS: Final[dict[str, Callable[..., Path]]] = {}
"""What converts each data set, by the name of its command: each returns the path that it wrote."""

SYNTHETIC_FOLDS: Final = 10

Source = Annotated[Path, typer.Option(help="Raw file, folder or zip.", metavar="PATH")]
Out = Annotated[Path, typer.Option(help="Folder for the beton.", metavar="DIR")]
FoldSeed = Annotated[int, typer.Option(help="Seed for assigning folds.")]
Folds = Annotated[int, typer.Option(help="Number of subject-independent folds.")]
Size = Annotated[int, typer.Option(help="Images are resized to SIZE x SIZE pixels.")]
ValShare = Annotated[
    float,
    typer.Option(help="Share of train, by class, to hold out as val: choose settings on it, not on test."),
]
ValSeed = Annotated[int, typer.Option(help="Seed for holding out.")]


class Layout(StrEnum):
    """What `prepare synthetic` can write."""

    BETON = "beton"
    FER2013_CSV = "fer2013-csv"
    CKPLUS48 = "ckplus48"
    CKPLUS_H5 = "ckplus-h5"
    CKPLUS_ORIGINAL = "ckplus-original"


F = TypeVar("F", bound=Callable[..., Path])


def data_set(convert: F) -> F:
    """Make a function a command of `ferdist prepare`, by its name; what the system refuses is one line."""

    @functools.wraps(convert)
    def command(*arguments: Any, **options: Any) -> Path:
        try:
            return convert(*arguments, **options)
        except OSError as error:
            reason = f"{error.filename or convert.__name__}: {error.strerror or error}"
            raise DataError(f"{reason}; check the path, its permissions and the disk") from error

    DATA_SETS[convert.__name__] = command
    return cast("F", command)


@data_set
def fer2013(
    source: Source,
    out: Out,
    allow_extra: Annotated[
        bool, typer.Option("--allow-extra", help="Leave out files that FER2013 does not have.")
    ] = False,
    ferplus: Annotated[
        Path | None,
        typer.Option(help="fer2013new.csv: FER+ names and votes into samples.csv.", metavar="FILE"),
    ] = None,
    ckextended: Annotated[
        bool, typer.Option("--ckextended", help="Read ckextended.csv: CK+ without subjects.")
    ] = False,
) -> Path:
    """fer2013.csv, icml_face_data.csv, or the folder layout as a folder or zip."""
    from ferdist.data.fer2013 import read_ckextended, read_fer2013

    dataset = read_ckextended(source) if ckextended else read_fer2013(source, allow_extra=allow_extra)
    if ferplus is None:
        return write(dataset, out)
    dataset, votes = _joined(dataset, ferplus)
    return write(dataset, out, extra_columns=votes)


@data_set
def ferplus(
    source: Source,
    ferplus: Annotated[Path, typer.Option(help="fer2013new.csv.", metavar="FILE")],
    out: Out,
) -> Path:
    """FER2013's images with the class that most of FER+'s annotators chose: 8 classes."""
    from ferdist.data.fer2013 import read_fer2013
    from ferdist.data.ferplus import most_voted

    dataset, votes = most_voted(*_joined(read_fer2013(source), ferplus))
    return write(dataset, out, extra_columns=votes)


def _joined(dataset: FaceDataset, ferplus: Path) -> tuple[FaceDataset, pd.DataFrame]:
    """FER2013 with fer2013new.csv among its sources, and FER+'s columns."""
    from ferdist.data.ferplus import read_ferplus
    from ferdist.io import sha256

    votes = read_ferplus(ferplus, dataset)
    sources = {**dataset.sources, ferplus.name: sha256(ferplus)}
    return dataclasses.replace(dataset, sources=sources), votes


@data_set
def rafdb(source: Source, out: Out, size: Size = 100, val_share: ValShare = 0.0, seed: ValSeed = 0) -> Path:
    """RAF-DB's basic part, or the copy sorted into DATASET/train/1; it has train and test, and no val."""
    from ferdist.data.rafdb import read_rafdb

    return write(read_rafdb(source, size), out, val_share=val_share, seed=seed)


@data_set
def affectnet(
    source: Source,
    out: Out,
    classes: Annotated[int, typer.Option(help="8, or 7 without contempt.")] = 8,
    size: Size = 112,
    val_share: ValShare = 0.0,
    seed: ValSeed = 0,
) -> Path:
    """AffectNet with training.csv or train_set: its validation set, which all publications score, is test."""
    from ferdist.data.affectnet import read_affectnet

    return write(read_affectnet(source, classes, size), out, val_share=val_share, seed=seed)


@data_set
def jaffe(source: Source, out: Out, size: Size = 112, folds: Folds = 10, seed: FoldSeed = 0) -> Path:
    """JAFFE's images (KA.AN1.39.tiff and so on); each of its ten people is a fold."""
    from ferdist.data.posed import read_jaffe

    return write(read_jaffe(source, size), out, folds=folds, seed=seed)


@data_set
def kdef(
    source: Source,
    out: Out,
    angles: Annotated[
        str,
        typer.Option(help="Of S (straight), HL, HR (half left, right), FL, FR (profile).", metavar="LIST"),
    ] = "S",
    size: Size = 112,
    folds: Folds = 10,
    seed: FoldSeed = 0,
) -> Path:
    """KDEF's AF01ANS.JPG and so on."""
    from ferdist.data.posed import read_kdef

    wanted = [angle.strip().upper() for angle in angles.split(",")]
    return write(read_kdef(source, wanted, size), out, folds=folds, seed=seed)


@data_set
def ckplus(
    source: Source,
    out: Out,
    folds: Folds = 10,
    seed: FoldSeed = 0,
    classes: Annotated[int, typer.Option(help="7, or 8 with neutral.")] = 7,
    subjects_from: Annotated[
        Path | None, typer.Option(help="CK+48 folder or zip to recover an .h5 file's subjects from.")
    ] = None,
) -> Path:
    """CK+48 as a folder or zip, CK_data.h5, or the original tree."""
    from ferdist.data.ckplus import read_ckplus

    return write(read_ckplus(source, classes, subjects_from=subjects_from), out, folds=folds, seed=seed)


@data_set
def folders(
    source: Source,
    out: Out,
    name: Annotated[str, typer.Option(help="Name of the data set and its files.")],
    size: Size = 48,
    subject_regex: Annotated[
        str | None, typer.Option(help="Its first group, found in a file's path, is the subject.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Subject-independent folds; 0 for none.")] = 0,
    seed: FoldSeed = 0,
) -> Path:
    """Any folder of class folders, with or without train, val and test above them (else all are train)."""
    import numpy as np

    from ferdist.data.folders import read_folders

    dataset = read_folders(source, name, size=size, subject_regex=subject_regex)
    if not folds and (dataset.split < 0).all():
        dataset = dataclasses.replace(dataset, split=np.zeros_like(dataset.split))
        tell(f"ferdist: {name}: no split folders, so all images are train; data.val_share=0.1 holds some out")
    return write(dataset, out, folds=folds or None, seed=seed)


@data_set
def synthetic(
    out: Out,
    images: Annotated[int, typer.Option(help="Number of drawn faces.")],
    seed: Annotated[int, typer.Option(help="Seed for drawing the faces.")] = 0,
    format: Annotated[Layout, typer.Option(help="What to write.")] = Layout.BETON,
) -> Path:
    """Drawn faces: as a beton, or in the layout of a real data set."""
    from ferdist.data.rawformats import write_synthetic
    from ferdist.data.synthetic import synthesize

    if format != Layout.BETON:
        return write_synthetic(out, images, seed, format)
    return write(synthesize(images, seed), out, folds=SYNTHETIC_FOLDS, seed=seed)


def write(
    dataset: FaceDataset,
    out: Path,
    *,
    folds: int | None = None,
    val_share: float = 0.0,
    seed: int = 0,
    extra_columns: pd.DataFrame | None = None,
) -> Path:
    """Assign subject-independent folds or hold out val where that is asked for, and write the audited beton.

    Returns:
        Its path.

    Raises:
        DataError: if that cannot be done, an image cannot be decoded or the files cannot be written.
    """
    from ferdist.data.audit import EQUALISED_TEXT
    from ferdist.data.beton import Manifest, write_beton
    from ferdist.data.folds import assign_folds, hold_out

    if folds is not None:
        dataset = assign_folds(dataset, folds, seed)
    if val_share:
        dataset = hold_out(dataset, val_share, seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot make this folder: {error.strerror}") from None
    path = write_beton(dataset, out, extra_columns=extra_columns)
    found = Manifest.load(path.with_suffix(".json")).audit
    if found.get("equalised"):
        tell(f"ferdist: {dataset.name}: {EQUALISED_TEXT}")
    if val_share and (leaked := found["leaks"]["val_in_train"]):
        tell(
            f"ferdist: {dataset.name}: {leaked} of val's images are in train, too: leave out --val-share and "
            "train with data.val_share, which keeps copies together"
        )
    return path
