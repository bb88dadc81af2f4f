"""Tiny random models of ten libraries, with the inputs that their users explain."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.coverage.models_as_used import IDS, PICTURE, Example, as_used
from tests.coverage.models_as_used import picture as _picture

# ---------------------------------------------------------------------------------------------------------------- timm

_VIT = {"img_size": PICTURE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TIMM: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "vit_tiny_patch16_224 vit_base_patch16_gap_224 vit_base_patch16_clip_224 vit_base_patch16_siglip_224 "
        "vit_base_patch16_rpn_224 vit_small_patch16_18x2_224 vit_base_patch16_xp_224 vit_relpos_base_patch16_224 "
        "vit_srelpos_small_patch16_224 vit_relpos_base_patch16_clsgap_224 vit_small_patch14_dinov2 "
        "vit_small_patch14_reg4_dinov2 vit_medium_patch16_gap_240 vit_xsmall_patch16_clip_224 deit_tiny_patch16_224 "
        "deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224 "
        "eva02_tiny_patch14_224 eva_giant_patch14_224 flexivit_small cait_xxs24_224 vit_base_patch16_rope_224 "
        "vit_small_patch16_rope_mixed_224 vit_tiny_patch16_dinov3_qkvb samvit_base_patch16 naflexvit_base_patch16_gap "
        "vit_base_patch16_siglip_gap_224 aimv2_large_patch14_224 vit_so150m_patch16_reg4_map_256 "
        "vit_little_patch16_reg4_gap_256".split(),
        _VIT,
    ),
    "test_vit": {}, "test_vit2": {}, "test_vit3": {}, "test_vit4": {}, "test_vit_relpos": {},
    "convit_tiny": {"img_size": PICTURE, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2,
                    "local_up_to_layer": 1},
    "swin_tiny_patch4_window7_224": {"img_size": PICTURE, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4),
                                     "patch_size": 2, "window_size": 4},
    "pvt_v2_b0": {}, "mobilevit_xxs": {}, "pit_ti_224": {}, "visformer_tiny": {}, "crossvit_tiny_240": {},
    "test_maxvit": {}, "test_coatnet": {}, "twins_svt_small": {}, "coat_lite_tiny": {},
}  # fmt: skip


def _timm(name: str, changes: dict[str, Any]) -> Example:
    import timm

    model = timm.create_model(name, pretrained=False, num_classes=5, **changes).eval()
    size = PICTURE if changes else model.default_cfg["input_size"][-1]
    return Example(model, model, _picture(size))


# --------------------------------------------------------------------------------------------------------- vit-pytorch

_PLAIN = {"image_size": PICTURE, "patch_size": 8, "num_classes": 5, "dim": 32, "depth": 2, "heads": 4, "mlp_dim": 48}
VIT_PYTORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit", {}), "SimpleViT": ("simple_vit", {}), "DeepViT": ("deepvit", {}), "PiT": ("pit", {"depth": (1, 1)}),
    "SimpleViT (QK norm)": ("simple_vit_with_qk_norm.SimpleViT", {}),
    "SimpleViT (registers)": ("simple_vit_with_register_tokens.SimpleViT", {}),
    "SimpleViT (value residual)": ("simple_vit_with_value_residual.SimpleViT", {}),
    "SimpleViT (patch dropout)": ("simple_vit_with_patch_dropout.SimpleViT", {}),
    "SimpleViT (hyper-connections)": ("simple_vit_with_hyper_connections.SimpleViT", {"num_residual_streams": 2}),
    "ViT (patch merger)": ("vit_with_patch_merger.ViT", {"patch_merge_layer": 1, "patch_merge_num_tokens": 4}),
    "ViT (small data sets)": ("vit_for_small_dataset.ViT", {}), "ViT (memory)": ("learnable_memory_vit.ViT", {}),
    "ViT (parallel)": ("parallel_vit.ViT", {"num_parallel_branches": 2}),
    "ViT (patch dropout)": ("vit_with_patch_dropout.ViT", {}),
    "CaiT": ("cait", {"cls_depth": 1}), "LocalViT": ("local_vit.LocalViT", {}), "RvT": ("rvt.RvT", {}),
    "XCiT": ("xcit.XCiT", {"cls_depth": 1}), "NormalizedViT": ("normalized_vit.nViT", {}),
    "CCT": ("cct.CCT", {"img_size": PICTURE, "embedding_dim": 32, "n_conv_layers": 1, "num_layers": 2, "num_heads": 4,
                        "mlp_ratio": 2, "num_classes": 5}),
}  # fmt: skip


def _vit_pytorch(where: str, changes: dict[str, Any], name: str) -> Example:
    path, _, cls = where.partition(".")
    module = importlib.import_module(f"vit_pytorch.{path}")
    kind = getattr(module, cls or name)
    arguments = changes if "img_size" in changes else {**_PLAIN, **changes}
    model = kind(**arguments).eval()
    return Example(model, model, _picture())


# ------------------------------------------------------------------------------------------------------ x-transformers

X_TRANSFORMERS: dict[str, dict[str, Any]] = {
    "plain": {}, "rotary": {"rotary_pos_emb": True}, "two key heads": {"attn_kv_heads": 2},
    "alibi": {"alibi_pos_bias": True}, "gated values": {"attn_gate_values": True}, "QK norm": {"attn_qk_norm": True},
    "memory keys": {"attn_num_mem_kv": 3}, "head scales": {"attn_head_scale": True}, "flash": {"attn_flash": True},
    "rms norms": {"use_rmsnorm": True, "ff_glu": True}, "sandwich norms": {"sandwich_norm": True},
    "T5 bias": {"rel_pos_bias": True},
}  # fmt: skip


def _x_transformers(layers: str, changes: dict[str, Any]) -> Example:
    import x_transformers

    of_layers = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8, **changes}
    model = x_transformers.TransformerWrapper(
        num_tokens=50, max_seq_len=16, attn_layers=getattr(x_transformers, layers)(**of_layers)
    ).eval()
    return Example(model, model, IDS, (-1, 1))


# --------------------------------------------------------------------------------------------- and six more of language


def _open_clip(text: bool) -> Example:
    from open_clip.model import CLIP

    torch.manual_seed(0)
    seen = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": PICTURE}
    read = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 4, "layers": 2}
    model = CLIP(16, seen, read).eval()
    return Example(model, model.encode_text, IDS) if text else Example(model, model.encode_image, _picture())


def _transformer_lens(**changes: Any) -> Example:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 2, "d_model": 32, "n_ctx": 16, "d_head": 8, "n_heads": 4, "d_vocab": 50, "act_fn": "gelu"}
    model = HookedTransformer(HookedTransformerConfig(**sizes | changes)).eval()
    return Example(model, model, IDS, (-1, 1))


def _bert_config(**changes: Any) -> Any:
    from transformers import BertConfig

    return BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                      max_position_embeddings=32, **changes)  # fmt: skip


def _sentence_transformers(kind: str) -> Example:
    import sentence_transformers
    from transformers import BertForSequenceClassification, BertModel, BertTokenizer

    with tempfile.TemporaryDirectory() as folder:
        words = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(45))])
        vocabulary = Path(folder) / "vocab.txt"
        vocabulary.write_text(words)
        BertTokenizer(str(vocabulary)).save_pretrained(folder)
        if kind == "CrossEncoder":
            BertForSequenceClassification(_bert_config(num_labels=1)).save_pretrained(folder)
            model = sentence_transformers.CrossEncoder(folder).eval()
            return Example(model, model, IDS, 0)
        BertModel(_bert_config()).save_pretrained(folder)
        parts = importlib.import_module("sentence_transformers.models")
        modules = [parts.Transformer(folder), parts.Pooling(32, pooling_mode=kind)]
        model = sentence_transformers.SentenceTransformer(modules=modules, device="cpu").eval()
    return Example(model, model, IDS, 1)


def _peft(kind: str) -> Example:
    import peft
    from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if kind == "LoRA, BERT":
        base, where = BertForSequenceClassification(_bert_config()), ["query", "value", "dense"]
    elif kind == "LoRA, GPT-2":
        config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32)
        base, where = GPT2LMHeadModel(config), ["c_attn", "c_proj"]
    else:
        config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                             num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
        base, where = LlamaForCausalLM(config), ["q_proj", "v_proj", "o_proj"]
    how = {
        "DoRA, Llama": lambda: peft.LoraConfig(r=2, target_modules=where, use_dora=True, init_lora_weights=False),
        "IA3, Llama": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "o_proj"], feedforward_modules=[]),
        "AdaLoRA, Llama": lambda: peft.AdaLoraConfig(init_r=2, target_r=1, target_modules=where, total_step=10),
    }.get(kind, lambda: peft.LoraConfig(r=2, target_modules=where, init_lora_weights=False))
    model = peft.get_peft_model(base, how()).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "ia3_" in name:
            nn.init.normal_(parameter, std=0.3)
    return Example(model, model, IDS, 1 if "BERT" in kind else (-1, 1))


def _litgpt(name: str) -> Example:
    from litgpt import GPT, Config

    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "padded_vocab_size": 64, "block_size": 32, "head_size": 8,
             "intermediate_size": 48}  # fmt: skip
    known = Config.from_name(name)
    groups = 4 if known.n_query_groups == known.n_head else 1 if known.n_query_groups == 1 else 2
    model = GPT(Config.from_name(name, **sizes, n_query_groups=groups)).eval()
    return Example(model, model, IDS, (-1, 1))


def _whisper() -> Example:
    from whisper.model import ModelDimensions, Whisper

    model = Whisper(ModelDimensions(8, 20, 32, 4, 2, 50, 16, 32, 4, 2)).eval()
    nn.init.normal_(model.decoder.positional_embedding, std=0.1)  # left as it lay in memory
    sound = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(2))
    return Example(model, lambda ids: model.decoder(ids, model.encoder(sound)), IDS, (-1, 1))


def _chronos(bolt: bool) -> Example:
    from chronos import ChronosBoltConfig  # noqa: F401  (the library is there)
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    if not bolt:
        from chronos import ChronosConfig, ChronosModel

        inner = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
        config = ChronosConfig("MeanScaleUniformBins", {"low_limit": -5.0, "high_limit": 5.0}, 8, 4, 50, 2, 0, 1, True,
                               "seq2seq", 1, 1.0, 10, 1.0)  # fmt: skip
        model = ChronosModel(config, inner).eval()
        start = torch.zeros(1, 1).long()
        return Example(model, lambda ids: inner(input_ids=ids, decoder_input_ids=start).logits, IDS, (-1, 1))
    from chronos.chronos_bolt import ChronosBoltModelForForecasting

    of_chronos = {"context_length": 32, "prediction_length": 8, "input_patch_size": 4, "input_patch_stride": 4,
                  "quantiles": [0.1, 0.5, 0.9], "use_reg_token": True}  # fmt: skip
    config = T5Config(**sizes, chronos_config=of_chronos, decoder_start_token_id=0)
    model = ChronosBoltModelForForecasting(config).eval()
    series = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    return Example(model, lambda x: model(context=x).quantile_preds, series, (0, 1))


# ---------------------------------------------------------------------------- libraries that are installed beside these


def _esm() -> Example:
    from esm.model.esm2 import ESM2

    model = ESM2(num_layers=2, embed_dim=32, attention_heads=4).eval()
    return Example(model, lambda ids: model(ids)["logits"], torch.tensor([[0, 5, 6, 7, 8, 9, 2]]), (3, 5))


_OF_DIFFUSERS = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4,
                 "num_layers": 2, "sample_size": 8, "patch_size": 2, "norm_num_groups": 4}  # fmt: skip


def _diffusion(kind: str) -> Example:
    import diffusers

    step = torch.tensor([3])
    if kind == "DiT":
        model = diffusers.DiTTransformer2DModel(**_OF_DIFFUSERS, num_embeds_ada_norm=10).eval()
        made = lambda x: model(x, timestep=step, class_labels=torch.tensor([1])).sample  # noqa: E731
        return Example(model, made, _picture(8, 4), (0, 1, 1))
    model = diffusers.PixArtTransformer2DModel(
        **_OF_DIFFUSERS, cross_attention_dim=16, caption_channels=12, use_additional_conditions=False
    ).eval()
    none, noise = {"resolution": None, "aspect_ratio": None}, _picture(8, 4)
    text = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(4))
    return Example(
        model, lambda t: model(noise, encoder_hidden_states=t, timestep=step, added_cond_kwargs=none).sample, text,
        (0, 1, 1),
    )  # fmt: skip


def _perceiver(io: bool) -> Example:
    import perceiver_pytorch

    sizes = {"depth": 2, "num_latents": 6, "latent_dim": 16, "cross_heads": 1, "latent_heads": 2, "cross_dim_head": 8,
             "latent_dim_head": 8}  # fmt: skip
    x = torch.randn(1, 8, 8, 3, generator=torch.Generator().manual_seed(5))
    if not io:
        bands = {"input_channels": 3, "input_axis": 2, "num_freq_bands": 2, "max_freq": 4.0}
        model = perceiver_pytorch.Perceiver(**sizes, **bands, num_classes=5).eval()
        return Example(model, model, x)
    model = perceiver_pytorch.PerceiverIO(dim=3, queries_dim=16, logits_dim=5, **sizes).eval()
    queries = torch.randn(4, 16, generator=torch.Generator().manual_seed(6))
    return Example(model, lambda t: model(t, queries=queries)[:, 0], x.flatten(1, 2))


def _conformer() -> Example:
    from conformer import Conformer

    model = Conformer(dim=16, depth=2, dim_head=8, heads=2, ff_mult=2, conv_kernel_size=3).eval()
    return Example(model, model, torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(7)), (0, 1))


def _local() -> Example:
    from local_attention import LocalTransformer

    model = LocalTransformer(num_tokens=50, dim=32, depth=2, max_seq_len=32, local_attn_window_size=4, dim_head=8,
                             heads=4).eval()  # fmt: skip
    return Example(model, model, IDS, (-1, 1))


def _installed_beside() -> Iterator[tuple[str, str, Callable[[], Example]]]:
    yield "fair-esm", "ESM-2", _esm
    yield "diffusers", "DiT", lambda: _diffusion("DiT")
    yield "diffusers", "PixArt, text", lambda: _diffusion("PixArt")
    yield "perceiver-pytorch", "Perceiver", lambda: _perceiver(io=False)
    yield "perceiver-pytorch", "Perceiver IO", lambda: _perceiver(io=True)
    yield "conformer", "Conformer", _conformer
    yield "local-attention", "LocalTransformer", _local


LITGPT = (
    "pythia-14m", "Llama-3.2-1B", "phi-2", "gemma-2b", "Gemma-2-2b", "Qwen2.5-0.5B", "Qwen3-0.6B", "falcon-7b",
    "stablelm-3b-4e1t", "OLMo-1B-hf", "SmolLM2-135M", "Mistral-7B-v0.1", "CodeLlama-7b-hf",
)  # fmt: skip


def examples() -> Iterator[tuple[str, str, Callable[[], Example]]]:
    """Library, model and how it is made."""
    for name, changes in TIMM.items():
        yield "timm", name, lambda name=name, changes=changes: _timm(name, changes)
    for name, (where, changes) in VIT_PYTORCH.items():
        yield "vit-pytorch", name, lambda n=name, w=where, c=changes: _vit_pytorch(w, c, n)
    for layers in ("Encoder", "Decoder"):
        for name, changes in X_TRANSFORMERS.items():
            yield "x-transformers", f"{layers}, {name}", lambda k=layers, c=changes: _x_transformers(k, c)
    yield "open_clip", "CLIP, picture", lambda: _open_clip(text=False)
    yield "open_clip", "CLIP, text", lambda: _open_clip(text=True)
    for name, changes in {
        "HookedTransformer": {}, "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 8},
        "attention only": {"attn_only": True}, "gated": {"gated_mlp": True, "normalization_type": "RMS"},
        "grouped heads": {"n_key_value_heads": 2}, "parallel": {"parallel_attn_mlp": True},
        "bidirectional": {"attention_dir": "bidirectional"},
        "shortformer": {"positional_embedding_type": "shortformer"},
    }.items():  # fmt: skip
        yield "TransformerLens", name, lambda c=changes: _transformer_lens(**c)
    for kind in ("mean", "cls", "max", "CrossEncoder"):
        yield "sentence-transformers", kind, lambda k=kind: _sentence_transformers(k)
    for kind in ("LoRA, BERT", "LoRA, GPT-2", "LoRA, Llama", "DoRA, Llama", "IA3, Llama", "AdaLoRA, Llama"):
        yield "peft", kind, lambda k=kind: _peft(k)
    for name in LITGPT:
        yield "litgpt", name, lambda n=name: _litgpt(n)
    yield "openai-whisper", "decoder", _whisper
    yield "chronos", "Chronos (T5)", lambda: _chronos(bolt=False)
    yield "chronos", "Chronos-Bolt", lambda: _chronos(bolt=True)
    yield from as_used()
    yield from _installed_beside()
