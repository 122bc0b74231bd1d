"""What `make docs` adds to the pages in docs/: the README as the front page, the results, the API from the docstrings.

mkdocs calls the functions that start with `on_` (`hooks` in mkdocs.yml).
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
SOURCES = ROOT / "src"
LIBRARY = SOURCES / "neurograft"

PUBLIC = {
    "Look at a network": ("trace", "verify", "permute", "NeuronGraph"),
    "Fuse": ("fuse", "statistics", "Statistics", "Members", "Fusion", "plan", "FusionPlan", "apply"),
    "Methods": ("Average", "Permutation", "Symmetric", "OptimalTransport", "Transplant", "Zip"),
    "Merge by recipes, merge adapters": ("merge", "Recipe", "merge_adapters", "compare"),
    "Merge operators": (
        *("Linear", "TaskArithmetic", "Ties", "Dare", "Della", "Breadcrumbs", "Sce", "Slerp", "NuSlerp", "MultiSlerp"),
        *("Karcher", "ModelStock", "NearSwap", "ArceeFusion", "Fisher", "RegMean", "Passthrough", "Gradient"),
    ),
    "Recover without training": ("refit", "repair", "reestimate_batch_norm"),
    "Combine and prune": ("combine", "prune", "Ensemble"),
    "Measure and advise": ("PreparedBatches", "evaluate", "barrier", "advise"),
    "Train": ("train", "finetune", "distill", "fuse_in_sequence"),
}
"""All public names, by what they are for."""


def stages() -> list[str]:
    """The stages' names in the order of the table in docs/design.md, folders and files alike."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.partition("## Where is what")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(\w+)(?:\.py)?`", cell)]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the API's part of the navigation: the public names, then every folder in the order of the stages."""
    folders = [{name: f"api/{name}.md"} for name in stages() if (LIBRARY / name).is_dir()]
    api = [{"Public names": "api/index.md"}, *folders, {"other files": "api/files.md"}]
    config.nav = [*(config.nav or []), {"API": api}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    pages = {"index.md": front_page(), "api/index.md": public_names(), "api/files.md": files_page()}
    pages |= {f"api/{name}.md": folder_page(LIBRARY / name) for name in stages() if (LIBRARY / name).is_dir()}
    reports = sorted(RESULTS.rglob("*.md"))
    pages |= {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in reports}
    pages["results/index.md"] = results_page(reports)
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    for name in ("CITATION.cff", *linked_files()):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead to what lies beside docs/ in the repository and below it here, and from names to the API."""
    if "/" in page.file.src_uri:
        return markdown
    text = re.sub(r"\]\(\.\./results(/\w+)?/?\)", "](results/index.md)", markdown).replace("](../", "](")
    if page.file.src_uri in ("glossary.md", "design.md"):
        text = re.sub(r"`(neurograft(?:\.\w+)*\.(\w+))`", r"[`\2`][\1]", text)
    return text


def front_page() -> str:
    """The README, its links as they are from within docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](").replace("](results)", "](results/index.md)")


def linked_files() -> list[str]:
    """Files outside docs/ that pages lead to and that are no pages themselves."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    found = {target for text in texts for target in re.findall(r"\]\(\.\./([^)#]+)\)", text)}
    return sorted(name for name in found if (ROOT / name).is_file() and not name.endswith(".md"))


def public_names() -> str:
    """Everything that `import neurograft as ng` gives, by what it is for."""
    parts = ["# Public names", "What `import neurograft as ng` gives, as `ng.trace`, `ng.fuse`, …"]
    for title, names in PUBLIC.items():
        parts += [f"## {title}", *(f"::: neurograft.{name}\n    options: {{heading_level: 3}}" for name in names)]
    return "\n\n".join(parts) + "\n"


def folder_page(folder: Path) -> str:
    """The modules of one stage."""
    modules = sorted(path for path in folder.rglob("*.py") if path.name != "__init__.py")
    return module_page(f"neurograft.{folder.name}", [folder / "__init__.py", *modules])


def files_page() -> str:
    """The modules that lie in no folder."""
    return module_page("Files in no folder", sorted(path for path in LIBRARY.glob("*.py") if path.stem[0] != "_"))


def module_page(title: str, paths: list[Path]) -> str:
    """One part per module, each with what it defines and does not keep to itself."""
    parts = [f"# {title}"]
    for path in paths:
        name = ".".join(path.relative_to(SOURCES).with_suffix("").parts).removesuffix(".__init__")
        parts.append(f"::: {name}\n    options: {{show_root_full_path: true}}")
    return "\n\n".join(parts) + "\n"


def results_page(reports: list[Path]) -> str:
    """Links to every study's kept report."""
    rows = [f"- [{_title(path)}]({path.relative_to(RESULTS).as_posix()})" for path in reports]
    text = "What every study gave, with verdicts on the papers' claims; [what that says of them](../reproduction.md)."
    return "\n".join(["# All studies", "", text, "", *rows, ""])


def _title(report: Path) -> str:
    return report.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
