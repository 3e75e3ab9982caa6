/** Texts for the API's states, codes and numbers. */

const STAGES = {
  queued: "Starting",
  encoding_prompt: "Reading the prompt",
  denoising: "Denoising",
  decoding: "Decoding the frames",
  encoding_video: "Encoding the video",
  publishing: "Saving the video",
};

const ADVICE = {
  content_blocked: "Change the prompt, then generate again.",
  cancelled: "",
  out_of_memory: "", // the error says it
  worker_lost: "Generate again. If it fails again, contact the operator.",
  timeout: "Ask for fewer frames or steps, then generate again.",
  storage: "The operator must check the video storage. Then generate again.",
  internal: "Generate again. If it fails again, send the operator the id of the request.",
};

const UNLIMITED = 1e9;
/** Seconds. */
const A_MOMENT = 2;

/** Why a request cannot be shown, by status. What is wrong with a key stands at its field. */
export const LOST = {
  401: "Enter the API key that made it.",
  404: "It has expired, or belongs to another key.",
};

/** What to do first. */
export function invitation(key) {
  if (key) return "Describe a video, then press Generate.";
  return "Enter an API key: `mochi-server up` prints where it is.";
}

/** Headline for a status. */
export function headline(body) {
  if (body.status === "COMPLETED") return `Your ${body.draft ? "draft" : "video"} is ready`;
  if (body.status === "FAILED") return body.error_code === "cancelled" ? "Cancelled" : "Failed";
  if (body.status === "PROCESSING") return STAGES[body.stage] ?? "Running";
  const again = body.attempt > 0 ? " again" : "";
  if (!body.queue_position) return `In the queue${again}`;
  return body.queue_position === 1
    ? `Next in the queue${again}`
    : `In the queue${again}, place ${body.queue_position}`;
}

/** Short state for the list of requests. */
export function outcome({ status, code, values }) {
  if (status === "COMPLETED") return values.draft_steps ? "Draft" : "Ready";
  if (status === "FAILED") return code === "cancelled" ? "Cancelled" : "Failed";
  return status === "QUEUED" ? "Waiting" : "Running";
}

export function advice(errorCode) {
  return ADVICE[errorCode] ?? ADVICE.internal;
}

/** `3 min 20 s`: for measured times. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** Time left of a request; `firstEndsAt` is an earlier forecast of its end, which may have passed. */
export function remaining(endsAt, firstEndsAt) {
  const isLate = Date.now() - firstEndsAt > A_MOMENT * 1000;
  const left = (endsAt - Date.now()) / 1000;
  return isLate && left < A_MOMENT ? "more time than forecast" : estimate(left);
}

/** `about 3 minutes`: for forecasts. */
export function estimate(seconds) {
  if (seconds < A_MOMENT) return "a moment";
  if (seconds < 55) return `about ${Math.round(seconds)} seconds`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return minutes === 1 ? "about a minute" : `about ${minutes} minutes`;
  const hours = Math.round(seconds / 360) / 10;
  return hours === 1 ? "about an hour" : `about ${hours} hours`;
}

/**
 * What the form asks for: the video's length and, where a dry run knows them, price and time.
 * Without the time while another request runs: its own time is shown then.
 */
export function offer(seconds, trial, isBusy) {
  if (trial?.refusal) return trial.refusal.error;
  const parts = [];
  if (Number.isFinite(seconds)) {
    parts.push(`${seconds.toLocaleString([], { maximumFractionDigits: 2 })} s of video`);
  }
  const { most = 0, gpu_second: byTime = 0 } = trial?.price ?? {};
  if (most > 0) parts.push(`${byTime > 0 ? "up to " : ""}${inCredits(most)}`);
  const wait = trial?.estimated_wait_seconds ?? null;
  const run = trial?.estimated_seconds ?? null;
  if (wait !== null && run !== null && !isBusy) parts.push(`ready in ${estimate(wait + run)}`);
  return parts.join(" · ");
}

/** `a-red-panda-drinks-tea-7.mp4`, `…-7-poster.jpg`: a name for a downloaded file of a result. */
export function fileName({ request_id: requestId, prompt, seed }, file) {
  const ending = file.file_name.slice(requestId.length);
  const parts = prompt.toLowerCase().match(/[\p{L}\p{M}\p{N}]+/gu)?.slice(0, 6) ?? ["mochi"];
  return `${[...parts.join("-")].slice(0, 60).join("")}-${seed}${ending}`;
}

/** Why there is no video to be seen. */
export function unplayable(isPlayable) {
  if (isPlayable) return "The video cannot be loaded. It may have expired.";
  return "This browser cannot play it. Download it, or generate it as WebM or GIF.";
}

/** State of the server from /readyz and /version; null if it did not answer. */
export function server(answer) {
  if (answer === null) {
    return { name: "away", text: "No connection", remedy: "", isMock: false, models: [], loras: [] };
  }
  const { status, workers, missing, engines, models = [], loras = [] } = answer;
  const isMock = engines.length > 0 && engines.every((engine) => engine.is_mock);
  if (status === "ready") {
    const text = `Ready · ${isMock ? "mock" : engines[0]?.device ?? "GPU"}`;
    return { name: "ready", text, remedy: "", isMock, models, loras };
  }
  if (workers === "loading") {
    return { name: "loading", text: "Model is loading", remedy: "", isMock, models, loras };
  }
  const text = workers === "none" ? "No worker" : "Not ready";
  return { name: "waiting", text, remedy: missing.join(" "), isMock, models, loras };
}

/** `12.5 credits`; the API has no word for unlimited, and answers a billion. */
export function balance({ credits }) {
  return credits >= UNLIMITED ? "unlimited credits" : inCredits(credits);
}

/** `1 credit`, `12.5 credits`. */
export function inCredits(amount) {
  const text = amount.toLocaleString([], { maximumFractionDigits: 6 });
  return `${text} ${amount === 1 ? "credit" : "credits"}`;
}

/** `14:05`, with the weekday if it is not today. */
export function clock(time) {
  const at = new Date(time);
  const isToday = at.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { weekday: "short" };
  return at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...day });
}
