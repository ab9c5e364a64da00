"""A prior: a frozen diffusion model as data, and the noise predictor that it is.

A prior on disk is a folder with `card.json` (what the model is) and `params/` (an
Orbax checkpoint of its weights).
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from diip_jax import addresses, ddim, entries, storage
from diip_jax.config import PAPER, DIIPConfig
from diip_jax.schedule import Schedule
from diip_jax.unets import adm, ddpm

CARD_SCHEMA = "diip.prior/1"
OVERHEAD = 2**18  # bytes of what Orbax writes beyond the arrays
_families: dict[str, tuple[type, type[nn.Module]]] = {
    "adm": (adm.ADMConfig, adm.ADMUNet),
    "ddpm": (ddpm.DDPMConfig, ddpm.DDPMUNet),
}
FAMILIES: Mapping[str, tuple[type, type[nn.Module]]] = MappingProxyType(_families)


class PriorError(ValueError):
    """A prior is unknown, incomplete or does not fit; the message says the remedy."""


def register(name: str, config_class: type, network_class: type[nn.Module]) -> None:
    """Make a family of networks known, so that cards may name it.

    To be called where the family is defined, in each process that uses it. Registering
    a class again, as a notebook does, replaces it.

    Args:
        name: the family of a card.
        config_class: dataclass of the architecture, of numbers, strings, booleans and
            tuples of these. It has `image_size`, the side of the training pictures in
            pixels; `stride`, of which the sides of a canvas are multiples;
            `num_channels` of the first level, from which memory is estimated; and may
            have `finest_attention`, its downsampling factor and number of heads.
        network_class: Flax module `network_class(config, dtype=..., remat_blocks=...)`
            with the methods of `unets.adm.ADMUNet`: `condition(t)` of timesteps,
            `__call__(x, conditioning)` that returns eps of x (N, H, W, 3), float32, and
            `initialise(x, t)`, which uses every parameter.

    Raises:
        ValueError: the name is that of another family.
    """
    there = _families.get(name)
    pair = config_class, network_class
    if there is not None and [*map(_full_name, there)] != [*map(_full_name, pair)]:
        raise ValueError(
            f"family {name!r} is {_full_name(there[1])}; register {network_class} "
            "under another name"
        )
    _families[name] = pair


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of a prior, static under `jit`.

    Attributes:
        name: how users call it.
        family: which UNet, a key of `FAMILIES`.
        architecture: the UNet's configuration.
        schedule: the forward process of its training.
        preset: the settings that suit it, by default.
        any_size: trained on crops of many scales, so that any canvas may be given to
            it; otherwise only squares of `architecture.image_size` pixels.
        source: where the weights come from.
        sha256: digest of the converted file.
        licence: terms of the weights.
        training_data: what it was trained on.
        parameters: number of weights.
    """

    name: str
    family: str
    architecture: Any
    schedule: Schedule
    preset: DIIPConfig
    any_size: bool
    source: str
    sha256: str
    licence: str
    training_data: str
    parameters: int

    def to_json(self) -> str:
        """Return the card as JSON text."""
        return json.dumps({"schema": CARD_SCHEMA, **dataclasses.asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """Read a card, the inverse of `to_json`.

        Raises:
            PriorError: the text is of another schema or family.
        """
        fields = json.loads(text)
        schema = fields.pop("schema", None)
        if schema != CARD_SCHEMA:
            raise PriorError(f"card has schema {schema!r}, expected {CARD_SCHEMA!r}")
        if fields["family"] not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise PriorError(
                f"card names family {fields['family']!r}; known: {known}; others by "
                "prior.register"
            )
        config_class, _ = FAMILIES[fields["family"]]
        fields["architecture"] = config_class(**_tuples(fields["architecture"]))
        fields["schedule"] = Schedule(**fields["schedule"])
        fields["preset"] = DIIPConfig(**fields["preset"])
        return cls(**fields)


@struct.dataclass
class Prior:
    """A frozen diffusion model: its weights are the leaves, its card is static."""

    params: Any
    card: Card = struct.field(pytree_node=False)

    @property
    def stride(self) -> int:
        """Sides of a canvas must be multiples of this many pixels."""
        return self.card.architecture.stride


def network(card: Card, config: DIIPConfig = PAPER) -> nn.Module:
    """Return the UNet that a card describes, without weights."""
    _, unet_class = FAMILIES[card.family]
    return unet_class(
        card.architecture,
        dtype=jnp.dtype(config.dtype),
        remat_blocks=config.remat == "block",
    )


def abstract_params(card: Card) -> Any:
    """Return the shapes of a card's weights as a pytree of float32.

    Weights may also be stored as bfloat16; the network widens those that it uses.
    """
    unet = network(card)
    side = card.architecture.stride
    # Shapes alone: no array, and so no backend, is needed to know them.
    x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)

    def initialise(x: jax.Array, t: jax.Array) -> Any:
        return unet.init(jax.random.key(0), x, t, method="initialise")

    return jax.eval_shape(initialise, x, t)["params"]


def noise_predictor(
    prior: Prior, config: DIIPConfig, timesteps: np.ndarray | jax.Array
) -> tuple[ddim.PredictNoise, ddim.Steps]:
    """Return eps_theta on one image and the DDIM steps it is to be used with.

    Args:
        prior: the frozen model.
        config: dtype and rematerialisation of the network.
        timesteps: DDIM timesteps in the order of sampling, (S,).

    Returns:
        The noise predictor, (H, W, 3) in [-1, 1] to (H, W, 3), and its steps, which
        hold everything that the network computes from the timesteps alone.
    """
    unet, schedule = network(prior.card, config), prior.card.schedule
    variables = {"params": prior.params}
    seen = jnp.asarray(schedule.network_timesteps(timesteps))
    conditioning = unet.apply(variables, seen, method="condition")
    steps = ddim.make_steps(conditioning, schedule.alphas_cumprod(), timesteps)

    def predict_noise(x_t: jax.Array, conditioning: Any) -> jax.Array:
        return unet.apply(variables, x_t[None], conditioning)[0]

    return predict_noise, steps


def save(path: str | Path, prior: Prior) -> None:
    """Write a prior's folder: `card.json` and an Orbax checkpoint `params/`.

    The folder appears whole or not at all, in place of the prior that may be there.

    Raises:
        PriorError: the folder holds something else.
        OSError: it cannot be written.
    """
    path, card = Path(path), prior.card.to_json() + "\n"
    check_place(path)

    def write(folder: Path) -> None:
        save_arrays(folder / "params", prior.params)
        (folder / "card.json").write_text(card, encoding="utf-8")

    # Orbax writes in threads of its own. An interrupt of `save` in this thread would
    # leave them at work in a folder that is being deleted.
    with storage.refusals(path), storage.replacing(path.absolute()) as folder:
        _in_a_thread(lambda: write(folder))


def save_arrays(folder: Path, arrays: Any) -> None:
    """Write an Orbax checkpoint, to be called within `storage.refusals`.

    Not asynchronously, which waits minutes for what a full disk never gives.

    Args:
        folder: the checkpoint to be; the folder above it is there.
        arrays: pytree.
    """
    import orbax.checkpoint as ocp

    arrays = jax.tree.map(lambda leaf: np.asarray(leaf).view(_Uncopied), arrays)
    check_room(folder.parent, arrays)
    # Uncompressed: weights hardly compress, and Orbax would hold the result in memory.
    alone = orbax_alone()
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, **alone)
    with ocp.Checkpointer(handler, **alone) as checkpointer:
        checkpointer.save(folder, ocp.args.PyTreeSave(arrays))


def check_room(folder: Path, arrays: Any) -> None:
    """Find out whether a checkpoint of arrays fits on the disk of a folder.

    Raises:
        OSError: it does not.
    """
    num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
    storage.check_room(folder, num_bytes + OVERHEAD)


def _in_a_thread(work: Callable[[], None]) -> None:
    """Do work in a thread; an interrupt of this one is raised when that has ended.

    Not by an executor: one that is interrupted as it starts its thread forgets it.
    """
    future: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return  # interrupted before it began
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    try:
        threading.Thread(target=run).start()
        future.result()
    except BaseException:
        if not future.cancel():
            concurrent.futures.wait([future])
        raise


def check_place(folder: Path) -> None:
    """Raise PriorError where `save` would replace what is no prior."""
    if folder.is_dir():
        taken = any(folder.iterdir()) and not (folder / "card.json").is_file()
    else:
        taken = folder.exists()
    if taken:
        raise PriorError(f"{folder} exists and is no prior; give a new folder")


def load(name_or_path: str | Path) -> Prior:
    """Load a bundled prior by name, or any prior from its folder.

    Its weights are on JAX's default device, so that no call has to copy them there.
    Those that are stored as bfloat16 stay so, and take half of the memory.

    Raises:
        PriorError: there is no such prior, or its files do not fit its card.
    """
    import orbax.checkpoint as ocp

    path = locate(name_or_path)
    card = read_card(path)
    target = abstract_params(card)
    try:
        with ocp.StandardCheckpointer(**orbax_alone()) as checkpointer:
            folder = (path / "params").absolute()
            target = _as_stored(target, _stored(checkpointer, folder))
            params = checkpointer.restore(folder, target)
        _check_shapes(params, target)  # Orbax restores other shapes without a word
    except (ValueError, FileNotFoundError, KeyError) as error:
        first_line = str(error).splitlines()[0]
        raise PriorError(
            f"weights in {path} do not fit card.json ({first_line}); convert them again"
        ) from error
    leaves, tree = jax.tree.flatten(params)
    del params  # the host lets each array go once the device has it
    # Not committed to that device: beside sharded arguments JAX copies them by itself.
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.device_put(leaf)
    return Prior(jax.tree.unflatten(tree, leaves), card)


def _stored(checkpointer: Any, folder: Path) -> Any:
    """Return what Orbax knows of stored weights, as a pytree.

    Raises:
        FileNotFoundError: there are none.
    """
    if entries.kind(folder) != "folder":
        raise FileNotFoundError(f"{folder} is no folder")
    stored = checkpointer.metadata(folder).item_metadata
    if stored is None:
        raise FileNotFoundError(f"{folder} holds no weights")
    return stored.tree


def _as_stored(wanted: Any, stored: Any) -> Any:
    """Return shapes and dtypes to ask Orbax for: it would widen bfloat16."""

    def one(wanted: jax.ShapeDtypeStruct, stored: Any) -> jax.ShapeDtypeStruct:
        narrow = stored.dtype == jnp.bfloat16
        return jax.ShapeDtypeStruct(
            wanted.shape, stored.dtype if narrow else wanted.dtype
        )

    return jax.tree.map(one, wanted, stored)


def read_card(name_or_path: str | Path) -> Card:
    """Return the card of a prior alone, without its weights.

    Raises:
        PriorError: there is no such prior, or its card is damaged.
    """
    path = locate(name_or_path)
    try:
        return Card.from_json((path / "card.json").read_text(encoding="utf-8"))
    except PriorError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise PriorError(
            f"{path / 'card.json'} is damaged ({reason}); convert the prior again"
        ) from error


def orbax_alone() -> dict[str, Any]:
    """Return what an Orbax checkpointer is given that waits for no other process.

    Each process of a pod slice has photos of its own, and loads and saves when it does.
    """
    from orbax.checkpoint import options

    if jax.process_count() == 1:
        return {}
    own = jax.process_index()
    return {
        "multiprocessing_options": options.MultiprocessingOptions(
            primary_host=own,
            active_processes={own},
            barrier_sync_key_prefix=f"process{own}",
        )
    }


def _check_shapes(params: Any, target: Any) -> None:
    """Reject weights whose shapes are not those of the network."""
    pairs = zip(jax.tree.leaves_with_path(params), jax.tree.leaves(target), strict=True)
    for (path, found), wanted in pairs:
        if found.shape != wanted.shape:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"{name} is {found.shape}, expected {wanted.shape}")


def bundled() -> list[str]:
    """Return the names of the priors that come with the package."""
    folder = Path(str(resources.files("diip_jax") / "priors"))
    return sorted(card.parent.name for card in folder.glob("*/card.json"))


def locate(name_or_path: str | Path) -> Path:
    """Return the folder of a bundled prior or of a prior on disk.

    A prior in a store is copied to the cache first, unless the same one is there.

    Raises:
        PriorError: neither a bundled name nor a folder with a card.
        OSError: the system does not tell what is there.
    """
    place = addresses.path(name_or_path)
    if isinstance(place, addresses.Address):
        return _fetched(place)
    candidates = [
        Path(str(resources.files("diip_jax") / "priors")) / str(name_or_path),
        place,
    ]
    for path in map(storage.settled, candidates):
        if entries.kind(path / "card.json") == "file":
            return path
    raise PriorError(
        f"unknown prior {str(name_or_path)!r}; bundled: {', '.join(bundled())}; or "
        "give the folder that `python -m checkpoints_convert` wrote"
    )


def _fetched(address: addresses.Address) -> Path:
    """Return the folder of this machine that holds the prior at an address."""
    names = sorted(address.tree())
    if "card.json" not in names:
        raise PriorError(f"no prior at {address}: it has no card.json; is it right?")
    card = (address / "card.json").read_bytes()
    # Its card has the digest of its weights; the names say that Orbax's are all there.
    what = json.dumps([str(address), card.decode(errors="replace"), names])
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    folder = storage.cache_dir() / "priors" / f"{address.name}-{key}"
    if entries.kind(storage.settled(folder) / "card.json") == "file":
        return storage.settled(folder)
    contents = address.read_together(names)
    with storage.replacing(folder) as part:
        for name, content in zip(names, contents, strict=True):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            (part / name).write_bytes(content)
    return folder


class _Uncopied(np.ndarray):
    """An array that is its own deep copy: Orbax would double the memory of a prior."""

    def __deepcopy__(self, memo: Any) -> "_Uncopied":
        return self


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
