"""Serves a model with Ray Serve: on this machine in one command, or on a cluster.

python launch/cluster/ray_serve.py serve --checkpoint=runs/mine --max_replicas=2 -- --tasks=embed
python launch/cluster/ray_serve.py serve --checkpoint=gs://my-bucket/runs/mine --address=http://HEAD:8265 --host=0.0.0.0

Without --address it starts Ray here and serves until Ctrl-C. `serve roll` gives another --checkpoint to the replicas
that run, and waits until all serve it; one that a replica refuses is taken back. Give the other flags as before. A lone
model is called lm unless --checkpoint=NAME=PATH names it. Of several models `roll` takes all, by name. `serve status`
and `serve delete` show and end it. Flags of launch/serve.py follow after --.

Ray adds replicas while each has more than --outstanding_tokens that are not answered. A full queue is answered with 429
and Retry-After. pip install -e '.[ray,serve]' brings Ray; every node needs it, and this checkout. Start the nodes of a
cluster with RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING=0: otherwise a node's requests go to its own replicas alone.
"""

import startup  # noqa: F401

from absl import flags

from lm import cli
from lm.cluster import actions, ray_serve, ray_verbs, serve_options
from lm.cluster import flags as cluster_flags

_D = ray_serve.Replicas("")
_checkpoint = cli.define_path("checkpoint", "", "PATH of a run or its checkpoints/N, on every node.")
_least = flags.DEFINE_integer("min_replicas", _D.least, "Fewest replicas.", lower_bound=0)
_most = flags.DEFINE_integer("max_replicas", _D.most, "Most replicas.", lower_bound=1)
_target = flags.DEFINE_integer("outstanding_tokens", _D.target, "Of a replica, that call for one more.", lower_bound=1)
_up = flags.DEFINE_float("upscale_delay", _D.up, "Seconds that the wish for more has to last.", lower_bound=0)
_down = flags.DEFINE_float("downscale_delay", _D.down, "Seconds that the wish for fewer has to last.", lower_bound=0)
_cpus = flags.DEFINE_float("cpus", _D.cpus, "CPU cores of a replica.", lower_bound=0)
_gpus = flags.DEFINE_float("gpus", _D.gpus, "GPUs of a replica.", lower_bound=0)
_tpus = flags.DEFINE_integer("tpus", 0, "TPU chips of a replica.", lower_bound=0)
_host = flags.DEFINE_string("host", _D.host, "Address to listen on; another than the default: on every node.")
_port = flags.DEFINE_integer("port", _D.port, "Port.", lower_bound=1, upper_bound=65535)
_address = flags.DEFINE_string("address", "", "Dashboard of a Ray cluster, such as http://HEAD:8265.")
_output = cli.define_path("output", "", "Keep Ray's config in this file.", written=True)
_dry_run = cluster_flags.define_dry_run()
_options = tuple(cluster_flags.take_command())


def main() -> None:
    verb = ray_verbs.verb(cli.words())
    wanted = ray_serve.Replicas(
        _checkpoint.value,
        _options,
        least=_least.value,
        most=_most.value,
        target=_target.value,
        up=_up.value,
        down=_down.value,
        cpus=_cpus.value,
        gpus=_gpus.value,
        resources={"TPU": float(_tpus.value)} if _tpus.value else {},
        host=_host.value,
        port=_port.value,
    )
    if _dry_run.value:
        actions.show(ray_verbs.shown(verb, wanted, _output.value, _address.value))
    else:
        ray_verbs.carry_out(verb, wanted, _output.value, _address.value)


if __name__ == "__main__":
    cli.run(main, "serve", unknown=lambda name: serve_options.misplaced(name, ray_serve.NOT_OF_REPLICAS))
