"""The section `generation`: how the model writes where a request says nothing else."""

import dataclasses

from lm.config.bounds import check, setting
from lm.errors import InputError

# The names of `early_stopping`, and its values in `Decoding` and in transformers.
EARLY_STOPPING: dict[str, bool | str] = {"false": False, "true": True, "never": "never"}

_MOST = 2**31 - 1  # what an int32 holds


@dataclasses.dataclass(kw_only=True)
class GenerationConfig:
    """The defaults of `lm.inference.options.Decoding`, which explains the fields. An import fills them in.

    Attributes:
        decoder_start_token_id: the first token that a decoder is given. -1: as in training, the token of
            `model.decoder_start`, and with `data.begin_with_cls` [CLS] after it.
        forced_bos_token_id: the first token of every text; -1 means none.
        forced_eos_token_id: the last token of a text that reaches `max_length`; -1 means none.
        eos_token_id: the tokens that end a text; empty means the tokenizer's.
        max_length: most tokens of a text; 0 means the length of a target in training.
        min_length: fewest tokens of a text.
        num_beams: beams of beam search; 1 is greedy.
        length_penalty: the score of a beam is divided by its length to this power.
        early_stopping: when beam search ends; `lm.inference.options.Decoding` explains the values.
        no_repeat_ngram_size: no n-gram of this size is written twice; 0 means no limit.
        repetition_penalty: above 1, tokens are repeated less.
        bad_words_ids: sequences of tokens that are never written.
        suppress_tokens: tokens that are never written.
        begin_suppress_tokens: tokens that no text begins with.
        do_sample: whether tokens are sampled, with `temperature`, `top_k` and `top_p`.
        temperature: tokens are sampled from softmax(logits / temperature).
        top_k: tokens are sampled from the `top_k` most probable ones; 0 means from all.
        top_p: tokens are sampled from the fewest that together have the probability `top_p`; 1 means from all.
    """

    decoder_start_token_id: int = setting(-1, within=(-1, _MOST))
    forced_bos_token_id: int = setting(-1, within=(-1, _MOST))
    forced_eos_token_id: int = setting(-1, within=(-1, _MOST))
    eos_token_id: list[int] = dataclasses.field(default_factory=list)
    max_length: int = setting(0, within=(0, _MOST))
    min_length: int = setting(0, within=(0, _MOST))
    num_beams: int = setting(1, within=(1, _MOST))
    length_penalty: float = 1.0
    early_stopping: str = setting("false", one_of=EARLY_STOPPING)
    no_repeat_ngram_size: int = setting(0, within=(0, _MOST))
    repetition_penalty: float = 1.0
    bad_words_ids: list[list[int]] = dataclasses.field(default_factory=list)
    suppress_tokens: list[int] = dataclasses.field(default_factory=list)
    begin_suppress_tokens: list[int] = dataclasses.field(default_factory=list)
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = setting(0, within=(0, _MOST))
    top_p: float = 1.0

    def validate(self) -> None:
        """Checks every field.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("generation", self)
        for name in ("repetition_penalty", "temperature", "top_p"):
            if not 0 < getattr(self, name) <= (1 if name == "top_p" else 1e9):
                most = "at most 1" if name == "top_p" else "finite"
                raise InputError(f"generation.{name} is {getattr(self, name)}; it must be above 0 and {most}.")
        if self.max_length and self.min_length > self.max_length:
            raise InputError(
                f"generation.min_length is {self.min_length}, but generation.max_length is {self.max_length}; change "
                "one of them."
            )
        for name in ("eos_token_id", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"):
            lists = getattr(self, name) if name == "bad_words_ids" else [getattr(self, name) or [0]]
            if not all(isinstance(each, list) and each and all(map(_is_id, each)) for each in lists):
                accepted = "lists of token ids" if name == "bad_words_ids" else "token ids"
                raise InputError(f"generation.{name} is {getattr(self, name)!r}; accepted: {accepted} of 0 or more.")


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST
