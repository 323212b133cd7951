"""The extension built in other ways, each in a folder of its own, and a program run on it.

    python -m fuzz.variants sanitized -m pytest    AddressSanitizer and UndefinedBehaviorSanitizer (of gcc, or what CC names)
    python -m fuzz.variants checked -m pytest      every check that Cython can put in

The package is copied to build/variants, so that the extension of the source tree stays as it is; the rest of the command line is that
of the interpreter, which finds the copy first.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["VARIANTS", "Variant", "build", "environment"]

ROOT: Final = pathlib.Path(__file__).parent.parent
SOURCE: Final = ROOT / "src" / "fastsmtp"


@dataclass(frozen=True, slots=True)
class Variant:
    """How to build, and how to run.

    Attributes:
        flags: of the C compiler and the linker.
        directives: of Cython; those that the source has are replaced.
        preload: libraries of the compiler that the interpreter must load first.
        variables: of the environment.
    """

    flags: tuple[str, ...]
    directives: dict[str, bool] = field(default_factory=dict)
    preload: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)


VARIANTS: Final = {
    "sanitized": Variant(
        ("-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        preload=("libasan.so", "libubsan.so"),
        variables={
            # Each object of Python's is a block of its own, so that an octet beside it is seen.
            "PYTHONMALLOC": "malloc",
            # What the interpreter keeps to its end is no leak of ours; tests/test_growth.py looks for those.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1:abort_on_error=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
    ),
    "checked": Variant(
        ("-O1", "-g", "-Wno-int-conversion"),  # Cython checks differences of pointers as integers
        {
            "boundscheck": True,
            "wraparound": True,
            "initializedcheck": True,
            "nonecheck": True,
            "overflowcheck": True,
            "overflowcheck.fold": False,
            "cdivision": False,
            "cdivision_warnings": True,
        },
    ),
}


def build(name: str) -> pathlib.Path:
    """Build a variant for this interpreter, if it is not there; the folder that has the package in it."""
    # By name, as neither has types; only a build needs them.
    cythonize: Any = importlib.import_module("Cython.Build").cythonize
    setuptools: Any = importlib.import_module("setuptools")
    build_ext: Any = importlib.import_module("setuptools.command.build_ext").build_ext

    variant = VARIANTS[name]
    folder = ROOT / "build" / "variants" / f"{name}-{sysconfig.get_config_var('SOABI')}"
    stamp = folder / "stamp"
    made_of = hashlib.sha256(repr(variant).encode() + os.environ.get("CC", "").encode())
    for source in sorted(path for path in SOURCE.rglob("*") if path.suffix in (".py", ".pyi", ".pyx", ".pxd", ".h")):
        made_of.update(source.read_bytes())
    if stamp.exists() and stamp.read_text() == made_of.hexdigest():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "fastsmtp"
    shutil.copytree(SOURCE, package, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    flags = list(variant.flags)

    def modules(name: str, source: pathlib.Path, **more: object) -> list[Any]:
        text = source.read_text(encoding="utf-8")
        for directive, value in variant.directives.items():
            # What the file itself says goes before what cythonize is told.
            text = re.sub(rf"(?m)^(# cython: .*\b{directive}=)\w+", rf"\g<1>{value}", text)
        source.write_text(text, encoding="utf-8")
        extension = setuptools.Extension(name, [str(source)], extra_compile_args=flags, extra_link_args=flags)
        directives = {"language_level": 3, **variant.directives, **more}
        found: list[Any] = cythonize(
            [extension], compiler_directives=directives, include_path=[str(folder)], force=True, quiet=True
        )
        return found

    extensions = modules("fastsmtp._textproto", package / "_textproto.pyx")
    for source in sorted(package.rglob("*.pxd")):
        # As setup.py has it.
        name = ".".join(source.relative_to(folder).with_suffix("").parts)
        as_it_stands = {"nonecheck": True, "embedsignature": True, "embedsignature.format": "clinic"}
        extensions += modules(name, source.with_suffix(".py"), binding=False, annotation_typing=False, **as_it_stands)
    command = build_ext(setuptools.Distribution({"name": name, "ext_modules": extensions}))
    command.build_lib, command.build_temp = str(folder), str(folder / "objects")
    command.ensure_finalized()
    command.run()
    stamp.write_text(made_of.hexdigest())
    return folder


def environment(name: str, folder: pathlib.Path) -> dict[str, str]:
    """The variables with which an interpreter runs on the variant in `folder`."""
    variant = VARIANTS[name]
    path = os.pathsep.join(filter(None, (str(folder), str(ROOT), os.environ.get("PYTHONPATH"))))
    found = {**os.environ, **variant.variables, "PYTHONPATH": path, "FASTSMTP_REQUIRE_EXTENSION": "1"}
    found.pop("FASTSMTP_PURE", None)
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    libraries = []
    for library in variant.preload:
        command = [*compiler, f"-print-file-name={library}"]
        where = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(where):
            raise SystemExit(f"{compiler[0]} has no {library}")
        libraries.append(where)
    if libraries:
        found["LD_PRELOAD"] = " ".join(libraries)
    return found


def main(argv: list[str]) -> int:
    """Build a variant, and run the interpreter on it."""
    if not argv or argv[0] not in VARIANTS:
        print(f"python -m fuzz.variants {{{','.join(VARIANTS)}}} ARGUMENTS-OF-PYTHON", file=sys.stderr)
        return 2
    folder = build(argv[0])
    check = "import fastsmtp._textproto as twin; print('on', twin.__file__)"
    variables = environment(argv[0], folder)
    subprocess.run([sys.executable, "-c", check], env=variables, check=True)
    return subprocess.run([sys.executable, *argv[1:]], env=variables, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
