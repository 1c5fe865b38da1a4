"""`profile=true`: a trace that can be opened, and the operators on stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ferdist.config import Config, differences
from ferdist.training.profiling import RECORDED_STEPS, SKIPPED_STEPS, TRACE, WARMUP_STEPS, trace_steps
from ferdist.training.run import run

TABLE_LINE = re.compile(r" +[\d.]+ +[\d.]+% +[\d.]+  \S.*")


def test_a_run_with_profile_writes_a_trace_and_trains_the_same(
    tiny: Callable[..., Config], capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("profile=true")
    run(config)
    trace = json.loads((Path(config.run_dir) / "profile" / TRACE).read_text())
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert "aten::convolution_backward" in names
    steps = [name for name in names if name.startswith("ProfilerStep#")]
    assert len(steps) == RECORDED_STEPS
    lines = [line for line in capsys.readouterr().err.splitlines() if TABLE_LINE.fullmatch(line)]
    assert len(lines) == 10
    shares = [float(line.split()[1].rstrip("%")) for line in lines]
    assert shares == sorted(shares, reverse=True)
    assert not differences(config, tiny("profile=false")), "a run can go on without it"


def test_too_few_steps_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = range(SKIPPED_STEPS + WARMUP_STEPS)
    assert list(trace_steps(items, tmp_path / "profile", torch.device("cpu"))) == list(items)
    assert "no profile: it needs more than 7 steps" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_a_short_run_is_recorded_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in trace_steps(range(SKIPPED_STEPS + WARMUP_STEPS + 1), tmp_path, torch.device("cpu")):
        torch.ones(3).cumsum(0)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith("  aten::cumsum")]
    assert [line.split()[2] for line in lines] == ["1"], "calls per step"
    assert (tmp_path / TRACE).exists()
