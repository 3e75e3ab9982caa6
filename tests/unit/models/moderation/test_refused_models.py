"""Models for moderation that are refused at the start."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.errors import EngineUnavailableError
from models.moderation.build import build_moderation
from models.moderation.settings import ModerationSettings
from tests.support.models.classifiers import CHAT_TEMPLATE, write_guard
from tests.support.models.moderation import copied, edited, refusal


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("moderation_text", "guard"),
        ("moderation_text", "classifier"),
        ("moderation_frames", "images"),
    ],
)
def test_pickled_weights_are_not_loaded(
    folders: Path, tmp_path: Path, setting: str, kind: str
) -> None:
    folder = copied(folders / kind, tmp_path / kind)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    message = refusal(**{setting: str(folder)})
    assert message.startswith(f"MOCHI_{setting.upper()}: {folder} cannot be used: ")
    assert "no weights as safetensors" in message


@pytest.mark.parametrize("kind", ["guard", "classifier", "images"])
def test_a_model_that_lacks_some_of_its_weights_is_refused(
    folders: Path, tmp_path: Path, kind: str
) -> None:
    folder = copied(folders / kind, tmp_path / kind)
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if name in {"lm_head.weight", "classifier.weight"})
    del weights[lost]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    setting = "moderation_frames" if kind == "images" else "moderation_text"
    assert f"it has no weights for {lost}" in refusal(**{setting: str(folder)})


def test_weights_of_another_shape_or_damaged_are_refused(folders: Path, tmp_path: Path) -> None:
    folder = copied(folders / "classifier", tmp_path / "classifier")
    edited(folder / "config.json", id2label={"0": "neutral", "1": "a", "2": "b"})
    assert "it cannot be loaded" in refusal(moderation_text=str(folder))
    (folder / "model.safetensors").write_bytes(b"no header")
    assert "it cannot be loaded" in refusal(moderation_text=str(folder))


def test_numbers_that_are_not_finite_are_found_at_the_start(folders: Path, tmp_path: Path) -> None:
    folder = copied(folders / "classifier", tmp_path / "classifier")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] *= math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "it does not work (The classifier has no answer" in refusal(moderation_text=str(folder))


def test_code_that_comes_with_a_model_is_not_run(folders: Path, tmp_path: Path) -> None:
    folder = copied(folders / "classifier", tmp_path / "classifier")
    ran = tmp_path / "ran"
    (folder / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    own = {"AutoConfig": "modeling_own.C", "AutoModelForSequenceClassification": "modeling_own.M"}
    edited(folder / "config.json", auto_map=own, model_type="own")
    assert "it cannot be loaded" in refusal(moderation_text=str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("missing", ["tokenizer.json", "config.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(
    folders: Path, tmp_path: Path, missing: str
) -> None:
    folder = copied(folders / "guard", tmp_path / "guard")
    (folder / missing).unlink()
    assert f"it lacks {missing}" in refusal(moderation_text=str(folder))


def test_a_language_model_that_is_no_guard_is_refused(tmp_path: Path) -> None:
    folder = write_guard(tmp_path / "chat", template=CHAT_TEMPLATE)
    assert "not a guard such as Qwen3Guard-Gen" in refusal(moderation_text=str(folder))
    (folder / "chat_template.jinja").unlink()
    assert "it cannot be loaded" in refusal(moderation_text=str(folder))


def test_a_model_of_another_kind_is_refused_by_its_kind(folders: Path, tmp_path: Path) -> None:
    images = copied(folders / "images", tmp_path / "images")
    shutil.copy(folders / "guard" / "tokenizer.json", images)
    assert "it is a ViTForImageClassification" in refusal(moderation_text=str(images))
    texts = copied(folders / "guard", tmp_path / "texts")
    shutil.copy(images / "preprocessor_config.json", texts)
    assert "it is a Qwen3ForCausalLM" in refusal(moderation_frames=str(texts))
    edited(texts / "config.json", architectures=[])
    assert "names no architecture" in refusal(moderation_frames=str(texts))


def test_a_device_that_is_not_there_is_refused(folders: Path) -> None:
    message = refusal(
        moderation_text=str(folders / "guard"), moderation_device="cuda", device="cuda:99"
    )
    assert "no card MOCHI_DEVICE=cuda:99" in message


def test_who_has_not_the_model_reads_what_to_type(tmp_path: Path) -> None:
    commit = "1" * 40

    def said(model: str) -> str:
        settings = ModerationSettings(moderation_text=model)
        with pytest.raises(EngineUnavailableError) as error:
            build_moderation(settings, tmp_path)
        return str(error.value)

    command = "Type: mochi-server weights pull --weights Qwen/Qwen3Guard-Gen-0.6B"
    assert f"{command} --data-dir {tmp_path}" in said("Qwen/Qwen3Guard-Gen-0.6B")
    assert f"{command} --revision {commit} --data-dir" in said(f"Qwen/Qwen3Guard-Gen-0.6B@{commit}")
    assert "There is no folder MOCHI_MODERATION_TEXT=/no/such" in said("/no/such")
    assert "There is no folder MOCHI_MODERATION_TEXT=a/b@main" in said("a/b@main")
