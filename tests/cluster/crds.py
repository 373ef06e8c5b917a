"""Checks the golden manifests against the schemas that other projects publish for their kinds, by hand.

python -m tests.cluster.crds CRD.yaml...

The files lie in these folders of their repositories: config/components/crd/bases of kubernetes-sigs/jobset and
kubernetes-sigs/kueue, config/crd/bases of kedacore/keda, config/crd/standard of kubernetes-sigs/gateway-api,
charts/gateway-helm/charts/crds/crds/generated of envoyproxy/gateway, example/prometheus-operator-crd of
prometheus-operator/prometheus-operator, and ray-operator/config/crd/bases of ray-project/kuberay. A field that a schema
does not know is an error. Kinds of other files, and those of Kubernetes itself, are skipped. tests/launch checks the
fields that we use at every run.
"""

import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.launch.test_manifests import GOLDEN_FOLDER, manifests


def closed(schema: Any) -> Any:
    """The schema with no room for unknown fields."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: closed(value) for name, value in schema.items()}
    named = isinstance(result.get("properties"), dict)
    if named and result.get("type") == "object" and "x-kubernetes-preserve-unknown-fields" not in result:
        result.setdefault("additionalProperties", False)
    return result


def schemas(paths: list[str]) -> dict[tuple[str, str], Any]:
    """(apiVersion, kind) -> schema, of every version that the resource definitions serve."""
    found = {}
    for path in paths:
        definition = yaml.safe_load(Path(path).read_text())["spec"]
        for version in definition["versions"]:
            schema = closed(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{definition['group']}/{version['name']}", definition["names"]["kind"]] = schema
    return found


def main() -> None:
    known = schemas(sys.argv[1:])
    for path in sorted([*GOLDEN_FOLDER.glob("gke*.txt"), *GOLDEN_FOLDER.glob("serve_*.txt")]):
        for manifest in manifests(path):
            key = manifest["apiVersion"], manifest["kind"]
            if key not in known:
                continue
            jsonschema.validate(manifest, known[key])
            print(f"{path.name}: {' '.join(key)} {manifest['metadata']['name']} is valid")


if __name__ == "__main__":
    main()
