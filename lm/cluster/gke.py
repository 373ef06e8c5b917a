"""Runs on Google Kubernetes Engine: a JobSet, and the Kueue objects of its quota.

Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and
https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta1
"""

import dataclasses
import shlex

from lm import storage
from lm.cli import EXIT_INPUT
from lm.cluster import manifests
from lm.cluster.actions import Action, Write, require
from lm.cluster.google import SPOT_LABEL, SPOT_TOLERATION, Gpus, Tpus
from lm.cluster.manifests import SHARED_MEMORY, Manifest
from lm.cluster.snapshot import Snapshot
from lm.errors import InputError

COORDINATOR_PORT = 8476
SLICE = "slice"  # the name of the JobSet's only group of jobs


@dataclasses.dataclass(frozen=True)
class Job:
    """What to ask of the cluster.

    Attributes:
        image: container image, built with launch/Dockerfile. It brings the environment; the snapshot brings the code.
        spot: use machines that may be preempted at any time.
        queue: Kueue queue, which starts the job when its quota has room; empty: no Kueue.
        service_account: whose permissions the pods have, such as access to the bucket.
        secret: name of a Kubernetes secret that the pods get as environment variables, such as the keys of an s3://
            store. The manifests hold its name only.
        grace: seconds between the notice of a preemption and the end.
        max_restarts: restarts after any failure, preemptions included, except wrong input, which ends the run.
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
        own: always available to this queue; other queues of its cohort return what they borrowed of these.
        borrow: how many more this queue may use while the cohort leaves them idle.
        cohort: name of a group of queues that lend to each other.
    """

    own: int
    borrow: int
    cohort: str


def jobset(job: Job, run: Snapshot) -> Manifest:
    """Returns the JobSet: one job a slice, one pod a host.

    A failure restarts all pods, which resume from the newest checkpoint. Wrong input ends the run.
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
    if machines.groups > 1:  # a slice is a node pool, which two jobs must not share
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
    has_gpus = isinstance(machines, Gpus)
    volumes = [SHARED_MEMORY] if has_gpus else []
    container = manifests.container(
        "train",
        job.image,
        ["bash", "-c", _start(run)],
        limits={machines.resource: machines.per_host},
        secret=job.secret,
        environment=_joining(job, machines) if has_gpus else [],
        volumes=volumes,
    )
    pod = manifests.pod(
        container,
        grace=job.grace,
        node_labels=_node_labels(job),
        tolerations=[SPOT_TOLERATION] if job.spot else [],
        service_account=job.service_account,
        volumes=volumes,
    )
    return {"restartPolicy": "Never", **pod}


def _start(run: Snapshot) -> str:
    return (
        f'code="$(python -m lm.cluster.snapshot {shlex.quote(run.code)})" && cd "$code" &&\n'
        f'PYTHONPATH="$code" exec python {shlex.join(run.train)}\n'
    )


def _joining(job: Job, machines: Gpus) -> list[Manifest]:
    """Returns the variables that join the processes, from the names that JobSet gives its pods.

    JAX's own discovery would need a role that may read pods.
    """
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "LM_COORDINATOR", "value": f"{job.name}-{SLICE}-0-0.{job.name}:{COORDINATOR_PORT}"},
        {"name": "LM_PROCESSES", "value": str(machines.hosts)},
        {"name": "LM_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}},
    ]


def _node_labels(job: Job) -> dict[str, str]:
    return {**job.machines.labels, **({SPOT_LABEL: "true"} if job.spot else {})}


def queue(job: Job, quota: Quota) -> list[Manifest]:
    """Returns the Kueue objects that an administrator applies once: a flavor of machines, its quota, and a queue."""
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


def require_absent(job: Job, context: str) -> None:
    """Refuses to apply a JobSet that is there: Kubernetes changes none, and starts none again that has ended.

    Raises:
        InputError: the cluster has one of this name, or does not say.
    """
    require("kubectl")
    where = ("--namespace", job.namespace)
    how = ("--ignore-not-found", "--output=name", "--request-timeout=20s")
    asked = manifests.kubectl(context, *where, "get", "jobset", job.name, *how).output()
    if asked.returncode:
        why = (asked.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise InputError(f"kubectl cannot look for JobSets ({why}); choose a cluster that has them with --context.")
    if asked.stdout.strip():
        raise InputError(
            f"JobSet {job.name} is there already, running or ended; `kubectl delete jobset {job.name} "
            f"{' '.join(where)}` removes it, then the same command resumes the run."
        )


def actions(job: Job, run: Snapshot, quota: Quota | None, context: str, output: str) -> list[Action]:
    """Returns what launches the job: writes the snapshot, then applies the manifests or writes them to `output`.

    Raises:
        InputError: the pods cannot reach the workdir.
    """
    if not storage.is_remote(run.workdir):
        raise InputError(
            f"--workdir is {run.workdir}, which no pod can see; accepted: gs://BUCKET/... or s3://BUCKET/..."
        )
    wanted = [*(queue(job, quota) if quota else []), jobset(job, run)]
    text = manifests.to_yaml(wanted)
    if output:
        return [*run.files, Write(output, text.encode())]
    kept = Write(f"{run.folder}/jobset.yaml", text.encode(), "the manifests below")
    return [*run.files, kept, manifests.kubectl(context, "apply", "--filename=-", manifests=wanted)]
