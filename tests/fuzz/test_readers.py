"""Random and mutated bytes for every reader of foreign bytes: each must succeed or raise an error of ours.

Readers run in this process, so that a crash ends the test; memory is limited over a whole test.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import resource
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save

from remint.data import pictures, sources
from remint.errors import RemintError
from remint.models import bundle as bundles
from remint.runtime import manifest
from remint.settings.dataset import DatasetSettings
from remint.settings.params import apply_overrides, load_params, read_params, validate_params
from remint.training.checkpoint import NOTES, TENSORS, Checkpoints
from tests.fuzz.conftest import Fuzz
from tests.support import registry_cases
from tests.support.hostile_images import mutate_file

REPOSITORY = Path(__file__).parents[2]
MOST_GROWN = 600 << 10  # KiB that one test may add to the peak of this process
LIMIT = 10  # seconds after which a reader counts as hung


@pytest.fixture(autouse=True)
def memory_limit() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_GROWN


@contextmanager
def ours() -> Iterator[None]:
    """Accept an error of ours with few lines. Fail on any other error, and if reading takes too long."""

    def hangs(*_: object) -> None:
        raise TimeoutError(f"nothing for {LIMIT} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(LIMIT)
    try:
        yield
    except RemintError as error:
        assert len(str(error)) < 20_000
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def changed(whole: bytes) -> st.SearchStrategy[bytes]:
    """Draw valid bytes with a few places overwritten, deleted or repeated, or random bytes."""
    place = st.integers(0, max(len(whole) - 1, 0))
    edit = st.tuples(place, st.integers(0, 40), st.binary(max_size=12))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = bytearray(whole)
        for at, length, content in edits:
            out[at : at + length] = content
        return bytes(out)

    return st.one_of(st.lists(edit, max_size=5).map(apply), st.binary(max_size=200))


def read(folder: Path, name: str, content: bytes, **settings: Any) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with ours():
        sources.snapshot("x", DatasetSettings(source=settings.pop("source", name), **settings), folder, folder / "out")


# --- params.yaml

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["digits", "flow", "auto"])
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
TEXT = (REPOSITORY / "params.yaml").read_bytes()


def paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path] if path else []
    return found + [
        each for key, inner in (value.items() if isinstance(value, dict) else ()) for each in paths(inner, (*path, key))
    ]


@pytest.mark.case(28)
def test_params(fuzz: Fuzz, tmp_path: Path) -> None:
    content = read_params(REPOSITORY)
    places = st.sampled_from(paths(content))

    @given(text=changed(TEXT), place=places, value=TREES)
    @example(text=b"a: &a [*a]", place=("datasets",), value=None)
    def prop(text: bytes, place: tuple[str, ...], value: Any) -> None:
        (tmp_path / "params.yaml").write_bytes(text)
        with ours():
            load_params(tmp_path)
        *parents, last = place
        copy = json.loads(json.dumps(content))
        block = copy
        for key in parents:
            block = block[key]
        block[last] = value
        with ours():
            validate_params(copy)
        with ours():
            apply_overrides(content, "digits-vae", [f"{'.'.join(place)}={text[:40].decode(errors='replace')}"])

    fuzz(prop)


# --- data


@pytest.mark.case(28)
def test_images(fuzz: Fuzz, tmp_path: Path) -> None:
    @given(seed=st.integers(0, 2**64), content=st.binary(max_size=100))
    def prop(seed: int, content: bytes) -> None:
        for each in (mutate_file(random.Random(seed))[1], content):
            with suppress(pictures.Undecodable), ours():
                x_CHW = pictures.decode_image(each, DatasetSettings(source="x"))
                assert x_CHW.dtype == np.uint8 and x_CHW.ndim == 3 and x_CHW.shape[0] in (1, 3)

    fuzz(prop)


@pytest.mark.case(28)
def test_idx_and_arrays(fuzz: Fuzz, tmp_path: Path) -> None:
    x = np.arange(3 * 4 * 5, dtype=np.uint8)
    idx = struct.pack(">HBB3I", 0, 8, 3, 3, 4, 5) + x.tobytes()
    npy, npz, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, x.reshape(3, 4, 5))
    np.savez_compressed(npz, x=x.reshape(3, 4, 5), y=np.arange(3))
    np.save(objects, np.array([os.system, "touch x"], dtype=object), allow_pickle=True)

    @given(
        a=changed(idx),
        b=changed(npy.getvalue()),
        c=changed(npz.getvalue()),
        d=changed(objects.getvalue()),
        packed=changed(gzip.compress(idx)),
    )
    def prop(a: bytes, b: bytes, c: bytes, d: bytes, packed: bytes) -> None:
        read(tmp_path, "plain/train-images-idx3-ubyte", a, source="idx:plain")
        read(tmp_path, "packed/train-images-idx3-ubyte.gz", packed, source="idx:packed")
        read(tmp_path, "a.npy", b)
        read(tmp_path, "o.npy", d)
        read(tmp_path, "a.npz", c)

    fuzz(prop)


@pytest.mark.case(28)
def test_tables(fuzz: Fuzz, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    rows = "".join(f"{index / 7},{'ab'[index % 2]},{index % 3}\n" for index in range(12))
    pyarrow.parquet.write_table(pa.table({"x": [0.5, 1.5, None], "t": ["a", "b", "a"]}), tmp_path / "whole")
    cells = st.lists(st.lists(st.text(max_size=6) | st.floats().map(str), min_size=1, max_size=4), max_size=6)

    @given(text=changed(f"x,t,n\n{rows}".encode()), table=cells, packed=changed((tmp_path / "whole").read_bytes()))
    def prop(text: bytes, table: list[list[str]], packed: bytes) -> None:
        read(tmp_path, "a.csv", text, kind="table")
        read(tmp_path, "b.csv", text, kind="table", label="t", missing="drop_rows", categorical=["n"])
        read(tmp_path, "c.csv", "\n".join(",".join(row) for row in table).encode(errors="surrogatepass"), kind="table")
        read(tmp_path, "d.parquet", packed, kind="table", label="t")

    fuzz(prop)


# --- safetensors and JSON, sealed as if we had written them


def sealed(folder: Path, files: dict[str, bytes], **about: Any) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest.seal(folder, **about)


HEADERS = st.builds(
    lambda header, size, data: struct.pack("<Q", (len(header) + size) % 2**64) + header + data,
    st.one_of(
        TREES.map(lambda tree: json.dumps(tree).encode()),
        st.dictionaries(
            st.text(max_size=3),
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F32", "F64", "I64", "BF16", "X"]),
                    "shape": st.lists(st.integers(-1, 2**64), max_size=3),
                    "data_offsets": st.lists(st.integers(-1, 2**64), min_size=2, max_size=2),
                }
            ),
            max_size=3,
        ).map(lambda tree: json.dumps(tree).encode()),
    ),
    st.sampled_from([0, 0, 0, 1, -1, 2**62]),
    st.binary(max_size=40),
)


@pytest.mark.case(28)
def test_models(fuzz: Fuzz, tmp_path: Path) -> None:
    registry_cases.make_bundle(tmp_path / "bundle")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "bundle").iterdir() if path.name != manifest.NAME}
    weights, about = whole["weights.safetensors"], whole["model.json"]
    settings = json.loads(about)

    @given(data=st.data())
    def prop(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            files = {"weights.safetensors": data.draw(st.one_of(changed(weights), HEADERS))}
        elif data.draw(st.booleans()):
            files = {"model.json": data.draw(changed(about))}
        else:
            place = data.draw(st.sampled_from(paths(settings)))
            copy = json.loads(about)
            block = copy
            for key in place[:-1]:
                block = block[key]
            block[place[-1]] = data.draw(TREES)
            files = {"model.json": json.dumps(copy).encode()}
        sealed(tmp_path / "bundle", {**whole, **files})
        with ours():
            bundles.load_model(tmp_path / "bundle")
        (tmp_path / "bundle" / manifest.NAME).write_bytes(data.draw(changed((tmp_path / "bundle" / manifest.NAME).read_bytes())))
        with ours():
            bundles.load_model(tmp_path / "bundle")

    fuzz(prop)


@pytest.mark.case(28)
def test_checkpoints(fuzz: Fuzz, tmp_path: Path) -> None:
    tensors, notes = save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}), json.dumps({"step": 4, "rows": []}).encode()
    kept = Checkpoints(tmp_path, "abc")
    kept.at(4).mkdir(parents=True)

    @given(
        tensors=st.one_of(changed(tensors), HEADERS),
        notes=st.one_of(changed(notes), TREES.map(lambda tree: json.dumps(tree).encode())),
    )
    def prop(tensors: bytes, notes: bytes) -> None:
        sealed(kept.at(4), {TENSORS: tensors, NOTES: notes}, digest="abc", step=4)
        with ours():
            kept.read(4)

    fuzz(prop)
