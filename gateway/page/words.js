// Figures as people read them.

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${value.toFixed(2)} s` : value < 100 ? `${value.toFixed(1)} s` : `${Math.round(value)} s`;
}

export function count(number, noun) {
  return number === 1 ? `1 ${noun}` : `${number} ${noun}s`;
}

export function bytes(value) {
  return (value / 2 ** 30).toFixed(value < 10 * 2 ** 30 ? 1 : 0);
}

export function uptime(value) {
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} days`;
}

/** One line of a GPU's figures; what it does not tell is left out. */
export function gpuLine(gpu) {
  const parts = [gpu.name || gpu.device];
  if (gpu.temperature_celsius != null) parts.push(`${Math.round(gpu.temperature_celsius)} °C`);
  if (gpu.memory_used_bytes != null && gpu.memory_total_bytes) {
    parts.push(`${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)} GiB`);
  }
  if (gpu.utilization_ratio != null) parts.push(`${Math.round(100 * gpu.utilization_ratio)} % busy`);
  if (gpu.power_watts != null) parts.push(`${Math.round(gpu.power_watts)} W`);
  return parts.join(" · ");
}

/** Set a text only when it differs: an unchanged live region must not be read out again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
