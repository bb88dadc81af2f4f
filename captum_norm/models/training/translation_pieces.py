"""Into which pieces does the translation model cut its words?  Byte-pair pieces, learnt from both languages at once."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from captum_norm.models.translation import EOS, SPECIAL_PIECES, UNK


def learn_pieces(sentences: Iterable[Iterable[str]], size: int) -> Tokenizer:
    """Byte-pair pieces for both languages, lower-cased; ß is ss, so that spellings before and after 1996 are one."""
    pieces = Tokenizer(models.BPE(unk_token=SPECIAL_PIECES[UNK]))
    pieces.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("ß", "ss")])
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL_PIECES, show_progress=False)
    pieces.train_from_iterator((" ".join(sentence) for sentence in sentences), trainer)
    end = SPECIAL_PIECES[EOS]
    pieces.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, EOS)])
    return pieces
