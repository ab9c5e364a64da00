"""The DDPM UNet (Ho et al., 2020) as ermongroup/ddim and diffusers published it.

One network serves both: the DDIM authors' `Model` and diffusers' unconditional
`UNet2DModel`. Names mirror the diffusers state dict:
`down_blocks.0.resnets.1.conv1.weight` is
`params["down_blocks_0"]["resnets_1"]["conv1"]["kernel"]`.

As in `unets.adm`, `condition(t)` computes what depends on the timestep alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from diip_jax.unets import layers, ops
from diip_jax.unets.layers import Conditioning, Time


@dataclasses.dataclass(frozen=True)
class DDPMConfig:
    """Architecture of a DDPM checkpoint.

    Attributes:
        image_size: side of the training images in pixels.
        widths: channels of each level, finest first.
        layers_per_block: residual blocks of each level on the way down.
        down_attention: whether attention follows each residual block of a level on the
            way down, finest level first.
        up_attention: the same on the way up, coarsest level first.
        mid_attention: attention stands between the two residual blocks at the bottom.
        mid_attention_norm: that attention normalises its input.
        head_channels: width of an attention head; None for a single head.
        symmetric_padding: strided convolutions are padded by one pixel on all sides,
            not only on the right and at the bottom.
        sin_first: the time embedding is [sin, cos], not [cos, sin].
        divisor_shift: the frequencies of the time embedding are
            10000^(-i / (half - divisor_shift)).
        norm_epsilon: number added to the variance in every group normalisation.
        scale_shift: time enters as scale and shift, not as an addend.
        out_channels: 3, or 6 with a learned variance, which is dropped here.
    """

    image_size: int
    widths: tuple[int, ...]
    layers_per_block: int
    down_attention: tuple[bool, ...]
    up_attention: tuple[bool, ...]
    mid_attention: bool = True
    mid_attention_norm: bool = True
    head_channels: int | None = None
    symmetric_padding: bool = False
    sin_first: bool = True
    divisor_shift: int = 1
    norm_epsilon: float = 1e-6
    scale_shift: bool = False
    out_channels: int = 3

    @property
    def stride(self) -> int:
        """Sides of an image must be multiples of this many pixels."""
        return 2 ** (len(self.widths) - 1)

    @property
    def num_channels(self) -> int:
        """Width of the finest level."""
        return self.widths[0]

    @property
    def finest_attention(self) -> tuple[int, int] | None:
        """Downsampling factor and number of heads of the attention of most pixels."""
        on_either_way = zip(self.down_attention, self.up_attention[::-1], strict=True)
        attended = [any(pair) for pair in on_either_way]
        attended[-1] |= self.mid_attention
        if not any(attended):
            return None
        level = attended.index(True)
        return 2**level, self.heads(self.widths[level])

    def heads(self, channels: int) -> int:
        """Return the number of heads of an attention layer of this width."""
        return channels // (self.head_channels or channels)


class TimeEmbedding(nn.Module):
    """Two dense layers on the sinusoidal features of t."""

    features: int

    def setup(self):
        """Create the layers under their PyTorch names."""
        self.linear_1 = layers.Dense(self.features)
        self.linear_2 = layers.Dense(self.features)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features (..., C)."""
        return self.linear_2(nn.silu(self.linear_1(x)))


class ResBlock(nn.Module):
    """Two convolutions around the injection of time, plus a shortcut."""

    config: DDPMConfig
    in_channels: int
    out_channels: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """Create the layers under their PyTorch names."""
        config, width = self.config, self.out_channels
        self.norm1 = layers.GroupNorm(config.norm_epsilon, silu=True)
        self.conv1 = layers.Conv(width, dtype=self.dtype)
        self.time_emb_proj = layers.Dense(width * (2 if config.scale_shift else 1))
        self.norm2 = layers.TimedGroupNorm(
            config.norm_epsilon, silu=True, scale_shift=config.scale_shift
        )
        self.conv2 = layers.Conv(width, dtype=self.dtype)
        if self.in_channels != width:
            self.conv_shortcut = layers.Conv(width, size=1, dtype=self.dtype)

    def condition(self, embedding: jax.Array) -> Time:
        """Return what this block computes from the time embedding, (..., 4 C)."""
        return self.norm2.condition(self.time_emb_proj(nn.silu(embedding)))

    def __call__(self, x: jax.Array, time: Time) -> jax.Array:
        """Map features (N, H, W, C_in), with the result of `condition`."""
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h, time))
        if self.in_channels != self.out_channels:
            x = self.conv_shortcut(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual connection."""

    config: DDPMConfig
    normalise: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map features (N, H, W, C)."""
        n, h, w, c = x.shape
        tokens = x.reshape(n, h * w, c)
        if self.normalise:
            norm = layers.GroupNorm(self.config.norm_epsilon, name="group_norm")
            tokens = norm(x).reshape(n, h * w, c)
        projections = (
            layers.Dense(c, dtype=self.dtype, name=name)(tokens)
            for name in ("to_q", "to_k", "to_v")
        )
        qkv = jnp.concatenate(list(projections), axis=-1)
        mixed = ops.attention(qkv, self.config.heads(c), heads_first=False)
        mixed = layers.Dense(c, dtype=self.dtype, name="to_out_0")(mixed)
        return x + mixed.reshape(x.shape)


class Resample(nn.Module):
    """Strided convolution, or nearest-neighbour doubling and a convolution."""

    features: int
    direction: str  # "down" or "up"
    symmetric_padding: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Halve or double both sides of (N, H, W, C)."""
        if self.direction == "up":
            return layers.Conv(
                self.features, upsampled=True, dtype=self.dtype, name="conv"
            )(x)
        padding = (1, 1) if self.symmetric_padding else (0, 1)
        return layers.Conv(
            self.features, stride=2, padding=padding, dtype=self.dtype, name="conv"
        )(x)


class Level(nn.Module):
    """The layers of one resolution, on the way down, at the bottom or on the way up.

    Attributes:
        config: the architecture.
        in_channels: input width of each residual block.
        out_channels: output width of all residual blocks.
        attentions_after: indices of the residual blocks that attention follows.
        resample: what comes last: "down", "up" or "none".
        normalise: the attention normalises its input.
        dtype: dtype of the convolutions and attention projections.
        remat_blocks: recompute each residual block in the backward pass.
    """

    config: DDPMConfig
    in_channels: tuple[int, ...]
    out_channels: int
    attentions_after: tuple[int, ...] = ()
    resample: str = "none"
    normalise: bool = True
    dtype: jnp.dtype = jnp.float32
    remat_blocks: bool = False

    def setup(self):
        """Create the layers under their PyTorch names."""
        config, width, dtype = self.config, self.out_channels, self.dtype
        block_class = nn.remat(ResBlock) if self.remat_blocks else ResBlock
        self.resnets = [block_class(config, c, width, dtype) for c in self.in_channels]
        self.attentions = [
            Attention(config, self.normalise, dtype) for _ in self.attentions_after
        ]
        change = Resample(width, self.resample, config.symmetric_padding, dtype)
        if self.resample == "down":
            self.downsamplers = [change]
        elif self.resample == "up":
            self.upsamplers = [change]

    def condition(self, embedding: jax.Array) -> Conditioning:
        """Return what each residual block computes from the time embedding."""
        return tuple(block.condition(embedding) for block in self.resnets)

    def __call__(
        self,
        x: jax.Array,
        times: Conditioning,
        skips: tuple[jax.Array, ...] | None = None,
    ) -> tuple[jax.Array, ...]:
        """Map features (N, H, W, C) and return the output of every stage, in order.

        A stage is a residual block with its attention, or the resampling.

        Args:
            x: features.
            times: the result of `condition`.
            skips: on the way up, features to append to the input of each residual
                block; otherwise None.
        """
        outputs = []
        attentions = iter(self.attentions)
        for i, block in enumerate(self.resnets):
            if skips is not None:
                x = jnp.concatenate([x, skips[i]], axis=-1)
            x = block(x, times[i])
            if i in self.attentions_after:
                x = next(attentions)(x)
            outputs.append(x)
        if self.resample != "none":
            layer = self.downsamplers if self.resample == "down" else self.upsamplers
            outputs.append(layer[0](x))
        return tuple(outputs)


class DDPMUNet(nn.Module):
    """Noise predictor eps_theta.

    Attributes:
        config: the architecture.
        dtype: dtype of the convolutions and attention projections; norms, softmax,
            time embedding and the output stay in float32.
        remat_blocks: recompute each residual block in the backward pass.
    """

    config: DDPMConfig
    dtype: jnp.dtype = jnp.float32
    remat_blocks: bool = False

    def setup(self):
        """Lay out the levels in the order of diffusers' lists."""
        config, widths = self.config, self.config.widths
        common = {"dtype": self.dtype, "remat_blocks": self.remat_blocks}
        last, num_down = len(widths) - 1, config.layers_per_block

        skips, down = [widths[0]], []
        for level, width in enumerate(widths):
            before = widths[max(level - 1, 0)]
            attended = config.down_attention[level]
            down.append(
                Level(
                    config,
                    (before,) + (width,) * (num_down - 1),
                    width,
                    tuple(range(num_down)) if attended else (),
                    "none" if level == last else "down",
                    **common,
                )
            )
            skips += [width] * (num_down if level == last else num_down + 1)

        up, before = [], widths[-1]
        for i, width in enumerate(reversed(widths)):
            currents = (before,) + (width,) * num_down
            attended = config.up_attention[i]
            up.append(
                Level(
                    config,
                    tuple(current + skips.pop() for current in currents),
                    width,
                    tuple(range(num_down + 1)) if attended else (),
                    "none" if i == last else "up",
                    **common,
                )
            )
            before = width

        self.time_embedding = TimeEmbedding(4 * widths[0])
        self.conv_in = layers.Conv(widths[0], dtype=self.dtype)
        self.down_blocks = down
        self.mid_block = Level(
            config,
            (widths[-1],) * 2,
            widths[-1],
            (0,) if config.mid_attention else (),
            normalise=config.mid_attention_norm,
            **common,
        )
        self.up_blocks = up
        self.conv_norm_out = layers.GroupNorm(config.norm_epsilon, silu=True)
        self.conv_out = layers.Conv(config.out_channels)

    def condition(self, t: jax.Array) -> Conditioning:
        """Return what the residual blocks compute from the timestep.

        Args:
            t: timesteps as the network was trained to see them, shape (...).

        Returns:
            An entry per residual block, in the order of evaluation.
        """
        config = self.config
        features = ops.timestep_embedding(
            t,
            config.widths[0],
            sin_first=config.sin_first,
            divisor_shift=config.divisor_shift,
        )
        embedding = self.time_embedding(features)
        levels = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return tuple(time for level in levels for time in level.condition(embedding))

    def __call__(self, x: jax.Array, conditioning: Conditioning) -> jax.Array:
        """Predict the noise in x.

        Args:
            x: noisy images, (N, H, W, 3), sides multiples of `config.stride`.
            conditioning: `condition(t)` of one timestep that the N images share, or
                of one for each image, (N,).

        Returns:
            eps, (N, H, W, 3), float32.
        """
        num_down = self.config.layers_per_block
        times = iter(conditioning)

        def take(count: int) -> Conditioning:
            return tuple(next(times) for _ in range(count))

        h = self.conv_in(x.astype(self.dtype))
        skips = [h]
        for level in self.down_blocks:
            outputs = level(h, take(num_down))
            skips += outputs
            h = outputs[-1]
        h = self.mid_block(h, take(2))[-1]
        for level in self.up_blocks:
            popped = tuple(skips.pop() for _ in range(num_down + 1))
            h = level(h, take(num_down + 1), popped)[-1]
        h = self.conv_norm_out(h.astype(jnp.float32))
        return self.conv_out(h)[..., :3]

    def initialise(self, x: jax.Array, t: jax.Array) -> jax.Array:
        """Use every parameter: the method to give to flax's `init`."""
        return self(x, self.condition(t))
