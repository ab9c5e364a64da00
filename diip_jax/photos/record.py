"""The JSON record of a restoration, schema `diip.result/1`."""

import hashlib
import io
import json
import math
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diip_jax import images, storage
from diip_jax.config import DIIPConfig
from diip_jax.diip import Restoration, StopReason
from diip_jax.images import Photo
from diip_jax.prior import Card

SCHEMA = "diip.result/1"
COLOUR_SHIFT = 0.02  # of the range, in the mean of a channel


def settings(config: DIIPConfig) -> dict[str, Any]:
    """Return the configuration as plain numbers and strings."""
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def config_hash(card: Card, config: DIIPConfig, **more: Any) -> str:
    """Return a digest of everything that decides the pixels of a restoration."""
    what = {"prior": card.sha256, **settings(config), **more}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def is_complete(restoration: Restoration, config: DIIPConfig) -> bool:
    """Tell whether a restoration ended by itself rather than by an interruption."""
    spent = int(restoration.num_iterations) >= config.max_iterations
    return spent or int(restoration.reason) != StopReason.MAX_ITERATIONS


def stop(restoration: Restoration, config: DIIPConfig) -> dict[str, Any]:
    """Return why and where a restoration ended; iterations are counted from 0."""
    reason = StopReason(int(restoration.reason))
    last = int(restoration.num_iterations) - 1
    letters = {StopReason.HIGH_FREQUENCY: "H", StopReason.LOW_FREQUENCY: "L"}
    complete = is_complete(restoration, config)
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
    restoration: Restoration, config: DIIPConfig, change: Mapping[str, Any], mode: str
) -> list[str]:
    """Return the codes of what a user should know of a result.

    Args:
        restoration: the answer.
        config: the settings used.
        change: as from `change`.
        mode: what was done to the size, as in `sizing.Layout`.
    """
    reason, complete = int(restoration.reason), is_complete(restoration, config)
    shift = max(abs(value or 0) for value in change["mean_rgb"])
    found = {
        "interrupted": not complete,
        "no_stop": complete and reason == StopReason.MAX_ITERATIONS,
        "diverged": reason == StopReason.DIVERGED,
        "no_peak": bool(restoration.no_peak),
        "scaled_down": mode == "fit",
        "colour_shift": shift > COLOUR_SHIFT,
    }
    return [code for code, applies in found.items() if applies]


def change(degraded: np.ndarray, restored: np.ndarray) -> dict[str, Any]:
    """Return how far a result is from its input, both (H, W, 3) in [0, 1]."""
    difference = np.asarray(restored, np.float64) - degraded
    return {
        "mean_rgb": [_number(value) for value in difference.mean(axis=(0, 1))],
        "rmse_to_input": _number(np.sqrt(np.mean(np.square(difference)))),
    }


def source(path: Path, photo: Photo, digest: str) -> dict[str, Any]:
    """Return what a record says of its input; `digest` is its SHA-256."""
    return {
        "path": str(path),
        "sha256": digest,
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
    done = int(restoration.num_iterations)
    traces = {
        "loss": restoration.losses,
        "decrease": restoration.decreases,
        "lap_var": restoration.sharpnesses,
    }
    return {name: [_number(v) for v in t[:done]] for name, t in traces.items()}


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return numbers as JSON takes them: six digits, None where not finite."""
    return {name: v if v is None else _number(v) for name, v in values.items()}


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
    except OSError as error:
        raise images.ImageError(f"cannot read {content}: {error.strerror}") from error


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record; the file appears whole or not at all.

    Raises:
        ImageError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is not UTF-8 has lone surrogates; \udc80 is their JSON escape.
    try:
        storage.write_bytes(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise images.unwritable(path, error) from error


def read(path: Path) -> dict[str, Any] | None:
    """Return a record, or None if there is none or it is not one of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(content, dict) and content.get("schema") == SCHEMA
    return content if ours else None


def is_finished(content: Mapping[str, Any] | None, digest: str, source: str) -> bool:
    """Tell whether a record is of a complete restoration with these settings.

    Args:
        content: of the record, as from `read`.
        digest: `config_hash` of the settings.
        source: SHA-256 of the input.
    """
    if content is None or content.get("status") != "ok":
        return False
    same = content.get("config_hash") == digest
    return same and (content.get("input") or {}).get("sha256") == source


def _number(value: Any) -> float | None:
    value = float(value)
    return float(f"{value:.6g}") if math.isfinite(value) else None
