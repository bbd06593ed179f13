"""All tables and pictures of README and docs as one HTML page that needs no other file."""

import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from experiments.tables.drawing import draw
from experiments.tables.report import BLOCK, Report
from sim.errors import InputError

TITLE = "Kernel laboratory: results"
_HEADING = re.compile(r"^#{1,3} (.+)$", re.MULTILINE)
_PICTURE = re.compile(r"!\[.*?\]\((.+?)\)")
_LOCAL = re.compile(r'<a href="[^":]*">(.*?)</a>')  # to other pages, which are not there
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; margin: 1rem 0 }
td, th { border: 1px solid #ddd; padding: .2rem .5rem; text-align: left; vertical-align: top }
svg { max-width: 100%; height: auto }
nav a { margin-right: 1rem; display: inline-block }
"""


def html(report: Report) -> str:
    """The page; raises InputError where the package markdown, which the extra `docs` brings, is not installed."""
    sections = {page: list(_blocks(page, text, report)) for page, text in report.pages.items()}
    shown = {page: parts for page, parts in sections.items() if parts}
    links = "".join(f'<a href="#{page.stem}">{escape(_title(report.pages[page]))}</a>' for page in shown)
    body = "".join(
        f'<h2 id="{page.stem}">{escape(_title(report.pages[page]))}</h2>{"".join(parts)}'
        for page, parts in shown.items()
    )
    head = f'<meta charset="utf-8"><title>{TITLE}</title><style>{_STYLE}</style>'
    body = f"<h1>{TITLE}</h1><nav>{links}</nav>{body}"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _blocks(page: Path, text: str, report: Report) -> Iterator[str]:
    """Each table and each picture of a page as HTML, below the heading that it stands under."""
    last = ""
    for block in BLOCK.finditer(text):
        if "```" in block["text"]:  # code, and what commands print
            continue
        above = _HEADING.findall(text[: block.start()])
        if above and above[-1] != last:
            last = above[-1]
            yield f"<h3>{escape(last)}</h3>" if len(above) > 1 else ""
        if block["kind"]:
            for path in _PICTURE.findall(block["text"]):
                drawn = draw(report.pictures[(page.parent / path).resolve()])
                yield drawn[drawn.index("<svg") :]
        else:
            yield _LOCAL.sub(r"\1", _converted(block["text"]))


def _title(text: str) -> str:
    found = _HEADING.search(text)
    return found[1] if found else ""


def _converted(text: str) -> str:
    """Markdown as HTML; what looks like HTML in it is text."""
    try:
        from markdown import Markdown
    except ImportError:
        raise InputError("an HTML page needs the package markdown: pip install 'kernel-lab[docs]'") from None
    converter = Markdown(extensions=["tables"])
    converter.preprocessors.deregister("html_block")
    converter.inlinePatterns.deregister("html")
    return str(converter.convert(text))
