"""The miniature is like the real model in every name, the same on every run, and good enough for transformers."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from weighbridge.samples import miniature

# Every tensor pattern of google/gemma-4-26B-A4B-it, layer numbers replaced by N, with its rank. All are BF16.
REAL = {
    "model.embed_vision.embedding_projection.weight": 2,
    "model.language_model.embed_tokens.weight": 2,
    "model.language_model.layers.N.experts.down_proj": 3,
    "model.language_model.layers.N.experts.gate_up_proj": 3,
    "model.language_model.layers.N.input_layernorm.weight": 1,
    "model.language_model.layers.N.layer_scalar": 1,
    "model.language_model.layers.N.mlp.down_proj.weight": 2,
    "model.language_model.layers.N.mlp.gate_proj.weight": 2,
    "model.language_model.layers.N.mlp.up_proj.weight": 2,
    "model.language_model.layers.N.post_attention_layernorm.weight": 1,
    "model.language_model.layers.N.post_feedforward_layernorm.weight": 1,
    "model.language_model.layers.N.post_feedforward_layernorm_1.weight": 1,
    "model.language_model.layers.N.post_feedforward_layernorm_2.weight": 1,
    "model.language_model.layers.N.pre_feedforward_layernorm.weight": 1,
    "model.language_model.layers.N.pre_feedforward_layernorm_2.weight": 1,
    "model.language_model.layers.N.router.per_expert_scale": 1,
    "model.language_model.layers.N.router.proj.weight": 2,
    "model.language_model.layers.N.router.scale": 1,
    "model.language_model.layers.N.self_attn.k_norm.weight": 1,
    "model.language_model.layers.N.self_attn.k_proj.weight": 2,
    "model.language_model.layers.N.self_attn.o_proj.weight": 2,
    "model.language_model.layers.N.self_attn.q_norm.weight": 1,
    "model.language_model.layers.N.self_attn.q_proj.weight": 2,
    "model.language_model.layers.N.self_attn.v_proj.weight": 2,
    "model.language_model.norm.weight": 1,
    "model.vision_tower.encoder.layers.N.input_layernorm.weight": 1,
    "model.vision_tower.encoder.layers.N.mlp.down_proj.linear.weight": 2,
    "model.vision_tower.encoder.layers.N.mlp.gate_proj.linear.weight": 2,
    "model.vision_tower.encoder.layers.N.mlp.up_proj.linear.weight": 2,
    "model.vision_tower.encoder.layers.N.post_attention_layernorm.weight": 1,
    "model.vision_tower.encoder.layers.N.post_feedforward_layernorm.weight": 1,
    "model.vision_tower.encoder.layers.N.pre_feedforward_layernorm.weight": 1,
    "model.vision_tower.encoder.layers.N.self_attn.k_norm.weight": 1,
    "model.vision_tower.encoder.layers.N.self_attn.k_proj.linear.weight": 2,
    "model.vision_tower.encoder.layers.N.self_attn.o_proj.linear.weight": 2,
    "model.vision_tower.encoder.layers.N.self_attn.q_norm.weight": 1,
    "model.vision_tower.encoder.layers.N.self_attn.q_proj.linear.weight": 2,
    "model.vision_tower.encoder.layers.N.self_attn.v_proj.linear.weight": 2,
    "model.vision_tower.patch_embedder.input_proj.weight": 2,
    "model.vision_tower.patch_embedder.position_embedding_table": 3,
    "model.vision_tower.std_bias": 1,
    "model.vision_tower.std_scale": 1,
}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
DIGEST = "bf0a2452ae164041ec35e0d952f7dfb79672d2f8d074b52a1ec4678a71dcf05c"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mini")
    miniature.make(directory)
    return directory


def header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        entries: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert entries.pop("__metadata__") == {"format": "pt"}
    return entries


def weight_map(directory: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / "model.safetensors.index.json").read_bytes())["weight_map"]
    return found


def digest(directory: Path) -> str:
    sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(directory.iterdir()))
    return hashlib.sha256("".join(sums).encode()).hexdigest()


def test_has_exactly_the_tensor_patterns_of_the_real_model(mini: Path) -> None:
    tensors = header(mini / FIRST) | header(mini / SECOND)
    assert {re.sub(r"\.\d+\.", ".N.", name): len(entry["shape"]) for name, entry in tensors.items()} == REAL
    assert {entry["dtype"] for entry in tensors.values()} == {"BF16"}


def test_only_the_global_layer_has_no_v_proj(mini: Path) -> None:
    layers = {int(name.split(".")[3]) for name in weight_map(mini) if ".self_attn.v_proj.weight" in name}
    assert layers == {0, 1, 2, 3, 4}


def test_index_agrees_with_the_headers(mini: Path) -> None:
    headers = {shard: header(mini / shard) for shard in (FIRST, SECOND)}
    assert weight_map(mini) == {name: shard for shard, entries in headers.items() for name in entries}
    metadata = json.loads((mini / "model.safetensors.index.json").read_bytes())["metadata"]
    assert list(metadata) == ["total_parameters", "total_size"]
    assert metadata["total_size"] == sum(
        max(entry["data_offsets"][1] for entry in entries.values()) for entries in headers.values()
    )


def test_boundary_cuts_through_the_experts_of_two_layers(mini: Path) -> None:
    shards = weight_map(mini)
    experts = "model.language_model.layers.{}.experts.{}"
    cut = [n for n in range(6) if shards[experts.format(n, "gate_up_proj")] != shards[experts.format(n, "down_proj")]]
    assert cut == [4, 5]
    assert shards[experts.format(5, "gate_up_proj")] == FIRST


def test_every_run_gives_the_bytes_of_every_other(mini: Path, tmp_path: Path) -> None:
    miniature.make(tmp_path)
    # Written down, not only compared: another platform and another numpy have to give the same.
    assert digest(tmp_path) == digest(mini) == DIGEST


def test_files_are_what_the_safetensors_library_would_write(mini: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    for shard in (FIRST, SECOND):
        content = (mini / shard).read_bytes()
        assert safetensors.save(safetensors.load(content), metadata={"format": "pt"}) == content


def test_config_and_tokenizer_agree_on_the_special_tokens(mini: Path) -> None:
    config = json.loads((mini / "config.json").read_bytes())
    tokens = json.loads((mini / "tokenizer_config.json").read_bytes())
    vocabulary = json.loads((mini / "tokenizer.json").read_bytes())["model"]["vocab"]
    for name in ("image", "audio", "boi", "eoi", "boa", "eoa"):
        assert config[f"{name}_token_id"] == vocabulary[tokens[f"{name}_token"]]
    assert config["video_token_id"] == vocabulary["<|video|>"]
    assert config["eos_token_id"] == [vocabulary["<eos>"], vocabulary["<turn|>"]]
    assert sorted(vocabulary.values()) == list(range(config["text_config"]["vocab_size"]))


def test_tokenizer_gives_back_any_text_and_renders_turns(mini: Path) -> None:
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(mini)
    text = "Wörter  und\n漢字 \N{GRINNING FACE}"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}, {"role": "assistant", "content": "Yes"}],
        add_generation_prompt=True,
        tokenize=False,
    )
    assert rendered == "<bos><|turn>user\nHello<turn|>\n<|turn>model\nYes<turn|>\n<|turn>model\n"


def test_transformers_loads_every_tensor_and_generates(mini: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, loading = transformers.AutoModelForImageTextToText.from_pretrained(
        mini, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(loading.values())
    metadata = json.loads((mini / "model.safetensors.index.json").read_bytes())["metadata"]
    tied = model.get_input_embeddings().weight.numel()  # as in the real index, lm_head counts once more
    assert metadata["total_parameters"] == model.num_parameters() + tied
    tokenizer = transformers.AutoTokenizer.from_pretrained(mini)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    written = model.generate(
        **prompt,
        do_sample=False,
        min_new_tokens=8,
        max_new_tokens=8,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(written.logits)
    assert logits.shape[0] == 8
    assert logits.isfinite().all()
    assert logits.float().std() > 0.1
