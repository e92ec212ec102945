"""A Slurm cluster of one node, this machine, started by a test below its own folder and stopped with all its jobs.

munged, slurmctld and slurmd run in the foreground as children of the test, with their own key, sockets, ports and
state, and end with it. Nothing outside the folder is read or written.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
# Debian keeps daemons where ordinary users have no PATH.
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])


def why_not() -> str | None:
    """None if a cluster can be started here, else the reason."""
    missing = [name for name in COMMANDS if shutil.which(name, path=PATH) is None]
    if missing:
        return f"no {', '.join(missing)}; as root: apt-get install --no-install-recommends slurm-wlm munge"
    if os.geteuid() != 0:
        return "slurmd starts jobs for other users as root only, and this is not root"
    return None


class Cluster:
    """A running cluster.

    Attributes:
        environment: of commands that are to talk to it.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        for name in ("state", "spool", "munge"):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        (self.folder / "slurm.conf").write_text(self._configuration())
        files = {"key-file": key, "socket": self._socket, "pid-file": self.folder / "munge/pid",
                 "log-file": self.folder / "munge/log", "seed-file": self.folder / "munge/seed"}  # fmt: skip
        # --force: munge dislikes folders that others may write to, and /tmp is one.
        self._daemon("munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in files.items()))
        self._wait_until(self._socket.exists, "munged")
        self._daemon("slurmctld", "-D")
        self._wait_until(lambda: self.run("scontrol", "ping", check=False).returncode == 0, "slurmctld")
        self._daemon("slurmd", "-D")
        self._wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t").stdout, "slurmd")

    def stop(self) -> None:
        """Cancel all jobs, wait until their processes are gone, and end the daemons."""
        if len(self._daemons) == 3:
            self.run("scancel", "--full", "--user", "root", check=False)
            self.run("scancel", "--user", "root", check=False)
            end = time.monotonic() + 60
            while self.run("squeue", "--noheader", check=False).stdout.strip() and time.monotonic() < end:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            os.kill(process, signal.SIGKILL)  # a job that would report to a controller that is gone

    def processes(self) -> list[int]:
        """Everything that was started with this cluster's configuration, daemons, steps and jobs."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"SLURM_CONF={self.folder}/slurm.conf".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:  # ended meanwhile
                continue
        return found

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command that talks to this cluster."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done

    @property
    def node(self) -> str:
        return socket.gethostname().split(".")[0]

    @property
    def _socket(self) -> Path:
        return self.folder / "munge/socket"

    def _daemon(self, *command: str) -> None:
        executable = shutil.which(command[0], path=PATH)
        with open(self.folder / f"{command[0]}.log", "wb") as log:
            self._daemons.append(
                subprocess.Popen(
                    [str(executable), *command[1:]], env=self.environment, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=subprocess.STDOUT, preexec_fn=_end_with_parent,
                )
            )  # fmt: skip

    def _wait_until(self, true, name: str) -> None:
        end = time.monotonic() + 60
        while not true():
            log = (self.folder / f"{name}.log").read_text()
            assert self._daemons[-1].poll() is None, f"{name} ended: {log[-2000:]}"
            assert time.monotonic() < end, f"{name} does not answer: {log[-2000:]}"
            time.sleep(0.1)

    def _configuration(self) -> str:
        memory = int(next(line for line in open("/proc/meminfo") if line.startswith("MemTotal")).split()[1]) // 1024
        ports = _free_ports(2)
        return f"""ClusterName=test
SlurmctldHost={self.node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
# A requeued job waits until its credential has expired; two minutes by default.
AuthInfo=socket={self._socket},cred_expire=5
SlurmUser=root
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
# Without control groups this is what enforces memory limits.
JobAcctGatherParams=OverMemoryKill,UsePss
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
KillWait=5
MinJobAge=300
AccountingStorageType=accounting_storage/none
NodeName={self.node} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory - 256} State=UNKNOWN
PartitionName=main Nodes={self.node} Default=YES MaxTime=INFINITE DefaultTime=00:10:00 State=UP
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _end_with_parent() -> None:
    """Also a test run that is killed leaves no daemon behind."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
