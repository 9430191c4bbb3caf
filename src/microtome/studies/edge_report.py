"""How do circuits of edges read? Drawn from the prompt to the logits, with what stands behind each node and edge."""

from dataclasses import replace
from typing import Any

from microtome.circuits import edge_circuit
from microtome.core.circuit import Circuit, Edge
from microtome.core.result import Result
from microtome.core.shapes import Arc, Graph, Node
from microtome.core.site import Site
from microtome.evaluation import circuit_tests
from microtome.models.components import spoken
from microtome.studies.study import Account, TaskAccount
from microtome.view.page import Section

_THROUGH = {
    "q": "its queries",
    "k": "its keys",
    "v": "its values",
    "mlp": "its input",
    "logits": "the unembedding",
}


def edge_section(task: TaskAccount) -> Section:
    """A task's circuit of edges with its scores and controls; the reason where there is none."""
    heading = "The circuit, edge by edge"
    if "edges" not in task.record:
        return Section(heading, (f"No circuit of edges was looked for: {task.record['no_edges']}.",))
    results = task.results
    return Section(
        heading,
        _told(task.record["edges"]),
        (edge_graph(task), *results["circuit_tests"].shapes(), *results["circuit_curves"].shapes()),
    )


def together_section(account: Account) -> Section:
    """All circuits of edges put in the place of the network."""
    together = account.together
    heading = "All circuits at once"
    if together is None:
        return Section(
            heading, ("No task has a circuit of edges, so there is nothing to put in the network's place.",)
        )
    kept = sorted(together.together.values())
    return Section(
        heading,
        (
            f"With every edge cut that is in no task's circuit, {together.union} of {together.total} edges stay. They "
            f"keep {kept[0]:.2f} to {kept[-1]:.2f} of the behaviours, on held-out prompts. Off the diagonal of the map "
            "is what a circuit keeps of a task that it was not found for: little, where circuits are specific.",
        ),
        (together.table(), together.grid()),
    )


def edge_graph(task: TaskAccount) -> Graph:
    """The circuit drawn; nodes and edges say, when chosen, what was measured of them."""
    found, tests = task.results["edge_circuit"], task.results["circuit_tests"]
    assert isinstance(found, edge_circuit.Result)
    circuit = _members(found.circuit)
    sentences = dict(zip(task.record["nodes"], task.record["sentences"], strict=True))
    levels = {
        depth: float(rank) for rank, depth in enumerate(sorted({_depth(name) for name in circuit.nodes}))
    }
    nodes = tuple(
        Node(
            name,
            _spoken(name),
            levels[_depth(name)],
            circuit.weight(name),
            {"embed": "input", "pos_embed": "input", "logits": "output"}.get(name, name.split(".")[0]),
            _of_node(name, circuit, sentences.get(name, "")),
        )
        for name in circuit.nodes
    )
    evidence = _evidence(found, tests)
    arcs = tuple(
        Arc(edge.source, edge.target, edge.weight, edge.kind, evidence.get(edge.ends, ""))
        for edge in circuit.edges
    )
    return Graph(
        f"Edges of {task.task.name}",
        nodes,
        arcs,
        unit="share of the behaviour",
        caption=f"{len(found.circuit.edges)} of {found.data.sizes['edge']} edges, from the embedding (below) to the "
        "logits (above). An edge weighs what the circuit loses without it, on the prompts for finding; a node what its "
        "outgoing edges weigh together; negative: it works against the answer. Edges between the same two parts are "
        "drawn as one. Choose a node or an edge for what was measured of it.",
    )


def _told(r: dict[str, Any]) -> tuple[str, ...]:
    low, high = r["interval"]
    failed = [name for name, one in r["tests"].items() if not one["passed"]]
    stood = [name for name, one in r["tests"].items() if one["passed"]]
    return (
        f"{r['edges']} of {r['total']} edges ({r['bits']:.0f} bits to name them). On held-out prompts, with every "
        f"other edge cut, they keep {r['kept']:.2f} of the behaviour (95 % interval {low:.2f} to {high:.2f}); random "
        f"circuits with at least as many edges keep {r['random']:.2f} on average and {r['random_best']:.2f} at best. "
        f"With them cut {r['left']:.2f} is left.",
        f"Of five tests it stands {', '.join(stood) or 'none'}"
        + (f" and fails {', '.join(failed)}." if failed else ".")
        + f" Over circuit sizes the ranking has a CPR of {r['cpr']:.2f} and a CMD of {r['cmd']:.2f} (sizes as asked).",
    )


def _members(circuit: Circuit) -> Circuit:
    """An edge into heads that share a key drawn to each of them that is in the circuit."""
    edges = []
    for edge in circuit.edges:
        heads = _heads(edge.target)
        present = [head for head in heads if any(other.source == head for other in circuit.edges)]
        edges += [replace(edge, target=target) for target in present or [edge.target]]
    used = {end for edge in edges for end in (edge.source, edge.target)}
    return Circuit.of({name: circuit.weight(name) for name in circuit.nodes if name in used}, edges)


def _arcs(circuit: Circuit, evidence: dict[tuple[str, str, str], str]) -> tuple[Arc, ...]:
    """Edges with what was measured of them; those between the same two nodes as one, of their weights together."""
    between: dict[tuple[str, str], list[Edge]] = {}
    for edge in circuit.edges:
        between.setdefault((edge.source, edge.target), []).append(edge)
    return tuple(
        Arc(
            source,
            target,
            sum(edge.weight for edge in edges),
            ", ".join(edge.kind for edge in edges),
            " ".join(evidence[edge.ends] for edge in edges if edge.ends in evidence),
        )
        for (source, target), edges in between.items()
    )


def _heads(name: str) -> list[str]:
    if not name.startswith("z."):
        return [name]
    site = Site.parse(name)
    return [str(Site("z", site.layer, heads=(head,))) for head in site.heads or ()]


def _depth(name: str) -> tuple[float, bool]:
    """Where a node stands in a pass."""
    if name in ("embed", "pos_embed", "logits"):
        return (-1.0 if name != "logits" else float("inf"), False)
    site = Site.parse(name)
    return (float(site.layer or 0), not site.heads)


def _spoken(name: str) -> str:
    if name in ("embed", "pos_embed", "logits"):
        return {"embed": "tokens", "pos_embed": "positions"}.get(name, name)
    site = Site.parse(name)
    if site.heads and len(site.heads) > 1:
        return f"heads {site.layer}.{site.heads[0]}–{site.heads[-1]}"
    return spoken(site)


def _of_node(name: str, circuit: Circuit, sentence: str) -> str:
    into = sum(edge.target == name for edge in circuit.edges)
    out = sum(edge.source == name for edge in circuit.edges)
    told = sentence or "It is in no circuit of whole parts, so no sentence describes it."
    return (
        f"{told if name not in ('embed', 'pos_embed', 'logits') else ''} {into} edges in, {out} out.".strip()
    )


def _evidence(found: edge_circuit.Result, tests: Result) -> dict[tuple[str, str, str], str]:
    """For each edge what was estimated and measured, as a sentence; by the ends that it is drawn with."""
    assert isinstance(tests, circuit_tests.Result)
    named = tests.data["edge"].values.tolist()
    held_out = {
        name: (float(loss), float(p))
        for name, loss, p in zip(named, tests.data["loss"].values, tests.data["edge_p"].values, strict=True)
    }
    told: dict[tuple[str, str, str], str] = {}
    for ends, estimate in found.estimates.scores.items():
        source, target, through = ends
        name = f"{source} -> {target} {through}"
        if name not in held_out:
            continue
        loss, p = held_out[name]
        share = -estimate / found.data.attrs["gap"]
        text = (
            f"Read through {_THROUGH[through]}. Attribution estimated that cutting it alone, with all other edges "
            f"kept, costs {share:.2f} of the behaviour. On held-out prompts the circuit loses {loss:.2f} without it; "
            f"test of being needed: p = {p:.2g}{'' if p > tests.config['level'] else ', so it is not'}."
        )
        told |= {(source, one, through): text for one in {target, *_heads(target)}}
    return told
