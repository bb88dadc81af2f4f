"""From which tokens of a prompt does a decoder take each token of its answer?  Captum's interface for language models.

One teacher-forced pass serves all target tokens: the token at position n is predicted from the row of position n - 1.

Axes: token of what the model reads, target token, feature of the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from captum_norm.attr._base import AttentionMethod, InputMethod
from captum_norm.attr._beside_prompt import check_beside, check_written_with, counting_on
from captum_norm.attr._captum import (
    DEFAULT_GEN_ARGS,
    BaseLLMAttribution,
    LLMAttributionResult,
    TextTemplateInput,
    TextTokenInput,
)
from captum_norm.attr._prompt import Prompt, PromptType, TokensType, known_ids, read_prompt, token_texts
from captum_norm.attr._sources import SourcesType
from captum_norm.attr._teacher_forced import TeacherForced, fixed_arguments
from captum_norm.capture import AttentionCall, Certificate, Mixer
from captum_norm.forward import HFForward
from captum_norm.forward.inputs import check_inputs, longest_input
from captum_norm.forward.keywords import keywords_of, unwrapped
from captum_norm.text_files import check_characters

TargetType: TypeAlias = str | TokensType | Tensor


@dataclass(frozen=True)
class LLMAttributionReport:
    """What a call of ``LLMAttentionAttribution.attribute`` read, and what of it is in no score.

    ``token_attr.sum(1) + to_left_out + to_target`` is the whole row of the method, unless a template groups its values.

    Attributes:
        certificates: each attention call that was read (its ``modules`` left out) with its certificate, in call order.
        left_out: the prompt's tokens that got no score, as text: skipped, or no part of a template's values.
        to_left_out: what the method gives them, (target,), in its unit.
        to_target: what it gives to the target tokens before the one explained, (target,), in its unit.
        delta: for methods that split the target token's logit, the part of it that belongs to no token, (target,); else
            None.
        mixers: what beside attention mixed positions on the way to the calls; methods that compose calls refuse it
            unless they are given ``mixers_as_identity=True``.
    """

    certificates: tuple[tuple[AttentionCall, Certificate], ...] = ()
    left_out: tuple[str, ...] = ()
    to_left_out: Tensor = field(default_factory=lambda: torch.zeros(0))
    to_target: Tensor = field(default_factory=lambda: torch.zeros(0))
    delta: Tensor | None = None
    mixers: tuple[Mixer, ...] = ()


class LLMAttentionAttribution(BaseLLMAttribution):  # type: ignore[misc]  # Captum is not typed
    """Any of the token-level methods of this package for each token that a causal language model writes.

    The prompt and the target run through the model once, as in training (teacher forcing).  The token at position n is
    predicted from the row of the token before it, so the scores of a target token are those of that row.  Methods that
    look at the output (``DecompX``, ``AttentionRelevance``) explain the target token's logit in that row, with a
    backward pass for each.

    Args:
        attr_method: the method, built on the model (or on ``HFForward`` of it): ``AttentionNorm(model)``.
        tokenizer: the model's tokenizer.

    Attributes:
        report: what the last call of ``attribute`` to finish read, and what it left out.

    Raises:
        TypeError: if ``attr_method`` is no method of this kind or holds no model, or there is no tokenizer.
        ValueError: if the model is an encoder-decoder.

    Source: Captum's ``LLMAttribution``, Miglani et al. (2023), https://arxiv.org/abs/2312.05491, for the interface;
    the method's own class for what the scores are.

    Example:
        A decoder of one layer that has learned nothing, and a vocabulary of four words:

        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
        >>> from captum_norm import AttentionWeights
        >>> words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
        >>> config = GPT2Config(vocab_size=4, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
        >>> method = LLMAttentionAttribution(AttentionWeights(GPT2LMHeadModel(config).eval()), tokenizer)
        >>> result = method.attribute("a b c", target="b a")
        >>> result.input_tokens, result.output_tokens, result.token_attr.shape
        (['a', 'b', 'c'], ['b', 'a'], torch.Size([2, 3]))
        >>> (result.token_attr.sum(1) + method.report.to_target).round(decimals=4)  # weights of a row sum to 1
        tensor([1., 1.])
    """

    SUPPORTED_METHODS = (InputMethod,)
    SUPPORTED_INPUTS = (TextTokenInput, TextTemplateInput)

    report: LLMAttributionReport

    def __init__(self, attr_method: Any, tokenizer: Any) -> None:
        _check_method(attr_method)
        _check_tokenizer(tokenizer)
        model = model_of(attr_method, type(self).__name__)
        super().__init__(attr_method, tokenizer)
        self.model = model
        self.attr_method = attr_method
        self.report = LLMAttributionReport()

    def attribute(
        self,
        inp: PromptType,
        target: TargetType = None,
        num_trials: int = 1,
        gen_args: Mapping[str, Any] | None = None,
        use_cached_outputs: bool = True,
        *,
        skip_tokens: TokensType = None,
        sources: SourcesType | None = None,
        **kwargs: Any,
    ) -> LLMAttributionResult:
        """What each token or feature of the prompt contributes to each target token.

        Args:
            inp: the prompt: a text, tokenised with the tokenizer's special tokens; the ids or the tokens of one prompt
                as a list or tensor, taken as they are; Captum's ``TextTokenInput`` or ``TextTemplateInput``; a chat, a
                list of ``{"role", "content"}``, whose turns are then its sources.
            target: the answer: a text, tokenised without special tokens as Captum does; ids or tokens; None lets the
                model write it (``generate``).
            num_trials: mean over so many passes, as in Captum; more than one change only what a model in training mode
                computes, which draws random numbers.
            gen_args: arguments of ``generate`` where ``target`` is None; by default Captum's (25 new tokens, greedy).
            use_cached_outputs: whether ``generate`` keeps keys and values; the pass that is explained never does.
            skip_tokens: ids or tokens of the prompt that get no score; ``report`` says what they would have got.
            sources: passages of a text or chat that are scored in place of its tokens: ``"sentences"``,
                ``"paragraphs"``, ``"turns"``, a function from the text to spans, or spans of characters (start, stop)
                that cover the prompt; ``...`` among them is a source for all the rest.
            **kwargs: for the method's own ``attribute``: ``kind``, ``call``, ``mixers_as_identity``.

        Returns:
            Captum's result.  ``token_attr`` (target, feature) is the score of each feature for each target token, in
            the unit of the method; ``seq_attr`` (feature,) is its sum over the target, as in Captum.  A feature is a
            token of the prompt that is not skipped, or a value of a template: the sum of its tokens, a token that two
            values share being divided by characters.  ``input_tokens`` are the features (of Captum's inputs their
            ``values``), ``output_tokens`` the target's, as text; ``output_probs`` (target,) the model's probabilities.

        Raises:
            TypeError: if prompt, target or tokens are of another kind.
            ValueError: if the prompt or the target is empty, too long or not in the vocabulary, if ``skip_tokens``
                leaves nothing, if ``gen_args`` come with a target or give the model what the explained pass is not
                given, if it is not known how a keyword that ``HFForward`` fixes for the prompt goes on over the target,
                or if the model's attention looks ahead.
            InexactCaptureError: if an attention call cannot be read exactly.
        """
        _check_arguments(num_trials, kwargs)
        prompt = read_prompt(inp, self.tokenizer, skip_tokens, sources)
        skipped = known_ids("skip_tokens", () if skip_tokens is None else skip_tokens, self.tokenizer)
        if skipped.numel():
            check_inputs(self.model, {"skip_tokens input_ids": skipped[None]})
        ids = prompt.ids.to(self.device)
        check_inputs(self.model, {"input_ids": ids})
        answer = self._answer(ids, target, gen_args, use_cached_outputs)
        passes = [TeacherForced(self.attr_method, self.model, ids, answer, kwargs) for _ in range(num_trials)]
        rows = torch.stack([one.rows() for one in passes]).mean(0)
        return self._result(inp, prompt, answer, rows, passes[-1])

    def attribute_future(self) -> None:
        """Not offered: attention is read while the model runs.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("attribute_future is not implemented for LLMAttentionAttribution; use attribute.")

    @classmethod
    def get_name(cls) -> str:
        """The class name as words."""
        return "LLM Attention Attribution"

    @property
    def multiplies_by_inputs(self) -> bool:
        """That of the method inside."""
        return bool(self.attr_method.multiplies_by_inputs)

    def _answer(self, ids: Tensor, target: TargetType, gen_args: Mapping[str, Any] | None, use_cache: bool) -> Tensor:
        """The target's ids, (target,), on the model's device."""
        if target is None:
            answer = self._generated(ids, {"use_cache": use_cache, **(gen_args or DEFAULT_GEN_ARGS)})
        elif gen_args is not None:
            raise ValueError("gen_args say how to write a target, but target is given: leave out one of them.")
        else:
            known = self._encoded(target) if isinstance(target, str) else known_ids("target", target, self.tokenizer)
            answer = known.to(self.device)
        if not answer.numel():
            raise ValueError(f"the target is empty (target={target!r}): there is no token to explain.")
        check_inputs(self.model, {"target input_ids": answer[None]})
        return answer

    def _generated(self, ids: Tensor, arguments: Mapping[str, Any]) -> Tensor:
        generate = getattr(self.model, "generate", None)
        if not callable(generate):
            raise ValueError(f"{type(self.model).__name__} cannot generate a target: give target=.")
        limit, wanted = longest_input(self.model), arguments.get("max_new_tokens")
        if limit is not None and isinstance(wanted, int) and ids.shape[1] + wanted > limit:
            raise ValueError(
                f"max_new_tokens={wanted} after a prompt of {ids.shape[1]} tokens is more than the {limit} positions "
                f"of {type(self.model).__name__}. At most {limit - ids.shape[1]} tokens can be written."
            )
        fixed = fixed_arguments(self.attr_method)
        check_beside(fixed, ids.shape[1])
        check_written_with(arguments, fixed, keywords_of(self.model))
        with torch.no_grad(), counting_on(self.model, fixed):
            given = {"attention_mask": torch.ones_like(ids), **fixed, **arguments}
            written = generate(input_ids=ids, **given)
        sequences: Tensor = written if isinstance(written, Tensor) else written["sequences"]
        return sequences[0, ids.shape[1] :]

    def _encoded(self, text: str) -> Tensor:
        check_characters("the target", text)
        ids = self.tokenizer.encode(text, add_special_tokens=False) if text else []
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in ids and self.tokenizer.unk_token not in text:
            raise ValueError(
                f"target {text!r} is not in the vocabulary: it is read as {token_texts(ids, self.tokenizer)}, in which "
                f"{self.tokenizer.unk_token!r} stands for what the tokenizer does not know."
            )
        return torch.tensor(ids, dtype=torch.long)

    def _result(
        self, inp: PromptType, prompt: Prompt, answer: Tensor, rows: Tensor, one: TeacherForced
    ) -> LLMAttributionResult:
        length = prompt.ids.shape[1]
        scores = prompt.scores(rows[:, :length])
        scored = rows[:, :length] @ prompt.shares.to(rows).sum(0)
        self.report = LLMAttributionReport(
            one.certificates,
            prompt.left_out,
            rows[:, :length].sum(1) - scored,
            rows[:, length:].sum(1),
            one.logits() - rows.sum(1) if self.attr_method.has_convergence_delta() else None,
            one.mixers,
        )
        return LLMAttributionResult(
            input_tokens=prompt.names,
            output_tokens=token_texts(answer.tolist(), self.tokenizer),
            seq_attr=scores.sum(0),
            token_attr=scores,
            output_probs=one.probabilities(),
            inp=inp if isinstance(inp, self.SUPPORTED_INPUTS) else None,
        )


def model_of(method: InputMethod, title: str) -> Module:
    """The language model that a method was built on, for a class called ``title``."""
    forward = unwrapped(method.forward_func)
    model = unwrapped(forward.model) if isinstance(forward, HFForward) else forward
    if not isinstance(model, Module):
        raise TypeError(
            f"{title} needs the model itself, which it calls and lets generate, but "
            f"{type(method).__name__} was built on {model!r}. Build it on the model, or on HFForward(model)."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{title}: {type(model).__name__} is an encoder-decoder, whose prompt and answer are two "
            "sequences. Use the method itself: attribute((input_ids, decoder_input_ids), position=...)."
        )
    return model


def _check_method(method: Any) -> None:
    if not isinstance(method, InputMethod):
        kind = "is a layer class" if isinstance(method, AttentionMethod) else "is none of this package's methods"
        raise TypeError(
            f"LLMAttentionAttribution takes a method with a score for each token, such as AttentionNorm(model), but "
            f"{type(method).__name__} {kind}. For Captum's own methods there is captum.attr.LLMAttribution."
        )


def _check_tokenizer(tokenizer: Any) -> None:
    needed = ("encode", "convert_ids_to_tokens", "convert_tokens_to_ids")
    missing = [name for name in needed if not callable(getattr(tokenizer, name, None))]
    if missing:
        raise TypeError(
            f"LLMAttentionAttribution: tokenizer should be the model's tokenizer, got {type(tokenizer).__name__}, "
            f"which has no {missing[0]}. AutoTokenizer.from_pretrained loads it."
        )


def _check_arguments(num_trials: int, kwargs: Mapping[str, Any]) -> None:
    if isinstance(num_trials, bool) or not isinstance(num_trials, int) or num_trials < 1:
        raise ValueError(f"num_trials should be a number of passes from 1 on, got {num_trials!r}.")
    own = {"inputs", "position", "additional_forward_args", "return_convergence_delta"} & kwargs.keys()
    if own:
        raise TypeError(
            f"LLMAttentionAttribution.attribute sets {sorted(own)[0]} itself: prompt and target say it already."
        )
