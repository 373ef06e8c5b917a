"""The manifests of the golden files against schemas: of Kubernetes, and of the fields of JobSet and Kueue that we use.

https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 and https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta1;
tests/cluster/crds.py checks against all that they publish.
"""

from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

GOLDEN_FOLDER = Path(__file__).parent / "golden"
GOLDEN = sorted(GOLDEN_FOLDER.glob("gke*.txt"))
KUBERNETES = "1.33"


def record(required: dict[str, Any], optional: dict[str, Any] | None = None) -> dict[str, Any]:
    """The schema of an object with these fields and no other."""
    fields = {**required, **(optional or {})}
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


TEXT, FLAG, OBJECT = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
COUNT = {"type": "integer", "minimum": 0}
LABELS = {"type": "object", "additionalProperties": TEXT}
METADATA = record({"name": NAME}, {"namespace": NAME, "labels": LABELS, "annotations": LABELS})


RULE = record(
    {"name": TEXT, "action": {"enum": ["FailJobSet", "RestartJobSet"]}},
    {"onJobFailureReasons": array({"enum": ["BackoffLimitExceeded", "PodFailurePolicy"]})},
)
JOBSET = record(
    {
        "failurePolicy": record({"maxRestarts": COUNT, "rules": array(RULE)}),
        "network": record({"enableDNSHostnames": FLAG, "publishNotReadyAddresses": FLAG}),
        "replicatedJobs": array(record({"name": NAME, "replicas": COUNT, "template": OBJECT})),
    }
)
QUOTA = record({"name": TEXT, "nominalQuota": COUNT}, {"borrowingLimit": COUNT})
CLUSTER_QUEUE = record(
    {
        "namespaceSelector": OBJECT,
        "queueingStrategy": {"enum": ["StrictFIFO", "BestEffortFIFO"]},
        "preemption": record(
            {
                "reclaimWithinCohort": {"enum": ["Never", "LowerPriority", "Any"]},
                "withinClusterQueue": {"enum": ["Never", "LowerPriority", "LowerOrNewerEqualPriority"]},
            }
        ),
        "resourceGroups": array(
            record(
                {
                    "coveredResources": array(TEXT),
                    "flavors": array(record({"name": NAME, "resources": array(QUOTA)})),
                }
            )
        ),
    },
    {"cohort": NAME},
)


def kind(name: str, version: str, spec: dict[str, Any]) -> dict[str, Any]:
    return record({"apiVersion": {"const": version}, "kind": {"const": name}, "metadata": METADATA, "spec": spec})


KUEUE = "kueue.x-k8s.io/v1beta1"
SCHEMAS = {
    "JobSet": kind("JobSet", "jobset.x-k8s.io/v1alpha2", JOBSET),
    "ResourceFlavor": kind("ResourceFlavor", KUEUE, record({"nodeLabels": LABELS})),
    "ClusterQueue": kind("ClusterQueue", KUEUE, CLUSTER_QUEUE),
    "LocalQueue": kind("LocalQueue", KUEUE, record({"clusterQueue": NAME})),
}


def manifests(path: Path) -> list[dict[str, Any]]:
    text = path.read_text().split("<<'END_OF_INPUT'\n")[1].split("END_OF_INPUT\n")[0]
    return list(yaml.safe_load_all(text))


def job(jobset: dict[str, Any]) -> dict[str, Any]:
    """The Job that the JobSet's controller makes."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "job"},
        "spec": replicated["template"]["spec"],
    }


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_manifests_fit_their_schemas(path: Path) -> None:
    found = manifests(path)
    for manifest in found:
        jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    kubernetes_validate.validate(job(found[-1]), KUBERNETES, strict=True)


def test_the_schemas_can_refuse() -> None:
    (jobset,) = manifests(GOLDEN[0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(jobset | {"spec": jobset["spec"] | {"replicatedJob": []}}, SCHEMAS["JobSet"])
    wrong = job(jobset)
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_run_asks_for_what_its_queue_has(path: Path) -> None:
    """Kueue admits a job whose node selector its flavor fulfils, and whose resources the queue covers."""
    *queue, jobset = manifests(path)
    pod = job(jobset)["spec"]["template"]["spec"]
    if queue:
        flavor, cluster_queue, local_queue = queue
        (group,) = cluster_queue["spec"]["resourceGroups"]
        assert pod["nodeSelector"] == flavor["spec"]["nodeLabels"]
        assert list(pod["containers"][0]["resources"]["limits"]) == group["coveredResources"]
        assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == local_queue["metadata"]["name"]
    assert ("tolerations" in pod) == ("cloud.google.com/gke-spot" in pod["nodeSelector"])
