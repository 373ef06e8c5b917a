"""A run says what it trains, refuses what it cannot mean, and never gives probability to what only pads."""

import contextlib
import dataclasses
import io
import json
import os
import queue
import re
import shutil
import signal
import threading
import types
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

from lm import checkpoint, distributed, sharding
from lm.config import CheckpointConfig, Config, DataConfig, ModelConfig, OptimConfig
from lm.data import mixture
from lm.errors import InputError
from lm.huggingface import export_workdir
from lm.tasks.losses import weighted_sums
from lm.tokenizers import tokenizer as tokenizers
from lm.training import loop, start

from .conftest import changed, tiny_config  # noqa: F401


@pytest.fixture(scope="module")
def shaped(tiny_config: Config) -> Config:  # noqa: F811
    """A run of two steps of one layer, whose vocabulary is the tokenizer's."""
    return changed(tiny_config, model={"vocab_size": 0, "num_layers": 1}, train={"steps": 2, "hang_timeout": 0})


@pytest.fixture(scope="module")
def run_and_said(shaped: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    workdir, said = tmp_path_factory.mktemp("start") / "run", io.StringIO()
    with contextlib.redirect_stderr(said):
        loop.train(shaped, str(workdir))
    return workdir, said.getvalue()


@pytest.fixture(scope="module")
def run(run_and_said: tuple[Path, str]) -> Path:
    return run_and_said[0]


def test_a_run_begins_with_what_it_trains(run_and_said: tuple[Path, str], shaped: Config) -> None:
    run, said = run_and_said
    block = {line.split("  ")[0]: line.partition("  ")[2].strip() for line in reversed(said.splitlines())}
    assert block["run"] == f"{run}, new, to step 2"
    assert re.fullmatch(
        rf"text, {shaped.data.path}: [\d,]+ documents with [\d,]+ tokens; held out: [\d,]+ with [\d,]+ tokens",
        block["corpus"],
    )
    assert re.fullmatch(r"\d+ pieces, trained on this corpus", block["tokenizer"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(checkpoint.load_params(run, 2)))
    assert re.fullmatch(
        rf"encoder, 1 layers of width 32, 512 rows of embeddings \(\d+ of them only pad\): {parameters:,} parameters",
        block["model"],
    )
    assert block["step"] == "16 rows of 32 tokens: up to 512 tokens"
    assert re.fullmatch(r"\d+\.\d% of the places in the first 256 rows", block["padding"])
    assert block["devices"] == "8 x cpu, 1 process(es); mesh: data 8"
    assert said.index("devices") < said.index("compiling")


def test_the_block_says_that_the_corpus_has_changed_and_what_was_left_out(
    run: Path, shaped: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (member,) = loop.plan_members(shaped, mixture.open_stores(shaped, shaped.data.store))
    manifest = member.store.manifest | {"removed": {"near_duplicates": 12, "heldout_leaks": 3}}
    other = {**(member.store.manifest.get("listing") or {}), "files": 2}
    member = dataclasses.replace(
        member, store=dataclasses.replace(member.store, manifest=manifest | {"listing": other})
    )
    start.announce(shaped.with_vocabulary(448), epath.Path(run), sharding.make_mesh(shaped.mesh), [member], 0)
    said = capfd.readouterr().err
    assert "; left out: 12 near-duplicates and 3 leaks of held-out documents\n" in said
    assert re.search(r"\n {11}changed since its store was made \(2 file.* then, 1 file.* now\); this run reads", said)


def test_much_padding_names_the_field_to_change() -> None:
    def said(sizes: list[int], capacity: int, most: int = 8) -> list[str]:
        row = np.zeros(capacity, np.int32)
        row[: sum(sizes)] = np.repeat(np.arange(len(sizes)) + 1, sizes)
        data = DataConfig(seq_length=capacity, max_segments=most)
        return list(start.much_padding(data, {"segments": np.stack([row] * 4)}))

    assert said([8] * 8, 128) == []  # half of it
    assert said([4] * 8, 128) == [
        "75% of what a step computes is padding: a row ends at data.max_segments=8 examples; 32 would fill it"
    ]
    assert said([4] * 8, 128, most=40) == [
        "75% of what a step computes is padding: the texts do not fill rows of that length; lower data.seq_length"
    ]
    sides = {"segments": np.array([[1] * 8 + [0] * 24]), "target_segments": np.array([[1] * 2 + [0] * 14])}
    two = DataConfig(seq_length=32, target_length=16, max_segments=1)
    assert "; 4 would fill it" in next(start.much_padding(two, sides))


def test_a_run_on_a_complete_store_need_not_name_its_text(run: Path, shaped: Config) -> None:
    other = changed(shaped, data={"source": "installed-docs", "path": ""})
    assert loop.train(other, str(run)).keys() >= {"loss"}  # it is done
    with pytest.raises(InputError, match=r"data.source \('text' -> 'installed-docs'\); change them back with"):
        loop.train(other, str(run), given=["data.source"])


def test_a_longer_run_says_that_it_resumes_and_that_its_rate_rises(
    run: Path, shaped: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    longer = changed(shaped, train={"steps": 4})
    checkpoint.check_workdir(run, longer)  # a vocabulary of 0 is that of the run
    stores = mixture.open_stores(longer, longer.data.store)
    longer = longer.with_vocabulary(448)
    start.announce(longer, epath.Path(run), sharding.make_mesh(longer.mesh), loop.plan_members(longer, stores), 2)
    said = capfd.readouterr().err
    assert f"{run}, resumed after step 2, to step 4" in said
    assert "the learning rate goes up at step 2, from 0 to 0.001: its schedule now ends at train.steps=4" in said


def test_the_tokenizers_size_is_rounded_up(run: Path) -> None:
    assert checkpoint.read_config(run).model.vocab_size == 512  # for the tokenizer's 448 or fewer
    assert Config().with_vocabulary(100).model.vocab_size == 8192
    whole = dataclasses.replace(Config(), model=ModelConfig(vocab_size=0))
    assert [whole.with_vocabulary(size).model.vocab_size for size in (1, 128, 129)] == [128, 128, 256]
    with pytest.raises(InputError, match=r"model\.vocab_size is 8192, but the tokenizer has 9000 pieces"):
        Config().with_vocabulary(9000)


def test_what_only_pads_gets_no_probability_and_no_gradient() -> None:
    logits = jax.random.normal(jax.random.key(0), (2, 3, 8))
    labels, weights = jnp.array([[0, 1, 4], [2, 3, 1]]), jnp.ones((2, 3))

    def loss(logits: jax.Array, vocab_size: int | None) -> jax.Array:
        return weighted_sums(logits, labels, weights, 0.1, 1e-3, vocab_size)["loss"]

    padded, gradient = jax.value_and_grad(loss)(logits, 5)
    np.testing.assert_allclose(padded, loss(logits[..., :5], None), rtol=1e-6)
    assert np.all(np.asarray(gradient)[..., 5:] == 0)
    wrong = weighted_sums(logits.at[..., 7].set(99.0), labels, weights, vocab_size=5)
    assert wrong == weighted_sums(logits[..., :5], labels, weights)
    assert (
        jax.make_jaxpr(lambda x: loss(x, 8))(logits).pretty_print()
        == jax.make_jaxpr(lambda x: loss(x, None))(logits).pretty_print()
    )  # where nothing pads, the program is the one without padding


def test_an_export_has_no_rows_that_only_pad(run: Path, tmp_path: Path) -> None:
    export_workdir(str(run), tmp_path / "hf")
    pieces = tokenizers.load_tokenizer(str(run)).vocab_size
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == pieces < 512


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"checkpoint": {"init_from": "runs/nowhere"}}, "checkpoint.init_from=runs/nowhere: .* has no config.json"),
        ({"checkpoint": {"init_from": "foo://x"}}, "checkpoint.init_from=foo://x: .*unknown scheme"),
    ],
)
def test_weights_that_are_not_there_are_refused_before_any_work(
    tiny_config: Config,  # noqa: F811
    tmp_path: Path,
    sections: dict,
    message: str,
) -> None:
    config = changed(tiny_config, data={"store": ""}, **sections)
    with pytest.raises(InputError, match=message):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_are_refused_before_the_corpus_is_read(
    run: Path, shaped: Config, tmp_path: Path
) -> None:
    begun = {"checkpoint": {"init_from": str(run)}, "data": {"store": ""}}
    with pytest.raises(
        InputError, match=r"mlp/.* has shape \(1, .* but the config makes \(1, .*; give the model settings of"
    ):
        loop.train(changed(shaped, model={"vocab_size": 0, "d_ff": 128}, **begun), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    start.check_new(changed(shaped, **begun), epath.Path(tmp_path / "run"))  # its rows are those of the checkpoint


def test_a_save_that_failed_in_the_background_is_told_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    saved = checkpoint.Checkpoints(tmp_path, CheckpointConfig())
    saved.check()  # nothing is saved yet
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
    saved.save(1, {"params": {"weights": np.zeros(4, np.float32)}, "step": np.int32(1)})
    told = []

    def is_told() -> bool:
        with contextlib.suppress(InputError):
            saved.check()
            return False
        told.append(1)
        return True

    assert until(is_told)
    assert told == [1]
    saved.close()


def test_an_empty_workdir_is_refused(tiny_config: Config) -> None:  # noqa: F811
    with pytest.raises(InputError, match="--workdir is empty"):
        loop.train(tiny_config, "")


@pytest.mark.parametrize("source", ["installed-docs", "dates", "docs-questions"])
def test_a_path_that_the_source_does_not_read_is_refused(source: str) -> None:
    with pytest.raises(InputError, match=f"data.path is 'book.txt', but data.source={source} does not read it"):
        DataConfig(source=source, path="book.txt").validate()


def test_a_refused_rerun_offers_the_command_that_begins_from_its_weights(run: Path) -> None:
    config = checkpoint.read_config(run)
    offer = f"--workdir={run}-2 --config.checkpoint.init_from={run}"
    with pytest.raises(InputError, match=r"data\.batch_size \(16 -> 8\)") as caught:
        checkpoint.check_workdir(run, changed(config, data={"batch_size": 8}))
    assert offer in str(caught.value)
    with pytest.raises(InputError, match=r"model\.d_ff") as caught:
        checkpoint.check_workdir(run, changed(config, model={"d_ff": 128}))
    assert "init_from" not in str(caught.value)  # these weights would not fit


def test_only_a_rate_that_rises_is_told() -> None:
    def run_of(steps: int, schedule: str) -> Config:
        return dataclasses.replace(
            changed(Config(), train={"steps": steps}), optim=OptimConfig(schedule=schedule, warmup_steps=10)
        )

    assert list(start.changed_rate(run_of(100, "linear"), run_of(200, "linear"), 50))
    assert not list(start.changed_rate(run_of(200, "linear"), run_of(100, "linear"), 50))
    assert not list(start.changed_rate(run_of(100, "constant"), run_of(200, "constant"), 50))


def until(reached: Callable[[], bool]) -> bool:
    """Waits for something that another thread does."""
    waited = threading.Event()
    return any(reached() or waited.wait(0.01) for _ in range(6000))


def test_ctrl_c_asks_to_stop_and_a_second_one_ends_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ended: queue.Queue[int] = queue.Queue()
    monkeypatch.setattr(os, "_exit", ended.put)
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with distributed.stop_signal() as asked:
        assert not asked(1)
        os.kill(os.getpid(), signal.SIGINT)
        assert until(lambda: asked(2))
        assert ended.empty()
        os.kill(os.getpid(), signal.SIGINT)
        assert ended.get(timeout=60) == 130
    said = capfd.readouterr().err
    assert "saving after this step; Ctrl-C again ends at once" in said
    assert "ended without saving" in said
    assert signal.signal(signal.SIGINT, inherited) is signal.default_int_handler


@pytest.mark.parametrize(("is_estimate", "count"), [(False, "7 pairs"), (True, "about 7 pairs")])
def test_the_number_of_cut_pairs_says_whether_it_was_counted(
    is_estimate: bool, count: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    train = types.SimpleNamespace(truncated=7, is_estimate=is_estimate)
    store = types.SimpleNamespace(train=types.SimpleNamespace(num_documents=9))
    member = types.SimpleNamespace(name="", rows=1, train=train, store=store)
    monkeypatch.setattr(loop, "make_members", lambda *_: [member])
    loop.plan_members(Config(), {})
    assert capsys.readouterr().err.startswith(f"{count} of 9 are longer than data.seq_length=128 or")


def test_a_run_that_stopped_before_its_first_line_has_no_metrics(run: Path, shaped: Config, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    assert loop.train(shaped, str(tmp_path / "run"))["loss"] > 0
    (tmp_path / "run/metrics.jsonl").unlink()
    assert loop.train(shaped, str(tmp_path / "run")) == {}


def test_the_metrics_are_closed_also_where_the_last_save_fails(shaped: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(checkpoint.Checkpoints, "close", lambda self: (_ for _ in ()).throw(InputError("full disk")))
    with pytest.raises(InputError, match="full disk"):
        loop.train(shaped, str(tmp_path / "run"))
    assert (tmp_path / "run/loss.png").exists()


def test_frozen_parameters_are_named(shaped: Config) -> None:
    config = changed(shaped.with_vocabulary(448), optim={"frozen": "encoder/embedding/.*"})
    assert re.fullmatch(r"[\d,]+ of [\d,]+ parameters: encoder/embedding", start._frozen(config))
