"""Every setting of a run: typed dataclasses, validated where they are built.

A config file is a Python function `get_config()` that returns a `Config`; a flag such as
`--config.model.num_layers=6` changes one field of it. Families (BERT, ModernBERT, T5, ...) are
combinations of `ModelConfig` fields, never a name that other code asks for.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, get_origin, get_type_hints

from lm.errors import InputError

# Sections that a rerun in the same working directory may change: a longer run, another pod.
RERUN_MAY_CHANGE = ("train", "checkpoint", "mesh")


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise InputError(f"{name} is {value!r}; accepted: {', '.join(accepted)}.")


def _at_least(name: str, value: float, minimum: float) -> None:
    if not value >= minimum:
        raise InputError(f"{name} is {value}; it must be at least {minimum}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; it must lie between {low} and {high}.")


def _check_types(prefix: str, values: Any) -> None:
    """Refuses a field whose value is not of the annotated type; an int may stand for a float, a bool for no number."""
    for name, expected in get_type_hints(type(values)).items():
        value = getattr(values, name)
        accepted = (int, float) if expected is float else get_origin(expected) or expected
        if not isinstance(value, accepted) or (isinstance(value, bool) and expected is not bool):
            raise InputError(f"{prefix}{name} is {value!r}; accepted: a value of type {expected.__name__}.")


_DOCUMENT_SOURCES = ("installed-docs", "text", "jsonl", "parquet")
_PAIR_SOURCES = ("tsv", "gettext", "dates", "docs-questions")


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """From which text, with which tokenizer, in which rows.

    Attributes:
        source: of documents: `installed-docs` (docstrings of this Python installation, no download), `text`,
            `jsonl` or `parquet`. Of pairs, a source and its target: `tsv`, `gettext` (message catalogues),
            `dates` (generated), `docs-questions` (made from installed docstrings), and `jsonl` or `parquet`
            with `target_field`.
        path: a file, a folder or a glob; several separated by commas. Unused by what is installed or generated;
            `gettext` reads the catalogues of this machine when it is empty.
        field: the JSON or Parquet field that holds a document's text, or the source of a pair.
        target_field: the field that holds the target of a pair; empty where records are documents.
        languages: the target languages of `gettext`, as its folders are called, separated by commas: `de,zh_CN`.
        store: the folder of the token store; empty means `WORKDIR/store`.
        tokenizer: an existing sentencepiece model to use; empty means: train one on the corpus.
        tokenizer_kind: `unigram` or `bpe`, when one is trained.
        vocab_size: pieces of the tokenizer to train, special ids and byte pieces included.
        split_digits: whether each digit is a piece of its own in a tokenizer to train; otherwise frequent numbers are.
        heldout_fraction: the share of documents kept for evaluation.
        seq_length: tokens in a row, special tokens included; of an encoder-decoder, in a row of the encoder.
        target_length: tokens in a row of an encoder-decoder's decoder.
        begin_with_cls: whether what an encoder-decoder reads and writes begins with [CLS] (BART) or only ends
            with [SEP] (T5). What an encoder reads always begins with it.
        batch_size: rows in a global batch, over all processes and micro-batches.
        max_segments: the most examples (NSP pairs, MLM segments) that share a row; seq_length / 32, and 8 at
            least, keeps the padding under 1% on text of any kind that we measured.
        short_seq_prob: how often an NSP pair gets a random, shorter target length (BERT: 0.1).
    """

    source: str = "installed-docs"
    path: str = ""
    field: str = "text"
    target_field: str = ""
    languages: str = ""
    store: str = ""
    tokenizer: str = ""
    tokenizer_kind: str = "unigram"
    vocab_size: int = 8192
    split_digits: bool = False
    heldout_fraction: float = 0.02
    seq_length: int = 128
    target_length: int = 128
    begin_with_cls: bool = False
    batch_size: int = 32
    max_segments: int = 8
    short_seq_prob: float = 0.1

    @property
    def pairs(self) -> bool:
        """Whether the corpus is pairs of a source and a target, not documents."""
        return self.source in _PAIR_SOURCES or bool(self.target_field)

    def validate(self) -> None:
        _one_of("data.source", self.source, (*_DOCUMENT_SOURCES, *_PAIR_SOURCES))
        if self.source in ("text", "jsonl", "parquet", "tsv") and not self.path:
            raise InputError(f"data.path is empty; data.source={self.source} needs a file, folder or glob.")
        if self.target_field and self.source not in ("jsonl", "parquet"):
            raise InputError(
                f"data.target_field is {self.target_field!r}, but data.source={self.source} has no fields; leave it "
                "empty, or use jsonl or parquet."
            )
        if self.source == "gettext" and not self.languages:
            raise InputError("data.languages is empty; data.source=gettext needs target languages, such as 'de,zh_CN'.")
        _one_of("data.tokenizer_kind", self.tokenizer_kind, ("unigram", "bpe"))
        _at_least("data.vocab_size", self.vocab_size, 400)
        _within("data.heldout_fraction", self.heldout_fraction, 0.0, 0.5)
        _at_least("data.seq_length", self.seq_length, 8)
        _at_least("data.target_length", self.target_length, 4)
        _at_least("data.batch_size", self.batch_size, 1)
        _at_least("data.max_segments", self.max_segments, 1)
        _within("data.short_seq_prob", self.short_seq_prob, 0.0, 1.0)


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """One Transformer. The defaults are BERT's (Devlin et al., 2019) at a small size.

    Attributes:
        architecture: `encoder` (BERT), `encoder-decoder` (T5, BART) or `decoder` (GPT).
        vocab_size: rows of the token embedding; at least the tokenizer's size.
        d_model, num_layers, num_heads, d_ff: width, depth, heads, feed-forward width.
        num_decoder_layers: depth of the decoder beside an encoder; 0 means num_layers.
        head_dim: width of a head; 0 means d_model / num_heads.
        norm: `layernorm` or `rmsnorm`; norm_position: `post` (BERT, BART) or `pre` (ModernBERT, T5).
        norm_eps, norm_bias: added to the variance; whether a layernorm has a bias.
        embedding_norm: a norm after the embeddings.
        first_attention_norm: whether layer 0 normalises before attention (ModernBERT: no).
        final_norm: a norm after the last layer (pre-norm models); final_dropout: dropout of what it gives (T5).
        activation: `relu`, `gelu` (erf), `gelu_tanh` or `silu`; gated: multiply by a second projection.
        attention_bias, mlp_bias: biases of the linear maps.
        position: `learned`, `rotary`, `relative` (T5 buckets) or `none`.
        max_length: rows of the learned position table.
        relative_buckets, relative_max_distance: rows of a stack's relative position table, and the distance from
            which on all share the last (Raffel et al., 2020, section 2.1).
        token_types: rows of the token type table; 0 for none.
        rope_theta, rope_theta_local: base of the rotary frequencies, for global and local layers.
        global_every: layer i attends globally when i % global_every == 0; the rest see `window`
            tokens to either side. 1 means that every layer is global.
        attention_scale: divide the scores by sqrt(head_dim) at run time (T5: no).
        head_bias, head_activation: the bias of the MLM head's dense layer, and what follows it.
        tie_embeddings: the output projection is the token embedding.
        logits_bias: a bias of the output projection (BERT, BART).
        scale_logits: divide by sqrt(d_model) what enters the output projection (T5 1.0, where it is tied).
        decoder_start: the token that a decoder is given first: `pad` (T5) or `sep` (BART).
        pooler: the tanh layer on [CLS] that the NSP head reads.
        dropout, attention_dropout, mlp_dropout: rates; on embeddings and sublayer outputs, on attention weights,
            and on what the activation of the feed-forward network gives.
        init: `normal`: truncated, of standard deviation `init_std`; `fan_in` (T5): 1 / sqrt(inputs) for linear maps,
            a query's divided by sqrt(head_dim) too, where the scores are not scaled; 1 for the token embedding.
    """

    architecture: str = "encoder"
    vocab_size: int = 8192
    d_model: int = 256
    num_layers: int = 4
    num_decoder_layers: int = 0
    num_heads: int = 4
    head_dim: int = 0
    d_ff: int = 1024
    norm: str = "layernorm"
    norm_position: str = "post"
    norm_eps: float = 1e-12
    norm_bias: bool = True
    embedding_norm: bool = True
    first_attention_norm: bool = True
    final_norm: bool = False
    final_dropout: bool = False
    activation: str = "gelu"
    gated: bool = False
    attention_bias: bool = True
    mlp_bias: bool = True
    position: str = "learned"
    max_length: int = 512
    relative_buckets: int = 32
    relative_max_distance: int = 128
    token_types: int = 2
    rope_theta: float = 10_000.0
    rope_theta_local: float = 10_000.0
    global_every: int = 1
    window: int = 64
    attention_scale: bool = True
    head_bias: bool = True
    head_activation: str = "gelu"
    tie_embeddings: bool = True
    logits_bias: bool = True
    scale_logits: bool = False
    decoder_start: str = "pad"
    pooler: bool = True
    dropout: float = 0.1
    attention_dropout: float = 0.1
    mlp_dropout: float = 0.0
    init: str = "normal"
    init_std: float = 0.02

    @property
    def width_per_head(self) -> int:
        """K: `head_dim`, or d_model / num_heads where it is 0."""
        return self.head_dim or self.d_model // self.num_heads

    @property
    def decoder_depth(self) -> int:
        """Layers of the decoder, 0 where there is none."""
        if self.architecture == "encoder":
            return 0
        return (self.architecture == "encoder-decoder" and self.num_decoder_layers) or self.num_layers

    def validate(self) -> None:
        _one_of("model.architecture", self.architecture, ("encoder", "encoder-decoder", "decoder"))
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_length", "global_every"):
            _at_least(f"model.{name}", getattr(self, name), 1)
        _at_least("model.relative_buckets", self.relative_buckets, 4)
        _at_least("model.relative_max_distance", self.relative_max_distance, self.relative_buckets)
        for name in (
            "num_decoder_layers",
            "head_dim",
            "window",
            "token_types",
            "norm_eps",
            "rope_theta",
            "rope_theta_local",
            "init_std",
        ):
            _at_least(f"model.{name}", getattr(self, name), 0)
        if not self.head_dim and self.d_model % self.num_heads:
            raise InputError(
                f"model.d_model is {self.d_model}, which model.num_heads={self.num_heads} does not divide; "
                "change one of them or set model.head_dim."
            )
        if self.position == "rotary" and self.width_per_head % 2:
            raise InputError(f"model.head_dim is {self.width_per_head}; rotary positions need an even number.")
        _one_of("model.norm", self.norm, ("layernorm", "rmsnorm"))
        _one_of("model.norm_position", self.norm_position, ("pre", "post"))
        activations = ("relu", "gelu", "gelu_tanh", "silu")
        _one_of("model.activation", self.activation, activations)
        _one_of("model.head_activation", self.head_activation, activations)
        _one_of("model.position", self.position, ("learned", "rotary", "relative", "none"))
        _one_of("model.init", self.init, ("normal", "fan_in"))
        _one_of("model.decoder_start", self.decoder_start, ("pad", "sep"))
        for name in ("dropout", "attention_dropout", "mlp_dropout"):
            _within(f"model.{name}", getattr(self, name), 0.0, 0.99)


# Objective -> the architecture that it trains.
_ARCHITECTURE = {
    "mlm": "encoder",
    "span_corruption": "encoder-decoder",
    "infilling": "encoder-decoder",
    "pairs": "encoder-decoder",
    "causal_lm": "decoder",
}


@dataclasses.dataclass(kw_only=True)
class ObjectiveConfig:
    """What the model is asked to predict.

    Attributes:
        name: of an encoder: `mlm`, the masked language model. Of an encoder-decoder: `span_corruption` (T5),
            `infilling` (BART) or `pairs`, a source and its target. Of a decoder: `causal_lm`.
        nsp: with `mlm`, rows hold sentence pairs and the next-sentence loss is added (BERT); otherwise rows hold
            running text (RoBERTa, ModernBERT).
        mask_rate: the share of tokens to predict; of `infilling`, to hide.
        mask_token_rate, random_token_rate: of those that `mlm` predicts, the shares replaced by [MASK] and by a
            random token; the rest stay as they are.
        whole_word: with `mlm`, mask all pieces of a word together.
        mean_span: tokens in a hidden span on average, of `span_corruption` and `infilling`.
        permute_sentences: with `infilling`, show the sentences in random order.
        label_smoothing: the share of a target's probability that is spread over the vocabulary.
        z_loss: weight of the squared logarithm of the softmax's denominator (T5: 1e-4).
    """

    name: str = "mlm"
    nsp: bool = True
    mask_rate: float = 0.15
    mask_token_rate: float = 0.8
    random_token_rate: float = 0.1
    whole_word: bool = False
    mean_span: float = 3.0
    permute_sentences: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def validate(self) -> None:
        _one_of("objective.name", self.name, tuple(_ARCHITECTURE))
        _at_least("objective.mean_span", self.mean_span, 1.0)
        _within("objective.label_smoothing", self.label_smoothing, 0.0, 0.99)
        _at_least("objective.z_loss", self.z_loss, 0.0)
        _within("objective.mask_rate", self.mask_rate, 0.001, 0.999)
        _within("objective.mask_token_rate", self.mask_token_rate, 0.0, 1.0)
        _within("objective.random_token_rate", self.random_token_rate, 0.0, 1.0 - self.mask_token_rate + 1e-9)


@dataclasses.dataclass(kw_only=True)
class TaskConfig:
    """One task of a mixture: a text, what is asked about it, and how often.

    Attributes:
        source, path, field, target_field, languages: as in `DataConfig`.
        store: an existing token store to read instead of a source; `source` is then empty.
        objective: as `ObjectiveConfig.name`, whose other settings all tasks share; empty: the same one.
        prefix: a text put before every source that an encoder-decoder reads, a space between the two, such as
            `translate English to German:` (Raffel et al., 2020, section 2.4).
        rate: how many rows the task gets, relative to the others.
    """

    source: str = ""
    path: str = ""
    field: str = "text"
    target_field: str = ""
    languages: str = ""
    store: str = ""
    objective: str = ""
    prefix: str = ""
    rate: float = 1.0


# What a task says about its text in place of the section `data`.
_OF_A_TASK = ("source", "path", "field", "target_field", "languages")
_TASK_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(kw_only=True)
class MixtureConfig:
    """Several tasks in one run, in every batch; without tasks, a run has the one of `data` and `objective`.

    Attributes:
        tasks: by name. A flag changes a task of the config file: `--config.mixture.tasks.NAME.rate=2`.
        temperature: T: where it is above 0, a task's rate is multiplied by min(e, K)^(1/T), e being the rows that
            its text fills once (Raffel et al., 2020, section 3.5.2, with rows for examples): at 1 all texts are seen
            equally often, far above 1 the rates alone count. 0: the rates alone.
        limit: K; 0 for none.
    """

    tasks: dict[str, TaskConfig] = dataclasses.field(default_factory=dict)
    temperature: float = 0.0
    limit: int = 0

    def validate(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"mixture.temperature is {self.temperature}; it must be at least 0, and finite.")
        _at_least("mixture.limit", self.limit, 0)
        if self.limit and not self.temperature:
            raise InputError(f"mixture.limit is {self.limit}, but without a mixture.temperature no size counts.")
        if not self.tasks and self.temperature:
            raise InputError(
                f"mixture.temperature is {self.temperature}, but mixture.tasks is empty; give tasks in the config file."
            )
        for name, task in self.tasks.items():
            if not isinstance(name, str) or not _TASK_NAME.fullmatch(name) or hasattr(dict, name):
                raise InputError(
                    f"mixture.tasks has the name {name!r}; accepted: letters, digits and _, but none of "
                    f"{', '.join(name for name in dir(dict) if _TASK_NAME.fullmatch(name) and name[0] != '_')}."
                )
            if not isinstance(task, TaskConfig):
                raise InputError(f"mixture.tasks.{name} is {task!r}; accepted: a value of type TaskConfig.")
            _check_types(f"mixture.tasks.{name}.", task)
            if bool(task.store) == bool(task.source):
                raise InputError(
                    f"mixture.tasks.{name} has source={task.source!r} and store={task.store!r}; give one of them: "
                    "a source to prepare, or an existing store."
                )
            if task.objective:
                _one_of(f"mixture.tasks.{name}.objective", task.objective, tuple(_ARCHITECTURE))
            if not 0 < task.rate < float("inf"):
                raise InputError(
                    f"mixture.tasks.{name}.rate is {task.rate}; it must be above 0, and finite. To leave the task out, "
                    "remove it from the config file."
                )


@dataclasses.dataclass(kw_only=True)
class OptimConfig:
    """The optimizer and its schedule.

    Attributes:
        name: `adamw`, `stable_adamw` (AdamW with Adafactor's update clipping), `lamb` or `adafactor`.
        learning_rate: the peak; schedule: `linear`, `cosine`, `rsqrt`, `wsd` (warmup-stable-decay) or
            `constant`, each after `warmup_steps` of linear warm-up.
        decay_fraction: the share of the run that `wsd` spends decaying; final_fraction: the rate at the
            last step over the peak (linear, cosine, wsd).
        b1, b2, eps: Adam's; bias_correction: BERT's original AdamW has none.
        weight_decay: applied to every weight of rank two or more a layer, never to norms and biases.
        clip_norm: the largest global gradient norm; 0 for no clipping.
        frozen: parameters that are not trained: regular expressions of their whole paths, separated by commas, such
            as `encoder/embedding/.*`. Empty: all are trained.
    """

    name: str = "adamw"
    learning_rate: float = 1e-4
    schedule: str = "linear"
    warmup_steps: int = 100
    decay_fraction: float = 0.1
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    bias_correction: bool = True
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    frozen: str = ""

    def validate(self) -> None:
        _one_of("optim.name", self.name, ("adamw", "stable_adamw", "lamb", "adafactor"))
        _one_of("optim.schedule", self.schedule, ("linear", "cosine", "rsqrt", "wsd", "constant"))
        for name in ("learning_rate", "eps", "weight_decay"):
            _at_least(f"optim.{name}", getattr(self, name), 0.0)
        _at_least("optim.warmup_steps", self.warmup_steps, 0)
        _within("optim.decay_fraction", self.decay_fraction, 0.0, 1.0)
        _within("optim.final_fraction", self.final_fraction, 0.0, 1.0)
        _within("optim.b1", self.b1, 0.0, 0.99999)
        _within("optim.b2", self.b2, 0.0, 0.99999)
        _at_least("optim.clip_norm", self.clip_norm, 0.0)
        for pattern in self.frozen.split(","):
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"optim.frozen has {pattern!r}: {error}; accepted: regular expressions.") from error


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1: whatever is left.

    Attributes:
        data: replicas of the model, each with its share of the batch.
        fsdp: batch and parameters are both split over this axis.
        context: rows are split along their length over this axis, for long inputs.
        tensor: heads, feed-forward and vocabulary are split over this axis.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def validate(self) -> None:
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            if size != -1 and size < 1:
                raise InputError(f"mesh.{name} is {size}; accepted: a positive number of devices, or -1 for the rest.")
        if list(sizes.values()).count(-1) > 1:
            raise InputError(f"mesh is {sizes}; at most one axis may be -1.")


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
    """How the run is carried out; nothing here changes which batches are seen.

    Attributes:
        steps: the last step of the run.
        accumulation: micro-batches that a step adds up before it updates the weights.
        dtype: `float32` or `bfloat16` compute; the master weights are always float32.
        remat: `none` keeps all activations, `dots` keeps the matrix products, `full` keeps a layer's input.
        unroll: layers in one iteration of the scan over layers; 0 writes all out, without a scan: faster, but it takes
            longer to compile, and weights that are gathered for a layer are kept for its gradient.
        attention: `plain` keeps the scores of every pair of tokens. `flash` computes them block by block: our kernels
            on a TPU, cuDNN's on a GPU; it cannot drop out attention weights. `auto` takes flash wherever it can be had.
        log_every, eval_every, eval_batches: steps between metric lines and between evaluations
            (0: only at the end), and held-out batches in one.
        max_bad_steps: non-finite losses in a row that stop the run; each is skipped and counted.
        heartbeat_timeout: of several processes, seconds of silence after which one counts as dead and the rest end.
        hang_timeout: seconds without a finished step after which a process shows what all its threads are doing, and
            ends; longer than an evaluation and a save together. 0: never.
    """

    steps: int = 1000
    accumulation: int = 1
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str = "auto"
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 16
    max_bad_steps: int = 10
    heartbeat_timeout: int = 30
    hang_timeout: int = 3600

    def validate(self) -> None:
        for name in ("steps", "accumulation", "log_every", "eval_batches", "max_bad_steps"):
            _at_least(f"train.{name}", getattr(self, name), 1)
        _at_least("train.heartbeat_timeout", self.heartbeat_timeout, 5)
        for name in ("unroll", "eval_every", "hang_timeout"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        _one_of("train.dtype", self.dtype, ("float32", "bfloat16"))
        _one_of("train.remat", self.remat, ("none", "dots", "full"))
        _one_of("train.attention", self.attention, ("auto", "plain", "flash"))


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig:
    """When a checkpoint is written and how many are kept.

    Attributes:
        every: steps between checkpoints; the last step is always saved.
        keep: the newest checkpoints that stay.
        asynchronous: write while training goes on.
        init_from: WORKDIR or WORKDIR/checkpoints/N of a run or of an imported model whose weights a new run begins
            with. Their encoder or decoder must match; heads may differ. Empty: random weights.
    """

    every: int = 1000
    keep: int = 3
    asynchronous: bool = True
    init_from: str = ""

    def validate(self) -> None:
        _at_least("checkpoint.every", self.every, 1)
        _at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(kw_only=True)
class Config:
    """A whole run. `seed` decides the initial weights, the order of the data, masking and dropout."""

    seed: int = 0
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    mixture: MixtureConfig = dataclasses.field(default_factory=MixtureConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Checks every section and what must agree between them; called again after flags changed a field.

        Raises:
            InputError: naming the field, its value and what is accepted.
        """
        _check_types("", self)
        _at_least("seed", self.seed, 0)
        for field in dataclasses.fields(self):
            section = getattr(self, field.name)
            if dataclasses.is_dataclass(section):
                _check_types(f"{field.name}.", section)
                section.validate()  # type: ignore[union-attr]
        if self.model.vocab_size < self.data.vocab_size:
            raise InputError(
                f"model.vocab_size is {self.model.vocab_size}, smaller than data.vocab_size={self.data.vocab_size}; "
                "set both to the same number (or the model's to the next multiple of 128)."
            )
        needed = _ARCHITECTURE[self.objective.name]
        if self.model.architecture != needed:
            raise InputError(
                f"objective.name={self.objective.name} is for architecture {needed!r}, but model.architecture is "
                f"{self.model.architecture!r}; change one of them."
            )
        if self.mixture.tasks:
            self._validate_tasks()
        elif self.data.pairs != (self.objective.name == "pairs"):
            raise InputError(
                f"objective.name is {self.objective.name!r}, but data.source={self.data.source} gives "
                f"{'pairs' if self.data.pairs else 'documents'}; change one of them."
            )
        for name in ("seq_length", "target_length") if needed == "encoder-decoder" else ("seq_length",):
            if self.model.position == "learned" and self.model.max_length < getattr(self.data, name):
                raise InputError(
                    f"data.{name} is {getattr(self.data, name)}, more than model.max_length={self.model.max_length} "
                    "learned positions; raise model.max_length or shorten the rows."
                )
        if self.train.attention == "flash" and self.model.attention_dropout:
            raise InputError(
                f"train.attention is 'flash', which has no weights that model.attention_dropout="
                f"{self.model.attention_dropout} could drop; set one of them to 'auto' or 0."
            )
        if self.data.batch_size % self.train.accumulation:
            raise InputError(
                f"data.batch_size is {self.data.batch_size}, which train.accumulation={self.train.accumulation} "
                "does not divide; change one of them."
            )
        if (
            self.objective.name == "mlm"
            and self.objective.nsp
            and not (self.model.pooler and self.model.token_types >= 2)
        ):
            raise InputError(
                "objective.nsp is True, but the model cannot do it; set model.pooler=True and model.token_types=2, "
                "or objective.nsp=False."
            )

    def _validate_tasks(self) -> None:
        for name in ("path", "target_field", "languages"):
            if value := getattr(self.data, name):
                raise InputError(
                    f"data.{name} is {value!r}, but the run is a mixture; give it to a task, as "
                    f"mixture.tasks.NAME.{name}, and leave this one empty."
                )
        for name, task in self.mixture.tasks.items():
            where, objective = f"mixture.tasks.{name}", self.task_objective(name).name
            if _ARCHITECTURE[objective] != self.model.architecture:
                raise InputError(
                    f"{where}.objective is {objective!r}, which is for architecture {_ARCHITECTURE[objective]!r}, but "
                    f"model.architecture is {self.model.architecture!r}; change one of them."
                )
            if task.prefix and self.model.architecture != "encoder-decoder":
                raise InputError(
                    f"{where}.prefix is {task.prefix!r}, but only an encoder-decoder has a source to put it before; "
                    "leave it empty."
                )
            if task.store:
                continue
            try:
                data = self.task_data(name)
                data.validate()
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            if data.pairs != (objective == "pairs"):
                raise InputError(
                    f"{where}.objective is {objective!r}, but its source={task.source} gives "
                    f"{'pairs' if data.pairs else 'documents'}; change one of them."
                )

    def task_data(self, name: str) -> DataConfig:
        """The section `data` as it stands for one task of the mixture."""
        task = self.mixture.tasks[name]
        return dataclasses.replace(self.data, **{field: getattr(task, field) for field in _OF_A_TASK}, store=task.store)

    def task_objective(self, name: str) -> ObjectiveConfig:
        """The section `objective` as it stands for one task of the mixture."""
        return dataclasses.replace(self.objective, name=self.mixture.tasks[name].objective or self.objective.name)

    @property
    def languages(self) -> list[str]:
        """The target languages of the run's texts."""
        texts = (self.data.languages, *(task.languages for task in self.mixture.tasks.values()))
        return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))


def to_json(config: Config) -> str:
    """The whole config as indented JSON, as kept in `WORKDIR/config.json`."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `dataclasses.asdict`, for a config read from JSON.

    Raises:
        InputError: for a field that `Config` does not have, or a value that it does not accept.
    """
    sections: dict[str, Any] = {}
    known = get_type_hints(Config)
    for name, value in values.items():
        if name not in known:
            raise InputError(f"config has the unknown field {name!r}; accepted: {', '.join(known)}.")
        section = known[name]
        if section in (bool, int, float, str):
            sections[name] = value
            continue
        sections[name] = _section(name, section, value)
        if section is MixtureConfig and isinstance(tasks := sections[name].tasks, Mapping):
            sections[name].tasks = {
                task: _section(f"mixture.tasks.{task}", TaskConfig, fields) for task, fields in tasks.items()
            }
    return Config(**sections)


def _section(name: str, section: Any, value: Any) -> Any:
    accepted = [field.name for field in dataclasses.fields(section)]
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is {value!r}; accepted: an object with fields among {', '.join(accepted)}.")
    for key in value:
        if key not in accepted:
            raise InputError(f"config has the unknown field {name}.{key}; accepted: {', '.join(accepted)}.")
    return section(**value)


def changed_fields(old: Config, new: Config) -> list[str]:
    """Fields outside `RERUN_MAY_CHANGE` that differ, each as `section.field (old -> new)`; None for one not there."""
    before, after = (
        _leaves({name: value for name, value in dataclasses.asdict(config).items() if name not in RERUN_MAY_CHANGE})
        for config in (old, new)
    )
    return [
        f"{name} ({before.get(name)!r} -> {after.get(name)!r})"
        for name in {**before, **after}
        if before.get(name) != after.get(name)
    ]


def _leaves(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        inner = _leaves(value) if isinstance(value, Mapping) else None
        leaves |= {name: value} if inner is None else {f"{name}.{key}": each for key, each in inner.items()}
    return leaves
