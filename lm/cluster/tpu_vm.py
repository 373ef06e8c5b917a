"""Runs on Cloud TPU VMs: requests a queued resource, trains, requests it again when it is preempted, deletes it.

Queued resources and their states: https://cloud.google.com/tpu/docs/queued-resources
"""

import dataclasses
import re
import shlex
import sys
import time
from collections.abc import Iterator

from lm.accelerators import Topology
from lm.cli import EXIT_DONE, EXIT_FAULT, EXIT_INPUT, EXIT_PREEMPTED
from lm.cluster import actions
from lm.cluster.actions import Action, Command
from lm.cluster.snapshot import Snapshot
from lm.errors import InputError

ABSENT, ACTIVE = "ABSENT", "ACTIVE"
ENDED = ("FAILED", "SUSPENDED")  # a request in these states never becomes ACTIVE again; its name is free once deleted
LOST = 255  # ssh's exit code when the connection is lost
PATIENCE = 20  # lost connections, or questions without an answer, in a row before we give up
PYTHON = "3.12"  # the machines' own Python is older than the project needs


@dataclasses.dataclass(frozen=True)
class Request:
    """The machines to rent, as a queued resource.

    Attributes:
        project: Google Cloud project; empty: the one in gcloud's configuration.
        spot: machines that may be preempted at any time.
        runtime: software version of the machines; empty: the default for the topology.
        service_account: whose permissions the machines have; empty: the project's default.
    """

    name: str
    zone: str
    topology: Topology
    project: str = ""
    spot: bool = False
    runtime: str = ""
    service_account: str = ""

    def create(self) -> Command:
        slices = self.topology.slices
        return self._gcloud(
            "create",
            f"--accelerator-type={self.topology.accelerator_type}",
            f"--runtime-version={self.runtime or self.topology.chip.vm_runtime}",
            *([f"--node-count={slices}"] if slices > 1 else [f"--node-id={self.name}"]),
            *(["--spot"] if self.spot else []),
            *([f"--service-account={self.service_account}"] if self.service_account else []),
        )

    def describe(self) -> Command:
        return self._gcloud("describe", "--format=value(state.state)")

    def ssh(self, script: str) -> Command:
        """Runs a script on every machine at once. The exit code is that of the first script that fails."""
        return self._gcloud("ssh", "--quiet", "--node=all", "--worker=all", "--batch-size=all", f"--command={script}")

    def delete(self) -> Command:
        return self._gcloud("delete", "--force", "--quiet")

    def _gcloud(self, verb: str, *arguments: str) -> Command:
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return Command(("gcloud", "compute", "tpus", "queued-resources", verb, self.name, *where, *arguments))

    def state(self, patience: int = 0, poll: float = 0.0) -> str:
        """Returns the state of the request; ABSENT when there is none.

        Args:
            patience: how often to ask again where gcloud cannot tell, as while the network is away.
            poll: seconds between two questions.

        Raises:
            InputError: gcloud cannot tell; a login or a permission is missing.
        """
        for left in range(patience, -1, -1):
            described = self.describe().output()
            if described.returncode == 0:
                return described.stdout.strip()
            if "NOT_FOUND" in described.stderr:
                return ABSENT
            if left:
                time.sleep(poll)
        reason = described.stderr.strip() or "it gives no reason"
        rented = f"; it may still be rented, and is returned with: {self.delete()}" if patience else ""
        raise InputError(f"gcloud cannot describe {self.name}: {reason}{rented}")


def install(run: Snapshot) -> str:
    """Returns the script that installs code and environment on a machine. It does nothing the second time."""
    return f"""set -eo pipefail
trap 'exit {EXIT_FAULT}' ERR
mkdir -p ~/lm/{run.id} && cd ~/lm/{run.id}
if [ -e installed ]; then exit 0; fi
gcloud storage cat {shlex.quote(run.code)} | tar -xz
python3 -m pip install --user --quiet uv
python3 -m uv venv --quiet --clear --python={PYTHON} .venv
python3 -m uv pip install --quiet --python=.venv --require-hashes --no-deps --requirement=launch/locks/tpu.txt
python3 -m uv pip install --quiet --python=.venv --no-deps --editable=.
touch installed
"""


def train(run: Snapshot) -> str:
    """Returns the script that trains on a machine, prints its log here and copies it to the workdir.

    Training outlives the connection: run again, the script finds the process and follows its log.
    """
    process = f".venv/bin/python {shlex.join(run.train)} >>log 2>&1; echo $? >code"
    return f"""cd ~/lm/{run.id}
if ! kill -0 "$(cat pid)"; then
  rm -f code log
  nohup bash -c {shlex.quote(process)} </dev/null >/dev/null 2>&1 &
  echo $! >pid
fi 2>/dev/null
touch log
tail --lines=+1 --follow --sleep-interval=0.2 --pid="$(cat pid)" log | sed --unbuffered "s/^/[$(hostname)] /"
gcloud storage cp log {shlex.quote(run.folder)}/"$(hostname)-$(date +%s).log" 2>/dev/null
exit "$(cat code || echo {EXIT_FAULT})"
"""


def check(run: Snapshot, zone: str) -> None:
    """Raises InputError if a zone has no name of one, or the machines cannot reach the workdir."""
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone):
        raise InputError(f"--zone is {zone!r}; accepted: a Google Cloud zone, such as us-central1-a.")
    if not run.workdir.startswith("gs://"):
        raise InputError(f"--workdir is {run.workdir}, which TPU VMs do not share; accepted: gs://BUCKET/...")


def shown(request: Request, run: Snapshot, keep: bool) -> Iterator[Action | str]:
    """Yields the actions of `supervise` when nothing fails; comments say what it does otherwise."""
    yield from run.files
    yield request.create()
    yield f"again until it prints {ACTIVE}; {' or '.join(ENDED)}: delete and create again"
    yield request.describe()
    yield request.ssh(install(run))
    yield f"exit code {EXIT_PREEMPTED}, or the machines are taken back: begin again; the run resumes"
    yield f"exit code {LOST}, the connection is lost: follow it again, {PATIENCE} times at most"
    yield request.ssh(train(run))
    if not keep:
        yield "whatever the exit code"
        yield request.delete()


def supervise(request: Request, run: Snapshot, keep: bool, poll: float = 30.0) -> int:
    """Trains to the end, through any number of preemptions, then deletes the request for the machines.

    Interrupted and called again, it follows the training that is running.

    Args:
        keep: leave the machines rented at the end.
        poll: seconds between queries of the state.

    Returns:
        The exit code of training.
    """
    actions.check([request.describe()], run.workdir)
    actions.carry_out(run.files)
    code, lost, patience = EXIT_PREEMPTED, 0, 0
    while code == EXIT_PREEMPTED or 0 < lost <= PATIENCE:
        _rent(request, poll, patience)
        patience = PATIENCE  # the first question of all finds out whether there is a login
        code = request.ssh(install(run)).exit_code() or request.ssh(train(run)).exit_code()
        if code not in (EXIT_DONE, EXIT_INPUT, EXIT_PREEMPTED):
            time.sleep(poll)  # a preempted machine is gone before its state says so
            if request.state(patience, poll) != ACTIVE:
                code = EXIT_PREEMPTED
        lost = lost + 1 if code == LOST else 0
        if code == EXIT_PREEMPTED:
            _say(f"{request.name} was preempted; the run resumes from its newest checkpoint")
    if keep:
        _say(f"{request.name} stays rented; return it with: {request.delete()}")
    else:
        request.delete().carry_out()
    return code


def _rent(request: Request, poll: float, patience: int) -> None:
    """Rents the machines; returns when they are ready."""
    before = ""
    while (state := request.state(patience, poll)) != ACTIVE:
        patience = PATIENCE
        if state != before:
            _say(f"{request.name}: {state}")
            before = state
        if state == ABSENT:
            request.create().carry_out()
        elif state in ENDED:
            request.delete().carry_out()
        time.sleep(poll)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
