from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ferdist.augment.kinds import kind_label
from ferdist.charts import WIDTH
from ferdist.evaluation.metrics import expected_calibration_error
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.records import Listed
from ferdist.reporting.album import Album, Tile, tile_chart
from ferdist.reporting.load import Run, load_run, load_runs
from ferdist.reporting.report import table1_markdown
from ferdist.reporting.sections.calibration import EDGES, calibrate, reliability_chart
from ferdist.reporting.sections.classes import recall_chart, recall_table, worst_confusions
from ferdist.reporting.sections.data import audit_table, parts_table
from ferdist.reporting.sections.evaluations import comparison, evaluation_table
from ferdist.reporting.sections.mistakes import most_confused
from ferdist.reporting.sections.protocol import protocol
from ferdist.reporting.sections.realfaces import real_faces
from ferdist.reporting.sections.training import history_table, training
from ferdist.reporting.words import scorings, value_text
from ferdist.table import MISSING
from tests.reporting.conftest import MakeRun
from tests.test_charts import texts


def test_table1_has_a_row_per_run_and_states_the_protocol(make_run: MakeRun) -> None:
    folders = [make_run("tested", test=True, samples=1200), make_run("val", seed=4)]
    runs = load_runs([*folders, make_run("fold", fold=3, samples=98)])
    text = table1_markdown(runs)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {row.count("|") for row in rows} == {14}
    main = runs[0].main
    assert main is not None
    assert main.interval is not None
    rates = [main.accuracy, main.balanced_accuracy, main.macro_f1, main.ece]
    accuracy, *others = (f"{100 * rate:.1f}" for rate in rates if rate is not None)
    interval = "–".join(f"{100 * bound:.1f}" for bound in main.interval)
    cells = [cell.strip() for cell in rows[2].split("|")]
    place = ["tested", r"resnet18\_cbam", "fer2013", "test"]
    assert cells[1:11] == [*place, accuracy, interval, *others, "1,200 images"]
    assert "| val, fold 3 |" in rows[4]
    assert "tested: the checkpoint was chosen on val; one view per image; test has been scored once." in text
    assert "val: the checkpoint was chosen on this same split, so its scores are biased upward" in text
    assert "fold: the checkpoint is the last of the schedule, not chosen on any split" in text


def test_evaluations_are_all_listed(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a", test=True, occlusion=True), make_run("b")])
    clean = evaluation_table(runs, occluded=False)
    covered = evaluation_table(runs, occluded=True)
    assert [row[:2] for row in clean.rows] == [("a", "val"), ("a", "test"), ("b", "val")]
    assert len(covered.rows) == 10
    assert covered.rows[0][:6] == ("a", "val", "square", "zero", "1", "2.8")
    for table in (clean, covered):
        assert {len(row) for row in table.rows} == {len(table.head)} == {len(table.align)}
    alone = evaluation_table(runs[:1], occluded=False)
    assert alone.head[0] == "Split"


def test_recall_and_precision_follow_the_confusion_matrix(make_run: MakeRun) -> None:
    run = load_run(make_run())
    confusion = np.diag([4] * 7)
    confusion[0, 1] = 1
    confusion[6] = 0
    evaluation = replace(run.evaluations[0], confusion=confusion, recall=(0.8, 1.0, 1.0, 1.0, 1.0, 1.0, None))
    rows = recall_table([(run, evaluation)]).rows
    assert rows[0] == ("angry", "80.0", "100.0", "5")
    assert rows[1] == ("disgust", "100.0", "80.0", "4")
    assert rows[6] == ("neutral", MISSING, MISSING, "0")
    (row,) = most_confused([(run, evaluation)], several=False)
    assert list(row.values())[1:] == ["angry", "disgust", "1", "20.0"]
    assert worst_confusions(evaluation, run.classes) == ["angry mistaken for disgust (20 %, 1 of 5)"]


def test_real_faces_stand_above_what_is_published(make_run: MakeRun) -> None:
    run = load_run(make_run(test=True))
    assert real_faces([run], Album(shown=False)) is None
    listed = Listed("ferplus", 605, 605, 604, "list")
    occluded = replace(run.evaluations[1], subset="occluded", listed=listed, samples=604)
    turned = replace(occluded, subset="turned", listed=replace(listed, labels="data"))
    run = replace(run, evaluations=(*run.evaluations, occluded, turned))
    section = real_faces([run], Album(shown=False))
    assert section is not None
    (table,) = section.tables
    models = [row[:2] for row in table.rows]
    assert models[:3] == [
        ("occluded", "resnet18_cbam"),
        ("occluded", "D3FER (CVPR 2026)"),
        ("occluded", "IGKD"),
    ]
    assert models[-1] == ("turned > 30°", "resnet18_cbam")
    cells = dict(zip(table.head, table.rows[0], strict=True))
    assert (cells["Scored"], cells["Names met"], cells["Lines"]) == ("604", "604 of 605", "605")
    assert (cells["Score"], cells["Started from"]) == ("measured", "random weights")
    accuracies = [float(row[2]) for row in table.rows[1:-1]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == 87.60
    assert any(point.startswith("IGKD: github.com/") for point in section.points)
    assert "## Really occluded and turned faces, in percent" in table1_markdown([run])


def test_history_has_a_row_per_epoch(make_run: MakeRun) -> None:
    run = load_run(make_run(epochs=3))
    lines = (
        {"epoch": 0.5, "train/loss": 2.0, "train/accuracy": 0.2, "train/lr": 0.1},
        {"epoch": 1.0, "train/loss": 1.0, "train/accuracy": 0.4, "train/lr": 0.1},
        {"epoch": 1, "val/loss": 1.25, "val/accuracy": 0.5, "val/balanced_accuracy": 0.4},
        {"epoch": 1.5, "train/loss": float("nan"), "train/accuracy": 0.4, "train/lr": 0.05},
    )
    rows = history_table(replace(run, history=lines)).rows
    assert rows == (
        ("1", "1.500", "1.250", "30.0", "50.0", "40.0", "1.00e-01"),
        ("2", "NaN", "–", "40.0", "–", "–", "5.00e-02"),
    )
    assert len(history_table(run).rows) == 3
    assert history_table(replace(run, history=())).rows == ()


def test_curves_name_the_views_and_how_many_runs_they_are_means_of(make_run: MakeRun) -> None:
    plain, other = load_runs([make_run("a"), make_run("b")])
    flip = replace(other, config={**other.config, "train": {**other.config["train"], "tta": "flip"}})

    def said(*runs: Run) -> str:
        (text,) = training(runs, Album()).text
        return text.partition("; ")[2].removeprefix("val scores are measured at the end of the epoch ")

    assert said(plain) == "on unchanged images."
    assert said(flip) == "on the average over image and mirror image."
    assert said(plain, flip) == "on unchanged images (a); on the average over image and mirror image (b)."
    ten = replace(plain, pooled=10)
    assert said(ten) == "on unchanged images. Curves are means over 10 runs."
    assert said(ten, replace(other, pooled=10)).endswith("Curves are means over 10 runs each.")
    assert said(ten, replace(other, pooled=3)).endswith("Means over runs: a 10, b 3.")
    assert history_table(ten).caption == "a: means of each epoch over 10 runs"


def test_differences_name_only_keys_that_differ(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a"), make_run("b", seed=3, model="resnet18")])
    section = comparison(runs, Album())
    assert section is not None
    table = section.tables[1]
    assert table.head == ("Key", "a", "b")
    assert table.rows == (("model.name", "resnet18_cbam", "resnet18"), ("seed", "0", "3"))


def test_environment_and_protocol(make_run: MakeRun) -> None:
    run = load_run(make_run(fold=2))
    own, environment = (dict(table.rows) for table in protocol([run], Album()).tables)
    assert (environment["git_revision"], environment["world_size"]) == ("05d845e", "2")
    assert (own["Fold held out"], own["Epochs"]) == ("2", "8")


def test_runs_share_what_is_equal_in_one_table(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a"), make_run("b", seed=1)])
    environments = [
        {"beton_sha256": "ab" * 32, "training": {"git_revision": revision}} for revision in ("05d845e", "1c")
    ]
    runs = [replace(run, environment=own) for run, own in zip(runs, environments, strict=True)]
    _, own, shared, differing = protocol(runs, Album()).tables
    assert (own.head, own.rows) == (("Run", "Seed"), (("a", "0"), ("b", "1")))
    assert (shared.head, shared.rows) == (("Key", "All runs"), (("beton_sha256", "ab" * 6),))
    assert differing.head == ("Run", "training.git_revision")
    assert differing.rows == (("a", "05d845e"), ("b", "1c"))
    same = protocol([runs[0], replace(runs[0], name="b")], Album()).tables
    assert [len(table.rows) > 0 for table in same] == [True, False, True, False]


def test_manifests_are_laid_open(make_run: MakeRun) -> None:
    run = load_run(make_run(manifest=True))
    assert run.manifest is not None
    parts = parts_table(run.manifest)
    assert parts.rows[0] == ("split train", "3,589", "–", "467", "56", "496", "895", "653", "415", "607")
    folds = {"0": {"samples": 2, "subjects": ["S1", "S2"], "per_class": [1, 1]}}
    by_subject = replace(run.manifest, splits={}, folds=folds, classes=["x", "y"])
    assert parts_table(by_subject).rows == (("fold 0", "2", "2", "1", "1"),)
    audit = dict(audit_table(run.manifest).rows)
    assert audit["unique images"] == "7000"
    assert audit["copies: samples"] == "118"
    assert audit["near constant: indices"] == "3, 9"


def test_values_in_words() -> None:
    shown = ["0, 1, 2, 3, 4, 5, 6, 7, … (20 in all)", "–", "yes", "34,034", "2026"]
    assert [value_text(value) for value in ([*range(20)], None, True, 34034, 2026)] == shown
    assert scorings(3).endswith("3 times")
    assert [*map(kind_label, ("gaussian_noise", "eye_band"))] == ["Gaussian noise", "eye band"]


def test_a_recall_chart_places_each_run_and_class() -> None:
    figure = recall_chart(["a", "b"], [[0.5, None, 1.0], [0.25, 0.75, 0.5]], ["x", "y", "z"])
    axes = figure.axes[0]
    assert np.isnan(axes.lines[0].get_xdata()[1])
    assert axes.lines[1].get_xdata().tolist() == [0.25, 0.75, 0.5]
    assert {"a", "b", "x", "y", "z", "recall"} <= set(texts(figure))
    assert "a" not in texts(recall_chart(["a"], [[0.5]], ["x"]))


def test_calibration_agrees_with_the_calibration_error() -> None:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet(np.full(7, 0.3), size=2000).astype(np.float32)
    probabilities[0] = np.eye(7, dtype=np.float32)[0] * np.float32(1.0000001)  # as a mean of views may be
    label = generator.integers(0, 7, size=2000)
    bins = calibrate(Predictions(np.arange(2000), label, probabilities, ""))
    assert bins["samples"].sum() == 2000
    assert (bins["confidence"] > EDGES[bins.index]).all()
    assert (bins["confidence"] <= EDGES[bins.index + 1]).all()
    gap = (bins["confidence"] - bins["accuracy"]).abs() * bins["samples"] / 2000
    assert gap.sum() == pytest.approx(expected_calibration_error(probabilities, label), abs=1e-6)


def test_a_reliability_chart_has_a_diagonal_and_the_filled_bins() -> None:
    rows = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]], np.float32)
    groups = calibrate(Predictions(np.arange(3), np.array([0, 0, 1]), rows, ""))
    upper = reliability_chart(["run"], [groups]).axes[0]
    assert list(upper.lines[0].get_xdata()) == list(upper.lines[0].get_ydata()) == [0, 1]
    assert upper.lines[1].get_ydata().tolist() == [0.0, 1.0, 1.0]


def test_tiles_stay_inside_below_their_texts() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    colour = np.stack([gray] * 2 + [255 - gray], axis=-1)
    figure = tile_chart([[Tile(gray, "one\ntwo"), Tile(gray)], [Tile(colour, "$x$ <b>")]], ("left", "right"))
    assert texts(figure) == ["left", "right", "two", "one", "$x$ <b>"]
    shown = figure.axes[0].get_images()
    assert all((image.get_array() == gray[..., None]).all() for image in shown[:2])
    assert (shown[2].get_array() == colour).all()
    edges = shown[1].get_extent()
    assert edges[1] <= WIDTH
    assert edges[2] <= figure.get_figheight()
