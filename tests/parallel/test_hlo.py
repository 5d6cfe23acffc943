"""Work counted in programs: by hand, and in what XLA compiles on this machine."""

import jax
import jax.numpy as jnp
import pytest

from msm_jax.parallel import hlo

# A loop that counts to 8 by 2 around a product that the compiler split along what is summed over, as a window.
WINDOWED = """\
HloModule jit_step

%body (p: (u32[], bf16[8,2,16], bf16[2,16,32])) -> (u32[], bf16[8,2,16], bf16[2,16,32]) {
  %p = (u32[], bf16[8,2,16], bf16[2,16,32]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %x = bf16[8,2,16]{2,1,0} get-tuple-element(%p), index=1
  %w = bf16[2,16,32]{2,1,0} get-tuple-element(%p), index=2
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %y = bf16[8,1,32]{2,1,0} convolution(%x, %w), window={size=2}, dim_labels=b0f_0io->b0f
  %moved = (bf16[2,16,32], bf16[2,16,32], u32[], u32[]) collective-permute-start(%w), source_target_pairs={{0,1},{1,0}}
  %w2 = bf16[2,16,32] collective-permute-done(%moved)
  ROOT %t = (u32[], bf16[8,2,16], bf16[2,16,32]) tuple(%next, %x, %w2)
}

%condition (p: (u32[], bf16[8,2,16], bf16[2,16,32])) -> pred[] {
  %p = (u32[], bf16[8,2,16], bf16[2,16,32]) parameter(0)
  %i = u32[] get-tuple-element(%p), index=0
  %n = u32[] constant(8)
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: bf16[8,2,16], b: bf16[2,16,32]) -> f32[64] {
  %a = bf16[8,2,16] parameter(0)
  %b = bf16[2,16,32] parameter(1)
  %zero = u32[] constant(0)
  %start = (u32[], bf16[8,2,16], bf16[2,16,32]) tuple(%zero, %a, %b)
  %end = (u32[], bf16[8,2,16], bf16[2,16,32]) while(%start), condition=%condition, body=%body
  %s = f32[64] all-reduce(%a), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %g = f32[64] all-gather(%s), replica_groups=mesh['x'=2,'y'=3] {'y'}, dimensions={0}
}
"""


def test_a_loop_of_the_compiler_by_hand():
    work = hlo.count(WINDOWED)
    assert work.flops == 4 * 2 * 8 * 32 * (2 * 16)
    assert work.sent_bytes == {
        "collective-permute": 4 * 2 * 16 * 32 * 2,
        "all-reduce": 2 * 256 * 3 / 4,
        "all-gather": 256 * 2 / 3,
    }


# A step of a loop: weights of one layer are sliced out of a stack and multiplied, what is between the products stays in
# vector memory, and the slot of the layer is updated where it lies.
SLICED = """\
HloModule jit_step

%inner (p.0: bf16[64,256,128], p.1: s32[]) -> bf16[256,128] {
  %p.0 = bf16[64,256,128]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %slice = bf16[1,256,128]{2,1,0} dynamic-slice(%p.0, %p.1), dynamic_slice_sizes={1,256,128}
  ROOT %flat = bf16[256,128]{1,0} bitcast(%slice)
}

%product (q.0: bf16[64,256,128], q.1: s32[], q.2: bf16[8,256]) -> bf16[8,128] {
  %q.0 = bf16[64,256,128]{2,1,0} parameter(0)
  %q.1 = s32[] parameter(1)
  %q.2 = bf16[8,256]{1,0} parameter(2)
  %w = bf16[256,128]{1,0} fusion(%q.0, %q.1), kind=kLoop, calls=%inner
  ROOT %y = bf16[8,128]{1,0} dot(%q.2, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%update (r.0: bf16[64,8,128], r.1: bf16[8,128], r.2: s32[]) -> bf16[64,8,128] {
  %r.0 = bf16[64,8,128]{2,1,0} parameter(0)
  %r.1 = bf16[8,128]{1,0} parameter(1)
  %r.2 = s32[] parameter(2)
  %slot = bf16[1,8,128]{2,1,0} bitcast(%r.1)
  ROOT %put = bf16[64,8,128]{2,1,0} dynamic-update-slice(%r.0, %slot, %r.2)
}

ENTRY %main (a: bf16[64,256,128], b: bf16[8,256], c: bf16[64,8,128], i: s32[]) -> bf16[64,8,128] {
  %a = bf16[64,256,128]{2,1,0} parameter(0)
  %b = bf16[8,256]{1,0} parameter(1)
  %c = bf16[64,8,128]{2,1,0} parameter(2)
  %i = s32[]{:S(1)} parameter(3)
  %y = bf16[8,128]{1,0:T(8,128)S(1)} fusion(%a, %i, %b), kind=kOutput, calls=%product
  %n = (bf16[64,8,128]{2,1,0}, bf16[64,8,128]{2,1,0:S(1)}, u32[]{:S(2)}) copy-start(%c)
  ROOT %out = bf16[64,8,128]{2,1,0} fusion(%c, %y, %i), kind=kLoop, calls=%update
}
"""


def test_what_goes_to_and_from_memory_by_hand():
    layer, x, slot, copied = 256 * 128, 8 * 256, 8 * 128, 2 * 64 * 8 * 128
    assert hlo.count(SLICED).memory_bytes == 2 * (layer + x + slot + copied)


@pytest.mark.parametrize(
    ("window", "sizes", "pairs"),
    [
        ("window={size=2}", (2, 2, 1), 2),  # summed over
        ("window={size=2 pad=1_1 rhs_reversal=1}", (1, 2, 2), 2),  # parts of the result
        ("window={size=4 stride=3 pad=0_0 lhs_dilate=4}", (4, 4, 4), 4),  # a batch
        ("", (1, 1, 1), 1),
    ],
)
def test_windows(window, sizes, pairs):
    assert hlo._window_products(window, 0, *sizes) == pairs


def test_a_gather_beside_other_work_is_counted_where_it_begins():
    fusion = """\
%{name} (p: bf16[4]) -> bf16[16] {{
  %p = bf16[4] parameter(0)
  %g = bf16[16] all-gather(%p), replica_groups={{{{0,1,2,3}}}}, dimensions={{0}}
  ROOT %c = bf16[16] custom-call(%g), custom_call_target="{target}"
}}

"""
    text = fusion.format(name="begin", target="AsyncCollectiveStart") + fusion.format(
        name="end", target="AsyncCollectiveDone"
    )
    text += """\
ENTRY %main (p: bf16[4]) -> bf16[16] {
  %p = bf16[4] parameter(0)
  %a = bf16[16] fusion(%p), kind=kCustom, calls=%begin
  ROOT %b = bf16[16] fusion(%p), kind=kCustom, calls=%end
}
"""
    assert hlo.count(text).sent_bytes == {"all-gather": 16 * 2 * 3 / 4}


@pytest.mark.parametrize("turns", [1, 10])
def test_what_xla_compiles_here(turns):
    """Loops, nested, around products of a batch."""

    def program(x, w):
        def outer(x, w):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=2)[0], None

        return jax.lax.scan(outer, x, w)[0]

    x, w = jnp.ones((3, 8, 16)), jnp.ones((turns, 16, 16))
    text = jax.jit(program).lower(x, w).compile().as_text()
    assert hlo.count(text).flops == turns * 2 * (2 * 3 * 8 * 16 * 16)


def test_a_loop_without_a_known_end():
    text = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, x)).lower(jnp.ones(3)).compile()
    with pytest.raises(ValueError, match="a loop ends by"):
        hlo.count(text.as_text())
