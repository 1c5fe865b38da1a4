from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferdist.data.beton import Manifest
from ferdist.data.beton.manifest import count_parts, pixel_statistics, read_samples
from ferdist.data.record import no_values
from ferdist.errors import DataError
from tests.data.beton import Make, Write
from tests.data.files import refused


@pytest.fixture
def manifest_path(videos: Make, write: Write) -> Path:
    return write(videos()).with_suffix(".json")


def set_at(content: dict[str, Any], keys: str, value: object) -> None:
    *parents, last = keys.split(".")
    for key in parents:
        content = content[key]
    content[last] = value


def test_json_has_the_keys_of_the_contract(manifest_path: Path) -> None:
    content = json.loads(manifest_path.read_text())
    expected = "schema name samples image classes splits folds statistics sources bytes sha256 audit created"
    assert set(content) == {*expected.split(), "samples_sha256"}
    assert content["schema"] == 1
    assert set(content["folds"]["0"]) == {"samples", "subjects", "per_class"}
    assert set(content["statistics"]) == {"all", "without_fold"}


def test_load_gives_back_what_was_written_and_passes_over_keys_of_later_versions(manifest_path: Path) -> None:
    text = manifest_path.read_text()
    manifest_path.write_text(json.dumps({**json.loads(text), "licence": "research only"}))
    manifest = Manifest.load(manifest_path)
    assert manifest.to_json() == text
    assert manifest.image_shape == (3, 6, 8)


@pytest.mark.parametrize(
    ("keys", "value", "fault"),
    [
        ("schema", 2, "its schema is 2, and this version of ferdist reads schema 1"),
        ("schema", None, "its schema is None"),
        ("samples", 0, "'samples' must be a positive integer, not 0"),
        ("samples", "60", "'samples' must be a positive integer, not '60'"),
        ("samples", True, "'samples' must be a positive integer, not True"),
        ("bytes", 1.5, "'bytes' must be a positive integer"),
        ("sha256", "F" * 64, "'sha256' must be 64 hexadecimal digits"),
        ("samples_sha256", "0" * 63, "'samples_sha256' must be 64 hexadecimal digits"),
        ("name", 3, "'name' must be a file name of letters"),
        ("image", [1, 48, 48], "'image' must be an object"),
        ("image.height", -1, "'image.height' must be a positive integer, not -1"),
        ("image.width", None, "'image.width' must be a positive integer, not None"),
        ("image.channels", 1, "'statistics.all.mean' must have a number from 0 to 1 per channel (1)"),
        ("classes", [], "'classes' must be a list of names"),
        ("classes", ["a", 1], "'classes' must be a list of names"),
        ("splits", [], "'splits' must be an object"),
        ("statistics.without_fold", None, "'statistics.without_fold' must be an object"),
        ("statistics.without_fold", {}, "'statistics.without_fold' must have the folds of 'folds'"),
        ("statistics.without_fold.0", None, "'statistics.without_fold.0.mean' must have a number"),
        ("statistics.all.std", [float("nan")] * 3, "'statistics.all.std' must have a number from 0 to 1"),
        ("statistics.all.mean", [0.5, 0.5, 1.5], "'statistics.all.mean' must have a number from 0 to 1"),
        ("audit", None, "'audit' must be an object"),
    ],
)
def test_a_wrong_value_is_named(manifest_path: Path, keys: str, value: object, fault: str) -> None:
    content = json.loads(manifest_path.read_text())
    set_at(content, keys, value)
    manifest_path.write_text(json.dumps(content))
    with refused(f"^{re.escape(f'{manifest_path}: not a manifest: ')}.*{re.escape(fault)}"):
        Manifest.load(manifest_path)


def test_every_key_is_needed(manifest_path: Path) -> None:
    content = json.loads(manifest_path.read_text())
    for key in set(content) - {"schema"}:
        manifest_path.write_text(json.dumps({other: content[other] for other in content if other != key}))
        with pytest.raises(DataError, match=f"the key '{key}' is missing"):
            Manifest.load(manifest_path)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[1]", b'"text"'])
def test_a_file_that_is_no_manifest(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "faces.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"faces\.json: (invalid JSON|not a manifest: not a JSON object)"):
        Manifest.load(path)


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the manifest: Is a directory"):
        Manifest.load(tmp_path)


def assert_moments(moments: dict[str, list[float]], images: np.ndarray) -> None:
    pixels = images.astype(np.float64) / 255
    np.testing.assert_allclose(moments["mean"], pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(moments["std"], pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_statistics_are_those_of_the_training_pixels(faces: Make, videos: Make) -> None:
    dataset = faces(500, shape=(3, 9, 7))
    statistics = pixel_statistics(dataset.images, dataset.split, dataset.fold)
    assert list(statistics) == ["train", "without_fold"]
    assert_moments(statistics["train"], dataset.images[dataset.split == 0])
    assert statistics["without_fold"] == {}
    dataset = videos(120, folds=5)
    fold = np.where(np.arange(120) == 7, -1, dataset.fold)  # one sample without a fold is in no training part
    statistics = pixel_statistics(dataset.images, dataset.split, fold)
    for number in range(5):
        chosen = (fold >= 0) & (fold != number)
        assert_moments(statistics["without_fold"][str(number)], dataset.images[chosen])


def test_statistics_are_exact() -> None:
    images = np.full((3000, 1, 48, 48), 255, dtype=np.uint8)
    images[::2] = 0
    statistics = pixel_statistics(images, no_values(3000), no_values(3000))
    assert statistics["all"] == {"mean": [0.5], "std": [0.5]}
    constant = pixel_statistics(
        np.full((1500, 1, 64, 64), 77, dtype=np.uint8), no_values(1500), no_values(1500)
    )
    assert constant["all"] == {"mean": [77 / 255], "std": [0.0]}
    assert pixel_statistics(images, np.full(3000, 2), no_values(3000)) == {"without_fold": {}}, "no train"


def test_counts() -> None:
    label, split, fold = np.array([[0, 1, 1, 2, 0], [0, 0, 2, 2, -1], [0, 0, 0, 10, -1]])
    splits, folds = count_parts(label, split, fold, np.array(["b", "a", "", "b", "c"], dtype=object), 4)
    assert splits == {
        "train": {"samples": 2, "per_class": [1, 1, 0, 0]},
        "test": {"samples": 2, "per_class": [0, 1, 1, 0]},
    }
    assert folds == {
        "0": {"samples": 3, "per_class": [1, 2, 0, 0], "subjects": ["a", "b"]},
        "10": {"samples": 1, "per_class": [0, 0, 1, 0], "subjects": ["b"]},
    }


HEADER = b"index,source_id,label,class,split,subject,sequence,fold,copy_group\n"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"", "not a table of samples"),
        (b"\xff\xfe\x00", "not a table of samples"),
        (b"index,label\n0,0\n", "the column 'source_id' is missing"),
        (HEADER + b"0,a,x,a,,,,,0\n", "not a table of samples"),
        (HEADER + b"0,a,0,a,,,,1.5,0\n", "not a table of samples"),
    ],
)
def test_a_file_that_is_no_table(tmp_path: Path, text: bytes, fault: str) -> None:
    path = tmp_path / "faces.samples.csv"
    path.write_bytes(text)
    with refused(fault):
        read_samples(path)
