"""The DDIM authors' `Model`, written down once more: NumPy, float64, NCHW, no layers.

It is read off the description of ermongroup/ddim and pesser/pytorch_diffusion (keys,
order of evaluation, constants), works on a state dict with their names, and shares
nothing with the package.
"""

import re
from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]


def model(weights: Weights, x: np.ndarray, t: float) -> np.ndarray:
    """Return eps, (N, 3, H, W), of noisy images of that shape at timestep t."""
    levels = 1 + max(int(n.split(".")[1]) for n in weights if n.startswith("down."))
    blocks = 1 + max(int(n.split(".")[3]) for n in weights if n.startswith("down.0.bl"))
    time = embedding(weights, t)

    hs = [convolution(weights, "conv_in", x)]
    for level in range(levels):
        for block in range(blocks):
            h = residual(weights, f"down.{level}.block.{block}", hs[-1], time)
            if f"down.{level}.attn.{block}.q.weight" in weights:
                h = attention(weights, f"down.{level}.attn.{block}", h)
            hs.append(h)
        if level != levels - 1:
            padded = np.pad(hs[-1], [(0, 0), (0, 0), (0, 1), (0, 1)])
            name = f"down.{level}.downsample.conv"
            hs.append(convolution(weights, name, padded, padding=0)[:, :, ::2, ::2])

    h = residual(weights, "mid.block_1", hs[-1], time)
    h = attention(weights, "mid.attn_1", h)
    h = residual(weights, "mid.block_2", h, time)

    for level in reversed(range(levels)):
        for block in range(blocks + 1):
            h = np.concatenate([h, hs.pop()], axis=1)
            h = residual(weights, f"up.{level}.block.{block}", h, time)
            if f"up.{level}.attn.{block}.q.weight" in weights:
                h = attention(weights, f"up.{level}.attn.{block}", h)
        if level != 0:
            h = h.repeat(2, axis=2).repeat(2, axis=3)
            h = convolution(weights, f"up.{level}.upsample.conv", h)

    return convolution(weights, "conv_out", swish(norm(weights, "norm_out", h)))


def embedding(weights: Weights, t: float) -> np.ndarray:
    """Return the embedding of a timestep, (4 ch,)."""
    ch = weights["temb.dense.0.weight"].shape[1]
    frequencies = 10000.0 ** (-np.arange(ch // 2) / (ch // 2 - 1))
    features = np.concatenate([np.sin(t * frequencies), np.cos(t * frequencies)])
    return dense(
        weights, "temb.dense.1", swish(dense(weights, "temb.dense.0", features))
    )


def residual(
    weights: Weights, name: str, x: np.ndarray, time: np.ndarray
) -> np.ndarray:
    """Two convolutions, the time added after the first."""
    h = convolution(weights, f"{name}.conv1", swish(norm(weights, f"{name}.norm1", x)))
    h = h + dense(weights, f"{name}.temb_proj", swish(time))[:, None, None]
    h = convolution(weights, f"{name}.conv2", swish(norm(weights, f"{name}.norm2", h)))
    if f"{name}.nin_shortcut.weight" in weights:
        x = convolution(weights, f"{name}.nin_shortcut", x, padding=0)
    return x + h


def attention(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """One head over all pixels."""
    h = norm(weights, f"{name}.norm", x)
    n, c, height, width = h.shape
    q, k, v = (
        convolution(weights, f"{name}.{part}", h, padding=0).reshape(n, c, -1)
        for part in "qkv"
    )
    scores = np.einsum("nci,ncj->nij", q, k) / np.sqrt(c)
    scores = np.exp(scores - scores.max(axis=2, keepdims=True))
    scores /= scores.sum(axis=2, keepdims=True)
    h = np.einsum("nij,ncj->nci", scores, v).reshape(n, c, height, width)
    return x + convolution(weights, f"{name}.proj_out", h, padding=0)


def norm(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Normalise 32 groups of channels; epsilon is 1e-6 in this code."""
    n, c = x.shape[:2]
    groups = x.reshape(n, 32, -1)
    groups = groups - groups.mean(axis=2, keepdims=True)
    groups /= np.sqrt((groups**2).mean(axis=2, keepdims=True) + 1e-6)
    scale, bias = (weights[f"{name}.{part}"] for part in ("weight", "bias"))
    return groups.reshape(x.shape) * scale.reshape(c, 1, 1) + bias.reshape(c, 1, 1)


def convolution(
    weights: Weights, name: str, x: np.ndarray, padding: int = 1
) -> np.ndarray:
    """Convolve NCHW with an OIHW kernel, stride 1."""
    kernel = weights[f"{name}.weight"].astype(np.float64)
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[2:], (2, 3))
    out = np.tensordot(windows, kernel, axes=([1, 4, 5], [1, 2, 3]))
    return out.transpose(0, 3, 1, 2) + weights[f"{name}.bias"].reshape(-1, 1, 1)


def dense(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    """Map a vector by a (O, I) matrix."""
    return weights[f"{name}.weight"].astype(np.float64) @ x + weights[f"{name}.bias"]


def swish(x: np.ndarray) -> np.ndarray:
    """Return x times its sigmoid."""
    return x / (1 + np.exp(-x))


def shapes(
    ch: int, ch_mult: tuple[int, ...], blocks: int, attended: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of a checkpoint, counted from 0 = finest level."""
    found: dict[str, tuple[int, ...]] = {}

    def add(name: str, *shape: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = shape, shape[:1]

    def block(name: str, c_in: int, c_out: int) -> None:
        add(f"{name}.norm1", c_in)
        add(f"{name}.conv1", c_out, c_in, 3, 3)
        add(f"{name}.temb_proj", c_out, 4 * ch)
        add(f"{name}.norm2", c_out)
        add(f"{name}.conv2", c_out, c_out, 3, 3)
        if c_in != c_out:
            add(f"{name}.nin_shortcut", c_out, c_in, 1, 1)

    def attn(name: str, c: int) -> None:
        add(f"{name}.norm", c)
        for part in ("q", "k", "v", "proj_out"):
            add(f"{name}.{part}", c, c, 1, 1)

    add("temb.dense.0", 4 * ch, ch)
    add("temb.dense.1", 4 * ch, 4 * ch)
    add("conv_in", ch, 3, 3, 3)
    skips, c = [ch], ch
    for level, mult in enumerate(ch_mult):
        for i in range(blocks):
            block(f"down.{level}.block.{i}", c, ch * mult)
            c = ch * mult
            if level in attended:
                attn(f"down.{level}.attn.{i}", c)
            skips.append(c)
        if level != len(ch_mult) - 1:
            add(f"down.{level}.downsample.conv", c, c, 3, 3)
            skips.append(c)
    block("mid.block_1", c, c)
    attn("mid.attn_1", c)
    block("mid.block_2", c, c)
    for level, mult in reversed(list(enumerate(ch_mult))):
        for i in range(blocks + 1):
            block(f"up.{level}.block.{i}", c + skips.pop(), ch * mult)
            c = ch * mult
            if level in attended:
                attn(f"up.{level}.attn.{i}", c)
        if level != 0:
            add(f"up.{level}.upsample.conv", c, c, 3, 3)
    add("norm_out", c)
    add("conv_out", 3, c, 3, 3)
    return found


def ermongroup_name(name, levels):
    """Rename a diffusers weight by the table of the published conversion script."""
    for theirs, ours in (
        ("time_embedding.linear_1", "temb.dense.0"),
        ("time_embedding.linear_2", "temb.dense.1"),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("conv_norm_out", "norm_out"),
        ("down_blocks", "down"),
        ("resnets", "block"),
        ("attentions", "attn"),
        ("time_emb_proj", "temb_proj"),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
    ):
        name = name.replace(theirs, ours)
    return re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)


def as_ermongroup(arrays, levels):
    """Return diffusers' weights as the DDIM code stores them."""
    renamed = {}
    for name, array in arrays.items():
        square = "attentions" in name and array.ndim == 2
        array = array[..., None, None] if square else array
        renamed[ermongroup_name(name, levels)] = array
    return renamed
