"""A server of launch/serve.py in a process of its own, which the campaigns of this folder load, strike and watch."""

import atexit
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class Server:
    """A server on a port, started with some flags."""

    def __init__(self, checkpoint: str, *flags: str, port: int = 0):
        """Starts it, and waits until it is ready."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the server
        command = [sys.executable, "launch/serve.py", f"--checkpoint={checkpoint}", f"--port={port}", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True)
        atexit.register(self.process.kill)  # a campaign that fails leaves no server behind
        assert self.process.stdout is not None
        line = next((line for line in self.process.stdout if line.startswith("serving on ")), "")
        if not line:
            raise SystemExit(f"the server did not start: {self.log()[-2000:]}")
        self.port = int(line.rstrip().rpartition(":")[2])
        self.pid = int(self.process.pid)

    def log(self) -> str:
        """What it has written to stderr so far."""
        self._log.seek(0)
        return self._log.read()

    def megabytes(self) -> float:
        """The memory that it holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / 2**20

    def status(self, path: str) -> int:
        """The status of a GET; 0 if there is no answer within two seconds."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metrics(self) -> dict[str, float]:
        """The metrics without labels, and `requests_STATUS`, over all routes."""
        found: dict[str, float] = {}
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        for line in lines:
            name, _, value = line.rpartition(" ")
            if line.startswith("lm_requests_total{"):
                name = f"requests_{name.partition('status=')[2].strip('}')}".replace('"', "")
            if name.startswith("requests_") or (line.startswith("lm_") and "{" not in name):
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def stop(self) -> int:
        """Ends it as a scheduler would, and returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def report(name: str, facts: Sequence[tuple[str, object, bool]]) -> bool:
    """Prints what was found, and returns whether all of it holds."""
    for fact, value, holds in facts:
        print(f"{name}: {fact}: {value}{'' if holds else '   FAILS'}", flush=True)
    return all(holds for _, _, holds in facts)
