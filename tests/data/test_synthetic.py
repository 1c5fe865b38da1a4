"""Drawn faces, and their writing in each raw layout, read back here without the package's readers."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ferdist.data.facebox import BOX_MARGIN, crop_face, face_box
from ferdist.data.prepare import Layout
from ferdist.data.rawformats import LAYOUTS, write_synthetic
from ferdist.data.record import CKPLUS7_CLASSES, FER2013_CLASSES, FaceDataset, Images
from ferdist.data.synthetic import ckplus_faces, ckplus_sequences, synthesize
from ferdist.errors import ConfigError, DataError

Faces = list[tuple[int, str, Images]]


@pytest.fixture(scope="module")
def faces() -> FaceDataset:
    return synthesize(2000)


@pytest.fixture(scope="module")
def ckplus() -> Faces:
    return ckplus_faces(90, seed=5)


# The data sets


def test_same_seed_same_faces_other_seed_other_faces():
    first, again, other = synthesize(30, seed=1), synthesize(30, seed=1), synthesize(30, seed=2)
    assert np.array_equal(first.images, again.images)
    assert first.source_id == again.source_id
    assert (first.images != other.images).any(axis=(1, 2, 3)).all()


def test_a_frame_does_not_depend_on_how_many_are_drawn():
    many, few = synthesize(500), synthesize(450)
    assert np.array_equal(many.images[:450], few.images)
    assert np.array_equal(many.labels[:450], few.labels)
    assert many.source_id[:450] == few.source_id
    # Fewer subjects, but the same people in the same sequences.
    fewer = synthesize(100)
    where = {name: k for k, name in enumerate(many.source_id)}
    shared = [(k, where[name]) for k, name in enumerate(fewer.source_id) if name in where]
    assert len(shared) > 50
    assert all(np.array_equal(fewer.images[a], many.images[b]) for a, b in shared)


def test_shape_counts_and_names(faces: FaceDataset):
    assert faces.name == "synthetic"
    assert faces.images.shape == (2000, 1, 48, 48)
    assert len(faces.subject_names) == 60
    for counts in (np.bincount(faces.labels), np.bincount(faces.subject)):
        assert counts.max() - counts.min() <= 2
    assert np.allclose(np.bincount(faces.split) / len(faces), [0.7, 0.15, 0.15], atol=0.01)
    assert faces.subject_names[0] == "S001"
    for k in (0, 777, 1999):
        sequence = faces.sequence_names[faces.sequence[k]]
        assert sequence.startswith(faces.subject_names[faces.subject[k]] + "_")
        assert faces.source_id[k].startswith(sequence + "_")
    assert len(set(faces.source_id)) == 2000
    assert len({image.tobytes() for image in faces.images}) == 2000
    assert len(synthesize(1)) == 1


def test_neutral_is_the_first_frame_and_a_sequence_shows_one_expression(faces: FaceDataset):
    neutral = faces.labels == FER2013_CLASSES.index("neutral")
    frame = np.array([int(name[-8:]) for name in faces.source_id])
    assert (frame[neutral] == 1).all()
    assert (frame[~neutral] >= 4).all()
    shown = pd.Series(faces.labels[~neutral]).groupby(faces.sequence[~neutral]).nunique()
    assert (shown == 1).all()


@pytest.mark.parametrize(("images", "seed"), [(70, 0), (70, 11), (145, 11)])
def test_splits_share_no_subject_and_have_every_class(images: int, seed: int):
    dataset = synthesize(images, seed)
    assert len(set(dataset.subject.tolist())) >= 10
    people = [set(dataset.subject[dataset.split == code].tolist()) for code in range(3)]
    assert sum(map(len, people)) == len(set.union(*people)) == len(dataset.subject_names)
    for code in range(3):
        assert set(dataset.labels[dataset.split == code].tolist()) == set(range(7))


@pytest.mark.parametrize("draw", [synthesize, ckplus_sequences])
@pytest.mark.parametrize(("images", "seed", "words"), [(0, 0, "images=0"), (5, -1, "seed=-1")])
def test_bad_arguments(draw: Callable[[int, int], object], images: int, seed: int, words: str):
    with pytest.raises(ConfigError, match=words):
        draw(images, seed)


def test_sequences_move_away_from_neutral():
    distances = defaultdict(list)
    for sequence in ckplus_sequences(420):
        frames = [
            sequence.face(round(1 + step * (sequence.frames - 1))).astype(float) for step in (0, 0.3, 0.65, 1)
        ]
        distances[sequence.expression].append([np.abs(frame - frames[0]).mean() for frame in frames[1:]])
    assert set(distances) == set(CKPLUS7_CLASSES)
    for expression, of_sequences in distances.items():
        assert len(of_sequences) >= 20
        rise = np.mean(of_sequences, axis=0)
        assert rise[0] < rise[1] < rise[2], expression
        assert np.mean([d[2] > d[0] for d in of_sequences]) > 0.9, expression


def test_linear_classifier_does_not_solve_it_and_the_mouth_matters(faces: FaceDataset):
    train = faces.split == 0
    pixels = faces.images.reshape(len(faces), -1).astype(np.float32)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=60))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sixty iterations fit the training part to above 99 %
        model.fit(pixels[train], faces.labels[train])
    accuracy = model.score(pixels[~train], faces.labels[~train])
    assert 0.35 < accuracy < 0.70
    covered = faces.images[~train].copy()
    covered[:, :, 30:44, 12:36] = 128
    assert model.score(covered.reshape(len(covered), -1), faces.labels[~train]) < accuracy - 0.1


def test_ckplus_samples_are_the_last_three_frames_of_whole_sequences(ckplus: Faces):
    sequences = {s.name: s for s in ckplus_sequences(90, seed=5)}
    assert len(ckplus) == 90
    assert len({name[:4] for _, name, _ in ckplus}) == 10
    assert set(Counter(name[:8] for _, name, _ in ckplus).values()) == {3}
    for label, name, face in ckplus:
        assert (face.shape, face.dtype) == ((48, 48), np.uint8)
        assert int(name[-8:]) > sequences[name[:8]].frames - 3
        assert sequences[name[:8]].expression == CKPLUS7_CLASSES[label]
    rows = [(label, name) for label, name, _ in ckplus]
    assert rows == sorted(rows), "in the order of CK_data.h5"
    assert len(ckplus_faces(4)) == 6


# The face box


def test_face_box_is_a_centred_square():
    points = np.array([[100.0, 50.0], [200.0, 90.0], [150.0, 130.0]])
    side = round(BOX_MARGIN * 100)
    assert face_box(points) == (150 - side // 2, 90 - side // 2, 150 + side // 2, 90 + side // 2)
    assert face_box(points + 1e-6) == face_box(points)


def test_crop_face_averages_and_repeats_the_edge():
    cells = np.arange(48 * 48, dtype=np.uint32).reshape(48, 48).astype(np.uint8)
    assert np.array_equal(crop_face(cells.repeat(3, 0).repeat(3, 1), (0, 0, 144, 144)), cells)
    frame = np.zeros((10, 10), np.uint8)
    frame[:, 0] = 200
    cropped = crop_face(frame, (-10, 0, 10, 20), size=2)
    assert cropped.tolist() == [[200, 20], [200, 20]]


# The raw layouts


def test_fer2013_csv(tmp_path: Path):
    faces = synthesize(70, seed=3)
    path = write_synthetic(tmp_path / "new", 70, 3, "fer2013-csv")
    assert path == tmp_path / "new" / "fer2013.csv"
    assert path.read_text().startswith("emotion,pixels,Usage\n")
    table = pd.read_csv(path)
    pixels = np.array([row.split(" ") for row in table["pixels"]], dtype=int)
    assert np.array_equal(pixels.reshape(-1, 1, 48, 48), faces.images)
    assert np.array_equal(table["emotion"], faces.labels)
    usages = np.array(["Training", "PublicTest", "PrivateTest"])
    assert table["Usage"].tolist() == usages[faces.split].tolist()


def test_ckplus48_and_h5(ckplus: Faces, tmp_path: Path):
    folders = ["anger", "disgust", "fear", "happy", "sadness", "surprise", "contempt"]
    root = write_synthetic(tmp_path, 90, 5, "ckplus48")
    found = {
        (file.parent.name, file.stem): np.asarray(Image.open(file)).tobytes() for file in root.rglob("*.png")
    }
    assert found == {(folders[label], name): face.tobytes() for label, name, face in ckplus}
    with h5py.File(write_synthetic(tmp_path, 90, 5, "ckplus-h5")) as file:
        assert set(file) == {"data_pixel", "data_label"}
        assert (file["data_pixel"].dtype, file["data_label"].dtype) == (np.uint8, np.int64)
        assert np.array_equal(file["data_pixel"][()], [face for *_, face in ckplus])
        assert np.array_equal(file["data_label"][()], [label for label, *_ in ckplus])


def test_ckplus_original_shows_the_faces_of_ckplus48(ckplus: Faces, tmp_path: Path):
    root = write_synthetic(tmp_path, 90, 5, "ckplus-original")
    codes = ["neutral", "angry", "contempt", "disgust", "fear", "happy", "sad", "surprise"]
    emotions = sorted(root.glob("Emotion/S*/*/*_emotion.txt"))
    assert len(emotions) == 30
    assert len(sorted(root.glob("cohn-kanade-images/S*/*"))) > 30, "some sequences have no label"
    found = {}
    for emotion in emotions:
        subject, number, last, _ = emotion.name.split("_")
        assert emotion.parent == root / "Emotion" / subject / number
        text = emotion.read_text()
        assert text.startswith("   ")
        assert text.strip().endswith(".0000000e+00")
        frames = sorted((root / "cohn-kanade-images" / subject / number).iterdir())
        assert [int(f.stem[-8:]) for f in frames] == list(range(1, int(last) + 1))
        for frame in frames[-3:]:
            points = np.loadtxt(root / "Landmarks" / subject / number / f"{frame.stem}_landmarks.txt")
            assert points.shape == (68, 2)
            image = Image.open(frame)
            assert image.size == (640, 490)
            face = image.crop(face_box(points)).resize((48, 48), Image.Resampling.BOX)
            found[frame.stem] = (codes[int(float(text))], np.asarray(face).tobytes())
    assert found == {name: (CKPLUS7_CLASSES[label], face.tobytes()) for label, name, face in ckplus}


def test_landmarks_are_where_the_features_are():
    for sequence in ckplus_sequences(30):
        _, points = sequence.scene(sequence.frames)
        jaw, left_brow, right_brow = points[:17], points[17:22], points[22:27]
        nose, left_eye, right_eye, mouth = points[27:36], points[36:42], points[42:48], points[48:]
        assert jaw[0, 0] < left_eye[:, 0].min() < nose[3, 0] < right_eye[:, 0].max() < jaw[16, 0]
        assert left_brow[:, 1].mean() < left_eye[:, 1].mean() < nose[3, 1] < mouth[:, 1].mean() < jaw[8, 1]
        assert right_brow[:, 0].mean() > left_brow[:, 0].mean()
        assert jaw[8, 1] == jaw[:, 1].max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_overwritten_or_half_written(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_synthetic(tmp_path / "out", 3, 0, layout)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with pytest.raises(DataError, match="exists already"):
        write_synthetic(tmp_path / "out", 3, 0, layout)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "other", 3, 0, layout)
    assert not list((tmp_path / "other").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write there"):
        write_synthetic(tmp_path / "file", 3, 0, layout)


def test_every_layout_can_be_asked_for():
    assert {*LAYOUTS, "beton"} == set(Layout)
