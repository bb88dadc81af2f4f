"""Which files does a run end in?  Its averaged weights in half precision, its pieces, and a description with tests."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import MarianMTModel, PreTrainedTokenizerFast

from captum_norm.models.training.bleu import bleu
from captum_norm.models.training.parallel_text import Pair
from captum_norm.models.training.translation_batches import encode
from captum_norm.models.training.translation_run import TranslationRun, summed_loss
from captum_norm.models.translation import load_translation, pieces_beside, untrained_names


def write(run: TranslationRun, held_out: Mapping[str, Sequence[Pair]], card: dict[str, Any]) -> Path:
    """Writes ``translation.safetensors``, description and pieces, tested on the model that the files give.

    Args:
        run: its averaged weights are written to its folder.
        held_out: pairs to test on, by collection.
        card: the description, to which the results of the tests are added.

    Returns:
        The file of weights.
    """
    left_out = untrained_names(run.model)
    tensors = {name: p.half().contiguous() for name, p in run.average.items() if name not in left_out}
    content = save(tensors)
    card["weights"] = {"bytes": len(content), "blake2b": hashlib.blake2b(content).hexdigest()}
    path = run.folder / "translation.safetensors"
    with TemporaryDirectory(dir=run.folder) as folder:
        draft = Path(folder) / path.name
        draft.write_bytes(content)
        shutil.copy(run.folder / "pieces.json", pieces_beside(draft))
        draft.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
        model, tokenizer = load_translation(weights=draft)
        card["held_out"] = {name: tested(model, tokenizer, run.pieces, held) for name, held in held_out.items()}
        draft.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        for part in (pieces_beside(draft), draft, draft.with_suffix(".json")):
            os.replace(part, run.folder / part.name)
    print(json.dumps(card["held_out"]))
    return path


@torch.inference_mode()
def tested(
    model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, pieces: Tokenizer, pairs: Sequence[Pair]
) -> dict[str, float]:
    """The loss per target piece (nats, </s> included) and the BLEU of greedy translations, on lower-cased words.

    Args:
        model: in evaluation mode.
        tokenizer: its tokenizer, which pads.
        pieces: the same vocabulary without padding.
        pairs: to test on.
    """
    rows = encode(pieces, pairs)
    loss = sum(float(summed_loss(model, rows[i : i + 16])) for i in range(0, len(rows), 16))
    count = sum(len(target) + 1 for _, target in rows)
    outputs = [words for i in range(0, len(pairs), 16) for words in translate(model, tokenizer, pairs[i : i + 16])]
    # A reference goes through the vocabulary's spelling as a translation does: ß is ss on both sides.
    references = [pieces.normalizer.normalize_str(" ".join(pair.english)).split() for pair in pairs]
    return {"pairs": len(pairs), "loss": round(loss / count, 4), "bleu": round(bleu(outputs, references), 2)}


def translate(model: MarianMTModel, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> list[list[str]]:
    """The words of greedy translations of the pairs' German."""
    texts = [" ".join(pair.german) for pair in pairs]
    encoding = tokenizer(texts, return_tensors="pt", padding=True)
    longest = min(2 * encoding["input_ids"].shape[1] + 10, 200)
    generator: Any = model  # transformers types generate() for other classes
    ids = generator.generate(**encoding, num_beams=1, do_sample=False, max_new_tokens=longest)
    return [text.split() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
