"""What launch/cluster/kubernetes.py applies: word for word in golden/, and against schemas for every combination.

After a change that is meant, write the golden files anew: python -m tests.launch.test_serving_manifests

The schemas of KEDA, the Gateway API, Envoy Gateway, the Prometheus operator and KubeRay here know the fields that we
use; tests/cluster/crds.py checks the golden files against all that these projects publish.
"""

import contextlib
import copy
import dataclasses
import io
import itertools
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lm.cluster import actions, google, kubernetes, rollout, scaling, serving_flags
from lm.cluster.actions import Action
from lm.cluster.gateway import Gateway
from lm.cluster.kubernetes import Server
from lm.cluster.manifests import Manifest
from lm.cluster.scaling import Scaling
from lm.errors import InputError
from lm.serving import explore
from lm.serving.middleware import OPEN
from lm.serving.server import ENDPOINTS
from tests.launch.test_manifests import (
    COUNT,
    FLAG,
    GOLDEN_FOLDER,
    KUBERNETES,
    LABELS,
    NAME,
    OBJECT,
    TEXT,
    array,
    kind,
    record,
)

ROOT = Path(__file__).parents[2]
GATEWAY_API = "gateway.networking.k8s.io/v1"
POLICY = record(
    {
        "stabilizationWindowSeconds": COUNT,
        "policies": array(record({"type": {"enum": ["Pods", "Percent"]}, "value": COUNT, "periodSeconds": COUNT})),
        "selectPolicy": {"enum": ["Max", "Min", "Disabled"]},
    }
)
PROMETHEUS = record(
    {"serverAddress": TEXT, "query": TEXT, "threshold": TEXT, "activationThreshold": TEXT},
    {"ignoreNullValues": {"enum": ["true", "false"]}},
)
TRIGGER = record(
    {"type": {"const": "prometheus"}, "name": NAME, "metricType": {"enum": ["AverageValue", "Value"]}}
    | {"metadata": PROMETHEUS}
)
SCALED_OBJECT = record(
    {
        "scaleTargetRef": record({"apiVersion": TEXT, "kind": TEXT, "name": NAME}),
        "minReplicaCount": COUNT,
        "maxReplicaCount": COUNT,
        "pollingInterval": COUNT,
        "cooldownPeriod": COUNT,
        "fallback": record({"failureThreshold": COUNT, "replicas": COUNT}, {"behavior": TEXT}),
        "advanced": record(
            {"horizontalPodAutoscalerConfig": record({"behavior": record({"scaleUp": POLICY, "scaleDown": POLICY})})}
        ),
        "triggers": array(TRIGGER),
    }
)
REFERENCE = record({"name": NAME}, {"kind": TEXT, "group": TEXT, "port": COUNT})
LISTENER = record(
    {"name": NAME, "port": COUNT, "protocol": {"enum": ["HTTP", "HTTPS"]}, "hostname": TEXT},
    {"tls": record({"mode": {"const": "Terminate"}, "certificateRefs": array(REFERENCE)})},
)
CHECKED = record(
    {"type": {"const": "HTTP"}, "http": record({"path": TEXT, "method": TEXT, "expectedStatuses": array(COUNT)})}
    | {"interval": TEXT, "timeout": TEXT, "unhealthyThreshold": COUNT, "healthyThreshold": COUNT}
)
RETRIES = {**array(TEXT), "contains": {"const": "retriable-status-codes"}}  # without it Envoy ignores the codes
RETRIED = record({"triggers": RETRIES, "httpStatusCodes": array(COUNT)})
TRAFFIC = record(
    {
        "targetRefs": array(REFERENCE),
        "loadBalancer": record({"type": {"const": "LeastRequest"}, "slowStart": record({"window": TEXT})}),
        "healthCheck": record({"active": CHECKED, "panicThreshold": COUNT}),
        "retry": record({"numRetries": COUNT, "retryOn": RETRIED}),
        "timeout": record({"http": record({"requestTimeout": TEXT})}),
    }
)
MATCH = record({"path": record({"type": {"enum": ["Exact", "PathPrefix"]}, "value": TEXT})})
RULE = record({"matches": {**array(MATCH), "maxItems": 8}, "backendRefs": array(REFERENCE)})
ROUTE = record({"parentRefs": array(REFERENCE), "hostnames": array(TEXT)} | {"rules": {**array(RULE), "maxItems": 16}})
MONITOR = record(
    {
        "selector": record({"matchLabels": LABELS}),
        "podMetricsEndpoints": array(record({"port": TEXT, "path": TEXT, "interval": TEXT})),
    }
)
TEMPLATE = record({"metadata": OBJECT, "spec": OBJECT})
GROUP = record(
    {"groupName": NAME, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}
    | {"rayStartParams": LABELS, "template": TEMPLATE}
)
RAY = record(
    {"enableInTreeAutoscaling": FLAG, "headGroupSpec": record({"rayStartParams": LABELS, "template": TEMPLATE})}
    | {"workerGroupSpecs": array(GROUP)}
)
SCHEMAS = {
    "RayService": kind("RayService", "ray.io/v1", record({"serveConfigV2": TEXT, "rayClusterConfig": RAY})),
    "ScaledObject": kind("ScaledObject", "keda.sh/v1alpha1", SCALED_OBJECT),
    "Gateway": kind("Gateway", GATEWAY_API, record({"gatewayClassName": NAME, "listeners": array(LISTENER)})),
    "HTTPRoute": kind("HTTPRoute", GATEWAY_API, ROUTE),
    "BackendTrafficPolicy": kind("BackendTrafficPolicy", "gateway.envoyproxy.io/v1alpha1", TRAFFIC),
    "PodMonitor": kind("PodMonitor", "monitoring.coreos.com/v1", MONITOR),
}

PLAIN = Server("mini", "default", "registry/lm:serve", "gs://bucket/runs/mini")
WIDE = Scaling("keda", 2, 20, 4096, 12, "http://prometheus:9090")
Case = tuple[Server, Scaling, Gateway | None]
CASES: dict[str, Case] = {
    "serve_cpu_hpa": (PLAIN, dataclasses.replace(WIDE, engine="hpa", read_tokens=900), None),
    "serve_l4_spot_gateway": (
        dataclasses.replace(
            PLAIN,
            machines=google.one_machine("l4"),
            spot=True,
            options=("--tasks=embed",),
            identity="reader@lab.iam.gserviceaccount.com",
        ),
        dataclasses.replace(WIDE, read_tokens=30_000),
        Gateway("lm.example.com", "certificate"),
    ),
    "serve_tpu_zero_cache": (
        dataclasses.replace(PLAIN, machines=google.one_machine("v5e:2x2"), cache_class="standard-rwx"),
        dataclasses.replace(WIDE, least=0, wake_query="sum(rate(requests_total[2m]))"),
        None,
    ),
    "serve_h100_other_cloud": (
        dataclasses.replace(
            PLAIN,
            checkpoint="s3://bucket/runs/mini",
            machines=google.one_machine("h100"),
            on_google=False,
            node_labels={"gpu": "h100"},
            secret="s3-keys",
            store_port=9000,
        ),
        dataclasses.replace(WIDE, engine="none", least=3),
        None,
    ),
}


CASES["serve_l4_ray"] = (
    dataclasses.replace(PLAIN, machines=google.one_machine("l4"), options=("--tasks=embed",), on_ray=True),
    WIDE,
    Gateway("lm.example.com"),
)


def printed(wanted: list[Action]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        actions.show(wanted)
    return out.getvalue()


def applied(case: Case) -> str:
    return printed(rollout.apply("", case[0], rollout.objects(*case)))


def every_case() -> Iterator[Case]:
    accelerators = [google.one_machine(name) for name in ("cpu", "l4", "h100", "v5e:2x2", "v6e:1x1", "v5p:2x2x1")]
    scalings = [
        dataclasses.replace(WIDE, engine=engine, least=least, wake_query="up" if not least else "", slots=slots)
        for engine, least in (("keda", 0), ("keda", 2), ("hpa", 1), ("none", 2))
        for slots in (0, 12)
    ]
    gateways = (None, Gateway("a.b"), Gateway("a.b", "certificate"))
    replicas = [
        *(
            dataclasses.replace(PLAIN, machines=each, spot=spot, on_google=cloud)
            for each in accelerators
            for spot, cloud in ((True, True), (False, True), (False, False))
            if cloud or not isinstance(each, google.Tpus)
        ),
        *(
            dataclasses.replace(PLAIN, **{field: value})
            for field, value in (("cache_class", "rwx"), ("identity", "a@b.iam"), ("secret", "keys"))
        ),
    ]
    yield from itertools.product(replicas, scalings[:1], gateways[:1])  # what differs: the pods
    yield from itertools.product(replicas[:1], scalings, gateways)
    on_ray = [dataclasses.replace(each, on_ray=True) for each in replicas]
    yield from itertools.product(on_ray, scalings[1:2], gateways[:1])


def ray_pods(manifest: Manifest) -> list[Manifest]:
    """The pods that KubeRay makes of a RayService."""
    if manifest["kind"] != "RayService":
        return []
    cluster = manifest["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    metadata = {"name": "pod"}
    return [{"apiVersion": "v1", "kind": "Pod", **group["template"], "metadata": metadata} for group in groups]


def validate(manifest: Manifest) -> None:
    """Raises an error for a field that the kind does not have."""
    if schema := SCHEMAS.get(manifest["kind"]):
        jsonschema.validate(manifest, schema)
        for pod in ray_pods(manifest):
            kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def with_typo(manifest: Manifest) -> Manifest:
    """The manifest with an unknown field where its deepest object is."""
    changed = copy.deepcopy(manifest)
    place: Any = changed.get("spec", changed)
    while isinstance(place, dict):
        inner = [value for key, value in place.items() if isinstance(value, dict) and "abels" not in key]
        if not inner:
            break
        place = inner[0]
    place["minReplicaz"] = {}
    return changed


@pytest.mark.parametrize("name", CASES)
def test_what_is_applied_word_for_word(name: str) -> None:
    assert applied(CASES[name]) == (GOLDEN_FOLDER / f"{name}.txt").read_text()


def test_the_objects_of_every_combination_fit_their_schemas() -> None:
    distinct = {json.dumps(each): each for case in every_case() for each in rollout.objects(*case)}
    assert len(distinct) > 30
    for manifest in distinct.values():
        validate(manifest)


def test_every_schema_refuses_a_typo() -> None:
    objects = {each["kind"]: each for case in CASES.values() for each in rollout.objects(*case)}
    assert len(objects) == 13, objects.keys()
    for manifest in objects.values():
        validate(manifest)
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            validate(with_typo(manifest))


def test_a_pod_is_given_the_time_that_its_requests_may_take() -> None:
    """Notice to the balancer, draining, the longest request, and a margin."""
    for options, deadline in (((), 60), (("--deadline=90.5",), 90)):
        server = dataclasses.replace(PLAIN, options=options, drain_seconds=20)
        made = kubernetes.deployment(server)["spec"]["template"]["spec"]
        (container,) = made["containers"]
        slept = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert "--drain_seconds=20" in container["command"]
        assert made["terminationGracePeriodSeconds"] == slept + 20 + deadline + 5
        probe = container["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= server.startup_seconds


def test_the_autoscaler_finds_the_pods_and_what_they_count() -> None:
    """Its query names the pods of the Deployment, and what the server counts."""
    (scaled,) = scaling.objects(PLAIN, dataclasses.replace(WIDE, read_tokens=900))
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert all('namespace="default"' in query and 'pod=~"mini-' in query for query in queries)
    assert queries[1].startswith("sum(rate(lm_read_tokens_total{")
    assert scaled["spec"]["triggers"][1]["metadata"]["threshold"] == "900"
    source = (ROOT / "lm/serving/server.py").read_text() + (ROOT / "lm/serving/metrics.py").read_text()
    for query in queries:
        assert f'"{query.split("(")[2].split("{")[0].removesuffix("_total")}"' in source


@pytest.mark.parametrize("on_ray", [False, True])
def test_the_gateway_publishes_all_routes_but_two(on_ray: bool) -> None:
    """As the Gateway API matches: a path as a whole, or a path and what follows it after a slash."""
    made = rollout.objects(dataclasses.replace(PLAIN, on_ray=on_ray), WIDE, Gateway("a.b"))
    (route,) = (each["spec"] for each in made if each["kind"] == "HTTPRoute")
    paths = [match["path"] for rule in route["rules"] for match in rule["matches"]]
    exact = {path["value"] for path in paths if path["type"] == "Exact"}
    prefixes = {path["value"] for path in paths if path["type"] == "PathPrefix"}
    served = {endpoint.path for endpoint in ENDPOINTS} | {*OPEN, *explore.page_files()}
    below = {path for path in served if any(f"{path}/".startswith(f"{prefix}/") for prefix in prefixes)}
    assert served - below - exact == {"/admin/reload", "/metrics"}


def test_rolling_takes_back_what_never_becomes_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    new = dataclasses.replace(PLAIN, checkpoint="gs://bucket/runs/mini/checkpoints/9")

    def exit_code(self: actions.Command) -> int:
        ran.append(" ".join(self.argv))
        return int("status" in self.argv and fails)

    monkeypatch.setattr(actions.Command, "exit_code", exit_code)
    fails = False
    rollout.carry_out_roll("", new)
    assert ran[0].endswith(f"set env deployment/mini LM_CHECKPOINT=mini={new.checkpoint}")
    # No limit: a rollout takes as long as its replicas take one after another. Only one that stands still fails.
    assert ran[1:] == ["kubectl --namespace default rollout status deployment/mini"]
    assert kubernetes.deployment(new)["spec"]["progressDeadlineSeconds"] > new.startup_seconds
    fails = True
    with pytest.raises(InputError, match="All replicas get the one before it back"):
        rollout.carry_out_roll("", new)
    assert ran[-1] == "kubectl --namespace default rollout undo deployment/mini"


def test_a_roll_leaves_the_names_of_models_as_they_are() -> None:
    """Whichever run is served next; and those of several models. Without --name a model has its run's, unchanged."""
    for model, given, served in (
        ("mini", "gs://bucket/runs/other/checkpoints/9", "mini=gs://bucket/runs/other/checkpoints/9"),
        ("mini", "law=gs://bucket/a", "law=gs://bucket/a"),
        ("mini", "a=gs://bucket/a,gs://bucket/b", "a=gs://bucket/a,b=gs://bucket/b"),
        ("", "gs://bucket/runs/Bert_Base/checkpoints/9", "Bert_Base=gs://bucket/runs/Bert_Base/checkpoints/9"),
    ):
        server = dataclasses.replace(PLAIN, checkpoint=given, model=model)
        (container,) = kubernetes.deployment(server)["spec"]["template"]["spec"]["containers"]
        assert container["env"][0] == {"name": "LM_CHECKPOINT", "value": served}
        assert rollout.roll("", server)[0].argv[-1] == f"LM_CHECKPOINT={served}"


def test_ray_gets_the_machine_of_its_pod() -> None:
    """The Serve config asks for what a worker's pod has, and names the checkpoint in its user_config alone."""
    for name, asked in (("cpu", {}), ("l4", {"num_gpus": 1}), ("v5e:2x2", {"resources": {"TPU": 4.0}})):
        server = dataclasses.replace(PLAIN, machines=google.one_machine(name), on_ray=True)
        service = rollout.objects(server, WIDE, None)[-1]
        (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
        (deployment,) = application["deployments"]
        assert deployment["ray_actor_options"] == {"num_cpus": 4, "num_gpus": 0} | asked
        assert deployment["user_config"] == {"checkpoint": f"{PLAIN.name}={PLAIN.checkpoint}"}
        assert (deployment["autoscaling_config"]["min_replicas"], deployment["autoscaling_config"]["max_replicas"]) == (
            2,
            20,
        )


def test_ray_has_the_replicas_that_are_asked_for() -> None:
    on_ray = dataclasses.replace(PLAIN, on_ray=True)
    for engine, most in (("keda", 20), ("none", 2)):
        spec = rollout.objects(on_ray, dataclasses.replace(WIDE, engine=engine), None)[-1]["spec"]
        (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
        (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
        asked = application["deployments"][0]["autoscaling_config"]
        assert (group["minReplicas"], group["maxReplicas"]) == (2, most)
        assert (asked["min_replicas"], asked["max_replicas"]) == (2, most)
    scaling.check(dataclasses.replace(WIDE, least=0), on_ray=True)  # Ray needs no query to wake


def test_the_autoscaler_of_ray_reaches_the_kubernetes_api() -> None:
    """Whatever the port of the object store is."""
    policy = rollout.objects(dataclasses.replace(PLAIN, on_ray=True, store_port=9000), WIDE, None)[1]
    open_to_all = [rule for rule in policy["spec"]["egress"] if "to" not in rule]
    ports = {port["port"] for rule in open_to_all for port in rule["ports"] if port["protocol"] == "TCP"}
    assert ports == {53, 9000, 443, 6443}


def test_what_a_user_should_know_is_said() -> None:
    named = dataclasses.replace(PLAIN, model="mini")
    on_s3 = dataclasses.replace(named, checkpoint="s3://bucket/runs/mini")
    gateway = Gateway("a.b")
    for verb, server, reached, said in (
        ("apply", named, None, []),
        ("apply", named, gateway, ["anybody who reaches a.b may ask"]),
        ("apply", dataclasses.replace(on_s3, secret="keys"), gateway, []),
        ("apply", dataclasses.replace(on_s3, identity="arn:aws:iam::1:role/a"), None, []),
        ("roll", on_s3, gateway, ["the pods have no credentials for s3://"]),
        ("roll", PLAIN, None, ["no --name is given, so the server named as this run is rolled: mini"]),
        ("delete", dataclasses.replace(on_s3, model=""), gateway, []),
    ):
        notes = rollout.notes(verb, server, reached)
        assert len(notes) == len(said)
        assert all(note.startswith(words) for note, words in zip(notes, said, strict=True))


def test_deleting_names_all_that_was_applied() -> None:
    made = rollout.objects(*CASES["serve_l4_spot_gateway"])
    (command,) = rollout.delete("pod", made)
    assert isinstance(command, actions.Command)
    assert command.argv == ("kubectl", "--context", "pod", "delete", "--ignore-not-found", "--filename=-")
    assert command.stdin.count("kind: ") == len(made)
    assert "spec" not in command.stdin


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kubernetes.check(dataclasses.replace(PLAIN, checkpoint="runs/mini")), "which no pod can see"),
        (
            lambda: kubernetes.check(dataclasses.replace(PLAIN, options=("--adapters=a=gs://bucket/a,law=runs/law",))),
            "--adapters is a=gs://bucket/a,law=runs/law, which no pod can see",
        ),
        (lambda: kubernetes.check(dataclasses.replace(PLAIN, options=("--port=1",))), "after -- there is '--port=1'"),
        (lambda: kubernetes.check(dataclasses.replace(PLAIN, options=("--api_keys_file=k",))), "name a --secret with"),
        (lambda: kubernetes.check(dataclasses.replace(PLAIN, options=("--mesh=data=2",))), "has 1 JAX device;"),
        (lambda: kubernetes.check(dataclasses.replace(PLAIN, identity="me")), "--identity is 'me'; accepted"),
        (lambda: dataclasses.replace(PLAIN, options=("--deadline=x",)).grace, "--deadline is 'x'; accepted: a number"),
        (lambda: google.one_machine("v9"), "--accelerator is 'v9'; accepted: cpu, l4"),
        (lambda: google.one_machine("v5e:4x4"), "which has several hosts"),
        (lambda: google.one_machine("v5e"), "--accelerator is 'v5e'; accepted: KIND:SHAPE"),
        (lambda: google.one_machine("v5e:3x5"), "--accelerator is 'v5e:3x5', but no v5e slice has"),
        (lambda: scaling.check(dataclasses.replace(WIDE, least=30)), "give a larger --max_replicas"),
        (lambda: scaling.check(dataclasses.replace(WIDE, least=0)), "give --wake_query"),
        (lambda: scaling.check(dataclasses.replace(WIDE, least=0, engine="hpa")), "which only --autoscaler=keda"),
        (lambda: scaling.check(dataclasses.replace(WIDE, engine="hpa"), on_ray=True), "the autoscaler is Ray's; leave"),
    ],
    ids=range(15),
)
def test_what_cannot_be_is_refused(call: Any, words: str) -> None:
    kubernetes.check(PLAIN)
    scaling.check(WIDE)
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize(
    ("given", "on_google", "words"),
    [
        ({"identity": "arn:aws:iam::1:role/a"}, True, "--identity is an AWS role; give --cloud=other with it"),
        ({"identity": "a@b.iam.gserviceaccount.com"}, False, "a Google account; give --cloud=google with it"),
        ({"spot": True}, False, "--spot has no effect with --cloud=other; leave it out"),
        ({"machines": google.one_machine("v5e:1x1")}, False, "a TPU, which --cloud=other does not have"),
    ],
    ids=["role", "account", "spot", "TPU"],
)
def test_what_a_cloud_does_not_have_is_refused(given: dict[str, Any], on_google: bool, words: str) -> None:
    kubernetes.check(dataclasses.replace(PLAIN, **given, on_google=not on_google))
    with pytest.raises(InputError, match=words):
        kubernetes.check(dataclasses.replace(PLAIN, **given, on_google=on_google))


def test_a_plan_gives_the_memory(tmp_path: Path) -> None:
    file, gib = tmp_path / "plan.json", 1 << 30
    plan = {"parameter_bytes": 2 * gib, "temporary_bytes": gib, "topology": "v5e:1x1", "fits": True}
    plan |= {"batch": 8, "length": 64, "max_length": 0, "predicted_tokens_per_second": 800.0}
    file.write_text(json.dumps(plan))
    assert kubernetes.planned_memory(str(file), "v5e:1x1") == 7 * gib
    assert kubernetes.planned_memory(str(file), "cpu") == 8 * gib
    with pytest.raises(InputError, match=r"which is for v5e:1x1; make one for --topology=v6e:1x1"):
        kubernetes.planned_memory(str(file), "v6e:1x1")
    file.write_text(json.dumps({**plan, "fits": False}))
    with pytest.raises(InputError, match="which does not fit"):
        kubernetes.planned_memory(str(file), "v5e:1x1")
    for text, words in (
        ("[]", "has 0 plans"),
        ("{", "which is no plan of"),
        (json.dumps([plan, plan]), r"has 2 plans; give a file with one, .* one --topology and one --batch"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=words):
            kubernetes.planned_memory(str(file), "cpu")


@pytest.mark.parametrize(
    ("accelerator", "changed", "read"),
    [("v5e:1x1", {}, 600), ("cpu", {}, 0), ("v5e:1x1", {"max_length": 32}, 0), ("", {}, 0)],
    ids=["an encoder", "another machine", "a model that writes", "no plan"],
)
def test_a_plan_gives_the_tokens_that_an_encoder_may_read(
    accelerator: str, changed: dict[str, int], read: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"parameter_bytes": 1.0, "temporary_bytes": 1.0, "topology": "v5e:1x1", "fits": True, "batch": 8}
    plan |= {"length": 64, "max_length": 0, "predicted_tokens_per_second": 800.0}
    (tmp_path / "plan.json").write_text(json.dumps({**plan, **changed}))
    given = types.SimpleNamespace(plan=str(tmp_path / "plan.json") if accelerator else "", accelerator=accelerator)
    monkeypatch.setattr(serving_flags.flags, "FLAGS", given)
    assert serving_flags._planned_reading() == read


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            "serve roll --image=i --checkpoint=gs://bucket/mini/checkpoints/9 --dry_run",
            0,
            "the server named as this run is rolled: mini",
        ),
        (
            "serve --hostname=a.b --image=i --checkpoint=gs://bucket/mini --dry_run",
            0,
            "anybody who reaches a.b may ask",
        ),
        ("serve --tasks=embed", 2, "error: --tasks is a flag of launch/serve.py; put it after --"),
        ("deploy --dry_run", 2, "error: 'deploy' is given; accepted: serve, or serve apply|status|roll|delete."),
        (
            "serve --autoscaler=none --min_replicas=12 --max_replicas=13 --image=i --checkpoint=gs://bucket/mini",
            2,
            "--max_replicas has no effect with --autoscaler=none; leave it out",
        ),
        (
            "serve --gateway_class=a --image=i --checkpoint=gs://bucket/mini",
            2,
            "--gateway_class has no effect without --hostname; leave it out",
        ),
    ],
    ids=["roll", "public", "before the dashes", "unknown", "fixed", "no gateway"],
)
def test_the_command(arguments: str, code: int, words: str) -> None:
    command = [sys.executable, "launch/cluster/kubernetes.py", *arguments.split(), "--", "--tasks=embed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


if __name__ == "__main__":
    for name, case in CASES.items():
        (GOLDEN_FOLDER / f"{name}.txt").write_text(applied(case))
