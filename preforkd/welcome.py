"""What a fresh installation serves: one page that shows that it works, who answered, and what to do next.

A plain WSGI application without dependencies, and therefore an example as well: ``app: preforkd.welcome:application``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>preforkd works</title>
<style>
:root {{
  color-scheme: light dark;
  --paper: #fbfaf7; --ink: #22252b; --soft: #646b78; --line: #e2dfd6; --card: #ffffff; --mark: #1f7a4d;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #15171b; --ink: #e6e4df; --soft: #9aa1ad; --line: #2c3038; --card: #1c1f25; --mark: #5cc98f; }}
}}
* {{ box-sizing: border-box; }}
body {{
  margin: 0; padding: 8vh 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 1.0625rem/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}}
main {{ max-width: 42rem; margin: 0 auto; }}
h1 {{ margin: 0 0 .25rem; font-size: 2.25rem; line-height: 1.2; letter-spacing: -.02em; }}
h1::before {{
  content: ""; display: inline-block; width: .55em; height: .55em; margin-right: .45em;
  border-radius: 50%; background: var(--mark);
}}
h2 {{ margin: 2.5rem 0 .75rem; font-size: 1.125rem; }}
p {{ margin: 0; color: var(--soft); }}
dl {{
  display: grid; grid-template-columns: max-content 1fr; gap: 0 1.5rem; margin: 2rem 0 0; padding: .5rem 1.25rem;
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem;
}}
dt, dd {{ margin: 0; padding: .5rem 0; }}
dt {{ color: var(--soft); }}
dd {{ overflow-wrap: anywhere; }}
ol {{ margin: 0; padding-left: 1.25rem; }}
li {{ margin: .6rem 0; padding-left: .25rem; }}
code, pre {{ font: .9375em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
pre {{
  margin: .5rem 0 0; padding: .75rem 1rem; overflow-x: auto;
  background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
}}
</style>
</head>
<body>
<main>
<h1>It works</h1>
<p>preforkd answers on this address. Reload the page: another worker may answer.</p>
<dl>
<dt>Worker</dt><dd><code>{worker}</code></dd>
<dt>Process</dt><dd><code>{pid}</code></dd>
<dt>Generation</dt><dd><code>{generation}</code></dd>
<dt>Configured by</dt><dd>{config}</dd>
</dl>
<h2>Next</h2>
<ol>
<li>{edit}</li>
<li>Point <code>app:</code> to your own WSGI application:
<pre>pools:
  web:
    directory: /srv/mysite
    app: mysite.wsgi:application</pre></li>
<li>Apply it. Nobody who is connected will notice, and a mistake changes nothing:
<pre>{reload}</pre></li>
</ol>
</main>
</body>
</html>
"""


def application(
    environ: dict[str, Any], start_response: Callable[[str, list[tuple[str, str]]], object]
) -> Iterable[bytes]:
    """The welcome page at ``/``, 404 everywhere else, 405 for methods that do not read."""
    if environ.get("PATH_INFO", "") not in ("", "/"):
        return _plain(start_response, "404 Not Found", "There is only the welcome page, at /.")
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _plain(
            start_response, "405 Method Not Allowed", "The welcome page can only be read.", ("Allow", "GET, HEAD")
        )
    body = page(environ).encode()
    start_response(
        "200 OK",
        [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),
            ("X-Content-Type-Options", "nosniff"),
        ],
    )
    return [body]


def page(environ: dict[str, Any]) -> str:
    """The page's HTML for the worker that ``environ`` names. All that goes into it is escaped."""
    config = str(environ.get("preforkd.config") or "")
    shown = escape(config)
    return _PAGE.format(
        worker=escape(str(environ.get("preforkd.worker", "unknown"))),
        pid=os.getpid(),
        generation=escape(str(environ.get("preforkd.generation", "unknown"))),
        config=f"<code>{shown}</code>" if shown else "built-in defaults, no file",
        edit=f"Edit <code>{shown}</code>." if shown else "Write a file and start with <code>preforkd run FILE</code>.",
        reload=f"preforkd reload {shown}".rstrip(),
    )


def _plain(
    start_response: Callable[[str, list[tuple[str, str]]], object], status: str, text: str, *more: tuple[str, str]
) -> Iterable[bytes]:
    body = f"{status}\n\n{text}\n".encode()
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *more])
    return [body]
