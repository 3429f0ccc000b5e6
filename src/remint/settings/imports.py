"""Modules that a step imports, found in its source, with a digest of each.

A digest covers the syntax tree without docstrings: a changed comment, docstring or line break runs no step again. Installed
packages are left out, because constraints.txt pins them.
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

OWN_PACKAGES = ("remint", "pipelines")  # digested even if they are installed

# Modules that cannot change a step's result, each with the reason. A package stands for all its modules.
WITHOUT_EFFECT = {
    "remint.distributed.cluster": "starts ranks on other machines: their place and number change no result",
    "remint.distributed.connection": "connection to them",
    "remint.distributed.mailbox": "messages of that",
    "remint.distributed.node": "one machine's part of that",
    "remint.distributed.ranks": "processes of that",
    "remint.errors": "an error ends a step without a result",
    "remint.evaluation.progress": "progress output of an evaluation",
    "remint.redaction": "hides secrets in printed text",
    "remint.runtime.addresses": "addresses of stores",
    "remint.runtime.events": "progress output of a step",
    "remint.runtime.home": "paths of files",
    "remint.runtime.locks": "file locks",
    "remint.runtime.parent": "ends a process with its parent",
    "remint.runtime.processes": "starts and stops processes",
    "remint.runtime.retry": "retries after temporary failures",
    "remint.runtime.scratch": "temporary folders",
    "remint.runtime.yaml": "reads params.yaml, whose values are in the key",
    "remint.stores.git": "packs the code for other machines",
    "remint.settings": "the settings of a step are in the key with their defaults, and so are the facts of its metrics",
}
# Modules with parts for many steps: only definitions that are imported by name count, with everything they refer to.
BY_NAME = frozenset({"remint.records"})


class Imports:
    """Direct and indirect imports of modules, with digests. Each file is read once."""

    def __init__(self) -> None:
        self._packages: dict[str, Path | None] = {}
        self._modules: dict[str, _Module | None] = {}

    def digests(self, *roots: str) -> dict[str, str]:
        """Return the digests of ``roots`` and of all modules that they import, by module name."""
        found = self._transitive(roots)
        wanted = {name for module in found.values() for name in module.imports}
        return {
            name: found[name].digest_of(wanted) if name in BY_NAME and name not in roots else found[name].digest
            for name in sorted(found)
        }

    def paths(self, *roots: str) -> dict[str, Path]:
        """Return the files of ``roots`` and of all modules that they import, by module name, without installed ones."""
        return {name: module.path for name, module in self._transitive(roots).items()}

    def _transitive(self, roots: Iterable[str]) -> dict[str, _Module]:
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
        """Return None if the name is an installed module, one without effect, or a name inside a module."""
        if name not in self._modules:
            path = None if _without_effect(name) else self._path(name)
            self._modules[name] = _Module(name, path) if path else None
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        top, *below = name.split(".")
        if top not in self._packages:
            self._packages[top] = _find_package(top)
        base = self._packages[top]
        if base is None:
            return None
        base = base.joinpath(*below)
        files = (base / "__init__.py", *(base.with_name(base.name + suffix) for suffix in (".py", *EXTENSION_SUFFIXES)))
        return next((file for file in files if file.is_file()), None)


class _Module:
    """One source file. A file that is not valid Python is digested as bytes and imports nothing."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        content, tree = path.read_bytes(), ast.Module([], [])
        if path.suffix == ".py":
            with suppress(SyntaxError, ValueError):  # its bytes are digested
                tree = _without_docstrings(ast.parse(content))
                content = ast.dump(tree).encode()
        self.digest = _sha256(content)
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.imports = {*_imported(tree, package), *name.rpartition(".")[:1]}
        self._defined = {each: node for node in tree.body for each in _defines(node)}

    def digest_of(self, wanted: Collection[str]) -> str:
        """Return the digest of the definitions that others import by name, and of all that these refer to in this file.

        The digest covers the whole file if others import the module itself.
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
    """Yield the names of all imports anywhere in a file; for ``from a import b`` both a and a.b."""
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_wildcard(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            yield base
            for alias in node.names:
                yield from _with_wildcard(f"{base}.{alias.name}")
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)


def _with_wildcard(name: str) -> tuple[str, ...]:
    return (name, f"{name}.*") if name in BY_NAME else (name,)


def is_installed(file: Path) -> bool:
    """Return whether a package manager installed the file."""
    return any(file.is_relative_to(folder) for folder in _standard_library()) or bool(
        {"site-packages", "dist-packages"} & set(file.parts)
    )


def _without_effect(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in WITHOUT_EFFECT)


def _find_package(name: str) -> Path | None:
    """Return the path of a package or module without its suffix; None if it is installed or does not exist."""
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
    if name not in OWN_PACKAGES and is_installed(base):
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
    """Return the names that a module-level statement defines."""
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
