"""The JSON record of a restoration, schema `diip.result/1`."""

import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diip_jax import entries, images, matched, metrics, storage
from diip_jax.addresses import Address
from diip_jax.config import DIIPConfig
from diip_jax.diip import Restoration, StopReason
from diip_jax.images import Photo
from diip_jax.prior import Card

SCHEMA = "diip.result/1"
COLOUR_SHIFT = 0.02  # of the range, in the mean of a channel
NOTHING = 0.01  # deviation of damage in [-1, 1] that nobody sees


def settings(config: DIIPConfig) -> dict[str, Any]:
    """Return the configuration as plain numbers and strings."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def config_hash(card: Card, config: DIIPConfig, **more: Any) -> str:
    """Return a digest of everything that decides the pixels of a restoration."""
    what = {"prior": card.sha256, **settings(config), **more}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def is_complete(restoration: Restoration, budget: int) -> bool:
    """Tell whether a start ended by itself rather than by an interruption.

    Args:
        restoration: of one start.
        budget: iterations that it may have.
    """
    spent = int(restoration.num_iterations) >= budget
    unfinished = (StopReason.MAX_ITERATIONS, StopReason.INTERRUPTED)
    return spent or int(restoration.reason) not in unfinished


def stop(restoration: Restoration, budget: int) -> dict[str, Any]:
    """Return why and where a start ended; iterations are counted from 0.

    Args:
        restoration: of one start.
        budget: iterations that it may have.
    """
    reason = StopReason(int(restoration.reason))
    last = max(int(restoration.num_iterations) - 1, 0)
    letters = {StopReason.HIGH_FREQUENCY: "H", StopReason.LOW_FREQUENCY: "L"}
    complete = is_complete(restoration, budget)
    return {
        "reason": reason.name.lower() if complete else "interrupted",
        "criterion": letters.get(reason),
        "at": last,
        "returned": int(restoration.iteration),
        "last_lv_peak": int(restoration.last_peak) or None,
        "no_peak": bool(restoration.no_peak),
        "decrease": _number(restoration.decreases[last]),
    }


def warnings(
    starts: Sequence[Restoration],
    complete: bool,
    change: Mapping[str, Any],
    mode: str,
    damage: float | None,
) -> list[str]:
    """Return the codes of what a user should know of a result.

    Args:
        starts: the answers of all starts.
        complete: the restoration ended by itself.
        change: as from `change`.
        mode: how the photo was given to the prior, as in `sizing.Placement`.
        damage: mean square of the damage found, None where it was not looked for.
    """
    reasons = {int(start.reason) for start in starts}
    shift = max(abs(value or 0) for value in change["mean_rgb"])
    # At the end of its budget a matched start is moved toward y by `diip.settle`.
    no_stop = StopReason.MAX_ITERATIONS in reasons and damage is None
    found = {
        "interrupted": not complete,
        "no_stop": complete and no_stop,
        "diverged": StopReason.DIVERGED in reasons,
        "no_peak": any(bool(start.no_peak) for start in starts),
        "scaled_down": mode == "fit",
        "colour_shift": shift > COLOUR_SHIFT,
        "nothing_found": damage is not None and damage < NOTHING**2,
    }
    return [code for code, applies in found.items() if applies]


def change(degraded: np.ndarray, restored: np.ndarray) -> dict[str, Any]:
    """Return how far a result is from its input, both (H, W, 3) in [0, 1]."""
    difference = np.asarray(restored, np.float64) - degraded
    return {
        "mean_rgb": [_number(value) for value in difference.mean(axis=(0, 1))],
        "rmse_to_input": _number(np.sqrt(np.mean(np.square(difference)))),
    }


def describe_input(path: Path, photo: Photo, sha256: str) -> dict[str, Any]:
    """Return what a record says of the photo that was restored.

    Args:
        path: its file.
        photo: what was read.
        sha256: digest of the file.
    """
    return {
        "path": str(path),
        "sha256": sha256,
        "size": list(photo.stored_size),
        "mode": photo.mode,
        "format": photo.format,
        "bits": photo.bits,
        "orientation": photo.orientation,
    }


def model(card: Card) -> dict[str, Any]:
    """Return what a record says of its prior."""
    return {
        "name": card.name,
        "sha256": card.sha256,
        "licence": card.licence,
        "source": card.source,
        "size": card.architecture.image_size,
    }


def curves(restoration: Restoration) -> dict[str, list[float | None]]:
    """Return the traces up to the last iteration."""
    # A first look that was enough has a loss, and no iteration.
    done = max(int(restoration.num_iterations), int(np.isfinite(restoration.losses[0])))
    traces = {
        "loss": restoration.losses,
        "decrease": restoration.decreases,
        "lap_var": restoration.sharpnesses,
    }
    return {name: [_number(v) for v in t[:done]] for name, t in traces.items()}


def restored_by(starts: Sequence[Restoration], config: DIIPConfig) -> dict[str, Any]:
    """Return what a restoration took: its starts, and evaluations of the network.

    Args:
        starts: the answers of all starts.
        config: the settings used.
    """
    iterations = [int(start.num_iterations) for start in starts]
    looks = len(starts) * (config.criterion == "discrepancy") * config.num_steps
    return {
        "num_starts": len(starts),
        "iterations": iterations,
        "evaluations": looks + matched.is_needed(config),
        "evaluations_with_gradient": sum(iterations) * config.num_steps,
    }


def found(damage: float | None, deviation: np.ndarray) -> dict[str, float | None]:
    """Return what was found out about a photo and its result, as deviations in [0, 1].

    Args:
        damage: mean square of the damage in [-1, 1], None where it was not looked for.
        deviation: of the starts from each other, (H, W, 3).
    """
    rms = None if damage is None else _number(np.sqrt(damage) / 2)
    spread = _number(np.sqrt(np.mean(np.square(deviation))))
    return {"damage": rms, "uncertainty": spread}


def scores(
    values: Mapping[str, float | None], lpips_missing: str | None
) -> dict[str, Any]:
    """Return what a record says of scores, with their convention.

    Args:
        values: scores by name, None where unknown.
        lpips_missing: why there is no LPIPS, if there is none.
    """
    convention = {"convention": metrics.CONVENTION, "lpips_missing": lpips_missing}
    return {**rounded(values), **convention}


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return numbers as JSON takes them: six digits, None where not finite."""
    return {name: v if v is None else _number(v) for name, v in values.items()}


def brief(status: str, photo: Path, output: Path) -> dict[str, Any]:
    """Return the record of a photo that is not restored now: skipped or planned."""
    paths = {"input": {"path": str(photo)}, "output": {"path": str(output)}}
    return {"schema": SCHEMA, "status": status, **paths}


def failure(path: Path, message: str, exit_code: int) -> dict[str, Any]:
    """Return the record of an input that could not be restored."""
    return {
        "schema": SCHEMA,
        "status": "failed",
        "input": {"path": str(path)},
        "error": {"message": message, "exit_code": exit_code},
    }


def environment() -> dict[str, str]:
    """Return the versions and the device of this run."""
    device = jax.devices()[0]
    return {
        "diip": metadata.version("diip-jax"),
        "jax": jax.__version__,
        "device": f"{device.platform}:{device.device_kind}",
        "python": platform.python_version(),
    }


def memory() -> dict[str, int | None]:
    """Return the most memory that this process had on the device, where it is known."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"peak_bytes": stats.get("peak_bytes_in_use")}


def sha256(content: Path | io.BytesIO) -> str:
    """Return the hexadecimal digest of a file.

    Raises:
        ImageError: it cannot be read.
    """
    if isinstance(content, io.BytesIO):
        return hashlib.sha256(content.getvalue()).hexdigest()
    try:
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise images.ImageError(f"cannot read {content}: {reason}") from error


def write_beside(picture: Path, data: bytes, content: Mapping[str, Any]) -> None:
    """Write a picture, and beside it its record.

    A picture of ours is never without a record, or it would be taken for a photo; and
    no record calls a picture finished that is another one. So between the old pair and
    the new one, the record says that the picture is not finished.

    Args:
        picture: where the picture goes.
        data: the picture's file.
        content: the record's content.

    Raises:
        ImageError: a file cannot be written; the old pair is as it was if that was
            found out before anything was renamed, as a full disk is.
    """
    path = picture.with_suffix(".json")
    unfinished = _encode({**content, "status": "interrupted"})
    try:
        storage.write_together(
            [(path, unfinished), (picture, data), (path, _encode(content))]
        )
    except OSError as error:
        raise images.unwritable(picture, error) from error


def _encode(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 has lone surrogates; \udc80 is their JSON escape.
    return text.encode(errors="backslashreplace")


def read(path: Path) -> dict[str, Any] | None:
    """Return a record, or None if there is none or it is not one of ours."""
    # A pipe would be waited for. A store has none, and is asked but once.
    if not isinstance(path, Address) and not entries.is_file(path):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(content, dict) and content.get("schema") == SCHEMA
    return content if ours else None


def is_finished(content: Mapping[str, Any] | None, digest: str, sha256: str) -> bool:
    """Tell whether a record is of a complete restoration with these settings.

    Args:
        content: of the record, as from `read`.
        digest: `config_hash` of the settings.
        sha256: digest of the input.
    """
    if content is None or content.get("status") != "ok":
        return False
    same = content.get("config_hash") == digest
    return same and (content.get("input") or {}).get("sha256") == sha256


def _number(value: Any) -> float | None:
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
