"""The `ferdist` command: parses and calls."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ferdist import __version__
from ferdist.data.prepare import DATA_SETS
from ferdist.errors import ConfigError, DataError, RunError, exit_code, is_main_rank, leave, tell

if TYPE_CHECKING:
    from ferdist.data.namelists import NameList

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="--debug, anywhere on the line, shows the traceback of an error.",
)
prepare = typer.Typer(
    help="Convert raw files to a beton, its manifest and samples.csv.", no_args_is_help=True
)
app.add_typer(prepare, name="prepare")


def _refuse_missing(paths: Path | Sequence[Path] | None) -> Path | Sequence[Path] | None:
    """Before anything is imported that takes seconds: end with one line if none of the paths exists."""
    given = [paths] if isinstance(paths, Path) else paths or ()
    if given and not any(path.exists() for path in given):
        hint = "; make it with `ferdist prepare`" if given[0].suffix == ".beton" else ""
        raise DataError(f"{given[0]}: there is no such file{hint}")
    return paths


def _refuse_missing_runs(folders: list[Path]) -> list[Path]:
    for folder in folders:
        if not folder.exists():
            raise RunError(f"{folder}: no such run folder")
    return folders


def _refuse_missing_model(model: str | Sequence[str] | None) -> str | Sequence[str] | None:
    from ferdist.models.weights import SUFFIX, check_model

    for name in [model] if isinstance(model, str) else model or ():
        if ":" not in name and Path(name).suffix in ("", SUFFIX):
            check_model(name)
    return model


Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Model = Annotated[
    str,
    typer.Argument(
        help="A run folder, a .safetensors file or shipped weights.", callback=_refuse_missing_model
    ),
]
AnyModel = Annotated[
    str,
    typer.Argument(
        help="A run folder, a .safetensors file, shipped weights; or from elsewhere: FILE.onnx, its card "
        "FILE.yaml or MODULE:NAME (docs/use.md).",
        callback=_refuse_missing_model,
    ),
]
DetectorName = Annotated[
    str, typer.Option("--detector", help="auto (CenterFace where it is installed), centerface or haar.")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Import the module that the model names; that runs its code.")
]


def _printing(convert: Callable[..., Path]) -> Callable[..., None]:
    """The command that prints what ``convert`` returns, with its options and help."""

    @functools.wraps(convert)
    def command(**options: Any) -> None:
        print(convert(**options))

    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"ferdist {__version__}")
        raise typer.Exit


@app.callback()
def ferdist(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train and exactly evaluate occlusion-robust facial expression recognition."""


for _name, _convert in DATA_SETS.items():
    prepare.command(_name)(_printing(_convert))


@app.command()
def inspect(
    file: Annotated[
        Path, typer.Argument(help="A beton file.", metavar="FILE.beton", callback=_refuse_missing)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    grid: Annotated[Path | None, typer.Option(help="Write an image of samples.", metavar="OUT.png")] = None,
    augment: Annotated[
        Path | None, typer.Option(help="With --grid: show them augmented by this config.", metavar="CONFIG")
    ] = None,
) -> None:
    """Verify a beton in full and describe its contents."""
    from ferdist.use import inspect as beton_inspect

    if augment is not None and grid is None:
        raise ConfigError("--augment changes the picture that --grid writes: add --grid OUT.png")
    if grid is not None and grid.suffix.lower() != ".png":
        raise ConfigError(f"--grid is {grid}: its name must end in .png")
    contents = beton_inspect.inspect(file)
    if grid is not None:
        beton_inspect.save_grid(file, grid, augment)
    print(json.dumps(contents) if as_json else beton_inspect.as_text(contents))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A YAML file, or the name of a shipped config.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Overrides of the config: train.epochs=20 run_dir=runs/a."
        ),
    ] = None,
) -> None:
    """Train in this process, or as one rank under torchrun or SLURM."""
    from ferdist.config import load_config

    settings = load_config(config, overrides or [])
    if settings.data.path and not settings.data.stage:  # a staged copy may outlive it
        _refuse_missing(Path(settings.data.path))
    from ferdist.training.run import run

    results = run(settings)
    if is_main_rank():
        print(results)


@app.command()
def evaluate(
    model: AnyModel,
    data: Annotated[
        Path | None, typer.Option(help="A beton, by default the run's own.", callback=_refuse_missing)
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="val, test (each scoring is counted), train, holdout or all (data without splits)."
        ),
    ] = "val",
    occlusion: Annotated[
        bool, typer.Option("--occlusion", help="Also score covered and noisy faces: docs/occlusion.md.")
    ] = False,
    kinds: Annotated[
        str | None, typer.Option(help="Only these kinds of occlusion, such as square,circle.", metavar="LIST")
    ] = None,
    fills: Annotated[
        str | None, typer.Option(help="Only these fills: zero,mean,noise.", metavar="LIST")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Compare under occlusion with this run, evaluated earlier.")
    ] = None,
    occluded_list: Annotated[
        Path | None,
        typer.Option(help="A published list of really occluded faces, scored as well.", metavar="FILE"),
    ] = None,
    pose_list: Annotated[
        Path | None,
        typer.Option(help="A published list of turned faces, scored as well.", metavar="FILE"),
    ] = None,
    lists: Annotated[
        Path | None,
        typer.Option(
            help="Folder of published lists: those of these data are scored as well.", metavar="DIR"
        ),
    ] = None,
    tta: Annotated[str, typer.Option(help="Test-time augmentation: none, flip or ten-crop.")] = "none",
    checkpoint: Annotated[
        str | None, typer.Option(help="best, last or a path; by default what the run selects.")
    ] = None,
    device: Device = "auto",
    trust_code: TrustCode = False,
    card: Annotated[
        Path | None,
        typer.Option(
            help="Card of a model from elsewhere; the next six options override it.", metavar="FILE.yaml"
        ),
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Its outputs in order, - for one that is left out.", metavar="LIST")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Side of its images, in pixels.")] = None,
    channels: Annotated[str | None, typer.Option(help="Channels of its images: gray, rgb or bgr.")] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Subtracted from the pixels: 0-1, or as the card's scale says.", metavar="LIST"),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation to divide by.", metavar="LIST")] = None,
    output: Annotated[str | None, typer.Option(help="What it returns: logits or probabilities.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Score each sample of a split exactly once; writes results.json and the predictions."""
    from ferdist.data.namelists import find_name_lists
    from ferdist.evaluation.benchmark import grid
    from ferdist.evaluation.evaluate import Plan, evaluate
    from ferdist.evaluation.results import as_text

    if (kinds or fills) and not occlusion:
        raise ConfigError("--kinds and --fills choose parts of the occlusion benchmark: add --occlusion")
    named = {"--occluded-list": occluded_list, "--pose-list": pose_list}
    given = {
        "classes": [None if name == "-" else name for name in _names(classes) or ()] if classes else None,
        "size": size,
        "channels": channels,
        "mean": _numbers("--mean", mean),
        "std": _numbers("--std", std),
        "output": output,
    }
    results = evaluate(
        model,
        data=data,
        split=split,
        plan=Plan(
            cells=grid(_names(kinds), _names(fills)) if occlusion else (),
            reference=reference,
            lists=tuple(_name_list(option, path) for option, path in named.items() if path is not None),
            lists_of_any=find_name_lists(lists) if lists is not None else (),
        ),
        tta=tta,
        checkpoint=checkpoint,
        device=device,
        trust_code=trust_code,
        card=card,
        given={key: value for key, value in given.items() if value is not None},
    )
    if results is not None:
        print(json.dumps(results.content) if as_json else as_text(results, split))


@app.command()
def predict(
    model: Model,
    pictures: Annotated[
        list[Path],
        typer.Argument(
            help="Images, or folders; or one video.",
            metavar="IMAGE|FOLDER|VIDEO...",
            callback=_refuse_missing,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Write annotated images into a folder, or a video's copy.", metavar="DIR|FILE.mp4"),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Write a row for each face (and frame); pictures that it has already are passed over, "
            "unless they failed.",
            metavar="FILE",
        ),
    ] = None,
    whole_image: Annotated[
        bool, typer.Option("--whole-image", help="Each image is already a face crop.")
    ] = False,
    detector: DetectorName = "auto",
    batch_size: Annotated[int, typer.Option(help="Faces per batch.")] = 64,
    device: Device = "auto",
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, an entry for each face.")] = False,
) -> None:
    """Find faces in images or a video and classify their expressions (not anyone's feelings)."""
    from ferdist.evaluation.model import load_trained
    from ferdist.runtime.distributed import choose_device
    from ferdist.use import predict, video

    videos = [path for path in pictures if path.suffix.lower() in video.SUFFIXES and not path.is_dir()]
    if videos and (len(pictures) > 1 or as_json or whole_image):
        raise ConfigError(
            f"{videos[0]}: a video comes alone, without --json and --whole-image (--csv has all)"
        )
    trained = load_trained(model, None, choose_device(device, 0), trust_code=trust_code)
    if videos:
        faces = video.predict_video(trained, videos[0], out=out, table=table, detector=detector)
        print(faces.text() if faces.rows else f"{videos[0]}\t{predict.NO_FACE}")
        return
    classes = trained.card.classes
    rows = None
    if table is not None:
        made_with = predict.made_with(model, trained, detector, whole_image)
        rows = predict.FaceTable(table, pictures, made_with, classes)
    found = predict.predict_pictures(
        trained,
        pictures,
        whole_image=whole_image,
        batch_size=batch_size,
        out=out,
        done=rows.done if rows else (),
        detector=detector,
    )
    results, count, failed = [], 0, 0
    with predict.progress_bar() as bar:
        task = bar.add_task("predicting", total=None)
        for count, result in enumerate(found, start=1):
            bar.update(task, completed=count)
            failed += result.failed
            if result.failed:
                tell(f"ferdist: {result.note}")
            if rows is None:
                results.append(result)
            else:
                rows.add(result)
    if as_json:
        print(json.dumps([entry for result in results for entry in predict.to_json(result, classes)]))
    elif rows is None:
        predict.print_results(results, classes)
    else:
        print(rows.path)
    if failed:
        raise DataError(f"{failed} of {count} could not be read")


@app.command("app")
def serve_app(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run folders, .safetensors files or shipped weights, at most four; by default the shipped.",
            metavar="[MODEL]...",
            callback=_refuse_missing_model,
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 7860,
    detector: DetectorName = "auto",
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    device: Device = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Serve a page on this machine: find a face, cover parts of it, see what models make of it."""
    from ferdist.evaluation.model import load_trained
    from ferdist.runtime.distributed import choose_device
    from ferdist.use.app import serve

    place = choose_device(device, 0)
    names = models or ["fer2013_resnet18_cbam"]
    serve(
        {name: load_trained(name, None, place, trust_code=trust_code) for name in names},
        port,
        detector=detector,
        browser=browser,
    )


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Option(help="FILE.onnx or FILE.safetensors.", metavar="FILE")],
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide the logits by the temperature that fits val best.")
    ] = False,
    trust_code: TrustCode = False,
) -> None:
    """Write a model as ONNX with its preprocessing, or as half-precision weights, and check it."""
    from ferdist.use.export import export

    print(export(model, out, calibrated=calibrated, trust_code=trust_code))


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, or folders of experiments.", metavar="RUN...", callback=_refuse_missing_runs
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report.", metavar="DIR")],
    no_faces: Annotated[
        bool, typer.Option("--no-faces", help="Leave out everything that shows a face from the data.")
    ] = False,
) -> None:
    """Write report.html (self-contained), table1.md and figures."""
    from ferdist.reporting import write_report

    print(write_report(runs, out, faces=not no_faces))


@app.command()
def leaderboard(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, weights, shipped weights, FILE.onnx or cards, evaluated before.",
            metavar="MODEL...",
            callback=_refuse_missing_model,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the page.", metavar="DIR")],
    data: Annotated[Path | None, typer.Option(help="The beton on which all were scored.")] = None,
    split: Annotated[str, typer.Option(help="Split whose scores are shown.")] = "val",
    tta: Annotated[
        str, typer.Option(help="Test-time augmentation of the scores: none, flip or ten-crop.")
    ] = "none",
    device: Device = "auto",
    trust_code: TrustCode = False,
) -> None:
    """Write leaderboard.html (self-contained) and leaderboard.md of models scored on the same images."""
    from ferdist.reporting.leaderboard import write_leaderboard

    print(
        write_leaderboard(models, out, data=data, split=split, tta=tta, device=device, trust_code=trust_code)
    )


@app.command()
def bench(
    stages: Annotated[
        list[str] | None,
        typer.Argument(
            help="convert, load, augment, step, epoch, scale, evaluate, memory; by default all.",
            metavar="[STAGE]...",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
    size: Annotated[str, typer.Option(help="default, or smallest for a smoke test.")] = "default",
    images: Annotated[int | None, typer.Option(help="Number of drawn faces.")] = None,
    data: Annotated[Path | None, typer.Option(help="Measure with these data.", metavar="FILE.beton")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="A real fer2013.csv, to convert and to measure with.", metavar="FILE")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure each stage against a peer and its limit; the table's terms: docs/performance.md."""
    from ferdist.bench.harness import print_table
    from ferdist.bench.run import run_bench

    rows, where = run_bench(stages or (), size=size, images=images, data=data, csv=csv, device=device)
    if as_json:
        print(json.dumps([{**row, "where": where} for row in rows]))
    else:
        print_table(rows, where)


@app.command()
def selftest(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where runs are to be written; nothing stays there.", metavar="DIR")
    ] = Path("runs"),
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for bug reports.")] = False,
) -> None:
    """Look at this machine, check that ferdist computes right on it, and time it: the first thing to run."""
    from ferdist.selftest.run import as_text, run_selftest

    findings = run_selftest(folder, device)
    if is_main_rank():
        print(findings.to_json() if as_json else as_text(findings))
    if not findings.passed:
        raise typer.Exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run; replaces an earlier demo.")] = Path(
        "runs/demo"
    ),
    images: Annotated[int, typer.Option(help="Number of drawn faces.")] = 4000,
) -> None:
    """From drawn faces to a report: prepare, train on two processes, evaluate clean and covered, report."""
    from ferdist.demo import run_demo

    results, page = run_demo(out, images)
    print(results)
    print(page)


def _name_list(option: str, path: Path) -> NameList:
    """The published list that an option names."""
    from ferdist.data.namelists import SUBSETS, read_name_list

    names = read_name_list(path)
    right = "--occluded-list" if names.subset == "occluded" else "--pose-list"
    if option != right:
        raise DataError(f"{path}: a list of faces that are {SUBSETS[names.subset]}: give it as {right}")
    return names


def _names(option: str | None) -> list[str] | None:
    """The names of a comma-separated option."""
    return None if option is None else [name.strip() for name in option.split(",")]


def _numbers(option: str, text: str | None) -> list[float] | None:
    """The numbers of a comma-separated option."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} is {text!r}: it must be numbers with commas between them") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 done, 1 failed with one line on stderr, 2 wrong usage, 75 stopped by a signal with a
        checkpoint written, 130 stopped by Ctrl-C without one.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    return exit_code(lambda: app(arguments, prog_name="ferdist"), debug=debug)


if __name__ == "__main__":
    leave(main())
