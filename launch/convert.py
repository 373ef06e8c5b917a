"""Converts a Hugging Face folder to a working directory, or a checkpoint to a Hugging Face folder.

python launch/convert.py --from_huggingface=DIR --workdir=DIR
python launch/convert.py --checkpoint=WORKDIR[/checkpoints/N] --to_huggingface=DIR
"""

import startup  # noqa: F401

from absl import flags

from lm import cli
from lm.errors import InputError

_from = cli.define_path("from_huggingface", None, "Folder with a model of a family that README.md lists.")
_workdir = cli.define_path("workdir", None, "New folder for the model of --from_huggingface.")
_vocab_multiple = flags.DEFINE_integer(
    "vocab_multiple", 1, "Pad the vocabulary to a multiple of this, so that a mesh can split it.", lower_bound=1
)
_checkpoint = cli.define_path("checkpoint", None, "WORKDIR or WORKDIR/checkpoints/N.")
_to = cli.define_path("to_huggingface", None, "New folder for the model of --checkpoint.")


def main() -> None:
    match _from.value, _workdir.value, _checkpoint.value, _to.value:
        case str(folder), str(workdir), None, None:
            from lm.huggingface import import_workdir

            imported = import_workdir(folder, workdir, vocab_multiple=_vocab_multiple.value)
            print(f"{workdir}: {imported.config.num_layers} layers, vocabulary {imported.config.vocab_size}")
            if imported.fresh:
                print(f"heads that {folder} lacks, initialised at random: {', '.join(imported.fresh)}")
            for line in imported.said:
                print(line)
        case None, None, str(checkpoint), str(folder):
            from lm.huggingface import export_workdir

            cli.refuse_given(("vocab_multiple",), "with --to_huggingface")

            said = export_workdir(checkpoint, folder)
            print("\n".join([f"{folder}: written", *said]))
        case _:
            given = [f"--{flag.name}" for flag in (_from, _workdir, _checkpoint, _to) if flag.value is not None]
            raise InputError(
                f"given: {', '.join(given) or 'nothing'}; accepted: --from_huggingface with --workdir, or --checkpoint "
                "with --to_huggingface."
            )


if __name__ == "__main__":
    cli.run(main)
