#!/usr/bin/env python3
"""Prepare a large set of drawn faces in AffectNet's layout; say how fast that was and what memory it took.

usage: large_set.py FOLDER [--images 300000] [--size 112] [--train]

The folder must not exist; it needs room for the beton (37,632 bytes an image at 112 px) and is removed at the
end. A few hundred drawn pictures serve for all images: the files are links to them, and each row of the csv
has a face box of its own, so each image is decoded and no two are the same. To bound memory, start this in
a cgroup with a limit: the kernel then ends what exceeds it. With --train, a small network then reads each
image of the training part once, in random order, in 200 steps.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ferdist.data.synthetic import synthesize

PICTURES, SIDE, FACE = 400, 256, 160
STEPS = 200
HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def draw(folder: Path) -> list[Path]:
    """Pictures of 256 x 256 pixels with a drawn face in colour in noise, as JPEG files."""
    folder.mkdir()
    generator, files = np.random.default_rng(0), []
    for number, face in enumerate(synthesize(PICTURES, 0).images[:, 0]):
        pixels = generator.integers(90, 140, (SIDE, SIDE, 3), dtype=np.uint8)
        large = np.asarray(Image.fromarray(face).resize((FACE, FACE), Image.Resampling.BICUBIC))
        start = (SIDE - FACE) // 2
        tinted = large[..., None] * np.array([1.0, 0.8, 0.65])
        pixels[start : start + FACE, start : start + FACE] = tinted.astype(np.uint8)
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "jpeg", quality=90)
        files.append(folder / f"{number}.jpg")
        files[-1].write_bytes(content.getvalue())
    return files


def write_rows(folder: Path, name: str, pictures: list[Path], images: int) -> None:
    """A csv file with so many rows, and its files as links to the pictures."""
    points = ";".join(f"{10.5 + point:.2f};{20.25 + point:.2f}" for point in range(68))
    with (folder / name).open("w") as file:
        file.write(HEADER + "\n")
        for number in range(images):
            place = f"{number // 1000 + 1}/{hashlib.sha224(f'{name} {number}'.encode()).hexdigest()}.jpg"
            link = folder / "Manually_Annotated_Images" / place
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(pictures[number % PICTURES], link)
            turn = number // PICTURES
            x, y, side = 20 + turn % 30, 20 + turn // 30 % 30, 150 + turn // 900
            file.write(f"{place},{x},{y},{side},{side},{points},{number % 8},0.1,-0.2\n")


def memory_of(process: int) -> dict[str, int]:
    """Anonymous and whole resident memory of a process now, in bytes."""
    try:
        text = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return {}
    rows = dict(line.split(":", 1) for line in text.splitlines())
    return {key: int(rows[key].split()[0]) * 1024 for key in ("RssAnon", "VmHWM") if key in rows}


def train(folder: Path) -> None:
    """An epoch of 200 steps, as a user would start it."""
    beton = folder / "out" / "affectnet.beton"
    manifest = json.loads(beton.with_suffix(".json").read_text())
    batch = manifest["splits"]["train"]["samples"] // STEPS
    small = ("model.stem=imagenet", "model.width=8", "train.epochs=1", f"data.batch_size={batch}")
    command = ["ferdist", "train", "base", f"data.path={beton}", f"run_dir={folder / 'run'}", *small]
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", *command], check=True)
    print(f"an epoch of {STEPS} steps of {batch} images and its validation: {time.monotonic() - begin:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir()
    try:
        raw = options.folder / "raw"
        raw.mkdir()
        pictures = draw(options.folder / "pictures")
        validation = max(8, options.images // 75)
        write_rows(raw, "validation.csv", pictures, validation)
        write_rows(raw, "training.csv", pictures, options.images - validation)
        command = [sys.executable, "-m", "ferdist", "prepare", "affectnet", "--source", raw]
        command += ["--out", options.folder / "out", "--size", str(options.size), "--val-share", "0.02"]
        begin, peak = time.monotonic(), 0
        with subprocess.Popen(list(map(str, command))) as process:
            held: dict[str, int] = {}
            while process.poll() is None:
                held = memory_of(process.pid) or held
                peak = max(peak, held.get("RssAnon", 0))
                time.sleep(0.1)
        seconds = time.monotonic() - begin
        if process.returncode:
            sys.exit(f"prepare ended with {process.returncode} after {seconds:.0f} s")
        size = (options.folder / "out" / "affectnet.beton").stat().st_size
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy = used.ru_utime + used.ru_stime
        print(f"{options.images:,} images in {seconds:.0f} s: {options.images / seconds:.0f} images/s")
        print(f"{busy:.0f} s of CPU: {options.images / busy:.0f} images for each")
        print(f"beton {size / 1e9:.2f} GB; anonymous memory at most {peak / 2**20:.0f} MiB")
        print(f"resident memory, mapped files included, at most {held['VmHWM'] / 2**20:.0f} MiB", flush=True)
        if options.train:
            train(options.folder)
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
