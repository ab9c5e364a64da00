"""Time one iteration against PyTorch on the same prior, in the same run.

    python benchmarks/vs_torch.py [--json benchmarks/results/vs_torch.json]

Needs torch, einops and azula (`pip install --no-deps azula`). Both sides run the whole
iteration: g(z), the loss, its gradient, Adam; this package also computes the stopping
criteria and the traces. A run is `--iterations` of them, here one chunk of the engine's
compiled loop, there a Python loop. PyTorch runs float32, channels first, with as many
threads as cores. Of the full gradient, "-step" recomputes every DDIM step in the
backward pass on both sides, and "-block" in there every residual block too (and
PyTorch, as azula's UNet does by default, every attention). Runs alternate, and the
median of their times counts. Ratios below 1 mean that this package is faster.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import azula.plugins.adm._src.unet as azula_unet
import cases
import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from diip_jax import DIIPConfig, Prior, load_prior
from diip_jax.schedule import ddim_timesteps


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
    unet: torch.nn.Module, y: np.ndarray, z: np.ndarray, config: DIIPConfig
) -> Callable[[], None]:
    """Return a function that runs one iteration in PyTorch.

    Args:
        unet: the noise predictor.
        y: degraded images, (L, H, W, 3) in [0, 1].
        z: noise to start from, of the same shape.
        config: the settings; `remat` is none, step or block.
    """
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    times = ddim_timesteps(config.num_steps)
    target = 2 * torch.tensor(y).permute(0, 3, 1, 2) - 1
    latent = torch.tensor(z).permute(0, 3, 1, 2).contiguous().requires_grad_()
    optimizer = torch.optim.Adam([latent], lr=float(config.learning_rate))

    def step(x: torch.Tensor, now: int, after: int | None) -> torch.Tensor:
        a = float(alphas[now])
        b = 1.0 if after is None else float(alphas[after])
        t = torch.full((len(x),), float(now))
        with torch.set_grad_enabled(config.gradient == "full"):
            eps = unet(x, t)
        x_0 = ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
        eps = (x - a**0.5 * x_0) / (1 - a) ** 0.5
        return b**0.5 * x_0 + (1 - b) ** 0.5 * eps

    def generate(x: torch.Tensor) -> torch.Tensor:
        for now, after in zip(times, [*times[1:], None], strict=True):
            if config.remat == "none":
                x = step(x, now, after)
            else:
                x = checkpoint(step, x, now, after, use_reentrant=False)
        return x

    def iterate() -> None:
        # azula's blocks look their checkpoint up when they run.
        blocks = config.remat == "block"
        azula_unet.checkpoint = checkpoint if blocks else no_checkpoint
        optimizer.zero_grad()
        loss = torch.mean((generate(latent) - target) ** 2)
        loss.backward()
        optimizer.step()
        loss.item()

    return iterate


def main() -> None:
    """Print the table of ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--lanes", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 10])
    parser.add_argument("--gradients", nargs="+", default=["full", "frozen"])
    parser.add_argument(
        "--remat", nargs="*", choices=("step", "block"), default=["step", "block"]
    )
    parser.add_argument("--iterations", type=int, default=10, help="of one run")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--autocast", action="store_true", help="bfloat16 autocast too")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    torch.set_num_threads(os.cpu_count() or 1)
    prior, rng = load_prior("natural64"), np.random.default_rng(0)
    unet = to_torch(prior)
    rows = []
    print("milliseconds of one iteration, median; in brackets ours over theirs")
    for size in flags.sizes:
        for lanes in flags.lanes:
            y = rng.uniform(0, 1, (lanes, size, size, 3)).astype(np.float32)
            for gradient in flags.gradients:
                for steps in flags.steps:
                    config = prior.card.preset.replace(
                        gradient=gradient, num_steps=steps
                    )
                    row = {"size": size, "lanes": lanes, "gradient": gradient}
                    sides = all_sides(prior, unet, y, config, flags)
                    seconds = cases.median_seconds(sides, flags.repeats)
                    seconds = {
                        side: s / flags.iterations for side, s in seconds.items()
                    }
                    rows.append(row | {"steps": steps} | compare(seconds))
                    print(_line(rows[-1]), flush=True)
                    cases.write(flags.json, rows, torch=torch.__version__)


def all_sides(
    prior: Prior,
    unet: torch.nn.Module,
    y: np.ndarray,
    config: DIIPConfig,
    flags: argparse.Namespace,
) -> dict[str, Callable[[], None]]:
    """Return the runs to compare for one setting.

    Args:
        prior: the prior.
        unet: the same in PyTorch.
        y: degraded images, (L, H, W, 3) in [0, 1].
        config: the settings.
        flags: which sides are wanted.
    """
    z = np.asarray(cases.start_lanes(y, config).state.z)

    def ours(*, remat: str = "none", dtype: str = "float32") -> Callable[[], None]:
        changed = config.replace(remat=remat, dtype=dtype)
        return cases.iterations(prior, y, changed, flags.iterations)

    def theirs(
        unet: torch.nn.Module, *, remat: str = "none", autocast: bool = False
    ) -> Callable[[], None]:
        iterate = torch_iteration(unet, y, z, config.replace(remat=remat))

        def run() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                for _ in range(flags.iterations):
                    iterate()

        return run

    sides = {"jax": ours(), "eager": theirs(unet)}
    if config.gradient == "full":
        for remat in flags.remat:
            sides[f"jax-{remat}"] = ours(remat=remat)
            sides[f"eager-{remat}"] = theirs(unet, remat=remat)
    if flags.compile:
        sides["compile"] = theirs(torch.compile(unet, dynamic=False))
    if flags.autocast:
        sides["jax-bfloat16"] = ours(dtype="bfloat16")
        sides["eager-bfloat16"] = theirs(unet, autocast=True)
    return sides


def no_checkpoint(function: Callable[..., Any], *inputs: Any, **_: Any) -> Any:
    """Call a function; stands in for PyTorch's checkpoint."""
    return function(*inputs)


def compare(seconds: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return the seconds with the ratio of each PyTorch side to its counterpart here.

    "eager-X" is compared with "jax-X"; everything else with "jax".
    """
    ratios = {}
    for side, value in seconds.items():
        if not side.startswith("jax"):
            kind = side.removeprefix("eager") if side.startswith("eager") else ""
            ratios[side] = seconds[f"jax{kind}"] / value
    return {"seconds": seconds, "ratios": ratios}


def _line(row: dict[str, Any]) -> str:
    parts = []
    for side, seconds in row["seconds"].items():
        ratio = row["ratios"].get(side)
        parts.append(
            f"{side} {1e3 * seconds:.0f}" + (f" [{ratio:.2f}]" if ratio else "")
        )
    what = f"{row['size']}x{row['size']} x{row['lanes']} {row['gradient']:6s}"
    return f"{what} {row['steps']:2d} steps: " + ", ".join(parts)


if __name__ == "__main__":
    main()
