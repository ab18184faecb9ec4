"""Replica groups in every notation, trip counts, and reduce-scatters that are written as something else."""

import pytest

from mim_jax.planning.collectives import Collective, collectives, first_group
from mim_jax.planning.hlo import Module

LOOP = """
HloModule jit_step

%turns (carry: (s32[], f32[8,4])) -> pred[] {
  %carry = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%carry), index=0
  %bound = s32[] constant(5)
  ROOT %more = pred[] compare(%count, %bound), direction=LT
}

%turn (carry: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %carry = (s32[], f32[8,4]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%carry), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%carry), index=1
  %sum = f32[8,4]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="jit(step)/sum"}
  %zero = s32[] constant(0)
  %part = f32[2,4]{1,0} dynamic-slice(%sum, %count, %zero), dynamic_slice_sizes={2,4}
  %whole = f32[8,4]{1,0} all-gather(%part), replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %next = (s32[], f32[8,4]{1,0}) tuple(%count, %whole)
}

ENTRY %main (x: f32[8,4]) -> (bf16[4,4], f32[4,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  %end = (s32[], /*index=1*/f32[8,4]{1,0}) while(%start), condition=%turns, body=%turn
  %a = bf16[4,4]{1,0} parameter(1)
  %alone = bf16[4,4]{1,0} all-reduce(%a), replica_groups=[8,1]<=[8], to_apply=%add
  %both = (bf16[4,4]{1,0}, f32[4,4]{1,0}) all-reduce(%a, %x), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %out = (bf16[4,4]{1,0}, f32[4,4]{1,0}) tuple(%alone, %both)
}
"""


def test_loops_count_as_often_as_they_turn():
    assert collectives(Module(LOOP), 8) == [
        Collective("reduce-scatter", 128, (0, 1, 2, 3), 5, "jit(step)/sum"),
        Collective("all-gather", 128, (0, 1, 2, 3), 5, ""),
        Collective("all-reduce", 32 + 64, (0, 1), 1, ""),
    ]


def test_loops_of_unknown_length_are_not_guessed():
    with pytest.raises(ValueError, match="turns is not that of a loop of known length"):
        collectives(Module(LOOP.replace("%bound = s32[] constant(5)", "%bound = s32[] parameter(1)")), 8)


def test_a_sum_that_is_also_needed_whole_is_not_scattered():
    text = LOOP.replace("tuple(%count, %whole)", "tuple(%count, %sum)")
    assert [c.kind for c in collectives(Module(text), 8)] == ["all-reduce", "all-gather", "all-reduce"]


@pytest.mark.parametrize(
    ("kind", "size", "sent"),
    [("all-gather", 4, 75), ("reduce-scatter", 4, 75), ("all-reduce", 4, 150), ("collective-permute", 2, 100)],
)
def test_rings_send_every_part_but_their_own(kind, size, sent):
    assert Collective(kind, 100, tuple(range(size)), 3, "").sent_bytes == 3 * sent


@pytest.mark.parametrize(
    ("attributes", "group"),
    [
        ("replica_groups={{0,2},{1,3}}, x", (0, 2)),
        ("replica_groups={}, x", (0, 1, 2, 3, 4, 5, 6, 7)),
        ("replica_groups=[2,4]<=[8], x", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[4,2]T(1,0), dimensions={0}", (0, 2)),
        ("replica_groups=[4,2]<=[2,2,2]T(2,1,0), x", (0, 4)),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, x", tuple(range(8))),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2] {'axis_0'}, x", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}, x", (0, 1)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(2,1,0)) {'a','b'}, x", (0, 4, 2, 6, 1, 5, 3, 7)),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", (0, 2)),
        ("source_target_pairs={{0,0},{1,2},{2,1}}, x", (1, 2)),
    ],
)
def test_groups_are_read_in_every_notation(attributes, group):
    assert first_group(attributes, 8) == group


def test_an_unknown_notation_is_not_guessed():
    with pytest.raises(ValueError, match="unknown notation"):
        first_group("replica_groups=?", 8)
