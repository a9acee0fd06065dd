"""Starting runs without importing PyTorch for each: they are forked from a process that has
imported what runs import.

A run forked so is what its plain command is, `bash scripts/<method>/<script>.sh …`: scripts/run.sh
says what that would execute, and with which environment. Its parent is the one who starts it. Where
forking is not possible the plain command is run.
"""

import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

# What differs from run to run and is read by no import; runs that differ in more are not forked
# from one process.
PER_RUN = {"CFG", "CUDA_VISIBLE_DEVICES", "LOADEP", "OUTPUT", "SHOTS", "SOURCE"}
REQUEST = 2**20  # bytes, at most; one message each, in both directions
PAUSE = 0.05  # seconds between looks at a process that is waited for
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h


class Forked:
    """A child of this process, with the part of subprocess.Popen that is needed of it."""

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(PAUSE)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Starter:
    """Starts runs. Has a template, the process they are forked from, for each Python and
    environment of them."""

    def __init__(self):
        self.templates: dict[
            tuple, tuple[subprocess.Popen, socket.socket] | None
        ] = {}  # None: there can be none

    def start(
        self, command: Sequence[str], env: Mapping[str, str], stderr: int, lock: int
    ) -> "Forked | subprocess.Popen[bytes]":
        """The run of a plain command, which gets the two file descriptors; its stdin and stdout are
        empty.

        Raises OSError if it cannot be started.
        """
        if (executed := what_is_executed(command, env)) and (
            forked := self.fork(*executed, stderr, lock)
        ):
            return forked
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            command, env=env, stdin=quiet, stdout=quiet, stderr=stderr, pass_fds=[lock]
        )

    def fork(self, argv: list[str], env: dict[str, str], stderr: int, lock: int) -> Forked | None:
        key = argv[0], *sorted((name, value) for name, value in env.items() if name not in PER_RUN)
        if key not in self.templates:
            self.templates[key] = open_template(argv[0], env, stderr)
        if not self.templates[key]:
            return None
        _, channel = self.templates[key]
        # From the request on there is a run, which a signal must not make us forget.
        before = signal.pthread_sigmask(
            signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        )
        try:
            socket.send_fds(channel, [json.dumps([argv[1:], env]).encode()], [stderr, lock])
            forked = Forked(int(channel.recv(REQUEST)))
            channel.recv(REQUEST)  # now it is our child
            return forked
        except (
            OSError,
            ValueError,
        ):  # the request is too long for a message, or the template has ended
            end(*self.templates.pop(key))
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Runs go on."""
        while self.templates:
            if template := self.templates.popitem()[1]:
                end(*template)


def end(template: subprocess.Popen, channel: socket.socket) -> None:
    channel.close()
    template.kill()
    template.wait()


def what_is_executed(
    command: Sequence[str], env: Mapping[str, str]
) -> tuple[list[str], dict[str, str]] | None:
    """Argument list and environment, as the command's script says; None if it does not, or finds
    something wrong."""
    asked = subprocess.run(
        command, env={**env, "SHOW_DIR": "command"}, capture_output=True, stdin=subprocess.DEVNULL
    )
    number, *words = os.fsdecode(asked.stdout).split("\0")[:-1] or [""]
    if asked.returncode or not number:
        return None
    return words[: int(number)], dict(word.split("=", 1) for word in words[int(number) :])


def open_template(
    python: str, env: Mapping[str, str], stderr: int
) -> tuple[subprocess.Popen, socket.socket] | None:
    """A process that has imported what runs import, and the channel of requests to it; None where
    there can be none.

    `stderr` is the imports'. What the process forks is our child.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0):
        return None
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command, quiet = [python, "-m", "runs.starter", str(its.fileno())], subprocess.DEVNULL
    with its:
        process = subprocess.Popen(
            command, env=env, stdin=quiet, stdout=quiet, stderr=stderr, pass_fds=[its.fileno()]
        )
    if ours.recv(REQUEST):
        return process, ours
    end(process, ours)  # the plain command will say why
    return None


def next_run(channel: socket.socket, since: int) -> list[str] | None:
    """In the template: fork a run for each request. Returns in the run, with its arguments, and
    None at the end.

    `since`: when the imports began, in ns. What was changed meanwhile may have been read before.
    """
    import numpy as np

    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the runs
    sources = modified_at()
    if max(sources.values()) >= since:
        return None
    os.dup2(0, 2)
    channel.send(b"ready")
    while True:
        request, files, *_ = socket.recv_fds(channel, REQUEST, 2)
        if not request or modified_at() != sources:
            return None
        if not (middle := os.fork()):
            middle = os.getpid()
            if run := os.fork():
                channel.send(str(run).encode())
                os._exit(0)  # which makes the run a child of who asked for it
            while os.getppid() == middle:
                time.sleep(0.001)
            break
        os.waitpid(middle, 0)
        channel.send(b"started")
        for file in files:
            os.close(file)
    channel.close()
    stderr, _ = files
    os.dup2(stderr, 2)
    os.close(stderr)
    argv, env = json.loads(request)
    os.environ.clear()
    os.environ.update(env)
    np.random.seed()  # as at its import: not the same in each run
    signal.signal(signal.SIGINT, interrupt)
    return argv


def modified_at() -> dict[str, int]:
    """When our own files that are imported were changed last: a run is of what is there when it
    starts."""
    here = os.getcwd() + os.sep
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    return {
        file: os.stat(file).st_mtime_ns
        for file in files
        if file.startswith(here) and os.path.exists(file)
    }


def main() -> None:
    began = time.time_ns()
    import safetensors.torch  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import train  # noqa: F401

    # The rest is as of `python train.py …`: this is its end, and what it raises is shown, by the
    # interpreter itself.
    if argv := next_run(socket.socket(fileno=int(sys.argv[1])), began):
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
