"""Writers of the layouts in which FER2013 and CK+ are about, for drawn faces: what the readers are tested on.

Nothing that exists is overwritten, since a real data set may lie there; what is written appears whole or not
at all.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from PIL import Image

from ferdist.data.ckplus import EMOTION_CODES, FOLDER_CLASSES
from ferdist.data.facebox import Points
from ferdist.data.record import CKPLUS7_CLASSES, FER2013_CLASSES, FaceDataset, Images
from ferdist.data.synthetic import CELL, DrawnSequence, ckplus_sequences, synthesize, synthesize_ckplus
from ferdist.errors import ConfigError, DataError

FORMATS: Final = ("fer2013-csv", "ckplus48", "ckplus-h5", "ckplus-original")
USAGES: Final = ("Training", "PublicTest", "PrivateTest")
"""FER2013's names of the splits train, val and test."""

_CKPLUS_FRAME: Final = re.compile(r"S\d+_\d+_\d+")


def write_synthetic(out_dir: Path, images: int, seed: int, format: str) -> Path:
    """Draw faces and write them in a raw layout.

    Args:
        out_dir: folder, made if it does not exist; the result is ``fer2013.csv``, ``CK+48``, ``CK_data.h5``
            or ``CK+`` in it.
        images: how many; for CK+ rounded up to whole sequences.
        seed: of the drawing; the three layouts of CK+ show the same faces for the same seed.
        format: one of ``FORMATS``.

    Returns:
        The file or folder that was written.

    Raises:
        ConfigError: if the format is unknown or a number out of its range.
        DataError: if the result exists already.
    """
    if format == "fer2013-csv":
        return write_fer2013_csv(synthesize(images, seed), out_dir / "fer2013.csv")
    if format == "ckplus48":
        return write_ckplus48(synthesize_ckplus(images, seed), out_dir)
    if format == "ckplus-h5":
        return write_ckplus_h5(synthesize_ckplus(images, seed), out_dir / "CK_data.h5")
    if format == "ckplus-original":
        return write_ckplus_original(ckplus_sequences(images, seed), out_dir / "CK+")
    raise ConfigError(f"format={format}: choose one of {', '.join(FORMATS)}")


def write_fer2013_csv(dataset: FaceDataset, path: Path, icml: bool = False) -> Path:
    """Write ``fer2013.csv``, a row a sample in the data set's order.

    Args:
        dataset: 1 x 48 x 48 faces in FER2013's classes, each in a split.
        path: of the csv file.
        icml: write the columns as ``icml_face_data.csv`` has them: ``emotion, Usage, pixels``.

    Returns:
        ``path``.

    Raises:
        DataError: if the data set does not fit the layout or the file exists already.
    """
    _check_fer2013(dataset)
    with _new_file(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write("emotion, Usage, pixels\n" if icml else "emotion,pixels,Usage\n")
        for image, label, split in zip(dataset.images, dataset.labels, dataset.split, strict=True):
            pixels, usage = " ".join(map(str, image.ravel().tolist())), USAGES[split]
            file.write(f"{label},{usage},{pixels}\n" if icml else f"{label},{pixels},{usage}\n")
    return path


def write_fer2013_folders(dataset: FaceDataset, path: Path, as_zip: bool = False) -> Path:
    """Write FER2013 as folders: ``train/<class>/Training_<id>.jpg``, ``test/<class>/PublicTest_<id>.jpg``.

    ``test`` mixes PublicTest and PrivateTest. The id is 10000000 plus the sample's number.

    Args:
        dataset: 1 x 48 x 48 faces in FER2013's classes, each in a split.
        path: a folder that does not exist or is empty, or with ``as_zip`` the zip file.
        as_zip: write the folders into a zip file.

    Returns:
        ``path``.

    Raises:
        DataError: if the data set does not fit the layout or there is something at ``path``.
    """
    _check_fer2013(dataset)
    return _write_tree(path, _fer2013_files(dataset), as_zip)


def write_ckplus48(dataset: FaceDataset, directory: Path, as_zip: bool = False) -> Path:
    """Write ``CK+48/<class>/S010_004_00000017.png``, or with ``as_zip`` the same in ``CK+48.zip``.

    Args:
        dataset: 48 x 48 gray faces in CK+'s seven classes, with CK+48's names as source ids.
        directory: folder, made if it does not exist.
        as_zip: write a zip file.

    Returns:
        ``directory / "CK+48"`` or ``directory / "CK+48.zip"``.

    Raises:
        DataError: if the data set does not fit the layout or the result exists already.
    """
    _check_ckplus(dataset)
    if as_zip:
        files = ((f"CK+48/{name}", data) for name, data in _ckplus48_files(dataset))
        return _write_tree(directory / "CK+48.zip", files, as_zip)
    return _write_tree(directory / "CK+48", _ckplus48_files(dataset), as_zip)


def write_ckplus_h5(dataset: FaceDataset, path: Path) -> Path:
    """Write ``CK_data.h5``: data_pixel, uint8 (N, 48, 48), and data_label, int64 (N,), without subjects.

    Its label numbers are those of ``CKPLUS7_CLASSES``.

    Args:
        dataset: 48 x 48 gray faces in CK+'s seven classes.
        path: of the h5 file.

    Returns:
        ``path``.

    Raises:
        DataError: if the data set does not fit the layout or the file exists already.
    """
    import h5py

    _check_ckplus(dataset)
    with _new_file(path) as temporary, h5py.File(temporary, "w") as file:
        file["data_pixel"] = dataset.images[:, 0]
        file["data_label"] = dataset.labels
    return path


def write_ckplus_original(sequences: Sequence[DrawnSequence], directory: Path) -> Path:
    """Write CK+'s original tree: frames of 640 x 490 pixels, emotions and landmarks.

    All frames of a sequence are in ``cohn-kanade-images/S005/001/S005_001_00000011.png``, with 68 landmarks
    each in ``Landmarks/S005/001/S005_001_00000011_landmarks.txt``; where it has a label, that of the last
    frame is in ``Emotion/S005/001/S005_001_00000011_emotion.txt``. A frame is the drawn scene enlarged five
    times, so the area average of its ``face_box`` is the 48 x 48 face again, to the pixel.

    Args:
        sequences: as ``ckplus_sequences`` gives them.
        directory: folder that does not exist or is empty.

    Returns:
        ``directory``.

    Raises:
        DataError: if there is something in ``directory``.
    """
    return _write_tree(directory, _original_files(sequences), as_zip=False)


def _check_fer2013(dataset: FaceDataset) -> None:
    _check_faces(dataset, "FER2013", FER2013_CLASSES)
    if dataset.split.min() < 0:
        row = int(dataset.split.argmin())
        raise DataError(f"{dataset.name}: sample {row} is in no split, FER2013 needs one; give it a split")


def _check_ckplus(dataset: FaceDataset) -> None:
    _check_faces(dataset, "CK+48", CKPLUS7_CLASSES)
    for name in dataset.source_id:
        if not _CKPLUS_FRAME.fullmatch(name):
            raise DataError(
                f"{dataset.name}: source id {name!r} is not a CK+ frame such as S010_004_00000017; "
                "use synthesize_ckplus"
            )


def _check_faces(dataset: FaceDataset, layout: str, classes: tuple[str, ...]) -> None:
    if dataset.classes != classes:
        raise DataError(
            f"{dataset.name}: classes {', '.join(dataset.classes)} are not those of {layout} "
            f"({', '.join(classes)}); use these, in this order"
        )
    if dataset.images.shape[1:] != (1, 48, 48):
        raise DataError(
            f"{dataset.name}: images of shape {dataset.images.shape[1:]}; {layout} holds (1, 48, 48) only"
        )


def _fer2013_files(dataset: FaceDataset) -> Iterator[tuple[str, bytes]]:
    for k, image in enumerate(dataset.images):
        usage, label = USAGES[dataset.split[k]], dataset.classes[dataset.labels[k]]
        folder = "train" if usage == "Training" else "test"
        yield f"{folder}/{label}/{usage}_{10_000_000 + k}.jpg", _encode(image[0], "JPEG")


def _ckplus48_files(dataset: FaceDataset) -> Iterator[tuple[str, bytes]]:
    folders = {ours: theirs for theirs, ours in FOLDER_CLASSES.items()}
    for image, label, name in zip(dataset.images, dataset.labels, dataset.source_id, strict=True):
        yield f"{folders[dataset.classes[label]]}/{name}.png", _encode(image[0], "PNG")


def _original_files(sequences: Iterable[DrawnSequence]) -> Iterator[tuple[str, bytes]]:
    for sequence in sequences:
        folder = sequence.name.replace("_", "/")
        for frame in range(1, sequence.frames + 1):
            name = sequence.frame_name(frame)
            cells, landmarks = sequence.scene(frame)
            picture = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
            yield f"cohn-kanade-images/{folder}/{name}.png", _encode(picture, "PNG")
            yield f"Landmarks/{folder}/{name}_landmarks.txt", _landmark_lines(CELL * landmarks)
        if sequence.expression is not None:
            emotion = f"   {EMOTION_CODES.index(sequence.expression):.7e}\n"
            yield f"Emotion/{folder}/{name}_emotion.txt", emotion.encode()


def _landmark_lines(landmarks: Points) -> bytes:
    return "".join(f"   {x:.7e}   {y:.7e}\n" for x, y in landmarks.tolist()).encode()


def _encode(image: Images, format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format, quality=95, compress_level=1)
    return file.getvalue()


def _write_tree(path: Path, files: Iterable[tuple[str, bytes]], as_zip: bool) -> Path:
    """Write files, by relative name, into a new folder or zip file."""
    if as_zip:
        with _new_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name, data in files:
                # A fixed date, so that the same faces give the same bytes.
                archive.writestr(zipfile.ZipInfo(name), data)
        return path
    with _new_folder(path) as folder:
        for name, data in files:
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    return path


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` once the block ends without an error."""
    if path.exists():
        raise DataError(f"{path} exists already; remove it or choose another place")
    with _scratch(path) as scratch:
        temporary = scratch / path.name
        yield temporary
        temporary.replace(path)


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``path`` once the block ends without an error."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise DataError(f"{path} exists already; remove it or choose another place")
    with _scratch(path) as scratch:
        temporary = scratch / path.name
        temporary.mkdir()
        yield temporary
        temporary.replace(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, on the same file system, which is gone afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=path.parent))
    except OSError as error:
        raise DataError(f"{path}: cannot write there ({error.strerror}); choose another place") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)
