"""Store two small files that PyTorch wrote, so that reading them needs no PyTorch.

Run with torch installed: `python tests/helpers/make_torch_files.py`.
"""

import collections
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


def contents() -> dict:
    """Return one tensor of each kind that checkpoints hold."""
    import torch

    base = torch.arange(24, dtype=torch.float32)
    return collections.OrderedDict(
        float32=base.reshape(2, 3, 4).clone(),
        float64=base[:3].double() / 7,
        float16=base[:5].half() / 7,
        bfloat16=base[:5].bfloat16() / 7,
        int64=torch.tensor([[1, -2], [3, 4]]),
        boolean=torch.tensor([True, False]),
        scalar=torch.tensor(0.5),
        empty=torch.zeros(0, 3),
        transposed=base.reshape(4, 6).t(),
        view=base[5:11].reshape(2, 3),
        every_other=base[1::2],
        parameter=torch.nn.Parameter(torch.tensor([1.0, 2.0])),
    )


def expected() -> dict:
    """Return the same as lists of numbers."""
    return {
        name: tensor.detach().double().numpy() for name, tensor in contents().items()
    }


if __name__ == "__main__":
    import numpy as np
    import torch

    GOLDEN.mkdir(exist_ok=True)
    torch.save(contents(), GOLDEN / "torch_zip.pt")
    torch.save(
        contents(), GOLDEN / "torch_stream.pt", _use_new_zipfile_serialization=False
    )
    np.savez_compressed(GOLDEN / "torch_files.npz", **expected())
