"""The section `train`: how a run is carried out."""

import dataclasses

from lm.config.bounds import check, setting


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
    """How a run is carried out. Nothing here changes which batches are seen.

    Attributes:
        steps: the number of the last step.
        accumulation: micro-batches whose gradients a step adds up before it updates the weights.
        dtype: the type of activations: `float32` or `bfloat16`. `float8` is `bfloat16`, but in training the linear
            maps of the layers multiply 8-bit floats, each operand scaled by its largest value; GPUs since NVIDIA's
            Hopper are faster with it. The master weights are always float32.
        remat: which activations are kept for the backward pass, which recomputes the others. `none` recomputes none:
            all are kept. `dots` keeps the products with weights. `full` keeps each layer's input.
        unroll: layers in one iteration of the scan over layers. 0 writes all layers out without a scan: that is
            faster, but it compiles longer, and the weights gathered for a layer stay in memory for its gradient.
        attention: `plain` keeps the scores of every pair of tokens. `flash` computes them block by block with our
            kernels, on a TPU or a GPU; on a TPU it cannot drop out attention weights. `auto` takes `flash` wherever it
            is possible.
        log_every: steps between metric lines.
        eval_every: steps between evaluations; 0 means only at the end.
        eval_batches: the most held-out batches of an evaluation. Each is taken once.
        max_bad_steps: how many non-finite losses in a row stop the run. Each such step is skipped and counted.
        heartbeat_timeout: seconds of silence after which a process counts as dead and the others end.
        hang_timeout: seconds without a finished step after which a process prints the stack of every thread and ends.
            It must exceed the time of an evaluation and a save together. 0 means never.
    """

    steps: int = setting(1000, at_least=1)
    accumulation: int = setting(1, at_least=1)
    dtype: str = setting("float32", one_of=("float32", "bfloat16", "float8"))
    remat: str = setting("none", one_of=("none", "dots", "full"))
    unroll: int = setting(1, at_least=0)
    attention: str = setting("auto", one_of=("auto", "plain", "flash"))
    log_every: int = setting(10, at_least=1)
    eval_every: int = setting(0, at_least=0)
    eval_batches: int = setting(16, at_least=1)
    max_bad_steps: int = setting(10, at_least=1)
    heartbeat_timeout: int = setting(30, at_least=5)
    hang_timeout: int = setting(3600, at_least=0)

    @property
    def activations(self) -> str:
        """The dtype of activations: `float32` or `bfloat16`."""
        return "bfloat16" if self.dtype == "float8" else self.dtype

    def validate(self) -> None:
        """Checks every field.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("train", self)
