"""Drawn faces in the layouts in which FER2013 and CK+ are published: what the readers are tested on."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from PIL import Image

from ferdist.data.ckplus import EMOTION_CODES, FOLDER_CLASSES
from ferdist.data.fer2013 import USAGE_SPLIT
from ferdist.data.record import FaceDataset, Images
from ferdist.data.synthetic import CELL, DrawnSequence, ckplus_sequences, synthesize, synthesize_ckplus
from ferdist.errors import DataError


def write_synthetic(out_dir: Path, images: int, seed: int, layout: str) -> Path:
    """Draw faces and write them in a raw layout, whole or not at all.

    Args:
        out_dir: folder, made if it does not exist.
        images: how many; for CK+ rounded up to whole sequences.
        seed: of the drawing; the three layouts of CK+ show the same faces for the same seed.
        layout: a key of ``LAYOUTS``.

    Returns:
        The file or folder that was written.

    Raises:
        ConfigError: if a number is out of its range.
        DataError: if the result exists already, since a real data set may lie there, or cannot be written.
    """
    name, write = LAYOUTS[layout]
    path = out_dir / name
    if path.exists():
        raise DataError(f"{path} exists already; remove it or choose another folder")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out_dir, prefix=".writing-") as scratch:
            write(Path(scratch) / name, images, seed)
            (Path(scratch) / name).replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); choose another folder") from error
    return path


def write_fer2013_csv(dataset: FaceDataset, path: Path) -> Path:
    """Write ``fer2013.csv``: faces in FER2013's classes, each in a split, a row a sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    usages = list(USAGE_SPLIT)
    with path.open("w", encoding="ascii") as file:
        file.write("emotion,pixels,Usage\n")
        for image, label, split in zip(dataset.images, dataset.labels, dataset.split, strict=True):
            file.write(f"{label},{' '.join(map(str, image.ravel().tolist()))},{usages[split]}\n")
    return path


def write_ckplus48(dataset: FaceDataset, path: Path) -> None:
    """Write ``<class>/S010_004_00000017.png``: faces in CK+'s seven classes, named as CK+48 names them."""
    folders = {ours: theirs for theirs, ours in FOLDER_CLASSES.items()}
    for image, label, name in zip(dataset.images, dataset.labels, dataset.source_id, strict=True):
        _write(path / folders[dataset.classes[label]] / f"{name}.png", _png(image[0]))


def write_ckplus_h5(dataset: FaceDataset, path: Path) -> None:
    """Write ``CK_data.h5``: data_pixel, uint8 (N, 48, 48), and data_label, int64 (N,), without subjects."""
    import h5py

    with h5py.File(path, "w") as file:
        file["data_pixel"] = dataset.images[:, 0]
        file["data_label"] = dataset.labels


def write_ckplus_original(sequences: list[DrawnSequence], path: Path) -> None:
    """Write CK+'s original tree: all frames, 640 x 490 pixels, with 68 landmarks each, and emotions.

    A frame is the drawn scene enlarged five times, so the area average of its ``face_box`` is the 48 x 48
    face again, to the pixel.
    """
    for sequence in sequences:
        folder = sequence.name.replace("_", "/")
        for frame in range(1, sequence.frames + 1):
            name = sequence.frame_name(frame)
            cells, landmarks = sequence.scene(frame)
            points = "".join(f"   {x:.7e}   {y:.7e}\n" for x, y in (CELL * landmarks).tolist())
            picture = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
            _write(path / "cohn-kanade-images" / folder / f"{name}.png", _png(picture))
            _write(path / "Landmarks" / folder / f"{name}_landmarks.txt", points.encode())
        if sequence.labelled:
            emotion = f"   {EMOTION_CODES.index(sequence.expression):.7e}\n"
            _write(path / "Emotion" / folder / f"{name}_emotion.txt", emotion.encode())


LAYOUTS: Final[dict[str, tuple[str, Callable[[Path, int, int], object]]]] = {
    "fer2013-csv": ("fer2013.csv", lambda path, n, seed: write_fer2013_csv(synthesize(n, seed), path)),
    "ckplus48": ("CK+48", lambda path, n, seed: write_ckplus48(synthesize_ckplus(n, seed), path)),
    "ckplus-h5": ("CK_data.h5", lambda path, n, seed: write_ckplus_h5(synthesize_ckplus(n, seed), path)),
    "ckplus-original": ("CK+", lambda path, n, seed: write_ckplus_original(ckplus_sequences(n, seed), path)),
}
"""What each ``--format`` writes, and how: path, number of images, seed."""


def _png(image: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
