"""Serves a model on Kubernetes: replicas that follow the traffic, and new checkpoints without a pause.

python launch/cluster/kubernetes.py serve --name=mine --checkpoint=gs://my-bucket/runs/mine --accelerator=l4 \\
    --image=REGISTRY/lm:serve --min_replicas=2 --max_replicas=20 --hostname=lm.example.com -- --tasks=embed

`serve` or `serve apply` creates or changes everything and waits until the replicas are ready. With the same flags,
`serve status` shows it and `serve delete` deletes it. `serve roll --checkpoint=WORKDIR/checkpoints/N` serves another
checkpoint: a new replica has to be ready before an old one leaves, and one that cannot serve is taken back. Another run
needs the --name that was applied; requests then call a lone model so. Flags of launch/serve.py follow after --.

WORKDIR alone is read at a pod's start, so pods of one server may have different steps while training goes on;
WORKDIR/checkpoints/N is the same everywhere.

The cluster needs KEDA (--autoscaler=keda), or an adapter that serves Prometheus metrics (--autoscaler=hpa), the
Prometheus operator, and Envoy Gateway for --hostname. The image has to hold launch/serve.py; see launch/Dockerfile. No
key is ever in a manifest: give the pods an --identity, or name a --secret of the cluster.
"""

import startup  # noqa: F401

import sys

from absl import flags

from lm import cli
from lm.cluster import actions, rollout, serve_options, serving_flags
from lm.cluster import flags as cluster_flags
from lm.cluster.kubernetes import OURS
from lm.cluster.manifests import to_yaml
from lm.errors import InputError

_COMMANDS = f"serve, or serve {'|'.join(rollout.VERBS)}"
_server = serving_flags.define_server()
_scaling = serving_flags.define_scaling()
_gateway = serving_flags.define_gateway()
_context = flags.DEFINE_string("context", "", "Cluster, as kubectl knows it; default: the current one.")
_output = cli.define_path("output", "", "Write the manifests to this file, and apply nothing.", written=True)
_dry_run = cluster_flags.define_dry_run()
_options = tuple(cluster_flags.take_command())


def main() -> int:
    words = cli.words()
    verb = words[1] if len(words) > 1 else "apply"
    if words[0] != "serve" or verb not in rollout.VERBS or len(words) > 2:
        raise InputError(f"{' '.join(words)!r} is given; accepted: {_COMMANDS}.")
    if _output.value and verb != "apply":
        raise InputError(f"--output is {_output.value!r}, but serve {verb} writes no manifests; leave it out.")
    context, server = _context.value, _server(_options)
    reached = _gateway()
    made = rollout.objects(server, _scaling(server.on_ray), reached)
    for note in rollout.notes(verb, server, reached):
        print(note, file=sys.stderr)
    if verb == "roll" and server.on_ray:  # a change of the RayService that leaves its pods running
        verb = "apply"
    if verb == "apply" and _output.value:
        wanted: list[actions.Action] = [actions.Write(_output.value, to_yaml(made).encode())]
    elif verb == "apply":
        wanted = rollout.apply(context, server, made)
    elif verb == "roll":
        wanted = list(rollout.roll(context, server))
    else:
        wanted = rollout.status(context, server, made) if verb == "status" else rollout.delete(context, made)
    if _dry_run.value:
        actions.show(rollout.shown_roll(context, server) if verb == "roll" else wanted)
        return cli.EXIT_DONE
    begins = verb in ("apply", "roll") and not _output.value
    actions.check(wanted, server.path if begins else "")
    if begins:
        serve_options.require_runs(server.checkpoint)
    if verb == "roll":
        rollout.carry_out_roll(context, server)
    else:
        actions.carry_out(wanted)
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main, _COMMANDS, unknown=lambda name: serve_options.misplaced(name, OURS))
