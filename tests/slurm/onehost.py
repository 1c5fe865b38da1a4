"""A throw-away SLURM on this host, for tests: the real daemons, two nodes, two fake GPUs on each.

    python -m tests.slurm.onehost start [--folder F]   start one; prints the line that lets sbatch find it
    python -m tests.slurm.onehost stop F               end it and remove its folder
    python -m tests.slurm.onehost run -- COMMAND ...   start one, run a command against it, stop it
    python -m tests.slurm.onehost hold                 start one, print its folder, stop it once stdin closes
    python -m tests.slurm.onehost kill-controller F    kill -9 slurmctld, as a crash would
    python -m tests.slurm.onehost start-controller F   start it again with the state that it had saved

It needs root (slurmd starts jobs) and the packages of scripts/slurm-packages, nothing else: no systemd, no
configuration in /etc, no fixed port. Configuration, keys, sockets, spool, database, logs and process ids lie
under one folder. Only processes that it started are ended, each by its id.

The nodes are called 127.0.0.1 and 127.0.0.2, so that the name of a job's first node can be connected to. Jobs
of the partition `main` get a signal when one of `urgent` needs their place, and 30 seconds later they are
requeued.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

NODES: Final = ("127.0.0.1", "127.0.0.2")
DAEMONS: Final = ("munged", "mariadbd", "slurmdbd", "slurmctld", *(f"slurmd-{node}" for node in NODES))
"""In the order of their start; they are stopped in the opposite one."""

COMMANDS: Final = ("munged", "munge", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sinfo", "sacct")
SYSTEM_TABLES: Final = Path("/usr/share/mysql/mysql_system_tables.sql")
PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

READY_SECONDS: Final = 600.0
"""For a daemon to come up, on a busy machine; one that has died is noticed at once."""
ANSWER_SECONDS: Final = 60.0
"""For a command of SLURM."""
DRAIN_SECONDS: Final = 45.0
"""For cancelled jobs to leave: KillWait and the ways in between."""
STOP_SECONDS: Final = 5.0
"""For a daemon to end after SIGTERM, before SIGKILL."""
LOG_LINES: Final = 15
FOLDER_LENGTH: Final = 55
"""A socket's path must be shorter than 108 bytes, and SLURM adds up to 50 for that of a job's step."""

SLURM_CONF: Final = """\
ClusterName=onehost
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={slurmctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its old credential has expired: by default two minutes.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SlurmdParameters=config_overrides

# Job ids move on from cluster to cluster, so that nothing takes the files of an earlier one for its own.
FirstJobId={first_job_id}
JobRequeue=1
KillWait=30
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000

# Without this parameter a preempted job gets no signal before it is ended.
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={slurmdbd_port}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
GresTypes=gpu

{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE: Final = (
    "NodeName={name} NodeHostname={host} NodeAddr={name} Port={port} CPUs=8 RealMemory=32000 Gres=gpu:2"
)

# Any character device passes for a GPU; two jobs with one GPU each get different ones.
GRES_CONF: Final = """\
AutoDetect=off
Name=gpu File=/dev/null
Name=gpu File=/dev/zero
"""

SLURMDBD_CONF: Final = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={slurmdbd_port}
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadbd_port}
StorageUser=root
StorageLoc=slurm
"""


class ClusterError(Exception):
    """What is wrong and what to do, for a person."""


class Cluster:
    """The cluster that lives under a folder.

    Args:
        folder: its own, absolute; `create` lays it out.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))},
            "PATH": PATH,
            "SLURM_CONF": str(self.conf),
        }

    @classmethod
    def create(cls, folder: Path | None = None) -> Cluster:
        """Lay out a new cluster's folder; nothing runs yet.

        Args:
            folder: a new or empty one; None for one under the system's temporary folder.

        Raises:
            ClusterError: if this user or host cannot run a cluster, or the folder is in use.
        """
        _check_host()
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="onehost-slurm-"))
        folder = folder.absolute()
        if len(os.fsencode(folder)) > FOLDER_LENGTH:
            raise ClusterError(f"{folder}: too long for the paths of sockets: at most {FOLDER_LENGTH} bytes")
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ClusterError(f"{folder}: not empty: name another folder, or stop the cluster in it")
        folder.chmod(0o711)  # the way to munged's socket is to be open to all
        cluster = cls(folder)
        cluster._write_files()
        return cluster

    @classmethod
    def at(cls, folder: Path) -> Cluster:
        """The cluster that was created in a folder.

        Raises:
            ClusterError: if there is none.
        """
        cluster = cls(folder.absolute())
        if not (cluster.conf.is_file() and cluster._pids.is_dir()):
            raise ClusterError(f"{folder}: no cluster of onehost.py in this folder")
        return cluster

    @property
    def _pids(self) -> Path:
        return self.folder / "pids"

    def log(self, daemon: str) -> Path:
        """Where a daemon's messages are."""
        return self.folder / "log" / f"{daemon}.log"

    def start(self) -> None:
        """Start the daemons one after the other and wait until both nodes are idle.

        Raises:
            ClusterError: if one does not come up; it holds the end of that daemon's log.
        """
        socket_file = self.folder / "munge" / "socket"
        self._spawn(
            "munged",  # by force: a folder above this one may be closed to others, who have no part in this
            *("munged", "--foreground", "--force", f"--socket={socket_file}"),
            *(f"--key-file={self.folder}/munge/key", f"--seed-file={self.folder}/munge/seed"),
            f"--pid-file={self.folder}/munge/pid",
        )
        self._wait_for("munged", lambda: self._answers("munge", "-n", f"--socket={socket_file}"))
        self._make_database()
        self._spawn(
            "mariadbd",
            *("mariadbd", "--no-defaults", "--user=root", "--skip-grant-tables", "--skip-name-resolve"),
            *("--bind-address=127.0.0.1", f"--port={self._port('mariadbd')}"),
            *self._database_folders,
            *(f"--socket={self.folder}/mariadbd.socket", f"--pid-file={self.folder}/mariadbd.pid"),
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M"),
            *("--innodb-lock-wait-timeout=900", "--skip-log-bin"),
        )
        self._wait_for("mariadbd", lambda: _listens(self._port("mariadbd")))
        self._spawn("slurmdbd", "slurmdbd", "-D")
        self._wait_for("slurmdbd", lambda: _listens(self._port("slurmdbd")))
        self._start_controller("-c")
        for node in NODES:
            self._spawn(f"slurmd-{node}", "slurmd", "-D", "-N", node)
        for node in NODES:
            self._wait_for(f"slurmd-{node}", lambda node=node: self._state(node) == "idle")  # type: ignore[misc]
        self._wait_for("slurmdbd", lambda: self._answers("sacct", "--noheader"))

    def stop(self) -> None:
        """End jobs and daemons, newest first, and remove the folder."""
        self._cancel_jobs()
        self._end("slurmd-" + node for node in NODES)
        _kill_step_daemons(self.conf)
        for daemon in ("slurmctld", "slurmdbd", "mariadbd", "munged"):
            self._end([daemon])
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_controller(self) -> None:
        """SIGKILL to slurmctld, as a crash would; jobs continue."""
        pid = self._pid("slurmctld")
        if pid is None:
            raise ClusterError(f"{self.folder}: its slurmctld does not run")
        os.kill(pid, signal.SIGKILL)
        _wait_until(lambda: self._pid("slurmctld") is None, STOP_SECONDS)

    def start_controller(self) -> None:
        """Start slurmctld with the state that an earlier one saved.

        Raises:
            ClusterError: if it runs already or does not come up.
        """
        if self._pid("slurmctld") is not None:
            raise ClusterError(f"{self.folder}: its slurmctld runs already")
        self._start_controller()

    def _start_controller(self, *options: str) -> None:
        self._spawn("slurmctld", "slurmctld", "-D", *options)
        self._wait_for("slurmctld", lambda: self._answers("sinfo", "--noheader"))

    def _write_files(self) -> None:
        for name in (
            "munge",
            "database",
            "database-tmp",
            "state",
            "log",
            "pids",
            *(f"spool-{node}" for node in NODES),
        ):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        listeners = ("mariadbd", "slurmdbd", "slurmctld", *NODES)
        ports = dict(zip(listeners, _free_ports(len(listeners)), strict=True))
        host = socket.gethostname().partition(".")[0]
        values = {
            "folder": self.folder,
            "host": host,
            # The port at which a job's ranks meet follows from its number: clusters side by side need others.
            "first_job_id": int(time.time()) % 50_000_000 + random.randrange(1_000, 10_000),
            "nodes": "\n".join(NODE.format(name=node, host=host, port=ports[node]) for node in NODES),
            **{f"{name}_port": port for name, port in ports.items()},
        }
        self.conf.write_text(SLURM_CONF.format(**values))
        (self.folder / "gres.conf").write_text(GRES_CONF)
        secret = self.folder / "slurmdbd.conf"
        secret.touch(mode=0o600)  # slurmdbd refuses a file that others can read
        secret.write_text(SLURMDBD_CONF.format(**values))

    def _port(self, daemon: str) -> int:
        """The port of mariadbd or slurmdbd."""
        key = {"mariadbd": "StoragePort=", "slurmdbd": "DbdPort="}[daemon]
        lines = (self.folder / "slurmdbd.conf").read_text().splitlines()
        return next(int(line.removeprefix(key)) for line in lines if line.startswith(key))

    @property
    def _database_folders(self) -> tuple[str, str]:
        """A tmpdir of its own: as it starts, mariadbd removes the temporary tables of any other one there."""
        return f"--datadir={self.folder}/database", f"--tmpdir={self.folder}/database-tmp"

    def _make_database(self) -> None:
        """What mariadb-install-db does, which is in a larger package."""
        statements = f"create database mysql;\nuse mysql;\n{SYSTEM_TABLES.read_text()}"
        options = ("--no-defaults", "--bootstrap", "--user=root", *self._database_folders)
        with self.log("mariadbd").open("a") as log:
            done = subprocess.run(
                ["mariadbd", *options],
                input=statements,
                text=True,
                stdout=log,
                stderr=log,
                env=self.environment,
                check=False,
            )
        if done.returncode:
            raise ClusterError(f"mariadbd cannot make its system tables\n{self._tail('mariadbd')}")

    def _spawn(self, daemon: str, *command: str) -> None:
        """Start a daemon in a session of its own: a Ctrl-C is for the command that is run, not for it."""
        with self.log(daemon).open("a") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=self.environment,
                start_new_session=True,
            )
        (self._pids / daemon).write_text(f"{process.pid} {_start_time(process.pid)}")

    def _pid(self, daemon: str) -> int | None:
        """A daemon's process id, None where it does not run: another process may have its id by now."""
        file = self._pids / daemon
        if not file.is_file():
            return None
        pid, start_time = file.read_text().split()
        return int(pid) if _start_time(int(pid)) == start_time else None

    def _wait_for(self, daemon: str, ready: Callable[[], bool]) -> None:
        limit = time.monotonic() + READY_SECONDS
        while not ready():
            if self._pid(daemon) is None:
                raise ClusterError(f"{daemon} has ended\n{self._tail(daemon)}")
            if time.monotonic() > limit:
                raise ClusterError(f"{daemon} is not ready after {READY_SECONDS:.0f} s\n{self._tail(daemon)}")
            time.sleep(0.1)

    def _tail(self, daemon: str) -> str:
        lines = self.log(daemon).read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join([f"The end of {self.log(daemon)}:", *(f"    {line}" for line in lines)])

    def _ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=self.environment,
                timeout=ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", "no answer")

    def _answers(self, *command: str) -> bool:
        return self._ask(*command).returncode == 0

    def _state(self, node: str) -> str:
        options = ("--noheader", f"--nodes={node}", "--partition=main", "--format=%T")
        return self._ask("sinfo", *options).stdout.strip()

    def _cancel_jobs(self) -> None:
        """Cancel all jobs and wait until they are gone; without a controller there is nobody to ask."""
        if self._pid("slurmctld") is None or not self._answers("scancel", "--user=root"):
            return
        _wait_until(lambda: not self._ask("squeue", "--noheader").stdout.strip(), DRAIN_SECONDS)

    def _end(self, daemons: Iterable[str]) -> None:
        """TERM, then KILL: a daemon that is not ready yet and a slurmd without a controller ignore TERM."""
        pids = {daemon: pid for daemon in daemons if (pid := self._pid(daemon)) is not None}
        for number in (signal.SIGTERM, signal.SIGKILL):
            left = [pid for daemon, pid in pids.items() if self._pid(daemon) == pid]
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            if left:
                _wait_until(lambda: not any(self._pid(daemon) for daemon in pids), STOP_SECONDS)


@contextmanager
def running(folder: Path | None = None) -> Iterator[Cluster]:
    """A cluster that runs as long as the context lasts."""
    cluster = Cluster.create(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _check_host() -> None:
    if sys.platform != "linux":
        raise ClusterError("SLURM's daemons run on Linux only")
    if os.geteuid() != 0:
        raise ClusterError("slurmd starts jobs only as root: become root (sudo), or use a container")
    missing = [command for command in COMMANDS if shutil.which(command, path=PATH) is None]
    missing += [str(file) for file in (SYSTEM_TABLES,) if not file.is_file()]
    if missing:
        raise ClusterError(f"missing: {', '.join(missing)}: run scripts/slurm-packages, which installs them")


def _free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, below those that the system gives to outgoing connections."""
    found: list[int] = []
    for port in random.sample(range(12_000, 20_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterError("no free ports between 12000 and 20000")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition, but not for ever."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.05)


def _status_fields(pid: int) -> list[str]:
    """What /proc/PID/stat tells from the state on, nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None for one that has ended, a zombie among them."""
    fields = _status_fields(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def _kill_step_daemons(conf: Path) -> None:
    """SIGKILL to the slurmstepd of jobs that nobody could cancel, and to what runs under them."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "exe").readlink().name
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if name.startswith("slurmstepd") and f"SLURM_CONF={conf}".encode() in environment:
            pid = int(process.name)
            for member in [*_descendants(pid), pid]:
                with suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    children = [
        int(child)
        for file in Path(f"/proc/{pid}/task").glob("*/children")
        for child in file.read_text().split()
    ]
    return [*children, *(grandchild for child in children for grandchild in _descendants(child))]


def _run(folder: Path | None, command: Sequence[str]) -> int:
    """Run a command against a cluster of its own; its exit code."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)  # so that a stop of this process stops the cluster
    with running(folder) as cluster:
        environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(cluster.conf)}
        code = subprocess.run(command, env=environment, check=False).returncode
    return code if code >= 0 else 128 - code


def _act(options: argparse.Namespace) -> int:
    if options.action == "run":
        return _run(options.folder, options.command)
    if options.action == "hold":
        with running(options.folder) as cluster:
            print(cluster.folder, flush=True)
            sys.stdin.read()  # however the process at the other end dies, the cluster ends with it
    elif options.action == "start":
        cluster = Cluster.create(options.folder)
        try:
            cluster.start()
        except BaseException:
            cluster.stop()
            raise
        print(f"export SLURM_CONF={shlex.quote(str(cluster.conf))}")
        print(f"# {shlex.quote(sys.argv[0])} stop {shlex.quote(str(cluster.folder))}  ends it", flush=True)
    else:
        cluster = Cluster.at(options.folder)
        {
            "stop": cluster.stop,
            "kill-controller": cluster.kill_controller,
            "start-controller": cluster.start_controller,
        }[options.action]()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(
        prog="onehost.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="action", required=True)
    for name in ("start", "hold", "run"):
        commands.add_parser(name).add_argument(
            "--folder", type=Path, help="new or empty (default: temporary)"
        )
    commands.choices["run"].add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    for name in ("stop", "kill-controller", "start-controller"):
        commands.add_parser(name).add_argument("folder", type=Path)
    try:
        return _act(parser.parse_args(argv))
    except ClusterError as error:
        print(f"onehost.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
