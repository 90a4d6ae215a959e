// The words of the page: spans, shares, promises, causes.

export const CAUSES = {
  elsewhere: ["before it reached the server", "#5d6470"],
  queueing: ["waiting for a turn", "#8d99ae"],
  kv_wait: ["waiting for KV cache", "#4c6fb1"],
  prefill: ["prompt computed in pieces", "#e0a030"],
  preemption: ["thrown out and redone", "#7b5ea7"],
  swap: ["moved out to the host and back", "#b79ad6"],
  long_step: ["its own long steps", "#1f7a8c"],
  skipped: ["steps without a token for it", "#86c5cf"],
  model_error: ["steps longer than foreseen", "#e4572e"],
  other: ["between two steps", "#b9c0cb"],
};

// What a late request waits for, by the promise that is overdue, and what it is doing meanwhile.
export const AWAITED = { ttft: "first token", tbt: "next token", pause: "next token", jct: "end of the answer" };
export const DOING = {
  queued: "waits for its turn",
  prefill: "its prompt is computed",
  decode: "its answer is written",
  preempted: "lost its place, waits to go on",
};

// The last line of a story is the engine's word for the end.
export const ENDED = {
  stopped: "answered", length: "answered, as long as max_tokens allows", aborted: "hung up",
};

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0009995) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 0.9995) return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  return `${Number(seconds.toFixed(seconds < 10 ? 2 : seconds < 100 ? 1 : 0))} s`;
}

export function ago(seconds) {
  const whole = Math.max(Math.round(seconds), 0);
  return whole < 120 ? `${whole} s ago` : `${Math.floor(whole / 60)} min ago`;
}

export function percent(share, digits = 0) {
  if (share === null || share === undefined) return "–";
  // 99.96 % is not all of them: never round up to 100.
  const text = (100 * share).toFixed(digits);
  return share < 1 && Number(text) === 100 ? "> 99 %" : `${text} %`;
}

// A target, as it was written: 99.95 % is not 100 %.
export function percentOf(target) {
  return `${Number((100 * target).toPrecision(6))} %`;
}

export function counted(number, one, many) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

// The least and the most that anybody of a class was promised.
export function range(least, most) {
  return least === most ? span(least) : `${span(least)} to ${span(most)}`;
}

export function promise(p, most = p) {
  const parts = [];
  if (p.ttft_s) parts.push(`first token within ${range(p.ttft_s, most.ttft_s)}`);
  if (p.tbt_s) {
    parts.push(`${parts.length ? "then " : ""}at most ${range(p.tbt_s, most.tbt_s)} between tokens`);
  }
  if (p.pause_s) parts.push(`no pause over ${range(p.pause_s, most.pause_s)}`);
  if (p.tpot_s) parts.push(`a mean per token of at most ${range(p.tpot_s, most.tpot_s)}`);
  if (p.jct_s) parts.push(`done within ${range(p.jct_s, most.jct_s)}`);
  return parts.join(", ") || "nothing promised";
}

export function got(told) {
  if (told.outcome !== "finished") {
    const words = { refused: "refused (429)", rejected: "can never be served", aborted: "hung up" };
    const end = words[told.outcome] ?? "failed";
    return told.ttft_s === null ? end : `first token after ${span(told.ttft_s)}, then ${end}`;
  }
  const parts = [`first token after ${span(told.ttft_s)}`];
  if (told.promise.tbt_s && told.num_gaps) parts.push(`${told.num_late_gaps} of ${told.num_gaps} gaps too long`);
  if (told.broke.includes("pause")) parts.push(`a pause of ${span(told.pause_s)}`);
  if (told.promise.tpot_s) parts.push(`${span(told.tpot_s)} per token`);
  if (told.promise.jct_s) parts.push(`done after ${span(told.jct_s)}`);
  return parts.join(", ");
}

export function mostly(told) {
  const [cause] = Object.entries(told.by_cause_s).sort((a, b) => b[1] - a[1])[0] ?? [];
  if (cause) return (CAUSES[cause] ?? [cause])[0];
  return told.outcome === "refused" ? "it did not fit beside the others" : "–";
}

// What is wrong when nothing was heard although something should run.
export function silence(state) {
  if (state.age_s < 10 || !state.now.running) return "";
  const others = counted(state.now.running, "request was", "requests were");
  return `The scheduler has said nothing for ${span(state.age_s)}, although ${others} running: ` +
    "one very long step, or it hangs.";
}
