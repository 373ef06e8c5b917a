"""Builders that the manifests of training and of serving share. They hold what any Kubernetes knows.

Fields: https://kubernetes.io/docs/reference/kubernetes-api
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from lm.cluster.actions import Command

Manifest = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume of a pod, and where its container sees it.

    Attributes:
        source: what the volume is, such as `{"emptyDir": {}}`.
    """

    name: str
    path: str
    source: Manifest


# NCCL needs more shared memory than the 64 MB of a container.
SHARED_MEMORY = Volume("shared-memory", "/dev/shm", {"emptyDir": {"medium": "Memory"}})


def container(
    name: str,
    image: str,
    command: Sequence[str],
    *,
    limits: Mapping[str, object],
    requests: Mapping[str, object] | None = None,
    secret: str = "",
    environment: Sequence[Manifest] = (),
    volumes: Sequence[Volume] = (),
) -> Manifest:
    """Returns a container.

    Args:
        limits, requests: resources by name.
        secret: name of a Kubernetes secret that becomes environment variables. The manifest holds its name only.
        environment: further variables.
        volumes: what it sees; `pod` needs them too.
    """
    resources = {"requests": dict(requests or {}), "limits": dict(limits)}
    made: Manifest = {
        "name": name,
        "image": image,
        "command": list(command),
        "resources": {kind: values for kind, values in resources.items() if values},
    }
    if secret:
        made["envFrom"] = [{"secretRef": {"name": secret}}]
    if environment:
        made["env"] = list(environment)
    if volumes:
        made["volumeMounts"] = [{"name": volume.name, "mountPath": volume.path} for volume in volumes]
    return made


def pod(
    made: Manifest,
    *,
    grace: int,
    node_labels: Mapping[str, str],
    tolerations: Sequence[Manifest] = (),
    service_account: str = "",
    volumes: Sequence[Volume] = (),
) -> Manifest:
    """Returns the specification of a pod with one container.

    Args:
        made: the container.
        grace: seconds between SIGTERM and SIGKILL.
        node_labels: labels of the machines that it may run on.
        service_account: whose permissions it has; empty: the namespace's default.
        volumes: those of the container.
    """
    spec: Manifest = {"terminationGracePeriodSeconds": grace}
    if node_labels:
        spec["nodeSelector"] = dict(node_labels)
    spec["containers"] = [made]
    if service_account:
        spec["serviceAccountName"] = service_account
    if tolerations:
        spec["tolerations"] = list(tolerations)
    if volumes:
        spec["volumes"] = [{"name": volume.name, **volume.source} for volume in volumes]
    return spec


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and repeats values instead of using YAML references."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(manifests: Sequence[Manifest]) -> str:
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def kubectl(context: str, *arguments: str, manifests: Sequence[Manifest] = ()) -> Command:
    """Returns a call of kubectl, which reads the manifests if there are any.

    Args:
        context: the cluster, as kubectl knows it; empty: the current one.
    """
    where = ("--context", context) if context else ()
    return Command(("kubectl", *where, *arguments), stdin=to_yaml(manifests) if manifests else "")
