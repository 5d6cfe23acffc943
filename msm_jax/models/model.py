"""The edge between Flax modules and the rest: a static `Model`, and plain nested dicts of arrays.

Everything beyond this file (trainer, checkpoints, sampler, import and export) sees dicts and pure functions.

Shapes: B rows, T tokens, M model width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from msm_jax.models.attention import Segments
from msm_jax.models.cross_entropy import cross_entropy
from msm_jax.models.decoder import Attend, Decoder, DecoderConfig, attend_within
from msm_jax.models.execution import Execution
from msm_jax.models.linear import LoraConfig, LoraParam

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A decoder's structure without its weights: hashable, so that compiled functions are shared by equal models.

    With `lora`, the adapter is what is trained and the base is frozen; without, the base is trained. The matrices of a
    frozen base may be 8-bit integers (`int8_base`; `quantize` makes them). Functions take packed rows: tokens, segments
    and positions, int32[B, T] each; see `Segments` for who sees whom. `lora` may be None: the bare base.
    """

    config: DecoderConfig
    lora: LoraConfig | None = None
    execution: Execution = Execution()
    int8_base: bool = False

    @property
    def axes(self) -> PyTree:
        """Logical axis names of each base parameter: the tree of `init` with tuples as leaves."""
        return _axes(_abstract(self)[2])

    @property
    def lora_axes(self) -> PyTree:
        return _axes(_abstract(self)[1])

    @property
    def shapes(self) -> PyTree:
        """Base parameters as ShapeDtypeStructs, float32 where they are not 8-bit integers."""
        return nnx.to_pure_dict(_abstract(self)[2])

    @property
    def lora_shapes(self) -> PyTree:
        return nnx.to_pure_dict(_abstract(self)[1])

    @property
    def weight_bytes(self) -> int:
        """Of the base in the type of the products, or in 8-bit integers where it has them."""
        sizes = {jnp.dtype("int8"): 1}
        wide = jnp.dtype(self.config.dtype).itemsize
        return sum(leaf.size * sizes.get(leaf.dtype, wide) for leaf in jax.tree.leaves(self.shapes))

    def init(self, key: jax.Array) -> PyTree:
        """Random base parameters, float32."""
        base = dataclasses.replace(self, lora=None, int8_base=False)
        return nnx.to_pure_dict(nnx.state(Decoder(base, nnx.Rngs(params=key))))

    def init_lora(self, key: jax.Array) -> PyTree:
        """A fresh adapter, float32. Its product is zero, so the model starts as its base."""
        adapted = dataclasses.replace(self, int8_base=False)
        return nnx.to_pure_dict(nnx.state(Decoder(adapted, nnx.Rngs(params=key, lora=key)), LoraParam))

    def apply(self, params: PyTree, lora: PyTree | None, tokens_BT, segments_BT, positions_BT) -> jax.Array:
        """Logits float32[B, T, V]."""
        decoder = self._decoder(params, lora)
        return decoder.logits(self._read(decoder, tokens_BT, segments_BT, positions_BT))

    def loss(
        self, params: PyTree, lora: PyTree | None, tokens_BT, segments_BT, positions_BT, targets_BT, weights_BT
    ) -> tuple[jax.Array, jax.Array]:
        """Cross-entropy of the targets, times the weights, in nats: its sum float32[], and its terms float32[B, T],
        which carry no gradient. With `lora` the gradient by `params` is not complete: the base is frozen."""
        decoder = self._decoder(params, lora)
        x_BTM = self._read(decoder, tokens_BT, segments_BT, positions_BT)
        chunk, head_is_trained = self.execution.loss_chunk, lora is None
        with jax.named_scope("loss"):
            return cross_entropy(x_BTM, decoder.head_matrix(), targets_BT, weights_BT, chunk, head_is_trained)

    def extend(
        self,
        params: PyTree,
        lora: PyTree | None,
        tokens_BT,
        positions_BT,
        attend: Attend,
        kept: PyTree,
        lora_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """Reads tokens of which `attend` knows what went before: returns the normed output of the last layer,
        [B, T, M], and what each layer keeps from then on. `lora` and `lora_mask` may give rows adapters of their own,
        as `linear.project` says. Of an output, `logits` are as in `apply`."""
        return self._decoder(params, lora)(tokens_BT, positions_BT, attend, kept, lora_mask)

    def logits(self, params: PyTree, x: jax.Array) -> jax.Array:
        """[..., M] of the last layer -> float32[..., V]."""
        return self._decoder(params, None).logits(x)

    def unstack(self, tree: PyTree) -> PyTree:
        """Parameters of a base or an adapter, as a model with `execution.stacked` False has them."""
        layers = [jax.tree.map(lambda x, i=i: x[i], tree["layers"]) for i in range(self.config.num_layers)]
        return dict(tree) | {"layers": dict(enumerate(layers))}

    def _read(self, decoder: Decoder, tokens_BT, segments_BT, positions_BT) -> jax.Array:
        attend = attend_within(Segments.of_rows(segments_BT, positions_BT), self.execution)
        return decoder(tokens_BT, positions_BT, attend)[0]

    def _decoder(self, params: PyTree, lora: PyTree | None) -> Decoder:
        # The bare base runs without the adapter's products.
        graph = _abstract(self if lora is not None else dataclasses.replace(self, lora=None))[0]
        return nnx.merge(graph, nnx.State(lora or {}), nnx.State(params))


@functools.lru_cache(maxsize=32)  # tracing takes a tenth of a second, and every stage makes its models anew
def _abstract(model: Model) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Structure, adapter and base, with shapes in the place of arrays."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(model, nnx.Rngs(params=0, lora=0))), LoraParam, ...)


def count_parameters(tree: PyTree) -> int:
    """Works on arrays and on ShapeDtypeStructs."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _axes(state: nnx.State) -> PyTree:
    def names(variable: nnx.Variable) -> tuple[str | None, ...]:
        stacked = variable.get_value().ndim - len(variable.axes)
        return ("layers",) * stacked + variable.axes

    return nnx.to_pure_dict(jax.tree.map(names, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))
