// The demo page's style sheet and its only script.
#pragma once

namespace heed::app {

inline constexpr char kPageStyle[] = R"css(
:root {
  color-scheme: light dark;
  --paper: #fbfaf6; --card: #ffffff; --ink: #1f1d1a; --soft: #625d55; --line: #e2ddd2;
  --heat: 29 78 137; --accent: #1d4e89; --second: #b3541e;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Palatino, "Source Serif 4", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --card: #1b1e24; --ink: #ebe7df; --soft: #a8a298; --line: #30343c;
    --heat: 127 178 240; --accent: #8fbcf2; --second: #eda06c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1.0625rem/1.6 var(--serif); }
main, footer { max-width: 58rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding: clamp(2.5rem, 8vw, 5.5rem) 0 1.5rem; }
h1 { font-size: clamp(2rem, 6.5vw, 3.4rem); line-height: 1.08; letter-spacing: -.018em; font-weight: 600; margin: 0;
  text-wrap: balance; }
h2 { font-size: clamp(1.4rem, 4vw, 1.8rem); line-height: 1.2; letter-spacing: -.01em; font-weight: 600;
  margin: 4.5rem 0 .5rem; }
h3 { font-size: 1.0625rem; margin: 2.25rem 0 .5rem; font-weight: 600; }
p { margin: 0 0 1rem; max-width: 40rem; overflow-wrap: anywhere; }
header + section h2 { margin-top: 1.5rem; }
.lead { font-size: 1.2rem; margin-top: 1.25rem; }
.note, figcaption, .steps p { color: var(--soft); font-size: .95rem; }
.word { font-family: var(--sans); font-size: .92em; }

/* Scores: large numbers, the baseline beside them. */
.scores { border-collapse: collapse; margin: 1.25rem 0 1rem; font-variant-numeric: tabular-nums lining-nums; }
.scores th { font-weight: 400; color: var(--soft); text-align: left; padding: .35rem 2rem .35rem 0; }
.scores thead th { font: 600 .78rem/1.2 var(--sans); letter-spacing: .04em; }
.scores td { padding: .35rem 2rem .35rem 0; text-align: right; }
.scores thead th:not(:first-child) { text-align: right; }
.scores tbody tr:first-child > * { font-size: 1.7rem; line-height: 1.2; color: var(--ink); }
.scores tbody tr + tr > * { border-top: 1px solid var(--line); color: var(--soft); }

/* One translation. */
.pair { border-top: 1px solid var(--line); padding: 1.75rem 0 2rem; }
.pair dl { display: grid; grid-template-columns: 6.2rem 1fr; gap: .2rem .75rem; margin: 0 0 1.1rem; max-width: 46rem; }
.pair dt, .facts dt { color: var(--soft); font: .82rem/1.5 var(--sans); padding-top: .18rem; }
.pair dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.pair dd.output { font-weight: 600; }
.scroll { overflow-x: auto; overscroll-behavior-x: contain; max-width: 100%; padding-bottom: .4rem; }
.scroll:focus-visible, .map:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 4px; }
.map { border-collapse: separate; border-spacing: 2px; font: .8rem/1 var(--sans); width: max-content; }
.map th { font-weight: 400; white-space: nowrap; }
.map thead th { vertical-align: bottom; padding: 0 0 .35rem; height: 1px; }
.map thead th span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); line-height: 1.65rem; }
.map tbody th { text-align: right; padding: 0 .5rem 0 0; position: sticky; left: 0; background: var(--paper); z-index: 1; }
.map tbody th, .map thead td { max-width: 11rem; overflow: hidden; text-overflow: ellipsis; }
.map thead td { position: sticky; left: 0; background: var(--paper); z-index: 1; padding: 0; }
.map td.w { width: 1.65rem; min-width: 1.65rem; height: 1.65rem; padding: 0; border-radius: 3px; cursor: crosshair;
  background: rgb(var(--heat) / calc(.045 + .955 * var(--a))); }
.map td.on { outline: 2px solid var(--second); outline-offset: 0; }
.map th.on { color: var(--second); font-weight: 600; }
.join { color: var(--soft); }
details.looked { margin-top: .5rem; }
details.looked summary { color: var(--soft); font: .88rem/1.6 var(--sans); cursor: pointer; margin-bottom: .6rem; }
.readout { min-height: 1.6em; margin: .35rem 0 0; font: .88rem/1.6 var(--sans); color: var(--soft);
  font-variant-numeric: tabular-nums; }
.legend { display: flex; align-items: center; gap: .5rem; font: .82rem/1.4 var(--sans); color: var(--soft); margin: 1rem 0 1.5rem; }
.legend i { width: 8rem; height: .7rem; border-radius: 3px;
  background: linear-gradient(90deg, rgb(var(--heat) / .045), rgb(var(--heat))); }

/* Pictures, small ones with sharp pixels. */
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 2rem 1.5rem; margin: 1.5rem 0; }
.views { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: .4rem; }
.views img { display: block; width: 100%; border-radius: 3px; image-rendering: pixelated; }
.views span { display: block; font: .78rem/1.4 var(--sans); color: var(--soft); padding-top: .3rem; }
.answers { display: grid; grid-template-columns: max-content 1fr; gap: .1rem .75rem; margin: .6rem 0 0; font: .82rem/1.5 var(--sans);
  font-variant-numeric: tabular-nums; }
.answers dt { color: var(--soft); }
.answers dd { margin: 0; display: flex; align-items: center; gap: .5rem; }
.answers i { height: .55rem; border-radius: 2px; background: rgb(var(--heat)); width: calc(60% * var(--a)); min-width: 1px; }
.answers dt:first-of-type, .answers dt:first-of-type + dd { color: var(--ink); font-weight: 600; }
.colours { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; padding: 0; margin: 1rem 0; font: .82rem/1.5 var(--sans); }
.colours li { display: flex; align-items: center; gap: .4rem; color: var(--soft); }
.colours i { width: .8rem; height: .8rem; border-radius: 2px; }

/* The curve: drawn twice, so that its letters have one size on a phone and on a screen. */
figure { margin: 1.25rem 0 0; }
figcaption { margin-top: .9rem; max-width: 40rem; }
.curve { display: block; width: 100%; height: auto; font: 13px var(--sans); fill: var(--soft); overflow: visible; }
.curve .grid { stroke: var(--line); stroke-width: 1; }
.curve path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.curve .train { stroke: var(--accent); } .curve .valid { stroke: var(--second); }
.curve text.train { fill: var(--accent); stroke: none; } .curve text.valid { fill: var(--second); stroke: none; }
.curve circle { fill: var(--second); }
.curve.wide { display: none; }
@media (min-width: 44rem) { .curve.wide { display: block; } .curve.narrow { display: none; } }

.facts { display: grid; grid-template-columns: minmax(6.5rem, 11rem) 1fr; gap: .35rem 1rem; margin: 1.25rem 0 0; }
.facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0; font-variant-numeric: tabular-nums; }

.steps table { border-collapse: collapse; font: .82rem/1.7 var(--mono); font-variant-numeric: tabular-nums; width: max-content;
  min-width: 0; }
.steps th { font: .88rem/1.7 var(--sans); text-align: left; padding: 0 1rem 0 0; white-space: nowrap; }
.steps thead th { font-size: .78rem; color: var(--soft); padding-right: .75rem; }
.steps thead th.n { text-align: right; padding-right: 0; padding-left: .75rem; }
.steps thead th.g { text-align: center; padding: 0 0 0 .75rem; }
.steps th[scope=row], .steps thead th:first-child { position: sticky; left: 0; background: var(--paper); }
.steps td { text-align: right; padding: 0 0 0 .75rem; white-space: nowrap; }
.steps td.bar { width: 9rem; min-width: 5rem; text-align: left; }
.steps td.bar i { display: block; height: .7rem; border-radius: 2px; background: rgb(var(--heat)); width: calc(100% * var(--a)); }
.steps tr.sum > * { border-top: 1px solid var(--soft); font-weight: 600; }
.steps tr.rest > * { color: var(--soft); }
.steps .name { color: var(--soft); }
footer { padding-top: 4rem; padding-bottom: 3rem; color: var(--soft); font-size: .9rem; }
@media (max-width: 30rem) {
  .pair dl { grid-template-columns: 1fr; gap: 0; }
  .pair dd { margin-bottom: .5rem; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .6rem; }
  .scores th, .scores td { padding-right: 1.1rem; }
  .scores tbody tr:first-child > * { font-size: 1.35rem; }
  .steps td.bar { width: 5.5rem; }
}
@media (forced-colors: active) { .map td.w, .steps td.bar i, .legend i, .colours i, .answers i { forced-color-adjust: none; } }
@media print { .pair, .picture, figure { break-inside: avoid; } .readout { display: none; } }
)css";

// Shows the weight of the cell under the pointer, the finger or, with the arrow keys, the focus. Without it every cell
// still has its title.
inline constexpr char kPageScript[] = R"js(
for (const map of document.querySelectorAll('.map')) {
  const readout = map.closest('.looked').querySelector('.readout');
  const rows = [...map.tBodies[0].rows], heads = [...map.tHead.rows[0].cells].slice(1);
  const quiet = readout.textContent;
  let r = 0, c = 0, lit = [];
  const show = (row, column) => {
    for (const cell of lit) cell.classList.remove('on');
    lit = [];
    if (row < 0) { readout.textContent = quiet; return; }
    r = row; c = column;
    const cell = rows[r].cells[c + 1];
    lit = [cell, rows[r].cells[0], heads[c]];
    for (const each of lit) each.classList.add('on');
    readout.textContent = cell.title;
  };
  const at = event => {
    const cell = event.target.closest('td.w');
    if (cell) show(cell.parentNode.sectionRowIndex, cell.cellIndex - 1);
  };
  map.addEventListener('pointerover', at);
  map.addEventListener('click', at);
  map.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') show(-1, 0); });
  map.addEventListener('focus', () => { if (map.matches(':focus-visible')) show(r, c); });
  map.addEventListener('blur', () => show(-1, 0));
  map.addEventListener('keydown', event => {
    const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!move) return;
    event.preventDefault();
    show(Math.min(Math.max(r + move[0], 0), rows.length - 1), Math.min(Math.max(c + move[1], 0), heads.length - 1));
    lit[0].scrollIntoView({block: 'nearest', inline: 'nearest'});
  });
}
)js";

}  // namespace heed::app
