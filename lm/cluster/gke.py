"""A run on Kubernetes: a JobSet of Google Kubernetes Engine, and the Kueue objects of the quota that it runs under.

Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and
https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta1
Node labels: https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
"""

import dataclasses
import shlex
from typing import Any

import yaml

from lm import storage
from lm.cli import EXIT_INPUT
from lm.cluster.snapshot import Snapshot
from lm.cluster.steps import Command, Step, Write
from lm.cluster.tpu import Topology
from lm.errors import InputError

Manifest = dict[str, Any]

COORDINATOR_PORT = 8476
SLICE = "slice"  # the name of the JobSet's only group of jobs


@dataclasses.dataclass(frozen=True)
class Tpus:
    """Slices of TPU; JAX finds out by itself who is who."""

    topology: Topology
    slices: int = 1

    resource = "google.com/tpu"

    @property
    def groups(self) -> int:
        return self.slices

    @property
    def hosts(self) -> int:
        return self.topology.hosts

    @property
    def per_host(self) -> int:
        return self.topology.chips_per_host

    @property
    def labels(self) -> dict[str, str]:
        return {
            "cloud.google.com/gke-tpu-accelerator": self.topology.known.gke,
            "cloud.google.com/gke-tpu-topology": self.topology.shape,
        }


@dataclasses.dataclass(frozen=True)
class Gpus:
    """Nodes with GPUs; `kind` as Google calls it: nvidia-h100-80gb, nvidia-h200-141gb."""

    kind: str
    hosts: int
    per_host: int

    resource = "nvidia.com/gpu"
    groups = 1

    @property
    def labels(self) -> dict[str, str]:
        return {"cloud.google.com/gke-accelerator": self.kind}


@dataclasses.dataclass(frozen=True)
class Job:
    """What is asked of the cluster.

    Attributes:
        image: built with launch/Dockerfile; gives the environment, while the code is the snapshot's.
        spot: on machines that may be taken back at any time.
        queue: of Kueue, which starts the job when its quota has room; empty: no Kueue.
        service_account: whose permissions the pods have, those to the bucket for one.
        secret: name of a Kubernetes secret that the pods get as environment variables, such as the keys of an s3://
            store. Only its name is written anywhere.
        grace: seconds between the notice of a preemption and the end.
        max_restarts: starts after the first, whatever ended the run but wrong input.
    """

    name: str
    namespace: str
    image: str
    machines: Tpus | Gpus
    spot: bool = False
    queue: str = ""
    service_account: str = ""
    secret: str = ""
    grace: int = 120
    max_restarts: int = 100


@dataclasses.dataclass(frozen=True)
class Quota:
    """The chips or GPUs of a queue.

    Attributes:
        own: always for this queue; the others of its cohort give back what they borrowed of it.
        borrow: how many more it may use while the rest of the cohort leaves them idle.
        cohort: queues that lend to each other.
    """

    own: int
    borrow: int
    cohort: str


def jobset(job: Job, run: Snapshot) -> Manifest:
    """The JobSet: a job for each slice, a pod for each host.

    Any failure restarts all pods, which resume from the newest checkpoint; wrong input ends the run.
    """
    machines = job.machines
    never_again = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [EXIT_INPUT]}}
    template = {
        "spec": {
            "parallelism": machines.hosts,
            "completions": machines.hosts,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [never_again]},
            "template": {"spec": _pod(job, run)},
        }
    }
    metadata: Manifest = {"name": job.name, "namespace": job.namespace, "labels": {"app.kubernetes.io/name": "lm"}}
    if job.queue:
        metadata["labels"]["kueue.x-k8s.io/queue-name"] = job.queue
    if machines.groups > 1:  # a slice is a node pool: no two jobs share one
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    failed = {"name": "wrongInput", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": job.max_restarts, "rules": [failed]},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": SLICE, "replicas": machines.groups, "template": template}],
        },
    }


def _pod(job: Job, run: Snapshot) -> Manifest:
    machines = job.machines
    container: Manifest = {
        "name": "train",
        "image": job.image,
        "command": ["bash", "-c", _start(run)],
        "resources": {"limits": {machines.resource: machines.per_host}},
    }
    pod: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace,
        "nodeSelector": _node_labels(job),
        "containers": [container],
    }
    if job.service_account:
        pod["serviceAccountName"] = job.service_account
    if job.spot:
        pod["tolerations"] = [
            {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        ]
    if job.secret:
        container["envFrom"] = [{"secretRef": {"name": job.secret}}]
    if isinstance(machines, Gpus):
        container["env"] = _joining(job, machines)
        container["volumeMounts"] = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
        pod["volumes"] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]  # NCCL, beyond 64 MB
    return pod


def _start(run: Snapshot) -> str:
    return (
        f'cd "$(python -m lm.cluster.snapshot {shlex.quote(run.code)})" &&\n'
        f'PYTHONPATH="$PWD" exec python {shlex.join(run.train)}\n'
    )


def _joining(job: Job, machines: Gpus) -> list[Manifest]:
    """Who is who, from the names that JobSet gives its pods: JAX's own way would need a role to read pods."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "LM_COORDINATOR", "value": f"{job.name}-{SLICE}-0-0.{job.name}:{COORDINATOR_PORT}"},
        {"name": "LM_PROCESSES", "value": str(machines.hosts)},
        {"name": "LM_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _node_labels(job: Job) -> dict[str, str]:
    return {**job.machines.labels, **({"cloud.google.com/gke-spot": "true"} if job.spot else {})}


def queue(job: Job, quota: Quota) -> list[Manifest]:
    """The Kueue objects that a cluster's administrator applies once: machines, their quota, and the queue to it."""
    api = {"apiVersion": "kueue.x-k8s.io/v1beta1"}
    flavor = "-".join([*(label.lower() for label in job.machines.labels.values()), "spot" if job.spot else "on-demand"])
    resource = {"name": job.machines.resource, "nominalQuota": quota.own}
    cluster_queue: Manifest = {
        "namespaceSelector": {},
        "queueingStrategy": "BestEffortFIFO",
        "resourceGroups": [
            {"coveredResources": [job.machines.resource], "flavors": [{"name": flavor, "resources": [resource]}]}
        ],
        "preemption": {"reclaimWithinCohort": "Any", "withinClusterQueue": "LowerPriority"},
    }
    if quota.cohort:
        cluster_queue["cohort"] = quota.cohort
        resource["borrowingLimit"] = quota.borrow
    return [
        {**api, "kind": "ResourceFlavor", "metadata": {"name": flavor}, "spec": {"nodeLabels": _node_labels(job)}},
        {**api, "kind": "ClusterQueue", "metadata": {"name": job.queue}, "spec": cluster_queue},
        {
            **api,
            "kind": "LocalQueue",
            "metadata": {"name": job.queue, "namespace": job.namespace},
            "spec": {"clusterQueue": job.queue},
        },
    ]


class _Dumper(yaml.SafeDumper):
    """Text of several lines is written as such, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(manifests: list[Manifest]) -> str:
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120)


def steps(job: Job, run: Snapshot, quota: Quota | None, context: str, output: str) -> list[Step]:
    """Writes the snapshot and applies the manifests, or writes them to the file `output` for others to apply.

    Raises:
        InputError: when the pods could not reach the workdir.
    """
    if not storage.is_remote(run.workdir):
        raise InputError(
            f"--workdir is {run.workdir}, which no pod can see; accepted: gs://BUCKET/... or s3://BUCKET/..."
        )
    text = to_yaml([*(queue(job, quota) if quota else []), jobset(job, run)])
    if output:
        return [*run.files, Write(output, text.encode())]
    kept = Write(f"{run.folder}/jobset.yaml", text.encode(), "the manifests below")
    where = ("--context", context) if context else ()
    return [*run.files, kept, Command(("kubectl", *where, "apply", "--filename=-"), stdin=text)]
