"""Where a real Kafka comes from: the jars that ``kafka.lock`` names, fetched by Maven and checked, or the folder ``KAFKA_HOME``.

``python tests/cluster/kafka_jars.py fetch`` puts them into ``build/kafka``, ``... lock`` writes the lock again from ``ROOTS``.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

LOCK = Path(__file__).with_name("kafka.lock")
CACHE = Path(__file__).parents[2] / "build" / "kafka"
# What the lock is made from: the broker, and what carries its log lines to the standard output.
ROOTS = ("org.apache.kafka:kafka_2.13:4.4.0", "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5")
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
HEAD = """\
# sha256, file and coordinates of every jar of the broker that the tests of the cluster run.
# Written by `python tests/cluster/kafka_jars.py lock`; `... fetch` brings them and checks each.
"""
fetch_s_max = 900


class Jar(NamedTuple):
    """One line of the lock: the hex digest of the file, its name, and ``group:artifact:version``."""

    sha256: str
    file: str
    coordinates: str


def locked(lock: Path = LOCK) -> list[Jar]:
    """Return what the lock names."""
    lines = lock.read_text().splitlines()
    return [Jar(*line.split()) for line in lines if line and not line.startswith("#")]


def digest(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wrong(folder: Path, jars: list[Jar]) -> list[str]:
    """Return what is missing in a folder of jars, or is not what the lock says."""
    said = []
    for jar in jars:
        path = folder / jar.file
        if not path.is_file():
            said.append(f"{jar.file}: is missing")
        elif (got := digest(path)) != jar.sha256:
            said.append(f"{jar.file}: expected sha256 {jar.sha256}, got {got}")
    return said


def pom(coordinates: list[str] | tuple[str, ...], alone: bool) -> str:
    """Return a Maven project that depends on some artifacts: on nothing that these depend on if `alone`."""
    exclusions = "<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions>" if alone else ""
    dependencies = ""
    for group, artifact, version in (escape(one).split(":") for one in coordinates):
        named = f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        dependencies += f"<dependency>{named}{exclusions}</dependency>\n"
    own = "<groupId>midflight</groupId><artifactId>cluster</artifactId><version>1</version><packaging>pom</packaging>"
    return (
        f'<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>{own}\n'
        f"<dependencies>\n{dependencies}</dependencies></project>\n"
    )


def maven(goal: str, project: str, folder: Path, *options: str) -> None:
    """Run one goal of Maven's dependency plugin in a folder. ``MVN`` may say how Maven is called, as in ``MVN="mvn --offline"``.

    Raises SystemExit with Maven's own words.
    """
    (folder / "pom.xml").write_text(project)
    command = [*shlex.split(os.environ.get("MVN", "mvn")), "-B", "-q", f"{PLUGIN}:{goal}", "-DincludeScope=runtime", *options]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=fetch_s_max)
    except FileNotFoundError as error:
        raise SystemExit(f"`{command[0]}` is not on the PATH. Install Maven (Debian: apt-get install maven) or set KAFKA_HOME.") from error
    if done.returncode:
        raise SystemExit(f"`{shlex.join(command)}` ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")


def fetch(cache: Path = CACHE, lock: Path = LOCK) -> Path:
    """Bring what the lock names into a folder, unless it is there, and return the folder.

    Raises SystemExit if a file is not what the lock says; the folder is then as it was.
    """
    jars = locked(lock)
    if not wrong(cache, jars):
        return cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.parent) as name:
        got = Path(name) / "jars"
        maven("copy-dependencies", pom([jar.coordinates for jar in jars], alone=True), Path(name), f"-DoutputDirectory={got}")
        if said := wrong(got, jars):
            raise SystemExit(f"Kafka's jars are not what {lock.name} says, nothing is installed:\n" + "\n".join(said))
        shutil.rmtree(cache, ignore_errors=True)
        got.rename(cache)
    return cache


def write_lock(lock: Path = LOCK) -> None:
    """Write the lock again: everything that ``ROOTS`` need to run, in the versions that they ask for."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maven("list", pom(ROOTS, alone=False), folder, "-DoutputFile=listed", "-Dsort=true")
        maven("copy-dependencies", pom(ROOTS, alone=False), folder, f"-DoutputDirectory={folder / 'jars'}")
        listed = [line.split()[0].split(":") for line in (folder / "listed").read_text().splitlines() if ":jar:" in line]
        lines = []
        for group, artifact, _, version, _ in sorted(listed):
            file = f"{artifact}-{version}.jar"
            lines.append(f"{digest(folder / 'jars' / file)}  {file}  {group}:{artifact}:{version}\n")
    lock.write_text(HEAD + "".join(lines))


def class_path() -> str:
    """Return the class path of a Kafka broker: that of ``KAFKA_HOME`` where it is set, else of what the lock names, every file checked.

    Raises SystemExit that says what to do where there is neither.
    """
    if home := os.environ.get("KAFKA_HOME"):
        libs = Path(home) / "libs"
        if not any(libs.glob("kafka_2*.jar")):
            raise SystemExit(f"KAFKA_HOME is {home}, and there is no broker in {libs}. Name the folder that Kafka was unpacked into.")
        return f"{libs}/*"
    jars = locked()
    if said := wrong(CACHE, jars):
        raise SystemExit("Kafka is not installed. Run `make test-cluster`, or set KAFKA_HOME:\n" + "\n".join(said[:5]))
    return os.pathsep.join(str(CACHE / jar.file) for jar in jars)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["fetch"]:
            if not os.environ.get("KAFKA_HOME"):
                print(f"Kafka's jars are in {fetch()}")
        case ["lock"]:
            write_lock()
        case _:
            raise SystemExit("Expected `fetch` or `lock`.")
