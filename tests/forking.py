"""Processes that start at once: `python -m MODULE`, forked from a process that has made the slow imports.

Importing torch, FFCV and scikit-learn takes a Python five seconds. Each process of pytest keeps one that has
done so. It forks a child for each `Forked`: a process of its own, in a session of its own, that runs a module
as `python -m` would. Where the start itself is tested (torchrun, submitit, a wrapper), a fresh Python starts.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
IMPORTS = (
    "ferdist.training.run",
    "ferdist.evaluation.evaluate",
    "ferdist.evaluation.kfold",
    "ferdist.reporting",
    "ferdist.data.prepare",
    "tensorboard.compat.proto.event_pb2",
    "torch.utils.tensorboard",
)


class Forked:
    """A process that runs ``python -m ARGUMENTS``; what `subprocess.Popen` offers, as far as tests need it.

    Args:
        arguments: a module and its arguments.
        environment: variables beside this process's own.
        stdout, stderr: files that it writes to.

    Attributes:
        pid: of the process.
        returncode: as of `subprocess.Popen`, None while it runs.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        environment: dict[str, str] | None = None,
        stdout: Path | None = None,
        stderr: Path | None = None,
    ) -> None:
        self.returncode: int | None = None
        self._answers = socket.socket(socket.AF_UNIX)
        self._answers.connect(_server())
        request = {
            "arguments": list(arguments),
            "environment": {**os.environ, **(environment or {})},
            "stdout": str(stdout or os.devnull),
            "stderr": str(stderr or os.devnull),
        }
        self._answers.sendall(json.dumps(request).encode() + b"\n")
        self._lines = self._answers.makefile("r")
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; raises `subprocess.TimeoutExpired` where it does not end in time."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._answers, selectors.EVENT_READ)
                if not selector.select(timeout):
                    raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            self.returncode = int(self._lines.readline())
            self._lines.close()
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def kill(self) -> None:
        """SIGKILL to it."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


def ranks(size: int) -> list[dict[str, str]]:
    """The variables by which processes of this host find each other, as torchrun or SLURM sets them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{**together, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


@functools.cache
def _server() -> str:
    """Where this process's server listens; it ends when this process does."""
    place = tempfile.mkdtemp(prefix="ferdist-forking-")
    address = f"{place}/socket"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.forking", address],
        stdin=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not os.path.exists(address):  # noqa: PTH110
        assert process.poll() is None, "the process that forks others has died"
        time.sleep(0.01)

    def end() -> None:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
        os.rmdir(place)  # noqa: PTH106

    atexit.register(end)
    return address


def serve(address: str) -> None:
    """Fork a process for each request until stdin is closed."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    children: dict[int, socket.socket] = {}
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen()
    os.rename(f"{address}.new", address)  # noqa: PTH104
    with selectors.DefaultSelector() as selector:
        for source in (sys.stdin, listener, woken):
            selector.register(source, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if woken in ready:
                with suppress(BlockingIOError):
                    woken.recv(4096)
                _tell_ends(children)
            if listener in ready:
                client, _ = listener.accept()
                request = json.loads(client.makefile("r").readline())
                pid = os.fork()
                if not pid:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    _run(request)
                children[pid] = client
                client.sendall(f"{pid}\n".encode())
            if sys.stdin in ready:
                os.unlink(address)  # noqa: PTH108
                for pid in children:  # those of a pytest that was killed
                    os.kill(pid, signal.SIGKILL)
                return


def _tell_ends(children: dict[int, socket.socket]) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with children.pop(pid) as client, suppress(OSError):
            client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _run(request: dict[str, Any]) -> NoReturn:
    """Be `python -m` with the request's arguments, and end."""
    code = 1
    try:
        os.setsid()
        os.closerange(3, 256)
        for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(name, flags, 0o644), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ.clear()
        os.environ.update(request["environment"])
        module, *arguments = request["arguments"]
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
