"""What is read from the text of a compiled program, in the words of each compiler."""

from types import SimpleNamespace

import pytest

from flaxformer_lab.training.absent_devices import Program

# One line of a program: how many arrays of which kind and type it sends, and the bytes that a device receives.
LINES = {
    "%a = f32[8]{0} all-reduce(%x), replica_groups={{0,1},{2,3}}, to_apply=%sum": ("all-reduce f32", 1, 2 * 32 / 2),
    "%a = (f32[8]{0:T(8)}, bf16[2,4]{1,0}) all-reduce(%x, %y), replica_groups={}": (
        "all-reduce f32",
        1,
        2 * 48 * 3 / 4,
    ),
    "%g-start = ((bf16[2]{0}, bf16[3]{0}), (bf16[8]{0}, bf16[12]{0})) all-gather-start(%x, %y), "
    "replica_groups=[1,4]<=[4]": ("all-gather bf16", 2, 40 * 3 / 4),
    "%s = f32[2,4]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=2] {'a','b'}": (
        "reduce-scatter f32",
        1,
        32 * 3,
    ),
    "%s = f32[2,4]{1,0} reduce-scatter(%x), replica_groups=mesh['a'=4] {'a':(1)2}": ("reduce-scatter f32", 1, 32),
    "%p = (u8[16]{0}, u8[16]{0}, u32[], u32[]) collective-permute-start(%x)": ("collective-permute u8", 1, 16),
    "%d = bf16[8]{0} all-gather-done(%g-start), replica_groups={{0,1,2,3}}": (None, 0, 0),
}


def program(*lines):
    return Program(SimpleNamespace(as_text=lambda: "\n".join(lines)), num_devices=4)


@pytest.mark.parametrize(("line", "expected"), LINES.items())
def test_what_one_instruction_sends(line, expected):
    name, number, received = expected
    found = program(line)
    assert found.counts.get(name, 0) == number
    assert sum(each.received for each in found.collectives) == received


def test_an_asynchronous_gather_that_is_written_in_parts_counts_once():
    line = '%g = bf16[8]{0} all-gather(%x), replica_groups={{0,1,2,3}}, frontend_attributes={chain_id="7"}'
    assert program(line, line, line.replace('"7"', '"8"')).counts == {"all-gather bf16": 2}


def test_kernels_are_what_is_called():
    lines = ('%a = f32[] custom-call(%x), custom_call_target="tpu_custom_call"', "%b = f32[] add(%x, %y)")
    assert program(*lines).kernels == {"tpu_custom_call"}


def test_what_runs_beside_a_collective():
    lines = (
        "%g = (bf16[2]{0}, bf16[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}",
        "%a = f32[8]{0} fusion(%x), kind=kLoop, calls=%b",
        "%s = f32[8]{0} all-reduce(%a), to_apply=%sum",
        '%c = f32[8]{0} custom-call(%a), custom_call_target="__cublas$gemm"',
        "%d = bf16[8]{0} all-gather-done(%g)",
    )
    assert program(*lines).hidden_by == [("all-reduce", 0), ("all-gather", 3)]
