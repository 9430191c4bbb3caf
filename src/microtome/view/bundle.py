"""How do the view modules get into one page that opens from a file, with no network and no build step?

1. Starting from the views that the page needs, the imports are followed, so that each module comes after those
   it needs.
2. Each module becomes a function called on the spot: its imports turn into names taken from the earlier modules'
   results, its exports into what it returns. `main.js` itself comes last and stays as it is.
3. Whole-line comments, indentation, and spaces and line ends around punctuation are dropped; what stands in
   quotes is kept.

The modules keep to a small dialect, which a test holds: one import a line; exports stand before `const`,
`function` or `async function`; strings in double quotes or backticks, each within its line and none within
another; a regular expression only as the first argument of a call.
"""

import re
from functools import cache
from importlib.resources import files

_STATIC = files("microtome.view") / "static"
_IMPORT = re.compile(r'^import (\{.*\}) from "\./(\w+)\.js";$')
_QUOTED = re.compile(r'("(?:[^"\\]|\\.)*"|`[^`]*`|(?<=\()/(?:[^/\\]|\\.)+/)')
_EXPORT = re.compile(r"^export ((?:async )?(?:const|function) (\w+))")


@cache
def script(kinds: frozenset[str]) -> str:
    """The text of one inline module that draws the figures of the page it stands in, of the kinds named."""
    views = f"const views = {{ {', '.join(f'{kind}: ${kind}' for kind in sorted(kinds))} }};"
    modules: list[str] = []
    for name in [*sorted(kinds), "main"]:
        modules = _ordered(name, modules)
    text = "\n".join([*map(_closed, modules[:-1]), views, _opened("main")[0]])
    return re.sub(r"(?<=[{,;(])\n", "", text)


@cache
def style() -> str:
    """The style sheet, without comments and needless spaces."""
    text = re.sub(r"/\*.*?\*/", "", (_STATIC / "style.css").read_text("utf-8"), flags=re.DOTALL)
    lines = (re.sub(r" ?([{};,]) ?|(?<=:) ", r"\1", line.strip()) for line in text.splitlines())
    return "".join(lines)


def _lines(name: str) -> list[str]:
    lines = (line.strip() for line in (_STATIC / f"{name}.js").read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("//")]


def _ordered(name: str, known: list[str]) -> list[str]:
    """`known`, then the modules that `name` imports, directly or not, then `name`."""
    for line in _lines(name):
        if found := _IMPORT.match(line):
            known = _ordered(found[2], known)
    return known if name in known else [*known, name]


def _opened(name: str) -> tuple[str, list[str]]:
    """The module's text with imports and exports rewritten, and the exported names."""
    lines, exported = [], []
    for line in _lines(name):
        if found := _IMPORT.match(line):
            line = f"const {found[1]} = ${found[2]};"
        elif found := _EXPORT.match(line):
            exported.append(found[2])
            line = line.removeprefix("export ")
        lines.append(_squeezed(line))
    return "\n".join(lines), exported


def _squeezed(line: str) -> str:
    parts = _QUOTED.split(line)
    parts[::2] = [re.sub(r" ?([=,;:{}()?&|<>+*/%-]+) ?", r"\1", part) for part in parts[::2]]
    return "".join(parts)


def _closed(name: str) -> str:
    text, exported = _opened(name)
    return f"const ${name} = (() => {{\n{text}\nreturn {{ {', '.join(exported)} }};\n}})();"
