"""The self test finds what is broken, says how to mend it, and passes on this machine."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ferdist.data.beton import Batch
from ferdist.evaluation.predictions import Predictions
from ferdist.runtime.distributed import World
from ferdist.selftest import fast, machine, right
from ferdist.selftest.checks import Check, Findings, Status, look, merge
from ferdist.selftest.right import Site
from ferdist.selftest.run import as_text
from ferdist.training.build import Setup
from ferdist.training.engine import Engine
from tests.conftest import start


@pytest.fixture
def site(beton_path: Path, tmp_path: Path) -> Site:
    return Site(World(0, 1, 0, torch.device("cpu")), tmp_path, beton_path)


def only(checks: Any) -> Check:
    (check,) = checks
    return check


def test_a_step_that_reads_a_value_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(right.no_synchronisation(site)).status == Status.PASSED
    update = Engine._update

    def reading(engine: Engine) -> None:
        engine.counters[0].item()
        update(engine)

    monkeypatch.setattr(Engine, "_update", reading)
    check = only(right.no_synchronisation(site))
    assert check.status == Status.FAILED
    assert "aten._local_scalar_dense" in check.value
    assert "remove .item()" in check.remedy


def test_a_step_in_the_wrong_direction_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the CPU in fp16 against the CPU in fp32, which is what this machine can compare."""
    assert only(right.step(site, "fp16")).status == Status.PASSED
    backward = Engine._backward

    def upwards(engine: Engine, images: torch.Tensor, *rest: Any, **options: Any) -> None:
        backward(engine, images, *rest, **options)
        if engine.dtype is not None:
            for p in engine.parameters:
                p.grad.neg_()

    monkeypatch.setattr(Engine, "_backward", upwards)
    check = only(right.step(site, "fp16"))
    assert (check.status, check.remedy) == (
        Status.FAILED,
        "train in fp32 and report it with the output of --json",
    )


def test_a_resumed_training_with_other_bits_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(right.resume(site, compiled=False)).status == Status.PASSED
    load = Engine.load_state

    def forgetful(engine: Engine, state: dict[str, Any]) -> None:
        load(engine, state)
        engine.optimizer.state.clear()

    monkeypatch.setattr(Engine, "load_state", forgetful)
    check = only(right.resume(site, compiled=False))
    assert check.status == Status.FAILED
    assert "tensors differ, such as" in check.value


def test_a_sample_that_is_scored_twice_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(right.every_sample_once(site)).status == Status.PASSED
    score = Setup.score

    def twice(setup: Setup) -> Predictions:
        once = score(setup)
        return dataclasses.replace(once, index=np.repeat(once.index, 2))

    monkeypatch.setattr(Setup, "score", twice)
    check = only(right.every_sample_once(site))
    assert check.status == Status.FAILED
    n = len(site.build().val_indices)
    assert check.value == f"{2 * n} scored, {n} of {n} different ones"


def test_an_unexpected_error_is_a_failed_check() -> None:
    def probe() -> list[Check]:
        raise ZeroDivisionError("of something")

    check = only(look("speed", probe))
    assert (check.name, check.status) == ("speed", Status.FAILED)
    assert "ZeroDivisionError: of something" in check.value


@pytest.mark.parametrize("largest", [16, 0], ids=["some fit", "none fits"])
def test_batches_that_do_not_fit_are_skipped(
    site: Site, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    train_step = Engine._train_step

    def step(engine: Engine, batches: list[Batch]) -> None:
        if engine.plan.micro_batch > largest:
            raise torch.OutOfMemoryError
        train_step(engine, batches)

    monkeypatch.setattr(Engine, "_train_step", step)
    monkeypatch.setattr(fast, "BATCHES", {"cpu": (16, 32)})
    monkeypatch.setattr(fast, "SECONDS", {"cpu": 0.1})
    monkeypatch.setattr(fast, "PRODUCT", {"cpu": 64})
    speed = fast.Speed(site)
    checks = [*speed.peak(), *speed.steps(), *speed.idle(), *speed.loader()]
    found = {check.name: (check.status, check.value) for check in checks}
    assert found["train, batch 32"] == (Status.SKIPPED, "out of memory")
    assert (found["train, batch 16"][0] == Status.FOUND) == bool(largest)
    assert (found["loader"][0] == Status.SKIPPED) == (not largest)
    assert speed.settings.get("data.batch_size") == (16 if largest else None)


def test_other_benchmark_images_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(right.benchmark_images()).status == Status.PASSED
    pattern = right._pattern()
    pattern[0, 0, 20, 20] ^= 1
    monkeypatch.setattr(right, "_pattern", lambda: pattern)
    check = only(right.benchmark_images())
    assert check.status == Status.FAILED
    assert "do not compare with published figures" in check.remedy


@pytest.mark.parametrize(
    ("module", "status", "remedy"),
    [
        ("cv2", Status.FAILED, "scripts/system-packages"),
        ("onnxruntime", Status.WARNING, "pip install onnxruntime"),
    ],
)
def test_a_missing_library_is_named_with_what_needs_it(
    module: str, status: Status, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> object:
        if name == module:
            raise ImportError("libGL.so.1: cannot open shared object file")
        return importlib.__import__(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    found = {check.name: check for check in machine.libraries()}
    assert found[module].status == status
    assert "libGL.so.1" in found[module].value
    assert remedy in found[module].remedy
    assert found["h5py"].status == Status.PASSED


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.disk(tmp_path, 0)).status in (Status.PASSED, Status.WARNING)

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    check = only(machine.disk(tmp_path, 0))
    assert (check.status, check.remedy) == (Status.FAILED, "make room")
    assert "No space left on device" in check.value
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.locks(tmp_path, 0)).status == Status.PASSED

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    check = only(machine.locks(tmp_path, 0))
    assert check.status == Status.FAILED
    assert "No locks available" in check.value
    assert "NFS" in check.remedy
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "two processes hold one lock" in only(machine.locks(tmp_path, 0)).value


def test_the_worst_of_all_ranks_counts_and_is_named() -> None:
    good = Check("disk", Status.PASSED, "9 GiB")
    bad = Check("disk", Status.FAILED, "full", "make room")
    assert merge([[good], [good]]) == [good]
    assert merge([[good], [bad]]) == [Check("disk", Status.FAILED, "full (rank 1)", "make room")]
    findings = Findings({"machine": [bad]}, {"data.batch_size": 512})
    assert not findings.passed
    text = as_text(findings)
    assert "FAILED: disk: full: make room" in text
    assert "data.batch_size=512" in text


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_it_passes_on_this_machine(processes: int, tmp_path: Path) -> None:
    done = start("ferdist", "selftest", "--json", "--dir", str(tmp_path), processes=processes)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    by_name = {check["name"]: check["status"] for check in found["checks"]}
    assert by_name["resume"] == by_name["every sample once"] == "passed"
    assert by_name["ranks equal one"] == ("passed" if processes else "skipped")
    assert list(tmp_path.iterdir()) == []
