"""Plans of small training steps on small topologies: what fits and what does not, and why."""

import json

import pytest

from lm.accelerators import Topology
from lm.config import Config
from lm.inference.options import Decoding
from lm.plan import compiled, cost, serving, step, tables
from tests.training.conftest import changed


def assert_whole(plan: step.Plan) -> None:
    """What holds of every plan that fits."""
    assert plan.fits, plan.message
    parts = plan.parameter_bytes + plan.optimizer_bytes + plan.batch_bytes + plan.temporary_bytes
    assert parts == pytest.approx(plan.hbm_bytes_per_chip, rel=0.2)  # small arrays are padded
    assert 1 <= plan.flops_per_step / plan.model_flops_per_step <= 1.10
    assert plan.predicted_step_seconds is not None
    assert plan.predicted_step_seconds > 0
    assert 0 < (plan.predicted_mfu or 0) < 1
    hidden = [kind["hidden_bytes"] <= kind["bytes"] for kind in plan.collectives.values()]
    assert hidden
    assert all(hidden)


@pytest.fixture(scope="module")
def replicated(encoder: Config) -> step.Plan:
    return step.plan(changed(encoder, mesh={"data": 4, "fsdp": 1}), Topology.parse("v5e:2x2"))


def test_an_encoder_split_over_v5e(encoder: Config, replicated: step.Plan):
    plan = step.plan(changed(encoder, mesh={"data": 1, "fsdp": 4}), Topology.parse("v5e:2x2"))
    assert_whole(plan)
    assert plan.mesh == {"data": 1, "fsdp": 4, "context": 1, "tensor": 1}
    assert plan.collectives["all-gather"]["executions"] >= 2 * encoder.model.num_layers
    # Adam's two moments lie where the parameters do.
    assert plan.optimizer_bytes == pytest.approx(2 * plan.parameter_bytes, rel=0.05)
    assert replicated.parameter_bytes == pytest.approx(4 * plan.parameter_bytes, rel=0.1)
    assert "all-gather" not in replicated.collectives


def test_an_encoder_decoder_split_over_v5p(encoder_decoder: Config):
    plan = step.plan(changed(encoder_decoder, mesh={"data": 2, "tensor": 2}), Topology.parse("v5p:2x2x1"))
    assert_whole(plan)
    assert plan.collectives["all-reduce"]["executions"] >= 2 * encoder_decoder.model.num_layers


def test_an_encoder_replicated_over_v6e(encoder: Config):
    assert_whole(step.plan(encoder, Topology.parse("v6e:2x2")))


def test_flash_attention_is_compiled_in(encoder: Config):
    definition = step.define(changed(encoder, train={"attention": "flash"}), Topology.parse("v5e:2x2"))
    assert "tpu_custom_call" in definition.lower_step().as_text()


def test_what_does_not_fit_says_by_how_much_and_what_to_change(encoder: Config):
    large = changed(encoder, data={"batch_size": 1 << 16, "seq_length": 512}, model={"max_length": 512})
    plan = step.plan(large, Topology.parse("v5e:2x2"))
    assert not plan.fits
    assert plan.predicted_step_seconds is None
    for part in (
        "it takes ",
        " GiB of the 15.75 GiB of a device, ",
        " too much",
        "train.remat=dots",
        "train.accumulation=2",
        "a larger slice",
    ):
        assert part in plan.message
    table = tables.table([cost.whole_run(plan, 100, {"v5e": 1.0})])
    assert "does not fit" in table
    assert plan.message in table


def test_a_plan_as_json(replicated: step.Plan):
    (run,) = cost.ranked([cost.whole_run(replicated, 3600, {"v5e": 2.0})])
    found = json.loads(tables.as_json([run.to_dict()], single=True))
    names = "fits hbm_bytes_per_chip hbm_peak_fraction flops_per_step predicted_step_seconds predicted_mfu"
    assert set(f"{names} collective_bytes_per_step compile_seconds".split()) <= set(found)
    assert found["run_hours"] == pytest.approx(replicated.predicted_step_seconds)
    assert found["run_cost"] == pytest.approx(4 * 2.0 * found["run_hours"])


def test_serving_an_encoder_decoder(encoder_decoder: Config):
    decoding = Decoding(max_length=64, num_beams=4)
    plan = serving.plan(encoder_decoder, Topology.parse("v5e:1x1"), batch=2048, length=128, decoding=decoding)
    assert plan.fits
    layers, width, bfloat16 = encoder_decoder.model.num_layers, encoder_decoder.model.d_model, 2
    assert plan.cache_bytes == 2 * layers * 2048 * (64 * 4 + 128) * width * bfloat16
    assert plan.temporary_bytes > plan.cache_bytes / 2  # short-lived copies share what is free
    assert plan.predicted_tokens_per_second == 2048 * 64 / (plan.predicted_seconds or 0)
    assert "64, 4 beams" in tables.serving_table([plan], {})


def test_serving_an_encoder_on_several_devices(encoder: Config, monkeypatch: pytest.MonkeyPatch):
    split = changed(encoder, mesh={"data": 1, "tensor": 4}, train={"attention": "flash"})
    topology = Topology.parse("v5e:2x2")
    monkeypatch.setattr(compiled, "read", lambda *_: compiled.Summary(0, []))  # leaves what has no cycles: the kernels
    plan = serving.plan(split, topology, batch=8, length=128, decoding=Decoding())
    assert plan.fits
    assert (plan.max_length, plan.cache_bytes) == (0, 0)
    products = 2 * 2 * 8 * 128 * 128 * encoder.model.d_model * encoder.model.num_layers  # Q Kᵀ and its product with V
    attention = products / 4 / (compiled.KERNEL_EFFICIENCY * topology.chip.peak_flops)
    assert plan.predicted_seconds == pytest.approx(attention)


def test_serving_what_does_not_fit(encoder: Config):
    plan = serving.plan(encoder, Topology.parse("v5e:1x1"), batch=1 << 18, length=128, decoding=Decoding())
    assert not plan.fits
    assert "fewer sequences at a time" in tables.serving_table([plan], {})
