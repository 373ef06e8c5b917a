"""Trains on Google Kubernetes Engine. Takes the flags of launch/train.py and flags for the machines.

python launch/cluster/gke.py --topology=v5e:16x16 --image=REGISTRY/lm:tpu --queue=research \\
    --config=configs/bert_large.py --workdir=gs://my-bucket/runs/bert_large --config.mesh.fsdp=16
python launch/cluster/gke.py --gpu=nvidia-h100-80gb --nodes=2 --gpus_per_node=8 --spot --image=REGISTRY/lm:gpu ...

The cluster needs JobSet, nodes of that kind and, with --queue, Kueue. A preempted run restarts and resumes by itself,
as after any failure, 100 times in all. Wrong input ends it at once. An administrator may add --quota=64 --borrow=192
--cohort=all once, to make the queue. It then always has 64 chips, and may use 192 more while the other queues of the
cohort leave them idle.

`kubectl logs --follow jobs/NAME-slice-0` shows the logs. `kubectl delete jobset NAME` stops the run; the same command
resumes it. The image has the environment (see launch/Dockerfile). The code is that of this checkout, copied to the
workdir. For a bucket, give the pods a --service_account with access to it, or a --secret that holds AWS_ACCESS_KEY_ID
and so on.
"""

import startup  # noqa: F401

from absl import flags

from lm import cli
from lm.cluster import flags as cluster_flags
from lm.cluster import gke, google
from lm.cluster.flags import LABEL, WORD
from lm.errors import InputError

_run = cluster_flags.define_run("gs:// or s3://")
_image = cluster_flags.define_word(
    "image", None, "Container image with the project's environment.", WORD, required=True
)
_name = cluster_flags.define_name()
_topology = cluster_flags.define_topology(required=False)
_gpu = cluster_flags.define_word("gpu", "", "Kind of GPU, such as h100 or nvidia-h100-80gb.")
_nodes = flags.DEFINE_integer("nodes", 1, "Number of machines with GPUs.", lower_bound=1)
_gpus = flags.DEFINE_integer("gpus_per_node", 8, "GPUs of each machine.", lower_bound=1)
_spot = flags.DEFINE_bool("spot", False, "Machines that may be preempted; otherwise on demand.")
_queue = cluster_flags.define_word("queue", "", "Kueue queue; default: no Kueue.")
_quota = flags.DEFINE_integer("quota", None, "Make the queue, with so many chips or GPUs.", lower_bound=0)
_borrow = flags.DEFINE_integer("borrow", 0, "With --cohort: chips or GPUs that the queue may borrow.", lower_bound=0)
_cohort = cluster_flags.define_word("cohort", "", "Group of queues that lend each other idle chips.")
_namespace = cluster_flags.define_word("namespace", "default", "Kubernetes namespace.", LABEL)
_context = flags.DEFINE_string("context", "", "Cluster, as kubectl knows it; default: the current one.")
_account = cluster_flags.define_word("service_account", "", "Kubernetes service account of the pods.")
_secret = cluster_flags.define_word("secret", "", "Name of a Kubernetes secret with credentials.")
_output = cli.define_path("output", "", "Write the manifests to this file, and apply nothing.", written=True)
_dry_run = cluster_flags.define_dry_run()


def main() -> int:
    topology = flags.FLAGS.topology
    if bool(topology) == bool(_gpu.value):
        raise InputError(f"--topology is {topology!r} and --gpu is {_gpu.value!r}; give one of them.")
    if (_quota.value is not None and not _queue.value) or (_borrow.value and not _cohort.value):
        raise InputError("--quota needs a --queue, and --borrow needs a --cohort; give their names.")
    if _quota.value is None:
        cli.refuse_given(("borrow", "cohort"), "without --quota")
    unused = ("nodes", "gpus_per_node") if topology else ("slices",)
    cli.refuse_given(unused, "with --topology" if topology else "with --gpu")
    machines = google.Tpus(_topology()) if topology else google.gpus(_gpu.value, _nodes.value, _gpus.value)
    run = _run(machines.devices, machines.groups)
    job = gke.Job(
        name=_name(run),
        namespace=_namespace.value,
        image=_image.value,
        machines=machines,
        spot=_spot.value,
        queue=_queue.value,
        service_account=_account.value,
        secret=_secret.value,
    )
    quota = None if _quota.value is None else gke.Quota(_quota.value, _borrow.value, _cohort.value)
    if not (_dry_run.value or _output.value):
        gke.require_absent(job, _context.value)
    return cluster_flags.perform(gke.actions(job, run, quota, _context.value, _output.value), run, _dry_run.value)


if __name__ == "__main__":
    cli.run(main)
