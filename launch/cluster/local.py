"""Runs N processes of one command on this machine as one run, like the hosts of a pod.

python launch/cluster/local.py --processes=2 --devices=4 -- \\
    python launch/train.py --config=configs/quickstart.py --workdir=runs/two --config.mesh.fsdp=8

Each process has --devices CPU devices. The run has the same batches as one process with all the devices. Every line of
output begins with the number of its process. When one process fails, the others are ended. SIGTERM is passed on to all.
The exit code is the first one that is neither 0 nor 75. Without one, it is 75 if a process was preempted, else 0.
"""

import startup  # noqa: F401

from absl import flags

from lm import cli
from lm.cluster import flags as cluster_flags
from lm.cluster import local
from lm.errors import InputError

_processes = flags.DEFINE_integer("processes", 2, "Processes to start.", lower_bound=1)
_devices = flags.DEFINE_integer("devices", 1, "CPU devices of each process.", lower_bound=1)
_dry_run = cluster_flags.define_dry_run()
_command = cluster_flags.take_command()


def main() -> int:
    if not _command:
        raise InputError("there is no command; give it after --, as in: local.py --processes=2 -- python script.py")
    if _dry_run.value:
        local.show(_command, _processes.value, _devices.value)
        return cli.EXIT_DONE
    return local.run(_command, _processes.value, _devices.value)


if __name__ == "__main__":
    cli.run(main)
