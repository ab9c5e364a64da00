"""From a checkpoint file to a prior: rename, transpose, and check that all was used."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from checkpoints_convert import ddim, diffusers, guided_diffusion, registry
from checkpoints_convert.reader import check_extent, open_tensors
from checkpoints_convert.registry import Checkpoint
from checkpoints_convert.tensors import (
    ConversionError,
    FactsError,
    LazyTensor,
    Tensors,
)
from diip_jax import prior as priors
from diip_jax.prior import Card, Prior
from diip_jax.schedule import Schedule

LAYOUTS = (guided_diffusion, ddim, diffusers)
MOST_PIXELS = 8192  # side of the training images; published ones have up to 1024
FLOATS = tuple(map(np.dtype, (np.float16, np.float32, np.float64, bfloat16)))
MOST_NAMES = 20  # of those that do not match, in an error
# What a name looks like, and what it betrays; the first pattern that fits counts.
FOREIGN = (
    (
        r"map_noise|map_layer\d|(^|\.)(enc|dec)\.\d+x\d+_",
        "an EDM network (NVlabs/edm), which is preconditioned in another way",
    ),
    (r"(^|\.)u_net\.[du]_blocks\.", "a k-diffusion network with its own layers"),
    (
        r"^(model\.)?diffusion_model\.|first_stage_model|cond_stage_model"
        r"|post_quant_conv|attn2\.",
        "a latent or text-conditional diffusion model, which does not work on pixels",
    ),
    (r"^downsamples\.level_", "a ddpm-torch network (tqch/ddpm-torch)"),
    (r"^all_modules\.\d", "a score_sde network (NCSN++ or DDPM++)"),
    (
        r"^(denoise_fn\.)?(init_conv|downs\.0)\.",
        "a denoising-diffusion-pytorch network",
    ),
    (r"class_embedding\.|label_emb", "a class-conditional network"),
)

TreePath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Request:
    """What the user says about a file.

    Attributes:
        known_as: name of the known checkpoint that the file is.
        like: name of a known checkpoint that it was trained like.
        architecture: facts that no key reveals.
        schedule: fields of `Schedule`.
        card: fields of the card: name, licence, training_data, source, any_size.
        fallback_name: the prior's name if neither `card` nor the file says it.
        config: config.json of a diffusers model that is not beside the file.
        scheduler_config: the same for scheduler_config.json.
    """

    known_as: str | None = None
    like: str | None = None
    architecture: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    schedule: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fallback_name: str = "custom"
    config: Path | None = None
    scheduler_config: Path | None = None


def convert(source: str | Path, request: Request = Request()) -> Prior:  # noqa: B008
    """Convert a checkpoint file, or the folder of a diffusers model.

    Raises:
        ConversionError: the file is no checkpoint of a known layout, or a tensor was
            not used, or a parameter not filled.
        FactsError: the file does not reveal enough, or something does not apply to it.
        WeightsError: the request names an unknown checkpoint.
    """
    path = Path(source)
    if path.is_dir():
        path = diffusers.locate(path)
    with open_tensors(path) as tensors:
        check_extent(tensors, path)
        layout = detect(tensors)
        sha256 = registry.digest(path)
        parameters = sum(math.prod(tensor.shape) for tensor in tensors.values())
        row = describe(path, sha256, parameters, layout, request)
        try:
            card = Card(
                name=row.name or request.fallback_name,
                family=layout.FAMILY,
                architecture=layout.architecture(tensors, row.architecture),
                schedule=_judged(row.schedule, request),
                preset=row.preset,
                any_size=row.any_size,
                source=row.source,
                sha256=sha256,
                licence=row.licence,
                training_data=row.training_data,
                parameters=parameters,
            )
            _check_size(card.architecture)
            shapes = priors.abstract_params(card)
        except ConversionError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            first_line = (str(error).strip() or "no reason").splitlines()[0]
            raise ConversionError(
                f"{path} has names of the layout {layout.NAME}, but makes no such "
                f"network ({type(error).__name__}: {first_line})"
            ) from error
        rename = layout.rename
        params = fill(shapes, tensors, lambda name: rename(name, card.architecture))
    return Prior(params, card)


def detect(tensors: Tensors) -> Any:
    """Return the layout module that the tensor names belong to.

    Raises:
        ConversionError: none; the message says what the names show.
    """
    if what := recognise_foreign(tensors):
        raise ConversionError(f"the file holds {what}; this cannot be used as a prior")
    for layout in LAYOUTS:
        if layout.matches(tensors):
            return layout
    seen = ", ".join(sorted(tensors)[:3])
    raise ConversionError(
        f"unknown layout, with names such as {seen}; known: guided-diffusion, DDIM "
        "(ermongroup) and diffusers' UNet2DModel"
    )


def recognise_foreign(names: Iterable[str]) -> str | None:
    """Return which other network tensor names betray, and the first such name.

    None where they betray none.
    """
    ordered = sorted(names)
    for pattern, what in FOREIGN:
        for name in ordered:
            if re.search(pattern, name):
                return f"{what} (it has {name})"
    return None


def describe(
    path: Path, sha256: str, parameters: int, layout: Any, request: Request
) -> Checkpoint:
    """Return all that is known of a file, complete enough for `layout`.

    Args:
        path: the file.
        sha256: its hash.
        parameters: its number of weights.
        layout: the module of the layout that it has.
        request: what the user says about it.

    Raises:
        ConversionError: the file is not what it is said to be.
        FactsError: something is missing or does not apply.
        WeightsError: the request names an unknown checkpoint.
    """
    file = Checkpoint(
        name="", layout=layout.NAME, parameters=parameters, file=path.name
    )
    row = _row(path, sha256, file, request)
    for what, found in (("layout", layout.NAME), ("parameters", parameters)):
        if (expected := getattr(row, what)) != found:
            raise ConversionError(
                f"{path.name} has {what} {found}, but "
                f"{request.known_as or request.like} has {expected}"
            )
    _check_applicable(layout, request)
    inherited = dict(row.architecture)
    if any(name in request.architecture for name in guided_diffusion.HEADS):
        inherited = {
            n: value
            for n, value in inherited.items()
            if n not in guided_diffusion.HEADS
        }
    architecture = {**inherited, **request.architecture}
    schedule = dict(row.schedule)
    if layout is diffusers:
        architecture["config"] = diffusers.read_config(request.config, path)
        schedule |= diffusers.read_schedule(request.scheduler_config, path)
    schedule = _schedule(schedule, request.schedule, layout)
    missing = [*layout.missing(architecture), *_missing_of_schedule(schedule, layout)]
    if missing:
        raise FactsError(
            f"{path.name} does not reveal {', '.join(missing)}: pass them as flags, or "
            "--like NAME if it was trained like a known checkpoint (see --list)"
        )
    return dataclasses.replace(
        row, architecture=architecture, schedule=schedule, **request.card
    )


def fill(
    shapes: Mapping[str, Any], tensors: Tensors, rename: Callable[[str], TreePath]
) -> dict[str, Any]:
    """Return parameters in the tree of `shapes`, every tensor used exactly once.

    Nothing is read from the disk before all names and shapes match.

    Raises:
        ConversionError: lists, sorted, the names that did not match; or names a tensor
            that holds no finite floating-point numbers.
    """
    wanted = {path: leaf.shape for path, leaf in _leaves(shapes)}
    sources: dict[TreePath, str] = {}
    problems = []
    for name, tensor in tensors.items():
        path = _leaf_path(rename(name), wanted)
        if path not in wanted:
            problems.append(f"{name} (not in the model)")
        elif path in sources:
            problems.append(f"{name} (a second time)")
        elif flax_shape(tensor.shape, len(wanted[path])) != wanted[path]:
            problems.append(f"{name} (shape {tensor.shape} for {wanted[path]})")
        sources.setdefault(path, name)
    problems += [f"{'/'.join(p)} (not in the file)" for p in wanted.keys() - sources]
    if problems:
        shown = "; ".join(sorted(problems)[:MOST_NAMES])
        more = len(problems) - MOST_NAMES
        rest = f"; and {more} more" if more > 0 else ""
        raise ConversionError(f"{len(problems)} names did not match: {shown}{rest}")
    for name, tensor in tensors.items():
        if tensor.dtype.newbyteorder("=") not in FLOATS:
            raise ConversionError(
                f"{name} is stored as {tensor.dtype.name}; weights are floating-point "
                "numbers"
            )
    return _nest(
        {
            path: _finite(name, to_flax(tensors[name], len(wanted[path])))
            for path, name in sources.items()
        }
    )


def flax_shape(shape: tuple[int, ...], rank: int) -> tuple[int, ...] | None:
    """Return the shape that a PyTorch tensor takes as a Flax leaf of a rank.

    OIHW kernels become HWIO. (O, I), (O, I, 1) and (O, I, 1, 1) become (I, O) where a
    dense layer takes them. None where there is no such leaf.
    """
    if len(shape) == rank == 4:
        return (*shape[2:], shape[1], shape[0])
    if rank == 2 and len(shape) >= 2 and set(shape[2:]) <= {1}:
        return shape[1::-1]
    return shape if len(shape) == rank == 1 else None


def to_flax(tensor: LazyTensor, rank: int) -> np.ndarray:
    """Read a tensor as a Flax leaf of a rank; see `flax_shape`.

    Leaves are float32. Only bfloat16 stays: widened, it would hold the same numbers.
    """
    array = tensor.read()
    dtype = bfloat16 if array.dtype == bfloat16 else np.float32
    if rank == 4:
        array = array.transpose(2, 3, 1, 0)
    elif rank == 2:
        array = array.reshape(array.shape[:2]).T
    # A copy in any case: the file's own memory can then be given back.
    with np.errstate(over="ignore"):  # what becomes infinite is refused in `fill`
        return np.array(array, dtype, order="C")


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    """Return weights that all are numbers."""
    if np.isfinite(array).all():
        return array
    what = "NaN" if np.isnan(array).any() else "what is infinite in float32"
    raise ConversionError(f"{name} holds {what}; the training of this file diverged")


def _row(path: Path, sha256: str, file: Checkpoint, request: Request) -> Checkpoint:
    """Return the row of the known checkpoint that a file is, or one for the file.

    Args:
        path: the file.
        sha256: its hash.
        file: what the file shows: layout, number of weights, name.
        request: what the user says about it.
    """
    if request.known_as:
        row = registry.lookup(request.known_as)
        registry.check_hash(path, sha256, row)
        return row
    if request.like:
        row = registry.lookup(request.like)
        return dataclasses.replace(
            file,
            layout=row.layout,
            architecture=row.architecture,
            schedule=row.schedule,
            preset=row.preset,
            any_size=row.any_size,
        )
    return registry.identify(path, sha256, file.parameters) or file


def _check_applicable(layout: Any, request: Request) -> None:
    given = list(request.architecture)
    given += [n for n in ("config", "scheduler_config") if getattr(request, n)]
    for name in given:
        if name not in layout.FACTS:
            raise FactsError(f"--{name} says nothing about the layout {layout.NAME}")


def _judged(fields: Mapping[str, Any], request: Request) -> Schedule:
    """Return the schedule; an impossible one is the fault of whoever told it."""
    try:
        return Schedule(**fields)
    except ValueError as error:
        raise (FactsError if request.schedule else ConversionError)(
            f"no model is trained with this schedule: {error}"
        ) from error


def _check_size(architecture: Any) -> None:
    if architecture.image_size > MOST_PIXELS:
        raise FactsError(
            f"image_size is {architecture.image_size}; up to {MOST_PIXELS} is possible"
        )
    if architecture.image_size % architecture.stride:
        raise FactsError(
            f"image_size is {architecture.image_size}, but this network needs a "
            f"multiple of {architecture.stride}"
        )


def _schedule(
    inherited: Mapping[str, Any], given: Mapping[str, Any], layout: Any
) -> dict[str, Any]:
    """Merge the fields of a schedule; the ends of a linear one follow T."""
    if {"kind", "num_train_timesteps"} & given.keys():
        inherited = {n: v for n, v in inherited.items() if not n.startswith("beta_")}
    merged = {**inherited, **given}
    if merged.get("kind") == "linear" and "num_train_timesteps" in merged:
        start, end = layout.beta_range(merged["num_train_timesteps"])
        merged = {"beta_start": start, "beta_end": end, **merged}
    return merged


def _missing_of_schedule(schedule: Mapping[str, Any], layout: Any) -> list[str]:
    missing = [n for n in ("kind", "num_train_timesteps") if n not in schedule]
    rescalable = layout is guided_diffusion
    rescalable &= schedule.get("num_train_timesteps", 1000) != 1000
    if rescalable and "rescale_timesteps" not in schedule:
        missing.append("rescale_timesteps")
    return ["schedule" if name == "kind" else name for name in missing]


def _leaf_path(path: TreePath, wanted: Mapping[TreePath, Any]) -> TreePath:
    """Replace PyTorch's `weight` by `scale` in norms and `kernel` elsewhere."""
    *parents, leaf = path
    if leaf == "weight":
        leaf = "scale" if (*parents, "scale") in wanted else "kernel"
    return (*parents, leaf)


def _leaves(
    tree: Mapping[str, Any], path: TreePath = ()
) -> Iterator[tuple[TreePath, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _nest(leaves: Mapping[TreePath, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for (*parents, name), value in leaves.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
