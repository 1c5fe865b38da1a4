from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ferdist.data.beton import open_beton, write_beton
from ferdist.data.ferplus import FERPLUS_CLASSES, VOTES, ferplus_labels, read_ferplus
from ferdist.data.record import FER2013_CLASSES, FaceDataset, Integers
from ferdist.errors import DataError
from tests.data.files import HARMLESS, VOTE_COLUMNS, VOTED, refused

USAGES = ("Training", "PublicTest", "PrivateTest")
FER2013_OF_FERPLUS = (6, 3, 5, 4, 0, 1, 2)
"""FER2013's label of each FER+ class but contempt."""


def make_pair(rows: int = 60, agreeing: float = 0.8) -> tuple[FaceDataset, pd.DataFrame]:
    """A data set as fer2013.csv gives it, and the fer2013new.csv that belongs to it."""
    rng = np.random.default_rng(0)
    voted = rng.integers(0, 7, rows)
    labels = np.array(FER2013_OF_FERPLUS, dtype=np.int64)[voted]
    wrong = rng.permutation(rows) >= agreeing * rows
    labels[wrong] = (labels[wrong] + 1) % 7
    votes = np.zeros((rows, 10), dtype=np.int64)
    votes[np.arange(rows), voted] = 6
    votes[np.arange(rows), (voted + rng.integers(1, 9, rows)) % 10] += 4
    split = np.sort(rng.integers(0, 3, rows))
    table = pd.DataFrame(votes, columns=VOTED)
    table.insert(0, "Image name", [f"fer{2 * row:07}.png" for row in range(rows)])
    table.insert(0, "Usage", [USAGES[code] for code in split])
    return make_dataset(labels, split), table


def make_dataset(labels: Integers, split: Integers) -> FaceDataset:
    images = np.arange(len(labels) * 4, dtype=np.int64).astype(np.uint8).reshape(-1, 1, 2, 2)
    names = [f"line {row + 2}" for row in range(len(labels))]
    sources = {"fer2013.csv": "0" * 64}
    return FaceDataset.of("fer2013", images, labels, FER2013_CLASSES, names, split=split, sources=sources)


def write(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "fer2013new.csv"
    table.to_csv(path, index=False)
    return path


# The join


def test_a_pair_is_joined_row_by_row_and_comes_back_from_samples_csv(tmp_path: Path) -> None:
    dataset, table = make_pair()
    table.loc[3, "Image name"] = None
    columns = read_ferplus(write(table, tmp_path), dataset)
    assert list(columns.columns) == ["image_name", *VOTE_COLUMNS]
    assert columns["image_name"][2:6].tolist() == ["fer0000004.png", "", "fer0000008.png", "fer0000010.png"]
    assert (columns[VOTE_COLUMNS].to_numpy() == table[VOTED].to_numpy()).all()
    assert set(columns[VOTE_COLUMNS].dtypes) == {np.dtype(np.int64)}
    samples = open_beton(write_beton(dataset, tmp_path, extra_columns=columns)).samples
    assert samples["image_name"].isna().tolist() == [row == 3 for row in range(60)]
    assert samples["image_name"][5] == "fer0000010.png"
    for written, read in zip(ferplus_labels(columns), ferplus_labels(samples), strict=True):
        assert (written == read).all()
    assert (ferplus_labels(samples).majority == table[VOTED].to_numpy().argmax(axis=1)).all()


VARIANTS = HARMLESS | {
    "other order of columns": lambda text: "\n".join(
        ",".join(reversed(line.split(","))) for line in text.splitlines()
    )
}


@pytest.mark.parametrize("name", VARIANTS)
def test_harmless_variants_read_the_same(tmp_path: Path, name: str) -> None:
    dataset, table = make_pair()
    path = write(table, tmp_path)
    expected = read_ferplus(path, dataset)
    path.write_bytes(VARIANTS[name](path.read_text()).encode())
    pd.testing.assert_frame_equal(read_ferplus(path, dataset), expected)


def test_image_folders_are_refused(tmp_path: Path) -> None:
    dataset, table = make_pair()
    names = [f"train/angry/Training_{row}.jpg" for row in range(60)]
    with pytest.raises(DataError, match=r"image folders have lost the order of the rows; .*fer2013\.csv"):
        read_ferplus(write(table, tmp_path), dataclasses.replace(dataset, source_id=names))


@pytest.mark.parametrize("rows", [slice(0, 59), slice(1, 60), [*range(60), 59]])
def test_another_number_of_rows_is_refused(tmp_path: Path, rows: slice | list[int]) -> None:
    dataset, table = make_pair()
    path = write(table.iloc[rows], tmp_path)
    with pytest.raises(DataError, match=r"new\.csv: (59|61) rows, but fer2013\.csv has 60"):
        read_ferplus(path, dataset)


@pytest.mark.parametrize("usage", ["PrivateTest", "Test", ""])
def test_the_first_row_of_another_usage_is_named(tmp_path: Path, usage: str) -> None:
    dataset, table = make_pair()
    table.loc[[4, 7], "Usage"] = usage
    with pytest.raises(DataError, match=rf"Usage of row 5 is '{usage}', but of line 6 in .*'Training'"):
        read_ferplus(write(table, tmp_path), dataset)


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        ({"sadness": "x"}, "row 9: sadness is 'x', not a number of votes from 0 to 10"),
        ({"NF": ""}, "row 9: NF is ''"),
        ({"fear": "1.5"}, r"row 9: fear is '1\.5'"),
        ({"fear": "-1"}, "row 9: fear is '-1'"),
        ({"fear": "11"}, "row 9: fear is '11'"),
        ({"fear": "inf"}, "row 9: fear is 'inf'"),
        (dict.fromkeys(VOTED, 0), "row 9 has 0 votes, not 1 to 10"),
        (dict.fromkeys(VOTED, 2), "row 9 has 20 votes, not 1 to 10"),
    ],
)
def test_votes_that_cannot_be(tmp_path: Path, votes: dict[str, object], message: str) -> None:
    dataset, table = make_pair()
    table = table.astype(object)
    for column, value in votes.items():
        table.loc[8, column] = value
    with refused(rf"fer2013new\.csv: {message}"):
        read_ferplus(write(table, tmp_path), dataset)


@pytest.mark.parametrize(("agreeing", "passes"), [(0.5, True), (0.48, False), (0.1, False)])
def test_half_of_the_labels_must_agree(tmp_path: Path, agreeing: float, passes: bool) -> None:
    dataset, table = make_pair(rows=600, agreeing=agreeing)
    path = write(table, tmp_path)
    if passes:
        assert len(read_ferplus(path, dataset)) == 600
    else:
        with pytest.raises(DataError, match=rf"rows 1 to 600 .* for {agreeing:.1%}, not for at least 50%"):
            read_ferplus(path, dataset)
        table[VOTED] = [0] * 9 + [10]  # no faces
        with pytest.raises(DataError, match=r"for 0\.0%, not for at least 50%"):
            read_ferplus(write(table, tmp_path), dataset)


def test_a_stretch_of_shifted_rows_is_seen(tmp_path: Path) -> None:
    """One row lost and another added later: the numbers of rows and most labels still agree."""
    dataset, table = make_pair(rows=6000, agreeing=0.7)
    dataset = dataclasses.replace(dataset, split=np.zeros(6000, dtype=np.int64))
    table["Usage"] = "Training"
    read_ferplus(write(table, tmp_path), dataset)
    order = [*range(3000), *range(3001, 4501), 3000, *range(4501, 6000)]
    with pytest.raises(DataError, match=r"in rows 3001 to 4000 .* for 1\d\.\d%, not for at least 33%"):
        read_ferplus(write(table.iloc[order], tmp_path), dataset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "cannot read it: No such file"),
        (b"", "not a table"),
        (b"Usage,Image name,neutral\nTraining,x,1\n", "column 'happiness' is missing"),
        (b"emotion,pixels,Usage\n0,1 2 3,Training\n", "column 'Image name' is missing"),
        (b"a,b\n1,2\n1,2,3\n", "not a table"),
        (np.random.default_rng(0).bytes(10_000), "not a table|column 'Usage' is missing"),
    ],
)
def test_files_that_are_not_ferplus(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "fer2013new.csv"
    if data is not None:
        path.write_bytes(data)
    with refused(rf"fer2013new\.csv: ({message})"):
        read_ferplus(path, make_pair()[0])


# The labels


@pytest.mark.parametrize(
    ("votes", "majority", "shares"),
    [
        # neutral happy surprise sad angry disgust fear contempt unknown nf
        ([0, 10, 0, 0, 0, 0, 0, 0, 0, 0], "happy", {"happy": 10}),
        ([9, 0, 0, 1, 0, 0, 0, 0, 0, 0], "neutral", {"neutral": 9}),  # a single vote is an outlier
        ([0, 0, 0, 0, 0, 0, 0, 6, 4, 0], "contempt", {"contempt": 6}),
        ([4, 0, 0, 1, 3, 2, 0, 0, 0, 0], None, {"neutral": 4, "angry": 3}),  # 7 of 9 are enough
        ([6, 2, 0, 2, 0, 0, 0, 0, 0, 0], "neutral", {"neutral": 6, "happy": 2, "sad": 2}),
        ([5, 1, 1, 1, 0, 0, 0, 0, 2, 0], "neutral", {"neutral": 5}),  # unknown comes next
        ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], None, {"neutral": 5, "happy": 5}),  # half is no majority
        ([4, 3, 3, 0, 0, 0, 0, 0, 0, 0], None, {"neutral": 4, "happy": 3, "surprise": 3}),
        ([4, 2, 2, 2, 0, 0, 0, 0, 0, 0], None, {}),  # four classes are too many
        ([2, 2, 2, 2, 2, 0, 0, 0, 0, 0], None, {}),
        ([5, 0, 0, 0, 0, 0, 0, 0, 5, 0], None, {}),  # half of the votes are not enough
        ([4, 4, 0, 0, 0, 0, 0, 0, 0, 2], None, {"neutral": 4, "happy": 4}),
        ([3, 3, 0, 0, 0, 0, 0, 0, 3, 1], None, {"neutral": 3, "happy": 3}),  # equal votes: classes first
        ([3, 0, 0, 0, 0, 0, 0, 0, 4, 3], None, {}),
        ([2, 0, 0, 0, 0, 0, 0, 0, 8, 0], None, {}),
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 10], None, {}),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None, {}),  # nothing but outliers
    ],
)
def test_known_labels(votes: list[int], majority: str | None, shares: dict[str, int]) -> None:
    labels = ferplus_labels(pd.DataFrame([votes], columns=VOTE_COLUMNS))
    assert labels.majority.tolist() == [-1 if majority is None else FERPLUS_CLASSES.index(majority)]
    expected = np.array([shares.get(name, 0) for name in FERPLUS_CLASSES]) / max(1, sum(shares.values()))
    assert labels.distribution[0] == pytest.approx(expected, abs=1e-7)
    assert labels.majority.dtype == np.int64
    assert labels.distribution.dtype == np.float32


def soft_label(votes: list[int]) -> list[float]:
    """The rule of the published code, one class after the other."""
    left = {vote: count for vote, count in enumerate(votes) if count > 1}
    total = sum(left.values())
    taken: dict[int, int] = {}
    while left and sum(taken.values()) < 0.75 * total and len(taken) < 3:
        level = [vote for vote, count in left.items() if count == max(left.values())]
        taken |= {vote: left.pop(vote) for vote in level if vote < 8}
        if level[-1] >= 8:
            break
    if sum(taken.values()) <= 0.5 * total or len(taken) > 3:
        return [0.0] * 8
    return [taken.get(vote, 0) / sum(taken.values()) for vote in range(8)]


def test_distributions_follow_the_published_rule() -> None:
    rng = np.random.default_rng(1)
    chances = rng.dirichlet(np.full(10, 0.4), 5000)
    votes = np.array([rng.multinomial(10, chance) for chance in chances])
    labels = ferplus_labels(pd.DataFrame(votes, columns=VOTE_COLUMNS))
    expected = np.array([soft_label(row) for row in votes.tolist()])
    assert labels.distribution == pytest.approx(expected, abs=1e-7)
    has_distribution = labels.distribution.sum(axis=1) > 0
    has_majority = labels.majority >= 0
    assert has_distribution[has_majority].all()
    assert 0 < has_majority.sum() < has_distribution.sum() < 5000
    assert (labels.distribution.argmax(axis=1) == labels.majority)[has_majority].all()


def test_samples_without_votes() -> None:
    with pytest.raises(DataError, match=r"no column votes_neutral.*--ferplus fer2013new\.csv"):
        ferplus_labels(pd.DataFrame({"index": [0]}))
    for votes in ("x", 0.5, float("nan"), -1, 2**62):
        with refused("votes_neutral of the table of samples is not of integers from 0 to 10"):
            ferplus_labels(pd.DataFrame({f"votes_{vote}": [votes] for vote in VOTES}))


# Real data


@pytest.fixture(scope="module")
def real_pair(real_data: Path) -> tuple[Path, FaceDataset]:
    """The real votes with labels and splits that belong to them."""
    path = real_data / "fer2013new.csv"
    table = pd.read_csv(path)
    labels = np.array(FER2013_OF_FERPLUS)[table[VOTED[:7]].to_numpy().argmax(axis=1)]
    return path, make_dataset(labels.astype(np.int64), table["Usage"].map(USAGES.index).to_numpy(np.int64))


def test_real_votes(real_pair: tuple[Path, FaceDataset]) -> None:
    path, dataset = real_pair
    columns = read_ferplus(path, dataset)
    assert len(columns) == 35887
    assert (columns["image_name"] == "").sum() == 173
    assert columns["image_name"][5] == "fer0000005.png"
    assert columns[VOTE_COLUMNS].sum(axis=1).value_counts().to_dict() == {10: 35886, 9: 1}
    labels = ferplus_labels(columns)
    parts = [dataset.split == code for code in range(3)]
    assert [(labels.majority[part] >= 0).sum() for part in parts] == [25060, 3199, 3153]
    assert [(labels.distribution[part] > 0).any(axis=1).sum() for part in parts] == [27956, 3505, 3505]
    counts = np.bincount(labels.majority[labels.majority >= 0])
    assert counts.tolist() == [11012, 9045, 3960, 3749, 2660, 161, 677, 148]
