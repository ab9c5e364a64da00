"""Noise schedules and DDIM timesteps: NumPy, float64, static under tracing."""

import dataclasses
from typing import Any

import jax
import numpy as np

KINDS = ("linear", "cosine")
MOST_TIMESTEPS = 100_000  # of a training; published ones have up to 4000


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The forward process that a checkpoint was trained with.

    Attributes:
        kind: "linear" (Ho et al., 2020) or "cosine" (Nichol & Dhariwal, 2021).
        num_train_timesteps: T.
        beta_start: first beta of the linear schedule.
        beta_end: last beta of the linear schedule.
        rescale_timesteps: the network sees t * 1000 / T (improved-diffusion).

    Raises:
        ValueError: no network can have been trained so.
    """

    kind: str = "linear"
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale_timesteps: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(
                f"unknown schedule {self.kind!r}; use 'linear' or 'cosine'"
            )
        count = self.num_train_timesteps
        if isinstance(count, bool) or not isinstance(count, int):
            raise ValueError(f"num_train_timesteps is {count!r}; use a whole number")
        if not 1 <= count <= MOST_TIMESTEPS:
            raise ValueError(
                f"num_train_timesteps is {count}; use 1 to {MOST_TIMESTEPS}"
            )
        for name in ("beta_start", "beta_end"):
            beta = getattr(self, name)
            if not isinstance(beta, int | float) or not 0 < beta < 1:
                raise ValueError(f"{name} is {beta!r}; use a number between 0 and 1")
        if not (last := self.alphas_cumprod()[-1]) >= np.finfo(np.float32).tiny:
            raise ValueError(
                f"at the last of {count} timesteps {last:g} of the image is left; "
                "use smaller betas"
            )

    def alphas_cumprod(self) -> np.ndarray:
        """Return alpha_bar_t for t = 0 .. T - 1, float64."""
        if self.kind == "linear":
            return linear_alphas_cumprod(
                self.num_train_timesteps, self.beta_start, self.beta_end
            )
        return cosine_alphas_cumprod(self.num_train_timesteps)

    def noise_levels(self) -> np.ndarray:
        """Return sqrt((1 - alpha_bar_t) / alpha_bar_t) for t = 0 .. T - 1, float64.

        At timestep t the sample is a multiple of an image with noise of this deviation.
        """
        alphas_cumprod = self.alphas_cumprod()
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)

    def network_timesteps(self, timesteps: np.ndarray | jax.Array) -> Any:
        """Return timesteps as the network was trained to see them, a float32 array."""
        scale = 1000 / self.num_train_timesteps if self.rescale_timesteps else 1.0
        if isinstance(timesteps, jax.Array):  # float32 from the start, also under x64
            return timesteps.astype(np.float32) * np.float32(scale)
        return (timesteps * scale).astype(np.float32)


def linear_alphas_cumprod(
    num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> np.ndarray:
    """Return alpha_bar of linearly spaced betas (Ho et al., 2020), float64."""
    betas = np.linspace(beta_start, beta_end, num_train_timesteps, dtype=np.float64)
    return np.cumprod(1.0 - betas)


def cosine_alphas_cumprod(num_train_timesteps: int) -> np.ndarray:
    """Return alpha_bar of the cosine schedule, betas clipped at 0.999, float64.

    Eq. (17) of Nichol & Dhariwal (2021), with their offset s = 0.008.
    """
    t = np.arange(num_train_timesteps + 1, dtype=np.float64) / num_train_timesteps
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1.0 - np.minimum(1.0 - f[1:] / f[:-1], 0.999))


def ddim_timesteps(num_steps: int, num_train_timesteps: int = 1000) -> np.ndarray:
    """Return "leading" DDIM timesteps in the order of sampling, (num_steps,) int.

    For 10 steps of 1000: 900, 800, ..., 0.

    Raises:
        ValueError: num_steps is not in 1 .. num_train_timesteps.
    """
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(
            f"num_steps is {num_steps}; use 1 to {num_train_timesteps} DDIM steps"
        )
    stride = num_train_timesteps // num_steps
    return np.arange(num_steps)[::-1] * stride
