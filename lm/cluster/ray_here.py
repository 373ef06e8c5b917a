"""Serves a model with a Ray that is started on this machine, until Ctrl-C."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

from lm.cluster import ray_serve
from lm.cluster.actions import Write
from lm.cluster.manifests import to_yaml
from lm.cluster.ray_roll import Dashboard, Said, reason, url
from lm.cluster.ray_serve import Replicas
from lm.errors import InputError

_PAUSE = 1.0  # seconds between two questions whether it serves
_LOOKS = 2.0  # seconds between two looks at what Ray says
_PATIENCE = 600.0  # seconds that one question may take: Ray keeps it until there is a replica
_ENDING = 30.0  # seconds that Ray has to end after a signal


def require_port(host: str, port: int) -> None:
    """Refuses a port that is taken, before Ray is started.

    Raises:
        InputError: this machine cannot listen there.
    """
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = str(error.strerror or error).partition(" (while")[0]  # Python adds the address
        raise InputError(
            f"--host={host} --port={port}: {why}; choose another port. If Ray serves there, "
            "roll gives it another checkpoint."
        ) from None


def serve(wanted: Replicas, file: str) -> None:
    """Starts Ray and serves; says what it waits for and where it serves.

    Args:
        wanted: what to serve.
        file: for the config; empty: none is kept.

    Raises:
        InputError: Ray failed; its own message is on stderr.
    """
    require_port(wanted.host, wanted.port)
    # Ray takes the next free port for its dashboard: then nothing tells it from that of another Ray.
    dashboard = Dashboard("") if is_free(ray_serve.HERE) else None
    with tempfile.TemporaryDirectory() as folder:
        path = file or f"{folder}/{ray_serve.FILE}"
        Write(path, to_yaml([ray_serve.config(wanted)]).encode()).carry_out()
        # Ray prints every file of this folder. By default that is /tmp/tpu_logs, with the logs of other processes.
        logs = f"{folder}/tpu_logs"
        os.mkdir(logs)
        environment = {"TPU_LOG_DIR": logs, **os.environ}
        # In a session of its own, so that Ctrl-C reaches it once: a second one would break its shutdown off.
        running = subprocess.Popen(
            ("serve", "run", path), stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        failures: list[str] = []
        with announced(url(wanted, ""), running, dashboard, failures), ended(running):
            code = running.wait()
            if failures:
                raise InputError(f"--checkpoint is {wanted.checkpoint}, which is not served: {failures[0]}.")
            if code:
                raise InputError(f"Ray ended with exit code {code}, as it says above.")


@contextlib.contextmanager
def ended(running: subprocess.Popen[bytes]) -> Iterator[None]:
    """Lets Ray end its own processes when the block is left early, by Ctrl-C or by SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        end(running)
        signal.signal(signal.SIGTERM, before)


def end(running: subprocess.Popen[bytes]) -> None:
    """Ends a process: by the signal that lets Ray end its own processes, or else by one that cannot be ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):  # background jobs may ignore the first
        if running.poll() is None:
            running.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(_ENDING)


@contextlib.contextmanager
def announced(
    where: str, running: subprocess.Popen[bytes], dashboard: Dashboard | None, failures: list[str]
) -> Iterator[threading.Thread]:
    """Says that Ray is started, that it still is, and at last where it serves. Ends it if no replica can start.

    Args:
        where: the address of Ray's proxy.
        running: Ray.
        dashboard: its dashboard, if that is known.
        failures: gets the reason why no replica can start.

    Yields:
        The thread that says it.
    """
    left, ready = threading.Event(), threading.Event()
    said = Said(f"starting Ray and a replica, to serve on {where}")

    def ask() -> None:
        while not is_ready(where):
            if left.wait(_PAUSE):
                return
        ready.set()

    def watch() -> None:
        while not ready.wait(_LOOKS):
            if left.is_set() or running.poll() is not None:
                return
            said.again()
            if dashboard and (why := failure(dashboard)):
                failures.append(why)
                end(running)
                return
        print(f"serving on {where}", flush=True)

    asking, watching = (threading.Thread(target=each, daemon=True) for each in (ask, watch))
    asking.start()
    watching.start()
    try:
        yield watching
    finally:
        left.set()


def failure(dashboard: Dashboard) -> str:
    """Returns why no replica can start; empty: one may, or Ray does not say it yet."""
    with contextlib.suppress(InputError):
        return reason(dashboard.application())
    return ""


def is_free(address: str) -> bool:
    """Returns whether nothing listens at an address of this machine."""
    parts = urllib.parse.urlsplit(address)
    with socket.socket() as probe:
        return probe.connect_ex((parts.hostname or "", parts.port or 80)) != 0


def is_ready(where: str) -> bool:
    """Returns whether a replica behind this address answers that it is ready."""
    try:
        with urllib.request.urlopen(f"{where}/ready", timeout=_PATIENCE) as answer:
            return answer.status == 200
    except OSError:  # nobody listens, or there is no replica yet
        return False
