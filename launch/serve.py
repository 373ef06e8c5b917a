"""Serves models over HTTP: python launch/serve.py --checkpoint=WORKDIR. lm/serving/README.md lists the routes.

It prints `serving on http://HOST:PORT` once every program is compiled. SIGTERM makes it unready, lets it go on for
--drain_seconds, and ends it when the running requests are answered.
"""

import startup  # noqa: F401

import logging

from absl import flags

from lm import cli
from lm.config.paths import named_models
from lm.data import workers
from lm.serving.settings import Settings, keep_programs, read_keys

_D = Settings()
_checkpoint = flags.DEFINE_string(
    "checkpoint", None, "PATH of a run or its checkpoints/N; several models: NAME=PATH,NAME=PATH.", required=True
)
_host = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0 for every network.")
_port = flags.DEFINE_integer("port", 8000, "Port; 0 is any free one.", lower_bound=0, upper_bound=65535)
_keys_file = cli.define_path("api_keys_file", "", "File with an API key a line; or set LM_API_KEYS, with commas.")
_cache = cli.define_path("compilation_cache", "", "Folder for compiled programs, so that a restart is faster.")
_log = flags.DEFINE_bool("log_requests", False, "Log a line for each request, without its text.")
_SETTINGS = {
    "tasks": flags.DEFINE_list("tasks", list(_D.tasks), "Tasks to serve; default: all that the model can do."),
    "slots": flags.DEFINE_integer("slots", _D.slots, "Sequences written at a time.", lower_bound=1),
    "beams": flags.DEFINE_list("beams", [str(n) for n in _D.beams], "Numbers of beams that a request may ask for."),
    "extra_options": flags.DEFINE_list("extra_options", [], "Options of decoding to add; see lm/serving/README.md."),
    "top_logprobs": flags.DEFINE_integer(
        "top_logprobs", 0, "Tokens whose log-probabilities a request may ask for.", lower_bound=0, upper_bound=20
    ),
    "max_length": flags.DEFINE_integer(
        "max_length", _D.max_length, "Most tokens to write; 0: the model's.", lower_bound=0
    ),
    "max_input_tokens": flags.DEFINE_integer(
        "max_input_tokens", 0, "Most tokens of an input; 0: the model's.", lower_bound=0
    ),
    "truncate": flags.DEFINE_bool("truncate", _D.truncate, "Cut longer inputs, instead of refusing them."),
    "max_inputs": flags.DEFINE_integer("max_inputs", _D.max_inputs, "Most inputs of a request.", lower_bound=1),
    "max_body_bytes": flags.DEFINE_integer(
        "max_body_bytes", _D.max_body_bytes, "Most bytes of a request.", lower_bound=1
    ),
    "batch_tokens": flags.DEFINE_integer(
        "batch_tokens", 0, "Tokens of an encoder's batch; 0: the platform's.", lower_bound=0
    ),
    "waiting_items": flags.DEFINE_integer("waiting_items", _D.waiting_items, "Inputs that may wait.", lower_bound=1),
    "waiting_tokens": flags.DEFINE_integer("waiting_tokens", _D.waiting_tokens, "Tokens that may wait.", lower_bound=1),
    "deadline": flags.DEFINE_float("deadline", _D.deadline, "Seconds until a request is given up.", lower_bound=0.001),
    "drain_seconds": flags.DEFINE_float(
        "drain_seconds", _D.drain_seconds, "Seconds between SIGTERM and the end.", lower_bound=0
    ),
    "cors_origins": flags.DEFINE_list("cors_origins", list(_D.cors_origins), "Origins that a browser may ask from."),
    "watch_seconds": flags.DEFINE_float(
        "watch_seconds", _D.watch_seconds, "Look for new checkpoints so often; 0: never.", lower_bound=0
    ),
    "adapters": flags.DEFINE_list("adapters", [], "Runs with adapters over the one model: NAME=PATH,NAME=PATH."),
    "mesh": flags.DEFINE_list("mesh", [], "Devices of each model: tensor=4 splits it, data=2 splits the sequences."),
}


def main() -> None:
    models, keys = named_models(_checkpoint.value), read_keys(_keys_file.value)
    settings = Settings.of({name: flag.value for name, flag in _SETTINGS.items()}, keys)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("lm.serving").setLevel(logging.INFO if _log.value else logging.WARNING)
    if _cache.value:
        keep_programs(_cache.value)
    with workers.announced("loading JAX"):
        from lm.serving import server

    server.serve(models, settings, _host.value, _port.value)


if __name__ == "__main__":
    cli.run(main)
