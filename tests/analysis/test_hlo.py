"""What is read from a program's text, against counts by hand; and from programs that this machine compiles."""

import jax
import jax.numpy as jnp
import pytest

from flaxformer_lab.analysis.hlo import parse_hlo

GPU = """HloModule jit_step, is_scheduled=true

%fused_cast (parameter_0.1: f32[64,32]) -> bf16[64,32] {
  %parameter_0.1 = f32[64,32]{1,0} parameter(0)
  ROOT %convert.1 = bf16[64,32]{1,0} convert(%parameter_0.1)
}

%fused_dot (parameter_0.2: bf16[8,64], parameter_1.2: bf16[64,32]) -> bf16[8,32] {
  %parameter_0.2 = bf16[8,64]{1,0} parameter(0)
  %parameter_1.2 = bf16[64,32]{1,0} parameter(1)
  ROOT %dot.1 = bf16[8,32]{1,0} dot(%parameter_0.2, %parameter_1.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_update (parameter_0.3: f32[64,32], parameter_1.3: bf16[8,32], parameter_2.3: s32[]) -> f32[64,32] {
  %parameter_0.3 = f32[64,32]{1,0} parameter(0)
  %parameter_1.3 = bf16[8,32]{1,0} parameter(1)
  %parameter_2.3 = s32[] parameter(2)
  %wide = f32[8,32]{1,0} exponential(%parameter_1.3), metadata={op_name="jit(step)/optimizer/exp"}
  ROOT %update = f32[64,32]{1,0} dynamic-update-slice(%parameter_0.3, %wide, %parameter_2.3, %parameter_2.3)
}

%body (arg: (s32[], f32[64,32])) -> (s32[], f32[64,32]) {
  %arg = (s32[], f32[64,32]{1,0}) parameter(0)
  %get-tuple-element.1 = f32[64,32]{1,0} get-tuple-element(%arg), index=1
  ROOT %tanh.1 = f32[64,32]{1,0} tanh(%get-tuple-element.1)
}

%condition (arg.1: (s32[], f32[64,32])) -> pred[] {
  %arg.1 = (s32[], f32[64,32]{1,0}) parameter(0)
  ROOT %constant.1 = pred[] constant(true)
}

ENTRY %main (x: bf16[8,64], w: f32[64,32], n: s32[]) -> f32[64,32] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = f32[64,32]{1,0} parameter(1)
  %n = s32[] parameter(2)
  %cast = bf16[64,32]{1,0} fusion(%w), kind=kLoop, calls=%fused_cast
  %product = bf16[8,32]{1,0} fusion(%x, %cast), kind=kCustom, calls=%fused_dot
  %attend = (bf16[8,32]{1,0}, u8[0]{0}) custom-call(%product), custom_call_target="__cudnn$fmhaSoftmax"
  %out = bf16[8,32]{1,0} get-tuple-element(%attend), index=0
  %step = f32[64,32]{1,0} fusion(%w, %out, %n), kind=kLoop, calls=%fused_update
  ROOT %loop = (s32[], f32[64,32]{1,0}) while(%step), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
}
"""

TPU = """HloModule jit_step

ENTRY %main (x: f32[16,256]) -> f32[16,256] {
  %x = f32[16,256]{1,0:T(8,128)} parameter(0)
  %fetch = (f32[16,256]{1,0:T(8,128)S(1)}, f32[16,256]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)
  %fetched = f32[16,256]{1,0:T(8,128)S(1)} copy-done(%fetch)
  %part = ((f32[16,256]{1,0:T(8,128)}), f32[4,256]{1,0:T(4,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:4]}
  %sliced = f32[4,256]{1,0:T(4,128)S(1)} slice-done(%part)
  ROOT %scores = f32[16,256]{1,0:T(8,128)} convolution(%fetched, %x), window={size=4x12 stride=3x11 lhs_dilate=4x12}, \
dim_labels=0b_oi->0b
}
"""


def test_operations_of_a_gpu_program_by_group():
    module = parse_hlo(GPU)
    matrix, small = 64 * 32, 8 * 32
    found = {group: (each.operations, each.num_bytes) for group, each in module.by_group.items()}
    assert found == {
        "copies": (1, matrix * 4 + matrix * 2),
        "products": (1, (8 * 64 + matrix + small) * 2),
        "kernels": (1, 2 * small * 2),
        "optimizer": (1, small * 2 + 4 + small * 4),  # the matrix is updated in place
        "elementwise": (5, 5 * 2 * matrix * 4),  # a loop of five
    }
    assert module.by_group["products"].flops == 2 * 8 * 64 * 32
    assert module.num_bytes == sum(num_bytes for _, num_bytes in found.values())


def test_fast_memory_of_a_tpu_costs_no_bytes_and_dilated_convolutions_are_batched_products():
    module = parse_hlo(TPU)
    array, part = 16 * 256 * 4, 4 * 256 * 4
    assert {each.name: each.num_bytes for each in module.operations} == {
        "fetch": array,
        "part": part,
        "scores": 2 * array,
    }
    assert module.by_group["products"].flops == 2 * 16 * 256 * 256


@pytest.mark.parametrize("steps", [1, 7])
def test_products_of_a_compiled_loop_are_those_of_its_iterations(steps):
    def run(x, w):
        return jax.lax.fori_loop(0, steps, lambda _, x: jnp.tanh(x @ w), x)

    x, w = jnp.ones((128, 256)), jnp.ones((256, 256))
    module = parse_hlo(jax.jit(run).lower(x, w).compile().as_text())
    assert sum(each.flops for each in module.by_group.values()) == steps * 2 * x.size * 256
    assert steps * (2 * x.nbytes + w.nbytes) <= module.num_bytes <= steps * (8 * x.nbytes + 2 * w.nbytes)
