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
  out_of_memory: "Ask for fewer frames, then generate again.",
  worker_lost: "Generate again. If it fails again, contact the operator.",
  timeout: "Ask for fewer frames or steps, then generate again.",
  storage: "The operator must check the video storage. Then generate again.",
  internal: "Generate again. If it fails again, send the operator the id of the request.",
};

/** Headline for a status. */
export function headline(body) {
  if (body.status === "COMPLETED") return "Your video is ready";
  if (body.status === "FAILED") return body.error_code === "cancelled" ? "Cancelled" : "Failed";
  if (body.status === "PROCESSING") return STAGES[body.stage] ?? "Running";
  const again = body.attempt > 0 ? " again" : "";
  if (!body.queue_position) return `In the queue${again}`;
  return body.queue_position === 1
    ? `Next in the queue${again}`
    : `In the queue${again}, place ${body.queue_position}`;
}

/** Short state for the list of requests. */
export function outcome({ status, code }) {
  if (status === "COMPLETED") return "Ready";
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

/** `about 3 minutes`: for forecasts. */
export function estimate(seconds) {
  if (seconds < 2) return "a moment";
  if (seconds < 55) return `about ${Math.round(seconds)} seconds`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return minutes === 1 ? "about a minute" : `about ${minutes} minutes`;
  const hours = Math.round(seconds / 360) / 10;
  return hours === 1 ? "about an hour" : `about ${hours} hours`;
}

/** Price and forecast of a dry run, where known. */
export function offer(trial) {
  if (trial.refusal) return trial.refusal.error;
  const { most, gpu_second: byTime } = trial.price;
  const parts = [];
  if (most > 0) parts.push(`Costs ${byTime > 0 ? "up to " : ""}${most} credits.`);
  if (trial.estimated_seconds !== null && trial.estimated_wait_seconds !== null) {
    parts.push(`Ready in ${estimate(trial.estimated_wait_seconds + trial.estimated_seconds)}.`);
  }
  return parts.join(" ");
}

/** `14:05`, with the weekday if it is not today. */
export function clock(time) {
  const at = new Date(time);
  const isToday = at.toDateString() === new Date().toDateString();
  const day = isToday ? {} : { weekday: "short" };
  return at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...day });
}
