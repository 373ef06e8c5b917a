"""The section `checkpoint`: when checkpoints are written, and which weights a run begins with."""

import dataclasses

from lm.config.bounds import check, setting


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written, how many are kept, and which weights a new run begins with.

    Attributes:
        every: steps between checkpoints. The last step is always saved.
        keep: how many of the newest checkpoints are kept.
        asynchronous: whether training goes on while a checkpoint is written.
        init_from: WORKDIR or WORKDIR/checkpoints/N of a run or of an imported model whose weights a new run begins
            with. Their encoder or decoder must match; heads may differ. Empty means random weights.
    """

    every: int = setting(1000, at_least=1)
    keep: int = setting(3, at_least=1)
    asynchronous: bool = True
    init_from: str = ""

    def validate(self) -> None:
        """Checks every field.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("checkpoint", self)
