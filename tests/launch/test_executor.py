"""The options of the launchers, and the script that they make for sbatch."""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

import pytest

from ferdist.config import Config
from ferdist.errors import ConfigError, RunError
from launch.executor import (
    Options,
    add_cluster_options,
    live_jobs,
    make_executor,
    read_options,
    sbatch_text,
    training_job,
)


def options_of(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()
    add_cluster_options(parser)
    return read_options(parser.parse_args(arguments))


def directives(text: str) -> dict[str, str | None]:
    """What ``#SBATCH`` lines say."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    pairs = [line.partition("=") for line in lines]
    return {key: value if equals else None for key, equals, value in pairs}


def test_the_script_says_what_the_options_say(tmp_path: Path) -> None:
    options = options_of(
        *("--cluster", "slurm", "--partition", "gpu", "--account", "emo", "--qos", "long"),
        *("--constraint", "a100|h100", "--time", "1:30:01", "--mem-gb", "1.5", "--cpus", "6", "--gpus", "2"),
        *("--nodes", "3", "--array-parallelism", "4", "--sbatch", "reservation=course"),
        *("--sbatch", "exclusive", "--sbatch", "signal=USR2@30"),
    )
    text = sbatch_text(options, tmp_path / "jobs", "ferdist-x", 10)
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
        "output": str(tmp_path / "jobs" / "%A_%a_0_log.out"),
    }
    assert {key: found.get(key, "missing") for key in expected} == expected
    run = next(line for line in text.splitlines() if line.startswith("srun "))
    assert "--kill-on-bad-exit=1" in run
    assert "--cpus-per-task=6" in run
    assert run.endswith(f"-m submitit.core._submit {tmp_path / 'jobs'}")


def test_the_defaults_are_one_gpu_and_what_the_cluster_gives(tmp_path: Path) -> None:
    found = directives(sbatch_text(options_of("--cluster", "slurm"), tmp_path, "name", 1))
    assert (found["gpus-per-node"], found["ntasks-per-node"], found["nodes"]) == ("1", "1", "1")
    assert (found["time"], found["signal"], found["cpus-per-task"]) == ("60", "USR2@90", "4")
    assert not {"partition", "account", "qos", "constraint", "mem", "array"} & set(found)


def test_ranks_without_gpus_ask_for_none_and_stay_on_the_cpu(tmp_path: Path) -> None:
    options = options_of("--cluster", "slurm", "--cpu", "3")
    found = directives(sbatch_text(options, tmp_path, "name", 1))
    assert found["ntasks-per-node"] == "3"
    assert "gpus-per-node" not in found
    assert training_job(Config(), options).config["device"] == "cpu"
    assert training_job(Config(), options_of("--cluster", "slurm")).config["device"] == "auto"


@pytest.mark.parametrize(
    ("text", "minutes"), [("90", 90), ("0:30:00", 30), ("2:00:00", 120), ("0:00:10", 1), ("48:00:01", 2881)]
)
def test_times(text: str, minutes: int) -> None:
    assert options_of("--cluster", "slurm", "--time", text).minutes == minutes


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--time", "0"), "a minute at least"),
        (("--time", "1:60:00"), "neither minutes nor H:MM:SS"),
        (("--time", "1h"), "neither minutes nor H:MM:SS"),
        (("--gpus", "0"), "no whole number above 0"),
        (("--gpus", "1", "--cpu", "1"), "not allowed with"),
        (("--sbatch", "=x"), "write KEY=VALUE"),
        (("--sbatch", "reservation="), "write KEY=VALUE"),
        (("--cluster", "pbs"), "invalid choice"),
    ],
)
def test_wrong_usage_is_said_and_ends_with_2(
    arguments: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        options_of(*arguments)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_what_this_host_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="--nodes 2 needs SLURM"):
        options_of("--cluster", "local", "--nodes", "2")
    with pytest.raises(ConfigError, match="debug runs one rank"):
        options_of("--cluster", "debug", "--cpu", "2")


def test_jobs_of_this_host_share_it(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    options = options_of("--cluster", "local", "--cpu", "2", "--array-parallelism", "1")
    assert options.cpus == max(1, cores // 2)
    assert options_of("--cluster", "local").parallel == 1
    local = make_executor(options_of("--cluster", "local", "--gpus", "2"), tmp_path, "name", slot=3)
    assert local.parameters["visible_gpus"] == (6, 7)
    assert local.parameters["tasks_per_node"] == 2


def test_slurm_without_sbatch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert options_of().cluster == "local", "no sinfo answers"
    with pytest.raises(RunError, match="there is no sbatch here"):
        make_executor(Options("slurm"), tmp_path, "name")


def wait_for_command(pid: int) -> None:
    """Until a new process has a command line."""
    while not Path(f"/proc/{pid}/cmdline").read_bytes():
        pass


def test_a_job_lives_while_its_controller_does(tmp_path: Path) -> None:
    """A process number that another process has taken is not the job."""
    other = subprocess.Popen(["sleep", "60"])
    controller = subprocess.Popen(["sh", "-c", f"sleep 60; : submitit.local._local {tmp_path}"])
    try:
        ids = [str(other.pid), str(controller.pid), "99999999"]
        wait_for_command(controller.pid)
        wait_for_command(other.pid)
        assert live_jobs("local", ids, tmp_path) == {str(controller.pid): "RUNNING"}
        assert live_jobs("local", ids, tmp_path / "other") == {}
        controller.kill()
        while Path(f"/proc/{controller.pid}/cmdline").read_bytes():
            pass
        assert live_jobs("local", ids, tmp_path) == {}, "also while nobody has taken note of its end"
    finally:
        for process in (other, controller):
            process.kill()
            process.wait()


def test_jobs_count_as_alive_while_slurm_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert live_jobs("slurm", ["7_0", "7_1"], tmp_path) == {"7_0": "UNKNOWN", "7_1": "UNKNOWN"}
