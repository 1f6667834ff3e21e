"""How the page looks: on screen, light or dark, and on paper. Nothing is loaded from anywhere."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5a6572; --line: #d5dbe1; --paper: #ffffff; --wash: #f4f6f8;
  --good: #0b6b3a; --bad: #a31621; --bar: #2f6fab; --bar2: #c77700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #9aa6b2; --line: #37414b; --paper: #14181c;
  --wash: #1d2329; --good: #56c98a; --bad: #ff7b84; --bar: #6aaee8; --bar2: #f0ac4e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
header { border: 2px solid currentColor; border-radius: .5rem; padding: 1rem 1.25rem; }
header.good { color: var(--good); } header.bad { color: var(--bad); }
header p { color: var(--ink); margin: .4rem 0 0; }
.kind { color: var(--soft); font-size: .85rem; letter-spacing: .06em; text-transform: uppercase; margin: 0; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
p.note { color: var(--soft); margin: .25rem 0 .75rem; max-width: 50rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem; margin: 1rem 0 0; }
dl div { background: var(--wash); border-radius: .4rem; padding: .5rem .75rem; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
dd.small { font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 600; } th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.bad { color: var(--bad); font-weight: 600; }
code { font: .85em ui-monospace, "Liberation Mono", Consolas, monospace; overflow-wrap: anywhere; }
ul { margin: .25rem 0; padding-left: 1.2rem; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0 1rem; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
svg .axis { stroke: var(--line); stroke-width: 1; } svg .bar { fill: var(--bar); }
svg .curve { fill: none; stroke: var(--bar); stroke-width: 1.5; stroke-linejoin: round; }
svg .area { fill: var(--bar); opacity: .15; }
figure { margin: 1rem 0; } figcaption { font-weight: 600; font-size: .95rem; }
footer { color: var(--soft); font-size: .85rem; margin-top: 2rem; }
@media print { body { max-width: none; padding: 0; font-size: 11px; } h2 { break-after: avoid; }
  tr, figure, header { break-inside: avoid; } dl div { border: 1px solid var(--line); } }
"""
