"""A real Postgres on loopback, over a folder of its own."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
from pathlib import Path

import psycopg
from loopback import Server, free_port

# Where Debian keeps what it does not put on the PATH.
DEBIAN = Path("/usr/lib/postgresql")
# Whom it runs as where we are root, whom it refuses.
STAND_INS = ("postgres", "nobody")
connections_max = 40
answer_s_max = 2


def program(name: str) -> str:
    """Return one of Postgres' programs: from the PATH if the server's other programs stand there too, else Debian's newest."""
    found = shutil.which("initdb")
    if found:
        return str(Path(found).resolve().with_name(name))
    versions = sorted((path for path in DEBIAN.glob("*/bin") if (path / name).exists()), key=lambda path: float(path.parent.name))
    assert versions, "Postgres is neither on the PATH nor in Debian's place. Install it (Debian: apt-get install postgresql)"
    return str(versions[-1] / name)


def stand_in() -> pwd.struct_passwd:
    """Return a user that is not root."""
    for name in STAND_INS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError(f"Postgres does not run as root, and there is no user among {STAND_INS} to run it as")


class Postgres(Server):
    """A server with one database, `midflight`, and one user of the same name who may do everything in it."""

    # Fast: it ends what runs, and does not wait for those who are connected.
    ending = signal.SIGINT

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port = free_port()
        self.data = folder / "data"
        self.password_file = folder / "password"
        if os.geteuid() == 0:
            self.hand_over(stand_in())

    def hand_over(self, user: pwd.struct_passwd) -> None:
        """Give the folder to the user whom the server runs as. Raises AssertionError if that user cannot come to it."""
        closed = [path for path in self.folder.resolve().parents if not path.stat().st_mode & 0o001]
        assert not closed, (
            f"Postgres runs as `{user.pw_name}`, who may not enter {closed[0]}. Use a folder whose parents everybody may enter."
        )
        self.user = user.pw_name
        os.chown(self.folder, user.pw_uid, user.pw_gid)

    @property
    def password(self) -> str:
        return self.password_file.read_text().strip()

    @property
    def dsn(self) -> str:
        """How to connect to it."""
        return f"host=127.0.0.1 port={self.port} dbname=midflight user=midflight password={self.password}"

    def prepare(self) -> None:
        """Make its data folder and its database, once."""
        if self.data.exists():
            return
        if not self.password_file.exists():
            self.password_file.touch(mode=0o600)
            self.password_file.write_text(secrets.token_urlsafe(24))
            if self.user:
                shutil.chown(self.password_file, self.user)
        # What stands under the final name is whole.
        fresh = self.folder / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        how = ["--auth=scram-sha-256", f"--pwfile={self.password_file}", "--encoding=UTF8", "--no-locale"]
        self.run_once([program("initdb"), "-D", str(fresh), "-U", "midflight", *how])
        fresh.rename(self.data)

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            # Nobody comes in but through loopback.
            "unix_socket_directories": "",
            "max_connections": connections_max,
            "shared_buffers": "64MB",
        }
        named = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [program("postgres"), "-D", str(self.data), *named]

    def connect(self, database: str = "midflight") -> psycopg.Connection:
        """Return a connection. Raises psycopg.OperationalError."""
        return psycopg.connect(self.dsn, dbname=database, connect_timeout=answer_s_max)

    def ready(self) -> bool:
        try:
            with psycopg.connect(self.dsn, dbname="postgres", connect_timeout=answer_s_max, autocommit=True) as asked:
                if not asked.execute("select 1 from pg_database where datname = 'midflight'").fetchone():
                    asked.execute("create database midflight")
                return True
        except psycopg.OperationalError:
            return False
