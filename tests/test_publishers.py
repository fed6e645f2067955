"""Sources as publishers lay them out, with whatever they put beside the weights, raise no false alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.checkpoints import edit_config, shards_of
from tests.conftest import Command
from tests.tiny import RECIPE, write_tiny


def _write(directory: Path, name: str, content: bytes = b"{}") -> None:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)


def _copy_of_weights(directory: Path, name: str) -> None:
    _write(directory, name, shards_of(directory)[0].read_bytes())


def _mistral(directory: Path) -> None:
    _copy_of_weights(directory, "consolidated.safetensors")
    for name in ("params.json", "tekken.json"):
        _write(directory, name)
    _write(directory, "tokenizer.model.v3", b"sentencepiece")


def _meta(directory: Path) -> None:
    _write(directory, "original/consolidated.00.pth", b"pickle")
    _write(directory, "original/params.json")
    _write(directory, "original/tokenizer.model", b"tiktoken")
    _write(directory, "USE_POLICY.md", b"# Policy\n")


def _openai(directory: Path) -> None:
    _copy_of_weights(directory, "original/model.safetensors")
    _write(directory, "original/config.json")
    _write(directory, "original/dtypes.json")
    _write(directory, "metal/model.bin", b"metal")


def _old(directory: Path) -> None:
    _write(directory, "pytorch_model.bin", b"pickle")
    _write(directory, "pytorch_model.bin.index.json")
    for name in ("tf_model.h5", "flax_model.msgpack", "training_args.bin", "rust_model.ot"):
        _write(directory, name, b"other")


def _gguf(directory: Path) -> None:
    _write(directory, "tiny-Q4_K_M.gguf", b"GGUF")
    _write(directory, "gguf/tiny-Q8_0.gguf", b"GGUF")


def _onnx(directory: Path) -> None:
    _write(directory, "onnx/model.onnx", b"onnx")
    _write(directory, "onnx/model.onnx_data", b"onnx")
    _write(directory, "openvino/openvino_model.bin", b"openvino")
    _write(directory, "openvino/openvino_model.xml", b"<xml/>")


def _documented(directory: Path) -> None:
    _write(directory, "figures/scores.png", b"png")
    _write(directory, "docs/deploy.md", b"# Deploy\n")
    _write(directory, "paper.pdf", b"%PDF")
    _write(directory, ".gitignore", b"*.tmp\n")


def _cloned(directory: Path) -> None:
    _write(directory, ".git/config", b"[core]\n")
    _write(directory, ".cache/huggingface/download/config.json.metadata", b"etag\n")


def _own_code(directory: Path) -> None:
    _write(directory, "configuration_tiny.py", b"# a config\n")
    _write(directory, "modeling_tiny.py", b"# a model\n")
    edit_config(directory, lambda config: config.update(auto_map={"AutoConfig": "configuration_tiny.TinyConfig"}))


def _embedding(directory: Path) -> None:
    _write(directory, "modules.json", json.dumps([{"idx": 0, "path": "", "type": "Transformer"}]).encode())
    _write(directory, "1_Pooling/config.json")
    _copy_of_weights(directory, "2_Dense/model.safetensors")
    _write(directory, "2_Dense/config.json")


def _of_several_templates(directory: Path) -> None:
    _write(directory, "additional_chat_templates/tool_use.jinja", b"{{ messages }}")
    _write(directory, "chat_template.json", b'{"chat_template": "x"}')
    _write(directory, "added_tokens.json")


PUBLISHERS: dict[str, Callable[[Path], None]] = {
    "Mistral, with its own form beside": _mistral,
    "Meta, with original/": _meta,
    "OpenAI, with original/ and metal/": _openai,
    "pickles and other frameworks of old": _old,
    "GGUF beside": _gguf,
    "ONNX and OpenVINO": _onnx,
    "figures, papers and pages": _documented,
    "a clone, or a download into a directory": _cloned,
    "code of its own": _own_code,
    "sentence-transformers": _embedding,
    "several templates": _of_several_templates,
}


@pytest.mark.parametrize("publisher", PUBLISHERS)
def test_source_as_published_is_planned_built_and_found_to_be_the_base(
    publisher: str, tmp_path: Path, call_build: Command, call_validate: Command
) -> None:
    source, recipe, output = write_tiny(tmp_path / "source"), tmp_path / "recipe.yaml", tmp_path / "build"
    PUBLISHERS[publisher](source)
    recipe.write_text(RECIPE)
    plan = call_build(recipe, "--plan", "--model", source)
    assert plan.code == 0, plan
    built = call_build(recipe, "--model", source, "--output", output)
    assert built.code == 0, built
    judged = call_validate(output, "--source", source, "--recipe", recipe)
    assert judged.code == 0, judged
    assert call_validate(output, "--evidence").code == 0


@pytest.mark.parametrize("publisher", ["Mistral, with its own form beside", "GGUF beside"])
def test_what_is_left_behind_is_a_warning_of_the_plan(publisher: str, tmp_path: Path, call_build: Command) -> None:
    source, recipe = write_tiny(tmp_path / "source"), tmp_path / "recipe.yaml"
    PUBLISHERS[publisher](source)
    recipe.write_text(RECIPE)
    assert "warning source/other-weights" in call_build(recipe, "--plan", "--model", source).out


def test_weights_that_a_module_of_the_model_has_beside_the_shards_are_carried_over(
    tmp_path: Path, call_build: Command
) -> None:
    source, recipe, output = write_tiny(tmp_path / "source"), tmp_path / "recipe.yaml", tmp_path / "build"
    _embedding(source)
    recipe.write_text(RECIPE)
    assert call_build(recipe, "--model", source, "--output", output).code == 0
    module = "2_Dense/model.safetensors"
    assert (output / module).read_bytes() == (source / module).read_bytes()


@pytest.mark.parametrize(
    ("licence", "entry"),
    [
        ("gemma", {"name": "gemma"}),
        ("llama3.1", {"name": "llama3.1"}),
        ("other", {"name": "other"}),
        ("apache-2.0", {"id": "Apache-2.0"}),
        ("Apache-2.0", {"id": "Apache-2.0"}),
        ("cc-by-nc-4.0", {"id": "CC-BY-NC-4.0"}),
        ("MIT AND Apache-2.0", {"name": "MIT AND Apache-2.0"}),
    ],
)
def test_bill_of_materials_is_valid_whatever_the_licence_is_called(
    licence: str, entry: dict[str, str], tmp_path: Path, call_build: Command
) -> None:
    source, recipe, output = write_tiny(tmp_path / "source"), tmp_path / "recipe.yaml", tmp_path / "build"
    (source / "README.md").write_text(f"---\nlicense: {licence.lower()}\n---\n")
    recipe.write_text(RECIPE.replace("licence: apache-2.0", f"licence: {licence}"))
    built = call_build(recipe, "--model", source, "--output", output)
    assert built.code == 0, built
    bom = (output / "evidence/bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(bom) is None
    assert json.loads(bom)["components"][0]["licenses"] == [{"license": entry}]
