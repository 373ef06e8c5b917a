"""Two processes of four devices are one process of eight: the same batches, the same losses."""

import json
import sys

import numpy as np
import pytest

from lm import config as config_lib
from lm.config import Config
from lm.data.store import Store
from tests.training.conftest import changed, tiny_config, tiny_seq2seq, tiny_store  # noqa: F401

from . import steps
from .processes import Run

MESHES = {"fsdp": {"data": 1, "fsdp": 8}, "tensor": {"data": 1, "tensor": 8}}
# A mesh decides what processes exchange, a kind of model does not: each is here once.
CASES = [("encoder", "fsdp"), ("encoder-decoder", "tensor")]


@pytest.fixture(scope="module")
def configs(tiny_config: Config, tiny_seq2seq: Config) -> dict[tuple[str, str], Config]:  # noqa: F811
    encoder = changed(tiny_config, model={"d_model": 64, "num_heads": 8, "d_ff": 128})
    bases = {"encoder": encoder, "encoder-decoder": tiny_seq2seq}
    windows = {"window_tokens": 800}  # several an epoch
    return {(kind, mesh): changed(bases[kind], mesh=MESHES[mesh], data=windows) for kind, mesh in CASES}


@pytest.fixture(scope="module")
def found(configs: dict[tuple[str, str], Config], tiny_config: Config, tmp_path_factory: pytest.TempPathFactory):  # noqa: F811
    """What each of two processes says of every config."""
    output = tmp_path_factory.mktemp("steps") / "found"
    texts = [config_lib.to_json(config) for config in configs.values()]
    command = [sys.executable, "-m", "tests.distributed.steps", tiny_config.data.store, str(output), *texts]
    run = Run(command, processes=2, devices=4)
    assert run.wait() == [0, 0], run.log(0) + run.log(1)
    return [json.loads(output.with_name(f"found.{index}").read_text()) for index in range(2)]


@pytest.mark.parametrize(("kind", "mesh"), CASES)
def test_two_processes_equal_one(configs, found, tiny_store: Store, kind: str, mesh: str):  # noqa: F811
    expected = steps.take_steps(configs[kind, mesh], tiny_store)
    for process in found:
        one = process["runs"][CASES.index((kind, mesh))]
        np.testing.assert_allclose(one["losses"], expected["losses"], rtol=1e-6)
        assert one["batches"] == expected["batches"]
        assert one["placed"]
        # Under fsdp each process reads its half; where a tensor mesh spans them, both need every row.
        assert one["rows"] == expected["rows"] // (2 if mesh == "fsdp" else 1)


def test_rows_find_devices_that_take_turns(found):
    assert all(process["interleaved"] for process in found)
