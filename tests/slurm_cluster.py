"""A Slurm of one node on 127.0.0.1: munged, slurmctld and slurmd as children of this process, all
files in one folder. Needs Debian's slurmctld, slurmd, slurm-client and munge; no systemd, no
cgroups, no database."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

from .runs import wait_for

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin"  # where Debian has the daemons
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]
JOBS = 60  # in the queue, at most
# A node has more CPUs than the machine, so that what waits for a signal is in nobody's way.
# Credentials that soon expire: a requeued job waits as long. Other addresses are not listened on.
CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MaxJobCount={jobs}
SlurmdTimeout=60
MessageTimeout=20
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={node} CPUs=8 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """`with Cluster(folder) as cluster`; what is started with `cluster.env` speaks to it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": PATH}
        self.daemons = ExitStack()

    def __enter__(self) -> "Cluster":
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        self.folder.chmod(0o755)  # munged: nobody else may write there, all may read
        self.configure()
        try:
            self.munged()
            self.controller = self.start("slurmctld", "-D", "-c")
            self.start("slurmd", "-D", "-N", "n0")
            wait_for(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "1", 0.1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        """No process of it is left, and none of its jobs."""
        self.daemons.close()
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def configure(self) -> None:
        with socket.socket() as control, socket.socket() as node:
            for free in (control, node):
                free.bind(("127.0.0.1", 0))
            ports = {"control": control.getsockname()[1], "node": node.getsockname()[1]}
        names = {"host": os.uname().nodename, "user": getpass.getuser(), "jobs": JOBS}
        (self.folder / "slurm.conf").write_text(CONF.format(folder=self.folder, **names, **ports))

    def munged(self) -> None:
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = [f"--{option}={self.folder}/munge.{end}" for option, end in files.items()]
        self.start("munged", "--foreground", "--force", f"--key-file={key}", *words)
        wait_for((self.folder / "munge.socket").exists)

    def start(self, *command: str) -> subprocess.Popen:
        log = open(self.folder / f"{command[0]}.log", "a")  # noqa: SIM115
        with log:
            process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        self.daemons.callback(stop, process)
        return process

    def restart_controller(self) -> None:
        stop(self.controller)
        self.controller = self.start("slurmctld", "-D")
        wait_for(lambda: self.ask("squeue", "-h") is not None, 0.1)

    def ask(self, *command: str) -> str | None:
        """What it prints; None if it fails."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True)
        return None if done.returncode else done.stdout.strip()

    def queue(self) -> dict[str, str]:
        """The jobs and tasks that have not ended, `job` or `job_task` -> state."""
        lines = self.ask("squeue", "-h", "-r", "-o", "%i %T")
        return {"?": "?"} if lines is None else dict(map(str.split, lines.splitlines()))

    def left(self) -> list[int]:
        """The processes that it or its jobs have started."""
        return [pid for pid in all_pids() if f"SLURM_CONF={self.folder}/" in environment(pid)]


def stop(process: subprocess.Popen) -> None:
    process.terminate()  # it saves its state
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def environment(pid: int) -> str:
    """A process's, as of its start."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    return ""


def holders(file: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for pid in all_pids():
        with suppress(OSError):
            if any(os.readlink(fd.path) == str(file) for fd in os.scandir(f"/proc/{pid}/fd")):
                found.append(pid)
    return found
