import socket
import sqlite3

import pytest

from nextbest.learn.reach import require_reachable, without_password


def test_a_new_sqlite_file_is_made_with_its_folder(tmp_path):
    require_reachable(f"sqlite:///{tmp_path}/new/mlflow.db?timeout=5")
    assert (tmp_path / "new").is_dir()


def test_a_file_that_is_no_database_is_noticed(tmp_path):
    (tmp_path / "mlflow.db").write_text(
        "not a database, but long enough to be read as a header" * 9
    )
    with pytest.raises(sqlite3.DatabaseError):
        require_reachable(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg2"])
def test_a_port_where_nobody_listens_is_noticed(scheme):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # Bound but not listening: connections are refused.
        with pytest.raises(OSError):
            require_reachable(f"{scheme}://user:secret@127.0.0.1:{held.getsockname()[1]}/db")


def test_a_port_where_somebody_listens_is_enough():
    with socket.create_server(("127.0.0.1", 0)) as server:
        require_reachable(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_port_that_is_no_number_is_noticed():
    with pytest.raises(OSError, match="Port"):
        require_reachable("http://localhost:many")


def test_passwords_are_not_shown():
    assert without_password("postgresql://me:secret@db/x") == "postgresql://me:***@db/x"
    assert without_password("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"
