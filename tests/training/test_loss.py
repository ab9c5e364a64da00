"""The training loss against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diip_jax.schedule import Schedule
from diip_jax.training import loss

SCHEDULE = Schedule()


def test_a_batch_has_one_timestep_of_every_stratum(key):
    t = np.asarray(loss.draw_timesteps(key, 20, 1000, (20, 259)))
    in_band, everywhere = t[:10], t[10:]
    assert ((in_band - 20) // 24 == np.arange(10)).all()
    assert (everywhere // 100 == np.arange(10)).all()


def test_timesteps_are_uniform_in_and_outside_the_band():
    keys = jax.random.split(jax.random.key(1), 4000)
    t = jax.vmap(lambda k: loss.draw_timesteps(k, 2, 50, (10, 19)))(keys)
    in_band, everywhere = np.asarray(t).T
    for drawn, low, count in ((in_band, 10, 10), (everywhere, 0, 50)):
        found = np.bincount(drawn - low, minlength=count)
        assert len(found) == count  # none outside
        # Five deviations of a binomial count.
        expected = 4000 / count
        assert np.abs(found - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_smallest_batches_have_timesteps_too(key, count):
    t = np.asarray(loss.draw_timesteps(key, count, 1000, (0, 999)))
    assert t.shape == (count,)
    assert (t >= 0).all()
    assert (t < 1000).all()


def test_weights_against_their_papers():
    alphas = SCHEDULE.alphas_cumprod()
    snr = alphas / (1 - alphas)
    plain, level, min_snr, p2 = (
        loss.weights(SCHEDULE, name) for name in ("plain", "level", "min-snr", "p2")
    )
    np.testing.assert_array_equal(plain, 1)
    np.testing.assert_allclose(level, np.clip(snr**-0.5, 1, 10), rtol=1e-6)
    # Hang et al., Sec. 3.4: the weight of x_0 is min(SNR, 5), and an error of eps is
    # one of x_0 times SNR^-1/2.
    np.testing.assert_allclose(min_snr * snr, np.minimum(snr, 5), rtol=1e-6)
    np.testing.assert_allclose(p2, 1 / (1 + snr), rtol=1e-6)


def test_the_error_of_a_predictor_that_knows_the_picture_is_zero(key):
    x = jax.random.uniform(key, (3, 8, 8, 3), minval=-1)
    noise = jax.random.normal(jax.random.key(1), x.shape)
    t = jnp.array([0, 400, 999])
    alphas = jnp.asarray(SCHEDULE.alphas_cumprod(), jnp.float32)

    def knowing(scale, x_t, t):
        a = alphas[t.astype(int)][:, None, None, None]
        return scale * (x_t - jnp.sqrt(a) * x) / jnp.sqrt(1 - a)

    error = loss.noise_error(knowing, 1.0, x, noise, t, SCHEDULE)
    # At t = 0 the noise is a hundredth of x_t, whose rounding is amplified as much.
    np.testing.assert_allclose(error, 0, atol=1e-9)
    twice = loss.noise_error(knowing, 2.0, x, noise, t, SCHEDULE)
    np.testing.assert_allclose(twice, np.mean(noise**2, axis=(1, 2, 3)), rtol=1e-4)


def test_the_network_sees_timesteps_as_its_schedule_says(key):
    schedule = Schedule(num_train_timesteps=4000, rescale_timesteps=True)
    x = jnp.zeros((2, 4, 4, 3))
    seen = []

    def predict(_, x_t, t):
        seen.append(np.asarray(t))
        return x_t

    loss.noise_error(predict, None, x, x, jnp.array([4, 2000]), schedule)
    np.testing.assert_array_equal(seen[0], [1.0, 500.0])
