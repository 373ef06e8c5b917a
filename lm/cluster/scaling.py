"""How many replicas there are: an autoscaler looks at the tokens that wait, at those read, and at the slots in use.

A HorizontalPodAutoscaler wants `ceil(sum over the replicas / target)` replicas, and does nothing while that is within a
tenth of what runs. KEDA asks Prometheus and makes such an autoscaler itself; it can also stop the last replica.
https://kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale and https://keda.sh/docs/latest/reference/scaledobject-spec
"""

import dataclasses

from lm.cluster.kubernetes import Server
from lm.cluster.manifests import Manifest
from lm.cluster.pace import AVERAGED, COOL_DOWN, DOWN, POLLING, UP, Pace
from lm.errors import InputError

READ_RATE = "lm_read_tokens"  # a second; the others are gauges


@dataclasses.dataclass(frozen=True)
class Scaling:
    """When replicas come and go.

    Attributes:
        engine: `keda`, `hpa`, or `none`: `least` replicas, always. With Ray its own takes the place of `keda`.
        least, most: replicas. A `least` of 0 needs Ray, or KEDA and `wake_query`.
        queue_tokens: waiting tokens a replica above which another is wanted.
        slots: slots in use a replica above which another is wanted; 0: the model writes nothing.
        prometheus: address of the Prometheus that KEDA asks.
        wake_query: PromQL that is above 0 while somebody asks a server without replicas, such as the gateway's count.
        read_tokens: tokens read a second by a replica above which another is wanted; 0: never. At a constant rate of
            requests this number is constant, while the queue is empty until there are too few replicas.
    """

    engine: str
    least: int
    most: int
    queue_tokens: int
    slots: int = 0
    prometheus: str = ""
    wake_query: str = ""
    read_tokens: int = 0


def check(scaling: Scaling, on_ray: bool = False) -> None:
    """Raises InputError if the autoscaler, which may be Ray's own, cannot do what is asked of it."""
    if on_ray and scaling.engine == "hpa":
        raise InputError("--autoscaler is hpa, but with --ray the autoscaler is Ray's; leave it out, or give none.")
    if scaling.most < max(1, scaling.least):
        raise InputError(
            f"--max_replicas is {scaling.most} and --min_replicas is {scaling.least}; give a larger --max_replicas."
        )
    if not scaling.least and scaling.engine != "keda":
        raise InputError("--min_replicas is 0, which only --autoscaler=keda can do; use it, or keep one replica.")
    if not (scaling.least or on_ray or scaling.wake_query):  # Ray's proxies keep a request and say that it waits
        raise InputError(
            "--min_replicas is 0, but no pod is left then to say that somebody waits; give --wake_query, such as the "
            "gateway's rate of requests, or keep one replica."
        )


def objects(server: Server, scaling: Scaling) -> list[Manifest]:
    """Returns the autoscaler; nothing where the number of replicas is fixed."""
    if scaling.engine == "none":
        return []
    return [scaled_object(server, scaling) if scaling.engine == "keda" else autoscaler(server, scaling)]


def _target(server: Server) -> Manifest:
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": server.name}


def _behavior() -> Manifest:
    return {"scaleUp": _pace(UP), "scaleDown": _pace(DOWN)}


def _pace(pace: Pace) -> Manifest:
    policies = [("Percent", pace.percent), ("Pods", pace.pods)]
    return {
        "stabilizationWindowSeconds": pace.window,
        "policies": [{"type": kind, "value": value, "periodSeconds": pace.period} for kind, value in policies],
        "selectPolicy": "Max",
    }


def _targets(scaling: Scaling) -> dict[str, int]:
    """Returns the metrics that scale, and what a replica may have of each. That of tokens read is a rate."""
    found = {"lm_queue_tokens": scaling.queue_tokens, READ_RATE: scaling.read_tokens, "lm_slots_in_use": scaling.slots}
    return {name: target for name, target in found.items() if target}


def autoscaler(server: Server, scaling: Scaling) -> Manifest:
    """Returns a HorizontalPodAutoscaler. prometheus-adapter, or another adapter, has to serve the pods' metrics.

    By its own rules prometheus-adapter serves the counter lm_read_tokens_total as the rate lm_read_tokens.
    """
    metrics = [
        {
            "type": "Pods",
            "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": str(target)}},
        }
        for name, target in _targets(scaling).items()
    ]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": server.metadata(),
        "spec": {
            "scaleTargetRef": _target(server),
            "minReplicas": scaling.least,
            "maxReplicas": scaling.most,
            "metrics": metrics,
            "behavior": _behavior(),
        },
    }


def scaled_object(server: Server, scaling: Scaling) -> Manifest:
    """Returns KEDA's object. While Prometheus does not answer, the number of replicas stays."""
    fallback = {"failureThreshold": 3, "replicas": max(1, scaling.least), "behavior": "currentReplicasIfHigher"}
    pods = f'namespace="{server.namespace}",pod=~"{server.name}-[a-z0-9]+-[a-z0-9]+"'
    recent = f"{{{pods}}}[{AVERAGED}s]"
    triggers = []
    for name, target in _targets(scaling).items():
        query = f"sum(rate({name}_total{recent}))" if name == READ_RATE else f"sum(avg_over_time({name}{recent}))"
        triggers.append(_trigger(scaling, name.replace("_", "-"), query, target))
    if scaling.wake_query:  # it wakes the first replica and asks for no more
        triggers.append(_trigger(scaling, "wake", scaling.wake_query, 1_000_000_000))
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": server.metadata(),
        "spec": {
            "scaleTargetRef": _target(server),
            "minReplicaCount": scaling.least,
            "maxReplicaCount": scaling.most,
            "pollingInterval": POLLING,
            "cooldownPeriod": COOL_DOWN,
            "fallback": fallback,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior()}},
            "triggers": triggers,
        },
    }


def _trigger(scaling: Scaling, name: str, query: str, threshold: int) -> Manifest:
    metadata = {
        "serverAddress": scaling.prometheus,
        "query": query,
        "threshold": str(threshold),
        "activationThreshold": "0",
        "ignoreNullValues": "true",
    }
    return {"type": "prometheus", "name": name, "metricType": "AverageValue", "metadata": metadata}
