import re
from importlib.resources import files

import pytest

from microtome.view.bundle import script, style

STATIC = files("microtome.view") / "static"
KINDS = frozenset({"grid", "strip", "curve", "graph", "table"})
MODULES = sorted(file.name for file in STATIC.iterdir() if file.name.endswith(".js"))


def test_the_whole_bundle_is_small() -> None:
    assert len(script(KINDS).encode()) + len(style().encode()) < 40_000


def test_a_page_carries_only_the_views_it_shows() -> None:
    assert "$graph" not in script(frozenset({"grid"}))
    assert len(script(frozenset({"grid"}))) < 0.6 * len(script(KINDS))


def test_no_import_or_export_is_left_and_no_element_can_be_closed() -> None:
    for text in (script(KINDS), style()):
        assert not re.search(r"\b(import|export)\b", text)
        assert "</" not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("name", MODULES)
def test_modules_keep_to_the_dialect_that_the_bundle_reads(name: str) -> None:
    for line in (STATIC / name).read_text("utf-8").splitlines():
        code = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)
        assert code.count("`") % 2 == 0, line
        assert "'" not in re.sub(r"`[^`]*`", "", code) or code.lstrip().startswith("//"), line
        assert not re.search(r"\$\{[^}]*`", code), line
        assert "/*" not in code, line
        assert not re.search(r"\S +// ", code), line
        if code.startswith(("import", "export")):
            assert re.match(r'import \{.*\} from "";|export (async )?(const|function) \w+', code), line


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_view_mounts_by_the_same_words(kind: str) -> None:
    assert "export function mount(el, source, state) {" in (STATIC / f"{kind}.js").read_text("utf-8")


def test_what_is_exported_is_used() -> None:
    for name in MODULES:
        for exported in re.findall(
            r"^export \w+(?: function)? (\w+)", (STATIC / name).read_text("utf-8"), re.MULTILINE
        ):
            users = [
                other
                for other in MODULES
                if re.search(rf"\b{exported}\b", (STATIC / other).read_text("utf-8"))
            ]
            assert len(users) > 1 or name == "palette.js", (name, exported)
