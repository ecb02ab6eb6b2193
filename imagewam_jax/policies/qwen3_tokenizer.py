"""From a prompt to the tokens that Qwen3 reads (spec imagewam_flux2, 3.2).

The prompt is the one turn of a user in a chat, and the assistant, told not to think, is about to
answer. `transformers` does the tokenising; nothing else in the package needs it.
"""

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagewam_jax.models.text_encoders.base import Tokens, pad_tokens
from imagewam_jax.policies.errors import CheckpointError, ConfigError

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def render_chat(prompt: str) -> str:
    """The text that is tokenised."""
    return CHAT.replace("{}", prompt)


def qwen3_tokenizer(
    files: Mapping[str, str], vocab_size: int, where: str
) -> Callable[[Sequence[str], int], Tokens]:
    """`TextEncoder.tokenize` with a Hugging Face tokenizer, from its files' names and texts.

    Files are read when it is first called: ConfigError without `transformers`, CheckpointError,
    which says `where`, when they are not a tokenizer or not that of these weights.
    """

    @functools.cache
    def tokenizer():
        loaded = _load(files, where)
        _check_chat(loaded, where)
        if len(loaded) > vocab_size:
            raise CheckpointError(
                f"{where}: its tokenizer has {len(loaded)} tokens, its weights {vocab_size}"
            )
        return loaded

    def tokenize(prompts: Sequence[str], max_length: int) -> Tokens:
        ids = tokenizer()([render_chat(prompt) for prompt in prompts])["input_ids"]
        return pad_tokens(prompts, ids, max_length, tokenizer().pad_token_id or 0)

    return tokenize


def _load(files: Mapping[str, str], where: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            "text for Qwen3 is tokenised by the package transformers, which is not installed: "
            "pip install 'imagewam-jax[text]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, Path(name).name).write_text(text, encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # its parts raise all kinds
            raise CheckpointError(f"{where}: not a tokenizer: {error}") from error


def _check_chat(tokenizer: Any, where: str) -> None:
    """CheckpointError when the tokenizer's own chat is another one: so are its weights, then."""
    if not tokenizer.chat_template:
        return
    found = tokenizer.apply_chat_template(
        [{"role": "user", "content": "{}"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    if found != CHAT:
        raise CheckpointError(
            f"{where}: this Qwen3 is spoken to as {found!r}, the encoder of FLUX.2 klein as "
            f"{CHAT!r}: its weights are those of another variant (such as the ones of 2507); "
            "obtain Qwen/Qwen3-4B or Qwen/Qwen3-8B"
        )
