"""The guided-diffusion UNet (Dhariwal & Nichol, 2021) with all its public switches.

Names mirror the PyTorch state dict: `input_blocks.3.0.in_layers.2.weight` is
`params["input_blocks_3_0"]["in_layers_2"]["kernel"]`.

The network is two functions. `condition(t)` computes what every residual block needs
from the timestep alone. `__call__(x, conditioning)` computes the rest, which depends on
the image. An optimisation over x calls `condition` once.
"""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn

from diip_jax.unets import layers, ops
from diip_jax.unets.layers import Conditioning, Time


@dataclasses.dataclass(frozen=True)
class ADMConfig:
    """Architecture of a guided-diffusion or improved-diffusion checkpoint.

    Attributes:
        image_size: side of the training images in pixels.
        num_channels: width of the network; the time embedding is four times wider.
        channel_mult: width of each level relative to num_channels; may be fractional.
        num_res_blocks: residual blocks of each level on the way down.
        attention_factors: downsampling factors at which attention follows each block.
        num_heads: number of heads of an attention layer, if num_head_channels is -1.
        num_head_channels: width of a head; -1 if num_heads is given instead.
        num_heads_upsample: number of heads on the way up, if num_head_channels is -1;
            -1 for num_heads.
        resblock_updown: resample inside residual blocks, not by plain convolutions.
        use_scale_shift_norm: time enters as scale and shift, not as an addend.
        use_new_attention_order: qkv channels are [q|k|v][head], not [head][q|k|v].
        learn_sigma: the output has three more channels, which are dropped here.
    """

    image_size: int
    num_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: tuple[int, ...]
    attention_factors: tuple[int, ...]
    num_heads: int = 4
    num_head_channels: int = -1
    resblock_updown: bool = False
    use_scale_shift_norm: bool = True
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    num_heads_upsample: int = -1

    @property
    def stride(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def finest_attention(self) -> tuple[int, int]:
        """Downsampling factor and number of heads of the attention of most pixels."""
        factor = min((*self.attention_factors, self.stride))  # one is at the bottom
        mult = self.channel_mult[factor.bit_length() - 1]
        return factor, self.heads(int(mult * self.num_channels))

    def heads(self, channels: int, *, up: bool = False) -> int:
        """Return the number of heads of an attention layer of this width.

        Args:
            channels: the width.
            up: the layer is on the way up.
        """
        if self.num_head_channels != -1:
            return channels // self.num_head_channels
        if up and self.num_heads_upsample != -1:
            return self.num_heads_upsample
        return self.num_heads


class ResBlock(nn.Module):
    """Two convolutions around the injection of time, plus a shortcut."""

    in_channels: int
    out_channels: int
    scale_shift: bool
    resample: str = "none"  # "none", "up" or "down"
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Create the layers under their PyTorch names."""
        width = self.out_channels * (2 if self.scale_shift else 1)
        self.in_layers_0 = layers.GroupNorm(silu=True)
        self.in_layers_2 = layers.Conv(
            self.out_channels, upsampled=self.resample == "up", dtype=self.dtype
        )
        self.emb_layers_1 = layers.Dense(width)
        self.out_layers_0 = layers.TimedGroupNorm(
            silu=True, scale_shift=self.scale_shift
        )
        self.out_layers_3 = layers.Conv(self.out_channels, dtype=self.dtype)
        if self.in_channels != self.out_channels:
            self.skip_connection = layers.Conv(
                self.out_channels, size=1, dtype=self.dtype
            )

    def condition(self, embedding: jax.Array) -> Time:
        """Return what this block computes from the time embedding, (..., 4 C)."""
        return self.out_layers_0.condition(self.emb_layers_1(nn.silu(embedding)))

    def __call__(self, x: jax.Array, time: Time) -> jax.Array:
        """Map features (N, H, W, C_in), with the result of `condition`."""
        h = self.in_layers_0(x)
        if self.resample == "down":
            h, x = ops.downsample(h), ops.downsample(x)
        elif self.resample == "up":
            x = ops.upsample(x)
        h = self.out_layers_3(self.out_layers_0(self.in_layers_2(h), time))
        if self.in_channels != self.out_channels:
            x = self.skip_connection(x)
        return x + h


class AttentionBlock(nn.Module):
    """Self-attention over the pixels, with a residual connection."""

    num_heads: int
    heads_first: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features (N, H, W, C)."""
        n, h, w, c = x.shape
        tokens = layers.GroupNorm(name="norm")(x).reshape(n, h * w, c)
        qkv = layers.Dense(3 * c, dtype=self.dtype, name="qkv")(tokens)
        mixed = ops.attention(qkv, self.num_heads, heads_first=self.heads_first)
        mixed = layers.Dense(c, dtype=self.dtype, name="proj_out")(mixed)
        return x + mixed.reshape(x.shape)


class Downsample(nn.Module):
    """Strided convolution, padded on both sides."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Halve both sides of (N, H, W, C)."""
        return layers.Conv(self.features, stride=2, dtype=self.dtype, name="op")(x)


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a convolution."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Double both sides of (N, H, W, C)."""
        conv = layers.Conv(self.features, upsampled=True, dtype=self.dtype, name="conv")
        return conv(x)


class ADMUNet(nn.Module):
    """Noise predictor eps_theta.

    Attributes:
        config: the architecture.
        dtype: dtype of the convolutions and attention projections; norms, softmax,
            time embedding and the output stay in float32.
        remat_blocks: recompute each residual block in the backward pass.
    """

    config: ADMConfig
    dtype: jnp.dtype = jnp.float32
    remat_blocks: bool = False

    def setup(self):
        """Lay out the blocks in the order of the PyTorch lists."""
        config, dtype = self.config, self.dtype
        block_class = nn.remat(ResBlock) if self.remat_blocks else ResBlock
        widths = [int(mult * config.num_channels) for mult in config.channel_mult]
        last = len(widths) - 1

        def block(c_in: int, c_out: int, resample: str = "none") -> nn.Module:
            scale_shift = config.use_scale_shift_norm
            return block_class(c_in, c_out, scale_shift, resample, dtype)

        def attend(channels: int, *, up: bool = False) -> nn.Module:
            heads_first = not config.use_new_attention_order
            return AttentionBlock(config.heads(channels, up=up), heads_first, dtype)

        def stage(c_in: int, c_out: int, level: int, *, up: bool) -> list[nn.Module]:
            attended = 2**level in config.attention_factors
            return [block(c_in, c_out)] + ([attend(c_out, up=up)] if attended else [])

        down: list[list[nn.Module]] = [[layers.Conv(widths[0], dtype=dtype)]]
        channels, skips = widths[0], [widths[0]]
        for level, width in enumerate(widths):
            for _ in range(config.num_res_blocks[level]):
                down.append(stage(channels, width, level, up=False))
                channels = width
                skips.append(channels)
            if level != last:
                inside = config.resblock_updown
                down.append(
                    [
                        block(channels, channels, "down")
                        if inside
                        else Downsample(channels, dtype)
                    ]
                )
                skips.append(channels)

        up: list[list[nn.Module]] = []
        for level in range(last, -1, -1):
            for _ in range(config.num_res_blocks[level] + 1):
                width = widths[level]
                up.append(stage(channels + skips.pop(), width, level, up=True))
                channels = width
            if level:
                inside = config.resblock_updown
                up[-1].append(
                    block(channels, channels, "up")
                    if inside
                    else Upsample(channels, dtype)
                )

        deepest = widths[-1]
        self.time_embed_0 = layers.Dense(4 * config.num_channels)
        self.time_embed_2 = layers.Dense(4 * config.num_channels)
        self.input_blocks = down
        self.middle_block = [
            block(deepest, deepest),
            attend(deepest),
            block(deepest, deepest),
        ]
        self.output_blocks = up
        self.out_0 = layers.GroupNorm(silu=True)
        self.out_2 = layers.Conv(6 if config.learn_sigma else 3)

    def condition(self, t: jax.Array) -> Conditioning:
        """Return what the residual blocks compute from the timestep.

        Args:
            t: timesteps as the network was trained to see them, shape (...).

        Returns:
            An entry per residual block, in the order of evaluation.
        """
        features = ops.timestep_embedding(t, self.config.num_channels)
        embedding = self.time_embed_2(nn.silu(self.time_embed_0(features)))
        blocks = [*self.input_blocks, self.middle_block, *self.output_blocks]
        return tuple(
            layer.condition(embedding)
            for block in blocks
            for layer in block
            if isinstance(layer, ResBlock)
        )

    def __call__(self, x: jax.Array, conditioning: Conditioning) -> jax.Array:
        """Predict the noise in x.

        Args:
            x: noisy images, (N, H, W, 3), sides multiples of `config.stride`.
            conditioning: `condition(t)` of one timestep that the N images share, or
                of one for each image, (N,).

        Returns:
            eps, (N, H, W, 3), float32.
        """
        times = iter(conditioning)
        h = x.astype(self.dtype)
        skips = []
        for block in self.input_blocks:
            h = _apply(block, h, times)
            skips.append(h)
        h = _apply(self.middle_block, h, times)
        for block in self.output_blocks:
            h = _apply(block, jnp.concatenate([h, skips.pop()], axis=-1), times)
        h = self.out_0(h.astype(jnp.float32))
        return self.out_2(h)[..., :3]

    def initialise(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Use every parameter: the method to give to flax's `init`."""
        return self(x, self.condition(t))


def _apply(block: list[nn.Module], h: jax.Array, times: Iterator[Time]):
    for layer in block:
        h = layer(h, next(times)) if isinstance(layer, ResBlock) else layer(h)
    return h
