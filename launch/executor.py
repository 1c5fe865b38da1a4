"""Where jobs run: the options that all launchers share, and submitit's executors made from them.

SLURM's executor is made directly and not through submitit's AutoExecutor, so that the script that
``--dry-run`` prints comes from the very parameters that a submission uses, also where no SLURM is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from submitit.core.core import Executor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.local.debug import DebugExecutor
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, SlurmJob, _make_sbatch_string

from ferdist.config import Config
from ferdist.errors import ConfigError, RunError
from ferdist.training.job import TrainingJob

CLUSTERS: Final = ("auto", "slurm", "local", "debug")
SIGNAL_SECONDS: Final = 90
"""SLURM sends SIGUSR2 so long before the time limit."""
_CPUS: Final = 4
_ANSWER_SECONDS: Final = 20
_PYTHON: Final = shlex.join(["sh", "-c", 'trap "" USR2; exec "$0" "$@"', sys.executable])
"""This interpreter, with SIGUSR2 ignored until submitit's handler for it is set: it would kill."""
_STARTING_TIMEOUTS: Final = 10
"""How often submitit may requeue a job that the time limit meets before its training has begun."""


@dataclass(frozen=True)
class Options:
    """What a launcher was told about the jobs.

    Attributes:
        cluster: ``slurm``, ``local`` (processes of this host) or ``debug`` (this very process).
        nodes: hosts of one job.
        tasks: ranks on each host.
        gpus: GPUs on each host, one for each rank; 0 where the ranks compute on CPUs.
        cpus: cores of each rank.
        minutes: time limit.
        parallel: jobs that run at the same time, None for as many as the cluster gives.
        memory_gb: of each host; None for the cluster's default.
        partition, account, qos, constraint: as in sbatch.
        sbatch: further options of sbatch, by name; True for one without a value.
    """

    cluster: str
    nodes: int = 1
    tasks: int = 1
    gpus: int = 1
    cpus: int = _CPUS
    minutes: int = 60
    parallel: int | None = None
    memory_gb: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    sbatch: Mapping[str, str | bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint"):
            refuse_control_characters(f"--{name}", getattr(self, name))
        for key, value in self.sbatch.items():
            refuse_control_characters(f"--sbatch {key}", value)


def refuse_control_characters(option: str, value: object) -> None:
    """Refuse a value that would end its line in an sbatch script, so that the rest of it ran as a command.

    Raises:
        ConfigError: names the option.
    """
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in str(value)):
        raise ConfigError(f"{option} is {str(value)!r}: remove the line break or control character")


def add_cluster_options(parser: argparse.ArgumentParser) -> None:
    """The options of all launchers; `read_options` takes them."""
    group = parser.add_argument_group("where and how the jobs run")
    group.add_argument(
        "--cluster",
        choices=CLUSTERS,
        default="auto",
        help="auto: slurm where sinfo answers, else local (default)",
    )
    group.add_argument("--partition", metavar="NAME")
    group.add_argument("--account", metavar="NAME")
    group.add_argument("--qos", metavar="NAME")
    group.add_argument("--constraint", metavar="FEATURES")
    group.add_argument(
        "--time", type=_minutes, default=60, metavar="TIME", help="minutes or H:MM:SS (default 60)"
    )
    group.add_argument("--mem-gb", type=float, metavar="GB", help="memory of each node")
    group.add_argument("--cpus", type=positive, metavar="N", help=f"cores of each rank (default {_CPUS})")
    ranks = group.add_mutually_exclusive_group()
    ranks.add_argument(
        "--gpus",
        "--gpus-per-node",
        type=positive,
        metavar="N",
        help="GPUs of each node, a rank for each (default 1)",
    )
    ranks.add_argument("--cpu", type=positive, metavar="N", help="N ranks on each node, without GPUs")
    group.add_argument("--nodes", type=positive, default=1, metavar="N", help="nodes of each job")
    group.add_argument(
        "--array-parallelism",
        type=positive,
        metavar="N",
        help="jobs at the same time (default: all; 1 with --cluster local)",
    )
    group.add_argument(
        "--sbatch",
        type=_sbatch_option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a further option of sbatch; may be given again",
    )
    group.add_argument("--dry-run", action="store_true", help="print the sbatch script and send nothing")
    group.add_argument(
        "--wait", action="store_true", help="show the jobs until they end (always with --cluster local)"
    )


def read_options(arguments: argparse.Namespace, *, for_script: bool = False) -> Options:
    """The options as they were given, with their defaults.

    Args:
        arguments: of the command line.
        for_script: they are for an sbatch script that is only shown, whatever there is on this host.

    Raises:
        ConfigError: if they do not go together.
    """
    cluster = arguments.cluster if arguments.cluster != "auto" else find_cluster()
    tasks = arguments.cpu or arguments.gpus or 1
    parallel = arguments.array_parallelism
    cpus = arguments.cpus or _CPUS
    if cluster != "slurm" and not for_script:
        if arguments.nodes > 1:
            raise ConfigError(f"--nodes {arguments.nodes} needs SLURM, and the cluster is {cluster}")
        if cluster == "debug" and tasks > 1:
            raise ConfigError("--cluster debug runs one rank, in this process: leave --gpus and --cpu at 1")
        parallel = parallel or 1
        cpus = arguments.cpus or max(1, len(os.sched_getaffinity(0)) // (tasks * parallel))
    return Options(
        cluster=cluster,
        nodes=arguments.nodes,
        tasks=tasks,
        gpus=0 if arguments.cpu else tasks,
        cpus=cpus,
        minutes=arguments.time,
        parallel=parallel,
        memory_gb=arguments.mem_gb,
        partition=arguments.partition,
        account=arguments.account,
        qos=arguments.qos,
        constraint=arguments.constraint,
        sbatch=dict(arguments.sbatch),
    )


def find_cluster() -> str:
    """``slurm`` where sinfo answers, else ``local``."""
    try:
        answer = subprocess.run(
            ["sinfo", "--noheader"], capture_output=True, timeout=_ANSWER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "local"
    return "local" if answer.returncode else "slurm"


def slurm_parameters(options: Options, name: str) -> dict[str, Any]:
    """The options as submitit's SLURM executor takes them."""
    given = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "mem": None if options.memory_gb is None else f"{round(options.memory_gb * 1024)}MB",
        "gpus_per_node": options.gpus or None,
        "array_parallelism": options.parallel,
    }
    return {
        "job_name": name,
        "time": options.minutes,
        "nodes": options.nodes,
        "ntasks_per_node": options.tasks,
        "cpus_per_task": options.cpus,
        "signal_delay_s": SIGNAL_SECONDS,
        # srun no longer takes the cores from sbatch's option, and without it a dead rank leaves the others.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={options.cpus}"],
        # Clusters may be set up to requeue nothing that does not ask for it.
        "additional_parameters": {"requeue": True, **options.sbatch},
        **{key: value for key, value in given.items() if value is not None},
    }


def sbatch_text(options: Options, folder: Path, name: str, jobs: int) -> str:
    """The script that is handed to sbatch for so many jobs."""
    command = f"{_PYTHON} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    array: dict[str, Any] = {"map_count": jobs} if jobs > 1 else {}
    text: str = _make_sbatch_string(command, folder, **slurm_parameters(options, name), **array)
    return text


def submit(options: Options, folder: Path, name: str, configs: Sequence[Config], slot: int = 0) -> list[str]:
    """Send a training for each config, on SLURM as one job array; the jobs' ids.

    Args:
        options: where and how.
        folder: for submitit's files and the jobs' output.
        name: of the jobs.
        configs: complete, with run_dir.
        slot: which part of this host's GPUs the jobs get, where they are its own processes.

    Raises:
        RunError: if the cluster refuses; the message is the cluster's.
    """
    jobs = [training_job(config, options) for config in configs]
    executor = make_executor(options, folder, name, slot)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words, which the error repeats
            sent = executor.submit_array(jobs)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise RunError(f"the jobs could not be submitted: {' '.join(str(error).split())}") from None
    if options.cluster == "debug":  # there a job runs when it is asked for its result
        for job in sent:
            job.results()
    return [str(job.job_id) for job in sent]


def training_job(config: Config, options: Options) -> TrainingJob:
    """A training as a job's callable; with --cpu it keeps to the CPU whatever the node has."""
    from ferdist.config import to_dict

    values = to_dict(config)
    if not options.gpus and config.device == "auto":
        values["device"] = "cpu"
    return TrainingJob(values, options.cpus)


def make_executor(options: Options, folder: Path, name: str, slot: int = 0) -> Executor:
    """submitit's executor for the options.

    Raises:
        RunError: if SLURM is asked for and there is none.
    """
    if options.cluster == "debug":
        return DebugExecutor(folder)
    if options.cluster == "local":
        local = LocalExecutor(folder)
        local.update_parameters(
            timeout_min=options.minutes,
            tasks_per_node=options.tasks,
            gpus_per_node=options.gpus,
            visible_gpus=tuple(range(slot * options.gpus, (slot + 1) * options.gpus)),
            signal_delay_s=SIGNAL_SECONDS,
        )
        return local
    if shutil.which("sbatch") is None:
        raise RunError("--cluster slurm: there is no sbatch here: log in to the cluster, or --cluster local")
    slurm = SlurmExecutor(folder, max_num_timeout=_STARTING_TIMEOUTS, python=_PYTHON)
    slurm.update_parameters(**slurm_parameters(options, name))
    return slurm


def live_jobs(cluster: str, ids: Collection[str], folder: Path) -> dict[str, str]:
    """Those of the jobs that wait or run, with their state; UNKNOWN for all while SLURM does not answer."""
    if not ids:
        return {}
    if cluster == "slurm":
        return _queued(ids)
    if cluster == "local":
        return {job: "RUNNING" for job in ids if _is_local_controller(job, folder)}
    return {}


def _queued(ids: Collection[str]) -> dict[str, str]:
    """By squeue, which names what waits or runs and nothing else, as soon as it is submitted."""
    command = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(ids, "UNKNOWN")
    states = dict(line.strip().split("|", 1) for line in answer.splitlines() if "|" in line)
    return {job: states[job] for job in ids if job in states}


def _is_local_controller(job: str, folder: Path) -> bool:
    """Whether the process with this number is what submitit's local executor started for this folder."""
    process = Path("/proc") / job
    try:
        command = (process / "cmdline").read_bytes()
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    starting = not command and state not in "ZX"  # for a moment a new process has no command line
    return starting or (b"submitit.local._local" in command and os.fsencode(folder) in command)


def last_state(cluster: str, job: str, folder: Path) -> str | None:
    """How a job ended by SLURM's accounting, such as TIMEOUT; None where that is not known (yet)."""
    if cluster != "slurm" or shutil.which("sacct") is None:
        return None
    state: str = SlurmJob(folder, job).state
    return None if state in ("UNKNOWN", "PENDING", "RUNNING", "COMPLETING", "REQUEUED") else state


def _minutes(text: str) -> int:
    """Minutes, rounded up, from minutes or H:MM:SS."""
    found = re.fullmatch(r"(\d+)|(\d+):([0-5]\d):([0-5]\d)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is neither minutes nor H:MM:SS")
    minutes, hours, rest, seconds = (int(part or 0) for part in found.groups())
    total = minutes + 60 * hours + rest + (seconds > 0)
    if total < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a minute at least")
    return total


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _sbatch_option(text: str) -> tuple[str, str | bool]:
    key, equals, value = text.removeprefix("--").partition("=")
    if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not value):
        raise argparse.ArgumentTypeError(f"{text!r}: write KEY=VALUE, such as reservation=course, or KEY")
    return key, value if equals else True
