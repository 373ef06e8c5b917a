"""Makes a token store ahead of training: python launch/prepare.py --config=FILE --out=DIR.

DIR is local, gs://... or s3://...; set data.store to it. A mixture gets a store in DIR for each task. If the command is
killed, the same command continues.

With --runner=ray the shards are tokenised on a Ray cluster: the one that runs on this machine or that RAY_ADDRESS
names, or with ray://HOST:PORT another. Every node has to see the corpus and DIR. The store's bytes are the same.
"""

import startup  # noqa: F401

import sys

from absl import flags

from lm import cli
from lm.errors import InputError

_config = cli.define_config()
_out = cli.define_path("out", None, "Folder of the token store.", required=True)
_workers = flags.DEFINE_integer("workers", None, "Processes; by default one for each core.", lower_bound=1)
_runner = flags.DEFINE_string("runner", "local", "Where shards are tokenised: local, ray or ray://HOST:PORT.")


def main() -> int:
    config = _config()
    if config.data.store and "data.store" in cli.given_settings():
        raise InputError("--config.data.store has no effect here; --out says where the store is made.")
    print(f"preparing {_out.value}", file=sys.stderr, flush=True)
    from lm.data import changes, manifest, mixture

    was_complete = manifest.read_manifest(_out.value) is not None
    stores = mixture.prepare_stores(config, _out.value, num_workers=_workers.value, runner=_runner.value)
    for made in stores.values():
        splits = ", ".join(
            f"{name} {counts['tokens']:,} tokens of {manifest.counted(counts['documents'], made.kind)}"
            for name, counts in made.manifest["splits"].items()
        )
        line = f"{made.path}: {splits}; {made.tokenizer.vocab_size:,} pieces"
        if removed := made.manifest.get("removed"):
            line += f"; left out {removed['near_duplicates']:,} near-duplicates"
            line += f" and {removed['heldout_leaks']:,} leaks of held-out documents (leaks.jsonl)"
        print(line)
        if changed := changes.since(made.manifest):
            print(
                f"the corpus has changed since {made.path} was made: {changed}. The store keeps the old text; to "
                "prepare the new one, give another --out, or delete the store first.",
                file=sys.stderr,
            )
        elif was_complete:
            print(f"{made.path} was complete already; to prepare it again, delete it", file=sys.stderr)
    return cli.EXIT_DONE


if __name__ == "__main__":
    cli.run(main, interrupted="run the same command again to go on with what is prepared")
