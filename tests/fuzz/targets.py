"""What is read from outside, each with the valid files that cases start from and the calls that read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from ferdist.config import LABELS, Config, load_config, to_dict
from ferdist.data.affectnet import read_affectnet
from ferdist.data.beton import BetonLoader, labels_of, open_beton
from ferdist.data.ckplus import read_ckplus
from ferdist.data.fer2013 import read_ckextended, read_fer2013
from ferdist.data.ferplus import ferplus_labels, read_ferplus
from ferdist.data.folders import read_folders
from ferdist.data.folds import assign_folds
from ferdist.data.namelists import read_name_list
from ferdist.data.posed import JAFFE_CODES, KDEF_CODES, read_jaffe, read_kdef
from ferdist.data.prepare import write
from ferdist.data.rafdb import read_rafdb
from ferdist.data.rawformats import write_ckplus48, write_ckplus_h5, write_fer2013_csv
from ferdist.data.record import FER2013_CLASSES, SPLITS, FaceDataset
from ferdist.data.synthetic import synthesize
from ferdist.errors import FerdistError
from ferdist.evaluation.model import ModelCard, load_trained
from ferdist.models import ModelConfig, Task, build_model, weights
from ferdist.reporting.load import grids_of, load_runs, occluded_entries, predictions_of, robustness_of
from ferdist.reporting.report import write_report
from ferdist.runtime import checkpoint
from ferdist.runtime.experiment import read_experiment
from ferdist.runtime.folder import RunFolder
from ferdist.use.inspect import as_text, inspect
from ferdist.use.pictures import read_picture
from ferdist.use.predict import predict_pictures, to_json
from tests.conftest import ROOT
from tests.data.field import affectnet_numbers_tree, affectnet_tree, rafdb_tree
from tests.data.files import VOTED, encoded
from tests.fuzz.change import Change, Files, pack, read_files
from tests.reporting.conftest import write_run

CPU: Final = torch.device("cpu")
FLAG: Final = "thorough"
"""A file that asks for the slow part of a call: so a case says it itself, and a kept one as well."""


@dataclass(frozen=True)
class Target:
    """Something that is read from outside.

    Attributes:
        write: writes valid files into an empty folder.
        read: calls what reads them; returns, or raises a FerdistError.
        mend: makes changed files agree with each other again, such as in their checksums, in most cases.
        alone: whether a case has only one of the files.
        thorough: share of the cases in which the slow part is called too.
    """

    write: Callable[[Path], object]
    read: Callable[[Path], object]
    mend: Callable[[Files], None] = lambda files: None
    alone: bool = False
    thorough: float = 0.0

    def case(self, name: str, valid: Mapping[str, bytes]) -> Files:
        """The files of the case of that name, the same each time; those of case 0 are valid."""
        if name.endswith(" 0"):
            return dict(valid)
        change = Change(name)
        if self.alone:
            one = change.choice(sorted(valid))
            valid = {one: valid[one]}
        files = change.files(valid)
        if change.often(0.7):
            self.mend(files)
        return {**files, FLAG: b""} if change.often(self.thorough) else files


def each(*calls: Callable[[], object]) -> None:
    """Make all calls, also after one that is refused; raises the first refusal."""
    refusals = []
    for call in calls:
        try:
            call()
        except FerdistError as error:
            refusals.append(error)
    if refusals:
        raise refusals[0]


@cache
def faces(number: int = 21, side: int = 8) -> FaceDataset:
    """Drawn faces, shrunk so that cases are quick."""
    drawn = synthesize(number, 0)
    step = drawn.images.shape[-1] // side
    return replace(drawn, images=np.ascontiguousarray(drawn.images[:, :, ::step, ::step]))


# Data sets


def _read_csv(folder: Path) -> None:
    each(lambda: read_fer2013(folder / "fer2013.csv"), lambda: read_ckextended(folder / "fer2013.csv"))


def _write_ferplus(folder: Path) -> None:
    named = {"happy": "happiness", "sad": "sadness", "angry": "anger"}
    lines = [",".join(("Usage", "Image name", *VOTED))]
    data = faces()
    for number, (label, split) in enumerate(zip(data.labels, data.split, strict=True)):
        voted = named.get(FER2013_CLASSES[label], FER2013_CLASSES[label])
        votes = ["8" if name == voted else "2" if name == "unknown" else "0" for name in VOTED]
        usage = ("Training", "PublicTest", "PrivateTest")[split]
        lines.append(",".join((usage, f"fer{number:07d}.png", *votes)))
    (folder / "fer2013new.csv").write_text("\n".join(lines) + "\n")


def _read_ferplus(folder: Path) -> None:
    data = replace(faces(), source_id=[f"line {number + 2}" for number in range(21)], name="fer2013")
    ferplus_labels(read_ferplus(folder / "fer2013new.csv", data))


def _write_list(folder: Path) -> None:
    forms = {
        "occlusion_ferplus_list": "{label}_fer{n:07d}.png 8 3\n",
        "val_raf_db_list_45": "{label}/test_{n:04d}_aligned.jpg\n",
        "pose_30_affectnet_list": "{label}/{n:056x}.jpg\n",
    }
    for name, form in forms.items():
        lines = [form.format(label=n % 7, n=n) for n in range(12)]
        (folder / f"{name}.txt").write_text("".join(lines))


def _read_lists(folder: Path) -> None:
    each(*(partial(read_name_list, path) for path in sorted(folder.glob("*.txt"))))


def _write_h5(folder: Path) -> None:
    write_ckplus_h5(folder / "CK_data.h5", 21, 0)
    write_ckplus48(folder / "CK+48", 21, 0)


def _read_h5(folder: Path) -> None:
    each(
        lambda: read_ckplus(folder / "CK_data.h5"),
        lambda: read_ckplus(folder / "CK_data.h5", subjects_from=folder / "CK+48"),
    )


def _write_affectnet(folder: Path) -> None:
    affectnet_tree(folder / "csv", 4, 4, others=1)
    affectnet_numbers_tree(folder / "numbers", 4, 4)


def _read_affectnet(folder: Path) -> None:
    each(
        lambda: np.asarray(read_affectnet(folder / "csv", size=16).images),
        lambda: np.asarray(read_affectnet(folder / "numbers", size=16).images),
    )


def _write_posed(folder: Path) -> None:
    pictures = [encoded(face[0]) for face in np.asarray(faces().images)]
    for number, picture in enumerate(pictures):
        jaffe = f"K{'ALM'[number // 7]}.{tuple(JAFFE_CODES)[number % 7]}1.{number}.tiff"
        kdef = f"AF{number // 7 + 1:02d}{tuple(KDEF_CODES)[number % 7]}S.JPG"
        for file in (folder / "jaffe" / jaffe, folder / "kdef" / kdef):
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture)


def _read_posed(folder: Path) -> None:
    each(
        lambda: np.asarray(read_jaffe(folder / "jaffe", 16).images),
        lambda: np.asarray(read_kdef(folder / "kdef", size=16).images),
    )


def _write_folders(folder: Path) -> None:
    """Two classes in two splits, a picture of each format and mode."""
    pictures = iter(_pictures().items())
    for split in ("train", "test"):
        for name in ("happy", "sad"):
            (folder / "set" / split / name).mkdir(parents=True)
            for file, data in (next(pictures), next(pictures), next(pictures)):
                (folder / "set" / split / name / f"S00{len(data) % 7}_{file}").write_bytes(data)


def _read_folders(path: Path) -> None:
    np.asarray(read_folders(path, "fuzz", size=16, subject_regex=r"(S\d+)").images)  # decodes them


def _write_zips(folder: Path) -> None:
    """A zip of each layout."""
    data = faces()
    usages = (("train", "Training"), ("test", "PublicTest"), ("test", "PrivateTest"))
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        _write_folders(place)
        write_ckplus48(place / "CK+48", 9, 0)
        for number, split in enumerate(data.split):
            above, usage = usages[split]
            file = place / "fer" / above / FER2013_CLASSES[data.labels[number]] / f"{usage}_{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(data.images[number, 0]))
        for name in ("set", "CK+48", "fer"):
            members = read_files(place / name).items()
            (folder / f"{name}.zip").write_bytes(
                pack([(f"{name}/{file}", content) for file, content in members])
            )


def _read_zips(folder: Path) -> None:
    read = {"set.zip": _read_folders, "CK+48.zip": read_ckplus, "fer.zip": read_fer2013}
    for file in folder.iterdir():
        read[file.name](file)


# Betons


def _write_beton(folder: Path) -> None:
    write(replace(assign_folds(faces(84), 3, 0), name="fuzz"), folder)


def _mend_beton(files: Files) -> None:
    """The manifest's checksums are those of the files."""
    texts = {"sha256": files.get("fuzz.beton"), "samples_sha256": files.get("fuzz.samples.csv")}
    manifest = files.get("fuzz.json")
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        content = json.loads(manifest)  # type: ignore[arg-type]
        content |= {key: sha256(data).hexdigest() for key, data in texts.items() if isinstance(data, bytes)}
        files["fuzz.json"] = json.dumps(content).encode()


def _read_beton(folder: Path) -> None:
    path = folder / "fuzz.beton"

    def opened() -> None:
        beton = open_beton(path)
        for kind in LABELS:
            with suppress(FerdistError):  # most have no votes
                labels_of(beton, kind)
        each(beton.normalisation, *(partial(beton.indices, split) for split in SPLITS))
        if (folder / FLAG).exists():
            loader = BetonLoader(beton, batch_size=4, device=CPU, timeout=5)
            list(loader.batches(np.arange(len(beton.label))))

    each(lambda: as_text(inspect(path)), opened)


# Models


def _model() -> tuple[ModelCard, dict[str, torch.Tensor]]:
    model = ModelConfig(name="resnet18", stem="imagenet", width=4)
    card = ModelCard(Config(model=model), Task(1, 48, 48, 7), FER2013_CLASSES, (0.5,), (0.25,), "5e" * 32)
    torch.manual_seed(0)
    return card, build_model(model, card.task).state_dict()


def _write_card(folder: Path) -> None:
    card, tensors = _model()
    path = folder / "model.safetensors"
    path.write_bytes(weights.encode(path, tensors, {**card.to_dict(), "checkpoint": "best", "step": 3}))


def _read_card(folder: Path) -> None:
    """Load the weights and classify a face."""
    trained = load_trained(str(folder / "model.safetensors"), None, CPU)
    face = folder / "face.png"
    face.write_bytes(encoded(faces(1, 48).images[0, 0]))
    for result in predict_pictures(trained, [face], whole_image=True):
        to_json(result, trained.card.classes)


def _write_checkpoints(folder: Path) -> None:
    card, tensors = _model()
    run = RunFolder(folder)
    run.write_config(card.config, {"ferdist": "0.1.0"})
    for step in (1, 2):
        state = {
            **{"step": step, "read_at": step, "seconds": 0.5, "world_size": 1, "accuracy": 0.5},
            **{"counters": torch.zeros(4), "model": tensors, "ema": tensors, "optimizer": {}, "scaler": {}},
            "card": card.to_dict(),
        }
        checkpoint.save(checkpoint.step_path(run.checkpoints, step), state)
    checkpoint.save(run.checkpoints / checkpoint.BEST, state)


def _mend_checkpoints(files: Files) -> None:
    """Each checksum is its file's."""
    for name, data in list(files.items()):
        if name.endswith(".pt") and isinstance(data, bytes):
            files[f"{name}.sha256"] = f"{sha256(data).hexdigest()}  {name.rpartition('/')[2]}\n".encode()


def _read_checkpoints(folder: Path) -> None:
    each(
        lambda: checkpoint.load_newest(folder / "checkpoints"),
        lambda: load_trained(str(folder), "best", CPU),
    )


# Configs, pictures


_OVERRIDES: Final = "train.epochs=3\ndata.fold=1\nmodel.name=vgg16\naugment.geometry.flip=0.25"
_BASE: Final = ROOT / "configs" / "base.yaml"


def _write_configs(folder: Path) -> None:
    (folder / "base.yaml").write_bytes(_BASE.read_bytes())
    (folder / "overrides.txt").write_text(_OVERRIDES)
    RunFolder(folder).write_config(Config(), {"ferdist": "0.1.0"})


def _read_configs(folder: Path) -> None:
    for file in folder.iterdir():
        if file.name == "overrides.txt" and file.is_file():
            lines = file.read_text("utf-8", "replace").split("\n")
            each(*(partial(load_config, _BASE, [line]) for line in lines[:4]))
        else:
            load_config(file)


def _pictures() -> dict[str, bytes]:
    """A drawn face in each format, and in the modes that a format has."""
    gray = Image.fromarray(synthesize(1, 0).images[0, 0])
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    options: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "gray.png": (gray, "PNG", {}),
        "colour.jpg": (gray.convert("RGB"), "JPEG", {"exif": turned}),
        "palette.png": (gray.convert("P"), "PNG", {"transparency": 3}),
        "deep.png": (deep, "PNG", {}),
        "cmyk.jpeg": (gray.convert("CMYK"), "JPEG", {"progressive": True}),
        "colour.bmp": (gray.convert("RGB"), "BMP", {}),
        "bits.bmp": (gray.convert("1"), "BMP", {}),
        "packed.tif": (gray, "TIFF", {"compression": "tiff_lzw"}),
        "deep.tiff": (deep, "TIFF", {"exif": turned}),
        "alpha.webp": (gray.convert("RGBA"), "WEBP", {}),
        "gray.pgm": (gray, "PPM", {}),
        "colour.ppm": (gray.convert("RGB"), "PPM", {}),
    }
    return {name: encoded(image, kind, **more) for name, (image, kind, more) in options.items()}


def _write_pictures(folder: Path) -> None:
    for name, data in _pictures().items():
        (folder / name).write_bytes(data)


def _read_pictures(folder: Path) -> None:
    for file in folder.iterdir():
        read_picture(file).is_gray()


# Run folders


def _write_run(folder: Path) -> None:
    write_run(folder / "run", samples=40, epochs=2, test=True, occlusion=True, manifest=True)
    for name in ("config.yaml", "results.json"):  # no place of this host is part of a case
        file = folder / "run" / name
        file.write_text(file.read_text().replace(str(folder), "."))
    status = {"state": "finished", "reason": None, "step": 10, "updated": "2026-01-01T00:00:00Z"}
    part = {"config": to_dict(Config()), "beton_sha256": "5e" * 32}
    cells = {"fold-00-seed-0": {"fold": 0, "seed": 0}}
    experiment = {"schema": 1, "parts": {"": part}, "cells": cells, "jobs": {"fold-00-seed-0": [{"id": "7"}]}}
    (folder / "run" / "status.json").write_text(json.dumps(status))
    (folder / "experiment.json").write_text(json.dumps(experiment))


def _read_run(folder: Path) -> None:
    def report() -> None:
        (run,) = load_runs([folder / "run"])
        for evaluation in run.evaluations:
            predictions_of(run, evaluation)
            robustness_of(run, evaluation)
        for key in ("train/loss", "val/accuracy"):
            run.epoch_means(key)
        if any(one.occlusion for one in run.evaluations):
            grids_of(run, occluded_entries(run))
        if (folder / FLAG).exists():
            write_report([folder / "run"], folder / "report")

    each(report, lambda: read_experiment(folder))


TARGETS: Final[dict[str, Target]] = {
    "fer2013": Target(lambda folder: write_fer2013_csv(faces(), folder / "fer2013.csv"), _read_csv),
    "ferplus": Target(_write_ferplus, _read_ferplus),
    "lists": Target(_write_list, _read_lists, alone=True),
    "ckplus48": Target(
        lambda folder: write_ckplus48(folder / "CK+48", 9, 0), lambda folder: read_ckplus(folder / "CK+48")
    ),
    "h5": Target(_write_h5, _read_h5),
    "rafdb": Target(
        lambda folder: rafdb_tree(folder, 8, 6), lambda folder: np.asarray(read_rafdb(folder, 16).images)
    ),
    "affectnet": Target(_write_affectnet, _read_affectnet),
    "posed": Target(_write_posed, _read_posed),
    "folders": Target(_write_folders, lambda folder: _read_folders(folder / "set")),
    "zips": Target(_write_zips, _read_zips, alone=True),
    "beton": Target(_write_beton, _read_beton, _mend_beton, thorough=0.2),
    "cards": Target(_write_card, _read_card),
    "checkpoints": Target(_write_checkpoints, _read_checkpoints, _mend_checkpoints),
    "configs": Target(_write_configs, _read_configs, alone=True),
    "pictures": Target(_write_pictures, _read_pictures, alone=True),
    "runs": Target(_write_run, _read_run, thorough=0.01),
}
