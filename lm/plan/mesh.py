"""The mesh of a TPU slice that is not here, for which programs can be compiled."""

import os
import re
import signal
import threading

from jax.sharding import Mesh

from lm import sharding
from lm.accelerators import Topology
from lm.config import MeshConfig
from lm.errors import InputError


def described_mesh(config: MeshConfig, topology: Topology) -> Mesh:
    """Returns the mesh of a topology. Programs can be compiled for its devices, not run on them.

    Raises:
        InputError: libtpu is not installed or knows no such topology, or the mesh does not fit its devices.
    """
    # Planning needs no TPU: skip the metadata server, and allow several planning processes on one machine.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # libtpu warns without one; any value will do
    os.environ.setdefault("TPU_LOG_DIR", "disabled")  # else each process leaves a file in /tmp/tpu_logs
    from jax.experimental import topologies

    options: dict[str, str | int] = {}
    if topology.chip.megacore:
        options["chip_config_name"] = "megacore"
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology.slice_name, **options)
    except Exception as error:
        reason = str(error).splitlines()[0]
        if re.search("libtpu.*open|open.*libtpu|support not installed", reason, re.IGNORECASE):
            raise InputError("planning for TPUs needs their compiler; pip install -e '.[plan]'.") from error
        raise InputError(
            f"--topology is {topology.name!r}, which libtpu does not know ({reason[:160]}); accepted: sizes that are "
            "sold, such as v4:2x2x2, v5e:4x4, v5e:16x16, v5p:4x4x4, v6e:8x8, tpu7x:2x2x2."
        ) from error
    if threading.current_thread() is threading.main_thread():  # libtpu has put a handler there that prints its stack
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return sharding.make_mesh(config, found.devices)
