"""Can the instructions of the datasets be encoded for the policy?"""

from imagewam_jax.errors import ConfigError, UserError
from imagewam_jax.models.layers import MAX_POSITION
from imagewam_jax.models.text_encoders.base import TextEncoder
from imagewam_jax.preflight.data import datasets
from imagewam_jax.preflight.model import sizes
from imagewam_jax.preflight.run import NotChecked, Run, about
from imagewam_jax.text.encoders import make_prompt, text_bucket, text_source
from imagewam_jax.text.tables import TextTableFile

# Random features of more instructions than these are not what `byte_qwen3` was made for.
HANDFUL = 50


def prompt(run: Run) -> None:
    """The template has a place for the instruction."""
    make_prompt(run.config("text.template")["text"]["template"], "")


def text_features(run: Run) -> TextTableFile | TextEncoder:
    """A table or an encoder is there, of the config's kind and of the width that the policy
    reads."""
    found = run.outcome(sizes)
    width = None if isinstance(found, UserError | NotChecked) else found.backbone.text_dim
    fields = ("text.encoder", "text.weights", "text.table", "text.seed")
    section = run.config(*fields)["text"]
    with about("text.table" if section["table"] else "text.encoder"):
        return text_source(section, width)


def text_length(run: Run) -> int:
    """A bucket holds the longest prompt of the datasets; returns the one that is taken."""
    run.of(prompt)
    source, instructions = run.of(text_features), run.of(datasets).data.instructions
    section = run.config("text.buckets", "text.template")["text"]
    prompts = [make_prompt(section["template"], instruction) for instruction in instructions]
    with about("text.buckets"):
        bucket = text_bucket(section, source, prompts)
        if bucket >= MAX_POSITION:
            raise ConfigError(
                f"text.buckets {tuple(section['buckets'])}: {bucket} tokens, expected less than "
                f"{MAX_POSITION}, the positions that a policy knows"
            )
    if section["encoder"] == "byte_qwen3" and not section["table"] and len(instructions) > HANDFUL:
        run.note(
            f"text.encoder byte_qwen3 knows nothing of meaning, and there are {len(instructions)} "
            "instructions: it suits the handful of the example; text.encoder=qwen3 reads language"
        )
    return bucket
