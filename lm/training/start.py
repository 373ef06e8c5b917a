"""What a run says at its start: a block that shows what is about to be trained, on what, and where."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lm import checkpoint, distributed, lora, models, parameters, storage
from lm.config import Config, DataConfig
from lm.data import batches, changes
from lm.data.manifest import counted
from lm.errors import InputError
from lm.tasks.members import Member, mixed
from lm.training import adapters, initial, optim

_NAME_WIDTH = 11
_NOTICEABLE = 1.01  # ratio of learning rates
_SAMPLE = 256  # rows whose padding is counted
_SAMPLED_BATCHES = 16  # at most
_MUCH_PADDING = 0.5


def check_new(config: Config, root: epath.Path) -> None:
    """Checks that a new run has a folder of its own and finds the weights to begin with, before any work is done.

    Raises:
        InputError: the folder is a token store, whose tokenizer would be lost; there is no checkpoint at
            `checkpoint.init_from`, or its parameters have other shapes than the model's; or adapters have no base, or
            are to stand beside a kernel that does not exist.
    """
    if checkpoint.is_new(root) and storage.read_keys(str(root), ["manifest.json"]) != [None]:
        raise InputError(f"{root} is a token store; give it as data.store, and another folder as --workdir.")
    path = config.checkpoint.init_from
    if config.optim.lora_rank and not path and checkpoint.is_new(root):
        raise InputError(
            f"optim.lora_rank is {config.optim.lora_rank}, but checkpoint.init_from is empty: an adapter needs the "
            "weights of a trained model; give its WORKDIR, or set optim.lora_rank=0."
        )
    if config.optim.lora_rank:
        model = models.build(config.with_vocabulary(1).model)  # no kernel that has an adapter depends on the vocabulary
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        lora.targets(parameters.flatten(shapes), config.optim.lora_targets)
    if path and checkpoint.is_new(root):
        try:
            checkpoint.locate(path)
        except InputError as error:
            raise InputError(f"checkpoint.init_from={path}: {error}") from error
        model = models.build(with_rows(config, 1).model)
        initial.check(path, parameters.flatten(jax.eval_shape(model.init, jax.random.key(0))))


def with_rows(config: Config, needed: int) -> Config:
    """Returns the config with the rows of its embedding: those of the model that it begins with, or else as needed.

    Raises:
        InputError: `model.vocab_size` is smaller than needed, and not 0.
    """
    path = config.checkpoint.init_from
    if path and not config.model.vocab_size:
        rows = checkpoint.read_config(checkpoint.locate(path)[0]).model.vocab_size
        if rows >= needed:
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=rows))
    return config.with_vocabulary(needed)


def summary(
    config: Config, root: epath.Path, mesh: Mesh, members: Sequence[Member], start: int, first: batches.Arrays | None
) -> str:
    """Returns the block: run, corpus, tokenizer, model, weights, step and devices, a line each.

    Args:
        config: the config of the run, with its vocabulary size.
        root: the working directory.
        mesh: the mesh of all devices.
        members: the corpora of the run.
        start: the step that the run resumes from; 0 for a new run.
        first: the first rows of a new run, whose padding is said.
    """
    lines = [("run", f"{root}, {f'resumed after step {start:,}' if start else 'new'}, to step {config.train.steps:,}")]
    for member in members:
        lines.append((" ".join(filter(None, ("corpus", member.name))), _corpus(member)))
        if changed := changes.since(member.store.manifest):
            lines.append(("", f"changed since its store was made ({changed}); this run reads the store as it is"))
    tokenizer = members[0].store.tokenizer
    given = members[0].store.manifest["settings"].get("tokenizer")
    lines += [
        ("tokenizer", f"{tokenizer.vocab_size:,} pieces, {f'from {given}' if given else 'trained on this corpus'}"),
        ("model", _model(config, tokenizer.vocab_size)),
        *([("weights", f"from {config.checkpoint.init_from}")] if config.checkpoint.init_from and not start else []),
        *([("adapters", _adapters(config))] if config.optim.lora_rank else []),
        *([("frozen", _frozen(config))] if config.optim.frozen else []),
        ("step", _step(config)),
        *([("padding", _padding(first))] if first else []),
        ("devices", _devices(mesh)),
    ]
    width = max(_NAME_WIDTH, *(len(name) + 1 for name, _ in lines))
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines)


def _corpus(member: Member) -> str:
    manifest = member.store.manifest
    settings = manifest["settings"]
    where = ", ".join(str(settings[name]) for name in ("source", "path") if settings.get(name))
    train, heldout = manifest["splits"]["train"], manifest["splits"]["heldout"]
    left_out = ""
    if removed := manifest.get("removed"):
        left_out = f"; left out: {removed['near_duplicates']:,} near-duplicates"
        left_out += f" and {removed['heldout_leaks']:,} leaks of held-out documents"
    return (
        f"{where}: {counted(train['documents'], member.store.kind)} with {train['tokens']:,} tokens; held out: "
        f"{heldout['documents']:,} with {heldout['tokens']:,} tokens{left_out}"
    )


def _model(config: Config, pieces: int) -> str:
    model = config.model
    shapes = jax.eval_shape(models.build(model).init, jax.random.key(0))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    depth = f"{model.num_layers} layers"
    if model.architecture == "encoder-decoder":
        depth = f"{model.num_layers} + {model.decoder_depth} layers"
    padding = f" ({model.vocab_size - pieces:,} of them only pad)" if model.vocab_size > pieces else ""
    return (
        f"{model.architecture}, {depth} of width {model.d_model:,}, {model.vocab_size:,} rows of embeddings{padding}: "
        f"{count:,} parameters"
    )


def _shapes(config: Config) -> models.Params:
    """Returns the shapes of all parameters, those of adapters included."""
    model = adapters.adapted(models.build(config.model), config.optim)
    return jax.eval_shape(model.init, jax.random.key(0))


def _frozen(config: Config) -> str:
    shapes = _shapes(config)
    frozen = parameters.flatten(adapters.partition(shapes, config.optim)[1])
    everything = parameters.flatten(shapes)
    names = ", ".join(dict.fromkeys(parameters.abridge(frozen, everything)))
    count, of = (sum(leaf.size for leaf in leaves.values()) for leaves in (frozen, everything))
    return f"{count:,} of {of:,} parameters: {names}"


def _adapters(config: Config) -> str:
    shapes = _shapes(config)
    trained, _ = adapters.partition(shapes, config.optim)
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    kernels = lora.targets(parameters.flatten(shapes), config.optim.lora_targets)
    heads = [path for path in parameters.flatten(trained) if not lora.is_adapter(path)]
    also = f", and {', '.join(parameters.abridge(heads, parameters.flatten(shapes)))}" if heads else ""
    return f"{count:,} trained parameters: rank {config.optim.lora_rank} beside {', '.join(kernels)}{also}"


def _step(config: Config) -> str:
    data = config.data
    lengths = [data.seq_length, *([data.target_length] if config.model.architecture == "encoder-decoder" else [])]
    return (
        f"{data.batch_size:,} rows of {' + '.join(map(str, lengths))} tokens: up to "
        f"{data.batch_size * sum(lengths):,} tokens"
    )


def _rows(config: Config, members: Sequence[Member]) -> batches.Arrays:
    """Returns the first rows of a new run, some hundred if batches are not very small."""
    source, size = mixed(members, config.data.batch_size), config.data.batch_size
    parts = [source(step, slice(_SAMPLE)) for step in range(min(-(-_SAMPLE // size), _SAMPLED_BATCHES))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _padding(batch: batches.Arrays) -> str:
    return f"{batches.padding_fraction(batch):.1%} of the places in the first {len(next(iter(batch.values()))):,} rows"


def much_padding(data: DataConfig, batch: batches.Arrays) -> Iterator[str]:
    """Yields a line if more than half of a batch is padding: which field to change.

    Args:
        data: the section of the run.
        batch: some of its rows.
    """
    share = batches.padding_fraction(batch)
    if share <= _MUCH_PADDING:
        return
    sides = [lengths for lengths in batches.example_lengths(batch) if lengths.any()]
    examples = np.median((sides[0] > 0).sum(axis=1))
    line = f"{share:.0%} of what a step computes is padding: "
    if examples < data.max_segments:
        fields = "data.seq_length" if len(sides) == 1 else "data.seq_length or data.target_length"
        yield f"{line}the texts do not fill rows of that length; lower {fields}"
        return
    capacities = (data.seq_length, data.target_length)
    means = [lengths[lengths > 0].mean() for lengths in sides]
    fitting = min(int(capacity / mean) for capacity, mean in zip(capacities, means, strict=False))
    yield f"{line}a row ends at data.max_segments={data.max_segments} examples; {fitting} would fill it"


def _devices(mesh: Mesh) -> str:
    device = mesh.devices.flat[0]
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "none"
    return f"{mesh.size} x {device.device_kind}, {jax.process_count()} process(es); mesh: {sizes}"


def changed_rate(old: Config, new: Config, start: int) -> Iterator[str]:
    """Yields a line if the learning rate at step `start` rises because the run became longer."""
    before, after = (
        float(optim.learning_rate(config.optim, config.train.steps, jnp.int32(start))) for config in (old, new)
    )
    if after > before * _NOTICEABLE:
        yield (
            f"the learning rate goes up at step {start:,}, from {before:.3g} to {after:.3g}: its schedule now ends at "
            f"train.steps={new.train.steps:,} and not at {old.train.steps:,}"
        )


def announce(config: Config, root: epath.Path, mesh: Mesh, members: Sequence[Member], start: int) -> None:
    """Prints the block and what has changed since the run was last started."""
    if not distributed.is_primary():
        return
    first = None if start else _rows(config, members)
    distributed.say(summary(config, root, mesh, members, start, first))
    if first:
        for line in much_padding(config.data, first):
            distributed.say(line)
    else:
        for line in changed_rate(checkpoint.read_config(root), config, start):
            distributed.say(line)
