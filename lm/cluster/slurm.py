"""A run on SLURM: one job that saves and asks for its next turn before its time is over or when it is preempted."""

import dataclasses
import shlex
import sys

from lm import storage
from lm.cli import EXIT_PREEMPTED
from lm.cluster.snapshot import Snapshot
from lm.cluster.steps import Command, Step, Write


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of SLURM.

    Attributes:
        gpus_per_node: each gets a process of its own, as JAX expects under SLURM; 0: one process of CPU devices a node.
        time: limit of one turn, in SLURM's form; the run goes on in the next turn.
        notice: seconds before the limit at which the run is told to save.
        partition, account: empty: the cluster's own.
    """

    name: str
    nodes: int
    gpus_per_node: int
    time: str
    notice: int
    partition: str
    account: str


def script(job: Job, run: Snapshot, python: str = sys.executable) -> str:
    """The batch script. It runs where it was submitted, so that relative paths of data mean the same as there.

    The processes get SIGTERM from SLURM and leave with 75; the script, which gets it too when the job is preempted,
    only has to outlive them.
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
    lines = [f"#SBATCH --{name}={value}" for name, value in chosen.items() if value]
    return f"""#!/bin/bash
{chr(10).join(lines)}
#SBATCH --requeue

trap : TERM
srun --wait=60 --kill-on-bad-exit=0 bash -c {shlex.quote(process(run, python))}
code=$?
# Saved, or told to end before it could: another turn. A cancelled job's processes say the same; its state does not.
state="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)"
if [[ "$code" =~ ^({EXIT_PREEMPTED}|143)$ && "$state" =~ ^(RUNNING|SIGNALING)$ ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def process(run: Snapshot, python: str) -> str:
    """What each process does, in shell."""
    program, config, *rest = run.train
    return f"""
code="$({shlex.quote(python)} -m lm.cluster.snapshot {shlex.quote(run.code)})" &&
PYTHONPATH="$code" exec {shlex.quote(python)} "$code"/{program} --config="$code"/{config.removeprefix("--config=")} \\
  {shlex.join(rest)}
"""


def log(run: Snapshot) -> str:
    """The file that every turn of the job adds its output to; beside the place of submission for a remote workdir."""
    return "%x-%j.log" if storage.is_remote(run.folder) else f"{run.folder}/%x-%j.log"


def steps(job: Job, run: Snapshot) -> list[Step]:
    text = script(job, run)
    kept = Write(f"{run.folder}/job.sh", text.encode(), "the batch script below")
    return [*run.files, kept, Command(("sbatch",), stdin=text)]
