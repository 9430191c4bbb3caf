// Reads what source.py wrote: float arrays, listed or packed, become flat arrays with their shape.

export async function read(json) {
  const source = { ...json };
  for (const name of ["values", "x", "y", "band"]) if (source[name]) source[name] = await array(source[name]);
  return source;
}

async function array({ shape, data }) {
  const flat = typeof data === "string" ? await unpack(data) : Float64Array.from(data, (v) => (v === null ? NaN : Number(v)));
  return { shape, flat };
}

async function unpack(text) {
  const letters = atob(text), deflated = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) deflated[i] = letters.charCodeAt(i);
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer()), size = bytes.length / 3;
  const bits = new Uint32Array(size);
  for (let i = 0; i < size; i++) bits[i] = (bytes[i] << 24) | (bytes[size + i] << 16) | (bytes[2 * size + i] << 8);
  return new Float32Array(bits.buffer);
}
