from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ferdist.reporting import tables
from ferdist.reporting.load import load_run, load_runs

MakeRun = Callable[..., Path]


def test_numbers_are_shown_in_one_way() -> None:
    assert tables.percent(0.6254) == "62.5"
    assert tables.percent(None) == tables.percent(float("nan")) == tables.MISSING
    assert tables.percent_interval((0.6, 0.651)) == "60.0–65.1"
    assert tables.percent_interval(None) == tables.MISSING
    assert tables.count(3589, "image") == "3,589 images"
    assert tables.count(1, "image") == "1 image"
    assert tables.scorings(0).endswith("never been scored")
    assert tables.scorings(3).endswith("3 times")


def test_table1_has_a_row_per_run_and_states_the_protocol(make_run: MakeRun) -> None:
    runs = load_runs(
        [
            make_run("tested", test=True, samples=1200),
            make_run("val", seed=4),
            make_run("fold", fold=3, samples=98),
        ]
    )
    text = tables.table1_markdown(runs)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3
    assert {row.count("|") for row in rows} == {14}
    main = runs[0].main
    assert main is not None
    assert main.interval is not None
    cells = [cell.strip() for cell in rows[2].split("|")]
    assert cells[1:11] == [
        "tested",
        r"resnet18\_cbam",
        "fer2013",
        "test",
        f"{100 * (main.accuracy or 0):.1f}",
        f"{100 * main.interval[0]:.1f}–{100 * main.interval[1]:.1f}",
        f"{100 * (main.balanced_accuracy or 0):.1f}",
        f"{100 * (main.macro_f1 or 0):.1f}",
        f"{100 * (main.ece or 0):.1f}",
        "1,200 images",
    ]
    assert "| val, fold 3 |" in rows[4]
    assert "tested: the checkpoint was chosen on val; one view per image; test has been scored once." in text
    assert "val: the checkpoint was chosen on this same split, which makes the figure lean upward" in text
    assert "fold: the checkpoint is the last one of the schedule, chosen on no split" in text


def test_table1_says_where_nothing_was_evaluated(make_run: MakeRun) -> None:
    run = replace(load_run(make_run()), evaluations=())
    text = tables.table1_markdown([run])
    assert "not evaluated" in text
    assert "run: no evaluation; test has never been scored." in text
    assert " 0.0 " not in text


def test_markdown_keeps_hostile_names_in_their_cells(make_run: MakeRun) -> None:
    run = replace(load_run(make_run()), name="a|b\n<script>`*x*`")
    rows = [line for line in tables.table1_markdown([run]).splitlines() if line.startswith("|")]
    assert rows[2].startswith(r"| a\|b &lt;script>\`\*x\*\` |")


def test_evaluations_are_all_listed(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a", test=True, occlusion=True), make_run("b")])
    clean = tables.evaluation_table(runs, occluded=False)
    covered = tables.evaluation_table(runs, occluded=True)
    assert [row[:2] for row in clean.rows] == [("a", "val"), ("a", "test"), ("b", "val")]
    assert len(covered.rows) == 10
    assert covered.rows[0][:6] == ("a", "val", "square", "zero", "1", "2.8")
    for table in (clean, covered):
        assert {len(row) for row in table.rows} == {len(table.head)} == {len(table.align)}
    alone = tables.evaluation_table(runs[:1], occluded=False)
    assert alone.head[0] == "Split"


def test_recall_and_precision_follow_the_confusion_matrix(make_run: MakeRun) -> None:
    run = load_run(make_run())
    confusion = np.diag([4] * 7)
    confusion[0, 1] = 1
    confusion[6] = 0
    evaluation = replace(run.evaluations[0], confusion=confusion, recall=(0.8, 1.0, 1.0, 1.0, 1.0, 1.0, None))
    rows = tables.recall_table([run], [evaluation]).rows
    assert rows[0] == ("angry", "80.0", "100.0", "5")
    assert rows[1] == ("disgust", "100.0", "80.0", "4")
    assert rows[6] == ("neutral", tables.MISSING, tables.MISSING, "0")
    assert tables.worst_confusions(evaluation, run.classes) == ["angry taken for disgust (20 %, 1 of 5)"]
    assert tables.confusion_table(evaluation, run.classes).rows[0] == ("angry", "4", "1", *"00000")


def test_history_has_a_row_per_epoch(make_run: MakeRun) -> None:
    run = load_run(make_run(epochs=3))
    lines = (
        {"epoch": 0.5, "train/loss": 2.0, "train/accuracy": 0.2, "train/lr": 0.1},
        {"epoch": 1.0, "train/loss": 1.0, "train/accuracy": 0.4, "train/lr": 0.1},
        {"epoch": 1, "val/loss": 1.25, "val/accuracy": 0.5, "val/balanced_accuracy": 0.4},
        {"epoch": 1.5, "train/loss": float("nan"), "train/accuracy": 0.4, "train/lr": 0.05},
    )
    rows = tables.history_table(replace(run, history=lines)).rows
    assert rows == (
        ("1", "1.500", "1.250", "30.0", "50.0", "40.0", "1.00e-01"),
        ("2", "NaN", "–", "40.0", "–", "–", "5.00e-02"),
    )
    assert len(tables.history_table(run).rows) == 3
    assert tables.history_table(replace(run, history=())).rows == ()


def test_differences_name_only_keys_that_differ(make_run: MakeRun) -> None:
    runs = load_runs([make_run("a"), make_run("b", seed=3, model="resnet18")])
    table = tables.differences_table(runs)
    assert table.head == ("Key", "a", "b")
    assert table.rows == (("model.name", "resnet18_cbam", "resnet18"), ("seed", "0", "3"))


def test_environment_and_protocol(make_run: MakeRun) -> None:
    run = load_run(make_run(fold=2))
    environment = dict(tables.environment_table([run]).rows)
    assert environment["git_revision"] == "05d845e"
    assert environment["world_size"] == "2"
    protocol = dict(tables.protocol_table([run]).rows)
    assert protocol["Fold held out"] == "2"
    assert protocol["Epochs"] == "8"
    configuration = dict(tables.configuration_table(run).rows)
    assert configuration["data.batch_size"] == "128"


def test_manifests_are_laid_open(make_run: MakeRun) -> None:
    run = load_run(make_run(manifest=True))
    assert run.manifest is not None
    parts = tables.parts_table(run.manifest)
    assert parts.rows[0] == ("split train", "3,589", "–", "467", "56", "496", "895", "653", "415", "607")
    folds = {
        "folds": {"0": {"samples": 2, "subjects": ["S1", "S2"], "per_class": [1, 1]}},
        "classes": ["x", "y"],
    }
    assert tables.parts_table(folds).rows == (("fold 0", "2", "2", "1", "1"),)
    audit = dict(tables.audit_table(run.manifest).rows)
    assert audit == {
        "unique": "7000",
        "copies: across splits": "118",
        "copies: conflicting": "3, 9",
        "constant": "none",
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (list(range(20)), "0, 1, 2, 3, 4, 5, 6, 7, … (20 in all)"),
        (None, "–"),
        (True, "yes"),
        (34034, "34,034"),
        (2026, "2026"),
    ],
)
def test_cells_of_other_values(value: object, shown: str) -> None:
    assert tables.audit_table({"audit": {"key": value}}).rows == (("key", shown),)
