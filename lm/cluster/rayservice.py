"""The alternative to a Deployment: a RayService, which KubeRay turns into a Ray cluster that serves the model.

Ray adds and takes replicas by their outstanding tokens, and its autoscaler the pods that they need.
https://docs.ray.io/en/latest/cluster/kubernetes/getting-started/rayservice-quick-start.html
"""

import dataclasses

from lm.cluster import kubernetes, ray_serve
from lm.cluster.google import Tpus
from lm.cluster.kubernetes import PORT, Server
from lm.cluster.manifests import Manifest, pod, to_yaml
from lm.cluster.scaling import Scaling

_EVEN = [{"name": name, "value": value} for name, value in ray_serve.EVEN.items()]
_API_PORTS = (443, 6443)  # of the Kubernetes API: before and after a cluster's address is replaced by a machine's
HEAD_CPUS, HEAD_MEMORY = "2", "4Gi"  # of the pod that runs Ray's own processes


def objects(server: Server, scaling: Scaling) -> list[Manifest]:
    """Returns the objects of a server in a Ray cluster. Without an autoscaler it has `least` replicas, always."""
    if scaling.engine == "none":
        scaling = dataclasses.replace(scaling, most=scaling.least)
    found = [kubernetes.service_account(server), _network_policy(server)]
    if server.cache_class:
        found.append(kubernetes.cache_claim(server))
    return [*found, ray_service(server, scaling)]


def ray_service(server: Server, scaling: Scaling) -> Manifest:
    """Returns the RayService. A new checkpoint changes its `user_config`, which leaves the pods running."""
    cluster = {
        "enableInTreeAutoscaling": True,
        "headGroupSpec": {
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0"},
            "template": {"metadata": {"labels": server.labels}, "spec": _head(server)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "replicas",
                "replicas": scaling.least,
                "minReplicas": scaling.least,
                "maxReplicas": scaling.most,
                "rayStartParams": {},
                "template": {"metadata": {"labels": server.labels}, "spec": _worker(server)},
            }
        ],
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": server.metadata(),
        "spec": {"serveConfigV2": to_yaml([_config(server, scaling)]), "rayClusterConfig": cluster},
    }


def _config(server: Server, scaling: Scaling) -> Manifest:
    machines = server.machines
    is_tpu = isinstance(machines, Tpus)
    return ray_serve.config(
        ray_serve.Replicas(
            server.checkpoint,
            server.flags,
            least=scaling.least,
            most=scaling.most,
            target=scaling.queue_tokens,
            cpus=server.cpus,
            gpus=machines.per_host if machines and not is_tpu else 0,
            resources={"TPU": float(machines.per_host)} if is_tpu else {},
            host="0.0.0.0",
            port=PORT,
            name=server.model,
        )
    )


def _worker(server: Server) -> Manifest:
    """Returns the pod of a replica. KubeRay adds the command that joins it to the cluster."""
    environment = [*_EVEN, {"name": "JAX_COMPILATION_CACHE_DIR", "value": kubernetes.CACHE}]
    made = kubernetes.container(server, [], environment)
    del made["command"]
    return kubernetes.pod(server, {**made, "name": "ray-worker"})


def _head(server: Server) -> Manifest:
    """Returns the pod of Ray's own processes. KubeRay gives it the account that may ask for further pods."""
    resources = {"cpu": HEAD_CPUS, "memory": HEAD_MEMORY}
    ports = [("gcs", 6379), ("dashboard", 8265), ("client", 10001), ("serve", PORT)]
    temporary = kubernetes.volumes(server)[0]
    made: Manifest = {
        "name": "ray-head",
        "image": server.image,
        "resources": {"requests": resources, "limits": resources},
        "env": [*_EVEN, {"name": "HOME", "value": temporary.path}],
        "ports": [{"name": name, "containerPort": port} for name, port in ports],
        "volumeMounts": [{"name": temporary.name, "mountPath": temporary.path}],
        "securityContext": kubernetes.CONFINED,
    }
    spec = pod(made, grace=server.grace, node_labels=server.node_labels, volumes=[temporary])
    return {**spec, "securityContext": kubernetes.AS_USER}


def _network_policy(server: Server) -> Manifest:
    """Returns the policy of a server, which also lets the pods of the Ray cluster talk to each other.

    The autoscaler in the head's pod asks the Kubernetes API for pods.
    """
    made = kubernetes.network_policy(server)
    own = {"podSelector": {"matchLabels": server.labels}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    made["spec"]["ingress"].append({"from": [own, operator]})
    api = {"ports": [{"protocol": "TCP", "port": port} for port in _API_PORTS]}
    made["spec"]["egress"] += [{"to": [own]}, api]
    return made
