"""The robustness curves in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ferdist.evaluation.board import show_robustness


def entry(kind: str, severity: int, covered: float | None, accuracy: float) -> dict[str, Any]:
    damage = {"kind": kind, "severity": severity, "fill": "zero", "covered": covered}
    return {"occlusion": damage, "accuracy": accuracy}


def test_curves_over_the_covered_share_are_replaced(tmp_path: Path) -> None:
    square = [entry("square", 1, 0.0278, 0.6), entry("square", 2, 0.111, 0.5)]
    show_robustness(tmp_path / "val", square)
    show_robustness(tmp_path / "val", [*square, entry("gaussian_noise", 4, None, 0.25)])
    events = EventAccumulator(str(tmp_path / "val")).Reload()
    points = [(e.step, round(e.value, 4)) for e in events.Scalars("occlusion/square, zero")]
    assert points == [(3, 0.6), (11, 0.5)]
    assert [e.step for e in events.Scalars("occlusion/gaussian_noise, zero")] == [4]
