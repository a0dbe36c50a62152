"""Style as a test: sizes of functions and modules, the direction of imports, and what nobody below `main` may call."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("proto", "codec", "cluster", "node", "client", "bench")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

MAY_IMPORT = {
    "proto": {"proto"},
    "codec": {"codec"},
    "cluster": {"cluster", "proto", "codec"},
    "node": {"node", "cluster", "proto", "codec"},
    "client": {"client", "cli", "cluster", "proto", "codec"},
    "bench": {*ROOMS, "testing"},
}

# The inner rooms, from the ground up, and the rooms that each may import. Modules above them, in the room itself, are
# words that all share (errors, clock, keys) or what puts the rooms together (AsyncClient, the node's server).
INNER = {
    "cluster": {
        "identity": set(),
        "map": {"identity"},
        "transport": {"identity", "map"},
        "coordination": {"identity", "map", "transport"},
        "health": {"identity", "map", "transport"},
        "membership": {"identity", "map", "transport", "coordination", "health"},
        "admin": {"identity", "map", "transport", "coordination", "health", "membership"},
    },
    "client": {
        "sealing": set(),
        "nodes": set(),
        "writing": {"sealing", "nodes"},
        "reading": {"sealing", "nodes", "writing"},
        "puts": {"sealing", "nodes", "writing", "reading"},
    },
    "node": {
        "store": set(),
        "memory": {"store"},
        "disk": {"store"},
        "following": set(),
        "repair": {"store", "following"},
        "serving": {"store", "following", "repair"},
    },
}

# The wall clock, randomness and sockets are passed in. Where `main` is, they are made.
BANNED = {
    "time.time",
    "time.time_ns",
    "time.sleep",
    "datetime.now",
    "datetime.utcnow",
    "date.today",
    "random.random",
    "random.randint",
    "random.choice",
    "random.shuffle",
    "random.Random",
    "secrets.token_bytes",
    "secrets.token_hex",
    "uuid.uuid4",
    "socket.socket",
    "socket.create_connection",
    "os.urandom",
}
MAKES_ITS_OWN = {
    "cluster/coffre/cluster/clock.py": {"time.time_ns"},  # the real Clock
    "node/coffre/node/disk/opening.py": {"uuid.uuid4"},  # a store's id, drawn once when its directory is made
    "cluster/coffre/cluster/admin/cli.py": {"secrets.token_hex", "os.urandom"},  # main
    "client/coffre/cli/_get.py": {"os.urandom"},  # main
    "bench/coffre/bench": BANNED,  # measures, starts processes, makes its own certificates
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def modules() -> list[Path]:
    found = []
    for room in ROOMS:
        found += [p for p in (ROOT / room / "coffre").rglob("*.py") if "_pb2" not in p.name]
    return sorted(found)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(params=modules(), ids=relative)
def module(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_modules_are_small(module: Path) -> None:
    assert len(module.read_text("utf-8").splitlines()) <= MODULE_LINES_MAX


def test_modules_say_what_they_are_for(module: Path) -> None:
    tree = parsed(module)
    docstring = ast.get_docstring(tree)
    assert docstring, "a module starts with a docstring"
    assert docstring.splitlines()[0].rstrip().endswith((".", ":")) or "\n" in docstring


def exported(tree: ast.Module) -> set[str]:
    """The names in a module's `__all__`."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Public methods and properties, without setters."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not (
            method.name.startswith("_")
            or any(ast.unparse(d).endswith(".setter") for d in method.decorator_list)
        ):
            yield method


def is_seam(node: ast.ClassDef) -> bool:
    return any("Protocol" in ast.unparse(base) for base in node.bases)


@cache
def told_by_seams() -> frozenset[str]:
    """Methods that a seam describes: its implementations need not say it again."""
    trees = [parsed(path) for path in modules()]
    seams = [
        node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and is_seam(node)
    ]
    return frozenset(method.name for seam in seams for method in methods(seam))


def is_told_elsewhere(node: ast.ClassDef) -> bool:
    """The sync client has the methods of the async one; servicers have those of the .proto files."""
    return node.name in {"Client", "Servicer", "CoordinationServicer"}


def test_what_a_module_offers_says_what_it_does(module: Path) -> None:
    tree = parsed(module)
    silent = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name in exported(
            tree
        ):
            silent += [] if ast.get_docstring(node) else [node.name]
            if isinstance(node, ast.ClassDef) and not is_told_elsewhere(node):
                told = frozenset() if is_seam(node) else told_by_seams()
                silent += [
                    f"{node.name}.{method.name}"
                    for method in methods(node)
                    if not ast.get_docstring(method) and method.name not in told
                ]
    assert not silent, f"{relative(module)}: no docstring at {', '.join(silent)}"


def test_functions_fit_a_screen(module: Path) -> None:
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{relative(module)}: {node.name} has {lines} lines"


def imported_rooms(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "coffre" else [f"coffre.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "coffre" and len(parts) > 1:
                yield parts[1]


def test_imports_go_one_way(module: Path) -> None:
    room = relative(module).split("/")[0]
    for imported in imported_rooms(parsed(module)):
        assert imported in MAY_IMPORT[room], f"{relative(module)} imports coffre.{imported}"


def inner_room(module: str) -> tuple[str, str] | None:
    """(room, inner room) of `coffre.room.inner...`, or None."""
    parts = module.split(".")
    return (parts[1], parts[2]) if len(parts) > 2 and parts[2] in INNER.get(parts[1], {}) else None


def imports_of(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of all that is imported from Coffre."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("coffre."):
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)


def test_inner_rooms_are_entered_by_their_doors(module: Path) -> None:
    """From outside, only what a room's `__init__` exports; from inside, only the rooms below."""
    parts = relative(module).split("/")
    mine = inner_room(".".join(parts[1:-1]))
    for line, imported, name in imports_of(parsed(module)):
        theirs = inner_room(imported)
        if theirs is None and inner_room(f"{imported}.{name}"):
            raise AssertionError(f"{relative(module)}:{line} imports the room {name} as a whole")
        if theirs is None or theirs == mine:
            continue
        where = f"{relative(module)}:{line} imports {name} from {imported}"
        assert len(imported.split(".")) == 3, f"{where}: past the door"
        exported = import_module(imported).__all__
        assert name in exported, f"{where}: the room does not export it"
        if mine is not None and mine[0] == theirs[0]:
            assert theirs[1] in INNER[mine[0]][mine[1]], f"{where}: {mine[1]} may not import {theirs[1]}"


def test_inner_rooms_have_no_circle() -> None:
    for room, inner in INNER.items():
        below: set[str] = set()
        for name, may_import in inner.items():
            assert may_import <= below, f"{room}/{name} imports a room above it"
            below.add(name)


def test_every_inner_room_is_known() -> None:
    for room in INNER:
        found = {path.parent.name for path in (ROOT / room / "coffre" / room).glob("*/__init__.py")}
        assert found == set(INNER[room])


def test_time_chance_and_network_are_passed_in(module: Path) -> None:
    allowed = {
        call for place, calls in MAKES_ITS_OWN.items() if relative(module).startswith(place) for call in calls
    }
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Call):
            name = ".".join(ast.unparse(node.func).split(".")[-2:])
            assert name not in BANNED - allowed, f"{relative(module)}:{node.lineno} calls {name}"


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "tests").rglob("test_*.py") if "mark.long" in p.read_text("utf-8")),
    ids=lambda p: p.name,
)
def test_what_is_long_has_a_short_form(path: Path) -> None:
    """Whoever waits for `make test` alone sees each promise tried."""
    tests = [
        node
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    marks = {test.name: [ast.unparse(each) for each in test.decorator_list] for test in tests}
    assert [name for name, said in marks.items() if "pytest.mark.long" not in said], "all of it is long"


def test_no_namespace_is_closed() -> None:
    assert not [room for room in ROOMS if (ROOT / room / "coffre" / "__init__.py").exists()]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_tests_do_not_sleep_for_a_state(path: Path) -> None:
    """asyncio.sleep(0) lets others run; any other sleep in a test waits for something that should be waited for."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep"}:
            argument = ast.unparse(node.args[0])
            paced = "pace" in argument.lower()  # a named pace of load, not a wait
            assert argument == "0" or paced, f"{path.name}:{node.lineno} sleeps {argument}"
