"""What is read from the text of compiled TPU programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm.accelerators import TPUS, Topology
from lm.config import MeshConfig
from lm.plan import compiled
from lm.plan.mesh import described_mesh

SIZE = 4096


def summary(steps: int, topology: str = "v5e:2x2") -> compiled.Summary:
    """Of a loop of products whose weights are split over all devices and gathered in each step."""
    mesh = described_mesh(MeshConfig(data=1, fsdp=-1), Topology.parse(topology))

    def loop(inputs, weights):
        def body(carry, layer):
            layer = jax.lax.with_sharding_constraint(layer, NamedSharding(mesh, P()))
            return carry @ layer, None

        return jax.lax.scan(body, inputs, weights)[0]

    def array(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*spec)))

    arguments = array((4 * SIZE, SIZE), "fsdp"), array((steps, SIZE, SIZE), None, "fsdp")
    return compiled.read(compiled.build(jax.jit(loop).lower(*arguments))[1], mesh.size)


def test_a_loop_counts_as_often_as_it_runs():
    short, long = summary(8), summary(16)
    assert long.cycles / short.cycles == pytest.approx(2, rel=0.15)
    # The compiler may gather for the first step in front of the loop.
    gathers = [sum(each.times for each in found.collectives if each.kind == "all-gather") for found in (short, long)]
    assert gathers[0] in (8, 9)
    assert gathers[1] - gathers[0] == 8


def test_a_gather_sends_what_the_others_have():
    for each in summary(8).collectives:
        assert (each.kind, each.group) == ("all-gather", 4)
        assert each.bytes == 3 / 4 * SIZE * SIZE * 2


def test_cycles_are_those_of_the_products():
    """Products of this size, and what is around them, keep the arrays of a v5e busy for most of the estimated time."""
    flops = 2 * SIZE**3 * 16
    chip = TPUS["v5e"]
    assert 0.6 < flops / chip.peak_flops / (summary(16).cycles / chip.clock) < 1


TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%all-reduce-scatter.1 (input: bf16[64,128]) -> bf16[8,128] {
  %input = bf16[64,128]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,128]{1,0} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice = bf16[8,128]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={8,128}
}

%fused (a: bf16[64,128]) -> bf16[512,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  ROOT %g = bf16[512,128] all-gather(%a), channel_id=1, replica_groups=[1,8]<=[8], frontend_attributes={chain_id="0"}
}

%body (state: (s32[], bf16[64,128])) -> (s32[], bf16[64,128]) {
  %state = (s32[], bf16[64,128]{1,0}) parameter(0)
  %one = bf16[512,128]{1,0} fusion(%x), kind=kCustom, calls=%fused, backend_config={"estimated_cycles":"100"}
  %two = bf16[512,128]{1,0} fusion(%x), kind=kCustom, calls=%fused, backend_config={"estimated_cycles":"20"}
  %three = bf16[8,128]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}

%condition (state: (s32[], bf16[64,128])) -> pred[] {
  %bound = s32[] constant(24)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}

ENTRY %main (a: bf16[64,128]) -> bf16[64,128] {
  %loop = (s32[], bf16[64,128]{1,0}) while(%start), condition=%condition, body=%body
  %sum = f32[100]{0} all-reduce(%loss), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %end = bf16[64,128]{1,0} copy(%last), backend_config={"estimated_cycles":"7"}
}
"""


def test_every_way_to_write_a_collective():
    found = compiled.read(TEXT, devices=8)
    assert found.cycles == 24 * 120 + 7
    assert {each.kind: each for each in found.collectives} == {
        # Fused with two operations that it overlaps, it is still one.
        "all-gather": compiled.Collective("all-gather", 7 / 8 * 512 * 128 * 2, 8, 24, asynchronous=True),
        "reduce-scatter": compiled.Collective("reduce-scatter", 7 / 8 * 64 * 128 * 2, 8, 24, asynchronous=False),
        "all-reduce": compiled.Collective("all-reduce", 2 * 3 / 4 * 400, 4, 1, asynchronous=False),
    }
    assert len(found.collectives) == 3
