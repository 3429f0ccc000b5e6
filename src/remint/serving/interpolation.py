"""Examples on the way from one example to another, along the shell where latents lie.

Shapes: N steps, X the axes of one example, Z latent; 2 the two ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from remint.errors import SettingsError

if TYPE_CHECKING:
    from remint.serving.model import ServedModel

Array = np.ndarray[Any, Any]


def interpolate(served: ServedModel, a: Any, b: Any, steps: int, of_class: str | int | None = None) -> tuple[Array, Array | None]:
    """Return ``steps`` examples from a to b in the model's form, x_NX, and y_N, their class, if the model is conditional.

    Raises SettingsError if an input is not one example, if there are less than 2 steps, or if the class is not clear.
    """
    if steps < 2:
        raise SettingsError(f"interpolate: {steps} steps: give at least 2, the two ends")
    latents: list[Array] = []
    classes: list[Array] = []
    for place, data in (("first", a), ("second", b)):
        with served.examples(data) as examples:
            if len(examples) != 1:
                raise SettingsError(f"interpolate: the {place} input has {len(examples)} examples: give one")
            y_N = served.classes_of(examples, of_class)
            latents.extend(served.encoded(examples, y_N))
            classes.extend([] if y_N is None else [y_N])
    return morph(served, np.concatenate(latents), np.concatenate(classes) if classes else None, steps)


def morph(served: ServedModel, z_2Z: Array, y_2: Array | None, steps: int) -> tuple[Array, Array | None]:
    """Return the examples on the way between two latents, and their class. Raises SettingsError if the ends' classes differ."""
    if y_2 is not None and y_2[0] != y_2[1]:
        first, second = (served.spec.class_names[y] if served.spec.class_names else y for y in y_2)
        raise SettingsError(f"interpolate: the first example has the class {first}, the second {second}: name one class for all")
    y_N = None if y_2 is None else np.repeat(y_2[:1], steps)
    z_NZ = slerp(z_2Z[0], z_2Z[1], np.linspace(0.0, 1.0, steps))
    return np.concatenate([*served.decoded(z_NZ, y_N)]), y_N


def slerp(a_Z: Array, b_Z: Array, share_N: Array) -> Array:
    """Return points from a to b, float32 (N, Z): the direction turns at constant speed, and the length changes evenly.

    Samples of a normal distribution lie near a sphere; a straight line would leave it (White, Sampling generative networks,
    2016). Where both directions are equal or opposite, the line is straight.
    """
    long_a, long_b = np.linalg.norm(a_Z), np.linalg.norm(b_Z)
    cosine = float(a_Z @ b_Z / (long_a * long_b)) if long_a and long_b else 1.0
    share_N1 = np.asarray(share_N, np.float64)[:, None]
    straight_NZ = (1 - share_N1) * a_Z + share_N1 * b_Z
    if abs(cosine) > 1 - 1e-7:
        return straight_NZ.astype(np.float32)
    angle = np.arccos(cosine)
    turned_NZ = (np.sin((1 - share_N1) * angle) * a_Z / long_a + np.sin(share_N1 * angle) * b_Z / long_b) / np.sin(angle)
    point_NZ: Array = (turned_NZ * ((1 - share_N1) * long_a + share_N1 * long_b)).astype(np.float32)
    return point_NZ
