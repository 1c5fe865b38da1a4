"""CK+ (Lucey et al. 2010, The extended Cohn-Kanade dataset) in every known layout."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from ferdist.data.archive import Archive, open_archive, refuse_second, sources_of
from ferdist.data.facebox import crop_face, detect_faces, face_box
from ferdist.data.images import is_image, open_image, read_gray_images
from ferdist.data.parallel import progress
from ferdist.data.record import CKPLUS7_CLASSES, CKPLUS8_CLASSES, FaceDataset, Images, Integers, Source
from ferdist.errors import DataError
from ferdist.io import MIB, sha256

FOLDER_CLASSES: Final = {
    "anger": "angry",
    "contempt": "contempt",
    "disgust": "disgust",
    "fear": "fear",
    "happy": "happy",
    "sadness": "sad",
    "surprise": "surprise",
}
"""Class folders of CK+48 and our names of them."""

EMOTION_CODES: Final = ("neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise")
"""Classes of the original Emotion files by their numbers."""

PEAK_FRAMES: Final = 3
"""Last frames of a sequence, which show its expression (as in CK+48)."""

MAX_H5_BYTES: Final = 2**29
"""Most pixels that an h5 file may declare: over 200 times CK+'s, and below what fills a memory."""

_FRAME: Final = re.compile(r"(S\d+)_(\d+)_(\d+)")


class _Frame(NamedTuple):
    name: str
    label: int
    subject: str
    sequence: str
    stem: str  # <subject>_<sequence>_<frame>, "" where nothing tells


def read_ckplus(source: Path, classes: int = 7, *, subjects_from: Path | None = None) -> FaceDataset:
    """Read CK+ from a CK+48 folder or zip, ``CK_data.h5``, or the original tree or a zip of it.

    With 7 classes these are the last three frames of each labelled sequence. With 8 classes, which only the
    original tree can give, the first frame of each labelled sequence is added as neutral.

    The original frames are cropped to 48x48 by their landmarks (see ``facebox.face_box``) or, where the tree
    has none at all, by a face detector (see ``facebox.detect_faces``).

    Args:
        source: CK+48 holds ``<class>/<subject>_<sequence>_<frame>.png``; the original tree holds
            ``cohn-kanade-images``, ``Emotion`` and ``Landmarks``; each at any depth. The label numbers of
            ``CK_data.h5`` are those of CKPLUS7_CLASSES.
        classes: 7 or 8.
        subjects_from: a CK+48 folder or zip, for an h5 source only, which names no subjects: each h5 image
            is looked up in it, as it is and transposed. Without it subject and sequence are -1.

    Returns:
        Gray images (N, 1, S, S) without splits; classes are CKPLUS7_CLASSES or CKPLUS8_CLASSES.

    Raises:
        DataError: names the file, what is wrong and what to do.
    """
    if classes not in (7, 8):
        raise DataError(f"{source}: CK+ has 7 classes, or 8 with neutral, not {classes}")
    if source.is_file() and h5py.is_hdf5(source):
        _refuse_neutral(source, classes, "CK_data.h5")
        return _read_h5(source, subjects_from)
    if subjects_from is not None:
        raise DataError(f"{source}: its files name the subjects already; leave subjects_from out")
    if source.suffix.lower() == ".csv":
        raise DataError(
            f"{source}: a csv of CK+ images names no subjects, so it cannot give subject-independent folds; "
            "give a CK+48 folder or zip"
        )
    archive = open_archive(source)
    if any("cohn-kanade-images" in name.split("/") for name in archive.names()):
        return _read_original(archive, classes)
    _refuse_neutral(source, classes, "CK+48")
    return _read_ck48(archive)


def _refuse_neutral(source: Path, classes: int, layout: str) -> None:
    if classes == 8:
        raise DataError(
            f"{source}: {layout} has no neutral images, which 8 classes need; "
            "ask for 7 classes or give the original tree (cohn-kanade-images, Emotion, Landmarks)"
        )


def _dataset(
    images: Images, frames: Sequence[_Frame], classes: tuple[str, ...], sources: Mapping[str, Source]
) -> FaceDataset:
    """The record, ordered by subject, sequence and frame, so that all layouts give the same arrays.

    An h5 file that names no subjects keeps its own order.
    """
    order = sorted(range(len(frames)), key=lambda row: frames[row].stem)
    frames = [frames[row] for row in order]
    return FaceDataset.of(
        "ckplus",
        images[order],
        [frame.label for frame in frames],
        classes,
        [frame.name for frame in frames],
        subjects=[frame.subject for frame in frames],
        sequences=[frame.sequence for frame in frames],
        sources=sources,
    )


# CK+48


def _read_ck48(archive: Archive) -> FaceDataset:
    frames = _ck48_frames(archive)
    images = read_gray_images(archive, [frame.name for frame in frames])
    return _dataset(images, frames, CKPLUS7_CLASSES, sources_of(archive))


def _ck48_frames(archive: Archive) -> list[_Frame]:
    frames: list[_Frame] = []
    seen: dict[str, str] = {}
    first: dict[str, _Frame] = {}  # of each sequence, which shows one expression
    for name in filter(is_image, archive.names()):
        *_, folder, file = ("", *name.split("/"))
        stem = Path(file).stem
        match = _FRAME.fullmatch(stem)
        if folder not in FOLDER_CLASSES or match is None:
            raise DataError(
                f"{archive.path}: {name}: not a CK+48 image <class>/<subject>_<sequence>_<frame>.png "
                f"with <class> one of {', '.join(FOLDER_CLASSES)}; remove it or give the CK+48 folder alone"
            )
        refuse_second(seen, file, name, archive.path)
        label = CKPLUS7_CLASSES.index(FOLDER_CLASSES[folder])
        frame = _Frame(name, label, match[1], f"{match[1]}_{match[2]}", stem)
        other = first.setdefault(frame.sequence, frame)
        if other.label != label:
            raise DataError(
                f"{archive.path}: sequence {frame.sequence} is in two classes ({other.name} and {name}); "
                "move its images to one class folder"
            )
        frames.append(frame)
    if not frames:
        raise DataError(
            f"{archive.path}: no CK+48 images <class>/<subject>_<sequence>_<frame>.png in it; "
            "give the folder that holds the class folders, or a zip of it"
        )
    return frames


# CK_data.h5


def _read_h5(path: Path, subjects_from: Path | None) -> FaceDataset:
    try:
        with h5py.File(path) as file:
            images, labels = _h5_arrays(path, file)
    except DataError:
        raise
    except Exception as error:  # the HDF5 library's errors come as nearly any of Python's
        reason = " ".join(str(error).strip("'").split())
        raise DataError(f"{path}: broken h5 file ({reason}); download it again") from error
    sources: dict[str, Source] = {path.name: sha256(path)}
    if subjects_from is None:
        frames = [_Frame(f"row {row}", int(label), "", "", "") for row, label in enumerate(labels)]
    else:
        archive = open_archive(subjects_from)
        images, frames = _match_h5(path, images, labels, archive)
        sources = {**sources, **sources_of(archive)}
    return _dataset(images[:, np.newaxis], frames, CKPLUS7_CLASSES, sources)


def _h5_arrays(path: Path, file: h5py.File) -> tuple[Images, Integers]:
    """Images (N, S, S) and labels (N,); nothing is read before kind, type and size are known to be right."""
    pixels, numbers = _plain_array(path, file, "data_pixel"), _plain_array(path, file, "data_label")
    if pixels.dtype != np.uint8 or len(pixels.shape) != 3 or len(pixels) == 0:
        raise DataError(
            f"{path}: data_pixel must be uint8 (N, height, width), not {pixels.dtype} {pixels.shape}; "
            "download it again"
        )
    for key, array in (("data_pixel", pixels), ("data_label", numbers)):
        size = array.dtype.itemsize * max(array.size, math.prod(array.chunks or ()))  # a chunk is read whole
        if size > MAX_H5_BYTES:
            raise DataError(
                f"{path}: {key} {array.shape} would take {size / MIB:,.0f} MiB, more than the "
                f"{MAX_H5_BYTES // MIB} MiB that are read; give CK_data.h5"
            )
    if numbers.shape != (len(pixels),) or numbers.dtype.kind not in "iuf":
        raise DataError(
            f"{path}: {len(pixels)} images but labels {numbers.dtype} {numbers.shape}; download it again"
        )
    images: Images = pixels[()]
    labels: npt.NDArray[Any] = numbers[()]
    wrong = np.flatnonzero(~np.isin(labels, np.arange(len(CKPLUS7_CLASSES))))
    if len(wrong):
        fault = f"data_label of row {wrong[0]} is {labels[wrong[0]]}, not 0 to {len(CKPLUS7_CLASSES) - 1}"
        raise DataError(f"{path}: {fault}; download it again")
    return images, labels.astype(np.int64)


def _plain_array(path: Path, file: h5py.File, key: str) -> h5py.Dataset:
    """A data set whose bytes lie in this very file.

    A link or a virtual data set reads other files, or itself without end, which crashes the HDF5 library.
    """
    link = file.get(key, getlink=True)
    if link is None:
        raise DataError(f"{path}: no array {key} in it; give CK_data.h5 with data_pixel and data_label")
    array = file[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(array, h5py.Dataset) or array.shape is None or array.is_virtual or array.external:
        raise DataError(f"{path}: {key} is not a plain array in the file itself; give CK_data.h5")
    return array


def _match_h5(path: Path, images: Images, labels: Integers, archive: Archive) -> tuple[Images, list[_Frame]]:
    """Find each h5 image in CK+48; images that are stored transposed come back upright."""
    known = _ck48_frames(archive)
    upright = read_gray_images(archive, [frame.name for frame in known])[:, 0]
    found: dict[bytes, int] = {}
    for row, image in enumerate(upright):
        first = found.setdefault(image.tobytes(), row)
        if first != row:
            raise DataError(
                f"{archive.path}: {known[first].name} and {known[row].name} are the same image, "
                "so it names no subject; remove one"
            )
    match = [found.get(image.tobytes(), found.get(image.T.tobytes(), -1)) for image in images]
    missing = match.count(-1)
    if missing:
        raise DataError(
            f"{path}: {missing} of {len(images)} images are not in {archive.path} "
            f"(the first is row {match.index(-1)}); give the CK+48 copy that belongs to this file"
        )
    frames: list[_Frame] = []
    for row, index in enumerate(match):
        frame = known[index]
        if frame.label != labels[row]:
            raise DataError(
                f"{path}: row {row} is {CKPLUS7_CLASSES[labels[row]]}, but the same image is {frame.name} "
                f"in {archive.path}; give the CK+48 copy that belongs to this file"
            )
        frames.append(frame._replace(name=f"row {row}"))
    return upright[match], frames


# The original tree


def _read_original(archive: Archive, classes: int) -> FaceDataset:
    names = CKPLUS7_CLASSES if classes == 7 else CKPLUS8_CLASSES
    images, emotions, landmarks = _original_files(archive)
    frames: list[_Frame] = []
    for sequence, file in sorted(emotions.items()):
        emotion = _read_emotion(archive, file)
        stems = sorted(images[sequence], key=lambda stem: int(stem.rpartition("_")[2]))
        needed = PEAK_FRAMES + (classes == 8)
        if len(stems) < needed:
            raise DataError(
                f"{archive.path}: sequence {sequence} has {len(stems)} images, fewer than the {needed} to "
                "take; get the images again"
            )
        taken = dict.fromkeys(stems[-PEAK_FRAMES:], emotion)
        if classes == 8:
            taken[stems[0]] = "neutral"
        subject = sequence.partition("_")[0]
        frames += [
            _Frame(images[sequence][stem], names.index(label), subject, sequence, stem)
            for stem, label in taken.items()
        ]
    if not frames:
        raise DataError(
            f"{archive.path}: no sequence with an emotion file (S005_001_00000011_emotion.txt); "
            "put the Emotion folder beside cohn-kanade-images"
        )
    missing = [frame.name for frame in frames if frame.stem not in landmarks]
    if 0 < len(missing) < len(frames):
        raise DataError(
            f"{archive.path}: {len(missing)} of {len(frames)} frames have no landmark file, such as "
            f"{missing[0]}; get the Landmarks folder again, or remove it to have all faces found by a "
            "detector"
        )
    faces = [
        _read_face(archive, frame.name, landmarks.get(frame.stem, ""))
        for frame in progress(frames, f"reading {archive.path.name}")
    ]
    return _dataset(np.stack(faces)[:, np.newaxis], frames, names, sources_of(archive))


def _original_files(archive: Archive) -> tuple[dict[str, dict[str, str]], dict[str, str], dict[str, str]]:
    """Images by sequence (``S005_001``) and stem; emotion files by sequence; landmark files by stem."""
    images: dict[str, dict[str, str]] = defaultdict(dict)
    emotions: dict[str, str] = {}
    landmarks: dict[str, str] = {}
    for name in archive.names():
        stem = Path(name).stem
        match = _FRAME.match(stem)
        if match is None:
            continue
        sequence = f"{match[1]}_{match[2]}"
        if "cohn-kanade-images" in name.split("/") and is_image(name):
            if not _FRAME.fullmatch(stem):
                raise DataError(f"{archive.path}: {name}: not named <subject>_<sequence>_<frame>; remove it")
            refuse_second(images[sequence], stem, name, archive.path)
        elif stem.endswith("_emotion"):
            if sequence in emotions:
                raise DataError(
                    f"{archive.path}: two emotion files for sequence {sequence} "
                    f"({emotions[sequence]} and {name}); remove one"
                )
            emotions[sequence] = name
        elif stem.endswith("_landmarks"):
            landmarks[stem.removesuffix("_landmarks")] = name
    return images, emotions, landmarks


def _read_emotion(archive: Archive, name: str) -> str:
    text = archive.read(name).decode("ascii", "replace").strip()
    try:
        code = float(text)
        if code != int(code) or not 1 <= code < len(EMOTION_CODES):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise DataError(
            f"{archive.path}: {name}: {text[:20]!r} is not an emotion from 1 to {len(EMOTION_CODES) - 1}; "
            "get the file again"
        ) from error
    return EMOTION_CODES[int(code)]


def _read_face(archive: Archive, name: str, landmarks: str) -> Images:
    """The face in a frame, uint8 (48, 48), by its landmark file or, where that is "", by the detector."""
    frame = np.asarray(open_image(archive, name).convert("L"))  # a few sequences are in colour
    if not landmarks:
        found = detect_faces(frame, smallest=1 / 6)
        if not found:
            raise DataError(
                f"{archive.path}: {name}: the detector finds no face; "
                "put the Landmarks folder beside cohn-kanade-images"
            )
        return crop_face(frame, found[0])
    try:
        points = np.array(archive.read(landmarks).split(), dtype=np.float64).reshape(-1, 2)
    except ValueError as error:
        raise DataError(f"{archive.path}: {landmarks}: not rows of x and y; get the file again") from error
    if len(points) < 2 or not np.isfinite(points).all():
        raise DataError(f"{archive.path}: {landmarks}: not a face's points; get the file again")
    box = face_box(points)
    height, width = frame.shape
    if box[2] - box[0] < 2 or box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise DataError(
            f"{archive.path}: {landmarks}: the face lies outside of {name} ({width}x{height}); get both again"
        )
    return crop_face(frame, box)
