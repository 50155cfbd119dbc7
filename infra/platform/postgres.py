"""The Postgres database of a Prefect server: `forgeline up --postgres URL`. For more than one user; SQLite is for one.

The URL comes without its password, which is taken from PGPASSWORD; or as `env:NAME`, from a variable that holds all of
it. So the password is on no command line, where every user of a machine can read it; the server has it in its
environment.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from infra.errors import ForgelineError, StageError, TransientError, UsageError

SHAPE = "postgresql://USER@HOST:PORT/DATABASE"
SCHEMES = ("postgres", "postgresql", "postgresql+asyncpg")
SECONDS = 10.0
OLDEST = 140000
ASKED = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS written,
       coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
       AND has_database_privilege(current_database(), 'CREATE') AS may_create,
       EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_trgm') AS trigrams
"""


@dataclass(frozen=True)
class Postgres:
    """Where a database is. `str()` of it has no password."""

    user: str
    host: str
    port: int
    name: str
    password: str = field(repr=False)
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.name}"

    def environment(self) -> dict[str, str]:
        """What a Prefect server has to have in its environment."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        query = f"?{urlencode(self.options)}" if self.options else ""
        url = f"postgresql+asyncpg://{login}@{host}:{self.port}/{quote(self.name, safe='')}{query}"
        return {"PREFECT_API_DATABASE_CONNECTION_URL": url}


def read_url(text: str, environ: Mapping[str, str] = os.environ) -> Postgres:
    """The database that `--postgres` names. Raises UsageError."""
    given = text
    if text.startswith("env:"):
        given = environ.get(text.removeprefix("env:"), "")
        if not given:
            raise UsageError(
                f"{text.removeprefix('env:')} is not set", where=f"--postgres {text}", hint=f"Set it: {SHAPE}."
            )
    where = "--postgres" if given == text else f"--postgres {text}"
    try:
        parts = urlsplit(given)
        port = parts.port or 5432
    except ValueError as error:
        raise UsageError("not a URL", where=where, hint=f"Write {SHAPE}.") from error
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in SCHEMES or not parts.hostname or not parts.username or not name:
        raise UsageError("not the URL of a Postgres database", where=where, hint=f"Write {SHAPE}.")
    if parts.password and given == text:
        what = "a password on the command line can be read by every user of this machine"
        raise UsageError(what, where=where, hint=f"Write {SHAPE} and set PGPASSWORD, or give --postgres env:NAME.")
    password = unquote(parts.password) if parts.password else environ.get("PGPASSWORD", "")
    # `sslmode` is libpq's word for what asyncpg calls `ssl`.
    options = tuple(("ssl" if key == "sslmode" else key, value) for key, value in parse_qsl(parts.query))
    return Postgres(unquote(parts.username), parts.hostname, port, name, password, options)


def require_ready(database: Postgres) -> None:
    """Raise unless the database can be reached and a Prefect server could make its tables there.

    TransientError: nobody answers. StageError: it refuses us, or lacks something.
    """
    fault = asyncio.run(_fault(database))
    if fault is not None:
        raise fault


async def execute(database: Postgres, statement: str, *values: object) -> str:
    """Run one statement; why it could not be, empty if it was."""
    import asyncpg

    try:
        connection = await _connect(database)
        try:
            await connection.execute(statement, *values, timeout=SECONDS)
        finally:
            await connection.close(timeout=SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return str(error) or type(error).__name__
    return ""


async def _connect(database: Postgres) -> Any:
    import asyncpg

    return await asyncpg.connect(
        host=database.host,
        port=database.port,
        user=database.user,
        password=database.password or None,
        database=database.name,
        ssl=dict(database.options).get("ssl"),
        timeout=SECONDS,
    )


async def _fault(database: Postgres) -> ForgelineError | None:
    import asyncpg

    where = str(database)
    try:
        connection = await _connect(database)
        try:
            found = await connection.fetchrow(ASKED, timeout=SECONDS)
        finally:
            await connection.close(timeout=SECONDS)
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        what = f"Postgres refused user {database.user!r}" + ("" if database.password else ": there is no password")
        return StageError(what, where=where, hint="Set PGPASSWORD to its password, and see pg_hba.conf of the server.")
    except asyncpg.InvalidCatalogNameError:
        hint = f"Make it: createdb -h {database.host} -p {database.port} -O {database.user} {database.name}."
        return StageError(f"there is no database {database.name!r}", where=where, hint=hint)
    except (OSError, TimeoutError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError) as error:
        what = f"Postgres cannot be reached at {database.host}:{database.port} ({type(error).__name__})"
        return TransientError(what, where=where, hint="Is it running, and does it listen there? Nothing was started.")
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        return StageError(f"Postgres does not work: {str(error).splitlines()[0]}", where=where)
    if found["version"] < OLDEST:
        what = f"Postgres {found['written']} is too old for Prefect"
        return StageError(what, where=where, hint=f"Use version {OLDEST // 10000} or newer.")
    if not found["may_create"]:
        hint = f"Make it the owner: ALTER DATABASE {database.name} OWNER TO {database.user}."
        return StageError(f"{database.user!r} may not make tables there", where=where, hint=hint)
    if not found["trigrams"]:
        hint = "Install the extensions that come with Postgres, e.g. the package postgresql-contrib."
        return StageError("the server lacks the extension pg_trgm", where=where, hint=hint)
    return None
