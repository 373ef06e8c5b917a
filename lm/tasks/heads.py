"""Which heads of an imported model were never trained, because the folder that it came from lacks them."""

import json
from collections.abc import Sequence

from lm import storage
from lm.errors import InputError

_FILE = "untrained_heads.json"
# Task of launch/predict.py -> the heads that it needs.
_NEEDED = {"fill-mask": {"mlm"}, "next-sentence": {"pooler", "nsp"}}


def write_untrained(workdir: str, heads: Sequence[str]) -> None:
    """Writes the names of the heads whose weights are random in checkpoint 0, if there are any."""
    if heads:
        storage.write_key(workdir, _FILE, json.dumps(list(heads)).encode())


def read_untrained(workdir: str, step: int) -> tuple[str, ...]:
    """Returns the names of the heads of a checkpoint whose weights are random. Later checkpoints were trained."""
    (content,) = (None,) if step else storage.read_keys(workdir, [_FILE])
    return tuple(json.loads(content)) if content else ()


def require_trained(task: str, untrained: Sequence[str]) -> None:
    """Refuses a task whose head has random weights.

    Raises:
        InputError: names the head.
    """
    if random := sorted(_NEEDED.get(task, set()).intersection(untrained)):
        raise InputError(
            f"{task} needs the head {random[0]!r}, which the imported folder lacks, so that its weights are random; "
            "train the model, or import a folder that has it."
        )
