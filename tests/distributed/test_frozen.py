"""Two processes begin from the encoder of another model, keep it frozen, save it once, and go on from there."""

from pathlib import Path

import jax
import numpy as np
from etils import epath

from lm import checkpoint, models, parameters
from lm.config import CheckpointConfig, Config
from lm.data.store import Store
from tests.training.conftest import changed, tiny_config, tiny_store  # noqa: F401

from .processes import Run, config_file, train_command


def save(config: Config, store: Store, workdir: epath.Path) -> models.Params:
    """A working directory with random parameters, which are returned."""
    params = jax.jit(models.build(config.model).init)(jax.random.key(1))
    checkpoint.write_atomically(workdir / store.tokenizer.file_name, store.tokenizer.to_bytes())
    saved = checkpoint.Checkpoints(workdir, CheckpointConfig(asynchronous=False))
    saved.save(1, {"params": params, "step": np.int32(1)})
    saved.close()
    checkpoint.write_config(workdir, config)
    return params


def test_two_processes_keep_the_encoder_of_another_model(tiny_config: Config, tiny_store: Store, tmp_path: Path):  # noqa: F811
    source = epath.Path(tmp_path / "source")
    headless = changed(tiny_config, model={"pooler": False}, objective={"nsp": False})
    given = save(headless, tiny_store, source)
    config = changed(
        tiny_config,
        mesh={"data": 1, "fsdp": 8},
        optim={"frozen": "encoder/.*", "schedule": "constant"},
        checkpoint={"every": 1, "init_from": str(source)},
    )
    file, workdir = config_file(config, tmp_path), tmp_path / "run"
    for steps, words in ((2, "new, with random weights: nsp, pooler"), (3, "resuming from step 2")):
        run = Run(train_command(file, workdir, f"--config.train.steps={steps}"), processes=2, devices=4)
        assert run.wait() == [0, 0], run.log(0) + run.log(1)
        assert words in run.log(0)
        assert words not in run.log(1)
    before, after = (parameters.flatten(checkpoint.load_params(workdir, step)) for step in (2, 3))
    for path, array in parameters.flatten(given).items():
        assert np.array_equal(after[path], array) == path.startswith("encoder/")
    assert not np.array_equal(before["mlm/dense/kernel"], after["mlm/dense/kernel"])
