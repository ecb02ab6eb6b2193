"""Every field of a config, with its meaning, and the official recipes.

Config files start from one of these functions and change fields. The defaults of the optimizer and
the flow are those of the official recipes (docs/spec/imagewam_flux2.md, 6 and 8.1).
"""

from functools import partial

from ml_collections import ConfigDict

from imagewam_jax.config.schema import choose, named_section
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.autoencoders.kl import FLUX1, SDXL
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B
from imagewam_jax.models.backbones.omnigen2 import OMNIGEN2
from imagewam_jax.models.backbones.ovis_u1 import OVIS_U1

KLEIN = {"4b": KLEIN_4B, "9b": KLEIN_9B}
PROMPT = "A video recorded from a robot's point of view executing the following instruction: {}"

# Layers are gathered whole, not in pieces between the products that read them: pieces take many
# times as long to compile. So that chips need not wait, a layer is gathered while they compute.
TPU_OPTIONS = (
    "tpu:xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000",
    "tpu:xla_enable_async_all_gather=true",
    "tpu:xla_tpu_enable_async_collective_fusion=true",
    "tpu:xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "tpu:xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "tpu:xla_tpu_overlap_compute_collective_tc=true",
)


def defaults() -> ConfigDict:
    """A config for one RLDS dataset and a FLUX.2-shaped policy."""
    return ConfigDict(
        {
            "seed": 0,  # for the order of samples, initial weights and noise
            "data": {
                # Of a dataset, or of its version; of a mixture, of all. Also at gs:// or s3://.
                "directory": "",
                "dataset": "",  # its name in data.registry, or in `rows`
                "mixture": "",  # instead: a name in registry.mixtures, or in `mixtures`
                "scale_by_size": True,  # multiply the weights of a mixture by numbers of samples
                "rows": {},  # your own datasets: name -> what the registry says of its datasets
                "mixtures": {},  # your own: name -> list of dataset, weight and others
                "index_directory": "",  # for all indexes; empty: each is beside its dataset
                "train_split": "train",  # as TFDS writes it: "train[:95%]", "train+val", "all"
                "eval_split": "val",
                "sample_every": 1,  # steps between two starts of samples
                "unlabelled": "error",  # steps without an instruction: or "drop", "blank"
                "not_finite": "error",  # steps with a NaN: or "drop_steps", "drop_episodes"
                "bad_frames": 0.0,  # the share of unreadable frames beyond which a run stops
                "cameras": ("primary",),  # roles, in the order of the layout
                "image_size": (224, 224),  # rows and columns that each camera is brought to
                "letterbox": (),  # cameras that keep their aspect ratio in that size, within black
                "layout": "single",  # one of preprocess.images.LAYOUTS, or "references"
                "augmentation": "",  # in training: a name in preprocess.augment.AUGMENTATIONS
                "stride": 1,  # dataset steps between two actions of a chunk
                "normalization": "min/max",  # of actions and states: preprocess.normalization
                "pool_statistics": False,  # normalize by all datasets together, rather than by each
                "threads": 4,  # how many batches are read at a time
                "prefetch": 8,  # how many batches are held ready
                "concurrent_reads": 64,  # requests at a time for data in object storage (gs://)
            },
            "text": {
                "encoder": "byte_qwen3",  # one of text.encoders.TEXT_ENCODERS
                "weights": "",  # a checkpoint that imagewam convert made; empty: random weights
                "seed": 0,  # for random weights of the encoder
                "template": "{}",  # the prompt; {} stands for the instruction
                # Token counts that text is padded to. With the robot's state behind it, most are
                # multiples of 16, the rows of a TPU's tile: others are padded and copied.
                "buckets": (31, 47, 63, 95, 127, 255, 512),
                "table": "",  # a file of features that imagewam encode-text made with this encoder
            },
            "autoencoder": {
                "name": "flux2",  # one of models.autoencoders.AUTOENCODERS, and its sizes
                "weights": "",  # a checkpoint that has it; empty: a patch autoencoder is fitted
            },
            "model": {
                "backbone": {"name": "flux2"},  # one of models.backbones.BACKBONES, and its sizes
                # Widths: -1 is that of the dataset's row, of a mixture the widest of them.
                "expert": {"action_dim": -1, "dim": 1024, "mlp_ratio": 4.0, "max_horizon": 64},
                "proprio_dim": -1,  # 0: the policy sees no robot state
                "horizon": 16,
                "target_flow": {"train_shift": 5.0, "sample_shift": 5.0},
                "action_flow": {"train_shift": 5.0, "sample_shift": 5.0},
                "target_loss_weight": 0.5,
                "action_loss_weight": 1.0,
                "lora": {"rank": 0, "alpha": 0.0},  # rank above 0: the backbone itself is frozen
                "coordinate_dtype": "float32",  # bfloat16 repeats the official code's rounding
                "attention": "xla",
                "remat": "full",  # what the backward pass keeps of a layer: models.remat
                "unroll": 1,
            },
            "train": {
                "initial_weights": "",  # a checkpoint to start from, converted or trained
                "steps": 10_000,
                "batch_size": 80,  # over all hosts
                "accumulate": 1,  # how many parts of a batch run one after another
                "frozen": (),  # parts of the policy that stay as they are: "backbone", ...
                "compute_dtype": "bfloat16",  # master weights are always float32
                # Options of XLA for the train step: "name=value", "tpu:name=value" on TPUs alone.
                "compiler_options": TPU_OPTIONS,
                "log_every": 20,
                "validate_every": 500,  # 0: never
                "validation_samples": 256,  # rounded down to full batches, at least one
                "mask_padded_targets": False,  # no target loss beyond the end of an episode
                # The first 0 to so many actions of a sample are known, as if they ran already while
                # the policy acts (docs/serving.md); below model.horizon. 0: they never are.
                "max_delay": 0,
                "skip_not_finite": 0,  # steps with a NaN that may be skipped before the run stops
                "checkpoint_every": 1000,
                "keep_checkpoints": 2,
            },
            "mesh": {  # how many devices share what: models.sharding; -1: the devices left over
                "data": 1,
                "fsdp": -1,
                "tensor": 1,
                "context": 1,
                "slices": 1,  # how many slices a multi-slice pod has
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "warmup_fraction": 0.05,  # the share of all steps
                "final_fraction": 0.01,  # the share of the learning rate at the end of the cosine
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
                "ema_decay": 0.999,  # of the moving average of the parameters; 0: none
            },
            "watch": {  # docs/training.md
                "profile": (0, 0),  # the first step to trace, and how many; 0: none
                "profile_on_signal": 5,  # steps to trace at SIGUSR1; 0: the signal is not heard
                "wandb": "",  # a project of Weights & Biases; empty: none
            },
            "acting": {
                "euler_steps": 10,
                "execute_steps": 12,  # actions of each chunk that run before the next decision
            },
            "evaluation": {
                # One of evaluation.simulators, which plays its own dataset, or "module:Class";
                # empty: recorded data alone.
                "simulator": "",
                "options": {},  # keyword options of the simulator
            },
        },
        type_safe=False,  # `config.fields` names every value of a wrong type, not the first alone
    )


def recipe(model: str) -> ConfigDict:
    """The official recipe for a model: "4b" or "9b" of FLUX.2 klein, "omnigen2" or "ovis_u1".

    ConfigError: another model.
    """
    recipes = {size: partial(klein_recipe, size) for size in KLEIN} | OTHER_RECIPES
    return choose(recipes, model, "the model of the recipe")()


def backbone_recipe(name: str) -> ConfigDict:
    """The official recipe for a backbone of this name, whatever its sizes."""
    return OTHER_RECIPES.get(name, official_recipe)()


def omnigen2_recipe() -> ConfigDict:
    """The official recipe (docs/spec/imagewam_omnigen2.md, 2, 3, 4 and 11) for OmniGen2."""
    config = official_recipe()
    config.text.encoder = "qwen2_5_vl"
    config.text.buckets = (31, 47, 63, 95, 127, 128)  # officially at most 128 tokens
    config.autoencoder = {**named_section(FLUX1, AUTOENCODERS), "weights": ""}
    config.model.backbone = named_section(OMNIGEN2, BACKBONES)
    return config


def ovis_u1_recipe() -> ConfigDict:
    """The official recipe (docs/spec/imagewam_ovis_u1.md, 2, 3, 4, 7 and 10) for Ovis-U1."""
    config = official_recipe()
    config.text.encoder = "ovis_u1"
    # The features of an image and an instruction: about 314 tokens on LIBERO, 310 on RoboTwin.
    config.text.buckets = (319, 335, 351, 383, 447, 512)
    config.autoencoder = {**named_section(SDXL, AUTOENCODERS), "weights": ""}
    config.model.backbone = named_section(OVIS_U1, BACKBONES)
    config.model.expert.dim = OVIS_U1.dim
    return config


# The recipes of backbones that have one size, by their names.
OTHER_RECIPES = {"omnigen2": omnigen2_recipe, "ovis_u1": ovis_u1_recipe}


def klein_recipe(size: str) -> ConfigDict:
    """The official recipe (docs/spec/imagewam_flux2.md, 3.1, 7.2 and 8.1) for FLUX.2 klein.

    size: "4b" or "9b". ConfigError: another size.
    """
    config = official_recipe()
    backbone = choose(KLEIN, size, "the size of FLUX.2 klein")
    config.model.backbone = named_section(backbone, BACKBONES)
    return config


def official_recipe() -> ConfigDict:
    """The settings that official runs share; the text encoder is FLUX.2's, which others replace."""
    config = defaults()
    config.seed = 42
    config.text.encoder = "qwen3"
    config.text.template = PROMPT
    # The official code has positions, times and Euler steps in the dtype of the parameters.
    config.model.coordinate_dtype = "bfloat16"
    config.train.compute_dtype = "bfloat16"
    config.optimizer.ema_decay = 0.0  # no moving average
    return config
