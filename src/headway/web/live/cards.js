// Who was promised what, who got it, and who asks for it: a card a class, a line a tenant.

import { counted, percent, percentOf, promise, span } from "./words.js";

const TENANTS_SHOWN = 10;

export const byId = (id) => document.getElementById(id);

// Every text goes through here: what a client sent is never read as HTML.
export function node(tag, text = "", attributes = {}, children = []) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Green or red by the target, where there is one.
function shadeOf(share, budget) {
  if (share === null) return "";
  const [good, bad] = budget ? [budget.target, budget.target] : [0.99, 0.9];
  return share >= good ? "good" : share < bad ? "bad" : "";
}

export function card(c) {
  const shade = shadeOf(c.attainment, c.budget);
  const made = node("div", "", { class: `card ${shade}` });
  const hasPromise = Object.keys(c.promise).length > 0;
  made.append(node("h3", c.name === "none" ? "no promise" : c.name));
  made.append(node("p", hasPromise ? promise(c.promise, c.promise_most) : "no promise: in turn", { class: "quiet" }));
  made.append(node("b", hasPromise ? percent(c.attainment) : `${c.ended}`));
  made.append(node("span", hasPromise
    ? `${c.attained} of ${counted(c.promised, "promise", "promises")} kept`
    : "requests ended", { class: "quiet" }));
  const facts = node("dl");
  const add = (name, value, mark = "") =>
    facts.append(node("dt", name), node("dd", value, mark ? { class: mark } : {}));
  if (c.budget) {
    const { target, budget_left: left, burn_rate: rate } = c.budget;
    add("target", percentOf(target));
    add("error budget left, 28 days", percent(left), left < 0 ? "late" : "");
    add("burn rate, last hour", rate["1h"].toFixed(1), rate["1h"] > 1 ? "late" : "");
  }
  add("first token, typical", span(c.ttft_s.p50));
  add("first token, worst 1 %", span(c.ttft_s.p99));
  add("gap, typical", span(c.gap_s.p50));
  add("gap, worst 1 %", span(c.gap_s.p99));
  add("longest pause, worst 1 %", span(c.pause_s.p99));
  if (c.broke.pause) add("broken by a pause", `${c.broke.pause}`);
  add("here now", `${c.live}`);
  if (c.outcomes.refused) add("refused", `${c.outcomes.refused}`);
  if (c.outcomes.failed) add("failed", `${c.outcomes.failed}`);
  if (c.outcomes.aborted) add("hung up", `${c.outcomes.aborted}`);
  made.append(facts);
  return made;
}

function tenantRow(t, hasTargets) {
  const share = t.promised ? t.attained / t.promised : null;
  const kept = t.promised ? `${percent(share)} of ${t.promised}` : `–`;
  const shade = shadeOf(share, t.budget) === "bad" ? "number late" : "number";
  const figures = [t.ended, t.refused, t.tokens].map((n) => n.toLocaleString("en"));
  const cells = [node("td", t.name === "none" ? "no tenant" : t.name), node("td", kept, { class: shade }),
    ...[...figures, percent(t.engine_share)].map((text) => node("td", text, { class: "number" }))];
  const b = t.budget;
  const aims = b ? [percentOf(b.target), percent(b.budget_left), b.burn_rate["1h"].toFixed(1)] : ["–", "–", "–"];
  if (hasTargets) cells.push(...aims.map((text) => node("td", text, { class: "number" })));
  return node("tr", "", {}, cells);
}

export function listTenants(state) {
  const rows = state.tenants, hasTargets = rows.some((t) => t.budget);
  byId("tenants").hidden = !rows.length;
  for (const cell of byId("tenants").querySelectorAll("th.aim")) cell.hidden = !hasTargets;
  byId("tenants").querySelector("tbody").replaceChildren(
    ...rows.slice(0, TENANTS_SHOWN).map((t) => tenantRow(t, hasTargets)));
  byId("tenants-more").textContent = rows.length > TENANTS_SHOWN
    ? `${rows.length - TENANTS_SHOWN} more are on /metrics.` : "";
}
