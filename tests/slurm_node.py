"""A real Slurm on this machine: one node, its own ports, keys and folder, gone at the end.

    python tests/slurm_node.py FOLDER COMMAND...     run a command with such a Slurm and stop it again

In tests it is the session fixture `slurm`. Needs Debian's slurm-wlm and munge; root with apt-get installs them.
"""

import contextlib
import fcntl
import getpass
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import bounded
import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue")
PACKAGES = ("slurm-wlm", "munge")
POLICY = Path("/usr/sbin/policy-rc.d")
LOCK = Path(tempfile.gettempdir()) / "promptmil-tests-apt.lock"
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
START_SECONDS = 180
CLIENT_SECONDS = 60
INSTALL_SECONDS = 300
APT = ("-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::Retries=2")

# Compared with a cluster: no accounting, processes found by their parents instead of cgroups, more cores than there
# are, and a scheduler that looks every second.
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes=one Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurmError(Exception):
    """Slurm cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class SlurmNode:
    """A Slurm that runs."""

    folder: Path
    environment: dict[str, str]

    def run(self, *words: str) -> str:
        """Run one of Slurm's commands (or any other) as a client; returns what it printed."""
        done = bounded.run(words, env=self.environment, seconds=CLIENT_SECONDS)
        if done.returncode:
            raise NoSlurmError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """State of each array task that is not over, by ``<job>_<task>``."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_until_empty(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self.states():
            if time.monotonic() > end:
                raise NoSlurmError(f"jobs still there after {seconds} s: {self.states()}")
            time.sleep(0.1)


def install() -> None:
    """Make sure that Slurm's programs are there."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if not missing:
        return
    if os.getuid() or shutil.which("apt-get") is None:
        raise NoSlurmError(f"{', '.join(missing)} not found, and only root can install {' '.join(PACKAGES)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        with no_daemons():
            done = bounded.run(["apt-get", *APT, *words], env=environment, seconds=INSTALL_SECONDS)
        if done.returncode:
            raise NoSlurmError(f"apt-get {words[0]} failed: {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def no_daemons() -> Generator[None, None, None]:
    """Installing a package must not start its daemon: ours is another, and one that hangs would hang apt with it.

    One at a time: other tests may install at the same moment, and apt's lists are locked without waiting.
    """
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _policy():
            yield


@contextlib.contextmanager
def _policy() -> Generator[None, None, None]:
    """Debian's way of saying that no daemon is to be started."""
    try:
        descriptor = os.open(POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        yield  # the machine has a policy already
        return
    with os.fdopen(descriptor, "w") as stream:
        stream.write("#!/bin/sh\nexit 101\n")
    try:
        yield
    finally:
        POLICY.unlink()


@contextlib.contextmanager
def slurm_node(folder: Path, *, cores: int = 4) -> Generator[SlurmNode, None, None]:
    """Start munged, slurmctld and slurmd in ``folder``, and stop them, and what they run, at the end."""
    install()
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ctld_port, d_port = free_ports(2)
    text = CONFIGURATION.format(
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
        folder=folder,
        ctld_port=ctld_port,
        d_port=d_port,
        cores=cores,
    )
    (folder / "slurm.conf").write_text(text)
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    environment = {name: value for name, value in environment.items() if not name.startswith(("SLURM_JOB", "SBATCH_"))}
    node = SlurmNode(folder=folder, environment=environment)
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    options = [f"--{option}={folder}/munge.{suffix}" for option, suffix in munge.items()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(daemon(node, "munged", "--foreground", "--force", "--num-threads=2", *options))
        wait_for((folder / "munge.socket").is_socket, node, "munged")
        stack.enter_context(daemon(node, "slurmctld", "-D"))
        stack.enter_context(daemon(node, "slurmd", "-D", "-N", "one"))
        wait_for(lambda: is_idle(node), node, "slurmd")
        try:
            yield node
        finally:
            with contextlib.suppress(NoSlurmError):
                node.run("scancel", "--user", getpass.getuser())
                node.wait_until_empty(40)


def is_idle(node: SlurmNode) -> bool:
    with contextlib.suppress(NoSlurmError):
        return node.run("sinfo", "-h", "-o", "%T") == "idle"
    return False


def wait_for(is_there, node: SlurmNode, name: str) -> None:
    end = time.monotonic() + START_SECONDS
    while not is_there():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text()[-500:] for path in sorted(node.folder.glob("*.log")))
            raise NoSlurmError(f"{name} is not up after {START_SECONDS} s\n{logs}")
        time.sleep(0.05)


@contextlib.contextmanager
def daemon(node: SlurmNode, *words: str) -> Generator[None, None, None]:
    """A daemon as a child of ours: where there is no init, one that forks away would stay as a zombie."""
    output = node.folder / f"{words[0]}.out"
    with (
        output.open("wb") as stream,
        bounded.started(words, env=node.environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)  # it is killed then


def free_ports(n_ports: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n_ports)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture(scope="session", name="slurm")
def slurm_fixture() -> Generator[SlurmNode, None, None]:
    """A Slurm for the session; tests skip with the reason where it cannot run."""
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name:  # short: a socket lies in it
        stack = contextlib.ExitStack()
        try:
            node = stack.enter_context(slurm_node(Path(name)))
        except (NoSlurmError, OSError) as error:
            pytest.skip(f"no Slurm here: {error}")
        with stack:
            yield node


if __name__ == "__main__":
    with slurm_node(Path(sys.argv[1]).absolute()) as running:
        sys.exit(subprocess.run(sys.argv[2:], env=running.environment, check=False).returncode)
