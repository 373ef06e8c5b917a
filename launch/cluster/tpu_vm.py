"""Trains on Cloud TPU VMs. Takes the flags of launch/train.py and flags for the TPUs to rent.

python launch/cluster/tpu_vm.py --topology=v5e:16x16 --zone=us-central1-a --spot \\
    --config=configs/bert_large.py --workdir=gs://my-bucket/runs/bert_large --config.mesh.fsdp=16

It queues for the TPUs, waits for them, installs the project on every machine, trains and shows the logs. When spot TPUs
are preempted, it queues again. It deletes the TPUs when the run ends or fails, unless --keep is given.

The run does not depend on this terminal. After Ctrl-C or a lost connection, the same command follows the run again.
--delete stops the run and deletes the TPUs at once. You need `gcloud auth login`, quota for these TPUs in the zone, and
a bucket that their service account may write to.
"""

import startup  # noqa: F401

import sys

from absl import flags

from lm import cli
from lm.cluster import actions, tpu_vm
from lm.cluster import flags as cluster_flags
from lm.cluster.flags import WORD

_run = cluster_flags.define_run("gs://")
_topology = cluster_flags.define_topology(required=True)
_zone = flags.DEFINE_string("zone", None, "Zone to rent in, such as us-central1-a.", required=True)
_name = cluster_flags.define_name()
_spot = flags.DEFINE_bool("spot", False, "TPUs that may be preempted; otherwise on demand.")
_project = cluster_flags.define_word("project", "", "Google Cloud project; default: gcloud's own.", WORD)
_runtime = cluster_flags.define_word(
    "runtime_version", "", "Software of the machines; default: the one for the topology.", WORD
)
_account = cluster_flags.define_word(
    "service_account", "", "Service account of the machines; default: the project's.", WORD
)
_keep = flags.DEFINE_bool("keep", False, "Leave the TPUs rented at the end.")
_delete = flags.DEFINE_bool("delete", False, "Stop the run and delete the TPUs.")
_dry_run = cluster_flags.define_dry_run()


def main() -> int:
    topology = _topology()
    run = _run(topology.devices, topology.slices)
    tpu_vm.check(run, _zone.value)
    request = tpu_vm.Request(
        name=_name(run),
        zone=_zone.value,
        topology=topology,
        project=_project.value,
        spot=_spot.value,
        runtime=_runtime.value,
        service_account=_account.value,
    )
    if _delete.value:
        return cluster_flags.perform([request.delete()], run, _dry_run.value)
    if _dry_run.value:
        actions.show(tpu_vm.shown(request, run, _keep.value))
        return cli.EXIT_DONE
    try:
        return tpu_vm.supervise(request, run, _keep.value)
    except KeyboardInterrupt:
        print("the run continues; the same command follows it, --delete stops it", file=sys.stderr)
        raise


if __name__ == "__main__":
    cli.run(main)
