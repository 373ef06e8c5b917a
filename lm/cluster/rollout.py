"""Applies a served model to a cluster, shows it, gives it another checkpoint, and deletes it."""

from collections.abc import Iterator, Sequence

from lm.cluster import gateway, kubernetes, rayservice, scaling
from lm.cluster.actions import Action, Command
from lm.cluster.gateway import Gateway
from lm.cluster.kubernetes import Server
from lm.cluster.manifests import Manifest, kubectl
from lm.cluster.scaling import Scaling
from lm.errors import InputError

VERBS = ("apply", "status", "roll", "delete")


def objects(server: Server, wanted: Scaling, reached: Gateway | None) -> list[Manifest]:
    """Returns all objects of a server. The Deployment comes after what it needs, the autoscaler after it."""
    routes = gateway.objects(server, reached) if reached else []
    if server.on_ray:
        return [*rayservice.objects(server, wanted), *routes]
    found = kubernetes.objects(server)
    if wanted.engine == "none":
        found[-1]["spec"] = {"replicas": wanted.least, **found[-1]["spec"]}
    return [*found, *scaling.objects(server, wanted), *routes]


def notes(verb: str, server: Server, reached: Gateway | None) -> list[str]:
    """Returns what a user should know of a server before a verb is carried out."""
    found = []
    if verb == "roll" and not server.model:
        found.append(f"no --name is given, so the server named as this run is rolled: {server.name}")
    if verb == "apply" and reached and not server.secret:
        why = "there is no --secret, which would hold LM_API_KEYS"
        found.append(f"anybody who reaches {reached.hostname} may ask: {why}")
    if verb in ("apply", "roll") and server.path.startswith("s3://") and not (server.secret or server.identity):
        found.append("the pods have no credentials for s3://: there is no --secret with keys and no --identity")
    return found


def apply(context: str, server: Server, made: Sequence[Manifest]) -> list[Action]:
    """Returns what creates or changes the objects and waits until the pods are ready."""
    return [kubectl(context, "apply", "--filename=-", manifests=made), _wait(context, server)]


def status(context: str, server: Server, made: Sequence[Manifest]) -> list[Action]:
    """Returns what shows the objects, their pods and the latest events of the Deployment."""
    pods = f"--selector=app.kubernetes.io/instance={server.name}"
    return [
        kubectl(context, "get", "--filename=-", manifests=_names(made)),
        kubectl(context, *_within(server), "get", "pods", pods, "--output=wide"),
        kubectl(context, *_within(server), "describe", "rayservice" if server.on_ray else "deployment", server.name),
    ]


def delete(context: str, made: Sequence[Manifest]) -> list[Action]:
    """Returns what deletes the objects; what is not there is no error."""
    return [kubectl(context, "delete", "--ignore-not-found", "--filename=-", manifests=_names(made))]


def roll(context: str, server: Server) -> tuple[Command, Command, Command]:
    """Returns what gives the pods another checkpoint, what waits for it, and what takes it back.

    A pod with the new checkpoint has to be ready before an old one leaves. A checkpoint that is damaged, or has values
    that are not finite, ends its pod, so it never gets a request.
    """
    within = _within(server)
    change = kubectl(
        context, *within, "set", "env", f"deployment/{server.name}", f"{kubernetes.CHECKPOINT}={server.models}"
    )
    return change, _wait(context, server), kubectl(context, *within, "rollout", "undo", f"deployment/{server.name}")


def shown_roll(context: str, server: Server) -> Iterator[Action | str]:
    change, wait, undo = roll(context, server)
    yield from (change, wait)
    yield "if that fails"
    yield undo


def carry_out_roll(context: str, server: Server) -> None:
    """Rolls, and takes the new checkpoint back if its rollout fails: a pod with it did not become ready in time.

    Raises:
        InputError: it was taken back.
    """
    change, wait, undo = roll(context, server)
    change.carry_out()
    if wait.exit_code():
        undo.carry_out()
        raise InputError(
            f"--checkpoint is {server.checkpoint}, but its rollout failed, as kubectl says above. All replicas get the "
            "one before it back; kubectl logs --previous of a new pod may say why."
        )


def _wait(context: str, server: Server) -> Command:
    """Returns what waits until all replicas are ready.

    A Deployment replaces its replicas one group after another. `rollout status` fails by itself when none became ready
    for `progressDeadlineSeconds`; a limit of its own would end a rollout of many replicas that goes well.
    """
    if server.on_ray:
        limit = f"--timeout={server.startup_seconds + 120}s"
        return kubectl(context, *_within(server), "wait", "--for=condition=Ready", f"rayservice/{server.name}", limit)
    return kubectl(context, *_within(server), "rollout", "status", f"deployment/{server.name}")


def _within(server: Server) -> tuple[str, ...]:
    return ("--namespace", server.namespace)


def _names(made: Sequence[Manifest]) -> list[Manifest]:
    """Returns what identifies the objects, without what they say."""
    return [
        {
            "apiVersion": each["apiVersion"],
            "kind": each["kind"],
            "metadata": {key: each["metadata"][key] for key in ("name", "namespace")},
        }
        for each in made
    ]
