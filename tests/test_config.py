"""The config refuses what cannot be run, by name, and comes back from JSON as it was."""

import dataclasses
import json
from typing import Any

import jax
import pytest

from lm.config import (
    ARCHITECTURES,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    TrainConfig,
    changed_fields,
    from_dict,
    leaves,
    to_json,
)
from lm.config.effect import refuse_without_effect, without_effect
from lm.errors import InputError


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        # one field
        ({"data": DataConfig(source="web")}, "data.source is 'web'; accepted: installed-docs, text, jsonl"),
        ({"data": DataConfig(source="text")}, "data.path is empty; data.source=text needs a file"),
        ({"data": DataConfig(heldout_fraction=0.6)}, "data.heldout_fraction is 0.6; it must lie between 0.0 and 0.5"),
        ({"model": ModelConfig(norm="batchnorm")}, "model.norm is 'batchnorm'; accepted: layernorm, rmsnorm"),
        ({"model": ModelConfig(num_layers=0)}, "model.num_layers is 0; it must be at least 1"),
        ({"model": ModelConfig(dropout=float("nan"))}, "model.dropout is nan"),
        ({"model": ModelConfig(head_dim=-8)}, "model.head_dim is -8; it must be at least 0"),
        ({"optim": OptimConfig(eps=float("nan"))}, "optim.eps is nan"),
        ({"seed": -1}, "seed is -1; it must lie between 0 and 9223372036854775807"),
        ({"optim": OptimConfig(b2=1.0)}, "optim.b2 is 1.0"),
        ({"mesh": MeshConfig(tensor=0)}, "mesh.tensor is 0; accepted: a positive number of devices, or -1"),
        ({"train": TrainConfig(dtype="float16")}, "train.dtype is 'float16'; accepted: float32, bfloat16"),
        # fields that must agree
        ({"model": ModelConfig(d_model=10, num_heads=3)}, "model.d_model is 10, which model.num_heads=3"),
        (
            {"model": ModelConfig(position="rotary", d_model=9, num_heads=3)},
            "model.head_dim is 3; rotary positions need an even number",
        ),
        ({"objective": ObjectiveConfig(random_token_rate=0.3)}, "objective.random_token_rate is 0.3"),
        ({"mesh": MeshConfig(data=-1, fsdp=-1)}, "at most one axis may be -1"),
        # sections that must agree
        ({"data": DataConfig(seq_length=513)}, "more than model.max_length=512"),
        ({"train": TrainConfig(accumulation=3)}, "data.batch_size is 32, which train.accumulation=3"),
        ({"model": ModelConfig(pooler=False)}, "objective.nsp is True, but the model cannot do it"),
        # the type of a value
        (
            {"train": TrainConfig(steps="7")},  # pyright: ignore[reportArgumentType]
            "train.steps is '7'; accepted: a value of type int",
        ),
        ({"train": TrainConfig(steps=True)}, "train.steps is True; accepted: a value of type int"),
        (
            {"model": ModelConfig(gated=1)},  # pyright: ignore[reportArgumentType]
            "model.gated is 1; accepted: a value of type bool",
        ),
        ({"seed": 0.5}, "seed is 0.5; accepted: a value of type int"),
        ({"model": {"d_model": 8}}, "accepted: a value of type ModelConfig"),
    ],
)
def test_a_config_that_cannot_run_is_refused_where_it_is_built(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        Config(**sections)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("sections", "given", "message"),
    [
        ({}, "objective.label_smoothing", "objective.name is mlm"),
        ({}, "data.target_length", "model.architecture is encoder"),
        ({}, "optim.decay_fraction", "optim.schedule is linear"),
        ({}, "model.window", "model.global_every is 1"),
        ({}, "model.rope_theta", "model.position is learned"),
        ({"objective": ObjectiveConfig(nsp=False)}, "data.short_seq_prob", "objective.name is mlm without"),
        ({"data": DataConfig(tokenizer="runs/mine")}, "data.vocab_size", "data.tokenizer names a tokenizer"),
        ({}, "optim.lora_alpha", "optim.lora_rank is 0"),
        ({"optim": OptimConfig(name="adafactor")}, "optim.b2", "optim.name is adafactor"),
    ],
)
def test_a_given_setting_without_an_effect_is_refused(sections: dict[str, Any], given: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"--config\.{given} has no effect: {message}"):
        refuse_without_effect(Config(**sections), ["train.steps", given])


def test_every_setting_that_may_have_no_effect_exists() -> None:
    every = without_effect(Config()).keys() | without_effect(Config(data=DataConfig(tokenizer="x"))).keys()
    assert len(every) > 15
    assert every <= leaves(Config()).keys()
    refuse_without_effect(Config(optim=OptimConfig(schedule="wsd")), ["optim.decay", "model.dropout"])


def test_a_registered_task_may_read_any_setting_of_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", "encoder")
    toy = Config(objective=ObjectiveConfig(name="toy"))
    assert not any(name.startswith("objective.") for name in without_effect(toy))


@pytest.mark.parametrize(
    ("source", "name"),
    [("tsv", "languages"), ("tsv", "field"), ("dates", "path"), ("text", "field"), ("gettext", "target_field")],
)
def test_a_text_refuses_what_its_source_does_not_read(source: str, name: str) -> None:
    fields: dict[str, Any] = {"source": source, "path": "" if source == "dates" else "x", name: "de"}
    with pytest.raises(InputError, match=rf"data\.{name} is 'de', but data\.source={source} does not read it"):
        DataConfig(**fields).validate()


def test_a_run_of_an_earlier_version_forgets_what_its_source_does_not_read() -> None:
    """It was accepted then, and changed nothing in training."""
    stored = {"data": {"source": "text", "path": "a.txt", "languages": "de", "field": "body"}}
    with pytest.raises(InputError, match=r"data\.(field|languages) is .* does not read it"):
        from_dict(stored)
    config = from_dict(stored, stored=True)
    assert (config.data.languages, config.data.field, config.data.path) == ("", "text", "a.txt")


def test_a_vocabulary_smaller_than_the_tokenizer_to_train_is_refused() -> None:
    Config().check_vocabulary()
    Config(model=ModelConfig(vocab_size=0)).check_vocabulary()
    with pytest.raises(InputError, match=r"model\.vocab_size is 8000, smaller than data\.vocab_size=8192; set .* to 0"):
        Config(model=ModelConfig(vocab_size=8000)).check_vocabulary()
    for name in ("tokenizer", "store"):  # then none is trained, or perhaps
        Config(
            model=ModelConfig(vocab_size=8000), data=dataclasses.replace(DataConfig(), **{name: "runs/mine"})
        ).check_vocabulary()


SECTIONS = [type(getattr(Config(), field.name)) for field in dataclasses.fields(Config) if field.name != "seed"]
FLOATS = [
    (each, field.name)
    for each in SECTIONS
    for field in dataclasses.fields(each)
    if field.type == "float" or field.type is float
]


@pytest.mark.parametrize(("section", "name"), FLOATS)
def test_a_number_is_finite(section: type, name: str) -> None:
    for value in (float("nan"), float("inf"), -float("inf"), 10**400):
        with pytest.raises(InputError, match=rf"\.{name} is .*; it must (be|lie) "):
            section(**{name: value}).validate()


def test_numbers_that_no_run_can_use_are_refused() -> None:
    for name in ("rope_theta", "rope_theta_local"):
        with pytest.raises(InputError, match=rf"model\.{name} is 0.*at least 1"):
            Config(model=dataclasses.replace(ModelConfig(position="rotary"), **{name: 0}))
    with pytest.raises(
        InputError, match=r"seed is 100000000000000000000; it must lie between 0 and 9223372036854775807"
    ):
        Config(seed=10**20)
    jax.random.key(Config(seed=2**63 - 1).seed)
    assert len(FLOATS) > 20


def test_what_is_accepted_at_the_edge() -> None:
    Config(data=DataConfig(seq_length=512, batch_size=6), train=TrainConfig(accumulation=3))
    Config(model=ModelConfig(pooler=False, token_types=0), objective=ObjectiveConfig(nsp=False))
    Config(model=ModelConfig(position="rotary", max_length=1), data=DataConfig(seq_length=4096))
    Config(optim=OptimConfig(learning_rate=1))  # an int where a float is meant
    assert ModelConfig(d_model=256, num_heads=4).width_per_head == 64
    assert ModelConfig(d_model=256, num_heads=4, head_dim=32).width_per_head == 32


def test_validate_sees_a_field_changed_after_it_was_built() -> None:
    config = Config()
    config.model.num_heads = 3
    with pytest.raises(InputError, match="num_heads=3"):
        config.validate()


def test_a_registered_objective_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"objective.name is 'toy'; accepted: mlm, span_corruption"):
        Config(objective=ObjectiveConfig(name="toy"))
    monkeypatch.setitem(ARCHITECTURES, "toy", "decoder")
    Config(objective=ObjectiveConfig(name="toy"), model=ModelConfig(architecture="decoder"))
    with pytest.raises(InputError, match=r"objective.name=toy is for architecture 'decoder'"):
        Config(objective=ObjectiveConfig(name="toy"))


def test_json_round_trip() -> None:
    config = Config(seed=3, data=DataConfig(batch_size=64), model=ModelConfig(gated=True, rope_theta=160_000.0))
    assert from_dict(json.loads(to_json(config))) == config
    assert from_dict({}) == Config()
    assert from_dict({"seed": 3, "model": {"gated": True}}).model == ModelConfig(gated=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, "unknown field 'modle'; accepted: seed, data, model"),
        ({"mesh": {"dat": 1}}, "unknown field mesh.dat; accepted: data, fsdp, context, tensor"),
        ({"mesh": 8}, "mesh is 8; accepted: an object with fields among data, fsdp, context, tensor"),
        ({"seed": {"data": 1}}, "seed is {'data': 1}; accepted: a value of type int"),
        ({"train": {"steps": "7"}}, "train.steps is '7'; accepted: a value of type int"),
        ({"train": {"steps": 0}}, "train.steps is 0; it must be at least 1"),
    ],
)
def test_from_dict_refuses_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_dict(values)
    assert message in str(error.value)


def test_a_rerun_may_change_the_length_and_the_machine_but_not_the_experiment() -> None:
    old = Config()
    longer = dataclasses.replace(old, train=TrainConfig(steps=5), mesh=MeshConfig(fsdp=2))
    assert changed_fields(old, longer) == []
    other = dataclasses.replace(longer, seed=1, model=ModelConfig(d_ff=512), optim=OptimConfig(schedule="wsd"))
    assert changed_fields(old, other) == [
        "seed (0 -> 1)",
        "model.d_ff (1024 -> 512)",
        "optim.schedule ('linear' -> 'wsd')",
    ]


def test_a_run_keeps_the_recipe_that_it_began_with() -> None:
    """Its config.json lacks the fields that are newer, which then have the value of what it did."""
    stored = {"optim": {"schedule": "wsd"}, "objective": {}, "model": {"position": "rotary"}}
    before = from_dict(stored, stored=True)
    assert (before.optim.decay, before.objective.join_documents, before.objective.spans) == ("linear", False, "fixed")
    assert before.model.relative_init == "init"
    now = from_dict(stored)
    assert changed_fields(before, now) == ["optim.decay ('linear' -> 'sqrt')"]  # the only one that has an effect
    assert from_dict(json.loads(to_json(now)), stored=True) == now
