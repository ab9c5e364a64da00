"""How damaged a picture is, told from the picture alone.

Pure functions of one image y, (H, W, 3) in any range; what they return is in that range
too. They are the estimates behind a matched start and the discrepancy principle. All
are defined for flat, saturated, grey and tiny pictures.
"""

import jax
import jax.numpy as jnp

MAD = 0.6745  # median absolute deviation of a normal variable of deviation 1
TEXTURE = 0.95  # Haar coefficients of clean photos, finest level over the next one
NUM_BINS = 8  # of local brightness in a noise map
MAD_VARIANCE = 1.36  # of ln(sigma) estimated by MAD, times the number of coefficients
SAME = 0.1  # relative difference of bins that texture makes where noise is equal
BRIGHTNESS_WINDOW = 5  # pixels, side of the window of a local mean
GRID = 8  # pixels, side of JPEG's blocks


def white_noise(y: jax.Array) -> jax.Array:
    """Return the standard deviation of the noise that is white, a scalar.

    The median absolute diagonal Haar coefficient (Donoho & Johnstone, 1994) takes fine
    texture for noise. White noise has half the deviation one level further, where each
    pixel is a mean of four, and texture about the same: two levels tell them apart.
    """
    return _without_texture(*_deviations(y))


def noise_map(y: jax.Array) -> jax.Array:
    """Return the standard deviation of white noise at each pixel, (H, W, 1).

    Noise of cameras and speckle depends on brightness. So `white_noise` is shared out
    by the median absolute Haar coefficients in bins of local mean brightness.
    What bins of equal noise differ by is taken off (as James & Stein, 1961).
    """
    brightness = _local_mean(y.mean(axis=-1))
    coarse, _ = _haar(brightness[..., None])
    _, diagonal = _haar(y)
    order = jnp.argsort(coarse.reshape(-1))
    num_bins = min(NUM_BINS, len(order))
    bins = order[: len(order) // num_bins * num_bins].reshape(num_bins, -1)
    coefficients = jnp.abs(diagonal).reshape(len(order), -1)[bins]
    deviations = jnp.median(coefficients.reshape(num_bins, -1), axis=1) / MAD

    mean, variance = jnp.mean(deviations), jnp.var(deviations)
    by_chance = (MAD_VARIANCE / coefficients[0].size + SAME**2) * mean**2
    kept = jnp.sqrt(jnp.maximum(variance - by_chance, 0) / _positive(variance))
    deviations = mean + kept * (deviations - mean)

    of_bins = coarse.reshape(-1)[bins].mean(axis=1)
    spread = jnp.interp(brightness, of_bins, deviations)[..., None]
    finest, coarser = _deviations(y)
    return spread * _without_texture(finest, coarser) / _positive(finest)


def blockiness(y: jax.Array) -> jax.Array:
    """Return the height of the steps on an 8x8 grid of any phase, a scalar.

    JPEG's blocks leave steps between every eighth pixel and the next, which the
    differences beside them do not continue (Wang, Bovik & Evans, 2000). The height is
    how far the largest mean of the eight phases is above the second; the geometric mean
    of both directions, as blocks show in both.
    """
    luma = y @ jnp.asarray([0.299, 0.587, 0.114], y.dtype)
    return jnp.sqrt(_grid_steps(luma) * _grid_steps(luma.T))


def floor_of(residual: jax.Array) -> jax.Array:
    """Return the lower quartile of a residual's RMS over 8x8 blocks, a scalar.

    What a denoiser takes from a picture is texture in some places and noise in all: the
    quiet places tell of the noise.
    """
    rows, columns = (max(side // GRID, 1) for side in residual.shape[:2])
    energy = jnp.square(residual).mean(axis=-1)[: rows * GRID, : columns * GRID]
    blocks = energy.reshape(rows, energy.shape[0] // rows, columns, -1)
    return jnp.sqrt(jnp.quantile(blocks.mean(axis=(1, 3)), 0.25))


def _without_texture(finest: jax.Array, coarser: jax.Array) -> jax.Array:
    """Return the deviation of white noise, of what two Haar levels deviate by."""
    excess = (TEXTURE * finest) ** 2 - coarser**2
    return jnp.sqrt(jnp.maximum(excess, 0) / (TEXTURE**2 - 0.25))


def _deviations(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the deviation that MAD gives at the finest and at the next Haar level."""
    coarse, finest = _haar(y)
    _, coarser = _haar(coarse)
    return jnp.median(jnp.abs(finest)) / MAD, jnp.median(jnp.abs(coarser)) / MAD


def _haar(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return means of 2x2 blocks and diagonal coefficients, which keep white noise."""
    height, width = (side // 2 * 2 for side in y.shape[:2])
    a, b = y[:height:2, :width:2], y[:height:2, 1:width:2]
    c, d = y[1:height:2, :width:2], y[1:height:2, 1:width:2]
    return (a + b + c + d) / 4, (a - b - c + d) / 2


def _local_mean(grey: jax.Array) -> jax.Array:
    """Return the mean of the window around each pixel, edges mirrored; (H, W)."""
    margin = BRIGHTNESS_WINDOW // 2
    padded = jnp.pad(grey, margin, mode="symmetric")
    window = (BRIGHTNESS_WINDOW, BRIGHTNESS_WINDOW)
    zero = jnp.zeros((), grey.dtype)
    total = jax.lax.reduce_window(padded, zero, jax.lax.add, window, (1, 1), "valid")
    return total / BRIGHTNESS_WINDOW**2


def _grid_steps(luma: jax.Array) -> jax.Array:
    """Return the height of the steps between columns of an 8-pixel grid."""
    steps = jnp.abs(jnp.diff(luma, axis=1))
    lonely = steps[:, 1:-1] - (steps[:, :-2] + steps[:, 2:]) / 2
    periods = lonely.shape[1] // GRID
    if periods < 2:  # nothing repeats
        return jnp.zeros((), luma.dtype)
    phases = lonely[:, : periods * GRID].reshape(len(luma), periods, GRID)
    _, _, *_, second, largest = jnp.sort(phases.mean(axis=(0, 1)))
    return jnp.maximum(largest - second, 0)


def _positive(x: jax.Array) -> jax.Array:
    """Return x, never 0: a divisor where the dividend is 0 too."""
    return jnp.maximum(x, jnp.finfo(x.dtype).tiny)
