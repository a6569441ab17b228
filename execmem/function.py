"""Functions: placed code as a Python callable.

A signature is a text such as ``"i64(i64,i64)"``: the type of the result, then those of the parameters.

======================== ==================================================================
``i8 i16 i32 i64``       signed integers; a Python int out of range raises OverflowError
``u8 u16 u32 u64``       unsigned integers
``f32 f64``              floating point
``bool``                 one byte, 0 or 1
``ptr``                  an address: an int, a Block, None, or anything with a buffer, which stays alive for the call
``void``                 no result
======================== ==================================================================

The call follows the C calling convention of the machine, through libffi (no memory is made executable for that), and
runs without the interpreter lock.
"""

# ruff: noqa: ANN401 - cffi values have no type

from __future__ import annotations

import re
from operator import index
from typing import Any, Final

from execmem._core import ffi
from execmem.errors import InvalidArgumentError
from execmem.memory import VOID_P, WORD, WORD_MAX

C_TYPES: Final[dict[str, str]] = {
    "i8": "int8_t",
    "i16": "int16_t",
    "i32": "int32_t",
    "i64": "int64_t",
    "u8": "uint8_t",
    "u16": "uint16_t",
    "u32": "uint32_t",
    "u64": "uint64_t",
    "f32": "float",
    "f64": "double",
    "bool": "_Bool",
    "ptr": "void *",
}
SHAPE: Final = re.compile(r"\s*(\w+)\s*\(([^()]*)\)\s*")


def parse_signature(signature: str) -> tuple[str, tuple[str, ...]]:
    """Return the type of the result and those of the parameters.

    >>> parse_signature("i64(i64, ptr)")
    ('i64', ('i64', 'ptr'))
    >>> parse_signature("void()")
    ('void', ())
    """
    match = SHAPE.fullmatch(signature) if isinstance(signature, str) else None
    if match is None:
        message = f"signature {signature!r} is not of the form 'result(parameter,...)', such as 'i64(i64,ptr)'"
        raise InvalidArgumentError(message)
    result, inner = match.groups()
    parameters = tuple(part.strip() for part in inner.split(",")) if inner.strip() else ()
    if result != "void" and result not in C_TYPES:
        message = f"signature {signature!r}: {result!r} is no type; known are {', '.join(C_TYPES)} and void"
        raise InvalidArgumentError(message)
    for number, parameter in enumerate(parameters, 1):
        if parameter not in C_TYPES:
            hint = "; write () for no parameters" if parameter == "void" else ""
            known = ", ".join(C_TYPES)
            message = f"signature {signature!r}: parameter {number} is {parameter!r}; known are {known}{hint}"
            raise InvalidArgumentError(message)
    return result, parameters


def to_pointer(value: object) -> Any:
    """Return what cffi passes as ``void *``; a buffer lives as long as what is returned."""
    if value is None:
        return ffi.NULL
    if isinstance(value, ffi.CData):
        return value
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        return ffi.from_buffer(value)
    if not 0 <= number <= WORD_MAX:
        message = f"{number} is no address: it must lie in 0 .. 2**64 - 1"
        raise OverflowError(message)
    return ffi.cast(VOID_P, number)


class Function:
    """Code at an address, called with a signature.

    ``Block.function`` makes it; it holds the block, which cannot be freed while the function or a call in flight lives.
    A wrong signature is not noticed by anybody: as in C, the result is then undefined.

    Cost of a call: about 0.15 us without arguments (cffi alone 0.09), 0.24 us with one, 1 us with pointers.
    """

    __slots__ = ("__name__", "_call", "_keep", "_plain", "_pointers", "_result", "address", "signature")

    def __init__(self, address: int, signature: str, name: str) -> None:
        """Make a callable of the code at ``address``."""
        result, parameters = parse_signature(signature)
        listed = ", ".join(C_TYPES[parameter] for parameter in parameters) or "void"
        self.address = address
        self.signature = f"{result}({','.join(parameters)})"
        self.__name__ = name
        self._keep: object = None
        self._result = result
        self._pointers = tuple(number for number, parameter in enumerate(parameters) if parameter == "ptr")
        self._plain = not self._pointers and result != "ptr"  # asked at each call
        self._call = ffi.cast(f"{C_TYPES.get(result, 'void')}(*)({listed})", address)

    def keep(self, keep: object) -> None:
        """Hold an object for as long as the callable lives."""
        self._keep = keep

    def __call__(self, *arguments: object) -> Any:
        """Run the code; the interpreter lock is released meanwhile."""
        if self._plain:
            return self._call(*arguments)
        converted = list(arguments)
        for number in self._pointers:
            if number < len(converted):
                converted[number] = to_pointer(converted[number])
        value = self._call(*converted)
        return int(ffi.cast(WORD, value)) if self._result == "ptr" else value

    def __index__(self) -> int:
        """Return the address of the code."""
        return self.address

    def __repr__(self) -> str:
        """Tell name, signature and address."""
        return f"<Function {self.__name__ or 'unnamed'} {self.signature} at {self.address:#x}>"
