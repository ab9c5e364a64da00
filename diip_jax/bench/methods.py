"""The compared methods by name, each under the title that the tables give it.

What a method needs is imported when it is made, so that one that is not installed
costs its own row and no other.
"""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax import canvas, diip, matched
from diip_jax.bench.baselines import forms
from diip_jax.bench.baselines.restored import SMALL_SIDE, Restored
from diip_jax.config import DEFAULT, PAPER, DIIPConfig
from diip_jax.diip import DIIPState
from diip_jax.prior import Prior

BASELINES = "diip_jax.bench.baselines"
SIDE = 256  # pixels, of the pictures that the paper's learning rate is for
# Of the paper's method where minutes must do: fewer steps, and a stop that comes sooner
# than after its k_min of 100 iterations.
QUICKLY = MappingProxyType({"num_steps": 3, "k_min": 15, "max_iterations": 30})
QUICK = PAPER.replace(**QUICKLY)
# Of Algorithm 1 at the size of the bundled priors, tuned with `GRID`; docs/bench.md.
SMALL = MappingProxyType({"num_steps": 3, "learning_rate": 0.05})
GRID = MappingProxyType(
    {"num_steps": (3, 10), "learning_rate": (0.006, 0.02, 0.05, 0.1)}
)
PATIENCE = 100  # iterations without a better one, after which none is expected
Knowledge = Literal["nothing", "its form", "all"]
TITLES: Mapping[str, str] = {
    "nothing": "",
    "its form": " (partially blind)",
    "all": " (non-blind)",
}


class MissingError(Exception):
    """A method needs what is not installed; the message says what to do."""


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


class Setting(NamedTuple):
    """What the settings of a method depend on.

    Attributes:
        task: a name of `tasks.TASKS`.
        side: of the pictures in pixels.
        quick: minutes must do.
    """

    task: str
    side: int
    quick: bool


Make = Callable[[Setting], Ready | None]  # None: the task is not for the method


class Method(NamedTuple):
    """A row of a table.

    Attributes:
        title: without what it knows of the damage.
        make: makes it ready for a task.
        knows: of the damage.
        is_oracle: it looks at the clean picture.
        evaluations: about how many of the network it takes, for the estimate of time.
        gradients: how many of them are differentiated.
        seconds: what else it takes for 64x64 pixels, on two cores.
    """

    title: str
    make: Make
    knows: Knowledge = "nothing"
    is_oracle: bool = False
    evaluations: int = 0
    gradients: int = 0
    seconds: float = 0.0

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


def diip_with(config: DIIPConfig, quick: DIIPConfig | None = None) -> Make:
    """Return what makes this package's method with these settings.

    Args:
        config: the settings.
        quick: those where minutes must do; the same if None.
    """

    def make(setting: Setting) -> Ready:
        used = quick if setting.quick and quick is not None else config

        def restore(prior: Prior, problem: Problem, key: jax.Array) -> Restored:
            answer = diip.restore(prior, jnp.asarray(problem.y), key, used)
            evaluations, gradients = work(used, answer.num_iterations)
            return Restored(answer.image, evaluations, gradients)

        return Ready(restore, used)

    return make


def for_side(config: DIIPConfig, side: int) -> DIIPConfig:
    """Return settings that suit pictures of another size.

    The paper has one size and one learning rate, and does not say how many steps g has.
    For small pictures both are tuned (`SMALL`). For others the rate is in inverse
    proportion to the side (inferred): a step of Adam moves the mean of z, in units of
    its own deviation, by the rate times the side.

    Args:
        config: the settings, for pictures of 256x256 pixels.
        side: of the pictures in pixels.
    """
    if side <= SMALL_SIDE:
        return config.replace(**SMALL)
    return config.replace(learning_rate=config.learning_rate * SIDE / side)


class Adapted(NamedTuple):
    """Makes Algorithm 1 with settings for the size of the pictures.

    Its two signals are read off running averages (`criterion="robust"`): at a rate of
    use for small pictures the loss rises now and then, and one rise is a stop by the
    listing.

    Attributes:
        quick: changes of its settings where minutes must do.
        changes: of its settings, whatever the task.
    """

    quick: Mapping[str, Any] = QUICKLY
    changes: Mapping[str, Any] = MappingProxyType({})

    @property
    def settings(self) -> type:
        """The class of its settings."""
        return DIIPConfig

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        """The values that `bench.tune` tries."""
        return GRID

    def config(self, setting: Setting) -> DIIPConfig:
        """Return its settings."""
        quick = self.quick if setting.quick else {}
        config = for_side(PAPER, setting.side).replace(criterion="robust")
        return config.replace(**{**quick, **self.changes})

    def __call__(self, setting: Setting) -> Ready | None:
        """Make it ready for a task."""
        return diip_with(self.config(setting))(setting)


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


def make_oracle(setting: Setting) -> Ready:
    """Return the run of `Adapted` with the stop at the best PSNR."""
    config = Adapted().config(setting)

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


def rival(name: str) -> Make:
    """Return what makes a method of `bench.rivals`.

    Args:
        name: of the rival.
    """

    def make(setting: Setting) -> Ready:
        from diip_jax.bench import rivals, tasks

        if lacks := rivals.missing(name):
            raise MissingError(f"pip install {' '.join(lacks)}")

        def restore(prior: Prior, problem: Problem, key: jax.Array) -> Restored:
            y, measurement, sigma = problem.y, problem.measurement, problem.sigma
            observation = tasks.Observation(y, measurement, None, sigma)
            answer = rivals.RIVALS[name].restore(prior, problem.clean, observation)
            # Those of a network of the rival's own are not those of the prior's.
            evaluations = answer.evaluations if name.startswith("one-shot") else 0
            return Restored(
                jnp.asarray(answer.image), jnp.int32(evaluations), jnp.int32(0)
            )

        return Ready(restore, ("rival", name), is_compiled=False)

    return make


class Baseline(NamedTuple):
    """Makes a method of `bench.baselines`.

    It has its own settings for the task, and where they have a `sigma`, that of the
    picture. It is given the measurement where it has the operator, or where the form of
    degradation that it assumes has one of another size; otherwise y.

    Attributes:
        name: of its module.
        quick: changes of its settings where minutes must do.
        changes: of its settings, whatever the task.
    """

    name: str
    quick: Mapping[str, Any] = MappingProxyType({})
    changes: Mapping[str, Any] = MappingProxyType({})

    @property
    def module(self) -> ModuleType:
        """The module, imported."""
        return importlib.import_module(f"{BASELINES}.{self.name}")

    @property
    def settings(self) -> type:
        """The class of its settings."""
        return self.module.Config

    @property
    def grid(self) -> Mapping[str, Sequence[Any]]:
        """The values that `bench.tune` tries."""
        return self.module.GRID

    def __call__(self, setting: Setting) -> Ready | None:
        """Make it ready for a task."""
        module = self.module
        config = module.config_for(setting.task, setting.side)
        if config is None:
            return None
        quick = self.quick if setting.quick else {}
        config = config.replace(**{**quick, **self.changes})
        shrinks = getattr(config, "form", None) in forms.SHRINKING

        def restore(prior: Prior, problem: Problem, key: jax.Array) -> Restored:
            used, y = config, problem.y
            if hasattr(config, "sigma") and problem.sigma is not None:
                used = config.replace(sigma=problem.sigma)
            if shrinks or problem.operator is not None:
                y = problem.measurement
            return module.restore(prior, y, key, used, problem.operator)

        return Ready(restore, config)


# In the order of the paper's tables, what is not in them behind.
METHODS: dict[str, Method] = {
    "input": Method("Input (super-resolution: bicubic)", rival("input")),
    "one-shot": Method("One-shot denoiser", rival("one-shot"), evaluations=1),
    "one-shot-oracle": Method(
        "One-shot denoiser, best level",
        rival("one-shot-oracle"),
        is_oracle=True,
        evaluations=17,
    ),
    "tv": Method("Total variation, best weight", rival("tv"), is_oracle=True),
    "nlm": Method("Non-local means, true noise", rival("nlm"), knows="its form"),
    "bm3d": Method("BM3D, true noise", rival("bm3d"), knows="its form", seconds=5),
    "ffdnet": Method("FFDNet", rival("ffdnet")),
    "ffdnet-oracle": Method(
        "FFDNet, best level", rival("ffdnet-oracle"), is_oracle=True
    ),
    "gdp": Method(
        "GDP",
        Baseline("gdp", quick={"num_steps": 50}),
        knows="its form",
        evaluations=1000,
    ),
    "gibbs-ddrm": Method(
        "GibbsDDRM",
        Baseline(
            "gibbs_ddrm", quick={"num_steps": 20, "rounds": 1, "langevin_steps": 50}
        ),
        knows="its form",
        evaluations=235,
        seconds=10,  # of 67,500 Langevin steps
    ),
    "bird": Method(
        "BIRD",
        Baseline("bird", quick={"iterations": 10}),
        knows="its form",
        evaluations=2000,
    ),
    "blind-dps": Method(
        "BlindDPS (no kernel prior)",
        Baseline("blind_dps", quick={"num_steps": 50}),
        knows="its form",
        evaluations=1000,
        gradients=1000,
    ),
    "dip": Method("DIP", Baseline("dip", quick={"iterations": 100}), seconds=20),
    "dreamclean": Method(
        "DreamClean", Baseline("dreamclean", quick={"n": 10}), evaluations=60
    ),
    "diip-paper": Method(
        "DIIP, paper", diip_with(PAPER, QUICK), evaluations=1200, gradients=1200
    ),
    "diip-adapted": Method(
        "DIIP, paper, adapted to this size",
        Adapted(),
        evaluations=300,
        gradients=300,
    ),
    "diip": Method("DIIP, default", diip_with(DEFAULT), evaluations=21, gradients=16),
    "diip-oracle": Method(
        "DIIP, adapted to this size, best iterate",
        make_oracle,
        is_oracle=True,
        evaluations=2500,
        gradients=2500,
    ),
    "ddrm": Method(
        "DDRM", Baseline("ddrm", quick={"num_steps": 20}), knows="all", evaluations=100
    ),
    "ddnm": Method(
        "DDNM+", Baseline("ddnm", quick={"num_steps": 20}), knows="all", evaluations=100
    ),
    "dps": Method(
        "DPS",
        Baseline("dps", quick={"num_steps": 50}),
        knows="all",
        evaluations=1000,
        gradients=1000,
    ),
}


def pose(task: str) -> Pose:
    """Return what makes a problem of a clean picture.

    Args:
        task: a name of `tasks.TASKS`.
    """
    from diip_jax.bench import tasks

    def posed(clean: np.ndarray, key: jax.Array) -> Problem:
        found = tasks.TASKS[task].observe(clean, key)
        size = (clean.shape[0], clean.shape[1])
        operator = known_operator(found.operator, size)
        return Problem(clean, found.y, found.measurement, operator, found.sigma)

    return posed


def known_operator(description: Any, size: tuple[int, int]) -> Any:
    """Return the operator that a task describes, None where it describes none.

    Args:
        description: `tasks.Separable`, `tasks.Convolution` or None.
        size: height and width of the pictures.
    """
    from diip_jax.bench import operators, tasks

    if description is None:
        return None
    if isinstance(description, tasks.Separable):
        return operators.separable(*description)
    return operators.convolution(jnp.asarray(description.kernel), size)


def available(
    names: Iterable[str], settings: Sequence[Setting]
) -> tuple[dict[str, Method], list[str]]:
    """Return the methods that can run here, and a line for each that cannot.

    A method that none of the tasks is for is in neither.

    Args:
        names: of methods.
        settings: what they are to be made for.
    """
    found, left_out = {}, []
    for name in names:
        method = METHODS[name]
        try:
            ready = [method.make(setting) for setting in settings]
        except MissingError as error:
            left_out.append(f"row {method.full_title} is left out: {error}")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("diip_jax"):
                raise  # ours to mend
            left_out.append(
                f"row {method.full_title} is left out: pip install {error.name}"
            )
        else:
            if any(one is not None for one in ready):
                found[name] = method
    return found, left_out
