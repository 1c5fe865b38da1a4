"""Training that starts from weights that were trained before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet18_Weights, resnet18

from ferdist.errors import ConfigError
from ferdist.models import ModelConfig, Task, build_model, model_names
from ferdist.training.pretrained import load_pretrained

GRAY = Task(1, 48, 48, 7)


@pytest.mark.parametrize("name", [name for name in model_names() if ":" not in name])
def test_weights_come_back_and_only_a_classifier_of_other_classes_does_not(name: str, tmp_path: Path) -> None:
    path, config = tmp_path / "weights.safetensors", ModelConfig(name=name)
    source, target = build_model(config, GRAY), build_model(config, GRAY)
    eight = build_model(config, Task(1, 48, 48, 8))
    save_file(source.state_dict(), path)
    load_pretrained(target, str(path))
    assert all(torch.equal(value, target.state_dict()[key]) for key, value in source.state_dict().items())
    load_pretrained(eight, str(path))
    same = [torch.equal(value, eight.state_dict()[key]) for key, value in source.state_dict().items()]
    assert same.count(False) == 2  # the classifier's weight and bias
    other = "resnet18" if name != "resnet18" else "vgg16"
    with pytest.raises(ConfigError, match="weights do not fit this network"):
        load_pretrained(build_model(ModelConfig(name=other), GRAY), str(path))


def test_pretrained_needs_a_place_that_exists(tmp_path: Path) -> None:
    network = build_model(ModelConfig(), GRAY)
    with pytest.raises(ConfigError, match=r"no\.safetensors: there is no such file"):
        load_pretrained(network, str(tmp_path / "no.safetensors"))
    with pytest.raises(ConfigError, match=r"must be imagenet, a run folder, a \.safetensors file"):
        load_pretrained(network, str(tmp_path / "no_run"))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="not a safetensors file"):
        load_pretrained(network, str(tmp_path / "bad.safetensors"))


def test_imagenet_weights_are_summed_for_gray_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torchvision's own file name in its own cache, as a machine without internet has it."""
    torch.manual_seed(0)
    source = resnet18()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    cache = tmp_path / "checkpoints"
    cache.mkdir()
    torch.save(source.state_dict(), cache / Path(ResNet18_Weights.IMAGENET1K_V1.url).name)
    network = build_model(ModelConfig(stem="imagenet"), GRAY).eval()
    load_pretrained(network, "imagenet")
    with pytest.raises(
        ConfigError, match=r"imagenet: 100 weights do not fit .*: ImageNet's have model\.width=64"
    ):
        load_pretrained(build_model(ModelConfig(stem="imagenet", width=32), GRAY), "imagenet")
    with pytest.raises(ConfigError, match="exists only for resnet18 and resnet18_cbam"):
        load_pretrained(build_model(ModelConfig(name="aprnet50"), GRAY), "imagenet")
    gray = torch.rand(1, 1, 48, 48)
    torch.testing.assert_close(
        network.conv1(gray), source.conv1(gray.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(network.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_pretrained_gates_of_another_form_are_refused() -> None:
    """Their weights fit, and would compute something else."""
    load_pretrained(build_model(ModelConfig(), GRAY), "fer2013")
    with pytest.raises(ConfigError, match=r"fer2013: it was trained with model\.gate=unit: set the same"):
        load_pretrained(build_model(ModelConfig(gate="sigmoid"), GRAY), "fer2013")
