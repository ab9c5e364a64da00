"""The compared methods by name, each under the title that the tables give it.

What a method needs is imported when it is made, so that one that is not installed
costs its own row and no other.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax import canvas, diip, matched
from diip_jax.bench.baselines.restored import Restored
from diip_jax.config import DEFAULT, PAPER, DIIPConfig
from diip_jax.diip import DIIPState
from diip_jax.prior import Prior

BASELINES = "diip_jax.bench.baselines"
# Of the paper's method where minutes must do: fewer steps, and a stop that comes sooner
# than after its k_min of 100 iterations.
QUICK = PAPER.replace(num_steps=3, k_min=15, max_iterations=30)
PATIENCE = 100  # iterations without a better one, after which none is expected
Knowledge = Literal["nothing", "its form", "all"]
TITLES: Mapping[str, str] = {
    "nothing": "",
    "its form": " (partially blind)",
    "all": " (non-blind)",
}


class Problem(NamedTuple):
    """A damaged picture and what may be known of it; a pytree.

    Attributes:
        clean: as it was, (H, W, 3) in [0, 1]; None for all but oracles.
        y: damaged, on the grid of the result, (H, W, 3) in [0, 1].
        measurement: damaged, as it was measured, (h, w, 3) in [0, 1].
        operator: what was done to it but for the noise, None where that is not linear.
        sigma: deviation of the noise in `measurement`, in [0, 1].
    """

    clean: Any
    y: Any
    measurement: Any = None
    operator: Any = None
    sigma: Any = 0.0


Restore = Callable[[Prior, Problem, jax.Array], Restored]
Pose = Callable[[np.ndarray, jax.Array], Problem]  # clean picture, key of the damage


class Ready(NamedTuple):
    """A method whose needs are there, with its settings for a task.

    Attributes:
        restore: the method.
        settings: everything that decides what it returns, to be printed.
        is_compiled: `jax.jit` takes it; otherwise it is called as it is.
    """

    restore: Restore
    settings: Any = None
    is_compiled: bool = True


class Method(NamedTuple):
    """A row of a table.

    Attributes:
        title: without what it knows of the damage.
        make: the name of a task, and whether minutes must do, to the method.
        knows: of the damage.
        is_oracle: it looks at the clean picture.
        evaluations: about how many of the network it takes, for the estimate of time.
        gradients: how many of them are differentiated.
        seconds: what else it takes for 64x64 pixels, on two cores.
        needs: the package to install where it is missing, else empty.
    """

    title: str
    make: Callable[[str, bool], Ready]
    knows: Knowledge = "nothing"
    is_oracle: bool = False
    evaluations: int = 0
    gradients: int = 0
    seconds: float = 0.0
    needs: str = ""

    @property
    def full_title(self) -> str:
        """The title with what the method knows of the damage."""
        return self.title + TITLES[self.knows]


def seen(method: Method, problem: Problem) -> Problem:
    """Return what a method may see of a problem; the rest is None.

    Args:
        method: the method.
        problem: the whole problem.
    """
    if not method.is_oracle:
        problem = problem._replace(clean=None)
    if method.knows == "nothing":
        return problem._replace(measurement=None, operator=None, sigma=None)
    return problem if method.knows == "all" else problem._replace(operator=None)


def diip_with(config: DIIPConfig, quick: DIIPConfig | None = None) -> Callable:
    """Return what makes this package's method with these settings.

    Args:
        config: the settings.
        quick: those where minutes must do; the same if None.
    """

    def make(task: str, is_quick: bool) -> Ready:
        used = quick if is_quick and quick is not None else config

        def restore(prior: Prior, problem: Problem, key: jax.Array) -> Restored:
            answer = diip.restore(prior, jnp.asarray(problem.y), key, used)
            evaluations, gradients = work(used, answer.num_iterations)
            return Restored(answer.image, evaluations, gradients)

        return Ready(restore, used)

    return make


def work(config: DIIPConfig, num_iterations: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the evaluations of the network, and how many were differentiated.

    What the backward pass evaluates again to save memory is not counted.

    Args:
        config: the settings.
        num_iterations: of the starts, () or (num_starts,).
    """
    in_loop = config.num_steps * jnp.sum(num_iterations)
    looks = config.num_starts if config.criterion == "discrepancy" else 0
    asks = matched.is_needed(config) and config.noise_level is None
    before = config.num_steps * looks + asks
    gradients = jnp.int32(0) if config.gradient == "frozen" else in_loop
    return before + in_loop, gradients


def make_oracle(task: str, is_quick: bool) -> Ready:
    """Return the paper's run with the stop at the best PSNR."""
    config = QUICK if is_quick else PAPER

    def restore(prior: Prior, problem: Problem, key: jax.Array) -> Restored:
        return best_iterate(prior, problem, key, config)

    return Ready(restore, ("oracle", PATIENCE, config))


class _Best(NamedTuple):
    """What the search for the best iterate carries.

    Attributes:
        state: of Algorithm 1.
        image: best iterate, on its canvas.
        error: its mean square error.
        k: its iteration.
        stopped: the paper's criteria have stopped the run.
    """

    state: DIIPState
    image: jax.Array
    error: jax.Array
    k: jax.Array
    stopped: jax.Array


def best_iterate(
    prior: Prior, problem: Problem, key: jax.Array, config: DIIPConfig
) -> Restored:
    """Return the iterate of the highest PSNR; `diip.restore` makes the same ones.

    The run ends with its budget, or where both the criteria have stopped it and the
    last `PATIENCE` iterations brought nothing better.

    Args:
        prior: the frozen model.
        problem: the damaged picture, and the clean one.
        key: of the start.
        config: the settings, of one random start.
    """
    y = jnp.asarray(problem.y)
    algorithm, first = diip.prepare(prior, y, key, config)
    size = (y.shape[0], y.shape[1])
    budget = diip.budget(config, size)

    def goes_on(best: _Best) -> jax.Array:
        hopeful = best.state.k - best.k <= PATIENCE
        return (best.state.k < budget) & (~best.stopped | hopeful)

    def step(best: _Best) -> _Best:
        state = algorithm.step(best.state)
        shown = jnp.clip(canvas.cut(state.x, size), 0, 1)
        error = jnp.mean(jnp.square(shown - problem.clean))
        better = error < best.error
        return _Best(
            state=state,
            image=jnp.where(better, state.x, best.image),
            error=jnp.where(better, error, best.error),
            k=jnp.where(better, state.k, best.k),
            stopped=best.stopped | ~algorithm.should_continue(state),
        )

    start = _Best(first, first.x, jnp.float32(jnp.inf), first.k, jnp.bool_(False))
    best = lax.while_loop(goes_on, step, start)
    return Restored(canvas.cut(best.image, size), *work(config, best.state.k))


def make_input(task: str, is_quick: bool) -> Ready:
    """Return what gives the damaged picture back."""

    def restore(prior: Prior, problem: Problem, key: jax.Array) -> Restored:
        return Restored(jnp.asarray(problem.y), jnp.int32(0), jnp.int32(0))

    return Ready(restore, is_compiled=False)


METHODS: dict[str, Method] = {
    "input": Method("Input", make_input),
    "diip-paper": Method(
        "DIIP, paper", diip_with(PAPER, QUICK), evaluations=1200, gradients=1200
    ),
    "diip": Method("DIIP, default", diip_with(DEFAULT), evaluations=21, gradients=16),
    "diip-oracle": Method(
        "DIIP, paper, best iterate",
        make_oracle,
        is_oracle=True,
        evaluations=2500,
        gradients=2500,
    ),
}


def pose(task: str) -> Pose:
    """Return what makes a problem of a clean picture.

    Args:
        task: a name of `tasks.TASKS`.
    """
    from diip_jax.bench import tasks

    def posed(clean: np.ndarray, key: jax.Array) -> Problem:
        seen = tasks.TASKS[task].observe(clean, key)
        return Problem(clean, seen.y, seen.measurement, seen.operator, seen.sigma)

    return posed


def available(
    names: Iterable[str], tasks: Iterable[str], quick: bool
) -> tuple[dict[str, Method], list[str]]:
    """Return the methods that can run here, and a line for each that cannot.

    Args:
        names: of methods.
        tasks: names of tasks that they are to be made for.
        quick: with the settings for minutes.
    """
    found, left_out = {}, []
    for name in names:
        method = METHODS[name]
        try:
            for task in tasks:
                method.make(task, quick)
            found[name] = method
        except ModuleNotFoundError as error:
            needed = method.needs or error.name
            left_out.append(
                f"row {method.full_title} is left out: {error.name} is not installed; "
                f"install {needed}"
            )
    return found, left_out
