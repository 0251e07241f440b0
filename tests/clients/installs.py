"""Install pinned clients, each once into a folder of its own in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

PROGRAMS = Path(__file__).parent / "programs"
TIME_LIMIT = 600.0


class NotInstallableError(Exception):
    """A client cannot run on this machine; the message is the reason."""


class Install(Protocol):
    @property
    def versions(self) -> Mapping[str, str]:
        """The pinned packages; the first one's version is the client's."""

    def folder(self) -> Path:
        """Return the folder of the installation, which is made now if it is not there."""


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aibridge-tests" / "clients"


def _run(command: list[str], cwd: Path, env: Mapping[str, str] | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as error:
        raise NotInstallableError(f"{command[0]} took more than {TIME_LIMIT:.0f} s") from error
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotInstallableError(f"{Path(command[0]).name} ended with {done.returncode}: {' '.join(lines[-2:])[:200]}")


def _program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise NotInstallableError(f"{names[0]} is not installed")


@dataclass(frozen=True)
class _Cached:
    versions: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str]

    def folder(self) -> Path:
        name, version = next(iter(self.versions.items()))
        others = "".join(f"+{n}-{v}" for n, v in list(self.versions.items())[1:])
        folder = cache() / f"{self.kind}-{name}-{version}{others}{self.mark()}".replace("/", "_").replace(":", "_")
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self.fill(folder)
            (folder / "complete").touch()
        return folder

    def mark(self) -> str:
        """What else the installation depends on."""
        return ""

    def fill(self, folder: Path) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Venv(_Cached):
    """Packages of PyPI in a virtual environment; its programs are in `bin`."""

    python: str = ""
    """Such as `3.12`, for packages that do not run on ours."""
    kind: ClassVar[str] = "venv"

    def fill(self, folder: Path) -> None:
        python = self._python() if self.python else sys.executable
        _run([python, "-m", "venv", "."], folder)
        packages = [f"{name}=={version}" for name, version in self.versions.items()]
        _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages], folder)

    def _python(self) -> str:
        """An interpreter of that version which can be started; pyenv's may be there without being selected."""
        for candidate in (
            f"python{self.python}",
            *sorted(Path.home().glob(f".pyenv/versions/{self.python}.*/bin/python")),
        ):
            found = shutil.which(str(candidate))
            if found and not subprocess.run([found, "--version"], capture_output=True).returncode:
                return found
        raise NotInstallableError(f"Python {self.python} is not installed")


@dataclass(frozen=True)
class Npm(_Cached):
    """Packages of npm; their programs are in `node_modules/.bin`."""

    kind: ClassVar[str] = "npm"

    def fill(self, folder: Path) -> None:
        packages = [f"{name}@{version}" for name, version in self.versions.items()]
        options = ["--prefix", ".", "--no-audit", "--no-fund", "--loglevel=error"]
        _run([_program("npm"), "install", *options, *packages], folder)


@dataclass(frozen=True)
class _Built(_Cached):
    """A program of ours with packages."""

    source: str = ""

    def mark(self) -> str:
        return "-" + hashlib.sha256((PROGRAMS / self.source).read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class Go(_Built):
    """Modules of Go; our program is built as `program`."""

    kind: ClassVar[str] = "go"

    def fill(self, folder: Path) -> None:
        go = _program("go")
        shutil.copy(PROGRAMS / self.source, folder / "main.go")
        _run([go, "mod", "init", "example.invalid/client"], folder)
        for name, version in self.versions.items():
            _run([go, "get", f"{name}@v{version}"], folder)
        _run([go, "mod", "tidy"], folder)
        _run([go, "build", "-o", "program", "."], folder)


@dataclass(frozen=True)
class Maven(_Built):
    """Packages of Maven, in `lib`; the classes of our program are in `classes`."""

    kind: ClassVar[str] = "maven"

    def fill(self, folder: Path) -> None:
        maven, javac = _program("mvn"), _program("javac")
        dependencies = "".join(
            "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>".format(
                *name.split(":"), version
            )
            for name, version in self.versions.items()
        )
        (folder / "pom.xml").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>invalid.example</groupId>"
            "<artifactId>client</artifactId><version>1</version>"
            f"<dependencies>{dependencies}</dependencies></project>"
        )
        copy = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
        _run([maven, "--batch-mode", "--quiet", copy, "-DoutputDirectory=lib"], folder)
        _run([javac, "-cp", "lib/*", "-d", "classes", str(PROGRAMS / self.source)], folder)
