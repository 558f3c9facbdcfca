"""Arrays may come in half precision; sums and transforms are taken in float32."""

import jax
import jax.numpy as jnp


def widen(array: jax.Array) -> jax.Array:
    """Converts bfloat16, float16 and whole numbers to float32; float32 and float64 stay."""
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array.astype(float)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def narrow(result: jax.Array, like: jax.Array) -> jax.Array:
    """Converts a result back to the precision of the array it was made from, if that is a float."""
    dtype = jnp.result_type(like)
    return result.astype(dtype) if jnp.issubdtype(dtype, jnp.floating) else result
