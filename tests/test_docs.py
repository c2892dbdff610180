"""The documentation is complete, its links lead somewhere, and its examples run."""

from __future__ import annotations

import ast
import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
import typer

from midflight import commands, sources
from midflight.commands import _settings, docs
from midflight.commands.init import template
from midflight.config import Attribute, Config, config_from, load_config
from midflight.events import AGENTS, KINDS, Event
from midflight.kit.errors import ConfigError
from midflight.metrics import REGISTRY as METRICS
from midflight.stream.agents import AGENT_REASONS
from midflight.stream.measures import MEASURES

PROJECT = Path(__file__).parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md"), *PROJECT.glob("examples/**/*.md")])


class Block(NamedTuple):
    """One fenced code block: its page and line, its language and the words after it, and its text."""

    page: Path
    line: int
    language: str
    words: list[str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(PROJECT)}:{self.line}" if self.page.is_relative_to(PROJECT) else f"{self.page.name}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return a page's fenced code blocks."""
    found, opened, lines = [], None, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            if opened is None:
                opened, lines = (number, line.strip().strip("`").split()), []
            else:
                at, said = opened
                found.append(Block(page, at, said[0] if said else "", said[1:], "\n".join(lines) + "\n"))
                opened = None
        elif opened is not None:
            lines.append(line)
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


# -- complete ------------------------------------------------------------------------------------------------------------


def test_generated_pages_are_as_the_code_says() -> None:
    """Every page written from the code is what `midflight docs` would write now."""
    stale = [name for name, text in docs.pages().items() if (PROJECT / "docs" / name).read_text() != text]
    assert not stale, f"{', '.join(stale)}: run `make docs`"


def test_a_stale_page_is_caught(tmp_path: Path) -> None:
    """`midflight docs --check` fails on a changed page and a missing one, and is quiet once they are written."""
    docs.command(folder=tmp_path, check=False)
    docs.command(folder=tmp_path, check=True)
    page = tmp_path / "configuration.md"
    page.write_text(page.read_text().replace("8400", "8080"))
    with pytest.raises(typer.Exit) as stale:
        docs.command(folder=tmp_path, check=True)
    assert stale.value.exit_code == 1
    docs.command(folder=tmp_path, check=False)
    (tmp_path / "commands.md").unlink()
    with pytest.raises(typer.Exit):
        docs.command(folder=tmp_path, check=True)


def every_command() -> list[str]:
    """Return every command and subcommand as it is typed."""
    found = []

    def walk(said: str, command) -> None:
        found.append(said)
        for name, inner in getattr(command, "commands", {}).items():
            walk(f"{said} {name}", inner)

    for name in commands.names():
        walk(f"midflight {name}", commands.load(name))
    return found


def test_every_command_is_documented() -> None:
    """Each command and subcommand has its heading."""
    text = (PROJECT / "docs/commands.md").read_text()
    assert [said for said in every_command() if not re.search(rf"^#+ {re.escape(said)}$", text, re.MULTILINE)] == []


def every_setting() -> dict[str, str]:
    """Return every setting's path and what is said of it beside its definition."""

    def inside(section: type[msgspec.Struct], prefix: str = "") -> dict[str, str]:
        found = {}
        for setting in _settings.settings_of(section):
            part = type(setting.default)
            inner = issubclass(part, msgspec.Struct)
            found |= inside(part, f"{prefix}{setting.name}.") if inner else {f"{prefix}{setting.name}": setting.meaning}
        return found

    return inside(Config) | {f"attributes[].{inner.name}": inner.meaning for inner in _settings.settings_of(Attribute)}


def test_every_setting_is_documented() -> None:
    """Each setting stands in docs/configuration.md and has a meaning beside its definition."""
    text = (PROJECT / "docs/configuration.md").read_text()
    assert [path for path in every_setting() if f"`{path}`" not in text] == []
    assert [path for path, meaning in every_setting().items() if not meaning] == [], "say it in a comment beside the field in config.py"


def unread(settings: list[str], texts: list[str]) -> list[str]:
    """Return the settings whose name is nowhere read as an attribute."""
    read = {node.attr for text in texts for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    return [path for path in settings if path.rpartition(".")[2] not in read]


def test_every_setting_is_read() -> None:
    """Each setting is used somewhere outside of the configuration: one that nobody reads would be a lie."""
    texts = [path.read_text() for path in (PROJECT / "midflight").rglob("*.py") if path.name != "config.py"]
    # These two are read in config.py itself, which makes a folder and dimensions of them.
    assert unread([path for path in every_setting() if path not in ("data", "attributes")], texts) == []
    assert unread(["door.port", "door.colour"], ["listen(config.door.port)", "say('door.colour')"]) == ["door.colour"]


def test_every_source_is_documented() -> None:
    """Each source has a section with its settings, and a page of the vendor to compare with, where there is one."""
    text = (PROJECT / "docs/sources.md").read_text()
    for name, source in sources.REGISTRY.all().items():
        assert f"\n## {source.label}\n" in text, name
        assert f"    kind: {name}\n" in text, name


def test_every_metric_is_documented() -> None:
    """Each metric stands in docs/metrics.md."""
    text = (PROJECT / "docs/metrics.md").read_text()
    assert [name for name in METRICS.names() if f"`{name}`" not in text] == []


def first_column(page: str, heading: str) -> set[str]:
    """Return the names in the first column of the tables under a heading."""
    text = (PROJECT / "docs" / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_part_of_an_event_is_documented() -> None:
    """Each field, kind, agent, reason and measure has its row, and no row speaks of one that is not there."""
    fields = set(Event.__struct_fields__)
    assert first_column("events.md", "Fields") == fields
    assert first_column("events.md", "Kinds") == set(KINDS)
    assert first_column("events.md", "People and machines") == set(AGENTS) - {""}
    assert first_column("numbers.md", "Cells") == set(MEASURES)
    text = (PROJECT / "docs/events.md").read_text()
    assert [reason for reason in AGENT_REASONS if reason not in text] == []


# -- the written configuration -------------------------------------------------------------------------------------------


def test_the_template_is_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `midflight init` writes is no change as it stands, and the defaults again once its settings are uncommented."""
    monkeypatch.setenv("SENDGRID_VERIFICATION_KEY", "key")
    path = tmp_path / "midflight.yaml"
    path.write_text(template())
    assert load_config(path) == Config()
    path.write_text("\n".join(line[1:] if re.match(r"#(\S|  )", line) else line for line in template().splitlines()))
    loaded = load_config(path)
    assert set(loaded.sources) == {"sendgrid"} and loaded.attributes
    loaded.sources, loaded.attributes = {}, []
    assert loaded == Config()


def test_init_leaves_a_file_alone(tmp_path: Path) -> None:
    """A second `midflight init` is refused and changes nothing."""
    path = tmp_path / "midflight.yaml"
    first = midflight("init", str(path))
    assert first.returncode == 0 and path.read_text() == template()
    path.write_text("data: elsewhere\n")
    second = midflight("init", str(path))
    assert second.returncode == 2 and second.stderr.count("\n") == 1 and "stays as it is" in second.stderr
    assert path.read_text() == "data: elsewhere\n"


# -- the command line ----------------------------------------------------------------------------------------------------


def midflight(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "midflight", *arguments],
        env=os.environ | {"PYTHONPATH": str(PROJECT)} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_an_unknown_command_offers_the_nearest() -> None:
    """A misspelt command is one line on the error output with the nearest known one, exit code 2, no traceback."""
    done = midflight("versoin")
    assert done.returncode == 2
    assert done.stderr == "midflight: Unknown command `versoin`. Did you mean `version`?\n"


def test_help_imports_no_command() -> None:
    """`midflight --help` lists every command and imports none of them, nor numpy or duckdb."""
    script = (
        "import sys; from midflight.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as done: code = done.code\n"
        "heavy = [m for m in sys.modules if m.startswith('midflight.commands.') or m in ('numpy', 'numba', 'duckdb', 'fastapi')]\n"
        "sys.exit(f'imported {heavy}' if heavy or code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in commands.names():
        assert re.search(rf"\b{name}\b", done.stdout), name


@pytest.mark.parametrize("arguments", [["--config", "FILE", "config"], ["config", "--config", "FILE"], ["config", "--config=FILE"]])
def test_the_configuration_may_be_named_anywhere(arguments: list[str]) -> None:
    """`--config FILE` counts before and after the command."""
    from midflight.cli import config_first

    first = config_first(arguments)
    assert first in (["--config", "FILE", "config"], ["--config=FILE", "config"])
    assert config_first(["x", "--", "--config", "y"]) == ["x", "--", "--config", "y"]


# -- links ---------------------------------------------------------------------------------------------------------------

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchor(heading: str) -> str:
    """Return the anchor under which a heading is found, as common Markdown renderers make it."""
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return words.replace(" ", "-")


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def broken_links(page: Path) -> list[str]:
    """Return the links of a page that lead to no file or no heading; addresses elsewhere are not followed."""
    broken = []
    for target in LINK.findall(without_blocks(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, wanted = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists():
            broken.append(f"{page.name}: {target}")
        elif wanted and path.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", without_blocks(path.read_text()), re.MULTILINE)
            if wanted not in {anchor(heading) for heading in headings}:
                broken.append(f"{page.name}: {target}")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the tree, or a heading of one, finds it."""
    assert broken_links(page) == []


def test_a_broken_link_is_caught(tmp_path: Path) -> None:
    """A missing file and a missing heading are found, a good link is not."""
    (tmp_path / "b.md").write_text("# The `one` heading\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md#the-one-heading) [y](c.md) [z](b.md#other) [w](https://example.com/none)")
    assert broken_links(page) == ["a.md: c.md", "a.md: b.md#other"]


NAMED = re.compile(r"\[`([\w.]+)`\]\(([^)\s]+\.py)\)")
TREE_PATH = re.compile(r"`((?:midflight|tests|docs|examples|bench)/[\w./-]*)`")


def missing_code(page: Path) -> list[str]:
    """Return what a page names of the code that is not there: functions and classes linked to their file, and paths."""
    text = without_blocks(page.read_text())
    missing = [path for path in TREE_PATH.findall(text) if not (PROJECT / path).exists()]
    for name, target in NAMED.findall(text):
        code = (page.parent / target).resolve()
        for part in name.split("."):
            if not code.exists() or not re.search(rf"^ *(?:async def|def|class) {part}\b", code.read_text(), re.MULTILINE):
                missing.append(f"{name} in {target}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_that_pages_name_is_there(page: Path) -> None:
    """Every function or class that a page links to its file is in that file, and every path of the tree exists."""
    assert missing_code(page) == []


def test_code_that_went_away_is_caught(tmp_path: Path) -> None:
    """A function that was renamed and a file that was moved are found."""
    (tmp_path / "code.py").write_text("class Writer:\n    def append(self): ...\n")
    page = tmp_path / "a.md"
    page.write_text("[`Writer.append`](code.py) [`Writer.add`](code.py) `midflight/cli.py` `midflight/gone.py`")
    assert missing_code(page) == ["midflight/gone.py", "Writer.add in code.py"]


# -- what is said to be typed --------------------------------------------------------------------------------------------


def typed(text: str) -> set[str]:
    """Return every `midflight ...` and `make ...` that a page tells its reader to type: name, and subcommand if one is known."""
    code = re.findall(r"`([^`\n]+)`", without_blocks(text))
    code += [
        line.removeprefix("$ ")
        for block in re.findall(r"^```(?:sh|console)\b.*?\n(.*?)^```$", text, re.M | re.S)
        for line in block.splitlines()
    ]
    found = set()
    for line in code:
        for program, words in re.findall(r"(?:^|[;&|] *|/)(midflight|make) ([a-z][a-z-]*(?: [a-z][a-z-]*)?)", line):
            found.add(f"{program} {words}")
    return found


def unknown_commands(text: str) -> list[str]:
    """Return what a page tells its reader to type that does not exist."""
    known = set(every_command())
    groups = {said.rpartition(" ")[0] for said in known}
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    wrong = []
    for said in sorted(typed(text)):
        program, name, *rest = said.split()
        if program == "make":
            wrong += [said] if name not in targets else []
        elif f"midflight {name}" not in known:
            wrong.append(said)
        elif rest and f"midflight {name}" in groups and said not in known:
            wrong.append(said)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_tell_to_type_exists(page: Path) -> None:
    """Every command and make target that a page names is there."""
    assert unknown_commands(page.read_text()) == []


def test_an_invented_command_is_caught() -> None:
    """A command, a subcommand and a target that do not exist are found in running text and in blocks."""
    text = "Run `midflight fly` or `make version`.\n\n```sh\nmidflight version\nmidflight land --now\n```\n"
    assert unknown_commands(text) == ["make version", "midflight fly", "midflight land"]


# -- examples ------------------------------------------------------------------------------------------------------------


def run(block: Block, folder: Path) -> str:
    """Run a block in a folder of its own; return what went wrong, or nothing."""
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "PYTHONWARNINGS": "error",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TERM": "dumb",
    }
    if block.language == "python":
        return shell([sys.executable, "-c", block.text], folder, environment)[1]
    if block.language == "sh":
        return shell(["bash", "-euo", "pipefail", "-c", block.text], folder, environment)[1]
    assert block.language == "console", f"{block}: cannot run `{block.language}`"
    for command, wanted in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block.text, re.MULTILINE):
        got, wrong = shell(["bash", "-euo", "pipefail", "-c", command], folder, environment)
        if wrong or not doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE):
            return f"$ {command}\nexpected:\n{wanted}\ngot:\n{got}{wrong}"
    return ""


def shell(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[str, str]:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout, "" if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr or done.stdout}"


RUNNABLE = [block for block in BLOCKS if "run" in block.words]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a `midflight` that is this tree's, put first on the path of examples."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "midflight"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m midflight "$@"\n')
    script.chmod(0o755)
    return folder


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_examples_run(block: Block, tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block marked `run` does, and prints what it is said to print."""
    monkeypatch.setenv("PATH", f"{program}:{os.environ['PATH']}")
    assert not run(block, tmp_path)


def test_a_wrong_example_is_caught(tmp_path: Path) -> None:
    """An example that fails, or prints something else, is found."""
    page = tmp_path / "a.md"
    page.write_text(
        "```python run\nassert 1 == 2\n```\n```sh run\nfalse\n```\n"
        "```console run\n$ echo a\nb\n```\n```console run\n$ echo a b\na ...\n```\n"
    )
    wrong = [bool(run(block, tmp_path)) for block in blocks_of(page)]
    assert wrong == [True, True, True, False]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_blocks_are_python(block: Block) -> None:
    """Every Python block can be compiled, whether it is marked to run or not."""
    compile(block.text, str(block), "exec")


def check_settings(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check configuration as `midflight up` would, but for the values of secrets."""
    for name in re.findall(r"env:(\w+)", text):
        monkeypatch.setenv(name, "user:password")
    for name, settings in config_from(msgspec.yaml.decode(re.sub(r"file:[^\s,\]]+", "secret", text))).sources.items():
        fields = set(sources.REGISTRY.get(settings["kind"]).Config.__struct_fields__)
        if set(settings) - fields - {"kind"}:
            raise ConfigError(f"unknown setting of {name}", got=set(settings) - fields)


SETTINGS = [(str(block), block.text) for block in BLOCKS if block.language == "yaml"]
SETTINGS += [(str(path.relative_to(PROJECT)), path.read_text()) for path in PROJECT.glob("examples/**/*.yaml")]


@pytest.mark.parametrize(("where", "text"), SETTINGS, ids=[where for where, _ in SETTINGS])
def test_settings_in_pages_are_right(where: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every piece of configuration in the documentation passes the strict check."""
    check_settings(text, monkeypatch)


@pytest.mark.parametrize(
    "text",
    ["dor: {port: 1}", "sources: {a: {kind: sendgrid, secret: x}}", "sources: {a: {kind: sendgird}}", "shards: 0", "expected_messages: -1"],
)
def test_wrong_settings_are_caught(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting, a source's unknown one and an unknown vendor do not pass."""
    with pytest.raises(Exception, match="nknown|shards|expected messages"):
        check_settings(text, monkeypatch)


@pytest.mark.parametrize("path", sorted(PROJECT.glob("examples/**/*.py")), ids=lambda path: path.name)
def test_example_programs_run(path: Path, tmp_path: Path) -> None:
    """Every program in examples/ runs to its end."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYTHONWARNINGS": "error"}
    assert not shell([sys.executable, str(path)], tmp_path, environment)[1]
