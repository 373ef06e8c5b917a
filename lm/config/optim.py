"""The section `optim`: the optimizer and its schedule."""

import dataclasses
import re

from lm.config.bounds import check, setting
from lm.errors import InputError

_SCHEDULES = ("linear", "linear_from_start", "cosine", "rsqrt", "wsd", "constant")


@dataclasses.dataclass(kw_only=True)
class OptimConfig:
    """The optimizer and its schedule.

    Attributes:
        name: `adamw`, `stable_adamw` (AdamW with Adafactor's update clipping), `lamb` or `adafactor`.
        learning_rate: the largest learning rate.
        schedule: what follows the warm-up: `linear`, `linear_from_start` (BERT), `cosine`, `rsqrt`, `wsd`
            (warmup-stable-decay) or `constant`. See `lm.training.optim.learning_rate`.
        warmup: what the rate does in the warm-up: `linear` rises from 0, `constant` has the peak at once (T5).
        warmup_steps: steps of the warm-up.
        decay: how `wsd` falls: `sqrt`, as 1 - sqrt(p) after a share p of the decay (ModernBERT), or `linear`.
        decay_fraction: the share of the run's steps in which `wsd` decays.
        final_fraction: the learning rate after the last step, as a share of the largest; the last step is one decrement
            above it. `rsqrt` and `constant` ignore it.
        b1: the decay rate of Adam's first moment.
        b2: the decay rate of Adam's second moment.
        eps: what Adam adds to the root of the second moment.
        bias_correction: whether Adam corrects the bias of its moments (BERT's original AdamW does not).
        weight_decay: the decay of all weights but norms and biases.
        clip_norm: the largest global gradient norm; 0 means no clipping.
        frozen: parameters that are not trained: regular expressions of their whole paths, separated by commas, such
            as `encoder/embedding/.*`. Empty: all are trained.
        lora_rank: the rank r of low-rank adapters (LoRA; Hu et al., 2022). They and the heads alone are trained, and
            the weights of `checkpoint.init_from` stay. 0: no adapters.
        lora_alpha: a kernel W becomes W + (lora_alpha / r) A B.
        lora_targets: the kernels that get an adapter: regular expressions of their whole paths, separated by commas.
    """

    name: str = setting("adamw", one_of=("adamw", "stable_adamw", "lamb", "adafactor"))
    learning_rate: float = setting(1e-4, at_least=0.0)
    schedule: str = setting("linear", one_of=_SCHEDULES)
    warmup: str = setting("linear", one_of=("linear", "constant"))
    warmup_steps: int = setting(100, at_least=0)
    decay: str = setting("sqrt", one_of=("sqrt", "linear"), before="linear")
    decay_fraction: float = setting(0.1, within=(0.0, 1.0))
    final_fraction: float = setting(0.0, within=(0.0, 1.0))
    b1: float = setting(0.9, within=(0.0, 0.99999))
    b2: float = setting(0.999, within=(0.0, 0.99999))
    eps: float = setting(1e-6, at_least=0.0)
    bias_correction: bool = True
    weight_decay: float = setting(0.01, at_least=0.0)
    clip_norm: float = setting(1.0, at_least=0.0)
    frozen: str = ""
    lora_rank: int = setting(0, at_least=0)
    lora_alpha: float = setting(8.0, at_least=0.0)
    lora_targets: str = r".*attention/(query|value)/kernel"

    def validate(self) -> None:
        """Checks every field.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("optim", self)
        for name in ("frozen", "lora_targets"):
            for pattern in getattr(self, name).split(","):
                try:
                    re.compile(pattern)
                except re.error as error:
                    message = f"optim.{name} has {pattern!r}: {error}; accepted: regular expressions."
                    raise InputError(message) from error
