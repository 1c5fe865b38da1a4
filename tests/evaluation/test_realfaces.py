"""Really occluded and turned faces: generated data and lists, whose answers are worked out apart."""

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
from ferdist.data import prepare
from ferdist.data.beton import labels_of, open_beton, write_beton
from ferdist.data.fer2013 import USAGE_SPLIT
from ferdist.data.ferplus import FERPLUS_CLASSES
from ferdist.data.namelists import LISTED_CLASSES, NameList, read_name_list
from ferdist.data.rawformats import write_fer2013_csv
from ferdist.data.record import FER2013_CLASSES, SPLITS, FaceDataset, Integers
from ferdist.data.synthetic import synthesize
from ferdist.errors import DataError, RunError
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.published import REAL_FACES, real_faces_table
from ferdist.evaluation.realfaces import ListedFaces, listed_faces, lists_of_data
from ferdist.evaluation.records import read_results
from ferdist.reporting.networks import load_networks
from ferdist.reporting.pooled import pooled_run
from ferdist.training.run import run
from tests.data.field import (
    AFFECTNET_NUMBERS,
    RAFDB_NUMBERS,
    affectnet_hash,
    affectnet_tree,
    rafdb_tree,
    shown,
)

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
        command = ["prepare", "fer2013", "--source", str(self.csv), "--out", str(out)]
        assert main([*command, "--ferplus", str(self.votes)]) == 0
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
        assert entry["listed"]["labels"] == "data"
    assert entries["all"]["samples"] == len(whole.index) > len(pair.occluded)
    assert "listed" not in entries["all"]
    stored = Predictions.load(folder / "fer2013-test-best-occluded.npz")
    assert np.array_equal(stored.index, pair.occluded)
    evaluations = read_results(folder.parent / "results.json").evaluations
    table = real_faces_table(("run", "random weights", one) for one in evaluations)
    assert {row[table.head.index("Score")] for row in table.rows} == {"measured, by the data's labels"}


def test_eight_classes_are_scored_by_the_lists_labels(tiny: Callable[..., Config], pair: Pair) -> None:
    """All listed faces count, also the one without a majority, which the whole of test leaves out."""
    folder, entries = evaluated(tiny, pair, "data.labels=ferplus-majority")
    stored = Predictions.load(folder / "fer2013-test-best-occluded.npz")
    assert np.array_equal(stored.index, pair.occluded)
    answers = stored.probabilities.argmax(1)
    assert entries["occluded"]["accuracy"] == np.mean(answers == pair.listed_label[pair.occluded])
    assert entries["occluded"]["listed"] == {
        **{"data": "ferplus", "lines": 10, "names": 10, "met": 10, "labels": "list"}
    }
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


def test_the_most_voted_class_scores_all_and_those_with_a_majority(
    tiny: Callable[..., Config], pair: Pair
) -> None:
    """One run gives both of the scores that are published for FERPlus, from one file of predictions."""
    folder, entries = evaluated(tiny, pair, "data.labels=ferplus-voted")
    whole = Predictions.load(folder / "fer2013-test-best.npz")
    kept = whole.index != pair.occluded[4]
    assert (~kept).sum() == 1
    assert entries["all"]["samples"] == len(kept) == entries["majority"]["samples"] + 1
    assert entries["majority"]["accuracy"] == pytest.approx(whole.correct()[kept].mean())
    assert entries["majority"]["predictions"] == entries["all"]["predictions"] == "fer2013-test-best.npz"
    assert "occluded_majority" not in entries


def test_seeds_are_pooled_on_the_lists_and_by_majority(
    tiny: Callable[..., Config], pair: Pair, tmp_path: Path
) -> None:
    runs, single = [], []
    for seed in (0, 1):
        run_dir = tmp_path / f"seed-{seed}"
        _, entries = evaluated(
            tiny, pair, "data.labels=ferplus-voted", f"seed={seed}", f"run_dir={run_dir}", "model.width=8"
        )
        runs.append(run_dir)
        single.append(entries)
    (network,) = load_networks(runs)
    pooled = pooled_run(network)
    assert pooled is not None
    found = {one.subset: one for one in pooled.evaluations if one.split == "test"}
    assert found.keys() == single[0].keys() - {"turned_no_copies"}, "none of the turned faces has a copy"
    assert found.keys() >= {"all", "no_copies", "majority", "occluded", "occluded_no_copies", "turned"}
    for subset, one in found.items():
        each = [entries[subset] for entries in single]
        assert one.accuracy == pytest.approx(np.mean([entry["accuracy"] for entry in each]))
        assert (one.seeds, one.samples) == (2, each[0]["samples"])
        assert (one.listed and vars(one.listed)) == each[0].get("listed")
    table = real_faces_table([("both", "random weights", found["occluded"])])
    assert table.rows[0][table.head.index("Score")] == "measured, mean of 2 seeds"

    fewer = tmp_path / "fewer.txt"
    fewer.write_bytes(pair.occluded_list.read_bytes().partition(b"\n")[2])
    command = ["evaluate", str(runs[1]), "--split", "test", "--occluded-list", str(fewer), "--device", "cpu"]
    assert main(command) == 0
    with pytest.raises(
        RunError, match=r"seed-1.*of 9 faces, .*seed-0.* of 10: evaluate both with the same list"
    ):
        load_networks(runs)


# RAF-DB and AffectNet


IN_ORDER = {
    "rafdb": FER2013_CLASSES,
    "affectnet": (*FER2013_CLASSES, "contempt"),
    "affectnet7": FER2013_CLASSES,
}
"""The classes of betons, in another order than the lists'."""


class Field:
    """Drawn faces under the names of RAF-DB or AffectNet, and the lists of 20 of them.

    Attributes:
        split: that the lists are of; some of val are in no list.
        rows: of the faces of that split, by the number in their names.
    """

    def __init__(self, folder: Path, data: str, images: int = 120) -> None:
        self.folder, self.data = folder, data.removesuffix("7")
        self.split = "test" if data == "rafdb" else "val"
        faces = synthesize(images, 2)
        self.classes = IN_ORDER[data]
        labels = np.arange(images) % len(self.classes)
        split = np.where(np.arange(images) % 6, 0, 1)
        split[1::2] = SPLITS.index(self.split)
        self.rows = np.flatnonzero(np.arange(images) % 2)
        sources = [f"Images/0/train_{row:05}_aligned.jpg" for row in range(images)]
        for number, row in enumerate(self.rows):
            sources[row] = f"Images/{number % 3}/{self.name(number)}.jpg"
        self.labels = labels[self.rows]
        dataset = FaceDataset.of(self.data, faces.images, labels, self.classes, sources, split=split)
        self.beton = write_beton(dataset, folder)

    def name(self, number: int) -> str:
        return f"test_{number:04}_aligned" if self.data == "rafdb" else affectnet_hash("val", number)

    def lines(self, numbers: range, form: str) -> list[str]:
        """Lines in the form ``occluded``, ``turned`` or ``turned45``, with the data's labels."""
        forms = {
            ("rafdb", "occluded"): "{name} {label} 4\r\n",
            ("rafdb", "turned"): "{label}/{name}.jpg\n",
            ("rafdb", "turned45"): "{label}/{name}.jpg\n",
            ("affectnet", "occluded"): "val/{label}/{name}/\n",
            ("affectnet", "turned"): "{label}/{name}.jpg\n",
            ("affectnet", "turned45"): "{label}/{name}/8.jpg\n",
        }
        order = LISTED_CLASSES[self.data]
        labels = [order.index(self.classes[self.labels[n]]) if n < len(self.labels) else 0 for n in numbers]
        parts = zip(labels, numbers, strict=True)
        return [forms[self.data, form].format(name=self.name(n), label=label) for label, n in parts]

    def write(self, name: str, lines: list[str]) -> Path:
        path = self.folder / "lists" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes("".join(lines).encode())
        return path

    def found(self, *lists: NameList, split: str = "") -> list[ListedFaces]:
        beton = open_beton(self.beton)
        part = split or self.split
        return listed_faces(beton, part, beton.indices(part), labels_of(beton, "own"), lists)


FILES = {
    "rafdb": ("rafdb_occlusion_list.txt", "val_raf_db_list.txt", "val_raf_db_list_45.txt"),
    "affectnet": (
        *("occlusion_affectnet_list.txt", "pose_30_affectnet_list.txt", "pose_45_affectnet_list.txt"),
    ),
}


@pytest.mark.parametrize("data", ["rafdb", pytest.param("affectnet", marks=pytest.mark.slow)])
def test_one_command_scores_all_lists_of_the_data(
    data: str, tiny: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    field = Field(tmp_path, data)
    occluded, turned, turned45 = FILES[data]
    doubled = field.lines(range(20), "occluded")
    field.write(occluded, [*doubled, doubled[3]])
    field.write(turned, field.lines(range(10, 30), "turned"))
    field.write(turned45, field.lines(range(10, 62), "turned45"))  # of the last two there is no image
    field.write("pose_30_ferplus_list.txt", ["0/fer0032226.jpg\n"])  # of other data
    config = tiny("train.epochs=1", f"data.path={field.beton}")
    run(config)
    capsys.readouterr()
    command = ["evaluate", config.run_dir, "--lists", str(tmp_path / "lists"), "--device", "cpu"]
    assert main([*command, "--split", field.split]) == 0
    printed = capsys.readouterr()
    assert f"{turned45}: 2 of its 52 faces are not scored\n" in printed.err
    results = read_results(Path(config.run_dir) / "results.json")
    assert results.test_scorings == (field.split == "test")
    entries = {one.subset: one for one in results.evaluations if one.split == field.split}
    counts = {name: (one.samples, *vars(one.listed).values()) for name, one in entries.items() if one.listed}
    assert counts == {
        "occluded": (20, data, 21, 20, 20, "list"),
        "turned": (20, data, 20, 20, 20, "list"),
        "turned45": (50, data, 52, 52, 50, "list"),
        **{f"{name}_no_copies": counts[f"{name}_no_copies"] for name in ("occluded", "turned", "turned45")},
    }
    whole = Predictions.load(Path(config.run_dir) / "predictions" / f"{data}-{field.split}-best.npz")
    right = whole.correct()[np.isin(whole.index, field.rows[10:30])]
    assert entries["turned"].accuracy == right.mean()
    assert "Really occluded and turned faces" in printed.out
    assert "20 of 20" in printed.out
    assert "50 of 52" in printed.out
    assert "IGKD" in printed.out


def test_names_are_those_that_prepare_keeps(tmp_path: Path) -> None:
    rafdb = [
        f"test_{n:04}_aligned {RAFDB_NUMBERS[name] - 1} 1" for n, name in enumerate(shown(42)[28:], start=1)
    ]
    affectnet = ["contempt" if n % 8 == 7 else name for n, name in enumerate(shown(16 + 3, 1)[:16])]
    hashes = [
        f"val/{AFFECTNET_NUMBERS[name]}/{affectnet_hash('val', n)}/" for n, name in enumerate(affectnet)
    ]
    for lines, beton_file in (
        (rafdb, prepare.rafdb(rafdb_tree(tmp_path / "rafdb"), tmp_path, size=48)),
        (hashes, prepare.affectnet(affectnet_tree(tmp_path / "affectnet"), tmp_path, size=48)),
    ):
        (tmp_path / "list.txt").write_text("\r\n".join(lines))
        beton = open_beton(beton_file)
        own, test = labels_of(beton, "own"), beton.indices("test")
        (found,) = listed_faces(beton, "test", test, own, [read_name_list(tmp_path / "list.txt")])
        assert (found.listed.met, found.listed.labels) == (len(lines), "list")
        assert np.array_equal(found.indices, test)
        assert np.array_equal(found.labels.label[test], own.label[test])


def test_labels_are_mapped_by_the_names_of_the_classes(tmp_path: Path) -> None:
    field = Field(tmp_path, "rafdb")
    lines = field.lines(range(20), "turned")
    lines[5] = f"{(int(lines[5][0]) + 1) % 7}{lines[5][1:]}"  # the list's own label, not the data's
    (found,) = field.found(read_name_list(field.write("list.txt", lines)))
    rows = field.rows[:20]
    assert np.array_equal(found.indices, rows)
    differing = found.labels.label[rows] != field.labels[:20]
    assert np.flatnonzero(differing).tolist() == [5]
    assert (np.delete(found.labels.label, rows) == -1).all()


def test_faces_of_a_class_that_the_data_lack_are_not_scored(tmp_path: Path) -> None:
    field = Field(tmp_path, "affectnet7")
    lines = [*field.lines(range(12), "occluded"), f"val/7/{affectnet_hash('val', 99)}/\n"]
    (found,) = field.found(read_name_list(field.write("list.txt", lines)))
    assert (found.listed.names, found.listed.met) == (13, 12)
    assert found.missing(field.classes).endswith("1 of its 13 faces are not scored, 1 for being contempt")


def test_lists_that_do_not_fit(pair: Pair, tmp_path: Path) -> None:
    field = Field(tmp_path, "rafdb")
    occluded = read_name_list(field.write("list.txt", field.lines(range(20), "occluded")))
    turned = read_name_list(field.write("pose.txt", field.lines(range(20), "turned")))
    few = read_name_list(field.write("few.txt", field.lines(range(50, 100), "occluded")))
    shifted = [f"{(int(line[0]) + 1) % 7}{line[1:]}" for line in field.lines(range(20), "turned")]
    other_labels = read_name_list(field.write("shifted.txt", shifted))
    hashes = [f"0/{affectnet_hash('val', number)}.jpg\n" for number in range(4)]
    affectnet = read_name_list(field.write("hashes.txt", hashes))
    beton = open_beton(pair.beton)
    train = tmp_path / "train.txt"
    row = np.flatnonzero(pair.faces.split == 0)[0]
    train.write_text(f"1/fer{7 * row + 3:07}.jpg\n")
    ferplus = read_name_list(train)

    def in_pair(names: NameList, split: str = "test") -> list[ListedFaces]:
        return listed_faces(beton, split, beton.indices(split), labels_of(beton, "own"), [names])

    refusals: list[tuple[str, Callable[[], object]]] = [
        (r"list\.txt: 20 of its 20 names are in test of .*, not in train; give --split test",
         lambda: field.found(occluded, split="train")),
        (r"few\.txt: 10 of its 50 names are in test of .*rafdb\.beton, such as test_0050; give the lists",
         lambda: field.found(few)),
        (r"hashes\.txt: 0 of its 4 names are in test of .*; give the lists.*only the release with validation",
         lambda: field.found(affectnet)),
        (r"shifted\.txt: 0 of its 20 labels are those of .*rafdb\.beton; give the lists of these data",
         lambda: field.found(other_labels)),
        (r"shifted\.txt: a second list of faces that are turned by more than 30°, beside .*pose\.txt",
         lambda: field.found(turned, other_labels)),
        (r"train\.txt: 1 of its 1 names are in train of .*fer2013\.beton, not in test; give the lists",
         lambda: in_pair(ferplus)),
        (r"list\.txt: 0 of its 20 names are in test of .*fer2013\.beton", lambda: in_pair(occluded)),
        (r"rafdb\.beton: it has no FER\+ image names, which train\.txt lists: run `ferdist prepare fer2013`",
         lambda: field.found(ferplus)),
        (r"rafdb\.beton: it has none of the 4 names in .*lists; give the lists",
         lambda: lists_of_data(open_beton(field.beton), [affectnet])),
    ]  # fmt: skip
    for message, call in refusals:
        with pytest.raises(DataError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_list_given_by_the_wrong_option(
    pair: Pair, evaluated_run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (evaluated_run / "results.json").read_bytes()
    for arguments, message in (
        (
            ["--pose-list", pair.occluded_list],
            "a list of faces that are occluded: give it as --occluded-list",
        ),
        (["--occluded-list", pair.pose_list], "turned by more than 30°: give it as --pose-list"),
        (["--occluded-list", tmp_path / "list.txt"], "cannot read it: No such file or directory"),
        (["--lists", tmp_path], "no published list in it"),
        (["--pose-list", pair.pose_list], "it has no FER+ image names"),
    ):
        assert main(["evaluate", str(evaluated_run), *map(str, arguments), "--device", "cpu"]) == 1
        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
    assert (evaluated_run / "results.json").read_bytes() == before


def test_published_scores_are_shares_of_faces() -> None:
    for system in REAL_FACES:
        for (data, subset), accuracy in system.accuracy.items():
            assert data in LISTED_CLASSES
            assert subset in ("occluded", "turned", "turned45")
            assert 0.5 < accuracy < 0.9
