"""Which types the methods that compose calls refuse, and whether there is an answer: what going through them showed.

Refusals that name what mixes positions, or a skip over blocks, say what a type is; the others are told by name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

from tests.coverage.methods import reason

STILL_REFUSED = (
    ("bridgetower", "those that compose calls",
     "its bridges add a layer of each tower to a stream of the cross-modal encoder: a sum of several layers"),
    ("diffusion_gemma", "AttentionNorm",
     "where its decoder looks at the prompt within a window, keys out of it are not there, though they would"
     " only have no weight: calls of different keys; aggregate=n answers"),
    ("gemma4_vision", "those of one row",
     "patches are pooled by a matrix behind the last layer, which is not followed; position= answers"),
    ("jetmoe", "all but DecompX",
     "tokens choose experts, which have queries and W_O of their own, of one and the same keys: no call is read"),
    ("mobilebert", "AttentionNorm",
     "each row begins as three neighbouring tokens side by side, and is not told to be the middle one's; a row of three"
     " rightly composes no calls"),
    ("mllama, picture beside text", "all but maps",
     "its cross-attention reads two tiles in one row, which are not told to be of one example"),
    ("pegasus_x", "all but DecompX",
     "tokens within windows and global tokens of their own attend to each other: keys of two sequences in each window"),
    ("prophetnet", "those of its encoder's text",
     "its decoder asks in three streams, one of which is read: fifteen queries where five are explained"),
    ("reformer", "AttentionNorm",
     "its chunks are sorted by hashes and put back behind the product, by an index that is not followed; two streams of"
     " residuals, which rightly compose no calls"),
    ("t5gemma2", "those that compose calls",
     "its decoder looks at itself and at the encoder in one softmax: keys of two sequences"),
    ("timesfm, timesfm2_5", "AttentionNorm",
     "32 values of a series lie beside 32 flags of padding where one token is made of them; scaled by the statistics of"
     " others, which rightly composes no calls"),
    ("timm's CaiT", "all but maps and DecompX",
     "its class token joins the tokens late and alone asks: its calls have no mean with those before, and no rows"),
    ("vit_mae", "all but DecompX, in a batch",
     "it keeps patches at random, other ones of each picture; one picture at a time answers"),
)  # fmt: skip
"""(models, methods, why): what is refused although there is an answer."""

_KINDS: dict[str, str] = {
    "sound: convolutions that overlap make frames, none of which is a position of the input": """
        audio-spectrogram-transformer audioflamingo3_encoder canary cohere_asr data2vec-audio gemma3n_audio gemma4_audio
        glmasr_encoder hubert lasr_ctc lasr_encoder mimi mimi_encoder moonshine moonshine_streaming
        moss_transcribe_diarize_audio nemotron3_5_asr nemotron3_5_transcribe_asr_audio nemotron3_5_transcribe_audio
        nemotron3_diarization nemotron3_diarization_audio nemotron_asr_streaming nemotron_asr_streaming_encoder
        parakeet_ctc parakeet_encoder parakeet_rnnt parakeet_tdt pe_audio_encoder pocket_tts_audio_tokenizer
        pocket_tts_audio_tokenizer_encoder qwen2_audio_encoder qwen3_asr_encoder sew sew-d speech_to_text unispeech
        unispeech-sat voxtral_encoder voxtral_realtime_encoder wav2vec2 wav2vec2-conformer wavlm whisper xcodec""",
    "frames made of codes, tokens or frames: several of each, by learned lengths or a transposed convolution": """
        fastspeech2_conformer fastspeech2_conformer_with_hifigan mimi_decoder nemotron3_5_transcribe_word_timestamp
        pocket_tts_audio_tokenizer_decoder vits""",
    "patches overlap, or are merged or pooled on the way: keys of a later stage are no positions of the picture": """
        clap cvt donut-swin efficientloftr florence2 glpn groupvit hiera levit maskformer-swin minicpm_ocr_vision
        minicpmv4_7_vision mobilevit pvt pvt_v2 sam2 sam2_hiera_det_model sam2_vision_model segformer swin swin2sr
        swinv2""",
    "object queries and cells of a feature map, or masks drawn from it, behind convolutions": """
        conditional_detr d_fine dab-detr deformable_detr deimv2 detr grounding-dino lw_detr mask2former maskformer
        mm-grounding-dino oneformer pp_doclayout_v4 rf_detr rt_detr rt_detr_v2 sam sam3 sam3_lite_text sam_hq
        table-transformer""",
    "points, crops or pictures put together: points chosen in feature maps, crops at several sizes, two pictures in one"
    " row and their mean": "depth_pro lightglue seggpt",
    "tokens merged into fewer, or keys made of several tokens": """
        blt canine convbert deepseek_v4 funnel nystromformer zaya""",
    "frames of a film apart: the class token is copied to each, and its copies are averaged after each layer": (
        "timesformer"
    ),
    "a series whose tokens read values at several times (lags), or are all scaled by its statistics": """
        informer patchtst time_series_transformer""",
    "two towers: learned queries of one are rows of the other, or it reads every layer of it": """
        blip-2 clvp kosmos-2 pi0""",
    "what attention mixed loses its part along the query's own value before W_O": "neomme",
    "several streams of residuals, or of words and boxes side by side": "gemma3n_text glm5_next glm5_next_text lilt",
    "short convolutions, and each layer reads a mean over what all layers before it left": "inkling2 inkling2_text",
}
"""Types by what keeps them from an answer that the methods' definitions would have."""

_BY_REASON = {
    "something leads past a call": "a skip over blocks: embeddings that enter each layer anew, sums of several layers,"
    " loops that are given their input again",
    "rows are replaced between calls": "windows that are filled up with new rows in each layer, to which tokens attend",
}


def rightly_refused(answers: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Rows (types, what they are, which) of the types for which calls are composed by no method, rightly.

    Args:
        answers: of each type that was asked, what keeps each method from answering.
    """
    wrongly = {name for names, _, _ in STILL_REFUSED for name in names.split(", ")}
    kinds: dict[str, list[str]] = defaultdict(list)
    for model_type, of_type in answers.items():
        why = of_type["AttentionRollout"]
        if why and model_type not in wrongly:
            kinds[_kind(model_type, why)].append(model_type)
    rows = sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0]))
    return [[str(len(types)), kind, ", ".join(types)] for kind, types in rows]


def _kind(model_type: str, why: str) -> str:
    named = {name: kind for kind, names in _KINDS.items() for name in names.split()}
    if model_type in named:
        return named[model_type]
    if reason(why) == "something else mixes positions":
        convolves = any(word in why for word in ("conv2d", "interpolate", "kernel"))
        return _CONVOLUTIONS if convolves else _HYBRIDS
    return _BY_REASON.get(reason(why), UNKNOWN)


_HYBRIDS = "hybrids: state spaces, linear attention, recurrences, convolutions of the text beside or between attention"
_CONVOLUTIONS = "convolutions or resampling of the picture behind attention, of which the output is made"
UNKNOWN = "not gone through"


def answered_anyway(answers: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """Types that are told to be refused, and are not."""
    told = [name for names in _KINDS.values() for name in names.split()]
    yield from (name for name in told if name in answers and not answers[name]["AttentionRollout"])
