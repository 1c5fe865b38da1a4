"""From raw files to a beton, and on to a run, as the command line does it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ferdist.config import load_config
from ferdist.data import prepare
from ferdist.data.beton import labels_of, open_beton
from ferdist.data.ferplus import FERPLUS_CLASSES
from ferdist.errors import DataError
from ferdist.training.run import run
from tests.conftest import ROOT, TINY
from tests.data.files import VOTED, largest_file, refused

FERPLUS_OF_FER2013 = (4, 5, 6, 1, 3, 2, 0)


@pytest.fixture
def raw_pair(tmp_path: Path) -> tuple[Path, Path]:
    """Drawn faces as fer2013.csv, and votes for them as fer2013new.csv."""
    source = prepare.synthetic(tmp_path / "raw", images=350, seed=2, format="fer2013-csv")
    rows = pd.read_csv(source)
    votes = np.zeros((len(rows), 10), dtype=int)
    votes[np.arange(len(rows)), np.array(FERPLUS_OF_FER2013)[rows["emotion"]]] = 7
    votes[:, 7] += 3
    votes[::10] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 10]
    table = pd.DataFrame(votes, columns=VOTED)
    table.insert(0, "Image name", [f"fer{i:07}.png" for i in range(len(rows))])
    table.insert(0, "Usage", rows["Usage"])
    table.to_csv(tmp_path / "fer2013new.csv", index=False)
    return source, tmp_path / "fer2013new.csv"


@pytest.mark.parametrize("layout", prepare.Layout)
def test_a_disk_that_takes_no_more_keeps_nothing(tmp_path: Path, layout: prepare.Layout) -> None:
    with largest_file(100), refused("cannot write .*File too large"):
        prepare.synthetic(tmp_path, images=90, format=layout)
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_line(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 300)
    for convert in (
        lambda: prepare.synthetic(long, images=90, format=prepare.Layout.FER2013_CSV),
        lambda: prepare.fer2013(long, tmp_path),
        lambda: prepare.ckplus(long, tmp_path),
    ):
        with refused("File name too long; check the path, its permissions and the disk"):
            convert()
    with refused("cannot read it: File name too long"):
        open_beton(long.with_suffix(".beton"))


@pytest.mark.parametrize("kind", ["ferplus-majority", "ferplus-soft"])
def test_a_run_learns_and_is_scored_by_ferplus_votes(
    raw_pair: tuple[Path, Path], tmp_path: Path, kind: str
) -> None:
    source, votes = raw_pair
    path = prepare.fer2013(source, tmp_path / "data", ferplus=votes)
    beton = open_beton(path)
    assert beton.samples["image_name"][3] == "fer0000003.png"
    assert "fer2013new.csv" in beton.manifest.sources
    config = load_config(
        ROOT / "configs" / "base.yaml",
        [*TINY, f"data.path={path}", f"run_dir={tmp_path / 'run'}", "train.epochs=1", f"data.labels={kind}"],
    )
    results = json.loads(run(config).read_text())
    assert tuple(results["classes"]) == FERPLUS_CLASSES
    entry = results["evaluations"][0]
    val = beton.indices("val")
    assert entry["samples"] == int((val % 10 != 0).sum()), "what has no majority is not scored"
    assert np.array(entry["confusion"]).shape == (8, 8)


def test_the_folder_is_made_and_a_file_in_its_place_is_named(tmp_path: Path) -> None:
    assert prepare.synthetic(tmp_path / "a" / "b", images=70).is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make this folder"):
        prepare.synthetic(tmp_path / "file", images=70)


def test_every_data_set_stands_in_the_docs() -> None:
    page = (ROOT / "docs" / "data.md").read_text()
    assert [name for name in prepare.DATA_SETS if f"| `prepare {name}` |" not in page] == []


def test_ferplus_keeps_what_has_a_most_voted_class(raw_pair: tuple[Path, Path], tmp_path: Path) -> None:
    source, votes = raw_pair
    beton = open_beton(prepare.ferplus(source, votes, tmp_path / "data"))
    rows = pd.read_csv(source)
    voted = np.arange(len(rows)) % 10 != 0  # "not a face" has all votes of the others
    assert beton.manifest.name == "ferplus"
    assert tuple(beton.manifest.classes) == FERPLUS_CLASSES
    assert beton.label.tolist() == np.array(FERPLUS_OF_FER2013)[rows["emotion"][voted]].tolist()
    assert beton.samples["source_id"][0] == "line 3"
    assert beton.samples["image_name"][0] == "fer0000001.png"
    assert set(beton.manifest.sources) == {"fer2013.csv", "fer2013new.csv"}
    for kind in ("ferplus-majority", "ferplus-soft", "ferplus-voted"):
        assert np.array_equal(labels_of(beton, kind).label, beton.label), "here all of them have a majority"
