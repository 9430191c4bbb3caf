"""How fast are programs compiled, and do they say the same as Tracr's? `python benchmarks/compiled_programs.py`.

Each program of the library: CPU seconds to compile it (with its decoys) into our own transformer, the sizes, and on how
many of all inputs the network says anything else than the program. For the programs that Tracr's library has too, in
a process of TRACR_PYTHON (an interpreter with the package `tracr`): its seconds to compile, its sizes, and on how many
of all inputs its network says anything else than ours. Without TRACR_PYTHON these columns are left out.
"""

import itertools
import json
import os
import subprocess
import time
from fractions import Fraction
from typing import Any

SHARED = {
    "reverse": "lib.make_reverse(rasp.tokens)",
    "histogram": "lib.make_hist()",
    "fraction_of_previous": "lib.make_frac_prevs(rasp.tokens == 'x')",
    "sort": "lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=4, min_key=1)",
    "length": "lib.make_length()",
    "pair_balance": "lib.make_pair_balance(rasp.tokens, '(', ')')",
}

TRACR = """
import json, sys, time
from tracr.compiler import compiling, lib
from tracr.rasp import rasp
found = {}
for name, (text, vocabulary, length, causal, inputs) in json.load(sys.stdin).items():
    program = eval(text)
    start = time.process_time()
    model = compiling.compile_rasp_to_model(
        program, set(vocabulary), length, causal=causal, compiler_bos="BOS"
    )
    spent = time.process_time() - start
    said = [model.apply(["BOS", *one]).decoded[1:] for one in inputs]
    config = model.model_config
    width = model.params["token_embed"]["embeddings"].shape[1]
    sizes = [config.num_layers, config.num_heads, width, config.mlp_hidden_size]
    plain = [[v if isinstance(v, (str, int)) else float(v) for v in row] for row in said]
    found[name] = [spent, [int(one) for one in sizes], plain]
json.dump(found, sys.stdout)
"""


def plain(value: object) -> object:
    """A value as JSON has it."""
    return float(value) if isinstance(value, Fraction) else value


def tracr(asked: dict[str, Any]) -> dict[str, Any]:
    """What Tracr says, by program."""
    python = os.environ.get("TRACR_PYTHON")
    if not python:
        return {}
    done = subprocess.run([python, "-c", TRACR], input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Tracr failed in {python}:\n{done.stderr[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def main() -> None:
    import torch

    from microtome.testbeds.programs.library import PROGRAMS
    from microtome.testbeds.programs.testbed import decoys, mismatches

    torch.set_num_threads(1)
    PROGRAMS[0].compile(decoys()).transformer()
    ours, asked = {}, {}
    for one in PROGRAMS:
        start = time.process_time()
        compiled = one.compile(decoys())
        module = compiled.transformer()
        spent = time.process_time() - start
        inputs = list(itertools.product(one.vocabulary, repeat=one.length))
        with torch.no_grad():
            wrong = mismatches(one, compiled, module(compiled.encode(inputs)).logits, inputs)
        sizes = one.compile().sizes
        ours[one.name] = (spent, sizes, wrong, [[plain(v) for v in one.interpret(given)] for given in inputs])
        if one.name in SHARED:
            # Tracr's sort wants numbers; the letters keep their order.
            letters = {token: number for number, token in enumerate(one.vocabulary, 1)}
            given = [[letters[t] for t in row] for row in inputs] if one.name == "sort" else inputs
            vocabulary = list(letters.values()) if one.name == "sort" else list(one.vocabulary)
            asked[one.name] = (SHARED[one.name], vocabulary, one.length, one.causal, given)
            if one.name == "sort":
                ours[one.name] = (
                    *ours[one.name][:3],
                    [[letters[t] for t in row] for row in ours[one.name][3]],
                )
    theirs = tracr(asked)
    print("| program | inputs | mismatches | compile, CPU s | layers, heads, width, neurons |", end="")
    print(" Tracr: compile, CPU s | its sizes | inputs on which it differs |" if theirs else "")
    print("|---" * (8 if theirs else 5) + "|")
    for name, (spent, sizes, wrong, said) in ours.items():
        size = ", ".join(str(sizes[part]) for part in ("layers", "heads", "d_model", "d_mlp"))
        print(f"| {name} | {len(said)} | {wrong} | {spent:.3f} | {size} |", end="")
        if name in theirs:
            seconds, its_sizes, its = theirs[name]
            apart = sum(not same(a, b) for a, b in zip(said, its, strict=True))
            print(f" {seconds:.2f} | {', '.join(map(str, its_sizes))} | {apart} |")
        else:
            print(" | | |" if theirs else "")


def same(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether two rows of outputs are equal; numbers up to float32."""
    return all(
        abs(a - b) < 1e-4 if isinstance(a, int | float) and isinstance(b, int | float) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )


if __name__ == "__main__":
    main()
