"""The rooms of the package: who imports whom, what is documented, what import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "diip_jax"

# From the bottom up: a room (a module or a folder of the package) imports only from
# rows above its own in this list. A new room gets its place here.
ROWS = [
    {"addresses", "printable"},
    {"entries", "command_line"},
    {"config", "storage", "schedule", "signals", "ddim", "unets", "metrics"}
    | {"degradations", "noise", "ensemble", "devices"},
    {"compilation", "images", "stopping", "prior", "tiling"},
    {"canvas"},
    {"matched"},
    {"diip"},
    {"engine", "pipelines"},
    {"photos", "training"},
    {"bench"},
]
LEVELS = {name: level for level, row in enumerate(ROWS) for name in row}
# Inside a folder the same holds, from left to right; "" is the folder's __init__.
INSIDE = {
    "images": [
        *("photo", "avif", "bmp", "png", "xmp", "tiff", "exif"),
        *("jpeg", "metadata", "samples", "tiff_samples", "decode", "encode", ""),
    ],
    "metrics": ["", "lpips", "lpips_weights"],
    "unets": ["ops", "layers", "adm", "ddpm", ""],
    "training": [
        *("", "loss", "step", "data", "start", "validation", "sheets", "checkpoint"),
        *("loop", "__main__"),
    ],
    "bench": [
        *("", "baselines", "baselines.restored", "baselines.sampling", "operators"),
        "baselines.forms",
        *("baselines.dip", "baselines.dreamclean", "baselines.bird", "baselines.gdp"),
        *("baselines.ddrm", "baselines.ddnm", "baselines.dps", "baselines.blind_dps"),
        *("baselines.gibbs_ddrm", "tasks", "rivals", "methods", "cells"),
        *("run", "tables", "command", "tune", "traces", "stops", "figures", "__main__"),
    ],
    "photos": [
        *("", "record", "find", "sizing", "resume", "reference", "plan", "run"),
        *("terminal", "command", "ledger", "cluster"),
    ],
}
# What the numerical modules at the bottom may import besides the standard library.
FOREIGN = {
    "config": {"jax", "flax"},
    "devices": {"jax", "numpy"},
    "stopping": {"jax"},
    "signals": {"jax", "numpy"},
    "schedule": {"jax", "numpy"},
    "noise": {"jax"},
    "matched": {"jax"},
    "ensemble": {"numpy"},
    "ddim": {"jax", "numpy"},
    "canvas": {"jax", "numpy"},
    "metrics": {"numpy"},
    "metrics.lpips": {"jax", "flax"},
    "degradations": {"jax", "numpy", "PIL"},
    "compilation": {"jax"},
    "addresses": {"fsspec"},
    "entries": set(),
    "printable": set(),
    "storage": {"platformdirs"},
    "unets.ops": {"jax", "numpy"},
    "unets.layers": {"jax", "flax"},
    "unets.adm": {"jax", "flax"},
    "unets.ddpm": {"jax", "flax"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = [
    *MODULES,
    *sorted((ROOT / "checkpoints_convert").glob("*.py")),
    *ROOT.glob("main.py"),
]


def name_of(path):
    """Return a module's dotted name inside the package, "" for the package itself."""
    return (
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        .removesuffix("__init__")
        .rstrip(".")
    )


def place(name):
    """Return a module's row, and its place inside its room."""
    room, _, inside = name.partition(".")
    if room not in LEVELS:
        pytest.fail(f"{room!r} has no row; give it a place in ROWS")
    if room not in INSIDE:
        return LEVELS[room], 0
    if inside not in INSIDE[room]:
        pytest.fail(f"{name!r} has no place; give it one in INSIDE")
    return LEVELS[room], INSIDE[room].index(inside)


def imported(path):
    """Return the dotted names that a file imports, `from a import b` as a.b."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def own_module(dotted):
    """Return the module of the package that a dotted name lies in, or None."""
    parts = dotted.split(".")
    if parts[0] != PACKAGE.name:
        return None
    for length in range(len(parts), 1, -1):
        path = PACKAGE.joinpath(*parts[1:length])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[1:length])
    return ""


def test_the_package_was_found():
    assert {"diip", "prior", "stopping", "unets.adm"} <= {name_of(m) for m in MODULES}


@pytest.mark.parametrize("path", [m for m in MODULES if name_of(m)], ids=name_of)
def test_imports_point_downwards(path):
    name = name_of(path)
    for dotted in imported(path):
        own = own_module(dotted)
        if own is not None:
            assert own, f"{name} imports {dotted}, the package as a whole"
            same_room = own.partition(".")[0] == name.partition(".")[0]
            (row, inside), (own_row, own_inside) = place(name), place(own)
            lower = own_inside < inside if same_room else own_row < row
            assert lower, f"{name} imports {own}"
        assert dotted.split(".")[0] not in ("main", "checkpoints_convert", "tests")


@pytest.mark.parametrize("name", FOREIGN)
def test_numerical_modules_need_little(name):
    path = PACKAGE.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    roots = {dotted.split(".")[0] for dotted in imported(path)}
    foreign = roots - set(sys.stdlib_module_names) - {PACKAGE.name}
    assert foreign <= FOREIGN[name]


def test_main_imports_the_package_in_one_place():
    tree = ast.parse((ROOT / "main.py").read_text(encoding="utf-8"))
    places = [
        function.name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        and any(is_ours(node) for node in ast.walk(function))
    ]
    assert len(places) == 1
    assert not any(is_ours(node) for node in tree.body)


def is_ours(node):
    """Tell whether a node imports the package or the converter."""
    names = [node.module] if isinstance(node, ast.ImportFrom) else []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    return any(n.split(".")[0] in ("diip_jax", "checkpoints_convert") for n in names)


def test_only_a_rival_knows_torch():
    users = {
        name_of(p) for p in MODULES if "torch" in {d.split(".")[0] for d in imported(p)}
    }
    assert users == {"bench.rivals"}  # FFDNet, imported only as it runs


def public_functions(path):
    """Yield the public functions and methods of a file, nested ones apart."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        if isinstance(node, ast.ClassDef) and node.name.startswith("_"):
            continue
        for member in members:
            if isinstance(member, ast.FunctionDef) and is_public(member.name):
                yield member


def is_public(name):
    return not name.startswith("_") or name == "__call__"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_are_documented_and_annotated(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the file has no docstring"
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and is_public(node.name):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
    for function in public_functions(path):
        assert ast.get_docstring(function), f"{function.name} has no docstring"
        if function.name != "setup":  # flax's: no arguments, no result
            assert function.returns, f"{function.name} has no return annotation"
        spec = function.args
        arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
        arguments += [a for a in (spec.vararg, spec.kwarg) if a]
        for argument in arguments:
            if argument.arg not in ("self", "cls"):
                assert argument.annotation, f"{function.name}: {argument.arg}"


def test_public_api_is_what_init_lists():
    import diip_jax

    for name in diip_jax.__all__:
        assert getattr(diip_jax, name, None) is not None
    public = {n for n in vars(diip_jax) if not n.startswith("_")}
    modules = {n for n in public if type(getattr(diip_jax, n)) is type(ast)}
    assert public - modules == set(diip_jax.__all__)


IMPORT = """
import importlib, sys
import jax
from jax._src import xla_bridge

before = dict(jax.config.values)
for name in {modules!r}:
    importlib.import_module(name)
assert not xla_bridge._backends, f"a backend was started: {{xla_bridge._backends}}"
changed = {{k for k, v in jax.config.values.items() if before.get(k, v) != v}}
assert not changed, f"jax.config was changed: {{changed}}"
assert "torch" not in sys.modules, "torch was imported"
"""


def test_import_computes_nothing_and_allocates_nothing():
    """No JAX backend exists after importing every module, so nothing can have run."""
    modules = [f"diip_jax.{name_of(m)}".rstrip(".") for m in MODULES]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT.format(modules=modules)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
