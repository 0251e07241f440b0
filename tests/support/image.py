"""Run the steps of `docs/deploy/Containerfile` in a clean Debian root, start the result, and ask for its health.

`make image-check` runs this as root. It needs debootstrap, and replaces the image's base by the same release of Debian
with its own Python.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.polling import poll_until
from tests.support.upstream import unused_port

ROOT = Path(__file__).parents[2]
CONTAINERFILE = ROOT / "docs" / "deploy" / "Containerfile"
BASE = re.compile(r"python:3\.13\.\d+-slim-(\w+)")
HOST_FILES = ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
"""What the host's pip needs for its index, the root's pip needs as well."""


@dataclass
class Stage:
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def last(self, instruction: str) -> str:
        return next(text for name, text in reversed(self.steps) if name == instruction)


def stages(text: str) -> list[Stage]:
    """Parse the instructions of a Containerfile, stage by stage."""
    found: list[Stage] = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for line in lines.replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append(Stage(rest.split()[0]))
        elif name:
            found[-1].steps.append((name, rest.strip()))
    return found


class Root:
    """A Debian root that is thrown away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self._environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}

    def bootstrap(self, release: str) -> None:
        packages = "--include=ca-certificates,python3,python3-venv"
        subprocess.run(["debootstrap", "--variant=minbase", packages, release, self.folder], check=True)
        (self.folder / "usr/local/bin/python").symlink_to("/usr/bin/python3.13")
        for file in filter(os.path.exists, HOST_FILES):
            target = self.folder / file.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)

    def build(self, stage: Stage) -> None:
        """Run the steps of a stage that change files."""
        place = "/"
        for name, text in stage.steps:
            if name == "WORKDIR":
                place = text
                (self.folder / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif name == "COPY" and not text.startswith("--from"):
                *sources, target = text.split()
                self._copy(sources, self.folder / place.lstrip("/") / target)
            elif name == "RUN":
                subprocess.run(self.command(["sh", "-ec", f"cd {place}; {text}"]), check=True)
            elif name == "ENV":
                self._environment |= dict(pair.split("=", 1) for pair in shlex.split(text))

    def _copy(self, sources: list[str], target: Path) -> None:
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, target)

    def command(self, words: list[str], user: str = "0:0", more: Mapping[str, str] | None = None) -> list[str]:
        variables = [f"{name}={value}" for name, value in {**self._environment, **(more or {})}.items()]
        return ["chroot", f"--userspec={user}", str(self.folder), "env", "--ignore-environment", *variables, *words]


def check(folder: Path) -> Iterator[str]:
    """Build the image in a folder and start it. Yield what was found."""
    root = Root(folder)
    build, image = stages(CONTAINERFILE.read_text())
    release = BASE.fullmatch(image.base)
    assert release is not None and build.base == image.base, image.base
    root.bootstrap(release[1])
    root.build(build)
    shutil.rmtree(folder / "src")  # the second stage does not have it
    root.build(image)
    yield f"built on Debian {release[1]}"

    user, home = image.last("USER"), image.last("WORKDIR")
    port, metrics = unused_port(), unused_port()
    (folder / "etc/aibridge.yaml").write_text(f"metrics: {{listen: '127.0.0.1:{metrics}'}}\n")
    entrypoint: list[str] = json.loads(image.last("ENTRYPOINT"))
    found = subprocess.run(root.command(["aibridge", "script"], user), check=True, capture_output=True, text=True)
    assert found.stdout.strip() == entrypoint[-1], found.stdout
    listen = ["--listen-host", "127.0.0.1", "--listen-port", str(port)]
    script = f"cd {home}; exec {shlex.join([*entrypoint, *listen])}"
    process = subprocess.Popen(root.command(["sh", "-c", script], user, {"AIBRIDGE_CONFIG": "/etc/aibridge.yaml"}))
    health = json.loads(image.last("HEALTHCHECK").partition(" CMD ")[2])
    asked = [word.replace("9464", str(metrics)) for word in health]
    try:
        poll_until(
            lambda: subprocess.run(root.command(asked, user), capture_output=True).returncode == 0, 60, what="health"
        )
        yield "the health check succeeds"
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0, f"exit code {code}"
    writable = [path for path in (folder / "opt/aibridge").rglob("*") if path.stat(follow_symlinks=False).st_uid]
    assert not writable, writable[:3]
    yield "it drains and ends with exit code 0"


def main() -> int:
    if shutil.which("debootstrap") is None or os.geteuid() != 0:
        print("needs root and debootstrap. On Debian: apt-get install debootstrap", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="aibridge-image-") as folder:
        for line in check(Path(folder) / "root"):
            print(f"image-check: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
