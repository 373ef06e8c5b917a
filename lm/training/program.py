"""The functions of a run, compiled for a mesh: the state of step 0, the training step, the evaluation step."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import checkpoint, models, sharding, tasks
from lm.config import Config, check_divisible
from lm.models import Model
from lm.tasks import Batch, Objective, Sums
from lm.training import adapters, optim, step
from lm.training.step import Metrics, State


@dataclasses.dataclass
class Program:
    """The compiled functions of a run on a mesh.

    Attributes:
        mesh, model, objective: built from the config.
        batch_size: rows of a global batch.
        abstract_state: shapes, dtypes and shardings of the state.
        init, step, eval_step, means: compiled functions. `step` donates the state that it is given.
        rows: the rows of a global batch that this process reads, ascending.
    """

    mesh: Mesh
    model: Model
    objective: Objective
    batch_size: int
    abstract_state: State
    init: Callable[[], State]
    step: Callable[[State, Batch], tuple[State, Metrics]]
    eval_step: Callable[..., tuple[Sums, dict[str, jax.Array]]]
    means: Callable[..., Metrics]
    rows: np.ndarray

    def put(self, batch: dict[str, np.ndarray]) -> Batch:
        """Places this process's rows of a batch on its devices."""
        return sharding.place_rows(self.mesh, self.batch_size, batch)


@dataclasses.dataclass
class Definition:
    """The functions of a run on a mesh, before anything is compiled or an array exists.

    Attributes:
        config, mesh, objective: as given to `define`.
        model, optimizer: built from the config; a model with adapters is `adapters.Adapted`.
        state, batch: shapes, dtypes and shardings of the training state and of a global batch.
    """

    config: Config
    mesh: Mesh
    model: Model
    objective: Objective
    optimizer: optax.GradientTransformation
    state: State
    batch: dict[str, jax.ShapeDtypeStruct]

    def lower_init(self) -> jax.stages.Lowered:
        """Returns the lowered function that makes the state of step 0, each array in its sharding."""
        init = functools.partial(step.init_state, self.model, self.optimizer, self.config.seed, self.config.optim)
        with jax.set_mesh(self.mesh):
            return jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self.state)).lower()

    def trace_step(self) -> jax.stages.Traced:
        """Returns the traced training step. It donates the state that it is given."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        replicated = NamedSharding(self.mesh, PartitionSpec())
        with jax.set_mesh(self.mesh):
            train_step = jax.jit(
                functools.partial(step.train_step, self.config, self.model, self.objective, self.optimizer),
                out_shardings=(shardings, replicated),
                donate_argnums=0,
                compiler_options=sharding.compiler_options(),
            )
            return train_step.trace(self.state, self.batch)

    def lower_step(self) -> jax.stages.Lowered:
        """Returns the lowered training step."""
        with jax.set_mesh(self.mesh):
            return self.trace_step().lower()


def define(config: Config, objective: Objective, mesh: Mesh) -> Definition:
    """Returns the definition of a run. The devices of the mesh need not exist.

    Raises:
        InputError: the mesh does not divide a dimension of the config.
    """
    check_divisible(mesh.shape, config)
    train = config.train
    execution = models.Execution(
        train.activations, train.remat, train.unroll, train.attention, float8=train.dtype == "float8"
    )
    model = adapters.adapted(models.build(config.model, execution), config.optim)
    optimizer = optim.create(config.optim)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(functools.partial(step.init_state, model, optimizer, config.seed, config.optim))
    state = checkpoint.abstract_like(state, sharding.state_shardings(mesh, state))
    place, rows = sharding.batch_sharding(mesh), config.data.batch_size
    batch = {
        name: jax.ShapeDtypeStruct((rows, *spec.shape), spec.dtype, sharding=place)
        for name, spec in tasks.shapes(config).items()
    }
    return Definition(config, mesh, model, objective, optimizer, state, batch)


def compile_program(config: Config, objective: Objective, mesh: Mesh) -> Program:
    """Builds and compiles the functions of a run.

    Compiled ahead of time, the step accepts these shapes and shardings alone, and is never compiled again.
    """
    made = define(config, objective, mesh)
    state, replicated = made.state, NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        evaluate = jax.jit(
            functools.partial(step.eval_step, config, made.model, objective),
            out_shardings=replicated,
            compiler_options=sharding.compiler_options(),
        )
        index = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated)
        return Program(
            mesh=mesh,
            model=made.model,
            objective=objective,
            batch_size=config.data.batch_size,
            abstract_state=state,
            init=made.lower_init().compile(),
            step=made.lower_step().compile(),
            eval_step=evaluate.lower(state["params"], made.batch, index).compile(),
            means=jax.jit(step.means),
            rows=sharding.process_rows(mesh, config.data.batch_size),
        )
