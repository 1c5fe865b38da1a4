from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ferdist.data.ckplus import EMOTION_CODES, read_ckplus
from ferdist.data.facebox import crop_face, face_box
from ferdist.data.folds import assign_folds
from ferdist.data.record import CKPLUS7_CLASSES, CKPLUS8_CLASSES, Images
from ferdist.errors import DataError
from tests.data.files import encoded, noise, write_files

H5_LABELS = {"anger": 0, "happy": 3, "contempt": 6}
FRAMES = [
    f"{place}_{frame:08}.png"
    for place in ("happy/S010_002", "anger/S005_001", "contempt/S010_004")
    for frame in (9, 10, 11)
]


@pytest.fixture
def ck48(tmp_path: Path) -> Path:
    """Three sequences of three frames."""
    files = {name: encoded(noise(48, 48, seed)) for seed, name in enumerate(FRAMES)}
    return write_files(tmp_path / "CK+48", files)


def test_ck48(ck48: Path) -> None:
    dataset = read_ckplus(ck48)
    assert dataset.name == "ckplus"
    assert dataset.classes == CKPLUS7_CLASSES
    assert dataset.images.shape == (9, 1, 48, 48)
    names = [dataset.classes[label] for label in dataset.labels]
    assert names == ["angry"] * 3 + ["happy"] * 3 + ["contempt"] * 3, "by subject, sequence and frame"
    assert [dataset.subject_names[code] for code in dataset.subject] == ["S005"] * 3 + ["S010"] * 6
    sequences = [dataset.sequence_names[code] for code in dataset.sequence[::3]]
    assert sequences == ["S005_001", "S010_002", "S010_004"]
    assert dataset.source_id[0] == "anger/S005_001_00000009.png"
    assert (dataset.images[0, 0] == noise(48, 48, seed=3)).all()
    assert set(dataset.split) == set(dataset.fold) == {-1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fear/S010_002_00000012.png", r"sequence S010_002 is in two classes \(.*fear.*happy"),
        ("happy/copy/happy/S010_002_00000009.png", r"S010_002_00000009\.png: appears already as"),
        ("neutral/S010_005_00000001.png", r"neutral/S010_005_00000001\.png: not a CK\+48 image"),
        ("happy/S010_005.png", r"happy/S010_005\.png: not a CK\+48 image"),
        ("S010_005_00000001.png", r"S010_005_00000001\.png: not a CK\+48 image"),
    ],
)
def test_ck48_with_a_wrong_file(ck48: Path, name: str, message: str) -> None:
    write_files(ck48, {name: encoded(noise(48, 48, seed=99))})
    with pytest.raises(DataError, match=message):
        read_ckplus(ck48)


def test_what_is_asked_for_must_fit_the_source(ck48: Path) -> None:
    with pytest.raises(DataError, match=r"CK\+48 has no neutral images"):
        read_ckplus(ck48, classes=8)
    with pytest.raises(DataError, match=r"CK_data\.h5 has no neutral"):
        read_ckplus(write_h5(ck48), classes=8)
    with pytest.raises(DataError, match="not 6"):
        read_ckplus(ck48, classes=6)
    with pytest.raises(DataError, match=r"leave subjects_from out"):
        read_ckplus(ck48, subjects_from=ck48)


def test_sources_that_are_not_ckplus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no such file"):
        read_ckplus(tmp_path / "none")
    (tmp_path / "ckextended.csv").write_text("emotion,pixels,Usage\n")
    with pytest.raises(DataError, match=r"ckextended\.csv: .* names no subjects"):
        read_ckplus(tmp_path / "ckextended.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no CK\+48 images"):
        read_ckplus(tmp_path / "empty")


# h5


def write_h5(ck48: Path, **arrays: object) -> Path:
    """CK_data.h5 beside CK+48, with the same images in another order; given arrays replace its own."""
    files = sorted(ck48.rglob("*.png"), key=lambda file: file.name[::-1])
    own = {
        "data_pixel": np.stack([np.asarray(Image.open(file)) for file in files]),
        "data_label": np.array([H5_LABELS[file.parent.name] for file in files]),
    }
    with h5py.File(ck48.with_name("CK_data.h5"), "w") as target:
        for name, array in (own | arrays).items():
            if array is not None:
                target[name] = array
    return ck48.with_name("CK_data.h5")


def test_h5_without_subjects_gives_none_and_no_folds(ck48: Path) -> None:
    dataset = read_ckplus(write_h5(ck48))
    assert sorted(dataset.labels) == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert set(dataset.subject) == set(dataset.sequence) == {-1}
    with pytest.raises(DataError, match="no subject"):
        assign_folds(dataset, 2, seed=0)


@pytest.mark.parametrize("transpose", [False, True])
def test_h5_finds_its_subjects_in_ck48(ck48: Path, transpose: bool) -> None:
    path = write_h5(ck48)
    if transpose:
        with h5py.File(path, "a") as file:
            file["data_pixel"][:] = file["data_pixel"][()].transpose(0, 2, 1)
    dataset, known = read_ckplus(path, subjects_from=ck48), read_ckplus(ck48)
    for name in ("images", "labels", "subject", "sequence"):
        same = np.array_equal(getattr(dataset, name), getattr(known, name))
        assert same, f"{name} in CK+48's order, whatever the file's"
    assert set(dataset.sources) == {"CK_data.h5", "CK+48"}


def test_h5_that_does_not_fit_the_subjects(ck48: Path) -> None:
    path = write_h5(ck48)
    with h5py.File(path, "a") as file:
        file["data_label"][0] = (file["data_label"][0] + 3) % 6
    with pytest.raises(DataError, match=r"CK_data\.h5: row 0 is .* but the same image is"):
        read_ckplus(path, subjects_from=ck48)
    with h5py.File(path, "a") as file:
        file["data_pixel"][4, 0, 0] ^= 1
    with pytest.raises(DataError, match=r"1 of 9 images are not in .* \(the first is row 4\)"):
        read_ckplus(path, subjects_from=ck48)
    write_files(ck48, {"happy/S999_001_00000001.png": encoded(noise(48, 48))})
    with pytest.raises(DataError, match="are the same image"):
        read_ckplus(path, subjects_from=ck48)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"data_label": [0, 0, 7, 0, 0, 0, 0, 0, 0]}, r"data_label of row 2 is 7, not 0 to 6"),
        ({"data_label": [0, 0.5, 0, 0, 0, 0, 0, 0, 0]}, r"data_label of row 1 is 0\.5, not 0 to 6"),
        ({"data_label": [0] * 8}, r"9 images but labels int64 \(8,\)"),
        ({"data_pixel": np.zeros((9, 48, 48))}, r"data_pixel must be uint8"),
        ({"data_pixel": None}, r"no array data_pixel"),
    ],
)
def test_bad_h5_files(ck48: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_ckplus(write_h5(ck48, **arrays))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_an_h5_file_with_a_damaged_byte_is_refused_or_read(tmp_path: Path, libver: str) -> None:
    """The latest format has checksums; without them damage gives other errors, or other pixels."""
    path = tmp_path / "CK_data.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["data_pixel"] = np.zeros((2, 2, 2), dtype=np.uint8)
        file["data_label"] = np.arange(2)
    content, refusals = path.read_bytes(), 0
    for position in range(8, len(content)):  # after the signature
        if content[position : position + 8] != bytes(8):
            path.write_bytes(content[:position] + bytes([content[position] ^ 129]) + content[position + 1 :])
            try:
                read_ckplus(path)
            except DataError as error:
                refusals += "broken h5 file" in str(error)
                assert "\n" not in str(error)
    assert refusals > 20


def test_a_truncated_h5_file_is_refused(ck48: Path) -> None:
    path = write_h5(ck48)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"CK_data\.h5: broken h5 file"):
        read_ckplus(path)


# The original tree

LANDMARKS = np.array([[20.0, 30.0], [80.0, 35.0], [50.0, 90.0]])


def write_sequence(root: Path, name: str, frames: Iterable[Images], emotion: int | None) -> None:
    """A sequence ``S005_001`` of the original tree, without landmarks."""
    place = name.replace("_", "/")
    files = {f"{place}/{name}_{number:08}": encoded(frame) for number, frame in enumerate(frames, start=1)}
    write_files(root / "cohn-kanade-images", {f"{stem}.png": data for stem, data in files.items()})
    if emotion is not None:
        label = f"   {emotion}.0000000e+00\n".encode()
        write_files(root / "Emotion", {f"{list(files)[-1]}_emotion.txt": label})


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """Two labelled sequences of five frames, one without a label."""
    root = tmp_path / "CK+"
    for number, (name, emotion) in enumerate({"S005_001": 3, "S010_002": 2, "S010_003": None}.items()):
        write_sequence(root, name, [noise(120, 160, 10 * number + frame) for frame in range(1, 6)], emotion)
        for frame in range(1, 6):
            points = root / "Landmarks" / name.replace("_", "/") / f"{name}_{frame:08}_landmarks.txt"
            points.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(points, LANDMARKS + frame)
    return root


def test_original_tree(original: Path) -> None:
    dataset = read_ckplus(original)
    assert dataset.classes == CKPLUS7_CLASSES
    assert [dataset.classes[label] for label in dataset.labels] == ["disgust"] * 3 + ["contempt"] * 3
    assert [name[-6:-4] for name in dataset.source_id] == ["03", "04", "05"] * 2
    assert dataset.subject_names == ("S005", "S010")
    assert dataset.sequence_names == ("S005_001", "S010_002")
    expected = crop_face(noise(120, 160, seed=4), face_box(LANDMARKS + 4))
    assert (dataset.images[1, 0] == expected).all()


def test_original_tree_with_neutral(original: Path) -> None:
    dataset = read_ckplus(original, classes=8)
    assert dataset.classes == CKPLUS8_CLASSES
    names = [dataset.classes[label] for label in dataset.labels]
    assert names == ["neutral", *["disgust"] * 3, "neutral", *["contempt"] * 3]
    assert dataset.source_id[0].endswith("S005_001_00000001.png")
    shutil.rmtree(original / "Emotion")
    with pytest.raises(DataError, match="put the Emotion folder beside"):
        read_ckplus(original)


LANDMARK_FILE = "Landmarks/S005/001/S005_001_00000004_landmarks.txt"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (LANDMARK_FILE, None, r"1 of 6 frames have no landmark file, such as .*00000004\.png"),
        (LANDMARK_FILE, "1 2 x", r"not rows of x and y"),
        (LANDMARK_FILE, "1 2", r"not a face's points"),
        (LANDMARK_FILE, "900 900 950 950", r"lies outside of"),
        ("Emotion/S005/001/S005_001_00000005_emotion.txt", "9.0", r"'9\.0' is not an emotion from 1 to 7"),
        ("Emotion/S005/001/S005_001_00000005_emotion.txt", "nan", r"'nan' is not an emotion"),
        ("Emotion/S005/001/S005_001_00000001_emotion.txt", "3.0", r"two emotion files for sequence S005_001"),
        ("cohn-kanade-images/S005/001/S005_001_00000002x.png", "", r"00000002x\.png: not named"),
        ("copy/cohn-kanade-images/S005_001_00000002.png", "", r"appears already as"),
        ("Emotion/S999/001/S999_001_00000005_emotion.txt", "3.0", r"sequence S999_001 has 0 images"),
    ],
)
def test_original_tree_with_a_wrong_file(original: Path, file: str, text: str | None, message: str) -> None:
    if text is None:
        (original / file).unlink()
    else:
        write_files(original, {file: text.encode()})
    with pytest.raises(DataError, match=message):
        read_ckplus(original)


def test_a_frame_without_a_face_is_named(original: Path) -> None:
    shutil.rmtree(original / "Landmarks")
    for file in original.rglob("*.png"):
        file.write_bytes(encoded(np.zeros((120, 160), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"S005_001_00000003\.png: the detector finds no face"):
        read_ckplus(original)


# Real data


def test_real_ck48(real_data: Path) -> None:
    dataset = read_ckplus(real_data / "ckplus48.zip")
    assert np.bincount(dataset.labels).tolist() == [135, 177, 75, 207, 84, 249, 54]
    assert (len(dataset), len(dataset.sequence_names), len(dataset.subject_names)) == (981, 327, 118)
    assert (np.bincount(dataset.sequence) == 3).all()


def _photograph(face: Images) -> Images:
    """A face of 48x48 as it would lie in a frame of 640x490, five times as large."""
    scene = np.full((490, 640), 90, dtype=np.uint8)
    scene[125:365, 200:440] = np.asarray(Image.fromarray(face).resize((240, 240), Image.Resampling.BICUBIC))
    return scene


def test_without_landmarks_a_detector_frames_faces_as_ckplus48_does(tmp_path: Path, real_data: Path) -> None:
    """Real faces only: the cascade does not take drawn ones for faces."""
    ck48 = read_ckplus(real_data / "ckplus48.zip")
    faces = ck48.images[:12, 0]
    for number, three in enumerate(np.split(faces, 4)):
        emotion = EMOTION_CODES.index(ck48.classes[ck48.labels[3 * number]])
        write_sequence(tmp_path, f"S{number:03d}_001", map(_photograph, three), emotion)
    cropped = read_ckplus(tmp_path)
    assert np.array_equal(cropped.labels, ck48.labels[:12])
    alike = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(cropped.images[:, 0], faces, strict=True)
    ]
    assert np.median(alike) > 0.85, alike
    assert min(alike) > 0.6, alike
