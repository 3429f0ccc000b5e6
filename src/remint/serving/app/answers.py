"""What a server asks of a model: requests in the model's form, which are answered together in shared blocks.

Requests that wait at the same time and differ only in their examples share blocks. A value does not depend on its neighbours
(serving/blocks.py), so an answer equals that of the request alone.

Shapes: N examples of one request, X the axes of one example, Z latent.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from remint.data.blocks import Blocks
from remint.runtime import scratch
from remint.serving import interpolation
from remint.serving.inputs import Examples
from remint.serving.model import ServedModel

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Request:
    """One request. ``options`` decide the method's call; requests with equal ones are answered together."""

    method: str
    x_NX: Array | None = None  # examples in the model's form, or latents
    y_N: Array | None = None
    missing_NX: Array | None = None  # of images to impute, bool; rows have NaN
    places: Sequence[tuple[int, int]] = ()  # of samples: (seed, index)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[Any, ...]:
        return self.method, self.y_N is None, tuple(sorted(self.options.items()))

    def __len__(self) -> int:
        return len(self.places) if self.x_NX is None else len(self.x_NX)


@dataclass(frozen=True)
class Answer:
    """Values of one request, and the classes of its samples."""

    values: Any
    y_N: Array | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


def answer(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    """Answer requests of one kind together."""
    return ANSWERS[requests[0].method](served, requests)


def _sample(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    places, classes = [place for request in requests for place in request.places], _classes(requests)
    x_NX, y_N = served.draw(places, None if classes is None else classes.tolist(), **requests[0].options)
    return [
        Answer(served.in_source_form(x_MX, y_M), y_M)
        for x_MX, y_M in zip(_split(x_NX, requests), _split(y_N, requests), strict=True)
    ]


def _log_prob(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    from remint.serving import density

    examples = _together(requests)
    found = density.of_examples(served, examples, examples.y_N, **requests[0].options)
    return [Answer(values, about={"bound": found.bound}) for values in _split(found.values, requests)]


def _encode(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    examples = _together(requests)
    return [Answer(z_MZ) for z_MZ in _split(np.concatenate([*served.encoded(examples, examples.y_N)]), requests)]


def _decode(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    z_NZ = np.concatenate([request.x_NX for request in requests if request.x_NX is not None])
    return _in_source_form(served, np.concatenate([*served.decoded(z_NZ, _classes(requests))]), requests)


def _reconstruct(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    examples = _together(requests)
    return _in_source_form(served, np.concatenate([*served.reconstructed(examples, examples.y_N)]), requests)


def _interpolate(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    found = []
    for request in requests:
        z_2Z = np.concatenate([*served.encoded(_together([request]), request.y_N)])
        x_NX, y_N = interpolation.morph(served, z_2Z, request.y_N, request.options["steps"])
        found.append(Answer(served.in_source_form(x_NX, y_N), y_N))
    return found


def _score(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    from remint.serving.anomalies import scoring

    answers = []
    for request in requests:
        options = dict(request.options)
        with scratch.folder() as folder:
            picture = folder / "explained.png" if options.pop("explain", False) else None
            found = scoring.of_examples(served, _together([request]), explain=picture, **options)
            explained = {"explained": base64.b64encode(picture.read_bytes()).decode()} if picture else {}
        about = {"notes": found.summary.notes(), "by": found.summary.by, **explained}
        answers.append(Answer(found.to_pandas().drop(columns="name"), about=about))
    return answers


def _impute(served: ServedModel, requests: Sequence[Request]) -> list[Answer]:
    from remint.serving.imputation import imputing

    found = []
    for request in requests:
        parts = list(imputing.completions(served, _together([request]), request.missing_NX, **request.options))
        about = {"cells": list(imputing.cells(served.spec, None, parts))} if served.spec.is_table else {}
        filled_NX = np.concatenate([part.x_MX for part in parts])
        found.append(Answer(served.in_source_form(filled_NX, request.y_N), request.y_N, about))
    return found


def _in_source_form(served: ServedModel, x_NX: Array, requests: Sequence[Request]) -> list[Answer]:
    parts = zip(_split(x_NX, requests), requests, strict=True)
    return [Answer(served.in_source_form(x_MX, request.y_N), request.y_N) for x_MX, request in parts]


def _together(requests: Sequence[Request]) -> Examples:
    x_NX = np.concatenate([request.x_NX for request in requests if request.x_NX is not None])
    return Examples(Blocks.of(x_NX), _classes(requests))


def _classes(requests: Sequence[Request]) -> Array | None:
    given = [request.y_N for request in requests if request.y_N is not None]
    return np.concatenate(given) if given else None


def _split(values: Array | None, requests: Sequence[Request]) -> list[Any]:
    if values is None:
        return [None] * len(requests)
    return np.split(values, np.cumsum([len(request) for request in requests])[:-1])


ANSWERS: dict[str, Callable[[ServedModel, Sequence[Request]], list[Answer]]] = {
    "sample": _sample,
    "log_prob": _log_prob,
    "encode": _encode,
    "decode": _decode,
    "reconstruct": _reconstruct,
    "interpolate": _interpolate,
    "score": _score,
    "impute": _impute,
}
