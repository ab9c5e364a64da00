"""What a command will do to each photo, decided on real files.

Names and reasons are written out here; nothing is restored.
"""

import binascii
import dataclasses
import errno
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from diip_jax import images
from diip_jax.addresses import Address
from diip_jax.images import ImageError
from diip_jax.photos import plan, record, sizing
from diip_jax.photos.find import OutputError
from helpers import seeded
from helpers.photos import CONFIG, ONE, SIZE, planned, save


def test_plan_of_one_photo(tiny_prior, tmp_path):
    source = save(tmp_path / "x.y.jpg")
    (task,) = planned(tiny_prior, [source]).tasks
    assert task.output == tmp_path / "x.y_diip.png"  # lossless unless asked otherwise
    assert task.record_path == tmp_path / "x.y_diip.json"
    assert task.size == SIZE
    assert task.placement.mode == "native"
    assert plan.unet_calls(task, CONFIG) == 12 * 5  # iterations, steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.y.jpg"]


def test_plan_counts_the_calls_of_every_tile(tiny_prior, tmp_path):
    config = sizing.settings(tiny_prior, CONFIG, "tile", 16, 4)
    options = dataclasses.replace(ONE, size_mode="tile")
    source = save(tmp_path / "x.png", seeded.image(24, 24))
    decided = planned(tiny_prior, [source], config, options)
    assert plan.unet_calls(decided.tasks[0], config) == 12 * 5 * 4


@pytest.mark.parametrize(
    ("ext", "suffix"), [("auto", ".png"), ("webp", ".webp"), ("jpg", ".jpg")]
)
def test_the_extension_that_was_asked_for(tiny_prior, tmp_path, ext, suffix):
    options = dataclasses.replace(ONE, ext=ext)
    decided = planned(tiny_prior, [save(tmp_path / "x.bmp")], options=options)
    assert decided.tasks[0].output.suffix == suffix


def test_bad_files_are_listed_and_the_others_planned(tiny_prior, tmp_path):
    save(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "text.png").write_text("no picture")
    (tmp_path / "in" / "empty.png").touch()
    save(tmp_path / "in" / "pixel.png", np.zeros((1, 1, 3)))
    missing = tmp_path / "missing.png"
    decided = planned(tiny_prior, [tmp_path / "in", missing])
    assert [task.source.path.name for task in decided.tasks] == ["good.png"]
    reasons = {path.name: reason for path, reason in decided.failed}
    assert "not a picture" in reasons["text.png"]
    assert "empty" in reasons["empty.png"]
    assert "1x1" in reasons["pixel.png"]
    assert "No such file" in reasons["missing.png"]
    assert all(str(path) in reason for path, reason in decided.failed)
    assert all("\n" not in reason for reason in reasons.values())


def test_strange_entries_are_listed_and_the_others_planned(tiny_prior, tmp_path):
    """All that a folder may hold, told without waiting for any of it."""
    photos = tmp_path / "in"
    save(photos / "good.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "gone.png").symlink_to("nowhere")
    save(photos / f"{'n' * 246}.png")  # its output's name would be too long
    os.mkfifo(photos / "pipe.png")
    os.mkfifo(photos / "good.json")  # beside a picture there may be a record
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    decided = planned(tiny_prior, [photos], options=options)
    assert [task.source.path.name for task in decided.tasks] == ["good.png"]
    reasons = {path.name[:4]: reason for path, reason in decided.failed}
    assert reasons.keys() == {"loop", "gone", "nnnn", "pipe"}
    assert "Too many levels" in reasons["loop"]
    assert "No such file" in reasons["gone"]
    assert "File name too long" in reasons["nnnn"]
    assert "it is a pipe" in reasons["pipe"]
    assert all("\n" not in reason for reason in reasons.values())


def test_an_output_that_cannot_be_written_is_one_failure_of_many(tiny_prior, tmp_path):
    for name in ("a.png", "sub/b.png"):
        save(tmp_path / "in" / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").touch()  # in the way of a folder
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    decided = planned(tiny_prior, [tmp_path / "in"], options=options, recursive=True)
    tasks, failed = plan.check_writable(decided.tasks)
    assert [task.source.path.name for task in tasks] == ["a.png"]
    ((path, reason),) = failed
    assert path == tmp_path / "in" / "sub" / "b.png"
    assert "out/sub" in reason


def test_a_file_of_somebody_else_is_not_replaced_unasked(tiny_prior, tmp_path):
    source = save(tmp_path / "x.png")
    (tmp_path / "x_diip.json").write_text('{"mine": true}')
    decided = planned(tiny_prior, [source])
    assert not decided.tasks
    assert "x_diip.json: a file is there that is no record" in decided.failed[0][1]
    decided = planned(
        tiny_prior, [source], options=dataclasses.replace(ONE, overwrite=True)
    )
    assert len(decided.tasks) == 1
    ours = {"schema": record.SCHEMA}
    record.write_beside(tmp_path / "x_diip.png", b"", ours)
    assert len(planned(tiny_prior, [source]).tasks) == 1


def test_a_picture_without_a_record_is_not_replaced_unasked(tiny_prior, tmp_path):
    """A picture of this program always has one beside it."""
    source, named = save(tmp_path / "x.png"), tmp_path / "named.png"
    save(named)
    save(tmp_path / "x_diip.png", seed=1)
    for options in (ONE, dataclasses.replace(ONE, output=str(named))):
        decided = planned(tiny_prior, [source], options=options)
        assert not decided.tasks
        reason = decided.failed[0][1]
        assert "a picture without a record is there" in reason
        assert "choose another --output, or pass --overwrite" in reason
        overwriting = dataclasses.replace(options, overwrite=True)
        assert len(planned(tiny_prior, [source], options=overwriting).tasks) == 1


def test_a_place_that_a_store_does_not_tell_of_is_not_taken(
    tiny_prior, tmp_path, monkeypatch
):
    """Refused for the record, or for the picture alone; then it might be there."""
    pytest.importorskip("fsspec").filesystem("memory").store.clear()
    source = save(tmp_path / "x.png")
    options = dataclasses.replace(ONE, output="memory://bucket/out")
    assert len(planned(tiny_prior, [source], options=options).tasks) == 1
    for refused in (".json", ".png"):

        def find(address, refused=refused):
            if address.suffix == refused:
                raise OSError(errno.EACCES, "not for you", str(address))

        monkeypatch.setattr(Address, "find", find)
        ((_, reason),) = planned(tiny_prior, [source], options=options).failed
        assert "cannot write memory://bucket/out/x_diip.png: not for you" in reason


def test_a_name_too_long_for_its_saved_state_is_known_before(tiny_prior, tmp_path):
    source = save(tmp_path / f"{'n' * 235}.png")
    assert len(planned(tiny_prior, [source]).tasks) == 1
    saving = dataclasses.replace(ONE, save_every=1)
    ((_, reason),) = planned(tiny_prior, [source], options=saving).failed
    assert "File name too long" in reason


def test_what_a_format_cannot_hold_is_known_before_the_restoration(
    tiny_prior, tmp_path
):
    save(tmp_path / "x.png", np.full((*SIZE, 4), 0.5))
    decided = planned(
        tiny_prior, [tmp_path / "x.png"], options=dataclasses.replace(ONE, ext="jpg")
    )
    assert not decided.tasks
    assert "JPEG cannot hold alpha" in decided.failed[0][1]


@pytest.mark.parametrize(
    ("ext", "size", "said"),
    [
        ("webp", (16384, 8), "sides of 16383 pixels at most"),
        ("webp", (8, 16384), "and the picture is 16384x8"),
        ("jpg", (65501, 8), "sides of 65500 pixels at most"),
        ("png", (16384, 8), None),
    ],
)
def test_sides_that_a_format_cannot_have_are_known_before_the_restoration(
    tiny_prior, tmp_path, ext, size, said
):
    source = save(tmp_path / "x.png", np.zeros((*size, 3)))
    options = dataclasses.replace(ONE, ext=ext)
    decided = planned(tiny_prior, [source], options=options)
    assert len(decided.tasks) == (said is None)
    for _, reason in decided.failed:
        assert said in reason
        assert "use --ext png or tiff" in reason


def test_what_an_encoder_refuses_is_known_before_the_restoration(
    tiny_prior, tmp_path, monkeypatch
):
    """Asked of the encoder itself, on a row and on a column."""
    encode, shapes = images.encode, []

    def refuse(image, like, kind):
        shapes.append(image.shape)
        if max(image.shape) > 17:
            raise ImageError("too long for me")
        return encode(image, like, kind)

    monkeypatch.setattr(images, "encode", refuse)
    tall, wide = (
        save(tmp_path / name, np.zeros(shape))
        for name, shape in (("t.png", (18, 9, 3)), ("w.png", (9, 18, 3)))
    )
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    decided = planned(tiny_prior, [tall, wide], options=options)
    assert [path for path, _ in decided.failed] == [tall, wide]
    assert all("too long for me" in reason for _, reason in decided.failed)
    assert all(min(shape[:2]) == 1 for shape in shapes)


def test_an_input_is_never_written_over(tiny_prior, tmp_path):
    source = save(tmp_path / "x.png")
    aliases = [source, Path(f"{source.parent}/../{tmp_path.name}/x.png")]
    link = tmp_path / "link.png"
    link.symlink_to(source)
    for output in (*aliases, link):
        options = dataclasses.replace(ONE, output=str(output))
        with pytest.raises(OutputError, match="is an input"):
            planned(tiny_prior, [source], options=options)
    reference = save(tmp_path / "clean.png")
    options = dataclasses.replace(ONE, output=str(reference), reference=reference)
    with pytest.raises(OutputError, match="is an input"):
        planned(tiny_prior, [source], options=options)


def test_an_output_that_is_another_input_is_refused(tiny_prior, tmp_path):
    save(tmp_path / "x.png")
    save(tmp_path / "x_diip.png")  # somebody's own picture: it has no record
    options = dataclasses.replace(ONE, output=str(tmp_path))
    with pytest.raises(OutputError, match="is an input"):
        planned(tiny_prior, [tmp_path], options=options)


@pytest.mark.parametrize(
    "pair",
    [
        ("x.png", "x.jpg"),  # the records would collide even if the pictures did not
        ("X.png", "x.bmp"),  # on a file system that does not tell capitals apart
    ],
)
def test_photos_of_one_output_fail_and_no_others(tiny_prior, tmp_path, pair):
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    for name in pair:
        save(tmp_path / "in" / name)
    with pytest.raises(OutputError, match="would both be written") as caught:
        planned(tiny_prior, [tmp_path / "in"], options=options)
    assert all(name in str(caught.value) for name in pair)
    save(tmp_path / "in" / "other.png")
    decided = planned(tiny_prior, [tmp_path / "in"], options=options)
    assert [task.source.path.name for task in decided.tasks] == ["other.png"]
    failed = {path.name: reason for path, reason in decided.failed}
    assert set(failed) == set(pair)
    assert all("would both be written" in reason for reason in failed.values())


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "img_1.png"])
def test_what_is_unreadable_takes_no_output_from_its_neighbour(
    tiny_prior, tmp_path, name
):
    save(tmp_path / "IMG_1.JPG")
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")  # what every HEIC begins with
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    decided = planned(tiny_prior, [tmp_path], options=options)
    assert [task.source.path.name for task in decided.tasks] == ["IMG_1.JPG"]
    ((path, reason),) = decided.failed
    assert path.name == name
    assert "would both" not in reason


def test_a_finished_photo_keeps_its_output(tiny_prior, tmp_path):
    """What comes later, and would go to the same place, is the one to fail."""
    options = dataclasses.replace(ONE, output=str(tmp_path / "out"))
    save(tmp_path / "in" / "x.png")
    (task,) = planned(tiny_prior, [tmp_path / "in"], options=options).tasks
    content = {
        "schema": record.SCHEMA,
        "status": "ok",
        "config_hash": plan.digest(tiny_prior, CONFIG, options),
        "input": {"sha256": task.sha256},
        "output": {"path": str(task.output)},
    }
    task.output.parent.mkdir()
    record.write_beside(task.output, b"picture", content)
    save(tmp_path / "in" / "x.bmp", seed=1)
    decided = planned(tiny_prior, [tmp_path / "in"], options=options)
    assert [(p.name, o) for p, o in decided.finished] == [("x.png", task.output)]
    assert [path.name for path, _ in decided.failed] == ["x.bmp"]
    assert not decided.tasks


def test_outputs_are_tried_before_the_restoration(tiny_prior, tmp_path):
    source = save(tmp_path / "x.png")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "taken_diip.png").mkdir()

    def check(output):
        options = dataclasses.replace(ONE, output=output and str(output))
        plan.check_writable(planned(tiny_prior, [source], options=options).tasks)

    with pytest.raises(ImageError, match="choose another --output"):
        check(tmp_path / "file" / "out")
    os.rename(source, tmp_path / "taken.png")
    source = tmp_path / "taken.png"
    with pytest.raises(ImageError, match="taken_diip.png: it is a folder"):
        check(None)
    check(tmp_path / "new" / "sub")
    assert not list((tmp_path / "new" / "sub").iterdir())  # made, and left empty


def test_a_reference_of_another_size_is_refused(tiny_prior, tmp_path):
    reference = save(tmp_path / "clean.png", seeded.image(16, 14))
    options = dataclasses.replace(ONE, reference=reference)
    decided = planned(tiny_prior, [save(tmp_path / "x.png")], options=options)
    assert not decided.tasks
    ((path, reason),) = decided.failed
    assert path == tmp_path / "x.png"
    assert "14x16" in reason


def test_each_photo_of_a_folder_gets_the_reference_of_its_name(tiny_prior, tmp_path):
    for name in ("a.png", "sub/a.png", "c.png"):
        save(tmp_path / "in" / name)
    for name in ("a.bmp", "sub/a.tif"):
        save(tmp_path / "clean" / name)
    options = dataclasses.replace(
        ONE, output=str(tmp_path / "out"), reference=tmp_path / "clean"
    )
    decided = planned(tiny_prior, [tmp_path / "in"], options=options, recursive=True)
    found = {str(t.source.relative): str(t.reference) for t in decided.tasks}
    assert found == {
        "a.png": str(tmp_path / "clean" / "a.bmp"),
        "sub/a.png": str(tmp_path / "clean" / "sub" / "a.tif"),
    }
    ((path, reason),) = decided.failed
    assert path == tmp_path / "in" / "c.png"
    assert "has nothing for c.png" in reason


def test_standard_output_takes_one_image(tiny_prior, tmp_path):
    source = save(tmp_path / "x.png")
    options = dataclasses.replace(ONE, output="-")
    (task,) = planned(tiny_prior, [source], options=options).tasks
    assert task.to_stdout
    assert task.output == Path("-.png")
    plan.check_writable([task])
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(OutputError, match="one image each"):
        planned(tiny_prior, [source, save(tmp_path / "y.png")], options=options)


def test_a_task_names_its_files(tiny_prior, tmp_path):
    options = dataclasses.replace(ONE, output=str(tmp_path / "out" / "y.webp"))
    (task,) = planned(tiny_prior, [save(tmp_path / "x.png")], options=options).tasks
    assert not task.to_stdout
    assert task.output == tmp_path / "out" / "y.webp"
    assert task.record_path == tmp_path / "out" / "y.json"
    assert task.state_path() == tmp_path / "out" / ".y.webp.state"
    assert task.state_path(3) == tmp_path / "out" / ".y.webp.3.state"
    assert task.reference is None


# Each with another value than it has by default.
OTHERS = {
    "output": "out",
    "suffix": "restored",
    "ext": "webp",
    "quality": 90,
    "seed": 1,
    "size_mode": "fit",
    "max_pixels": 10,
    "num_lanes": 3,
    "overwrite": True,
    "save_every": 5,
    "reference": Path("clean.png"),
    "lpips": "vgg",
    "lpips_weights": Path("w.ckpt"),
    "traces": Path("traces"),
}


def test_the_digest_depends_on_what_decides_pixels(tiny_prior):
    assert OTHERS.keys() == {f.name for f in dataclasses.fields(plan.Options)}
    default = plan.Options()

    def digest(config=CONFIG, prior=tiny_prior, **changes):
        options = dataclasses.replace(default, **changes)
        return plan.digest(prior, config, options)

    plain = digest()
    changed = {name for name in OTHERS if digest(**{name: OTHERS[name]}) != plain}
    assert changed == {"seed", "ext", "quality", "size_mode"}
    assert digest(CONFIG.replace(epsilon=0.5)) != plain
    assert digest(prior=seeded.prior(sha256="1" * 64)) != plain


def test_a_key_is_that_of_the_seed_and_the_name():
    keys = {
        (seed, name): tuple(jax.random.key_data(plan.key(seed, Path(name))).tolist())
        for seed in (0, 1)
        for name in ("a.png", "b.png", "sub/a.png")
    }
    assert len(set(keys.values())) == len(keys)
    again = jax.random.fold_in(jax.random.key(1), binascii.crc32(b"sub/a.png"))
    assert keys[1, "sub/a.png"] == tuple(jax.random.key_data(again).tolist())
