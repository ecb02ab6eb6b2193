"""Makes the networks that a recipe starts from, in a config's sizes, as files like the releases.

    python tiny_networks/make.py --config configs/libero.py:tiny \\
        --config.data.directory=DATASETS --to released

FLUX.2 klein, its autoencoder and Qwen3 were released in sizes that two CPU cores cannot train. For
a recipe in smaller ones, this writes

    released/FLUX.2-tiny/    the transformer, with random weights
    released/ae.safetensors  the autoencoder, trained here on the images of the dataset
    released/Qwen3-tiny/     the text encoder, with random weights, and a tokenizer of the
                             dataset's prompts

in the original layouts, so that `imagewam convert` reads them as it reads the released ones. They
depend on the config, the dataset and --seed alone. What is there already is kept: an interrupted
run goes on with what is missing.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from autoencoder import train_autoencoder
from flax import nnx
from original import write_original
from qwen3 import write_qwen3

from imagewam_jax.config.loading import load_config
from imagewam_jax.config.schema import policy_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.errors import UserError
from imagewam_jax.files import partial_path
from imagewam_jax.models.backbones.flux2 import Flux2
from imagewam_jax.text.encoders import make_prompt
from imagewam_jax.training.prepare import some_frames
from imagewam_jax.weights.layouts import registry as layouts
from imagewam_jax.weights.layouts.flux2_autoencoder import COUNTER


def make(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file or folder, unless it is there; it is whole or absent."""
    if path.exists():
        print(f"{path}: is there")
        return
    partial = partial_path(path)
    write(partial)
    partial.replace(path)
    print(f"{path}: written")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a config file; fields can be changed")
    parser.add_argument("--to", type=Path, required=True, help="folder of the files")
    parser.add_argument("--autoencoder-steps", type=int, default=600, help="of its training")
    parser.add_argument("--seed", type=int, default=0)
    arguments, rest = parser.parse_known_args()

    try:
        config = load_config(arguments.config, rest).to_dict()
        data = config_data(config)
        policy = policy_config(config["model"])
    except UserError as error:
        raise SystemExit(str(error)) from None
    arguments.to.mkdir(parents=True, exist_ok=True)

    def transformer(folder: Path) -> None:
        network = Flux2(policy.backbone, rngs=nnx.Rngs(arguments.seed))
        folder.mkdir(parents=True)
        path = folder / "flux-2-tiny.safetensors"
        write_original(path, layouts.FLUX2, policy.backbone, network)
        # Shapes do not tell it, and the sizes are none that are known.
        rope = {"axes_dim": policy.backbone.rope_axes, "theta": policy.backbone.rope_theta}
        (folder / "config.json").write_text(json.dumps({"flux2_params": rope}, indent=2) + "\n")

    def autoencoder(path: Path) -> None:
        frames = np.concatenate([some_frames(dataset, config) for dataset in data.datasets])
        network = train_autoencoder(
            config["autoencoder"], frames, arguments.autoencoder_steps, arguments.seed
        )
        counter = {COUNTER: np.array(arguments.autoencoder_steps)}
        write_original(path, layouts.FLUX2_AUTOENCODER, network.config, network, **counter)

    def text_encoder(path: Path) -> None:
        prompts = [make_prompt(config["text"]["template"], text) for text in data.instructions]
        write_qwen3(path, policy.backbone.text_dim, prompts, arguments.seed)

    make(arguments.to / "FLUX.2-tiny", transformer)
    make(arguments.to / "ae.safetensors", autoencoder)
    make(arguments.to / "Qwen3-tiny", text_encoder)


if __name__ == "__main__":
    main()
