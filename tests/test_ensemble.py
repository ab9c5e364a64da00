"""The running mean of starts, against NumPy on all of them."""

import numpy as np

from diip_jax import ensemble


def test_it_is_the_mean_and_the_deviation_at_any_time():
    images = np.random.default_rng(0).random((5, 4, 3, 3)).astype(np.float32)
    running = ensemble.empty((4, 3, 3))
    np.testing.assert_array_equal(ensemble.deviation(running), np.zeros((4, 3, 3)))
    for count, image in enumerate(images, start=1):
        running = ensemble.add(running, image)
        # float32: a rounding per image
        np.testing.assert_allclose(running.mean, images[:count].mean(0), rtol=1e-6)
        np.testing.assert_allclose(
            ensemble.deviation(running), images[:count].std(0), atol=1e-6
        )
        assert running.count == count
