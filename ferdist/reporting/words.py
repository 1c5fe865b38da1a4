"""How a report words what several of its sections speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ferdist.evaluation.model import GIVEN
from ferdist.evaluation.records import Evaluation
from ferdist.reporting.load import Run
from ferdist.table import MISSING, Table, count

TTA: Final = {"none": "one view", "flip": "image and mirror image", "ten-crop": "ten crops"}
SUBSETS: Final = {
    "all": "all",
    "no_copies": "without copies",
    "majority": "those with a majority",
    "occluded": "really occluded",
    "occluded_no_copies": "really occluded, without copies",
    "turned": "turned by more than 30°",
    "turned_no_copies": "turned by more than 30°, without copies",
    "turned45": "turned by more than 45°",
    "turned45_no_copies": "turned by more than 45°, without copies",
}
DEFINITIONS: Final = (
    "Every sample of a split is scored exactly once, whatever the number of processes.",
    "The 95 % interval is a bootstrap over subjects where the data identify them, "
    "and over groups of exact copies otherwise.",
    "Balanced accuracy is the mean recall of the classes; macro-F1 is the mean F1 of the classes.",
    "ECE is the expected calibration error over 15 bins of equal width.",
    "Rows that differ in data, split, unit or samples measure different things: "
    "do not read their difference as a comparison of models.",
)
"""What the scores mean."""


def data_of(run: Run, evaluation: Evaluation) -> str:
    """Name of the scored data, told apart from the data of that name that the run was trained on."""
    same_name = evaluation.data == run.data and not run.is_own(evaluation)
    return f"{evaluation.data} {evaluation.beton_sha256[:12]}" if same_name else evaluation.data


def place(evaluation: Evaluation) -> str:
    """Where an evaluation was made: the split, the folds that were held out, and over how many seeds."""
    seeds = "" if evaluation.seeds == 1 else f", mean of {evaluation.seeds} seeds"
    if evaluation.folds:
        return f"{count(evaluation.folds, 'fold')} pooled{seeds}"
    if evaluation.inner_fold is not None:
        return f"{evaluation.split}, inner fold {evaluation.inner_fold} without fold {evaluation.fold}"
    fold = "" if evaluation.fold is None else f", fold {evaluation.fold}"
    return f"{evaluation.split}{fold}{seeds}"


def scorings(times: int) -> str:
    """How often test was scored, in words."""
    words = {0: "test has never been scored", 1: "test has been scored once", 2: "test has been scored twice"}
    return words.get(times, f"test has been scored {times:,} times")


def selection(run: Run, evaluation: Evaluation) -> str:
    """How the checkpoint of an evaluation was chosen, in words."""
    chosen_on = "holdout" if run.option("data.val_share") else "val"
    if evaluation.checkpoint == "best" and not run.is_own(evaluation):
        return f"the checkpoint was chosen on {chosen_on} of {run.data}"
    if evaluation.checkpoint == "best" and evaluation.split == chosen_on:
        return "the checkpoint was chosen on this same split, so its scores are biased upward"
    if evaluation.checkpoint == "best":
        return f"the checkpoint was chosen on {chosen_on}"
    words = {
        "last": "the checkpoint is the last of the schedule, not chosen on any split",
        GIVEN: "its weights are from elsewhere",
        "": "how the checkpoint was chosen is not recorded",
    }
    return words.get(evaluation.checkpoint, f"the checkpoint is {evaluation.checkpoint}")


def key_table(caption: str, runs: Sequence[Run], values: Sequence[Mapping[str, Any]]) -> Table:
    """A row per key, a column for what each run has there."""
    return Table(
        caption,
        ("Key", *(run.name for run in runs)) if len(runs) > 1 else ("Key", "Value"),
        tuple(
            (key, *(value_text(one.get(key)) for one in values))
            for key in dict.fromkeys(key for one in values for key in one)
        ),
    )


def key_tables(caption: str, runs: Sequence[Run], values: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """What a run has at each key; of several, what all share, and a row per run for what they do not."""
    if len(runs) == 1:
        return (key_table(caption, runs, values),)
    rows = key_table(caption, runs, values).rows
    shared = tuple(row[:2] for row in rows if len({*row[1:]}) == 1)
    differing = [row for row in rows if len({*row[1:]}) > 1]
    head, *of_each = zip(("Run", *(run.name for run in runs)), *differing, strict=True)
    return (
        Table(f"{caption}: the same for all runs", ("Key", "All runs"), shared),
        Table(f"{caption}: where the runs differ", head, tuple(of_each) if differing else ()),
    )


def value_text(value: Any) -> str:
    """A value of a configuration or a manifest in a cell."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, list):
        shown = ", ".join(str(item) for item in value[:8])
        return f"{shown}, … ({len(value):,} in all)" if len(value) > 8 else shown or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(count(value)) if isinstance(value, int) and value >= 10_000 else str(value)
