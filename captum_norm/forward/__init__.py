"""One forward for every Captum method: ``HFForward(model, mode)(inputs, *additional_forward_args) -> (batch, class)``.

``hugging_face`` has the class; ``modes`` says what its input has to be, and ``encoding`` what of a tokenizer's encoding
is passed on; ``embedding`` finds the module that embeds the input while the model runs, and changes what it returns;
``position`` says whose row is explained; ``causal`` measures whether a model looks ahead; ``keywords`` reads which
names a model takes, and ``extras`` under which of them positional arguments reach it; ``embeds`` makes embeddings of
ids.
"""

from captum_norm.forward.hugging_face import HFForward
from captum_norm.forward.position import Position, real_tokens, resolve_position

__all__ = ["HFForward", "Position", "real_tokens", "resolve_position"]
