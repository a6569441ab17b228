"""What type checkers see of the compiled core; its real declarations are csrc/execmem.h and csrc/pyblock.h."""

from typing import Any, TypeVar

ffi: Any
lib: Any

_B = TypeVar("_B", bound=BlockBase)

class BlockBase:
    _holders: dict[int, str] | None
    _live: bool
    _lost: bool
    @property
    def _retired(self) -> bool: ...
    @property
    def address(self) -> int: ...
    @property
    def domain(self) -> Any: ...  # noqa: ANN401 - its type lies above
    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    def __del__(self) -> None: ...
    def free(self) -> None: ...
    def retire(self) -> None: ...

class DomainBase:
    _word: int
    number: int
    def _make(
        self, cls: type[_B], source: object, size: object, name: object, kind: object, align: object, /
    ) -> _B | None: ...
    def _element(self, cls: type[_B], address: int, size: int, name: str | None, kind: str, /) -> _B: ...
    @staticmethod
    def _measure(codes: tuple[object, ...], /) -> bytearray | None: ...
    @staticmethod
    def _gather(codes: tuple[object, ...], buffer: bytearray, /) -> None: ...
