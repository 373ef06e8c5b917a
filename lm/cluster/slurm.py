"""Runs on SLURM: one job, which saves and requeues itself before its time limit or when it is preempted."""

import dataclasses
import re
import shlex
import sys

from lm import storage
from lm.cli import EXIT_PREEMPTED
from lm.cluster.actions import Action, Command, Write
from lm.cluster.snapshot import Snapshot
from lm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Job:
    """What to ask of SLURM.

    Attributes:
        gpus_per_node: each GPU gets its own process, as JAX expects under SLURM. 0: one process a node, on CPUs.
        time: time limit of one turn, as SLURM writes it. The requeued job resumes the run.
        notice: seconds before the limit at which the run is told to save.
        partition, account: empty: the cluster's default.
    """

    name: str
    nodes: int
    gpus_per_node: int
    time: str
    notice: int
    partition: str
    account: str


def script(job: Job, run: Snapshot, python: str = sys.executable) -> str:
    """Returns the batch script. It runs in the folder of submission, so that relative paths of data stay valid.

    SLURM sends SIGTERM to the processes, which save and exit with 75. When the job is preempted the script gets
    SIGTERM too; it ignores it, because it must requeue the job after the processes have ended.
    """
    chosen = {
        "job-name": job.name,
        "nodes": job.nodes,
        "ntasks-per-node": max(1, job.gpus_per_node),
        "gpus-per-node": job.gpus_per_node,
        "time": job.time,
        "signal": f"TERM@{job.notice}",
        "partition": job.partition,
        "account": job.account,
        "open-mode": "append",
        "output": log(run),
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in chosen.items() if value]
    return f"""#!/bin/bash
{chr(10).join(lines)}
#SBATCH --requeue

trap : TERM
srun --wait=60 --kill-on-bad-exit=0 bash -c {shlex.quote(process(run, python))}
code=$?
# 75: saved. 143: ended by SIGTERM before it could save. Requeue, unless the job was cancelled, which its state tells.
state="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)"
if [[ "$code" =~ ^({EXIT_PREEMPTED}|143)$ && "$state" =~ ^(RUNNING|SIGNALING)$ ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def process(run: Snapshot, python: str) -> str:
    """Returns the shell commands of each process."""
    program, config, *rest = run.train
    file = shlex.quote(config.removeprefix("--config="))
    return f"""
code="$({shlex.quote(python)} -m lm.cluster.snapshot {shlex.quote(run.code)})" &&
PYTHONPATH="$code" exec {shlex.quote(python)} "$code"/{program} --config="$code"/{file} \\
  {shlex.join(rest)}
"""


def check_time(limit: str, notice: int) -> None:
    """Checks a time limit, which is empty for the partition's own.

    Raises:
        InputError: SLURM does not read it, or it is over before the run is told to save.
    """
    forms = {
        r"(?P<m>\d+)(:(?P<s>[0-5]\d))?",
        r"(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d)",
        r"(?P<d>\d+)-(?P<h>[01]?\d|2[0-3])(:(?P<m>[0-5]\d)(:(?P<s>[0-5]\d))?)?",
    }
    if not limit or limit.lower() in ("infinite", "unlimited"):
        return
    found = next((match for form in forms if (match := re.fullmatch(form, limit))), None)
    if not found:
        raise InputError(
            f"--time is {limit!r}; accepted: minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS, such as "
            "24:00:00 or 2-12."
        )
    units = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
    seconds = sum(units[name] * int(value) for name, value in found.groupdict().items() if value)
    if seconds <= notice:
        raise InputError(
            f"--time is {limit!r}, {seconds} s, but the run is told to save {notice} s before; give a longer --time "
            "or a shorter --notice."
        )


def log(run: Snapshot) -> str:
    """Returns the file to which every turn appends its output; in the folder of submission if the workdir is remote.

    Raises:
        InputError: the path has a backslash, which keeps sbatch from filling in the number of the job.
    """
    if "\\" in run.folder and not storage.is_remote(run.folder):
        raise InputError(f"--workdir is {run.folder!r}; sbatch takes no backslash in a path, so give one without.")
    folder = run.folder.replace("%", "%%")  # % begins a pattern, such as %j, the number of the job
    return "%x-%j.log" if storage.is_remote(run.folder) else f"{folder}/%x-%j.log"


def actions(job: Job, run: Snapshot) -> list[Action]:
    """Returns what submits the job: writes the snapshot and the batch script, then calls sbatch."""
    text = script(job, run)
    kept = Write(f"{run.folder}/job.sh", text.encode(), "the batch script below")
    return [*run.files, kept, Command(("sbatch",), stdin=text)]
