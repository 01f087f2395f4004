"""The shell of a page: one self-contained file that reads on a phone, in the dark and on paper."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

# Hues after Okabe and Ito, which stay apart for colour-blind readers; lines differ by dashes and marks by shape, too.
STYLE = """
:root{color-scheme:light dark;--ink:#1b2026;--soft:#5a6572;--line:#dde2e8;--card:#fff;--page:#f3f5f8;--good:#00694e;
--bad:#b3370f;--s0:#0072b2;--s1:#c8500a;--s2:#00795a;--s3:#a9487f;--s4:#8a6100;--s5:#4b5a68}
@media(prefers-color-scheme:dark){:root{--ink:#e7ebef;--soft:#9ba7b4;--line:#343d47;--card:#1b2128;--page:#11151a;
--good:#4fd1a5;--bad:#ff9d6b;--s0:#56b4e9;--s1:#ff9d5c;--s2:#3fc79b;--s3:#e39bc6;--s4:#e6b84a;--s5:#b4c0cc}}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--line:#bbb;--card:#fff;--page:#fff;--good:#00694e;
--bad:#b3370f;--s0:#0072b2;--s1:#c8500a;--s2:#00795a;--s3:#a9487f;--s4:#8a6100;--s5:#4b5a68}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif;
-webkit-text-size-adjust:100%;overflow-wrap:anywhere}
main{max-width:66rem;margin:0 auto;padding:1.25rem}
section,header{background:var(--card);border:1px solid var(--line);border-radius:.75rem;padding:1.1rem 1.3rem;
margin:0 0 1rem}
h1{font-size:1rem;font-weight:600;color:var(--soft);margin:0}
h2{font-size:1.1rem;line-height:1.3;margin:0 0 .7rem}
h3{font-size:.95rem;line-height:1.3;margin:0 0 .35rem}
p{margin:.5rem 0}ul{margin:.5rem 0;padding-left:1.2rem}
.verdict{font-size:1.45rem;line-height:1.3;font-weight:650;margin:.25rem 0 .6rem;text-wrap:pretty}
.chip{display:inline-block;border:1px solid;border-radius:1rem;padding:.05rem .7rem;font-size:.9rem;font-weight:600}
.met{color:var(--good)}.missed{color:var(--bad)}.goals{list-style:none;padding:0;margin:.6rem 0 0}
small,.soft{color:var(--soft)}small{font-size:.85rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,13.5rem),1fr));gap:1.4rem;margin:0 0 1.1rem}
.tile>div{min-width:0}.tile b{font-size:1.6rem;line-height:1.2;font-weight:650;display:block}
.pair{display:grid;grid-template-columns:auto 1fr auto;gap:.15rem .5rem;align-items:center;margin-top:.4rem;
font-size:.85rem}
.pair i{display:block;height:.6rem;border-radius:.2rem;background:var(--s5);opacity:.55}
.pair i.new{background:var(--s0);opacity:1}
.pair span:nth-child(3n){text-align:right}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,27rem),1fr));gap:1.3rem 1.6rem}
figure{margin:0;min-width:0}figcaption{font-size:.85rem;color:var(--soft);margin:0 0 .25rem}
figcaption b{color:var(--ink);font-size:.95rem}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem;margin:.35rem 0 0}
.legend span{white-space:nowrap}.legend svg{display:inline-block;width:1.5rem;height:.8rem;vertical-align:-.05rem;
margin-right:.35rem}
svg{width:100%;height:auto;display:block;font-size:11.5px;fill:var(--ink);overflow:visible}
svg .soft{fill:var(--soft)}svg .label{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
svg .cell{font-size:11px}.grid{stroke:var(--line)}.axis{stroke:var(--soft);fill:none}
.scroll{overflow-x:auto}.scroll:focus-visible{outline:2px solid var(--s0)}
table{border-collapse:collapse;width:100%;font-size:.93rem}
th,td{text-align:left;padding:.35rem 1.1rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top;
overflow-wrap:normal}
tr:last-child td{border-bottom:0}th:last-child,td:last-child{padding-right:0}
th{color:var(--soft);font-weight:500;font-size:.85rem;vertical-align:bottom}
.number{text-align:right}td.number{font-variant-numeric:tabular-nums;white-space:nowrap}
pre{overflow-x:auto;font-size:.82rem;line-height:1.45;margin:.5rem 0 0}
details{margin-top:.6rem}summary{cursor:pointer;color:var(--s0);font-size:.93rem}
@media(max-width:36rem){main{padding:.6rem}section,header{padding:.9rem 1rem;margin-bottom:.6rem}
.verdict{font-size:1.2rem}th,td{padding-right:.8rem}td:not(.number){min-width:6.5rem}}
@media print{body{font-size:10.5pt}main{max-width:none;padding:0}
section,header{border:0;border-top:1px solid var(--line);border-radius:0;padding:.7rem 0;
margin:0}header{border-top:0}figure,tr,.tile{break-inside:avoid}h2,h3{break-after:avoid}
.scroll,pre{overflow:visible}pre{white-space:pre-wrap;font-size:8pt}table{font-size:9pt}
.pair i,svg{print-color-adjust:exact;-webkit-print-color-adjust:exact}
.figures{grid-template-columns:1fr 1fr}
summary{color:inherit}details::details-content{content-visibility:visible;height:auto}}
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page of HTML; `title` is escaped here, `parts` are HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
