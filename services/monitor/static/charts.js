// Line charts of a run's curve, with uPlot. Colours come from the page's style, so light and dark are one thing.
"use strict";

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function scaled(value, units, step) {
  if (value === null || !isFinite(value)) return "–";
  let unit = 0;
  while (Math.abs(value) >= step && unit < units.length - 1) { value /= step; unit += 1; }
  const digits = Math.abs(value) >= 100 || (unit === 0 && Number.isInteger(value)) ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${units[unit]}`.trim();
}
const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000);
const number = (value) => value === null ? "–" : Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
function seconds(value) {
  if (value === null || !isFinite(value)) return "–";
  if (value >= 5400) return `${(value / 3600).toFixed(1)} h`;
  if (value >= 90) return `${Math.round(value / 60)} min`;
  if (value >= 1) return `${value.toFixed(value >= 10 ? 0 : 2)} s`;
  if (value >= 1e-3) return `${(value * 1e3).toPrecision(3)} ms`;
  return value === 0 ? "0" : `${(value * 1e6).toPrecision(3)} µs`;
}

// A chart in a box: `lines` are {name, colour, dashed, thin}; `show` gives a value of the y axis its words.
function chart(box, label, lines, show, from0) {
  const options = {
    width: Math.max(200, box.clientWidth), height: box.clientHeight || 240,
    cursor: { y: false, points: { size: 7 } }, legend: { show: false },
    scales: {
      x: { time: false },
      y: { range: (_, low, high) => {
        if (low === null) return [0, 1];
        const pad = (high - low || Math.abs(high) || 1) * 0.08;
        return [from0 ? 0 : low - pad, high + pad];
      } },
    },
    axes: [
      { label: "iteration", labelSize: 18, size: 34, labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif", stroke: css("--soft"), grid: { stroke: css("--grid") }, ticks: { stroke: css("--line") }, values: (_, at) => at.map((v) => Number.isInteger(v) ? String(v) : "") },
      { label, labelSize: 18, size: 68, labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif", stroke: css("--soft"), grid: { stroke: css("--grid") }, ticks: { stroke: css("--line") }, values: (_, at) => at.map(show) },
    ],
    series: [{}, ...lines.map((line) => ({
      label: line.name, stroke: css(`--${line.colour}`), width: line.thin ? 0.8 : line.dashed ? 1.5 : 2, dash: line.dashed ? [6, 5] : undefined,
      spanGaps: true, points: { show: (u) => !line.dashed && u.data[0].length < 3 },
    }))],
  };
  const plot = new uPlot(options, [[], ...lines.map(() => [])], box);
  const watch = new ResizeObserver(() => { if (box.clientWidth) plot.setSize({ width: box.clientWidth, height: box.clientHeight }); });
  watch.observe(box);
  return { set: (data) => plot.setData(data), end: () => { watch.disconnect(); plot.destroy(); } };
}
