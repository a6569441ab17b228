"""Errors: each code of the core has its exception, and each exception tells what it must."""

from __future__ import annotations

import pickle

import pytest

import execmem
from execmem import errors
from execmem._core import ffi, lib

CODES = {name: number for number, name in ffi.typeof("enum execmem_error").elements.items() if number}


def test_every_code_has_a_class_of_its_own() -> None:
    assert set(errors.CLASSES) == set(CODES.values())
    assert len(set(errors.CLASSES.values())) == len(CODES)


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_a_code_becomes_its_exception(code: int) -> None:
    with pytest.raises(execmem.ExecmemError) as caught:
        errors.raise_last(code)
    assert type(caught.value) is errors.CLASSES[code]
    assert caught.value.code == code
    assert caught.value.index is None
    assert str(caught.value)


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (execmem.ExecmemError, OSError),
        (execmem.InvalidArgumentError, ValueError),
        (execmem.OutOfMemoryError, MemoryError),
        (execmem.LimitError, MemoryError),
        (execmem.InvalidAddressError, ValueError),
        (execmem.InteriorAddressError, execmem.InvalidAddressError),
        (execmem.FreedAddressError, execmem.InvalidAddressError),
        (execmem.DoubleFreeError, execmem.InvalidAddressError),
        (execmem.BoundsError, ValueError),
        (execmem.ExecDeniedError, PermissionError),
        (execmem.BlockBusyError, execmem.BusyError),
        (execmem.BrokenLawError, AssertionError),
    ],
)
def test_an_exception_is_the_builtin_one_would_catch(cls: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(cls, builtin)


def test_a_broken_law_is_not_caught_with_mistakes() -> None:
    assert not issubclass(execmem.BrokenLawError, execmem.ExecmemError)


@pytest.mark.parametrize("cls", set(errors.CLASSES.values()), ids=lambda cls: cls.__name__)
def test_an_exception_survives_pickling(cls: type[execmem.ExecmemError]) -> None:
    error = pickle.loads(pickle.dumps(cls("why and what to do", -3, 7)))  # noqa: S301 - made one expression ago
    assert (str(error), error.code, error.index, error.errno) == ("why and what to do", -3, 7, cls.nearest_errno)


def test_freeing_twice_has_a_name_of_its_own() -> None:
    with pytest.raises(execmem.DoubleFreeError):
        errors.raise_last(lib.EXECMEM_EFREED, freeing=True)
    with pytest.raises(execmem.FreedAddressError) as caught:
        errors.raise_last(lib.EXECMEM_EFREED)
    assert not isinstance(caught.value, execmem.DoubleFreeError)


def test_all_exceptions_are_on_the_front_page() -> None:
    public = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert public <= set(execmem.__all__)
