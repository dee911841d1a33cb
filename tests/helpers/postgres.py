"""A real Postgres for tests: one server a session, one empty database a test."""

import itertools
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import psycopg

_BIN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
_COUNT = itertools.count()


def find(program: str) -> str | None:
    """Debian keeps Postgres' programs out of PATH."""
    folders = os.pathsep.join([*map(str, _BIN), os.environ.get("PATH", "")])
    return shutil.which(program, path=folders)


class Server:
    """A server on a Unix socket in its own folder; root has to run it as somebody else."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._user = folder, None
        if os.geteuid() == 0:
            self._user = "postgres"
            account = pwd.getpwnam(self._user)
            folder.mkdir(parents=True, exist_ok=True)
            os.chown(folder, account.pw_uid, account.pw_gid)
            for parent in folder.parents:  # pytest's folders are closed to others
                if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):
                    parent.chmod(parent.stat().st_mode | 0o055)
        folder.mkdir(parents=True, exist_ok=True)
        self._do("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", "slip", "--no-sync")
        self.start()

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.folder} -c max_connections=200 -c fsync=off"
        log = str(self.folder / "log")
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._do("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "stop")

    def restart(self, mode: str = "fast", away_s: float = 0.0) -> None:
        self.stop(mode)
        time.sleep(away_s)
        self.start()

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"memory{next(_COUNT)}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://slip@/{name}?host={self.folder}"

    def connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(f"host={self.folder} user=slip dbname={database}", autocommit=True)

    def _do(self, program: str, *arguments: str) -> None:
        found = find(program)
        assert found is not None, f"{program}: apt-get install postgresql"
        subprocess.run(
            [found, *arguments],
            user=self._user,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
