import pytest

from hf_gru_captioner.errors import MissingExtraError, UsageError, needs_extra, one_line, reason_of


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    said = r'^no_such_package is not installed: pip install "hf_gru_captioner\[x\]"$'
    with pytest.raises(MissingExtraError, match=said), needs_extra("x"):
        import no_such_package  # noqa: F401


def test_a_missing_extra_is_a_usage_error_and_an_import_error():
    assert issubclass(MissingExtraError, UsageError)
    assert issubclass(MissingExtraError, ImportError)


def test_other_errors_go_through():
    with pytest.raises(ZeroDivisionError), needs_extra("x"):
        raise ZeroDivisionError


def test_an_error_is_one_line_without_what_steers_a_terminal():
    assert one_line(ValueError("a\n  b\t\x1b[31mred")) == "a b \\x1b[31mred"


def test_a_reason_has_its_kind_and_is_short():
    assert reason_of(KeyError("a" * 1000)) == "KeyError: '" + "a" * 299
