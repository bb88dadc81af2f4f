"""What is the smallest random model of a transformers model type, and what goes in?

No checkpoint is needed: the default configuration of the type is shrunk field by field, by the *name* of the field and
the *type* of its default, sub-configurations included.  Lists keep their length where they count stages and lose it
where they count layers.  A handful of types need more than names tell; those are rows in ``OVERRIDES``.

Weights are drawn so that mistakes show: attention far from uniform, biases that are not zero, all of it finite.
"""

from __future__ import annotations

import inspect
import math
import re
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WIDTH, HEADS, HEAD_DIM, LAYERS, VOCABULARY, IMAGE, PATCH = 32, 4, 8, 2, 160, 32, 8

# Sizes by field name.  A field that is a list gets the number in each of its places.
SIZES: dict[str, int] = {
    **dict.fromkeys(
        (
            "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size encoder_hidden_size "
            "decoder_hidden_size hidden_sizes projection_dim word_embed_proj_dim out_hidden_size "
            "output_hidden_size text_hidden_size vision_hidden_size conv_dim fpn_hidden_size "
            "image_text_hidden_size hidden_size_global encoder_hidden_dim encoder_proj_dim decoder_hidden_dim "
            "query_dim attention_hidden_size projector_hidden_size output_dim vision_output_dim adapter_in_dim "
            "adapter_input_size adapter_out_dim mask_feature_size mask_dim text_encoder_width condition_dim "
            "output_channels embed_dim_per_stage backbone_channel_list hidden_dim fusion_hidden_size "
            "neck_hidden_sizes embed_dims encoder_hidden_sizes audio_hidden_size encoder_in_channels "
            "decoder_in_channels mm_hidden_size qformer_hidden_size d_latents d_embed"
        ).split(),
        WIDTH,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers num_layers n_layer n_layers layers depth encoder_layers decoder_layers "
            "num_decoder_layers num_encoder_layers encoder_num_layers decoder_num_layers "
            "encoder_num_hidden_layers decoder_num_hidden_layers vision_layers text_layers t2u_encoder_layers "
            "t2u_decoder_layers speech_encoder_layers resampler_depth memory_attention_num_layers "
            "num_spatial_layers num_temporal_layers num_auxiliary_layers n_modality_encoder_layer "
            "num_hidden_groups"
        ).split(),
        LAYERS,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "attention_heads encoder_num_attention_heads decoder_num_attention_heads "
            "speech_encoder_attention_heads linear_num_value_heads t2u_encoder_attention_heads "
            "t2u_decoder_attention_heads decoder_self_attention_heads resampler_n_heads "
            "decoder_cross_attention_heads memory_attention_num_attention_heads swa_num_attention_heads "
            "index_n_heads conf_num_attention_heads mamba_n_heads linear_num_heads cross_attention_heads "
            "num_attention_heads_per_layer"
        ).split(),
        HEADS,
    ),
    **dict.fromkeys(
        (
            "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads "
            "num_key_value_heads_per_layer attention_groups n_head_kv num_key_value_groups"
        ).split(),
        2,
    ),
    **dict.fromkeys(
        (
            "intermediate_size ffn_dim d_ff d_inner n_inner encoder_ffn_dim decoder_ffn_dim mlp_dim "
            "ffn_hidden_size speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim "
            "dim_feedforward encoder_feedforward_dim dense_intermediate_size decoder_intermediate_size "
            "shared_intermediate_size intermediate_size_mlp memory_attention_feed_forward_hidden_size "
            "memory_fuser_intermediate_dim dense_ffn_hidden_size projection_intermediate_size "
            "encoder_intermediate_size feed_forward_size adapter_intermediate_size"
        ).split(),
        64,
    ),
    **dict.fromkeys(
        (
            "head_dim d_kv d_head global_head_dim swa_head_dim dim_head attention_head_size resampler_head_dim "
            "linear_key_head_dim linear_value_head_dim index_head_dim linear_head_dim qk_head_dim key_dim "
            "decoder_head_dim encoder_head_dim kv_channels attention_head_dim swa_v_head_dim"
        ).split(),
        HEAD_DIM,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
            "moe_hidden_size moe_shared_expert_intermediate_size expert_intermediate_size expert_ffn_hidden_size"
        ).split(),
        32,
    ),
    **dict.fromkeys(("num_experts n_routed_experts num_local_experts moe_num_experts").split(), 4),
    **dict.fromkeys(("num_experts_per_tok moe_topk moe_k moe_top_k").split(), 2),
    **dict.fromkeys(("n_group topk_group n_shared_experts num_expert_group first_k_dense_replace").split(), 1),
    **dict.fromkeys(("kv_lora_rank q_lora_rank o_lora_rank").split(), 16),
    **dict.fromkeys(
        ("vocab_size vocab_size_per_layer_input input_vocab_size output_vocab_size t2u_vocab_size").split(), VOCABULARY
    ),
    **dict.fromkeys(("max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx").split(), 128),
    **dict.fromkeys(("image_size crop_size img_size pretrain_image_size max_img_size").split(), IMAGE),
    **dict.fromkeys(("max_source_positions max_target_positions").split(), 50),
    **dict.fromkeys(("num_mel_bins n_mels input_feat_per_channel").split(), 16),
    **dict.fromkeys(("num_query_tokens num_queries num_image_tokens").split(), 6),
    **dict.fromkeys(("depths stage_num_blocks blocks_per_stage num_block_repeats stage_numb_of_layers").split(), 1),
    **dict.fromkeys(("num_conv_pos_embedding_groups num_groups").split(), 2),
    **dict.fromkeys(
        ("mamba_d_state ssm_state_size state_size mamba_headdim mamba_head_dim hidden_size_per_layer_input").split(), 8
    ),
    "patch_size": PATCH,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "rotary_dim": 4,
    "num_frames": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "num_nextn_predict_layers": 0,
    "num_conv_pos_embeddings": 8,
    "index_topk": 16,
    "attention_window": 4,
    "sliding_window": 4,
    "num_codebooks": 2,
    "num_filters": 4,
    "num_pos_feats": 16,
    "latent_query_num": 6,
    "base_channels": 32,
}
PER_LAYER = ("layer_types", "mlp_layer_types", "indexer_types", "layers_block_type")


@dataclass(frozen=True)
class Variant:
    """How far to shrink; tried in order until a type builds and runs."""

    grouped: bool = True  # fewer key heads than query heads
    fill: bool = False  # also the sizes that the default configuration leaves open
    layers: int = LAYERS


VARIANTS = (
    Variant(),
    Variant(grouped=False),
    Variant(fill=True),
    Variant(grouped=False, fill=True),
    Variant(layers=4),
    Variant(grouped=False, layers=4),
)


def tiny_config(model_type: str, variant: Variant = VARIANTS[0]) -> PretrainedConfig:
    """The default configuration of a model type, shrunk."""
    return shrink(CONFIG_MAPPING[model_type](), OVERRIDES.get(model_type, {}), variant)


def shrink(config: PretrainedConfig, overrides: dict[str, Any], variant: Variant) -> PretrainedConfig:
    """The same class of configuration with small numbers; ``overrides`` are kept as they are, nested by field."""
    if config.model_type == "timm_backbone":  # timm is no dependency: the same place, filled by a ResNet
        config = CONFIG_MAPPING["resnet"](out_features=["stage1", "stage2", "stage3", "stage4"])
    overrides = OVERRIDES.get(config.model_type, {}) | overrides
    kwargs: dict[str, Any] = {}
    own = _defaults(config)
    for name, default in own.items():
        value = config.__dict__.get(config.attribute_map.get(name, name))
        given = overrides.get(name)
        if isinstance(value, PretrainedConfig) and (given is None or isinstance(given, dict)):
            part = shrink(value, given or {}, variant)
            kwargs[name] = part if is_dataclass(config) else part.to_dict()  # transformers 4 takes its parts as dicts
        elif name in overrides:
            kwargs[name] = given
        elif not name.startswith("_") and config.attribute_map.get(name, name) in config.__dict__:
            shrunk = _shrink_field(name, value, default, variant)
            if shrunk is not _DERIVED:
                kwargs[name] = shrunk
    kwargs |= {name: value for name, value in overrides.items() if name not in own}
    if kwargs.get("use_timm_backbone"):
        kwargs |= {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    kwargs |= _stages(config, kwargs)
    kwargs |= _layer_types(config, own, overrides, variant)
    if "rope_parameters" not in overrides and (rope := _rotary_sections(config, kwargs)):
        kwargs["rope_parameters"] = rope
    return type(config)(**kwargs)


def _defaults(config: PretrainedConfig) -> dict[str, Any]:
    """Fields and their defaults; before transformers 5 they are the arguments of ``__init__``."""
    if is_dataclass(config):
        return {field.name: field.default for field in fields(config)}
    parameters = inspect.signature(type(config)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}


def _rotary_sections(config: PretrainedConfig, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Multimodal rotary positions split half a head between time, height and width: the same for a small head."""
    rope = deepcopy(config.__dict__.get("rope_parameters"))
    if not isinstance(rope, dict) or not rope:
        return None
    known = "mrope_section" in (getattr(type(config), "ignore_keys_at_rope_validation", None) or ())
    parts = [rope, *(r for r in rope.values() if isinstance(r, dict))]
    if not known and not any("mrope_section" in part for part in parts):
        return None
    head = kwargs.get("head_dim") or WIDTH // HEADS
    for part in parts[1:] or parts:
        half = int(head * part.get("partial_rotary_factor", 1.0)) // 2
        count = len(part.get("mrope_section", "thw"))
        part["mrope_section"] = [half // count + (i < half % count) for i in range(count)]
    return rope


_DERIVED = object()  # the configuration computes it from other fields


def _shrink_field(name: str, value: Any, default: Any, variant: Variant) -> Any:
    if default is None and value is not None:
        return _DERIVED
    if value is None:
        return SIZES.get(name) if variant.fill else None
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and re.search(r"_(token_id|token_index|tok_id)$", name):
        return _token(name, value)
    if name in SIZES:
        size = SIZES[name]
        if (
            name in ("num_key_value_heads", "num_kv_heads", "n_head_kv", "swa_num_key_value_heads")
            and not variant.grouped
        ):
            size = HEADS
        elif size == LAYERS and ("layer" in name or name == "depth"):
            size = variant.layers
        if isinstance(value, int):
            return size if value == 0 and "heads" in name else min(value, size)
        if isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value):
            return type(value)([2 if "heads" in name else min(v, size) for v in value])
    return value


TOKENS = ("pad", "bos", "eos", "decoder_start", "sep", "cls", "mask", "unk")


def _token(name: str, value: int) -> int:
    """A place for each special token in the small vocabulary: the first few as usual, the others near its end."""
    if value < 60:
        return value
    stem = re.sub(r"_(token_id|token_index|tok_id)$", "", name)
    if stem in TOKENS:
        return TOKENS.index(stem)
    return 100 + sum(map(ord, stem)) % 59


def _stages(config: PretrainedConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Backbones: the feature maps handed on, counted in stages that still exist."""
    if not hasattr(config, "_out_indices"):
        return {}
    names = config.__dict__.get("stage_names") or []
    indices = config.__dict__.get("_out_indices") or []
    if "depths" in kwargs or not names:
        return {"out_indices": list(indices)}
    last = kwargs.get("num_hidden_layers", LAYERS)
    return {"out_indices": [max(0, last - i) for i in range(min(len(indices), last + 1))][::-1]}


def _layer_types(
    config: PretrainedConfig, own: dict[str, Any], overrides: dict[str, Any], variant: Variant
) -> dict[str, Any]:
    """One layer of each type where a configuration lists types by layer."""
    lists = {name: config.__dict__.get(name) for name in PER_LAYER if name in own and name not in overrides}
    lists = {name: types for name, types in lists.items() if isinstance(types, (list, tuple))}
    if not lists:
        return {}
    layers = next(
        (n for n in ("num_hidden_layers", "num_layers", "n_layer", "depth", "decoder_layers") if n in own), None
    )
    count = max([variant.layers, *(len(dict.fromkeys(types)) for types in lists.values())])
    result: dict[str, Any] = {layers: count} if layers and layers not in overrides else {}
    for name, types in lists.items():
        distinct = list(dict.fromkeys(types))
        result[name] = (distinct * count)[:count]
    return result


def tiny_model(config: PretrainedConfig, seed: int = 0, **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModel.from_config(config, **kwargs).float().eval()
    vary(model)
    return model


@torch.no_grad()
def vary(model: nn.Module, gain: float = 1.25) -> None:
    """Draw weights so that attention is far from uniform and no bias is zero."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if isinstance(module, nn.Linear) and name == "weight":
                parameter.normal_(std=gain / math.sqrt(parameter.shape[1]))
            elif isinstance(module, _ConvNd) and parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            elif isinstance(module, nn.Embedding):
                parameter.normal_(std=0.5)
            elif (
                not torch.isfinite(parameter).all()
                or parameter.abs().max() > 1e4
                or (parameter.ndim == 1 and (parameter == 0).all())
            ):
                parameter.normal_(std=0.1)
            elif parameter.ndim == 1 and (parameter == 1).all():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif parameter.ndim >= 2 and 0 <= float(parameter.std()) < 0.05:
                parameter.normal_(std=1 / math.sqrt(max(parameter.shape[-1], 4)))


_SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "window_size": 2,
    "embed_dim": 16,
    "depths": [2, 1, 1, 1],
    "num_heads": [2] * 4,
}
_SERIES = {"prediction_length": 4, "context_length": 8, "num_time_features": 1, "lags_sequence": [1, 2, 3]}
_HGNET = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 32, 32, 32],
    "stage_mid_channels": [16] * 4,
    "stage_out_channels": [32] * 4,
    "stage_num_blocks": [1] * 4,
    "stage_numb_of_layers": [2] * 4,
    "hidden_sizes": [32] * 4,
}
_STATES = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_chunk_size": 4}
_ROPES = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
_EFFICIENT = {"width_coefficient": 0.1, "depth_coefficient": 1.0, "hidden_dim": 128, "image_size": 64}

# What names alone do not tell.  Keys are model types, of whole models or of parts; the rest nests as configurations do.
OVERRIDES: dict[str, dict[str, Any]] = {
    "swin": _SWIN,
    "swinv2": _SWIN,
    "donut-swin": _SWIN,
    "maskformer-swin": _SWIN,
    "autoformer": _SERIES | {"label_length": 4},
    "informer": _SERIES,
    "time_series_transformer": _SERIES,
    "hgnet_v2": _HGNET,
    "bamba": _STATES | {"attn_layer_indices": [1]},
    "granitemoehybrid": _STATES | {"layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 2, "attn_layer_offset": 1, "attn_layer_period": 2, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mimi": {
        "upsample_groups": 32,
        "num_filters": 4,
        "codebook_size": 32,
        "codebook_dim": 16,
        "vector_quantization_hidden_dimension": 16,
    },
    "pocket_tts_audio_tokenizer": {"upsample_groups": 32},
    "pocket_tts_audio_tokenizer_decoder": {"upsample_groups": 32},
    "mimi_decoder": {"upsample_groups": 32},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "attention_head_size": 8,
        "num_buckets": 2,
    },
    "funnel": {"block_sizes": [1, 1], "architectures": ["FunnelModel"]},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "xmod": {"default_language": "en_XX"},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8, "chunk_size": 4},
    "gemma3n_text": {"num_kv_shared_layers": 0, "intermediate_size": 64, "activation_sparsity_pattern": [0.95, 0.0]},
    "gemma3": {"mm_tokens_per_image": 4, "vision_config": {"vision_use_head": False}},
    "bros": {"hidden_size": 64},
    "bridgetower": {"hidden_size": 128, "vision_config": {"hidden_size": 128}, "text_config": {"hidden_size": 128}},
    "blt": {"num_hidden_layers": 2, "encoder_hash_byte_group_vocab": 64},
    "clap_audio_model": {
        "spec_size": 64,
        "patch_embeds_hidden_size": 16,
        "depths": [1] * 4,
        "num_attention_heads": [2] * 4,
        "hidden_size": 128,
        "window_size": 2,
        "num_mel_bins": 32,
    },
    "clvp_encoder": {"hidden_size": 128, "projection_dim": 128},
    "clvp_decoder": {"hidden_size": 128},
    "clvp": {"projection_dim": 128},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dia_decoder": {
        "cross_hidden_size": 32,
        "cross_head_dim": 8,
        "cross_num_attention_heads": 4,
        "cross_num_key_value_heads": 4,
    },
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32},
    "efficientnet": _EFFICIENT,
    "align_vision_model": _EFFICIENT,
    "efficientloftr": {"num_attention_heads": 8, "out_features": [32] * 4, "stage_num_blocks": [1] * 4},
    "ernie4_5_vl_moe_text": {"moe_intermediate_size": [32, 32]},
    "fastspeech2_conformer_with_hifigan": {"vocoder_config": {"model_in_dim": 16, "upsample_initial_channel": 16}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
    "blip-2": {"image_token_index": 101},
    "instructblip": {"image_token_index": 101},
    "instructblipvideo": {"video_token_index": 102},
    "lw_detr_vit": {"num_windows": 4},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "perceiver": {
        "num_latents": 6,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
        "num_cross_attention_heads": 4,
    },
    "moonshine_streaming": {"num_key_value_heads": 4},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "qwen2_5_omni_thinker": {"vision_start_token_id": 6, "vision_end_token_id": 7},
    "seggpt": {"image_size": [64, 32], "intermediate_hidden_state_indices": [0, 1], "merge_index": 0},
    "t5gemma2_encoder": {"text_config": {"dropout_rate": 0.0}},
    "tvp": {"visual_prompt_size": 4, "max_img_size": 64, "num_frames": 4},
    "paddleocr_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}},
    "chameleon": {"vocabulary_map": {"<image>": 101, "IMGIMGAZ": 110}},
    "emu3": {"vocabulary_map": {"<image>": 101}},
    "cohere_compass_text": {"rope_parameters": _ROPES, "layer_types": ["sliding_attention", "full_attention"]},
    "depth_pro": {
        "patch_size": 32,
        "intermediate_hook_ids": [1, 0],
        "intermediate_feature_dims": [32, 32],
        "scaled_images_feature_dims": [32] * 3,
    },
    "lw_detr": {"projector_scale_factors": [1.0]},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "sam2_hiera_det_model": {
        "image_size": [64, 64],
        "hidden_size": 16,
        "embed_dim_per_stage": [16, 32, 64, 128],
        "blocks_per_stage": [1] * 4,
        "num_attention_heads_per_stage": [1, 2, 4, 4],
        "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [0],
        "window_positional_embedding_background_size": [4, 4],
    },
    "sam2_vision_model": {
        "backbone_channel_list": [128, 64, 32, 16],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 4},
    "lilt": {"hidden_size": 48, "channel_shrink_ratio": 4},
    "lxmert": {"l_layers": 1, "x_layers": 1, "r_layers": 1, "visual_feat_dim": 16},
    "neomme": {"head_dim": 16},
    "longcat_flash": {"num_key_value_heads": 4, "qk_rope_head_dim": 8, "head_dim": 8, "qk_nope_head_dim": 8},
    "falcon_h1": _STATES | {"mamba_d_ssm": 64},
}
