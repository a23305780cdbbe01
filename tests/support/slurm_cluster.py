"""A real Slurm of four nodes with eight fake GPUs each, all on this machine: munged, slurmctld and four slurmd of our
own, with their own ports and directories, so that several such clusters live side by side. The nodes share one host
name; SLURMD_NODENAME tells them apart. Limits and waits are as short as Slurm takes them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from command_line import wait_for
from system import need, unavailable

NODES = ("n1", "n2", "n3", "n4")

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={base}/munge.socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
SlurmdSpoolDir={base}/spool/%n
StateSaveLocation={base}/state
SlurmctldLogFile={base}/slurmctld.log
SlurmdLogFile={base}/slurmd.%n.log
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=5,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
TopologyPlugin=topology/tree
JobRequeue=1
KillWait=5
SlurmdTimeout=10
SlurmctldTimeout=10
InactiveLimit=0
MinJobAge=300
BatchStartTimeout=10
MessageTimeout=10
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName={names} NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[4]}] CPUs=16 RealMemory=1000 {gres} State=UNKNOWN
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=REQUEUE
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=100 PreemptMode=OFF
"""  # noqa: E501 - Slurm reads a node on one line

TOPOLOGY = """\
SwitchName=leaf1 Nodes=n[1-2]
SwitchName=leaf2 Nodes=n[3-4]
SwitchName=spine Switches=leaf[1-2]
"""


@dataclass
class Cluster:
    """The running cluster. base: its own directory. daemons: name (``n1``, ``slurmctld``) -> process."""

    base: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """What a user's shell needs to speak to it."""
        return {"SLURM_CONF": str(self.base / "slurm.conf")}

    def run(self, *words: str, check: bool = True) -> str:
        """A Slurm command's output."""
        environment = {**os.environ, **self.env}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def show(self, job: int | str) -> dict[str, str]:
        """The fields of ``scontrol show job``; empty when Slurm does not know it (any more)."""
        line = self.run("scontrol", "-o", "show", "job", str(job), check=False)
        return dict(word.split("=", 1) for word in line.split() if "=" in word)

    def state(self, job: int | str) -> str:
        return self.show(job).get("JobState", "")

    def wait(self, job: int | str, *states: str, seconds: float = 60.0) -> str:
        """Wait until the job is in one of `states`; returns which."""
        what = f"job {job} in {'/'.join(states)}, not {self.state(job)},"
        wait_for(lambda: self.state(job) in states, seconds, what, every=0.25)
        return self.state(job)

    def node_state(self, node: str) -> str:
        return self.run("sinfo", "-h", "-N", "-p", "main", "-n", node, "-o", "%T").strip()

    def kill_node(self, name: str) -> None:
        """A node that dies: slurmd and what runs for jobs there, at once, with SIGKILL. Unlike in a power cut, slurmd's
        step daemons live on and report it. The next ``tidy`` starts the cluster anew."""
        daemon = self.daemons.pop(name)
        victims = [daemon.pid, *self.processes_on(name)]
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()

    def processes_on(self, name: str) -> list[int]:
        """Processes of jobs on one node: of what slurmd starts, those that know its name."""
        found = []
        mark, cluster = f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={self.base}/slurm.conf".encode()
        steps = f"{self.base}/spool/{name}".encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    command = (entry / "cmdline").read_bytes()
                    if (mark in variables and cluster in variables) or steps in command:
                        found.append(int(entry.name))
        return found

    def tidy(self) -> None:
        """No jobs, all nodes idle: what the next test may count on."""
        if any(daemon.poll() is not None for daemon in self.daemons.values()) or not set(NODES) <= set(self.daemons):
            _stop(self)
            _write(self.base)
            _start(self)
        self.run("scancel", "--me", check=False)
        wait_for(lambda: not self.run("squeue", "-h", "-a", "-o", "%i").strip(), 60, "an empty queue", 0.1)
        for name in NODES:
            if self.node_state(name) != "idle":
                self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
                wait_for(lambda name=name: self.node_state(name) == "idle", 30, f"{name} being idle", 0.1)

    def _spawn(self, name: str, *words: str) -> None:
        log = (self.base / f"{name}.out").open("ab")
        self.daemons[name] = subprocess.Popen(
            words,
            env={**os.environ, **self.env},
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


@contextmanager
def running(base: Path) -> Iterator[Cluster]:
    """A cluster below `base`, which is short enough for sockets, until the block ends."""
    need(["slurm-wlm", "slurm-client", "munge"], ["munged", "slurmctld", "slurmd", "sbatch"])
    cluster = Cluster(base)
    _write(base)
    try:
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)


def _start(cluster: Cluster) -> None:
    base = cluster.base
    cluster._spawn(
        "munged", "munged", "--foreground", "--force", f"--socket={base}/munge.socket", f"--key-file={base}/munge.key",
        f"--pid-file={base}/munged.pid", f"--seed-file={base}/munged.seed", f"--log-file={base}/munged.log",
    )  # fmt: skip
    wait_for((base / "munge.socket").exists, 60, "munged's socket")
    cluster._spawn("slurmctld", "slurmctld", "-D", "-c")
    for name in NODES:
        (base / "spool" / name).mkdir(parents=True)
        cluster._spawn(name, "slurmd", "-D", "-N", name)

    def up() -> bool:
        for name, daemon in cluster.daemons.items():
            if daemon.poll() is not None:
                unavailable(f"{name} does not run here: {(base / f'{name}.out').read_text(errors='replace')[-500:]}")
        return all(cluster.node_state(name) == "idle" for name in NODES)

    wait_for(up, 60, "Slurm's start", 0.1)


def _stop(cluster: Cluster) -> None:
    if cluster.daemons.get("slurmctld"):
        with suppress(Exception):
            cluster.run("scancel", "--me", check=False)
            cluster.run("scancel", "--me", "--signal=KILL", "--full", check=False)
            until = time.monotonic() + 10
            while cluster.run("squeue", "-h", "-a", "-o", "%i").strip() and time.monotonic() < until:
                time.sleep(0.1)
    for node in NODES:
        for pid in cluster.processes_on(node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    for daemon in reversed(list(cluster.daemons.values())):
        daemon.terminate()
    for daemon in cluster.daemons.values():
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
    cluster.daemons.clear()
    shutil.rmtree(cluster.base, ignore_errors=True)


def _write(base: Path) -> None:
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    key = base / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    gres = "Gres=gpu:8"
    devices = base / "dev"
    devices.mkdir()
    for index in range(8):
        try:
            os.mknod(devices / f"gpu{index}", 0o666 | 0o020000, os.makedev(1, 3))
        except PermissionError:
            unavailable("device files cannot be made here (mknod), which the nodes' fake GPUs are")
    user = os.environ.get("USER") or "root"
    settings = CONFIGURATION.format(base=base, ports=_ports(5), names="n[1-4]", gres=gres, user=user)
    (base / "slurm.conf").write_text(settings)
    (base / "gres.conf").write_text(f"NodeName=n[1-4] Name=gpu File={devices}/gpu[0-7]\n")
    (base / "topology.conf").write_text(TOPOLOGY)
    (base / "cgroup.conf").touch()


def _ports(count: int) -> list[int]:
    """Consecutive free ports: Slurm numbers those of its nodes in a row."""
    first = 10000 + os.getpid() % 900 * 10
    for base in [*range(first, 19000, 10), *range(10000, first, 10)]:
        with ExitStack() as stack, suppress(OSError):
            for offset in range(count):
                stack.enter_context(socket.socket()).bind(("", base + offset))
            return [base + offset for offset in range(count)]
    return unavailable("no free ports for Slurm's daemons")
