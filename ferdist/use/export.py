"""A trained model as one file for elsewhere: ONNX, or weights that ferdist reads by name."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import ferdist
from ferdist.augment import normalise
from ferdist.data.synthetic import synthesize
from ferdist.errors import ConfigError, RunError, reason_of
from ferdist.evaluation.metrics import best_temperature
from ferdist.evaluation.model import ModelCard, TrainedModel, load_trained
from ferdist.evaluation.predictions import Predictions
from ferdist.evaluation.records import Evaluation, read_results
from ferdist.io import atomic_path, writing
from ferdist.models import classifier_name, weights
from ferdist.runtime.folder import RunFolder

Floats = npt.NDArray[np.float32]

PARITY: Final = 1e-4
"""Largest difference in probability between the network in fp32 and its ONNX graph."""
ROUNDING: Final = 0.02
"""Largest difference in probability between the network and its weights in half precision."""
PROBES: Final = 16
"""Number of drawn faces, and of random images, that are compared."""


def export(model: str, out: Path, *, calibrated: bool = False, trust_code: bool = False) -> str:
    """Write a model into one file, ``*.onnx`` or ``*.safetensors``, which appears only once it is checked.

    Args:
        model, trust_code: as for `load_trained`.
        out: the file.
        calibrated: divide the logits by the temperature that fits the run's predictions on val best.

    Returns:
        One line about what was written.

    Raises:
        ConfigError: for another ending, or if the packages for ONNX are missing.
        RunError: if there is no such model, or the file does not compute what the model does, or
            ``calibrated`` is asked for where there are no predictions on val.
    """
    if out.suffix not in (".onnx", weights.SUFFIX):
        raise ConfigError(f"--out is {out}: its name must end in .onnx or {weights.SUFFIX}")
    trained = load_trained(model, None, torch.device("cpu"), trust_code=trust_code)
    facts = facts_of(trained, model)
    if calibrated:
        facts["calibration"] = _calibrate(trained, model)
        for entry in facts["val"]:
            del entry["ece"]  # of the network as it was
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".onnx":
            difference = _write_onnx(trained, facts, out)
        else:
            difference = _write_weights(trained, facts, out)
    size = out.stat().st_size / 1e6
    warmth = f"temperature {facts['calibration']['temperature']:.3f}; " if calibrated else ""
    parity = f"probabilities differ by at most {difference:.1e} on {2 * PROBES} images"
    return f"{out} ({size:.1f} MB; {warmth}{parity})"


def facts_of(trained: TrainedModel, model: str) -> dict[str, Any]:
    """What goes into a file's metadata: the card, the data's name and sha256, val scores, the version.

    Paths are cut down to their last part: they say where the trainer's files lie and nothing about the model.
    """
    if trained.weights is not None:
        return weights.read(trained.weights)[1]
    config = trained.card.config
    teachers = ",".join(Path(one.strip()).name for one in config.data.soft_labels.split(","))
    data = replace(config.data, path=Path(config.data.path).name, soft_labels=teachers, stage="")
    pretrained = config.model.pretrained
    net = replace(config.model, pretrained=None if pretrained is None else Path(pretrained).name)
    card = replace(
        trained.card, config=replace(config, data=data, model=net, run_dir=Path(config.run_dir).name)
    )
    val = _val_scores(Path(model) / "results.json", trained)
    return {
        "format": 1,
        **card.to_dict(),
        "data": val[0]["data"] if val else Path(config.data.path).stem,
        "checkpoint": trained.checkpoint,
        "step": trained.step,
        "val": val,
        "ferdist": ferdist.__version__,
    }


def _val_scores(path: Path, trained: TrainedModel) -> list[dict[str, Any]]:
    names = ["data", "fold", "subset", "unit", "samples", "accuracy", "accuracy_ci95"]
    names += ["balanced_accuracy", "macro_f1", "per_class_recall", "ece"]
    entries = [one.to_json() for one in _val_evaluations(path, trained)]
    return [{name: entry[name] for name in names} for entry in entries]


def _val_evaluations(path: Path, trained: TrainedModel) -> list[Evaluation]:
    """The plain evaluations of these weights on val of their own data; none where there are none."""
    if not path.exists():
        return []
    wanted = ("val", "none", None, trained.checkpoint, trained.card.beton_sha256)
    return [
        one
        for one in read_results(path).evaluations
        if (one.split, one.tta, one.occlusion, one.checkpoint, one.beton_sha256) == wanted
        and one.step in (None, trained.step)
    ]


def _calibrate(trained: TrainedModel, model: str) -> dict[str, Any]:
    """Divide the network's logits by the temperature that fits val, in place; returns facts about it.

    The division goes into the weights of the last layer: whoever uses the file need not know of it.
    """
    folder = RunFolder(Path(model))
    plain = [] if trained.weights else _val_evaluations(folder.results, trained)
    if not plain:
        raise RunError(
            f"{model}: no predictions on val to choose a temperature with: "
            f"run ferdist evaluate {model}, or leave out --calibrated"
        )
    seen = Predictions.load(folder.predictions / plain[0].predictions)
    temperature = best_temperature(seen.probabilities, seen.label)
    images = probes(trained.card)
    wanted = _logits(trained, images) / temperature
    with torch.no_grad():
        for weight in trained.network.get_submodule(classifier_name(trained.network)).parameters():
            weight.div_(temperature)
    if not torch.allclose(_logits(trained, images), wanted, rtol=1e-3, atol=1e-4):
        raise RunError(f"{trained.card.config.model.name} cannot be calibrated: its last layer is not linear")
    return {"split": "val", "samples": len(seen.label), "temperature": temperature}


class Deployed(nn.Module):
    """The network with what stands before and behind it: uint8 (N, C, H, W) to probabilities (N, K)."""

    def __init__(self, network: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.network, self.mean, self.std = network, card.mean, card.std

    def forward(self, image: Tensor) -> Tensor:
        """As evaluation does it, in fp32."""
        logits: Tensor = self.network(normalise(image, self.mean, self.std))
        return logits.softmax(1)


def probes(card: ModelCard) -> Tensor:
    """uint8 (2 PROBES, C, H, W): drawn faces, then random pixels."""
    task = card.task
    shape = (PROBES, task.channels, task.height, task.width)
    faces = torch.from_numpy(synthesize(PROBES).images).float()
    faces = nn.functional.interpolate(faces, shape[2:], mode="bilinear").round().to(torch.uint8)
    noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.cat([faces.expand(shape), noise])


def _write_weights(trained: TrainedModel, facts: dict[str, Any], out: Path) -> float:
    content = weights.encode(out, trained.network.state_dict(), facts)
    with atomic_path(out.absolute()) as draft:
        draft.write_bytes(content)
        tensors, _ = weights.read(draft)
        images = probes(trained.card)
        before = _answer(trained, images)
        trained.network.load_state_dict(tensors)
        return _within(ROUNDING, before, _answer(trained, images), out)


def _write_onnx(trained: TrainedModel, facts: dict[str, Any], out: Path) -> float:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {error.name}: pip install 'ferdist[export]'") from None
    images = probes(trained.card)
    wanted = _answer(trained, images)
    network = trained.network.to(memory_format=torch.contiguous_format)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Deployed(network, trained.card),
                (images[:2],),
                input_names=["image"],
                output_names=["probabilities"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter wraps whatever a user's network raises
        name = trained.card.config.model.name
        raise RunError(f"{name} cannot be exported to ONNX: {reason_of(error)}") from None
    assert program is not None
    proto = program.model_proto
    batch = proto.graph.input[0].type.tensor_type.shape.dim[0]
    if not batch.dim_param:
        raise RunError(f"{trained.card.config.model.name}: its ONNX graph takes one batch size only")
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in facts.items()})
    proto.producer_name, proto.producer_version = "ferdist", ferdist.__version__
    with atomic_path(out.absolute()) as draft:
        onnx.save(proto, draft)
        session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
        parts = [images[:1], *_parts(images[1:])]
        answers = [session.run(["probabilities"], {"image": part.numpy()})[0] for part in parts]
        return _within(PARITY, wanted, np.concatenate(answers), out)


@torch.inference_mode()
def _logits(trained: TrainedModel, images: Tensor) -> Tensor:
    network = trained.network.eval()
    parts = _parts(normalise(images, trained.card.mean, trained.card.std))
    return torch.cat([network(part) for part in parts])


@torch.inference_mode()
def _answer(trained: TrainedModel, images: Tensor) -> Floats:
    network = Deployed(trained.network, trained.card).eval()
    answer = torch.cat([network(part) for part in _parts(images)])
    if not torch.isfinite(answer).all():
        raise RunError("the network's output is not finite: these weights cannot be used")
    return np.asarray(answer)


def _parts(images: Tensor) -> tuple[Tensor, ...]:
    """Batches of the pixels of 32 images of 48 x 48: of larger images, so many would take gigabytes."""
    return torch.split(images, max(1, 32 * 48**2 // images[0, 0].numel()))


def _within(limit: float, wanted: Floats, given: Floats, out: Path) -> float:
    """The largest difference. Raises RunError if it is above the limit or not a number."""
    difference = float(np.abs(wanted - given).max())
    if not difference < limit:
        raise RunError(
            f"{out}: not written: its probabilities differ from the model's by {difference:.1e}, "
            f"more than {limit:g}"
        )
    return difference
