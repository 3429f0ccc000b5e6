"""Use of a model from file to file: what the commands do. Each result is a record that --json prints."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from remint.errors import SettingsError
from remint.records import Record
from remint.serving import interpolation, outputs
from remint.serving.blocks import Progress, silent
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel

PART = 1_024  # samples that are drawn before they are written

Array = np.ndarray[Any, Any]


class Written(Record):
    """Result of a command that wrote a file."""

    model: str  # NAME/7
    weights_sha256: str
    path: str
    count: int  # examples in it
    seed: int | None = None  # of what was drawn
    of_class: str | None = None
    without: str | None = None  # the label, where rows were drawn by a model that does not know it
    set_aside: dict[str, str] = {}  # file or row of the input -> reason
    ignored: tuple[str, ...] = ()  # columns of the input that the model does not know

    def to_json(self) -> dict[str, Any]:
        return {"class" if key == "of_class" else key: value for key, value in super().to_json().items()}


def sample(
    served: ServedModel,
    count: int,
    output: Path | None = None,
    seed: int = 0,
    of_class: str | None = None,
    temperature: float = 1.0,
    progress: Progress = silent,
) -> Written:
    """Draw samples and write them; by default to samples.png, .npz where they are no pictures, or .csv or .parquet as the source.

    Raises SettingsError for an unknown class, and if the file cannot hold such data.
    """
    spec = served.spec
    usual = spec.suffix if spec.is_table else ".png" if spec.image[0] in outputs.MODES else ".npz"
    output = output or Path("samples").with_suffix(usual)
    outputs.check_examples(output, spec)
    number = None if of_class is None else served.class_number(of_class)
    served.draw([], None if number is None else [], temperature)  # an error is raised before a file is opened

    def parts() -> Iterator[outputs.Part]:
        for at in range(0, count, PART):
            places = [(seed, index) for index in range(at, min(at + PART, count))]
            x_BX, y_B = served.draw(places, None if number is None else [number] * len(places), temperature)
            progress(at + len(places), count)
            yield x_BX, y_B

    named = "" if of_class is None else f", class {of_class}"
    outputs.write_examples(output, spec, parts(), count, f"{served.ref}{named}, seed {seed}")
    lost = spec.label.name if spec.label is not None and not served.conditional else None
    return _written(served, output, count, seed=seed, of_class=of_class, without=lost)


def encode(
    served: ServedModel, data: str, output: Path, of_class: str | None = None, skip_bad: bool = False, progress: Progress = silent
) -> Written:
    """Write the latents of a person's examples."""
    outputs.check_numbers(output)
    with served.examples(data, skip_bad=skip_bad) as examples:
        parts = served.encoded(examples, served.classes_of(examples, of_class), progress)
        outputs.write_numbers(output, "z", parts, len(examples), served.latent_size)
        return _written(served, output, len(examples), examples, of_class=of_class)


def reconstruct(
    served: ServedModel, data: str, output: Path, of_class: str | None = None, skip_bad: bool = False, progress: Progress = silent
) -> Written:
    """Write decode(encode(x)) of a person's examples."""
    outputs.check_examples(output, served.spec)
    with served.examples(data, skip_bad=skip_bad) as examples:
        y_N = served.classes_of(examples, of_class)
        parts = served.reconstructed(examples, y_N, progress)
        outputs.write_examples(output, served.spec, _with_classes(parts, y_N), len(examples), f"{served.ref}, reconstructed")
        return _written(served, output, len(examples), examples, of_class=of_class)


def interpolate(served: ServedModel, a: str, b: str, output: Path, steps: int = 12, of_class: str | None = None) -> Written:
    """Write the examples from one to another: a strip of pictures, or rows."""
    outputs.check_examples(output, served.spec)
    found = interpolation.interpolate(served, a, b, steps, of_class)
    outputs.write_examples(output, served.spec, [found], steps, f"{served.ref}, from {a} to {b}", columns=steps)
    return _written(served, output, steps, of_class=of_class)


def decode(served: ServedModel, latents: Path, output: Path, of_class: str | None = None, progress: Progress = silent) -> Written:
    """Write the examples of latents in a file as ``encode`` writes them."""
    outputs.check_examples(output, served.spec)
    z_NZ = served.latents(_stored(latents))
    y_N = served.given_classes(of_class, len(z_NZ))
    parts = served.decoded(z_NZ, y_N, progress)
    outputs.write_examples(output, served.spec, _with_classes(parts, y_N), len(z_NZ), f"{served.ref}, decoded")
    return _written(served, output, len(z_NZ), of_class=of_class)


def _stored(path: Path) -> Array:
    try:
        if path.suffix.lower() in outputs.TABLES:
            read: Any = pa.csv.read_csv if path.suffix.lower() == ".csv" else pa.parquet.read_table
            z_NZ = np.stack([column.to_numpy() for column in read(path).columns], axis=1)
        else:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            z_NZ = found if isinstance(found, np.ndarray) else found["z"]
        if z_NZ.ndim != 2 or z_NZ.dtype.kind not in "fiu":
            raise ValueError(f"{z_NZ.dtype} of shape {z_NZ.shape}")
        return np.asarray(z_NZ, np.float32)
    except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        raise SettingsError(
            f"{path} holds no latents: give an .npy file (N, Z), an .npz file with z, or a table, as encode writes"
        ) from error


def _written(served: ServedModel, output: Path, count: int, examples: Examples | None = None, **more: Any) -> Written:
    if examples is not None:
        more |= {"set_aside": dict(examples.set_aside), "ignored": examples.ignored}
    return Written(model=served.ref, weights_sha256=served.weights_sha256, path=str(output), count=count, **more)


def _with_classes(parts: Iterator[Array], y_N: Array | None) -> Iterator[outputs.Part]:
    at = 0
    for x_BX in parts:
        yield x_BX, None if y_N is None else y_N[at : at + len(x_BX)]
        at += len(x_BX)
