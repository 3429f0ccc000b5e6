"""The code that a step imports, found in its text, with a digest of each module.

A digest is over the syntax tree without docstrings: a comment, a docstring or a line break runs no step again. Packages that
are installed are left out, since constraints.txt pins them.
"""

from __future__ import annotations

import ast
import hashlib
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec, resolve_name
from pathlib import Path

OURS = ("remint", "pipelines")  # wherever they lie: the code that runs is the code that counts

# Modules of ours that cannot change a step's result, each with the reason. With a package go all modules in it.
WITHOUT_EFFECT = {
    "remint.errors": "an error ends a step, which then has no result",
    "remint.redaction": "hides secrets in what is printed",
    "remint.runtime.addresses": "where stores lie",
    "remint.runtime.events": "what a step prints while it runs",
    "remint.runtime.home": "where files lie",
    "remint.runtime.locks": "whose turn it is",
    "remint.runtime.parent": "ends a process with its parent",
    "remint.runtime.processes": "starts and stops processes",
    "remint.runtime.retry": "asks again after a failure that passes",
    "remint.runtime.scratch": "temporary folders",
    "remint.runtime.yaml": "reads params.yaml, whose values are in the key",
    "remint.settings": "the settings of a step are in the key with their defaults, and so are the facts of its metrics",
}
# Modules that hold a bit for every step: of them counts what is imported by name, with what that refers to.
BY_NAME = frozenset({"remint.records"})


class Imports:
    """The modules that a module imports, and so on, with their digests. Each file is read once."""

    def __init__(self) -> None:
        self._tops: dict[str, Path | None] = {}
        self._modules: dict[str, _Module | None] = {}

    def digests(self, *roots: str) -> dict[str, str]:
        """The modules ``roots`` and all that they import, by name, each with its digest."""
        found = self._reached(roots)
        wanted = {name for module in found.values() for name in module.imports}
        return {
            name: found[name].digest_of(wanted) if name in BY_NAME and name not in roots else found[name].digest
            for name in sorted(found)
        }

    def paths(self, *roots: str) -> dict[str, Path]:
        """The files of ``roots`` and of all that they import, by the module's name; an installed module has none."""
        return {name: module.path for name, module in self._reached(roots).items()}

    def _reached(self, roots: Iterable[str]) -> dict[str, _Module]:
        found: dict[str, _Module] = {}
        todo = list(roots)
        while todo:
            name = todo.pop()
            module = None if name in found else self._module(name)
            if module is not None:
                found[name] = module
                todo.extend(module.imports)
        return found

    def _module(self, name: str) -> _Module | None:
        """None for what is installed, without effect, or no module but a name in one."""
        if name not in self._modules:
            path = None if _without_effect(name) else self._path(name)
            self._modules[name] = _Module(name, path) if path else None
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        top, *below = name.split(".")
        if top not in self._tops:
            self._tops[top] = _top(top)
        base = self._tops[top]
        if base is None:
            return None
        base = base.joinpath(*below)
        files = (base / "__init__.py", *(base.with_name(base.name + suffix) for suffix in (".py", *EXTENSION_SUFFIXES)))
        return next((file for file in files if file.is_file()), None)


class _Module:
    """One file. What is not Python's syntax counts byte by byte, and imports nothing."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        content, tree = path.read_bytes(), ast.Module([], [])
        if path.suffix == ".py":
            with suppress(SyntaxError, ValueError):
                tree = _without_docstrings(ast.parse(content))
                content = ast.dump(tree).encode()
        self.digest = _sha256(content)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.imports = {*_imported(tree, package), *name.rpartition(".")[:1]}
        self._defined = {each: node for node in tree.body for each in _defines(node)}

    def digest_of(self, wanted: Collection[str]) -> str:
        """The digest of the definitions that others import by name, and of all that these refer to in this file.

        Of the whole file where others import the module itself.
        """
        if f"{self.name}.*" in wanted:
            return self.digest
        todo = [name for name in self._defined if f"{self.name}.{name}" in wanted]
        reached: dict[str, str] = {}
        while todo:
            name = todo.pop()
            if name in self._defined and name not in reached:
                reached[name] = ast.dump(self._defined[name])
                todo += [each.id for each in ast.walk(self._defined[name]) if isinstance(each, ast.Name)]
        return _sha256(repr(sorted(reached.items())).encode())


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Names of what a file imports, wherever in it; of ``from a import b`` both a and a.b."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _whole(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            yield base
            for alias in node.names:
                yield from _whole(f"{base}.{alias.name}")
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def _whole(name: str) -> tuple[str, ...]:
    return (name, f"{name}.*") if name in BY_NAME else (name,)


def is_installed(file: Path) -> bool:
    """Whether a package manager put the file where it is."""
    return any(file.is_relative_to(folder) for folder in _standard_library()) or bool(
        {"site-packages", "dist-packages"} & set(file.parts)
    )


def _without_effect(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in WITHOUT_EFFECT)


def _top(name: str) -> Path | None:
    """The path of a package or module without its suffix; None where it is installed, or is none."""
    try:
        spec = find_spec(name) if name else None
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    if not folders and not spec.has_location:
        return None
    base = Path(folders[0] if folders else spec.origin or "").resolve()
    if name not in OURS and is_installed(base):
        return None
    return base if folders else base.with_name(name)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
    return tree


def _defines(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
    return [each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)]


@cache
def _standard_library() -> tuple[Path, ...]:
    return tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
