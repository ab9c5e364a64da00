"""Diffusion Image Prior in JAX: blind restoration of damaged photos."""

from diip_jax.config import PAPER as PAPER
from diip_jax.config import DIIPConfig as DIIPConfig
from diip_jax.diip import Restoration as Restoration
from diip_jax.diip import StopReason as StopReason
from diip_jax.diip import restore as restore
from diip_jax.prior import Prior as Prior
from diip_jax.prior import load as load_prior

__all__ = [
    "PAPER",
    "DIIPConfig",
    "Prior",
    "Restoration",
    "StopReason",
    "load_prior",
    "restore",
]
