"""A served model of each family: samples, densities, latents and interpolations, by array, table and file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from remint.cli import use
from remint.data import rows
from remint.errors import RemintError, SettingsError, UserError
from remint.models import density
from remint.models.contract import HasElbo, HasLatent, HasLogProb, standard_normal
from remint.records import Column, DataSpec
from remint.serving import blocks, files, inputs, outputs
from remint.serving.interpolation import slerp
from remint.serving.model import ServedModel
from tests.support.models_cases import CASES, LABELLED_PAIR, PAIR, Case, every_example, examples

CLASS = "1"


def served(case: Case, spec: DataSpec | None = None) -> ServedModel:
    """Return the model of a case in single precision, as it is loaded."""
    return ServedModel(case.build(spec).float().requires_grad_(False), spec or case.spec, ref="m/1")


def data_of(case: Case, count: int = 5) -> Any:
    x = examples(case.spec, count).numpy()
    return rows.to_table(case.spec, x) if case.spec.is_table else x


def of_class(case: Case) -> str | None:
    return CLASS if case.settings.conditional else None


@pytest.fixture(params=[name for name, case in CASES.items() if "latent" in case.settings.can])
def latent(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def equal(a: Any, b: Any) -> bool:
    """Return whether arrays or tables are equal; NaN equals NaN."""
    return a.equals(b) if hasattr(a, "equals") else np.array_equal(a, b)


def test_reconstruct_is_decode_of_encode(latent: Case) -> None:
    model, data, y = served(latent), data_of(latent), of_class(latent)
    z_NZ = model.encode(data, y)
    assert z_NZ.dtype == np.float32 and isinstance(model.model, HasLatent) and z_NZ.shape == (5, model.model.latent_size)
    assert equal(model.decode(z_NZ, y), model.reconstruct(data, y))


@pytest.mark.parametrize("name", CASES)
def test_values_do_not_depend_on_the_batch_or_the_order(name: str) -> None:
    case = CASES[name]
    model, count = ServedModel(case.build().requires_grad_(False), case.spec), blocks.BLOCK + 3
    data = examples(case.spec, count).numpy()
    order = np.random.default_rng(0).permutation(count)

    def whole(take: np.ndarray) -> list[np.ndarray]:
        source = rows.to_table(case.spec, data[take]) if case.spec.is_table else data[take]
        found = [model.log_prob(source).values] if isinstance(model.model, HasLogProb | HasElbo) else []
        return [*found, model.encode(source, of_class(case))] if isinstance(model.model, HasLatent) else found

    for all_N, other_N, one_N in zip(whole(np.arange(count)), whole(order), whole(order[:1]), strict=True):
        np.testing.assert_allclose(other_N, all_N[order], rtol=1e-10)
        np.testing.assert_allclose(one_N, all_N[order[:1]], rtol=1e-10)


def test_log_prob_of_every_example_sums_to_one() -> None:
    """The exact density of a model over all its nine examples: the classes and the dequantisation are summed out."""
    for name, spec in (("pixelcnn", PAIR), ("pixelcnn-conditional", LABELLED_PAIR)):
        case = CASES[name]
        model = served(case, spec)
        found = model.log_prob(every_example(spec).numpy())
        assert np.exp(found.values).sum() == pytest.approx(1.0, rel=1e-6) and found.bound == "the exact log density"
    flow = served(CASES["flow"], PAIR)
    rough, fine = (np.exp(flow.log_prob(every_example(PAIR).numpy(), draws=draws).values).sum() for draws in (1, 512))
    assert fine == pytest.approx(1.0, abs=0.05) and abs(rough - 1.0) > 2 * abs(fine - 1.0)


def test_a_bound_of_an_autoencoder_is_iwae() -> None:
    case = CASES["vae"]
    model, data = served(case), examples(case.spec, 4)
    assert isinstance(model.model, HasElbo)
    found = model.log_prob(data.numpy(), draws=3, seed=5)
    noise = blocks.content_noise(data, 3 * model.model.latent_noise, "density", 5).view(4, 3, -1).transpose(0, 1)
    expected = torch.logsumexp(model.model.elbo(data, noise), 0) - math.log(3)
    np.testing.assert_allclose(found.values, expected.numpy(), rtol=1e-6)
    assert found.bound == "a lower bound, IWAE-3" and np.asarray(found).shape == (4,)
    assert density.noise_shape(model.model) == (64, 1)


def test_a_bound_takes_a_whole_number_of_draws() -> None:
    case = CASES["vae"]
    for wrong in (0, -1, 2.5, "3", 10**9):
        with pytest.raises(SettingsError, match=r"draws .*: expected a whole number from 1 to 10,000"):
            served(case).log_prob(data_of(case), draws=wrong)


def test_noise_is_standard_normal_and_a_function_of_the_content() -> None:
    x_BX = torch.arange(4_000).view(1000, 4)
    noise = blocks.content_noise(x_BX, 50, "a", 1)
    assert noise.dtype == torch.float32 and torch.equal(noise[7:9], blocks.content_noise(x_BX[7:9], 50, "a", 1))
    assert not torch.equal(noise, blocks.content_noise(x_BX, 50, "a", 2))
    from scipy import stats

    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert float(np.corrcoef(noise.T.numpy())[np.triu_indices(50, 1)].__abs__().max()) < 0.2
    assert len(np.unique(noise.numpy())) > 0.99 * noise.numel()


def test_temperature_shrinks_the_latents_and_nothing_else(latent: Case) -> None:
    model, y = served(latent), of_class(latent)
    assert equal(model.sample(3, 1, y), model.sample(3, 1, y, temperature=1.0))
    if latent.family == "flow":
        middle = model.decode(np.zeros((1, latent.spec.dims)), y)
        assert equal(model.sample(1, 7, y, temperature=0.0), middle)
    with pytest.raises(SettingsError, match="temperature -1"):
        model.sample(1, temperature=-1.0)


def test_an_interpolation_begins_and_ends_at_its_examples(latent: Case) -> None:
    model, y = served(latent), of_class(latent)
    data = data_of(latent, 2)
    a, b = (data.slice(0, 1), data.slice(1, 1)) if latent.spec.is_table else (data[:1], data[1:])
    strip = model.interpolate(a, b, steps=5, of_class=y)
    ends = model.reconstruct(data, y)
    assert len(strip) == 5
    for place, end in ((0, 0), (4, 1)):
        if latent.spec.is_table:
            pd.testing.assert_series_equal(strip.iloc[place], ends.iloc[end], check_names=False, rtol=1e-5)
        else:
            assert np.abs(strip[place].astype(int) - ends[end]).max() <= 1
    with pytest.raises(SettingsError, match="the first input has 2 examples"):
        model.interpolate(data, b, of_class=y)


def test_an_interpolation_of_labelled_rows_keeps_their_class() -> None:
    label = {
        "classes": 3,
        "class_names": ("low", "mid", "high"),
        "label": Column(name="risk", categories=("low", "mid", "high")),
        "label_at": 1,
    }
    spec = CASES["flow-table"].spec.model_copy(update=label)
    model, x_NX = served(CASES["flow-table"], spec), examples(spec, 2).numpy()
    same, other = (rows.to_table(spec, x_NX, np.array(y)).to_pandas() for y in ([1, 1], [2, 0]))
    strip = model.interpolate(same[:1], same[1:], steps=4)
    assert list(strip.columns) == list(same.columns) and strip["risk"].tolist() == ["mid"] * 4
    pd.testing.assert_frame_equal(strip, model.interpolate(same[:1], same[1:], steps=4, of_class="mid"))
    with pytest.raises(SettingsError, match="the first example has the class high, the second low: name one class for all"):
        model.interpolate(other[:1], other[1:])
    assert model.interpolate(other[:1], other[1:], of_class="low")["risk"].tolist() == ["low"] * 12


def test_slerp_turns_evenly_and_changes_length_evenly() -> None:
    a, b = np.array([2.0, 0.0]), np.array([0.0, 4.0])
    path = slerp(a, b, np.linspace(0, 1, 4))
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), [2, 8 / 3, 10 / 3, 4], rtol=1e-6)
    np.testing.assert_allclose(np.degrees(np.arctan2(path[:, 1], path[:, 0])), [0, 30, 60, 90], atol=1e-4)
    for same in (a, -a, np.zeros(2)):
        np.testing.assert_allclose(slerp(a, same, np.array([0.0, 0.5, 1.0])), [a, (a + same) / 2, same], atol=1e-6)


def test_a_conditional_model_needs_classes_and_others_take_none() -> None:
    conditional, plain = CASES["vae-residual"], CASES["vae"]
    with pytest.raises(SettingsError, match="m/1 is conditional, and the input has no classes: add a folder for each class"):
        served(conditional).encode(data_of(conditional))
    with pytest.raises(SettingsError, match="remove the class"):
        served(plain).encode(data_of(plain), "1")
    with pytest.raises(SettingsError, match="class '7'"):
        served(conditional).encode(data_of(conditional), "7")
    with pytest.raises(SettingsError, match="is conditional: name the class"):
        served(conditional).decode(np.zeros((1, 3)))
    assert len(served(conditional).decode(np.zeros((2, 3)), [0, "2"])) == 2


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "latent" not in case.settings.can])
def test_a_family_without_latents_names_those_that_have_them(name: str) -> None:
    model = served(CASES[name])
    with pytest.raises(UserError, match=r"m/1: its family has no latents: use a vae, vaegan"):
        model.encode(data_of(CASES[name]), of_class(CASES[name]))


def test_a_family_without_density_names_those_that_have_one() -> None:
    with pytest.raises(UserError, match="its family has no density: use a vae, vaegan, flow or flow_matching"):
        served(CASES["gan"]).log_prob(data_of(CASES["gan"]))


IMAGE_OUTPUTS = (".png", ".npy", ".npz", "")


@pytest.mark.parametrize("suffix", IMAGE_OUTPUTS)
def test_samples_of_images_are_written_as_the_array_has_them(tmp_path: Path, suffix: str) -> None:
    case = CASES["gan-residual"]
    spec = case.spec.model_copy(update={"shape": (1, 3, 4)})
    model, path = served(case, spec), tmp_path / f"out{suffix}"
    expected = model.sample(9, seed=3, of_class="1")
    written = files.sample(model, 9, path, seed=3, of_class="1")
    assert written.to_json()["class"] == "1" and written.count == 9
    if suffix != ".png":
        with inputs.read(spec, path) as found:
            assert np.array_equal(np.concatenate([*found.x_NX]), expected)
            assert (found.y_N is None) == (suffix != ".npz") and (found.y_N is None or (found.y_N == 1).all())
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_samples_of_a_table_are_written_in_parts(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["vae-whole"]
    spec = case.spec.model_copy(update={"label": Column(name="kind", categories=("0", "1", "2")), "class_names": ("0", "1", "2")})
    model = served(case, spec)
    written = [files.sample(model, 150, tmp_path / f"whole{suffix}", seed=2)]
    monkeypatch.setattr(files, "PART", 64)
    written.append(files.sample(model, 150, tmp_path / f"parts{suffix}", seed=2))
    one, other = ((tmp_path / name).read_bytes() for name in (f"whole{suffix}", f"parts{suffix}"))
    assert written[0].count == 150 and written[0].without is None
    if suffix == ".csv":
        assert one == other and one.count(b"\n") == 151
    with inputs.read(spec, tmp_path / f"parts{suffix}") as found:
        assert len(found) == 150 and found.y_N is not None


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_latents_are_written_and_decoded_again(tmp_path: Path, suffix: str) -> None:
    case = CASES["flow"]
    model = served(case)
    x = examples(case.spec, 70).numpy()
    np.save(tmp_path / "x.npy", x)
    written = files.encode(model, str(tmp_path / "x.npy"), tmp_path / f"z{suffix}")
    assert written.count == 70
    files.decode(model, tmp_path / f"z{suffix}", tmp_path / "again.npy")
    assert np.array_equal(np.load(tmp_path / "again.npy"), x)
    if suffix in (".csv", ".parquet"):
        read = pd.read_csv if suffix == ".csv" else pd.read_parquet
        np.testing.assert_allclose(read(tmp_path / f"z{suffix}").to_numpy(), model.encode(x), rtol=1e-6)


def test_a_failed_command_writes_nothing(tmp_path: Path) -> None:
    case = CASES["flow"]
    model = served(case)
    np.save(tmp_path / "x.npy", examples(case.spec, 3).numpy())
    np.save(tmp_path / "z.npy", np.zeros((2, 5), np.float32))
    before = sorted(tmp_path.iterdir())
    missing = str(tmp_path / "none.npy")
    for act in (
        lambda: files.encode(model, missing, tmp_path / "z2.npy"),
        lambda: files.encode(model, str(tmp_path / "x.npy"), tmp_path / "z2.txt"),
        lambda: files.reconstruct(model, str(tmp_path / "x.npy"), tmp_path / "none" / "x.npy"),
        lambda: files.decode(model, tmp_path / "z.npy", tmp_path / "x2.npy"),
        lambda: files.decode(model, tmp_path / "params.yaml", tmp_path / "x2.npy"),
        lambda: files.sample(model, 4, tmp_path / "x2.csv"),
        lambda: files.sample(model, 4, tmp_path / "x2.png"),  # two channels
        lambda: files.sample(model, 4, tmp_path),
        lambda: files.sample(model, 10_000, tmp_path / "x2.npy", of_class="1"),
        lambda: files.interpolate(model, missing, missing, tmp_path / "x2.npy"),
    ):
        with pytest.raises(RemintError) as caught:
            act()
        assert caught.value.exit_status == 2 and "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_without_latents_is_refused_in_one_line(tmp_path: Path) -> None:
    model, z = served(CASES["flow"]), np.zeros((2, 24), np.float32)
    np.savez(tmp_path / "whole.npz", z=z)
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(whole[:200])
    (tmp_path / "flipped.npz").write_bytes(whole[:200] + b"!" + whole[201:])
    (tmp_path / "text.npz").write_bytes(b"z0,z1")
    for name, wrong in (
        ("scalar", z[0, 0]),
        ("flat", z[0]),
        ("complex", z + 1j),
        ("days", z.astype("M8[D]")),
        ("text", z.astype(str)),
    ):
        np.save(tmp_path / f"{name}.npy", wrong)
    for path in sorted({*tmp_path.iterdir()} - {tmp_path / "whole.npz"}):
        with pytest.raises(SettingsError, match="holds no latents"):
            files.decode(model, path, tmp_path / "x.npy")
    assert files.decode(model, tmp_path / "whole.npz", tmp_path / "x.npy").count == 2


def test_an_interrupted_write_leaves_the_former_file(tmp_path: Path) -> None:
    case, path = CASES["flow"], tmp_path / "x.npy"
    path.write_bytes(b"former")

    def parts() -> Any:
        yield examples(case.spec, 2).numpy(), None
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        outputs.write_examples(path, case.spec, parts(), 4)
    assert path.read_bytes() == b"former" and len([*tmp_path.iterdir()]) == 1


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_a_link(tmp_path: Path, exists: bool) -> None:
    case, link, target = CASES["flow"], tmp_path / "last.npy", tmp_path / "runs" / "1"
    target.parent.mkdir()
    if exists:
        target.write_bytes(b"former")
    link.symlink_to(target)
    files.sample(served(case), 3, link)
    assert link.is_symlink() and len(np.load(target)) == 3 and [*target.parent.iterdir()] == [target]


def test_a_written_record_has_the_keys_of_json() -> None:
    written = files.Written(model="m/1", weights_sha256="0", path="x", count=1, seed=0)
    assert {"model", "count", "seed", "class", "path", "without", "weights_sha256"} <= json.loads(
        json.dumps(written.to_json())
    ).keys()


def test_a_report_prints_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"set_aside": {"row 1": "has '[/red]'"}, "ignored": ("[/b]",)}
    written = files.Written(model="m/1", weights_sha256="0", path="[b]x.npy", count=1, without="[i]", **given)  # type: ignore[arg-type]
    use._report(written, "1 sample", as_json=False)
    said = capsys.readouterr().out
    assert all(name in said for name in ("[b]x.npy", "'[i]'", "[/b]", "'[/red]'"))


def test_the_first_sample_of_the_contract_is_kept() -> None:
    """Samples drawn for a seed stay what they were: noise of (seed, index), without temperature."""
    case = CASES["vae"]
    model = served(case)
    noise = torch.stack([standard_normal((model.model.sample_noise,), 4, index) for index in range(2)])  # type: ignore[arg-type]
    assert np.array_equal(model.sample(2, seed=4), model.model.sample(noise).numpy())  # type: ignore[operator]


def test_each_example_has_one_class_by_name_or_number() -> None:
    case = CASES["vae-residual"]
    data = data_of(case, 3)
    named = served(case, case.spec.model_copy(update={"class_names": ("a", "b", "c")}))
    expected = named.encode(data, ["c", "a", "b"])
    for same in ([2, 0, 1], np.array([2, 0, 1]), np.array(["c", "a", "b"]), pd.Series(["c", "a", "b"])):
        assert np.array_equal(named.encode(data, same), expected)
    assert np.array_equal(named.encode(data, np.int64(1)), named.encode(data, "b"))
    for wrong in (["a"], ["a"] * 4, []):
        with pytest.raises(SettingsError, match=f"{len(wrong)} classes for 3 examples"):
            named.encode(data, wrong)
    with pytest.raises(SettingsError, match="unknown class 'True'"):
        named.encode(data, True)


@pytest.mark.parametrize("names", [("1", "2", "3"), ("1.0", "2.0", "3.0"), ("-1", "5", "7")])
def test_a_number_is_a_name_where_classes_are_numbers(names: tuple[str, ...]) -> None:
    case = CASES["vae-residual"]
    model = served(case, case.spec.model_copy(update={"class_names": names}))
    assert model.class_number(names[1]) == 1
    with pytest.raises(SettingsError, match="unknown class '0'"):
        model.class_number(0)
    if "." not in names[0]:
        assert [model.class_number(int(name)) for name in names] == [0, 1, 2]


@pytest.mark.parametrize("name", ["vae", "vae-table", "gan"])
def test_a_seed_of_numpy_is_the_same_seed(name: str) -> None:
    case = CASES[name]
    model, data = served(case), data_of(case, 3)
    assert equal(model.sample(3, np.int64(4)), model.sample(3, 4))
    with pytest.raises(SettingsError, match=r"seed 1\.5: expected a whole number"):
        model.sample(1, 1.5)  # type: ignore[arg-type]
    if not isinstance(model.model, HasElbo):
        return
    assert np.array_equal(model.log_prob(data, seed=np.int64(4)), model.log_prob(data, seed=4))
    if case.spec.is_table:
        assert model.impute(data, draws=2, seed=np.int64(4)).filled.equals(model.impute(data, draws=2, seed=4).filled)
    with pytest.raises(SettingsError, match="seed None: expected a whole number"):
        model.log_prob(data, seed=None)


def test_what_is_no_latent_is_refused_in_one_line() -> None:
    model = served(CASES["flow"])
    z = np.zeros((2, 24))
    for wrong in (z[:0], z[0], z[0, 0], z[:, 1:], z + 1j, z * np.nan, z + 1e300, z.astype(str), [[1], [1, 2]], None):
        with pytest.raises(SettingsError, match=r"expected finite numbers \(N, 24\)"):
            model.decode(wrong)
    assert len(model.decode(z.tolist())) == 2
