"""One writer at a time: a file that says who works in a folder, and until when.

The file is made only where there is none, which every storage decides for us (a lock on disk, If-None-Match on S3,
a generation match on GCS). Its holder renews it while it lives and removes it at the end; what a killed process
leaves expires. On the machine of the dead process nobody has to wait for that.
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

NAME = "lease"  # no suffix: a reader of *.json must not take it for text
SECONDS = 60.0  # that a lease lasts; clocks of different machines should differ by less than a quarter of it


@dataclasses.dataclass(frozen=True)
class _Holder:
    """Who holds a lease: a process, told from a later one with the same number by when it began."""

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
            raise InputError(f"{folder}/{NAME} is not what this version writes; remove it if nothing runs.") from error

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @property
    def lives(self) -> bool:
        """False where its process is known to be dead, or its time is up."""
        if self.machine and self.machine == _machine() and _began(self.process) != self.began:
            return False
        return time.time() < self.expires


class Lease:
    """A lease that this process holds; renewed by a thread."""

    def __init__(self, folder: str, holder: _Holder, version: bytes):
        self._folder = folder
        self._holder = holder
        self._version = version
        self._replaced = False
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Makes sure that this process still holds it.

        Raises:
            InputError: the lease was lost, for want of renewal or to somebody who removed it.
        """
        if self._replaced or time.time() > self._holder.expires:
            how = "another run has replaced" if self._replaced else "this run could not renew"
            raise InputError(
                f"{self._folder} is no longer ours: {how} {NAME}; see who writes there, then run the command again."
            )

    def _renew(self) -> None:
        while not self._replaced and not self._released.wait(SECONDS / 4):
            holder = dataclasses.replace(self._holder, expires=time.time() + SECONDS)
            with contextlib.suppress(Exception):  # whatever it is, there may be time to try again
                version = storage.write_version(self._folder, NAME, holder.to_json(), self._version)
                if version is None:  # or the answer to our write was lost, and the write repeated
                    content, version = storage.read_version(self._folder, NAME)
                    self._replaced = not content or _Holder.from_json(content, self._folder).token != holder.token
                self._holder, self._version = holder, version

    def release(self) -> None:
        """Ends the renewal and removes the file; one that cannot be removed expires."""
        self._released.set()
        self._thread.join()
        if not self._replaced:
            with contextlib.suppress(Exception):
                storage.write_version(self._folder, NAME, None, self._version)


@contextlib.contextmanager
def hold(folder: str, enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Holds the lease of a folder; where not `enabled`, in all processes of a run but one, does nothing.

    Returns:
        A function to call before writing what a second writer would spoil: see `Lease.check`.

    Raises:
        InputError: somebody else holds it; says who, and until when.
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
                    f"{folder} is in use by {holder.owner}, who holds {NAME} until {until} and renews it; stop that "
                    "run or wait until then, or choose another folder."
                )
        own = dataclasses.replace(own, expires=time.time() + SECONDS)
        if made := storage.write_version(folder, NAME, own.to_json(), version):
            return Lease(folder, own, made)


def _machine() -> str:
    """This machine since it was started, as this process sees its processes; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return ""


def _began(process: int) -> str:
    """When a process began, in ticks since the machine did; empty for one that is dead, or waits to be buried."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
