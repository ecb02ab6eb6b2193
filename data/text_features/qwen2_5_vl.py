"""Encodes instructions with Qwen2.5-VL in PyTorch, into a table for `text.table`.

    python data/text_features/qwen2_5_vl.py --model=Qwen2.5-VL-3B-Instruct \\
      --config=configs/libero.py:omnigen2 --output=text.safetensors --config.data.directory=...

It is run once, where PyTorch and transformers are installed; training and acting need neither. A
feature is the last hidden state of a token after the language model's final norm; prompts are
tokenized as they are, without a chat template (docs/spec/imagewam_omnigen2.md, 4).
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from imagewam_jax.config.loading import load_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.errors import DataError
from imagewam_jax.text.encoders import make_prompt
from imagewam_jax.text.fill import read_instructions
from imagewam_jax.text.tables import TextTableFile, write_text_table

FILES = ("*.safetensors", "tokenizer*", "vocab.json", "merges.txt", "config.json")


def encode(
    model_folder: Path, prompts: Sequence[str], longest: int, output: Path, device: str = "cpu"
) -> TextTableFile:
    """Write the features of distinct prompts, of at most `longest` tokens each.

    DataError: a prompt has more tokens, or none.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not 0 < len(tokens) <= longest:
            raise DataError(
                f"prompt {prompt!r} is {len(tokens)} tokens long, expected 1..{longest}"
            )
    model = AutoModel.from_pretrained(model_folder, dtype=torch.bfloat16).to(device).eval()
    channels = model.get_input_embeddings().weight.shape[1]

    def features() -> Iterator[np.ndarray]:
        # One at a time, so that no feature depends on what it is padded to.
        for tokens in tqdm(ids, unit="prompt", desc="encoding prompts"):
            with torch.no_grad():
                states = model(input_ids=torch.tensor([tokens], device=device)).last_hidden_state
            yield states[0].float().cpu().numpy()

    lengths = [len(tokens) for tokens in ids]
    identity = f"qwen2_5_vl(dim={channels}, sha256={_checksum(model_folder)[:16]})"
    return write_text_table(output, prompts, lengths, features(), channels, identity)


def _checksum(folder: Path) -> str:
    """SHA-256 of all files that the features depend on."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="the folder from Hugging Face")
    parser.add_argument("--config", required=True, help="a config file")
    parser.add_argument("--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument(
        "--prompts", type=Path, help="a text file, an instruction a line, in place of the dataset"
    )
    parser.add_argument("--device", default="cpu", help="the PyTorch device, such as cuda")
    given, overrides = parser.parse_known_args(arguments)
    config = load_config(given.config, overrides).to_dict()
    if given.prompts:
        instructions = read_instructions(given.prompts)
    else:
        instructions = config_data(config).instructions
    text = config["text"]
    prompts = sorted({make_prompt(text["template"], i) for i in instructions})
    table = encode(given.model, prompts, max(text["buckets"]), given.output, given.device)
    print(f"{table.path}: {len(table.prompts)} prompts of {table.channels} channels")


if __name__ == "__main__":
    main()
