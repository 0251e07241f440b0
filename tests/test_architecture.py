"""How the package hangs together: which part may import which, and what each of its files must not do.

The rules are the project's; a change that breaks one needs another design, or a decision to change the rule.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aibridge_addon"
NAME = PACKAGE.name
MAX_LINES = 500


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SANS_IO = {"wire", "dialects", "providers", "records", "ids", "interception", "credentials"}
"""Bytes and values in, values out: no clock, no file, no socket, no thread, no randomness, no log."""
IO_MODULES = words(
    """
    asyncio concurrent contextvars fcntl fileinput getpass glob http.client http.server http.cookiejar io.open
    logging mmap multiprocessing os pathlib platform pty queue random resource sched secrets select selectors
    shutil signal smtplib socket socketserver sqlite3 ssl subprocess syslog tempfile threading time
    urllib.request uuid warnings webbrowser xmlrpc anyio boto3 botocore genai_prices httpcore httpcore2 httpx
    httpx2 mcp mitmproxy prometheus_client psutil psycopg requests sqlite_utils starlette tornado trio uvicorn
    uvloop websockets
    """
)
IO_CALLS = words(
    """
    open input print exec eval breakpoint io.open datetime.now datetime.today datetime.utcnow date.today
    datetime.datetime.now datetime.date.today
    """
)
"""What does I/O, or reads the clock, without an import that says so."""
PURE = frozenset({"uuid.UUID", "uuid.uuid5"})
"""What may be used of those modules all the same: it makes the same value each time."""
NOT_YET_SANS_IO: dict[str, set[str]] = {
    "records": {"datetime.now"},  # the one clock, which the rim hands in: this entry stays
}
"""By module, what it imports or calls although it should not. The list may only shrink."""

MUTABLE = words(
    """
    dict list set bytearray defaultdict OrderedDict Counter ChainMap deque WeakSet WeakKeyDictionary
    WeakValueDictionary SimpleNamespace Lock RLock Event Condition Semaphore BoundedSemaphore Barrier local
    ThreadPoolExecutor ProcessPoolExecutor Thread Timer ContextVar count cycle Queue SimpleQueue LifoQueue
    PriorityQueue Random SystemRandom StringIO BytesIO TTLCache LRUCache
    """
)
"""Constructors of values that change."""
DISPLAYS = (ast.Dict, ast.List, ast.Set, ast.DictComp, ast.ListComp, ast.SetComp, ast.GeneratorExp)
NOT_YET_IMMUTABLE: dict[str, set[str]] = {
    "main": {"addons"},  # a list by mitmproxy's contract for scripts
}
"""By module, the names of values that could be changed from anywhere. The list may only shrink."""

DOMAIN = {"records", "config", "providers", "credentials", "dialects", "wire"}

MAY_IMPORT: dict[str, set[str]] = {
    # The domain: imported by all, imports nothing of ours.
    "records": set(),
    "ids": set(),
    "wire": set(),
    # Reading and deciding: values in, values out.
    "dialects": {"wire", "records"},
    "providers": {"credentials", "dialects", "records"},
    "config": {"providers"},
    "credentials": {"records"},
    "interception": DOMAIN,
    "messages_on_bedrock": DOMAIN,
    # Sinks know the records only; a sink knows no other.
    "recording": {"config", "credentials", "ids", "providers", "records", "wire"},
    "telemetry": {"config", "credentials", "records", "wire"},
    # The rims: tools, command line, mitmproxy.
    "tools": {"config", "dialects", "records", "wire"},
    "cli": {
        *("config", "credentials", "dialects", "interception", "proxy", "proxy.workers", "records", "recording"),
        *("telemetry", "tools", "web", "wire"),
    },
    "web": {"records", "recording", "telemetry", "wire"},
    "bridge": DOMAIN | {"interception", "messages_on_bedrock", "recording", "telemetry", "tools"},
    "proxy.connection": DOMAIN | {"interception"},
    "proxy.flow": DOMAIN | {"ids", "interception", "messages_on_bedrock", "tools", "bridge", "proxy.connection"},
    "proxy.stream": DOMAIN
    | {
        "interception",
        "messages_on_bedrock",
        "telemetry",
        "bridge",
        "proxy.connection",
        "proxy.flow",
        "proxy.interactive",
    },
    "proxy.interactive": DOMAIN | {"interception", "bridge", "proxy.flow"},
    "proxy": {"bridge", "config", "interception", "proxy.connection", "records", "telemetry", "wire"},
    "proxy.workers": {"config", "proxy", "proxy.connection", "records", "telemetry"},
    "addon": {
        *("bridge", "config", "proxy", "proxy.connection", "proxy.flow", "proxy.interactive", "proxy.stream"),
        "records",
    },
    "main": {"addon"},
    "private": {"addon", "proxy"},
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

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text())

    @cached_property
    def imports(self) -> set[str]:
        """Every module that it imports, wherever in the file, by its full name."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
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


def does_io(module: Module) -> set[str]:
    """What it imports or calls that does I/O, or whose results differ from call to call."""
    imported = imports_any(module, set(IO_MODULES))
    used = {name for node in ast.walk(module.tree) if (name := dotted(node)) is not None}
    impure = {name for name in imported if not pure_only(name, used)}
    called = {dotted(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    return impure | {name for name in called if name in IO_CALLS}


def pure_only(module: str, used: set[str]) -> bool:
    """Whether of this module only what is listed as pure is used."""
    of_it = {name for name in used if name.startswith(module + ".")}
    return bool(of_it) and of_it <= PURE


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` for such an expression; None for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value)) is not None:
        return f"{owner}.{node.attr}"
    return None


def mutable_values(body: list[ast.stmt]) -> Iterator[str]:
    """Names in the body of a module or class whose values could be changed, and functions that remember calls."""
    for statement in body:
        match statement:
            case ast.Assign(targets=targets, value=value) if is_mutable(value):
                yield from (ast.unparse(target) for target in targets if ast.unparse(target) != "__all__")
            case ast.AnnAssign(target=target, value=ast.expr() as value) if is_mutable(value):
                yield ast.unparse(target)
            case ast.FunctionDef(name=name, decorator_list=decorators) if any(map(is_unbounded_cache, decorators)):
                yield name
            case ast.ClassDef(name=name, body=inner):
                yield from (f"{name}.{each}" for each in mutable_values(inner))
            case ast.If(body=inner, orelse=other) | ast.For(body=inner, orelse=other):
                yield from mutable_values([*inner, *other])
            case ast.Try(body=inner, orelse=other, finalbody=last, handlers=handlers):
                yield from mutable_values([*inner, *other, *last, *(s for each in handlers for s in each.body)])
            case ast.With(body=inner):
                yield from mutable_values(inner)


def is_mutable(value: ast.expr) -> bool:
    """Whether an expression makes a value that can be changed: by itself, or as one of several."""
    match value:
        case ast.Call(func=function):
            made = function.value if isinstance(function, ast.Subscript) else function  # dict[str, int]()
            return (dotted(made) or "").rpartition(".")[2] in MUTABLE
        case ast.BinOp(left=left, right=right):
            return is_mutable(left) or is_mutable(right)
        case ast.IfExp(body=body, orelse=other):
            return is_mutable(body) or is_mutable(other)
        case ast.Tuple(elts=elements):
            return any(map(is_mutable, elements))
    return isinstance(value, DISPLAYS)


def is_unbounded_cache(decorator: ast.expr) -> bool:
    """Whether this is a cache without a stated bound: with one, only the time of a call depends on earlier calls."""
    call = decorator if isinstance(decorator, ast.Call) else None
    name = (dotted(call.func if call is not None else decorator) or "").rpartition(".")[2]
    bounds = {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "maxsize"} if call else set()
    return name == "cache" or (name == "lru_cache" and not bounds - {"None"})


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


PARTS_OF_PROXY = ("connection", "flow", "interactive", "stream", "workers")


def test_mitmproxy_is_imported_in_its_rim_only() -> None:
    importing = {module.part for module in MODULES if imports_any(module, {"mitmproxy"})}
    rim = {"addon", "private", "proxy", *(f"proxy.{part}" for part in PARTS_OF_PROXY)}
    assert importing <= rim


def test_one_folder_relies_on_the_inside_of_mitmproxys_http_layer() -> None:
    importing = {module.part for module in MODULES if imports_any(module, {"mitmproxy.proxy.layers.http"})}
    assert importing == {"proxy.stream"}


@pytest.mark.parametrize("part", sorted(SANS_IO))
def test_what_reads_bytes_does_no_io(part: str) -> None:
    """An exception that is not needed any more has to go from the list."""
    found = {module.name: does_io(module) for module in inside(part)}
    listed = {name: allowed for name, allowed in NOT_YET_SANS_IO.items() if part_of(name) == part}
    assert {name: what for name, what in found.items() if what} == listed


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_file_is_too_long(module: Module) -> None:
    assert len(module.path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_state_is_changed_from_a_function(module: Module) -> None:
    """All state hangs on the addon's instance: a reload makes a new one."""
    changed = [node.names for node in ast.walk(module.tree) if isinstance(node, ast.Global)]
    assert not changed


def test_no_value_of_a_module_or_class_can_be_changed() -> None:
    """A constant is a tuple, a frozenset or a MappingProxyType; state is made in `__init__`.

    An exception that is not needed any more has to go from the list.
    """
    found = {module.name: set(mutable_values(module.tree.body)) for module in MODULES}
    assert {name: values for name, values in found.items() if values} == NOT_YET_IMMUTABLE


@pytest.mark.parametrize(
    "text",
    [
        "a = {}",
        "a: Final = []",
        "a = {1, 2}",
        "a = {k: 1 for k in 'ab'}",
        "a = dict()",
        "a = collections.defaultdict(list)",
        "a = itertools.count()",
        "a = threading.Lock()",
        "a = dict[str, int]()",
        "a = ({}, 1)",
        "a = [] if x else ()",
        "a = [1] * 3",
        "if x:\n    a = WeakSet()",
        "try:\n    a = ContextVar('a')\nexcept E:\n    pass",
        "class a:\n    b = []",
        "@cache\ndef a(): ...",
        "@functools.lru_cache\ndef a(): ...",
        "@lru_cache(maxsize=None)\ndef a(): ...",
    ],
)
def test_a_value_that_can_be_changed_is_seen(text: str) -> None:
    (name,) = mutable_values(ast.parse(text).body)
    assert name.startswith("a")


@pytest.mark.parametrize(
    "text",
    [
        "a = ()",
        "a = frozenset({1})",
        "a = MappingProxyType({1: 2})",
        "a = tuple([1])",
        "a = re.compile('x')",
        "a: dict[str, int]",
        "a = dict[str, int]",
        "__all__ = ['a']",
        "@lru_cache(maxsize=8)\ndef a(): ...",
        "class A:\n    a: list[int] = field(default_factory=list)",
        "def a():\n    b = {}",
    ],
)
def test_a_value_that_cannot_be_changed_is_left_alone(text: str) -> None:
    assert list(mutable_values(ast.parse(text).body)) == []


def test_the_names_of_modules_that_do_io_are_real_ones() -> None:
    """A misspelt one would forbid nothing; some are not installed here."""
    known = sys.stdlib_module_names | {"psycopg", "requests", "trio", "uvloop"}
    tops = {name.partition(".")[0] for name in IO_MODULES} - known
    assert {name for name in tops if importlib.util.find_spec(name) is None} == set()


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
