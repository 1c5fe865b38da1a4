"""Published lists in their six forms; the real ones are counted where they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ferdist.data.namelists import find_name_lists, read_name_list
from ferdist.errors import DataError
from tests.data.files import VOTED, refused, write_files

HASHES = "83dac9d7eec7fb0bfef79b4d35ddc69a6f7fb458d3bffc4e78f33ad9", "ab" * 28


@pytest.mark.parametrize(
    ("name", "content", "data", "subset", "label"),
    [
        (
            "occlusion_ferplus_list.txt",
            "2_fer0033359.png 8 2\r\n0_fer0033508.png 8 3\r\n\r\n",
            *("ferplus", "occluded", {"fer0033359": 2, "fer0033508": 0}),
        ),
        (
            "pose_30_ferplus_list.txt",
            "7/fer0032226.jpg\n1/fer0032227.jpg",
            *("ferplus", "turned", {"fer0032226": 7, "fer0032227": 1}),
        ),
        (
            "rafdb_occlusion_list.txt",
            "test_0003_aligned 3 4\r\ntest_2464_aligned 6 2",
            *("rafdb", "occluded", {"test_0003": 3, "test_2464": 6}),
        ),
        (
            "val_raf_db_list_45.txt",
            "0/test_0004_aligned.jpg\n4/test_0006_aligned.jpg\n",
            *("rafdb", "turned45", {"test_0004": 0, "test_0006": 4}),
        ),
        (
            "any.txt",
            f"val/0/{HASHES[0]}/\nval/7/{HASHES[1]}/\n",
            *("affectnet", "occluded", {HASHES[0]: 0, HASHES[1]: 7}),
        ),
        (
            "pose_45_affectnet_list.txt",
            f"7/{HASHES[0]}/8.jpg\n2/{HASHES[1]}/8.jpg\n",
            *("affectnet", "turned45", {HASHES[0]: 7, HASHES[1]: 2}),
        ),
        ("my.txt", f"2/{HASHES[0]}.jpg", *("affectnet", "turned", {HASHES[0]: 2})),
    ],
)
def test_forms(
    tmp_path: Path, name: str, content: str, data: str, subset: str, label: dict[str, int]
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    names = read_name_list(tmp_path / name)
    assert (names.data, names.subset, names.label) == (data, subset, label)
    assert names.lines == len(label)
    assert max(label.values()) < len(names.classes)


def test_a_name_twice_with_one_label_counts_as_two_lines(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "test_2464_aligned 6 2\ntest_0003_aligned 3 4\ntest_2464_aligned 6 2\n"
    )
    names = read_name_list(tmp_path / "list.txt")
    assert (names.lines, dict(names.label)) == (3, {"test_2464": 6, "test_0003": 3})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read it"),
        (b"", "no image in it"),
        (b"\n \r\n", "no image in it"),
        (b"\xff\xfe", "not a text file"),
        (b"fer0032226.jpg\n", r"line 1: 'fer0032226.jpg' is not a line of a published list, such as 0_fer"),
        (b"train_00001.jpg 5\n", r"line 1: 'train_00001.jpg 5' is not a line of a published list"),
        (b"1/fer0032227.jpg\n8/fer0032226.jpg\n", "line 2: label 8 is not from 0 to 7"),
        (b"test_0003_aligned 7 4\n", "line 1: label 7 is not from 0 to 6"),
        (
            b"1/fer0032226.jpg\n1_fer0032227.png 8 1\n",
            "line 2: .* is not like the first line, 0/fer0032226.jpg",
        ),
        (b"1/fer0032226.jpg\n\n1/test_0004_aligned.jpg\n", "line 3: .* is not like the first line, 0/fer"),
        (f"1/{HASHES[0]}.jpg\n1/{HASHES[0][1:]}.jpg\n".encode(), "line 2: .* is not like the first line"),
        (b"1/fer0032226.jpg\n2/fer0032226.jpg\n", "line 2: fer0032226 has label 2, but 1 in a line before"),
        (b"\x1b[2J\n", r"line 1: '.x1b.2J' is not a line"),
    ],
)
def test_bad_lists(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "list.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"list\.txt: {message}") as caught:
        read_name_list(path)
    assert "give the published list" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_lists_in_a_folder_and_the_folders_in_it(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "pose_30_ferplus_list.txt": b"0/fer0032226.jpg\n",
            "RAF_DB_dir/val_raf_db_list.txt": b"0/test_0004_aligned.jpg\n",
            "RAF_DB_dir/val_raf_db_label.txt": b"0\n4\n",
            "RAF_DB_dir/readme.txt": b"This dir contains\n",
        },
    )
    assert [(o.data, o.subset) for o in find_name_lists(tmp_path)] == [
        ("ferplus", "turned"),
        ("rafdb", "turned"),
    ]
    (tmp_path / "empty").mkdir()
    with refused("empty: no published list in it or the folders in it, such as occlusion_ferplus_list.txt"):
        find_name_lists(tmp_path / "empty")
    with refused("none: cannot read it: No such file or directory; give the folder"):
        find_name_lists(tmp_path / "none")


# Real data


REAL = {
    ("ferplus", "occluded"): (605, 605),
    ("ferplus", "turned"): (1170, 1170),
    ("ferplus", "turned45"): (633, 633),
    ("rafdb", "occluded"): (735, 734),
    ("rafdb", "turned"): (1247, 1247),
    ("rafdb", "turned45"): (558, 558),
    ("affectnet", "occluded"): (683, 683),
    ("affectnet", "turned"): (1949, 1944),
    ("affectnet", "turned45"): (985, 983),
}
"""Lines and names."""


def test_real_lists(real_data: Path) -> None:
    lists = {(one.data, one.subset): one for one in find_name_lists(real_data)}
    if len(lists) < len(REAL):
        pytest.skip(f"{len(lists)} of the {len(REAL)} published lists in {real_data}")
    assert {key: (one.lines, len(one.label)) for key, one in lists.items()} == REAL
    for data in ("ferplus", "rafdb", "affectnet"):
        turned, more = lists[data, "turned"].label, lists[data, "turned45"].label
        assert more.items() <= turned.items()
    counts = Counter(lists["affectnet", "turned"].label.values())
    assert [counts[label] for label in range(8)] == [229, 200, 262, 261, 262, 261, 270, 199]
    counts = Counter(lists["rafdb", "occluded"].label.values())
    assert [counts[label] for label in range(7)] == [72, 35, 47, 236, 122, 31, 191]


@pytest.mark.parametrize(
    ("name", "agreeing"), [("occlusion_ferplus_list.txt", 594), ("pose_30_ferplus_list.txt", 1163)]
)
def test_real_ferplus_lists_name_test_images(real_data: Path, name: str, agreeing: int) -> None:
    listed = read_name_list(real_data / name).label
    table = pd.read_csv(real_data / "fer2013new.csv").set_index("Image name")
    rows = table.loc[[f"{image}.png" for image in listed]]
    assert len(rows) == len(listed)  # each name is there once
    assert set(rows["Usage"]) == {"PrivateTest"}
    votes = rows[VOTED[:8]].to_numpy()
    listed_votes = votes[np.arange(len(listed)), list(listed.values())]
    assert (listed_votes == votes.max(axis=1)).sum() == agreeing
