// The page: what the server tells of devices, drawn. Everything that came from a device goes in as text, never as markup.
"use strict";

const POINT = { iteration: 0, loss: 1, accuracy: 2, up: 3, upDirect: 4, down: 5, downDirect: 6, repairs: 7, wall: 8, errors: 9, agreed: 10, host: 11, device: 12 };
const MOST_POINTS = 2400;
const COLOURS = ["blue", "orange", "green", "violet", "red", "grey"];
const PHASES = { plain: "Evaluating in the paper's arithmetic", before: "Evaluating the device before retraining", select: "Choosing what is deployed", train: "Retraining", after: "Evaluating the device after retraining", done: "Done" };
const STAGE_NAMES = { forward: "forward pass", tmr: "redundant runs and vote", increment: "increment", compress: "compress", uplink: "link, up", decompress: "rebuild", backward: "backward pass", quantise: "quantise", downlink: "link, down" };
const SERVICE_NAMES = { agent: "runs the accelerator", voter: "votes over executions", "codec-device": "compresses, on the device", "codec-server": "rebuilds, on the server", trainer: "backward pass" };

let state = { devices: new Map(), stages: [], commands: false, live: false };
const curves = new Map();     // "device session" -> points, for those that were asked for
const chosen = new Map();     // device -> session that somebody picked
let view = null;              // what is on the page now
let token = "";
let due = false;

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map((c) => c instanceof Node ? c : String(c)));
  return element;
}
const put = (element, ...children) => element.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
const rate = (share) => share >= 1e-3 || share === 0 ? `${+(100 * share).toPrecision(3)} %` : `${number(1e6 * share)} ppm`;
const mean = (values) => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
const deviation = (values) => Math.sqrt(mean(values.map((v) => (v - mean(values)) ** 2)));
const percent = (value, digits = 1) => value === null || !isFinite(value) ? "–" : `${value.toFixed(digits)} %`;
const METRICS = { top1: ["top-1", "%", 1], top5: ["top-5", "%", 1], psnr: ["PSNR", "dB", 2], ssim: ["SSIM", "", 4], miou: ["mIoU", "%", 1] };
const titleOf = (run) => METRICS[run.metric][0];
const scored = (run, value) => value === null || !isFinite(value) ? "–" : `${value.toFixed(METRICS[run.metric][2])} ${METRICS[run.metric][1]}`.trim();
// The mean of each value and those before it, as many as `most` in all; null where one is missing.
function trailing(values, most) {
  return values.map((_, i) => { const part = values.slice(Math.max(0, i + 1 - most), i + 1); return part.includes(null) ? null : mean(part); });
}
const key = (device, session) => `${device} ${session}`;

// ---- what is known ----

function newest(device) {
  const runs = Object.values(device.runs);
  const picked = device.runs[chosen.get(device.name)];
  return picked || runs.reduce((best, run) => !best || run.seen > best.seen ? run : best, null);
}
function score(run, phase, faults) {
  const found = run.scores.find((one) => one.phase === phase && one.faults === faults);
  return found ? found.values.filter((value) => value !== null) : [];
}
function berOf(setting) { return setting ? Math.max(...Object.values(setting.rates)) : null; }
function small(value) {
  if (!value) return "0";
  const power = Math.floor(Math.log10(value));
  return power > -3 ? String(value) : `${+(value / 10 ** power).toPrecision(3)}·10${String(power).replace("-", "⁻").replace(/\d/g, (d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[d])}`;
}
function sentence(device, run) {
  if (!run) {
    const there = Object.values(device.services).filter((one) => one.online).length;
    if (device.services.trainer && device.services.trainer.online) return `A run begins: ${there} services are here.`;
    return there ? `${there} services are here and wait for a run.` : "Nobody is here: no service of this device is running.";
  }
  const what = run.network ? ` ${run.network}` : "";
  if (run.stopped) return `${run.stopped[0].toUpperCase()}${run.stopped.slice(1)}${run.iterations ? ` of ${run.iterations}` : ""}. It can be resumed.`;
  const asked = run.stopping ? ` ${run.stopping} has asked for its end: it stops after what is under way.` : "";
  if (run.phase !== "done" && device.services.trainer && !device.services.trainer.online && !run.from_folder) return `Nobody trains now: the trainer is gone after iteration ${run.done}${run.iterations ? ` of ${run.iterations}` : ""}. The run goes on where it is started again, or resumed.`;
  if (run.phase === "train") {
    const left = run.iterations - run.done;
    const recent = points(device, run).slice(-20);
    const each = mean(recent.map((p) => p[POINT.wall]));
    const time = left > 0 && each !== null && !run.from_folder ? `, about ${seconds(left * each)} of training left` : "";
    return `Retraining${what}: iteration ${run.done} of ${run.iterations}${time}.${asked}`;
  }
  if (run.phase === "done") {
    const before = mean(score(run, "before", true)), after = mean(score(run, "after", true));
    const gain = before !== null && after !== null ? ` With faults the device went from ${scored(run, before)} to ${scored(run, after)} of ${titleOf(run)}.` : "";
    return `Done: ${run.done} iterations${what ? ` of${what}` : ""}.${gain}`;
  }
  return `${PHASES[run.phase] || "Starting"}${what}${run.steps ? `: ${run.step} of ${run.steps}` : ""}.${asked}`;
}
// What a run is about, for who sees it for the first time.
function story(run) {
  const clean = mean(score(run, "before", false)), before = mean(score(run, "before", true)), after = mean(score(run, "after", true));
  const flips = berOf(run.setting), errors = flips ? `flips bits (${small(flips)} of them)` : run.setting && run.setting.known_faults ? "has faulty processing elements" : "computes as it does";
  const aim = clean === null || before === null ? "" : after !== null ? ` Without faults it had ${scored(run, clean)} of ${titleOf(run)}.` : ` With faults it had ${scored(run, before)} of ${titleOf(run)} before retraining, without them ${scored(run, clean)}: that difference is to be won back.`;
  return `The device ${errors} while it runs each batch; the server learns from exactly what came out, and sends the int8 model back.${aim}`;
}
function share(run) {
  if (run.phase === "done") return 1;
  if (run.phase === "train") return run.iterations ? run.done / run.iterations : 0;
  return run.steps ? run.step / run.steps : 0;
}
function points(device, run) { return curves.get(key(device.name, run.session)) || []; }

async function fetchCurve(device, session) {
  const name = key(device, session);
  if (curves.has(name)) return;
  curves.set(name, []);
  const answer = await fetch(`/api/history?device=${encodeURIComponent(device)}&session=${encodeURIComponent(session)}`);
  const told = await answer.json();
  const early = curves.get(name) || [];
  curves.set(name, told.points);
  early.forEach((point) => addPoint(name, point));
  draw();
}
function addPoint(name, point) {
  const curve = curves.get(name);
  if (!curve) return;
  let at = curve.length;
  while (at > 0 && curve[at - 1][0] > point[0]) at -= 1;
  if (at > 0 && curve[at - 1][0] === point[0]) curve[at - 1] = point;
  else if (at === curve.length) curve.push(point);
  if (curve.length > MOST_POINTS) curves.delete(name);  // asked for again, with fewer points
}

// ---- pieces of a page ----

function tile(name, value, note) { return h("div", { class: "tile" }, h("span", {}, name), h("b", {}, value), h("span", {}, note || "\u00a0")); }
function card(title, note, ...content) { return h("section", { class: "card" }, h("h2", {}, title), note ? h("p", { class: "note" }, note) : null, ...content); }
function legend(lines) { return h("ul", { class: "legend" }, ...lines.map((line) => h("li", {}, h("i", { class: `${line.colour}${line.dashed ? " dashed" : ""}` }), line.name))); }
function table(heads, rows) {
  return h("div", { class: "scroll", tabindex: rows.length > 12 ? 0 : null }, h("table", {}, h("thead", {}, h("tr", {}, ...heads.map((one) => h("th", { scope: "col" }, one)))), h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((cell) => cell instanceof Node && cell.tagName === "TD" ? cell : h("td", {}, cell)))))));
}
function plotted(title, note, label, lines, show, from0) {
  const box = h("div", { class: "chart", role: "img", "aria-label": `${title}: ${label} by iteration` });
  const words = h("div", {});
  const element = card(title, note, legend(lines), box, words);
  let plot = null;
  return { element, start: () => { plot = chart(box, label, lines, show, from0); }, set: (data) => plot.set(data), end: () => plot.end(), words };
}

function tiles(device, run) {
  const clean = mean(score(run, "before", false)), before = score(run, "before", true), after = score(run, "after", true);
  const total = run.totals, layers = Object.values(run.layers);
  const voted = layers.reduce((sum, one) => sum + one.elements, 0);
  const errors = layers.reduce((sum, one) => sum + one.errors, 0), agreed = layers.reduce((sum, one) => sum + one.agreed, 0), compared = layers.reduce((sum, one) => sum + one.compared, 0);
  const now = after.length ? after : before;
  const what = after.length ? `was ${scored(run, mean(before))} before` : before.length ? "before retraining" : "not measured yet";
  return [
    tile(`${titleOf(run)[0].toUpperCase()}${titleOf(run).slice(1)} with faults`, scored(run, mean(now)), `${what}${clean !== null ? `, ${scored(run, clean)} without faults` : ""}`),
    tile("Loss", run.loss === null ? "–" : run.loss.toPrecision(3), run.done ? `iteration ${run.done} of ${run.iterations}` : "no iteration yet"),
    tile("Bytes up the link", total.up_direct ? percent(100 * total.up / total.up_direct) : "–", total.up_direct ? `${bytes(total.up)} instead of ${bytes(total.up_direct)}` : "of what it would be without R2F"),
    tile("Bytes down the link", total.down_direct ? percent(100 * total.down / total.down_direct) : "–", total.down_direct ? `${bytes(total.down)} instead of ${bytes(total.down_direct)}` : "of whole models"),
    !voted && run.from_folder ? null : tile("Errors of the device", voted ? rate(errors / voted) : "–", voted ? `of ${scaled(voted, ["", "k", "million", "G"], 1000)} outputs voted on` : "no vote yet"),
    !voted && run.from_folder ? null : tile("Executions agree on", compared ? percent(100 * agreed / compared, 2) : "–", compared ? (compared < voted ? "of the outputs, in layers that ran more than once (TMR)" : "of the outputs (TMR)") : voted ? "each layer ran once, the CPU knew the rest" : "of the outputs (TMR)"),
    tile("One iteration takes", total.iterations ? seconds(total.wall_s / total.iterations) : "–", total.repaired ? `${number(total.repaired)} outputs repaired` : "nothing had to be repaired"),
  ];
}
function stages(run) {
  const n = run.totals.iterations;
  if (!n) return h("p", { class: "note" }, "No iteration has ended yet.");
  const rows = state.stages.map((stage) => [stage, (run.totals.host_s[stage] || 0) / n, (run.totals.device_s[stage] || 0) / n]).filter((row) => row[1] || row[2]);
  const most = Math.max(...rows.map((row) => Math.max(row[1], row[2])), 1e-12);
  const strip = (value, kind) => { const bar = h("i", { class: kind }); bar.style.width = `${100 * value / most}%`; return h("div", { class: "strip" }, bar); };
  return table(["stage", "measured", "modelled", ""], rows.map(([stage, host, device]) => [STAGE_NAMES[stage] || stage, host ? seconds(host) : "", device ? seconds(device) : "", h("td", { class: "wide" }, strip(host, "host"), device ? strip(device, "device") : null)]));
}
function layerTable(run) {
  const rows = Object.entries(run.layers);
  if (!rows.length) return h("p", { class: "note" }, run.from_folder ? "Errors a layer are told while a run goes on; this one was read from its folder." : "No layer was voted on yet.");
  const most = Math.max(...rows.map(([, one]) => one.elements ? one.errors / one.elements : 0), 1e-12);
  return table(["layer", "errors", "rate", "agreed", "repaired", ""], rows.map(([index, one]) => {
    const wrong = one.elements ? one.errors / one.elements : 0;
    const bar = h("i", {}); bar.style.width = `${100 * wrong / most}%`;
    return [index, number(one.errors), one.elements ? rate(wrong) : "–", one.compared ? percent(100 * one.agreed / one.compared, 2) : "–", number(one.repaired), h("td", { class: "wide" }, h("div", { class: "strip" }, bar))];
  }));
}
function scoreTable(run) {
  const names = { plain: "in the paper's arithmetic", before: "before retraining", after: "after retraining" };
  const rows = ["plain", "before", "after"].filter((phase) => run.scores.some((one) => one.phase === phase)).map((phase) => {
    const clean = score(run, phase, false), faulty = score(run, phase, true);
    return [names[phase], clean.length ? scored(run, mean(clean)) : "–", faulty.length ? `${scored(run, mean(faulty))}${faulty.length > 1 ? ` ± ${deviation(faulty).toFixed(METRICS[run.metric][2])}` : ""}` : "–", faulty.length ? `${faulty.length}` : ""];
  });
  return rows.length ? table([`${titleOf(run)} on held-out images`, "without faults", "with faults", "fault seeds"], rows) : h("p", { class: "note" }, "Nothing was evaluated yet.");
}
function serviceTable(device, run) {
  const away = run && (run.phase === "done" || run.stopped) ? "dot rest" : "dot";  // behind a run nobody has to be there
  const rows = Object.entries(device.services).sort().map(([name, one]) => [h("td", {}, h("span", { class: one.online ? "dot on" : away }), name), one.online ? "online" : "gone", one.memory_bytes ? bytes(one.memory_bytes) : "–", h("td", { class: "text" }, SERVICE_NAMES[name] || "")]);
  const version = device.services.agent && device.services.agent.version;
  return h("div", {}, rows.length ? table(["service", "", "memory", "what it does"], rows) : h("p", { class: "note" }, "Nobody was heard; this was read from a folder."), version ? h("p", { class: "note" }, version >= 2 ** 30 ? "The device runs the model in the paper's arithmetic." : `The device runs version ${version} of the model.`) : null);
}
function settingList(run, device) {
  const one = (run && run.setting) || device.setting;
  if (!one) return h("p", { class: "note" }, "The device was not told yet how to run.");
  const list = [];
  const say = (name, value) => list.push(h("dt", {}, name), h("dd", {}, value));
  const rates = Object.entries(one.rates).filter(([, rate]) => rate);
  say("Bit error rate", rates.length ? rates.map(([site, rate]) => `${site} ${small(rate)}`).join(", ") : "none");
  say("Permanent faults", one.known_faults ? "a map that both sides know" : "none that both sides know");
  say("Protected layers", one.protected.length ? one.protected.join(", ") : "none");
  if (one.ports) say("Voted where read", `${one.ports} tensors`);
  if (one.tmr) say("TMR in inference", `${one.tmr}-wise`);
  say("Executions a layer", one.executions ? String(one.executions) : "as many as it needs (referee)");
  say("Vote", one.vote);
  say("On the link", { chained: "increments against the vote, predicted from the layer before (chained)", golden: "increments against a TMR run (golden)", direct: "the outputs as they are (direct)" }[one.codec] || one.codec);
  say("Rebuilt", one.exact ? "bit for bit, repaired where wrong" : "without repairs");
  say("Fault seed", String(one.seed));
  const now = device.setting;
  if (now) say("Right now", `${now.mode}, ${berOf(now) ? `bit error rate ${small(berOf(now))}` : "no faults"}`);
  return h("dl", {}, ...list);
}
function operator(device) {
  const answer = h("p", { class: "answer", role: "status" });
  const field = (name, attributes) => h("input", { name, autocomplete: "off", ...attributes });
  const secret = field("token", { type: "password", required: true, value: token, oninput: (event) => { token = event.target.value; } });
  const ber = field("ber", { inputmode: "decimal", placeholder: "as it is", size: 9 });
  const layers = field("protected", { placeholder: "as they are", size: 14 });
  const mode = h("select", { name: "mode" }, h("option", { value: "" }, "as it is"), h("option", {}, "inference"), h("option", {}, "training"));
  const button = h("button", { type: "submit" }, "Tell the device");
  const halt = h("button", { type: "button" }, "Stop the run");
  const command = async (what, asked, done) => {
    button.disabled = halt.disabled = true;
    try {
      const told = await fetch(`/api/devices/${encodeURIComponent(device.name)}/${what}`, { method: "POST", headers: { "content-type": "application/json", authorization: `Bearer ${token}` }, body: JSON.stringify(asked) });
      const said = await told.json();
      answer.textContent = told.ok ? done : said.error;
      answer.className = told.ok ? "answer good" : "answer bad";
    } catch (error) { answer.textContent = String(error); answer.className = "answer bad"; }
    button.disabled = halt.disabled = false;
  };
  const send = (event) => {
    event.preventDefault();
    const asked = {};
    if (mode.value) asked.mode = mode.value;
    if (ber.value.trim()) asked.ber = Number(ber.value);
    if (layers.value.trim()) asked.protected = layers.value.trim() === "none" ? [] : layers.value.split(",").map(Number);
    command("mode", asked, "Done: the device has acknowledged.");
  };
  halt.addEventListener("click", () => {
    const run = newest(state.devices.get(device.name));
    if (!run) { answer.textContent = "This device has no run."; answer.className = "answer bad"; return; }
    command("stop", { session: run.session }, "Heard: the run ends after what is under way, and keeps its checkpoint.");
  });
  return card("Operator", "A run can be stopped, and resumed later. The rest is for a device that no run has; layers: indices with commas, or none.", h("form", { onsubmit: send }, h("label", {}, "Token", secret), halt, h("label", {}, "Mode", mode), h("label", {}, "Bit error rate, 0 to 1", ber), h("label", {}, "Protected layers", layers), button, answer));
}

// ---- views ----

function deviceView(name) {
  const charts = {
    loss: plotted("Loss", "Falls while the network learns to live with the device's errors.", "loss", [{ name: "each batch", colour: "grey", thin: true }, { name: "mean of 20", colour: "blue" }], number, false),
    accuracy: plotted("Accuracy", "Of each training batch, on the faulty device itself. Dashed: evaluations on held-out images.", "top-1, %", [{ name: "each batch", colour: "grey", thin: true }, { name: "mean of 20", colour: "blue" }, { name: "before, with faults", colour: "orange", dashed: true }, { name: "before, without faults", colour: "violet", dashed: true }, { name: "after, with faults", colour: "green", dashed: true }], number, false),
    bytes: plotted("Up the link", "From the device to the server, an iteration: what is sent, against outputs and images as they are.", "bytes", [{ name: "sent", colour: "blue" }, { name: "direct", colour: "grey" }, { name: "of it, repairs", colour: "red" }], bytes, true),
    errors: plotted("Errors of the device", "Outputs that are not what its executions voted.", "share of outputs", [{ name: "errors", colour: "red" }], (ppm) => rate(ppm / 1e6), true),
    time: plotted("Time of an iteration", "From the command to the next model, as the trainer saw it.", "seconds", [{ name: "iteration", colour: "violet" }], seconds, true),
  };
  const title = h("h1", {}, name), say = h("p", { class: "say" }), bar = h("i", {}), numbers = h("div", { class: "tiles" });
  const progress = h("div", { class: "bar", role: "progressbar", "aria-label": "How far the run is", "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  const pick = h("div", { class: "runs" }), warn = h("p", { class: "note" }), about = h("p", { class: "note" });
  const layerCard = card("Layers", "Errors, agreement of the executions and repairs, all iterations together.");
  const boxes = Object.fromEntries(["stages", "layers", "scores", "services", "settings"].map((one) => [one, h("div", {})]));
  let picked = "", shown = "";
  const element = h("div", {}, title, say, progress, about, pick, warn, numbers, h("div", { class: "grid" },
    charts.loss.element, charts.accuracy.element, charts.bytes.element,
    card("Evaluations", "Held-out images, over several draws of the faults.", boxes.scores),
    card("Where the time goes", "Mean of an iteration. Blue: measured on these hosts. Orange: modelled for the accelerator. Stages overlap.", boxes.stages),
    charts.errors.element,
    layerCard,
    charts.time.element,
    card("Services", null, boxes.services), card("Faults and protection", null, boxes.settings),
    state.commands ? operator({ name }) : null));
  layerCard.append(boxes.layers);
  return {
    name, element, start: () => Object.values(charts).forEach((one) => one.start()), end: () => Object.values(charts).forEach((one) => one.end()),
    update: () => {
      const device = state.devices.get(name);
      if (!device) { say.textContent = "This device is not known here."; return; }
      const run = newest(device);
      say.textContent = sentence(device, run);
      put(boxes.services, serviceTable(device, run)); put(boxes.settings, settingList(run, device));
      const sessions = Object.values(device.runs).sort((a, b) => b.seen - a.seen).map((one) => one.session);
      if (picked !== sessions.join() + (run && run.session)) {
        picked = sessions.join() + (run && run.session);
        put(pick, sessions.length > 1 ? h("label", {}, "Run", h("select", { onchange: (event) => { chosen.set(name, event.target.value); draw(); } }, ...sessions.map((one) => h("option", { value: one, selected: one === run.session }, one)))) : sessions.length ? h("span", { class: "note" }, `run ${sessions[0]}`) : h("span", {}));
      }
      progress.hidden = about.hidden = !run;
      if (!run) return;
      about.textContent = story(run);
      const done = Math.round(100 * share(run));
      bar.style.width = `${done}%`; progress.setAttribute("aria-valuenow", String(done));
      warn.textContent = run.complete ? "" : "Nobody watched when this run began: sums and curves are of what came since.";
      put(numbers, ...tiles(device, run)); put(boxes.stages, stages(run)); put(boxes.layers, layerTable(run)); put(boxes.scores, scoreTable(run));
      if (shown !== run.session || !curves.has(key(name, run.session))) { shown = run.session; fetchCurve(name, run.session); }
      const curve = points(device, run), x = curve.map((p) => p[0] + 1), of = (at) => curve.map((p) => p[at]);
      const untold = run.from_folder && !Object.keys(run.layers).length;
      charts.errors.element.hidden = untold; layerCard.hidden = untold;
      const flat = (values) => x.map(() => mean(values));
      charts.loss.set([x, of(POINT.loss), trailing(of(POINT.loss), 20)]);
      charts.accuracy.set([x, of(POINT.accuracy), trailing(of(POINT.accuracy), 20), flat(score(run, "before", true)), flat(score(run, "before", false)), flat(score(run, "after", true))]);
      charts.bytes.set([x, of(POINT.up), of(POINT.upDirect), of(POINT.repairs)]);
      charts.errors.set([x, of(POINT.errors)]);
      charts.time.set([x, of(POINT.wall)]);
    },
  };
}

function overview() {
  const names = [...state.devices.keys()].slice(0, COLOURS.length);
  const lines = names.map((name, i) => ({ name, colour: COLOURS[i] }));
  const losses = plotted("Loss of each device", state.devices.size > names.length ? `The first ${names.length} of ${state.devices.size}.` : null, "loss", lines, number, false);
  const list = h("div", {});
  const element = h("div", {}, h("h1", {}, "All devices"), h("div", { class: "grid" }, losses.element), card("Devices", null, list));
  return {
    name: "", element, devices: [...state.devices.keys()].join(), start: losses.start, end: losses.end,
    update: () => {
      put(list, table(["device", "online", "what it does", "loss", "with faults", "up the link"], [...state.devices.values()].map((device) => {
        const run = newest(device), services = Object.values(device.services), there = services.filter((one) => one.online).length;
        const now = run ? (score(run, "after", true).length ? score(run, "after", true) : score(run, "before", true)) : [];
        return [h("td", {}, h("span", { class: there && there === services.length ? "dot on" : "dot" }), h("a", { href: `#${encodeURIComponent(device.name)}` }, device.name)), `${there} of ${services.length}`, h("td", { class: "text" }, sentence(device, run)), run && run.loss !== null ? run.loss.toPrecision(3) : "–", run ? `${scored(run, mean(now))} ${now.length ? titleOf(run) : ""}`.trim() : "–", run && run.totals.up_direct ? percent(100 * run.totals.up / run.totals.up_direct) : "–"];
      })));
      const every = names.map((name) => { const device = state.devices.get(name), run = device && newest(device); if (!run) return []; if (!curves.has(key(name, run.session))) fetchCurve(name, run.session); return points(device, run); });
      const x = [...new Set(every.flat().map((p) => p[0] + 1))].sort((a, b) => a - b);
      losses.set([x, ...every.map((curve) => { const at = new Map(curve.map((p) => [p[0] + 1, p[POINT.loss]])); return x.map((one) => at.has(one) ? at.get(one) : null); })]);
    },
  };
}

// ---- drawing ----

function wanted() {
  let name = "";
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { name = ""; }
  if (state.devices.has(name)) return name;
  return state.devices.size === 1 ? [...state.devices.keys()][0] : "";
}
function draw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; drawNow(); });
}
function drawNow() {
  const main = document.getElementById("main"), nav = document.getElementById("devices");
  if (!state.devices.size) {
    if (view) { view.end(); view = null; }
    put(nav);
    put(main, h("p", { class: "empty" }, state.live ? "Nobody is on the bus yet. Devices and runs appear here as soon as they say a word." : "Nothing to show yet."));
    return;
  }
  const name = wanted(), known = [...state.devices.keys()];
  if (nav.dataset.of !== `${name} ${known.join()}`) {
    const at = document.activeElement && nav.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const link = (to, text) => h("a", { href: `#${encodeURIComponent(to)}`, "aria-current": to === name ? "page" : null }, text);
    put(nav, ...(known.length > 1 ? [link("", "All devices"), ...known.map((one) => link(one, one))] : []));
    nav.dataset.of = `${name} ${known.join()}`;
    if (at) [...nav.children].filter((one) => one.getAttribute("href") === at).forEach((one) => one.focus());
  }
  if (!view || view.name !== name || (!name && view.devices !== known.join())) {
    if (view) view.end();
    view = name ? deviceView(name) : overview();
    put(main, view.element);
    view.start();
  }
  document.title = name ? `${name} · R2F` : "R2F";
  view.update();
}
function redo() { if (view) { view.end(); view = null; } draw(); }

// ---- listening ----

function listen() {
  const events = new EventSource("/events"), sign = document.getElementById("connection");
  const say = (text, kind) => { if (sign.textContent !== text) { sign.textContent = text; sign.className = kind; } };
  events.addEventListener("state", (event) => {
    const told = JSON.parse(event.data);
    state = { ...told, devices: new Map(told.devices.map((device) => [device.name, device])) };
    curves.clear();
    say(told.live ? "live" : "a finished run", told.live ? "live" : "");
    redo();
  });
  events.addEventListener("devices", (event) => { JSON.parse(event.data).forEach((device) => state.devices.set(device.name, device)); draw(); });
  events.addEventListener("points", (event) => { JSON.parse(event.data).forEach(([device, session, point]) => addPoint(key(device, session), point)); draw(); });
  events.addEventListener("error", () => say("not connected: these are the last numbers heard", "lost"));
}
window.addEventListener("hashchange", () => { draw(); document.getElementById("main").focus({ preventScroll: true }); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redo);
listen();
