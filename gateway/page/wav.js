// WAV and PCM: 16 bit, one channel.

const HEADER_BYTES = 44;

/** Return the sample rate of a WAV header and where its samples begin; null while bytes are missing. */
export function readWavHeader(bytes) {
  if (bytes.length < HEADER_BYTES) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length;) {
    const id = String.fromCharCode(...bytes.subarray(at, at + 4));
    if (id === "data") return { rate: view.getUint32(24, true), start: at + 8 };
    at += 8 + view.getUint32(at + 4, true);
  }
  return null;
}

/** Return a whole WAV: a stream's header says that its length is not known, which some programs do not take. */
export function wholeWav(pieces) {
  const size = pieces.reduce((sum, piece) => sum + piece.length, 0);
  const [head, ...rest] = pieces;
  const first = head.slice();
  if (size < HEADER_BYTES || first.length < HEADER_BYTES) return pieces;
  const view = new DataView(first.buffer);
  view.setUint32(4, size - 8, true);
  view.setUint32(readWavHeader(first).start - 4, size - readWavHeader(first).start, true);
  return [first, ...rest];
}

/** Turn bytes as they come, cut anywhere, into samples from -1 to 1. */
export class SampleReader {
  #left = new Uint8Array(0);
  rate;
  #inHeader;

  /** `rate` of headerless PCM; null to read it from a WAV header. */
  constructor(rate) {
    this.rate = rate;
    this.#inHeader = rate === null;
  }

  feed(piece) {
    let bytes = new Uint8Array(this.#left.length + piece.length);
    bytes.set(this.#left);
    bytes.set(piece, this.#left.length);
    if (this.#inHeader) {
      const header = readWavHeader(bytes);
      if (header === null) {
        this.#left = bytes;
        return new Float32Array(0);
      }
      this.rate = header.rate;
      this.#inHeader = false;
      bytes = bytes.slice(header.start);
    }
    const samples = new Float32Array(bytes.length >> 1);
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    for (let i = 0; i < samples.length; i += 1) samples[i] = view.getInt16(2 * i, true) / 32768;
    this.#left = bytes.slice(2 * samples.length);
    return samples;
  }
}
