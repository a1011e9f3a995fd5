"""What mkdocs is told beside mkdocs.yml: figures and tables of the study lie in results/, beside docs/."""

from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_files(files: Any, config: Any) -> Any:
    """Add the figures and tables of results/."""
    from mkdocs.structure.files import File

    for pattern in ("results/*/report/figures/*.png", "results/*/report/tables/*.md"):
        for path in sorted(ROOT.glob(pattern)):
            file = File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls)
            if path.suffix == ".md":
                from mkdocs.structure.files import InclusionLevel

                file.inclusion = InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Pages name them as the repository does."""
    return markdown.replace("](../results/", "](results/")
