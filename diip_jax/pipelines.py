"""Algorithm 1 for pipelines of one's own: any generator, and a loop to differentiate.

`diip.restore` is this loop on a prior. Here g is any function from noise to an image.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from diip_jax import canvas, ddim, devices, diip, stopping
from diip_jax.config import PAPER, DIIPConfig

# Adam whose root has a finite derivative at 0, which `optax.adam` has not: a pixel that
# is clipped has gradient 0. The number is far below any square of a gradient that moves
# a pixel, so the updates are the same.
ADAM = functools.partial(optax.adam, eps_root=1e-30)


def restore_with(
    generate: ddim.Generate,
    y: jax.Array,
    key: jax.Array,
    config: DIIPConfig = PAPER,
    *,
    optimizer: diip.Optimizer = optax.adam,
    criterion: diip.MakeCriterion = stopping.criterion,
) -> diip.Restoration:
    """Restore a degraded image with any generator, optimiser and criterion.

    Pure, as `diip.restore` is, and the same loop. Of the settings, those that make g
    from a prior have no effect.

    Args:
        generate: g, noise (H, W, 3) to image (H, W, 3) in [-1, 1], differentiable; of a
            noise predictor by `ddim.generator`. Under `jit`, weights that it uses
            should be arguments of the jitted function.
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start.
        config: the settings; the paper's by default.
        optimizer: makes an optax transformation of `config.learning_rate`, such as
            `optax.sgd`.
        criterion: makes a `stopping.Criterion` of the settings and of the mean square
            of the damage, which is 0 here: nothing is known of it. Its `init` and
            `update` are pure, and a `stopping.Verdict` is the first field, `verdict`,
            of its state.

    Returns:
        The restored image with its stop reason and traces.

    Raises:
        ValueError: y is not an image, the settings are not possible or ask a prior, or
            g makes something else than an image of y's size.

    Example:
        >>> answer = restore_with(generate, y, key, optimizer=optax.sgd)
    """
    parts = diip.Parts(optimizer=optimizer, criterion=criterion)
    problem = _pose(generate, y, key, config, parts)
    return diip.from_starts(*problem, config.num_starts)


def unrolled(
    generate: ddim.Generate,
    y: jax.Array,
    key: jax.Array,
    config: DIIPConfig = PAPER,
    *,
    num_iterations: int,
    optimizer: diip.Optimizer = ADAM,
) -> diip.Restoration:
    """Restore by a fixed number of iterations, as a function to differentiate.

    A `lax.scan` over the iterations of `restore_with`, without a criterion. The image,
    the losses and the sharpnesses have derivatives in reverse mode by y, the learning
    rate, and the weights that `generate` uses. The way back computes each iteration
    again (`jax.checkpoint`): memory holds one of them, and a state for each.

    Not differentiable are the place of a stop and `num_iterations`. What `generate`
    stops is stopped here too: under `gradient="frozen"` the answer has no derivative by
    the network's weights. `ddim.straight_through_clip` has derivative 1 also where the
    clip is flat, so that a derivative through it is not the slope of the answer.

    Forward mode (`jvp`, `jacfwd`, `hessian`) raises TypeError on this package's
    networks, whose layers have a `jax.custom_vjp`, unless `gradient="frozen"`. It works
    where g has none.

    Args:
        generate: g, noise (H, W, 3) to image (H, W, 3) in [-1, 1].
        y: degraded image, (H, W, 3) in [0, 1].
        key: key of the random start.
        config: the settings; their criterion and budget are not used.
        num_iterations: how many; the image is that of the last one.
        optimizer: makes an optax transformation of the learning rate. It needs a
            derivative itself, which `optax.adam` has only where no gradient is 0.

    Returns:
        What `restore_with` returns after so many iterations without a stop.

    Raises:
        ValueError: as for `restore_with`.
    """
    diip.check_count("num_iterations", num_iterations)
    config = config.replace(criterion="never", max_iterations=num_iterations)
    problem = _pose(generate, y, key, config, diip.Parts(optimizer=optimizer))
    return diip.from_starts(*problem, config.num_starts, run=_run_all(num_iterations))


def _run_all(num_iterations: int) -> diip.Run:
    """Return what does so many iterations, whatever the losses are."""

    def run(algorithm: diip.Algorithm, state: diip.DIIPState) -> diip.DIIPState:
        step = jax.checkpoint(algorithm.step)
        body = lambda state, _: (step(state), None)  # noqa: E731
        return lax.scan(body, state, length=num_iterations)[0]

    return run


class _Problem(NamedTuple):
    """What `diip.from_starts` takes first."""

    algorithm: diip.Algorithm
    first: Callable[[jax.Array | int], diip.DIIPState]
    photo: jax.Array


def _pose(
    generate: ddim.Generate,
    y: jax.Array,
    key: jax.Array,
    config: DIIPConfig,
    parts: diip.Parts,
) -> _Problem:
    """Return the problem of an image on a generator of its size."""
    diip.check_form(y)
    diip.check_config(config)
    diip.check_values(y)
    asks = {"start": "matched"}
    if parts.criterion is stopping.criterion:
        asks["criterion"] = "discrepancy"
    for name, value in asks.items():
        if getattr(config, name) == value:
            raise ValueError(
                f"{name} is {value!r}, which asks a prior about y; use another one, or "
                "diip.restore"
            )
    photo, key = devices.vary_together(jnp.asarray(y, jnp.float32), key)
    made = jax.eval_shape(generate, photo)
    if made.shape != photo.shape:
        raise ValueError(
            f"generate makes {made.shape} of noise {photo.shape}; it must make an "
            "image of y's size"
        )
    on_canvas = canvas.place(photo, (photo.shape[0], photo.shape[1]))
    algorithm = diip.build(generate, on_canvas, config, parts=parts)

    def first(index: jax.Array | int) -> diip.DIIPState:
        return diip.start(on_canvas, key, config, index=index, parts=parts)

    return _Problem(algorithm, first, photo)
