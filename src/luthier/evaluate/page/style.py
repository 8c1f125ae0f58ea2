"""The style of the report: system fonts, one accent, light and dark, narrow and wide, screen and paper."""

STYLE = """
:root { color-scheme: light dark; --page: #faf8f5; --card: #ffffff; --ink: #1f1b18; --soft: #6d645c;
  --line: #e6e0d8; --track: #f3efe9; --own: #b4491c; --rival: #3f6b8f; --floor: #9a9188; --good: #2f7d4f;
  --bad: #b3261e; --even: #8a6500; --code: #f5f1eb; --shadow: 0 1px 2px rgb(60 40 20 / .05), 0 4px 18px
  rgb(60 40 20 / .05); }
@media (prefers-color-scheme: dark) {
  :root { --page: #161412; --card: #1f1c19; --ink: #ede7e0; --soft: #a89e94; --line: #363029; --track:
    #292521; --own: #f0935f; --rival: #86b4dc; --floor: #8d847b; --good: #6fc592; --bad: #ff8a80; --even:
    #e3b94f; --code: #191613; --shadow: none; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: anywhere; font: 16px/1.55
  system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Helvetica Neue", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; }
header .mark-line { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: baseline; color:
  var(--soft); font-size: 14px; margin: 0 0 22px; }
.brand { font-weight: 700; letter-spacing: .01em; color: var(--own); }
.state { border: 1px solid currentColor; border-radius: 99px; padding: 0 10px; font-size: 12.5px;
  line-height: 1.7; }
.state.done { color: var(--good); }
.state.failed { color: var(--bad); }
.state.interrupted, .state.running { color: var(--even); }
h1 { font-size: clamp(23px, 3.3vw, 35px); line-height: 1.28; font-weight: 400; letter-spacing: -.012em;
  margin: 0 0 14px; max-width: 30em; text-wrap: pretty; }
h1 strong { font-weight: 650; }
h1 .value { color: var(--own); }
h2 { font-size: 20px; font-weight: 650; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 15px; font-weight: 650; margin: 26px 0 6px; }
p { margin: 0 0 10px; }
.small { color: var(--soft); font-size: 13.5px; }
.lead { color: var(--soft); }
.verdict { font-size: 17px; margin: 0 0 8px; padding-left: 14px; border-left: 3px solid var(--soft); }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.verdict.even { border-color: var(--even); }
.note { border: 1px solid var(--line); border-left: 3px solid var(--even); background: var(--card);
  border-radius: 6px; padding: 10px 14px; margin: 12px 0; font-size: 15px; }
.note.bad { border-left-color: var(--bad); }
.note ul { margin: 4px 0 0; padding-left: 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; box-shadow:
  var(--shadow); padding: 24px 26px; margin: 22px 0 0; }
section > *:last-child { margin-bottom: 0; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 14px; color: var(--soft); margin-bottom: 4px; }
.hero { margin: 26px 0 8px; }
.hero figcaption { font-weight: 600; color: var(--ink); font-size: 15px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 11px; }
.forest { display: grid; margin: 4px 0 6px; }
.forest .row { display: grid; align-items: center; column-gap: 14px; grid-template-columns: 8.2em
  minmax(0, 1fr) 5em; }
.forest .name { text-align: right; }
.forest .own .name, .forest .own .value { font-weight: 650; }
.forest .own .value { color: var(--own); }
.forest .value { font-variant-numeric: tabular-nums; }
.forest svg { height: 40px; }
.forest .axis svg { height: 22px; }
.forest svg .tick { font-size: 12px; }
.grid { stroke: var(--line); stroke-width: 1; }
.track { fill: var(--track); }
.own { --tone: var(--own); }
.rival { --tone: var(--rival); }
.floor { --tone: var(--floor); }
.line.good, .point.good { --tone: var(--good); }
.band { fill: var(--tone); opacity: .32; }
.dot { fill: var(--tone); }
svg text.value.own { fill: var(--own); }
.line { fill: none; stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line.faint { opacity: .28; stroke-width: 1; }
.point { fill: transparent; }
.point.seen { fill: var(--tone); }
.point:hover { fill: var(--tone); }
.best { fill: none; stroke: var(--good); stroke-width: 2; }
svg text.note { font-size: 12px; font-weight: 600; fill: var(--good); }
.agree { stroke: var(--soft); stroke-dasharray: 5 5; }
.spot { fill: var(--own); }
.cell.right { fill: var(--rival); }
.cell.wrong { fill: var(--own); }
.cell:hover { stroke: var(--ink); }
.heat .count { font-size: 11.5px; }
.heat .count.strong { fill: var(--card); font-weight: 600; }
.heat, .scatter { margin: 6px 0 8px; }
.scatter { max-width: 560px; }
.strip { width: 150px; overflow: hidden; }
.curve .tick { font-size: 13px; }
svg.curve text.note { font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 1px; margin:
  26px 0 0; background: var(--line); border: 1px solid var(--line); border-radius: 12px; overflow: hidden;
  }
.tiles div { background: var(--card); padding: 14px 18px; }
.tiles dt { color: var(--soft); font-size: 13.5px; }
.tiles dd { margin: 0; font-size: 22px; font-weight: 600; letter-spacing: -.01em; }
.tiles dd.small { font-size: 13px; font-weight: 400; letter-spacing: 0; min-height: 1.5em; }
.curves { display: grid; gap: 22px 26px;
  grid-template-columns: repeat(auto-fit, minmax(min(290px, 100%), 1fr)); }
.curves figcaption { color: var(--ink); font-weight: 600; }
.key { font-weight: 400; margin-left: 10px; }
.key::before { content: ""; display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  background: var(--tone); margin-right: 5px; vertical-align: middle; }
.halves { display: grid; gap: 20px 36px;
  grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.halves > div { min-width: 0; }
.wide { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; width: 100%; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 500; color: var(--soft); font-size: 13px; padding: 4px 10px 4px 0;
  white-space: nowrap; }
th { overflow-wrap: normal; }
td { text-align: right; padding: 7px 10px 7px 0; border-top: 1px solid var(--line); overflow-wrap: normal; }
th:first-child, td:first-child { text-align: left; overflow-wrap: break-word; }
td:last-child, th:last-child { padding-right: 0; }
.metrics td:last-child { width: 170px; padding-left: 14px; }
.metrics td:nth-child(2) { white-space: nowrap; }
.proofs td:nth-child(2), .proofs th:nth-child(2), .data td:nth-child(2), .data th:nth-child(2),
.pairs td:nth-child(2), .pairs th:nth-child(2) { text-align: left; }
.text td, .text th { text-align: left; }
.proofs td { vertical-align: top; }
.proofs td:first-child { white-space: nowrap; width: 5.5em; }
.data { font-size: 13.5px; }
.path { overflow-wrap: anywhere; }
.mark.good { color: var(--good); }
.mark.bad { color: var(--bad); font-weight: 650; }
.bar { display: inline-block; width: 76px; padding: 1px 7px; border-radius: 3px; background: linear-gradient(
  90deg, color-mix(in srgb, var(--rival) 34%, transparent) var(--share), var(--track) 0); }
.facts { display: grid; gap: 5px 18px; margin: 6px 0 14px;
  grid-template-columns: minmax(7em, max-content) 1fr; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; min-width: 0; }
.facts.columns { grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 14px 18px; }
.facts.columns dt { font-size: 13.5px; }
details summary { cursor: pointer; color: var(--soft); font-weight: 500; padding: 2px 0; }
.code, pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  margin: 8px 0 0; font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-x: auto; white-space: pre-wrap; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; }
.examples { list-style: none; margin: 14px 0 0; padding: 0; display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); align-items: start; }
.examples li { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; display: flex;
  flex-direction: column; }
.examples li p { margin: 0 0 6px; }
.examples bdi, .code { white-space: pre-wrap; }
.examples li .small { margin: auto 0 0; }
.said { font-size: 14.5px; white-space: normal; }
.target { color: var(--rival); font-weight: 600; }
.wrong { color: var(--own); font-weight: 600; }
.token { border-radius: 3px; padding: 0 2px; }
.token.entity { background: color-mix(in srgb, var(--rival) 18%, transparent); }
.token.off { background: color-mix(in srgb, var(--own) 20%, transparent); }
.token small { color: var(--own); padding-left: 4px; }
.samples { list-style: none; margin: 14px 0 0; padding: 0; display: grid; gap: 18px; }
.samples li { border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
.samples h3 { margin: 0 0 4px; font-size: 12.5px; font-weight: 600; color: var(--soft); }
.samples p { margin: 0; }
.samples bdi { white-space: pre-wrap; }
.asked { background: var(--track); padding: 12px 16px; }
.answers { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); }
.answers > div { padding: 12px 16px 14px; border-top: 1px solid var(--line); font-size: 15px; }
.answers > div + div { border-left: 1px solid var(--line); }
.answers .people h3 { color: var(--rival); }
.answers .before p { color: var(--soft); }
.answers .after h3 { color: var(--own); }
.examples.one { grid-template-columns: minmax(0, 1fr); }
.metrics.written td:first-child .small { display: block; }
.metrics.written td:nth-child(n+2) .small { white-space: nowrap; display: block; }
.hidden { font: 10.5px ui-monospace, monospace; color: var(--bad); border: 1px solid currentColor;
  border-radius: 3px; padding: 0 2px; margin: 0 1px; white-space: nowrap; }
footer { color: var(--soft); font-size: 13px; margin-top: 26px; }
@media (max-width: 640px) {
  main { padding: 22px 14px 40px; }
  section { padding: 18px 16px; border-radius: 10px; }
  .forest .row { grid-template-columns: minmax(0, 1fr) auto; }
  .forest .name { text-align: left; }
  .forest svg { grid-column: 1 / -1; grid-row: 2; height: 40px; margin-top: -6px; }
  .forest .axis span { display: none; }
  .metrics td:last-child, .metrics th:last-child { display: none; }
  .metrics td:nth-child(2) .small { display: block; }
  th { white-space: normal; }
  .bar { width: 60px; }
  .answers { grid-template-columns: minmax(0, 1fr); }
  .answers > div + div { border-left: 0; }
  .forest .axis svg { height: 22px; grid-row: 1; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles div:last-child:nth-child(odd) { grid-column: 1 / -1; }
  .tiles div { padding: 11px 13px; }
  .tiles dd { font-size: 18px; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: 8px; }
}
@media print {
  :root { --page: #fff; --shadow: none; }
  main { max-width: none; padding: 0; }
  body { font-size: 11pt; }
  section { border: 0; padding: 0; margin-top: 20pt; }
  figure, tr, .examples li, .tiles { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  details::details-content { content-visibility: visible; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
