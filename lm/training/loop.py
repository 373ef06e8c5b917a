"""The training loop: prepares data and state, takes the steps, evaluates and saves."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import checkpoint, distributed, lease, models, sharding, storage, tasks
from lm.config import Config, check_divisible
from lm.data import batches, mixture, prepare, workers
from lm.data.store import Store
from lm.errors import InputError
from lm.tasks import Objective
from lm.tasks.members import Member, make_members, mixed
from lm.tokenizers.tokenizer import Tokenizer
from lm.training import adapters
from lm.training import metrics as metrics_lib
from lm.training import start as start_lib
from lm.training.initial import check_tokenizer, initial_params
from lm.training.program import Program, compile_program
from lm.training.report import Diverged, Report
from lm.training.step import Metrics, State


class Preempted(Exception):
    """The run received SIGTERM and saved a checkpoint. The same command continues it."""


def shared_stores(config: Config, folder: str) -> dict[str, Store]:
    """Opens the token stores that process 0 has prepared. The other processes call this.

    Raises:
        InputError: this process cannot read them.
    """
    try:
        return mixture.open_stores(config, folder)
    except InputError as error:
        raise InputError(
            f"process {jax.process_index()} does not find the token store that process 0 has prepared ({error}); give "
            "a --workdir that all machines share, and a shared data.store if you set one."
        ) from error


def rows_needed(stores: dict[str, Store]) -> int:
    """Returns the rows of the token embedding that the ids of the stores need."""
    tokenizer = next(iter(stores.values())).tokenizer  # all stores have the same one
    # An imported tokenizer may have more ids than its model has rows. A store holds no id without a row.
    return min(tokenizer.vocab_size, tokenizer.special.rows or tokenizer.vocab_size)


def plan_members(config: Config, stores: dict[str, Store]) -> list[Member]:
    """Plans the batches of a run, and prints the share of each member of a mixture and the number of cut pairs.

    Raises:
        InputError: a store does not fit the config.
    """
    members = make_members(config, stores)
    period = sum(member.rows for member in members)
    for member in members:
        train = member.train
        if member.name:
            share = f"{member.rows / period:.2%} of all rows"
            distributed.say(f"{member.name}: {share}; {train.rows_per_epoch:,} show its text once")
        if train.truncated:
            about = "about " if train.is_estimate else ""
            distributed.say(
                f"{about}{train.truncated:,} pairs of {member.store.train.num_documents:,} are longer than "
                f"data.seq_length={config.data.seq_length} or data.target_length={config.data.target_length} and "
                "are cut"
            )
    return members


def first_step(saved: checkpoint.Checkpoints, workdir: epath.Path) -> int:
    """Returns the step after which a run continues; 0 for a new run.

    Raises:
        InputError: the working directory is an imported model.
    """
    latest = saved.latest_step()
    if latest == 0:  # only an import saves step 0
        raise InputError(
            f"{workdir} is an imported model; choose another --workdir and checkpoint.init_from={workdir}."
        )
    return latest or 0


def begin(
    config: Config, objective: Objective, mesh: Mesh, saved: checkpoint.Checkpoints, start: int, tokenizer: Tokenizer
) -> tuple[Program, int, State]:
    """Compiles the program of a run, and initialises its state or restores the newest undamaged checkpoint.

    Args:
        saved: the checkpoints of the run.
        start: the step of the newest checkpoint; 0 for a new run.
        tokenizer: the tokenizer of the run.

    Returns:
        The program, the step of the state, and the state.

    Raises:
        InputError: the checkpoint of `checkpoint.init_from` does not fit the run.
    """
    what = f"compiling the training step for {mesh.size} device(s)"
    # The first collective would time out while another process still compiles.
    with workers.announced(what, distributed.is_primary(), at_once=True), distributed.agreement():
        program = compile_program(config, objective, mesh)
    if start:
        start, state = saved.restore(program.abstract_state)
        distributed.say(f"resuming from step {start}")
        return program, start, state
    state = program.init()
    if config.checkpoint.init_from:
        state["params"] = initial_params(config.checkpoint.init_from, tokenizer, state["params"])
    return program, 0, state


def heldout_metrics(program: Program, params: models.Params, members: Sequence[Member], count: int) -> dict[str, float]:
    """Returns mean metrics over the first `count` held-out batches of each member, named `eval/mlm_loss` and so on.

    Each batch is taken once, also where there are fewer than `count`. For a mixture it adds the metrics of each member,
    named `eval/NAME/mlm_loss` and so on. The overall means weight every member by its rate.
    """
    replicated = NamedSharding(program.mesh, PartitionSpec())
    add = functools.partial(jax.tree.map, jnp.add)
    found, metrics = [], {}
    for member in members:
        if not member.heldout:
            continue
        results = []
        taken = min(count, member.heldout.batches_per_epoch)
        for index in range(taken):
            batch = program.put(member.heldout.once(index, program.rows))
            results.append(program.eval_step(params, batch, jax.device_put(np.int32(index), replicated)))
        sums = functools.reduce(add, results)
        if member.name:
            metrics |= _named(f"eval/{member.name}/", program.means(*sums))
        # A member that has fewer held-out rows than the others must not count for less.
        rows = min(taken * program.batch_size, member.heldout.rows_per_epoch)
        rate = jax.device_put(np.float32(member.rows * (count * program.batch_size / rows)), replicated)
        found.append(jax.tree.map(lambda value, rate=rate: rate * value, sums))
    return _named("eval/", program.means(*functools.reduce(add, found))) | metrics


def _named(prefix: str, metrics: Metrics) -> dict[str, float]:
    return {prefix + name: float(value) for name, value in jax.device_get(metrics).items()}


def train(config: Config, workdir: str, given: Collection[str] = ()) -> dict[str, float]:
    """Trains up to step `train.steps`, from the newest checkpoint of `workdir` if there is one.

    Args:
        config: of the run. It takes the settings of a complete `data.store` from there.
        workdir: the working directory.
        given: names of settings, such as `data.path`, that a complete `data.store` must have been made with.

    Returns:
        The metrics of the last step and of the final evaluation; empty where no step was logged.

    Raises:
        InputError: config, workdir, data and devices do not fit together.
        Preempted: after SIGTERM; a checkpoint is saved.
        Diverged: after `train.max_bad_steps` skipped steps in a row, whose loss or gradient was not finite.
    """
    if not workdir:
        raise InputError("--workdir is empty; give the folder of the run.")
    with distributed.agreement():
        root = storage.as_path(workdir)
    primary = distributed.is_primary()
    folder = checkpoint.store_path(config, root)
    with contextlib.ExitStack() as held:
        with distributed.agreement():
            mesh = sharding.make_mesh(config.mesh)
            check_divisible(mesh.shape, config)
            if not config.mixture.tasks:
                config = dataclasses.replace(config, data=prepare.as_prepared(config.data, given))
            checkpoint.check_workdir(root, config)
            start_lib.check_new(config, root)
            check_lease = held.enter_context(lease.hold(workdir, enabled=primary))
            checkpoint.check_workdir(root, config)  # another run may have begun in it before we had the lease
            stores = mixture.prepare_stores(config, folder) if primary else {}
        with distributed.agreement():
            stores = stores or shared_stores(config, folder)
            config = start_lib.with_rows(config, rows_needed(stores))
            check_divisible(mesh.shape, config)
            members = plan_members(config, stores)
            objective = tasks.create_objective(config, members[0].store.tokenizer)
        partition = functools.partial(adapters.partition, config=config.optim)
        saved = checkpoint.Checkpoints(root, config.checkpoint, partition)
        with distributed.agreement():
            start = first_step(saved, root)
            if not start and config.checkpoint.init_from:
                check_tokenizer(config.checkpoint.init_from, members[0].store.tokenizer)
        if start >= config.train.steps:
            distributed.say(f"{root} is already trained for {start} steps; raise train.steps to go on.")
            lines = [line for line in metrics_lib.read_metrics(root) if line["step"] <= start]
            return lines[-1] if lines else {}
        start_lib.announce(config, root, mesh, members, start)
        return take_steps(config, root, mesh, members, objective, saved, start, check_lease)


def take_steps(
    config: Config,
    root: epath.Path,
    mesh: Mesh,
    members: list[Member],
    objective: Objective,
    saved: checkpoint.Checkpoints,
    start: int,
    check_lease: Callable[[], None],
) -> dict[str, float]:
    """Compiles and takes the steps of `train`. Every process has its data, and the lease of the workdir is held."""
    # ---- Program and state ------------------------------------------------------------------
    primary, tokenizer = distributed.is_primary(), members[0].store.tokenizer  # all members share it
    program, start, state = begin(config, objective, mesh, saved, start, tokenizer)
    if primary:
        checkpoint.write_atomically(root / tokenizer.file_name, tokenizer.to_bytes())
        checkpoint.write_config(root, config)

    # ---- Loop -------------------------------------------------------------------------------
    writer = metrics_lib.MetricWriter(root, start, config.train.steps, enabled=primary)
    report = Report(config, mesh, len(program.rows), writer, float(state["skipped"]))
    source = mixed(members, config.data.batch_size)
    every, last = config.train.eval_every, config.train.steps
    evaluates = any(member.heldout for member in members)
    with (
        contextlib.closing(writer),  # after the checkpoints, also where their last save fails
        contextlib.closing(saved),
        distributed.fail_fast(Preempted, Diverged),
        distributed.watchdog(config.train.hang_timeout) as alive,
        distributed.stop_signal() as stop_asked,
        jax.set_mesh(mesh),
        jax.transfer_guard("disallow"),
    ):
        loader = batches.loader(source, start, program.rows)  # without end
        for step, rows in zip(range(start + 1, last + 1), loader, strict=False):
            state, metrics = program.step(state, program.put(rows))
            report.add(step, metrics, rows)
            alive()
            if step % config.train.log_every == 0:
                saved.check()
            stopping = stop_asked(step)
            if evaluates and (step == last or (every and step % every == 0)):
                jax.block_until_ready(metrics)  # the clock stops when the steps are done
                with report.off_the_clock():
                    report.extend(heldout_metrics(program, state["params"], members, config.train.eval_batches))
            if step == last or step % config.checkpoint.every == 0 or stopping:
                report.flush()
                check_lease()
                writer.sync()
                with jax.transfer_guard("allow"):
                    saved.save(step, state)
            if stopping and step < last:
                raise Preempted(
                    f"stopped at step {step}, saved; {last - step:,} of {last:,} steps are left: run the same "
                    "command again to go on."
                )
        report.flush()
    return report.last
