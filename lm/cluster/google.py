"""What Google's Kubernetes Engine adds to Kubernetes: labels of its machines, and its permissions.

Node labels: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus and
https://cloud.google.com/kubernetes-engine/docs/how-to/gpus
"""

import dataclasses
import re

from lm.accelerators import TPUS, Topology
from lm.cluster.manifests import Manifest
from lm.errors import InputError, nearest

SPOT_LABEL = "cloud.google.com/gke-spot"
SPOT_TOLERATION = {"key": SPOT_LABEL, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
GPU_NAMES = {
    "l4": "nvidia-l4",
    "a100": "nvidia-tesla-a100",
    "h100": "nvidia-h100-80gb",
    "h200": "nvidia-h200-141gb",
}
_GPUS = (  # those that an error names; Google has more
    *GPU_NAMES.values(),
    *("nvidia-a100-80gb", "nvidia-h100-mega-80gb", "nvidia-b200", "nvidia-gb200", "nvidia-rtx-pro-6000"),
    *("nvidia-tesla-t4", "nvidia-tesla-v100", "nvidia-tesla-p100", "nvidia-tesla-p4"),
)
_GPU = re.compile(r"nvidia-[a-z0-9]+(-[a-z0-9]+)*")


@dataclasses.dataclass(frozen=True)
class Tpus:
    """TPU slices. JAX finds the processes of a slice by itself."""

    topology: Topology

    resource = "google.com/tpu"

    @property
    def groups(self) -> int:
        return self.topology.slices

    @property
    def devices(self) -> int:
        return self.topology.devices

    @property
    def hosts(self) -> int:
        return self.topology.hosts_per_slice

    @property
    def per_host(self) -> int:
        return self.topology.chips_per_host

    @property
    def labels(self) -> dict[str, str]:
        return {
            "cloud.google.com/gke-tpu-accelerator": self.topology.chip.gke,
            "cloud.google.com/gke-tpu-topology": self.topology.shape_name,
        }


@dataclasses.dataclass(frozen=True)
class Gpus:
    """Nodes with GPUs. `kind` is Google's name for the GPU, such as nvidia-h100-80gb or nvidia-h200-141gb."""

    kind: str
    hosts: int
    per_host: int

    resource = "nvidia.com/gpu"
    groups = 1

    @property
    def devices(self) -> int:
        return self.hosts * self.per_host

    @property
    def labels(self) -> dict[str, str]:
        return {"cloud.google.com/gke-accelerator": self.kind}


def gpus(given: str, hosts: int, per_host: int) -> Gpus:
    """Returns nodes with the GPU that `--gpu` names: by Google's name, or briefly, h100 for nvidia-h100-80gb.

    Any name that begins with `nvidia-` is accepted, since Google adds new ones.

    Raises:
        InputError: the name is neither.
    """
    if _GPU.fullmatch(name := GPU_NAMES.get(given, given)):
        return Gpus(name, hosts, per_host)
    near = [name for name in _GPUS if given and given in name] or nearest(given, _GPUS, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"accepted: {', '.join([*GPU_NAMES, *_GPUS])}"
    raise InputError(f"--gpu is {given!r}; {hint}.")


def one_machine(accelerator: str) -> Tpus | Gpus | None:
    """Returns what `--accelerator` names, on one machine; None for `cpu`.

    Raises:
        InputError: there is no such accelerator, or the slice has several hosts.
    """
    if accelerator == "cpu":
        return None
    if _GPU.fullmatch(name := GPU_NAMES.get(accelerator, accelerator)):
        return Gpus(name, hosts=1, per_host=1)
    kind = accelerator.partition(":")[0]
    if kind not in TPUS:
        raise InputError(
            f"--accelerator is {accelerator!r}; accepted: cpu, {', '.join(GPU_NAMES)}, another nvidia-... of "
            "Google's, or a TPU slice such as v5e:1x1."
        )
    topology = Topology.parse(accelerator, "--accelerator")
    if topology.slices > 1 or topology.hosts_per_slice > 1:
        raise InputError(
            f"--accelerator is {accelerator!r}, which has several hosts; a replica is one process, so choose a slice "
            "with one host, such as v5e:1x1, v5e:2x2 or v5p:2x2x1."
        )
    return Tpus(topology)


def prefer_spot() -> Manifest:
    """Returns the affinity of a pod that takes spot machines while there are some, and others when there are none."""
    wanted = {"matchExpressions": [{"key": SPOT_LABEL, "operator": "In", "values": ["true"]}]}
    return {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": wanted}]}
    }


def metadata_egress() -> list[Manifest]:
    """Returns the rules of a NetworkPolicy that let a pod ask the metadata server for its credentials."""
    return [
        {"to": [{"ipBlock": {"cidr": "169.254.169.252/32"}}], "ports": [{"protocol": "TCP", "port": 988}]},
        {"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}], "ports": [{"protocol": "TCP", "port": 80}]},
    ]
