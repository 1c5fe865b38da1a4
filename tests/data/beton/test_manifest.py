from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferdist.data.audit import Pixels
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
        ("schema", None, "Expected `int`, got `null` - at `$.schema`"),
        ("samples", 0, "Expected `int` >= 1 - at `$.samples`"),
        ("samples", 10**4000, "Expected `int` <= 9007199254740992 - at `$.samples`"),
        ("samples", "60", "Expected `int`, got `str` - at `$.samples`"),
        ("samples", True, "Expected `int`, got `bool` - at `$.samples`"),
        ("bytes", 1.5, "Expected `int`, got `float` - at `$.bytes`"),
        ("sha256", "F" * 64, "- at `$.sha256`"),
        ("samples_sha256", "0" * 63, "- at `$.samples_sha256`"),
        ("name", 3, "Expected `str`, got `int` - at `$.name`"),
        ("name", "../x", "- at `$.name`"),
        ("name", "x\n", "- at `$.name`"),
        ("image", [1, 48, 48], "Expected `object`, got `array` - at `$.image`"),
        ("image.height", -1, "Expected `int` >= 1 - at `$.image.height`"),
        ("image.height", 10**9, "Expected `int` <= 32768 - at `$.image.height`"),
        ("image.width", None, "Expected `int`, got `null` - at `$.image.width`"),
        ("image.channels", 2, "Invalid enum value 2 - at `$.image.channels`"),
        ("image.channels", 1, "'statistics' must have a mean and std per channel (1)"),
        ("classes", [], "- at `$.classes`"),
        ("classes", ["a", 1], "Expected `str`, got `int` - at `$.classes[1]`"),
        ("classes", ["a"], "'per_class' must have a number per class (1)"),
        ("splits", [], "Expected `object`, got `array` - at `$.splits`"),
        ("folds.x", {"samples": 0, "per_class": [0, 0, 0], "subjects": []}, "- at `key` in `$.folds`"),
        ("statistics.without_fold", None, "Expected `object`, got `null` - at `$.statistics.without_fold`"),
        ("statistics.without_fold", {}, "'statistics.without_fold' must have the folds of 'folds'"),
        ("statistics.without_fold.0", None, "got `null` - at `$.statistics.without_fold[...]`"),
        ("statistics.all.std", [float("nan")] * 3, "JSON is malformed"),
        ("statistics.all.std", [10**400] * 3, "- at `$.statistics.all.std[0]`"),
        ("statistics.all.mean", [0.5, 0.5, 1.5], "Expected `float` <= 1.0 - at `$.statistics.all.mean[2]`"),
        ("audit", None, "Expected `object`, got `null` - at `$.audit`"),
        ("audit.copies.groups", -1, "Expected `int` >= 0 - at `$.audit.copies.groups`"),
        ("audit.folds.samples", [1], "- at `$.audit.folds.samples`"),
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
        with pytest.raises(DataError, match=f"missing required field `{key}`"):
            Manifest.load(manifest_path)


@pytest.mark.parametrize(
    "text",
    [
        b'{"schema":' + b"9" * 10**5 + b"}",
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 10**6,
        b'{"schema":' * 10**6,
        b"null",
        b"[1]",
        b'"text"',
    ],
)
def test_a_file_that_is_no_manifest(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "faces.json"
    path.write_bytes(text)
    with refused(r"faces\.json: not a manifest: "):
        Manifest.load(path)


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "faces.json"
    path.mkdir()
    with pytest.raises(DataError, match="cannot read the manifest: Is a directory"):
        Manifest.load(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DataError, match="cannot read the manifest: not a regular file"):
        Manifest.load(path)


def assert_moments(moments: dict[str, list[float]], images: np.ndarray) -> None:
    pixels = images.astype(np.float64) / 255
    np.testing.assert_allclose(moments["mean"], pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(moments["std"], pixels.std(axis=(0, 2, 3)), rtol=1e-12)


def test_statistics_are_those_of_the_training_pixels(faces: Make, videos: Make) -> None:
    dataset = faces(500, shape=(3, 9, 7))
    statistics = pixel_statistics(Pixels.of(dataset.images), dataset.split, dataset.fold)
    assert list(statistics) == ["train", "without_fold"]
    assert_moments(statistics["train"], dataset.images[dataset.split == 0])
    assert statistics["without_fold"] == {}
    dataset = videos(120, folds=5)
    fold = np.where(np.arange(120) == 7, -1, dataset.fold)  # one sample without a fold is in no training part
    statistics = pixel_statistics(Pixels.of(dataset.images), dataset.split, fold)
    for number in range(5):
        chosen = (fold >= 0) & (fold != number)
        assert_moments(statistics["without_fold"][str(number)], dataset.images[chosen])


def test_statistics_are_exact() -> None:
    images = np.full((3000, 1, 48, 48), 255, dtype=np.uint8)
    images[::2] = 0
    statistics = pixel_statistics(Pixels.of(images), no_values(3000), no_values(3000))
    assert statistics["all"] == {"mean": [0.5], "std": [0.5]}
    constant = pixel_statistics(
        Pixels.of(np.full((1500, 1, 64, 64), 77, dtype=np.uint8)), no_values(1500), no_values(1500)
    )
    assert constant["all"] == {"mean": [77 / 255], "std": [0.0]}
    no_train = pixel_statistics(Pixels.of(images), np.full(3000, 2), no_values(3000))
    assert no_train == {"without_fold": {}}


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
        *(
            (HEADER + b"0,a,0,a,,,,%s,0\n" % fold, "not a table of samples")
            for fold in (b"inf", b"9" * 20, b"1e300")
        ),
        (HEADER + b"0,a,9%s,a,,,,,0\n" % (b"9" * 30), "not a table of samples"),
    ],
)
def test_a_file_that_is_no_table(text: bytes, fault: str) -> None:
    with refused(fault):
        read_samples(text, Path("faces.samples.csv"))
