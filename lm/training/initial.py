"""Initialises the parameters of a run from the checkpoint that `checkpoint.init_from` names.

The body of a model is its stacks `encoder` and `decoder`, embeddings included. All other parameters are heads.
"""

from collections.abc import Mapping

import jax

from lm import checkpoint, distributed, lora, parameters
from lm.errors import InputError
from lm.parameters import Params
from lm.tokenizers import tokenizer as tokenizers
from lm.tokenizers.tokenizer import Tokenizer

BODY = ("encoder", "decoder")


def initial_params(path: str, tokenizer: Tokenizer, params: Params) -> Params:
    """Returns the parameters of a new model, replaced by those of a checkpoint that have the same path and shape.

    A stack that both models have must have the same parameters in both. A stack or head that the checkpoint lacks stays
    random, and so does a head with another shape there. What only the checkpoint has is dropped. One line on stderr
    names the random parameters, another the dropped ones. Adapters stay as they are: the checkpoint's are merged into
    its kernels.

    Args:
        path: WORKDIR or WORKDIR/checkpoints/N, of another run or an imported model.
        tokenizer: the tokenizer of this run.
        params: the random parameters of the new model. Parameters of the checkpoint get their shardings.

    Raises:
        InputError: as `check` and `check_tokenizer`.
    """
    workdir, step = checkpoint.locate(path)
    check_tokenizer(path, tokenizer)
    fresh, adapters = lora.split(parameters.flatten(params))
    saved = check(path, fresh)
    taken = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for path, leaf in fresh.items()
        if path in saved.abstract and saved.abstract[path].shape == leaf.shape
    }
    distributed.say(f"starting from the weights of {workdir}, step {step:,}")
    if random := parameters.abridge(fresh.keys() - taken.keys(), fresh):
        distributed.say(f"new, with random weights: {', '.join(random)}")
    if dropped := parameters.abridge(saved.abstract.keys() - taken.keys(), saved.abstract):
        distributed.say(f"dropped, which this model does not have: {', '.join(dropped)}")
    return parameters.unflatten(fresh | parameters.flatten(saved.read(taken)) | adapters)


def check(path: str, fresh: Mapping[str, jax.Array] | Mapping[str, jax.ShapeDtypeStruct]) -> checkpoint.SavedParams:
    """Checks that a new model can begin with a checkpoint, from the shapes in its metadata.

    Args:
        path: WORKDIR or WORKDIR/checkpoints/N.
        fresh: path of each parameter of the new model -> the parameter or its shape, without adapters.

    Returns:
        The parameters of the checkpoint, of which none is read yet.

    Raises:
        InputError: there is no such checkpoint, or its body does not match.
    """
    saved = checkpoint.SavedParams(*checkpoint.locate(path))
    stacks = [stack for stack in BODY if _has(saved.abstract, stack) and _has(fresh, stack)]
    if not stacks:
        raise InputError(
            f"checkpoint.init_from={path} has {', '.join(parameters.abridge(saved.abstract, saved.abstract))}, but the "
            f"config makes {', '.join(parameters.abridge(fresh, fresh))}; give a checkpoint with the encoder or the "
            "decoder of this model."
        )
    for stack in stacks:
        saved.check(fresh, below=f"{stack}/")
    return saved


def check_tokenizer(path: str, tokenizer: Tokenizer) -> None:
    """Checks that the checkpoint of `checkpoint.init_from` has the tokenizer of this run.

    Raises:
        InputError: there is no such checkpoint, or its tokenizer differs.
    """
    workdir, _ = checkpoint.locate(path)
    if tokenizers.load_tokenizer(str(workdir)).fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"checkpoint.init_from={path} has another tokenizer than this run; set data.tokenizer={workdir} and "
            "prepare the store with it."
        )


def _has(leaves: Mapping[str, jax.Array] | Mapping[str, jax.ShapeDtypeStruct], stack: str) -> bool:
    return any(path.startswith(f"{stack}/") for path in leaves)
