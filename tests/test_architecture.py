"""How the package hangs together: which part may import which, and what each of its files must not do.

The rules are the project's; a change that breaks one needs another design, or a decision to change the rule.
"""

from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aibridge_addon"
NAME = PACKAGE.name
MAX_LINES = 500

SANS_IO = {"wire", "dialects", "providers", "records", "interception", "credentials"}
"""Bytes and values in, values out: no clock, no file, no socket, no thread."""
IO_MODULES = set(
    """asyncio concurrent http.client http.server multiprocessing os pathlib queue sched select selectors shutil signal
    socket socketserver sqlite3 ssl subprocess tempfile threading time urllib.request anyio httpx mcp mitmproxy
    sqlite_utils""".split()  # noqa: SIM905 (a list of words reads better)
)
NOT_YET_SANS_IO = {"interception.actors", "interception.continuations", "interception.in_flight"}

DOMAIN = {"records", "config", "providers", "credentials", "dialects", "wire"}

MAY_IMPORT: dict[str, set[str]] = {
    # The domain: imported by all, imports nothing of ours.
    "records": set(),
    "wire": set(),
    # Reading and deciding: values in, values out.
    "dialects": {"wire", "records"},
    "providers": {"dialects"},
    "config": {"providers"},
    "credentials": {"records"},
    "interception": DOMAIN,
    "messages_on_bedrock": DOMAIN,
    # Sinks know the records only; a sink knows no other.
    "recording": {"config", "credentials", "records"},
    "telemetry": {"config", "credentials", "records", "wire"},
    # The rims: tools, command line, mitmproxy.
    "tools": {"config", "dialects", "records", "wire"},
    "cli": {"config", "records", "recording"},
    "bridge": DOMAIN | {"interception", "messages_on_bedrock", "recording", "telemetry", "tools"},
    "proxy.connection": DOMAIN | {"interception"},
    "proxy.flow": DOMAIN | {"interception", "messages_on_bedrock", "tools", "bridge", "proxy.connection"},
    "proxy.stream": DOMAIN
    | {"interception", "messages_on_bedrock", "telemetry", "bridge", "proxy.connection", "proxy.flow"},
    "proxy": {"bridge", "interception"},
    "addon": {"bridge", "config", "proxy", "proxy.connection", "proxy.flow", "proxy.stream", "records"},
    "main": {"addon"},
}


@dataclass(frozen=True)
class Module:
    path: Path

    @property
    def name(self) -> str:
        """Below the package: `dialects.base`; a package's own name for its `__init__`."""
        parts = self.path.relative_to(PACKAGE).with_suffix("").parts
        return ".".join(part for part in parts if part != "__init__")

    @property
    def part(self) -> str:
        return part_of(self.name)

    @property
    def imports(self) -> set[str]:
        """Every module that it imports, wherever in the file, by its full name."""
        found: set[str] = set()
        for node in ast.walk(ast.parse(self.path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: a relative import"
                assert node.module is not None
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found.add(whole if is_ours(whole) else node.module)
        return found

    def __str__(self) -> str:
        return self.name or NAME


def part_of(name: str) -> str:
    """The part that a module belongs to: its package; below `proxy`, the package there."""
    top, _, rest = name.partition(".")
    below = f"{top}.{rest.partition('.')[0]}"
    return below if below in MAY_IMPORT else top


def is_ours(name: str) -> bool:
    """Whether this is the full name of a module of ours, not of something in one."""
    path = ROOT / name.replace(".", "/")
    return name.startswith(NAME) and (path.with_suffix(".py").exists() or (path / "__init__.py").exists())


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = {module.name for module in MODULES}


def ours(module: Module) -> set[str]:
    """What it imports of ours, by names below the package."""
    found = {name.removeprefix(f"{NAME}.") for name in module.imports if name.startswith(f"{NAME}.")}
    return {name for name in found if name in NAMES}


def imports_any(module: Module, names: set[str]) -> set[str]:
    return {name for name in module.imports if any(name == other or name.startswith(other + ".") for other in names)}


def inside(part: str) -> Iterator[Module]:
    return (module for module in MODULES if module.part == part)


def test_the_modules_were_found() -> None:
    assert {"main", "addon", "interception.exchange", "dialects.base", "wire.sse"} <= NAMES


def test_every_part_has_its_place() -> None:
    """A new part needs a line in the table, which says what it may know."""
    assert {module.part for module in MODULES} - {""} - set(MAY_IMPORT) == set()


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_imports_run_one_way(part: str) -> None:
    allowed = MAY_IMPORT[part] | {part}
    for module in inside(part):
        wrong = {name for name in ours(module) if part_of(name) not in allowed}
        assert not wrong, f"{module} imports {wrong}"


def test_the_table_itself_runs_one_way() -> None:
    list(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_no_modules_import_each_other_in_a_circle() -> None:
    list(graphlib.TopologicalSorter({module.name: ours(module) - {module.name} for module in MODULES}).static_order())


def test_mitmproxy_is_imported_in_its_rim_only() -> None:
    importing = {module.part for module in MODULES if imports_any(module, {"mitmproxy"})}
    assert importing <= {"addon", "proxy", "proxy.connection", "proxy.flow", "proxy.stream"}


def test_one_folder_relies_on_the_inside_of_mitmproxys_http_layer() -> None:
    importing = {module.part for module in MODULES if imports_any(module, {"mitmproxy.proxy.layers.http"})}
    assert importing == {"proxy.stream"}


@pytest.mark.parametrize("part", sorted(SANS_IO))
def test_what_reads_bytes_does_no_io(part: str) -> None:
    for module in inside(part):
        if module.name in NOT_YET_SANS_IO:
            continue
        assert not imports_any(module, IO_MODULES), f"{module} is to be free of I/O"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_file_is_too_long(module: Module) -> None:
    assert len(module.path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_state_is_changed_from_a_function(module: Module) -> None:
    """All state hangs on the addon's instance: a reload makes a new one."""
    changed = [node.names for node in ast.walk(ast.parse(module.path.read_text())) if isinstance(node, ast.Global)]
    assert not changed


# --- main.py, as mitmproxy loads it -----------------------------------------------------------------------------


def test_no_module_beside_main_shadows_another() -> None:
    """While main.py is being loaded, its folder is first on `sys.path`."""
    beside = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    beside -= {"__init__", "main"}
    installed = {name for name, owners in packages_distributions().items() if set(owners) != {"aibridge-mitmproxy"}}
    assert beside & (set(sys.stdlib_module_names) | installed) == set()
    assert "main" not in sys.stdlib_module_names


LOAD = """
import sys
from mitmproxy.addons.script import load_script
before = list(sys.path)
script = load_script(sys.argv[1])
assert script is not None, "it could not be loaded"
assert len(script.addons) == 1 and type(script.addons[0]).__name__ == "AIBridge"
assert sys.path[1:] == before or sys.path == before, "it leaves sys.path changed"
import aibridge_addon
print(aibridge_addon.__file__)
print(*sorted(name for name in sys.modules if name == "main" or name in sys.argv[2].split()))
"""


@pytest.mark.parametrize("where", ["", "aibridge_addon", "aibridge_addon/proxy", "elsewhere"])
@pytest.mark.parametrize("relative", [True, False], ids=["by a relative path", "by an absolute path"])
def test_main_loads_the_package_beside_it_from_any_working_directory(
    tmp_path: Path, where: str, relative: bool
) -> None:
    """A copy of the package, so that the installed one does not help."""
    copy = tmp_path / NAME
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / where
    script = (copy / "main.py").relative_to(folder, walk_up=True) if relative else copy / "main.py"
    beside = " ".join(sorted({module.part for module in MODULES} - {"", "main"}))
    loaded = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", LOAD, str(script), beside],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert loaded.returncode == 0, loaded.stderr
    package, shadowing = loaded.stdout.split("\n")[:2]
    assert Path(package) == copy / "__init__.py"
    assert shadowing == "", f"modules of ours were imported under names of their own: {shadowing}"
