// The live page: asks /headway/state once a second and draws what it says.

import { draw, niceCeiling } from "/headway/draw.js";

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
const CAUSES = {
  queueing: ["waiting for a turn", "#8d99ae"],
  kv_wait: ["waiting for KV cache", "#4c6fb1"],
  prefill: ["prompt computed in pieces", "#e0a030"],
  preemption: ["thrown out and redone", "#7b5ea7"],
  long_step: ["its own long steps", "#1f7a8c"],
  skipped: ["steps without a token for it", "#86c5cf"],
  model_error: ["steps longer than foreseen", "#e4572e"],
  other: ["between two steps", "#b9c0cb"],
};

const points = [];
const seen = { after: 0, chosen: null };
const byId = (id) => document.getElementById(id);

function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${Number(seconds.toFixed(seconds < 10 ? 2 : seconds < 100 ? 1 : 0))} s`;
}

function percent(share, digits = 0) {
  if (share === null || share === undefined) return "–";
  // 99.96 % is not all of them: never round up to 100.
  const text = (100 * share).toFixed(digits);
  return share < 1 && Number(text) === 100 ? "> 99 %" : `${text} %`;
}

function counted(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

function promise(p) {
  const parts = [];
  if (p.ttft_s) parts.push(`first token within ${span(p.ttft_s)}`);
  if (p.tbt_s) parts.push(`${parts.length ? "then " : ""}at most ${span(p.tbt_s)} between tokens`);
  if (p.jct_s) parts.push(`done within ${span(p.jct_s)}`);
  return parts.join(", ") || "nothing promised";
}

// Every text goes through here: what a client sent is never read as HTML.
function node(tag, text = "", attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

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
  const now = `${counted(state.now.running, "request runs", "requests run")}, ` +
    `${state.now.waiting} ${state.now.waiting === 1 ? "waits" : "wait"}.`;
  const share = promised
    ? `${percent(kept / promised)} of ${counted(promised, "promise was", "promises were")} kept` +
      " in the last five minutes."
    : "No request with a promise ended in the last five minutes.";
  byId("lead").textContent = `${share} Now ${now}`;
}

function card(c) {
  const shade = c.attainment === null ? "" : c.attainment >= 0.99 ? "good" : c.attainment < 0.9 ? "bad" : "";
  const made = node("div", "", { class: `card ${shade}` });
  const hasPromise = Object.keys(c.promise).length > 0;
  made.append(node("h3", c.name === "none" ? "no promise" : c.name));
  made.append(node("p", hasPromise ? promise(c.promise) : "best effort", { class: "quiet" }));
  made.append(node("b", hasPromise ? percent(c.attainment) : `${c.ended}`));
  made.append(node("span", hasPromise
    ? `${c.attained} of ${counted(c.promised, "promise", "promises")} kept`
    : "requests ended", { class: "quiet" }));
  const facts = node("dl");
  const add = (name, value) => facts.append(node("dt", name), node("dd", value));
  add("first token, typical", span(c.ttft_s.p50));
  add("first token, worst 1 %", span(c.ttft_s.p99));
  add("pause, typical", span(c.gap_s.p50));
  add("pause, worst 1 %", span(c.gap_s.p99));
  add("here now", `${c.live}`);
  if (c.outcomes.refused) add("refused", `${c.outcomes.refused}`);
  if (c.outcomes.failed) add("failed", `${c.outcomes.failed}`);
  if (c.outcomes.aborted) add("hung up", `${c.outcomes.aborted}`);
  made.append(facts);
  return made;
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

function got(told) {
  if (told.outcome !== "finished") {
    const words = { refused: "refused (429)", rejected: "can never be served", aborted: "hung up" };
    const end = words[told.outcome] ?? "failed";
    return told.ttft_s === null ? end : `first token after ${span(told.ttft_s)}, then ${end}`;
  }
  const parts = [`first token after ${span(told.ttft_s)}`];
  if (told.promise.tbt_s) parts.push(`${told.num_late_gaps} of ${told.num_gaps} pauses too long`);
  if (told.promise.jct_s) parts.push(`done after ${span(told.jct_s)}`);
  return parts.join(", ");
}

function mostly(told) {
  const [cause] = Object.entries(told.by_cause_s).sort((a, b) => b[1] - a[1])[0] ?? [];
  if (cause) return (CAUSES[cause] ?? [cause])[0];
  return told.outcome === "refused" ? "it did not fit beside the others" : "–";
}

function brokenRow(told, nowS) {
  const cells = [
    told.id, told.class, `${span(Math.max(nowS - told.unix_s, 0))} ago`, promise(told.promise), got(told),
  ].map((text) => node("td", text));
  const late = node("td", told.late_s > 0 ? span(told.late_s) : "–", { class: "number" });
  const row = node("tr", "", { tabindex: "0" }, [...cells, late, node("td", mostly(told))]);
  if (told.id === seen.chosen) row.className = "chosen";
  const open = () => tell(told.id);
  row.addEventListener("click", open);
  row.addEventListener("keydown", (event) => event.key === "Enter" && open());
  return row;
}

async function tell(id) {
  seen.chosen = id;
  const answer = await fetch(`/headway/broken?id=${encodeURIComponent(id)}`);
  const [told] = answer.ok ? (await answer.json()).broken : [];
  const box = byId("story");
  box.hidden = false;
  if (!told) {
    box.replaceChildren(node("p", "Its story is not remembered any more."));
    return;
  }
  const bars = Object.entries(told.by_cause_s).sort((a, b) => b[1] - a[1])
    .map(([cause, seconds]) => bar(cause, seconds, told.late_s));
  const lines = told.story.map(([at, what]) =>
    node("li", "", {}, [node("code", `+${at.toFixed(3)} s`), what]));
  box.replaceChildren(
    node("h3", told.id),
    node("p", `${counted(told.num_prompt_tokens, "token", "tokens")} of prompt, ` +
      `${told.num_output_tokens} of answer; preempted ${told.num_preemptions} times; ` +
      `late by ${span(told.late_s)}.`),
    ...bars, node("ol", "", {}, lines));
}

function modelRows(state) {
  const m = state.model, ratio = m.ratio;
  const rows = [
    ["Steps took, of what was predicted: half at most / 99 % at most",
      `${percent(ratio.p50)} / ${percent(ratio.p99)}`],
    ["Steps that took longer than their bound", percent(m.beyond_share, 1)],
    ["Answers no longer than predicted on arrival", percent(m.covered_share)],
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
    points.push({
      ...p.kv, at: p.unix_s, running: p.running, waiting: p.waiting, attained: p.attained,
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

function listBroken(state) {
  const body = byId("broken").tBodies[0];
  if (body.contains(document.activeElement)) return;  // Whoever reads with the keyboard stays put.
  const rows = state.broken.map((told) => brokenRow(told, state.unix_s));
  body.replaceChildren(...rows.length ? rows : [
    node("tr", "", {}, [node("td", "No promise was broken so far.", { colspan: "7" })]),
  ]);
}

function show(state) {
  take(state);
  lead(state);
  byId("classes").replaceChildren(...state.classes.map(card));
  charts(state);
  byId("causes").replaceChildren(...causes(state));
  listBroken(state);
  byId("model").tBodies[0].replaceChildren(...modelRows(state));
  const machines = state.num_engines === 1 ? "" : `, ${state.num_engines} engines`;
  const lost = state.dropped ? ` ${counted(state.dropped, "message", "messages")} on the way here` +
    " dropped." : "";
  byId("foot").textContent = `Policy ${state.policy}, overload ${state.overload}${machines}. ` +
    `Last heard of the scheduler ${span(state.age_s)} ago; it speaks while it works.${lost}`;
}

async function ask() {
  const trouble = byId("trouble");
  try {
    const answer = await fetch(`/headway/state?after=${seen.after}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
    const state = await answer.json();
    if (state.ready) show(state);
    trouble.hidden = true;
  } catch (error) {
    trouble.textContent = `These figures are old: ${error.message}. Trying again.`;
    trouble.hidden = false;
  }
  setTimeout(ask, EVERY_MS);
}

legend("kv-key", KV);
legend("steps-key", STEPS);
legend("queue-key", QUEUE);
legend("ends-key", ENDS);
ask();
