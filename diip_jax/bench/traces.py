"""Runs that nothing stops, each made once and kept.

A stored run of the paper's algorithm holds every iterate, so that every stopping rule,
and the best stop in hindsight, can be looked up in it afterwards (Tables 1-3, Figs. 3,
4 and 6). One of the Deep Image Prior is ten times as long, and holds a few (Fig. 3).
"""

import dataclasses
import functools
import hashlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from diip_jax import canvas, diip, metrics, storage
from diip_jax.bench import cells, methods, run, tasks
from diip_jax.bench.baselines import dip
from diip_jax.bench.cells import CellsError, Name
from diip_jax.compilation import compiler_options
from diip_jax.config import PAPER, DIIPConfig
from diip_jax.prior import Prior

SCHEMA = "diip.trace/1"
FOLDER = "traces"
# Beyond the paper's stops, which Table 6 puts at about 120 iterations on average, and
# short of the 1500 of Sec. 3.3, which take most of an hour on a CPU.
FULL = PAPER.replace(criterion="never", max_iterations=300)
QUICK = methods.QUICK.replace(criterion="never")
SHOWN = 7  # iterates of a strip, beside the best one

Image = tuple[str, np.ndarray]  # name and clean picture, (H, W, 3) in [0, 1]


class TraceError(CellsError):
    """A file that should hold a run does not."""


class Subject(NamedTuple):
    """A degraded picture to follow, with what only an experiment knows.

    Attributes:
        task: what happened to it.
        image: name of the picture.
        seed: of the degradation and of the start.
        clean: as it was, (H, W, 3) in [0, 1].
        degraded: y, (H, W, 3) float32 in [0, 1].
        sigma: standard deviation of the noise in y, in [0, 1].
    """

    task: str
    image: str
    seed: int
    clean: np.ndarray
    degraded: np.ndarray
    sigma: float


Observe = Callable[[Image, int], Subject]  # of a picture, with a seed


class Trace(NamedTuple):
    """A run that nothing stopped; K iterations.

    Attributes:
        subject: what was followed.
        losses: E(z^k; y) in the prior's range [-1, 1], (K,) float32.
        sharpnesses: sigma^2[k], (K,) float32.
        images: g(z^k), (K, H, W, 3) uint8.
        psnrs: of the images against the clean one, in dB, (K,) float64.
        ssims: likewise; NaN where a picture is too small for it.
    """

    subject: Subject
    losses: np.ndarray
    sharpnesses: np.ndarray
    images: np.ndarray
    psnrs: np.ndarray
    ssims: np.ndarray

    def strip(self) -> dict[int, np.ndarray]:
        """Return the images that a strip shows by their iterations."""
        return {k: self.images[k] for k in shown(self.psnrs).tolist()}

    def best(self) -> np.ndarray:
        """Return the image of the highest PSNR."""
        return self.images[np.argmax(self.psnrs)]


class Fit(NamedTuple):
    """A run of the Deep Image Prior that nothing stopped; K iterations.

    Attributes:
        subject: what the network was fitted to.
        psnrs: of all outputs against the clean image, in dB, (K,) float64.
        shown: iterations whose outputs are kept, the best among them, (n,) ascending.
        images: these outputs, (n, H, W, 3) uint8.
    """

    subject: Subject
    psnrs: np.ndarray
    shown: np.ndarray
    images: np.ndarray

    def strip(self) -> dict[int, np.ndarray]:
        """Return the images that a strip shows by their iterations."""
        return dict(zip(self.shown.tolist(), self.images, strict=True))

    def best(self) -> np.ndarray:
        """Return the image of the highest PSNR."""
        return self.strip()[int(np.argmax(self.psnrs))]


def keys(task: str, clean: np.ndarray, seed: int) -> tuple[jax.Array, jax.Array]:
    """Return the keys of the degradation and of the start, those of the cells.

    Args:
        task: its name.
        clean: clean picture, (H, W, 3) in [0, 1].
        seed: of both.
    """
    return run.keys(Name("", task, "", "", cells.digest(clean), seed, ""))


def task(name: str) -> Observe:
    """Return what makes the subjects of a task.

    Args:
        name: one of `tasks.TASKS`.
    """

    def observe(image: Image, seed: int) -> Subject:
        title, clean = image
        degradation, _ = keys(name, clean, seed)
        observation = tasks.TASKS[name].observe(clean, degradation)
        y = np.asarray(observation.y, np.float32)
        return Subject(name, title, seed, clean, y, float(observation.sigma))

    return observe


def follow(
    prior: Prior, y: jax.Array, key: jax.Array, config: DIIPConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Run Algorithm 1 through its whole budget.

    The iterates are those of `diip.restore` with the same key and settings, up to its
    stop and on. Pure: works under `jit` and `vmap`.

    Args:
        prior: the frozen model.
        y: degraded image, (H, W, 3) in [0, 1].
        key: of the start.
        config: the settings, of one start; of `criterion="never"`.

    Returns:
        Losses and sharpnesses, (K,), and images, (K, H, W, 3) uint8.
    """
    algorithm, state = diip.prepare(prior, y, key, config)
    size = (y.shape[0], y.shape[1])

    def iterate(state: diip.DIIPState, _: None) -> tuple[diip.DIIPState, jax.Array]:
        state = algorithm.step(state)
        return state, _to_uint8(canvas.cut(state.x, size))

    state, images = lax.scan(iterate, state, None, length=config.max_iterations)
    return state.losses, state.sharpnesses, images


@functools.cache
def jitted_follow() -> Any:
    """Return `follow` jitted.

    One run at a time: on two cores a batch of four took longer than four runs.
    """
    return jax.jit(follow, compiler_options=compiler_options())


def _to_uint8(image: jax.Array) -> jax.Array:
    return jnp.rint(255 * jnp.clip(image, 0, 1)).astype(jnp.uint8)


def trace(
    prior: Prior, subject: Subject, folder: Path, config: DIIPConfig = FULL
) -> Trace:
    """Return the run of a subject: the kept one, or a new one, which is then kept.

    Args:
        prior: the frozen model.
        subject: what to follow.
        folder: of kept runs; it is made where there is none.
        config: the settings, as for `follow`.

    Raises:
        TraceError: the file of the run holds something else.
        OSError: it cannot be read or written.
    """
    key = keys(subject.task, subject.clean, subject.seed)[1]

    def make() -> dict[str, np.ndarray]:
        y = jnp.asarray(subject.degraded)
        arrays = _waited_for(jitted_follow()(prior, y, key, config))
        return _scored(subject.clean, *arrays)

    about = {"prior": [prior.card.name, prior.card.sha256]}
    return Trace(subject, **_kept(folder, subject, about, config, key, make))


@functools.cache
def jitted_outputs() -> Any:
    """Return what gives all outputs of the Deep Image Prior, jitted."""

    def outputs(y: jax.Array, key: jax.Array, config: dip.Config) -> jax.Array:
        return dip.follow(y, key, config, _to_uint8)

    return jax.jit(outputs, compiler_options=compiler_options())


def fit(subject: Subject, folder: Path, config: dip.Config) -> Fit:
    """Return the run of the Deep Image Prior on a subject, as `trace`.

    All its outputs are in memory meanwhile: 0.6 GB for 3000 of 256x256 pixels.

    Args:
        subject: what to fit the network to.
        folder: of kept runs; it is made where there is none.
        config: the settings.

    Raises:
        TraceError: the file of the run holds something else.
        OSError: it cannot be read or written.
    """
    key = keys(subject.task, subject.clean, subject.seed)[1]

    def make() -> dict[str, np.ndarray]:
        y = jnp.asarray(subject.degraded)
        (images,) = _waited_for([jitted_outputs()(y, key, config)])
        psnrs = np.array([metrics.psnr(subject.clean, image / 255) for image in images])
        chosen = shown(psnrs)
        return {"psnrs": psnrs, "shown": chosen, "images": images[chosen]}

    about = {"method": "dip", "shown": SHOWN}
    return Fit(subject, **_kept(folder, subject, about, config, key, make))


def shown(psnrs: np.ndarray, count: int = SHOWN) -> np.ndarray:
    """Return iterations evenly spaced in log k, and the best one, ascending.

    Args:
        psnrs: of all iterations, (K,).
        count: how many iterations at most, the first and the last among them.
    """
    spaced = np.rint(np.geomspace(1, len(psnrs), count)).astype(int) - 1
    return np.union1d(spaced, np.argmax(psnrs))


def followed(
    prior: Prior,
    observe: Observe,
    images: Iterable[Image],
    seeds: Sequence[int],
    folder: Path,
    config: DIIPConfig = FULL,
) -> Iterator[Trace]:
    """Yield runs, all seeds of a picture one after another.

    Args:
        prior: the frozen model.
        observe: what degrades a picture, given a seed.
        images: names and clean pictures.
        seeds: of degradations and starts.
        folder: of kept runs.
        config: the settings, as for `follow`.
    """
    for image in images:
        for seed in seeds:
            yield trace(prior, observe(image, seed), folder, config)


def _waited_for(arrays: Sequence[Any]) -> Sequence[np.ndarray]:
    """Wait for arrays; an interrupt is heard meanwhile, which JAX would not do."""
    while not all(array.is_ready() for array in arrays):
        time.sleep(run.POLL)
    return jax.device_get(arrays)


def _scored(
    clean: np.ndarray, losses: np.ndarray, sharpnesses: np.ndarray, images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the arrays of a run by name, with its scores."""
    shown = [image / 255 for image in images]
    ssims = np.full(len(images), np.nan)
    if min(clean.shape[:2]) >= metrics.SMALLEST_SIDE:
        ssims = np.array([metrics.ssim(clean, image) for image in shown])
    psnrs = np.array([metrics.psnr(clean, image) for image in shown])
    return {
        "losses": losses,
        "sharpnesses": sharpnesses,
        "images": images,
        "psnrs": psnrs,
        "ssims": ssims,
    }


def _kept(
    folder: Path,
    subject: Subject,
    about: dict[str, Any],
    config: Any,
    key: jax.Array,
    make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """Return the arrays of a run by name: the kept ones, or new ones, then kept.

    A run and its scores depend on what it is about, the settings, the key of the start
    and the subject.
    """
    arrays = {"clean": subject.clean, "degraded": subject.degraded}
    settings = json.dumps(
        {
            "schema": SCHEMA,
            **about,
            "config": dataclasses.asdict(config),
            "key": jax.random.key_data(key).tolist(),
            **{name: _array_digest(array) for name, array in arrays.items()},
        }
    )
    name = f"{subject.task}-{subject.image}-{subject.seed}-{_digest(settings)[:12]}.npz"
    path = folder / name
    found = _read(path, settings)
    if found is None:
        found = make()
        _write(path, settings, found)
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _array_digest(array: np.ndarray) -> str:
    values = np.ascontiguousarray(array, np.float32)
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


def _read(path: Path, settings: str) -> dict[str, np.ndarray] | None:
    """Read the arrays of a run; None where there is no file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise TraceError(f"{path} holds no run ({error}); delete it") from error
    if str(arrays.pop("settings", "")) != settings:
        raise TraceError(f"{path} holds a run with other settings; delete it")
    return arrays


def _write(path: Path, settings: str, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    fields: dict[str, Any] = {"settings": np.array(settings), **arrays}
    np.savez_compressed(content, **fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.sweep(path.parent)
    storage.write_bytes(path, content.getvalue())
