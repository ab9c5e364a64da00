"""The tables of known checkpoints, and how a file is recognised as one of them."""

import re

import pytest

from checkpoints_convert import convert, diffusers, registry
from diip_jax.schedule import Schedule
from helpers.checkpoints import SMALL_UNET2D


@pytest.mark.parametrize("checkpoint", registry.public().values(), ids=lambda c: c.name)
def test_registry_row_is_well_formed(checkpoint):
    c = checkpoint
    assert re.fullmatch(r"[a-z0-9-]+", c.name)
    assert c.layout in ("guided_diffusion", "ddim", "diffusers")
    assert c.architecture["image_size"] in (32, 64, 256, 512)
    assert type(c.parameters) is int
    assert c.parameters > 30_000_000
    assert "/" not in c.file
    assert c.licence
    assert c.training_data
    assert c.source
    assert c.urls or c.hub or c.gdrive
    assert all(url.startswith("https://") for url in c.urls)
    assert c.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", c.sha256)
    assert c.md5 is None or re.fullmatch(r"[0-9a-f]{32}", c.md5)
    assert c.gdrive is None or re.fullmatch(r"[\w-]{33}", c.gdrive)
    if c.hub:  # a branch moves: only a hash makes one safe
        assert re.fullmatch(r"[0-9a-f]{40}", c.hub.revision) or c.sha256


@pytest.mark.parametrize("checkpoint", registry.public().values(), ids=lambda c: c.name)
def test_registry_row_has_what_its_layout_needs(checkpoint):
    c = checkpoint
    switches = {"num_heads", "num_head_channels", "new_attention_order"}
    assert set(c.architecture) - {"image_size", "num_heads_upsample"} == (
        switches if c.layout == "guided_diffusion" else set()
    )
    by_number = c.architecture.get("num_head_channels") == -1
    assert c.architecture.get("num_heads_upsample") == (-1 if by_number else None)
    assert c.layout != "diffusers" or c.hub  # config.json comes only from there
    schedule = Schedule(**c.schedule)
    assert len(schedule.alphas_cumprod()) == schedule.num_train_timesteps
    assert (schedule.kind == "cosine") == schedule.rescale_timesteps
    if c.bytes:  # published sizes agree with our counts: float32 and a little pickle
        assert 0 < c.bytes - 4 * c.parameters < 200_000


def test_registry_serves_both_evaluations_of_the_paper():
    papers = {c.name: c.paper for c in registry.public().values() if c.paper}
    assert set(papers) == {"adm-imagenet256-uncond", "repaint-celeba256"}
    assert "ImageNet" in papers["adm-imagenet256-uncond"]
    assert "CelebA" in papers["repaint-celeba256"]


def test_hashes_belong_to_one_network_each():
    rows = [c for c in registry.public().values() if c.sha256 or c.md5]
    assert len({c.sha256 or c.md5 for c in rows}) == len(rows)


def test_table_lists_every_row():
    head, *lines = registry.table().splitlines()
    rows = registry.public()
    assert [line.split()[0] for line in lines] == list(rows)
    for line, c in zip(lines, rows.values(), strict=True):
        assert c.licence in line
        assert c.training_data in line
    assert " ".join(head.split()) == "name layout px MB training data licence paper"
    assert " 2211 " in lines[0]  # published
    assert " >2211 " in lines[1]  # counted


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("celeba256", "did you mean repaint-celeba256?"),
        ("gogle-ddpm-cifar10-32", "did you mean google-ddpm-cifar10-32,"),
        ("", "no checkpoint is called '': `python"),
    ],
)
def test_unknown_name_lists_close_ones(name, close):
    with pytest.raises(registry.WeightsError, match=r"--list") as caught:
        registry.lookup_public(name)
    assert close in str(caught.value)
    assert registry.lookup_public("repaint-celeba256").parameters == 552_814_086


def test_known_checkpoints_are_recognised(tmp_path):
    rows = registry.known()
    assert list(rows)[:2] == ["natural64", "faces64"]
    assert set(registry.public()) < set(rows)
    path = tmp_path / "celeba256_250000.pt"
    path.write_bytes(b"x")
    by_name = registry.identify(path, "0" * 64, 552_814_086)
    assert by_name == rows["repaint-celeba256"]
    assert registry.identify(path, "0" * 64, 552_814_085) is None
    by_hash = registry.identify(path, str(rows["dps-ffhq-10m"].sha256), 1)
    assert by_hash == rows["dps-ffhq-10m"]


@pytest.mark.parametrize("name", [*registry.public(), "natural64", "faces64"])
def test_rows_hold_all_the_facts_that_their_layout_needs(name):
    row = registry.lookup(name)
    layout = {layout.NAME: layout for layout in convert.LAYOUTS}[row.layout]
    given = dict(row.architecture)
    if layout is diffusers:
        given["config"] = SMALL_UNET2D
    assert layout.missing(given) == []
    schedule = convert._schedule(row.schedule, {}, layout)
    assert convert._missing_of_schedule(schedule, layout) == []
    assert len(Schedule(**schedule).alphas_cumprod()) == schedule["num_train_timesteps"]
