"""Is the house as designed? Imports run downwards only, importing is cheap, and what is forbidden is absent.

1. Every package has a floor. A module imports modules of its own package or of lower floors, wherever in the file the
   import stands; packages on one floor do not import each other. No two modules import each other in a circle.
2. Files stay short, prints stay in the command line, nothing is unpickled or evaluated.
3. `import microtome` and `microtome --help` bring in nothing heavy.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

SRC = Path(__file__).parents[1] / "src"
PACKAGE = SRC / "microtome"

# The longest matching prefix says the floor.
FLOORS = {
    "microtome.core": 1,
    "microtome.models": 2,
    "microtome.data": 2,
    "microtome.store": 2,
    "microtome.view": 2,
    "microtome.bases": 3,
    **{
        f"microtome.{name}": 4
        for name in (
            "lenses exemplars attribution heads probes geometry weights patching circuits causal dictionaries "
            "decompile descriptions steering editing development intrinsic testbeds"
        ).split()
    },
    "microtome.evaluation": 5,
    "microtome.safety": 5,
    "microtome.testing": 5,
    "microtome.studies": 6,
    "microtome.app": 7,
    "microtome.cli": 8,
    "microtome.__main__": 9,
    "microtome": 7,  # the face: it names, lazily, what users import
}

# The one verb and what belongs to a model itself. Analysis is a method, not an attribute of Model.
MODEL_METHODS = frozenset(
    "anatomy sizes n_layers n_heads device dtype accepts sites has weight unembed inputs run call generate hash".split()
)

HEAVY = ("torch", "transformers", "xarray", "scipy", "sklearn", "pandas", "networkx")


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_bytes())


def package_of(name: str) -> str:
    """The longest prefix that has a floor."""
    return max((prefix for prefix in FLOORS if f"{name}.".startswith(f"{prefix}.")), key=len)


def imports(name: str, module: ast.Module) -> set[str]:
    """The modules of this package that a module imports, anywhere in its text; relative ones resolved."""
    found = set()
    home = name if MODULES.get(name, Path()).name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = home.split(".")[: len(home.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                found.add(whole if whole in MODULES else base)
    return {target for target in found if target.split(".")[0] == "microtome"}


def faults(name: str, targets: set[str]) -> list[str]:
    """The imports that run up, or across between siblings."""
    here = package_of(name)
    return [
        f"{name} (floor {FLOORS[here]}) imports {target} (floor {FLOORS[package_of(target)]})"
        for target in sorted(targets)
        if package_of(target) != here and FLOORS[package_of(target)] >= FLOORS[here]
    ]


def test_every_package_has_a_floor() -> None:
    homeless = {name for name in MODULES if package_of(name) == "microtome" and name != "microtome"}
    assert not homeless, f"give {homeless} a floor in FLOORS"


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downwards(name: str) -> None:
    assert not faults(name, imports(name, tree(name)))


def test_the_rule_sees_what_it_forbids() -> None:
    up = ast.parse("def f():\n    from microtome.models import model")
    across = ast.parse("if TYPE_CHECKING:\n    import microtome.lenses.logit_lens")
    relative = ast.parse("from ..studies import catalog")
    down = ast.parse("from microtome.core.site import Site\nimport torch")
    assert faults("microtome.core.site", imports("microtome.core.site", up))
    assert faults("microtome.patching.x", imports("microtome.patching.x", across))
    assert faults("microtome.patching.x", imports("microtome.patching.x", relative))
    assert not faults("microtome.patching.x", imports("microtome.patching.x", down))


def test_no_modules_import_each_other_in_a_circle() -> None:
    # A package's `__init__` that lists its own modules is counted like any other module.
    graph = nx.DiGraph(
        (name, target)
        for name in MODULES
        if name != "microtome"  # its imports are lazy by name and only for type checkers
        for target in imports(name, tree(name))
        if target in MODULES and target != name
    )
    circles = [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]
    assert not circles


@pytest.mark.parametrize("name", MODULES)
def test_files_stay_short(name: str) -> None:
    lines = len(MODULES[name].read_text(encoding="utf-8").splitlines())
    limit = 200 if name.startswith("microtome.cli.") else 400
    assert lines <= limit, f"{name} has {lines} lines; split it by idea (limit {limit})"


@pytest.mark.parametrize("name", MODULES)
def test_every_file_opens_with_what_it_is(name: str) -> None:
    assert ast.get_docstring(tree(name)), f"{name} has no docstring"


def test_model_stays_narrow() -> None:
    model = next(
        node
        for node in ast.walk(tree("microtome.models.model"))
        if isinstance(node, ast.ClassDef) and node.name == "Model"
    )
    public = {node.name for node in model.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    assert "run" in public
    assert public <= MODEL_METHODS, f"analysis belongs in a method: {public - MODEL_METHODS}"
    assert not model.bases, "Model is wrapped, not subclassed"


def forbidden(name: str, module: ast.Module) -> list[str]:
    """Calls and imports that a module may not have, with their lines."""
    found = []
    for node in ast.walk(module):
        match node:
            case ast.Call(func=ast.Name("eval" | "exec" as word)):
                found.append(f"line {node.lineno}: {word}()")
            case ast.Call(func=ast.Name("print")) if not name.startswith("microtome.cli"):
                found.append(f"line {node.lineno}: print() outside the command line")
            case ast.Attribute(value=ast.Name("torch"), attr="load" | "save" as word):
                found.append(f"line {node.lineno}: torch.{word} pickles; use safetensors")
            case ast.Import(names=names) if {alias.name.split(".")[0] for alias in names} & {
                "pickle",
                "dill",
            }:
                found.append(f"line {node.lineno}: pickle")
            case ast.ImportFrom(module="pickle" | "dill"):
                found.append(f"line {node.lineno}: pickle")
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(True)):
                found.append(f"line {node.value.lineno}: trust_remote_code=True")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_nothing_forbidden(name: str) -> None:
    assert not forbidden(name, tree(name))


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')",
        "exec('1')",
        "print(1)",
        "torch.load('x')",
        "torch.save(x, 'x')",
        "import pickle",
        "from pickle import loads",
        "load(x, trust_remote_code=True)",
    ],
)
def test_the_ban_sees_what_it_forbids(code: str) -> None:
    assert forbidden("microtome.core.x", ast.parse(code))
    assert not forbidden("microtome.core.x", ast.parse("model.eval(); load(x, trust_remote_code=False)"))


def test_no_file_for_odds_and_ends() -> None:
    assert not {name for name in MODULES if name.split(".")[-1] in ("utils", "helpers", "common", "misc")}


def python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_import_is_light() -> None:
    loaded = python("-c", "import sys, microtome; print(*sys.modules)").split()
    assert "microtome" in loaded
    assert not set(HEAVY) & set(loaded)


def test_help_is_light() -> None:
    code = (
        "import sys, microtome.cli\n"
        "sys.argv = ['microtome', '--help']\n"
        "try:\n    microtome.cli.main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *sys.modules)"
    )
    shown, _, loaded = python("-c", code).partition("LOADED")
    assert "methods" in shown
    assert not set(HEAVY) & set(loaded.split())


def test_the_menu_is_light() -> None:
    code = "import sys; from microtome.studies import catalog; catalog.menu(); print(*sys.modules)"
    assert not set(HEAVY) & set(python("-c", code).split())


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = (
        (PACKAGE.parents[1] / "README.md")
        .read_text(encoding="utf-8")
        .split("src/microtome/\n")[1]
        .split("```")[0]
    )
    told = set(re.findall(r"(?<![\w/])([a-z]+)/(?=\s)", tree))
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there <= told, f"the README's tree leaves out {there - told}"
    inside = {path.parent.name for path in PACKAGE.glob("testbeds/*/__init__.py")}
    assert told <= there | inside, f"the README's tree names {told - there - inside}, which is not there"
