"""Features of Qwen2.5-VL, by the script that makes a table of them with PyTorch."""

import numpy as np
import pytest

from imagewam_jax.errors import DataError, MissingWeights
from imagewam_jax.text.encoders import encode_text, text_source
from imagewam_jax.text.tables import open_text_table
from tests.data_builders.scripts import DATA, load
from tests.text.tiny_qwen3 import tokenizer_files

SECTION = {"encoder": "qwen2_5_vl", "weights": "", "template": "do: {}", "buckets": (8, 16)}
INSTRUCTIONS = ("open the drawer", "pick up the bowl")


@pytest.fixture(scope="module")
def script():
    return load("qwen2_5_vl", DATA / "text_features")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Qwen2.5-VL of a few channels, with a tokenizer, as Hugging Face stores them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qwen2_5_vl")
    (folder / "tokenizer.json").write_text(tokenizer_files()["tokenizer.json"])
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    text = {
        "vocab_size": 352,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    vision["out_hidden_size"] = text["hidden_size"]
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_a_table_holds_the_last_states(script, model, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    prompts = [SECTION["template"].format(i) for i in INSTRUCTIONS]
    path = tmp_path / "text.safetensors"
    script.encode(model, prompts, 16, path)
    table = encode_text({**SECTION, "table": str(path)}, INSTRUCTIONS, text_dim=32)
    assert table.encoder.startswith("qwen2_5_vl(dim=32")

    whole = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model, dtype=torch.bfloat16
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            states = whole(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        count = table.lengths[row]
        assert len(states) == count
        found = table.features[row, :count].astype(np.float32)
        np.testing.assert_allclose(found, states.float().numpy(), atol=0.02)


def test_prompts_that_do_not_fit(script, model, tmp_path):
    with pytest.raises(DataError, match=r"is \d+ tokens long, expected 1..2"):
        script.encode(model, ["a long prompt"], 2, tmp_path / "text.safetensors")
    with pytest.raises(DataError, match="no text table"):
        open_text_table(tmp_path / "text.safetensors")


def test_without_a_table_it_says_how_to_make_one():
    with pytest.raises(MissingWeights, match=r"data/text_features/qwen2_5_vl\.py"):
        text_source({**SECTION, "table": ""})
