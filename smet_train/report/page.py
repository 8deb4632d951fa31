"""The page: one HTML file with everything in it, its charts drawn by bokeh."""

from html import escape
from pathlib import Path
from string import Template

from bokeh.document import Document
from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources

from smet_train.report.charts import Chart, LeftOut, Report, Section, Table
from smet_train.report.figures import make_figure

_TEMPLATE = Path(__file__).with_name("page.html")


def render_page(report: Report) -> str:
    """The HTML of ``report``. Its policy forbids the browser to load anything."""
    figures: dict[str, Model] = {chart.key: make_figure(chart) for chart in report.charts}
    document = Document()
    with document.models.freeze():  # else everything is looked through again for each figure
        for drawn in figures.values():
            document.add_root(drawn)
    script, divs = components(figures) if figures else ("", {})
    library = Resources(mode="inline", components=["bokeh"], minified=True).render_js() if figures else ""
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(report.title),
        notes="".join(f'<p class="note">{escape(note)}</p>\n' for note in report.notes),
        library=library,
        sections="\n".join(_section(section, divs) for section in report.sections),
        script=script,
    )


def _section(section: Section, divs: dict[str, str]) -> str:
    charts = "\n".join(_chart(chart, divs) for chart in section.charts if isinstance(chart, Chart))
    left_out = "\n".join(_left_out(chart) for chart in section.charts if isinstance(chart, LeftOut))
    tables = "\n".join(map(_table, section.tables))
    grid = f'<div class="charts">\n{charts}\n</div>' if charts else ""
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{grid}\n{left_out}\n{tables}\n</section>"


def _chart(chart: Chart, divs: dict[str, str]) -> str:
    note = f'<p class="note">{escape(chart.note)}</p>' if chart.note else ""
    head = f'<figure class="chart" id="{escape(chart.key)}">\n<h3>{escape(chart.title)}</h3>'
    return f"{head}\n{note}\n{divs[chart.key]}\n</figure>"


def _left_out(chart: LeftOut) -> str:
    return f'<p class="note">{escape(chart.title)}: left out, because {escape(chart.why)}.</p>'


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    copy = '<button type="button" onclick="copyTable(this)">copy</button>'
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
    title = escape(table.title)
    if table.folded:
        return (
            f'<details class="table"><summary>{title}, {len(table.rows)} rows</summary>{note}{copy}\n{body}</details>'
        )
    return f'<div class="table"><div class="head"><h3>{title}</h3>{copy}</div>{note}\n{body}</div>'


def _cell(text: str) -> str:
    kind = ' class="text"' if len(text) > 30 else ""
    return f"<td{kind}>{escape(text)}</td>"
