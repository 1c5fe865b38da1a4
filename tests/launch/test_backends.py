"""The options of the launchers, and what each backend makes of them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.local.local import start_controller

from ferdist.config import Config
from ferdist.errors import ConfigError, RunError
from launch import backends
from launch.backends import BACKENDS, Options, Request, settle, training_job
from launch.train import main


def directives(text: str) -> dict[str, str | None]:
    """What ``#SBATCH`` lines say."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    pairs = [line.partition("=") for line in lines]
    return {key: value if equals else None for key, equals, value in pairs}


def test_the_script_says_what_the_options_say(
    beton_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(f"data: {{path: {beton_path}}}")
    arguments = (
        *(str(config), "--partition", "gpu", "--account", "emo", "--qos", "long", "--dry-run", "--seeds=10"),
        *("--constraint", "a100|h100", "--time", "1:30:01", "--mem-gb", "1.5", "--cpus", "6", "--gpus", "2"),
        *("train.lr=0.02", "--nodes", "3", "--array-parallelism", "4", "--sbatch", "reservation=course"),
        *("--sbatch", "--exclusive", "--sbatch", "signal=USR2@30", "--out", str(tmp_path / "x")),
    )
    assert main(arguments) == 0
    text = capsys.readouterr().out
    found = directives(text)
    expected = {
        "job-name": "ferdist-x",
        "partition": "gpu",
        "account": "emo",
        "qos": "long",
        "constraint": "'a100|h100'",
        "time": "91",
        "mem": "1536MB",
        "cpus-per-task": "6",
        "gpus-per-node": "2",
        "ntasks-per-node": "2",
        "nodes": "3",
        "array": "0-9%4",
        "reservation": "course",
        "exclusive": None,
        "requeue": None,
        "signal": "USR2@30",
        "open-mode": "append",
        "output": str(tmp_path / "x" / "jobs" / "%A_%a_0_log.out"),
    }
    assert {key: found.get(key, "missing") for key in expected} == expected
    run = next(line for line in text.splitlines() if line.startswith("srun "))
    assert "--kill-on-bad-exit=1" in run
    assert "--cpus-per-task=6" in run
    assert run.endswith(f"-m submitit.core._submit {tmp_path / 'x' / 'jobs'}")


def test_a_key_of_sbatch_replaces_what_the_launcher_would_say(tmp_path: Path) -> None:
    more = [
        "gpus-per-node=a100:2",
        "no-requeue",
        "job-name=mine",
        "signal=R:USR2@300",
        "comment=a",
        "comment=b",
    ]
    options = Options(cluster="slurm", gpus=2, sbatch=[*more, "wckey=emo", "exclusive", "mail-type=END"])
    text = options.backend.script(Request([Config()] * 2, options, tmp_path, "x"))
    found = directives(text)
    assert text.count("#SBATCH") == len(found), "each key once"
    expected = {
        "gpus-per-node": "a100:2",
        "no-requeue": None,
        "job-name": "mine",
        "signal": "R:USR2@300",
        "comment": "b",
        "wckey": "emo",
        "exclusive": None,
        "mail-type": "END",
    }
    assert {key: found.get(key, "missing") for key in expected} == expected
    assert "requeue" not in found


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"sbatch": ["cpus-per-task=8"]}, "cpus-per-task=8: the launcher sets this key itself: give --cpus"),
        ({"sbatch": ["time=5"]}, "give --time"),
        ({"sbatch": ["mem=5G"]}, "give --mem-gb"),
        ({"sbatch": ["ntasks-per-node=2"]}, "give --gpus or --cpu"),
        ({"sbatch": ["array=0-3"]}, "give --array-parallelism"),
        ({"sbatch": ["open-mode=truncate"]}, "the output goes to jobs/ in the folder of --out"),
        ({"sbatch": ["gpus-per-node=a100:4"]}, r"give --gpus N and gpus-per-node=TYPE:N \(--gpus is 1\)"),
        ({"sbatch": ["gpus-per-node=2"], "gpus": 2}, r"gpus-per-node=TYPE:N \(--gpus is 2\)"),
        ({"sbatch": ["gpus-per-node=a100:1"], "cpu": 1}, "the ranks of --cpu have no GPUs"),
        ({"sbatch": ["signal=TERM@60"]}, "give signal=USR2@SECONDS"),
        ({"sbatch": ["signal=B:USR2@60"]}, "a job resumes only after USR2 to its ranks"),
    ],
)
def test_a_key_of_sbatch_that_breaks_the_job_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Options(**options)


def test_by_default_a_job_asks_for_one_gpu_and_with_cpu_for_none(tmp_path: Path) -> None:
    default, cpu = Options(cluster="slurm"), Options(cluster="slurm", cpu=3)
    first, second = (
        directives(options.backend.script(Request([Config()], options, tmp_path, "x")))
        for options in (default, cpu)
    )
    assert (first["gpus-per-node"], first["ntasks-per-node"], first["nodes"]) == ("1", "1", "1")
    assert (first["time"], first["signal"], first["cpus-per-task"]) == ("60", "USR2@90", "4")
    assert not {"partition", "account", "qos", "constraint", "mem", "array"} & set(first)
    assert second["ntasks-per-node"] == "3"
    assert "gpus-per-node" not in second
    assert training_job(Config(), default).config["device"] == "auto"
    assert training_job(Config(), cpu).config["device"] == "cpu", "whatever the node has"


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("0:30:00", 30), ("2:00:00", 120), ("0:00:10", 1), ("48:00:01", 2881)]
)
def test_times(text: str, minutes: int) -> None:
    assert backends._minutes(text) == minutes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--time", "0"), "at least one minute"),
        (("--time", "1:60:00"), "neither minutes nor H:MM:SS"),
        (("--gpus", "0"), "Invalid value for '--gpus'"),
        (("--gpus", "1", "--cpu", "1"), "not allowed with"),
        (("--sbatch", "=x"), "write KEY=VALUE"),
        (("--sbatch", "reservation="), "write KEY=VALUE"),
        (("--cluster", "pbs"), "is not one of auto, slurm, local, debug"),
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["x.yaml", *arguments]) == 2
    assert reason in " ".join(capsys.readouterr().err.split())


def test_what_this_host_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="--nodes 2 needs SLURM"):
        settle(Options(cluster="local", nodes=2))
    with pytest.raises(ConfigError, match="debug runs one rank"):
        settle(Options(cluster="debug", cpu=2))


def test_jobs_of_this_host_share_its_cores_and_part_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settle(Options(cluster="local", gpus=2))
    assert options.cores == max(1, len(os.sched_getaffinity(0)) // 2)
    assert options.array_parallelism == 1
    seen = {}
    monkeypatch.setattr(backends, "_submit", lambda executor, _: seen.update(executor.parameters) or [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    options.backend.submit(Request([Config()], options, tmp_path, "name", slot=3))
    assert seen["visible_gpus"] == ("6", "7")
    assert seen["tasks_per_node"] == 2
    assert seen["timeout_min"] > 365 * 24 * 60, "no limit, since none was asked for"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,GPU-5a,7")
    options.backend.submit(Request([Config()], options, tmp_path, "name", slot=1))
    assert seen["visible_gpus"] == ("GPU-5a", "7"), "some of those that the launcher may use"
    with pytest.raises(ConfigError, match="2,3,GPU-5a,7, and the jobs that run at the same time need 6 GPUs"):
        options.backend.submit(Request([Config()], options, tmp_path, "name", slot=2))


def test_a_job_of_this_host_that_used_up_its_starts_names_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a training does at its limit: submitit's controller starts it again, but not for ever."""
    seen = {}
    options = settle(Options(cluster="local", cpu=1, minutes=90))
    with monkeypatch.context() as patch:
        patch.setattr(backends, "_submit", lambda executor, _: seen.update(executor.parameters) or [])
        options.backend.submit(Request([Config()], options, tmp_path, "name"))
    assert seen["timeout_min"] == 90
    requeue = "from submitit.local.local import LocalJobEnvironment; LocalJobEnvironment()._requeue(0)"
    controller = start_controller(tmp_path, shlex.join([sys.executable, "-c", requeue]))
    assert controller.wait() == 0
    local, job = BACKENDS["local"], str(controller.pid)
    assert local.state(job, tmp_path, 90) == "TIMEOUT (--time 90, 6 times)"
    assert local.state(job, tmp_path, None) is None, "signals by hand, where there was no limit"
    log = next(tmp_path.glob("*_0_log.out"))
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    assert local.state(job, tmp_path, 90) is None, "it ended for another reason"
    assert local.state("1", tmp_path, 90) is None, "it never began"


def test_a_job_computes_on_what_was_asked_for() -> None:
    """A GPU that is asked for and missing is the job's error; it does not train on the CPU instead."""

    def device(config: Config | None = None, **asked: Any) -> str:
        return str(training_job(config or Config(), settle(Options(**asked))).config["device"])

    assert (
        device(cluster="local", gpus=1)
        == device(cluster="slurm")
        == device(cluster="slurm", gpus=2)
        == "cuda"
    )
    assert device(cluster="local", cpu=1) == device(cluster="slurm", cpu=2) == "cpu"
    assert device(cluster="local") == "auto"
    assert device(Config(device="cpu"), cluster="slurm", gpus=1) == "cpu"


def test_slurm_that_is_not_here_is_refused_and_its_jobs_count_as_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    slurm = BACKENDS["slurm"]
    assert settle(Options()).cluster == "local", "no sinfo answers"
    assert settle(Options(), script=True).cluster == "slurm", "a script to look at"
    local = settle(Options(cluster="local", cpu=1, cpus=2, array_parallelism=3), script=True)
    assert local.described(5) == "5 runs on this host, 3 at a time: 1 rank with 2 cores each"
    with pytest.raises(RunError, match="sbatch not found"):
        slurm.submit(Request([Config()], Options(cluster="slurm"), tmp_path, "name"))
    with pytest.raises(RunError, match="scancel failed"):
        slurm.cancel(["7_0"], tmp_path)
    assert slurm.alive(["7_0", "7_1"], tmp_path) == {"7_0": "UNKNOWN", "7_1": "UNKNOWN"}


def test_a_job_lives_while_its_controller_does(tmp_path: Path) -> None:
    """A process id that another process has taken is not the job."""
    local = BACKENDS["local"]
    sleep = str(shutil.which("sleep"))
    commands = ([sleep, "60"], ["sh", "-c", f"{sleep} 60; : submitit.local._local {tmp_path}"])
    other, controller = (subprocess.Popen(command) for command in commands)
    try:
        ids = [str(other.pid), str(controller.pid), "99999999"]
        while not all(Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in (other, controller)):
            pass
        assert local.alive(ids, tmp_path) == {str(controller.pid): "RUNNING"}
        assert local.alive(ids, tmp_path / "other") == {}
        local.cancel(ids, tmp_path)
        while Path(f"/proc/{controller.pid}/cmdline").read_bytes():
            pass
        assert local.alive(ids, tmp_path) == {}, "also while nobody has waited for it"
        assert other.poll() is None
    finally:
        for process in (other, controller):
            process.kill()
            process.wait()
