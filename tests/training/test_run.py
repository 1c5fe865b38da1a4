"""Whole runs of a few seconds, in this process."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ferdist.cli import main
from ferdist.config import Config, load_config
from ferdist.data.beton import Batch, BetonLoader, open_beton, stage_beton, staged_path
from ferdist.data.folds import Holdout
from ferdist.errors import ConfigError, Preempted, RunError
from ferdist.evaluation.predictions import Predictions
from ferdist.runtime import checkpoint
from ferdist.runtime.distributed import World
from ferdist.runtime.folder import RunFolder
from ferdist.training import engine
from ferdist.training import run as training_run
from ferdist.training.build import build, join_training
from ferdist.training.engine import Engine
from ferdist.training.monitor import Stopwatch
from ferdist.training.preemption import StopRequest
from ferdist.training.run import run
from tests.conftest import PATIENCE

Tiny = Callable[..., Config]


def metrics_of(config: Config) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times and rates."""
    lines = (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "time" and not k.startswith("rate/")}
        for line in lines
    ]


def weights_of(config: Config, part: str = "model") -> dict[str, torch.Tensor]:
    state = checkpoint.load_newest(Path(config.run_dir) / "checkpoints")
    assert state is not None
    weights: dict[str, torch.Tensor] = state[part]
    return weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_all_that_the_contract_names(tiny: Tiny, beton_path: Path) -> None:
    config = tiny()
    folder = Path(config.run_dir)
    assert run(config) == folder / "results.json"
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["reason"], status["step"]) == ("finished", None, status["total_steps"])
    assert load_config(folder / "config.yaml") == config

    beton = open_beton(beton_path)
    val = beton.indices("val")
    stored = Predictions.load(folder / "predictions" / "synthetic-val-best.npz")
    assert np.array_equal(stored.index, val)
    assert np.array_equal(stored.label, beton.label[val])
    np.testing.assert_allclose(stored.probabilities.sum(1), 1, atol=1e-5)

    results = json.loads((folder / "results.json").read_text())
    assert results["schema"] == 1
    assert results["test_scorings"] == 0
    assert results["environment"]["torch"] == torch.__version__
    assert results["environment"]["training"]["precision"] == "fp32"
    assert {e["precision"] for e in results["evaluations"]} == {"fp32"}
    kinds = {(e["split"], e["subset"], e["unit"], e["checkpoint"]) for e in results["evaluations"]}
    assert kinds == {("val", s, u, "best") for s in ("all", "no_copies") for u in ("image", "sequence")}
    image = results["evaluations"][0]
    assert image["samples"] == len(val)
    assert np.trace(image["confusion"]) / len(val) == pytest.approx(image["accuracy"])
    assert image["accuracy_ci95"][0] <= image["accuracy"] <= image["accuracy_ci95"][1]

    lines = metrics_of(config)
    evaluated = [line for line in lines if "val/accuracy" in line]
    assert [line["epoch"] for line in evaluated] == [1, 2]
    assert max(line["val/accuracy"] for line in evaluated) == pytest.approx(image["accuracy"])
    assert all(np.isfinite(line["train/loss"]) for line in lines if "train/loss" in line)


def test_tensorboard_shows_the_numbers_of_metrics_jsonl(tiny: Tiny) -> None:
    config = tiny("train.epochs=1")
    run(config)
    board = EventAccumulator(str(Path(config.run_dir) / "tb"), size_guidance={"images": 0})
    board.Reload()
    tags = board.Tags()
    lines = [json.loads(line) for line in (Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "train/accuracy", "train/lr", "train/grad_norm", "val/accuracy"):
        shown = [(event.step, event.value) for event in board.Scalars(name)]
        assert shown == [
            (line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line
        ]
    assert {"rate/images_per_second", "rate/loader_wait"} <= set(tags["scalars"])
    assert set(tags["images"]) == {"augmented", "val/confusion"}
    assert "_hparams_/session_start_info" in board.summary_metadata
    results = json.loads((Path(config.run_dir) / "results.json").read_text())
    final = board.Scalars("final/accuracy")[-1].value
    assert final == pytest.approx(results["evaluations"][0]["accuracy"]), "all samples, per image"


def test_the_same_config_gives_the_same_numbers_and_another_seed_does_not(tiny: Tiny) -> None:
    first, again, other = tiny(run="a"), tiny(run="b"), tiny("seed=1", run="c")
    for config in (first, again, other):
        run(config)
    assert metrics_of(first) == metrics_of(again)
    assert same(weights_of(first), weights_of(again))
    assert not same(weights_of(first), weights_of(other))


def test_a_broken_run_goes_on_to_the_same_weights(tiny: Tiny) -> None:
    whole, broken = (tiny("train.checkpoint_seconds=0", run=name) for name in ("whole", "broken"))
    run(whole)
    stop_after(5, broken)
    status = json.loads((Path(broken.run_dir) / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("failed", "OSError: stopped")
    run(broken)
    for part in ("model", "ema"):
        assert same(weights_of(whole, part), weights_of(broken, part))
    assert metrics_of(whole) == metrics_of(broken)


def stop_after(step: int, config: Config) -> None:
    """Train so many steps and fail, with a checkpoint of the last one."""

    def fail(self: Engine, batches: list[Batch]) -> None:
        if self.step == step:
            raise OSError("stopped")
        train_step(self, batches)

    train_step = Engine.train_step
    with pytest.MonkeyPatch.context() as patched, pytest.raises(OSError, match="stopped"):
        patched.setattr(Engine, "train_step", fail)
        run(config)


def test_a_start_says_in_a_line_what_it_will_do(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny("train.checkpoint_steps=1")
    stop_after(5, config)
    line = f"{config.run_dir}: resnet18_cbam, 294 images, 2 epochs of 9 steps, fp32 on cpu"
    assert capsys.readouterr().err.splitlines()[0] == line
    run(config)
    assert capsys.readouterr().err.splitlines()[0] == f"{line}, resuming at step 5"


@pytest.mark.parametrize(
    ("before", "after"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)]
)
def test_a_run_goes_on_in_the_precision_of_another_gpu(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    before: torch.dtype,
    after: torch.dtype,
) -> None:
    """`train.precision=auto` is bf16 on one GPU and fp16 on another."""
    config = tiny("train.checkpoint_steps=1", "train.precision=auto")
    monkeypatch.setattr(engine, "autocast_dtype", lambda *_: before)
    stop_after(5, config)
    monkeypatch.setattr(engine, "autocast_dtype", lambda *_: after)
    run(config)
    names = [{torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype] for dtype in (after, before)]
    assert "resuming with {}, started with {}: the result will differ".format(*names) in caplog.text
    assert json.loads((Path(config.run_dir) / "status.json").read_text())["state"] == "finished"
    assert RunFolder(Path(config.run_dir)).stored_environment()["precision"] == names[0]


def test_a_run_goes_on_with_smaller_micro_batches(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """What the message says that names too little memory."""
    stop_after(5, tiny("train.checkpoint_steps=1"))
    config = tiny("train.accumulate=2")
    run(config)
    assert caplog.text.count("resuming with train.accumulate=2, started with 1: the result will differ") == 1
    assert load_config(Path(config.run_dir) / "config.yaml").train.accumulate == 2


def test_rates_count_the_images_of_this_start(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("train.checkpoint_steps=1", "train.log_every=6")
    stop_after(5, config)
    counted: list[int] = []

    def read(self: Stopwatch, samples: int) -> dict[str, float]:
        counted.append(samples)
        return {}

    monkeypatch.setattr(Stopwatch, "read", read)
    run(config)
    assert counted[:2] == [32, 3 * 32], "step 6 alone, then the rest of the epoch's nine"


def test_a_copy_may_take_longer_than_ranks_wait_for_each_other(
    tiny: Tiny, beton_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No collective lasts longer than a poll."""
    votes: list[bool] = []

    class Voting(World):
        def any(self, flag: bool) -> bool:
            votes.append(flag)
            return flag

    def slow(path: Path, folder: str) -> Path:
        time.sleep(0.2)
        return stage_beton(path, folder)

    monkeypatch.setattr(training_run, "STAGE_POLL_SECONDS", 0.01)
    monkeypatch.setattr(training_run, "stage_beton", slow)
    config = tiny(f"data.stage={tmp_path}")
    beton = training_run.open_data(config, Voting(0, 1, 0, torch.device("cpu")))
    assert beton.path == staged_path(beton_path, str(tmp_path))
    assert votes.count(True) >= 3
    assert votes[-2:] == [False, False], "the copy is there, and nothing was wrong"


def test_a_signal_ends_a_copy(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(training_run, "STAGE_POLL_SECONDS", 0.01)
    monkeypatch.setattr(training_run, "stage_beton", lambda *_: done.wait(PATIENCE))
    request = StopRequest()
    request.note(signal.SIGUSR2, None)
    config, world = tiny(f"data.stage={tmp_path}"), World(0, 1, 0, torch.device("cpu"))
    with pytest.raises(Preempted, match="stopped by a signal while it was copied"):
        training_run.open_data(config, world, request)
    done.set()


def test_checkpoints_by_steps_come_after_each_step_that_the_number_divides(tiny: Tiny) -> None:
    config = tiny("train.checkpoint_steps=4", "train.keep_checkpoints=9")
    run(config)
    kept = [path.name for path in checkpoint.steps(Path(config.run_dir) / "checkpoints")]
    total = json.loads((Path(config.run_dir) / "status.json").read_text())["total_steps"]
    assert total % 4, "the last one is written whatever its number"
    assert kept == [f"step-{step:08d}.pt" for step in (*range(4, total, 4), total)]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer
def test_a_run_folder_that_is_removed_meanwhile_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny("train.checkpoint_seconds=0")
    step = Engine.train_step

    def remove(self: Engine, batches: list[Batch]) -> None:
        shutil.rmtree(config.run_dir, ignore_errors=True)
        step(self, batches)

    monkeypatch.setattr(Engine, "train_step", remove)
    with pytest.raises(RunError, match="the run folder was removed while it was in use"):
        run(config)


def test_a_runs_own_evaluation_is_plain_and_with_the_views_that_it_asks_for(tiny: Tiny) -> None:
    config = tiny("train.epochs=1", "train.tta=flip")
    results = json.loads(run(config).read_text())
    plain, flipped = (
        next(e for e in results["evaluations"] if e["tta"] == tta and e["subset"] == "all")
        for tta in ("none", "flip")
    )
    assert plain["loss"] != flipped["loss"]
    watched = [line for line in metrics_of(config) if "val/loss" in line]
    assert watched[-1]["val/loss"] == pytest.approx(flipped["loss"], rel=1e-5)


def test_a_finished_run_is_only_evaluated_again(tiny: Tiny) -> None:
    config = tiny("train.epochs=1")
    run(config)
    before, metrics = weights_of(config), metrics_of(config)
    run(config)
    assert same(before, weights_of(config))
    assert metrics == metrics_of(config)


def test_a_gradient_that_is_not_finite_stops_the_run_and_spoils_no_checkpoint(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("train.checkpoint_seconds=0", "train.log_every=50")
    step = Engine.train_step

    def poison(self: Engine, batches: list[Batch]) -> None:
        if self.step == 4:
            next(iter(self.model.parameters())).register_hook(lambda grad: grad * float("nan"))
        step(self, batches)

    monkeypatch.setattr(Engine, "train_step", poison)
    with pytest.raises(RunError, match="became infinite or NaN by step 9 "):
        run(config)
    newest = checkpoint.load_newest(Path(config.run_dir) / "checkpoints")
    assert newest is not None
    assert newest["step"] == 4
    assert all(torch.isfinite(value).all() for value in newest["model"].values())
    assert "train.clip=1" in json.loads((Path(config.run_dir) / "status.json").read_text())["reason"]


def test_a_masked_update_changes_no_weight(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    step = Engine.train_step

    def poison(self: Engine, batches: list[Batch]) -> None:
        if self.step == 2:
            next(iter(self.model.parameters())).register_hook(lambda grad: grad * float("inf"))
            before = [p.detach().clone() for p in self.parameters]
            step(self, batches)
            seen.append(all(torch.equal(a, b) for a, b in zip(before, self.parameters, strict=True)))
        else:
            step(self, batches)

    for optimizer in ("sgd", "adamw"):
        with monkeypatch.context() as patched, pytest.raises(RunError):
            patched.setattr(Engine, "train_step", poison)
            run(tiny(f"train.optimizer={optimizer}", run=optimizer))
    assert seen == [True, True]


def test_a_folder_of_another_config_is_refused(tiny: Tiny) -> None:
    run(tiny("train.epochs=1"))
    with pytest.raises(RunError, match=r"another config \(train.epochs: 1 -> 2\)"):
        run(tiny())
    with pytest.raises(RunError, match=r"train\.resume is never"):
        run(tiny("train.epochs=1", "train.resume=never"))


def test_a_folder_that_another_process_writes_is_refused(tiny: Tiny) -> None:
    config = tiny()
    folder = Path(config.run_dir)
    folder.mkdir()
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process is training"):
            run(config)


def test_a_fold_is_held_out_and_its_last_epoch_counts(tiny: Tiny, beton_path: Path) -> None:
    config = tiny("data.fold=3", "train.epochs=1")
    run(config)
    results = json.loads((Path(config.run_dir) / "results.json").read_text())
    assert {(e["fold"], e["checkpoint"]) for e in results["evaluations"]} == {(3, "last")}
    stored = Predictions.load(Path(config.run_dir) / "predictions" / "synthetic-val-fold3-last.npz")
    beton = open_beton(beton_path)
    assert np.array_equal(stored.index, np.flatnonzero(beton.fold == 3))


def test_with_an_inner_fold_the_fold_to_be_scored_is_read_by_nothing(
    tiny: Tiny, beton_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every sample that any loader gives out, in training and in scoring, lies in another fold."""
    read: list[np.ndarray[Any, Any]] = []
    batches = BetonLoader.batches

    def watched(self: BetonLoader, order: np.ndarray[Any, Any]) -> Iterator[Batch]:
        for batch in batches(self, order):
            read.append(batch.index.cpu().numpy().copy())
            yield batch

    monkeypatch.setattr(BetonLoader, "batches", watched)
    config = tiny("data.fold=3", "data.inner_fold=5", "train.epochs=2", "train.select=best")
    run(config)
    beton = open_beton(beton_path)
    folds = set(beton.fold[np.concatenate(read)].tolist())
    assert folds == set(range(10)) - {3}
    folder = Path(config.run_dir)
    results = json.loads((folder / "results.json").read_text())
    keys = {(e["fold"], e["inner_fold"], e["checkpoint"]) for e in results["evaluations"]}
    assert keys == {(3, 5, "best")}
    stored = Predictions.load(folder / "predictions" / "synthetic-val-fold3-inner5-best.npz")
    assert np.array_equal(stored.index, np.flatnonzero(beton.fold == 5))


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=bf16", "train.optimizer=adamw", "train.lr=0.003", "train.clip=1"),
        (
            "augment.enabled=true",
            "augment.mixup.probability=1",
            "train.class_weights=sqrt",
            "train.schedule=cosine",
            "train.ema=0",
        ),
        ("train.accumulate=2", "train.channels_last=false"),
    ],
    ids=["bf16-adamw-clip", "mixup-weights-cosine", "accumulate"],
)
def test_every_way_to_train_learns_the_training_set_a_little(tiny: Tiny, overrides: tuple[str, ...]) -> None:
    easy = [f"augment.{part}.probability=0" for part in ("geometry", "photometric", "occlusion", "noise")]
    config = tiny("train.epochs=5", "train.lr=0.02", *easy, *overrides)
    run(config)
    losses = [line["train/loss"] for line in metrics_of(config) if "train/loss" in line]
    assert losses[-1] < losses[0] - 0.01


def test_a_run_starts_from_another_runs_weights(tiny: Tiny) -> None:
    first = tiny("train.epochs=1", run="first")
    run(first)
    second = tiny(
        "train.epochs=1", "train.lr=0", "train.ema=0", f"model.pretrained={first.run_dir}", run="second"
    )
    run(second)
    best = checkpoint.load(Path(first.run_dir) / "checkpoints" / "best.pt", dict)["ema"]
    assert torch.equal(best["layer1.0.conv1.weight"], weights_of(second)["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.path=''", "data.path is not set"),
        ("data.batch_size=4096", "lower it"),
        ("device=tpu", "device is 'tpu': it must be auto, cpu or cuda"),
        ("train.sync_batchnorm=true", "needs GPUs"),
        ("data.batch_size=1", "an image is alone"),
        ("model.name=nothing", "which is not a network"),
    ],
)
def test_a_config_that_cannot_run_says_why(tiny: Tiny, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tiny(override))


@pytest.mark.slow
def test_a_compiled_run_gives_nearly_the_same_losses_with_few_operators(tiny: Tiny) -> None:
    """On a GPU a step is bound by the number of operators that Python starts."""
    options = ("train.epochs=1", "train.lr=0.001", "train.precision=bf16")
    plain, compiled = tiny(*options, run="a"), tiny(*options, "train.compile=true", run="b")
    run(plain)
    run(compiled)
    losses = [[x["train/loss"] for x in metrics_of(c) if "train/loss" in x] for c in (plain, compiled)]
    np.testing.assert_allclose(*losses, rtol=1e-2)
    with join_training(compiled) as world:
        setup = build(compiled, open_beton(Path(compiled.data.path)), world)
    batches = setup.batches()
    setup.engine.train_step(next(batches))
    batch = next(batches)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        setup.engine.train_step(batch)
    started = [
        event.name
        for event in profile.events()
        if event.name.startswith("aten::")
        and not (event.cpu_parent and event.cpu_parent.name.startswith("aten::"))
    ]
    assert len(started) <= 600, Counter(started)


def test_the_life_of_every_gate_is_recorded_at_each_epoch(tiny: Tiny) -> None:
    config = tiny()
    run(config)
    lines = [line for line in metrics_of(config) if any(key.startswith("gate/") for key in line)]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert len([key for key in lines[-1] if key.startswith("gate/")]) == 8 * 2 * 3
    board = EventAccumulator(str(Path(config.run_dir) / "tb")).Reload()
    shown = board.Scalars("gate/layer4.1.channel/sd_images")
    assert [event.value for event in shown] == [
        pytest.approx(line["gate/layer4.1.channel/sd_images"]) for line in lines
    ]


def test_dead_attention_is_warned_of(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """Gates that start at a sigmoid's end do not move in two epochs."""
    run(tiny("model.gate=sigmoid", run="dead"))
    assert "the attention is dead: 8 of 8 channel gates do the same for every image" in caplog.text


def test_a_share_of_train_is_held_out_and_validated_on(tiny: Tiny, beton_path: Path) -> None:
    config = tiny("data.val_share=0.2", "train.epochs=1")
    results = json.loads(run(config).read_text())
    beton = open_beton(beton_path)
    train, held = (beton.indices(name, Holdout(val_share=0.2)) for name in ("train", "holdout"))
    whole = beton.indices("train")
    assert np.array_equal(np.union1d(train, held), whole)
    assert len(train) + len(held) == len(whole)
    assert 0.1 < len(held) / len(whole) < 0.35
    assert not set(beton.subject[train]) & set(beton.subject[held]), "subjects are held out whole"
    assert {
        (entry["split"], entry["samples"]) for entry in results["evaluations"] if entry["unit"] == "image"
    } >= {("holdout", len(held))}
    assert main(["evaluate", config.run_dir]) == 0
    entries = json.loads((Path(config.run_dir) / "results.json").read_text())["evaluations"]
    assert {entry["split"] for entry in entries} == {"holdout", "val"}, "val stays the data's own"
