"""Checks what every function of the package takes and returns, shapes of tensors included, while tests run.

`install` decorates each function and dataclass of a package as it is imported. jaxtyping's own hook does the same, at
twenty times the price: it checks parameters twice and binds the signature at each call, compiles two checks for each
function as it is defined, and again for each inner function whenever the outer one is called. Here a check is
compiled when it is first needed, once for all the functions that one `def` makes, and named axes are kept track of
only where a function speaks of arrays.
"""

import ast
import functools
import inspect
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, FunctionType, ModuleType, SimpleNamespace
from typing import Any, get_args, get_type_hints

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception
from jaxtyping import AbstractArray, jaxtyped

# As type checkers do, take an int where a float is asked for.
_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))
_NAME = "_checked_at_run_time"
# For each `def`: its first function, what that was annotated with, and its check.
_made: dict[CodeType, tuple[Any, dict[str, Any], Any]] = {}


def _read(hint: Any, function: Any) -> Any:
    """The type, where it is written as text too; anything, where it names what only type checkers import."""
    try:
        return get_type_hints(
            SimpleNamespace(__annotations__={"": hint}), function.__globals__, include_extras=True
        )[""]
    except NameError:
        return Any


def _compiled(function: Any) -> Any:
    """The function, checked. Unchecked where it speaks of `Self`, which beartype understands in whole classes only,
    or of a protocol that cannot be checked at run time.
    """
    function.__annotations__ = {
        name: _read(hint, function) for name, hint in function.__annotations__.items()
    }
    try:
        return _CHECK(function)
    except (BeartypeDecorHintPep673Exception, BeartypeDecorHintPep3119Exception):
        return function


def _check(function: Any) -> Any:
    """The function, checked: by the check of the first function of the same `def`, where the types are the same."""
    first, hints, check = _made.get(function.__code__, (None, {}, None))
    if first is None or hints != function.__annotations__:
        hints, check = function.__annotations__, _compiled(function)
        _made[function.__code__] = (function, hints, check)
        return check
    if check is first:
        return function
    if not any(value is first for value in check.__kwdefaults__.values()):
        return _compiled(function)
    again = FunctionType(check.__code__, check.__globals__, check.__name__)
    again.__kwdefaults__ = {
        n: function if value is first else value for n, value in check.__kwdefaults__.items()
    }
    return again


def _names_axes(hint: Any) -> bool:
    """Whether a type is of arrays, or may be: what is written as text has not been read yet."""
    if isinstance(hint, str | list | tuple):
        return isinstance(hint, str) or any(map(_names_axes, hint))
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(_names_axes, get_args(hint)))


def _reads_arguments(hints: Sequence[Any]) -> bool:
    """Whether a size is an expression of arguments, as in `Float[Tensor, "row {width}"]`."""
    return "{" in repr(hints)


def checked(made: Any) -> Any:
    """A function, or a dataclass, that checks what it is given and what it returns.

    Raises TypeError, when called, of what does not fit the annotations.
    """
    if isinstance(made, type):
        own = vars(made)
        if (
            "__dataclass_fields__" in own
            and "__init__" in own
            and not getattr(made, "__no_type_check__", False)
        ):
            made.__init__ = checked(own["__init__"])  # type: ignore[misc]
        return made
    if not isinstance(made, FunctionType) or not made.__annotations__ or hasattr(made, "__wrapped__"):
        return made
    hints = list(made.__annotations__.values())
    # A generator's body runs after its call, an expression reads the arguments: rare, and jaxtyping knows how.
    if inspect.isgeneratorfunction(made) or _reads_arguments(hints):
        return jaxtyped(typechecker=_compiled)(made)
    check = None

    @functools.wraps(made)
    def plain(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal check
        if check is None:
            check = _check(made)
        return check(*args, **kwargs)

    @functools.wraps(made)
    def shaped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        nonlocal check
        if check is None:
            check = _check(made)
        with jaxtyped("context"):
            return check(*args, **kwargs)

    return shaped if any(map(_names_axes, hints)) else plain


class _Loader(SourceFileLoader):
    """Compiles a module with every function and class decorated; its bytecode is not kept."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                decorator = ast.copy_location(ast.Name(_NAME, ast.Load()), node)
                # Innermost on functions, as other decorators drop annotations; outermost on classes, after @dataclass.
                place = 0 if isinstance(node, ast.ClassDef) else len(node.decorator_list)
                node.decorator_list.insert(place, decorator)
        return compile(tree, path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)[_NAME] = checked
        super().exec_module(module)


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] != self.package:
            return None
        # The finder of an editable installation knows where the package itself is; the usual one, what lies in it.
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (
            finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec")
        )
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str) -> None:
    """Checks the package from here on.

    Raises RuntimeError if it is imported already: what is imported cannot be decorated.
    """
    if package in sys.modules:
        raise RuntimeError(
            f"expected {package} not to be imported before its run-time checks, it is; import it after"
        )
    sys.meta_path.insert(0, _Finder(package))
