"""Networks of the user's own and of timm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from ferdist.config import Config
from ferdist.errors import ConfigError
from ferdist.evaluation.model import load_trained
from ferdist.models import (
    ModelConfig,
    Task,
    build_model,
    check_resolution,
    is_reconstruction,
    model_names,
    register,
    registry,
)
from ferdist.training.run import run

GRAY = Task(1, 48, 48, 7)

SOURCE = """
import torch
from torch import nn
from ferdist.models import ModelConfig, Task, register

@register("linear", reconstruction=True)
def linear(config: ModelConfig, task: Task) -> nn.Module:
    pixels = task.channels * task.height * task.width
    return nn.Sequential(nn.Flatten(), nn.Dropout(config.dropout), nn.Linear(pixels, task.classes))

@register("words")
def words(config, task):
    return "a network"

@register("features")
def features(config, task):
    return nn.Conv2d(task.channels, 7, 3)

@register("strict")
def strict(config, task):
    return nn.Linear(3, task.classes)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Write a module into the current folder; forget it afterwards."""
    path, networks = list(sys.path), dict(registry._NETWORKS)
    names: list[str] = []
    monkeypatch.chdir(tmp_path)

    def write(content: str = SOURCE, name: str = "my_networks") -> str:
        (tmp_path / f"{name}.py").write_text(content)
        names.append(name)
        return name

    yield write
    sys.path[:] = path
    registry._NETWORKS.clear()
    registry._NETWORKS.update(networks)
    for name in names:
        sys.modules.pop(name, None)


def build(name: str, task: Task = GRAY) -> torch.nn.Module:
    return build_model(ModelConfig(name=name), task)


def test_a_network_of_the_current_folder(module: Callable[..., str]) -> None:
    module()
    network = build("my_networks:linear", Task(3, 48, 50, 4))
    assert network(torch.zeros(2, 3, 48, 50)).shape == (2, 4)
    assert network.training
    assert is_reconstruction("my_networks:linear")
    assert not is_reconstruction("my_networks:words")
    assert "my_networks:linear" in model_names()


def test_a_users_network_may_bear_a_name_of_ferdists(module: Callable[..., str]) -> None:
    module(SOURCE.replace('"linear"', '"resnet18"'))
    assert len(list(build("my_networks:resnet18").parameters())) == 2
    assert len(list(build("resnet18").parameters())) > 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_netwroks:linear", "there is no module 'my_netwroks': start in the folder that holds it"),
        ("my_networks.deep:linear", "there is no module 'my_networks.deep': start in the folder"),
        ("my_networks:linaer", r"but my_networks has no function with @register\('linaer'\)"),
        ("my_networks:words", "it returns a str, not a torch.nn.Module"),
        ("my_networks:features", r"\(2, 1, 48, 48\) it gives \(2, 7, 46, 46\), not logits \(2, 7\)"),
        ("my_networks:strict", r"it fails on images \(2, 1, 48, 48\): RuntimeError: mat1 and mat2"),
        (":linear", "write it as MODULE:NAME"),
        ("my_networks:", "write it as MODULE:NAME"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(module: Callable[..., str], name: str, message: str) -> None:
    module()
    with pytest.raises(ConfigError, match=f"model.name is '{name}'.*{message}") as caught:
        build(name)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported_is_named_with_its_error(module: Callable[..., str]) -> None:
    module("import no_such_library\n", "needy")
    with pytest.raises(ConfigError, match=r"importing 'needy' fails: ModuleNotFoundError: .*no_such_library"):
        build("needy:net")
    module("def net(:\n", "broken")
    with pytest.raises(ConfigError, match="importing 'broken' fails: SyntaxError"):
        build("broken:net")


def test_a_name_is_given_once(module: Callable[..., str]) -> None:
    first = register("twice")(lambda config, task: torch.nn.Identity())
    assert register("twice")(first) is first

    def second(config: ModelConfig, task: Task) -> torch.nn.Module:
        return torch.nn.Identity()

    with pytest.raises(ConfigError, match="twice' already"):
        register("twice")(second)


def test_a_run_with_a_users_network_trains_and_is_loaded_again(
    module: Callable[..., str], tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module()
    config = tiny("model.name=my_networks:linear", "train.epochs=1")
    run(config)
    _forget(name)
    trained = load_trained(config.run_dir, None, torch.device("cpu"), trust_code=True)
    assert trained.network(torch.zeros(1, 1, 48, 48)).shape == (1, 7)
    _forget(name)
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match=r"there is no module 'my_networks': .* \(this is /\)"):
        load_trained(config.run_dir, None, torch.device("cpu"), trust_code=True)


def _forget(module: str) -> None:
    """As in a new process."""
    del sys.modules[module]
    sys.path.remove(str(Path.cwd()))
    for name in [name for name in model_names() if name.startswith(f"{module}:")]:
        del registry._NETWORKS[name]


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_timms_networks_take_the_tasks_images(name: str) -> None:
    pytest.importorskip("timm")
    network = build(name, Task(1, 48, 64, 5))
    assert network(torch.zeros(2, 1, 48, 64)).shape == (2, 5)
    assert not is_reconstruction(name)


def test_a_network_of_one_size_is_refused_with_a_resolution_schedule() -> None:
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    with pytest.raises(ConfigError, match=r"resolution has a share of 0.5 .*fails on images \(2, 1, 24"):
        check_resolution(build(name), ModelConfig(name=name), GRAY, [0.5])


def test_timms_dropout_follows_the_config() -> None:
    pytest.importorskip("timm")
    network = build_model(ModelConfig(name="timm:resnet18", dropout=0.3), GRAY)
    assert network.drop_rate == 0.3


def test_what_timm_does_not_have_or_cannot_do_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match="did you mean 'timm:resnet18'"):
        build("timm:resnet18x")
    with pytest.raises(ConfigError, match="timm cannot build it: RuntimeError: Invalid pretrained tag"):
        build("timm:resnet18.no_such_tag")
    with pytest.raises(
        ConfigError, match=r"'timm:inception_v4': it fails on images \(2, 1, 48, 48\)"
    ) as caught:
        build("timm:inception_v4")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed: pip install 'ferdist\[timm\]'"):
        build("timm:resnet18")
