"""Algorithm 1 as a loop: against recorded trajectories, the listing and PyTorch.

Most tests replace the network by a formula: what is tested is the loop. The partners
are `helpers.algorithm`, Python loops over `step`, and a PyTorch loop.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from diip_jax import canvas, diip, restore
from diip_jax import prior as priors
from diip_jax.config import DIIPConfig
from diip_jax.diip import StopReason
from diip_jax.schedule import Schedule, ddim_timesteps, linear_alphas_cumprod
from helpers import azula_unet, lanes, seeded
from helpers.algorithm import algorithm_1

SIDE = 12
BUDGET = 50

# One program run twice is bitwise the same. Where two programs are compared, the
# compiler may fuse otherwise: a few roundings, which Adam's division then spreads.
TWO_PROGRAMS = 1e-5
# The same through 40 iterations of five evaluations of a network.
NETWORK = 5e-5


def toy(z):
    """Map noise to an image in [-1, 1]; the waves make Adam overshoot now and then."""
    around = (z + jnp.roll(z, 1, 0) + jnp.roll(z, 1, 1) + jnp.roll(z, 1, 2)) / 4
    return jnp.sin(1.5 * around + 0.3 * z)


def toy_image(seed=0):
    return jnp.asarray(2 * seeded.image(SIDE, SIDE, seed) - 1)


def toy_noise(seed):
    return jax.random.normal(jax.random.key(seed), (SIDE, SIDE, 3))


@jax.jit
def run_toy(y, z, config):
    """Run Algorithm 1 as `restore` does, the network replaced by `toy`."""
    algorithm = diip.build(toy, y, config)
    state = lax.while_loop(algorithm.should_continue, algorithm.step, algorithm.init(z))
    return diip.result(state, y.shape[:2])


@jax.jit
def record(y, z, config):
    """Follow the iterations to the end of the budget; return every z and the traces."""
    algorithm = diip.build(toy, y, config.replace(criterion="never"))

    def body(state, _):
        return algorithm.step(state), state.z

    state, zs = lax.scan(body, algorithm.init(z), None, length=config.max_iterations)
    return zs, state.losses, state.sharpnesses


def settings(**changes):
    fields = {"learning_rate": 0.1, "k_min": 10, "epsilon": 1e-3}
    return DIIPConfig(**{**fields, "max_iterations": BUDGET, **changes})


def expected_answer(losses, sharpnesses, config):
    """Return n*, iterations done, the reason and no_peak by the paper's listing."""
    epsilon = np.float32(config.epsilon)
    verdict = algorithm_1(losses, sharpnesses, config.k_min, epsilon)
    if verdict.k is None:
        return BUDGET - 1, BUDGET, StopReason.MAX_ITERATIONS, False
    if verdict.detected_high:
        return verdict.k, verdict.k + 1, StopReason.HIGH_FREQUENCY, False
    low = StopReason.LOW_FREQUENCY
    return verdict.last_peak, verdict.k + 1, low, verdict.no_peak


def test_answers_follow_the_listing_over_recorded_trajectories():
    """n*, the reason and g(z^{n*}) itself, for 60 runs that end in every way."""
    rng, seen = np.random.default_rng(0), set()
    for seed in range(60):
        config = settings(
            learning_rate=float(rng.choice([0.02, 0.1, 0.5])),
            k_min=int(rng.integers(0, 30)),
            epsilon=float(rng.choice([0.0, 1e-3, 0.01, 0.03])),
        )
        if seed % 5 == 0:  # so that the budget is met as well
            config = config.replace(k_min=BUDGET, epsilon=0.0, learning_rate=0.01)
        y, z = toy_image(seed), toy_noise(seed)
        answer = run_toy(y, z, config)
        zs, losses, sharpnesses = jax.device_get(record(y, z, config))
        n, count, reason, no_peak = expected_answer(losses, sharpnesses, config)
        context = f"run {seed}: {config}"
        assert int(answer.num_iterations) == count, context
        assert StopReason(int(answer.reason)) is reason, context
        assert int(answer.iteration) == n, context
        assert bool(answer.no_peak) == no_peak, context
        image = (toy(zs[n]) + 1) / 2
        np.testing.assert_allclose(answer.image, image, atol=TWO_PROGRAMS)
        np.testing.assert_allclose(answer.losses[:count], losses[:count], rtol=1e-5)
        seen.add((reason, no_peak))
    low, high = StopReason.LOW_FREQUENCY, StopReason.HIGH_FREQUENCY
    budget = StopReason.MAX_ITERATIONS
    assert seen == {(low, False), (low, True), (high, False), (budget, False)}


def test_where_both_criteria_fire_the_high_frequency_one_wins():
    """Line 17 of the listing overwrites line 12."""
    config = settings(k_min=0, epsilon=1e6)  # line 15 fires at iteration 1
    for seed in range(20):
        y, z = toy_image(seed), toy_noise(seed)
        zs, _, sharpnesses = record(y, z, config)
        if sharpnesses[1] < sharpnesses[0]:  # and so does line 10
            break
    else:
        pytest.fail("no start loses sharpness in its first step")
    answer = run_toy(y, z, config)
    assert answer.reason == StopReason.HIGH_FREQUENCY
    assert (int(answer.iteration), int(answer.num_iterations)) == (1, 2)
    assert not bool(answer.no_peak)
    image = (toy(zs[1]) + 1) / 2
    np.testing.assert_allclose(answer.image, image, atol=TWO_PROGRAMS)


@pytest.mark.parametrize("seed", range(6))
def test_robust_answers_are_the_images_they_claim(seed):
    config = settings(criterion="robust", learning_rate=0.3, k_min=6, epsilon=0.0)
    y, z = toy_image(seed), toy_noise(seed)
    answer = run_toy(y, z, config)
    zs, _, _ = record(y, z, config)
    image = (toy(zs[int(answer.iteration)]) + 1) / 2
    np.testing.assert_allclose(answer.image, image, atol=TWO_PROGRAMS)
    if answer.reason == StopReason.LOW_FREQUENCY:
        assert answer.iteration == answer.last_peak


def test_traces_are_what_they_say_and_padded_with_nan():
    y, z = toy_image(), toy_noise(0)
    config = settings(epsilon=0.02)
    answer = jax.device_get(run_toy(y, z, config))
    count = int(answer.num_iterations)
    assert 2 < count < BUDGET
    for trace in (answer.losses, answer.sharpnesses, answer.decreases):
        assert trace.shape == (BUDGET,)
        assert np.isnan(trace[count:]).all()
        assert np.isfinite(trace[1:count]).all()
    assert np.isnan(answer.decreases[0])
    losses = answer.losses[:count]
    decreases = (losses[:-1] - losses[1:]) / losses[:-1]
    np.testing.assert_array_equal(answer.decreases[1:count], decreases)
    zs, _, _ = record(y, z, config)
    for k in range(count):
        energy = np.mean((np.float64(toy(zs[k])) - np.float64(y)) ** 2)
        assert losses[k] == pytest.approx(energy, rel=1e-5)


def test_updates_are_adam_on_the_mean_of_squares():
    """Adam (Kingma & Ba, 2015) written out, with 0.9, 0.999 and 1e-8."""
    y, z = toy_image(), toy_noise(3)
    config = settings(learning_rate=0.07)
    zs, _, _ = record(y, z, config)
    gradient_of = jax.jit(jax.grad(lambda z: jnp.mean((toy(z) - y) ** 2)))
    expected, m, v = np.float64(z), 0.0, 0.0
    for k in range(10):
        np.testing.assert_allclose(zs[k], expected, atol=1e-5)  # float32 moments
        gradient = np.float64(gradient_of(jnp.float32(expected)))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        m_hat, v_hat = m / (1 - 0.9 ** (k + 1)), v / (1 - 0.999 ** (k + 1))
        expected = expected - 0.07 * m_hat / (np.sqrt(v_hat) + 1e-8)


def test_budget_of_one_iteration():
    y, z = toy_image(), toy_noise(0)
    answer = run_toy(y, z, settings(max_iterations=1))
    assert (int(answer.iteration), int(answer.num_iterations)) == (0, 1)
    assert answer.reason == StopReason.MAX_ITERATIONS
    np.testing.assert_allclose(answer.image, (toy(z) + 1) / 2, atol=TWO_PROGRAMS)


def test_without_jit_the_loop_is_the_same():
    y, z, config = toy_image(), toy_noise(1), settings(epsilon=0.02)
    compiled = run_toy(y, z, config)
    with jax.disable_jit():  # while_loop becomes a Python loop, operation by operation
        plain = run_toy.__wrapped__(y, z, config)
    assert int(plain.num_iterations) == int(compiled.num_iterations)
    chex.assert_trees_all_close(plain, compiled, atol=1e-4, rtol=1e-4)


def test_a_diverging_run_keeps_the_last_finite_image():
    """Noise leaves float32 after one step of 1e38: g(z^1) or g(z^2) is not finite."""
    y, z = toy_image(), toy_noise(0)
    answer = run_toy(y, z, settings(learning_rate=3e38, epsilon=0.0))
    assert answer.reason == StopReason.DIVERGED
    count = int(answer.num_iterations)
    assert 1 < count < BUDGET
    assert bool(jnp.isfinite(answer.image).all())
    assert not np.isfinite(answer.losses[count - 1])
    zs, _, _ = record(y, z, settings(learning_rate=3e38, epsilon=0.0))
    image = (toy(zs[int(answer.iteration)]) + 1) / 2
    np.testing.assert_allclose(answer.image, image, atol=TWO_PROGRAMS)


@pytest.mark.parametrize("criterion", ["paper", "robust", "never"])
def test_every_criterion_reports_divergence(criterion):
    config = settings(criterion=criterion, learning_rate=3e38, epsilon=0.0)
    answer = run_toy(toy_image(), toy_noise(0), config)
    assert answer.reason == StopReason.DIVERGED
    assert bool(jnp.isfinite(answer.image).all())


# With a network


@pytest.fixture(scope="module")
def y():
    """Return a degraded image."""
    return jnp.asarray(seeded.image(16, 16))


@pytest.fixture(scope="module")
def answer(restore_jit, tiny_prior, y):
    """Return a restoration by the tiny prior."""
    return restore_jit(tiny_prior, y, jax.random.key(0), LOOSE)


LOOSE = seeded.PRESET.replace(k_min=30, epsilon=0.0)  # runs for a while


def test_restore_is_a_python_loop_over_step(tiny_prior, y, answer):
    algorithm, state = diip.prepare(tiny_prior, y, jax.random.key(0), LOOSE)
    step, trajectory = seeded.compile_quickly(algorithm.step, state), []
    while algorithm.should_continue(state):
        trajectory.append(state.z)
        state = step(state)
    looped = diip.result(state, y.shape[:2])
    assert int(looped.num_iterations) > 4
    for name in ("iteration", "num_iterations", "reason", "no_peak", "last_peak"):
        assert getattr(looped, name) == getattr(answer, name), name
    chex.assert_trees_all_close(looped, answer, atol=NETWORK, rtol=NETWORK)
    z = trajectory[int(answer.iteration)]
    g = seeded.compile_quickly(canvas.generator(tiny_prior, LOOSE, z.shape[:2]), z)
    image = (g(z) + 1) / 2
    np.testing.assert_allclose(answer.image, image, atol=NETWORK)


def test_image_is_in_range(answer):
    assert answer.image.shape == (16, 16, 3)
    assert answer.image.dtype == jnp.float32
    assert float(answer.image.min()) >= 0
    assert float(answer.image.max()) <= 1


def test_same_key_same_answer_other_key_another(restore_jit, tiny_prior, y, answer):
    again = restore_jit(tiny_prior, y, jax.random.key(0), LOOSE)
    chex.assert_trees_all_equal(again, answer)
    other = restore_jit(tiny_prior, y, jax.random.key(1), LOOSE)
    assert not np.allclose(other.losses[0], answer.losses[0])


def test_jit_agrees_with_no_jit(tiny_prior, y, answer):
    plain = restore(tiny_prior, y, jax.random.key(0), LOOSE)
    assert plain.num_iterations == answer.num_iterations
    chex.assert_trees_all_close(plain, answer, atol=NETWORK, rtol=NETWORK)


def test_vmap_agrees_with_single(restore_jit, restore_vmap, tiny_prior, y, answer):
    ys = jnp.stack([y, 1 - y])
    keys = jnp.stack([jax.random.key(0), jax.random.key(1)])
    both = restore_vmap(tiny_prior, ys, keys, LOOSE)
    singles = [answer, restore_jit(tiny_prior, 1 - y, jax.random.key(1), LOOSE)]
    for i, single in enumerate(singles):
        one = jax.tree.map(lambda a, i=i: a[i], both)
        assert one.num_iterations == single.num_iterations
        assert one.iteration == single.iteration
        # Convolutions of two images may add in another order than of one.
        chex.assert_trees_all_close(one, single, atol=NETWORK, rtol=NETWORK)


def test_numbers_and_keys_do_not_compile_again(tiny_prior, y):
    traced = chex.assert_max_traces(restore, n=1)
    chex.clear_trace_counter()
    counted = jax.jit(traced)
    for learning_rate, k_min, epsilon, seed in [
        (0.05, 4, 1e-3, 0),
        (0.01, 9, 0.0, 1),
        (1.0, 0, 0.5, 2),
    ]:
        config = seeded.PRESET.replace(
            learning_rate=learning_rate, k_min=k_min, epsilon=epsilon
        )
        counted.lower(tiny_prior, y, jax.random.key(seed), config)
    other = jax.tree.map(lambda a: 1.01 * a, tiny_prior)
    counted.lower(other, 1 - y, jax.random.key(3), seeded.PRESET)
    with pytest.raises(AssertionError):  # a setting that shapes the program does
        counted.lower(other, y, jax.random.key(3), seeded.PRESET.replace(num_steps=6))


def test_network_that_returns_nan_gives_back_the_photo(restore_jit, tiny_prior, y):
    broken = jax.tree.map(lambda a: np.full_like(a, np.nan), tiny_prior)
    answer = restore_jit(broken, y, jax.random.key(0), LOOSE)
    assert answer.reason == StopReason.DIVERGED
    assert answer.num_iterations == 1
    np.testing.assert_allclose(answer.image, y, atol=1e-6)  # [0, 1] to [-1, 1] and back


def test_sizes_between_strides_are_padded_and_cut(tiny_prior):
    y, key = jnp.asarray(seeded.image(13, 16)), jax.random.key(0)
    answer = jax.eval_shape(lambda y: restore(tiny_prior, y, key, LOOSE), y)
    assert answer.image.shape == (13, 16, 3)
    assert answer.z.shape == (14, 16, 3)
    prepare = jax.jit(lambda y: diip.prepare(tiny_prior, y, key, LOOSE)[1])
    padded = prepare(y)
    whole = np.pad(y, [(0, 1), (0, 0), (0, 0)], mode="reflect")
    np.testing.assert_allclose((padded.x + 1) / 2, whole, atol=1e-6)
    state = prepare(whole)
    chex.assert_trees_all_equal(padded, state)
    cut = diip.result(state, (13, 16)).image
    np.testing.assert_allclose(cut, y, atol=1e-6)  # before any iteration


def test_preset_of_the_prior_is_the_default(tiny_prior, y):
    preset = seeded.PRESET.replace(max_iterations=3, criterion="never")
    prior = tiny_prior.replace(card=dataclasses.replace(tiny_prior.card, preset=preset))
    answer = jax.eval_shape(lambda: restore(prior, y, jax.random.key(0)))
    assert answer.losses.shape == (3,)


def test_photo_may_be_a_constant_of_the_traced_function(tiny_prior, y):
    """Its values are checked all the same, though tracing goes on around it."""
    jax.eval_shape(lambda key: restore(tiny_prior, y, key), jax.random.key(0))
    bright = 2 + y
    with pytest.raises(ValueError, match="y ranges over"):
        jax.eval_shape(lambda key: restore(tiny_prior, bright, key), jax.random.key(0))


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"remat": "block"}])
def test_variants_of_the_program_return_float32(tiny_prior, y, changes):
    config = seeded.PRESET.replace(gradient="full", **changes)
    answer = jax.eval_shape(lambda: restore(tiny_prior, y, jax.random.key(0), config))
    assert answer.image.dtype == jnp.float32
    assert answer.losses.dtype == jnp.float32
    assert answer.z.dtype == jnp.float32


# What cannot be restored


def image_of(*shape, value=0.5):
    return np.full(shape, value, np.float32)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (image_of(16, 16), r"y has shape \(16, 16\); give one image \(H, W, 3\)"),
        (image_of(16, 16, 4), r"y has shape \(16, 16, 4\)"),
        (image_of(1, 16, 16, 3), r"y has shape \(1, 16, 16, 3\)"),
        (image_of(1, 1, 3), "image is 1x1; sides must be at least 8 pixels"),
        (image_of(16, 7, 3), "image is 7x16; sides must be at least 8"),
        (image_of(16, 16, 3, value=np.nan), "NaN or infinite"),
        (image_of(16, 16, 3, value=np.inf), "NaN or infinite"),
        (image_of(16, 16, 3, value=200), r"y ranges over \[200, 200\]; scale it to"),
        (image_of(16, 16, 3, value=-0.1), r"y ranges over \[-0.1, -0.1\]"),
    ],
)
def test_impossible_images_are_refused(tiny_prior, y, message, key):
    with pytest.raises(ValueError, match=message):
        restore(tiny_prior, y, key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": "half"}, "gradient is 'half'; use full, frozen or last-K"),
        ({"remat": "all"}, "remat is 'all'; use one of .*none, step, block"),
        ({"criterion": "best"}, "criterion is 'best'; use one of paper, robust"),
        ({"dtype": "float16"}, "dtype is 'float16'; use one of float32, bfloat16"),
        ({"num_steps": 0}, "num_steps is 0; use at least 1"),
        ({"max_iterations": 0}, "max_iterations is 0; use at least 1"),
        ({"num_steps": 1001}, "num_steps is 1001; use 1 to 1000"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; use a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"epsilon": -1e-3}, "epsilon is -0.001; use a number 0 or more"),
        ({"k_min": -1}, "k_min is -1; use a number 0 or more"),
        ({"num_steps": 3.0}, "num_steps is 3.0; use an integer of at least 1"),
        ({"max_iterations": True}, "max_iterations is True; use an integer"),
        ({"max_work": 1e9}, "max_work is 1000000000.0; use an integer of at least 1"),
        ({"tile": -16}, "tile is -16; use at least 0"),
        ({"tile": "8"}, "tile is '8'; use an integer of at least 0"),
        ({"gradient": 3}, "gradient is '3'; use full, frozen or last-K"),
        ({"learning_rate": np.inf}, "learning_rate is inf; use a finite number above"),
        ({"learning_rate": "0.1"}, "learning_rate is '0.1'; use a finite number above"),
        ({"epsilon": None}, "epsilon is None; use a finite number 0 or more"),
        ({"k_min": np.ones(2)}, r"k_min is array\(\[1., 1.\]\); use a finite number"),
        ({"noise_level": np.nan}, "noise_level is nan; use a finite number 0 or more"),
    ],
)
def test_impossible_settings_are_refused(tiny_prior, changes, message, key):
    with pytest.raises(ValueError, match=message):
        restore(tiny_prior, image_of(16, 16, 3), key, seeded.PRESET.replace(**changes))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "bool"])
def test_images_of_no_float_dtype_are_refused_also_where_values_are_unknown(
    tiny_prior, dtype, key
):
    y = np.zeros((16, 16, 3), dtype)
    message = rf"y has dtype {y.dtype}; give floats in \[0, 1\].*images.read.*/ 255"
    for function in (restore, jax.jit(restore)):
        with pytest.raises(ValueError, match=message):
            function(tiny_prior, y, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"criterion": "robust", "gradient": "full", "tile": 8, "tile_overlap": 2},
        {"criterion": "discrepancy", "start": "matched", "num_starts": 2},
    ],
)
def test_nothing_has_the_default_dtype_or_another_rank(
    tiny_prior, changes, key, x64, strict_ranks
):
    """Traced only: a loop whose carry changed its dtype would not trace."""
    numbers = {"learning_rate": np.float64(0.05), "k_min": np.int64(4)}
    config = seeded.PRESET.replace(num_steps=1, **numbers, **changes)
    y = jax.ShapeDtypeStruct((12, 16, 3), jnp.float32)
    answer = jax.eval_shape(restore, tiny_prior, y, key, config)
    dtypes = {name: leaf.dtype for name, leaf in answer._asdict().items()}
    counts = ("iteration", "num_iterations", "reason", "last_peak")
    expected = dict.fromkeys(dtypes, jnp.float32) | dict.fromkeys(counts, jnp.int32)
    assert dtypes == {**expected, "no_peak": jnp.bool_}
    leaves = jax.tree.leaves(priors.abstract_params(tiny_prior.card))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_the_default_dtype_does_not_change_the_answer(
    tiny_prior, key, restore_jit, x64
):
    y = lanes.images()[2]
    actual = jax.device_get(restore_jit(tiny_prior, y, key, lanes.CONFIG))
    jax.config.update("jax_enable_x64", False)
    expected = jax.device_get(restore_jit(tiny_prior, y, key, lanes.CONFIG))
    assert actual.reason == expected.reason == StopReason.HIGH_FREQUENCY
    assert actual.iteration == expected.iteration > 0
    np.testing.assert_allclose(actual.image, expected.image, atol=TWO_PROGRAMS)


def test_prior_of_one_size_refuses_others(tiny_prior, key):
    card = dataclasses.replace(tiny_prior.card, any_size=False)
    prior = tiny_prior.replace(card=card)
    with pytest.raises(ValueError, match="image is 16x18, but prior seeded works on"):
        restore(prior, image_of(18, 16, 3), key, seeded.PRESET)


# Against PyTorch


def torch_losses(model, y, z, learning_rate, num_steps, gradient, count):
    """Return E(z^k; y) of the same optimisation as a plain PyTorch loop."""
    import torch

    y, z = (
        torch.from_numpy(np.array(a, np.float32)).permute(2, 0, 1)[None].contiguous()
        for a in (y, z)
    )
    z.requires_grad_(True)
    optimizer = torch.optim.Adam([z], lr=learning_rate)
    timesteps = ddim_timesteps(num_steps).tolist()
    alphas_cumprod = linear_alphas_cumprod()
    losses = []
    for _ in range(count):
        x = z
        for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True):
            ab = float(alphas_cumprod[t])
            ab_prev = 1.0 if t_prev is None else float(alphas_cumprod[t_prev])
            with torch.set_grad_enabled(gradient == "full"):
                eps = model(x, torch.tensor([float(t)]))[:, :3]
            x_0 = ((x - (1 - ab) ** 0.5 * eps) / ab**0.5).clamp(-1, 1)
            eps = (x - ab**0.5 * x_0) / (1 - ab) ** 0.5
            x = ab_prev**0.5 * x_0 + (1 - ab_prev) ** 0.5 * eps
        loss = ((x - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("gradient", "iterations", "num_steps"),
    [
        ("full", 10, 2),
        pytest.param("full", 50, 3, marks=pytest.mark.slow),
        pytest.param("frozen", 50, 3, marks=pytest.mark.slow),
    ],
)
def test_iterations_match_pytorch(gradient, iterations, num_steps, shared, monkeypatch):
    """Same natural64, z and y: the losses may part by 0.1 % at most, at any iteration.

    Rounding differs, and every iteration feeds on the last. Measured: 1e-6 at the
    start, 1e-5 (full) and 2e-5 (frozen, still growing) at worst of 50. The message of a
    failure shows the growth.
    """
    torch = pytest.importorskip("torch")
    azula = pytest.importorskip("azula.plugins.adm._src.unet")
    monkeypatch.setattr(azula, "checkpoint", lambda f, *args, **_: f(*args))
    state_dict = torch.load(shared / "priors" / "natural64.pt", weights_only=True)
    model = azula_unet.build(azula_unet.BUNDLED, state_dict)
    arrays = {name: tensor.numpy() for name, tensor in state_dict.items()}
    card = seeded.card(azula_unet.BUNDLED, schedule=Schedule())
    prior = priors.Prior(seeded.to_tree(arrays), card)
    config = DIIPConfig(
        learning_rate=0.05,
        num_steps=num_steps,
        gradient=gradient,
        criterion="never",
        max_iterations=iterations,
    )
    y, key = jnp.asarray(seeded.image(16, 16)), jax.random.key(0)
    z = diip.prepare(prior, y, key, config)[1].z
    restore_once = seeded.compile_quickly(restore, prior, y, key, config)
    actual = restore_once(prior, y, key, config).losses
    expected = torch_losses(model, 2 * y - 1, z, 0.05, num_steps, gradient, iterations)
    assert expected[-1] < 0.7 * expected[0]  # it did optimise
    error = abs(np.float64(actual) - expected) / expected
    growth = ", ".join(f"{k}: {error[k]:.1e}" for k in range(0, iterations, 7))
    assert error.max() < 1e-3, f"relative difference of the loss at iteration {growth}"
