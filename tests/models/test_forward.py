"""The forward pass against one in NumPy that shares nothing with it: loops, complex numbers, float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from msm_jax.models import DecoderConfig, Execution, Model, Segments, attention
from msm_jax.models.attention import rope, rope_angles, rope_frequencies

# The compiler is what these tests wait for, so it is told not to polish.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIZES = {
    "vocab_size": 13, "num_layers": 2, "width": 12, "mlp_width": 20, "num_heads": 4, "num_kv_heads": 2, "head_size": 6,
    "rope_theta": 100.0, "norm_epsilon": 1e-3, "dtype": "float32",
}  # fmt: skip


def attend(q, k, v, segments):
    """Every query on its own, over the list of keys that it may see; queries that see nothing give zeros."""
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(q.shape[:3]):
        seen = [
            s
            for s in range(k.shape[1])
            if segments.q_ids[b, t] == segments.kv_ids[b, s] != 0
            and segments.kv_positions[b, s] <= segments.q_positions[b, t]
        ]
        if seen:
            scores = np.array([q[b, t, h] @ k[b, s, h // group] for s in seen]) / np.sqrt(q.shape[3])
            weights = np.exp(scores - scores.max())
            out[b, t, h] = (weights / weights.sum()) @ v[b, seen, h // group]
    return out


def rotate(x, positions, theta):
    half = x.shape[-1] // 2
    turns = positions[:, :, None, None] * theta ** -(2 * np.arange(half) / x.shape[-1])
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * turns)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def norm(x, scale, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def forward(config, params, tokens, segments, positions):
    c, params = config, jax.tree.map(np.float64, params)
    who = Segments.of_rows(segments, positions)
    x = params["embedding"][tokens]
    for i in range(c.num_layers):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        y = norm(x, p["attention_norm"]["scale"], c.norm_epsilon)
        q, k, v = ((y @ p[name]["kernel"]).reshape(*tokens.shape, -1, c.head_size) for name in "qkv")
        mixed = attend(rotate(q, positions, c.rope_theta), rotate(k, positions, c.rope_theta), v, who)
        x = x + mixed.reshape(*tokens.shape, -1) @ p["o"]["kernel"]
        y = norm(x, p["mlp_norm"]["scale"], c.norm_epsilon)
        gate = y @ p["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ p["up"]["kernel"])) @ p["down"]["kernel"]
    head = params["embedding"].T if c.tied_head else params["head"]["kernel"]
    return norm(x, params["norm"]["scale"], c.norm_epsilon) @ head


@pytest.mark.parametrize("group", [1, 2, 4])
def test_attention_sees_its_segment_up_to_itself(packed, group):
    _, segments, positions = packed
    rng = np.random.default_rng(group)
    q, k, v = (rng.standard_normal((2, 10, heads, 6)).astype(np.float32) for heads in (4, 4 // group, 4 // group))
    who = Segments.of_rows(segments, positions)
    got = np.asarray(jit(attention)(q, k, v, who))
    real = segments > 0
    np.testing.assert_allclose(got[real], attend(q, k, v, who)[real], atol=1e-5)
    assert np.isfinite(got).all(), "padding sees nothing, and must not turn into NaN"


def test_attention_of_few_queries_over_many_keys_in_any_order(packed):
    """As over a cache: which key lies where does not matter, only its segment and position."""
    _, segments, positions = packed
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, length, 2, 6)).astype(np.float32) for length in (4, 10, 10))
    shuffled = rng.permutation(10)
    who = Segments(segments[:, 4:8], positions[:, 4:8], segments[:, shuffled], positions[:, shuffled])
    np.testing.assert_allclose(jit(attention)(q, k, v, who), attend(q, k, v, who), atol=1e-5)


def test_rope_is_a_rotation_of_complex_numbers():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [0, 1, 700, 2, 4095]], np.int32)
    got = jit(lambda x, at: rope(x, rope_angles(at, rope_frequencies(8, 10_000.0))))(x, positions)
    np.testing.assert_allclose(got, rotate(x, positions, 10_000.0), atol=2e-3)  # float32 angles of up to 4095
    np.testing.assert_allclose(got[0], rotate(x, positions, 10_000.0)[0], atol=1e-5)
    np.testing.assert_array_equal(got[:, 0], x[:, 0])


@pytest.mark.parametrize("tied", [True, False])
def test_decoder_equals_numpy(packed, random_tree, tied):
    model = Model(DecoderConfig(**SIZES, tied_head=tied))
    params = random_tree(model.shapes)
    logits = jit(model.apply)(params, None, *packed)
    assert logits.dtype == jnp.float32
    real = packed[1] > 0
    assert np.ptp(logits) > 1, "a golden check of flat logits would say nothing"
    np.testing.assert_allclose(np.asarray(logits)[real], forward(model.config, params, *packed)[real], atol=2e-4)


def gradient(packed, **execution):
    """(function, its argument) for the gradient of something by the parameters, and the logits."""
    model = Model(DecoderConfig(**SIZES), execution=Execution(**execution))

    def loss(params):
        logits = model.apply(params, None, *packed)
        return jnp.sum(jnp.sin(logits) * (packed[1] > 0)[..., None]), logits

    return jax.grad(loss, has_aux=True), model.shapes


def test_rematerialisation_and_unrolling_change_no_number(packed, random_tree):
    function, shapes = gradient(packed)
    params = random_tree(shapes)
    expected = jit(function)(params)
    # Policies that keep more are parts of what "full" does, so it stands for all of them here; see the next test.
    for changes in ({"remat": "full"}, {"remat": "save_projections", "scan_unroll": 2}):
        found = jit(gradient(packed, **changes)[0])(params)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), found, expected)


def test_rematerialisation_computes_again_what_it_does_not_keep(packed):
    def products(remat):
        """Matrix products in the gradient: those that are done again are there twice."""
        function, shapes = gradient(packed, remat=remat)
        return str(jax.make_jaxpr(function)(shapes)).count("dot_general")

    none = products("none")
    assert products("save_projections") == none + 1  # the scores
    assert products("save_qkv") == products("offload_qkv") == none + 3  # also gate, up
    assert products("save_attention") == products("offload_attention") == none + 7  # also q, k, v, o
    assert products("full") == products("offload_inputs") == none + 8  # also the mixed values


def test_logits_are_float32_in_any_dtype(packed):
    model = Model(DecoderConfig(**SIZES | {"dtype": "bfloat16"}))
    assert jax.eval_shape(model.apply, model.shapes, None, *packed).dtype == jnp.float32
