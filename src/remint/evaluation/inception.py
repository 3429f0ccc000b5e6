"""The 2015 Inception network, whose pooled activations define FID, and its image preprocessing.

    Szegedy et al., Rethinking the Inception architecture for computer vision, 2016; FID: Heusel et al., GANs trained by a
    two time-scale update rule, 2017

The weights are Google's of 2015-12-05 for TensorFlow 1, as torch-fidelity publishes them for PyTorch: a state dict with the
names and shapes of ``Inception`` below. The network differs from torchvision's later one in three points: an average pool
at a border counts only pixels inside the image, the last block has a max pool instead of an average pool, and there are
1008 classes.

Images are preprocessed as for the published FID values: grey is repeated to 3 channels; levels other than 256 become
x 255 / (levels - 1), rounded to the nearest, ties to even; uint8 is resized to 299 x 299 as in TensorFlow 1, and scaled to
(x - 128) / 128. All in float32, in blocks of one size; black images fill the last block. So the rounding of a feature
depends neither on the number of images nor on the other images of its block.

Shapes: N images, B block, C channels, H height, W width, D features.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn
from torch.nn import functional

from remint.errors import DataError
from remint.evaluation.features import Extractor
from remint.records import DataSpec

SIZE = 299  # pixels of an edge
FEATURES, CLASSES = 2048, 1008
BLOCK = 4  # images at a time
RESIZE = f"bilinear {SIZE}, TensorFlow 1"
COUNTER = "num_batches_tracked"  # of a batch norm: not used here, and missing in older files

Array = np.ndarray[Any, Any]

# A block of the network has parallel routes, each a sequence of
#     (name, filters, kernel) or (name, filters, kernel, stride)   a convolution; padded to keep the size if the stride is 1
#     AVERAGE, GREATEST, HALVE                                     a 3 x 3 pool: average, max, max with stride 2
#     [convolution, convolution]                                   a fork, whose outputs are concatenated
AVERAGE, GREATEST, HALVE = "average", "greatest", "halve"
Kernel = tuple[int, int]
Routes = list[list[Any]]
ONE, THREE, FIVE, WIDE, TALL = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _a(pooled: int) -> Routes:
    return [
        [("branch1x1", 64, ONE)],
        [("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)],
        [("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)],
        [AVERAGE, ("branch_pool", pooled, ONE)],
    ]


def _b() -> Routes:
    return [
        [("branch3x3", 384, THREE, 2)],
        [("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE, 2)],
        [HALVE],
    ]


def _c(narrow: int) -> Routes:
    double = [(f"branch7x7dbl_{i}", 192 if i == 5 else narrow, TALL if i % 2 == 0 else WIDE) for i in range(2, 6)]
    return [
        [("branch1x1", 192, ONE)],
        [("branch7x7_1", narrow, ONE), ("branch7x7_2", narrow, WIDE), ("branch7x7_3", 192, TALL)],
        [("branch7x7dbl_1", narrow, ONE), *double],
        [AVERAGE, ("branch_pool", 192, ONE)],
    ]


def _d() -> Routes:
    long = [("branch7x7x3_1", 192, ONE), ("branch7x7x3_2", 192, WIDE), ("branch7x7x3_3", 192, TALL)]
    return [
        [("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE, 2)],
        [*long, ("branch7x7x3_4", 192, THREE, 2)],
        [HALVE],
    ]


def _e(pool: str) -> Routes:
    fork = [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]
    deep_fork = [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]
    return [
        [("branch1x1", 320, ONE)],
        [("branch3x3_1", 384, ONE), fork],
        [("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE), deep_fork],
        [pool, ("branch_pool", 192, ONE)],
    ]


class Convolution(nn.Module):
    """A convolution without bias, a batch norm and a ReLU."""

    def __init__(self, channels: int, filters: int, kernel: Kernel, stride: int = 1, padding: Kernel = (0, 0)) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(filters, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x_BCHW)))


class Mixed(nn.Module):
    """Parallel routes, whose channels are concatenated in this order."""

    def __init__(self, channels: int, routes: Routes) -> None:
        super().__init__()
        self.routes = routes
        self.filters = sum(self._build(channels, route) for route in routes)

    def _build(self, channels: int, route: list[Any]) -> int:
        """Add the convolutions of a route and return its number of output channels."""
        for part in route:
            if isinstance(part, list):
                channels = sum(self._build(channels, [end]) for end in part)
            elif isinstance(part, tuple):
                name, filters, kernel, *strides = part
                stride = strides[0] if strides else 1
                padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
                self.add_module(name, Convolution(channels, filters, kernel, stride, padding))
                channels = filters
        return channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.cat([self._along(route, x_BCHW) for route in self.routes], dim=1)

    def _along(self, route: list[Any], x_BCHW: Tensor) -> Tensor:
        for part in route:
            if isinstance(part, list):
                x_BCHW = torch.cat([self._along([end], x_BCHW) for end in part], dim=1)
            elif isinstance(part, tuple):
                x_BCHW = self.get_submodule(part[0])(x_BCHW)
            elif part == AVERAGE:
                x_BCHW = functional.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
            elif part == GREATEST:
                x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=1, padding=1)
            else:
                x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=2)
        return x_BCHW


class Inception(nn.Module):
    """A network from images x_BCHW, uint8 (B, 3, H, W), to 2048 pooled activations, with the names of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, THREE, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, THREE)
        self.Conv2d_2b_3x3 = Convolution(32, 64, THREE, padding=(1, 1))
        self.Conv2d_3b_1x1 = Convolution(64, 80, ONE)
        self.Conv2d_4a_3x3 = Convolution(80, 192, THREE)
        blocks = {
            **{"Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64)},
            **{"Mixed_6a": _b(), "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192)},
            **{"Mixed_7a": _d(), "Mixed_7b": _e(AVERAGE), "Mixed_7c": _e(GREATEST)},
        }
        channels = 192
        for name, routes in blocks.items():
            block = Mixed(channels, routes)
            self.add_module(name, block)
            channels = block.filters
        self.mixed = tuple(blocks)
        self.fc = nn.Linear(FEATURES, CLASSES)  # part of the file; its classes are not used here

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = (resized(x_BCHW.to(self.fc.weight.dtype), SIZE, SIZE) - 128.0) / 128.0
        x_BCHW = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=2)
        x_BCHW = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x_BCHW))
        x_BCHW = functional.max_pool2d(x_BCHW, 3, stride=2)
        for name in self.mixed:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return functional.adaptive_avg_pool2d(x_BCHW, 1).flatten(1)


def resized(x_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Resize bilinearly like TensorFlow 1's ``resize_bilinear`` without ``align_corners``, in the dtype of ``x_BCHW``.

    Pixel i of the result lies at i in / out of the image (not at (i + 1/2) in / out - 1/2), computed in float32. The last
    pixel is repeated beyond the border.
    """
    top_H, bottom_H, down_H = _places(x_BCHW.shape[2], height, x_BCHW)
    left_W, right_W, along_W = _places(x_BCHW.shape[3], width, x_BCHW)
    upper, lower = x_BCHW[:, :, top_H], x_BCHW[:, :, bottom_H]
    above = upper[..., left_W] + (upper[..., right_W] - upper[..., left_W]) * along_W
    below = lower[..., left_W] + (lower[..., right_W] - lower[..., left_W]) * along_W
    return above + (below - above) * down_H.unsqueeze(1)


def _places(size: int, wanted: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixel before and the pixel after each position, and its fraction of the way between them, in [0, 1)."""
    place = torch.arange(wanted, dtype=torch.float32, device=like.device) * torch.tensor(size / wanted, dtype=torch.float32)
    before = place.long()
    return before, (before + 1).clamp(max=size - 1), (place - before).to(like.dtype)


def prepared(x_NCHW: Array, levels: int) -> Tensor:
    """Convert images of 1 or 3 channels, values 0 .. levels-1, to the network's input: uint8 (N, 3, H, W), values 0 .. 255."""
    x = torch.from_numpy(np.array(x_NCHW))
    if levels != 256:
        x = (x.double() * 255.0 / (levels - 1)).round().to(torch.uint8)
    return x.expand(-1, 3, -1, -1)


@dataclass(frozen=True)
class InceptionExtractor(Extractor):
    """A map from images to the pooled activations of the Inception network."""

    @torch.no_grad()
    def __call__(self, x_NX: Array) -> Array:
        """Return the features f_ND, computed in float32 and stored as float64."""
        f_ND = np.empty((len(x_NX), FEATURES))
        for at in range(0, len(x_NX), BLOCK):
            block = prepared(x_NX[at : at + BLOCK], self.spec.levels)
            full = torch.zeros(BLOCK, *block.shape[1:], dtype=torch.uint8)
            full[: len(block)] = block
            f_ND[at : at + BLOCK] = self.network(full)[: len(block)].numpy()
        return f_ND


def load(content: bytes, sha256: str, spec: DataSpec, where: str) -> Extractor:
    """Return the extractor of a weights file.

    Args:
        content: bytes of the file, a state dict from torch.save or safetensors; code in a pickle is never run.
        sha256: SHA-256 of ``content``.
        spec: spec of the images.
        where: prefix of error messages.

    Raises DataError if the file has another format, or if the examples are not images of 1 or 3 channels.
    """
    if spec.is_table or spec.image[0] not in (1, 3):
        raise DataError(f"{where}: the Inception network needs images of 1 or 3 channels; the dataset has {spec.text()}")
    network = Inception()
    network.load_state_dict(_checked(_state(content, where), network.state_dict(), where), strict=False)
    network = network.float().eval().requires_grad_(False)
    return InceptionExtractor(network=network, spec=spec, sha256=sha256, name="inception", resize=RESIZE)


def _state(content: bytes, where: str) -> Mapping[str, Any]:
    try:
        state = load_safetensors(content)
    except safetensors.SafetensorError:
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # an unpickler may raise anything
            raise DataError(f"{where}: it is not a state dict ({type(error).__name__}): expected weights as published") from error
    if not isinstance(state, Mapping):
        raise DataError(f"{where}: it holds a {type(state).__name__}, expected a state dict")
    return state


def _checked(state: Mapping[str, Any], expected: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the weights of the network. Raises DataError if names or shapes differ, or if a weight is not finite."""
    needed = {name: tensor for name, tensor in expected.items() if not name.endswith(COUNTER)}
    missing, unexpected = [sorted({*a} - {*b}) for a, b in ((needed, state), (state, expected))]
    wrong = [name for name, tensor in needed.items() if name in state and _shape(state[name]) != tensor.shape]
    found = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    if any(found.values()):
        words = "; ".join(f"{len(names)} {how}, for example {names[0]}" for how, names in found.items() if names)
        raise DataError(f"{where}: its weights are not those of the Inception network: {words}")
    if broken := [name for name in needed if not bool(torch.isfinite(state[name]).all())]:
        raise DataError(f"{where}: weights '{broken[0]}' are not finite")
    return {name: state[name] for name in needed}


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None
