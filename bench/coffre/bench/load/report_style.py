"""The style sheet of a report, for light and dark, for screen and paper. It refers to nothing outside the page."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root {
  color-scheme: light dark;
  --ground: #f6f7f9; --card: #ffffff; --ink: #16202c; --soft: #5b6878; --faint: #e4e8ed; --line: #cfd6de;
  --put: #2a66c9; --get: #0f8a6d; --range: #8a5cc9; --head: #b7791f; --list: #c4457a; --delete: #64748b;
  --good: #0f7a4f; --good-ground: #e2f4ea; --bad: #b42318; --bad-ground: #fde7e5;
  --band-a: #eef2f7; --band-b: #fdeeee;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0e141b; --card: #161e27; --ink: #e6ebf1; --soft: #97a4b3; --faint: #222c37; --line: #34414f;
    --put: #6ea3f7; --get: #3ccaa3; --range: #b795ee; --head: #e0b057; --list: #ee85b0; --delete: #9fb0c3;
    --good: #5ad19a; --good-ground: #12301f; --bad: #ff8d80; --bad-ground: #3b1714;
    --band-a: #1a232d; --band-b: #2b1c20;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
header { display: flex; gap: 24px; align-items: flex-start; justify-content: space-between; }
header > div:first-child { flex: 1 1 auto; min-width: 0; }
.brand { font-size: 13px; font-weight: 600; letter-spacing: .08em; text-transform: uppercase; color: var(--soft); }
h1 { font-size: 28px; line-height: 1.25; margin: 4px 0 6px; letter-spacing: -.01em; }
h2 { font-size: 17px; margin: 0 0 2px; }
.sub { color: var(--soft); margin: 0 0 14px; font-size: 14px; }
.verdict { border-radius: 999px; padding: 8px 16px; font-weight: 600; font-size: 14px; flex: none; }
.verdict.good { background: var(--good-ground); color: var(--good); }
.verdict.bad { background: var(--bad-ground); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 24px 0 12px; }
.tile, section { background: var(--card); border: 1px solid var(--faint); border-radius: 12px; }
.tile { padding: 14px 16px; }
.tile .name { color: var(--soft); font-size: 13px; }
.tile .value { font-size: 24px; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -.01em; }
.tile.bad .value { color: var(--bad); }
.tile .note { color: var(--soft); font-size: 12.5px; }
section { padding: 20px 22px; margin-top: 12px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; fill: var(--soft); }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .tick { font-variant-numeric: tabular-nums; }
svg .axis-name { font-size: 11.5px; font-style: italic; }
svg .grid { stroke: var(--faint); } svg .axis { stroke: var(--line); }
svg .mark { stroke: var(--bad); stroke-dasharray: 3 4; opacity: .7; }
svg .band-a { fill: var(--band-a); } svg .band-b { fill: var(--band-b); } svg .band-none { fill: none; }
svg .band-name { font-size: 11.5px; font-weight: 600; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg .thin { stroke-width: 1.4; stroke-dasharray: 1 4; }
svg .put { stroke: var(--put); } svg .get { stroke: var(--get); } svg .range { stroke: var(--range); }
svg .head { stroke: var(--head); } svg .list { stroke: var(--list); } svg .delete { stroke: var(--delete); }
svg .failed { stroke: var(--bad); }
svg .hover { fill: transparent; } svg .hover:hover { fill: var(--ink); opacity: .06; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0 0; padding: 0; list-style: none; }
.legend { font-size: 13px; color: var(--soft); }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 7px; }
.legend i { vertical-align: middle; }
i.put { background: var(--put); } i.get { background: var(--get); } i.range { background: var(--range); }
i.head { background: var(--head); } i.list { background: var(--list); } i.delete { background: var(--delete); }
i.failed { background: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: var(--soft); padding: 6px 10px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td { text-align: right; padding: 6px 10px; border-bottom: 1px solid var(--faint); white-space: nowrap; }
th.text, td.text { text-align: left; }
tr:last-child td { border-bottom: 0; }
tr.sum td { font-weight: 600; }
tr.part td.text:nth-child(2) { padding-left: 22px; color: var(--soft); }
td.bad { color: var(--bad); font-weight: 600; }
td.what { white-space: normal; min-width: 150px; }
td.soft { color: var(--soft); padding-left: 0; }
td.none { color: var(--line); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 14px 24px; margin: 12px 0 0; }
dt { color: var(--soft); font-size: 13px; } dd { margin: 0; overflow-wrap: anywhere; }
.notes { margin: 0; padding-left: 18px; } .notes li { margin: 4px 0; }
.alarm { background: var(--bad-ground); color: var(--bad); border-color: transparent; }
.alarm pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12.5px; margin: 8px 0 0; }
footer { color: var(--soft); font-size: 13px; margin-top: 24px; }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
"""
