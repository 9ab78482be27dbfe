"""A program's expected error is one line; its exit code says whether somebody else is in the way."""

from __future__ import annotations

import pytest

from core.errors import ConflictError, ModelError, run_main


@pytest.mark.parametrize(
    ("error", "code"), [(ModelError("No file.", "Get one."), 1), (ConflictError("Taken."), 3)]
)
def test_an_expected_error_is_one_line(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as end:
        run_main(main)
    assert end.value.code == code
    assert capsys.readouterr().err == f"{error}\n"


def test_the_exit_code_of_a_program_is_what_its_main_returns() -> None:
    with pytest.raises(SystemExit) as end:
        run_main(lambda: 2)
    assert end.value.code == 2


def test_an_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_main(lambda: 1 // 0)
