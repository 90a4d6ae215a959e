// Small charts on a canvas: time from left to right, no library, nothing from the network.

const INK = "#5b6675", GRID = "#e9edf2";
const LEFT = 64, RIGHT = 12, TOP = 8, BOTTOM = 22;

export function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((m) => m * unit).find((v) => v >= value * 0.999);
}

// chart: {canvas, fromS, toS, points: [{at, ...}], top, label: value -> text,
//         areas: [{key, colour}] stacked, lines: [{key, colour}], bars: [{key, colour, sign}]}
export function draw(chart) {
  const { canvas, fromS, toS, points } = chart;
  const width = canvas.clientWidth, height = Number(canvas.dataset.height);
  const pen = blank(canvas, width, height);
  const inner = { w: width - LEFT - RIGHT, h: height - TOP - BOTTOM };
  const top = chart.top ?? niceCeiling(largest(chart));
  const low = chart.low ?? 0;
  const x = (at) => LEFT + inner.w * (at - fromS) / (toS - fromS);
  const y = (value) => TOP + inner.h * (1 - (Math.min(value, top) - low) / (top - low));
  frame(pen, chart, { width, height, inner, top, low, x, y });
  pen.save();
  pen.beginPath();
  pen.rect(LEFT, 0, inner.w, height - BOTTOM);
  pen.clip();
  if (chart.areas) stack(pen, chart.areas, points, x, y);
  for (const bar of chart.bars ?? []) columns(pen, bar, points, chart.barS, x, y);
  for (const line of chart.lines ?? []) trace(pen, line, points, x, y);
  pen.restore();
}

// An empty drawing as sharp as the screen.
function blank(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  return pen;
}

function largest(chart) {
  let most = 0;
  for (const point of chart.points) {
    const sum = (chart.areas ?? []).reduce((s, a) => s + (point[a.key] ?? 0), 0);
    most = Math.max(most, sum, ...(chart.lines ?? []).map((l) => point[l.key] ?? 0));
    for (const bar of chart.bars ?? []) most = Math.max(most, Math.abs(point[bar.key] ?? 0));
  }
  return most;
}

function frame(pen, chart, { width, height, inner, top, low, x, y }) {
  pen.font = "12px system-ui, sans-serif";
  pen.fillStyle = INK;
  pen.strokeStyle = GRID;
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  const values = low < 0 ? [low, 0, top] : [0, top / 2, top];
  for (const value of values) {
    pen.beginPath();
    pen.moveTo(LEFT, y(value));
    pen.lineTo(width - RIGHT, y(value));
    pen.stroke();
    pen.fillText(chart.label(value), LEFT - 7, y(value));
  }
  pen.textBaseline = "alphabetic";
  const minutes = Math.round((chart.toS - chart.fromS) / 60);
  for (let ago = minutes; ago >= 0; ago -= 1) {
    pen.textAlign = ago === minutes ? "left" : ago === 0 ? "right" : "center";
    const text = ago === 0 ? "now" : `${ago} min ago`;
    pen.fillText(text, x(chart.toS - 60 * ago), height - 6);
  }
}

// A run of points without a hole in time; figures stop when the server has nothing to do.
function runs(points) {
  const found = [];
  for (const point of points) {
    const run = found[found.length - 1];
    if (run && point.at - run[run.length - 1].at < 5) run.push(point);
    else found.push([point]);
  }
  return found;
}

function stack(pen, areas, points, x, y) {
  for (const run of runs(points)) {
    const floor = run.map(() => 0);
    for (const { key, colour } of areas) {
      pen.beginPath();
      run.forEach((p, i) => pen.lineTo(x(p.at), y(floor[i])));
      for (let i = run.length - 1; i >= 0; i -= 1) {
        floor[i] += run[i][key] ?? 0;
        pen.lineTo(x(run[i].at), y(floor[i]));
      }
      pen.fillStyle = colour;
      pen.fill();
    }
  }
}

function trace(pen, { key, colour }, points, x, y) {
  pen.strokeStyle = colour;
  pen.lineWidth = 2;
  pen.lineJoin = "round";
  for (const run of runs(points.filter((p) => p[key] !== null && p[key] !== undefined))) {
    pen.beginPath();
    if (run.length === 1) pen.arc(x(run[0].at), y(run[0][key]), 1, 0, 7);
    else run.forEach((p) => pen.lineTo(x(p.at), y(p[key])));
    pen.stroke();
  }
  pen.lineWidth = 1;
}

function columns(pen, { key, colour }, points, barS, x, y) {
  pen.fillStyle = colour;
  for (const point of points) {
    const value = point[key];
    if (!value) continue;
    const left = x(point.at - barS), wide = Math.max(x(point.at) - left - 1, 1);
    pen.fillRect(left, Math.min(y(value), y(0)), wide, Math.abs(y(value) - y(0)));
  }
}
