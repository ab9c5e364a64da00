"""The damage used in experiments: photo in, damaged photo out.

A damage is a pure function of a photo x, (H, W, 3) in [0, 1], a key of `jax.random` and
a severity in a unit of its own. It returns float64 of the same shape and range. Damage
that draws nothing takes a key all the same, so that one can stand for another. Lengths
are in pixels; one that is None grows with the shorter side. The drawing is NumPy's,
on the host: the same key gives the same picture on every device.

Sources: BIRD is Chihaoui, Lemkhenter & Favaro, 2024; BlindDPS is Chung et al., 2023;
ImageNet-C is Hendrycks & Dietterich, 2019, here in its version for 64 pixels.
"""

import io
from typing import Any, Literal

import jax
import numpy as np
from PIL import Image

GRID = 64  # pixels, shorter side of the pictures that ImageNet-C's constants are for
# Amplitude and smoothness of the displacements, in shorter sides, by severity.
ELASTIC = ((0.0, 0.0), (0.05, 0.3), (0.1, 0.08), (0.1, 0.03), (0.16, 0.03))
# Mean, deviation, smoothness in pixels and threshold of the liquid, by severity.
SPATTER = ((0.62, 0.1, 0.7, 0.7), (0.65, 0.1, 0.8, 0.7), (0.65, 0.3, 1.0, 0.69))
WATER = 0.6  # brightness of the thickest water
PALE_TURQUOISE = np.array([175, 238, 238]) / 255
CANNY = (50, 150)  # thresholds of Canny's edges, in 8-bit levels
FAR = 20  # pixels: no distance to the rim of a drop is larger

Edges = Literal["symmetric", "edge", "wrap"]  # modes of `numpy.pad`


def generator(key: jax.Array) -> np.random.Generator:
    """Return NumPy's generator of a key; of `jax.random.key(n)`, `default_rng(n)`."""
    words = np.asarray(jax.random.key_data(key)).astype(">u4")
    return np.random.default_rng(int.from_bytes(words.tobytes(), "big"))


def noise_mixture(x: np.ndarray, key: jax.Array, strength: float = 1.0) -> np.ndarray:
    """Add the mixture of speckle and Gaussian noise of BIRD's denoising experiment.

    y = 0.8 (x + x n1) + 0.2 (x + n2) with n1 ~ N(0, 0.4^2) and n2 ~ N(0, 0.15^2)
    per pixel and channel, clipped to [0, 1].

    Args:
        x: photo.
        key: of both noises.
        strength: factor of both deviations.
    """
    rng = generator(key)
    speckle = 0.4 * strength * rng.standard_normal(x.shape)
    additive = 0.15 * strength * rng.standard_normal(x.shape)
    return np.clip(0.8 * (x + x * speckle) + 0.2 * (x + additive), 0, 1)


def gaussian_noise(x: np.ndarray, key: jax.Array, sigma: float = 0.02) -> np.ndarray:
    """Add Gaussian noise of this standard deviation, clipped to [0, 1].

    The default is the paper's; that its scale is [0, 1] is an assumption.
    """
    return np.clip(x + sigma * generator(key).standard_normal(x.shape), 0, 1)


def jpeg(x: np.ndarray, key: jax.Array | None = None, quality: int = 5) -> np.ndarray:
    """Compress as JPEG (4:2:0) and read back; the default quality is the paper's."""
    _check_unused(key)
    buffer = io.BytesIO()
    pixels = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float64) / 255


def gaussian_blur(
    x: np.ndarray, key: jax.Array | None = None, sigma: float | None = None
) -> np.ndarray:
    """Convolve with a Gaussian of this deviation in pixels, edges reflected.

    The default is a fortieth of the shorter side, 1.6 of 64 pixels.
    """
    _check_unused(key)
    return _smooth(x, _length(sigma, x, 40))


def blur_matrix(side: int, sigma: float) -> np.ndarray:
    """Return the matrix that `gaussian_blur` is along a side, (side, side)."""
    return _filter(np.eye(side), _gaussian(sigma, 4.0), 0, "symmetric")


def motion_blur(
    x: np.ndarray, key: jax.Array, length: float | None = None
) -> np.ndarray:
    """Shake the camera during the exposure, edges reflected.

    Args:
        x: photo.
        key: of the path of the camera.
        length: of that path in pixels; an eighth of the shorter side by default.
    """
    return convolve(x, motion_kernel(key, _length(length, x, 8)), "symmetric")


def motion_kernel(key: jax.Array, length: float) -> np.ndarray:
    """Return the path of a shaken camera as a kernel, (K, K) with a sum of 1.

    The camera moves at a constant speed and turns at random, as in Boracchi & Foi
    (2012) without their jerks. Its mean place is the middle of the kernel, so that the
    blur moves nothing.

    Args:
        key: of the path.
        length: of the path in pixels.
    """
    rng, count = generator(key), 8 * int(np.ceil(length)) + 1
    turns = rng.standard_normal(count) / np.sqrt(count)  # one radian in all
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turns)
    steps = np.stack([np.sin(heading), np.cos(heading)]) * length / count
    path = np.cumsum(steps, axis=1)
    path -= path.mean(axis=1, keepdims=True)
    radius = int(np.ceil(length / 2)) + 1  # no point of a path is further from its mean
    below = np.intp(np.floor(path))
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1))
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):  # shared out among four pixels
        pixels = below + np.reshape(corner, (2, 1))
        share = np.prod(1 - np.abs(path - pixels), axis=0)
        np.add.at(kernel, tuple(pixels + radius), share / count)
    return kernel


def convolve(x: np.ndarray, kernel: np.ndarray, edges: Edges) -> np.ndarray:
    """Convolve each channel: y[p] = sum over q of kernel[q] x[p - q].

    Args:
        x: photo.
        kernel: (K, K), K odd; its middle is q = 0.
        edges: how the photo goes on outside.
    """
    radius, (height, width) = len(kernel) // 2, x.shape[:2]
    padded = np.pad(x, [(radius, radius), (radius, radius), (0, 0)], mode=edges)
    y = np.zeros(x.shape)
    for i, j in np.argwhere(kernel):
        top, left = 2 * radius - i, 2 * radius - j
        y += kernel[i, j] * padded[top : top + height, left : left + width]
    return y


def nonuniform_blur(
    x: np.ndarray, key: jax.Array, length: float | None = None, count: int = 4
) -> np.ndarray:
    """Blur every place in its own way: a blend of copies blurred by different motions.

    y = sum_k w_k (h_k * x) with smooth weights w_k that sum to 1 at every pixel (Nagy &
    O'Leary, 1998).

    Args:
        x: photo.
        key: of motions and weights.
        length: of each motion in pixels; an eighth of the shorter side by default.
        count: of the copies.
    """
    first, *others = jax.random.split(key, count + 1)
    fields = generator(first).standard_normal((*x.shape[:2], count))
    fields = _smooth(fields, min(x.shape[:2]) / 8)
    weights = np.exp(4 * fields / fields.std())  # nearly one copy alone in most places
    weights /= weights.sum(axis=-1, keepdims=True)
    y = np.zeros(x.shape)
    for i, other in enumerate(others):
        y += weights[..., i : i + 1] * motion_blur(x, other, length)
    return y


def downsample(x: np.ndarray, factor: int = 4) -> np.ndarray:
    """Return the small picture of super-resolution, (H / factor, W / factor, 3).

    The paper's "8x8 Gaussian blur followed by 8x downsampling", for any factor: a pixel
    is the mean of its block weighted by a Gaussian in the middle of the block. That the
    deviation is factor / 4 pixels is an assumption.

    Raises:
        ValueError: a side is no multiple of the factor.
    """
    rows, columns = (sampling_matrix(side, factor) for side in x.shape[:2])
    return np.einsum("hH,HWc,wW->hwc", rows, x, columns, optimize=True)


def sampling_matrix(side: int, factor: int) -> np.ndarray:
    """Return the matrix that `downsample` is along a side, (side / factor, side).

    Raises:
        ValueError: the side is no multiple of the factor.
    """
    if side % factor:
        raise ValueError(f"side is {side} pixels; use a multiple of {factor}")
    window = np.exp(-0.5 * ((np.arange(factor) - (factor - 1) / 2) / (factor / 4)) ** 2)
    return np.kron(np.eye(side // factor), window / window.sum())


def enlarge(small: np.ndarray, factor: int) -> np.ndarray:
    """Put a small picture on the grid of the large one, bicubic, clipped to [0, 1]."""
    height, width = small.shape[:2]
    size, box = (factor * height, factor * width), (0, 0, width, height)
    return np.clip(_bicubic(small, size, box), 0, 1)


def super_resolution(
    x: np.ndarray, key: jax.Array | None = None, factor: int = 4
) -> np.ndarray:
    """Shrink by a factor and enlarge again, so that only the detail is missing.

    For any size: where `downsample` has whole blocks, here the Gaussian of deviation
    factor / 4 is cut at 4 deviations and every factor-th pixel kept, and bicubic in
    between, clipped to [0, 1]. Nothing moves: pixels kept stay in place.
    """
    _check_unused(key)
    first = (factor - 1) // 2  # of the pixels kept
    small = _smooth(x, factor / 4)[first::factor, first::factor]
    margin = 2  # pixels, the reach of the bicubic window
    small = np.pad(small, [(margin, margin), (margin, margin), (0, 0)], mode="edge")
    height, width = x.shape[:2]
    # Pillow counts from the edges of pixels: a pixel kept has its centre at + 0.5.
    start = margin + 0.5 - (first + 0.5) / factor
    box = (start, start, start + width / factor, start + height / factor)
    return np.clip(_bicubic(small, (height, width), box), 0, 1)


def deform(
    x: np.ndarray,
    key: jax.Array,
    amplitude: float | None = None,
    smoothness: float | None = None,
) -> np.ndarray:
    """Move every pixel a little, its neighbours nearly the same way.

    Args:
        x: photo.
        key: of the displacements.
        amplitude: length of the largest displacement in pixels; 1/32 of the shorter
            side by default.
        smoothness: deviation in pixels of the Gaussian that smooths them; 1/16 of the
            shorter side by default.
    """
    field = generator(key).standard_normal((*x.shape[:2], 2))
    field = _smooth(field, _length(smoothness, x, 16))
    field *= _length(amplitude, x, 32) / np.linalg.norm(field, axis=-1).max()
    return _moved(x, field)


def tilt(x: np.ndarray, key: jax.Array, strength: float = 1.0) -> np.ndarray:
    """Move pixels as turbulent air does, without its blur: the tilt of BlindDPS.

    500 patches of white noise of deviation U(0.1, 0.4) are added up at random places
    and smoothed by a Gaussian of one pixel: the displacements in pixels, of either
    direction. Patches have a quarter of the shorter side, and displacements are cut at
    2.5 pixels of a side of 256, 1.25 of 64. Unlike there, noise is smoothed after the
    sum, not inside each patch, and edges go on outside where there is black.

    Args:
        x: photo.
        key: of the displacements.
        strength: factor of the displacements.
    """
    rng, side = generator(key), min(x.shape[:2])
    patch, field = max(side // 4, 1), np.zeros((*x.shape[:2], 2))
    for _ in range(500):
        top, left = rng.integers(0, np.array(x.shape[:2]) - patch + 1)
        noise = rng.uniform(0.1, 0.4) * rng.standard_normal((patch, patch, 2))
        field[top : top + patch, left : left + patch] += noise
    most = 2.5 * np.sqrt(side / 256)
    return _moved(x, strength * np.clip(_smooth(field, 1.0, 3.0), -most, most))


def turbulence(x: np.ndarray, key: jax.Array, strength: float = 1.0) -> np.ndarray:
    """Look through turbulent air as BlindDPS does: `tilt`, then a Gaussian blur.

    Args:
        x: photo.
        key: of the displacements.
        strength: factor of the displacements and of the blur's deviation, which is 1/64
            of the shorter side (there: 4 of 256 pixels).
    """
    return _smooth(tilt(x, key, strength), strength * min(x.shape[:2]) / 64)


def elastic(x: np.ndarray, key: jax.Array, severity: int = 5) -> np.ndarray:
    """Deform as ImageNet-C's elastic transform, without its random affine map.

    An affine map moves the picture as a whole, which is no damage. Unlike there, edges
    go on outside where there is a mirror.

    Args:
        x: photo.
        key: of the displacements.
        severity: 1 (nothing but the affine map that is left out) to 5.

    Raises:
        ValueError: there is no such severity.
    """
    side, rng = min(x.shape[:2]), generator(key)
    amplitude, smoothness = (side * part for part in _of_severity(ELASTIC, severity))
    field = rng.uniform(-1, 1, (*x.shape[:2], 2))
    return _moved(x, amplitude * _smooth(field, smoothness, 3.0))


def spatter(x: np.ndarray, key: jax.Array, severity: int = 3) -> np.ndarray:
    """Spatter water on the lens as ImageNet-C does: it brightens what is behind it.

    y = x + m (175, 238, 238) / 255, clipped to [0, 1]. Smoothed noise above a threshold
    is liquid; its thickness m depends on the distance to the rims of the liquid, which
    are Canny's edges. OpenCV's steps are written out here, in its 8-bit arithmetic. The
    water is drawn for a shorter side of 64 pixels, as its constants are, and scaled.

    Args:
        x: photo.
        key: of the liquid.
        severity: 1 to 3, of about 3, 8 and 30 % liquid. (4 and 5 are mud.)

    Raises:
        ValueError: there is no such severity.
    """
    height, width = x.shape[:2]
    grid = [round(GRID * side / min(height, width)) for side in (height, width)]
    mean, deviation, smoothness, threshold = _of_severity(SPATTER, severity)
    liquid = generator(key).normal(mean, deviation, (*grid, 1))
    liquid = _smooth(liquid, smoothness, edges="edge")[..., 0]
    liquid = np.where(liquid < threshold, 0, np.floor(255 * np.minimum(liquid, 1)))
    water = WATER * _thickness(liquid)[..., None]
    water = np.clip(_bicubic(water, (height, width), (0, 0, grid[1], grid[0])), 0, 1)
    return np.clip(x + water * PALE_TURQUOISE, 0, 1)


def water_drops(
    x: np.ndarray,
    key: jax.Array,
    num_drops: int = 5,
    radius: tuple[float, float] | None = None,
) -> np.ndarray:
    """Put drops of water on the lens; what lies between them is unchanged.

    As in ROLE (github.com/ricky40403/ROLE), simplified: a drop is a disc that is drawn
    out at its top. It shows twice its surroundings, blurred, upside down and a little
    brighter, and its rim is soft.

    Args:
        x: photo.
        key: of places and sizes.
        num_drops: how many there are; they may overlap.
        radius: smallest and largest, in pixels; 3 and 6 by default where the shorter
            side has 64 pixels, and in proportion.
    """
    rng, unit = generator(key), min(x.shape[:2]) / 64
    radius = (3 * unit, 6 * unit) if radius is None else radius
    rows, columns = np.indices(x.shape[:2])
    blurred = _smooth(x, unit)
    y = x
    for _ in range(num_drops):
        centre = rng.uniform(0, x.shape[:2])
        size = rng.uniform(*radius)
        down, right = rows - centre[0], columns - centre[1]
        tall = np.where(down < 0, 1.5 * size, size)
        inside = (down / tall) ** 2 + (right / size) ** 2 <= 1
        alpha = _smooth(inside[..., None].astype(np.float64), size / 5)
        seen = _sample(blurred, centre[0] - 2 * down, centre[1] + 2 * right)
        y = (1 - alpha) * y + alpha * np.minimum(1.15 * seen, 1)
    return np.clip(y, 0, 1)


def _check_unused(key: jax.Array | None) -> None:
    """Reject a severity in the place of the key, which would count for nothing.

    Raises:
        TypeError: it is no key.
    """
    if key is not None and not isinstance(key, jax.Array):
        raise TypeError(f"key is {key!r}; give a key or None, and name the severity")


def _of_severity(table: tuple[tuple[float, ...], ...], severity: int) -> Any:
    """Return the constants of a severity, which counts from 1.

    Raises:
        ValueError: there is no such severity.
    """
    if severity not in range(1, len(table) + 1):
        raise ValueError(f"severity is {severity}; use 1 to {len(table)}")
    return table[severity - 1]


def _length(given: float | None, x: np.ndarray, part: int) -> float:
    """Return a length in pixels: what is given, else a part of the shorter side."""
    return min(x.shape[:2]) / part if given is None else given


def _gaussian(sigma: float, cut: float) -> np.ndarray:
    """Return the window of a Gaussian, cut at so many deviations, with a sum of 1."""
    radius = max(1, round(cut * sigma))
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return window / window.sum()


def _smooth(
    x: np.ndarray, sigma: float, cut: float = 4.0, edges: Edges = "symmetric"
) -> np.ndarray:
    """Convolve rows and columns with a Gaussian; of deviation 0 nothing happens."""
    if sigma == 0:
        return x
    window = _gaussian(sigma, cut)
    return _filter(_filter(x, window, 0, edges), window, 1, edges)


def _filter(x: np.ndarray, window: np.ndarray, axis: int, edges: Edges) -> np.ndarray:
    """Filter along an axis with an odd window, x going on outside as `edges` says."""
    radius = len(window) // 2
    margins = [(radius, radius) if i == axis else (0, 0) for i in range(x.ndim)]
    padded = np.pad(x, margins, mode=edges)
    return np.lib.stride_tricks.sliding_window_view(padded, len(window), axis) @ window


def _bicubic(
    x: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    """Resize what is in a box (left, top, right, bottom) to a height and width."""
    height, width = size
    y = np.empty((height, width, x.shape[-1]))
    for i in range(x.shape[-1]):  # Pillow has one channel of floats at most
        channel = Image.fromarray(np.float32(x[..., i]))
        resized = channel.resize((width, height), Image.Resampling.BICUBIC, box)
        y[..., i] = np.asarray(resized)
    return y


def _moved(x: np.ndarray, field: np.ndarray) -> np.ndarray:
    """Show at each pixel what is at a displacement from it, (H, W, 2) in pixels."""
    rows, columns = np.indices(x.shape[:2])
    return _sample(x, rows + field[..., 0], columns + field[..., 1])


def _sample(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Read a photo between its pixels, bilinearly; its edges go on outside."""
    height, width = x.shape[:2]
    rows, columns = np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)
    top, left = np.intp(np.floor(rows)), np.intp(np.floor(columns))
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    bottom, beside = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    above = (1 - right) * x[top, left] + right * x[top, beside]
    below = (1 - right) * x[bottom, left] + right * x[bottom, beside]
    return (1 - down) * above + down * below


def _thickness(liquid: np.ndarray) -> np.ndarray:
    """Return how thick the water of a picture of liquid is, (H, W) in [0, 1].

    ImageNet-C's way from the 8-bit levels of the liquid: the distance to its rims,
    averaged, equalised and embossed, times the level.
    """
    distance = np.floor(_averaged(_distance(_edges(liquid))))
    emboss = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    relief = np.clip(_correlated(_equalised(distance), emboss), 0, 255)
    thickness = liquid * np.rint(_averaged(relief))
    return thickness / max(thickness.max(), 1)


def _correlated(grey: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Correlate with a 3x3 window; the picture is mirrored at its outermost pixels."""
    views = np.lib.stride_tricks.sliding_window_view(np.pad(grey, 1, "reflect"), (3, 3))
    return np.einsum("hwij,ij->hw", views, window)


def _averaged(grey: np.ndarray) -> np.ndarray:
    return _correlated(grey, np.ones((3, 3))) / 9


def _edges(grey: np.ndarray) -> np.ndarray:
    """Return Canny's edges of 8-bit levels, (H, W) bool (Canny, 1986).

    Sobel's differences; where the sum of their sizes is the largest across the edge and
    above the lower threshold there is an edge, if it hangs together with one above the
    upper threshold.
    """
    steps, means = np.array([-1, 0, 1]), np.array([1, 2, 1])
    right = _filter(_filter(grey, steps, 1, "edge"), means, 0, "edge")
    down = _filter(_filter(grey, steps, 0, "edge"), means, 1, "edge")
    size = np.abs(right) + np.abs(down)
    around = {
        (i, j): np.roll(np.pad(size, 1), (-i, -j), (0, 1))[1:-1, 1:-1]
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    }
    tangent = np.tan(np.pi / 8)
    flat = np.abs(down) < tangent * np.abs(right)
    steep = np.abs(down) * tangent > np.abs(right)
    falling = (size > around[-1, -1]) & (size > around[1, 1])
    rising = (size > around[-1, 1]) & (size > around[1, -1])
    largest = np.select(
        [flat, steep, right * down >= 0],
        [
            (size > around[0, -1]) & (size >= around[0, 1]),
            (size > around[-1, 0]) & (size >= around[1, 0]),
            falling,
        ],
        rising,
    )
    low, high = CANNY
    return _connected(largest & (size > low), largest & (size > high))


def _connected(allowed: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return the allowed pixels that hang together with a seed, diagonals included."""
    found = np.zeros_like(seeds)
    while (found != seeds).any():
        found = seeds
        views = np.lib.stride_tricks.sliding_window_view(np.pad(found, 1), (3, 3))
        seeds = allowed & views.any(axis=(2, 3))
    return found


def _distance(edges: np.ndarray) -> np.ndarray:
    """Return the distance to the nearest edge in pixels, FAR at most.

    Exact, along columns and then along rows (Felzenszwalb & Huttenlocher, 2012), where
    OpenCV's is right to a few per cent.
    """
    square = np.where(edges, 0.0, float(FAR**2))
    offsets = np.arange(-FAR, FAR + 1) ** 2
    for axis in (0, 1):
        margins = [(FAR, FAR) if i == axis else (0, 0) for i in (0, 1)]
        padded = np.pad(square, margins, constant_values=float(FAR**2))
        views = np.lib.stride_tricks.sliding_window_view(padded, len(offsets), axis)
        square = np.minimum((views + offsets).min(axis=-1), FAR**2)
    return np.sqrt(square)


def _equalised(grey: np.ndarray) -> np.ndarray:
    """Spread 8-bit levels so that each takes as much of the range as of the picture."""
    counts = np.bincount(np.intp(grey).ravel(), minlength=256)
    below = np.cumsum(counts) - counts[np.flatnonzero(counts)[0]]
    if below[-1] == 0:  # one level alone
        return grey
    return np.rint(255 * np.maximum(below, 0) / below[-1])[np.intp(grey)]


def halve(x: np.ndarray) -> np.ndarray:
    """Halve both sides by averaging 2x2 blocks; an odd last row or column is cut."""
    height, width = x.shape[0] // 2 * 2, x.shape[1] // 2 * 2
    blocks = x[:height, :width].reshape(height // 2, 2, width // 2, 2, -1)
    return blocks.mean(axis=(1, 3))


def centre_crop(x: np.ndarray, side: int) -> np.ndarray:
    """Cut a square out of the middle."""
    top, left = ((n - side) // 2 for n in x.shape[:2])
    return x[top : top + side, left : left + side]
