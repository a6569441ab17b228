"""Build the C core. What the package is stands in pyproject.toml; what is compiled, in csrc/cffi_build.py.

With EXECMEM_WITHOUT_CORE=1 nothing is compiled: only what needs no core, ``execmem.directmap``, works then.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext


class BuildCore(build_ext):  # type: ignore[misc, unused-ignore]  # setuptools gives its commands no types
    """Compiles assembly too, and compiles again when the flags have changed."""

    def build_extensions(self) -> None:
        """Build the core into one module."""
        # cffi's module is the only extension; the compiler takes .S files but setuptools does not know.
        if ".S" not in self.compiler.src_extensions:
            self.compiler.src_extensions.append(".S")
        flags = "\n".join(
            f"{ext.name} {ext.define_macros} {ext.extra_compile_args} {ext.extra_link_args}" for ext in self.extensions
        )
        kept = Path(self.build_temp) / "flags"
        if not kept.is_file() or kept.read_text(encoding="utf-8") != flags:
            self.force = True
        super().build_extensions()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(flags, encoding="utf-8")


# One wheel serves Python 3.10 and all later ones, free-threaded ones excepted: they have no stable ABI before 3.15.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

if os.environ.get("EXECMEM_WITHOUT_CORE") == "1":
    setup()
else:
    setup(
        cffi_modules=["csrc/cffi_build.py:ffibuilder"],
        cmdclass={"build_ext": BuildCore},
        options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp310"}},
    )
