"""The shipped configs: they load, and the official recipes have the official sizes."""

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.config.loading import load_config
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.imagewam import sample_draws
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B
from imagewam_jax.preprocess.inputs import PolicyAssets, image_spec, make_sample
from imagewam_jax.preprocess.normalization import Normalizer
from imagewam_jax.text.encoders import TEXT_ENCODERS, make_prompt
from tests.training.tiny import ROOT

BACKBONE = {
    "4b": 3_875_544_576,
    "9b": 9_078_581_248,
    "omnigen2": 3_967_161_400,
    "ovis_u1": 1_127_227_408,
}
EXPERT = {
    ("4b", 7): 642_012_416,
    ("4b", 14): 642_026_752,
    ("9b", 7): 952_392_704,
    ("9b", 14): 952_407_040,
    ("omnigen2", 7): 759_719_431,
    ("omnigen2", 14): 759_719_431 + 7 * 2049,
    ("ovis_u1", 7): 1_041_423_367,
    ("ovis_u1", 14): 1_041_423_367 + 7 * 3073,
}
TEXT = {
    "4b": ("qwen3", 512, QWEN3_4B.feature_dim),
    "9b": ("qwen3", 512, QWEN3_8B.feature_dim),
    "omnigen2": ("qwen2_5_vl", 128, 2048),
    "ovis_u1": ("ovis_u1", 512, 4096),
}
PROPRIO = {
    ("libero", "4b"): 69_120,
    ("robotwin", "4b"): 115_200,
    ("libero", "9b"): 110_592,
    ("libero", "omnigen2"): 9 * 2048,
    ("libero", "ovis_u1"): 9 * 4096,
}
# docs/spec/imagewam_flux2.md, 7.2 and 8.1, docs/spec/imagewam_omnigen2.md, 11, and
# docs/spec/imagewam_ovis_u1.md, 10.
RECIPES = {
    "libero": {
        "cameras": 2,
        "camera": (224, 224),
        "mosaic": (224, 448),
        "action_dim": 7,
        "state_dim": 8,
        "batch_size": {"4b": 80, "9b": 96, "omnigen2": 96, "ovis_u1": 128},
        "normalization": "min/max",
    },
    "robotwin": {
        "cameras": 3,
        "camera": (240, 320),
        "mosaic": (288, 256),
        "action_dim": 14,
        "state_dim": 14,
        "batch_size": {"4b": 384, "9b": 64, "omnigen2": 128, "ovis_u1": 32},
        "normalization": "z-score",
    },
}
CASES = [(name, size) for name in RECIPES for size in BACKBONE]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
OTHERS = ("omnigen2", "ovis_u1")
ALL = [*FILES, *(f"{name}:{model}" for name in RECIPES for model in OTHERS)]


def load(name: str) -> dict:
    stem, _, argument = name.partition(":")
    path = ROOT / "configs" / f"{stem}.py"
    return load_config(f"{path}:{argument}" if argument else str(path), []).to_dict()


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ALL)
def test_every_config_loads(name):
    config = load(name)
    policy = policy_config(config["model"])
    autoencoder = jax.eval_shape(lambda: new_autoencoder(config["autoencoder"]))
    assert autoencoder.channels == policy.backbone.in_channels
    assert config["text"]["encoder"] in TEXT_ENCODERS


def test_a_config_of_an_older_version_is_told_where_things_are_now(tmp_path):
    path = tmp_path / "old.py"
    gone = "policies.defaults"
    path.write_text(f"from imagewam_jax.{gone} import defaults\n")
    with pytest.raises(ConfigError, match=r"policies, which .* in imagewam_jax.config.defaults"):
        load_config(str(path), [])
    path.write_text("import not_there\n")
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        load_config(str(path), [])


def test_all_kinds_of_parts_are_in_use():
    configs = [load(name) for name in ALL]
    assert {config["autoencoder"]["name"] for config in configs} == set(AUTOENCODERS)
    assert {config["text"]["encoder"] for config in configs} == set(TEXT_ENCODERS)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_parameter_counts(name, size):
    params = abstract_params(policy_config(load(f"{name}:{size}")["model"]))
    assert set(params) == {"backbone", "expert", "proprio_in"}
    assert count(params["backbone"]) == BACKBONE[size]
    assert count(params["expert"]) == EXPERT[size, RECIPES[name]["action_dim"]]
    if (name, size) in PROPRIO:
        assert count(params["proprio_in"]) == PROPRIO[name, size]


@pytest.mark.parametrize(("name", "size"), CASES)
def test_facts_of_the_official_recipe(name, size):
    config, facts = load(f"{name}:{size}"), RECIPES[name]
    model, train, optimizer = config["model"], config["train"], config["optimizer"]
    assert len(config["data"]["cameras"]) == facts["cameras"]
    assert config["data"]["normalization"] == facts["normalization"]
    assert (model["expert"]["action_dim"], model["proprio_dim"]) == (
        facts["action_dim"],
        facts["state_dim"],
    )
    assert train["batch_size"] == facts["batch_size"][size]
    assert (model["target_loss_weight"], model["action_loss_weight"]) == (0.5, 1.0)
    assert {f["train_shift"] for f in (model["target_flow"], model["action_flow"])} == {5.0}
    assert (optimizer["learning_rate"], optimizer["weight_decay"]) == (1e-4, 0.01)
    assert (optimizer["b1"], optimizer["b2"], optimizer["clip_norm"]) == (0.9, 0.95, 1.0)
    assert (optimizer["warmup_fraction"], optimizer["final_fraction"]) == (0.05, 0.01)
    assert optimizer["ema_decay"] == 0.0 and config["seed"] == 42
    encoder, longest, text_dim = TEXT[size]
    assert config["text"]["encoder"] == encoder and max(config["text"]["buckets"]) == longest
    assert policy_config(model).backbone.text_dim == text_dim
    assert make_prompt(config["text"]["template"], "fold it") == (
        "A video recorded from a robot's point of view executing the following instruction: fold it"
    )


@pytest.mark.parametrize(("name", "size"), CASES)
def test_shapes_of_training_and_acting(name, size):
    """Traces the recipe's batch from camera images to losses and actions, without computing."""
    config, facts = load(f"{name}:{size}"), RECIPES[name]
    policy = policy_config(config["model"])
    batch_size, tokens = facts["batch_size"][size], config["text"]["buckets"][0]
    horizon, action_dim, state_dim = policy.horizon, facts["action_dim"], facts["state_dim"]
    (height, width), cameras = facts["mosaic"], (facts["cameras"], *facts["camera"])

    def compute(params, assets, batch):
        params = jax.tree.map(lambda p: p.astype(config["train"]["compute_dtype"]), params)
        model = policy_builder(policy)(params)
        sample = make_sample(assets, image_spec(config["data"]), batch, augment=True)
        draws = sample_draws(jax.random.key(0), sample)
        cache = model.prefill(sample.context)
        actions, _ = model.act(cache, draws.action_noise, model.action_schedule())
        return model.training_loss(sample, draws), actions, sample.target, cache

    def zeros(*shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype)

    def arguments():
        assets = PolicyAssets(
            autoencoder=new_autoencoder(config["autoencoder"]),
            text=zeros(40, tokens, policy.backbone.text_dim),
            text_length=zeros(40, dtype=jnp.int32),
            actions=Normalizer(zeros(1, action_dim), zeros(1, action_dim)),
            state=Normalizer(zeros(1, state_dim), zeros(1, state_dim)),
        )
        images = zeros(batch_size, cameras[0], 2, *cameras[1:], 3, dtype=jnp.uint8)
        batch = {
            "images": images,
            "dataset_id": zeros(batch_size, dtype=jnp.int32),
            "aug_seed": zeros(batch_size, dtype=jnp.uint32),
            "text_id": zeros(batch_size, dtype=jnp.int32),
            "proprio": zeros(batch_size, state_dim),
            "actions": zeros(batch_size, horizon, action_dim),
            "action_is_pad": zeros(batch_size, horizon, dtype=bool),
            "action_dim_mask": zeros(batch_size, action_dim, dtype=bool),
        }
        return assets, batch

    assets, batch = jax.eval_shape(arguments)
    (loss, parts), actions, target, cache = jax.eval_shape(
        compute, abstract_params(policy), assets, batch
    )
    cell = policy.backbone.in_channels
    assert target.shape == (batch_size, height // 16, width // 16, cell)
    assert loss.shape == () and loss.dtype == jnp.float32
    assert parts["action_loss_b"].shape == (batch_size,)
    assert actions.shape == (batch_size, horizon, action_dim)
    # A layer of Ovis-U1 with two attentions leaves the keys and values of both.
    joint = [getattr(group, "joint", group).k for group in cache.groups]
    context = height * width // 256 + tokens + 1
    layers = sum(k.shape[0] for k in joint)
    assert layers == {"4b": 25, "9b": 32, "omnigen2": 32, "ovis_u1": 18}[size]
    assert all(k.shape[1:3] == (batch_size, context) for k in joint)


# All fields of configs/libero.py:tiny that are not those of 4b: sizes, what follows from them, and
# the data that is made here with its simulator.
TINY = {
    "data.mixture",
    "data.dataset",
    "data.image_size",
    "autoencoder.width",
    "autoencoder.width_multipliers",
    "autoencoder.blocks",
    "autoencoder.latent_channels",
    "model.backbone.in_channels",
    "model.backbone.text_dim",
    "model.backbone.dim",
    "model.backbone.heads",
    "model.backbone.double_layers",
    "model.backbone.single_layers",
    "model.backbone.rope_axes",
    "model.expert.dim",
    "optimizer.learning_rate",
    "train.batch_size",
    "train.steps",
    "train.checkpoint_every",
    "evaluation.simulator",
    "evaluation.options",
    "evaluation.options.suites",
    "evaluation.options.tasks",
    "evaluation.options.starts",
}


def test_the_small_libero_recipe_differs_in_sizes_only():
    full, tiny = (dict(fields(load(f"libero:{size}"))) for size in ("4b", "tiny"))
    assert {name for name in full | tiny if full.get(name) != tiny.get(name)} == TINY


def fields(section: dict, prefix: str = ""):
    """All fields of a config: dotted name, value."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
