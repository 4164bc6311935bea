r"""A causal transformer over the patches of a sample: output t is a function of the patches before t (TarFlow,
Zhai et al. 2024, arXiv:2412.06329).

    h⁰_t = W·limit(x_{t−1}) + p_t + C·e,  without the first term at t = 0          p ~ N(0, 1) at the start
    h  ← h + attention(norm(h)),     h ← h + W₂·GELU(W₁·norm(h))                   pre-norm, `depth` times
    out_t = W·norm(h_t),                                                           0 at initialisation

σ and the class, embedded as e, are added to every token (iTARFlow, arXiv:2604.20041), also to the one of the first
patch, which sees nothing else. One token at a time, with the keys and values of those before it kept in a
`Cache`, the network gives the same outputs: an inversion needs T small steps instead of T passes.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowdiff.errors import ConfigError
from flowdiff.nn.bounds import soft_limit, zero_linear
from flowdiff.nn.dropout import drop_values

EXPANSION = 4  # hidden values of an MLP for each of its inputs


class Cache:
    """The keys and values of the first tokens of one layer, in a buffer that is made once, for all of them.

    Args:
        tokens: T, how many there will be.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.length = 0

    def append(self, pair: Tensor) -> Tensor:
        """Key and value of the next token, (2, B, heads, 1, E), to all so far, (2, B, heads, t, E)."""
        if self.length == 0:
            self.kept = pair.new_empty(*pair.shape[:3], self.tokens, pair.shape[4])
        self.kept[:, :, :, self.length] = pair[:, :, :, 0]
        self.length += 1
        return self.kept[:, :, :, : self.length]


def attend(query: Tensor, pair: Tensor, causal: bool) -> Tensor:
    """Attention of queries (B, heads, T, E) to keys and values (2, B, heads, T', E), in their own type.

    Within autocast the plain kernel's backward pass would mix two types.
    """
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(query, pair[0], pair[1], is_causal=causal)


class RMSNorm(nn.Module):
    """h/√(mean h² + 1e-5), times a learned factor for each of the `width` values (Zhang & Sennrich 2019,
    arXiv:1910.07467).

    In plain operations: the losses need third derivatives, and those of torch's fused layer norm are wrong.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5) * self.weight


class Layer(nn.Module):
    """One pre-norm layer of causal self-attention and an MLP on tokens (B, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(RMSNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width)
        hidden = EXPANSION * width
        self.mlp = nn.ModuleDict({"0": nn.Linear(width, hidden), "3": nn.Linear(hidden, width)})  # checkpoints' names

    def _heads(self, h: Tensor) -> Tensor:
        """Queries, keys and values, (3, B, heads, T, width/heads)."""
        return self.qkv(self.norms[0](h)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _finish(self, h: Tensor, attended: Tensor, dropout: float = 0.0) -> Tensor:
        h = h + drop_values(self.mix(attended.transpose(1, 2).flatten(2)), dropout)
        hidden = drop_values(F.gelu(self.mlp["0"](self.norms[1](h))), dropout)
        return h + drop_values(self.mlp["3"](hidden), dropout)

    def forward(self, h: Tensor, dropout: float = 0.0) -> Tensor:
        qkv = self._heads(h)
        return self._finish(h, attend(qkv[0], qkv[1:], causal=True), dropout)

    def step(self, h: Tensor, cache: Cache) -> Tensor:
        """The next token, (B, 1, width), given the cache of those before it."""
        qkv = self._heads(h)
        return self._finish(h, attend(qkv[0], cache.append(qkv[1:]), causal=False))


class CausalTransformer(nn.Module):
    """(B, T, inputs) and an embedding (B, E) to (B, T, outputs), output t from the tokens before t.

    Args:
        tokens: T.
        inputs, outputs: length of a token and of an output.
        context_dim: E.
        width: of the tokens inside.
        depth: layers.
        heads: of each attention; a divisor of the width.

    Raises:
        ConfigError: a size below 1, or heads that don't divide the width.
    """

    def __init__(
        self, tokens: int, inputs: int, outputs: int, context_dim: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError("flow.heads", heads, f"must divide flow.width={width}")
        self.first = nn.Linear(inputs, width)
        self.position = nn.Parameter(torch.randn(tokens, width))
        self.condition = nn.Linear(context_dim, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.last = zero_linear(width, outputs)

    def forward(self, x: Tensor, embedding: Tensor, dropout: float = 0.0) -> Tensor:
        h = F.pad(self.first(soft_limit(x[:, :-1])), (0, 0, 1, 0)) + self.position
        h = h + self.condition(embedding)[:, None]
        for layer in self.layers:
            h = layer(h, dropout)
        return self.last(self.norm(h)).to(x.dtype)


class Decoder:
    """The outputs of a `CausalTransformer` one after the other, without gradients.

    Args:
        network: the transformer.
        embedding: (B, E).
    """

    def __init__(self, network: CausalTransformer, embedding: Tensor) -> None:
        self.network = network
        self.tokens = network.position + network.condition(embedding)[:, None]
        self.caches = [Cache(self.tokens.shape[1]) for _ in network.layers]
        self.length = 0

    def __call__(self, previous: Tensor | None) -> Tensor:
        """Output t, (B, outputs), from token t − 1, (B, inputs); None at t = 0."""
        h = self.tokens[:, self.length, None]
        if previous is not None:
            h = h + self.network.first(soft_limit(previous))[:, None]
        for layer, cache in zip(self.network.layers, self.caches, strict=True):
            assert isinstance(layer, Layer)
            h = layer.step(h, cache)
        self.length += 1
        return self.network.last(self.network.norm(h[:, 0]))


def attention_for(twice: bool, *inputs: Tensor) -> AbstractContextManager[None]:
    """What attention runs in: the plain kernel if the result may be differentiated twice, or by forward-mode AD.

    Args:
        twice: whether a second derivative may follow.
        inputs: what a forward-mode derivative may be taken by.
    """
    plain = twice or any(forward_ad.unpack_dual(x).tangent is not None for x in inputs)
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()
