"""Style as a test: sizes of functions and modules, the direction of imports, and what nobody below `main` may call."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("proto", "codec", "cluster", "node", "client", "deploy", "bench")
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500

MAY_IMPORT = {
    "proto": {"proto"},
    "codec": {"codec"},
    "cluster": {"cluster", "proto", "codec"},
    "node": {"node", "cluster", "proto", "codec"},
    "client": {"client", "cli", "cluster", "proto", "codec"},
    "deploy": {"dev", "testing", "client", "node", "cluster", "proto", "codec"},
    "bench": {*ROOMS, "dev"},
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
    "cluster/coffre/cluster/admin/pki_cli.py": {"secrets.token_hex", "os.urandom"},  # main
    "client/coffre/cli/_get.py": {"os.urandom"},  # main
    "deploy/coffre/dev": BANNED,  # starts processes, makes its own certificates
    "bench/coffre/bench": BANNED,  # measures
}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a module's tree, walked once."""
    return tuple(ast.walk(parsed(path)))


@cache
def modules() -> list[Path]:
    found = []
    for room in ROOMS:
        found += [p for p in (ROOT / room / "coffre").rglob("*.py") if "_pb2" not in p.name]
    return sorted(found)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def all_keep(rule: Callable[[Path], Iterable[str]], paths: Iterable[Path]) -> None:
    """Each path that does not keep the rule is named: one test says as much as one for each of them."""
    faults = [f"{relative(path)}{fault}" for path in paths for fault in rule(path)]
    assert not faults, "\n".join(faults)


def too_long(module: Path) -> Iterator[str]:
    if (lines := len(module.read_text("utf-8").splitlines())) > MODULE_LINES_MAX:
        yield f" has {lines} lines"


def test_modules_are_small() -> None:
    all_keep(too_long, modules())


def without_purpose(module: Path) -> Iterator[str]:
    docstring = ast.get_docstring(parsed(module))
    if not docstring:
        yield ": a module starts with a docstring"
    elif not docstring.splitlines()[0].rstrip().endswith((".", ":")) and "\n" not in docstring:
        yield ": the docstring is not a sentence"


def test_modules_say_what_they_are_for() -> None:
    all_keep(without_purpose, modules())


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


def silent(module: Path) -> Iterator[str]:
    tree = parsed(module)
    offered = exported(tree)
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name not in offered:
            continue
        if not ast.get_docstring(node):
            yield f": no docstring at {node.name}"
        if isinstance(node, ast.ClassDef) and not is_told_elsewhere(node):
            told = frozenset() if is_seam(node) else told_by_seams()
            for method in methods(node):
                if not ast.get_docstring(method) and method.name not in told:
                    yield f": no docstring at {node.name}.{method.name}"


def test_what_a_module_offers_says_what_it_does() -> None:
    all_keep(silent, modules())


def longer_than_a_screen(module: Path) -> Iterator[str]:
    for node in nodes(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f": {node.name} has {lines} lines"


def test_functions_fit_a_screen() -> None:
    all_keep(longer_than_a_screen, modules())


def imported_rooms(module: Path) -> Iterator[str]:
    for node in nodes(module):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "coffre" else [f"coffre.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "coffre" and len(parts) > 1:
                yield parts[1]


def imports_against_the_direction(module: Path) -> Iterator[str]:
    room = relative(module).split("/")[0]
    for imported in imported_rooms(module):
        if imported not in MAY_IMPORT[room]:
            yield f" imports coffre.{imported}"


def test_imports_go_one_way() -> None:
    all_keep(imports_against_the_direction, modules())


def inner_room(module: str) -> tuple[str, str] | None:
    """(room, inner room) of `coffre.room.inner...`, or None."""
    parts = module.split(".")
    return (parts[1], parts[2]) if len(parts) > 2 and parts[2] in INNER.get(parts[1], {}) else None


def imports_of(module: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of all that is imported from Coffre."""
    for node in nodes(module):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("coffre."):
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)


def imports_past_the_door(module: Path) -> Iterator[str]:
    mine = inner_room(".".join(relative(module).split("/")[1:-1]))
    for line, imported, name in imports_of(module):
        theirs = inner_room(imported)
        if theirs is None and inner_room(f"{imported}.{name}"):
            yield f":{line} imports the room {name} as a whole"
        if theirs is None or theirs == mine:
            continue
        where = f":{line} imports {name} from {imported}"
        if len(imported.split(".")) != 3:
            yield f"{where}: past the door"
        elif name not in import_module(imported).__all__:
            yield f"{where}: the room does not export it"
        if mine is not None and mine[0] == theirs[0] and theirs[1] not in INNER[mine[0]][mine[1]]:
            yield f"{where}: {mine[1]} may not import {theirs[1]}"


def test_inner_rooms_are_entered_by_their_doors() -> None:
    """From outside, only what a room's `__init__` exports; from inside, only the rooms below."""
    all_keep(imports_past_the_door, modules())


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


def called(node: ast.Call) -> str:
    """The last two words of what is called: `time.sleep`."""
    match node.func:
        case ast.Attribute(value=ast.Name(id=where) | ast.Attribute(attr=where), attr=name):
            return f"{where}.{name}"
    return ""


def makes_its_own(module: Path) -> Iterator[str]:
    allowed = {
        call for place, calls in MAKES_ITS_OWN.items() if relative(module).startswith(place) for call in calls
    }
    for node in nodes(module):
        if isinstance(node, ast.Call):
            name = called(node)
            if name in BANNED - allowed:
                yield f":{node.lineno} calls {name}"


def test_time_chance_and_network_are_passed_in() -> None:
    all_keep(makes_its_own, modules())


def long_alone(path: Path) -> Iterator[str]:
    if "mark.long" not in path.read_text("utf-8"):
        return
    tests = [
        node
        for node in parsed(path).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    marks = [[ast.unparse(each) for each in test.decorator_list] for test in tests]
    if all("pytest.mark.long" in said for said in marks):
        yield ": all of it is long"


def test_what_is_long_has_a_short_form() -> None:
    """Whoever waits for `make test` alone sees each promise tried."""
    all_keep(long_alone, sorted((ROOT / "tests").rglob("test_*.py")))


def test_no_namespace_is_closed() -> None:
    assert not [room for room in ROOMS if (ROOT / room / "coffre" / "__init__.py").exists()]


def sleeps(path: Path) -> Iterator[str]:
    for node in nodes(path) if "sleep(" in path.read_text("utf-8") else ():
        if isinstance(node, ast.Call) and called(node) in {"time.sleep", "asyncio.sleep"}:
            argument = ast.unparse(node.args[0])
            paced = "pace" in argument.lower()  # a named pace of load, not a wait
            if argument != "0" and not paced:
                yield f":{node.lineno} sleeps {argument}"


def test_tests_do_not_sleep_for_a_state() -> None:
    """asyncio.sleep(0) lets others run; any other sleep in a test waits for something that should be waited for."""
    all_keep(sleeps, sorted((ROOT / "tests").rglob("*.py")))
