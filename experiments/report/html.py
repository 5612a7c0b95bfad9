"""Markdown -> one HTML file that needs nothing else: styles and figures are inside it."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from experiments.cell import slug
from experiments.report.style import FAINT, INK, PAPER

CSS = Path(__file__).with_name("report.css")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{css}</style>
</head>
<body>
<nav>{nav}</nav>
<main>
{body}</main>
</body>
</html>
"""
_SVG = r'<svg viewBox="\2" style="--points:\1">'
"""As wide as the page, within bounds that the style derives from its width in points."""


class Renderer(RendererHTML):
    """Beside the usual: figures inlined, a colour on every architecture's name, wide tables that scroll."""

    folder: Path
    colours: Mapping[str, str]

    def image(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """The SVG beside a PNG, so that it follows the page's colours; the PNG's name is its prefix of ids."""
        path = self.folder / str(tokens[idx].attrGet("src"))
        alt = html.escape(tokens[idx].content)
        return f'<figure role="img" aria-label="{alt}">{inline(path.with_suffix(".svg"))}</figure>'

    def code_inline(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        """The name of a variant has its colour."""
        content = html.escape(tokens[idx].content)
        colour = self.colours.get(tokens[idx].content)
        return f'<code class="arch" style="--colour:{colour}">{content}</code>' if colour else f"<code>{content}</code>"

    def table_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return '<div class="scroll"><table>'

    def table_close(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        return "</table></div>"

    def heading_open(self, tokens: Sequence[Token], idx: int, options: Any, env: Any) -> str:
        tag = tokens[idx].tag
        return f'<h2 id="{slug(tokens[idx + 1].content)}">' if tag == "h2" else f"<{tag}>"


def page(markdown: str, folder: Path, colours: Mapping[str, str]) -> str:
    """The page of a report; figures are read from `folder`. colours: {variant: #rrggbb}."""
    parser = MarkdownIt("commonmark", {"html": False}, renderer_cls=Renderer).enable("table")
    assert isinstance(parser.renderer, Renderer)
    parser.renderer.folder, parser.renderer.colours = folder, colours
    tokens = parser.parse(markdown)
    headings = [
        (tokens[index + 1].content, token.tag) for index, token in enumerate(tokens) if token.type == "heading_open"
    ]
    title = next((name for name, tag in headings if tag == "h1"), "report")
    return PAGE.format(
        title=html.escape(title),
        css=CSS.read_text(encoding="utf-8"),
        nav=" ".join(f'<a href="#{slug(name)}">{html.escape(name)}</a>' for name, tag in headings if tag == "h2"),
        body=parser.renderer.render(tokens, parser.options, {}),
    )


def inline(path: Path) -> str:
    """An SVG file as an element of a page: its ids made its own, ink and paper those of the page."""
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"|<style.*?</style>', "", svg, flags=re.DOTALL).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{path.stem}-", svg)
    for colour, name in ((INK, "ink"), (FAINT, "faint"), (PAPER, "paper")):
        svg = svg.replace(f": {colour}", f": var(--{name})")
    return re.sub(r'<svg\b[^>]*? width="([\d.]+)pt"[^>]*? viewBox="([^"]*)"[^>]*>', _SVG, svg, count=1)
