"""Which random transformer is it?  A description that can be printed, drawn from one integer.

A seed fixes everything: ``seed % 16`` is the kind of model, the rest is drawn.  A kind of model differs from an
ordinary transformer in one respect, its *variant* (the kind "everything" in several).  ``ordinary`` marks models as
people use them: these must be answered, not refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from random import Random
from typing import Any

from tests.random_models.spellings import MAPS, MEANS, ROWS, SUMS

# What there is to draw from.  Ordinary forms first; the others stand in the drawers of the kinds below.
PROJECTIONS = ("split", "fused", "interleaved", "keys and values fused", "parameters", "low rank")
ATTENTIONS = ("written", "einsum", "einsum heads last", "bmm", "by hand", "sdpa", "sdpa")
SECOND_ELSEWHERE = "two linears, the second by another operation"
OUTPUTS = ("linear", "addmm", "matmul", "einsum", "sum over heads", "adapter")
WHOLE_MODULES = ("MultiheadAttention", "MultiheadAttention time first", "TransformerEncoderLayer")
MASK_FORMS = ("fill -inf", "fill lowest", "where", "add -10000", "add -inf", "setitem", "fill through a view")
SDPA_MASK_FORMS = ("boolean", "add -inf", "add lowest")
POSITIONS = ("none", "learned", "sinusoidal", "rotary", "alibi", "relative")
PADDING_FORMS = (
    "attention_mask", "mask", "key_is_padding", "src_key_padding_mask", "lengths", "4-d boolean", "4-d additive",
)  # fmt: skip
CHANGES = (
    "dropout", "talking heads by linear", "talking heads by convolution", "talking heads by einsum",
    "talking heads by tensordot", "talking heads by matmul", "top-k by mask", "top-k by scatter", "top-k renormalised",
    "top-k at once and renormalised",
    "sharpened", "masked after", "masked after and renormalised", "averaged over heads", "scaled", "scaled by head",
    "gate on heads", "gate on elements", "gate by themselves", "norm before the projection", "batch norm",
    "differential", "sink",
)  # fmt: skip
ORDINARY_CHANGES = ("none", "none", "none", "none", "dropout")
LINEAR_MIXERS = (
    "convolution", "depthwise convolution", "causal convolution", "fourier", "roll", "flip", "average", "halved",
    "cumsum", "cumsum in numpy", "cumsum in torchscript", "cumsum in a function", "token linear", "token shift",
    "recurrence", "centred", "roll through a view", "cumsum through a view", "roll by numpy",
)  # fmt: skip
WRITTEN_ELSEWHERE = {"roll through a view": "roll", "cumsum through a view": "cumsum", "roll by numpy": "roll"}
"""Mixers that write into the memory of a tensor by another way than the tensor itself, and what they compute."""
MIXERS = (*LINEAR_MIXERS, "gru", "token mlp", "squeeze", "norm over positions")
MIXER_PLACES = ("before", "between", "beside", "inside", "end")
BRANCHES = (
    "parallel attention", "unused", "long skip", "embedding again", "dense mean", "two towers", "interleaved",
    "parallel blocks", "parallel blocks scaled", "shared softmax", "weights again", "class attention", "one row last",
    "keys of the token before",
)  # fmt: skip
"""And, where latents read the input, "latents among the keys"."""
OVERWRITTEN = (
    "in place", "through a view", "read by a view", "in detached memory", "row by row", "in a buffer",
    "halved in place", "halved through a view", "halved in detached memory", "halved by its data", "by numpy",
)  # fmt: skip
RESIDUALS = (*OVERWRITTEN, *SUMS)
SPELLED = {
    "relu": ("maximum", "max", "clamp", "where", "its sign", "its size", "addcmul", "threshold", "amax", "clip_"),
    "silu": ("sigmoid", "exp", "glu", "lerp", "addcmul", "addcdiv", "mul_"),
    "gelu": ("erf", "erfc", "ndtr"),
    "tanh": ("expm1",),  # sigmoid and exp are gates
    "gated": ("addcmul", "einsum", "lerp", "mul_"),
    "layer norm": ("var_mean", "std_mean", "vector_norm", "addcmul", "addcdiv", "parts"),
    "rms norm": ("float_power", "addcdiv", "einsum", "matmul", "vecdot", "pow", "vector_norm", "parts"),
}
"""What activations, gates and norms are written by, with the same result."""
ORDINARY_READOUTS = ("mean", "last", "first", "fixed row", "row in target", "hidden layer")
WEIGHTED_READOUTS = ("weighted mean", "weighted twice", "weighted in another format", "weighted in detached memory")
OWN_ROWS = ("own rows by a mask", "own rows by indices", "own rows by a diagonal")
"""Each class is read from a row of its own, the row of its number."""
READOUTS = (*ORDINARY_READOUTS, "attention pooling", "max pooling", "row through a view", *WEIGHTED_READOUTS, *OWN_ROWS)
ROOMS = ("padded", "joined", "in a buffer", "by index_copy")
"""How spare slots come behind keys and values, as in a static cache."""
LATENT_READOUTS = ("first", "last", "mean", "every position", "attention pooling")
REARRANGED = (
    "queries ordered by example", "queries ordered by head", "longest queries, the rest mean",
    "longest queries, the rest nothing", "windows", "shifted windows", "head by head",
)  # fmt: skip

KINDS = (
    "encoder", "decoder", "encoder-decoder", "masks", "padding", "padding", "projections", "projections",
    "weights", "weights", "mixers", "mixers", "branches", "readouts", "dtypes", "everything",
)  # fmt: skip
"""The kind of a seed is ``KINDS[seed % 16]``; some stand twice, for they have more variants."""

ORDINARY_KINDS = ("encoder", "decoder", "encoder-decoder", "masks", "padding", "dtypes")


@dataclass(frozen=True)
class Config:
    """A random transformer: with its seed, everything about it.

    Attributes:
        seed: what parameters and inputs are drawn from.
        kind, variant: what is special about it, in the table's words.
        ordinary: whether it must be answered.
        stack: ``"encoder"`` (attention may look ahead), ``"decoder"``, ``"encoder-decoder"`` or ``"latents"`` (learned
            vectors, each the query of a position that is no input, read the input by cross-attention).
        batch, length, memory: sizes of the input; ``memory`` is the length of the source of an encoder-decoder.
        width, heads, key_heads, head_dim, inner, layers: sizes of the model.
        inputs: ``"ids"`` or ``"vectors"``.
        norm, norm_form: where norms stand and how they are written.
        feed_forward: its activation, or ``"gated"``, and what that is written by; ``beside``: it runs in parallel to
            attention.
        projection, attention, output: how queries, keys and values are made, mixed, and led out.
        mask, mask_form: who may see whom, and how the model says so.
        padding, padding_form: which side is padded, and how the model is told; ``told``: which layers are.
        room, room_form: how many spare slots stand behind the keys, hidden from all queries, and how they come there.
        position: how it knows positions.
        change: what happens to the weights between softmax and product, or to the mixed values.
        mixer, mixer_place: what else mixes positions, and where.
        branch, readout: how the stream runs, and what the output reads.
        prefix: how many learned vectors stand before the tokens (a class token, virtual tokens).
        shared: one layer's parameters serve all layers.
        special: which layers have what is unusual about attention: ``"all"``, the ``"first"`` or the ``"last"``.
        context: the name of the argument by which attention is given what it looks at, itself or another sequence.
        residual: how what a part gives out is added to what it was given: written into memory, or by what operation.
        linear, read_by: what linear maps are written by, and the row or mean that is read, if by no usual operation.
    """

    seed: int
    kind: str
    variant: str = ""
    ordinary: bool = True
    stack: str = "encoder"
    batch: int = 1
    length: int = 5
    memory: int = 4
    width: int = 12
    heads: int = 2
    key_heads: int = 2
    head_dim: int = 4
    inner: int = 10
    layers: int = 2
    dtype: str = "float32"
    inputs: str = "ids"
    bias: bool = True
    norm: str = "pre"
    norm_form: str = "layer norm"
    feed_forward: str = "gelu"
    beside: bool = False
    projection: str = "split"
    attention: str = "written"
    output: str = "linear"
    mask: str = "none"
    mask_form: str = "fill -inf"
    padding: str = ""
    padding_form: str = ""
    told: str = "all"
    room: int = 0
    room_form: str = ""
    position: str = "none"
    change: str = "none"
    mixer: str = ""
    mixer_place: str = ""
    branch: str = ""
    readout: str = "every position"
    prefix: int = 0
    shared: bool = False
    context: str = "context"
    special: str = "all"
    residual: str = ""
    linear: str = ""
    read_by: str = ""

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults; seed and kind always."""
        default = {f.name: f.default for f in fields(self)}
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def of_layer(self, number: int) -> Config:
        """The config of one layer: as this one, or with ordinary attention in its place."""
        if self.special == "all" or number == (0 if self.special == "first" else self.layers - 1):
            return self
        return replace(
            self,
            change=self.change if self.change in ORDINARY_CHANGES else "none",
            projection=self.projection if self.projection in (*PROJECTIONS, "inside") else "split",
            attention=self.attention if self.attention in (*ATTENTIONS, *WHOLE_MODULES) else "written",
            output=self.output if self.output in (*OUTPUTS, "inside") else "linear",
            linear=self.linear_elsewhere,
        )

    def is_told(self, number: int) -> bool:
        """Whether a layer is told of padding."""
        return self.told == "all" or number == (0 if self.told == "first" else self.layers - 1)

    @property
    def linear_elsewhere(self) -> str:
        """What linear maps are written by but for the second factor of W_O, which may be the only one so written."""
        return "" if self.output == SECOND_ELSEWHERE else self.linear

    @property
    def crossing(self) -> bool:
        """Whether its layers have cross-attention, too."""
        return self.stack in ("encoder-decoder", "latents")

    @property
    def causal(self) -> bool:
        """Whether no position of the last stack sees a later one in its self-attention."""
        return self.mask in ("causal", "causal window")


def drawn(seed: int) -> Config:
    """The model of a seed.

    Example:
        >>> drawn(3).kind
        'masks'
    """
    random = Random(seed)
    kind = KINDS[seed % len(KINDS)]
    config = _DRAWERS[kind](random, replace(_ordinary(random, seed), kind=kind))
    if kind not in ORDINARY_KINDS and random.random() < 0.15:
        config = replace(config, residual=random.choice(RESIDUALS), ordinary=False)
    if kind not in ORDINARY_KINDS and random.random() < 0.15:
        forms = {name: function_of(getattr(config, name)) for name in ("feed_forward", "norm_form")}
        spelled = {name: f"{form} by {random.choice(SPELLED[form])}" for name, form in forms.items()}
        config = replace(config, ordinary=False, **spelled)
    if kind not in ORDINARY_KINDS and random.random() < 0.15:
        config = replace(config, ordinary=False, linear=random.choice(tuple(MAPS)))
    if kind not in ORDINARY_KINDS and config.readout in ("mean", "first", "last") and random.random() < 0.3:
        forms = MEANS if config.readout == "mean" else ROWS
        config = replace(config, ordinary=False, read_by=random.choice(tuple(forms)))
    if kind in ORDINARY_KINDS and config.stack in ("encoder", "decoder") and random.random() < 0.12:
        config = replace(config, room=random.choice((1, 3)), room_form=random.choice(ROOMS))
    if kind == "padding" and random.random() < 0.15:
        config = replace(config, told=random.choice(("first", "last")), ordinary=False)
    return consistent(config)


def function_of(spelled: str) -> str:
    """Which function it is, whatever it is written by.

    Example:
        >>> function_of("relu by maximum"), function_of("relu")
        ('relu', 'relu')
    """
    return spelled.partition(" by ")[0]


def seeds_of(kind: str | None, start: int, count: int) -> list[int]:
    """The first ``count`` seeds from ``start`` on that are of this kind; of any, for None."""
    if kind is not None and kind not in KINDS:
        known = ", ".join(dict.fromkeys(KINDS))
        raise ValueError(f"there is no kind {kind!r} of random models: choose one of {known}.")
    slots = [slot for slot, name in enumerate(KINDS) if kind in (None, name)]
    found, seed = [], start
    while len(found) < count:
        if seed % len(KINDS) in slots:
            found.append(seed)
        seed += 1
    return found


def _ordinary(random: Random, seed: int) -> Config:
    heads = random.choice((1, 2, 2, 3, 4))
    stack = random.choice(("encoder", "decoder"))
    attention = random.choice(ATTENTIONS)
    return Config(
        seed=seed,
        kind="",
        stack=stack,
        batch=random.choice((1, 2, 3)),
        length=random.randint(4, 8),
        memory=random.randint(3, 7),
        width=random.choice((8, 12, 16, 20)),
        heads=heads,
        key_heads=random.choice([g for g in (1, 2, 3, 4) if heads % g == 0]),
        head_dim=random.choice((2, 4, 6)),
        inner=random.choice((6, 10, 14)),
        layers=random.choice((1, 2, 2, 3)),
        dtype=random.choice(("float32", "float32", "float64")),
        inputs=random.choice(("ids", "ids", "vectors")),
        bias=random.random() < 0.8,
        norm=random.choice(("pre", "pre", "post", "post", "sandwich", "none")),
        norm_form=random.choice(("layer norm", "layer norm", "rms norm", "rms norm by hand", "layer norm by hand")),
        feed_forward=random.choice(("relu", "gelu", "silu", "tanh", "gated")),
        beside=random.random() < 0.1,
        projection=random.choice(PROJECTIONS),
        attention=attention,
        output=random.choice(OUTPUTS),
        mask="causal" if stack == "decoder" else "none",
        mask_form=random.choice(SDPA_MASK_FORMS if attention == "sdpa" else MASK_FORMS),
        position=random.choice(("none", "learned", "sinusoidal", "rotary")),
        change=random.choice(ORDINARY_CHANGES),
        readout=random.choice(("every position", "last" if stack == "decoder" else "first")),
        shared=random.random() < 0.1,
    )


def _encoder(random: Random, config: Config) -> Config:
    readout = random.choice(("every position", "first", "pooler"))
    config = replace(config, stack="encoder", mask="none", readout=readout)
    return _whole_module(random, config) if random.random() < 0.25 else config


def _decoder(random: Random, config: Config) -> Config:
    return replace(config, stack="decoder", mask="causal", readout=random.choice(("every position", "last")))


def _encoder_decoder(random: Random, config: Config) -> Config:
    config = replace(config, beside=False)
    if random.random() < 0.25:  # learned vectors that read the input, in place of a decoder's prefix
        position = config.position if config.position in ("learned", "sinusoidal") else "none"
        readout = random.choice(LATENT_READOUTS)
        ordinary = readout != "attention pooling"
        if random.random() < 0.25:
            config, ordinary = replace(config, branch="latents among the keys"), False
        return replace(config, stack="latents", mask="none", position=position, readout=readout, ordinary=ordinary,
                       variant="latents")  # fmt: skip
    config = replace(config, stack="encoder-decoder", mask="causal", readout="every position")
    if random.random() >= 0.2:
        return config
    return _whole_module(random, replace(config, context=random.choice(("context", "memory"))), "MultiheadAttention")


def _masks(random: Random, config: Config) -> Config:
    mask = random.choice(("none", "causal", "window", "causal window", "prefix", "isolated"))
    position = random.choice(POSITIONS)
    stack = "decoder" if mask in ("causal", "causal window") else "encoder"
    readout = random.choice(("every position", "last" if stack == "decoder" else "first"))
    return replace(config, variant=f"{mask}, {position}", mask=mask, position=position, stack=stack, readout=readout)


def _padding(random: Random, config: Config) -> Config:
    form, side = random.choice(PADDING_FORMS), random.choice(("left", "right"))
    config = replace(config, batch=random.choice((2, 3)), padding=side, padding_form=form, variant=f"{form}, {side}")
    if config.stack == "encoder" and random.random() < 0.3:
        return _whole_module(random, config)
    return config


def _projections(random: Random, config: Config) -> Config:
    where, what = random.choice(
        (
            ("projection", "heads as modules"),
            ("projection", "convolution"),
            ("output", "convolution"),
            ("output", "two linears"),
            ("output", "two linears in a Sequential"),
            ("output", SECOND_ELSEWHERE),
            ("output", "einsum at once"),
            ("output", "addmm for each head"),
            ("output", "projected heads as modules"),
            ("output", "adapter after the residual"),
            ("attention", "matrices for each head"),
            ("attention", "chunks of queries"),
            ("attention", "baddbmm"),
            ("attention", "vmap"),
            ("attention", "multiply and sum"),
            ("attention", "normalised afterwards"),
            ("attention", "halves of keys"),
            ("attention", "softmax and product in numpy"),
            ("attention", "softmax and product in torchscript"),
            ("attention", "softmax and product in a function"),
            *(("attention", form) for form in REARRANGED),
        )
    )
    attention, mask_form = random.choice(("written", "bmm", "einsum")), random.choice(MASK_FORMS)
    config = replace(config, variant=f"{where}: {what}", ordinary=False, attention=attention, mask_form=mask_form)
    if what == SECOND_ELSEWHERE:
        config = replace(config, linear=random.choice(tuple(MAPS)))
    return _in_some_layers(random, replace(config, **{where: what}))


def _weights(random: Random, config: Config) -> Config:
    change = random.choice(CHANGES)
    config = replace(config, change=change, variant=change, ordinary=change in ("dropout", "scaled", "gate on heads"))
    if config.attention == "sdpa":
        config = replace(config, attention="written")
    heads = 1 if config.heads == 1 and change in ("sharpened", "sink", "dropout") else max(config.heads, 2)
    config = replace(config, heads=heads, key_heads=heads, mask_form=random.choice(MASK_FORMS))
    return _in_some_layers(random, config)


def _in_some_layers(random: Random, config: Config) -> Config:
    """What is unusual in all layers, or in one beside ordinary ones."""
    return replace(config, special=random.choice(("all", "first", "last")), layers=max(config.layers, 2))


def _mixers(random: Random, config: Config) -> Config:
    mixer, place = random.choice(MIXERS), random.choice(MIXER_PLACES)
    place = "between" if mixer == "halved" and place in ("beside", "inside") else place
    layers = max(config.layers, 2)
    return replace(
        config, mixer=mixer, mixer_place=place, variant=f"{mixer}, {place}", layers=layers, ordinary=False
    )  # fmt: skip


def _branches(random: Random, config: Config) -> Config:
    branch = random.choice(BRANCHES)
    layers = max(config.layers, 2)
    return replace(config, branch=branch, variant=branch, layers=layers, ordinary=branch == "unused")


def _readouts(random: Random, config: Config) -> Config:
    if random.random() < 0.2:
        return _with_prefix(random, config)
    readout = random.choice(READOUTS)
    layers = max(config.layers, 2) if readout == "hidden layer" else config.layers
    config = replace(config, readout=readout, variant=readout, layers=layers, ordinary=readout in ORDINARY_READOUTS)
    if random.random() < 0.3:  # the row then differs from example to example
        config = replace(config, batch=3, padding=random.choice(("left", "right")), padding_form="attention_mask")
    return config


def _with_prefix(random: Random, config: Config) -> Config:
    """A class token in an encoder, virtual tokens in a decoder."""
    if config.stack == "encoder":
        return replace(config, prefix=1, readout="first", variant="class token")
    return replace(config, prefix=random.choice((1, 2, 3)), readout="last", variant="virtual tokens")


def _dtypes(random: Random, config: Config) -> Config:
    dtype = random.choice(("float64", "bfloat16", "float16"))
    norm = "pre" if config.norm == "none" else config.norm
    layers = min(config.layers, 2)  # what is rounded in one layer, the next ones magnify
    mask_form = random.choice(SDPA_MASK_FORMS[1:])
    return replace(config, dtype=dtype, variant=dtype, norm=norm, layers=layers, mask_form=mask_form)


def _everything(random: Random, config: Config) -> Config:
    config = _masks(random, config)
    for draw in random.sample((_padding, _projections, _weights, _mixers, _branches, _readouts), 2):
        config = draw(random, config)
    return replace(config, variant="", ordinary=False)


_DRAWERS = {
    "encoder": _encoder,
    "decoder": _decoder,
    "encoder-decoder": _encoder_decoder,
    "masks": _masks,
    "padding": _padding,
    "projections": _projections,
    "weights": _weights,
    "mixers": _mixers,
    "branches": _branches,
    "readouts": _readouts,
    "dtypes": _dtypes,
    "everything": _everything,
}


def _whole_module(random: Random, config: Config, module: str | None = None) -> Config:
    """Attention by one of torch's own modules."""
    module = module or random.choice(WHOLE_MODULES)
    heads = random.choice((1, 2, 4))
    config = replace(
        config,
        attention=module,
        heads=heads,
        key_heads=heads,
        width=heads * config.head_dim,
        projection="inside",
        output="inside",
        mask_form=random.choice(("boolean", "add -inf")),
        position=config.position if config.position in ("none", "learned", "sinusoidal") else "none",
        change="none",
        bias=True,
    )
    if module == "TransformerEncoderLayer":
        norm = random.choice(("pre", "post"))
        activation = random.choice(("relu", "gelu"))
        config = replace(config, norm=norm, norm_form="layer norm", feed_forward=activation, beside=False)
    return config


def _of_the_branch(config: Config) -> dict[str, Any]:
    """What a branch leaves no choice of."""
    changes: dict[str, Any] = {}
    if config.branch in ("shared softmax", "weights again"):
        changes |= {"attention": "written", "special": "all", "shared": False}
        changes |= {"change": "none" if config.change == "differential" else config.change}
    if config.branch == "keys of the token before":
        changes |= {"padding": "", "padding_form": "", "stack": "encoder", "mask": "none", "prefix": 0}
        changes |= {"readout": "first" if config.readout == "last" else config.readout}
        apart = ("heads as modules", "fused", "interleaved")  # keys and values are those of another state
        changes |= {"projection": "split"} if config.projection in apart else {}
        together = (*REARRANGED, *WHOLE_MODULES)
        changes |= {"attention": "written"} if config.attention in together else {}
        changes |= {"projection": "split", "output": "linear"} if config.projection == "inside" else {}
    if config.branch.startswith("parallel blocks"):
        changes |= {"norm": "pre", "shared": False}
    if config.branch in ("class attention", "one row last"):
        changes |= {"padding": "", "padding_form": "", "prefix": 0, "shared": False, "stack": "encoder", "mixer": "",
                    "mixer_place": "", "attention": "written", "special": "all", "mask": "none"}  # fmt: skip
        changes |= {"position": config.position if config.position in ("learned", "sinusoidal") else "none"}
        changes |= {"readout": "last" if config.branch == "one row last" and config.readout == "last" else "first"}
        apart = ("heads as modules", "fused", "interleaved")  # the class token alone is a query of all
        changes |= {"projection": "split"} if config.projection in apart else {}
        changes |= {"change": config.change if config.change in (*ORDINARY_CHANGES, "scaled", "sharpened") else "none"}
    return changes


def consistent(config: Config) -> Config:
    """The nearest model that can exist."""
    changes: dict[str, Any] = {}
    if config.projection == "interleaved" and (
        config.key_heads != config.heads or config.crossing
    ):  # one block for each head
        changes["projection"] = "split"
    if config.projection == "heads as modules":
        changes |= {"attention": "written", "key_heads": config.heads, "output": "linear", "change": "none"}
        changes |= {"position": config.position if config.position in ("learned", "sinusoidal") else "none"}
    if config.output in ("einsum at once", "projected heads as modules") or config.change == "differential":
        changes["attention"] = "written"
    if config.attention in ("normalised afterwards", "halves of keys"):
        changes["change"] = "none"
    elif config.change not in ("none", "dropout") and config.attention not in ("written", "bmm", "einsum"):
        changes["attention"] = "written"
    on_mixed_values = config.change.startswith("gate") or config.change == "norm before the projection"
    if (on_mixed_values or config.change == "differential") and config.output == "einsum at once":
        changes["output"] = "linear"
    attention = changes.get("attention", config.attention)
    if config.change in ("batch norm",):  # masked keys get weight, too: only where all is seen
        changes |= {"mask": "none", "stack": "encoder", "padding": "", "padding_form": "", "readout": "first"}
    if attention in REARRANGED or config.branch in ("shared softmax", "weights again"):
        changes |= {"projection": "split"} if config.projection == "heads as modules" else {}
        changes |= {"output": "linear" if config.output == "einsum at once" else config.output}
    apart = config.norm in ("none", "pre", "post") and not (config.branch or config.beside or attention in REARRANGED)
    if config.output == "adapter after the residual" and not apart:
        changes["output"] = "adapter"
    if attention == "head by head":
        changes["output"] = "sum over heads"
    if attention in ("windows", "shifted windows", "longest queries, the rest mean"):  # of all, whoever may see whom
        changes |= {"mask": "none", "stack": "encoder", "padding": "", "padding_form": "", "prefix": 0}
        changes |= {"readout": "first" if config.readout == "last" else config.readout}
    if attention.endswith("windows"):  # two of one size
        changes |= {"length": config.length + config.length % 2}
        changes |= {"position": config.position if config.position in ("learned", "sinusoidal") else "none"}
    changes |= _of_the_branch(config)
    written = changes.get("attention", config.attention) not in ("sdpa", *WHOLE_MODULES)
    if written and config.mask_form not in MASK_FORMS:
        changes["mask_form"] = "fill lowest" if config.dtype.endswith("16") else "fill -inf"
    if config.norm == "none" and config.mask_form == "add -10000":  # scores may be as large
        changes["mask_form"] = "fill -inf" if written else "add -inf"
    if config.norm != "pre" or config.branch:  # only then is it clear what the residual of attention is
        changes["beside"] = False
    if not (config.padding and config.padding_form):
        changes |= {"padding": "", "padding_form": ""}
    if config.prefix and config.padding:  # one of them is enough
        changes["prefix"] = 0
    if config.mixer and config.padding:  # padding would be mixed in
        changes |= {"padding": "", "padding_form": ""}
    if config.mixer == "halved" and (attention.endswith("windows") or config.branch):  # halves of one size, sums
        changes["mixer"] = "roll"
    if config.mixer == "halved" and config.readout == "row in target":
        changes["readout"] = "every position"
    if config.prefix and config.readout == "every position":  # of tokens or of vectors?
        changes["readout"] = "last" if config.stack == "decoder" else "first"
    moves = WRITTEN_ELSEWHERE.get(config.mixer, config.mixer) in ("roll", "flip")
    if moves and config.readout == "every position":  # first and last are then two things
        changes["readout"] = "last" if config.stack == "decoder" else "first"
    if config.shared:
        changes["special"] = "all"
    if config.told != "all":  # what one layer hides another one looks at, though not as torch's modules leave it
        told = "all" if changes.get("attention", config.attention) in WHOLE_MODULES else config.told
        changes |= {"told": told, "layers": max(config.layers, 2)}
    with_room = changes.get("projection", config.projection) != "heads as modules" and config.change in ORDINARY_CHANGES
    if not with_room or config.position == "relative" or changes.get("attention", config.attention) in WHOLE_MODULES:
        changes |= {"room": 0, "room_form": ""}
    if changes.get("readout", config.readout) in OWN_ROWS:
        changes |= {"padding": "", "padding_form": "", "prefix": 0}
    if changes.get("attention", config.attention) == "TransformerEncoderLayer":
        changes |= {"residual": "", "linear": ""}
    elif changes.get("attention", config.attention) in WHOLE_MODULES and config.residual in OVERWRITTEN:
        changes["residual"] = ""
    if changes.get("readout", config.readout) not in (("mean",) if config.read_by in MEANS else ("first", "last")):
        changes["read_by"] = ""
    if config.residual == "by numpy" and config.dtype == "bfloat16":  # which numpy has not
        changes["residual"] = "in place"
    if config.attention == "TransformerEncoderLayer":
        changes |= {"feed_forward": function_of(config.feed_forward), "norm_form": "layer norm"}
        changes |= {"mixer_place": "between" if config.mixer else "", "branch": ""}
    return replace(config, **changes)
