// What `cloudflared access tcp` does, by another's WebSocket client: one WebSocket, binary messages, standard input and
// output. The argument is a file of JSON: {"url", "address", "ca", "headers"}, and for misbehaving "text" (a message of
// text to send) or "long" (bytes of one long message). Standard error tells what happens, one line each, with the time in
// milliseconds since 1970: `open`, `refused <status> <location>`, `error <code>`, `closed <code> <reason>`.
import { readFileSync } from "node:fs";
import WebSocket, { createWebSocketStream } from "ws";

const { url, address, ca, headers, text, long } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const lookup = (_host, options, done) =>
  options.all ? done(null, [{ address, family: 4 }]) : done(null, address, 4);
const say = (what) => process.stderr.write(`${Date.now()} ${what}\n`);

const socket = new WebSocket(url, { lookup, ca, headers, handshakeTimeout: 10_000, perMessageDeflate: false });
socket.on("unexpected-response", (_request, response) => {
  say(`refused ${response.statusCode} ${response.headers.location ?? "-"}`);
  process.exit(1);
});
socket.on("open", () => {
  say("open");
  if (text !== undefined) return socket.send(text);
  if (long !== undefined) return socket.send(Buffer.alloc(long));
  const stream = createWebSocketStream(socket);
  stream.on("error", () => {});
  process.stdin.pipe(stream);
  stream.pipe(process.stdout);
});
socket.on("error", (error) => say(`error ${error.code ?? error.message}`));
socket.on("close", (code, reason) => {
  say(`closed ${code} ${reason}`);
  // What was read is on its way to standard output still.
  process.stdin.destroy();
  setTimeout(() => process.exit(code === 1000 ? 0 : 1), 200);
});
