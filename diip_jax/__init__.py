"""Diffusion Image Prior in JAX: blind restoration of damaged photos."""

from diip_jax.config import PAPER as PAPER
from diip_jax.config import DIIPConfig as DIIPConfig
from diip_jax.diip import Parts as Parts
from diip_jax.diip import Restoration as Restoration
from diip_jax.diip import StopReason as StopReason
from diip_jax.diip import restore as restore
from diip_jax.pipelines import restore_with as restore_with
from diip_jax.pipelines import unrolled as unrolled
from diip_jax.prior import Prior as Prior
from diip_jax.prior import load as load_prior

__all__ = [
    "PAPER",
    "DIIPConfig",
    "Parts",
    "Prior",
    "Restoration",
    "StopReason",
    "load_prior",
    "restore",
    "restore_with",
    "unrolled",
]
