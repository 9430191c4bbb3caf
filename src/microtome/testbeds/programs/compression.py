"""How does a compiled network come to have superposition? Its stream is put through a matrix, into fewer dimensions.

1. A matrix `[d_model, narrow]` takes each direction of the wide stream to a direction of the narrow one: its rows are
   the true dictionary. Everything that writes is multiplied by it, everything that reads by its transpose.
2. *Turned*: the rows span the subspace that everything written on any input lies in, in a random basis. Categorical
   variables fill less room than they have directions (their values add up to one), so there are more directions than
   dimensions and no axis means anything; network and edges carry the same up to rounding.
3. *Learned*: fewer dimensions yet, so that something must be lost. First the matrix is trained to keep what heads, MLPs
   and the unembedding read of the wide network's streams; then the whole narrow network to give the right answers.

Lindner et al. (2023), Tracr, section 5, for learned compression by one matrix.
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.site import Site
from microtome.models.load import load
from microtome.models.transformer import Block, Transformer, TransformerConfig
from microtome.testbeds.edge_ablation import writes
from microtome.testbeds.programs.assembly import SHARP
from microtome.testbeds.training import train

_READ: Final = ("embed.weight", "q.weight", "k.weight", "v.weight", "up.weight")  # and the unembedding
_WRITTEN: Final = ("attn.o.weight", "mlp.down.weight")
_ADDED: Final = ("attn.o.bias", "mlp.down.bias")
ROWS: Final = 400
STEPS: Final = (1500, 1000)
RATES: Final = (3e-3, 2e-3)


def compressed(wide: Transformer, matrix: Float[Tensor, "d_model narrow"]) -> Transformer:
    """The network with its stream put through the matrix."""
    module = _empty(wide, matrix.shape[1])
    module.load_state_dict(_weights(wide, matrix.detach()))
    return module.eval()


def occupied(
    wide: Transformer, tokens: Int[Tensor, "row column"], seed: int
) -> Float[Tensor, "d_model narrow"]:
    """An orthonormal basis, turned by a random rotation, of the subspace that what each part writes on these inputs
    lies in. (The streams alone would lie in less, but then parts would say things that others take back.)"""
    written = writes(load(wide), tokens)
    basis = _basis(torch.cat([each.flatten(0, 1) for each in written.values()]).unique(dim=0))
    turn = torch.linalg.qr(torch.randn(basis.shape[1], basis.shape[1], generator=generator(seed)).double()).Q
    return (basis @ turn).float()


def learned(
    wide: Transformer,
    tokens: Int[Tensor, "row column"],
    targets: Int[Tensor, "row place"],
    fewer: int,
    seed: int,
    steps: tuple[int, int] = STEPS,
) -> Float[Tensor, "d_model narrow"]:
    """A matrix into `fewer` dimensions less than the streams occupy, trained on these inputs and their answers (which
    stand at the columns after the first)."""
    source = generator(seed, 1)
    some = tokens[torch.randperm(len(tokens), generator=source)[:ROWS]]
    basis = _basis(_streams(wide, some))
    start = basis[:, : basis.shape[1] - fewer].float()
    holder = nn.ParameterDict({"matrix": start + 0.02 * torch.randn(start.shape, generator=source)})
    reads = _reads(wide, some)
    module = _empty(wide, start.shape[1])

    def kept(holder: nn.Module, _: None) -> Tensor:
        matrix = holder.get_parameter("matrix")
        lost = [((x @ matrix @ matrix.T - x) @ reader).pow(2).sum(1).mean() for x, reader in reads]
        return torch.stack(lost).sum()

    def wrong(holder: nn.Module, rows: Tensor) -> Tensor:
        logits = functional_call(
            module, _weights(wide, holder.get_parameter("matrix")), (tokens[rows],)
        ).logits
        return functional.cross_entropy(logits[:, 1:].flatten(0, 1), targets[rows].flatten())

    for number, (count, rate) in enumerate(zip(steps, RATES, strict=True)):
        optimizer = torch.optim.Adam(holder.parameters(), lr=rate)

        def fading(step: int, count: int = count) -> float:
            return max(1e-3, 1 - step / count)

        if number == 0:
            train(holder, optimizer, lambda step: None, kept, count, rate=fading)
        else:
            train(
                holder,
                optimizer,
                lambda step: torch.randint(len(tokens), (128,), generator=generator(seed, 2, step)),
                wrong,
                count,
                rate=fading,
            )
    return holder["matrix"].detach()


def _empty(wide: Transformer, narrow: int) -> Transformer:
    told = {name: value for name, value in wide.config.to_diff_dict().items() if name in _SIZES}
    return Transformer(TransformerConfig(**told | {"hidden_size": narrow}))


_SIZES: Final = (
    "vocab_size num_hidden_layers num_attention_heads head_dim intermediate_size max_position_embeddings positions "
    "norm hidden_act bias causal"
).split()


def _weights(wide: Transformer, matrix: Float[Tensor, "d_model narrow"]) -> dict[str, Tensor]:
    found = {}
    for name, parameter in wide.state_dict().items():
        if name.endswith(_READ):
            found[name] = parameter @ matrix
        elif name.endswith(_WRITTEN):
            found[name] = matrix.T @ parameter
        elif name.endswith(_ADDED):
            found[name] = parameter @ matrix
        else:
            found[name] = parameter
    return found


@torch.no_grad()
def _streams(wide: Transformer, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "vector d_model"]:
    model = load(wide)
    sites = [site for site in model.sites() if site.part in ("resid_pre", "resid_mid", "resid_post")]
    run = model.run(tokens, sites)
    return torch.cat([run[site].flatten(0, 1) for site in sites]).unique(dim=0)


def _basis(streams: Float[Tensor, "vector d_model"]) -> Float[Tensor, "d_model rank"]:
    """Directions in which the streams lie, those of most weight first."""
    _, sizes, directions = torch.linalg.svd(streams.double(), full_matrices=False)
    rank = int((sizes > 1e-5 * sizes[0]).sum())
    return directions[:rank].T


@torch.no_grad()
def _reads(wide: Transformer, tokens: Int[Tensor, "row column"]) -> list[tuple[Tensor, Tensor]]:
    """Streams, and what is read from them there, each about as large as a number of the program."""
    model = load(wide)
    sites = [site for site in model.sites() if site.part in ("resid_pre", "resid_mid", "resid_post")]
    run = model.run(tokens, sites)
    found: list[tuple[Tensor, Tensor]] = []
    for layer in range(model.n_layers):
        block = wide.blocks[layer]
        assert isinstance(block, Block)
        attention = block.attn
        reader = torch.cat([attention.q.weight, attention.k.weight / SHARP, attention.v.weight])
        found.append((run[Site("resid_pre", layer)], reader))
        if block.mlp is not None:
            found.append((run[Site("resid_mid", layer)], block.mlp.up.weight))
    unembed = wide.unembed.weight
    found.append((run[Site("resid_post", model.n_layers - 1)], unembed / unembed.abs().max()))
    return [(stream.flatten(0, 1), reader.T.clone()) for stream, reader in found]
