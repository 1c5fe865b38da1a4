from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from ferdist.data.ckplus import read_ckplus
from ferdist.data.facebox import crop_face, face_box
from ferdist.data.folds import assign_folds
from ferdist.data.record import CKPLUS7_CLASSES, CKPLUS8_CLASSES, Images
from ferdist.errors import DataError

REAL_COUNTS = {
    "angry": 135,
    "contempt": 54,
    "disgust": 177,
    "fear": 75,
    "happy": 207,
    "sad": 84,
    "surprise": 249,
}
SEQUENCES = {"S010_002": "happy", "S005_001": "anger", "S010_004": "contempt"}
H5_LABELS = {"anger": 0, "happy": 3, "contempt": 6}


def random_image(seed: int, height: int = 48, width: int = 48) -> Images:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def save(path: Path, image: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def write_ck48(root: Path) -> Path:
    seed = 0
    for sequence, class_name in SEQUENCES.items():
        for frame in (9, 10, 11):
            save(root / class_name / f"{sequence}_{frame:08}.png", random_image(seed))
            seed += 1
    return root


def test_ck48(tmp_path: Path) -> None:
    dataset = read_ckplus(write_ck48(tmp_path / "CK+48"))
    assert dataset.name == "ckplus"
    assert dataset.classes == CKPLUS7_CLASSES
    assert dataset.images.shape == (9, 1, 48, 48)
    names = [dataset.classes[label] for label in dataset.labels]
    assert names == ["angry"] * 3 + ["happy"] * 3 + ["contempt"] * 3, "by subject, sequence and frame"
    assert [dataset.subject_names[code] for code in dataset.subject] == ["S005"] * 3 + ["S010"] * 6
    assert [dataset.sequence_names[code] for code in dataset.sequence[::3]] == [
        "S005_001",
        "S010_002",
        "S010_004",
    ]
    assert dataset.source_id[0] == "anger/S005_001_00000009.png"
    assert (dataset.images[0, 0] == random_image(3)).all()
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
def test_ck48_with_a_wrong_file(tmp_path: Path, name: str, message: str) -> None:
    root = write_ck48(tmp_path / "CK+48")
    save(root / name, random_image(99))
    with pytest.raises(DataError, match=message):
        read_ckplus(root)


def test_classes(tmp_path: Path) -> None:
    root = write_ck48(tmp_path / "CK+48")
    with pytest.raises(DataError, match=r"CK\+48 has no neutral images"):
        read_ckplus(root, classes=8)
    with pytest.raises(DataError, match="not 6"):
        read_ckplus(root, classes=6)


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


def write_h5(path: Path, ck48: Path, transpose: bool = False) -> Path:
    """The same images in another order."""
    files = sorted(ck48.rglob("*.png"), key=lambda file: file.name[::-1])
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    with h5py.File(path, "w") as target:
        target["data_pixel"] = images.transpose(0, 2, 1) if transpose else images
        target["data_label"] = np.array([H5_LABELS[file.parent.name] for file in files])
    return path


def test_h5_without_subjects_gives_none_and_no_folds(tmp_path: Path) -> None:
    dataset = read_ckplus(write_h5(tmp_path / "CK_data.h5", write_ck48(tmp_path / "CK+48")))
    assert sorted(dataset.labels) == [0, 0, 0, 3, 3, 3, 6, 6, 6]
    assert set(dataset.subject) == set(dataset.sequence) == {-1}
    with pytest.raises(DataError, match="no subject"):
        assign_folds(dataset, 2, seed=0)


@pytest.mark.parametrize("transpose", [False, True])
def test_h5_finds_its_subjects_in_ck48(tmp_path: Path, transpose: bool) -> None:
    ck48 = write_ck48(tmp_path / "CK+48")
    dataset = read_ckplus(write_h5(tmp_path / "CK_data.h5", ck48, transpose), subjects_from=ck48)
    known = read_ckplus(ck48)
    by_pixels = {image.tobytes(): row for row, image in enumerate(known.images)}
    rows = [by_pixels[image.tobytes()] for image in dataset.images]
    assert rows == list(range(9)), "in CK+48's order, whatever the file's"
    assert dataset.subject.tolist() == known.subject[rows].tolist()
    assert dataset.sequence.tolist() == known.sequence[rows].tolist()
    assert dataset.labels.tolist() == known.labels[rows].tolist()
    assert set(dataset.sources) == {"CK_data.h5", "CK+48"}


def test_h5_that_does_not_fit_the_subjects(tmp_path: Path) -> None:
    ck48 = write_ck48(tmp_path / "CK+48")
    path = write_h5(tmp_path / "CK_data.h5", ck48)
    with h5py.File(path, "a") as file:
        labels = file["data_label"][()]
        file["data_label"][0] = (labels[0] + 3) % 6
    with pytest.raises(DataError, match=r"CK_data\.h5: row 0 is .* but the same image is"):
        read_ckplus(path, subjects_from=ck48)
    with h5py.File(path, "a") as file:
        file["data_pixel"][4, 0, 0] ^= 1
    with pytest.raises(DataError, match=r"1 of 9 images are not in .* \(the first is row 4\)"):
        read_ckplus(path, subjects_from=ck48)
    save(ck48 / "happy" / "S999_001_00000001.png", random_image(0))
    with pytest.raises(DataError, match="are the same image"):
        read_ckplus(path, subjects_from=ck48)


def test_bad_h5_files(tmp_path: Path) -> None:
    ck48 = write_ck48(tmp_path / "CK+48")
    path = write_h5(tmp_path / "CK_data.h5", ck48)
    with pytest.raises(DataError, match=r"CK_data\.h5 has no neutral"):
        read_ckplus(path, classes=8)
    with pytest.raises(DataError, match=r"leave subjects_from out"):
        read_ckplus(ck48, subjects_from=ck48)
    with h5py.File(path, "a") as file:
        file["data_label"][2] = 7
    with pytest.raises(DataError, match=r"data_label of row 2 is 7, not 0 to 6"):
        read_ckplus(path)
    with h5py.File(path, "a") as file:
        del file["data_label"]
        file["data_label"] = np.zeros(8, dtype=np.int64)
    with pytest.raises(DataError, match=r"9 images but labels int64 \(8,\)"):
        read_ckplus(path)
    with h5py.File(path, "a") as file:
        del file["data_pixel"]
        file["data_pixel"] = np.zeros((9, 48, 48))
    with pytest.raises(DataError, match=r"data_pixel must be uint8"):
        read_ckplus(path)
    with h5py.File(path, "a") as file:
        del file["data_pixel"]
    with pytest.raises(DataError, match=r"no array data_pixel"):
        read_ckplus(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"CK_data\.h5: broken h5 file"):
        read_ckplus(path)


# The original tree

LANDMARKS = np.array([[20.0, 30.0], [80.0, 35.0], [50.0, 90.0]])


def write_original(root: Path, *, blank: bool = False) -> Path:
    """Two labelled sequences of five frames, one without a label."""
    for number, (sequence, emotion) in enumerate({"S005/001": 3, "S010/002": 2, "S010/003": None}.items()):
        stem = sequence.replace("/", "_")
        for frame in range(1, 6):
            name = f"{stem}_{frame:08}"
            image = random_image(10 * number + frame, 120, 160) * np.uint8(not blank)
            save(root / "cohn-kanade-images" / sequence / f"{name}.png", image)
            points = root / "Landmarks" / sequence / f"{name}_landmarks.txt"
            points.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(points, LANDMARKS + frame)
        if emotion is not None:
            label = root / "Emotion" / sequence / f"{stem}_00000005_emotion.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(f"   {emotion}.0000000e+00\n")
    return root


def test_original_tree(tmp_path: Path) -> None:
    dataset = read_ckplus(write_original(tmp_path / "CK+"))
    assert dataset.classes == CKPLUS7_CLASSES
    assert [dataset.classes[label] for label in dataset.labels] == ["disgust"] * 3 + ["contempt"] * 3
    assert [name[-6:-4] for name in dataset.source_id] == ["03", "04", "05"] * 2
    assert dataset.subject_names == ("S005", "S010")
    assert dataset.sequence_names == ("S005_001", "S010_002")
    expected = crop_face(random_image(4, 120, 160), face_box(LANDMARKS + 4))
    assert (dataset.images[1, 0] == expected).all()


def test_original_tree_with_neutral(tmp_path: Path) -> None:
    root = write_original(tmp_path / "CK+")
    dataset = read_ckplus(root, classes=8)
    assert dataset.classes == CKPLUS8_CLASSES
    names = [dataset.classes[label] for label in dataset.labels]
    assert names == ["neutral", *["disgust"] * 3, "neutral", *["contempt"] * 3]
    assert dataset.source_id[0].endswith("S005_001_00000001.png")
    (root / "Emotion").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="put the Emotion folder beside"):
        read_ckplus(root)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "Landmarks/S005/001/S005_001_00000004_landmarks.txt",
            None,
            r"1 of 6 frames have no landmark file, such as .*00000004\.png",
        ),
        ("Landmarks/S005/001/S005_001_00000004_landmarks.txt", "1 2 x", r"not rows of x and y"),
        ("Landmarks/S005/001/S005_001_00000004_landmarks.txt", "1 2", r"not a face's points"),
        ("Landmarks/S005/001/S005_001_00000004_landmarks.txt", "900 900 950 950", r"lies outside of"),
        ("Emotion/S005/001/S005_001_00000005_emotion.txt", "9.0", r"'9\.0' is not an emotion from 1 to 7"),
        ("Emotion/S005/001/S005_001_00000005_emotion.txt", "nan", r"'nan' is not an emotion"),
        ("Emotion/S005/001/S005_001_00000001_emotion.txt", "3.0", r"two emotion files for sequence S005_001"),
        ("cohn-kanade-images/S005/001/S005_001_00000002x.png", "", r"00000002x\.png: not named"),
        ("copy/cohn-kanade-images/S005_001_00000002.png", "", r"appears already as"),
        ("Emotion/S999/001/S999_001_00000005_emotion.txt", "3.0", r"sequence S999_001 has 0 images"),
    ],
)
def test_original_tree_with_a_wrong_file(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    root = write_original(tmp_path / "CK+")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        (root / file).unlink()
    else:
        (root / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_ckplus(root)


# Real data


def test_real_ck48(real_data: Path) -> None:
    dataset = read_ckplus(real_data / "ckplus48.zip")
    counts = np.bincount(dataset.labels)
    assert dict(zip(dataset.classes, counts.tolist(), strict=True)) == REAL_COUNTS
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
    codes = {"angry": 1, "contempt": 2, "disgust": 3, "fear": 4, "happy": 5, "sad": 6, "surprise": 7}
    for number in range(4):
        folder = tmp_path / "cohn-kanade-images" / f"S{number:03d}" / "001"
        folder.mkdir(parents=True)
        for frame in range(3):
            image = Image.fromarray(_photograph(faces[3 * number + frame]))
            image.save(folder / f"S{number:03d}_001_{frame + 1:08d}.png")
        emotion = tmp_path / "Emotion" / f"S{number:03d}" / "001"
        emotion.mkdir(parents=True)
        label = ck48.classes[ck48.labels[3 * number]]
        (emotion / f"S{number:03d}_001_00000003_emotion.txt").write_text(f"   {codes[label]}.0000000e+00\n")
    cropped = read_ckplus(tmp_path)
    assert np.array_equal(cropped.labels, ck48.labels[:12])
    alike = [
        np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(cropped.images[:, 0], faces, strict=True)
    ]
    assert np.median(alike) > 0.85, alike
    assert min(alike) > 0.6, alike


def test_a_frame_without_a_face_is_named(tmp_path: Path) -> None:
    root = write_original(tmp_path / "CK+", blank=True)
    shutil.rmtree(root / "Landmarks")
    with pytest.raises(DataError, match=r"S005_001_00000003\.png: the detector finds no face"):
        read_ckplus(root)
