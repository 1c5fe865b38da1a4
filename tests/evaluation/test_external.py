"""Models from elsewhere: their cards, their images and classes, and the same scores as ferdist's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
import yaml
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ferdist.cli import main
from ferdist.data import prepare
from ferdist.data.beton import Beton, BetonLoader, open_beton, write_beton
from ferdist.data.folds import Holdout
from ferdist.data.record import FaceDataset
from ferdist.errors import ConfigError, FerdistError
from ferdist.evaluation.external import ExternalModel, load_model, read_card
from ferdist.evaluation.records import read_results
from ferdist.models import Task, multiply_adds
from tests.conftest import ROOT

CPU = torch.device("cpu")
OWN = ["angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"]


def write_onnx(
    path: Path,
    shape: tuple[Any, ...] = ("N", 1, 48, 48),
    outputs: int = 7,
    kind: int = TensorProto.FLOAT,
    seed: int = 0,
) -> np.ndarray[Any, Any]:
    """A model that multiplies the pixels, as they come, with a matrix, which is returned."""
    pixels = int(np.prod(shape[1:]))
    matrix = np.random.default_rng(seed).normal(size=(pixels, outputs)).astype(np.float32) / pixels**0.5
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (shape[0], outputs))],
        [numpy_helper.from_array(matrix, "matrix")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return matrix


def loaded(path: Path, **card: Any) -> ExternalModel:
    """The model in an .onnx file, by a card."""
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"classes": OWN, **card}))
    model = load_model(str(path), None, CPU)
    assert isinstance(model, ExternalModel)
    return model


@pytest.fixture
def beton(beton_path: Path) -> Beton:
    return open_beton(beton_path)


def test_a_model_takes_its_own_size_colours_layout_and_range(tmp_path: Path, beton: Beton) -> None:
    images = torch.randint(0, 256, (5, 1, 48, 48), dtype=torch.uint8)
    matrix = write_onnx(tmp_path / "m.onnx", (2, 30, 20, 3))  # two images at once, channels last
    card = {"channels": "bgr", "scale": 255, "mean": [10.0, 20.0, 30.0], "std": 50.0}
    given = loaded(tmp_path / "m.onnx", **card).scorer(beton, CPU)(images)
    pixels = F.interpolate(images.float(), (30, 20), mode="bilinear", antialias=True)
    pixels = (pixels.expand(-1, 3, -1, -1) - torch.tensor([10.0, 20, 30])[:, None, None]) / 50
    wanted = (pixels.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(matrix)).softmax(1)
    assert torch.allclose(given, wanted, atol=1e-5)


def test_colours_become_gray_and_gray_ones_three(tmp_path: Path, beton: Beton) -> None:
    write_onnx(tmp_path / "m.onnx")
    model = loaded(tmp_path / "m.onnx")
    reds = torch.zeros(1, 3, 48, 48, dtype=torch.uint8)
    reds[:, 0] = 200
    assert torch.allclose(model.prepared(reds, model.task(beton)), torch.tensor(0.299 * 200 / 255))
    write_onnx(tmp_path / "raw.onnx", ("N", 3, 48, 48), kind=TensorProto.UINT8)
    raw = loaded(tmp_path / "raw.onnx")
    grays = reds[:, :1]
    assert torch.equal(raw.prepared(grays, raw.task(beton)), grays.expand(-1, 3, -1, -1))


def test_classes_go_by_name(tmp_path: Path, beton: Beton, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randint(0, 256, (9, 1, 48, 48), dtype=torch.uint8)
    write_onnx(tmp_path / "m.onnx", outputs=9)
    order = ["contempt", "neutral", None, "surprise", "sad", "happy", "fear", "disgust", "angry"]
    given = loaded(tmp_path / "m.onnx", classes=order).scorer(beton, CPU)(images)
    session = load_model(str(tmp_path / "m.onnx"), None, CPU)
    assert isinstance(session, ExternalModel)
    logits = session.answer(images / 255)
    wanted = logits[:, [8, 7, 6, 5, 4, 3, 1]].softmax(
        1
    )  # contempt is none of the data's, and one has no name
    assert torch.allclose(given, wanted, atol=1e-5)

    write_onnx(tmp_path / "few.onnx", outputs=2)
    few = loaded(tmp_path / "few.onnx", classes=["neutral", "happy"])
    answer = few.scorer(beton, CPU, "flip")(images)
    assert torch.equal(answer[:, [0, 1, 2, 4, 5]], torch.zeros(9, 5))  # never predicted: these count as wrong
    assert torch.allclose(answer.sum(1), torch.ones(9))
    monkeypatch.setattr(ExternalModel, "_outputs", lambda *_: torch.full((9, 9), torch.nan))
    broken = loaded(tmp_path / "m.onnx", classes=order).scorer(beton, CPU)(images)
    assert broken.isnan().any(1).all(), "an answer that is no number is none"
    monkeypatch.undo()
    for classes, message in (
        (["happiness", "sad"], "'happiness' is none of the data's"),
        (["contempt", "sad"], "fewer"),
    ):
        with pytest.raises(FerdistError, match=message):
            loaded(tmp_path / "few.onnx", classes=classes).check_fit(beton)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clases": []}, "unknown key clases: did you mean classes?"),
        ({"classes": ["happy", "happy"]}, "a class stands there twice"),
        ({"classes": "happy"}, "Expected `array`, got `str` - at `$.classes`"),
        ({"size": 5000}, "Expected `int` <= 1024 - at `$.size`"),
        ({"size": [48]}, "give a side, or height and width"),
        ({"channels": "cmyk"}, "Invalid enum value 'cmyk' - at `$.channels`"),
        ({"std": 0.0}, "Expected `float` > 0.0 - at `$.std`"),
        ({"scale": 256}, "Invalid enum value 256 - at `$.scale`"),
        ({"output": "votes"}, "Invalid enum value 'votes' - at `$.output`"),
        ({"labels": "mine"}, "data.labels is 'mine'"),
        ({"name": "../up"}, "use letters, digits"),
        ({"saw": {"fer2013": ["dev"]}}, "Invalid enum value 'dev'"),
    ],
    ids=str,
)
def test_a_card_that_is_none_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "card.yaml"
    path.write_text(yaml.safe_dump(change))
    with pytest.raises(ConfigError) as caught:
        read_card(path, {})
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def _outside(path: Path) -> None:
    write_onnx(path)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (path.parent / "w.bin").rename(path.parent.parent / "w.bin")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.bin"
    path.write_bytes(model.SerializeToString())


def _two_inputs(path: Path) -> None:
    write_onnx(path)
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, (1,)))
    model.graph.node.append(helper.make_node("Identity", ["more"], ["unused"]))
    onnx.save(model, path)


def test_the_card_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.S)
    (tmp_path / "card.yaml").write_text(example)
    card = read_card(tmp_path / "card.yaml", {})
    assert card.classes[-2:] == ("contempt", None)
    assert card.saw == {"fer2013": ()}
    others = {"name", "model", "output_name"}
    assert {one.name for one in fields(card)} == {*yaml.safe_load(example)} | others


FILES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no file": (lambda path: None, {}, "there is no such file"),
    "text": (lambda path: path.write_text("no graph"), {}, "cannot be opened as an ONNX model"),
    "weights elsewhere": (_outside, {}, "'../w.bin', which is not a file beside it"),
    "two inputs": (_two_inputs, {}, "must take one batch of images"),
    "a vector": (lambda path: write_onnx(path, ("N", 48)), {}, "must take one batch of images"),
    "another size": (write_onnx, {"size": 64}, "takes images (1, 48, 48) (C, H, W), not (1, 64, 64)"),
    "other colours": (write_onnx, {"channels": "rgb"}, "not (3, 48, 48)"),
    "means": (write_onnx, {"mean": [0.1, 0.2, 0.3]}, "3 values of mean for 1 channels"),
    "classes": (write_onnx, {"classes": OWN[:6]}, "gives (4, 7), and its classes are 6"),
    "logits": (write_onnx, {"output": "probabilities"}, "no probabilities: set output to logits"),
    "an output": (write_onnx, {"output_name": "scores"}, "it gives logits: name one"),
}


@pytest.mark.parametrize("fault", FILES)
def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path, beton: Beton, fault: str) -> None:
    write, card, message = FILES[fault]
    path = tmp_path / "folder" / "m.onnx"
    path.parent.mkdir()
    write(path)
    with pytest.raises(FerdistError) as caught:
        model = loaded(path, **card)
        model.check_fit(beton)
        model.scorer(beton, CPU)(torch.full((4, 1, 48, 48), 9, dtype=torch.uint8))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_beside_the_file_are_part_of_it(tmp_path: Path, beton: Beton) -> None:
    write_onnx(tmp_path / "m.onnx")
    whole = loaded(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    parted = loaded(tmp_path / "m.onnx")
    images = torch.randint(0, 256, (3, 1, 48, 48), dtype=torch.uint8)
    assert torch.equal(whole.scorer(beton, CPU)(images), parted.scorer(beton, CPU)(images))
    digests = {whole.identity["weights_sha256"], parted.identity["weights_sha256"]}
    (tmp_path / "w.bin").write_bytes(bytes(len((tmp_path / "w.bin").read_bytes())))
    digests.add(loaded(tmp_path / "m.onnx").identity["weights_sha256"])
    assert len(digests) == 3
    assert whole.cost(beton) == parted.cost(beton) == (48 * 48 * 7, 48 * 48 * 7)


MODULE = """
from pathlib import Path
import torch
from torch import nn
Path("executed").touch()

def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 7))

def function():
    return lambda images: torch.eye(7)[:, [6, 5, 4, 3, 2, 1, 0]][images[:, 0, 0, 0].long() % 7]

def nothing():
    return 3
"""


def test_a_users_module_runs_only_when_it_is_trusted(
    tmp_path: Path, beton_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "their_model.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    call = ["evaluate", "their_model:network", "--data", str(beton_path), "--device", "cpu"]
    call += ["--classes", ",".join(OWN)]
    assert main(call) == 1
    assert "give --trust-code" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    assert main([*call, "--trust-code"]) == 0
    results = read_results(tmp_path / "runs" / "weights" / "network" / "results.json")
    assert {one.precision for one in results.evaluations} == {"its own"}
    entry = results.evaluations[0]
    assert (entry.checkpoint, entry.subset, entry.samples) == ("given", "all", 63)
    call[1] = "their_model:function"
    assert main([*call, "--trust-code"]) == 1
    assert "are probabilities, not logits" in capsys.readouterr().err
    assert main([*call, "--trust-code", "--output", "probabilities"]) == 0
    for name, message in (("nothing", "neither a module nor a function"), ("absent", "makes no model")):
        call[1] = f"their_model:{name}"
        assert main([*call, "--trust-code"]) == 1
        assert message in capsys.readouterr().err
    sys.modules.pop("their_model", None)


def test_another_model_of_that_name_does_not_share_its_folder(
    tmp_path: Path, beton_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "m.onnx")
    call = ["evaluate", "m.onnx", "--data", str(beton_path), "--device", "cpu"]
    assert main([*call, "--classes", ",".join(OWN)]) == 0
    for text in ("from a drawer", "from a cupboard"):  # what it is said to be may be corrected
        (tmp_path / "m.yaml").write_text(yaml.safe_dump({"classes": OWN, "trained_on": text}))
        assert main(call) == 0
        assert text in (tmp_path / "runs" / "weights" / "m" / "config.yaml").read_text()
    assert main([*call, "--mean", "0.5"]) == 1
    assert "holds evaluations of weights other than these" in capsys.readouterr().err


def test_all_of_another_data_set_without_splits(
    tmp_path: Path, beton_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = tmp_path / "mine"
    for number in range(4):
        for name in ("angry", "happy"):
            place = images / name / f"p{number}_{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(number).integers(0, 256, (48, 48), np.uint8)).save(place)
    folded = prepare.folders(images, tmp_path, name="mine", subject_regex=r"(p\d)_", folds=2)
    write_onnx(tmp_path / "theirs.onnx")
    for saw, code in (({}, 0), ({"mine": ["train"]}, 1)):
        name = f"theirs{code}"
        card = {"classes": OWN, "model": "theirs.onnx", "name": name, "saw": saw}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(card))
        call = ["evaluate", f"{name}.yaml", "--split", "all", "--device", "cpu", "--data"]
        assert main([*call, str(folded)]) == code
    assert "mine.beton: the model was trained on these data" in capsys.readouterr().err
    (image,) = [
        one
        for one in read_results(tmp_path / "runs" / "weights" / "theirs0" / "results.json").evaluations
        if (one.subset, one.unit) == ("all", "image")
    ]
    assert (image.split, image.samples, image.fold) == ("all", 8, None)
    assert main([*call, str(beton_path)]) == 1
    assert "all is for data without splits; it has the splits train" in capsys.readouterr().err


def test_data_with_other_classes_spoil_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores of a model from elsewhere have the classes of the data, and a results.json those of one."""
    monkeypatch.chdir(tmp_path)
    write_onnx(tmp_path / "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 48, 48), dtype=np.uint8)
    call = ["evaluate", "m.onnx", "--device", "cpu", "--classes", ",".join(OWN)]
    names, labels = [str(row) for row in range(12)], [row % 3 for row in range(12)]
    for name, classes in (("one", OWN[:3]), ("other", OWN[3:6])):
        write_beton(
            FaceDataset.of(name, images, labels, classes, names, split=[row % 2 for row in range(12)]),
            tmp_path,
        )
    assert main([*call, "--data", "one.beton"]) == 0
    before = Path("runs/weights/m/results.json").read_bytes()
    assert main([*call, "--data", "other.beton"]) == 1
    assert (
        "holds scores by the classes angry, disgust, fear, and these data have happy"
        in capsys.readouterr().err
    )
    assert Path("runs/weights/m/results.json").read_bytes() == before


@pytest.mark.slow
def test_timms_network_has_the_accuracy_of_a_plain_script(
    tmp_path: Path, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model("resnet18", pretrained=False, num_classes=7).eval()
    val = np.sort(beton.indices("val", Holdout()))
    batches = BetonLoader(beton, batch_size=256, device=CPU).batches(val)
    images = torch.cat([batch.image for batch in batches])
    pixels = F.interpolate(images.float(), (64, 64), mode="bilinear", antialias=True) / 255
    pixels = (pixels.expand(-1, 3, -1, -1) - 0.5) / 0.25
    with torch.no_grad():  # else an untrained network says the same of every face
        network.fc.weight *= 30
        network.fc.bias -= network(pixels).mean(0)
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, 64, 64),),
        tmp_path / "timm.onnx",
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(tmp_path / "timm.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    predicted = logits.argmax(1)
    accuracy = float((predicted == beton.label[val]).mean())
    assert len(set(predicted)) > 3

    monkeypatch.chdir(tmp_path)
    (tmp_path / "timm.yaml").write_text(yaml.safe_dump({"classes": OWN, "mean": 0.5, "std": 0.25}))
    assert main(["evaluate", "timm.onnx", "--data", str(beton.path), "--device", "cpu"]) == 0
    entry = read_results(tmp_path / "runs" / "weights" / "timm" / "results.json").evaluations[0]
    assert entry.accuracy == accuracy
    model = load_model("timm.onnx", None, CPU)
    parameters, products = model.cost(beton)
    assert parameters is not None
    assert abs(parameters - sum(p.numel() for p in network.parameters())) < 10_000  # batch norm is folded
    assert products == multiply_adds(network, Task(3, 64, 64, 7))
