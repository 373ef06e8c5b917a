"""The section `objective`: what the model is asked to predict."""

import dataclasses

from lm.config.bounds import check, setting, within

# Objective -> the architecture that it trains. A registered task adds its own.
ARCHITECTURES: dict[str, str] = {
    "mlm": "encoder",
    "span_corruption": "encoder-decoder",
    "infilling": "encoder-decoder",
    "pairs": "encoder-decoder",
    "causal_lm": "decoder",
}
# Objectives whose corpus is pairs; the others read documents. `lm.tasks.register` adds to it.
OF_PAIRS: set[str] = {"pairs"}


@dataclasses.dataclass(kw_only=True)
class ObjectiveConfig:
    """What the model is asked to predict.

    Attributes:
        name: the training task. For an encoder: `mlm`, the masked language model. For an encoder-decoder:
            `span_corruption` (T5), `infilling` (BART) or `pairs` of a source and its target. For a decoder:
            `causal_lm`.
        nsp: whether `mlm` adds the next-sentence loss (BERT). Rows then hold sentence pairs; without it they hold
            running text (RoBERTa, ModernBERT).
        mask_rate: the share of tokens that `mlm` predicts, and that `span_corruption` and `infilling` hide.
        mask_token_rate: the share of the predicted tokens that `mlm` replaces by [MASK].
        random_token_rate: the share of the predicted tokens that `mlm` replaces by a random token. The rest stay.
        whole_word: whether `mlm` masks all pieces of a word together.
        mean_span: the mean number of tokens in a hidden span of `span_corruption`, and of words in one of `infilling`.
        join_documents: whether `span_corruption` joins documents into texts that fill a row, before it hides spans
            (T5). Otherwise it hides spans in each document alone: the last token is then always hidden.
        spans: how `infilling` draws spans. `random` (BART's authors): spans of whole words, which may overlap and
            touch. The number of shown tokens varies, so rows have some padding. `fixed`: spans of tokens, with a shown
            token between any two. Their number depends on the text's length alone, which fills rows better.
        permute_sentences: whether `infilling` shows the sentences in random order.
        label_smoothing: the share of a target's probability that is spread evenly over the vocabulary.
        z_loss: the weight of the squared logarithm of the softmax's denominator (T5: 1e-4).
    """

    name: str = setting("mlm", one_of=ARCHITECTURES)
    nsp: bool = True
    mask_rate: float = setting(0.15, within=(0.001, 0.999))
    mask_token_rate: float = setting(0.8, within=(0.0, 1.0))
    random_token_rate: float = 0.1
    whole_word: bool = False
    mean_span: float = setting(3.0, at_least=1.0)
    join_documents: bool = setting(True, before=False)
    spans: str = setting("random", one_of=("random", "fixed"), before="fixed")
    permute_sentences: bool = False
    label_smoothing: float = setting(0.0, within=(0.0, 0.99))
    z_loss: float = setting(0.0, at_least=0.0)

    def validate(self) -> None:
        """Checks every field, and that the shares of `mlm` add up to 1 at most.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        check("objective", self)
        within("objective.random_token_rate", self.random_token_rate, 0.0, 1.0 - self.mask_token_rate + 1e-9)
