"""Time one training step against PyTorch on the same prior, in the same run.

    python benchmarks/train_step.py [--batch 16] [--json FILE]

Needs torch, einops and azula (`pip install --no-deps azula`). Both sides take the whole
step in float32 on crops of 64x64 with the bundled shape: noise, the weighted error of
eps, its gradient, the clip of its norm, Adam, the average of the weights. PyTorch runs
eagerly, channels first, with as many threads as cores. Runs alternate, and the median
of their times counts. Ratios below 1 mean that this package is faster. On a CPU,
`--profile` shows where a step's time goes here, in the classes of `op_times.py`.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import cases
import jax
import numpy as np
import op_times
import torch
import vs_torch

from diip_jax import Prior, load_prior
from diip_jax.training import step


def ours(prior: Prior, pictures: np.ndarray) -> Callable[[], None]:
    """Return a function that takes one step here."""
    config = step.TrainConfig(batch_size=len(pictures))
    state = step.init(prior.params, config)

    def take() -> None:
        nonlocal state
        state, _ = step.jitted_train_step()(state, pictures, 0.5, prior.card, config)
        jax.block_until_ready(state)

    return take


def theirs(prior: Prior, pictures: np.ndarray) -> Callable[[], None]:
    """Return a function that takes one step in PyTorch."""
    config = step.TrainConfig(batch_size=len(pictures))
    unet = vs_torch.to_torch(prior).train().requires_grad_(True)
    weights = list(unet.parameters())
    average = [weight.detach().clone() for weight in weights]
    adam = torch.optim.Adam(weights, lr=config.learning_rate)
    alphas = torch.tensor(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))).float()
    crops = torch.tensor(pictures).permute(0, 3, 1, 2)

    def take() -> None:
        x = crops.float() / 127.5 - 1
        t = torch.randint(0, 1000, (len(x),))
        alpha_bar = alphas[t][:, None, None, None]
        noise = torch.randn_like(x)
        x_t = alpha_bar.sqrt() * x + (1 - alpha_bar).sqrt() * noise
        weight = ((1 - alphas[t]) / alphas[t]).sqrt().clamp(1, 10)
        error = (unet(x_t, t.float()) - noise).square().mean((1, 2, 3))
        adam.zero_grad()
        (weight * error).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
        adam.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - config.ema_decay)

    return take


def shares(
    prior: Prior, pictures: np.ndarray, take: Callable[[], None]
) -> dict[str, list[float]]:
    """Return per cent of a step's time, forward and backward, of each class.

    Args:
        prior: the prior.
        pictures: crops, (N, 64, 64, 3) uint8.
        take: what takes a step here; its program is compiled.
    """
    kernels = op_times.shared_time(op_times.profile(take))
    config = step.TrainConfig(batch_size=len(pictures))
    state = step.init(prior.params, config)
    program = step.jitted_train_step().lower(state, pictures, 0.5, prior.card, config)
    classes = op_times.by_class(kernels, op_times.paths(program.compile().as_text()))
    total = sum(map(sum, classes.values()))
    return {
        kind: [100 * part / total for part in pair] for kind, pair in classes.items()
    }


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    prior = load_prior("natural64")
    shape = (flags.batch, 64, 64, 3)
    pictures = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    runs = {"here": ours(prior, pictures), "there": theirs(prior, pictures)}
    vs_torch.azula_unet.checkpoint = vs_torch.no_checkpoint
    times = cases.median_seconds(runs, flags.repeats)
    ratio = times["here"] / times["there"]
    print(
        f"batch {flags.batch}: {1e3 * times['here']:.0f} ms here, "
        f"{1e3 * times['there']:.0f} ms in PyTorch, ratio {ratio:.2f}; "
        f"{flags.batch / times['here']:.1f} images/s"
    )
    row = {"batch": flags.batch, **times, "ratio": ratio}
    if flags.profile:
        row["percent"] = shares(prior, pictures, runs["here"])
        for kind, (forward, backward) in row["percent"].items():
            print(f"{kind:36s} {forward:5.1f} {backward:5.1f}")
    cases.write(flags.json, [row])


if __name__ == "__main__":
    main()
