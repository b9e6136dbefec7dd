"""The one-way order of imports, what no file may do, and which libraries a start does without.

All but the last is read from the source; nothing of that is run.
"""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import models

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("models/**/*.py"), *ROOT.glob("utils/**/*.py")])
ORDER = [  # a module imports from its own row and the rows above
    ["models.secrets", "models.absent"],
    ["models.versions", "models.stops", "models.environment", "models.errors", "models.files", "models.meta"],
    ["models.registry", "models.plugins", "models.downloads", "models.yaml_numbers", "models.ultralytics_yaml"],
    ["models.yaml_sources"],
    ["models.spec"],
    ["models.arguments"],
    ["models.blocks"],
    ["models.backbones"],
    ["models.heads", "models.shared_loss", "models.loss", "models.layers.site"],
    ["models.layers.torchvision"],
    ["models.layers.convolutions", "models.layers.shapes", "models.layers.blocks", "models.layers.heads"],
    ["models.layers.stages", "models.layers.several", "models.layers.weighing", "models.layers.yolov7"],
    ["models.layers.rows"],
    ["models.layers"],
    ["models.parser"],
    ["models.summary", "models.row_times", "models.parts", "models.yolo"],
    ["models"],
    ["utils.text", "utils.paths", "utils.sizes", "utils.latency", "utils.writing"],
    ["utils.drawing", "utils.distributed"],
    ["utils.cli", "utils.data", "utils.checkpoint"],
    ["utils.deploy", "utils.convert_data"],
    ["utils.evaluate", "utils.detect"],
    ["utils.train", "utils.int8", "utils.prove"],
    ["utils.export", "utils.benchmark"],
    ["utils.comparison", "utils.data_report", "utils.evolution"],
    ["utils.operators"],
    ["utils.web", "utils.architecture_search"],
    ["utils", "scripts"],  # what is run: python -m utils.X, python X.py
]
OFFERED = {
    "models": "utils.detect.api"
}  # a package's lazy name of a module above it, which is looked up when asked for
FLAT = 14  # files that may lie in utils itself
ALONE = {"timm": ["models.backbones.from_timm"]}  # libraries that one module wraps
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "yaml.load", "yaml.full_load"),
    *("yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader", "os.system", "os.popen", "torch.hub.load"),
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def is_main(node):
    """Return whether a statement is what a file does as a script, for which it may import scripts."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(tree):
    """Return the modules that a file imports; for `from a import b` both a and a.b, of which one may be a name."""
    names = set()
    for node in (node for part in tree.body if not is_main(part) for node in ast.walk(part)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def without_offered(module, names):
    """Return names that a module imports or writes without those of the module that it only offers."""
    offered = OFFERED.get(module, "-")
    return {name for name in names if not f"{name}.".startswith(f"{offered}.")}


MODULES = {module_name(path): parse(path) for path in SOURCES}
each_module = pytest.mark.parametrize("module", MODULES)


def rank(module):
    """Return the line of ORDER that a module stands in: the one with the longest name that begins it."""
    fits = [(len(name), i) for i, row in enumerate(ORDER) for name in row if f"{module}.".startswith(f"{name}.")]
    return max(fits)[1] if fits else len(ORDER) - 1


def ours(module):
    """Return the modules of this repository that `module` imports."""
    return without_offered(module, {name for name in imported(MODULES[module]) if name in MODULES} - {module})


def test_there_is_something_to_check():
    assert {"models.yolo", "models.blocks.reparam", "utils.checkpoint", "train"} <= MODULES.keys()
    assert rank("models.blocks.reparam") < rank("models.yolo") < rank("models") < rank("utils.cli") < rank("train")
    assert rank("utils.data.files") < rank("utils.deploy.run") < rank("utils.prove.compare") < rank("utils.export")
    assert rank("utils.inspect_backbone") == rank("utils.check_weights") == rank("utils.convert") == rank("train")


@each_module
def test_imports_point_one_way(module):
    wrong = {name for name in ours(module) if rank(name) > rank(module)}
    packages = {"models", "utils"} & wrong  # a package is imported along with what is in it
    assert not wrong - {p for p in packages if any(name.startswith(f"{p}.") for name in ours(module))}


def row_entry(module):
    """Return the entry of ORDER that a module belongs to, a script by its own name."""
    fits = [name for row in ORDER for name in row if f"{module}.".startswith(f"{name}.")]
    found = max(fits, key=len, default="utils")
    return module if found == "utils" else found


def test_no_two_folders_import_each_other():
    edges = {(row_entry(module), row_entry(name)) for module in MODULES for name in ours(module)}
    edges -= {(a, b) for a, b in edges if b in ("models", "utils")}  # packages, imported along with what is in them
    assert not {(a, b) for a, b in edges if a < b and (b, a) in edges}


def test_models_know_nothing_of_utils():
    for module, tree in MODULES.items():
        if module.split(".")[0] == "models":
            names = without_offered(module, imported(tree))
            assert not {name for name in names if name.split(".")[0] == "utils"}, module
            texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            texts = without_offered(module, texts)
            assert not {text for text in texts if text.startswith("utils.")}, f"{module}: a module of utils by its name"


def test_few_files_lie_flat():
    assert len(list((ROOT / "utils").glob("*.py"))) <= FLAT


@each_module
def test_scripts_import_no_scripts(module):
    last = len(ORDER) - 1
    assert rank(module) < last or not {name for name in ours(module) if rank(name) == last and name != "utils"}


@each_module
def test_libraries_at_the_edge_are_imported_in_one_place(module):
    for library, places in ALONE.items():
        if module not in places:
            assert not {n for n in imported(MODULES[module]) if n.split(".")[0] == library}, library


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("models.versions", set()),
        ("models.stops", {"models"}),
        ("models.environment", {"models", "PIL", "ultralytics"}),  # the last two in patch_ultralytics, when called
        ("models.secrets", set()),
        ("models.errors", {"models"}),
        ("models.registry", {"models"}),
        ("models.plugins", {"models"}),
        ("models.spec", {"models", "yaml"}),
    ],
)
def test_the_first_modules_need_no_heavy_library(module, allowed):
    libraries = {name.split(".")[0] for name in imported(MODULES[module])}
    assert libraries <= allowed | set(sys.stdlib_module_names)


def calls(module):
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


@each_module
def test_nothing_from_outside_is_run(module):
    for node, name in calls(module):
        where = f"{module}, line {node.lineno}: {name}"
        assert name not in NAMES, where
        assert name not in CALLS, where
        for keyword in node.keywords:
            assert keyword.arg != "shell" or not getattr(keyword.value, "value", True), where


@each_module
def test_torch_load_reads_weights_only(module):
    for node, name in calls(module):
        if name == "torch.load":
            only = [k.value for k in node.keywords if k.arg == "weights_only"]
            assert [getattr(value, "value", None) for value in only] == [True], f"{module}, line {node.lineno}"


@pytest.mark.parametrize("text", ["eval('1')", "yaml.load(f)", "run('ls', shell=True)", "torch.load(f)"])
def test_the_checks_can_fail(text, monkeypatch):
    monkeypatch.setitem(MODULES, "bad", ast.parse(text))
    with pytest.raises(AssertionError):
        test_nothing_from_outside_is_run("bad")
        test_torch_load_reads_weights_only("bad")


def test_an_import_to_the_right_is_seen(monkeypatch):
    monkeypatch.setitem(MODULES, "models.spec", ast.parse("from models.yolo import DetectionModel"))
    with pytest.raises(AssertionError):
        test_imports_point_one_way("models.spec")


# What a start does without --------------------------------------------------------------------------------------------
HEAVY = {"cv2", "numpy", "timm", "torch", "torchvision", "triton", "ultralytics", "yaml"}
BUILD = "from models.parser import parse_model\nfrom models.spec import load_spec\nparse_model(load_spec('{}'))"
WITHOUT_TIMM = {
    "the scripts": "import benchmark, detect, export, train, val",
    "rows of words": BUILD.format("yolov5n.yaml"),
    "a backbone of ours": BUILD.format("riformer-yolo.yaml"),
    "a checkpoint": """
import tempfile
from pathlib import Path
from tests.helpers import random_model, save, tiny
from utils.checkpoint import load_checkpoint
with tempfile.TemporaryDirectory() as folder:
    load_checkpoint(save(random_model(tiny()), Path(folder, "best.pt")))
""",
    "fusing": "from models import DetectionModel, switch_to_deploy\nswitch_to_deploy(DetectionModel('yolov5n.yaml'))",
}


def loaded(code):
    """Return those of HEAVY that a Python of its own has imported when it has run `code`."""
    code = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return HEAVY & set(run.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("code", ["import models", "import models.errors", "import models.registry, models.plugins"])
def test_the_first_modules_load_no_heavy_library(code):
    assert not loaded(code)


@pytest.fixture(scope="module")
def start():
    """Return which of HEAVY one Python has imported after each entry of WITHOUT_TIMM, then after a row of timm."""
    codes = {**WITHOUT_TIMM, "a row of timm": BUILD.format("timm-yolo.yaml")}
    program = "import json, sys\nseen = {}\n"
    for name, code in codes.items():
        program += f"exec({code!r})\nseen[{name!r}] = list(sys.modules)\n"
    run = [sys.executable, "-c", f"{program}print(json.dumps(seen))"]
    printed = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name: HEAVY & set(modules) for name, modules in json.loads(printed.splitlines()[-1]).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_TIMM)
def test_a_start_without_timm_does_not_import_it(start, name):
    assert "torch" in start[name]
    assert not start[name] & {"timm", "torchvision"}


@pytest.mark.slow
def test_a_row_of_timm_imports_it(start):
    assert "timm" in start["a row of timm"]


def test_the_lazy_names_of_the_package_are_complete():
    submodules = [module.name for module in pkgutil.iter_modules(models.__path__)]
    assert {"backbones", "errors", "layers", "yolo"} <= set(submodules)
    assert dir(models) == sorted([*models.__all__, *submodules])
    assert models.HOMES.keys() == set(models.__all__)
    for name in models.__all__:
        assert getattr(models, name) is getattr(sys.modules[models.HOMES[name]], name)
    for name in submodules:
        assert getattr(models, name) is sys.modules[f"models.{name}"]
    assert not hasattr(models, "no_such_name")


@pytest.mark.slow
def test_a_star_brings_all_names_of_the_package():
    assert "torch" in loaded(f"from models import *\n{', '.join(models.__all__)}")
