"""Trains on a SLURM cluster. Takes the flags of launch/train.py and flags for SLURM.

python launch/cluster/slurm.py --nodes=4 --gpus_per_node=8 --time=24:00:00 \\
    --config=configs/bert_base.py --workdir=/shared/runs/bert_base --config.mesh.fsdp=8

`squeue --me` shows whether the job runs. Its output is in WORKDIR/launch/<id>/NAME-JOB.log. Shortly before the time
limit, and when the job is preempted, the run saves and the job queues again, until the run is done. `scancel JOB` stops
it; the same command resumes it.

The Python that runs this script also runs the job, so its environment must be on a file system that all nodes share.
The workdir must be on one too, or on gs://... or s3://... The job runs a copy of the code, so later edits do not change
it.
"""

import startup  # noqa: F401

from absl import flags

from lm import cli
from lm.cluster import flags as cluster_flags
from lm.cluster import slurm
from lm.cluster.flags import WORD

_run = cluster_flags.define_run("gs://, s3:// or shared", shared=True)
_name = cluster_flags.define_name()
_nodes = flags.DEFINE_integer("nodes", 1, "Number of machines.", lower_bound=1)
_gpus = flags.DEFINE_integer("gpus_per_node", 0, "GPUs of each machine; 0: train on CPUs.", lower_bound=0)
_time = flags.DEFINE_string("time", "", "Time limit of one turn, such as 24:00:00; default: the partition's.")
_notice = flags.DEFINE_integer("notice", 120, "Seconds before the limit at which the run saves.", lower_bound=1)
_partition = cluster_flags.define_word("partition", "", "Partition to queue in; default: the cluster's.", WORD)
_account = cluster_flags.define_word("account", "", "Account that is charged; default: your own.", WORD)
_dry_run = cluster_flags.define_dry_run()


def main() -> int:
    slurm.check_time(_time.value, _notice.value)
    run = _run(_nodes.value * max(1, _gpus.value))
    job = slurm.Job(
        name=_name(run),
        nodes=_nodes.value,
        gpus_per_node=_gpus.value,
        time=_time.value,
        notice=_notice.value,
        partition=_partition.value,
        account=_account.value,
    )
    return cluster_flags.perform(slurm.actions(job, run), run, _dry_run.value)


if __name__ == "__main__":
    cli.run(main)
