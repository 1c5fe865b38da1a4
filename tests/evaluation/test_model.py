"""Model cards from outside: a card that does not fit is one line, at once and in little memory."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ferdist.errors import FerdistError
from ferdist.evaluation.model import load_trained
from ferdist.models import build_model, weights
from ferdist.models.config import ModelConfig, Task
from tests.test_security import card

CPU = torch.device("cpu")


def tensors() -> dict[str, torch.Tensor]:
    """Of the network that `card` describes."""
    network = build_model(ModelConfig(width=8), Task(1, 48, 48, 7))
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_a_whole_card_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(weights.encode(path, tensors(), card(width=8)))
    trained = load_trained(str(tmp_path / "w.safetensors"), None, CPU)
    assert trained.card.classes == tuple("abcdefg")
    assert (trained.checkpoint, trained.step) == ("last", 1)


def task(**values: object) -> dict[str, Any]:
    return {"task": {"channels": 1, "height": 48, "width": 48, "classes": 7} | values}


def shared(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (task(height=60_000, width=60_000), "Expected `int` <= 1024 - at `$.task.height`"),
        (task(height=1), "Expected `int` >= 2 - at `$.task.height`"),
        (task(channels=5), "Expected `int` <= 4 - at `$.task.channels`"),
        (task(classes=10**9), "Expected `int` <= 10000 - at `$.task.classes`"),
        (task(width="48"), "Expected `int`, got `str` - at `$.task.width`"),
        (task(width=48.5), "Expected `int`, got `float` - at `$.task.width`"),
        ({"task": None}, "Expected `object`, got `null` - at `$.task`"),
        ({"classes": ["a", "b"]}, "2 values of classes for a task with 7"),
        ({"classes": "abcdefg"}, "Expected `array`, got `str` - at `$.classes`"),
        ({"classes": [1] * 7}, "Expected `str`, got `int` - at `$.classes[0]`"),
        (task(classes=8) | {"classes": list("abcdefgh")}, "is (7, 64), and its network has (8, 64)"),
        ({"mean": [0.5, 0.5]}, "2 values of mean for a task with 1"),
        ({"mean": [float("nan")]}, "Expected `float` >= 0.0 - at `$.mean[0]`"),
        ({"std": [0]}, "Expected `float` > 0.0 - at `$.std[0]`"),
        ({"std": []}, "0 values of std for a task with 1"),
        ({"beton_sha256": 3}, "Expected `str`, got `int` - at `$.beton_sha256`"),
        ({"step": "1"}, "Expected `int`, got `str` - at `$.step`"),
        ({"checkpoint": None}, "Expected `str`, got `null` - at `$.checkpoint`"),
        ({"config": []}, "Expected `object`, got `array` - at `$.config`"),
        ({"config": {"train": {"lr": float("inf")}}}, "train.lr is inf: it must be a finite number"),
        ({"config": shared(500)}, "more than 20 levels"),
        ({"config": {"model": {"width": 10**6}}}, "and its network has (1000000, 1, 3, 3)"),
        ({"config": {"model": {"name": "timm:vit_giant_patch14_224"}}}, "and its network has"),
        ({"config": {"model": {"name": "vgg16"}}}, "and its network has"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "w.safetensors"
    if "timm" in str(change):
        pytest.importorskip("timm")
    path.write_bytes(weights.encode(path, tensors(), card(width=8) | change))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(FerdistError) as caught:
        load_trained(str(path), None, CPU)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19, "KiB: half a GiB"


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "deep metadata": (
        lambda path: save_file(tensors(), path, {"config": "[" * 100_000}),
        "its metadata has no config",
    ),
    "fifo": (os.mkfifo, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "folder": (Path.mkdir, "Is a directory"),
    "empty": (Path.touch, "not a safetensors file"),
    "sparse": (lambda path: (path.touch(), os.truncate(path, 2**40)), "larger than 8192 MiB"),
}


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_of_weights_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "w.safetensors"
    write, message = FILES[name]
    write(path)
    with pytest.raises(FerdistError, match=message) as caught:
        load_trained(str(path), None, CPU)
    assert "\n" not in str(caught.value)
