"""A task that only this file defines trains, resumes and evaluates like the tasks of lm.tasks.

Its encoder predicts at each token the token before it.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import tasks
from lm.config import ARCHITECTURES, Config, DataConfig, MixtureConfig, ObjectiveConfig, TaskConfig
from lm.data.batches import Arrays, Placement
from lm.data.examples import Examples, running_text
from lm.data.store import Split, Store
from lm.errors import InputError
from lm.models import Encoder
from lm.tasks import ArraySpec, Batch, Sums, Vocabulary, registry
from lm.tasks.losses import weighted_sums
from lm.tasks.members import make_members
from lm.tasks.rows import SOURCE, write_side, write_values
from lm.tokenizers.special_ids import SpecialIds
from lm.training import loop, perplexity
from tests.training.conftest import changed

NAME = "previous_token"
STEPS = 60


class PreviousTokenRows:
    """Running text, and beside each token the one before it; the first of an example has none."""

    def __init__(self, data: DataConfig, objective: ObjectiveConfig, special: SpecialIds, prefix: np.ndarray):
        del objective, prefix
        self.capacities = (data.seq_length,)
        self._special = special

    def plan(self, split: Split, rng: np.random.Generator) -> Examples:
        return running_text(split, self.capacities[0], 0, rng)

    def sizes(self, examples: Examples) -> np.ndarray:
        return examples.lengths.astype(np.int64)

    def arrays(self, split: Split, examples: Examples, place: Placement, keys: np.ndarray) -> Arrays:
        del keys
        lengths = examples.lengths[:, 0].astype(np.int64)
        tokens = split.read(examples.starts[:, 0], lengths).astype(np.int32)
        batch = write_side(SOURCE, tokens, lengths, place, self.capacities, self._special.pad)
        batch["previous"] = write_values(np.roll(tokens, 1), lengths, place, self.capacities)
        return batch


def shapes(config: Config) -> dict[str, ArraySpec]:
    return {name: ArraySpec((config.data.seq_length,)) for name in (*SOURCE, "previous")}


@dataclasses.dataclass(frozen=True)
class PreviousToken:
    max_positions: int

    @classmethod
    def create(cls, config: Config, vocabulary: Vocabulary) -> "PreviousToken":
        del vocabulary
        return cls(config.data.seq_length)

    @property
    def token_losses(self) -> tuple[str, ...]:
        return ("previous",)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        del key
        return {**batch, "asked": (batch["positions"] > 0).astype(jnp.float32)}

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        return {"previous": batch["asked"].sum()}

    def sums(self, model: Encoder, batch: Batch, key: jax.Array | None) -> Sums:
        types_BL = jnp.zeros_like(batch["tokens"])
        hidden_BLD = model(batch["tokens"], batch["segments"], batch["positions"], types_BL, key)
        every_BL = jnp.broadcast_to(jnp.arange(self.max_positions)[None], batch["tokens"].shape)
        logits_BLV = model.mlm_logits(hidden_BLD, every_BL)
        return {"previous": weighted_sums(logits_BLV, batch["previous"], batch["asked"])}

    def baseline_hits(self, batch: Batch, most_frequent: jax.Array) -> dict[str, jax.Array]:
        return {"previous": ((batch["previous"] == most_frequent) * batch["asked"]).sum()[None]}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    tasks.register(
        tasks.Task(NAME, "encoder", PreviousTokenRows, shapes, PreviousToken.create, answers=lambda config: ("embed",))
    )
    yield
    registry._TASKS.pop(NAME)
    ARCHITECTURES.pop(NAME)


@pytest.fixture(scope="module")
def config(tiny_config: Config, registered: None) -> Config:
    """The second of its two layers sees one token to either side."""
    model = {"dropout": 0.0, "attention_dropout": 0.0, "position": "rotary", "norm_position": "pre", "final_norm": True}
    model |= {"init_std": 0.1, "global_every": 2, "window": 1}
    config = changed(tiny_config, objective={"name": NAME, "nsp": False}, model=model)
    optim = {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 5}
    return changed(config, optim=optim, train={"steps": STEPS, "log_every": 1}, checkpoint={"every": STEPS})


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("sixth") / "run"
    loop.train(config, str(workdir))
    return workdir


def curve(workdir: Path) -> list[tuple[float, float]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["gradient_norm"]) for line in lines]


def test_its_batches_have_the_shapes_that_it_declares(config: Config, tiny_store: Store) -> None:
    (member,) = make_members(config, {"": tiny_store})
    batch = member.train(0)
    assert {key: ArraySpec(array.shape[1:], array.dtype.type) for key, array in batch.items()} == tasks.shapes(config)
    inside = (batch["segments"] > 0) & (batch["positions"] > 0)
    np.testing.assert_array_equal(batch["previous"][inside], np.roll(batch["tokens"], 1, axis=1)[inside])


def test_it_learns_and_is_evaluated_beside_its_baseline(config: Config, run: Path, tiny_store: Store) -> None:
    found = perplexity.measure(str(run))
    assert found["step"] == STEPS
    ids = tiny_store.heldout.read(np.array([0]), np.array([tiny_store.heldout.num_tokens]))
    share = np.bincount(ids) / len(ids)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert found["previous_loss"] < 0.5 * entropy  # what the frequencies of tokens alone tell
    assert found["previous_accuracy"] > 2 * found["previous_baseline_accuracy"] > 0
    assert found["previous_perplexity"] == pytest.approx(np.exp(found["previous_loss"]), rel=1e-5)


def test_it_resumes_exactly(config: Config, run: Path, tmp_path: Path) -> None:
    for steps in (STEPS // 2, STEPS):
        loop.train(changed(config, train={"steps": steps}), str(tmp_path))
    assert len(curve(tmp_path)) == STEPS
    assert curve(tmp_path) == curve(run)


def test_a_mixture_of_objectives_that_share_no_batch_is_refused(config: Config, tiny_store: Store) -> None:
    members = {name: TaskConfig(store=tiny_store.path, objective=name) for name in ("mlm", NAME)}
    data = dataclasses.replace(config.data, path="", source="installed-docs")
    mixed = dataclasses.replace(config, data=data, mixture=MixtureConfig(tasks=members))
    with pytest.raises(InputError, match="has the objectives mlm, previous_token, which cannot share a batch"):
        make_members(mixed, dict.fromkeys(members, tiny_store))
