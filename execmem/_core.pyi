"""What type checkers see of the compiled core; its real declarations are csrc/execmem.h."""

from typing import Any

ffi: Any
lib: Any
