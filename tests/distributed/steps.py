"""The process of tests/distributed/test_equality.py: python -m tests.distributed.steps STORE OUTPUT CONFIG...

It takes ten steps of every config, and writes for each the losses and the digests of the batches that it read.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import config as config_lib
from lm import distributed, sharding, tasks
from lm.config import Config
from lm.data.store import Store
from lm.tasks import members
from lm.training.program import define

STEPS = 10


def take_steps(config: Config, store: Store) -> dict[str, Any]:
    """The losses of ten steps, the digests of the global batches, and whether each device got its rows of them."""
    mesh = sharding.make_mesh(config.mesh)
    source = members.batches(config, "", store, store.train)
    rows = sharding.process_rows(mesh, config.data.batch_size)
    made = define(config, tasks.create_objective(config, store.tokenizer), mesh)
    with distributed.agreement():  # one may compile for longer than the other would wait in a sum
        init, take_step = made.lower_init().compile(), made.lower_step().compile()
    state = init()
    found: dict[str, Any] = {"losses": [], "batches": [], "rows": len(rows), "placed": True}
    for step in range(STEPS):
        whole = source(step)
        batch = sharding.place_rows(mesh, config.data.batch_size, source(step, rows))
        for name, array in batch.items():
            found["placed"] &= all(
                np.array_equal(shard.data, whole[name][shard.index]) for shard in array.addressable_shards
            )
        found["batches"].append(digest(whole))
        state, metrics = take_step(state, batch)
        found["losses"].append(float(metrics["loss"]))
    return found


def digest(batch: dict[str, np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch[name].tobytes() for name in sorted(batch))).hexdigest()


def rows_of_interleaved_devices(config: Config, store: Store) -> bool:
    """Whether rows reach their devices where those of two processes take turns, as they do on a torus."""
    devices = np.array(jax.devices()).reshape(2, -1).T.reshape(-1)
    mesh = jax.sharding.Mesh(devices.reshape(sharding.make_mesh(config.mesh).devices.shape), sharding.AXES)
    source = members.batches(config, "", store, store.train)
    rows = sharding.process_rows(mesh, config.data.batch_size)
    whole = source(3)
    placed = sharding.place_rows(mesh, config.data.batch_size, source(3, rows))
    return len(rows) == config.data.batch_size // 2 and all(
        np.array_equal(shard.data, whole[name][shard.index])
        for name, array in placed.items()
        for shard in array.addressable_shards
    )


def main(folder: str, output: str, *configs: str) -> None:
    distributed.initialize(heartbeat_timeout=60)
    store = Store.open(folder)
    parsed = [config_lib.from_dict(json.loads(config)) for config in configs]
    found: dict[str, Any] = {"runs": [take_steps(config, store) for config in parsed]}
    found["interleaved"] = rows_of_interleaved_devices(parsed[0], store)
    Path(f"{output}.{jax.process_index()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
