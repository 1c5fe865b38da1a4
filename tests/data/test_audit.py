from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ferdist.data.audit import Pixels, Summary
from ferdist.data.audit import audit as audit_pixels
from ferdist.data.ckplus import read_ckplus
from ferdist.data.record import FaceDataset
from ferdist.data.synthetic import synthesize


def audit(dataset: FaceDataset) -> Summary:
    return audit_pixels(dataset, Pixels.of(dataset.images))


def make_dataset(
    kinds: list[int], labels: list[int], split: list[int], fold: list[int] | None = None
) -> FaceDataset:
    """Samples of the same kind have the same pixels."""
    pictures = np.random.default_rng(0).integers(0, 256, (max(kinds) + 1, 1, 6, 6), dtype=np.uint8)
    names = [str(row) for row in range(len(kinds))]
    dataset = FaceDataset.of("mine", pictures[kinds], labels, ("a", "b"), names, split=split)
    return dataset if fold is None else replace(dataset, fold=np.array(fold))


def test_copies_conflicts_and_leaks_between_splits() -> None:
    dataset = make_dataset(
        kinds=[0, 1, 0, 2, 1, 2, 3, 0, 4],
        labels=[0, 0, 0, 1, 1, 1, 0, 0, 1],
        split=[0, 0, 0, 1, 1, 2, 2, 2, 0],
    )
    group = Pixels.of(dataset.images).copy_group
    assert group.dtype == np.int64
    assert group.tolist() == [0, 1, 0, 3, 1, 3, 6, 0, 8]
    assert json.loads(json.dumps(audit(dataset))) == {
        "unique_images": 5,
        "copies": {"groups": 3, "samples": 7},
        "conflicting_labels": {"groups": 1, "samples": 2},
        "near_constant": {"samples": 0, "indices": []},
        "equalised": False,
        "leaks": {"val_in_train": 1, "test_in_train_or_val": 2, "across_folds": 0},
    }


def test_leaks_across_folds() -> None:
    dataset = make_dataset([0, 0, 1, 1, 2, 2], [0] * 6, [-1] * 6, fold=[0, 1, 2, 2, 0, -1])
    assert audit(dataset)["leaks"] == {
        "val_in_train": 0,
        "test_in_train_or_val": 0,
        "across_folds": 2,
    }


def test_near_constant_images() -> None:
    dataset = make_dataset([0, 1, 2], [0] * 3, [0] * 3)
    dataset.images[1] = 30
    dataset.images[2] = 30
    dataset.images[2, 0, 0, 0] = 36  # standard deviation 0.99
    assert audit(dataset)["near_constant"] == {"samples": 2, "indices": [1, 2]}


def test_equalised_images_are_noticed() -> None:
    """Drawn faces, and the same with their histograms equalised."""
    drawn = synthesize(70, seed=1)
    equal = [np.asarray(ImageOps.equalize(Image.fromarray(image[0])))[None] for image in drawn.images]
    assert not audit(drawn)["equalised"]
    assert audit(replace(drawn, images=np.stack(equal)))["equalised"]


def test_real_ckplus_has_no_copies(real_data: Path) -> None:
    summary = audit(read_ckplus(real_data / "ckplus48.zip"))
    assert summary["unique_images"] == 981
    assert summary["copies"]["groups"] == 0


def test_parts_that_are_smaller_than_the_step_between_the_samples_looked_at() -> None:
    """As in a set of more than 2,000 images for each of a page."""
    images = np.random.default_rng(0).integers(0, 256, (8001, 1, 4, 4), dtype=np.uint8)
    pixels, whole = Pixels(images.shape), Pixels.of(images)
    for start in range(0, len(images), 3):
        pixels.add(images[start : start + 3])
    assert pixels.equalised == whole.equalised
    assert np.array_equal(pixels.sums, whole.sums)
