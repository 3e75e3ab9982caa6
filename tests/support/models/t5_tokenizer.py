"""The files of T5's tokenizer as they lie on the hub, around a small vocabulary."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SPECIAL = ("<pad>", "</s>", "<unk>")
SENTINELS = [f"<extra_id_{number}>" for number in range(100)]
TRAIN = """
import sys
import sentencepiece
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["a panda bakes bread", "the sea at night"] * 20),
    model_prefix=sys.argv[1], vocab_size=60, hard_vocab_limit=False,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
)
print(sentencepiece.SentencePieceProcessor(model_file=sys.argv[1] + ".model").vocab_size())
"""


def write_t5_tokenizer(folder: Path) -> int:
    """Write the files into a new folder. They say how many tokens there are."""
    folder.mkdir()
    train = [sys.executable, "-c", TRAIN, str(folder / "spiece")]
    size = int(subprocess.run(train, check=True, capture_output=True, text=True).stdout)
    (folder / "spiece.vocab").unlink()
    last = size + len(SENTINELS) - 1
    sentinels = {text: last - number for number, text in enumerate(SENTINELS)}
    tokens = {text: number for number, text in enumerate(SPECIAL)} | sentinels
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    named_too: dict[str, Any] = {"additional_special_tokens": SENTINELS}
    own = {"tokenizer_class": "T5Tokenizer", "legacy": True, "extra_ids": 100}
    rule = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {
        str(number): rule | {"content": text, "special": True} for text, number in tokens.items()
    }
    files = {
        "added_tokens": sentinels,
        "special_tokens_map": named | named_too,
        "tokenizer_config": named | named_too | own | {"added_tokens_decoder": decoder},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return last + 1
