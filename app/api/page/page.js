// The live page: asks for the status, the latest actions and the dead letters once a second and shows them.

import { History, byId, drawSparkline, element, keyed, setText, sparkline } from "./draw.js";
import { ago, bytes, compact, count, duration, fact, rate, share } from "./format.js";

const INTERVAL_MS = 1_000;
const PATIENCE_MS = 4_000;
const LENGTH = 120;
const SHOWN_ACTIONS = 12;
const SHOWN_LETTERS = 8;
const SHOWN_CHARACTERS = 300;
const AXIS_MS = [0.1, 1, 10, 100, 1_000, 10_000];

const STAGES = {
  fetched: ["Fetched", "from the append"],
  features: ["Features", "decode, update state"],
  queued: ["Queued", "for the model"],
  scored: ["Scored", "by the models"],
  decided: ["Decided", "rules or fallback"],
  logged: ["Logged", "in the decision log"],
  acted: ["Acted", "by the sink"],
  end_to_end: ["End to end", "append to action"],
};

const history = new History(LENGTH);
let shownAt = null;

// Tiles

function tiles(status) {
  const { throughput, totals, partitions, stages } = status;
  const whole = stages.end_to_end;
  const lag = partitions.reduce((sum, each) => sum + (each.lag ?? 0), 0);
  const actions = history.add("actions", totals.actions);
  const deadLetters = history.add("dead letters", totals.dead_letters);
  return [
    tile("Events in", rate(throughput.events_per_s), "/s", inNote(totals), throughput.events_per_s),
    tile("Decided", rate(throughput.decisions_per_s), "/s", decidedNote(status), throughput.decisions_per_s),
    {
      ...tile("End to end, p99", duration(whole.last_minute.p99_ms), "", endToEndNote(whole), whole.last_minute.p99_ms),
      over: whole.alert,
    },
    tile("Lag", compact(lag), "events", `over ${partitions.length} partitions`, lag),
    tile("Actions", compact(totals.actions), "", `${share(totals.actions, totals.decisions)} of decisions`, difference(actions)),
    tile("Dead letters", compact(totals.dead_letters), "", deadNote(totals), difference(deadLetters)),
  ];
}

const inNote = ({ events, duplicates }) => `${count(events)} in total, ${compact(duplicates)} duplicates dropped`;
const deadNote = ({ dead_letters: dead, late, events }) => `${share(dead, events)} of events, ${compact(late)} late`;
const tile = (title, value, unit, note, level) => ({ title, value, unit, note, level, over: false });
const difference = (values) => (values.length > 1 ? Math.max(0, values.at(-1) - values.at(-2)) : 0);

const endToEndNote = (stage) =>
  stage.budget_ms === null ? `p50 ${duration(stage.last_minute.p50_ms)}` : `budget ${duration(stage.budget_ms)}`;

const decidedNote = ({ totals, breakers }) => {
  const open = [...new Set(breakers.filter((each) => each.state !== "closed").map((each) => each.model))];
  return `${count(totals.fallbacks)} by fallback` + (open.length ? `; breaker of ${open.join(", ")} open` : "");
};

function createTile({ title }) {
  return element(
    "article",
    { class: "tile" },
    element("h2", {}, title),
    element("p", { class: "value" }, element("span"), element("span", { class: "unit" })),
    element("p", { class: "note" }),
    sparkline(),
  );
}

function updateTile(node, { title, value, unit, note, level, over }) {
  const [number, suffix] = node.querySelector(".value").children;
  setText(number, value);
  setText(suffix, unit);
  setText(node.querySelector(".note"), note);
  node.classList.toggle("over", over);
  drawSparkline(node.querySelector("svg"), history.add(`tile ${title}`, level), LENGTH);
}

// Latency by stage, on a logarithmic scale

const place = (ms) => {
  const [low, high] = [Math.log(AXIS_MS[0]), Math.log(AXIS_MS.at(-1))];
  return `${Math.min(100, Math.max(0, ((Math.log(ms) - low) / (high - low)) * 100))}%`;
};

function drawAxis() {
  for (const ms of AXIS_MS) {
    const tick = element("span", {}, ms < 1 ? `${ms} ms` : duration(ms).replace(".0", ""));
    tick.style.left = place(ms);
    byId("axis").append(tick);
  }
}

function createStage([name]) {
  const [title, note] = STAGES[name] ?? [name, ""];
  const range = element("div", { class: "range" });
  for (const ms of AXIS_MS) {
    const line = element("i");
    line.style.left = place(ms);
    range.append(line);
  }
  range.append(...["bar", "dot", "end", "budget"].map((part) => element("b", { class: part })));
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, title, element("small", {}, note)),
    element("td", { class: "number p50" }),
    element("td", { class: "number p99" }),
    element("td", { class: "scale" }, range),
    element("td", { class: "number flag" }),
  );
}

function updateStage(row, [, stage]) {
  const { p50_ms: p50, p99_ms: p99 } = stage.last_minute;
  row.classList.toggle("over", stage.alert);
  setText(row.querySelector(".p50"), duration(p50));
  setText(row.querySelector(".p99"), duration(p99));
  const budget = stage.budget_ms === null ? "–" : duration(stage.budget_ms);
  setText(row.querySelector(".flag"), stage.alert ? `▲ over ${budget}` : budget);
  const [bar, dot, end, mark] = row.querySelectorAll(".range b");
  for (const part of [bar, dot, end]) part.hidden = p99 === null;
  mark.hidden = stage.budget_ms === null;
  if (stage.budget_ms !== null) mark.style.left = place(stage.budget_ms);
  if (p99 === null) return;
  bar.style.left = dot.style.left = place(p50);
  end.style.left = place(p99);
  bar.style.right = `calc(100% - ${place(p99)})`;
}

// Partitions and sinks

function createPartition({ partition }) {
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, String(partition)),
    element("td", { class: "worker" }),
    element("td", { class: "number" }),
    element("td", {}, sparkline()),
    ...Array.from({ length: 5 }, () => element("td", { class: "number dim" })),
  );
}

function updatePartition(now) {
  return (row, each) => {
    const [, worker, lag, spark, ...rest] = row.cells;
    setText(worker, each.worker ?? "no worker");
    worker.classList.toggle("orphan", each.worker === null);
    setText(lag, count(each.lag));
    drawSparkline(spark.firstChild, history.add(`lag ${each.partition}`, each.lag), LENGTH);
    const behind = each.watermark_ms === null ? null : now - each.watermark_ms;
    const texts = [rate(each.events_per_s), count(each.offset), ago(behind), count(each.keys), bytes(each.state_bytes)];
    texts.forEach((text, at) => setText(rest[at], text));
  };
}

function bySink(reports) {
  const sinks = new Map();
  for (const each of reports) {
    const sum = sinks.get(each.sink) ?? { name: each.sink, lag: 0, retries: 0, away: false, error: null, orphan: false };
    sum.lag += each.lag ?? 0;
    sum.retries = Math.max(sum.retries, each.retries);
    sum.away ||= each.breaker !== "closed";
    sum.error ??= each.error;
    sum.orphan ||= each.worker === null;
    sinks.set(each.sink, sum);
  }
  return [...sinks.values()];
}

// Records of the decision log. A sink that reads in portions is half a second behind all the time.
const UP_TO_DATE_LAG = 500;

function sinkState({ away, error, orphan, lag }) {
  if (away) return ["failing", "Away"];
  if (error) return ["failing", "Failing"];
  if (orphan) return ["failing", "No worker"];
  return lag > UP_TO_DATE_LAG ? ["behind", "Catching up"] : ["done", "Up to date"];
}

function createSink({ name }) {
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name, element("div", { class: "error" })),
    element("td", {}, element("span", { class: "pill" })),
    element("td", { class: "number" }),
  );
}

const retriesText = ({ retries }) => (retries ? `${count(retries)} ${retries === 1 ? "retry" : "retries"}` : null);

function updateSink(row, sink) {
  const [, stateCell, lag] = row.cells;
  const [state, text] = sinkState(sink);
  stateCell.firstChild.dataset.state = state;
  setText(stateCell.firstChild, text);
  setText(row.querySelector(".error"), [sink.error, retriesText(sink)].filter(Boolean).join(" · "));
  setText(lag, count(sink.lag));
}

// Actions

const facts = (values, kind = "") =>
  Object.entries(values)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => element("div", { class: kind }, element("dt", {}, name), element("dd", {}, fact(value))));

function createAction(decision) {
  const { id, time, ...event } = decision.event;
  const types = [...new Set(decision.actions.map((action) => action.type))];
  return element(
    "li",
    shownAt === null ? {} : { class: "fresh" },
    element(
      "div",
      { class: "head" },
      element("span", { class: "type" }, types.join(", ")),
      element("a", { class: "id", href: `decisions/${encodeURIComponent(id)}` }, id),
      element("span", { class: "quiet" }, decidedBy(decision)),
      element("div", { class: "states" }),
      element("span", { class: "when quiet" }),
    ),
    element(
      "dl",
      { class: "facts", "aria-label": "Scores, event and features" },
      ...facts(decision.scores, "score"),
      ...facts(event),
      ...facts(decision.features),
    ),
  );
}

function decidedBy({ reason, versions }) {
  const models = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  return models.length ? `model ${models.join(", ")}` : `by ${reason}`;
}

function updateAction(now) {
  return (node, decision) => {
    const { appended, logged } = decision.times_ms;
    setText(node.querySelector(".when"), `${ago(Math.max(0, now - logged))}, took ${duration(logged - appended)}`);
    const deliveries = decision.actions.flatMap((action) => action.deliveries);
    keyed(
      node.querySelector(".states"),
      deliveries,
      ({ sink }) => sink,
      () => element("span", { class: "pill" }),
      (pill, { sink, state }) => {
        pill.dataset.state = state;
        setText(pill, `${sink}: ${state}`);
      },
    );
  };
}

// Dead letters

const shorten = (text) => (text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text);

function createLetter(letter) {
  const whence = letter.sink ?? `${letter.topic}/${letter.partition}/${letter.offset}`;
  return element(
    "li",
    shownAt === null ? {} : { class: "fresh" },
    element(
      "div",
      { class: "head" },
      element("span", { class: "type" }, letter.cause),
      element("span", { class: "id" }, letter.id),
      element("span", { class: "quiet" }, whence),
      element("span", { class: "attempts quiet" }),
      element("span", { class: "when quiet" }),
    ),
    element("p", { class: "reason" }, shorten(letter.reason)),
    element("p", { class: "event" }, letter.value === null ? "no value" : shorten(letter.value)),
  );
}

function updateLetter(now) {
  return (node, { written_ms: writtenMs, replays, state }) => {
    setText(node.querySelector(".when"), ago(Math.max(0, now - writtenMs)));
    const sent = replays ? `sent again ${replays === 1 ? "once" : `${replays} times`}` : "";
    setText(node.querySelector(".attempts"), state === "open" ? sent : state);
  };
}

// The page as a whole

function alertText(alert, now) {
  const title = (STAGES[alert.stage] ?? [alert.stage])[0];
  return `▲ ${title}: p99 ${duration(alert.p99_ms)} over the last minute, budget ${duration(alert.budget_ms)}, for ${duration(now - alert.since_ms)}`;
}

function show(status, decisions, letters) {
  const now = status.time_ms;
  document.title = `${status.alerts.length ? "▲ " : ""}${status.pipeline} · Headrace`;
  setText(byId("pipeline"), status.pipeline);
  setText(byId("workers"), workersText(status.workers));
  keyed(byId("alerts"), status.alerts, ({ stage }) => stage, () => element("li"), (li, alert) => setText(li, alertText(alert, now)));
  keyed(byId("tiles"), tiles(status), ({ title }) => title, createTile, updateTile);
  keyed(byId("stages"), Object.entries(status.stages), ([name]) => name, createStage, updateStage);
  keyed(byId("partitions"), status.partitions, ({ partition }) => partition, createPartition, updatePartition(now));
  showList("sinks", bySink(status.sinks), ({ name }) => name, createSink, updateSink);
  showList("actions", decisions, ({ partition, offset }) => `${partition}/${offset}`, createAction, updateAction(now));
  showList("letters", letters, ({ id }) => id, createLetter, updateLetter(now));
  const orphans = status.partitions.filter((each) => each.worker === null).length;
  setText(byId("partitions-note"), orphans ? `${orphans} without a worker` : "");
  shownAt = new Date();
}

function showList(id, items, keyOf, create, update) {
  keyed(byId(id), items, keyOf, create, update);
  byId(id).closest(".panel").querySelector(".empty").hidden = items.length > 0;
  const table = byId(id).closest("table");
  if (table) table.hidden = items.length === 0;
}

function workersText(workers) {
  const of = (kind) => workers.filter((each) => each.kind === kind).length;
  const plural = (number, what) => `${number} ${what} worker${number === 1 ? "" : "s"}`;
  return `${plural(of("stream"), "stream")}, ${plural(of("action"), "action")}`;
}

function tell(state, text) {
  const pill = byId("connection");
  pill.dataset.state = state;
  setText(pill, text);
  document.body.classList.toggle("stale", state === "lost");
  const at = shownAt === null ? "Not updated yet" : `Updated ${shownAt.toLocaleTimeString()}`;
  setText(byId("updated"), at);
}

async function ask(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), cache: "no-store" });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.detail);
  return body;
}

async function refresh() {
  try {
    const [status, decisions, letters] = await Promise.all([
      ask("status"),
      ask(`decisions?with_actions=true&limit=${SHOWN_ACTIONS}`),
      ask(`dead-letters?limit=${SHOWN_LETTERS}`),
    ]);
    show(status, decisions, letters);
    tell(status.ready ? "live" : "waiting", status.ready ? "Live" : "Waiting for workers");
  } catch (error) {
    const away = error instanceof TypeError || error.name === "TimeoutError";
    tell("lost", away ? "Connection lost, trying again" : `No status: ${error.message}`);
  }
}

async function run() {
  drawAxis();
  for (;;) {
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
  }
}

run();
