"""Starting runs without importing PyTorch for each.

They are forked from a process, the template, that has imported what runs import. A run forked so is
what its plain command is, `bash scripts/<method>/<script>.sh …`: same arguments, environment and
open files, and a child of the one who starts it. Where forking is not possible the plain command is
run.
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
from contextlib import suppress
from subprocess import DEVNULL, Popen

from .run import Wrong, asked, command_of, read_words

# What differs from run to run and is read by no import; runs that differ in more are not forked
# from one template.
PER_RUN = {"CFG", "CUDA_VISIBLE_DEVICES", "LOADEP", "OUTPUT", "SHOTS", "SOURCE"}
REQUEST = 2**20  # bytes, at most; one message each, in both directions
PAUSE = 0.05  # seconds between looks at a process that is waited for
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
Template = tuple[Popen, socket.socket]


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
    """Starts runs. Has a template for each Python and environment of them."""

    def __init__(self):
        self.templates: dict[tuple, Template | None] = {}  # None: there can be none

    def start(
        self, command: Sequence[str], env: Mapping[str, str], stderr: int, lock: int
    ) -> Forked | Popen:
        """The run of a plain command, which gets the two files; its stdin and stdout are empty.

        Raises OSError if it cannot be started.
        """
        if (executed := what_is_executed(command, env)) and (
            forked := self.fork(*executed, stderr, lock)
        ):
            return forked
        env = {**env, "GPUS": "1"}  # which the script would read: a slot is one process
        return Popen(
            command, env=env, stdin=DEVNULL, stdout=DEVNULL, stderr=stderr, pass_fds=[lock]
        )

    def fork(
        self, python: str, argv: list[str], env: dict[str, str], stderr: int, lock: int
    ) -> Forked | None:
        """The run of `python *argv`; None where it cannot be forked."""
        key = python, *sorted((name, value) for name, value in env.items() if name not in PER_RUN)
        if key not in self.templates:
            self.templates[key] = open_template(python, env, stderr)
        if not self.templates[key]:
            return None
        _, channel = self.templates[key]
        # From the request on there is a run, which a signal must not make us forget.
        polite = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, polite)
        try:
            socket.send_fds(channel, [json.dumps([argv, env]).encode()], [stderr, lock])
            forked = Forked(int(channel.recv(REQUEST)))
            channel.recv(REQUEST)  # now it is our child
            return forked
        except (OSError, ValueError):  # too long for a message, or the template has ended
            end(*self.templates.pop(key))
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def close(self) -> None:
        """Runs go on."""
        while self.templates:
            if template := self.templates.popitem()[1]:
                end(*template)


def end(template: Popen, channel: socket.socket) -> None:
    channel.close()
    template.kill()
    template.wait()


def what_is_executed(
    command: Sequence[str], env: Mapping[str, str]
) -> tuple[str, list[str], dict[str, str]] | None:
    """Python, its arguments and its environment of a plain command; None if something is wrong."""
    with suppress(Wrong):  # which the plain command will say
        (python, _, _, *words), env = asked(command, env)
        return python, *command_of(*read_words(words, env), env)


def open_template(python: str, env: Mapping[str, str], stderr: int) -> Template | None:
    """A process that has imported what runs import, and the channel of requests to it.

    `stderr` is the imports'. What the process forks is our child. None where there can be none.
    """
    if sys.platform != "linux" or ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0):
        return None
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command, files = [python, "-m", "runs.starter", str(its.fileno())], [its.fileno()]
    with its:
        process = Popen(
            command, env=env, stdin=DEVNULL, stdout=DEVNULL, stderr=stderr, pass_fds=files
        )
    if ours.recv(REQUEST):
        return process, ours
    end(process, ours)  # the plain command will say why
    return None


# -- in the template


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


def next_run(channel: socket.socket, since: int) -> list[str] | None:
    """Fork a run for each request. Returns in the run, with its arguments, and None at the end.

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
        if fork_child_of_asker(channel):
            break
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


def fork_child_of_asker(channel: socket.socket) -> bool:
    """Fork a run whose parent is who asked for it, as the process between ends. True in the run."""
    if between := os.fork():
        os.waitpid(between, 0)
        channel.send(b"started")
        return False
    between = os.getpid()
    if run := os.fork():
        channel.send(str(run).encode())
        os._exit(0)
    while os.getppid() == between:
        time.sleep(0.001)
    return True


def modified_at() -> dict[str, int]:
    """When the imported files of ours were changed last: a run is of what is there as it starts."""
    here = os.getcwd() + os.sep
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    ours = [file for file in files if file.startswith(here) and os.path.exists(file)]
    return {file: os.stat(file).st_mtime_ns for file in ours}


if __name__ == "__main__":
    main()
