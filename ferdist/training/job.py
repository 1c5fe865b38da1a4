"""A training as a job of submitit: on SLURM, or as processes of this host.

What is kept, by what ends the job (`docs/cluster.md` has the table for users):

- SIGUSR2, which SLURM sends ``signal_delay_s`` before a time limit and, where it is set up so, on preemption:
  all ranks stop at the same step, a checkpoint is written, rank 0 requeues the job, and it resumes at that
  step. Nothing is lost. A job is requeued only if this start wrote a checkpoint: one without progress ends.
- SIGUSR2 before the training has begun: submitit's own handler requeues; nothing was computed yet.
- SIGUSR2 in the evaluation after the last step: the evaluation continues. If it does not end in time, the
  last checkpoint is complete and starting the run again only evaluates.
- SIGTERM alone, with which scancel, ``scontrol requeue`` and preemption begin: a checkpoint and an end, if
  SLURM leaves the time (KillWait, or the partition's GraceTime). Requeue it by hand to run it again.
- SIGKILL, a lost node, a killed rank: the newest checkpoint counts, so ``train.checkpoint_seconds`` bounds
  the loss. srun's ``--kill-on-bad-exit`` ends the other ranks. After a lost node SLURM requeues by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from submitit.core.job_environment import JobEnvironment
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from ferdist.errors import Preempted, tell

# torch is imported in the job's call: until then submitit's handlers, which need this module, are not set.

_PORTS: Final = range(20_000, 29_000)
"""Below the ports that Linux gives to outgoing connections, and without torchrun's 29500."""
_DEATH_SECONDS: Final = 20
"""What a failed rank has for its last words; then the kernel ends it."""
_REQUEUE_TRIES: Final = 12
_REQUEUE_PAUSE: Final = 5.0


class TrainingJob(Checkpointable):
    """``ferdist.training.run.run`` as a callable that submitit pickles, starts in each task and requeues.

    Attributes:
        config: the resolved config as nested plain values (``ferdist.config.to_dict``).
        threads: of each rank's CPU computations.
    """

    def __init__(self, config: dict[str, Any], threads: int) -> None:
        self.config, self.threads = config, threads

    def __call__(self) -> str:
        """Train, or resume training, as one rank; the path of the run's results.json.

        A stop after which the job is to resume, or that SLURM ends itself, ends the process without a result:
        to submitit it is not done.
        """
        job = JobEnvironment()
        _export_ranks(job)
        os.environ["OMP_NUM_THREADS"] = str(self.threads)
        logging.basicConfig(
            level=logging.WARNING, format=f"ferdist[rank {job.global_rank}]: %(message)s", stream=sys.stderr
        )
        logging.getLogger("submitit").propagate = False  # it writes its messages itself
        from ferdist.config import from_dict
        from ferdist.training.run import run

        try:
            return str(run(from_dict(self.config, Path(self.config["run_dir"]))))
        except Preempted as stop:
            if job.cluster == "debug":  # it runs in the launcher's own process
                raise
            tell(f"ferdist: {stop}")
            _leave(job, requeue=stop.requeue)
        except BaseException:
            if job.num_tasks > 1:
                _die_in(_DEATH_SECONDS)
            raise


def _export_ranks(job: JobEnvironment) -> None:
    """Set the variables that torchrun would set, from those of the job.

    The ranks meet through ``env://``: the job's first host, and a port that follows from the job's number.
    That needs nothing but what SLURM tells every task, and torchrun's runs take the same way. Jobs whose
    numbers lie close together, as those of one array on one host do, never get the same port.
    """
    number = int("".join(filter(str.isdigit, job.raw_job_id)))
    os.environ["MASTER_PORT"] = str(_PORTS[number % len(_PORTS)])
    ranks = TorchDistributedEnvironment()
    if job.num_nodes == 1:
        ranks.master_addr = "127.0.0.1"  # a host's own name need not lead anywhere
    ranks.export(set_cuda_visible_devices=False, overwrite=True)


def _leave(job: JobEnvironment, *, requeue: bool) -> NoReturn:
    """End this rank after a stop, rank 0 with code 75, once it has requeued the job if that is wanted.

    The others end with 0: after another code srun would kill rank 0 before it has requeued. They do not wait
    for the end of the process group, whose other ends are gone.
    """
    code = 0
    if job.global_rank == 0:
        code = os.EX_TEMPFAIL
        if requeue:
            code = _requeue(job) or code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _requeue(job: JobEnvironment) -> int:
    """Put the job back into the queue, also if the controller is away for a while; an exit code, or 0."""
    for tries in range(1, _REQUEUE_TRIES + 1):
        try:
            job._requeue(0)
            return 0
        except SystemExit as end:  # how the local executor is asked to start the job again
            return end.code if isinstance(end.code, int) else 1
        except (OSError, subprocess.SubprocessError) as error:
            tell(f"ferdist: try {tries} of {_REQUEUE_TRIES} to requeue: {error}")
            time.sleep(_REQUEUE_PAUSE)
    tell("ferdist: the job could not be requeued: start the run again to resume")
    return 0


def _die_in(seconds: int) -> None:
    """Let the kernel end this process then, if it has not ended by itself.

    The interpreter's own end may wait for ranks that sit in a collective, and those for this one's end.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
