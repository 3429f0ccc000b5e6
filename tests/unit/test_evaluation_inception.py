"""The Inception network against the published layout, the resize formula of TensorFlow 1, and explicit sums."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from remint.errors import DataError
from remint.evaluation import inception
from remint.evaluation.features import Extractor
from remint.evaluation.inception import AVERAGE, GREATEST, HALVE, Inception, Mixed, prepared, resized
from remint.records import DataSpec

pytestmark = pytest.mark.usefixtures("one_thread")

# The convolutions of the published file, block by block: name and shape of its weight. "-" stands outside of blocks.
PUBLISHED = """
-: Conv2d_1a_3x3 32x3x3x3, Conv2d_2a_3x3 32x32x3x3, Conv2d_2b_3x3 64x32x3x3, Conv2d_3b_1x1 80x64x1x1
    Conv2d_4a_3x3 192x80x3x3
Mixed_5b: branch1x1 64x192x1x1, branch5x5_1 48x192x1x1, branch5x5_2 64x48x5x5, branch3x3dbl_1 64x192x1x1
    branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3, branch_pool 32x192x1x1
Mixed_5c: branch1x1 64x256x1x1, branch5x5_1 48x256x1x1, branch5x5_2 64x48x5x5, branch3x3dbl_1 64x256x1x1
    branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3, branch_pool 64x256x1x1
Mixed_5d: branch1x1 64x288x1x1, branch5x5_1 48x288x1x1, branch5x5_2 64x48x5x5, branch3x3dbl_1 64x288x1x1
    branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3, branch_pool 64x288x1x1
Mixed_6a: branch3x3 384x288x3x3, branch3x3dbl_1 64x288x1x1, branch3x3dbl_2 96x64x3x3, branch3x3dbl_3 96x96x3x3
Mixed_6b: branch1x1 192x768x1x1, branch7x7_1 128x768x1x1, branch7x7_2 128x128x1x7, branch7x7_3 192x128x7x1
    branch7x7dbl_1 128x768x1x1, branch7x7dbl_2 128x128x7x1, branch7x7dbl_3 128x128x1x7, branch7x7dbl_4 128x128x7x1
    branch7x7dbl_5 192x128x1x7, branch_pool 192x768x1x1
Mixed_6c: branch1x1 192x768x1x1, branch7x7_1 160x768x1x1, branch7x7_2 160x160x1x7, branch7x7_3 192x160x7x1
    branch7x7dbl_1 160x768x1x1, branch7x7dbl_2 160x160x7x1, branch7x7dbl_3 160x160x1x7, branch7x7dbl_4 160x160x7x1
    branch7x7dbl_5 192x160x1x7, branch_pool 192x768x1x1
Mixed_6d: branch1x1 192x768x1x1, branch7x7_1 160x768x1x1, branch7x7_2 160x160x1x7, branch7x7_3 192x160x7x1
    branch7x7dbl_1 160x768x1x1, branch7x7dbl_2 160x160x7x1, branch7x7dbl_3 160x160x1x7, branch7x7dbl_4 160x160x7x1
    branch7x7dbl_5 192x160x1x7, branch_pool 192x768x1x1
Mixed_6e: branch1x1 192x768x1x1, branch7x7_1 192x768x1x1, branch7x7_2 192x192x1x7, branch7x7_3 192x192x7x1
    branch7x7dbl_1 192x768x1x1, branch7x7dbl_2 192x192x7x1, branch7x7dbl_3 192x192x1x7, branch7x7dbl_4 192x192x7x1
    branch7x7dbl_5 192x192x1x7, branch_pool 192x768x1x1
Mixed_7a: branch3x3_1 192x768x1x1, branch3x3_2 320x192x3x3, branch7x7x3_1 192x768x1x1, branch7x7x3_2 192x192x1x7
    branch7x7x3_3 192x192x7x1, branch7x7x3_4 192x192x3x3
Mixed_7b: branch1x1 320x1280x1x1, branch3x3_1 384x1280x1x1, branch3x3_2a 384x384x1x3, branch3x3_2b 384x384x3x1
    branch3x3dbl_1 448x1280x1x1, branch3x3dbl_2 384x448x3x3, branch3x3dbl_3a 384x384x1x3, branch3x3dbl_3b 384x384x3x1
    branch_pool 192x1280x1x1
Mixed_7c: branch1x1 320x2048x1x1, branch3x3_1 384x2048x1x1, branch3x3_2a 384x384x1x3, branch3x3_2b 384x384x3x1
    branch3x3dbl_1 448x2048x1x1, branch3x3dbl_2 384x448x3x3, branch3x3dbl_3a 384x384x1x3, branch3x3dbl_3b 384x384x3x1
    branch_pool 192x2048x1x1
"""
NORM = ("weight", "bias", "running_mean", "running_var")


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    block = ""
    for word in PUBLISHED.replace(",", "\n").replace(":", ":\n").splitlines():
        if word.endswith(":"):
            block = word.removesuffix(":").strip("-")
        elif word.strip():
            name, sizes = word.split()
            shape = tuple(int(size) for size in sizes.split("x"))
            place = f"{block}.{name}" if block else name
            shapes[f"{place}.conv.weight"] = shape
            shapes |= {f"{place}.bn.{part}": shape[:1] for part in NORM}
    return shapes


def random_state(seed: int = 0) -> dict[str, Tensor]:
    """Return a random state dict with the published layout that keeps the scale of the activations."""
    generator, made = torch.Generator().manual_seed(seed), {}
    for name, shape in published_shapes().items():
        tensor = torch.randn(shape, generator=generator)
        scale = (2.0 / tensor[0].numel()) ** 0.5 if len(shape) > 1 else 0.1
        made[name] = tensor * scale + (1.0 if name.endswith(("bn.weight", "running_var")) else 0.0)
    return made


def serialise(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def load(content: bytes, shape: tuple[int, int, int] = (3, 32, 32), levels: int = 256) -> Extractor:
    return inception.load(content, hashlib.sha256(content).hexdigest(), DataSpec(shape=shape, levels=levels), "here")


def images(count: int, channels: int = 3, levels: int = 256, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(0).integers(levels, size=(count, channels, *size), dtype=np.uint8)


def test_weights_have_the_published_names_and_shapes() -> None:
    own = {name: tuple(tensor.shape) for name, tensor in Inception().state_dict().items()}
    assert len(published_shapes()) == 94 * 5 + 2
    assert own == published_shapes() | {
        name.replace("weight", "num_batches_tracked"): () for name in published_shapes() if "bn.weight" in name
    }


@pytest.mark.slow
def test_features_of_an_image_do_not_depend_on_its_batch() -> None:
    """Compare an image alone and in batches of different sizes."""
    extractor = load(serialise(random_state()))
    assert (extractor.name, extractor.resize) == ("inception", "bilinear 299, TensorFlow 1")
    x_NCHW = images(5)
    f_ND = extractor(x_NCHW)
    assert f_ND.shape == (5, 2048) and f_ND.dtype == np.float64 and np.isfinite(f_ND).all()
    assert len(np.unique(f_ND[:, f_ND.std(axis=0).argmax()])) == 5
    np.testing.assert_allclose(extractor(x_NCHW[::-1])[::-1], f_ND, rtol=0.0, atol=1e-5 * f_ND.std())
    assert extractor(x_NCHW[:0]).shape == (0, 2048)


def test_grey_images_of_few_levels_are_the_same_as_colours_of_256() -> None:
    x_NCHW = images(2, channels=1, levels=17, size=(8, 8))
    wide = np.repeat(np.array([round(x * 255 / 16) for x in x_NCHW.ravel().tolist()], np.uint8).reshape(x_NCHW.shape), 3, axis=1)
    np.testing.assert_array_equal(prepared(x_NCHW, 17), wide)
    np.testing.assert_array_equal(prepared(wide, 256), wide)
    content = save({name: tensor.contiguous() for name, tensor in random_state().items()})
    few, all_of_them = load(content, (1, 8, 8), 17), load(content, (3, 8, 8))
    np.testing.assert_array_equal(few(x_NCHW), all_of_them(wide))


@pytest.mark.parametrize(("levels", "value", "expected"), [(3, 1, 128), (2, 1, 255), (103, 1, 2), (511, 1, 0), (511, 3, 2)])
def test_levels_are_rounded_to_the_nearest_and_ties_to_even(levels: int, value: int, expected: int) -> None:
    """127.5, 255, 2.5, 0.5 and 1.5."""
    assert int(prepared(np.full((1, 1, 1, 1), value, np.uint8), levels)[0, 0, 0, 0]) == expected


def by_hand(x_HW: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize as TensorFlow 1.x does: resize_bilinear without align_corners and half_pixel_centers, pixel by pixel in float32."""
    single = np.float32
    rows, columns = x_HW.shape
    out = np.empty((height, width), single)
    for i in range(height):
        for j in range(width):
            y, x = single(i) * single(single(rows) / single(height)), single(j) * single(single(columns) / single(width))
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            down, along = y - single(top), x - single(left)
            above = x_HW[top, left] + (x_HW[top, right] - x_HW[top, left]) * along
            below = x_HW[bottom, left] + (x_HW[bottom, right] - x_HW[bottom, left]) * along
            out[i, j] = above + (below - above) * down
    return out


@pytest.mark.parametrize("size", [(8, 8), (32, 20), (1, 3), (50, 43)])
def test_the_resize_equals_that_of_tensorflow_1(size: tuple[int, int]) -> None:
    x_HW = np.random.default_rng(1).integers(256, size=size).astype(np.float32)
    found = resized(torch.from_numpy(x_HW)[None, None], 43, 37)[0, 0]
    np.testing.assert_array_equal(found, by_hand(x_HW, 43, 37))


def test_an_image_of_the_networks_size_stays_as_it_is() -> None:
    x_BCHW = torch.from_numpy(images(1, size=(inception.SIZE, inception.SIZE))).float()
    assert torch.equal(resized(x_BCHW, inception.SIZE, inception.SIZE), x_BCHW)


def convolved(x_CHW: np.ndarray, weights: dict[str, Tensor], name: str, stride: int = 1) -> np.ndarray:
    """Compute a convolution by explicit sums, then its batch norm and the positive part."""
    kernel, norm = weights[f"{name}.conv.weight"].numpy(), [weights[f"{name}.bn.{part}"].numpy() for part in NORM]
    _, _, high, wide = kernel.shape
    down, along = (high // 2, wide // 2) if stride == 1 else (0, 0)
    x_CHW = np.pad(x_CHW, ((0, 0), (down, down), (along, along)))
    rows, columns = (x_CHW.shape[1] - high) // stride + 1, (x_CHW.shape[2] - wide) // stride + 1
    windows = [
        [x_CHW[:, i * stride : i * stride + high, j * stride : j * stride + wide] for j in range(columns)] for i in range(rows)
    ]
    sums = np.array([[[(filter * window).sum() for window in row] for row in windows] for filter in kernel])
    scale, shift, mean, variance = (part[:, None, None] for part in norm)
    return np.maximum((sums - mean) / np.sqrt(variance + 0.001) * scale + shift, 0.0)


def pooled(x_CHW: np.ndarray, how: Any) -> np.ndarray:
    """Pool over the 3 x 3 neighbours inside the image."""
    _, rows, columns = x_CHW.shape
    places = [[x_CHW[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2] for j in range(columns)] for i in range(rows)]
    return np.array([[how(place, axis=(1, 2)) for place in row] for row in places]).transpose(2, 0, 1)


def test_a_block_equals_its_formula() -> None:
    fork = [("fork_a", 2, (1, 3)), ("fork_b", 2, (3, 1))]
    last = [("seven", 2, (7, 1))]
    routes = [
        [("one", 3, (1, 1))],
        [("root", 2, (3, 3)), fork],
        [AVERAGE, ("mean", 2, (1, 1))],
        [GREATEST, ("max", 2, (1, 1))],
        last,
    ]
    torch.manual_seed(0)
    block = Mixed(2, routes).double().eval().requires_grad_(False)
    weights = block.state_dict()
    for name, tensor in weights.items():
        if "bn" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    x_CHW = np.random.default_rng(2).normal(size=(2, 6, 5))
    root = convolved(x_CHW, weights, "root")
    expected = [
        convolved(x_CHW, weights, "one"),
        convolved(root, weights, "fork_a"),
        convolved(root, weights, "fork_b"),
        convolved(pooled(x_CHW, np.mean), weights, "mean"),
        convolved(pooled(x_CHW, np.max), weights, "max"),
        convolved(x_CHW, weights, "seven"),
    ]
    np.testing.assert_allclose(block(torch.from_numpy(x_CHW)[None])[0], np.concatenate(expected), atol=1e-12)
    halving = Mixed(2, [[HALVE], [("two", 2, (3, 3), 2)]]).double().eval().requires_grad_(False)
    halved = np.array(
        [[[x_CHW[c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max() for j in range(2)] for i in range(2)] for c in range(2)]
    )
    own = convolved(x_CHW, halving.state_dict(), "two", stride=2)
    np.testing.assert_allclose(halving(torch.from_numpy(x_CHW)[None])[0], np.concatenate([halved, own]), atol=1e-12)


class MaliciousObject:
    """Object in a malicious pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle's code ran",))


def serialise_with(name: str, value: Any) -> bytes:
    made: dict[str, Any] = random_state()
    made.pop(name, None)
    return serialise(made if value is None else {**made, name: value})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: serialise_with("fc.bias", None), "1 missing, for example fc.bias"),
        (lambda: serialise_with("AuxLogits.fc.bias", torch.zeros(3)), "1 unexpected, for example AuxLogits.fc.bias"),
        (lambda: serialise_with("fc.weight", torch.zeros(1000, 2048)), "1 of another shape, for example fc.weight"),
        (lambda: serialise_with("fc.bias", "0"), "1 of another shape, for example fc.bias"),
        (lambda: serialise_with("fc.bias", torch.full((1008,), torch.nan)), "'fc.bias' are not finite"),
        (lambda: serialise([1]), "holds a list"),
        (lambda: serialise({"fc.bias": MaliciousObject()}), "is not a state dict"),
        (lambda: b"weights", "is not a state dict"),
    ],
)
def test_a_file_without_the_published_weights_is_refused_in_one_line(content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load(content())
    assert str(caught.value).startswith("here: ") and "\n" not in str(caught.value)


def test_images_of_four_channels_are_refused() -> None:
    with pytest.raises(DataError, match=r"needs images of 1 or 3 channels; the dataset has images of shape \(4, 8, 8\)"):
        load(b"", (4, 8, 8))
