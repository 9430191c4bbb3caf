"""Programs as networks: ours or one of GPT-2's shape, with the truth about every variable, head and edge attached.

    reverse = compile_program(program, vocabulary=("a", "b", "c"), length=5)
    reverse.run([["a", "b", "c"]])          # what the network says, value by value
    model, truth = microtome.load(reverse.transformer()), reverse.truth()

Input is BOS and then the tokens; the answer to a token stands at its position. Of two columns of weights with the same
sum the network knows no difference, so everything here is exact up to float32: attention that chooses gives the rest
less than e^-50.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.case import Truth, Variable
from microtome.testbeds.programs.assembly import Assembly, Head, Neuron, Place
from microtome.testbeds.programs.language import Expression, Value
from microtome.testbeds.programs.values import Domain


@dataclass(frozen=True, eq=False)
class Compiled:
    """A program with its weights laid out. Make it with `compile_program`."""

    assembly: Assembly

    @property
    def domain(self) -> Domain:
        """Vocabulary, greatest length, causality."""
        return self.assembly.domain

    @cached_property
    def labels(self) -> tuple[Value, ...]:
        """What each id stands for: the tokens, BOS (`None`), then outputs that are no tokens."""
        tokens = self.domain.vocabulary
        return (*tokens, None, *(value for value in self.assembly.output.values if value not in tokens))

    @property
    def bos(self) -> int:
        """The id that opens every input."""
        return len(self.domain.vocabulary)

    def id(self, value: Value) -> int:
        """The id of a token or an output. Raises `InputError` for what is neither."""
        if value is None or value not in self.labels:
            known = ", ".join(repr(label) for label in self.labels if label is not None)
            raise InputError(f"{value!r} is neither a token nor an output of this program; there are {known}")
        return self.labels.index(value)

    def encode(self, inputs: Sequence[Sequence[Value]]) -> Int[Tensor, "row column"]:
        """Ids of inputs of one length. Raises `InputError` for unknown tokens, too long inputs, unequal lengths."""
        lengths = {len(one) for one in inputs}
        if len(lengths) != 1 or not 1 <= (length := lengths.pop()) <= self.domain.length:
            raise InputError(
                f"expected inputs of one length from 1 to {self.domain.length}, got lengths "
                f"{sorted({len(one) for one in inputs})}; compile the program for a greater length, or "
                "run one at a time"
            )
        for one in inputs:
            for token in one:
                if token not in self.domain.vocabulary:
                    known = ", ".join(map(repr, self.domain.vocabulary))
                    raise InputError(f"{token!r} is not in the vocabulary of this program: {known}")
        assert length
        return torch.tensor(
            [[self.bos, *(self.domain.vocabulary.index(token) for token in one)] for one in inputs]
        )

    def decode(self, logits: Float[Tensor, "row column label"]) -> list[list[Value]]:
        """The output at every position after BOS."""
        outputs = torch.tensor([self.id(value) for value in self.assembly.output.values])
        best = outputs[logits[:, 1:, outputs].argmax(dim=-1)]
        return [[self.labels[one] for one in row] for row in best.tolist()]

    @torch.no_grad()
    def run(self, inputs: Sequence[Sequence[Value]]) -> list[list[Value]]:
        """What our own network computes."""
        return self.decode(self.transformer()(self.encode(inputs)).logits)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """layers, heads, d_model, d_head, d_mlp."""
        assembly = self.assembly
        heads = [head for layer in assembly.heads.values() for head in layer]
        return {
            "layers": assembly.layers,
            "heads": max((len(layer) for layer in assembly.heads.values()), default=1),
            "d_model": assembly.width,
            "d_head": max((head.width for head in heads), default=1),
            "d_mlp": max((len(layer) for layer in assembly.neurons.values()), default=0),
        }

    def transformer(self) -> Transformer:
        """Our own small transformer, without norms."""
        sizes = self.sizes
        config = TransformerConfig(
            vocab_size=len(self.labels),
            hidden_size=sizes["d_model"],
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            head_dim=sizes["d_head"],
            intermediate_size=sizes["d_mlp"],
            max_position_embeddings=self.domain.length + 1,
            norm="none",
            hidden_act="relu",
            causal=self.domain.causal,
        )
        module = Transformer(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            assert module.pos_embed is not None
            self._ends(module.embed, module.pos_embed, module.unembed)
            for layer, block in enumerate(module.blocks):
                attn = block.attn
                for slot, head in enumerate(self.assembly.heads.get(layer, [])):
                    rows = slice(slot * sizes["d_head"], (slot + 1) * sizes["d_head"])
                    query, bias, key, value, output = self._head(head)
                    attn.q.weight[rows], attn.k.weight[rows], attn.v.weight[rows] = query.T, key.T, value.T
                    attn.q.bias[rows] = bias
                    attn.o.weight[:, rows] = output.T
                if block.mlp is not None:
                    for number, neuron in enumerate(self.assembly.neurons.get(layer, [])):
                        reads, writes = self._neuron(neuron)
                        block.mlp.up.weight[number], block.mlp.up.bias[number] = reads, neuron.bias
                        block.mlp.down.weight[:, number] = writes
        return module

    def gpt2(self) -> GPT2LMHeadModel:
        """A network of GPT-2's shape whose norms do nothing. Raises `InputError` for a program that sees later
        positions, which GPT-2 cannot."""
        if not self.domain.causal:
            raise InputError(
                "GPT-2 sees no later position and this program does; compile it with causal=True, or use transformer()"
            )
        sizes = self.sizes
        width = sizes["heads"] * max(sizes["d_head"], -(-sizes["d_model"] // sizes["heads"]))
        config = GPT2Config(
            vocab_size=len(self.labels),
            n_positions=self.domain.length + 1,
            n_embd=width,
            n_layer=sizes["layers"],
            n_head=sizes["heads"],
            n_inner=max(1, sizes["d_mlp"]),
            activation_function="relu",
            tie_word_embeddings=False,
            bos_token_id=self.bos,
            eos_token_id=self.bos,
        )
        module = GPT2LMHeadModel(config).eval()
        per_head = width // sizes["heads"]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            body = module.transformer
            self._ends(body.wte, body.wpe, module.lm_head)
            body.ln_f = nn.Identity()
            for layer, block in enumerate(body.h):
                block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
                for slot, head in enumerate(self.assembly.heads.get(layer, [])):
                    query, bias, key, value, output = self._head(head, per_head)
                    for which, weight in enumerate((query, key, value)):
                        start = which * width + slot * per_head
                        block.attn.c_attn.weight[: weight.shape[0], start : start + weight.shape[1]] = weight
                    start = slot * per_head
                    block.attn.c_attn.bias[start : start + len(bias)] = bias
                    block.attn.c_proj.weight[start : start + len(output), : output.shape[1]] = output
                for number, neuron in enumerate(self.assembly.neurons.get(layer, [])):
                    reads, writes = self._neuron(neuron)
                    block.mlp.c_fc.weight[: len(reads), number] = reads
                    block.mlp.c_fc.bias[number] = neuron.bias
                    block.mlp.c_proj.weight[number, : len(writes)] = writes
        return module

    def truth(self) -> Truth:
        """Where every variable of the program stands, who computes it, and the edges along which it is read.

        Left out are decoys, and what is constant: the embedding's constant and BOS, of which heads make use too.
        """
        needed = self.assembly.needed
        edges: dict[tuple[str, str, str], Edge] = {}
        for place in needed:
            for read, kind in place.reads:
                edge = Edge(read.writer, place.writer, kind)
                edges[edge.ends] = edge
        last = Edge(self.assembly.output.writer, "logits", "logits")
        nodes = {"logits", *(place.writer for place in needed)}
        used = {end for edge in (*edges.values(), last) for end in (edge.source, edge.target)}
        return Truth(
            circuit=Circuit.of(sorted(nodes & used), [*edges.values(), last]),
            variables=tuple(self.variable(place) for place in needed),
        )

    def variable(self, place: Place) -> Variable:
        """A sequence as a variable of the answer key."""
        directions = torch.zeros(len(place.columns), self.assembly.width)
        directions[torch.arange(len(place.columns)), torch.tensor(place.columns)] = 1.0
        values = () if place.numerical else tuple(_plain(value) for value in place.values)
        writer = "" if place.writer.endswith("embed") else place.writer
        return Variable(place.name, self._site(place), directions, values, writer)

    def _site(self, place: Place) -> Site:
        if place.stage == 0:
            return Site("resid_pre", 0)
        layer = (place.stage - 1) // 2
        between = place.stage % 2 and self.sizes["d_mlp"]
        return Site("resid_mid" if between else "resid_post", layer)

    def _ends(self, embed: nn.Module, positions: nn.Module, unembed: nn.Module) -> None:
        assembly = self.assembly
        assert isinstance(embed.weight, Tensor)
        assert isinstance(positions.weight, Tensor)
        assert isinstance(unembed.weight, Tensor)
        embed.weight[:, assembly.one] = 1.0
        embed.weight[self.bos, assembly.bos] = 1.0
        for token, column in enumerate(assembly.tokens.columns):
            embed.weight[token, column] = 1.0
        for position, column in enumerate(assembly.positions.columns):
            positions.weight[1 + position, column] = 1.0
        values, readout = assembly.readout()
        for value, row in zip(values, readout, strict=True):
            unembed.weight[self.id(value), : len(row)] = row

    def _head(self, head: Head, d_head: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Query weight and bias, key, value `[d_model, d_head]` and output `[d_head, d_model]` of a head."""
        width, wide = self.assembly.width, self.sizes["d_head"]
        query, key, value, output = (torch.zeros(width, wide) for _ in range(4))
        bias = torch.zeros(wide)
        for matrix, entries in (
            (query, head.query),
            (key, head.key),
            (value, head.value),
            (output, head.output),
        ):
            for column, dim, weight in entries:
                matrix[column, dim] += weight
        for dim, weight in head.query_bias:
            bias[dim] += weight
        # The kernel divides scores by the root of its own width.
        return query, bias, key * (d_head or wide) ** 0.5, value, output.T

    def _neuron(self, neuron: Neuron) -> tuple[Tensor, Tensor]:
        found = torch.zeros(2, self.assembly.width)
        for row, entries in enumerate((neuron.reads, neuron.writes)):
            for column, weight in entries.items():
                found[row, column] = weight
        return found[0], found[1]


def compile_program(
    output: Expression,
    vocabulary: Sequence[Value],
    length: int,
    *,
    causal: bool = False,
    decoys: Sequence[Expression] = (),
) -> Compiled:
    """Lay out the weights of a program.

    length: the greatest number of tokens. causal: selectors see no later position. decoys: other programs that are
    computed in the same network and read by nothing.

    Raises `InputError` for what cannot compile, with the reason.
    """
    return Compiled(Assembly(output, Domain(tuple(vocabulary), length, causal), tuple(decoys)))


def _plain(value: Value) -> str | int | float | bool:
    return value if isinstance(value, (str, int, float, bool)) else str(value)
