"""What the modules share: samples as integers, guarded codecs, optional libraries."""

import logging
import sys
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from diip_jax import images
from helpers.pictures import (
    GOOD_JPEG,
    GOOD_PNG,
    GOOD_TIFF,
    HEIGHT,
    WIDTH,
    by_pypng,
    round_trip,
    samples,
)


@pytest.mark.parametrize("bits", [8, 16])
def test_to_uint_undoes_the_division_for_every_value(bits):
    values = np.arange(2**bits).astype(np.float32) / np.float32(2**bits - 1)
    np.testing.assert_array_equal(images.to_uint(values, bits), np.arange(2**bits))
    np.testing.assert_array_equal(images.to_uint([-1, 2], bits), [0, 2**bits - 1])


def test_to_uint_refuses_nan():
    with pytest.raises(images.ImageError, match="NaN"):
        images.to_uint(np.array([0.5, np.nan]), 8)


def test_the_limit_is_ours_and_pillows_is_put_back(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    before = list(warnings.filters)
    assert images.read(GOOD_PNG).rgb.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(images.ImageError):
        images.read(GOOD_JPEG[: len(GOOD_JPEG) // 2])
    assert Image.MAX_IMAGE_PIXELS == 10
    assert list(warnings.filters) == before
    assert not logging.getLogger("tifffile").disabled


def test_threads_read_without_disturbing_each_other():
    before = list(warnings.filters)
    found = []

    def work():
        for _ in range(20):
            found.append(images.read(GOOD_TIFF).rgb.sum())
            found.append(images.read(GOOD_PNG).rgb.sum())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 160
    assert len(set(found)) == 2
    assert list(warnings.filters) == before
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("module", ["imagecodecs", "tifffile"])
def test_a_missing_extra_is_named(module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    deep = by_pypng(samples(3, 16)) if module == "imagecodecs" else GOOD_TIFF
    with pytest.raises(images.ImageError, match=r'pip install "diip-jax\[hidepth\]"'):
        images.read(deep)
    # Grey PNG of 16 bits, and everything of 8, needs Pillow only.
    np.testing.assert_array_equal(
        round_trip(by_pypng(samples(1, 16)), tmp_path)[1], samples(1, 16)
    )
    assert images.read(GOOD_JPEG).bits == 8
