"""What MkDocs does for this project, see mkdocs.yml. ``make docs`` builds the site.

The site has the folders of the checkout, so that a link between two Markdown files is the same on
GitHub and on the site, and ``mkdocs build --strict`` checks it for both. Pages are

* README.md and the other files of ``PAGES``; ``nav`` in mkdocs.yml puts most of them in an order,
  and READMEs of projects and pages that it does not know follow by themselves;
* the notebooks in docs/, with the outputs that are stored in them;
* the source files and folders that a page links to, so that the site is whole without a network.
"""

from __future__ import annotations

import re
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import normpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from config_keys import as_markdown, read_keys  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "datasets/README.md", "docs/*.md"),
    *("projects/*/README.md", "examples/*/README.md"),
)
ASSETS = ("docs/*.jpg", "docs/*.png", "docs/*.svg", "docs/site/*.css", "docs/site/*.js")
NOTEBOOKS = ("docs/*.ipynb",)
LINK = re.compile(r"(?<=\]\()([^()\s#]+)(?=[)#])")
CONFIG_KEYS = "<!-- config keys -->"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the projects' READMEs, and the pages of docs/ that mkdocs.yml does not name."""
    assert config.nav is not None
    sections = {title: pages for item in config.nav for title, pages in item.items()}
    named = {name for pages in sections.values() for name in pages}
    for title, pattern in (("Projects", "projects/*/README.md"), ("Guides", "docs/*.md")):
        sections[title] += [name for name in _found((pattern,)) if name not in named]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the files of the checkout in the place of those of docs/."""
    here = Path(config.docs_dir)
    of_theme = [file for file in files if Path(file.src_dir or "") != here]
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in _found(PAGES)}
    texts |= {f"{name}.md": notebook_page(ROOT / name) for name in _found(NOTEBOOKS)}
    sources = {source for name, text in texts.items() for source in _sources(name, text)}
    while sources:
        source = sources.pop()
        page = _page_name(source)
        if page not in texts:
            texts[page] = source_page(source)
            if (ROOT / source).is_dir():
                sources |= _sources(page, texts[page])
    pages = [File.generated(config, name, content=text) for name, text in texts.items()]
    assets = [
        File.generated(config, name, abs_src_path=str(ROOT / name)) for name in _found(ASSETS)
    ]
    return Files([*of_theme, *pages, *assets])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to source files go to their pages, and write the config keys."""
    name = page.file.src_uri
    if CONFIG_KEYS in markdown:
        markdown = markdown.replace(CONFIG_KEYS, all_config_keys())
    folder = PurePosixPath(name).parent
    sources = _sources(name, markdown)

    def replaced(match: re.Match) -> str:
        target = normpath(folder / match[1])
        return (
            f"{match[1].rstrip('/')}{_page_name(target)[len(target) :]}"
            if target in sources
            else match[1]
        )

    return LINK.sub(replaced, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Show docstrings without Sphinx's marks: roles of names, and two colons before code."""
    html = re.sub(r":(?:class|func|meth|mod|attr):<code>~?", "<code>", html)
    return html.replace("::</p>", ":</p>")


def all_config_keys() -> str:
    """The keys of the core, then those of each project."""
    parts = []
    for file in sorted(
        ROOT.glob("projects/*/*/config.py"), key=lambda file: file.parts[-3] != "SGR"
    ):
        path = file.relative_to(ROOT).as_posix()
        project = path.split("/")[1]
        parts += [f"## {project}", f"From [{path}](../{path}).", as_markdown(read_keys(file))]
    return "\n\n".join(parts)


def notebook_page(file: Path) -> str:
    """A notebook with its stored outputs, pictures inside of the page."""
    import nbconvert

    body, resources = nbconvert.MarkdownExporter().from_filename(str(file))
    for name, content in resources["outputs"].items():
        body = body.replace(f"]({name})", f"]({_data_address(name, content)})")
    return body


def source_page(name: str) -> str:
    """A source file as it is, or the list of a folder; the search leaves it out."""
    path = ROOT / name
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n"
    if path.is_dir():
        entries = [
            f"- [{entry.name}]({entry.name})"
            for entry in sorted(path.iterdir())
            if not entry.name.startswith((".", "_")) or entry.name == "__init__.py"
        ]
        return head + "\n".join(entries) + "\n"
    language = LANGUAGES.get(path.suffix, "text")
    return f"{head}~~~~~~{language}\n{path.read_text(encoding='utf-8')}\n~~~~~~\n"


def _data_address(name: str, content: bytes) -> str:
    kind = {"jpg": "jpeg"}.get(suffix := name.rpartition(".")[2], suffix)
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _found(patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        yield from (file.relative_to(ROOT).as_posix() for file in sorted(ROOT.glob(pattern)))


def _sources(page: str, text: str) -> set[str]:
    """What a page links to in the checkout and is no page or picture."""
    folder = PurePosixPath(page).parent
    targets = {normpath(folder / link) for link in LINK.findall(text) if ":" not in link}
    return {
        target
        for target in targets
        if not target.endswith((".md", ".jpg", ".png", ".svg")) and (ROOT / target).exists()
    }


def _page_name(source: str) -> str:
    """The page of a source file or folder."""
    return f"{source}/index.md" if (ROOT / source).is_dir() else f"{source}.md"
