"""A test about the code: what may import what, what is pure, what a file is called, how long a function is."""

from __future__ import annotations

import ast
import importlib
import io
import pkgutil
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import midflight
from midflight import commands
from midflight.kit.plugins import Registry

PROJECT = Path(__file__).parent.parent


class Code(NamedTuple):
    """One Python file: its path from the top of the tree, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def parts(self) -> tuple[str, ...]:
        return Path(self.path).with_suffix("").parts


Found = Iterator[tuple[int, str]]


def code_of(path: str, text: str) -> Code:
    return Code(path, text, ast.parse(text))


def tracked(*patterns: str) -> list[str]:
    """Return the files of the tree: those under version control or about to be, or all that are not hidden where there is none."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return sorted(path for path in listed.stdout.splitlines() if (PROJECT / path).is_file())
    found = (path.relative_to(PROJECT) for pattern in patterns or ("*",) for path in PROJECT.rglob(pattern) if path.is_file())
    return sorted(str(path) for path in found if not any(part.startswith((".", "__pycache__")) for part in path.parts[:-1]))


@pytest.fixture(scope="module")
def tree() -> list[Code]:
    """Every Python file of the project."""
    return [code_of(path, (PROJECT / path).read_text()) for path in tracked("*.py")]


# -- the checks: each yields the line and what is wrong with it ----------------------------------------------------------

# A folder imports only what stands before it. The last line is the top: it may import everything, itself included.
ORDER = [
    "kit", "events", "config", "sources", "log", "stream", "metrics", "decide", "act", "store", "engine", "evaluate", "importing", "serve",
    "sandbox",
]  # fmt: skip
TOP = {"flow", "supervise", "commands", "cli", "__main__"}


def import_direction(code: Code) -> Found:
    """A folder imports only folders before it."""
    if code.parts[0] != "midflight" or len(code.parts) < 2 or code.parts[1] == "__init__":
        return
    own = code.parts[1]
    if own not in ORDER and own not in TOP:
        yield 1, f"`{own}` has no place in the order of folders: give it one in tests/test_tidy.py"
        return
    for line, target in imports(code):
        if target == own or own in TOP:
            continue
        if target in TOP or (target in ORDER and ORDER.index(target) > ORDER.index(own)):
            yield line, f"`{own}` imports `{target}`, which comes after it: pass the value in, or move the code"


def imports(code: Code) -> Iterator[tuple[int, str]]:
    """Yield the line and the folder of every import of ours."""
    package = code.parts[:-1]
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "midflight" and len(parts) > 1 and (parts[1] in ORDER or parts[1] in TOP):
                yield node.lineno, parts[1]


PURE = ("stream", "decide")
IMPURE_MODULES = {
    "time", "random", "secrets", "uuid", "os", "pathlib", "shutil", "tempfile", "socket", "subprocess", "threading", "multiprocessing",
    "asyncio", "logging", "apsw", "sqlite3", "httpx",
}  # fmt: skip
IMPURE_CALLS = {"print", "open", "input"}
IMPURE_ATTRIBUTES = {"now", "utcnow", "today", "uuid1", "uuid4", "urandom", "default_rng"}


def purity(code: Code) -> Found:
    """The fold and the decisions depend on their arguments alone."""
    if code.parts[:1] != ("midflight",) or code.parts[1] not in PURE:
        return
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""] if not node.level else []
            for name in names:
                if name.split(".")[0] in IMPURE_MODULES:
                    yield node.lineno, f"`{name}` has no place in `{code.parts[1]}`: pass the value in"
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in IMPURE_CALLS:
                yield node.lineno, f"`{called.id}` has no place in `{code.parts[1]}`"
            if isinstance(called, ast.Attribute) and called.attr in IMPURE_ATTRIBUTES:
                yield node.lineno, f"`.{called.attr}()` has no place in `{code.parts[1]}`: pass the value in"
        elif isinstance(node, ast.Attribute) and node.attr == "random":
            yield node.lineno, f"randomness has no place in `{code.parts[1]}`: pass a seed in"


CLOCKS = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today"), ("date", "today")}
HAS_CLOCK = ("midflight/kit/clock.py", "midflight/commands/", "midflight/cli.py", "tests/", "bench/", "examples/")


def one_clock(code: Code) -> Found:
    """Only kit/clock.py and the command line ask the machine for the time; everything else is handed a clock."""
    if code.path.startswith(HAS_CLOCK):
        return
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) in CLOCKS:
                yield node.lineno, f"`{owner}.{node.attr}` outside of kit/clock.py: take a Clock"


MAY_PRINT = ("midflight/commands/", "midflight/cli.py", "midflight/flow.py", "tests/", "bench/", "examples/")


def no_print(code: Code) -> Found:
    """Only the command line prints."""
    if code.path.startswith(MAY_PRINT):
        return
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and not under_main(code, node):
            yield node.lineno, "`print` outside of the command line: log it, count it or return it"


def under_main(code: Code, wanted: ast.AST) -> bool:
    """Whether a node stands under ``if __name__ == "__main__":``."""
    guards = [n for n in code.tree.body if isinstance(n, ast.If) and "__main__" in ast.unparse(n.test)]
    return any(node is wanted for guard in guards for node in ast.walk(guard))


NO_IDEA = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "base"}


def named_idea(code: Code) -> Found:
    """A file is named after its idea."""
    for word in re.split(r"[_/]", code.path.removesuffix(".py")):
        if word in NO_IDEA:
            yield 1, f"`{word}` names no idea: say what the file is about"


def module_docstring(code: Code) -> Found:
    """Every module says in one sentence what it is."""
    if code.tree.body and not ast.get_docstring(code.tree):
        yield 1, "no docstring: say in one sentence what the module is in the flow"


BROAD = {"Exception", "BaseException"}


def exceptions_are_answered(code: Code) -> Found:
    """No error disappears: a broad `except` does something, a narrow one that does not says why."""
    comments = {t.start[0] for t in tokenize.generate_tokens(io.StringIO(code.text).readline) if t.type == tokenize.COMMENT}
    for node in ast.walk(code.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield node.lineno, "bare `except`: name what is expected"
            continue
        idle = all(
            isinstance(n, ast.Pass | ast.Continue) or (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)) for n in node.body
        )
        named = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(node.type)}
        if idle and named & BROAD:
            yield node.lineno, f"`except {ast.unparse(node.type)}` swallows every error: name what is expected, or answer it"
        elif idle and isinstance(node.body[-1], ast.Pass) and not comments & set(range(node.lineno, node.end_lineno + 1)):
            yield node.lineno, f"`except {ast.unparse(node.type)}` drops an error without a comment that says why"


SECRET = re.compile(r"secret|signature|token|password|digest|hmac|credential", re.IGNORECASE)
SECRET_FOLDERS = ("midflight/sources/", "midflight/serve/")


def constant_time(code: Code) -> Found:
    """Secrets are compared in constant time."""
    if not code.path.startswith(SECRET_FOLDERS):
        return
    for node in ast.walk(code.tree):
        if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Constant) for side in sides):
                continue
            for side in sides:
                name = side.attr if isinstance(side, ast.Attribute) else getattr(side, "id", "")
                if SECRET.search(name):
                    yield node.lineno, f"`{name}` is compared with `==`, whose time tells how much was right: use `same`"


def left_over(code: Code) -> Found:
    """Nothing is left for later without being said to the person who waits for it."""
    for token in tokenize.generate_tokens(io.StringIO(code.text).readline):
        if token.type == tokenize.COMMENT and re.search(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b", token.string):
            yield token.start[0], "a note to come back: do it, or leave it out and say so"


def says_what_holds(code: Code) -> Found:
    """Every test says in a sentence what holds."""
    if not code.path.startswith("tests/test_"):
        return
    for node in ast.walk(code.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node):
            yield node.lineno, f"`{node.name}` has no docstring: say in one sentence what holds"


CHECKS: list[Callable[[Code], Found]] = [
    import_direction,
    purity,
    one_clock,
    no_print,
    named_idea,
    module_docstring,
    exceptions_are_answered,
    constant_time,
    left_over,
    says_what_holds,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_tree_is_tidy(check: Callable[[Code], Found], tree: list[Code]) -> None:
    """Every file keeps the rule."""
    wrong = [f"{code.path}:{line}: {said}" for code in tree for line, said in check(code)]
    assert not wrong, f"{check.__doc__}\n" + "\n".join(wrong)


# Each check with code that it has to refuse, and where that code would stand.
REFUSED = [
    (import_direction, "midflight/kit/x.py", "from ..events import Event"),
    (import_direction, "midflight/log/x.py", "from ..stream.measures import MEASURES"),
    (import_direction, "midflight/stream/x.py", "import midflight.store.schema"),
    (import_direction, "midflight/stream/x.py", "from .. import cli"),
    (import_direction, "midflight/serve/door/x.py", "from ...commands import up"),
    (import_direction, "midflight/sources/x.py", "def f():\n    from midflight import serve"),
    (import_direction, "midflight/elsewhere/x.py", "pass"),
    (purity, "midflight/stream/x.py", "import time"),
    (purity, "midflight/stream/x.py", "from random import shuffle"),
    (purity, "midflight/stream/x.py", "from datetime import datetime\nat = datetime.now()"),
    (purity, "midflight/stream/x.py", "import numpy as np\nr = np.random.default_rng()"),
    (purity, "midflight/decide/x.py", "import uuid\nkey = uuid.uuid4()"),
    (purity, "midflight/decide/policies/x.py", "print(1)"),
    (purity, "midflight/decide/x.py", "data = open('f').read()"),
    (purity, "midflight/decide/x.py", "import os.path"),
    (one_clock, "midflight/log/x.py", "import time\nat = time.time_ns()"),
    (one_clock, "midflight/serve/x.py", "import datetime\nat = datetime.datetime.now()"),
    (no_print, "midflight/serve/x.py", "print('here')"),
    (named_idea, "midflight/stream/utils.py", ""),
    (named_idea, "midflight/log/file_manager.py", ""),
    (named_idea, "midflight/common/x.py", ""),
    (module_docstring, "midflight/log/x.py", "x = 1"),
    (exceptions_are_answered, "midflight/log/x.py", "try:\n    f()\nexcept:\n    g()"),
    (exceptions_are_answered, "midflight/log/x.py", "try:\n    f()\nexcept Exception:\n    # whatever\n    pass"),
    (exceptions_are_answered, "midflight/log/x.py", "try:\n    f()\nexcept (OSError, ValueError):\n    pass"),
    (constant_time, "midflight/sources/x.py", "ok = given == signature"),
    (constant_time, "midflight/sources/x.py", "ok = self.config.secret != given"),
    (constant_time, "midflight/serve/x.py", "ok = token == row.token"),
    (left_over, "midflight/log/x.py", "x = 1  # TODO: later"),
    (says_what_holds, "tests/test_x.py", "def test_it():\n    assert f()"),
]

ALLOWED = [
    (import_direction, "midflight/store/x.py", "from ..stream.measures import MEASURES\nfrom ..kit import errors"),
    (import_direction, "midflight/commands/x.py", "from ..cli import app\nfrom ..flow import main"),
    (purity, "midflight/stream/x.py", "from datetime import UTC, datetime\nat = datetime.fromtimestamp(0, UTC)"),
    (purity, "midflight/log/x.py", "import os, time"),
    (one_clock, "midflight/log/x.py", "import time\nat = time.monotonic()"),
    (no_print, "midflight/commands/x.py", "print('done')"),
    (no_print, "midflight/metrics/x.py", "if __name__ == '__main__':\n    print('done')"),
    (exceptions_are_answered, "midflight/log/x.py", "try:\n    f()\nexcept OSError:\n    pass  # it is gone already"),
    (constant_time, "midflight/sources/x.py", "ok = same(given, signature) and token != ''"),
]


@pytest.mark.parametrize(("check", "path", "text"), REFUSED, ids=lambda value: getattr(value, "__name__", None))
def test_untidy_code_is_caught(check: Callable[[Code], Found], path: str, text: str) -> None:
    """Each check refuses the code it is there to refuse."""
    assert list(check(code_of(path, text)))


@pytest.mark.parametrize(("check", "path", "text"), ALLOWED, ids=lambda value: getattr(value, "__name__", None))
def test_tidy_code_is_left_alone(check: Callable[[Code], Found], path: str, text: str) -> None:
    """No check refuses what is right."""
    assert not list(check(code_of(path, text)))


# -- how long functions are ----------------------------------------------------------------------------------------------

lines_max = 50
share_min = 0.97


def function_lengths(codes: list[Code]) -> dict[str, int]:
    """Return ``{path:line: name: lines}`` of every function, docstrings not counted."""
    lengths = {}
    for code in codes:
        for node in ast.walk(code.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                said = node.body[0] if ast.get_docstring(node) else None
                docstring = said.end_lineno - said.lineno + 1 if said else 0
                lengths[f"{code.path}:{node.lineno}: `{node.name}`"] = node.end_lineno - node.lineno + 1 - docstring
    return lengths


def too_long(lengths: dict[str, int]) -> str:
    """Return what is wrong, longest first, or nothing while few enough functions are long."""
    long = sorted(((lines, where) for where, lines in lengths.items() if lines > lines_max), reverse=True)
    if len(lengths) - len(long) >= share_min * len(lengths):
        return ""
    listed = "\n".join(f"{where} has {lines} lines" for lines, where in long)
    return f"{len(long)} of {len(lengths)} functions are longer than {lines_max} lines, more than {1 - share_min:.0%}\n{listed}"


def test_most_functions_fit_on_half_a_screen(tree: list[Code]) -> None:
    """At least 97 of 100 functions have 50 lines or fewer, as in the best Python trees."""
    assert not too_long(function_lengths([code for code in tree if code.path.startswith("midflight/")]))


def test_long_functions_are_caught() -> None:
    """One long function in twenty is too many, one in a hundred is not; a docstring does not count."""
    short, long = "def f():\n    pass\n", "def g():\n" + "    x = 1\n" * 51
    documented = 'def h():\n    """\n' + "    x\n" * 60 + '    """\n    return 1\n'
    assert too_long(function_lengths([code_of("a.py", short * 19 + long)]))
    assert not too_long(function_lengths([code_of("a.py", short * 99 + long)]))
    assert not too_long(function_lengths([code_of("a.py", documented)]))


# -- files of every kind -------------------------------------------------------------------------------------------------

MACHINE_PATH = re.compile(r"(?<![\w./:~-])/(?:work|root|home|Users)/[\w.]+")


def machine_paths(path: str, text: str) -> list[str]:
    """Return each place where a file names a folder of the machine it was written on."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{path}:{n}: `{found[0]}` is a path of one machine" for n, line in lines if (found := MACHINE_PATH.search(line))]


def test_no_file_names_a_machine() -> None:
    """The tree holds no path of the machine it was written on."""
    wrong = []
    for path in tracked():
        raw = (PROJECT / path).read_bytes()
        if b"\0" not in raw[:8192]:
            wrong += machine_paths(path, raw.decode("utf-8", "replace"))
    assert not wrong, "\n".join(wrong)


def test_a_machine_path_is_caught() -> None:
    """A home folder in a line is found, a URL's path and a relative one are not."""
    for folder in ("home", "root", "work"):
        assert machine_paths("a.md", f"see /{folder}/ada/notes")
    assert not machine_paths("a.md", "https://example.com/home/page and docs/root/file and /in/NAME")


def registries() -> dict[str, Registry]:
    """Return every folder that is a registry."""
    found = {}
    for module in pkgutil.iter_modules(midflight.__path__, "midflight."):
        registry = getattr(importlib.import_module(module.name), "REGISTRY", None) if module.ispkg else None
        if registry is not None:
            found[module.name] = registry
    return found


@pytest.mark.parametrize("package", sorted(registries()))
def test_a_folder_is_its_registry(package: str) -> None:
    """Every file of a plugin folder is a plugin, and every plugin is such a file."""
    registry = registries()[package]
    folder = PROJECT / package.replace(".", "/")
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", registry.contract}
    assert set(registry.names()) == {name for name in files if not name.startswith("_")}
    assert set(registry.all()) == set(registry.names())


def test_a_file_that_is_no_plugin_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a plugin folder without the class it is named after is an error, not silently left out."""
    folder = tmp_path / "plug_folder"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mail_gun.py").write_text("class Other: ...")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("plug_folder", "contract")
    assert registry.names() == ["mail_gun"]
    with pytest.raises(AssertionError, match="no class named like its file"):
        registry.all()


def test_every_command_is_a_file() -> None:
    """Every file of the commands' folder loads as a command, and says in its first line what it does."""
    files = {path.stem for path in (PROJECT / "midflight" / "commands").glob("*.py") if not path.stem.startswith("_")}
    assert set(commands.names().values()) == files
    for name in commands.names():
        assert commands.load(name).help, f"midflight/commands/{commands.names()[name]}.py:1: no help"
        assert commands.summary(name)


# What is used without being imported: msgspec reads YAML with it.
USED_UNSEEN = {"yaml"}
# What comes with another dependency and is part of its interface.
COMES_ALONG = {"httpcore": "httpx", "starlette": "fastapi", "pydantic": "fastapi", "llvmlite": "numba"}


def third_party(codes: list[Code]) -> dict[str, str]:
    """Return every foreign package that is imported, with the place of one import."""
    found = {}
    for code in codes:
        for node in ast.walk(code.tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for name in names:
                top = name.partition(".")[0]
                if top not in sys.stdlib_module_names and top != "midflight":
                    found.setdefault(COMES_ALONG.get(top, top), f"{code.path}:{node.lineno}")
    return found


def differences(imported: dict[str, str], declared: set[str]) -> list[str]:
    """Return what is imported and not declared, and what is declared and not imported."""
    wrong = [f"{where}: `{name}` is no dependency in pyproject.toml" for name, where in imported.items() if name not in declared]
    return wrong + [f"pyproject.toml:1: nothing imports `{name}`" for name in sorted(declared - set(imported) - USED_UNSEEN)]


def test_dependencies_are_what_is_imported(tree: list[Code]) -> None:
    """Every foreign import is a declared dependency, and every dependency is imported."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    cluster = modules_of(extras.pop("cluster"))
    names = modules_of([*project["dependencies"], *(line for lines in extras.values() for line in lines)])
    package = third_party([code for code in tree if code.path.startswith("midflight/")])
    assert not differences({name: where for name, where in package.items() if name not in cluster}, names)
    # What runs on Kafka is measured by its tests before the package imports it.
    trials = third_party([code for code in tree if code.path.startswith("tests/cluster/")])
    assert cluster <= {*package, *trials}, "pyproject.toml:1: nothing imports what `cluster` names"


def modules_of(lines: list[str]) -> set[str]:
    """Return what is imported of the packages that lines of pyproject.toml name."""
    modules = {"pyyaml": "yaml", "python-liquid": "liquid", "mjml-python": "mjml"}
    declared = {re.match(r"[\w-]+", line)[0] for line in lines}
    return {modules.get(name, name.replace("-", "_")) for name in declared}


def test_a_missing_and_a_needless_dependency_are_caught() -> None:
    """An import of what is not declared is found, and a dependency that nobody imports."""
    imported = third_party([code_of("a.py", "import json, msgspec.yaml\nfrom starlette.responses import Response\nfrom . import x")])
    assert set(imported) == {"msgspec", "fastapi"}
    assert not differences(imported, {"msgspec", "fastapi"})
    assert differences(imported, {"msgspec"}) and differences(imported, {"msgspec", "fastapi", "attrs"})


def lint(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_linter_is_quiet() -> None:
    """Ruff has nothing to say about any Python file."""
    done = lint(".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_linter_is_awake(tmp_path: Path) -> None:
    """Ruff, as configured here, does find an unused import and an overlong line."""
    bad = tmp_path / "bad.py"
    bad.write_text(f"import os\nx = '{'a' * 150}'\n")
    done = lint("--config", str(PROJECT / "pyproject.toml"), str(bad))
    assert "F401" in done.stdout and "E501" in done.stdout
