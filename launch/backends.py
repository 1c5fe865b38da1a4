"""Where jobs run: the options that all launchers share, and a backend for each kind of cluster.

A new backend is one class here, added to `BACKENDS` (docs/extending.md has an example).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import typer
from submitit.core.core import Executor
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.local.debug import DebugExecutor
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, SlurmJob, _make_sbatch_string

from ferdist.config import Config, to_dict
from ferdist.errors import ConfigError, RunError, tell
from ferdist.table import count
from ferdist.training.job import TrainingJob

SIGNAL_SECONDS: Final = 90
"""A job receives SIGUSR2 this long before its time limit."""
_ANSWER_SECONDS: Final = 20
_PYTHON: Final = shlex.join(["sh", "-c", 'trap "" USR2; exec "$0" "$@"', sys.executable])
"""This interpreter, ignoring SIGUSR2 until submitit's handler is installed: by default the signal kills."""
_STARTING_TIMEOUTS: Final = 10
"""How often submitit may requeue a job that reaches its time limit before training has begun."""
_LOCAL_STARTS: Final = 6
"""How often submitit starts a job of this host at most: nothing can set it."""
_NO_LIMIT: Final = 10 * 365 * 24 * 60
"""Minutes, where submitit wants a number."""

_OWN_SBATCH: Final = {
    **{
        key: f"give --{key}" for key in ("partition", "account", "qos", "constraint", "time", "nodes", "gpus")
    },
    "mem": "give --mem-gb",
    "cpus-per-task": "give --cpus",
    **dict.fromkeys(("ntasks", "ntasks-per-node", "tasks-per-node"), "give --gpus or --cpu"),
    "array": "give --array-parallelism",
    **dict.fromkeys(("output", "error", "open-mode"), "the output goes to jobs/ in the folder of --out"),
}
"""What ``--sbatch`` does not take, and why: ranks, jobs and their output are counted and found by it."""
_VARIABLES: Final = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "array": ("ARRAY_INX",),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
    "no-requeue": ("REQUEUE", "NO_REQUEUE"),
}
"""sbatch's variables, after ``SBATCH_``, for options whose variables are not just called like them."""


def _cluster(text: str) -> str:
    if text != "auto" and text not in BACKENDS:
        raise typer.BadParameter(f"{text!r} is not one of auto, {', '.join(BACKENDS)}")
    return text


def _minutes(text: str) -> int:
    """Minutes, rounded up, from minutes or H:MM:SS."""
    found = re.fullmatch(r"(\d+)|(\d+):([0-5]\d):([0-5]\d)", text)
    if not found:
        raise typer.BadParameter(f"{text!r} is neither minutes nor H:MM:SS")
    minutes, hours, rest, seconds = (int(part or 0) for part in found.groups())
    total = minutes + 60 * hours + rest + (seconds > 0)
    if total < 1:
        raise typer.BadParameter(f"{text!r} must be at least one minute")
    return total


def _sbatch_option(text: str) -> str:
    key, equals, value = text.removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not value):
        raise typer.BadParameter(f"{text!r}: write KEY=VALUE, such as reservation=course, or KEY")
    return text.removeprefix("--")


def _count(help: str, *names: str) -> Any:
    return typer.Option(*names, min=1, metavar="N", help=help)


_SbatchName = Annotated[str | None, typer.Option(metavar="NAME", help="As in sbatch.")]


@dataclass(frozen=True)
class Options:
    """What a launcher was asked to do with its jobs; each field is an option on its command line."""

    seeds: Annotated[int, _count("Number of seeds, counted up from the config's.")] = 1
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder (default: one in runs/).")] = None
    retry: Annotated[bool, typer.Option("--retry", help="Submit failed runs again.")] = False
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel the experiment's jobs.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be submitted.")] = False
    wait: Annotated[bool, typer.Option("--wait", help="Show the jobs until they end.")] = False
    cluster: Annotated[
        str,
        typer.Option(
            parser=_cluster,
            metavar=f"[{'|'.join(('auto', *BACKENDS))}]",
            help="auto: slurm where sinfo answers, else local.",
        ),
    ] = "auto"
    partition: _SbatchName = None
    account: _SbatchName = None
    qos: _SbatchName = None
    constraint: _SbatchName = None
    minutes: Annotated[
        int | None,
        typer.Option(
            "--time",
            parser=_minutes,
            metavar="TIME",
            help="Limit: minutes or H:MM:SS (default: 60; local: none).",
        ),
    ] = None
    mem_gb: Annotated[float | None, typer.Option(metavar="GB", help="Memory of each node.")] = None
    cpus: Annotated[int | None, _count("Cores of each rank (default 4).")] = None
    gpus: Annotated[int | None, _count("GPUs of each node, a rank each.", "--gpus", "--gpus-per-node")] = None
    cpu: Annotated[int | None, _count("N ranks on each node, without GPUs.")] = None
    nodes: Annotated[int, _count("Nodes of each job.")] = 1
    array_parallelism: Annotated[int | None, _count("Jobs at once (default: up to 256; local: 1).")] = None
    sbatch: Annotated[
        list[str] | None,
        typer.Option(parser=_sbatch_option, metavar="KEY=VALUE", help="Any other sbatch option; repeatable."),
    ] = None

    def __post_init__(self) -> None:
        if self.gpus and self.cpu:
            raise typer.BadParameter("--cpu is not allowed with --gpus")
        for name in ("partition", "account", "qos", "constraint"):
            refuse_control_characters(f"--{name}", getattr(self, name))
        for option in self.sbatch or ():
            refuse_control_characters("--sbatch", option)
            _check_sbatch(option, self.node_gpus)

    def described(self, runs: int) -> str:
        """What so many runs would take of this host, in words."""
        at_once = min(self.array_parallelism or 1, runs)
        ranks = f"{count(self.ranks, 'rank')} with {count(self.cores, 'core')}"
        return f"{count(runs, 'run')} on this host, {at_once} at a time: {ranks} each"

    @property
    def backend(self) -> Backend:
        """The backend, once `settle` has chosen one."""
        return BACKENDS[self.cluster]

    @property
    def ranks(self) -> int:
        """Ranks on each node."""
        return self.cpu or self.gpus or 1

    @property
    def node_gpus(self) -> int:
        """GPUs of each node, one for each rank; 0 where the ranks compute on CPUs."""
        return 0 if self.cpu else self.ranks

    @property
    def cores(self) -> int:
        """Cores of each rank."""
        return self.cpus or 4


def refuse_control_characters(option: str, value: object) -> None:
    """Refuse a value that would end its line in an sbatch script, so that the rest of it ran as a command.

    Raises:
        ConfigError: names the option.
    """
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in str(value)):
        raise ConfigError(f"{option} is {str(value)!r}: remove the line break or control character")


def _check_sbatch(option: str, gpus: int) -> None:
    """Refuse an option of sbatch that would contradict what the launcher counts on.

    Args:
        option: ``KEY=VALUE`` or ``KEY``.
        gpus: of each node, one for each rank.

    Raises:
        ConfigError: says what to give instead.
    """
    key, _, value = option.partition("=")
    reason = None
    if key in _OWN_SBATCH:
        reason = f"the launcher sets this key itself: {_OWN_SBATCH[key]}"
    elif key == "gpus-per-node" and not gpus:
        reason = "the ranks of --cpu have no GPUs: give --gpus instead"
    elif key == "gpus-per-node" and not re.fullmatch(rf"[^:,]+:{gpus}", value):
        reason = f"each rank has one GPU: give --gpus N and gpus-per-node=TYPE:N (--gpus is {gpus})"
    elif key == "signal" and not re.fullmatch(r"(R:)?USR2@\d+", value):
        reason = "a job resumes only after USR2 to its ranks: give signal=USR2@SECONDS"
    if reason:
        raise ConfigError(f"--sbatch {option}: {reason}")


def settle(options: Options, *, script: bool = False) -> Options:
    """The options with a backend and what it fills in.

    Args:
        options: as given.
        script: ``auto`` is an sbatch script that is only shown, whatever this host has.

    Raises:
        ConfigError: if the backend cannot do what is asked for.
    """
    if script and options.cluster == "auto":
        if not BACKENDS[Slurm.name].is_here():
            tell(
                "ferdist: no SLURM answers here: this is what --cluster slurm would submit; without "
                "--dry-run the runs would be processes of this host (--cluster local)"
            )
        options = replace(options, cluster=Slurm.name)
    if options.cluster == "auto":
        name = next(name for name, backend in BACKENDS.items() if backend.is_here())
        options = replace(options, cluster=name)
    return options.backend.complete(options)


@dataclass(frozen=True)
class Request:
    """Trainings to submit.

    Attributes:
        configs: complete, with run_dir.
        options: from `settle`.
        folder: for the files and the output of the jobs.
        name: of the jobs, as a queue shows it.
        slot: which part of this host's GPUs the jobs get, where they are processes of this host.
    """

    configs: Sequence[Config]
    options: Options
    folder: Path
    name: str
    slot: int = 0


def training_job(config: Config, options: Options) -> TrainingJob:
    """A training as a job's callable, which computes on what was asked for or fails."""
    values = to_dict(config)
    if config.device == "auto" and (options.cpu or options.gpus):
        values["device"] = "cpu" if options.cpu else "cuda"
    return TrainingJob(values, options.cores)


class Backend(ABC):
    """Where jobs run.

    Attributes:
        name: as ``--cluster`` and experiment.json have it.
        queues: whether it takes all jobs at once and runs them without the launcher; otherwise the launcher
            submits one when another ends, and waits for the last.
        poll_seconds: the longest pause between two looks at the jobs.
    """

    name: ClassVar[str]
    queues: ClassVar[bool] = False
    poll_seconds: ClassVar[float] = 1.0

    def is_here(self) -> bool:
        """Whether ``--cluster auto`` may choose it; the first of `BACKENDS` that answers yes is taken."""
        return False

    def complete(self, options: Options) -> Options:
        """The options with what was left open: by default the jobs of one host, which share its cores.

        Raises:
            ConfigError: if this backend cannot do what is asked for.
        """
        if options.nodes > 1:
            raise ConfigError(f"--nodes {options.nodes} needs SLURM, and the cluster is {self.name}")
        parallel = options.array_parallelism or 1
        share = max(1, len(os.sched_getaffinity(0)) // (options.ranks * parallel))
        return replace(options, array_parallelism=parallel, cpus=options.cpus or share)

    def script(self, request: Request) -> str:
        """What `submit` would hand to the cluster, where that is a script."""
        return ""

    @abstractmethod
    def submit(self, request: Request) -> list[str]:
        """Submit a training for each config; the ids of the jobs.

        Raises:
            RunError: if the cluster refuses; the message is the cluster's.
        """

    @abstractmethod
    def alive(self, jobs: Collection[str], folder: Path) -> dict[str, str]:
        """Those of the jobs that wait or run, with their state; UNKNOWN for all while it cannot be asked."""

    def state(self, job: str, folder: Path, minutes: int | None) -> str | None:
        """How a job with that limit ended, such as TIMEOUT; None where that is not known (yet)."""
        return None

    @abstractmethod
    def cancel(self, jobs: Collection[str], folder: Path) -> None:
        """End jobs that wait or run; a training writes a checkpoint first if it gets the time."""


class Slurm(Backend):
    """Jobs of a SLURM cluster, one array per submission.

    submitit's executor is made directly and not through its AutoExecutor, so that the script that
    ``--dry-run`` prints comes from the very parameters of a submission, also where SLURM is not installed.
    """

    name = "slurm"
    queues = True
    poll_seconds = 30.0

    def is_here(self) -> bool:
        try:
            return not subprocess.run(
                ["sinfo", "--noheader"], capture_output=True, timeout=_ANSWER_SECONDS, check=False
            ).returncode
        except (OSError, subprocess.TimeoutExpired):
            return False

    def complete(self, options: Options) -> Options:
        return options if options.cpu else replace(options, gpus=options.gpus or 1)

    def _parameters(self, request: Request) -> dict[str, Any]:
        """The options as submitit's SLURM executor takes them."""
        options = request.options
        given = {
            **{name: getattr(options, name) for name in ("partition", "account", "qos", "constraint")},
            "mem": None if options.mem_gb is None else f"{round(options.mem_gb * 1024)}MB",
            "gpus_per_node": options.node_gpus or None,
            "array_parallelism": options.array_parallelism,
        }
        pairs = [option.partition("=") for option in options.sbatch or ()]
        # submitit's own keys have underscores: only the same spelling replaces them.
        more = {key.replace("-", "_"): value if equals else True for key, equals, value in pairs}
        if "no_requeue" not in more:
            more.setdefault("requeue", True)  # some clusters requeue only jobs that ask for it
        return {
            "job_name": request.name,
            "time": options.minutes or 60,
            "nodes": options.nodes,
            "ntasks_per_node": options.ranks,
            "cpus_per_task": options.cores,
            "signal_delay_s": SIGNAL_SECONDS,
            # srun does not take the cores from sbatch's option, and by default a dead rank leaves the others.
            # The tasks need the job's variables, also where the site exports none.
            "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={options.cores}", "--export=ALL"],
            "additional_parameters": more,
            **{key: value for key, value in given.items() if value is not None},
        }

    def script(self, request: Request) -> str:
        command = f"{_PYTHON} -u -m submitit.core._submit {shlex.quote(str(request.folder))}"
        jobs = len(request.configs)
        array: dict[str, Any] = {"map_count": jobs} if jobs > 1 else {}
        return str(_make_sbatch_string(command, request.folder, **self._parameters(request), **array))

    def submit(self, request: Request) -> list[str]:
        if shutil.which("sbatch") is None:
            raise RunError("--cluster slurm: sbatch not found: log in to the cluster, or use --cluster local")
        executor = SlurmExecutor(request.folder, max_num_timeout=_STARTING_TIMEOUTS, python=_PYTHON)
        executor.update_parameters(**self._parameters(request))
        with _without_variables(self.script(request)):
            return [str(job.job_id) for job in _submit(executor, request)]

    def alive(self, jobs: Collection[str], folder: Path) -> dict[str, str]:
        # squeue lists a job as soon as it is submitted, and nothing that has ended.
        command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", "--format=%i|%T"]
        unfiltered = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
        try:
            answer = subprocess.run(
                command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True, env=unfiltered
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return dict.fromkeys(jobs, "UNKNOWN")
        states = dict(line.strip().split("|", 1) for line in answer.splitlines() if "|" in line)
        return {job: states[job] for job in jobs if job in states}

    def state(self, job: str, folder: Path, minutes: int | None) -> str | None:
        if shutil.which("sacct") is None:
            return None
        state: str = SlurmJob(folder, job).state
        return None if state in ("UNKNOWN", "PENDING", "RUNNING", "COMPLETING", "REQUEUED") else state

    def cancel(self, jobs: Collection[str], folder: Path) -> None:
        try:
            subprocess.run(["scancel", *jobs], capture_output=True, timeout=_ANSWER_SECONDS, check=True)
        except (OSError, subprocess.SubprocessError) as error:
            raise RunError(f"scancel failed: {error}") from None


class Local(Backend):
    """Jobs as processes of this host; an id is that of the process which controls the job's ranks."""

    name = "local"

    def is_here(self) -> bool:
        return True

    def submit(self, request: Request) -> list[str]:
        executor, options, slot = LocalExecutor(request.folder), request.options, request.slot
        gpus = options.node_gpus
        executor.update_parameters(
            timeout_min=options.minutes or _NO_LIMIT,
            tasks_per_node=options.ranks,
            gpus_per_node=gpus,
            signal_delay_s=SIGNAL_SECONDS,
        )
        executor.parameters["visible_gpus"] = _some_gpus(slot * gpus, gpus)  # any name, such as a UUID
        return [str(job.job_id) for job in _submit(executor, request)]

    def alive(self, jobs: Collection[str], folder: Path) -> dict[str, str]:
        return {job: "RUNNING" for job in jobs if self._runs(job, folder)}

    def _runs(self, job: str, folder: Path) -> bool:
        """Whether this process is the one that submitit started for this folder."""
        process = Path("/proc") / job
        try:
            command = (process / "cmdline").read_bytes()
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        starting = not command and state not in "ZX"  # for a moment a new process has no command line
        return starting or (b"submitit.local._local" in command and os.fsencode(folder) in command)

    def state(self, job: str, folder: Path, minutes: int | None) -> str | None:
        if minutes is None:
            return None
        try:
            log = JobPaths(folder, job, 0).stdout.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        if log.count(f"Requeued job {job} ") < _LOCAL_STARTS:
            return None
        return f"TIMEOUT (--time {minutes}, {_LOCAL_STARTS} times)"

    def cancel(self, jobs: Collection[str], folder: Path) -> None:
        for job in self.alive(jobs, folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)  # which it passes on to the ranks


class Debug(Backend):
    """One rank in the launcher's own process."""

    name = "debug"

    def complete(self, options: Options) -> Options:
        if options.ranks > 1:
            raise ConfigError("--cluster debug runs one rank, in this process: leave --gpus and --cpu at 1")
        return super().complete(options)

    def submit(self, request: Request) -> list[str]:
        jobs = _submit(DebugExecutor(request.folder), request)
        for job in jobs:
            job.results()  # it runs when it is asked for its result
        return [str(job.job_id) for job in jobs]

    def alive(self, jobs: Collection[str], folder: Path) -> dict[str, str]:
        return {}

    def cancel(self, jobs: Collection[str], folder: Path) -> None:
        pass  # such a job ends before the launcher does


BACKENDS: Final[dict[str, Backend]] = {backend.name: backend for backend in (Slurm(), Local(), Debug())}


def _some_gpus(first: int, count: int) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES names for a job: a part of what it names for the launcher, if that is set.

    Raises:
        ConfigError: if there are GPUs, but not so many.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(map(str, range(first, first + count)))
    names = tuple(filter(None, visible.split(",")))
    if names and len(names) < first + count:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {visible}, and the jobs that run at the same time need {first + count} "
            "GPUs: lower --gpus or --array-parallelism"
        )
    return names[first : first + count]


@contextlib.contextmanager
def _without_variables(script: str) -> Iterator[None]:
    """Hide the variables that sbatch would take instead of options of the script; others stay."""
    options = re.findall(r"^#SBATCH --([\w-]+)", script, re.MULTILINE)
    names = {"EXPORT"}
    for option in options:
        names.update(_VARIABLES.get(option, (option.upper().replace("-", "_"),)))
    hidden = {key: os.environ.pop(key) for key in [f"SBATCH_{name}" for name in names] if key in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _submit(executor: Executor, request: Request) -> list[Any]:
    """Submit through submitit."""
    jobs = [training_job(config, request.options) for config in request.configs]
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # sbatch's own words, which the error repeats
            return list(executor.submit_array(jobs))
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise RunError(f"cannot submit the jobs: {' '.join(str(error).split())}") from None
