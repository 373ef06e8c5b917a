"""The deployment of Ray Serve without Ray: its config, its policy, and a replica under an ASGI client.

python -m tests.faults.ray_serve asks it on Ray, by hand.
"""

import asyncio
import dataclasses
import inspect
import logging
import os
import shutil
import types
from pathlib import Path
from typing import Any, cast

import httpx
import jsonschema
import pytest

from lm.cluster import ray_serve
from lm.cluster.ray_serve import OutstandingTokens, Replicas
from lm.config import MeshConfig
from lm.errors import InputError
from lm.serving import ray_serve as deployment
from lm.serving import served
from lm.serving.scheduler import Group, Item, Job, Limits, Scheduler
from lm.serving.service import Service
from lm.serving.settings import Settings

# The fields of Ray's ServeDeploySchema that we use.
TEXT, NUMBER, COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer"}


def record(**fields: dict) -> dict:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


POLICY = record(policy_function=TEXT, policy_kwargs=record(target=NUMBER))
SCALING = record(
    min_replicas=COUNT,
    max_replicas=COUNT,
    upscale_delay_s=NUMBER,
    downscale_delay_s=NUMBER,
    metrics_interval_s=NUMBER,
    look_back_period_s=NUMBER,
    policy=POLICY,
)
ACTOR = record(num_cpus=NUMBER, num_gpus=NUMBER)
DEPLOYMENT = record(
    name=TEXT,
    user_config=record(checkpoint=TEXT),
    max_ongoing_requests=COUNT,
    max_queued_requests=COUNT,
    backpressure_config=record(status_code={"enum": [503, 429]}, retry_after_s=NUMBER),
    autoscaling_config=SCALING,
    graceful_shutdown_timeout_s=NUMBER,
    health_check_timeout_s=NUMBER,
    ray_actor_options=ACTOR,
)
APPLICATION = record(
    name=TEXT,
    route_prefix=TEXT,
    import_path={"const": "lm.serving.ray_serve:application"},
    args=record(options={"type": "array", "items": TEXT}),
    deployments={"type": "array", "items": DEPLOYMENT},
)
CONFIG = record(
    proxy_location={"enum": ["EveryNode", "HeadOnly"]},
    http_options=record(host=TEXT, port=COUNT),
    logging_config=record(enable_access_log={"const": False}),
    applications={"type": "array", "items": APPLICATION},
)


def test_the_config_has_rays_fields() -> None:
    made = ray_serve.config(Replicas("runs/mine", ("--tasks=embed",)))
    jsonschema.validate(made, CONFIG)
    made["applications"][0]["deployments"][0]["min_replica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, CONFIG)
    with pytest.raises(InputError, match="give a larger --max_replicas"):
        ray_serve.config(Replicas("runs/mine", least=9))


def test_another_checkpoint_changes_the_user_config_alone() -> None:
    """Ray keeps replicas whose `user_config` changes, and replaces them for any other change."""
    old, new = (ray_serve.config(Replicas(name)) for name in ("a", "b"))
    assert new["applications"][0]["deployments"][0].pop("user_config") == {"checkpoint": f"lm={os.path.abspath('b')}"}
    assert old["applications"][0]["deployments"][0].pop("user_config") == {"checkpoint": f"lm={os.path.abspath('a')}"}
    assert old == new


def test_paths_mean_the_same_on_every_node_and_names_stay() -> None:
    def made(checkpoint: str, *options: str) -> dict[str, Any]:
        (application,) = ray_serve.config(Replicas(checkpoint, options))["applications"]
        (deployment,) = application["deployments"]
        return {"options": application["args"]["options"], **deployment["user_config"], **deployment}

    run, law = (os.path.abspath(path) for path in ("runs/a", "runs/law"))
    assert made("x=runs/a,gs://b/y")["checkpoint"] == f"x={run},y=gs://b/y"
    found = made("runs/a", "--adapters=law=runs/law,news=s3://b/news", "--deadline=300")
    assert found["options"] == [f"--adapters=law={law},news=s3://b/news", "--deadline=300"]
    assert found["graceful_shutdown_timeout_s"] == 315
    assert made("runs/a")["checkpoint"] == f"lm={run}"
    assert made("a=runs/a")["checkpoint"] == f"a={run}"
    assert made("runs/a")["graceful_shutdown_timeout_s"] == 75
    with pytest.raises(InputError, match="--deadline is 'soon'"):
        made("runs/a", "--deadline=soon")


@pytest.mark.parametrize(
    ("names", "later", "reloaded"),
    [
        (["a"], "b=runs/b", [("a", "runs/b")]),  # one that was served before lone models had a name that stays
        (["x", "y"], "y=runs/p,x=runs/q", [("y", "runs/p"), ("x", "runs/q")]),
        (["x", "y"], "x=runs/p,z=runs/q", []),
        (["x", "y"], "x=runs/p", []),
        (["x"], "x=runs/p,y=runs/q", []),
    ],
    ids=str,
)
def test_new_checkpoints_go_to_the_models_of_their_names(names, later, reloaded, caplog) -> None:
    found, replica = [], deployment.Replica()
    engine = types.SimpleNamespace(reload=lambda name, path: found.append((name, path)))
    replica._names, replica._service = names, cast("Service", types.SimpleNamespace(engine=engine))
    asyncio.run(replica.reconfigure({"checkpoint": later}))
    assert found == reloaded
    assert [record.getMessage() for record in caplog.records] == (
        [] if reloaded else [f"{later} is not served; accepted: new paths of the models {', '.join(names)}."]
    )


def test_the_policy_asks_for_what_the_tokens_need() -> None:
    def context(reported) -> Any:
        return types.SimpleNamespace(aggregated_metrics=reported, current_num_replicas=3)

    policy = OutstandingTokens(target=100)
    assert policy(context({"outstanding_tokens": {"a": 150.0, "b": 120.0}})) == (2.7, {})
    assert policy(context({"outstanding_tokens": {"a": 0.0}})) == (0.0, {})
    assert policy(context(None)) == policy(context({})) == (3, {})


def test_outstanding_tokens_are_the_mean_of_the_last_seconds() -> None:
    now = [0.0]
    scheduler = Scheduler(Limits(batch_tokens=10), lambda: now[0])
    group = Group()
    jobs = [Job([Item(group, 10), Item(group, 5)], lambda item, result: None) for _ in range(2)]

    def after(seconds: float) -> float:
        now[0] += seconds
        return scheduler.outstanding_tokens()

    assert after(1) == 0
    for job in jobs:
        scheduler.submit(job)
    assert after(0) == 0  # they have not been there yet
    assert after(60) == pytest.approx(30)
    (first,) = scheduler.next_batch()
    assert (after(1), scheduler.tokens) == (pytest.approx(30), 20)
    scheduler.finish(first, None)
    assert 20 < after(1) < 30
    assert after(60) == pytest.approx(20)
    scheduler.cancel(jobs[1])
    assert after(60) == pytest.approx(5)
    scheduler.cancel(jobs[0])
    assert after(60) == pytest.approx(0)
    asked = []
    for _ in range(100):  # a second of four has 40 tokens, and whoever asks does so when they are gone
        job = Job([Item(group, 40)], lambda item, result: None)
        scheduler.submit(job)
        now[0] += 1
        scheduler.cancel(job)
        asked.append(after(3))
    assert 2 < asked[-1] < 10


def test_options_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deployment.settings([]) == Settings()
    given = ["--tasks=embed,fill-mask", "--slots=8", "--beams=1,2", "--truncate=false", "--deadline=2", "--mesh=data=2"]
    expected = Settings(tasks=("embed", "fill-mask"), slots=8, beams=(1, 2), truncate=False, deadline=2.0)
    expected = dataclasses.replace(expected, mesh=MeshConfig(data=2))
    assert deployment.settings(given) == expected
    assert not deployment.settings(["--notruncate"]).truncate
    assert deployment.settings(["--notruncate", "--truncate"]).truncate
    monkeypatch.setenv("LM_API_KEYS", "one,two")
    assert deployment.settings([]).api_keys == ("one", "two")
    for wrong in ("--port=1", "--slots", "--slots=x", "--truncate=perhaps", "--api_keys=a", "--nosuch"):
        with pytest.raises(InputError, match=wrong):
            deployment.settings([wrong])


def test_requests_are_logged_if_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = []
    monkeypatch.setattr(deployment.log, "setLevel", levels.append)
    for options in ([], ["--nolog_requests"], ["--log_requests=false"], ["--log_requests", "--nolog_requests"]):
        deployment.Replica([*options, "--slots=8"])
    assert not levels
    for options in (["--log_requests"], ["--log_requests=True"], ["--log_requests=f", "--log_requests=1"]):
        deployment.Replica([*options, "--slots=8"])
    assert levels == [logging.INFO] * 3
    ray_serve.config(Replicas("runs/mine", ("--log_requests",)))


def client_of(replica: deployment.Replica) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(replica.__serve_build_asgi_app__())
    return httpx.AsyncClient(transport=transport, base_url="http://replica")


async def about(replica: deployment.Replica, **headers: str) -> httpx.Response:
    async with client_of(replica) as client:
        return await client.get("/replica", headers=headers)


def test_what_a_replica_serves_is_for_those_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_API_KEYS", "one")
    replica = deployment.Replica()
    assert asyncio.run(about(replica)).status_code == 401
    assert asyncio.run(about(replica, authorization="Bearer one")).json()["checkpoint"] == ""


async def ask(replica: deployment.Replica) -> list[float]:
    async with client_of(replica) as client:
        response = await client.post("/embed", json={"inputs": ["one text"]})
        assert response.status_code == 200, response.text
        return response.json()[0]


def test_a_replica_serves_its_checkpoint_and_keeps_it_if_the_next_is_damaged(workdirs, tmp_path: Path) -> None:
    """A damaged checkpoint never gets a request: not at the start, and not later."""
    good, damaged = workdirs["reader"], tmp_path / "damaged"
    shutil.copytree(good, damaged)
    for file in (damaged / "checkpoints").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-100])
    same = tmp_path / "same"
    shutil.copytree(good, same)

    async def life() -> None:
        replica = deployment.Replica(["--tasks=embed"])
        assert inspect.iscoroutinefunction(replica.__serve_build_asgi_app__())
        assert inspect.isfunction(replica.__serve_build_asgi_app__())  # how Ray's uvicorn knows ASGI 3
        events, sent = asyncio.Queue(), asyncio.Queue()
        living = asyncio.create_task(replica.__serve_build_asgi_app__()({"type": "lifespan"}, events.get, sent.put))
        events.put_nowait({"type": "lifespan.startup"})  # Ray waits for its answer before it names the checkpoint
        assert await sent.get() == {"type": "lifespan.startup.complete"}
        assert replica.record_autoscaling_stats() == {"outstanding_tokens": 0.0}
        with pytest.raises(InputError):
            await replica.reconfigure({"checkpoint": str(damaged)})
        await replica.reconfigure({"checkpoint": good})
        assert replica._service is not None
        service = replica._service
        (model,) = service.engine.models.values()
        before = await ask(replica)
        said = (await about(replica)).json()
        assert (said["checkpoint"], said["refusal"], list(said["steps"])) == (good, "", [model.name])
        await replica.reconfigure({"checkpoint": str(damaged)})
        assert (model.path, await ask(replica)) == (good, before)
        refused = (await about(replica)).json()
        assert (refused["checkpoint"], refused["steps"]) == (str(damaged), said["steps"])
        assert refused["replica"] == said["replica"]
        assert f"{damaged} is not served" in refused["refusal"]
        weights = model.weights
        await replica.reconfigure({"checkpoint": str(same)})
        assert (await about(replica)).json()["refusal"] == ""
        assert (model.path, await ask(replica)) == (str(same), before)
        assert model.weights is not weights
        assert service.engine.compilations == 0
        replica.check_health()
        service.engine.fault = RuntimeError("the engine stopped")
        with pytest.raises(RuntimeError, match="the engine stopped"):
            replica.check_health()
        events.put_nowait({"type": "lifespan.shutdown"})
        assert await sent.get() == {"type": "lifespan.shutdown.complete"}
        await living
        assert not service.engine.is_alive

    asyncio.run(life())


def test_another_tokenizer_is_refused(running, workdirs, tmp_path: Path) -> None:
    model = running.service.engine.models["reader"]
    other = tmp_path / "other"
    shutil.copytree(workdirs["reader"], other)
    present = model._workdir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served, "load_tokenizer", lambda workdir: types.SimpleNamespace(fingerprint="another"))
        with pytest.raises(InputError, match="has another tokenizer; start a new server"):
            running.service.engine.reload("reader", path=str(other))
    assert (model._workdir, model.path) == (present, workdirs["reader"])
