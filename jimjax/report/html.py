"""Building blocks of the report page: escaped text, tables, the page around the sections.

Everything a user can name goes through :func:`escape`. The page needs no network: no fonts, no
scripts, no style sheets from elsewhere.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

__all__ = ["bar", "escape", "note", "page", "section", "table"]

STYLE = """
:root {
  --paper: #ffffff; --panel: #f6f7f9; --ink: #1c2430; --muted: #5b6675; --line: #dfe3e8;
  --accent: #0b5c8f; --shade: 11, 92, 143; color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14181d; --panel: #1c2229; --ink: #e6eaef; --muted: #9aa6b4; --line: #333c46;
    --accent: #6db7e6; --shade: 86, 160, 214;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main, header, nav { max-width: 1040px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { margin: 0; font-size: 28px; line-height: 1.25; letter-spacing: -0.01em; }
h2 { margin: 0 0 12px; font-size: 19px; line-height: 1.3; }
h3 { margin: 24px 0 8px; font-size: 15px; }
p { margin: 0 0 12px; max-width: 72ch; }
.muted, figcaption, caption { color: var(--muted); font-size: 13px; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 20px 0 0;
  padding: 10px 0; border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
nav a { text-decoration: none; font-size: 14px; }
nav a:hover { text-decoration: underline; }
section { padding: 32px 0 4px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 24px 0 0; padding: 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; }
.tile dt { color: var(--muted); font-size: 13px; }
.tile dd { margin: 2px 0 0; font-size: 25px; font-weight: 600; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.tile dd .unit { font-size: 15px; font-weight: 400; }
.tile dd small { display: block; font-size: 12.5px; font-weight: 400; color: var(--muted); }
.scroll { overflow-x: auto; margin: 0 0 12px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 6px; width: max-content; max-width: min(72ch, 86vw); }
th, td { padding: 6px 18px 6px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 500; font-size: 13px; vertical-align: bottom; }
tbody th { font-weight: 400; min-width: 76px; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.main { font-weight: 600; }
td.text { overflow-wrap: anywhere; }
td.cell { padding: 1px; border: 0; }
th.cell { padding: 6px 11px; }
.heat { display: block; padding: 5px 10px; min-width: 64px; border-radius: 3px;
  background: rgba(var(--shade), calc(var(--share) * 0.6)); }
.bar { display: block; height: 12px; border-radius: 2px; margin-top: 5px; }
td.bars { width: min(420px, 40vw); padding-right: 0; }
figure { margin: 0 0 12px; overflow-x: auto; }
figure svg { display: block; width: 100%; height: auto;
  min-width: min(var(--width), 440px); max-width: calc(var(--width) * 1.25); }
.charts figure svg { min-width: 0; }
svg text { font-family: inherit !important; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(290px, 1fr));
  gap: 16px 20px; }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr));
  gap: 16px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px 14px; }
.card h3 { margin: 0 0 8px; display: flex; align-items: center; gap: 8px; }
.swatch { width: 11px; height: 11px; border-radius: 3px; display: inline-block; flex: none; }
.triple { display: grid; grid-template-columns: 64px repeat(3, 1fr); gap: 6px 8px;
  align-items: center; font-size: 12.5px; color: var(--muted); }
.triple img { display: block; width: 100%; aspect-ratio: 1; border-radius: 3px;
  image-rendering: pixelated; }
.triple .axes { text-align: center; }
.scale { display: block; height: 3px; background: var(--muted); border-radius: 2px; }
.scale-row { display: grid; grid-template-columns: 64px repeat(3, 1fr); gap: 6px 8px;
  margin-top: 8px; align-items: center; font-size: 12.5px; color: var(--muted); }
.scale-text { grid-column: 3 / 5; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; margin: 0;
  padding: 12px 16px; overflow-x: auto; max-height: 420px; font: 13px/1.5 ui-monospace,
  SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details summary { cursor: pointer; margin-bottom: 8px; }
ul.plain { margin: 0; padding-left: 20px; max-width: 74ch; }
ul.plain li { margin-bottom: 6px; }
footer { max-width: 1040px; margin: 32px auto 0; padding: 16px 24px 40px; color: var(--muted);
  font-size: 13px; border-top: 1px solid var(--line); }
@media (max-width: 600px) {
  main, header, nav { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 24px; }
  h1 { font-size: 23px; }
  .triple, .scale-row { grid-template-columns: 48px repeat(3, 1fr); }
  .tiles { grid-template-columns: repeat(2, 1fr); }
  .tile dd { font-size: 21px; }
  th, td { padding-right: 12px; }
}
@media print {
  pre { max-height: none; white-space: pre-wrap; }
  .card, .tile, figure { break-inside: avoid; }
  nav { display: none; }
}
"""


def escape(value: object) -> str:
    """Makes any text harmless inside the page, in attributes too."""
    return html.escape(str(value), quote=True)


def note(text: str) -> str:
    """Says something in the muted voice of captions."""
    return f'<p class="muted">{escape(text)}</p>'


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    classes: Sequence[str] = (),
) -> str:
    """Lays out a table whose first column names the rows.

    Args:
        header: one text per column, escaped here.
        rows: HTML of the cells, already escaped; one per column.
        caption: what the table shows, escaped here.
        classes: CSS class of each column; none if empty.

    Returns:
        HTML, scrolling sideways where the window is too narrow.
    """
    classes = classes or [""] * len(header)
    attributes = [f' class="{name}"' if name else "" for name in classes]
    head = "".join(
        f'<th scope="col"{attribute}>{escape(text)}</th>'
        for text, attribute in zip(header, attributes, strict=True)
    )
    body = []
    for first, *cells in rows:
        line = "".join(
            f"<td{attribute}>{cell}</td>"
            for cell, attribute in zip(cells, attributes[1:], strict=True)
        )
        body.append(f'<tr><th scope="row">{first}</th>{line}</tr>')
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0"><table>{title}<thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def bar(share: float, colour: str) -> str:
    """Draws a horizontal bar of a table cell; the number stands in the cell beside it."""
    return f'<span class="bar" style="width: {100 * share:.1f}%; background: {colour}"></span>'


def section(name: str, title: str, body: str) -> str:
    """Wraps a section so that the contents list can point to it."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>'


def page(title: str, subtitle: str, tiles: str, contents: dict[str, str], body: str) -> str:
    """Puts the sections into a page of its own.

    Args:
        title: escaped here.
        subtitle: escaped here.
        tiles: HTML of the leading numbers.
        contents: name of each section -> its title.
        body: HTML of the sections.

    Returns:
        A complete HTML document.
    """
    links = "".join(
        f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in contents.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="muted">{escape(subtitle)}</p>{tiles}</header>'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav><main>{body}</main>'
        "<footer>Written by jimjax. The page is complete in itself and loads nothing.</footer>"
        "</body></html>\n"
    )
