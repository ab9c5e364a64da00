"""Priors on disk and as g: round trips, refusals, and weights that stay arguments.

Independent are the networks' direct application and a DDIM chain written out here.
"""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn

from diip_jax import canvas, ddim, restore
from diip_jax import prior as priors
from diip_jax.config import DEFAULT, PAPER, DIIPConfig
from diip_jax.prior import Card, Prior, PriorError
from diip_jax.schedule import Schedule, linear_alphas_cumprod
from diip_jax.unets import layers
from diip_jax.unets.adm import ADMConfig, ADMUNet
from helpers import seeded
from helpers.disks import small_disk


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_prior):
    """Return the folder of the tiny prior on disk."""
    path = tmp_path_factory.mktemp("priors") / "tiny"
    priors.save(path, tiny_prior)
    return path


def test_card_survives_json():
    card = seeded.card(
        seeded.ADM_CASES["modern"],
        schedule=Schedule(
            kind="cosine", num_train_timesteps=4000, rescale_timesteps=True
        ),
        preset=DIIPConfig(learning_rate=0.05, gradient="last-2", dtype="bfloat16"),
        any_size=False,
    )
    again = Card.from_json(card.to_json())
    assert again == card
    assert isinstance(again.architecture, ADMConfig)
    assert hash(again) == hash(card)  # static under jit


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema", "diip.prior/9", "schema 'diip.prior/9', expected 'diip.prior/1'"),
        ("family", "dit", "family 'dit'; known: .*adm"),
    ],
)
def test_cards_of_another_kind_are_refused(field, value, message):
    fields = json.loads(seeded.card(seeded.TINY).to_json())
    with pytest.raises(PriorError, match=message):
        Card.from_json(json.dumps({**fields, field: value}))


def test_prior_survives_the_disk(saved, tiny_prior):
    loaded = priors.load(saved)
    assert loaded.card == tiny_prior.card
    assert jax.tree.structure(loaded) == jax.tree.structure(tiny_prior)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(tiny_prior), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_full_disk_is_an_error_of_the_place(tmp_path, tiny_prior, capfd):
    with small_disk(tmp_path / "disk", 300) as disk:  # the weights take 700
        with pytest.raises(OSError, match="No space left on device") as caught:
            priors.save(disk / "tiny", tiny_prior)
        assert not list(disk.iterdir())
    assert caught.value.filename == str(tmp_path / "disk" / "tiny")
    assert capfd.readouterr().err == ""  # no traceback of Orbax


def test_a_disk_that_is_full_after_all_is_an_error_of_the_place(
    tmp_path, tiny_prior, monkeypatch
):
    """As TensorStore says it, in a folder that has a prior already."""
    priors.save(tmp_path / "tiny", tiny_prior)

    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']")

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        priors.save(tmp_path / "tiny", tiny_prior)
    assert caught.value.filename == str(tmp_path / "tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    assert priors.read_card(tmp_path / "tiny") == tiny_prior.card


def test_weights_that_do_not_fit_the_card_are_refused(saved, tmp_path):
    card = json.loads((saved / "card.json").read_text())
    card["architecture"]["num_channels"] = 64
    (tmp_path / "params").symlink_to(saved / "params")
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(PriorError, match="do not fit card.json.*convert them again"):
        priors.load(tmp_path)


def test_missing_weights_are_refused(saved, tmp_path):
    (tmp_path / "card.json").write_text((saved / "card.json").read_text())
    with pytest.raises(PriorError, match="do not fit card.json.*convert them again"):
        priors.load(tmp_path)


def test_unknown_priors_are_refused_with_what_there_is(tmp_path):
    with pytest.raises(PriorError, match="unknown prior 'nature46'; bundled: ") as info:
        priors.load("nature46")
    for name in priors.bundled():
        assert name in str(info.value)
    with pytest.raises(PriorError, match="unknown prior"):
        priors.load(tmp_path)


@pytest.mark.parametrize("name", seeded.ADM_CASES)
def test_abstract_params_are_those_of_the_network(name):
    config = seeded.ADM_CASES[name]
    expected = jax.eval_shape(
        lambda: ADMUNet(config).init(
            jax.random.key(0),
            jnp.zeros((1, 2 * config.stride, config.stride, 3)),
            jnp.zeros(()),
            method="initialise",
        )
    )["params"]
    assert priors.abstract_params(seeded.card(config)) == expected


def by_hand(prior, z, timesteps):
    """Run the DDIM chain step by step, the network applied directly."""
    unet, variables = ADMUNet(prior.card.architecture), {"params": prior.params}
    schedule = prior.card.schedule
    count = schedule.num_train_timesteps
    alphas_cumprod = linear_alphas_cumprod(count, beta_end=schedule.beta_end)

    def network(x, t):
        conditioning = unet.apply(variables, t, method="condition")
        return unet.apply(variables, x[None], conditioning)[0]

    predict = seeded.compile_quickly(network, z, jnp.float32(0))
    x = np.asarray(z, np.float64)
    for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True):
        ab = alphas_cumprod[t]
        ab_prev = 1.0 if t_prev is None else alphas_cumprod[t_prev]
        seen = jnp.float32(t * 1000 / count)
        eps = np.asarray(predict(jnp.float32(x), seen), np.float64)
        x_0 = np.clip((x - np.sqrt(1 - ab) * eps) / np.sqrt(ab), -1, 1)
        eps = (x - np.sqrt(ab) * x_0) / np.sqrt(1 - ab)
        x = np.sqrt(ab_prev) * x_0 + np.sqrt(1 - ab_prev) * eps
    return x


@pytest.fixture(scope="module")
def z():
    """Return noise."""
    return jax.random.normal(jax.random.key(1), (8, 12, 3))


@pytest.mark.parametrize(
    ("schedule", "timesteps"),
    [
        (seeded.MILD, [800, 600, 400, 200, 0]),
        (Schedule("linear", 50, 1e-4, 0.02, True), [40, 30, 20, 10, 0]),
    ],
)
def test_generator_is_the_chain_by_hand(tiny_prior, z, schedule, timesteps):
    card = dataclasses.replace(tiny_prior.card, schedule=schedule)
    prior = tiny_prior.replace(card=card)
    config = DIIPConfig(num_steps=5, gradient="frozen")
    g = seeded.compile_quickly(canvas.generator(prior, config, z.shape[:2]), z)
    # float32 against float64 in the algebra, five times over.
    np.testing.assert_allclose(g(z), by_hand(prior, z, timesteps), atol=1e-4)


def test_the_noise_predictor_can_be_wrapped(tiny_prior, z):
    timesteps = np.array([500, 0])
    _, steps = priors.noise_predictor(tiny_prior, DIIPConfig(), timesteps)

    def zero(x_t, conditioning):
        return jnp.zeros_like(x_t)

    x = ddim.generator(zero, steps, gradient="frozen")(z)
    # Without noise x_0 = clip(z / sqrt(ab)); the second step starts there.
    ab = linear_alphas_cumprod(beta_end=2e-3)[[500, 0]]
    x_0 = np.clip(np.float64(z) / np.sqrt(ab[0]), -1, 1)
    eps = (z - np.sqrt(ab[0]) * x_0) / np.sqrt(1 - ab[0])
    middle = np.sqrt(ab[1]) * x_0 + np.sqrt(1 - ab[1]) * eps
    expected = np.clip(middle / np.sqrt(ab[1]), -1, 1)
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_schedule_of_the_card_is_used(tiny_prior):
    schedule = Schedule(kind="cosine", num_train_timesteps=4000, rescale_timesteps=True)
    card = dataclasses.replace(tiny_prior.card, schedule=schedule)
    prior = tiny_prior.replace(card=card)
    timesteps = np.array([2000, 0])
    _, steps = priors.noise_predictor(prior, DIIPConfig(num_steps=2), timesteps)
    expected = schedule.alphas_cumprod()[timesteps]
    np.testing.assert_allclose(steps.alpha_bar, expected, rtol=1e-6)
    plain = tiny_prior.replace(card=dataclasses.replace(card, schedule=Schedule()))
    seen = np.array([500, 0])  # 2000 of 4000 looks to the network like 500 of 1000
    _, same = priors.noise_predictor(plain, DIIPConfig(num_steps=2), seen)
    for a, b in zip(steps.conditioning, same.conditioning, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("remat", ["none", "step", "block"])
def test_bfloat16_reaches_the_network_alone(tiny_prior, z, remat):
    config = DIIPConfig(num_steps=2, gradient="frozen", dtype="bfloat16", remat=remat)
    assert priors.network(tiny_prior.card, config).dtype == jnp.bfloat16
    x = jax.eval_shape(lambda z: canvas.generator(tiny_prior, config, (16, 16))(z), z)
    assert x.dtype == jnp.float32


def test_stride(tiny_prior):
    assert tiny_prior.stride == 2


# Weights as arguments


def lowered_text(prior, config, side=64):
    """Return the program of `jit(restore)` as text."""
    y, key = jnp.zeros((side, side, 3)), jax.random.key(0)
    return jax.jit(restore).lower(prior, y, key, config).as_text()


def test_weights_are_arguments_of_the_program(tiny_prior):
    text = lowered_text(tiny_prior, tiny_prior.card.preset, side=16)
    num_weights = sum(a.size for a in jax.tree.leaves(tiny_prior.params))
    assert len(text) < num_weights  # a constant takes 8 characters per weight
    [main] = [line for line in text.splitlines() if "func.func public @main" in line]
    assert main.count("%arg") >= len(jax.tree.leaves(tiny_prior.params))


@pytest.mark.parametrize(
    ("gradient", "remat"),
    [pytest.param("full", "step", marks=pytest.mark.slow), ("frozen", "auto")],
)
def test_program_of_the_bundled_prior_is_small(gradient, remat):
    prior = priors.load("natural64")
    config = PAPER.replace(num_steps=3, gradient=gradient, remat=remat)
    text = lowered_text(prior, config)
    assert len(text) < 1_000_000, f"{len(text)} characters"


def test_program_of_the_default_has_no_weights():
    """It has the network four times: looks at photo and start, and a gradient."""
    prior = priors.load("natural64")
    assert prior.card.preset == DEFAULT
    text = lowered_text(prior, DEFAULT)
    num_weights = sum(a.size for a in jax.tree.leaves(prior.params))
    assert len(text) < num_weights, f"{len(text)} characters"  # 8 a weight, if any


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_program_is_made_for_accelerators(tiny_prior, key, platform):
    """Made, not run: what is done in another way on a CPU is not in it."""
    config = tiny_prior.card.preset
    traced = jax.jit(restore).trace(tiny_prior, jnp.zeros((16, 16, 3)), key, config)
    here = traced.lower(lowering_platforms=("cpu",)).as_text()
    there = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [text.count("stablehlo.dot_general") for text in (here, there)]
    barriers = [text.count("stablehlo.optimization_barrier") for text in (here, there)]
    assert products[0] > products[1]  # here they average pixels, there a sum does
    assert barriers[0] > barriers[1] == 0


@pytest.mark.parametrize("name", ["natural64", "faces64"])
def test_bundled_priors_load(name):
    if name not in priors.bundled():
        pytest.skip(f"{name} is not bundled")
    prior = priors.load(name)
    assert prior.card.name == name
    assert prior.stride == 8
    count = sum(a.size for a in jax.tree.leaves(prior.params))
    assert count == prior.card.parameters
    for leaf in jax.tree.leaves(prior.params):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("layer", [layers.Dense, layers.Conv, layers.GroupNorm])
def test_weights_in_bfloat16_compute_as_their_float32_copies(layer, dtype):
    """They are rounded once, when they are stored."""
    layer = layer() if layer is layers.GroupNorm else layer(32, dtype=dtype)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 4, 32)), dtype)
    params = layer.init(jax.random.key(0), x)["params"]
    narrow = jax.tree.map(
        lambda a: jax.random.normal(jax.random.key(1), a.shape, jnp.bfloat16), params
    )
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), narrow)

    def outcome(x, params):
        return layer.apply({"params": params}, x).astype(jnp.float32).sum()

    actual = jax.value_and_grad(outcome)(x, narrow)
    assert actual[1].dtype == dtype
    expected = jax.value_and_grad(outcome)(x, wide)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# Families of one's own


@dataclasses.dataclass(frozen=True)
class PlainConfig:
    """Architecture of a network of one layer."""

    image_size: int
    taps: tuple[int, ...]
    num_channels: int = 3
    stride: int = 1


class Plain(nn.Module):
    """A convolution, and a bias of the timestep."""

    config: PlainConfig
    dtype: Any = jnp.float32
    remat_blocks: bool = False

    def setup(self):
        self.conv = layers.Conv(3, size=self.config.taps[0], padding=(1, 1))
        self.time = layers.Dense(3)

    def condition(self, t):
        return self.time(jnp.asarray(t)[..., None] / 1000)

    def __call__(self, x, conditioning):
        return self.conv(x) + conditioning

    def initialise(self, x, t):
        return self(x, self.condition(t))


@pytest.fixture
def plain(monkeypatch):
    """Return a prior of a registered family, which the test's end makes unknown."""
    monkeypatch.setattr(priors, "_families", dict(priors._families))
    monkeypatch.setattr(priors, "FAMILIES", priors._families)
    priors.register("plain", PlainConfig, Plain)
    card = seeded.card(PlainConfig(16, (3,)), family="plain")
    shapes = priors.abstract_params(card)
    return Prior(jax.tree.map(lambda a: jnp.full(a.shape, 0.1), shapes), card)


def test_a_registered_family_is_saved_loaded_and_restores(plain, tmp_path, key):
    priors.save(tmp_path / "plain", plain)
    loaded = priors.load(tmp_path / "plain")
    assert loaded.card == plain.card
    config = DIIPConfig(num_steps=2, max_iterations=3, criterion="never")
    answer = restore(loaded, seeded.image(8, 9), key, config)
    assert answer.losses[2] < answer.losses[0]
    eps = seeded.predicted(loaded, np.ones((8, 8, 3), np.float32), 500)
    # 27 taps of 0.1 and a bias inside; 0.1 * 0.5 and a bias of the time.
    np.testing.assert_allclose(eps[4, 4], 2.7 + 0.1 + 0.05 + 0.1, rtol=1e-5)


@pytest.mark.usefixtures("plain")
def test_a_name_belongs_to_one_family():
    priors.register("plain", PlainConfig, Plain)  # as a notebook does
    with pytest.raises(ValueError, match="family 'adm' is diip_jax.unets.adm.ADMUNet"):
        priors.register("adm", PlainConfig, Plain)
    assert priors.FAMILIES["adm"][0] is ADMConfig


def test_the_families_are_changed_by_registering_alone():
    with pytest.raises(TypeError):
        priors.FAMILIES["adm"] = (PlainConfig, Plain)
