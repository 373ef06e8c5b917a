"""Which settings of a run have no effect beside its other settings."""

from collections.abc import Iterable

from lm.config.run import Config
from lm.errors import InputError

_MLM = ("mask_token_rate", "random_token_rate", "whole_word", "nsp")
_TRAINED_TOKENIZER = ("data.tokenizer_kind", "data.vocab_size", "data.split_digits")


def without_effect(config: Config) -> dict[str, str]:
    """Returns the settings that a run does not read, each with the reason.

    It names only settings of which this is sure: a task that is not built in may read any of its section.
    """
    model, optim = config.model, config.optim
    tasks = {config.task_objective(name).name for name in config.mixture.tasks} or {config.objective.name}
    found: dict[str, str] = {}

    def unless(read: bool, why: str, *names: str) -> None:
        found.update(dict.fromkeys(() if read else names, why))

    if tasks <= {"mlm", "span_corruption", "infilling", "pairs", "causal_lm"}:
        why = f"objective.name is {' and '.join(sorted(tasks))}"
        corrupted = {"span_corruption", "infilling"}
        unless("mlm" in tasks, why, *(f"objective.{name}" for name in _MLM))
        unless(tasks != {"mlm"}, why, "objective.label_smoothing", "objective.z_loss")
        unless(bool(tasks & {"mlm", *corrupted}), why, "objective.mask_rate")
        unless(bool(tasks & corrupted), why, "objective.mean_span")
        unless("span_corruption" in tasks, why, "objective.join_documents")
        unless("infilling" in tasks, why, "objective.spans", "objective.permute_sentences")
        reads = "mlm" in tasks and config.objective.nsp
        unless(reads, f"{why}{' without objective.nsp' if tasks == {'mlm'} else ''}", "data.short_seq_prob")
    two_sides = model.architecture == "encoder-decoder"
    names = ("data.target_length", "data.begin_with_cls", "model.num_decoder_layers")
    unless(two_sides, f"model.architecture is {model.architecture}", *names)
    names = tuple(f"model.relative_{name}" for name in ("buckets", "max_distance", "shared", "init"))
    unless(model.has_relative_bias, f"model.position is {model.position}", *names)
    unless(model.position == "rotary", f"model.position is {model.position}", "model.rope_theta")
    local = model.position == "rotary" and model.global_every > 1
    unless(local, f"model.position is {model.position}, and every layer is global", "model.rope_theta_local")
    unless(model.global_every > 1, "model.global_every is 1: every layer is global", "model.window")
    unless(optim.schedule == "wsd", f"optim.schedule is {optim.schedule}", "optim.decay", "optim.decay_fraction")
    unless(optim.schedule not in ("rsqrt", "constant"), f"optim.schedule is {optim.schedule}", "optim.final_fraction")
    adaptive = ("optim.b1", "optim.b2", "optim.eps", "optim.bias_correction")
    unless(optim.name != "adafactor", "optim.name is adafactor", *adaptive)
    unless(optim.lora_rank > 0, "optim.lora_rank is 0", "optim.lora_alpha", "optim.lora_targets")
    unless(not config.mixture.tasks, "each task of the mixture has its own", "data.source", "data.field")
    unless(not config.data.tokenizer, "data.tokenizer names a tokenizer", *_TRAINED_TOKENIZER)
    return found


def refuse_without_effect(config: Config, given: Iterable[str]) -> None:
    """Refuses settings that a command line gives and that have no effect.

    Args:
        config: of the run, with the settings applied.
        given: their names, such as `optim.decay`.

    Raises:
        InputError: names the first one and the reason.
    """
    unread = without_effect(config)
    for name in given:
        if name in unread:
            raise InputError(f"--config.{name} has no effect: {unread[name]}; leave it out.")
