"""How requests from outside reach the replicas: the Gateway API, carried out by Envoy Gateway.

Each request goes to the replica with the fewest unanswered ones. kube-proxy would choose at random.
https://gateway.envoyproxy.io/docs/api/extension_types
"""

import dataclasses

from lm.cluster import serve_options
from lm.cluster.kubernetes import Server
from lm.cluster.manifests import Manifest

GROUP = "gateway.networking.k8s.io"
# Envoy looks at httpStatusCodes for the last one alone.
_RETRIED = ("connect-failure", "refused-stream", "reset", "retriable-status-codes")
# What the public reaches. /metrics and /admin/reload are for the cluster alone.
PUBLIC = (
    *("/page", "/tasks", "/attention", "/v1", "/embed", "/embed_all", "/similarity", "/tokenize", "/decode", "/info"),
    *("/predict", "/rerank", "/invocations", "/health", "/ping", "/ready", "/openapi.json"),
)
_MATCHES = 8  # in a rule; what the first version of the Gateway API allows


@dataclasses.dataclass(frozen=True)
class Gateway:
    """Where the server is reached.

    Attributes:
        hostname: its name in DNS.
        tls_secret: Kubernetes secret with the certificate; empty: HTTP without encryption.
        gateway_class: the GatewayClass that Envoy Gateway answers to.
    """

    hostname: str
    tls_secret: str = ""
    gateway_class: str = "envoy"


def objects(server: Server, gateway: Gateway) -> list[Manifest]:
    """Returns gateway, route and balancing."""
    listener: Manifest = {"name": "http", "port": 80, "protocol": "HTTP", "hostname": gateway.hostname}
    if gateway.tls_secret:
        listener = {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": gateway.hostname}
        listener["tls"] = {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "name": gateway.tls_secret}]}
    route = {"parentRefs": [{"name": server.name}], "hostnames": [gateway.hostname], "rules": _rules(server)}
    return [
        {
            "apiVersion": f"{GROUP}/v1",
            "kind": "Gateway",
            "metadata": server.metadata(),
            "spec": {"gatewayClassName": gateway.gateway_class, "listeners": [listener]},
        },
        {"apiVersion": f"{GROUP}/v1", "kind": "HTTPRoute", "metadata": server.metadata(), "spec": route},
        _balancing(server),
    ]


def _rules(server: Server) -> list[Manifest]:
    """Returns rules that match the public paths and what lies below them. The gateway answers any other with 404."""
    service, port = server.backend
    paths = [{"type": "Exact", "value": "/"}, *({"type": "PathPrefix", "value": each} for each in PUBLIC)]
    matches = [{"path": each} for each in paths]
    return [
        {"matches": matches[i : i + _MATCHES], "backendRefs": [{"name": service, "port": port}]}
        for i in range(0, len(matches), _MATCHES)
    ]


def _balancing(server: Server) -> Manifest:
    """Returns the policy: least requests; a pod that is not ready gets none within two seconds; one retry elsewhere.

    A request changes nothing, so it may be sent again when a connection is lost. 429 is handed on: its Retry-After is
    for the client.
    """
    # Ray's proxies answer this one; they leave a replica out that is not healthy.
    ready = {"path": "/-/healthz" if server.on_ray else "/ready", "method": "GET", "expectedStatuses": [200]}
    active = {"type": "HTTP", "http": ready, "interval": "1s", "timeout": "1s"}
    thresholds = {"unhealthyThreshold": 1, "healthyThreshold": 1}
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "BackendTrafficPolicy",
        "metadata": server.metadata(),
        "spec": {
            "targetRefs": [{"group": GROUP, "kind": "HTTPRoute", "name": server.name}],
            "loadBalancer": {"type": "LeastRequest", "slowStart": {"window": "10s"}},
            "healthCheck": {"active": {**active, **thresholds}, "panicThreshold": 0},
            "retry": {"numRetries": 1, "retryOn": {"triggers": list(_RETRIED), "httpStatusCodes": [503]}},
            "timeout": {"http": {"requestTimeout": f"{int(max(serve_options.DEADLINE, server.deadline)) + 5}s"}},
        },
    }
