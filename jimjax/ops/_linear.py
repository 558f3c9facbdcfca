"""Linear maps with a transpose of their own, which run on CPU one example at a time.

JAX would transpose a gather into a scatter of everything at once, and vmap would widen every
temporary array. On CPU fresh memory costs more than the arithmetic; here a batch is a loop
whose temporary arrays stay in cache, in both directions. On GPU and TPU it is one program.
On several CPU devices, split a batch with ``jax.shard_map``: a loop is not split by itself.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

LOOPED = 2**12  # elements of an example from which a batch is a loop

Batched = tuple[tuple[bool, ...], ...]  # per vmap, outermost first: which operands carry its axis


@dataclass(frozen=True)
class LinearMap:
    """A family of linear maps x -> L(p) x, one for each value of the parameters p.

    All three functions are of one example. Maps are equal if their functions are: make each once,
    or what is called outside of jit is compiled again.

    Attributes:
        apply: of x and the parameters; returns L(p) x.
        transpose: of y and the parameters; returns L(p)^T y.
        derivative: of x, the parameters and their tangents dp; returns (dL(p)/dp dp) x. JAX
            differentiates and transposes it. None if there are no parameters.
        given: shape and type of x.
        out: shape and type of L(p) x.
    """

    apply: Callable[..., jax.Array]
    transpose: Callable[..., jax.Array]
    derivative: Callable[..., jax.Array] | None
    given: jax.ShapeDtypeStruct
    out: jax.ShapeDtypeStruct

    def __call__(self, x: jax.Array, *parameters: jax.Array) -> jax.Array:
        """L(p) x; of any order differentiable in x and p, forward and backward."""
        return _linear_p.bind(x, *parameters, linear=self, batched=())

    @functools.cached_property
    def transposed(self) -> "LinearMap":
        """The family of the transposes."""
        return LinearMap(
            self.transpose,
            self.apply,
            functools.partial(_transposed_derivative, self.derivative, self.given),
            self.out,
            self.given,
        )


def linear_map(
    apply: Callable[..., jax.Array],
    derivative: Callable[..., jax.Array],
    given: jax.ShapeDtypeStruct,
    *parameters: jax.ShapeDtypeStruct,
) -> LinearMap:
    """A ``LinearMap`` that JAX itself transposes, of arguments of these shapes and types."""

    def transpose(y: jax.Array, *values: jax.Array) -> jax.Array:
        (x,) = jax.linear_transpose(lambda x: apply(x, *values), given)(y)
        return x

    out = jax.eval_shape(apply, given, *parameters)
    return LinearMap(apply, transpose, derivative, given, out)


def _transposed_derivative(
    derivative: Callable[..., jax.Array],
    given: jax.ShapeDtypeStruct,
    y: jax.Array,
    parameters: Sequence[jax.Array],
    tangents: Sequence[jax.Array],
) -> jax.Array:
    (x,) = jax.linear_transpose(lambda x: derivative(x, parameters, tangents), given)(y)
    return x


_linear_p = Primitive("jimjax_linear")


@functools.lru_cache(maxsize=256)
def _compiled(linear: LinearMap, batched: Batched) -> Callable[..., jax.Array]:
    return jax.jit(functools.partial(_run, linear=linear, batched=batched))


@_linear_p.def_impl
def _eager(*operands: jax.Array, linear: LinearMap, batched: Batched) -> jax.Array:
    return _compiled(linear, batched)(*operands)


@_linear_p.def_abstract_eval
def _abstract(*operands: Any, linear: LinearMap, batched: Batched) -> Any:
    sizes = []
    for level, flags in enumerate(batched):
        carrier = flags.index(True)
        axis = sum(outer[carrier] for outer in batched[:level])
        sizes.append(operands[carrier].shape[axis])

    def alike(*operands: jax.Array) -> jax.Array:
        # Varies over the mesh axes that any operand varies over.
        firsts = [jnp.ravel(operand)[0].astype(linear.out.dtype) for operand in operands]
        return jnp.broadcast_to(sum(firsts), (*sizes, *linear.out.shape))

    (out,) = jax.make_jaxpr(alike)(*operands).out_avals
    return out


def _run(*operands: jax.Array, linear: LinearMap, batched: Batched) -> jax.Array:
    if not batched:
        return linear.apply(*operands)
    largest = max(math.prod(linear.given.shape), math.prod(linear.out.shape))
    widened, looped = linear.apply, linear.apply
    for flags in reversed(batched):
        widened = jax.vmap(widened, in_axes=_axes(flags))
        looped = functools.partial(_loop, looped, flags)
    if largest < LOOPED:
        return widened(*operands)
    return lax.platform_dependent(*operands, cpu=looped, default=widened)


def _axes(flags: Sequence[bool]) -> list[int | None]:
    return [0 if flag else None for flag in flags]


def _loop(
    function: Callable[..., jax.Array], flags: Sequence[bool], *operands: jax.Array
) -> jax.Array:
    """Does what vmap does, one example after the other."""

    def one(carried: list[jax.Array]) -> jax.Array:
        rest = iter(carried)
        return function(
            *(next(rest) if flag else x for x, flag in zip(operands, flags, strict=True))
        )

    return lax.map(one, [x for x, flag in zip(operands, flags, strict=True) if flag])


def _jvp(
    primals: Sequence[jax.Array], tangents: Sequence[Any], *, linear: LinearMap, batched: Batched
) -> tuple[jax.Array, Any]:
    bind = functools.partial(_linear_p.bind, linear=linear, batched=batched)
    parts = []
    if not isinstance(tangents[0], ad.Zero):
        parts.append(bind(tangents[0], *primals[1:]))
    if not all(isinstance(tangent, ad.Zero) for tangent in tangents[1:]):
        filled = [ad.instantiate_zeros(tangent) for tangent in tangents[1:]]

        def derivative(x: jax.Array, *both: jax.Array) -> jax.Array:
            return linear.derivative(x, both[: len(filled)], both[len(filled) :])

        for flags in reversed(batched):
            derivative = jax.vmap(derivative, in_axes=_axes((*flags, *flags[1:])))
        parts.append(derivative(*primals, *filled))
    out = bind(*primals)
    return out, functools.reduce(jnp.add, parts) if parts else ad.Zero.from_primal_value(out)


def _transpose(
    cotangent: Any, x: Any, *parameters: jax.Array, linear: LinearMap, batched: Batched
) -> list[Any]:
    if isinstance(cotangent, ad.Zero):
        return [ad.Zero(x.aval), *(None for _ in parameters)]
    spread = _linear_p.bind(
        cotangent,
        *parameters,
        linear=linear.transposed,
        batched=tuple((True, *flags[1:]) for flags in batched),
    )
    shared = [level for level, flags in enumerate(batched) if not flags[0]]
    return [spread.sum(shared) if shared else spread, *(None for _ in parameters)]


def _batch(
    operands: Sequence[jax.Array], axes: Sequence[Any], *, linear: LinearMap, batched: Batched
) -> tuple[jax.Array, int]:
    flags = tuple(axis is not None for axis in axes)
    moved = [
        jnp.moveaxis(operand, axis, 0) if flag else operand
        for operand, axis, flag in zip(operands, axes, flags, strict=True)
    ]
    return _linear_p.bind(*moved, linear=linear, batched=(flags, *batched)), 0


ad.primitive_jvps[_linear_p] = _jvp
ad.primitive_transposes[_linear_p] = _transpose
batching.primitive_batchers[_linear_p] = _batch
mlir.register_lowering(_linear_p, mlir.lower_fun(_run, multiple_results=False))
