"""The flags of launch/cluster/kubernetes.py."""

import re
from collections.abc import Callable

from absl import flags

from lm import cli
from lm.cluster import flags as cluster_flags
from lm.cluster import google, kubernetes, planned, scaling
from lm.cluster.flags import HOST, LABEL, URL, WORD, check_word, named
from lm.cluster.gateway import Gateway
from lm.cluster.kubernetes import Server
from lm.cluster.pace import BUSY_SLOTS, QUEUE_TOKENS, READ_SHARE
from lm.cluster.scaling import Scaling
from lm.config.paths import named_models, split_step
from lm.errors import InputError

flags.disclaim_key_flags()  # --help of the launcher lists these flags with its own

_D = Server("", "", "", "")
_LABEL = r"[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?"  # the key or the value of a node's label


def define_server() -> Callable[[tuple[str, ...]], Server]:
    """Defines the flags of a replica.

    Returns:
        A function to call in `main` with further flags of launch/serve.py. It raises InputError for what cannot be.
    """
    checkpoint = cli.define_path("checkpoint", None, "What to serve: gs:// or s3://...")
    image = cluster_flags.define_word("image", None, "Image: launch/Dockerfile, target serving.", WORD)
    name = flags.DEFINE_string("name", None, "Name of all objects and of a lone model; default: the workdir's.")
    namespace = cluster_flags.define_word("namespace", "default", "Kubernetes namespace.", LABEL)
    accelerator = flags.DEFINE_string("accelerator", "cpu", "Of a replica: cpu, l4, h100, nvidia-b200, v5e:1x1.")
    plan = cli.define_path("plan", "", "Plan of launch/plan.py --serve: memory, and --read_tokens of an encoder.")
    cpus = flags.DEFINE_integer("cpus", _D.cpus, "CPU cores of a replica.", lower_bound=1)
    memory = flags.DEFINE_integer("memory_gib", 8, "Memory of a replica, without --plan.", lower_bound=1)
    identity = flags.DEFINE_string("identity", "", "Google service account or AWS role whose rights the pods have.")
    secret = cluster_flags.define_word("secret", "", "Secret with LM_API_KEYS, or the keys of an s3:// store.")
    cloud = flags.DEFINE_enum("cloud", "google", ["google", "other"], "Whose Kubernetes it is.")
    labels = flags.DEFINE_list("node_labels", [], "Labels of the machines, KEY=VALUE; they choose other clouds' GPUs.")
    spot = flags.DEFINE_bool("spot", False, "Prefer machines that may be preempted.")
    drain = flags.DEFINE_integer("drain_seconds", _D.drain_seconds, "How long a leaving pod takes requests.", 0)
    startup = flags.DEFINE_integer("startup_seconds", _D.startup_seconds, "How long compiling may take.", lower_bound=5)
    cache = cluster_flags.define_word("cache_class", "", "Storage class (ReadWriteMany) for compiled programs.")
    size = flags.DEFINE_integer("cache_gib", _D.cache_gib, "Size of that volume.", lower_bound=1)
    sources = flags.DEFINE_list("allow_from", list(_D.sources), "Namespaces whose pods may ask.")
    port = flags.DEFINE_integer("store_port", _D.store_port, "TCP port of the object store.", 1, 65535)
    ray = flags.DEFINE_bool("ray", False, "A RayService (KubeRay) instead of a Deployment; `roll` is then `apply`.")

    def server(options: tuple[str, ...]) -> Server:
        cli.require_given(("checkpoint", "image"))
        if plan.value:
            cli.refuse_given(("memory_gib",), "with --plan")
        if not cache.value:
            cli.refuse_given(("cache_gib",), "without --cache_class")
        made = Server(
            named(name.value, split_step(named_models(checkpoint.value)[0][1])[0]),
            namespace.value,
            image.value,
            checkpoint.value,
            google.one_machine(accelerator.value),
            options,
            cpus=cpus.value,
            memory=kubernetes.planned_memory(plan.value, accelerator.value) if plan.value else memory.value << 30,
            identity=identity.value,
            secret=secret.value,
            on_google=cloud.value == "google",
            node_labels=_pairs("node_labels", labels.value),
            spot=spot.value,
            drain_seconds=drain.value,
            startup_seconds=startup.value,
            cache_class=cache.value,
            cache_gib=size.value,
            sources=tuple(check_word("allow_from", each, LABEL) for each in sources.value),
            store_port=port.value,
            on_ray=ray.value,
            model=name.value or "",
        )
        kubernetes.check(made)
        return made

    return server


def define_scaling() -> Callable[[bool], Scaling]:
    """Defines the flags of the autoscaler.

    Returns:
        A function to call in `main` with whether Ray runs the replicas. It raises InputError for what cannot be.
    """
    engine = flags.DEFINE_enum("autoscaler", "keda", ["keda", "hpa", "none"], "What adds and takes replicas.")
    least = flags.DEFINE_integer("min_replicas", 2, "Fewest replicas; 0 needs --wake_query or --ray.", lower_bound=0)
    most = flags.DEFINE_integer("max_replicas", 10, "Most replicas.", lower_bound=1)
    tokens = flags.DEFINE_integer(
        "queue_tokens", QUEUE_TOKENS, "Waiting tokens a replica that call for one more.", lower_bound=1
    )
    what = (
        "Tokens read a second by a replica that call for one more; 0: never. Default: by an encoder's --plan, else 0."
    )
    read = flags.DEFINE_integer("read_tokens", None, what, lower_bound=0)
    slots = flags.DEFINE_integer(
        "busy_slots", BUSY_SLOTS, "Slots in use a replica that call for one more; 0: never.", lower_bound=0
    )
    address = cluster_flags.define_word(
        "prometheus", "http://prometheus-operated.monitoring:9090", "Address of Prometheus, as KEDA reaches it.", URL
    )
    wake = flags.DEFINE_string("wake_query", "", "PromQL that is above 0 while somebody asks and no replica runs.")

    def wanted(on_ray: bool) -> Scaling:
        if on_ray:
            cli.refuse_given(("read_tokens", "busy_slots", "prometheus", "wake_query"), "with --ray")
        if engine.value == "hpa":
            cli.refuse_given(("prometheus", "wake_query"), "with --autoscaler=hpa")
        if engine.value == "none":
            unused = ("max_replicas", "queue_tokens", "read_tokens", "busy_slots", "prometheus", "wake_query")
            cli.refuse_given(unused, "with --autoscaler=none")
        made = Scaling(
            engine.value,
            least.value,
            max(1, least.value) if engine.value == "none" else most.value,
            tokens.value,
            slots.value,
            address.value,
            wake.value,
            _planned_reading() if read.value is None else read.value,
        )
        scaling.check(made, on_ray)
        return made

    return wanted


def _planned_reading() -> int:
    """Returns the tokens a second that a replica of an encoder may read by the plan of its machine; 0 without one."""
    path, accelerator = flags.FLAGS.plan, flags.FLAGS.accelerator
    plan = planned.read(path) if path else None
    if not plan or plan.max_length or plan.topology != accelerator or plan.tokens_per_second is None:
        return 0
    return int(READ_SHARE * plan.tokens_per_second)


def define_gateway() -> Callable[[], Gateway | None]:
    """Defines the flags of the gateway; there is none without a hostname."""
    hostname = cluster_flags.define_word("hostname", "", "Name in DNS; makes a Gateway, least requests first.", HOST)
    secret = cluster_flags.define_word("tls_secret", "", "With --hostname: Kubernetes secret with its certificate.")
    kind = cluster_flags.define_word("gateway_class", "envoy", "With --hostname: GatewayClass of Envoy Gateway.")

    def gateway() -> Gateway | None:
        if hostname.value:
            return Gateway(hostname.value, secret.value, kind.value)
        cli.refuse_given(("tls_secret", "gateway_class"), "without --hostname")
        return None

    return gateway


def _pairs(flag: str, given: list[str]) -> dict[str, str]:
    for each in given:
        if not re.fullmatch(rf"([a-z0-9.-]+/)?{_LABEL}=({_LABEL})?", each):
            raise InputError(f"--{flag} has {each!r}; accepted: KEY=VALUE,KEY=VALUE.")
    return dict(each.split("=", 1) for each in given)
