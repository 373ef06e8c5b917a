"""A served model on Ray: the config of Ray Serve, its autoscaling policy, and what asks a cluster.

Fields: https://docs.ray.io/en/latest/serve/production-guide/config.html. Nothing here imports ray or jax: Ray's
controller reads the policy.
"""

import dataclasses
import os
from typing import Any, Protocol

from lm import storage
from lm.cluster import pace, serve_options
from lm.cluster.actions import Command
from lm.cluster.manifests import Manifest
from lm.config.paths import named_models
from lm.errors import InputError

NAME = "lm"  # of the application
DEPLOYMENT = "Replica"  # the class of lm/serving/ray_serve.py
OUTSTANDING = "outstanding_tokens"  # what replicas report
# Environment of Ray's nodes. A proxy otherwise sends each request to a replica of its own node, or of its own zone,
# until one has `max_ongoing_requests`: the replicas of other nodes stay idle.
EVEN = {"RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0", "RAY_SERVE_PROXY_PREFER_LOCAL_AZ_ROUTING": "0"}
# Flags of launch/serve.py that are no settings of a server, and so none of a replica -> what to do instead.
NOT_OF_REPLICAS = {
    "checkpoint": "give --checkpoint before --",
    "host": "give --host before --",
    "port": "give --port before --",
    "api_keys_file": "set LM_API_KEYS on every node",
    "compilation_cache": "set JAX_COMPILATION_CACHE_DIR on every node",
}
HERE = "http://127.0.0.1:8265"  # the dashboard that Ray starts on this machine
FILE = "serve_config.yaml"  # of the config, in a folder that is deleted
_ENDING = 15  # seconds beside the deadline that a replica which leaves has for its requests
_RETRY = 2  # seconds after which a client that found the queue full may come again


@dataclasses.dataclass(frozen=True)
class Replicas:
    """What to ask of Ray.

    Attributes:
        checkpoint: what is served, on paths that every node sees: `PATH`, or `NAME=PATH,NAME=PATH`.
        options: flags of launch/serve.py.
        least, most: replicas.
        target: outstanding tokens of a replica above which another is wanted.
        up, down: seconds that the wish for more, or for fewer, replicas has to last.
        cpus, gpus: of a replica.
        resources: further resources of a replica, such as `{"TPU": 4}`.
        host, port: where Ray's proxies listen.
        name: of a lone model that the checkpoint does not name, as a roll to another run keeps it; empty: the last part
            of its path.
    """

    checkpoint: str
    options: tuple[str, ...] = ()
    least: int = 1
    most: int = 4
    target: int = pace.RAY_TARGET
    up: float = pace.RAY_UP
    down: float = pace.RAY_DOWN
    cpus: float = 1.0
    gpus: float = 0.0
    resources: dict[str, float] = dataclasses.field(default_factory=dict)
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = NAME


def config(wanted: Replicas) -> Manifest:
    """Returns the config. The checkpoint stands in `user_config` alone: a new one leaves the replicas running.

    Raises:
        InputError: there are fewer replicas at most than at least.
    """
    if wanted.most < wanted.least:
        raise InputError(
            f"--max_replicas is {wanted.most} and --min_replicas is {wanted.least}; give a larger --max_replicas."
        )
    serve_options.check(wanted.options, NOT_OF_REPLICAS)
    serve_options.check_adapters(wanted.options, wanted.checkpoint)
    actor: Manifest = {"num_cpus": wanted.cpus, "num_gpus": wanted.gpus}
    if wanted.resources:
        actor["resources"] = wanted.resources
    scaling = {
        "min_replicas": wanted.least,
        "max_replicas": wanted.most,
        "upscale_delay_s": wanted.up,
        "downscale_delay_s": wanted.down,
        "metrics_interval_s": pace.RAY_REPORTS,
        "look_back_period_s": pace.RAY_AVERAGED,
        "policy": {
            "policy_function": f"{__name__}:OutstandingTokens",
            "policy_kwargs": {"target": wanted.target},
        },
    }
    deployment = {
        "name": DEPLOYMENT,
        "user_config": {"checkpoint": _absolute(wanted.checkpoint, "--checkpoint", wanted.name)},
        "max_ongoing_requests": 1024,  # the engine has a queue of its own, which counts tokens
        "max_queued_requests": 1024,
        "backpressure_config": {"status_code": 429, "retry_after_s": _RETRY},
        "autoscaling_config": scaling,
        "graceful_shutdown_timeout_s": int(serve_options.deadline(wanted.options)) + _ENDING,
        "health_check_timeout_s": 30,
        "ray_actor_options": actor,
    }
    application = {
        "name": NAME,
        "route_prefix": "/",
        "import_path": "lm.serving.ray_serve:application",
        "args": {"options": [_as_replicas_read_it(option) for option in wanted.options]},
        "deployments": [deployment],
    }
    location = "EveryNode" if wanted.host != "127.0.0.1" else "HeadOnly"
    http = {"host": wanted.host, "port": wanted.port}
    logs = {"enable_access_log": False}  # Ray's lines name no route; with --log_requests replicas write their own
    return {"proxy_location": location, "http_options": http, "logging_config": logs, "applications": [application]}


def _absolute(given: str, flag: str, only: str = "") -> str:
    """Returns NAME=PATH,NAME=PATH with paths that mean the same everywhere: replicas have folders of their own."""
    return ",".join(f"{name}={storage.absolute(path)}" for name, path in named_models(given, flag, only))


def _as_replicas_read_it(option: str) -> str:
    option = serve_options.without_spaces(option)
    (given, *_) = serve_options.values([option], "adapters") or [""]
    return f"--adapters={_absolute(given, '--adapters')}" if given else option


class _Context(Protocol):
    """What Ray tells a policy; of its AutoscalingContext."""

    @property
    def aggregated_metrics(self) -> dict[str, dict[Any, float]] | None: ...

    @property
    def current_num_replicas(self) -> int: ...


class OutstandingTokens:
    """Ray's autoscaling policy: as many replicas as the outstanding tokens need. Ray adds its bounds and delays."""

    def __init__(self, target: float):
        self._target = target

    def __call__(self, context: _Context) -> tuple[float, dict[str, object]]:
        reported = (context.aggregated_metrics or {}).get(OUTSTANDING)
        if not reported:  # no replica has reported yet
            return context.current_num_replicas, {}
        return sum(reported.values()) / self._target, {}


def ask(verb: str, address: str, *rest: str) -> Command:
    """Returns what asks a cluster; an empty address is the Ray of this machine."""
    is_set = "RAY_AUTH_MODE" in os.environ
    environment = () if is_set or not authentication(address) else (("RAY_AUTH_MODE", authentication(address)),)
    return Command(("serve", verb, f"--address={address or HERE}", *rest), environment=environment)


def authentication(address: str) -> str:
    """Returns Ray's RAY_AUTH_MODE. A cluster that Ray starts here wants its token, if nothing else is set."""
    return os.environ.get("RAY_AUTH_MODE", "token" if address in ("", HERE) else "")
