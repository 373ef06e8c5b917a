"""What launch/cluster/ray_serve.py does: serves a model on Ray, rolls, shows and deletes it."""

from collections.abc import Sequence

from lm.cluster import actions, ray_here, ray_roll, ray_serve, serve_options
from lm.cluster.actions import Action, Command, Write
from lm.cluster.manifests import to_yaml
from lm.cluster.ray_serve import Replicas
from lm.errors import InputError

VERBS = ("apply", "status", "roll", "delete")  # as those of kubernetes.py
_WAITS = "this waits until every replica serves it; if one refuses it, Ray gets the config before it again"


def verb(words: Sequence[str]) -> str:
    """Returns the verb of `serve`, `serve VERB` or `VERB`.

    Raises:
        InputError: there is no such verb.
    """
    rest = words[1:] if words[0] == "serve" else words
    found = rest[0] if rest else "apply"
    if len(rest) > 1 or found not in VERBS:
        raise InputError(f"{' '.join(words)!r} is given; accepted: serve, or serve {'|'.join(VERBS)}.")
    return found


def shown(verb: str, wanted: Replicas, file: str, address: str) -> list[Action | str]:
    """Returns what a verb does, to be printed.

    Args:
        verb: one of `VERBS`.
        wanted: what to serve; `status` and `delete` need nothing of it.
        file: for the config; empty: none is kept.
        address: the dashboard of a Ray cluster, such as http://HEAD:8265; empty: the Ray of this machine, which
            `apply` starts.

    Raises:
        InputError: there is no checkpoint, or what is wanted cannot be.
    """
    if verb in ("status", "delete"):
        return [_ask(verb, address)]
    if not wanted.checkpoint:
        raise InputError("--checkpoint is missing; --help says what it takes.")
    write = Write(file or ray_serve.FILE, to_yaml([ray_serve.config(wanted)]).encode())
    if verb == "apply" and not address:
        return [write, Command(("serve", "run", write.path))]
    return [write, ray_serve.ask("deploy", address, write.path), _WAITS]


def carry_out(verb: str, wanted: Replicas, file: str, address: str) -> None:
    """Does what `shown` shows, after it has looked whether that can be done.

    Raises:
        InputError: it cannot, or it failed.
    """
    shown(verb, wanted, file, address)
    actions.require("serve")
    if verb in ("status", "delete"):
        ray_roll.Dashboard(address).application()  # Ray's own words about an address without one are 60 lines
        _ask(verb, address).carry_out()
        return
    serve_options.require_runs(wanted.checkpoint)
    if verb == "apply" and not address:
        ray_here.serve(wanted, file)
    else:
        ray_roll.deploy(wanted, file, address, is_roll=verb == "roll")


def _ask(verb: str, address: str) -> Command:
    return ray_serve.ask("status", address) if verb == "status" else ray_serve.ask("shutdown", address, "--yes")
