"""The page of ``headway verify``: the table with its rules, and the figures behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from headway.bench.verify_report import conclusion
from headway.bench.verify_rows import VerifyRow
from headway.web.page import Page

MARKS = {"ok": "#2a7f4f", "look": "#b7791f", "not measured": "#5b6675"}
STYLE = """
td, th { text-align: left; vertical-align: top; }
td:first-child { white-space: normal; }
td b { white-space: nowrap; }
"""


def verify_page(rows: Sequence[VerifyRow], document: Mapping[str, Any]) -> str:
    """Return the page as HTML."""
    page = Page()
    page.parts += ["<h1>headway verify</h1>", f'<p class="lead">{escape(conclusion(rows))}</p>']
    if document["stopped"]:
        page.parts.append(f"<p><b>The run ended early.</b> {escape(document['stopped'])}</p>")
    body = "".join(
        f"<tr><td>{escape(row.title)}</td>"
        f'<td><b style="color:{MARKS[row.verdict]}">{escape(row.verdict)}</b></td>'
        f"<td>{escape(row.found)}<br>"
        f'<span class="quiet">ok when: {escape(row.rule)}</span></td></tr>'
        for row in rows
    )
    page.section(
        "What was seen",
        "Each row has a rule. A row that could not be measured says why.",
        f"<table><tr><th></th><th>verdict</th><th></th></tr>{body}</table>",
    )
    facts = ", ".join(f"{k} {v}" for k, v in document["machine"].items() if v is not None)
    arguments = " ".join(document["arguments"]) or "none"
    page.section(
        "Where",
        escape(f"Model {document['model']}, arguments of vLLM: {arguments}. Machine: {facts}."),
    )
    page.section(
        "All figures",
        "The same as in verify.json: no text of a prompt or an answer is in it.",
        f"<pre>{escape(json.dumps(document, indent=1))}</pre>",
    )
    return page.document("verify", STYLE, has_figures=False)
