"""Trains on Cloud TPU VMs: the command that trains, with which TPUs to rent.

python launch/cluster/tpu_vm.py --topology=v5e:16x16 --zone=us-central1-a --spot \
    --config=configs/bert_large.py --workdir=gs://BUCKET/runs/bert_large --config.mesh.fsdp=16

It queues for the TPUs, waits for them, installs the project on every machine, trains, shows their logs, queues again
when spot TPUs are taken back, and returns the TPUs at the end, however the run ends (--keep leaves them rented).

The run does not depend on this terminal: after Ctrl-C, or when the connection is lost, the same command follows it
again. --delete stops the run and returns the TPUs at once. You need `gcloud auth login`, quota for these TPUs in the
zone, and a bucket that their service account may write to.
"""

import sys

from absl import flags

from lm import cli
from lm.cluster import flags as cluster_flags
from lm.cluster import steps, tpu_vm
from lm.cluster.tpu import Topology

_run = cluster_flags.define_run()
_topology = flags.DEFINE_string("topology", None, "TPU slice, such as v5e:16x16.", required=True)
_zone = flags.DEFINE_string("zone", None, "Where to rent, such as us-central1-a.", required=True)
_name = cluster_flags.define_name()
_slices = flags.DEFINE_integer("slices", 1, "Slices, joined over the data-centre network.", lower_bound=1)
_spot = flags.DEFINE_bool("spot", False, "TPUs that may be taken back; otherwise on demand.")
_project = flags.DEFINE_string("project", "", "Google Cloud project; default: gcloud's own.")
_runtime = flags.DEFINE_string("runtime_version", "", "Software of the machines; default: the one for the topology.")
_account = flags.DEFINE_string("service_account", "", "Of the machines; default: the project's.")
_keep = flags.DEFINE_bool("keep", False, "Leave the TPUs rented at the end.")
_delete = flags.DEFINE_bool("delete", False, "Only return the TPUs.")
_dry_run = cluster_flags.define_dry_run()


def main() -> int:
    run = _run()
    tpu_vm.check(run)
    request = tpu_vm.Request(
        name=_name(run),
        zone=_zone.value,
        topology=Topology.parse(_topology.value),
        project=_project.value,
        spot=_spot.value,
        slices=_slices.value,
        runtime=_runtime.value,
        service_account=_account.value,
    )
    if _delete.value:
        return cluster_flags.perform([request.delete()], _dry_run.value)
    if _dry_run.value:
        steps.show(tpu_vm.shown(request, run, _keep.value))
        return cli.EXIT_DONE
    try:
        return tpu_vm.supervise(request, run, _keep.value)
    except KeyboardInterrupt:
        print("the run goes on; the same command follows it, --delete ends it", file=sys.stderr)
        raise


if __name__ == "__main__":
    cli.run(main)
