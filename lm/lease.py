"""A lease on a folder: a file that names the one process that may write there, and until when.

The file is created only where there is none. Every storage guarantees that (a lock on disk, If-None-Match on S3, a
generation match on GCS). The holder renews the lease while it runs and removes the file at the end. The lease of a
killed process expires; on that process's own machine it is void at once.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from lm import storage
from lm.errors import InputError

NAME = "lease"  # no suffix: a glob of *.json must not find it
SECONDS = 60.0  # that a lease lasts; the clocks of two machines should differ by less than a quarter of it


@dataclasses.dataclass(frozen=True)
class _Holder:
    """The process that holds a lease. Its start time tells it from a later process with the same number."""

    owner: str
    machine: str
    process: int
    began: str
    expires: float
    token: str

    @classmethod
    def this_process(cls) -> "_Holder":
        number = os.getpid()
        owner = f"process {number} on {socket.gethostname()}"
        return cls(owner, _machine(), number, _began(number), 0.0, uuid.uuid4().hex)

    @classmethod
    def from_json(cls, content: bytes, folder: str) -> "_Holder":
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{folder}/{NAME} is no lease of this version; remove the file if no run uses the folder."
            ) from error

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @property
    def lives(self) -> bool:
        """Whether the lease is valid: its process is not known to be dead, and its time is not up."""
        if self.machine and self.machine == _machine() and _began(self.process) != self.began:
            return False
        return time.time() < self.expires


class Lease:
    """A lease that this process holds and a thread renews."""

    def __init__(self, folder: str, holder: _Holder, version: bytes):
        self._folder = folder
        self._holder = holder
        self._version = version
        self._replaced = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Checks that this process still holds the lease.

        Raises:
            InputError: it could not be renewed in time, or another process replaced it.
        """
        if self._replaced or time.time() > self._holder.expires:
            how = "another run has replaced it" if self._replaced else "it could not be renewed in time"
            raise InputError(
                f"this run has lost {self._folder}/{NAME}: {how}; make sure that no other run writes there, then run "
                "the command again."
            )

    def _renew(self) -> None:
        while not self._replaced and not self._released.wait(SECONDS / 4):
            holder = dataclasses.replace(self._holder, expires=time.time() + SECONDS)
            with contextlib.suppress(Exception):  # the next try may succeed before the lease expires
                version = storage.write_version(self._folder, NAME, holder.to_json(), self._version)
                if version is None:  # also where our write succeeded, its answer was lost, and it was retried
                    content, version = storage.read_version(self._folder, NAME)
                    self._replaced = not content or _Holder.from_json(content, self._folder).token != holder.token
                self._holder, self._version = holder, version

    def release(self) -> None:
        """Ends the renewal and removes the file. A file that cannot be removed expires."""
        self._released.set()
        self._thread.join()
        if not self._replaced:
            with contextlib.suppress(Exception):
                storage.write_version(self._folder, NAME, None, self._version)


@contextlib.contextmanager
def hold(folder: str, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Holds the lease of a folder during the block.

    Args:
        enabled: False in all processes of a run but one; then nothing happens.

    Yields:
        `Lease.check`, to be called before each write that a second writer would spoil.

    Raises:
        InputError: another process holds the lease; says which, and until when.
    """
    if not enabled:
        yield lambda: None
        return
    lease = _take(folder)
    try:
        yield lease.check
    finally:
        lease.release()


def _take(folder: str) -> Lease:
    own = _Holder.this_process()
    while True:
        content, version = storage.read_version(folder, NAME)
        if content is not None:
            holder = _Holder.from_json(content, folder)
            if holder.token == own.token:
                return Lease(folder, holder, version)
            if holder.lives:
                until = time.strftime("%H:%M:%S", time.localtime(holder.expires))
                raise InputError(
                    f"{folder} is in use by {holder.owner}, which holds {NAME} until {until} and renews it; stop that "
                    "run, or choose another folder."
                )
        own = dataclasses.replace(own, expires=time.time() + SECONDS)
        if made := storage.write_version(folder, NAME, own.to_json(), version):
            return Lease(folder, own, made)


def _machine() -> str:
    """Identifies this machine, its boot and its process namespace; empty where Linux's /proc is missing."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _began(process: int) -> str:
    """Returns the start time of a process in ticks since boot; empty for a dead process or a zombie."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
