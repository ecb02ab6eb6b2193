"""The autoencoders. FLUX.2's is compared with recorded runs in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.autoencoders import AUTOENCODERS, latent_grid, to_uint8
from imagewam_jax.models.autoencoders.flux2 import Flux2Autoencoder, Flux2AutoencoderConfig
from imagewam_jax.models.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from imagewam_jax.models.autoencoders.patch import (
    SCALE_FLOOR,
    PatchAutoencoder,
    PatchAutoencoderConfig,
    fit,
)
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.weights.layouts.autoencoder_kl import autoencoder_kl_rules
from imagewam_jax.weights.layouts.flux2_autoencoder import COUNTER, flux2_autoencoder_rules
from tests.goldens import golden
from tests.models.official import with_parameters
from tests.weights.foreign import to_tree


def test_flux2_full_size():
    config = Flux2AutoencoderConfig()
    model = jax.eval_shape(lambda: Flux2Autoencoder(config, rngs=nnx.Rngs(0)))
    assert (model.factor, model.channels) == (16, 128)

    def count(module):
        return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))

    assert count(model.encoder) == 34_425_856
    assert count(model.decoder) == 49_620_259
    names = [name for r in flux2_autoencoder_rules(config) for name in r.names()]
    assert len({*names, COUNTER}) == 251

    image = jax.ShapeDtypeStruct((2, 224, 448, 3), jnp.float32)
    latent = jax.eval_shape(lambda m, x: m.encode(x), model, image)
    assert latent.shape == (2, 14, 28, 128)
    assert jax.eval_shape(lambda m, x: m.decode(x), model, latent).shape == image.shape
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable):
            assert len(variable.get_metadata("axes")) == variable.ndim, path


def test_flux2_computes_in_the_dtype_of_its_parameters():
    model = jax.eval_shape(lambda: Flux2Autoencoder(Flux2AutoencoderConfig(), rngs=nnx.Rngs(0)))
    model = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.bfloat16), model)
    image = jax.ShapeDtypeStruct((1, 32, 48, 3), jnp.float32)
    latent = jax.eval_shape(lambda m, x: m.encode(x), model, image)
    assert latent.dtype == jnp.bfloat16
    image = jax.ShapeDtypeStruct(latent.shape, jnp.float32)
    assert jax.eval_shape(lambda m, x: m.decode(x), model, image).dtype == jnp.bfloat16


def test_kl_full_size():
    """The autoencoders of FLUX.1 and OmniGen2, and of SDXL and Ovis-U1."""
    for config, numbers, names in (
        (AutoencoderKLConfig(), 83_819_683, 244),
        (AutoencoderKLConfig(latent_channels=4, has_quantizers=True), 83_653_863, 248),
    ):
        model = jax.eval_shape(lambda c=config: AutoencoderKL(c, rngs=nnx.Rngs(0)))
        assert sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))) == numbers
        assert len({n for r in autoencoder_kl_rules(config) for n in r.names()}) == names
        image = jax.ShapeDtypeStruct((2, 224, 448, 3), jnp.bfloat16)
        latent = jax.eval_shape(lambda m, x: m.encode(x), model, image)
        assert (
            latent.shape == (2, 14, 28, model.channels) == (2, 14, 28, 4 * config.latent_channels)
        )
        assert jax.eval_shape(lambda m, x: m.decode(x), model, latent).shape == image.shape


def test_flux2_conversion_is_strict():
    folder = golden("flux2_autoencoder")
    weights = load_file(folder / "weights.safetensors")
    del weights[COUNTER]
    config = Flux2AutoencoderConfig(32, (1, 1, 2, 2), 1, 4)
    rules = flux2_autoencoder_rules(config)
    like = module_tree(jax.eval_shape(lambda: Flux2Autoencoder(config, rngs=nnx.Rngs(0))))
    with pytest.raises(ConversionError, match=r"1 tensors missing \(decoder.conv_in.bias\)"):
        without = {k: v for k, v in weights.items() if k != "decoder.conv_in.bias"}
        to_tree(rules, without, like, "file")
    zeros = np.zeros(7, np.float32)
    with pytest.raises(ConversionError, match=r"1 unexpected \(decoder.extra\)"):
        to_tree(rules, weights | {"decoder.extra": zeros}, like, "file")
    with pytest.raises(ConversionError, match=r"file: bn.running_mean has shape \(7,\), expected"):
        to_tree(rules, weights | {"bn.running_mean": zeros}, like, "file")


@pytest.mark.parametrize("shape", [(1, 24, 32, 3), (1, 32, 24, 3)])
@pytest.mark.parametrize("name", sorted(AUTOENCODERS))
def test_a_side_that_is_no_multiple_of_the_factor(name, shape):
    small = {
        "flux2": Flux2AutoencoderConfig(32, (1, 1, 1, 1), 1, 4),
        "kl": AutoencoderKLConfig((4, 4, 4, 4), 1, 4, groups=2),
        "patch": PatchAutoencoderConfig(factor=16),
    }[name]
    config_type, module = AUTOENCODERS[name]
    assert isinstance(small, config_type)
    model = jax.eval_shape(lambda: module(small, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="24 is not a multiple of 16"):
        jax.eval_shape(lambda m: m.encode(jnp.zeros(shape)), model)


def test_latent_grid():
    assert latent_grid((2, 224, 448, 3), 16) == (14, 28)


def test_to_uint8_clamps_and_rounds():
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(levels / 127.5 - 1)), levels)
    np.testing.assert_array_equal(to_uint8(jnp.array([-1.5, 1.5, 1.4 / 127.5 - 1])), [0, 255, 1])


def smooth_frames(n=24, side=32, seed=0):
    """Frames with a spectrum that falls off, as those of a camera: sums of random walks."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, side, side, 3)).cumsum(1).cumsum(2)
    x = (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    return np.clip(128 + 50 * x, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def frames():
    return smooth_frames()


def unit_range(frames):
    return frames.astype(np.float32) / 127.5 - 1


@pytest.mark.parametrize("factor", [8, 16])
def test_patches_are_invertible_with_all_channels(frames, factor):
    model = fit(frames, factor, factor * factor * 3)
    image = unit_range(frames)
    latent = model.encode(image)
    assert latent.shape == (24, 32 // factor, 32 // factor, factor * factor * 3)
    np.testing.assert_allclose(model.decode(latent), image, atol=2e-5, rtol=0)
    np.testing.assert_array_equal(to_uint8(model.decode(latent)), frames)


def test_patches_keep_what_they_encode(frames):
    """Decoding inverts encoding on the kept channels, for any latent."""
    model = fit(frames, 8, 20)
    latent = np.random.default_rng(1).normal(size=(3, 4, 4, 20)).astype(np.float32)
    np.testing.assert_allclose(model.encode(model.decode(latent)), latent, atol=1e-4, rtol=0)
    basis = np.asarray(model.basis[...])
    np.testing.assert_allclose(basis.T @ basis, np.eye(20), atol=1e-6)


def test_patch_latents_are_standardized(frames):
    model = fit(frames, 8, 60)
    latent = np.asarray(model.encode(unit_range(frames))).reshape(-1, 60)
    deviation = latent.std(0)
    at_floor = np.asarray(model.scale[...]) == np.float32(SCALE_FLOOR)
    np.testing.assert_allclose(latent.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(deviation[~at_floor], 1, atol=1e-3)
    assert (deviation[at_floor] < 1).all()
    np.testing.assert_allclose(np.cov(latent.T)[0, 1:], 0, atol=1e-3)  # uncorrelated


def test_channels_below_a_gray_level_stay_small():
    """Gradients of rows and rounding: most directions hold nothing but the rounding."""
    ramp = np.linspace(20, 220, 32)[:, None, None] + np.zeros((32, 32, 3))
    frames = np.stack([ramp * s for s in (0.3, 0.6, 1.0)]).astype(np.uint8)
    model = fit(frames, 8, 192)
    scale = np.asarray(model.scale[...])
    assert (scale == np.float32(SCALE_FLOOR)).sum() > 150
    assert np.isfinite(model.encode(unit_range(frames))).all()


def test_patches_keep_the_principal_components(frames):
    """The error of eight channels is the share of the other singular values."""
    model, image = fit(frames, 8, 8), unit_range(frames)
    error = np.square(model.decode(model.encode(image)) - image).sum()
    patches = unit_range(frames).reshape(24, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    singular = np.linalg.svd(patches.reshape(-1, 192) - patches.reshape(-1, 192).mean(0))[1]
    assert error == pytest.approx((singular[8:] ** 2).sum(), rel=1e-5)


def test_fit_is_deterministic_and_ignores_the_order_of_frames(frames):
    first, second = fit(frames, 8, 30), fit(frames[::-1], 8, 30)
    for name in ("mean", "basis", "scale"):
        a, b = getattr(first, name)[...], getattr(second, name)[...]
        np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_array_equal(a, getattr(fit(frames, 8, 30), name)[...])
    # Eigenvectors have no sign of their own: of each, the largest entry is made positive.
    basis = np.asarray(first.basis[...])
    assert (basis.max(0) == np.abs(basis).max(0)).all()


def test_fit_refuses_what_it_cannot_do(frames):
    with pytest.raises(ValueError, match="image height 32 is not a multiple of 12"):
        fit(frames, 12, 8)
    with pytest.raises(ValueError, match="no frames"):
        fit(frames[:0], 8, 8)
    with pytest.raises(ValueError, match="2 frames have nothing but equal patches"):
        fit(np.full((2, 16, 16, 3), 7, np.uint8), 8, 8)
    with pytest.raises(ValueError, match="channels 193 must be between 1 and the 192 numbers"):
        fit(frames, 8, 193)


def test_a_new_patch_autoencoder_is_a_rotation():
    model = PatchAutoencoder(PatchAutoencoderConfig(4, 48), rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)).astype(np.float32)
    latent = model.encode(image)
    assert latent.shape == (2, 2, 3, 48)
    np.testing.assert_allclose(np.linalg.norm(latent), np.linalg.norm(image), rtol=1e-5)
    np.testing.assert_allclose(model.decode(latent), image, atol=1e-5)


def test_patch_autoencoder_survives_as_a_dictionary(frames):
    """Restoring needs nothing but the config and the arrays."""
    model = fit(frames, 8, 16)
    tree = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    restored = with_parameters(
        lambda: PatchAutoencoder(model.config, rngs=nnx.Rngs(1)), lambda like: tree
    )
    image = unit_range(frames[:2])
    np.testing.assert_array_equal(restored.encode(image), model.encode(image))
