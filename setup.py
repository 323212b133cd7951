"""Decides about the extension, and nothing else; the rest is in pyproject.toml.

FASTSMTP_PURE=1               no extension: a py3-none-any wheel.
FASTSMTP_REQUIRE_EXTENSION=1  the extension, or an error.
neither                       the extension if a compiler works, else pure Python.
both                          an error.  Empty and 0 are as if not set.

setuptools' `optional=True` is not used: it hides compile errors and makes a platform wheel without the extension in it.  So a compiler
is tried first, and what is decided then is built or fails.
"""

import os
import pathlib
import sys
import tempfile

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext


def compiler_works() -> bool:
    """Compile one line that includes Python.h, as the extension will."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "probe.c")
        with open(source, "w") as file:
            file.write("#include <Python.h>\nint fastsmtp_probe(void) { return PY_VERSION_HEX != 0; }\n")
        command = build_ext(Distribution({"name": "probe", "ext_modules": [Extension("probe", [source])]}))
        command.build_lib = command.build_temp = folder
        try:
            command.ensure_finalized()
            command.run()
        except Exception as error:  # noqa: BLE001 - whatever it is, there is no compiler that works
            print(f"fastsmtp: no working C compiler, building pure Python ({error})", file=sys.stderr)
            return False
    return True


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")  # as in src/fastsmtp/_twin.py


def extensions() -> list:
    required = is_set("FASTSMTP_REQUIRE_EXTENSION")
    if is_set("FASTSMTP_PURE"):
        if required:
            sys.exit("FASTSMTP_PURE and FASTSMTP_REQUIRE_EXTENSION contradict each other")
        return []
    if not required and not compiler_works():
        return []
    from Cython.Build import cythonize

    flags = [] if sys.platform == "win32" else ["-O3", "-g0"]
    twin = Extension(
        "fastsmtp._textproto",
        ["src/fastsmtp/_textproto.pyx"],
        depends=["src/fastsmtp/_dotscan.h"],
        extra_compile_args=flags,
    )
    # As they stand: see src/fastsmtp/_source.py.
    sources = sorted(str(path.with_suffix(".py")) for path in pathlib.Path("src/fastsmtp").rglob("*.pxd"))
    hot = [
        Extension(
            source.removesuffix(".py").replace(os.sep, ".").removeprefix("src."), [source], extra_compile_args=flags
        )
        for source in sources
    ]
    directives = {"language_level": 3}
    as_it_stands = directives | {
        "binding": False,
        "annotation_typing": False,
        "nonecheck": True,  # without it an attribute of None, an AttributeError in the source, would be read from wherever it would be
        "embedsignature": True,  # for help() and inspect.signature()
        "embedsignature.format": "clinic",
    }
    return cythonize([twin], build_dir="build", compiler_directives=directives) + cythonize(
        hot, build_dir="build", include_path=["src"], compiler_directives=as_it_stands
    )


setup(ext_modules=extensions())
