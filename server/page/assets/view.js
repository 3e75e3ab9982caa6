/** The section for one request: state, preview, result or failure. */

import { isEnded, STILLS } from "./api.js";
import { at, copy, element, hide, say, write } from "./dom.js";
import * as words from "./words.js";

/** Pixels of a poster, half as wide as a row of the history shows at most. */
const POSTER = { width: 288, height: 163 };

const section = at("request");
const [headline, detail, video, preview] = ["state", "detail", "video", "preview"].map(at);
const animation = at("animation");
const [progress, trouble, failure, facts] = ["progress", "trouble", "failure", "facts"].map(at);
const actions = ["cancel", "finish", "download", "copy-link", "use-seed", "use-all"].map(at);
const [cancelButton, finishButton, download, copyLink, useSeed, useAll] = actions;
const stillLinks = STILLS.map((name) => at(`download-${name}`));
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/** Of the videos that the server makes. A GIF is drawn by every browser. */
const CODECS = { "video/mp4": "avc1.640028", "video/webm": "vp9" };

/** The request shown: as this browser stored it, and its latest status. */
let shown = { entry: null, body: null };

/** Switch to a request whose status is not known yet. */
export function begin(requestId, entry) {
  shown = { entry, body: null };
  section.dataset.state = "asking";
  section.dataset.id = requestId;
  headline.textContent = "Loading";
  detail.textContent = "";
  video.removeAttribute("src");
  video.removeAttribute("poster");
  animation.removeAttribute("src");
  video.controls = false;
  video.load();
  hide(animation, preview, trouble, failure, progress, at("warnings"), ...actions, ...stillLinks);
  preview.removeAttribute("src");
  facts.replaceChildren();
  at("asked").hidden = !entry?.values.prompt;
  at("asked").textContent = entry?.values.prompt ?? "";
  title("");
}

/** Show a status, a result or a failure. */
export function update(body) {
  trouble.hidden = !body.trouble;
  if (body.trouble) {
    write(trouble, `${body.trouble} Retrying.`);
    return;
  }
  const isNews = phase(body) !== phase(shown.body);
  shown.body = body;
  forecast(body);
  headline.textContent = words.headline(body);
  useAll.hidden = shown.entry === null || !isEnded(body);
  if (body.status === "COMPLETED") complete(body);
  else if (body.status === "FAILED") fail(body);
  else run(body);
  tick();
  if (isNews) say(spoken(body));
}

/** The request cannot be followed any more. */
export function lose(error) {
  section.dataset.state = "lost";
  headline.textContent = error.status === 404 ? "Not found" : "Unavailable";
  write(detail, words.LOST[error.status] ?? error.message);
  hide(progress, cancelButton, trouble);
  shown.endsAt = null;
  title("");
  say(`${headline.textContent}. ${detail.textContent}`);
}

export function cancelling(isAsked) {
  cancelButton.disabled = isAsked;
  cancelButton.textContent = isAsked ? "Cancelling …" : "Cancel";
}

/** Whether the request that is shown has not ended. */
export function isBusy() {
  return shown.body !== null && !isEnded(shown.body);
}

/** Called every second: update elapsed and remaining time. */
export function tick() {
  const { entry, body, endsAt } = shown;
  if (body === null) return;
  const ended = isEnded(body);
  const rows = [];
  if (!ended && entry) rows.push(["Elapsed", words.duration((Date.now() - entry.at) / 1000)]);
  if (!ended && endsAt) rows.push(["Ready in", words.remaining(endsAt, shown.firstEndsAt)]);
  if (body.attempt > 1) rows.push(["Attempt", String(body.attempt)]);
  if (ended) rows.push(...endFacts(body));
  const texts = rows.flat().join();
  if (facts.dataset.texts === texts) return;
  facts.dataset.texts = texts;
  facts.replaceChildren(...rows.map(fact));
}

/** Each report moves `endsAt`; `firstEndsAt` is what the first one of an attempt's run foretold. */
function forecast(body) {
  shown.endsAt = body.eta_seconds === undefined ? null : Date.now() + body.eta_seconds * 1000;
  if (body.status !== "PROCESSING" || body.attempt !== shown.attempt) shown.firstEndsAt = null;
  shown.firstEndsAt ??= shown.endsAt;
}

function run(body) {
  section.dataset.state = body.status === "QUEUED" ? "queued" : "running";
  const step = body.stage === "denoising" ? `Step ${body.step} of ${body.total_steps} · ` : "";
  detail.textContent = body.status === "QUEUED" ? "" : `${step}${body.progress} %`;
  hide(failure);
  progress.hidden = false;
  progress.value = body.progress;
  cancelButton.hidden = false;
  if (body.attempt !== shown.attempt) preview.hidden = true; // from a lost run
  shown.attempt = body.attempt;
  if (body.preview) {
    preview.src = body.preview;
    preview.alt = `Preview after step ${body.step}`;
    preview.hidden = false;
  }
  title(body.status === "QUEUED" ? "queued" : `${body.progress} %`);
}

function complete(body) {
  section.dataset.state = "done";
  detail.textContent = "";
  hide(progress, cancelButton, failure);
  useSeed.hidden = false;
  if (body.video.content_type.startsWith("image/")) animate(body);
  else play(body);
  offerFile(download, body, body.video);
  STILLS.forEach((name, index) => offerFile(stillLinks[index], body, body[name]));
  copyLink.hidden = false;
  finishButton.hidden = !body.draft;
  at("asked").hidden = false;
  at("asked").textContent = body.prompt;
  const list = at("warnings");
  list.replaceChildren(...body.warnings.map(warning));
  list.hidden = body.warnings.length === 0;
  title("ready");
}

/** A link to a file of the result, if it has this one. */
function offerFile(link, body, file) {
  link.hidden = !file;
  if (!file) return;
  link.href = file.url;
  link.setAttribute("download", words.fileName(body, file));
}

function play(body) {
  video.src = body.output;
  if (body.poster) video.poster = body.poster.url;
  video.controls = true;
  video.setAttribute("aria-label", `Video: ${body.prompt}`);
  if (!stillness.matches) video.play().catch(() => {}); // autoplay may be blocked
}

/** Whether this browser has a decoder for it: a build of Chromium may have none for H.264. */
function isPlayable({ video: { content_type: type } }) {
  const codec = CODECS[type];
  return codec === undefined || video.canPlayType(`${type}; codecs="${codec}"`) !== "";
}

/** A GIF is no video to a browser. */
function animate(body) {
  animation.src = body.output;
  animation.alt = `Video: ${body.prompt}`;
  animation.hidden = false;
}

function fail(body) {
  const isCancelled = body.error_code === "cancelled";
  section.dataset.state = isCancelled ? "cancelled" : "failed";
  detail.textContent = isCancelled ? "Nothing was charged." : "";
  hide(progress, cancelButton, preview);
  failure.hidden = isCancelled;
  write(at("error"), body.error);
  at("advice").textContent = `${words.advice(body.error_code)} Nothing was charged.`.trim();
  title(isCancelled ? "cancelled" : "failed");
}

function endFacts(body) {
  const { metrics } = body;
  const rows = [];
  if (body.seed !== undefined) rows.push(["Seed", body.seed]);
  if (body.draft) rows.push(["Draft", `${body.draft.steps} of ${body.draft.total_steps} steps`]);
  if (metrics.total_time !== undefined) rows.push(["Took", words.duration(metrics.total_time)]);
  if (metrics.cached) rows.push(["Run", "none: from the result cache"]);
  if (metrics.cost > 0) {
    const left = words.balance({ credits: metrics.remaining_credits });
    rows.push(["Cost", `${words.inCredits(metrics.cost)}, ${left} left`]);
  }
  if (metrics.retry_count > 0) rows.push(["Attempts", String(metrics.retry_count + 1)]);
  if (body.error_code && body.error_code !== "cancelled") rows.push(["Code", body.error_code]);
  if (body.status === "FAILED") rows.push(["Request", body.request_id]);
  if (body.expires_at) {
    const isGone = Date.parse(body.expires_at) < Date.now();
    rows.push([isGone ? "Expired at" : "Kept until", words.clock(body.expires_at)]);
  }
  return rows;
}

/** Changes when an announcement is due: not with each queue position, step or per cent. */
function phase(body) {
  return body && [body.status, body.stage, body.attempt].join();
}

function spoken(body) {
  const more = body.status === "FAILED" ? `. ${body.error}` : "";
  return `${words.headline(body)}${more}`;
}

function title(state) {
  document.title = state ? `${state} – mochi-server` : "mochi-server";
}

/** A frame of the video, small; none where the video is of another origin. */
function poster(source) {
  const canvas = Object.assign(document.createElement("canvas"), POSTER);
  try {
    canvas.getContext("2d").drawImage(source, 0, 0, POSTER.width, POSTER.height);
    return canvas.toDataURL("image/webp", 0.6);
  } catch {
    return "";
  }
}

function warning(text) {
  const row = element("li");
  write(row, text);
  return row;
}

function fact([name, text]) {
  const row = element("div");
  row.append(element("dt", name), element("dd", text));
  return row;
}

copyLink.addEventListener("click", () => copy(copyLink, download.href));
video.addEventListener("playing", () => hide(preview));
for (const [source, event] of [[video, "loadeddata"], [animation, "load"]]) {
  source.addEventListener(event, () => {
    hide(preview);
    section.dispatchEvent(new CustomEvent("poster", { detail: poster(source) }));
  });
  source.addEventListener("error", () => {
    if (section.dataset.state !== "done" || !source.hasAttribute("src")) return;
    detail.textContent = words.unplayable(isPlayable(shown.body));
  });
}
