"""Time one iteration against PyTorch on the same prior, in the same run.

    python benchmarks/vs_torch.py [--json benchmarks/results/vs_torch.json]

Needs torch, einops and azula (`pip install --no-deps azula`). Both sides run
the whole iteration: g(z), the loss, its gradient, Adam. PyTorch runs eager, float32,
channels first, with as many threads as cores; "checkpointed" recomputes every residual
block, as azula's UNet does by default. Runs alternate, and the median of their times
counts. Ratios below 1 mean that this package is faster.
"""

import argparse
import gc
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import azula.plugins.adm._src.unet as azula_unet
import jax
import jax.numpy as jnp
import numpy as np
import torch

import diip_jax
from diip_jax import Prior, diip, load_prior
from diip_jax.schedule import ddim_timesteps

CHECKPOINT = azula_unet.checkpoint


def to_torch(prior: Prior) -> torch.nn.Module:
    """Return azula's UNet with the weights of an ADM prior of this package."""
    config = prior.card.architecture
    unet = azula_unet.UNetModel(
        image_size=config.image_size,
        in_channels=3,
        model_channels=config.num_channels,
        out_channels=3,
        num_res_blocks=config.num_res_blocks[0],
        attention_resolutions=config.attention_factors,
        channel_mult=config.channel_mult,
        num_head_channels=config.num_head_channels,
        use_scale_shift_norm=config.use_scale_shift_norm,
        resblock_updown=config.resblock_updown,
    )
    state = {}
    for name, like in unet.state_dict().items():
        *parents, leaf = _path(name)
        node = prior.params
        for parent in parents:
            node = node[parent]
        array = np.asarray(node.get(leaf, node.get("kernel", node.get("scale"))))
        if leaf == "weight":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        state[name] = torch.tensor(np.ascontiguousarray(array)).reshape(like.shape)
    unet.load_state_dict(state, strict=True)
    return unet.eval().requires_grad_(False)


def _path(name: str) -> list[str]:
    parts: list[str] = []
    for part in name.split("."):
        if part.isdecimal():
            parts[-1] += f"_{part}"
        else:
            parts.append(part)
    return parts


def torch_iteration(
    unet: torch.nn.Module, y: np.ndarray, z: np.ndarray, config: diip_jax.DIIPConfig
) -> Callable[[], None]:
    """Return a function that runs one iteration in PyTorch."""
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = ddim_timesteps(config.num_steps)
    target = torch.tensor(y).permute(0, 3, 1, 2)
    latent = torch.tensor(z).permute(0, 3, 1, 2).contiguous().requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=float(config.learning_rate))

    def generate(x: torch.Tensor) -> torch.Tensor:
        for now, after in zip(times, [*times[1:], None], strict=True):
            a = float(alphas[now])
            b = 1.0 if after is None else float(alphas[after])
            t = torch.full((len(x),), float(now))
            with torch.set_grad_enabled(config.gradient == "full"):
                eps = unet(x, t)
            x_0 = ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
            eps = (x - a**0.5 * x_0) / (1 - a) ** 0.5
            x = b**0.5 * x_0 + (1 - b) ** 0.5 * eps
        return x

    def iterate() -> None:
        optimizer.zero_grad()
        loss = torch.mean((generate(latent) - target) ** 2)
        loss.backward()
        optimizer.step()
        loss.item()

    return iterate


def jax_iteration(
    prior: Prior, y: np.ndarray, z: np.ndarray, config: diip_jax.DIIPConfig
) -> Callable[[], None]:
    """Return a function that runs one iteration of this package, compiled."""
    size = y.shape[1:3]

    def algorithm(prior: Prior, y: jax.Array) -> diip.Algorithm:
        return diip.build(diip.generator(prior, config, size), y, config)

    @jax.jit
    def init(prior: Prior, y: jax.Array, z: jax.Array) -> diip.DIIPState:
        return jax.vmap(lambda y, z: algorithm(prior, y).init(z))(y, z)

    @jax.jit
    def step(prior: Prior, y: jax.Array, state: diip.DIIPState) -> diip.DIIPState:
        return jax.vmap(lambda y, state: algorithm(prior, y).step(state))(y, state)

    degraded = jnp.asarray(y)
    state = [init(prior, degraded, jnp.asarray(z))]

    def iterate() -> None:
        state[0] = jax.block_until_ready(step(prior, degraded, state[0]))

    return iterate


def compare(sides: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each side over alternating runs."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()
        side()
    gc.collect()
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast too")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    prior, rng = load_prior("natural64"), np.random.default_rng(0)
    unet = to_torch(prior)
    rows = []
    print("seconds of one iteration (median), and this package's over PyTorch's")
    for size in flags.sizes:
        for lanes in flags.lanes:
            y = rng.uniform(-1, 1, (lanes, size, size, 3)).astype(np.float32)
            z = rng.standard_normal(y.shape).astype(np.float32)
            for gradient in ("full", "frozen"):
                for steps in flags.steps:
                    row = measure(prior, unet, y, z, gradient, steps, flags)
                    rows.append({"size": size, "lanes": lanes, **row})
                    print(_line(rows[-1]), flush=True)
    if flags.json:
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        versions = {"jax": jax.__version__, "torch": torch.__version__}
        content = {"machine": machine, **versions, "rows": rows}
        flags.json.write_text(json.dumps(content, indent=1) + "\n")


def measure(
    prior: Prior,
    unet: torch.nn.Module,
    y: np.ndarray,
    z: np.ndarray,
    gradient: str,
    steps: int,
    flags: argparse.Namespace,
) -> dict:
    """Return the times of all sides for one setting."""
    config = prior.card.preset.replace(gradient=gradient, num_steps=steps)
    plain = torch_iteration(unet, y, z, config)

    def eager() -> None:
        azula_unet.checkpoint = lambda function, *inputs, **_: function(*inputs)
        plain()

    def checkpointed() -> None:
        azula_unet.checkpoint = CHECKPOINT
        plain()

    sides = {"jax": jax_iteration(prior, y, z, config), "eager": eager}
    if gradient == "full":
        sides["checkpointed"] = checkpointed
    if flags.compile:
        fast = torch_iteration(torch.compile(unet), y, z, config)

        def compiled() -> None:
            azula_unet.checkpoint = lambda function, *inputs, **_: function(*inputs)
            fast()

        sides["compiled"] = compiled
    if flags.autocast:

        def autocast() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                eager()

        sides["autocast"] = autocast
    seconds = compare(sides, flags.repeats)
    return {"gradient": gradient, "steps": steps, "seconds": seconds}


def _line(row: dict) -> str:
    seconds = dict(row["seconds"])
    ours = seconds.pop("jax")
    others = ", ".join(
        f"{name} {value:.3f} s (ratio {ours / value:.2f})"
        for name, value in seconds.items()
    )
    what = f"{row['size']}x{row['size']} x{row['lanes']} {row['gradient']:6s}"
    return f"{what} {row['steps']:2d} steps: {ours:.3f} s; {others}"


if __name__ == "__main__":
    main()
