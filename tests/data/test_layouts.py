"""The three layouts of CK+ hold the same data, so they must give the same beton."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ferdist.data import prepare
from ferdist.data.beton import open_beton


@pytest.mark.slow
def test_three_layouts_of_drawn_ckplus_give_the_same_beton(tmp_path: Path) -> None:
    raw = {
        kind: prepare.synthetic(tmp_path / kind, images=240, seed=3, format=kind)
        for kind in ("ckplus48", "ckplus-h5", "ckplus-original")
    }
    betons = {}
    for kind, source in raw.items():
        subjects_from = raw["ckplus48"] if kind == "ckplus-h5" else None
        out = tmp_path / f"{kind}-beton"
        betons[kind] = open_beton(prepare.ckplus(source, out, folds=5, subjects_from=subjects_from))
    first, *others = betons.values()
    assert len(first.label) >= 240
    assert set(first.fold) == {0, 1, 2, 3, 4}
    for other in others:
        assert other.manifest.sha256 == first.manifest.sha256, "images, labels, subjects and folds alike"
        assert other.manifest.folds == first.manifest.folds
        assert np.array_equal(other.sequence, first.sequence)


@pytest.mark.slow
def test_the_real_h5_file_gives_the_real_ckplus48s_folds(tmp_path: Path, real_data: Path) -> None:
    ck48 = open_beton(prepare.ckplus(real_data / "ckplus48.zip", tmp_path / "ck48"))
    h5 = open_beton(
        prepare.ckplus(real_data / "CK_data.h5", tmp_path / "h5", subjects_from=real_data / "ckplus48.zip")
    )
    assert h5.manifest.sha256 == ck48.manifest.sha256
    assert h5.manifest.folds == ck48.manifest.folds
    assert h5.manifest.samples == 981
