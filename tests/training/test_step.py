"""A training step against PyTorch, against other placements, and on its own terms."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.schedule import Schedule
from diip_jax.training import loss, start, step
from helpers import azula_unet, seeded, train_steps

ROOT = Path(__file__).parents[2]
# Numbers are leaves: tests of one card share a program.
CONFIG = step.TrainConfig(
    batch_size=8, learning_rate=2e-3, warm_up=5, weight_decay=0.01
)


def drawn(number, x, card, config):
    """Return what a step draws: timesteps and noise."""
    of_time, of_noise = jax.random.split(
        jax.random.fold_in(jax.random.key(config.seed), number)
    )
    count = card.schedule.num_train_timesteps
    t = loss.draw_timesteps(of_time, len(x), count, config.band)
    return np.asarray(t), np.asarray(jax.random.normal(of_noise, x.shape))


@pytest.fixture(params=["adm", "ddpm"])
def any_family(request):
    """Return a small prior none of whose weights is zero."""
    shape = start.adm_shape if request.param == "adm" else start.ddpm_shape
    prior = start.random_prior("x", shape(16, 32, (1, 2), 1, ()), Schedule(), seed=0)
    rng = np.random.default_rng(1)
    moved = jax.tree.map(
        lambda a: a + rng.normal(0, 0.05, a.shape).astype(np.float32), prior.params
    )
    return prior.replace(params=moved)


@functools.cache
def predictor(card):
    """Return the network of a card, jitted once for all tests."""
    return jax.jit(step.predictor(card, "float32"))


@pytest.mark.parity
def test_twenty_steps_are_those_of_a_plain_pytorch_loop():
    torch = pytest.importorskip("torch")
    pytest.importorskip("azula")
    prior = seeded.prior(schedule=Schedule())
    model = azula_unet.build(prior.card.architecture).train().requires_grad_(True)
    average = [p.detach().clone() for p in model.parameters()]
    adam = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.01, eps=1e-8)
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    state, steps = step.init(prior.params, CONFIG), 20
    for number in range(steps):
        batch = train_steps.pictures(number)
        progress = number / steps
        state, metrics = step.jitted_train_step()(
            state, batch, progress, prior.card, CONFIG
        )
        t, noise = drawn(number, batch, prior.card, CONFIG)
        a = alphas[t][:, None, None, None]
        x_t = np.sqrt(a) * (batch / 127.5 - 1) + np.sqrt(1 - a) * noise
        x_t, eps = (
            torch.tensor(np.moveaxis(n, 3, 1).copy()).float() for n in (x_t, noise)
        )
        weight = torch.tensor(np.clip(np.sqrt((1 - alphas[t]) / alphas[t]), 1, 10))
        error = (model(x_t, torch.tensor(t).float()) - eps).square().mean((1, 2, 3))
        value = (weight.float() * error).mean()
        adam.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        cosine = (1 + np.cos(np.pi * progress)) / 2
        for group in adam.param_groups:
            group["lr"] = 2e-3 * min(1, (number + 1) / 5) * (0.1 + 0.9 * cosine)
        adam.step()
        decay = min(CONFIG.ema_decay, (1 + number) / (10 + number))
        with torch.no_grad():
            for mean, p in zip(average, model.parameters(), strict=True):
                mean.mul_(decay).add_(p, alpha=1 - decay)
        # Adam divides by the size of a gradient: rounding of gradients near zero moves
        # weights by up to a step, and the losses drift apart slowly.
        assert float(metrics.loss) == pytest.approx(float(value.detach()), rel=2e-3)
    names = [name for name, _ in model.named_parameters()]
    theirs = dict(zip(names, (a.numpy() for a in average), strict=True))
    expected = seeded.to_tree(theirs)
    assert jax.tree.structure(expected) == jax.tree.structure(state.ema)
    for ours, other in zip(
        jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True
    ):
        # Of the distance that twenty steps can go; see above.
        far = steps * CONFIG.learning_rate
        assert np.abs(ours - other).mean() < 0.01 * far


@pytest.mark.slow
def test_weight_gradients_are_finite_differences(tiny_prior, key):
    x = jax.random.uniform(key, (2, 8, 8, 3), minval=-1)
    noise = jax.random.normal(key, x.shape)
    t, schedule = jnp.array([100, 700]), tiny_prior.card.schedule
    predict = step.predictor(tiny_prior.card, "float32")

    @jax.jit
    def objective(params):
        return loss.noise_error(predict, params, x, noise, t, schedule).sum()

    gradient = jax.jit(jax.grad(objective))(tiny_prior.params)
    rng = np.random.default_rng(0)
    for path, leaf in jax.tree.leaves_with_path(tiny_prior.params):
        direction = rng.standard_normal(leaf.shape).astype(np.float32)
        direction /= np.linalg.norm(direction)

        def moved(by, path=path, direction=direction):
            return jax.tree.map_with_path(
                lambda p, a: a + by * direction if p == path else a, tiny_prior.params
            )

        width = 1e-2
        change = float(objective(moved(width)) - objective(moved(-width))) / (2 * width)
        ours = gradient
        for entry in path:
            ours = ours[entry.key]
        # float32: a loss near 2 is rounded by 1e-7, which the width multiplies by 50;
        # the third derivative adds about as much.
        expected = float((ours * direction).sum())
        assert change == pytest.approx(expected, rel=0.02, abs=2e-3), path


def test_each_image_of_a_batch_has_its_own_timestep(any_family, key):
    prior = any_family
    predict = predictor(prior.card)
    x = jax.random.normal(key, (2, 16, 16, 3))
    both = predict(prior.params, x, jnp.array([10.0, 700.0]))
    for i, t in enumerate([10.0, 700.0]):
        alone = predict(prior.params, x[i : i + 1], jnp.array([t]))
        np.testing.assert_allclose(both[i], alone[0], atol=1e-5)  # float32 sums
    swapped = predict(prior.params, x, jnp.array([700.0, 10.0]))
    assert np.abs(swapped - both).max() > 1e-3


@pytest.mark.slow
def test_a_few_pictures_are_learned_by_heart():
    prior = train_steps.prior()
    config = CONFIG.replace(learning_rate=4e-3, weight_decay=0.0, band=(300, 700))
    state, few, losses = step.init(prior.params, config), train_steps.pictures(0), []
    for number in range(160):
        state, metrics = step.jitted_train_step()(
            state, few, number / 160, prior.card, config
        )
        losses.append(float(metrics.loss))
    # A network that predicts nothing has the variance of the noise, 1, times weights of
    # 1 and more. The pictures are noise too: only who knows them tells the two apart.
    assert losses[0] > 0.9
    assert np.mean(losses[-20:]) < 0.2


def test_a_loss_that_is_not_finite_changes_nothing_and_is_noted():
    prior = train_steps.prior()
    state = step.init(prior.params, CONFIG)
    train, batch = step.jitted_train_step(), train_steps.pictures(0)
    state, _ = train(state, batch, 0.0, prior.card, CONFIG)
    broken = jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(jnp.nan), state.params)
    state = state._replace(params=broken)
    before = jax.device_get(state)
    for _ in range(2):
        state, metrics = train(state, batch, 0.0, prior.card, CONFIG)
        assert not np.isfinite(metrics.loss)
    assert int(state.failed_at) == int(state.step) == 1
    jax.tree.map(
        np.testing.assert_array_equal,
        before._replace(failed_at=1),
        jax.device_get(state),
    )


def test_the_learning_rate_warms_up_and_falls_to_a_tenth():
    config = step.TrainConfig(learning_rate=1.0, warm_up=4)
    first = [float(step.rate(jnp.int32(k), jnp.float32(0), config)) for k in range(5)]
    np.testing.assert_allclose(first, [0.25, 0.5, 0.75, 1, 1])
    late = [float(step.rate(jnp.int32(9), jnp.float32(p), config)) for p in (0.5, 1, 2)]
    np.testing.assert_allclose(late, [0.55, 0.1, 0.1], rtol=1e-6)


def test_random_weights_start_without_residual_branches(any_family):
    params = start.random_params(any_family.card, seed=0)
    untrained = any_family.replace(params=params)
    x = jax.random.normal(jax.random.key(1), (1, 16, 16, 3))
    assert not np.any(predictor(untrained.card)(params, x, jnp.array([5.0])))
    for path, leaf in jax.tree.leaves_with_path(params):
        *_, layer, kind = (entry.key for entry in path)
        if kind == "kernel" and layer not in start.ZERO[any_family.card.family]:
            inputs = leaf.size / leaf.shape[-1]
            # PyTorch's default: uniform in +- 1 / sqrt(inputs).
            assert np.abs(leaf).max() <= inputs**-0.5
            # Four deviations of a sample variance of as many uniform numbers.
            off = 4 * np.sqrt(0.8 / leaf.size)
            assert np.var(leaf) * 3 * inputs == pytest.approx(1, abs=off)


@pytest.mark.slow
def test_eight_devices_take_the_same_steps_as_one(tmp_path):
    path = tmp_path / "eight.npz"
    flags = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    )
    environment = {
        **os.environ,
        "XLA_FLAGS": flags.strip(),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    command = [sys.executable, "-m", "helpers.train_steps", str(path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    one = train_steps.run()
    with np.load(path) as eight:
        assert int(eight["devices"]) == 8
        # Sums over the batch are taken in another order.
        np.testing.assert_allclose(one["losses"], eight["losses"], rtol=1e-5)
        # Adam turns the rounding of a gradient near zero into part of a step of 1e-3.
        assert np.abs(one["ema"] - eight["ema"]).mean() < 1e-5
