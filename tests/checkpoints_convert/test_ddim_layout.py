"""The layout of ermongroup/ddim.

Independent here: the table of the published conversion script, and a transcription of
the network.
"""

import math

import numpy as np
import pytest

from checkpoints_convert import convert, ddim, diffusers
from checkpoints_convert.convert import Request
from helpers import diffusers_unet, seeded, transcription
from helpers.checkpoints import (
    LINEAR,
    assert_trees_equal,
    converted,
    lazy,
    unet2d_weights,
)


@pytest.mark.parametrize("name", ["cifar10", "celebahq"])
def test_ddim_weights_are_diffusers_weights_renamed(name):
    config = diffusers_unet.CONFIGS[name]
    architecture = diffusers.described({"config": config})
    arrays = diffusers_unet.state_dict(diffusers_unet.torch_shapes(architecture))
    renamed = transcription.as_ermongroup(arrays, len(architecture.widths))
    tensors = lazy(renamed)
    assert convert.detect(tensors) is ddim
    found = ddim.architecture(tensors, {"image_size": config["sample_size"]})
    assert found == architecture
    assert_trees_equal(converted(renamed, ddim, found), seeded.to_tree(arrays))


def test_names_of_the_ddim_layout_are_those_of_its_transcription():
    shapes = transcription.shapes(128, (1, 1, 2, 2, 4, 4), 2, (4,))
    assert len(shapes) == 450
    assert sum(math.prod(shape) for shape in shapes.values()) == 113_673_219
    config = diffusers.described({"config": diffusers_unet.CELEBAHQ})
    theirs = {
        transcription.ermongroup_name(name, 6): math.prod(shape)
        for name, shape in diffusers_unet.torch_shapes(config).items()
    }
    assert {name: math.prod(shape) for name, shape in shapes.items()} == theirs


def test_an_averaged_ddim_training_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    arrays = transcription.as_ermongroup(unet2d_weights(), 2)
    averaged = {n: torch.from_numpy(np.array(a)) for n, a in arrays.items()}
    model = {f"module.{n}": torch.zeros_like(t) for n, t in averaged.items()}
    path = tmp_path / "ckpt.pth"
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}}
    torch.save([model, optimizer, 12, 4000, averaged], path)
    request = Request(architecture={"image_size": 16}, schedule=LINEAR)
    found = convert.convert(path, request)
    assert_trees_equal(found.params, seeded.to_tree(unet2d_weights()))
