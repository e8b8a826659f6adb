"""What a class or function takes, by its object or by its source alone: to import torch takes seconds."""

import ast
import collections.abc
import importlib.util
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, Literal, get_type_hints

_OURS = ("retriever", "datamodules", "callbacks")
_DEEPEST = 20  # imports of imports
_WITHOUT_INIT = {"ABC", "Generic", "Protocol", "object"}
_KEEP_SIGNATURES = {"abstractmethod", "classmethod", "staticmethod", "_defaults_from_env_vars"}  # the last: Lightning's
_PLAIN = {kind.__name__: kind for kind in (bool, dict, float, int, list, object, str, tuple, Path)}
_TYPES = vars(typing) | vars(collections.abc) | _PLAIN


@dataclass(frozen=True)
class Signature:
    """What a call takes.

    Attributes:
        name: of the class or function, in its module.
        parameters: name → annotation, those of base classes that a constructor passes ``**others`` to included.
        is_open: whether it takes any others, too.
    """

    name: str
    parameters: Mapping[str, Any]
    is_open: bool


def of_object(called: Callable[..., Any]) -> Signature:
    """Return what a class or function takes."""
    functions = [called]
    if inspect.isclass(called):
        functions = [vars(base)["__init__"] for base in called.__mro__[:-1] if "__init__" in vars(base)]
        if not functions:  # object's takes nothing, whatever its signature says
            return Signature(called.__qualname__, {}, called.__new__ is not object.__new__)
    found: dict[str, Any] = {}
    for function in functions:
        try:
            hints = get_type_hints(function)
        except (NameError, TypeError):  # a name that is imported for type checkers alone
            hints = {}
        try:
            parameters = inspect.signature(function, follow_wrapped=True).parameters.values()
        except (TypeError, ValueError):
            break
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, hints.get(parameter.name, Any))
        is_open = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        if not is_open or function.__module__.partition(".")[0] not in _OURS:  # it may do something else with them
            return Signature(called.__qualname__, _without_self(found), is_open)
    return Signature(called.__qualname__, _without_self(found), True)


def of_source(target: str) -> Signature | None:
    """Read what a class or function takes in its source; it is not imported, and nor are modules that it needs.

    Args:
        target: its dotted name.

    Returns:
        What :func:`of_object` would, but annotations that are no plain types are Any; None where the source does not
        say it for sure: two definitions, a decorator, generated code.
    """
    definition = _find(target)
    found: dict[str, Any] = {}
    is_open = False
    for called in _called(definition):
        if called is None:
            return None
        arguments = called.node.args
        for argument in (*arguments.args, *arguments.kwonlyargs):
            found.setdefault(argument.arg, _type(argument.annotation))
        is_open = arguments.kwarg is not None
        if not is_open or called.module.partition(".")[0] not in _OURS:
            break
    return None if definition is None else Signature(definition.name, _without_self(found), is_open)


def _without_self(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: annotation for name, annotation in parameters.items() if name not in ("self", "cls")}


@dataclass(frozen=True)
class _Definition:
    """A class or a function: the module that it is in, its name there, and its source."""

    module: str
    name: str
    node: Any

    @property
    def is_dataclass(self) -> bool:
        """Whether it is a class whose constructor is made from its fields."""
        decorators = self.node.decorator_list
        return len(decorators) == 1 and _dotted(decorators[0]).rpartition(".")[2] == "dataclass"

    def members(self, name: str) -> list["_Definition"]:
        """Methods of a name that a class itself defines."""
        body = self.node.body if isinstance(self.node, ast.ClassDef) else ()
        methods = [node for node in _statements(body) if isinstance(node, ast.FunctionDef) and node.name == name]
        return [_Definition(self.module, f"{self.name}.{name}", node) for node in methods]


def _called(definition: _Definition | None) -> Iterator[_Definition | None]:
    """Give the functions that take a call's arguments, each handing on what it does not; None where that is unclear."""
    if definition is None:
        yield None
    elif isinstance(definition.node, ast.FunctionDef):
        yield _if_plain(definition)
    elif definition.is_dataclass and not definition.members("__init__"):
        arguments = [ast.arg(name, annotation) for name, annotation in _fields(definition).items()]
        constructor = ast.Lambda(ast.arguments([], arguments, None, [], [], None, []), ast.Constant(None))
        yield _Definition(definition.module, "__init__", constructor)
    elif definition.node.decorator_list or definition.node.keywords or definition.members("__new__"):
        yield None
    else:
        constructors = definition.members("__init__")
        if constructors:
            yield _if_plain(constructors[0]) if len(constructors) == 1 else None
        bases = [base for base in map(_dotted, definition.node.bases) if base.rpartition(".")[2] not in _WITHOUT_INIT]
        if bases:
            first = list(_called(_find(f"{definition.module}.{bases[0]}")))
            # of several bases, who follows the first one's own constructor depends on all of them
            yield from first if len(bases) == 1 else [*first[:1], None]


def _fields(definition: _Definition) -> dict[str, ast.expr]:
    """Give the fields of a dataclass that its constructor takes, those of its bases first."""
    found: dict[str, ast.expr] = {}
    for base in reversed(definition.node.bases):
        outer = _find(f"{definition.module}.{_dotted(base)}")
        if outer is not None and outer.is_dataclass:
            found |= _fields(outer)
    for node in definition.node.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            is_other = _dotted(node.annotation).rpartition(".")[2] in ("ClassVar", "KW_ONLY")
            if not is_other and not (node.value is not None and "init=False" in ast.unparse(node.value)):
                found[node.target.id] = node.annotation
    return found


def _if_plain(function: _Definition) -> _Definition | None:
    """The function, unless a decorator may change what it takes."""
    decorators = {_dotted(decorator).rpartition(".")[2] for decorator in function.node.decorator_list}
    return function if decorators <= _KEEP_SIGNATURES else None


def _dotted(node: ast.expr) -> str:
    """Write a name as it is in the source, without brackets behind it."""
    if isinstance(node, ast.Subscript | ast.Call):
        return _dotted(node.value if isinstance(node, ast.Subscript) else node.func)
    return ast.unparse(node)


def _find(target: str, depth: int = 0) -> _Definition | None:
    """Find what a dotted name means by the source of its module, through the imports of others."""
    words = target.split(".")
    size = next((size for size in range(len(words) - 1, 0, -1) if _tree(".".join(words[:size])) is not None), 0)
    if not size or depth == _DEEPEST:
        return None
    module, name, rest = ".".join(words[:size]), words[size], words[size + 1 :]
    tree = _tree(module)
    found = [bound for node in _statements(tree.body if tree else ()) for bound in _bound(module, node, name)]
    if len(found) != 1:
        return None
    if isinstance(found[0], str):
        return _find(".".join([found[0], *rest]), depth + 1)
    definitions = [_Definition(module, name, found[0])]
    for word in rest:
        definitions = definitions[0].members(word)
        if len(definitions) != 1:
            return None
    return definitions[0]


def _bound(module: str, node: ast.stmt, name: str) -> Iterator[ast.stmt | str]:
    """Give the class or function that a statement binds a name to, or the dotted name that it imports under it."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
        yield node
    elif isinstance(node, ast.Import):
        yield from (a.name if a.asname else name for a in node.names if (a.asname or a.name.partition(".")[0]) == name)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{_home(module, node)}.{a.name}" for a in node.names if (a.asname or a.name) == name)


def _home(module: str, node: ast.ImportFrom) -> str:
    """Give the dotted name of the module that a statement imports from."""
    if not node.level:
        return node.module or ""
    spec = _spec(module)
    is_package = spec is not None and spec.submodule_search_locations is not None
    outer = module.split(".")[: len(module.split(".")) - node.level + is_package]
    return ".".join([*outer, *filter(None, [node.module])])


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Give the statements of a module or a class, with those under ``if`` and ``try``."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])
        if isinstance(node, ast.Try):
            yield from _statements([*(inner for handler in node.handlers for inner in handler.body), *node.finalbody])


def _tree(module: str) -> ast.Module | None:
    spec = _spec(module)
    origin = spec.origin if spec else None
    return _parsed(origin, Path(origin).stat().st_mtime_ns) if origin and origin.endswith(".py") else None


@cache
def _parsed(path: str, _changed: int) -> ast.Module | None:
    try:
        return ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None


def _spec(module: str) -> ModuleSpec | None:
    """Find a module's file; importlib's own function would import the packages that it is in."""
    package, _, _ = module.rpartition(".")
    if package:
        outer = _spec(package)
        places = outer.submodule_search_locations if outer else None
        return PathFinder.find_spec(module, places) if places is not None else None
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None


def _type(annotation: ast.expr | None) -> Any:
    """Return what an annotation says, where it is made of plain types alone; else Any."""
    try:
        return _read_type(annotation)
    except (KeyError, TypeError, ValueError):
        return Any


def _read_type(node: ast.expr | None) -> Any:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name):
            return _TYPES[name]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _read_type(left) | _read_type(right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return Literal[ast.literal_eval(choices)]
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Tuple(elts=parts)):
            return _TYPES[name][tuple(map(_read_type, parts))]
        case ast.Subscript(value=ast.Name(id=name), slice=part):
            return _TYPES[name][_read_type(part)]
    raise ValueError(node)
