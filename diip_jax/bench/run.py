"""Every method on every picture of every task, one cell after another."""

import io
import itertools
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diip_jax import canvas, degradations, entries, images, storage
from diip_jax.bench import cells, methods
from diip_jax.bench.baselines.restored import SMALL_SIDE, Restored
from diip_jax.bench.cells import Cell, Name, Store
from diip_jax.bench.methods import Method, Pose, Problem, Ready, Setting
from diip_jax.compilation import compiler_options
from diip_jax.config import PAPER
from diip_jax.images import ImageError
from diip_jax.photos import find
from diip_jax.photos.find import InputError
from diip_jax.photos.reference import PerceptualMetric
from diip_jax.prior import Prior

PICTURES = "pictures"  # folder of restored pictures, beside the cells
POLL = 0.005  # seconds between two looks at a computation, so that Ctrl-C is heard


def silent(items: Iterable[Any], what: str) -> Iterable[Any]:
    """Return the items; the progress that nobody sees.

    Args:
        items: what is gone through.
        what: what is done with them.
    """
    return items


class Options(NamedTuple):
    """How tables and figures are to be made.

    Attributes:
        command: as it was typed, for the head of each table.
        seeds: of noise and starts; each is a run of its own.
        quick: with the reduced settings that fit in minutes.
        progress: goes through items, as `tqdm` does, and may show how far it is:
            `for image in options.progress(images, "table 1")`.
    """

    command: str = ""
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    progress: Callable[[Iterable[Any], str], Iterable[Any]] = silent


class Plan(NamedTuple):
    """What is to be computed.

    Attributes:
        tasks: what damages a clean picture, by name.
        methods: the methods, by name.
        images: names and clean pictures, (H, W, 3) in [0, 1].
        seeds: of noise and starts.
        quick: with the settings for minutes.
        context: what else a result depends on, to be printed.
        by_image: one method after another on each picture, for times to compare; by
            default one picture after another in each method.
        needs_pictures: a cell whose restored picture is not there is computed again.
        needs_lpips: one without LPIPS is, too.
    """

    tasks: Mapping[str, Pose]
    methods: Mapping[str, Method]
    images: Sequence[tuple[str, np.ndarray]]
    seeds: Sequence[int] = (0,)
    quick: bool = False
    context: Any = None
    by_image: bool = False
    needs_pictures: bool = False
    needs_lpips: bool = False

    def setting(self, task: str) -> Setting:
        """Return what the settings of methods depend on."""
        return Setting(task, len(self.images[0][1]), self.quick)


class Work(NamedTuple):
    """One cell to compute.

    Attributes:
        name: of the cell.
        clean: the clean picture, (H, W, 3) in [0, 1].
    """

    name: Name
    clean: np.ndarray


class Tally(NamedTuple):
    """What a run came to.

    Attributes:
        names: all cells of the plan.
        num_computed: how many of them are new, errors among them.
        errors: methods and tasks that failed, each with its reason.
    """

    names: Sequence[Name]
    num_computed: int
    errors: Mapping[tuple[str, str], str]


class Execution(NamedTuple):
    """A restoration and what it cost, as in `cells.Cell`."""

    restored: Restored
    seconds: float
    compile_seconds: float
    memory: int | None
    memory_of: str


# The pictures.


def pictures(
    folder: Path, side: int, first: int = 0, count: int | None = None
) -> tuple[list[tuple[str, np.ndarray]], list[tuple[str, str]]]:
    """Return the clean pictures of a folder, and the files that give none.

    The largest square in the middle, scaled down to the side by Lanczos' filter. A
    smaller picture is refused: enlarged it would not be sharp.

    Args:
        folder: where they are.
        side: of the prior's pictures, in pixels.
        first: so many are skipped, in the order of their names.
        count: so many are taken at most; all if None.

    Returns:
        Names with pictures, each (side, side, 3) float32 in [0, 1]; and names with
        reasons.

    Raises:
        InputError: there is no folder, or no picture file in it.
    """
    if not find.is_folder(folder):
        raise InputError(f"{folder} is no folder; give one of clean pictures")
    taken, rejected = [], []
    sources = find.sources([str(folder)])
    for source in itertools.islice(sources, first, None):
        if count is not None and len(taken) == count:
            break
        name = source.path.name
        try:
            if source.problem is not None:
                raise ImageError(source.problem)
            taken.append((name, fitted(images.read(source.path).rgb, side)))
        except ImageError as error:
            rejected.append((name, str(error)))
    return taken, rejected


def fitted(x: np.ndarray, side: int) -> np.ndarray:
    """Return the centre of a picture at a side, (side, side, 3) float32 in [0, 1].

    Raises:
        ImageError: it is smaller.
    """
    height, width = x.shape[:2]
    if min(height, width) < side:
        raise ImageError(f"it is {width}x{height}; the prior needs {side}x{side}")
    square = degradations.centre_crop(x, min(height, width)).astype(np.float32)
    if len(square) == side:
        return square
    resized = [
        Image.fromarray(square[..., c]).resize((side, side), Image.Resampling.LANCZOS)
        for c in range(3)
    ]
    return np.clip(np.stack([np.asarray(c) for c in resized], axis=-1), 0, 1)


# The cells.


def run(
    prior: Prior,
    plan: Plan,
    store: Store,
    perceptual: PerceptualMetric,
    options: Options,
    what: str,
) -> Tally:
    """Compute the cells that are not there yet.

    Args:
        prior: the frozen model.
        plan: what is to be computed.
        store: where results go.
        perceptual: of `reference.perceptual_metric`.
        options: the progress.
        what: for the progress.
    """
    everything, missing = everything_and_missing(prior, plan, store)
    errors = {}
    laboratory = Laboratory(prior, plan, store.folder, perceptual)
    for work in options.progress(missing, what):
        cell = laboratory.cell(work)
        if cell.error is not None:
            errors[cell.name.method, cell.name.task] = cell.error
        store.add(cell)
    return Tally([work.name for work in everything], len(missing), errors)


def everything_and_missing(
    prior: Prior, plan: Plan, store: Store
) -> tuple[list[Work], list[Work]]:
    """Return all cells of a plan, and those of them that are still to be computed."""
    everything = list(works(prior, plan))
    return everything, [w for w in everything if not is_there(plan, store, w.name)]


def is_there(plan: Plan, store: Store, name: Name) -> bool:
    """Tell whether nothing is left to compute of a cell.

    Args:
        plan: what is asked for.
        store: what is there.
        name: of the cell.
    """
    cell = store.find(name)
    if cell is None or (plan.needs_lpips and cell.lpips is None):
        return False
    if not plan.needs_pictures:
        return True
    return (
        cell.picture is not None and entries.kind(store.folder / cell.picture) == "file"
    )


class Speed(NamedTuple):
    """Seconds of one evaluation of the prior's network, at its own size.

    Attributes:
        forward: without a gradient.
        gradient: with one.
    """

    forward: float
    gradient: float


def speed(prior: Prior) -> Speed:
    """Measure how fast the prior's network is here: medians of five."""
    side = prior.card.architecture.image_size
    config = PAPER.replace(num_steps=1)
    z = jnp.zeros((side, side, 3))

    def forward(z: jax.Array, prior: Prior) -> jax.Array:
        return jnp.mean(canvas.generator(prior, config, (side, side))(z))

    def seconds(function: Any) -> float:
        program = jax.jit(function, compiler_options=compiler_options())
        times = []
        for _ in range(6):
            start = time.perf_counter()
            jax.block_until_ready(program(z, prior))
            times.append(time.perf_counter() - start)
        return float(np.median(times[1:]))  # the first one compiles

    return Speed(seconds(forward), seconds(jax.grad(forward)))


def forecast(prior: Prior, plan: Plan, store: Store, speed: Speed | None) -> str:
    """Return in words how much of a plan there is to do.

    Args:
        prior: the frozen model.
        plan: what is to be computed.
        store: what is there.
        speed: of the network; None leaves out how long it takes.
    """
    everything, missing = everything_and_missing(prior, plan, store)
    counts = f"{len(plan.images)} pictures, {len(plan.methods)} methods, "
    counts += f"{len(plan.tasks)} tasks, {len(plan.seeds)} seeds: {len(missing)} cells "
    counts += f"to compute, {len(everything) - len(missing)} there"
    if speed is None or not missing:
        return counts
    pixels = prior.card.architecture.image_size**2
    total = 0.0
    for work in missing:
        method = plan.methods[work.name.method]
        total += (method.evaluations - method.gradients) * speed.forward
        total += method.gradients * speed.gradient
        total += method.seconds * pixels / SMALL_SIDE**2
    return f"{counts}; about {duration(total)} without compilation"


def duration(seconds: float) -> str:
    """Return a time in words, such as "2 h 05 min"."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{max(minutes, 1)} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def works(prior: Prior, plan: Plan) -> Iterator[Work]:
    """Yield the cells of a plan in the order in which few programs are compiled."""
    pairs = list(itertools.product(plan.methods, plan.tasks))
    settings = {pair: _settings(plan, *pair) for pair in pairs}
    pictures = [(*image, cells.digest(image[1])) for image in plan.images]
    if plan.by_image:
        order = ((m, t, p) for p in pictures for m, t in pairs)
    else:
        order = ((m, t, p) for m, t in pairs for p in pictures)
    for method, task, (image, clean, digest) in order:
        if (setting := settings[method, task]) is None:
            continue
        for seed in plan.seeds:
            about = (task, method, image, digest, seed, setting)
            yield Work(Name(prior.card.sha256[:16], *about), clean)


def _settings(plan: Plan, method: str, task: str) -> str | None:
    """Return the digest of all else that decides a result; None: not for the task."""
    ready = plan.methods[method].make(plan.setting(task))
    if ready is None:
        return None
    return cells.digest(ready.settings, plan.context, metadata.version("diip-jax"))


def keys(name: Name) -> tuple[jax.Array, jax.Array]:
    """Return the keys of the damage and of the method.

    They depend on the picture, the task and the seed alone: every method gets the same
    damaged picture, in any order of work, and equal methods have equal starts.
    """
    place = zlib.crc32(f"{name.digest} {name.task}".encode())
    key = jax.random.fold_in(jax.random.key(name.seed), place)
    damage, method = jax.random.split(key)
    return damage, method


class Laboratory:
    """Computes cells, and keeps the programs that the next ones may need."""

    def __init__(
        self, prior: Prior, plan: Plan, folder: Path, perceptual: PerceptualMetric
    ):
        """Compute nothing yet.

        Args:
            prior: the frozen model.
            plan: the tasks and methods.
            folder: where pictures go.
            perceptual: of `reference.perceptual_metric`.
        """
        self._prior, self._plan = prior, plan
        self._folder, self._perceptual = folder, perceptual
        self._benches: dict[tuple[str, str], Bench] = {}

    def cell(self, work: Work) -> Cell:
        """Compute a cell; what fails is a cell with an error."""
        try:
            return self._computed(work)
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {line}".removesuffix(": ")
            return Cell(work.name, device=device(), error=reason)

    def _computed(self, work: Work) -> Cell:
        name = work.name
        damage, key = keys(name)
        problem = self._plan.tasks[name.task](work.clean, damage)
        problem = methods.seen(self._plan.methods[name.method], problem)
        done = self._bench(name)(self._prior, problem, key)
        image = np.asarray(done.restored.image, np.float32)
        found = cells.scores(self._perceptual, work.clean, image)
        return Cell(
            name,
            psnr=found["psnr"],
            ssim=found["ssim"],
            lpips=found["lpips"],
            evaluations=int(done.restored.evaluations),
            gradients=int(done.restored.gradients),
            seconds=done.seconds,
            compile_seconds=done.compile_seconds,
            memory=done.memory,
            memory_of=done.memory_of,
            device=device(),
            picture=self._write(name, image),
        )

    def _bench(self, name: Name) -> "Bench":
        """Return what runs a method with its settings, the same as long as needed."""
        kind = (name.method, name.settings)
        if kind not in self._benches:
            if not self._plan.by_image:  # the programs of other methods are done with
                self._benches.clear()
            make = self._plan.methods[name.method].make
            ready = make(self._plan.setting(name.task))
            assert ready is not None  # or there would be no such cell
            self._benches[kind] = Bench(ready)
        return self._benches[kind]

    def _write(self, name: Name, image: np.ndarray) -> str:
        """Write a picture as PNG of 8 bits; return where, relative to the cells."""
        file = f"{name.method}_seed{name.seed}_{cells.digest(*name)[:8]}.png"
        path = Path(PICTURES, name.task, name.image, file)
        (self._folder / path.parent).mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(images.to_uint(image, 8)).save(buffer, "PNG")
        storage.write_bytes(self._folder / path, buffer.getvalue())
        return path.as_posix()


class Bench:
    """Runs one method; a program is compiled once for each shape of a problem."""

    def __init__(self, ready: Ready):
        """Compile nothing yet."""
        self._ready = ready
        self._programs: dict[Any, Any] = {}

    def __call__(self, prior: Prior, problem: Problem, key: jax.Array) -> Execution:
        """Restore, and measure what it takes."""
        arguments = (prior, problem, key)
        start = time.perf_counter()
        if self._ready.is_compiled:
            program = self._compiled(*arguments)
        else:
            program = self._ready.restore
            self._warm_up(*arguments)
        compiled = time.perf_counter()
        restored = _finished(program(*arguments))
        seconds = time.perf_counter() - compiled
        memory, memory_of = _memory(program if self._ready.is_compiled else None)
        return Execution(restored, seconds, compiled - start, memory, memory_of)

    def _compiled(self, *arguments: Any) -> Any:
        kind = _kind(arguments[1])
        if kind not in self._programs:
            jitted = jax.jit(self._ready.restore, compiler_options=compiler_options())
            self._programs[kind] = jitted.lower(*arguments).compile()
        return self._programs[kind]

    def _warm_up(self, *arguments: Any) -> None:
        """Run what is not compiled as a whole once, where its shapes are new."""
        kind = _kind(arguments[1])
        if kind not in self._programs:
            _finished(self._ready.restore(*arguments))
            self._programs[kind] = None


def _kind(problem: Problem) -> Any:
    """Return what is the same for problems of the same shapes."""
    leaves, tree = jax.tree.flatten(problem)
    return tree, tuple((np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _finished(restored: Restored) -> Restored:
    """Wait for an answer; an interrupt is heard meanwhile, which JAX would not do."""
    leaves: list[Any] = [leaf for leaf in restored if isinstance(leaf, jax.Array)]
    while not all(leaf.is_ready() for leaf in leaves):
        time.sleep(POLL)
    return jax.block_until_ready(restored)


def _memory(program: Any | None) -> tuple[int | None, str]:
    """Return the peak of a compiled program; None: of this process; and of which."""
    if program is None:
        return _resident(), "process"
    plan = program.memory_analysis()
    if plan is None:
        return None, "program"
    used = plan.argument_size_in_bytes + plan.output_size_in_bytes
    return used + plan.temp_size_in_bytes - plan.alias_size_in_bytes, "program"


def _resident() -> int | None:
    """Return the peak of this process's resident set; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes elsewhere


def device() -> str:
    """Return what JAX computes on."""
    found = jax.devices()[0]
    return f"{found.platform}:{found.device_kind}"
