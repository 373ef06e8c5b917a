"""A Ray cluster of two nodes on this machine, which serves a model: it is started, struck and watched."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from lm.cluster.ray_serve import EVEN

ROOT = Path(__file__).parents[2]
DASHBOARD = "http://127.0.0.1:8275"
PORT = 8741  # of the proxy
_GCS = 6390
_CPUS = 1  # of a node, as Ray counts them
_CGROUP = Path("/sys/fs/cgroup/cpu")
_PERIOD = 20_000  # microseconds in which a quota counts


class Cluster:
    """Two nodes. The first one has Ray's own processes and the proxy, and is never struck."""

    def __init__(self, folder: Path, cpu_limit: float = 0.0):
        """Starts both nodes.

        Args:
            folder: for Ray's config.
            cpu_limit: cores that a replica may use once it runs, as the limit of a container does; 0 for no limit.
                It needs root, and the cpu controller of cgroup v1.
        """
        self._folder, self._cpu_limit = folder, cpu_limit
        binaries = str(Path(sys.executable).parent)
        self._environment = {**os.environ, **EVEN, "PATH": f"{binaries}:{os.environ['PATH']}"}
        head = (f"--port={_GCS}", "--include-dashboard=true", f"--dashboard-port={DASHBOARD.rpartition(':')[2]}")
        self._nodes: list[subprocess.Popen] = []
        self._nodes.append(self._start("--head", *head))
        self.add_node()

    def add_node(self) -> None:
        """Starts the second node."""
        self._nodes[1:] = [self._start(f"--address=127.0.0.1:{_GCS}", "--dashboard-agent-listen-port=0")]

    def _start(self, *flags: str) -> subprocess.Popen:
        """Starts a node, whose processes are all below the one that is returned."""
        with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as log:
            command = ["ray", "start", f"--num-cpus={_CPUS}", "--disable-usage-stats", "--block", *flags]
            node = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        while b"Ray runtime started" not in (said := Path(log.name).read_bytes()):
            if any(each.poll() is not None for each in (*self._nodes[:1], node)):
                raise SystemExit(f"{' '.join(command)}: {said.decode()[-2000:]}")
            time.sleep(0.2)
        return node

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def serve(self, verb: str, checkpoint: str, *flags: str) -> None:
        """Runs launch/cluster/ray_serve.py, and returns when every replica serves the checkpoint.

        Args:
            verb: `serve` or `roll`.
            flags: those of the launcher, and after `--` those of a server.

        Raises:
            SystemExit: it failed, or a replica refused the checkpoint.
        """
        mine = [f"--checkpoint={checkpoint}", f"--address={DASHBOARD}", f"--port={PORT}"]
        mine += [f"--output={self._folder}/serve.yaml", *flags]
        self._run(sys.executable, "launch/cluster/ray_serve.py", verb, *mine)

    def application(self) -> dict[str, Any]:
        """Returns what the dashboard says of the model; nothing before it is there."""
        with urllib.request.urlopen(f"{DASHBOARD}/api/serve/applications/", timeout=60) as answer:
            return json.load(answer)["applications"].get("lm", {})

    def replicas(self) -> list[dict[str, Any]]:
        """Returns the replicas of every state. Those that run get their limit here."""
        deployments = self.application().get("deployments", {}).values()
        replicas = [replica for deployment in deployments for replica in deployment["replicas"]]
        if self._cpu_limit:
            for replica in replicas:
                if replica["state"] == "RUNNING":
                    limit(replica["pid"], self._cpu_limit)
        return replicas

    def running(self) -> list[dict[str, Any]]:
        return [replica for replica in self.replicas() if replica["state"] == "RUNNING"]

    def wait(self, replicas: int, seconds: float = 240.0) -> float:
        """Waits until the application runs with so many replicas and no other; returns how long it took.

        Ray looks at its replicas every ten seconds, so that a dead one counts as running for some time.
        """
        begun = time.monotonic()
        while time.monotonic() < begun + seconds:
            status = self.application().get("status")
            found = self.replicas()
            lives = [each["state"] == "RUNNING" and Path(f"/proc/{each['pid']}").exists() for each in found]
            if status == "RUNNING" and lives == [True] * replicas:
                return time.monotonic() - begun
            time.sleep(0.3)
        raise SystemExit(f"there are not {replicas} replicas after {seconds:g} s: {self.replicas()}")

    def kill_node(self) -> int:
        """Ends the second node as a power cut does; returns how many replicas it had."""
        everything = children(self._nodes[1].pid)
        lost = sum(replica["pid"] in everything for replica in self.running())
        kill(self._nodes[1])
        return lost

    def stop(self) -> None:
        """Ends all processes of both nodes."""
        for node in reversed(self._nodes):
            kill(node)
        for folder in _CGROUP.glob("lm-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()


def kill(node: subprocess.Popen) -> None:
    """Ends the processes of a node, all at once."""
    for pid in (node.pid, *children(node.pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def children(pid: int) -> set[int]:
    """Returns the processes that a process started, and those that they started."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found.union(*(children(each) for each in found))


def limit(pid: int, cores: float) -> None:
    """Lets a process use so many cores."""
    folder = _CGROUP / f"lm-{pid}"
    if folder.exists():
        return
    folder.mkdir()
    (folder / "cpu.cfs_period_us").write_text(str(_PERIOD))
    (folder / "cpu.cfs_quota_us").write_text(str(int(cores * _PERIOD)))
    (folder / "cgroup.procs").write_text(str(pid))
