"""Soft labels: what teachers say is mixed with the labels, and what does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ferdist.config import Config
from ferdist.data.beton import Beton, labels_of, open_beton
from ferdist.errors import ConfigError, DataError
from ferdist.evaluation.predictions import Predictions
from ferdist.training.run import run
from ferdist.training.soft import soften


@pytest.fixture(scope="module")
def beton(beton_path: Path) -> Beton:
    return open_beton(beton_path)


def teacher(beton: Beton, seed: int, samples: int | None = None) -> Predictions:
    """Random probabilities for training samples."""
    index = beton.indices("train")[:samples]
    odds = np.random.default_rng(seed).random((len(index), 7)).astype(np.float32)
    return Predictions(index, beton.label[index], odds / odds.sum(1, keepdims=True), beton.manifest.sha256)


def test_targets_are_mixed_where_every_teacher_speaks(beton: Beton, tmp_path: Path) -> None:
    labels = labels_of(beton, "own")
    one, two = teacher(beton, 1), teacher(beton, 2, samples=50)
    one.save(tmp_path / "one.npz")
    two.save(tmp_path / "two.npz")
    mixed = soften(labels, f"{tmp_path}/one.npz, {tmp_path}/two.npz", 0.7, beton)
    both = two.index
    mean = (one.probabilities[:50] + two.probabilities) / 2
    np.testing.assert_allclose(mixed.targets[both], 0.3 * labels.targets[both] + 0.7 * mean, atol=1e-6)
    np.testing.assert_allclose(mixed.targets.sum(1), 1, atol=1e-5)
    others = np.setdiff1d(np.arange(len(labels.label)), both)
    assert np.array_equal(mixed.targets[others], labels.targets[others])
    assert np.array_equal(mixed.label, labels.label), "what a sample is scored by stays"
    assert soften(labels, "", 0.7, beton) is labels


def test_what_does_not_fit_is_refused(beton: Beton, tmp_path: Path) -> None:
    labels, good, file = labels_of(beton, "own"), teacher(beton, 1), tmp_path / "bad.npz"
    for bad, message in (
        (Predictions(good.index, good.label, good.probabilities, "0" * 64), "are not for"),
        (
            Predictions(good.index, good.label % 6, good.probabilities[:, :6], good.beton_sha256),
            "classes differ",
        ),
        (Predictions(good.index + 9999, good.label, good.probabilities, good.beton_sha256), "does not have"),
        (Predictions(good.index, good.label, good.probabilities / 2, good.beton_sha256), "not probabilities"),
    ):
        bad.save(file)
        with pytest.raises(DataError, match=rf"data.soft_labels: .*bad\.npz: .*{message}"):
            soften(labels, str(file), 0.7, beton)


def test_a_run_learns_from_a_teacher(beton: Beton, tiny: Callable[..., Config], tmp_path: Path) -> None:
    """From a teacher that always says `happy`, and nothing else."""
    index = beton.indices("train")
    always = np.zeros((len(index), 7), dtype=np.float32)
    always[:, 3] = 1.0
    Predictions(index, beton.label[index], always, beton.manifest.sha256).save(tmp_path / "teacher.npz")
    config = tiny(
        f"data.soft_labels={tmp_path / 'teacher.npz'}", "train.soft_weight=1", "train.label_smoothing=0"
    )
    run(config)
    said = Predictions.load(Path(config.run_dir) / "predictions" / "synthetic-val-best.npz")
    assert (said.probabilities.argmax(1) == 3).all()


def test_shares_and_folds_exclude_each_other(tiny: Callable[..., Config]) -> None:
    for overrides, message in (
        (("data.val_share=0.6",), r"data.val_share is 0.6: it must lie in \[0, 0.5\]"),
        (("data.val_share=0.1", "data.fold=0"), "hold out a share of train or a fold"),
        (("train.soft_weight=1.5",), r"train.soft_weight is 1.5: it must lie in \[0, 1\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            tiny(*overrides)
