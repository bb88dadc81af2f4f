"""What does an explanation of a long answer cost on one GPU?  Random weights of an 8B shape, bfloat16.

    python -m tests.device.span_of_8b                    # 5,000 prompt and 5,000 written tokens, one H100
    python -m tests.device.span_of_8b --small            # the same on a CPU in seconds

A span of the answer alone and one hop through the reasoning (``SpanTrace``): seconds and peak memory of each, beside
those of the model's own forward.  FlashTrace's authors tell 17 s and 170 to 220 GB over several GPUs for as many.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from captum_norm import SpanTrace

EIGHT_BILLION: dict[str, Any] = {
    "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "rope_theta": 500000.0,
}  # fmt: skip
SMALL: dict[str, Any] = {
    "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 128,
}  # fmt: skip


def decoder(shape: dict[str, Any], length: int, device: torch.device) -> Any:
    """A Llama of this shape with random weights."""
    config = transformers.LlamaConfig(**shape, max_position_embeddings=length)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    finally:
        torch.set_default_dtype(torch.float32)


def measured(run: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Seconds of a second run, and on a GPU the most memory that it held, in GB."""
    run()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize()
    found = {"seconds": round(time.perf_counter() - begun, 3)}
    return found | ({"GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if on_gpu else {})


def costs(small: bool, prompt: int, written: int) -> dict[str, Any]:
    """What each costs; the last fifth of what is written is the answer, what comes before it the reasoning."""
    device = torch.device("cuda" if torch.cuda.is_available() and not small else "cpu")
    model = decoder(SMALL if small else EIGHT_BILLION, prompt + written, device)
    tokens = torch.randint(3, model.config.vocab_size, (1, prompt + written), device=device)
    answer = prompt + 4 * written // 5

    @torch.no_grad()
    def forward() -> None:
        model(tokens, logits_to_keep=1)

    def run(tokens: Tensor) -> Any:
        return model(tokens, logits_to_keep=1).logits[:, -1]

    one, hop = SpanTrace(run), SpanTrace(run, hops=1)
    span, reasoning = (answer, prompt + written), (prompt, answer)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "tokens": [prompt, written],
        "forward": measured(forward, device),
        "whole answer": measured(lambda: one.attribute(tokens, span=(prompt, prompt + written)), device),
        "one hop": measured(lambda: hop.attribute(tokens, span=span, reasoning=reasoning), device),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small model on the CPU, 200 and 200 tokens")
    parser.add_argument("--prompt", type=int, help="tokens of the prompt (default: 5000)")
    parser.add_argument("--written", type=int, help="tokens written (default: 5000)")
    asked = parser.parse_args()
    length = 200 if asked.small else 5000
    print(json.dumps(costs(asked.small, asked.prompt or length, asked.written or length), indent=2))


if __name__ == "__main__":
    main()
