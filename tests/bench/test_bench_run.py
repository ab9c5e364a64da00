"""A run: which cells, in which order, with which keys, and what becomes of errors."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diip_jax import images, metrics
from diip_jax.bench import run
from diip_jax.bench.methods import Problem
from diip_jax.photos.find import InputError
from helpers import bench_cells as fake
from helpers import seeded


def jittered(problem, key):
    return problem.y + 0.01 * jax.random.normal(key, problem.y.shape)


def test_a_cell_holds_the_scores_and_costs_of_its_picture(tmp_path):
    store, tally = fake.compute(tmp_path, fake.plan({"a": fake.method(jittered)}))
    first, second = store.chosen(tally.names)
    (name, clean), _ = fake.pictures(2)
    damage, key = run.keys(first.name)
    y = fake.noisy(clean, damage).y
    expected = np.clip(jittered(Problem(None, y), key), 0, 1)
    assert first.name.image == name
    # Compiled and not, the same float32 sums: 1e-6 of a pixel, 1e-4 dB here.
    assert first.psnr == pytest.approx(metrics.psnr(clean, expected), abs=1e-3)
    assert first.ssim == pytest.approx(metrics.ssim(clean, expected), abs=1e-4)
    assert (first.evaluations, first.gradients, first.error) == (3, 1, None)
    assert first.memory_of == "program"
    assert first.memory > y.nbytes
    assert first.seconds > 0
    assert first.compile_seconds > 10 * second.compile_seconds  # the same program
    with Image.open(tmp_path / first.picture) as file:
        np.testing.assert_array_equal(np.asarray(file), images.to_uint(expected, 8))


def test_what_is_there_is_not_computed_again(tmp_path):
    methods = {"a": fake.method(jittered)}
    store, tally = fake.compute(tmp_path, fake.plan(methods, 1))
    assert tally.num_computed == 1
    before = store.chosen(tally.names)
    store, tally = fake.compute(tmp_path, fake.plan(methods, 2))
    assert tally.num_computed == 1
    assert store.chosen(tally.names)[0] == before[0]
    for changed in (
        fake.plan({"a": fake.method(jittered, settings="others")}, 1),
        fake.plan(methods, 1, seeds=(1,)),
        fake.plan(methods, 1, context="another machine"),
    ):
        assert fake.compute(tmp_path, changed)[1].num_computed == 1


def test_a_picture_that_is_gone_is_made_again_where_it_is_needed(tmp_path):
    plan = fake.plan({"a": fake.method(jittered)})
    store, tally = fake.compute(tmp_path, plan)
    first, second = store.chosen(tally.names)
    gone = tmp_path / first.picture
    before = gone.read_bytes()
    gone.unlink()
    assert fake.compute(tmp_path, plan)[1].num_computed == 0  # for tables
    plan = plan._replace(needs_pictures=True)
    assert fake.compute(tmp_path, plan)[1].num_computed == 1
    assert gone.read_bytes() == before
    assert fake.compute(tmp_path, plan)[1].num_computed == 0


def test_pictures_of_other_priors_and_of_equal_names_have_files_of_their_own(tmp_path):
    plan = fake.plan({"a": fake.method(jittered)}, 1)
    other = [(name, 1 - clean) for name, clean in plan.images]
    card = dataclasses.replace(fake.PRIOR.card, sha256="1" * 64)
    found = [
        fake.compute(tmp_path, plan),
        fake.compute(tmp_path, plan._replace(images=other)),
        fake.compute(tmp_path, plan, fake.PRIOR.replace(card=card)),
    ]
    files = {store.find(tally.names[0]).picture for store, tally in found}
    assert len(files) == 3
    assert all((tmp_path / file).is_file() for file in files)


def test_a_cell_without_lpips_is_computed_again_where_lpips_can_be_had(tmp_path):
    plan = fake.plan({"a": fake.method(jittered)}, 1)
    assert fake.compute(tmp_path, plan)[1].num_computed == 1
    asked = plan._replace(needs_lpips=True)
    store, tally = fake.compute(tmp_path, asked)  # it cannot be had here
    assert tally.num_computed == 1
    store.add(store.find(tally.names[0])._replace(lpips=0.5))
    assert fake.compute(tmp_path, asked)[1].num_computed == 0


def test_results_do_not_depend_on_the_order_of_work(tmp_path):
    methods = {n: fake.method(jittered, settings=n) for n in "abc"}
    plan = fake.plan(methods, 2, seeds=(0, 1))
    _, tally = fake.compute(tmp_path / "straight", plan)
    turned = fake.plan(dict(reversed(methods.items())), 2, seeds=(1, 0), by_image=True)
    turned = turned._replace(images=turned.images[::-1])
    other, _ = fake.compute(tmp_path / "turned", turned)
    straight, _ = fake.compute(tmp_path / "straight", plan)
    for name in tally.names:
        assert straight.find(name).psnr == other.find(name).psnr


def test_keys_differ_between_pictures_tasks_seeds_and_uses():
    names = [
        fake.name(digest=d, task=t, seed=s)
        for d, t, s in itertools.product("ab", ("denoise", "sr4"), (0, 1))
    ]
    drawn = [float(jax.random.normal(k)) for n in names for k in run.keys(n)]
    assert len(set(drawn)) == 2 * len(names)
    same = run.keys(fake.name(method="other", settings="other", image="renamed.png"))
    assert [float(jax.random.normal(k)) for k in same] == drawn[:2]


def test_by_default_a_method_is_done_before_the_next():
    methods = {n: fake.method(jittered) for n in "ab"}
    order = [w.name for w in run.works(fake.PRIOR, fake.plan(methods))]
    assert [(n.method, n.image) for n in order] == [
        ("a", "0.png"), ("a", "1.png"), ("b", "0.png"), ("b", "1.png"),
    ]  # fmt: skip
    order = [w.name for w in run.works(fake.PRIOR, fake.plan(methods, by_image=True))]
    assert [(n.method, n.image) for n in order] == [
        ("a", "0.png"), ("b", "0.png"), ("a", "1.png"), ("b", "1.png"),
    ]  # fmt: skip


def test_a_program_is_compiled_once(tmp_path):
    traces = []

    def counted(problem, key):
        traces.append(problem.y.shape)
        return problem.y

    tasks = {"denoise": fake.noisy, "jpeg": fake.noisy}
    plan = fake.plan({"a": fake.method(counted)}, 3)._replace(tasks=tasks)
    _, tally = fake.compute(tmp_path, plan)
    assert tally.num_computed == 6
    assert len(traces) == 1


def test_a_failing_cell_is_a_row_and_is_tried_again(tmp_path):
    def broken(problem, key):
        raise RuntimeError("no luck\nand more of it")

    def blank(problem, key):
        return jnp.full_like(problem.y, jnp.nan)

    methods = {"broken": broken, "blank": blank, "good": jittered}
    plan = fake.plan({n: fake.method(f, n) for n, f in methods.items()}, 2)
    store, tally = fake.compute(tmp_path, plan)
    assert tally.errors == {
        ("broken", "denoise"): "RuntimeError: no luck",
        ("blank", "denoise"): "ValueError: the restored picture is not finite",
    }
    errors = [cell.error is not None for cell in store.chosen(tally.names)]
    assert errors == [True] * 4 + [False] * 2

    mended = dict(plan.methods, broken=fake.method(jittered, "broken"))
    store, tally = fake.compute(tmp_path, plan._replace(methods=mended))
    assert tally.num_computed == 4  # both of `broken`, and `blank` again
    assert list(tally.errors) == [("blank", "denoise")]


def test_a_task_that_is_not_for_a_method_has_no_cell():
    for_jpeg = fake.method(jittered)
    ready = for_jpeg.make(None)
    only = for_jpeg._replace(make=lambda s: ready if s.task == "jpeg" else None)
    plan = fake.plan({"a": only})
    assert not list(run.works(fake.PRIOR, plan))
    plan = plan._replace(tasks={"denoise": fake.noisy, "jpeg": fake.noisy})
    assert {w.name.task for w in run.works(fake.PRIOR, plan)} == {"jpeg"}


def test_pictures_are_the_largest_centre_squares(tmp_path):
    rows, columns = np.mgrid[:48, :80]
    wide = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    Image.fromarray(wide).save(tmp_path / "b.png")
    exact = images.to_uint(seeded.image(16, 16), 8)
    Image.fromarray(exact).save(tmp_path / "a.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    Image.fromarray(exact[:15]).save(tmp_path / "d.png")
    taken, rejected = run.pictures(tmp_path, 16)
    assert [name for name, _ in taken] == ["a.png", "b.png"]
    np.testing.assert_array_equal(images.to_uint(taken[0][1], 8), exact)
    # The centre 48x48 begins at column 16; a ramp stays one away from the edges, which
    # Lanczos' window of 3 new pixels reaches. Centres of threes: 17, 20, ...
    inside = 255 * taken[1][1][3:-3, 3:-3]
    np.testing.assert_allclose(inside[:, 0, 1], 3 * np.arange(3, 13) + 1, atol=0.02)
    np.testing.assert_allclose(inside[0, :, 0], 3 * np.arange(3, 13) + 17, atol=0.02)
    assert rejected[0][0] == "c.png"
    assert rejected[1] == ("d.png", "it is 16x15; the prior needs 16x16")
    assert [n for n, _ in run.pictures(tmp_path, 16, first=1, count=1)[0]] == ["b.png"]


def test_a_folder_without_pictures_is_an_error(tmp_path):
    with pytest.raises(InputError):
        run.pictures(tmp_path, 16)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4, "1 min"), (3540, "59 min"), (7500, "2 h 05 min")]
)
def test_durations_are_told_in_words(seconds, text):
    assert run.duration(seconds) == text


def test_a_forecast_adds_up_evaluations(tmp_path):
    plan = fake.plan({"a": fake.method(jittered, evaluations=30, gradients=20)}, 3)
    store = fake.Store(tmp_path)
    told = run.forecast(fake.PRIOR, plan, store, run.Speed(forward=60, gradient=120))
    # 3 pictures x (10 x 60 s + 20 x 120 s) = 9000 s
    assert told.endswith("3 cells to compute, 0 there; about 2 h 30 min without "
                         "compilation")  # fmt: skip
