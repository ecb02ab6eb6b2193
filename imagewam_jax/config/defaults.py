"""Every field of a config, with its meaning. Config files start from this and change it.

The optimizer and the flow are those of the official recipe (spec imagewam_flux2, 6 and 8.1).
"""

from ml_collections import ConfigDict


def defaults() -> ConfigDict:
    """A config for one RLDS dataset and a FLUX.2-shaped policy."""
    return ConfigDict(
        {
            "seed": 0,  # of the order of samples, of initial weights and of noise
            "data": {
                "directory": "",  # of one TFDS dataset version; of a mixture, the folder of all
                "dataset": "",  # its row in data.registry, or in `rows`
                "mixture": "",  # instead of it: one of data.mixtures, or of `mixtures`
                "scale_by_size": True,  # the weights of a mixture are multiplied by samples
                "rows": {},  # of datasets that the registry has not: name -> row
                "mixtures": {},  # of your own: name -> list of dataset, weight and blank_language
                "index_directory": "",  # of all indexes; empty: each beside its dataset
                "train_split": "train",  # or some episodes of it: "train[:95%]"
                "eval_split": "val",
                "sample_every": 1,  # steps between two starts of samples
                "unlabelled": "error",  # steps without an instruction: or "drop", "blank"
                "bad_frames": 0.0,  # the share of frames that may be unreadable before a run stops
                "cameras": ("primary",),  # roles, in the order of the layout
                "image_size": (224, 224),  # rows and columns that each camera is brought to
                "letterbox": (),  # cameras that keep their aspect ratio then, within black
                "layout": "single",  # one of data.device.LAYOUTS, or "references"
                "augmentation": "",  # in training: one of data.augment.AUGMENTATIONS
                "stride": 1,  # dataset steps between two actions of a chunk
                "normalization": "min/max",  # of actions and states: data.normalization
                "pool_statistics": False,  # of all datasets together, rather than of each
                "threads": 4,  # batches that are read at a time
                "prefetch": 8,  # batches that are held ready
            },
            "text": {
                "encoder": "byte_qwen3",  # one of text.encoders.TEXT_ENCODERS
                "weights": "",  # a converted text encoder: imagewam convert; empty for random ones
                "seed": 0,  # of the encoder's weights, where these are random
                "template": "{}",  # what an instruction is wrapped in, in the place of {}
                "buckets": (32, 64, 128, 512),  # token counts that text is padded to
                "table": "",  # a file of what this encoder made before: imagewam encode-text
            },
            "autoencoder": {
                "name": "flux2",  # one of models.autoencoders.AUTOENCODERS, and its sizes
                "weights": "",  # a checkpoint that has it; a patch autoencoder is fitted instead
            },
            "model": {
                "backbone": {"name": "flux2"},  # one of models.backbones.BACKBONES, and its sizes
                "expert": {"action_dim": 7, "dim": 1024, "mlp_ratio": 4.0, "max_horizon": 64},
                "proprio_dim": 8,
                "horizon": 16,
                "target_flow": {"train_shift": 5.0, "sample_shift": 5.0},
                "action_flow": {"train_shift": 5.0, "sample_shift": 5.0},
                "target_loss_weight": 0.5,
                "action_loss_weight": 1.0,
                "lora": {"rank": 0, "alpha": 0.0},  # of the backbone, which is frozen then
                "coordinate_dtype": "float32",  # bfloat16 repeats the official code's rounding
                "attention": "xla",
                "remat": "full",
                "unroll": 1,
            },
            "train": {
                "initial_weights": "",  # a checkpoint to start from, converted or trained
                "steps": 10_000,
                "batch_size": 80,  # over all hosts
                "accumulate": 1,  # parts of a batch that run one after another
                "frozen": (),  # parts of the policy that stay as they are: "backbone", ...
                "compute_dtype": "bfloat16",  # master weights are always float32
                "compiler_options": (),  # of XLA, for the step: "name=value", ...
                "log_every": 20,
                "validate_every": 500,  # 0: never
                "validation_samples": 256,  # in full batches, at least one
                "mask_padded_targets": False,  # no target loss beyond the end of an episode
                "checkpoint_every": 1000,
                "keep_checkpoints": 2,
            },
            "mesh": {  # how many devices share what: training.sharding; -1: what is left of them
                "data": 1,
                "fsdp": -1,
                "tensor": 1,
                "context": 1,
                "slices": 1,  # of a multi-slice pod
            },
            "optimizer": {
                "learning_rate": 1e-4,
                "warmup_fraction": 0.05,  # of all steps
                "final_fraction": 0.01,  # of the learning rate, at the end of the cosine
                "b1": 0.9,
                "b2": 0.95,
                "eps": 1e-8,
                "weight_decay": 0.01,
                "clip_norm": 1.0,
                "ema_decay": 0.999,  # of the moving average; 0: none
            },
            "watch": {  # docs/training.md
                "profile": (0, 0),  # the first step to trace, and how many; 0: none
                "profile_on_signal": 5,  # steps to trace at SIGUSR1; 0: the signal is not heard
                "wandb": "",  # a project of Weights & Biases; empty: none
            },
            "acting": {
                "euler_steps": 10,
                "execute_steps": 12,  # of each chunk, before the next decision
            },
            "evaluation": {
                "simulator": "",  # one of evaluation.simulators; none: on recorded data alone
                "options": {},  # of the simulator
            },
        }
    )
