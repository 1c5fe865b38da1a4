"""Really occluded and turned faces: generated csv pairs and lists, whose answers are worked out apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ferdist.cli import main
from ferdist.config import Config
from ferdist.data.beton import labels_of, open_beton
from ferdist.data.fer2013 import USAGE_SPLIT
from ferdist.data.ferplus import FERPLUS_CLASSES
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.record import FER2013_CLASSES, FaceDataset, Integers
from ferdist.data.synthetic import synthesize
from ferdist.errors import DataError
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.realfaces import listed_samples
from ferdist.training.run import run

VOTED = ("neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt")
COPIED = 2
"""How many of the occluded faces have a copy in train."""


def in_ferplus(label: int) -> int:
    """The FER+ label of a FER2013 label."""
    return FERPLUS_CLASSES.index(FER2013_CLASSES[label])


class Pair:
    """fer2013.csv, fer2013new.csv and the two lists for 210 drawn faces.

    Attributes:
        occluded: rows of the first list, two of them copies of training images and one without a majority.
        turned: rows of the second list.
        listed_label: the label that each row has in a list where it is in one.
    """

    def __init__(self, folder: Path) -> None:
        faces = synthesize(210, 5)
        test = np.flatnonzero(faces.split == 2)
        self.occluded, self.turned = test[1:20:2], test[4:16]
        images = faces.images.copy()
        images[self.occluded[:COPIED]] = images[np.flatnonzero(faces.split == 0)[:COPIED]]
        self.faces: FaceDataset = replace(faces, images=images)
        self.csv = write_fer2013_csv(self.faces, folder / "fer2013.csv")
        majority = np.array([in_ferplus(label) for label in faces.labels])
        majority[self.occluded[3]] = FERPLUS_CLASSES.index("contempt")
        self.listed_label: Integers = majority.copy()
        self.listed_label[self.occluded[5]] = (majority[self.occluded[5]] + 1) % 8
        votes = 10 * np.eye(8, dtype=int)[majority]
        votes[self.occluded[4]] = [5, 5, 0, 0, 0, 0, 0, 0]  # no majority
        table = pd.DataFrame(votes, columns=list(VOTED)).assign(unknown=0, NF=0)
        names = [f"fer{7 * row + 3:07}" for row in range(210)]
        table.insert(0, "Image name", [f"{name}.png" for name in names])
        table.loc[test[0], "Image name"] = None
        table.insert(0, "Usage", [list(USAGE_SPLIT)[code] for code in faces.split])
        self.votes = folder / "fer2013new.csv"
        table.to_csv(self.votes, index=False)
        self.occluded_list, self.pose_list = folder / "occlusion.txt", folder / "pose.txt"
        lines = [f"{self.listed_label[row]}_{names[row]}.png 8 3\r\n" for row in self.occluded[::-1]]
        self.occluded_list.write_bytes("".join(lines).encode())
        self.pose_list.write_text("".join(f"{majority[row]}/{names[row]}.jpg\n" for row in self.turned))
        out = folder / "prepared"
        prepare = ["prepare", "fer2013", "--source", str(self.csv), "--out", str(out)]
        assert main([*prepare, "--ferplus", str(self.votes)]) == 0
        self.beton = out / "fer2013.beton"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"))


def evaluated(tiny: Callable[..., Config], pair: Pair, *overrides: str) -> tuple[Path, dict[str, Any]]:
    """A trained run's predictions, and its entries of test by subset."""
    config = tiny("train.epochs=1", f"data.path={pair.beton}", *overrides)
    run(config)
    lists = ["--occluded-list", str(pair.occluded_list), "--pose-list", str(pair.pose_list)]
    assert main(["evaluate", config.run_dir, "--split", "test", *lists, "--device", "cpu"]) == 0
    results = json.loads((Path(config.run_dir) / "results.json").read_text())
    assert results["test_scorings"] == 1
    entries = {entry["subset"]: entry for entry in results["evaluations"] if entry["split"] == "test"}
    return Path(config.run_dir) / "predictions", entries


def test_seven_classes_are_scored_by_fer2013s_labels(tiny: Callable[..., Config], pair: Pair) -> None:
    folder, entries = evaluated(tiny, pair)
    whole = Predictions.load(folder / "fer2013-test-best.npz")
    right = dict(
        zip(whole.index, whole.probabilities.argmax(1) == pair.faces.labels[whole.index], strict=True)
    )
    for subset, rows in (
        ("occluded", pair.occluded),
        ("occluded_no_copies", pair.occluded[COPIED:]),
        ("turned", pair.turned),
    ):
        entry = entries[subset]
        assert entry["samples"] == len(rows)
        assert entry["accuracy"] == pytest.approx(np.mean([right[row] for row in rows]))
        assert (
            np.sum(entry["confusion"], 1).tolist()
            == np.bincount(pair.faces.labels[rows], minlength=7).tolist()
        )
    assert entries["all"]["samples"] == len(whole.index) > len(pair.occluded)
    stored = Predictions.load(folder / "fer2013-test-best-occluded.npz")
    assert np.array_equal(stored.index, pair.occluded)


def test_eight_classes_are_scored_by_the_lists_labels(tiny: Callable[..., Config], pair: Pair) -> None:
    """All listed faces count, also the one without a majority, which the whole of test leaves out."""
    folder, entries = evaluated(tiny, pair, "data.labels=ferplus-majority")
    stored = Predictions.load(folder / "fer2013-test-best-occluded.npz")
    assert np.array_equal(stored.index, pair.occluded)
    answers = stored.probabilities.argmax(1)
    assert entries["occluded"]["accuracy"] == np.mean(answers == pair.listed_label[pair.occluded])
    assert entries["occluded_no_copies"]["samples"] == len(pair.occluded) - COPIED
    counts = np.bincount(pair.listed_label[pair.occluded], minlength=8)
    assert np.sum(entries["occluded"]["confusion"], 1).tolist() == counts.tolist()
    assert entries["turned"]["samples"] == len(pair.turned)
    whole = Predictions.load(folder / "fer2013-test-best.npz")
    assert pair.occluded[4] not in whole.index
    shared, in_whole, in_list = np.intersect1d(whole.index, stored.index, return_indices=True)
    assert len(shared) == len(stored.index) - 1
    np.testing.assert_allclose(whole.probabilities[in_whole], stored.probabilities[in_list], atol=1e-5)
    differing = whole.label[in_whole] != stored.label[in_list]
    assert shared[differing].tolist() == [pair.occluded[5]]


def test_lists_that_do_not_fit(pair: Pair, beton_path: Path, tmp_path: Path) -> None:
    beton = open_beton(pair.beton)
    labels = labels_of(beton, "own")
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("1/fer0000003.jpg\n")  # row 0, which is in train
    with pytest.raises(DataError, match=r"fer0000003\.png is not a test image of .*fer2013\.beton: give"):
        listed_samples(beton, wrong, labels)
    drawn = open_beton(beton_path)
    with pytest.raises(
        DataError, match=r"no FER\+ image names, which occlusion\.txt lists: run `ferdist prep"
    ):
        listed_samples(drawn, pair.occluded_list, labels_of(drawn, "own"))
