"""Are edge scores and circuits what the published definitions say? `python benchmarks/edge_parity.py [FOLDER]`.

1. Four layers of four heads: scores beside a GPT-2 written out plainly (`written_out.py`), in which automatic
   differentiation gives the gradient at each receiver's copy of the stream. Scores are those gradients times the
   differences of what sources write, one at a time: at the clean run, averaged over five points on the way from the
   corrupt embeddings to the clean ones (k/m, k = 1 … m), at both ends, and with each place on its own way.
2. GPT-2-small shape, 32 491 edges, the same weights, tokens and metric: scores and circuits at ten sizes beside EAP-IG
   and auto-circuit, which `edges.py` has run and left in FOLDER; all of them beside the same written out in float64.
   EAP-IG averages over k = 0 … m - 1; with the sides exchanged that is k = 1 … m, which is how it is run here.

Differences are the largest of all edges, as a share of the largest score; of circuits, in logits.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import microtome
from circuit_cases import gpt2_small, prompts
from microtome.circuits import edge_attribution_patching as method
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from written_out import Moved, circuit, difference, entering, forward, gradients, still

STEPS = 5
Module = transformers.GPT2LMHeadModel


class Definition:
    """Scores by definition, in the precision of the module."""

    def __init__(self, module: Module, pairs: Pairs) -> None:
        self.module = module
        self.ids = [one for (one,) in pairs.answers], [one for (one,) in pairs.wrong]
        with torch.no_grad():
            self.clean, self.corrupt = (entering(module, ids) for ids in (pairs.clean, pairs.corrupt))
            self.here, there = (forward(module, first)[1] for first in (self.clean, self.corrupt))
        self.gaps = {name: there[name] - self.here[name] for name in there}

    def at(self, first: Tensor, moved: Moved = still) -> dict[str, Tensor]:
        return gradients(self.module, first, *self.ids, moved)

    def once(self) -> dict[str, Tensor]:
        return self.at(self.clean)

    def along_inputs(self) -> dict[str, Tensor]:
        way = self.clean - self.corrupt
        return _mean([self.at(self.corrupt + step / STEPS * way) for step in range(1, STEPS + 1)])

    def at_ends(self) -> dict[str, Tensor]:
        return _mean([self.at(self.clean), self.at(self.corrupt)])

    def along_layers(self) -> dict[str, Tensor]:
        layers = self.module.config.n_layer
        places = ["embed", *(f"{part}.{layer}" for layer in range(layers) for part in ("z", "mlp_out"))]

        def shifting(place: str, share: float) -> Moved:
            def moved(name: str, value: Tensor) -> Tensor:
                mine = name == place or name.startswith(f"{place}.")
                shifted = self.here[name] + share * self.gaps[name]
                return shifted.detach().requires_grad_() if mine else value

            return moved

        points = [(place, 1 - step / STEPS) for place in places for step in range(1, STEPS + 1)]
        return _mean([self.at(self.clean, shifting(*point)) for point in points])

    def scores(self, slopes: dict[str, Tensor], graph: EdgeGraph) -> Tensor:
        """[receiver, source]; zero where there is no edge."""
        gaps = torch.stack([self.gaps[name] for name in graph.sources]).flatten(1)
        read = torch.stack([slopes[f"{name} {kind}"] for name, kind in graph.receivers]).flatten(1)
        return (read @ gaps.T) * graph.allowed


def _mean(points: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: sum(point[name] for point in points) / len(points) for name in points[0]}


def _ours(model: Model, pairs: Pairs, integrate: str) -> Tensor:
    """[receiver, source], summed over rows."""
    config = method.Config(integrate=integrate, steps=STEPS, checked=0)
    effect = method.run(model, pairs, config).data["effect"].values
    return len(pairs) * torch.from_numpy(np.nan_to_num(effect))


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def small() -> list[str]:
    """Every way to average, on a small network."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=4, n_head=4, n_embd=64, vocab_size=211)
    module = Module(config).eval()
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model, pairs = microtome.load(module), prompts(211)
    graph = EdgeGraph.of(model)
    ours = {name: _ours(model, pairs, name) for name in ("no", "inputs", "ends", "layers")}
    defined = Definition(module.double(), pairs)
    ways = (defined.once, defined.along_inputs, defined.at_ends, defined.along_layers)
    lines = [
        "| integrate | edges | largest difference from float64, of the largest score |",
        "| --- | --- | --- |",
    ]
    for (name, found), way in zip(ours.items(), ways, strict=True):
        expected = defined.scores(way(), graph)
        lines.append(
            f"| {name} | {len(graph)} | {_apart(found, expected) / float(expected.abs().max()):.1e} |"
        )
    return lines


def beside(folder: Path) -> list[str]:
    """GPT-2-small shape, beside public tools."""
    module = gpt2_small()
    model, pairs = microtome.load(module), prompts(50_000)
    graph = EdgeGraph.of(model)
    found = {"scores": _ours(model, pairs, "no"), "along inputs": _ours(model, pairs, "inputs")}
    kept = load_file(folder / "given.safetensors")["circuits"].bool()
    ((batch, ablation),) = EdgePairs(model, graph, pairs, "logit-difference").batches()
    cut = graph.allowed & ~kept
    found["circuits"] = torch.stack([batch.score(one.float(), ablation) for one in cut])

    theirs: dict[str, dict[str, Tensor]] = {"EAP-IG": {}, "auto-circuit": {}}
    for tool, results in theirs.items():
        for work, name in (("attribution", "scores"), ("steps", "along inputs"), ("circuits", "circuits")):
            if (tool, work) == ("auto-circuit", "steps"):
                continue  # it sums over masks, which is another estimate
            (results[name],) = load_file(folder / f"{tool}, {work}.safetensors").values()

    defined = Definition(module.double(), pairs)
    expected = {
        "scores": defined.scores(defined.once(), graph),
        "along inputs": defined.scores(defined.along_inputs(), graph),
        "circuits": torch.stack(
            [
                difference(circuit(module, pairs.clean, pairs.corrupt, one).double(), *defined.ids)
                for one in kept
            ]
        ),
    }
    lines = [
        "| what | largest | ours, EAP-IG | ours, auto-circuit | ours, float64 | EAP-IG, float64 "
        "| auto-circuit, float64 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, truth in expected.items():
        largest = float(truth.abs().max())
        unit = 1.0 if name == "circuits" else largest
        cells = [
            f"{_apart(one, other) / unit:.1e}" if one is not None and other is not None else ""
            for one, other in (
                (found[name], theirs["EAP-IG"][name]),
                (found[name], theirs["auto-circuit"].get(name)),
                (found[name], truth),
                (theirs["EAP-IG"][name], truth),
                (theirs["auto-circuit"].get(name), truth),
            )
        ]
        lines.append(f"| {name} | {largest:.3g} | {' | '.join(cells)} |")
    return lines


def main(folder: str | None = None) -> None:
    torch.set_num_threads(1)
    lines = ["# Edge scores and circuits beside their definitions", "", *small()]
    if folder:
        lines += ["", "GPT-2-small shape, 32 491 edges, circuits at ten sizes. Largest differences"]
        lines += [
            "between two: of scores as shares of the largest, of circuits in logits.",
            "",
            *beside(Path(folder)),
        ]
    text = "\n".join(lines) + "\n"
    Path(__file__).parent.joinpath("results", "edge_parity.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
