"""A served model on Kubernetes: the objects around launch/serve.py, and what applies, rolls and deletes them.

scaling.py says how many replicas there are, gateway.py how requests reach them, rayservice.py has the alternative.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from lm import storage
from lm.cluster import google, manifests, planned, serve_options
from lm.cluster.manifests import SHARED_MEMORY, Manifest, Volume
from lm.cluster.ray_serve import NOT_OF_REPLICAS
from lm.config.paths import named_models
from lm.errors import InputError

PORT = 8000
PRE_STOP = 5  # seconds until balancers that watch the pods have heard that one leaves
_PROBE = 5  # seconds between two probes of a pod that starts
CACHE = "/cache"
CHECKPOINT = "LM_CHECKPOINT"
_PROGRAM = 3 << 30  # bytes of Python, JAX, the compiler and the tokenizers
_USER = 1000  # of launch/Dockerfile
# Flags of launch/serve.py that the pods are not given from the command line -> what to do instead.
OURS = {
    "checkpoint": "give --checkpoint before --",
    "drain_seconds": "give --drain_seconds before --",
    "host": "the pods listen on every address, so leave it out",
    "port": f"the pods listen on {PORT}, so leave it out",
    "api_keys_file": "no pod has that file, so name a --secret with LM_API_KEYS",
    "compilation_cache": f"it is {CACHE} in a pod, and --cache_class shares it, so leave it out",
}
CONFINED: Manifest = {  # what a container may do
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
AS_USER: Manifest = {  # as whom a pod runs
    "runAsNonRoot": True,
    "runAsUser": _USER,
    "runAsGroup": _USER,
    "fsGroup": _USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


@dataclasses.dataclass(frozen=True)
class Server:
    """What to ask of the cluster.

    Attributes:
        name: of all objects.
        image: built with launch/Dockerfile, target `serving`.
        checkpoint: what is served, on gs:// or s3://.
        machines: what a replica runs on; None for CPUs.
        options: further flags of launch/serve.py.
        cpus: CPU cores of a replica.
        memory: bytes of a replica.
        identity: a Google service account (an e-mail address) or an AWS role (an ARN) whose permissions the pods have.
        secret: name of a Kubernetes secret that becomes environment variables: the keys of an s3:// store, LM_API_KEYS.
        on_google: add what Google Kubernetes Engine needs.
        node_labels: further labels of the machines.
        spot: prefer machines that may be preempted; without any, take others.
        drain_seconds: how long a server that is told to stop still takes requests.
        startup_seconds: how long it may take to read its weights and to compile.
        cache_class: storage class of a volume that all replicas share for compiled programs; empty: each has its own,
            which its restarts keep.
        cache_gib: size of the shared volume.
        sources: namespaces whose pods may ask, beside its own: the gateway's, the monitoring's.
        store_port: TCP port of the object store.
        on_ray: run the replicas in a Ray cluster, which KubeRay manages; the image needs the extra [ray].
        model: name of a lone model, as requests give it; empty: the last part of its path.
    """

    name: str
    namespace: str
    image: str
    checkpoint: str
    machines: google.Tpus | google.Gpus | None = None
    options: tuple[str, ...] = ()
    cpus: int = 4
    memory: int = 8 << 30
    identity: str = ""
    secret: str = ""
    on_google: bool = True
    node_labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    spot: bool = False
    drain_seconds: int = 10
    startup_seconds: int = 900
    cache_class: str = ""
    cache_gib: int = 10
    sources: tuple[str, ...] = ("envoy-gateway-system", "monitoring")
    store_port: int = 443
    on_ray: bool = False
    model: str = ""

    @property
    def path(self) -> str:
        """The path of the first checkpoint."""
        return named_models(self.checkpoint)[0][1]

    @property
    def models(self) -> str:
        """The checkpoint with names: a lone model has the one that --name gives, whichever run is served next."""
        return ",".join(f"{name}={path}" for name, path in named_models(self.checkpoint, only=self.model))

    @property
    def devices(self) -> int:
        """JAX devices of a replica."""
        return self.machines.devices if self.machines else 1

    @property
    def flags(self) -> tuple[str, ...]:
        """The options, and a mesh over all devices of the machine if the options name none."""
        if self.devices == 1 or any(option.startswith("--mesh=") for option in self.options):
            return self.options
        return (*self.options, f"--mesh=data={self.devices}")

    @property
    def labels(self) -> dict[str, str]:
        """The labels that select its pods."""
        return {"app.kubernetes.io/name": "lm", "app.kubernetes.io/instance": self.name}

    @property
    def deadline(self) -> float:
        """Seconds after which the server gives a request up; see `serve_options.deadline`."""
        return serve_options.deadline(self.options)

    @property
    def grace(self) -> int:
        """Seconds between the notice and the end of a pod: every request that was admitted can be answered."""
        return PRE_STOP + self.drain_seconds + int(self.deadline) + 5

    @property
    def backend(self) -> tuple[str, int]:
        """The name and the port of the Service that reaches the replicas."""
        return (f"{self.name}-serve-svc", PORT) if self.on_ray else (self.name, 80)

    def metadata(self, suffix: str = "") -> Manifest:
        return {"name": f"{self.name}{suffix}", "namespace": self.namespace, "labels": self.labels}


def check(server: Server) -> None:
    """Checks what the command line gave.

    Raises:
        InputError: the pods cannot read a run, or an option is one that the manifests set.
    """
    adapters = [("--adapters", given) for given in serve_options.values(server.options, "adapters") if given]
    for flag, given in [("--checkpoint", server.checkpoint), *adapters]:
        for _, path in named_models(given, flag):
            storage.check_path(path)
            if not storage.is_remote(path):
                raise InputError(
                    f"{flag} is {given}, which no pod can see; accepted: gs://BUCKET/... or "
                    "s3://BUCKET/..., so copy the run there first."
                )
    serve_options.check(server.options, {**NOT_OF_REPLICAS, **OURS} if server.on_ray else OURS)
    serve_options.check_mesh(server.options, server.devices)
    serve_options.check_adapters(server.options, server.checkpoint)
    if server.identity and not re.fullmatch(r"[\w.-]+@[\w.-]+\.iam\.gserviceaccount\.com|arn:\S+", server.identity):
        raise InputError(
            f"--identity is {server.identity!r}; accepted: NAME@PROJECT.iam.gserviceaccount.com, or an AWS role's ARN."
        )
    _check_cloud(server)


def _check_cloud(server: Server) -> None:
    """Raises InputError for what the cloud of --cloud does not have."""
    of_amazon = server.identity.startswith("arn:")
    if server.identity and of_amazon == server.on_google:
        whose, cloud = ("an AWS role", "other") if of_amazon else ("a Google account", "google")
        raise InputError(f"--identity is {whose}; give --cloud={cloud} with it, or another --identity.")
    if server.spot and not server.on_google:
        raise InputError("--spot has no effect with --cloud=other; leave it out, and give --node_labels.")
    if isinstance(server.machines, google.Tpus) and not server.on_google:
        raise InputError("--accelerator is a TPU, which --cloud=other does not have; give --cloud=google, or a GPU.")


def planned_memory(path: str, accelerator: str) -> int:
    """Returns the bytes of memory that a replica needs by a plan of `launch/plan.py --serve --output=FILE`.

    Old and new weights are held together while a checkpoint is replaced. On CPUs the program's arrays are there too.

    Raises:
        InputError: there is no such plan, or it is for another machine or does not fit.
    """
    plan = planned.read(path)
    if ":" in accelerator and not (plan.fits and plan.topology == accelerator):
        what = f"is for {plan.topology}" if plan.fits else "does not fit"
        raise InputError(f"--plan is {path!r}, which {what}; make one for --topology={accelerator} that fits.")
    return int(2 * plan.parameter_bytes + (plan.temporary_bytes if accelerator == "cpu" else 0)) + _PROGRAM


def objects(server: Server) -> list[Manifest]:
    """Returns the objects of a server, without those that scale it or that route requests to it."""
    found = [service_account(server), service(server), disruption_budget(server), network_policy(server)]
    if server.cache_class:
        found.append(cache_claim(server))
    return [*found, pod_monitor(server), deployment(server)]


# ---- The pods -----------------------------------------------------------------------------------


def volumes(server: Server) -> list[Volume]:
    """Returns the folders that a container with a read-only root may write to."""
    cache: Manifest = {"emptyDir": {}}
    if server.cache_class:
        cache = {"persistentVolumeClaim": {"claimName": f"{server.name}-cache"}}
    found = [Volume("temporary", "/tmp", {"emptyDir": {}}), Volume("cache", CACHE, cache)]
    return [*found, SHARED_MEMORY] if isinstance(server.machines, google.Gpus) else found


def container(server: Server, command: Sequence[str], environment: Sequence[Manifest] = ()) -> Manifest:
    """Returns a container that may do as little as a server needs, and has the machine's accelerator."""
    limits: dict[str, object] = {"memory": f"{-(-server.memory >> 20)}Mi"}
    requests = {"cpu": str(server.cpus), **limits}
    if server.machines is not None:
        limits[server.machines.resource] = server.machines.per_host
    made = manifests.container(
        "serve",
        server.image,
        command,
        limits=limits,
        requests=requests,
        secret=server.secret,
        environment=[*environment, {"name": "HOME", "value": "/tmp"}],
        volumes=volumes(server),
    )
    made["securityContext"] = CONFINED
    return made


def pod(server: Server, made: Manifest) -> Manifest:
    """Returns the specification of a pod: the machines that it may run on, and nobody's rights but its own."""
    labels = dict(server.node_labels)
    if server.on_google and server.machines is not None:
        labels = {**server.machines.labels, **labels}
    tolerations = [google.SPOT_TOLERATION] if server.spot else []
    if server.machines is not None:
        tolerations.append({"key": server.machines.resource, "operator": "Exists", "effect": "NoSchedule"})
    spec = manifests.pod(
        made,
        grace=server.grace,
        node_labels=labels,
        tolerations=tolerations,
        service_account=server.name,
        volumes=volumes(server),
    )
    spec["automountServiceAccountToken"] = False
    spec["securityContext"] = AS_USER
    if server.spot:
        spec["affinity"] = google.prefer_spot()
    return spec


def deployment(server: Server) -> Manifest:
    """Returns the Deployment. Its autoscaler sets the number of replicas, so that a new apply does not reset it.

    The checkpoint is an environment variable: `roll` changes that one and nothing else.
    """
    command = [
        *("python", "launch/serve.py", f"--checkpoint=$({CHECKPOINT})", "--host=0.0.0.0", f"--port={PORT}"),
        *(f"--drain_seconds={server.drain_seconds}", f"--compilation_cache={CACHE}", *server.flags),
    ]
    made = container(server, command, [{"name": CHECKPOINT, "value": server.models}])
    made["ports"] = [{"name": "http", "containerPort": PORT}]
    made |= _probes(server)
    # The balancer hears of a leaving pod while the pod still takes requests; then SIGTERM begins --drain_seconds.
    made["lifecycle"] = {"preStop": {"sleep": {"seconds": PRE_STOP}}}
    spec = pod(server, made)
    spec["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": server.labels},
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": server.metadata(),
        "spec": {
            "selector": {"matchLabels": server.labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
            "progressDeadlineSeconds": server.startup_seconds + 60,
            "template": {"metadata": {"labels": server.labels}, "spec": spec},
        },
    }


def _probes(server: Server) -> Manifest:
    """Returns the probes: none restarts a server that compiles or whose queue is long."""
    tries = -(-server.startup_seconds // _PROBE)
    return {
        "startupProbe": {**_get("/ready"), "periodSeconds": _PROBE, "timeoutSeconds": 5, "failureThreshold": tries},
        "livenessProbe": {**_get("/health"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
        "readinessProbe": {**_get("/ready"), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 1},
    }


def _get(path: str) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}}


# ---- Around them --------------------------------------------------------------------------------


def service_account(server: Server) -> Manifest:
    """Returns the account of the pods. The cluster exchanges it for the identity's permissions; no key is written."""
    metadata = server.metadata()
    if server.identity:
        key = "eks.amazonaws.com/role-arn" if server.identity.startswith("arn:") else "iam.gke.io/gcp-service-account"
        metadata["annotations"] = {key: server.identity}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata, "automountServiceAccountToken": False}


def service(server: Server) -> Manifest:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": server.metadata(),
        "spec": {"selector": server.labels, "ports": ports},
    }


def disruption_budget(server: Server) -> Manifest:
    """Returns the budget: maintenance takes one replica at a time, and any that does not serve anyway."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": server.metadata(),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": server.labels},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def network_policy(server: Server) -> Manifest:
    """Returns the policy: named namespaces may ask, and the pods may ask for names and for the object store."""
    label = "kubernetes.io/metadata.name"
    names = [server.namespace, *(name for name in server.sources if name != server.namespace)]
    sources = {"matchExpressions": [{"key": label, "operator": "In", "values": names}]}
    names_and_store = [
        *({"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")),
        {"protocol": "TCP", "port": server.store_port},
    ]
    egress: list[Manifest] = [{"ports": names_and_store}, *(google.metadata_egress() if server.on_google else [])]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": server.metadata(),
        "spec": {
            "podSelector": {"matchLabels": server.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": sources}], "ports": [{"protocol": "TCP", "port": PORT}]}],
            "egress": egress,
        },
    }


def cache_claim(server: Server) -> Manifest:
    """Returns the claim on a volume for compiled programs, so that a further replica compiles nothing."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": server.metadata("-cache"),
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "storageClassName": server.cache_class,
            "resources": {"requests": {"storage": f"{server.cache_gib}Gi"}},
        },
    }


def pod_monitor(server: Server) -> Manifest:
    """Returns what tells Prometheus (its operator) to ask the pods for /metrics."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": server.metadata(),
        "spec": {
            "selector": {"matchLabels": server.labels},
            "podMetricsEndpoints": [{"port": "http", "path": "/metrics", "interval": "10s"}],
        },
    }
