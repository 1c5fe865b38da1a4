from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from ferdist.data.beton import Beton, labels_of, open_beton
from ferdist.data.ferplus import FERPLUS_CLASSES
from ferdist.errors import DataError
from tests.data.beton import Make, Write
from tests.data.files import VOTE_COLUMNS


@pytest.fixture
def voted(faces: Make, write: Write) -> Beton:
    """Four samples: clearly happy; happy or sad; unknown; fear."""
    table = pd.DataFrame(
        [
            [0, 10, 0, 0, 0, 0, 0, 0, 0, 0],
            [0, 5, 0, 5, 0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 10, 0],
            [0, 0, 0, 0, 0, 0, 8, 2, 0, 0],
        ],
        columns=VOTE_COLUMNS,
    )
    dataset = dataclasses.replace(faces(4), split=np.zeros(4, dtype=np.int64))
    return open_beton(write(dataset, extra_columns=table))


def test_own_labels_are_the_betons(faces: Make, write: Write) -> None:
    beton = open_beton(write(faces(30)))
    labels = labels_of(beton, "own")
    assert labels.classes == tuple(beton.manifest.classes)
    assert np.array_equal(labels.targets.argmax(1), beton.label)
    assert np.array_equal(labels.learnable(np.arange(30)), np.arange(30))
    assert np.array_equal(labels.scorable(np.arange(30)), np.arange(30))


def test_a_majority_is_learned_and_what_has_none_is_left_out(voted: Beton) -> None:
    labels = labels_of(voted, "ferplus-majority")
    assert labels.classes == FERPLUS_CLASSES
    assert labels.label.tolist() == [1, -1, -1, 6]
    assert labels.learnable(np.arange(4)).tolist() == [0, 3]
    assert labels.scorable(np.arange(4)).tolist() == [0, 3]
    assert labels.targets[3].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_votes_are_learned_as_shares_and_scored_by_their_majority(voted: Beton) -> None:
    labels = labels_of(voted, "ferplus-soft")
    assert labels.learnable(np.arange(4)).tolist() == [0, 1, 3]
    assert labels.scorable(np.arange(4)).tolist() == [0, 3]
    assert labels.targets[1].tolist() == [0, 0.5, 0, 0.5, 0, 0, 0, 0]
    assert labels.targets[2].sum() == 0
    with pytest.raises(DataError, match=r"choose other data\.labels"):
        labels.scorable(np.array([1, 2]))
    by_most_votes = labels_of(voted, "ferplus-voted")
    assert by_most_votes.label.tolist() == [1, 1, -1, 6]
    assert np.array_equal(by_most_votes.targets, labels.targets)
    assert by_most_votes.agreed is not None
    assert by_most_votes.agreed.tolist() == [True, False, False, True]


def test_without_votes_the_way_to_get_them_is_named(faces: Make, write: Write) -> None:
    with pytest.raises(DataError, match=r"faces\.beton: .*--ferplus fer2013new\.csv"):
        labels_of(open_beton(write(faces(10))), "ferplus-soft")
