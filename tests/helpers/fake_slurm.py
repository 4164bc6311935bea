"""A SLURM cluster of one node for the tests: its daemons and all their files live in a folder of its own."""

import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
#: Where daemons are that a user's PATH leaves out.
PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
#: cred_expire: a requeued job waits until the credential of its last start has expired, 120 s if nothing is said.
CONFIG = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,sched_min_interval=100000
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes={host} PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that aren't installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


class Cluster:
    """The running cluster: partitions `low` (the default) and `high`, whose jobs preempt those of `low`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        self.daemons: list[subprocess.Popen[bytes]] = []

    def start(self, cpus: int) -> None:
        """Start the daemons and wait for the node."""
        with contextlib.ExitStack() as stack:  # both ports at once, or they might be the same
            sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1] for one in sockets]
        values = {"host": socket.gethostname().split(".")[0], "user": getpass.getuser(), "cpus": cpus}
        values |= {"folder": self.folder, "controller_port": ports[0], "node_port": ports[1]}
        (self.folder / "slurm.conf").write_text(CONFIG.format(**values))
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        munge = {"socket": "munge.socket", "key-file": key.name, "log-file": "munge.log", "pid-file": "munge.pid"}
        options = [f"--{name}={self.folder / file}" for name, file in munge.items()]
        self._daemon("munged", "--foreground", "--force", f"--seed-file={self.folder / 'munge.seed'}", *options)
        self._until((self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-c")
        self._daemon("slurmd", "-D")
        self._until(lambda: self.call("sinfo", "--noheader", "--format=%T", "--partition=low", check=False) == "idle")

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            program = shutil.which(command[0], path=PATH)
            environment = os.environ | self.env
            process = subprocess.Popen([str(program), *command[1:]], env=environment, stdout=out, stderr=out)
        self.daemons.append(process)

    def _until(self, found: Callable[[], object], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not found():
            ended = [process.args for process in self.daemons if process.poll() is not None]
            if ended or time.monotonic() > end:
                logs = "\n".join(file.read_text(errors="replace")[-2000:] for file in self.folder.glob("*.out"))
                raise RuntimeError(f"SLURM does not start, ended: {ended}\n{logs}")
            time.sleep(0.1)

    def call(self, *command: str, check: bool = True) -> str:
        """What one of SLURM's commands prints."""
        done = subprocess.run(command, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        if len(self.daemons) == 3:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.call("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}", check=False)
                self.call("scancel", f"--user={getpass.getuser()}", check=False)
                end = time.monotonic() + 20
                while self.call("squeue", "--noheader", check=False) and time.monotonic() < end:
                    time.sleep(0.2)
        for process in reversed(self.daemons):
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for entry in Path("/proc").glob("[0-9]*/environ"):  # steps outlive slurmd
            with contextlib.suppress(OSError):
                if str(self.folder).encode() in entry.read_bytes() and int(entry.parent.name) != os.getpid():
                    os.kill(int(entry.parent.name), signal.SIGKILL)


@contextlib.contextmanager
def cluster(cpus: int = 2) -> Iterator[Cluster]:
    """A cluster for the time of a `with`."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # below pytest's folders a socket's name would be too long
    one = Cluster(folder)
    try:
        one.start(cpus)
        yield one
    finally:
        one.stop()
        shutil.rmtree(folder, ignore_errors=True)
