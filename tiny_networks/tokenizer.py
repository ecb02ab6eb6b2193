"""The files of a small tokenizer like Qwen3's: byte-level pairs, special tokens, chat template."""

import json
from collections.abc import Sequence

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THOUGHTS = ("<think>", "</think>")
# Qwen3's chat template, as far as a single turn of the user goes.
TURNS = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
)
ANSWER = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
CHAT_TEMPLATE = (
    TURNS
    + ANSWER
    + "{%- if enable_thinking is defined and enable_thinking is false %}"
    + "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


def tokenizer_files(
    prompts: Sequence[str], vocabulary: int, chat_template: str | None = CHAT_TEMPLATE
) -> dict[str, str]:
    """File name -> content, of a tokenizer of so many tokens that knows the words of some prompts.

    Any other text can be written in it, too, in more tokens.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary - len(THOUGHTS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(prompts)), trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in THOUGHTS])
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 131072,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }
