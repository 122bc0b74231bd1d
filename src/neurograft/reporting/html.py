"""A document as a self-contained page: one file, no script, no network."""

from html import escape

from neurograft.reporting.document import Code, Document, Facts, Heading, Links, Paragraph, Part, Picture, Section
from neurograft.reporting.palette import palette_css
from neurograft.reporting.tables import Table, html_table

STYLE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.45rem; margin: 3.2rem 0 .3rem; padding-top: 1.6rem; border-top: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2.2rem 0 .3rem; }
p { margin: .4rem 0 .9rem; max-width: 46rem; }
.lead { font-size: 1.12rem; color: var(--soft); }
.note, .soft, caption { color: var(--soft); font-size: .9rem; }
.takeaway { background: var(--card); border-left: 4px solid var(--c0); padding: .7rem 1rem; max-width: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; font-size: .93rem; }
caption { text-align: left; padding-bottom: .35rem; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid var(--line); padding: .35rem .7rem .35rem 0; }
th { vertical-align: bottom; }
td { border-bottom: 1px solid var(--line); padding: .35rem .7rem .35rem 0; vertical-align: top; }
tr.rule td { border-bottom: 2px solid var(--soft); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .93rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.chart { width: 100%; height: auto; margin: .6rem 0; font-family: inherit; }
.chart .grid { stroke: var(--line); } .chart .tick { fill: var(--soft); font-size: 12px; }
.chart .label { font-size: 12.5px; } .chart .strong { fill: var(--ink); font-weight: 600; }
.chart .end { text-anchor: end; } .chart .middle { text-anchor: middle; }
code { font-family: ui-monospace, monospace; font-size: .92em; background: var(--card); padding: .1em .3em; }
a { color: var(--c0); } ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
pre { background: var(--card); padding: .8rem 1rem; overflow-x: auto; } pre code { padding: 0; }
"""


def html_page(document: Document) -> str:
    """A whole page as text.

    Example:
        >>> html_page(Document("Report", "What was found.")).splitlines()[0]
        '<!doctype html>'
    """
    title, lead = escape(document.title), escape(document.lead)
    body = "\n".join(_section(section) for section in document.sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{palette_css()}{STYLE}</style></head>\n"
        f'<body><main><h1>{title}</h1>\n<p class="lead">{lead}</p>\n{body}\n</main></body></html>\n'
    )


def _section(section: Section) -> str:
    parts = "\n".join(_part(part) for part in section.parts)
    return f"<section><h2>{escape(section.title)}</h2>\n{parts}</section>"


def _part(part: Part) -> str:
    match part:
        case Paragraph(text, ""):
            return f"<p>{escape(text)}</p>"
        case Paragraph(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>'
        case Heading(text):
            return f"<h3>{escape(text)}</h3>"
        case Facts(pairs):
            return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"
        case Code(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Links(entries):
            items = (f'<li><a href="{escape(to)}">{escape(text)}</a> {escape(more)}</li>' for text, to, more in entries)
            return f"<ul>{''.join(items)}</ul>"
        case Picture():
            return f'{part.svg}<p class="soft">{escape(part.label[:1].upper() + part.label[1:])}.</p>'
        case Table():
            return html_table(part)
