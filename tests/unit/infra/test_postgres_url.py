"""What `--postgres` accepts, and that its password is nowhere to be seen."""

from __future__ import annotations

import pytest

from infra.errors import UsageError
from infra.platform.postgres import read_url

SECRET = "p@ss/w+rd="


def test_a_url_without_its_password_takes_it_from_the_environment() -> None:
    found = read_url("postgresql://forge@db.local/prefect?sslmode=require", {"PGPASSWORD": SECRET})
    assert found.environment() == {
        "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://forge:p%40ss%2Fw%2Brd%3D@db.local:5432/prefect?ssl=require"
    }
    assert str(found) == "postgresql://forge@db.local:5432/prefect" and SECRET not in repr(found)


def test_a_variable_may_hold_all_of_it() -> None:
    environ = {"DATABASE": "postgresql+asyncpg://forge:p%40ss%2Fw%2Brd%3D@[::1]:5433/prefect", "PGPASSWORD": "other"}
    found = read_url("env:DATABASE", environ)
    assert (found.host, found.port, found.password) == ("::1", 5433, SECRET)
    assert "@[::1]:5433/prefect" in found.environment()["PREFECT_API_DATABASE_CONNECTION_URL"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("postgresql://forge:s3cret@db/prefect", "can be read by every user.*\n.*PGPASSWORD"),
        ("env:NOT_SET", "NOT_SET is not set"),
        ("env:WRONG", "--postgres env:WRONG: not the URL of a Postgres database"),
        ("mysql://forge@db/prefect", "not the URL of a Postgres"),
        ("postgresql://db/prefect", "not the URL of a Postgres"),
        ("postgresql://forge@db", "not the URL of a Postgres"),
        ("postgresql://forge@db:port/prefect", "not a URL"),
    ],
)
def test_what_it_cannot_use_it_does_not_show(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as raised:
        read_url(text, {"WRONG": "mysql://forge:s3cret@db/prefect"})
    assert "s3cret" not in str(raised.value)
