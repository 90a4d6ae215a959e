// The live page: asks /headway/state once a second and draws what it says.

import { byId, card, listTenants, node } from "./cards.js";
import { draw, niceCeiling } from "./draw.js";
import {
  AWAITED, CAUSES, DOING, ENDED, ago, counted, got, mostly, percent, promise, silence, span,
} from "./words.js";

const EVERY_MS = 1000, SHOWN_S = 300, BAR_S = 2;
const GOOD = "#1f7a8c", BAD = "#e4572e";
const KV = [
  { key: "held", colour: "#1f7a8c", name: "in use" },
  { key: "reserved", colour: "#86c5cf", name: "free, but running answers are expected to need it" },
  { key: "free", colour: "#e9edf2", name: "free" },
];
const STEPS = [
  { key: "longest_ms", colour: "#e0a030", name: "longest step" },
  { key: "mean_ms", colour: "#1f7a8c", name: "mean step" },
];
const QUEUE = [
  { key: "running", colour: "#1f7a8c", name: "running" },
  { key: "waiting", colour: "#e0a030", name: "waiting" },
];
const ENDS = [
  { key: "kept", colour: GOOD, name: "promise kept (up)" },
  { key: "lost", colour: BAD, name: "promise broken (down)" },
];
const points = [];
const lines = new Map();
const seen = { after: 0, chosen: "" };
// Beside this file, whatever a proxy puts in front of its path.
const ours = (name) => new URL(name, import.meta.url);

function coloured(tag, colour) {
  const made = node(tag);
  made.style.background = colour;
  return made;
}

function legend(id, entries) {
  byId(id).replaceChildren(...entries.map((e) => {
    const key = node("span");
    key.append(coloured("i", e.colour), e.name);
    return key;
  }));
}

function lead(state) {
  const promised = state.classes.reduce((s, c) => s + c.promised, 0);
  const kept = state.classes.reduce((s, c) => s + c.attained, 0);
  const late = state.now.num_late;
  const now = `${counted(state.now.running, "request runs", "requests run")}, ` +
    `${state.now.waiting} ${state.now.waiting === 1 ? "waits" : "wait"}` +
    `${late ? `; ${late} of them ${late === 1 ? "is" : "are"} late already` : ""}. ` +
    `The server's load is ${percent(state.now.load.pressure)}.`;
  const share = promised
    ? `${percent(kept / promised)} of ${counted(promised, "promise was", "promises were")} kept` +
      " in the last five minutes."
    : "No request with a promise ended in the last five minutes.";
  byId("lead").textContent = `${share} Now ${now}`;
}

function causes(state) {
  const total = {};
  for (const c of state.classes) {
    for (const [cause, s] of Object.entries(c.late_s)) total[cause] = (total[cause] ?? 0) + s;
  }
  const all = Object.values(total).reduce((s, v) => s + v, 0);
  const rows = Object.entries(total).filter(([, s]) => s > 0).sort((a, b) => b[1] - a[1]);
  if (!(all > 0)) return [node("p", "Nobody was late.", { class: "quiet" })];
  return rows.map(([cause, seconds]) => bar(cause, seconds, all));
}

function bar(cause, seconds, all) {
  const [name, colour] = CAUSES[cause] ?? [cause, "#8d99ae"];
  const fill = coloured("i", colour);
  fill.style.width = `${100 * seconds / all}%`;
  return node("div", "", { class: "bar" }, [
    node("span", name), node("div", "", {}, [fill]), node("span", span(seconds)),
  ]);
}

function lateRow(row) {
  const cells = [row.id, row.class, AWAITED[row.breaks] ?? "–"].map((text) => node("td", text));
  const late = node("td", span(row.late_s), { class: "number late" });
  return node("tr", "", {}, [...cells, late, node("td", DOING[row.stage] ?? "–")]);
}

function listLate(state) {
  const rows = state.late, all = Math.max(state.now.num_late ?? 0, rows.length);
  byId("late").hidden = !rows.length;
  byId("late").tBodies[0].replaceChildren(...rows.map(lateRow));
  byId("late-lead").textContent = !rows.length
    ? "Nobody: no request waits for anything that is overdue."
    : "Not over yet, and something they were promised is overdue at this moment" +
      `${all > rows.length ? `: the ${rows.length} most overdue of ${all}` : ""}.`;
}

function brokenRow(told) {
  const cells = [told.id, told.class, "", promise(told.promise), got(told)].map((text) => node("td", text));
  const late = node("td", told.late_s > 0 ? span(told.late_s) : "–", { class: "number" });
  const row = node("tr", "", { tabindex: "0" }, [...cells, late, node("td", mostly(told))]);
  const open = () => { location.hash = encodeURIComponent(told.id); };
  row.addEventListener("click", open);
  row.addEventListener("keydown", (event) => event.key === "Enter" && open());
  return row;
}

const box = node("div", "", { id: "story" });
const story = node("tr", "", {}, [node("td", "", { colspan: "7" }, [box])]);

// The story of the request that the address names after its "#".
async function tell() {
  const id = seen.chosen = decodeURIComponent(location.hash.slice(1));
  if (!id) return;
  const answer = await fetch(ours(`broken?id=${encodeURIComponent(id)}`));
  const [told] = answer.ok ? (await answer.json()).broken : [];
  if (!told) {
    box.replaceChildren(node("p", `There is no story of ${id}: it was kept, is not over, or is too old.`));
    return place();
  }
  const bars = Object.entries(told.by_cause_s).sort((a, b) => b[1] - a[1])
    .map(([cause, seconds]) => bar(cause, seconds, told.late_s));
  const happened = told.story.map(([at, what]) =>
    node("li", "", {}, [node("code", `+${at.toFixed(3)} s`), ENDED[what] ?? what]));
  box.replaceChildren(
    node("h3", told.id),
    node("p", `${counted(told.num_prompt_tokens, "token", "tokens")} of prompt, ` +
      `${told.num_output_tokens} of answer; preempted ${told.num_preemptions} times` +
      `${told.late_s > 0 ? `; late by ${span(told.late_s)}` : ""}.`),
    ...bars, node("ol", "", {}, happened));
  place();
}

// Put the chosen story under its line, or above all when its line is gone; and show it.
function place() {
  for (const [id, line] of lines) line.className = id === seen.chosen ? "chosen" : "";
  const line = lines.get(seen.chosen);
  if (line) line.after(story);
  else byId("broken").tBodies[0].prepend(story);
}

function modelRows(state) {
  const m = state.model, ratio = m.ratio;
  const rows = [
    ["Steps took, of what was predicted: half at most / 99 % at most",
      `${percent(ratio.p50)} / ${percent(ratio.p99)}`],
    ["Steps that took longer than their bound", percent(m.beyond_share, 1)],
    [`Answers no longer than predicted on arrival (${m.coverage_target === null
      ? "a mean is predicted: about half is right"
      : `at least ${percent(m.coverage_target)} is right`})`, percent(m.covered_share)],
    ["Promises expected to be kept when they started / that were",
      m.chances && m.chances.num ? `${percent(m.chances.told, 1)} / ${percent(m.chances.kept, 1)}` : "–"],
    ["Time to plan a step: half within / 99 % within",
      `${span(m.plan_s.p50)} / ${span(m.plan_s.p99)}`],
    ["Running answers are expected to need, beyond the whole cache",
      `${counted(state.now.kv.lent, "token", "tokens")}`],
    ["Preempted: computed again / copied out and back",
      `${state.preemptions.recompute} / ${state.preemptions.swap}`],
  ];
  return rows.map(([name, value]) =>
    node("tr", "", {}, [node("td", name), node("td", value, { class: "number" })]));
}

function take(state) {
  if (state.newest_point < seen.after) {  // The server was started anew.
    seen.after = 0;
    points.length = 0;
    return;
  }
  for (const p of state.points) {
    seen.after = Math.max(seen.after, p.number);
    if (points.length && points[points.length - 1].number === p.number) points.pop();  // It grew.
    points.push({
      ...p.kv, number: p.number, at: p.unix_s, running: p.running, waiting: p.waiting, attained: p.attained,
      broken: p.broken, capacity: p.kv.held + p.kv.reserved + p.kv.free,
      mean_ms: p.mean_step_s === null ? null : 1e3 * p.mean_step_s,
      longest_ms: p.num_steps ? 1e3 * p.longest_step_s : null,
    });
  }
  while (points.length && points[0].at < state.unix_s - SHOWN_S - 10) points.shift();
}

function inBars() {
  const bars = new Map();
  for (const p of points) {
    const at = Math.ceil(p.at / BAR_S) * BAR_S;
    const bar = bars.get(at) ?? { at, kept: 0, lost: 0 };
    bar.kept += p.attained;
    bar.lost -= p.broken;
    bars.set(at, bar);
  }
  return [...bars.values()];
}

function charts(state) {
  const range = { fromS: state.unix_s - SHOWN_S, toS: state.unix_s, points };
  const whole = (v) => Math.abs(Number(v.toFixed(1))).toLocaleString("en");
  const ends = inBars();
  const up = niceCeiling(Math.max(2, ...ends.map((b) => b.kept)));
  const down = niceCeiling(Math.max(2, ...ends.map((b) => -b.lost)));
  draw({ ...range, canvas: byId("ends"), points: ends, bars: ENDS, barS: BAR_S, top: up, low: -down,
    label: whole });
  const capacity = Math.max(1, ...points.map((p) => p.capacity));
  draw({ ...range, canvas: byId("kv"), areas: KV, top: capacity,
    label: (v) => `${percent(v / capacity)}` });
  draw({ ...range, canvas: byId("steps"), lines: STEPS, label: (v) => `${whole(v)} ms` });
  draw({ ...range, canvas: byId("queue"), lines: QUEUE, label: whole });
}

// Lines stay the same nodes while they are shown: a click must end where it began.
function listBroken(state) {
  const body = byId("broken").tBodies[0];
  const ids = new Set(state.broken.map((told) => told.id));
  for (const [id, line] of lines) {
    if (!ids.has(id)) {
      line.remove();
      lines.delete(id);
    }
  }
  const fresh = state.broken.filter((told) => !lines.has(told.id)).reverse();
  for (const told of fresh) {
    lines.set(told.id, brokenRow(told));
    body.prepend(lines.get(told.id));
  }
  for (const told of state.broken) {
    lines.get(told.id).cells[2].textContent = ago(state.unix_s - told.unix_s);
  }
  byId("none").hidden = lines.size > 0;
  if (fresh.length && box.hasChildNodes()) place();
}

function show(state) {
  take(state);
  lead(state);
  listLate(state);
  byId("classes").replaceChildren(...state.classes.map(card));
  listTenants(state);
  charts(state);
  byId("causes").replaceChildren(...causes(state));
  listBroken(state);
  byId("model").tBodies[0].replaceChildren(...modelRows(state));
  const machines = state.num_engines === 1 ? "" : `, ${state.num_engines} engines`;
  const lost = state.dropped ? ` ${counted(state.dropped, "message", "messages")} on the way here` +
    " dropped." : "";
  byId("foot").textContent = `Policy ${state.policy}, overload ${state.overload}${machines}. ` +
    `Last heard of the scheduler ${ago(state.age_s)}; it speaks while it works.${lost}`;
}

async function ask() {
  const trouble = byId("trouble");
  try {
    // The last point again: of several schedulers it may have been told by half.
    const after = Math.max(seen.after - 1, 0);
    const answer = await fetch(ours(`state?after=${after}`), { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const state = await answer.json();
    if (state.ready) show(state);
    trouble.textContent = state.ready ? silence(state) : "";
  } catch (error) {
    trouble.textContent = `These figures are old: ${error.message}. Trying again.`;
  }
  trouble.hidden = !trouble.textContent;
  setTimeout(ask, EVERY_MS);
}

legend("kv-key", KV);
legend("steps-key", STEPS);
legend("queue-key", QUEUE);
legend("ends-key", ENDS);
addEventListener("hashchange", tell);
tell();
ask();
