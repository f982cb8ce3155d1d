"""The frame of this room's pages: one HTML file, everything inline, nothing fetched, no script."""

from __future__ import annotations

from html import escape

__all__ = ["frame_page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#23211d;--quiet:#66615a;
--line:#e3ded5;--accent:#8a4b14;--band:#e9d3bd;--code:#f4f1ea}
@media(prefers-color-scheme:dark){:root{--page:#181715;--card:#211f1c;--ink:#ece7de;--quiet:#a49d92;
--line:#3a3631;--accent:#e8a45c;--band:#4a3826;--code:#191816}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:900px;margin:0 auto;padding:40px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 8px}
h2{font-size:18px;margin:0 0 6px;overflow-wrap:anywhere}h3{font-size:15px;margin:18px 0 6px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 22px;
margin:18px 0}
.verdict{font-weight:600;color:var(--accent);margin:4px 0 12px}
.quiet{color:var(--quiet);font-size:14px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:10px 0}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
code,pre{font:12.5px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}
pre{overflow:auto;max-height:420px;background:var(--code);border-radius:8px;padding:12px}
summary{cursor:pointer;color:var(--accent)}
.look{display:flex;gap:24px;flex-wrap:wrap;align-items:flex-start;margin:12px 0}
.look dl{flex:1 1 320px;margin:0}.look .shown{flex:0 1 auto;margin:0}
.shown svg{border-radius:8px}.box{fill:none;stroke:var(--accent);stroke-width:2.5}
.faces{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 12px}
.plots figure,.strip figure{margin:0}.faces img{width:72px;height:72px;border-radius:6px}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:10px}
.strip img{width:100%;border-radius:6px;display:block}
figcaption{font-size:13px;color:var(--quiet);margin-top:4px}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:16px}
svg{width:100%;height:auto;display:block}
.grid{stroke:var(--line)}.tick{fill:var(--quiet);font-size:11px}
.line{fill:none;stroke:var(--accent);stroke-width:2}.dot{fill:var(--accent)}.band{fill:var(--band)}
figure.course{margin:12px 0}
figure.map{margin:12px 0}.map svg{fill:var(--accent);width:180px;height:180px}
.frame{fill:none;stroke:var(--line);stroke-width:.15}
ul.tree{list-style:none;margin:0;padding-left:18px;border-left:2px solid var(--line)}
.tree li{margin:6px 0;overflow-wrap:anywhere}
@media(max-width:600px){main{padding:24px 14px}dl{grid-template-columns:1fr;gap:0}
dt{margin-top:8px}section{padding:14px 16px}}
"""


def frame_page(title: str, body: str) -> str:
    """Return a whole page; ``title`` is escaped here, ``body`` is HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>\n"
    )
