// Numbers as people read them. Everything that is not known is a dash.

const DASH = "–";
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const exact = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

export const count = (value) => (value === null || value === undefined ? DASH : whole.format(value));
export const compact = (value) => (value >= 100_000 ? short.format(value) : count(value));

export function rate(value) {
  if (value === null || value === undefined) return DASH;
  return value < 10 && value > 0 ? value.toFixed(1) : compact(value);
}

export function duration(ms) {
  if (ms === null || ms === undefined) return DASH;
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1_000) return `${ms.toFixed(0)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(1)} s`;
  if (ms < 3_600_000) return `${(ms / 60_000).toFixed(0)} min`;
  if (ms < 86_400_000) return `${(ms / 3_600_000).toFixed(0)} h`;
  return `${(ms / 86_400_000).toFixed(0)} d`;
}

export const ago = (ms) => (ms === null ? DASH : ms < 1_000 ? "now" : `${duration(ms)} ago`);

export function bytes(value) {
  if (value === null || value === undefined) return DASH;
  const step = Math.min(4, Math.floor(Math.log2(Math.max(1, value)) / 10));
  return `${(value / 1_024 ** step).toFixed(step && value / 1_024 ** step < 10 ? 1 : 0)} ${["B", "KiB", "MiB", "GiB", "TiB"][step]}`;
}

export function share(part, all) {
  return all ? `${new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 2 }).format(part / all)}` : DASH;
}

export function fact(value) {
  if (value === null || value === undefined) return DASH;
  if (typeof value === "number") return Number.isInteger(value) ? count(value) : exact.format(value);
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
